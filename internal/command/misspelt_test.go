package command

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// G6: what looks like a setting and is none is named, with the setting that may be meant, and never its value.
func TestMisspeltSettings(t *testing.T) {
	for variable, want := range map[string]string{
		"DESTINATION_SECRT=sesame":      "DESTINATION_SECRT (DESTINATION_SECRET?)",
		"RETENTON=30d":                  "RETENTON (RETENTION?)",
		"RETENTION_DAYS=30":             "RETENTION_DAYS",
		"retention=30d":                 "retention (RETENTION?)",
		"DATABSE_URL=postgres://sesame": "DATABSE_URL (DATABASE_URL?)",
		"DATABASE_URI=postgres://a":     "DATABASE_URI (DATABASE_URL?)",
		"LISTNE=:1":                     "LISTNE (LISTEN?)",
		"ADMIN_TOKNE=":                  "ADMIN_TOKNE (ADMIN_TOKEN?)",
		"ADMIN_PASSWORD=sesame":         "ADMIN_PASSWORD",
		"SPINE_ADMIN_AUTH=none":         "SPINE_ADMIN_AUTH (ADMIN_AUTH?)",
		"DELIVERY_RETRIES=3":            "DELIVERY_RETRIES",
	} {
		require.Equal(t, []string{want}, newEnviron([]string{variable}).misspelt())
	}
	require.Empty(t, newEnviron([]string{
		"DESTINATION_SECRET=a",
		"RETENTION=",
		"PATH=/bin",
		"HOME=/",
		"GOGC=1",
		"NO_COLOR=1",
		"PORT=1",
		"LANG=C",
		"HTTPS_PROXY=http://a",
		"POSTGRES_USER=a",
		"POSTGRES_DB=a",
		"PGHOST=a",
		"DATABASE_PRIVATE_URL=a",
		"ADMIN_SERVICE_HOST=10.0.0.1",
		"ADMIN_PORT_80_TCP_ADDR=10.0.0.1",
		"DELIVERY_PORT=tcp://10.0.0.1:1",
		"DESTINATION_WEBHOOK_SECRET=a",
		"SPINE_SECRET_A=a",
		"SPINE_TEST_DATABASE_URL=a",
		"LISTEN_FDS=1",
		"GITHUB_SECRET=a",
		"LOGNAME=a",
		"TERM=xterm",
	}).misspelt())
}

func TestEditDistance(t *testing.T) {
	for pair, want := range map[[2]string]int{
		{"", "abc"}: 3, {"abc", "abc"}: 0, {"abc", "acb"}: 1, {"abc", "ab"}: 1, {"kitten", "sitting"}: 3,
	} {
		require.Equal(t, want, editDistance(pair[0], pair[1]), pair)
		require.Equal(t, want, editDistance(pair[1], pair[0]), pair)
	}
}

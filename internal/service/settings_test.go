package service

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "1": time.Second, "0.5": 500 * time.Millisecond, "1.0000000014": time.Second + time.Nanosecond,
		"500ms": 500 * time.Millisecond, "1m30s": 90 * time.Second, "-2": -2 * time.Second,
		"30d": 720 * time.Hour, "0.5d": 12 * time.Hour, "0d": 0, "106751d": 106751 * 24 * time.Hour,
	} {
		got, err := ParseDuration(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "s", "1 s", "d", "1 d", "1d12h", "NaN", "NaNd", "Infd", "9223372037", "106752d"} {
		_, err := ParseDuration(text)
		require.Error(t, err, text)
	}
}

func TestDestinationRule(t *testing.T) {
	for _, tc := range []struct {
		in   DestinationSettings
		want string
	}{
		{DestinationSettings{URL: "https://a/b", MockURL: "http://m"}, "https://a/b"},
		{DestinationSettings{URL: "none", MockURL: "http://m"}, ""},
		{DestinationSettings{MockURL: "http://m:8001"}, "http://m:8001/third_party/mock"},
		{DestinationSettings{MockURL: "http://m:8001/"}, "http://m:8001/third_party/mock"},
	} {
		got, err := tc.in.resolve()
		require.NoError(t, err)
		require.Equal(t, tc.want, got)
	}
	_, err := DestinationSettings{}.resolve()
	require.ErrorAs(t, err, new(SettingError))
	require.ErrorContains(t, err, "DESTINATION_URL: must be set")
}

func TestDirectDatabase(t *testing.T) {
	s := Settings{Database: DatabaseSettings{URL: "a"}}
	require.Equal(t, "a", s.DirectURL())
	s.Direct.URL = "b"
	require.Equal(t, "b", s.DirectURL())
}

func TestEverySettingIsDocumentedAndRegisteredOnce(t *testing.T) {
	promised := strings.Fields(`
		DATABASE_URL DIRECT_DATABASE_URL DB_MAX_CONNS DESTINATION_URL DESTINATION_SECRET DELIVERY_TIMEOUT
		MOCK_API_URL MOCK_API_FAILURE_RATE MAX_RETRY_ATTEMPTS INITIAL_RETRY_DELAY MAX_RETRY_DELAY LOG_LEVEL
		LISTEN MOCK_LISTEN ADMIN_TOKEN ADMIN_READ_TOKEN ADMIN_AUTH ADMIN_LISTEN METRICS_LISTEN DEFAULT_SOURCE
		SHUTDOWN_DELAY SHUTDOWN_TIMEOUT LEASE_DURATION
		DELIVERY_CONCURRENCY MAX_BODY_BYTES LOG_FORMAT POSTGRES_BIN RETENTION SECRET_ENV SECRET_DIR`)
	var s Settings
	seen := make(map[string]bool)
	for _, group := range Groups(&s) {
		for _, f := range Fields(group) {
			require.NotEmpty(t, f.Name, "%T.%s", group, f.goName)
			require.NotEmpty(t, f.Help, f.Name)
			require.False(t, seen[f.Name], "%s is there twice", f.Name)
			require.False(t, strings.HasSuffix(f.Name, "_PORT"), "%s: Kubernetes makes such variables", f.Name)
			seen[f.Name] = true
		}
	}
	for _, name := range promised {
		require.True(t, seen[name], "%s is missing", name)
	}
}

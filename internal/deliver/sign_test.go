package deliver

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

// The vector of the Standard Webhooks libraries.
const (
	vectorSecret    = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" //nolint:gosec // published with the standard
	vectorID        = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	vectorTimestamp = "1614265330"
	vectorBody      = `{"test": 2432232314}`
	vectorSignature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
)

func TestSignVector(t *testing.T) {
	for _, secret := range []string{vectorSecret, strings.TrimPrefix(vectorSecret, "whsec_")} {
		key, err := parseSecret(secret)
		require.NoError(t, err)
		require.Equal(t, vectorSignature, sign(key, vectorID, vectorTimestamp, []byte(vectorBody)))
	}
}

func TestParseSecret(t *testing.T) {
	encoded := func(n int) string {
		return base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\xfb", n)))
	}
	for _, secret := range []string{
		"whsec_", "not base64!", "whsec_" + encoded(23), encoded(65), "whsk_" + encoded(32),
		strings.TrimRight(encoded(32), "="), strings.ReplaceAll(encoded(24), "+", "-"),
	} {
		_, err := parseSecret(secret)
		require.Error(t, err, secret)
		require.Regexp(
			t, `^must be base64(, with or without the prefix "whsec_"| of 24 to 64 bytes, found \d+)$`, err.Error(),
		)
	}
	for _, n := range []int{24, 32, 64} {
		key, err := parseSecret("whsec_" + encoded(n))
		require.NoError(t, err)
		require.Len(t, key, n)
	}
	key, err := parseSecret("")
	require.NoError(t, err)
	require.Nil(t, key)
}

func TestMessageID(t *testing.T) {
	for _, tc := range []struct{ source, id, want string }{
		{event.DefaultSource, "test-001", "test-001"},
		{event.DefaultSource, "!~%/?#\"\\", "!~%/?#\"\\"},
		{event.DefaultSource, "a b", "a%20b"},
		{event.DefaultSource, "a\r\nX-Evil: 1", "a%0D%0AX-Evil:%201"},
		{event.DefaultSource, "\x7f\u0085", "%7F%C2%85"},
		{event.DefaultSource, "Zoë 😀", "Zo%C3%AB%20%F0%9F%98%80"},
		{"github", "test-001", "github/test-001"},
		{"git_hub-2", "ü", "git_hub-2/%C3%BC"},
	} {
		require.Equal(t, tc.want, messageID(event.Job{Source: tc.source, ID: tc.id}))
	}
}

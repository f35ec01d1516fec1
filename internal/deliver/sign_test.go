package deliver

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/secret"
)

// The vector of the Standard Webhooks libraries.
const (
	vectorSecret    = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
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
	signs, err := newSigner(secret.Value{})
	require.NoError(t, err)
	require.Nil(t, signs)
}

// Issue 16, Build 1: whatever prints a Client shows no byte of its secret.
func TestNothingPrintsTheSecret(t *testing.T) {
	config := Config{
		URL: "http://127.0.0.1/hooks", Secret: secret.New(vectorSecret), Timeout: time.Second, Concurrency: 1,
	}
	client, err := New(config)
	require.NoError(t, err)
	key, err := parseSecret(vectorSecret)
	require.NoError(t, err)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		for _, value := range []any{config, &config, client, *client} {
			text := fmt.Sprintf(verb, value)
			require.NotContains(t, text, "MfKQ9r8G")
			require.NotContains(t, text, fmt.Sprintf("%d", key)[1:20])
			require.NotContains(t, text, fmt.Sprintf("%x", key))
		}
	}
}

func TestMessageID(t *testing.T) {
	for _, tc := range []struct{ source, id, want string }{
		{event.DefaultSource, "test-001", "test-001"},
		{event.DefaultSource, "!~%/?#\"\\", "!~%25%2F?#\"\\"},
		{event.DefaultSource, "a b", "a%20b"},
		{event.DefaultSource, "a\r\nX-Evil: 1", "a%0D%0AX-Evil:%201"},
		{event.DefaultSource, "\x7f\u0085", "%7F%C2%85"},
		{event.DefaultSource, "Zoë 😀", "Zo%C3%AB%20%F0%9F%98%80"},
		{"github", "test-001", "github/test-001"},
		{"git_hub-2", "ü", "git_hub-2/%C3%BC"},
		{"github", "a/b%2F", "github/a/b%252F"},
	} {
		require.Equal(t, tc.want, messageID(event.Job{Source: tc.source, ID: tc.id}))
	}
}

// A12: no two events share a webhook-id, whatever their sources and ids.
func TestMessageIDIsInjective(t *testing.T) {
	whose := map[string]event.Job{}
	meet := func(source, id string) {
		job := event.Job{Source: source, ID: id}
		header := messageID(job)
		before, isKnown := whose[header]
		require.True(t, !isKnown || before.Source == source && before.ID == id, "%v and %v are %s", before, job, header)
		whose[header] = job
	}
	meet("default", "github/d-1/7") // the envelope's, and GitHub's own
	meet("github", "d-1/7")
	meet("default", "c a")
	meet("default", "c%20a")
	// All short ids of an alphabet that is made of what encodes and what is encoded.
	alphabet := []string{"a", "/", "%", "2", "5", "F", " ", "é", "%2F"}
	ids := []string{""}
	for range 4 {
		for _, id := range ids[:len(ids):len(ids)] {
			for _, next := range alphabet {
				ids = append(ids, id+next)
			}
		}
		slices.Sort(ids)
		ids = slices.Compact(ids)
	}
	for _, source := range []string{"default", "a", "2f", "a2"} {
		for _, id := range ids {
			meet(source, id)
		}
	}
}

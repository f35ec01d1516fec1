package deliver

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/secret"
)

// Issue 16, Build 1: what a destination or a proxy sends back of its own credentials is neither kept nor shown.
func TestAnswersThatRepeatCredentials(t *testing.T) {
	const (
		password = `Hunter2"&/pass`
		token    = "aB3dE6gH9jK2mN5pQ8sT"
		key      = "query-key-77"
		proxied  = "proxy-pass-55"
	)
	decoded, err := parseSecret(vectorSecret)
	require.NoError(t, err)
	inJSON, err := json.Marshal(password)
	require.NoError(t, err)
	basic := base64.StdEncoding.EncodeToString([]byte("ops:" + password))
	secrets := []string{
		password,
		url.QueryEscape(password),
		html.EscapeString(password),
		strings.Trim(string(inJSON), `"`),
		strings.Trim(strconv.Quote(password), `"`),
		basic,
		basic[6:],
		strings.ToLower(basic),
		hex.EncodeToString(
			[]byte(password),
		),
		token,
		key,
		strings.TrimPrefix(vectorSecret, "whsec_"),
		hex.EncodeToString(decoded),
	}
	answer := ""
	server := scripted(t, func(int, int) (string, bool) { return answer, true })
	address := strings.TrimPrefix(server, "http://")
	user := url.UserPassword("ops", password).String()
	destination := "http://" + user + "@" + address + "/hooks/" + token + "?key=" + key
	via, err := url.Parse("http://pu:" + proxied + "@" + address)
	require.NoError(t, err)
	for _, proxy := range []*url.URL{nil, via} {
		if proxy != nil {
			secrets = append(secrets, proxied, base64.StdEncoding.EncodeToString([]byte("pu:"+proxied)))
		}
		c := client(t, Config{URL: destination, Proxy: proxy, Secret: secret.New(vectorSecret)})
		for _, repeated := range secrets {
			body := "You sent: " + repeated + " to /hooks"
			for name, tc := range map[string]struct {
				answer  string
				isWhole bool
			}{
				"failure":      {fmt.Sprintf("HTTP/1.1 500 Oh\r\n\r\n%s", body), true},
				"redirect":     {fmt.Sprintf("HTTP/1.1 302 Found\r\n\r\n%s", body), true},
				"success":      {fmt.Sprintf("HTTP/1.1 200 OK\r\n\r\n%s", body), true},
				"compressed":   {"HTTP/1.1 500 Oh\r\nContent-Encoding: gzip\r\n\r\n" + zipped(body, gzipWriter), true},
				"unknown code": {"HTTP/1.1 500 Oh\r\nContent-Encoding: " + repeated + "\r\n\r\nx", false},
				"no status":    {"HTTX " + repeated + "\r\n\r\n", false},
				"cut": {
					"HTTP/1.1 500 Oh\r\n\r\n" + strings.Repeat("x", maxAnswer-len(repeated)+1) + repeated, false,
				},
			} {
				if name == "unknown code" && strings.ContainsAny(repeated, ";,") {
					continue // it ends a code
				}
				answer = tc.answer
				got := c.Deliver(t.Context(), job)
				text := got.Answer + "\n" + got.Error
				require.NotContains(t, strings.ToLower(text), strings.ToLower(repeated[:len(repeated)-1]), name)
				require.Contains(t, text, secret.Shown, name)
				if tc.isWhole && got.Answer != secret.Shown {
					require.Regexp(t, `^You sent: \[secret\]=* to /hooks$`, got.Answer)
				}
			}
		}
		// What is no credential stays.
		answer = "HTTP/1.1 500 Oh\r\n\r\nCannot POST /hooks for ops: \"no\" such % route, see /services/1"
		got := c.Deliver(t.Context(), job)
		require.Equal(t, event.TryAgain, got.Class)
		require.Equal(t, "Cannot POST /hooks for ops: \"no\" such % route, see /services/1", got.Answer)
	}

	// An HTTPS destination: the proxy alone sees its password.
	answer = "HTTX " + proxied + "\r\n\r\n"
	got := client(t, Config{URL: "https://a.invalid/", Proxy: via}).Deliver(t.Context(), job)
	require.Equal(t, `no connection through the proxy: malformed HTTP response "HTTX [secret]"`, got.Error)

	// A user without a password is a token.
	answer = "HTTP/1.1 401 No\r\n\r\nnot token-as-user"
	got = client(t, Config{URL: "http://token-as-user@" + address}).Deliver(t.Context(), job)
	require.Equal(t, "not [secret]", got.Answer)
}

package source

import (
	"encoding/json"
	"net/http"
	"net/url"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestRedact(t *testing.T) {
	s := compiled(
		t,
		`{"preset":"token","secrets":["env:S"],"verify":[{"header":"X-Pass"},{"scheme":"hmac",`+
			`"header":"X-Token-Signature"}]}`,
		vault{"S": "a long secret"},
	)
	got := s.Redact(http.Header{
		"Authorization":             {"Bearer hidden", "Basic hidden"},
		"Proxy-Authorization":       {"hidden"},
		"X-Forwarded-Authorization": {"hidden"},
		"Cookie":                    {"hidden=hidden"},
		"Set-Cookie":                {"hidden"},
		"X-Gitlab-Token":            {"hidden"},
		"X-Client-Secret":           {"hidden"},
		"X-Password":                {"hidden"},
		"X-Api-Key":                 {"hidden"},
		"Apikey":                    {"hidden"},
		"X-Pass":                    {"hidden"},
		"X-Token-Signature":         {"sha256=aa"},
		"X-Other":                   {"before a long secret after"},
		"X-Coded":                   {"YSBsb25nIHNlY3JldA==", "6120 6c6f6e6720736563726574", "a%20long%20secret"},
		"X-Hex":                     {"61206c6f6e6720736563726574"},
		"Referer":                   {"https://a.example/b?c=1&token=hidden", "what?"},

		// A10: by the words of a name, whoever made it up, and by the look of a value.
		"X-Auth":           {"hidden"},
		"X-Auth-User":      {"hidden"},
		"X-Session":        {"hidden"},
		"X-Sessionid":      {"hidden"},
		"X-Functions-Key":  {"hidden"},
		"Subscription-Key": {"hidden"},
		"X-Appkey":         {"hidden"},
		"X-Jwt-Assertion":  {"hidden"},
		"Cf-Jwt":           {"hidden"},
		"X-Amzn-Oidc-Data": {"hidden"},
		"X-Csrf":           {"hidden"},
		"X-Custom":         {"Bearer hidden", "basic hidden", "eyJhidden.eyJhidden.hidden"},
		"X-Api-Key2":       {"hidden"},
		"X-Api-Keys":       {"hidden"},
		"X-Auth2":          {"hidden"},
		"X-Key1":           {"hidden"},
		"X-Oauth":          {"hidden"},
		"X-Authz":          {"hidden"},
		"X-Authn":          {"hidden"},
		"X-Psk":            {"hidden"},
		"X-Cred":           {"hidden"},
		"X-Pin":            {"hidden"},
		"X-Code":           {"hidden"},
		"X-Sid":            {"hidden"},
		"X-Ticket":         {"hidden"},
		"X-Login-Code":     {"hidden"},
		"X-Scheme": {
			`Digest username="hidden", realm="hidden"`, "Token hidden", "ApiKey hidden", "GenieKey hidden",
			"AWS4-HMAC-SHA256 Credential=hidden/a, Signature=hidden", "SharedAccessSignature sr=a&sig=hidden",
			"Token was renewed", "Basically fine",
		},
		"X-Address": {
			"https://u:hidden@h.example/x",
			"https://hidden@h.example",
			"https://h.example/#access_token=hidden&a=1",
			"https://h.example/?next=https%3A%2F%2Fh%2F%3Ftoken%3Dhidden&a=1",
			"https://h.example/?a=https%3A%2F%2Fu%3Ahidden%40h%2F",
			"https://h.example/?next=https%3A%2F%2Fh%2F%3Fa%3D1",
			"me@example.com",
		},
		"X-Status-Code":     {"200"},
		"X-Surrogate-Keys":  {"a"},
		"X-Event-Key":       {"repo:push"},
		"Idempotency-Key":   {"1"},
		"X-Author":          {"me"},
		"X-Auth-Timestamp":  {"1706616000"},
		"X-Monkey":          {"1"},
		"X-Other-Signature": {"sha1=bb"},
		"Empty":             {},
		"Content-Type":      {"application/json"},
		"X-Bad":             {"a\x00b\xffc", "\"\\\n"},
		"X-\xff":            {"1"},
		"X-\xfe":            {"2"},
	})
	require.True(t, json.Valid(got))
	require.True(t, utf8.Valid(got))
	require.NotContains(t, string(got), "hidden")
	require.NotContains(t, string(got), `\u0000`)
	require.JSONEq(t, `{
		"Authorization": ["[redacted]", "[redacted]"], "Proxy-Authorization": ["[redacted]"],
		"X-Forwarded-Authorization": ["[redacted]"], "Cookie": ["[redacted]"], "Set-Cookie": ["[redacted]"],
		"X-Gitlab-Token": ["[redacted]"], "X-Client-Secret": ["[redacted]"],
		"X-Password": ["[redacted]"], "X-Api-Key": ["[redacted]"], "Apikey": ["[redacted]"], "X-Pass": ["[redacted]"],
		"X-Token-Signature": ["sha256=aa"], "X-Other": ["[redacted]"], "Empty": [],
		"X-Coded": ["[redacted]", "6120 6c6f6e6720736563726574", "[redacted]"], "X-Hex": ["[redacted]"],
		"Referer": ["https://a.example/b?c=1&token=[redacted]", "what?"],
		"X-Auth": ["[redacted]"], "X-Auth-User": ["[redacted]"], "X-Session": ["[redacted]"],
		"X-Sessionid": ["[redacted]"], "X-Functions-Key": ["[redacted]"], "Subscription-Key": ["[redacted]"],
		"X-Appkey": ["[redacted]"], "X-Jwt-Assertion": ["[redacted]"], "Cf-Jwt": ["[redacted]"],
		"X-Amzn-Oidc-Data": ["[redacted]"], "X-Csrf": ["[redacted]"],
		"X-Custom": ["[redacted]", "[redacted]", "[redacted]"], "X-Event-Key": ["repo:push"],
		"X-Api-Key2": ["[redacted]"], "X-Api-Keys": ["[redacted]"], "X-Auth2": ["[redacted]"], "X-Key1": ["[redacted]"],
		"X-Oauth": ["[redacted]"], "X-Authz": ["[redacted]"], "X-Authn": ["[redacted]"], "X-Psk": ["[redacted]"],
		"X-Cred": ["[redacted]"], "X-Pin": ["[redacted]"], "X-Code": ["[redacted]"], "X-Sid": ["[redacted]"],
		"X-Ticket": ["[redacted]"], "X-Login-Code": ["[redacted]"],
		"X-Scheme": ["[redacted]", "[redacted]", "[redacted]", "[redacted]", "[redacted]", "[redacted]",
			"Token was renewed", "Basically fine"],
		"X-Address": ["https://[redacted]@h.example/x", "https://[redacted]@h.example",
			"https://h.example/#access_token=[redacted]&a=1", "https://h.example/?next=[redacted]&a=1",
			"https://h.example/?a=[redacted]", "https://h.example/?next=https%3A%2F%2Fh%2F%3Fa%3D1", "me@example.com"],
		"X-Status-Code": ["200"], "X-Surrogate-Keys": ["a"],
		"Idempotency-Key": ["1"], "X-Author": ["me"], "X-Auth-Timestamp": ["1706616000"], "X-Monkey": ["1"],
		"X-Other-Signature": ["sha1=bb"],
		"Content-Type": ["application/json"],
		"X-Bad": ["a\ufffdb\ufffdc", "\"\\\n"], "X-\ufffd": ["2"]
	}`, string(got))
	require.Equal(t, "{}", string(s.Redact(nil)))
}

func TestRedactTarget(t *testing.T) {
	for target, want := range map[string]string{
		"/webhook/github":  "/webhook/github",
		"/webhook/github?": "/webhook/github",
		"/a?b=c&d":         "/a?b=c&d",

		"/a?token=x&b=c&access_token=y": "/a?token=[redacted]&b=c&access_token=[redacted]",

		"/a?hub.mode=subscribe&hub.verify_token=x&hub.challenge=1": "/a?hub.mode=subscribe&" +
			"hub.verify_token=[redacted]&hub.challenge=1",

		"/a?to%6ben=x;API_KEY=y&key=z&monkey=1": "/a?to%6ben=[redacted];" +
			"API_KEY=[redacted]&key=[redacted]&monkey=1",

		"/a?user[password]=x&%zztoken=1&token": "/a?user[password]=[redacted]&" +
			"%zztoken=[redacted]&token",

		"/%00%ff?a=%00": "/%00%ff?a=%00",

		// A10: by the words of a name, whoever made it up.
		"/a?sig=x&code=y&status_code=1&Signature=z&X-Amz-Signature=w&hmac=v": "/a?sig=[redacted]&code=[redacted]&" +
			"status_code=1&Signature=[redacted]&X-Amz-Signature=[redacted]&hmac=[redacted]",
		"/a?accessKey=x&sharedAccessKey=y&session_id=z&jwt=w&bodySHA256=1&event_key=2": "/a?accessKey=[redacted]&" +
			"sharedAccessKey=[redacted]&session_id=[redacted]&jwt=[redacted]&bodySHA256=1&event_key=2",
		"/a?x=eyJhbGciOi.eyJzdWIi.c2ln&y=Bearer%20abc&design=1": "/a?x=[redacted]&y=[redacted]&design=1",
		"/a?secret=b=c": "/a?secret=[redacted]",
		"/a?sign=x&authcode=x&oauth_code=x&login_code=x&key2=x&mac=x&country_code=de": "/a?sign=[redacted]&" +
			"authcode=[redacted]&oauth_code=[redacted]&login_code=[redacted]&key2=[redacted]&mac=[redacted]&country_code=de",
	} {
		u, err := url.ParseRequestURI(target)
		require.NoError(t, err, target)
		require.Equal(t, want, new(Redactor).RedactTarget(u), target)
	}
	require.Equal(t, "/a?b=\ufffd\ufffd", new(Redactor).RedactTarget(&url.URL{Path: "/a", RawQuery: "b=\x00\xff"}))
}

// A10: a source that checks a user and a password does not keep the password alone either.
func TestRedactKnowsThePasswordOfBasic(t *testing.T) {
	s := compiled(t, `{"preset":"basic","secrets":["env:S"]}`, vault{"S": "user:hunter2hunter2"})
	got := string(s.Redact(http.Header{"X-Note": {"it is hunter2hunter2"}}))
	require.JSONEq(t, `{"X-Note": ["[redacted]"]}`, got)
}

// A1: a source whose secret is a plain word takes events whose ids and types hold that word.
func TestShortSecretsAreNoWords(t *testing.T) {
	s := compiled(
		t,
		`{"preset":"token","secrets":["env:S"],"verify":[{"header":"X-Tok"}],"id":"{body:/id}","type":"{body:/type}"}`,
		vault{"S": "invoices"},
	)
	events, _, err := s.Read(sent(`{"id":"invoices-1","type":"invoices.paid"}`))
	require.NoError(t, err)
	require.Equal(t, "invoices-1 invoices.paid", events[0].ID+" "+events[0].Type)
	events, _, err = s.Read(sent(`{"id":"invoices","type":"invoices"}`)) // the secret itself
	require.NoError(t, err)
	require.NotContains(t, events[0].ID+events[0].Type, "invoices")
}

func TestSingleHeaders(t *testing.T) {
	for settings, want := range map[string][]string{
		`{"preset":"envelope"}`: nil,
		`{"preset":"github","secrets":["env:S"]}`: {
			"X-Github-Delivery",
			"X-Github-Event",
			"X-Github-Hook-Id",
			"X-Hub-Signature-256",
		},
		`{"preset":"bearer","secrets":["env:S"]}`: {"Authorization"},
		`{"preset":"slack","secrets":["env:S"]}`:  {"X-Slack-Request-Timestamp", "X-Slack-Signature"},
		`{"preset":"svix","secrets":["env:S"]}`: {
			"Svix-Id", "Svix-Signature", "Svix-Timestamp", "Webhook-Id", "Webhook-Signature", "Webhook-Timestamp",
		},
	} {
		require.Equal(t, want, compiled(t, settings, vault{"S": standardSecret}).SingleHeaders(), settings)
	}
}

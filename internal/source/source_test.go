package source

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
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
		"X-Passkey":        {"hidden"},
		"X-Origin-Verify":  {"hidden"},
		"X-Vercel-Bypass":  {"hidden"},
		"X-Plain": {
			"ghp_hiddenhiddenhidden", "with sk_live_hiddenhiddenhidden, and more", `{"a":"xoxb-hiddenhiddenhidden"}`,
			"AKIAHIDDEN", "sk_live_ is how keys begin", "not-sk_live_0123456789abcdef",
		},
		"X-Plaid-Pw": {"hidden"},
		"X-Escaped":  {`t\u006fken=hidden`, `{"\u0070\u0077":"hidden"}`, `a\u006f=shown`},
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
		"X-Plain": ["[redacted]", "with [redacted], and more", "{\"a\":\"[redacted]\"}",
			"AKIAHIDDEN", "sk_live_ is how keys begin", "not-sk_live_0123456789abcdef"],
		"X-Origin-Verify": ["[redacted]"], "X-Vercel-Bypass": ["[redacted]"],
		"X-Passkey": ["[redacted]"], "X-Plaid-Pw": ["[redacted]"],
		"X-Escaped": ["t\\u006fken=[redacted]", "[redacted]", "a\\u006f=shown"],
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

// B2: what one request makes Spine write stays in proportion. All events of a batch have its headers, or the first one.
func TestABatchKeepsItsHeadersInProportion(t *testing.T) {
	s := compiled(t, `{"preset":"cloudevents","secrets":["env:S"]}`, vault{"S": "0123456789abcdef"})
	batch := func(n, size int) []event.Event {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,{"specversion":"1.0","id":"%d","source":"/s","type":"t"}`, i)
		}
		events, isBatch, err := s.Read(sent("["+b.String()[1:]+"]",
			"Content-Type", "application/cloudevents-batch+json", "X-Long", strings.Repeat("x", size)))
		require.NoError(t, err)
		require.True(t, isBatch)
		require.Len(t, events, n)
		return events
	}
	for _, e := range batch(500, 300) {
		require.Contains(t, string(e.Headers), "X-Long")
	}
	total := 0
	for i, e := range batch(500, 14_000) {
		total += len(e.Headers)
		if i == 0 {
			require.Contains(t, string(e.Headers), "X-Long")
		} else {
			require.Equal(t, "{}", string(e.Headers))
		}
	}
	require.Less(t, total, 20_000)
}

// A10: a secret stands in odd places of a request too, and in forms that nobody has listed.
func TestRedactFindsSecretsAnywhere(t *testing.T) {
	const own = "Hidden/secret+of:shop"
	s := compiled(t, `{"preset":"token","secrets":["env:S"],"verify":[{"header":"X-Tok"}]}`, vault{"S": own})
	encoded := func(before, after string) string {
		return base64.StdEncoding.EncodeToString([]byte(before + own + after))
	}
	twice := url.QueryEscape(url.QueryEscape(own))
	for value, want := range map[string]string{
		encoded("u:", ""):                                "[redacted]",
		"x " + encoded("user:", "!"):                     "[redacted]",
		encoded("u1:", " and more"):                      "[redacted]",
		strings.TrimRight(encoded("", ""), "="):          "[redacted]",
		strings.ToUpper(hex.EncodeToString([]byte(own))): "[redacted]",
		"%48idden%2fsecret%2Bof:shop":                    "[redacted]",
		"HIDDEN/SECRET+OF:SHOP":                          "[redacted]",
		"https://h.example/?a=" + twice + "&b=1":         "https://h.example/?a=[redacted]&b=1",
		`{"a":"\u0048idden/secret+of:shop"}`:             "[redacted]",
		`{"a":"Hidden\/secret+of:shop"}`:                 "[redacted]",
		"password:12345":                                 "password:[redacted]",
		"db.password: hunter2":                           "db.password: [redacted]",

		"//user:hidden@h.example/x":              "//[redacted]@h.example/x",
		"see //hidden@h.example, b":              "see //[redacted]@h.example, b",
		"postgres://user:hidden@h.example/x":     "postgres://[redacted]@h.example/x",
		"user:hidden@h.example:5432":             "[redacted]@h.example:5432",
		"db=user:hidden@10.0.0.1":                "db=[redacted]@10.0.0.1",
		"token=hidden":                           "token=[redacted]",
		"a=1; key=hidden; b=2":                   "a=1; key=[redacted]; b=2",
		"a=1,key=hidden,hidden,b=2":              "a=1,key=[redacted],b=2",
		"api_key = hidden":                       "[redacted]",
		"sr=a&sig=hidden&b=2":                    "sr=a&sig=[redacted]&b=2",
		"password: hidden":                       "password: [redacted]",
		"X-Api-Key:hidden hidden":                "X-Api-Key:[redacted]",
		`token="hidden, hidden" b`:               `token="[redacted]" b`,
		"bearer:hidden":                          "[redacted]",
		"Bearer\thidden":                         "[redacted]",
		"  BEARER  hidden":                       "[redacted]",
		"basic:hidden":                           "[redacted]",
		"Basic\thidden":                          "[redacted]",
		"Token\thidden":                          "[redacted]",
		"-H 'Bearer hidden' x":                   "-H 'Bearer [redacted]' x",
		`["Bearer:hidden", "x"]`:                 `["Bearer:[redacted]", "x"]`,
		"by Basic aGlkZGVuOmhpZGRlbg== then":     "by Basic [redacted] then",
		"was eyJhidden.eyJhidden.hidden, really": "was [redacted], really",
		"/a;jsessionid=hidden?b=1":               "/a;jsessionid=[redacted]?b=1",
		"https://h.example/a;PHPSESSID=hidden":   "https://h.example/a;PHPSESSID=[redacted]",

		`{"access_token":"hidden","expires_in":3600}`:      `{"access_token":"[redacted]","expires_in":3600}`,
		`{"a":{"clientSecret" : "hi\"dden"},"b":1}`:        `{"a":{"clientSecret" : "[redacted]"},"b":1}`,
		`{"a":"{\"key\":\"hidden\"}"}`:                     `{"a":"{\"key\":\"[redacted]\"}"}`,
		`{'password': 'hidden'}`:                           `{'password': '[redacted]'}`,
		`{"pin":1234567,"b":1}`:                            `{"pin":[redacted],"b":1}`,
		`{"b":1,"tokens":["hidden","hidden"]}`:             `{"b":1,"tokens":[redacted]`,
		"%7B%22access_token%22%3A%22hidden%22%7D":          "[redacted]",
		"a=%257B%2522access_token%2522%253A%2522hidden%22": "a=[redacted]",
		"https://h/?a=1&next=%2F%2Fu%3Ahidden%40h":         "https://h/?a=1&next=[redacted]",
		"a=%2525252525252541":                              "a=[redacted]", // who would look that deep?
	} {
		got := s.Redact(http.Header{"X-Odd": {value}})
		var headers http.Header
		require.NoError(t, json.Unmarshal(got, &headers))
		require.Equal(t, want, headers.Get("X-Odd"), value)
		require.NotContains(t, strings.ToLower(want), "hidden")
	}

	// A name is changed to its canonical letters on its way.
	s = compiled(
		t,
		`{"preset":"token","secrets":["env:S"],"verify":[{"header":"X-Tok"}]}`,
		vault{"S": "aHiddenSecretOfShop"},
	)
	require.JSONEq(t, `{"X-A":["1"],"[redacted]":["[redacted]"]}`, string(s.Redact(http.Header{
		"X-A": {"1"},
		http.CanonicalHeaderKey("aHiddenSecretOfShop"): {"1"},
		"X-Ahiddensecretofshop":                        {"1"},
		http.CanonicalHeaderKey(hex.EncodeToString([]byte("aHiddenSecretOfShop"))): {
			"",
		},
		"Eyjhidden.eyjhidden.hidden": {"x"},
	})))
	require.Equal(t, "[redacted]", s.RedactMethod("AHIDDENSECRETOFSHOP"))
	require.Equal(t, "POST", s.RedactMethod("POST"))
	code := base64.StdEncoding.EncodeToString([]byte("u:aHiddenSecretOfShop!"))
	for target, want := range map[string]string{
		"/a?aHiddenSecretOfShop":            "/a?[redacted]",
		"/a?aHiddenSecretOfShop=":           "/a?[redacted]",
		"/a?aHiddenSecretOfShop=1&b=2":      "/a?[redacted]&b=2",
		"/a?b=1;%61HiddenSecretOfShop":      "/a?b=1;[redacted]",
		"/a?b=1&%2561HiddenSecretOfShop=":   "/a?b=1&[redacted]",
		"/a?" + code:                        "/a?[redacted]",
		"/a?b=" + code + "&c=1":             "/a?b=[redacted]&c=1",
		"/a?b=" + url.QueryEscape(code):     "/a?b=[redacted]",
		"/a?token%3Dhidden":                 "/a?[redacted]",
		"/a?b%26token%253Dhidden&c=1":       "/a?[redacted]&c=1",
		"/a?to%256ben=hidden&c=1":           "/a?to%256ben=[redacted]&c=1",
		"/a?b=%2526token%253Dhidden&c=1":    "/a?b=[redacted]&c=1",
		"/a?token=hidden;hidden?hidden#x&c": "/a?token=[redacted]&c",
		"/a?b=%7B%22token%22:%22hidden%22}": "/a?b=[redacted]",
		"/a?b=//u:hidden@h&c=1":             "/a?b=//[redacted]@h&c=1",
		"/a?bearer:hidden&c=1":              "/a?[redacted]&c=1",
		"/a?eyJhidden.eyJhidden.hidden":     "/a?[redacted]",
		"/a;jsessionid=hidden?c=1":          "/a;jsessionid=[redacted]?c=1",
		"/a;%6asessionid=hidden":            "/a;%6asessionid=[redacted]",
		"/a/aHiddenSecretOfShop/b?c=1":      "/a/[redacted]/b?c=1",
		"/a/%61HiddenSecretOfShop":          "/a/[redacted]",
		"/a/token%3Dhidden/b":               "/a/[redacted]/b",
	} {
		u, err := url.ParseRequestURI(target)
		require.NoError(t, err, target)
		require.Equal(t, want, s.RedactTarget(u), target)
		_, err = url.Parse(want)
		require.NoError(t, err, "it can be replayed")
	}
}

// A10: what ordinary requests hold stays readable.
func TestRedactKeepsOrdinaryValues(t *testing.T) {
	s := compiled(t, `{"preset":"hmac","secrets":["env:S"],"verify":[{"header":"X-Sig"}]}`, vault{"S": "a long secret"})
	ordinary := http.Header{
		"Accept":              {"*/*", "text/html, application/json;q=0.9, */*;q=0.8"},
		"Accept-Encoding":     {"gzip, deflate, br"},
		"Baggage":             {"userId=alice,region=eu-1"},
		"Cf-Connecting-Ip":    {"2001:db8::1"},
		"Cf-Ray":              {"84e1b2c3d4e5f6a7-FRA"},
		"Cf-Visitor":          {`{"scheme":"https"}`},
		"Content-Disposition": {`form-data; name="file"; filename="a=b.json"`},
		"Content-Digest":      {"sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"},
		"Content-Md5":         {"1B2M2Y8AsgTpgAmY7PhCfg=="},
		"Content-Type": {
			"application/json; charset=utf-8",
			"multipart/form-data; boundary=----a1",
		},
		"Date":      {"Tue, 30 Jan 2024 12:00:00 GMT"},
		"Forwarded": {`for="[2001:db8::1]:4711";proto=https;host=auth.example.com:8443`},
		"From":      {"me@example.com", "mailto:me@example.com"},
		"Link":      {`<https://api.example.com/x?page=2&per_page=50>; rel="next"`},
		"Origin":    {"https://auth.example.com:8443"},
		"Referer":   {"https://h.example/a?b=c+d&e=%2Fx%3Fy%3D1#top"},
		"Sec-Ch-Ua": {`"Chromium";v="118", "Not=A?Brand";v="99"`},
		"Signature": {
			`keyId="a",algorithm="hs2019",headers="(request-target) date",signature="aa=="`,
		},
		"Stripe-Signature": {"t=1706616000,v1=88a022085c6bdb887b02cb26ff76dd68,v0=6ffbb59b"},
		"Traceparent":      {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
		"Tracestate":       {"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"},
		"User-Agent": {
			"GitHub-Hookshot/044aadd",
			"Stripe/1.0 (+https://stripe.com/docs/webhooks)",
		},
		"Via":                                    {"1.1 google, 2.0 h:8080 (x)"},
		"Webhook-Signature":                      {"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
		"X-Amzn-Trace-Id":                        {"Root=1-67891233-abcdef012345678912345678;Sampled=1"},
		"X-Event-Key":                            {"repo:push"},
		"X-Forwarded-For":                        {"203.0.113.9, 10.0.0.1:4711"},
		"X-Forwarded-Host":                       {"auth.example.com:443"},
		"X-Github-Delivery":                      {"72d3162e-cc78-11e3-81ab-4c9367dc0958"},
		"X-Github-Event":                         {"secret_scanning_alert"},
		"X-Github-Hook-Installation-Target-Type": {"repository"},
		"X-Hub-Signature":                        {"sha1=757107ea0eb2509fc211221cce984b8a37570b6d"},
		"X-Note": {
			"the basic plan", "an API token was renewed", "a key for you", "status code: 200", "100% sure", `a\b "c"`,
			"50%+20%", "monkey=1", "eyja.example.com.is",
		},
		"X-Shopify-Hmac-Sha256":  {"XWmrwMey6OsLMeiZKwP4FppHH3cmAiiJJAweH5Jo4bM="},
		"X-Shopify-Shop-Domain":  {"shop.example.com"},
		"X-Shopify-Topic":        {"orders/create"},
		"X-Shopify-Triggered-At": {"2024-01-30T12:00:00.123456789Z"},
		"X-Sig":                  {"aa"},
	}
	var got http.Header
	require.NoError(t, json.Unmarshal(s.Redact(ordinary), &got))
	require.Equal(t, ordinary, got)
	for _, target := range []string{
		"/webhook/github",
		"/webhook/shop?shop=a.example.com&timestamp=1706616000&page=2",
		"/webhook/x?a=b:c,d@e.example,e+f&g=%2B1",
		"/webhook/x?redirect=https%3A%2F%2Fh.example%2F%3Fa%3D1%26b%3D2", "/webhook/a%20b;v=1/c?100%25",
	} {
		u, err := url.ParseRequestURI(target)
		require.NoError(t, err, target)
		require.Equal(t, target, s.RedactTarget(u))
	}
}

// A hostile text takes no more than a moment: what is nested in it does not multiply the work.
func TestRedactTakesNoLongerThanItsText(t *testing.T) {
	for _, part := range []string{
		"token=", "=", "a=", ":", "//", "@", "a:b@", " ", "token= , ", "%25", "%2525", "\\", "\"",
		"bearer ", "eyJ", "{", "a=%", "&", "token:a,",
	} {
		value := strings.Repeat(part, 16000/len(part))
		began := time.Now()
		new(Redactor).Redact(http.Header{"X": {value, "token=" + value}})
		require.Less(t, time.Since(began), 5*time.Second, part)
	}
}

// GitHub's headers are redacted for each event.
func BenchmarkRedact(b *testing.B) {
	s := compiled(b, `{"preset":"github","secrets":["env:S"]}`, vault{"S": "It's a Secret to Everybody"})
	h := http.Header{
		"Accept": {"*/*"}, "Content-Length": {"6500"}, "Content-Type": {"application/json"},
		"User-Agent": {"GitHub-Hookshot/044aadd"}, "X-Github-Delivery": {"72d3162e-cc78-11e3-81ab-4c9367dc0958"},
		"X-Github-Event": {"issues"}, "X-Github-Hook-Id": {"292430182"}, "X-Forwarded-For": {"203.0.113.9"},
		"X-Github-Hook-Installation-Target-Id": {"79929171"}, "X-Github-Hook-Installation-Target-Type": {"repository"},
		"X-Hub-Signature":     {"sha1=7d38cdd689735b008b3c702edd92eea23791c5f6"},
		"X-Hub-Signature-256": {"sha256=d57c68ca6f92289e6987922ff26938930f6e66a2d161ef06abdf1859230aa23c"},
	}
	b.ReportAllocs()
	for b.Loop() {
		s.Redact(h)
	}
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

// What a stranger's 16 kB may cost: each text once for each level of encoding, and no more.
func BenchmarkRedactHostile(b *testing.B) {
	s := compiled(b, `{"preset":"token","secrets":["env:S","env:T"],"verify":[{"header":"X-Tok"}]}`,
		vault{"S": "Hidden/secret+of:shop", "T": "abcdefghijklmnop0123456789abcdefghijkl"})
	for name, part := range map[string]string{
		"letters": "a", "encodings": "%25252525x", "encoded letters": "%61", "encoded pairs": "a=%2541&",
		"pairs": "%3Ba%253D%25252541", "names of secrets": "token=a,", "names": "a:b ", "users": "u:p@x",
		"basic": "x=basic:", "backslashes": `\`, "escapes": `\u0025`, "separators": "&",
	} {
		b.Run(name, func(b *testing.B) {
			h := http.Header{"X-A": {strings.Repeat(part, 16_000/len(part))}}
			for b.Loop() {
				s.Redact(h)
			}
		})
	}
}

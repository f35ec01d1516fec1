package source

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/secret"
)

// FuzzSignatureHeader sends anything as a signature or credential, and as the headers that belong to it. Nobody knows
// the secret, so every request must be rejected. The reason must be valid text without the secret.
func FuzzSignatureHeader(f *testing.F) {
	secret := make([]byte, 32)
	_, err := rand.Read(secret)
	require.NoError(f, err)
	text := hex.EncodeToString(secret)
	public, _, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(f, err)
	secrets := vault{
		"S": text, "STANDARD": "whsec_" + base64.StdEncoding.EncodeToString(secret), "BASIC": "user:" + text,
		"PUBLIC": "whpk_" + base64.StdEncoding.EncodeToString(public), "DISCORD": hex.EncodeToString(public),
	}
	refs := map[string]string{
		"standard-webhooks": `"env:STANDARD","env:PUBLIC"`,
		"svix":              `"env:STANDARD","env:PUBLIC"`,
		"gitlab":            `"env:S","env:STANDARD"`,
		"basic":             `"env:BASIC"`, "discord": `"env:DISCORD"`,
	}
	var sources []*Source
	for _, preset := range Presets() {
		tr := trials()[preset]
		if tr.open {
			continue
		}
		ref, given := refs[preset]
		if !given {
			ref = `"env:S"`
		}
		sources = append(sources, compiled(f, tr.with(preset, ref), secrets))
	}
	sources = append(sources,
		compiled(
			f,
			`{"preset":"hmac","secrets":["env:S"],"verify":[{"header":"X-Sig","hash":"sha512","separator":",",`+
				`"encoding":"base64"}]}`,
			secrets,
		),
		compiled(
			f,
			`{"preset":"hmac","secrets":["env:S"],"verify":[{"header":"X-Sig","hash":"sha1","separator":",",`+
				`"assign":"=","key":"k"}]}`,
			secrets,
		),
	)

	for _, value := range []string{
		"",
		"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
		"v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==",
		"sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
		"VnKUjZsLuN5iZWjn5EntcBVCF9kMN43LglzCE1/GSeY=",
		"t=1706616000,v1=88a022085c6bdb887b02cb26ff76dd681234d9675c0f22844059f55552a8883a,v0=6ffbb59b",
		"ts=1706616000;h1=01e70976bb47ac6c3cd48577a3a9e0eb6d4a81737f31cd2badcd36cbadb7d016",
		"v0=00",
		"RSOYDt4T1cUTdK1PDd93/VVr8B8=",
		"Bearer x",
		"Basic dXNlcjpwYXNz",
		strings.Repeat("00", 64),
		strings.Repeat("00", 32),
		"v1,v1,v1, v1",
		"t=,v1=",
		"=,=,=",
	} {
		for i := range sources {
			f.Add(
				uint8(i), value, "1706616000", "msg_1", "a=b&bodySHA256=00",
				[]byte(`{"webhookTimestamp":1706616000000}`),
			)
		}
	}
	causes := []string{
		causeSignatureMissing,
		causeSignatureWrong,
		causeTimestampBad,
		causeTimestampStale,
		causeCredentialsMissing,
		causeCredentialsWrong,
	}
	f.Fuzz(func(t *testing.T, i uint8, value, timestamp, id, query string, body []byte) {
		s := sources[int(i)%len(sources)]
		r := request(string(body), "Content-Type", "application/x-www-form-urlencoded")
		r.URL.RawQuery = query
		for _, m := range s.methods {
			for _, group := range signedHeaders(m.Method) {
				for _, name := range group {
					r.Header.Set(name, id)
				}
			}
			for _, p := range m.places {
				if p.kind == timestampHeader {
					r.Header.Set(p.name, timestamp)
				}
			}
			for _, name := range m.headers {
				r.Header.Set(name, value)
			}
		}
		err := s.Verify(r)
		var failed *event.UnverifiedError
		if !errors.As(err, &failed) {
			t.Fatalf("%s took %q without the secret: %v", s.config.Preset, value, err)
		}
		require.Contains(t, causes, failed.Cause)
		require.True(t, utf8.ValidString(failed.Detail))
		require.NotContains(t, failed.Detail, text)

		shown := s.Redact(r.Header)
		require.True(t, json.Valid(shown) && utf8.Valid(shown), "%q", shown)
		require.NotContains(t, string(shown), `\u0000`)
		require.NotContains(t, string(shown), text)
		require.True(t, utf8.ValidString(s.RedactTarget(r.URL)))
	})
}

// FuzzRedact redacts anything. A secret of the source is in nothing that is kept.
func FuzzRedact(f *testing.F) {
	const own = "a;long&secret=of/the?shop"
	s := compiled(f, `{"preset":"token","secrets":["env:S"],"verify":[{"header":"X-Tok"}]}`, vault{"S": own})
	for _, text := range []string{
		"token=x, a=b", "//u:p@h", "u:p@h", `{"a":{"token":"x\"y"}}`, "Bearer x", "a=%2525%2541", own, "x" + own + "&y=z",
		base64.StdEncoding.EncodeToString([]byte("u:" + own)), url.QueryEscape(own), `"token" : 'x`, "eyJa.b.c", "\\u0041",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, value := range []string{text, text + own, own + text, text + url.QueryEscape(own), "token=" + own + text} {
			first := s.Redact(http.Header{"X": {value}, value: {"x"}})
			require.True(t, json.Valid(first) && utf8.Valid(first), "%q", first)
			target := s.RedactTarget(&url.URL{Path: "/" + value, RawQuery: value})
			require.True(t, utf8.ValidString(target))
			for _, kept := range []string{string(first), target, s.RedactMethod(value)} {
				for range 3 {
					require.NotContains(t, kept, own)
					kept = secret.Unescaped(kept)
				}
			}
		}
	})
}

// FuzzConfig reads anything as settings. Accepted settings are written as they were read, and to resolve them twice
// changes nothing. A source that is made of them signs, verifies and redacts without a panic.
func FuzzConfig(f *testing.F) {
	for _, preset := range Presets() {
		settings := trials()[preset].with(preset, `"env:S"`)
		f.Add([]byte(settings), "sample secret")
		resolved, err := parsed(f, settings).Resolve()
		require.NoError(f, err)
		full, err := json.Marshal(resolved)
		require.NoError(f, err)
		f.Add(full, standardSecret)
	}
	for _, text := range []string{
		`{}`,
		`[]`,
		`null`,
		`{"preset":"hmac","verify":[{}]}`,
		`{"preset":"x","secrets":[{"ref":"file:/x","from":"2024-01-01T00:00:00Z","until":"2025-01-01T00:00:00Z"}]}`,
		`{"preset":"none","rejected":{"age":"1.5d","rows":1},"limits":{"rate":1e308}}`,
		`{"preset":"github","verify":[{"tolerance":1e-9}]}`,
		`{"preset":"hmac","secrets":["env:S"],"verify":[{"header":["X","Y"],"separator":" ","assign":"=","key":"k",` +
			`"timestamp":"key:t","signed":"a{timestamp}{header:A|B}{body}{url}"}],"url":"http://a:80/?b"}`,
	} {
		f.Add([]byte(text), "sample secret")
	}
	f.Fuzz(func(t *testing.T, settings []byte, hidden string) {
		c, err := ParseConfig(settings)
		if err != nil {
			require.NotEmpty(t, complaints(t, err))
			return
		}
		text, err := json.Marshal(c)
		require.NoError(t, err)
		again, err := ParseConfig(text)
		require.NoError(t, err, "%s", text)
		require.Equal(t, c, again)

		r, err := c.Resolve()
		if err != nil {
			require.NotEmpty(t, complaints(t, err))
			return
		}
		twice, err := r.Resolve()
		require.NoError(t, err)
		require.Equal(t, r, twice)
		text, err = json.Marshal(r)
		require.NoError(t, err)
		again, err = ParseConfig(text)
		require.NoError(t, err)
		require.Equal(t, r, again)

		s, err := Compile("fuzz", c, func(string) (secret.Value, error) { return secret.New(hidden), nil })
		if err != nil {
			return
		}
		_ = s.Redact(request("x", "Authorization", hidden).Header)
		when := time.Now() // settings that were found may hold windows around today
		q, err := s.Sample(when)
		if err != nil {
			return
		}
		_ = s.Verify(q)
	})
}

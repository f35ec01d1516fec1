package source

import (
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/secret"
)

// vault holds the secrets of a test: env:NAME refers to the one under NAME.
type vault map[string]string

func (v vault) resolve(ref string) (secret.Value, error) {
	value, ok := v[strings.TrimPrefix(ref, "env:")]
	if !ok {
		return secret.Value{}, fmt.Errorf("%s is not set", ref)
	}
	return secret.New(value), nil
}

// compiled makes a source of settings.
func compiled(t testing.TB, settings string, secrets vault) *Source {
	t.Helper()
	c, err := ParseConfig([]byte(settings))
	require.NoError(t, err)
	s, err := Compile("test", c, secrets.resolve)
	require.NoError(t, err)
	return s
}

// request is a POST of a body that arrives now.
func request(body string, header ...string) *event.Request {
	r := &event.Request{
		Method: http.MethodPost,
		URL:    &url.URL{Path: "/webhook/test"},
		Header: http.Header{},
		Wire:   []byte(body),
		At:     now,
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1]) //nolint:gosec // names and values come in pairs
	}
	return r
}

// arrived sets when a request arrived.
func arrived(r *event.Request, t time.Time) *event.Request {
	r.At = t
	return r
}

// rejected checks that a request is rejected for a cause, and returns the detail.
func rejected(t testing.TB, s *Source, r *event.Request, cause string) string {
	t.Helper()
	var failed *event.UnverifiedError
	require.ErrorAs(t, s.Verify(r), &failed)
	require.Equal(t, cause, failed.Cause, failed.Detail)
	require.NotEmpty(t, failed.Detail)
	return failed.Detail
}

var now = time.Date(2024, 1, 30, 12, 0, 0, 0, time.UTC)

const (
	standardSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	standardKey    = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
	standardPublic = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
)

// TestVectors verifies and signs the vectors in the documentation of providers, and others that were made for tests.
func TestVectors(t *testing.T) {
	standard := []string{"Webhook-Id", "msg_p5jXN8AQM9LWM0D4loKWxJek", "Webhook-Timestamp", "1614265330"}
	for name, v := range map[string]struct {
		settings string
		secret   string
		signer   string // where it is another one
		at       int64
		body     string
		query    string
		header   []string // that is signed too, or says how to read the body
		name     string   // of the signature's header
		value    string
	}{
		"Standard Webhooks v1": {
			settings: `{"preset":"standard-webhooks","secrets":["env:S"]}`, secret: standardSecret,
			at: 1614265330, body: `{"test": 2432232314}`, header: standard,
			name: "Webhook-Signature", value: "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
		},
		"Standard Webhooks v1a": {
			settings: `{"preset":"standard-webhooks","secrets":["env:S"]}`, secret: standardPublic, signer: standardKey,
			at: 1614265330, body: `{"test": 2432232314}`, header: standard,
			name:  "Webhook-Signature",
			value: "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==",
		},
		"Svix": {
			settings: `{"preset":"svix","secrets":["env:S"]}`, secret: standardSecret,
			at:     1614265330,
			body:   `{"test": 2432232314}`,
			header: []string{"Svix-Id", "msg_p5jXN8AQM9LWM0D4loKWxJek", "Svix-Timestamp", "1614265330"},
			name:   "Svix-Signature", value: "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
		},
		"GitLab, signed": {
			settings: `{"preset":"gitlab","secrets":["env:S"]}`, secret: standardSecret,
			at: 1614265330, body: `{"test": 2432232314}`, header: standard,
			name: "Webhook-Signature", value: "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
		},
		"GitHub": {
			settings: `{"preset":"github","secrets":["env:S"]}`, secret: "It's a Secret to Everybody",
			at: 1614265330, body: "Hello, World!",
			name:  "X-Hub-Signature-256",
			value: "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
		},
		"Meta": {
			settings: `{"preset":"meta","secrets":["env:S"],"verify_token":"env:S"}`,
			secret:   "It's a Secret to Everybody",
			at:       1614265330, body: "Hello, World!",
			name:  "X-Hub-Signature-256",
			value: "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
		},
		"Twilio": {
			settings: `{"preset":"twilio","secrets":["env:S"],"url":"https://mycompany.com/myapp.php?foo=1&bar=2"}`,
			secret:   "12345",
			at:       1614265330,
			body: "CallSid=CA1234567890ABCDE&Caller=%2B14158675309&Digits=1234&" +
				"From=%2B14158675309&To=%2B18005551212",
			query:  "foo=1&bar=2",
			header: []string{"Content-Type", "application/x-www-form-urlencoded"},
			name:   "X-Twilio-Signature", value: "RSOYDt4T1cUTdK1PDd93/VVr8B8=",
		},
		"Square": {
			settings: `{"preset":"square","secrets":["env:S"],"url":"https://example.com/webhook"}`, secret: "asdf1234",
			at: 1614265330, body: `{"hello":"world"}`,
			name: "X-Square-Hmacsha256-Signature", value: "2kRE5qRU2tR+tBGlDwMEw2avJ7QM4ikPYD/PJ3bd9Og=",
		},
		"Zendesk": {
			settings: `{"preset":"zendesk","secrets":["env:S"]}`,
			secret:   "dGhpc19zZWNyZXRfaXNfZm9yX3Rlc3Rpbmdfb25seQ==",
			at:       1616648967, body: `{"event":"ticket.updated","id":123}`,
			header: []string{"X-Zendesk-Webhook-Signature-Timestamp", "2021-03-25T05:09:27Z"},
			name:   "X-Zendesk-Webhook-Signature", value: "S/RDdU2ERmj7LHDDoWJ2onPYH+t7/f2+LTM4dL7UiLM=",
		},
		"Stripe": {
			settings: `{"preset":"stripe","secrets":["env:S"]}`, secret: "whsec_test_secret",
			at: 1492774577, body: `{"id":"evt_test_webhook","object":"event"}`,
			name:  "Stripe-Signature",
			value: "t=1492774577,v1=88a022085c6bdb887b02cb26ff76dd681234d9675c0f22844059f55552a8883a",
		},
		"Shopify": {
			settings: `{"preset":"shopify","secrets":["env:S"]}`, secret: "hush",
			at: 1614265330, body: `{"id":1}`,
			name: "X-Shopify-Hmac-Sha256", value: "VnKUjZsLuN5iZWjn5EntcBVCF9kMN43LglzCE1/GSeY=",
		},
		"Paddle": {
			settings: `{"preset":"paddle","secrets":["env:S"]}`, secret: "pdl_ntfset_test",
			at: 1671552777, body: `{"id":1}`,
			name:  "Paddle-Signature",
			value: "ts=1671552777;h1=01e70976bb47ac6c3cd48577a3a9e0eb6d4a81737f31cd2badcd36cbadb7d016",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := compiled(t, v.settings, vault{"S": v.secret})
			made := func(body string) *event.Request {
				r := arrived(request(body, v.header...), time.Unix(v.at, 0))
				r.URL.RawQuery = v.query
				r.Header.Set(v.name, v.value)
				return r
			}
			require.NoError(t, s.Verify(made(v.body)))
			rejected(t, s, made(v.body+"x"), causeSignatureWrong)
			none := made(v.body)
			none.Header.Del(v.name)
			rejected(t, s, none, causeSignatureMissing)

			if v.signer != "" {
				require.ErrorIs(t, s.Sign(made(v.body), time.Unix(v.at, 0)), errPublicOnly)
				s = compiled(t, v.settings, vault{"S": v.signer})
			}
			r := made(v.body)
			r.Header.Del(v.name)
			require.NoError(t, s.Sign(r, time.Unix(v.at, 0)))
			require.Equal(t, []string{v.value}, r.Header[v.name])
			require.NoError(t, s.Verify(r))
		})
	}
}

// discordKey is a private key, which only Discord has. Its second half is the public key.
func discordKey(seed byte) (private, public string) {
	key := ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune(seed)), ed25519.SeedSize)))
	return hex.EncodeToString(key), hex.EncodeToString(key[ed25519.SeedSize:])
}

// trial is what a test needs to try a preset: two secrets, and the public key where the first one is private.
type trial struct {
	settings string // besides the preset and the secrets
	secret   string
	other    string
	public   string
	timed    bool
	open     bool // anyone may send
	untied   bool // the body is not signed
}

func trials() map[string]trial {
	private, public := discordKey('a')
	other, _ := discordKey('b')
	text := trial{secret: "the first secret", other: "the second secret"}
	timed := text
	timed.timed = true
	with := func(tr trial, settings string) trial {
		tr.settings = settings
		return tr
	}
	token := text
	token.untied = true
	standard := trial{secret: standardSecret, other: "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", timed: true}
	return map[string]trial{
		"envelope":          {open: true},
		"none":              {open: true},
		"hmac":              with(text, `,"verify":[{"header":"X-Signature"}]`),
		"token":             with(token, `,"verify":[{"header":"X-Key"}]`),
		"bearer":            token,
		"basic":             {secret: "user:the first", other: "user:the second", untied: true},
		"standard-webhooks": standard,
		"svix":              standard,
		"github":            text,
		"stripe":            timed,
		"shopify":           text,
		"slack":             timed,
		"gitlab":            token,
		"square":            with(text, `,"url":"https://example.com/square"`),
		"linear":            timed,
		"sentry":            text,
		"paddle":            timed,
		"zendesk":           timed,
		"twilio":            with(text, `,"url":"https://example.com/twilio?a=b"`),
		"meta":              with(text, `,"verify_token":"env:S"`),
		"discord":           {secret: private, public: public, other: other, timed: true},
		"mux":               timed,
		"gitea":             text,
		"gogs":              text,
		"bitbucket":         text,
		"cloudevents":       token,
	}
}

// with returns the settings of a source with a preset and secrets.
func (tr trial) with(preset, secrets string) string {
	if tr.open {
		return fmt.Sprintf(`{"preset":%q}`, preset)
	}
	return fmt.Sprintf(`{"preset":%q,"secrets":[%s]%s}`, preset, secrets, tr.settings)
}

func TestPresets(t *testing.T) {
	for _, preset := range Presets() {
		tr, known := trials()[preset]
		require.True(t, known, "nothing tries the preset %s", preset)
		t.Run(preset, func(t *testing.T) {
			tryPreset(t, preset, tr)
		})
	}
	require.Len(t, trials(), len(Presets()))
}

func tryPreset(t *testing.T, preset string, tr trial) {
	secrets := vault{"S": tr.secret, "V": tr.secret, "O": tr.other}
	if tr.public != "" {
		secrets["V"] = tr.public
	}
	signer := compiled(t, tr.with(preset, `"env:S"`), secrets)
	s := compiled(t, tr.with(preset, `"env:V"`), secrets)
	sample := func(by *Source, when time.Time) *event.Request {
		r, err := by.Sample(when)
		require.NoError(t, err)
		r.At = now
		return r
	}
	if tr.public != "" {
		_, err := s.Sample(now)
		require.ErrorIs(t, err, errPublicOnly)
	}

	require.NoError(t, s.Verify(sample(signer, now)), "accepted")
	one, another := sample(signer, now), sample(signer, now)
	require.False(
		t, reflect.DeepEqual(one.Header, another.Header) && string(one.Wire) == string(another.Wire),
		"each has an id of its own",
	)
	if tr.open {
		return
	}

	header, _ := s.methods[len(s.methods)-1].findHeader(sample(signer, now).Header)
	if header == "" {
		header, _ = s.methods[0].findHeader(sample(signer, now).Header)
	}
	missing, wrong := s.methods[len(s.methods)-1].causes()

	r := sample(signer, now)
	r.Header.Del(header)
	require.Contains(t, rejected(t, s, r, missing), header)
	r.Header[header] = []string{""}
	rejected(t, s, r, wrong)

	r = sample(signer, now)
	r.Header[header] = append(r.Header[header], r.Header[header]...)
	rejected(t, s, r, wrong)

	if !tr.untied {
		r = sample(signer, now)
		r.Wire = append([]byte{}, r.Wire...)
		r.Wire[len(r.Wire)/2] ^= 1
		rejected(t, s, r, wrong)
		r = sample(signer, now)
		r.Wire = r.Wire[:len(r.Wire)-1]
		rejected(t, s, r, wrong)
	}

	other := compiled(t, tr.with(preset, `"env:O"`), secrets)
	rejected(t, s, sample(other, now), wrong)

	if tr.timed {
		tolerance := s.methods[0].Tolerance
		require.NoError(t, s.Verify(sample(signer, now.Add(-tolerance))))
		rejected(t, s, sample(signer, now.Add(-tolerance-time.Second)), causeTimestampStale)
		require.NoError(t, s.Verify(sample(signer, now.Add(tolerance))))
		ahead := sample(signer, now.Add(tolerance+time.Second))
		if s.methods[0].PastOnly {
			require.NoError(t, s.Verify(ahead))
		} else {
			rejected(t, s, ahead, causeTimestampStale)
		}
	}

	// A secret is replaced, and for an hour the old one stays valid.
	until := now.Add(time.Hour).Format(time.RFC3339)
	from := now.Add(-time.Minute).Format(time.RFC3339)
	old := fmt.Sprintf(`{"ref":"env:V","until":%q}`, until)
	rotated := compiled(t, tr.with(preset, fmt.Sprintf(`{"ref":"env:O","from":%q},%s`, from, old)), secrets)
	require.NoError(t, rotated.Verify(sample(signer, now)), "the old secret, while it is valid")
	require.NoError(t, rotated.Verify(sample(other, now)), "the new secret")
	if tr.public == "" {
		r = sample(rotated, now)
		require.NoError(t, other.Verify(r), "the newest secret signs")
	}
	r = sample(signer, now.Add(time.Hour))
	r.At = now.Add(time.Hour)
	rejected(t, rotated, r, wrong)
	r.At = now.Add(time.Hour - time.Nanosecond)
	require.NoError(t, rotated.Verify(r), "the end is exclusive")
	r = sample(other, now.Add(-time.Minute))
	r.At = now.Add(-time.Minute)
	require.NoError(t, rotated.Verify(r), "the beginning is inclusive")
	r.At = r.At.Add(-time.Nanosecond)
	rejected(t, rotated, r, wrong)
}

func TestSignatureHeaders(t *testing.T) {
	github := compiled(t, `{"preset":"github","secrets":["env:S"]}`, vault{"S": "It's a Secret to Everybody"})
	const right = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
	for value, ok := range map[string]bool{
		"sha256=" + right:                       true,
		"sha256=" + strings.ToUpper(right):      true,
		" sha256=" + right + "\t":               true,
		right:                                   false,
		"sha1=" + right:                         false,
		"SHA256=" + right:                       false,
		"sha256=":                               false,
		"sha256=" + right + "00":                false,
		"sha256=" + right[:62]:                  false,
		"sha256=" + right[:63] + "g":            false,
		"sha256=" + right + ",sha256=" + right:  false,
		"sha256 = " + right:                     false,
		"sha256=0x" + right[:62]:                false,
		"sha256=" + strings.Repeat("00", 32):    false,
		"sha256=\u0660" + right[2:]:             false,
		"sha256=" + strings.Repeat(right, 1000): false,
	} {
		err := github.Verify(request("Hello, World!", "X-Hub-Signature-256", value))
		require.Equal(t, ok, err == nil, value)
	}

	shopify := compiled(t, `{"preset":"shopify","secrets":["env:S"]}`, vault{"S": "hush"})
	const base64 = "VnKUjZsLuN5iZWjn5EntcBVCF9kMN43LglzCE1/GSeY="
	for value, ok := range map[string]bool{
		base64:                                         true,
		strings.TrimSuffix(base64, "="):                false,
		strings.ReplaceAll(base64, "/", "_"):           false,
		base64 + "=":                                   false,
		base64[:20] + "\n" + base64[20:]:               false,
		base64[:20] + "\n" + base64[20:43]:             false,
		"VnKUjZsLuN5iZWjn5EntcBVCF9kMN43LglzCE1/GSeZ=": false, // the bits that padding leaves over
		strings.ToLower(base64):                        false,
	} {
		err := shopify.Verify(request(`{"id":1}`, "X-Shopify-Hmac-Sha256", value))
		require.Equal(t, ok, err == nil, value)
	}

	stripe := compiled(t, `{"preset":"stripe","secrets":["env:S"]}`, vault{"S": "whsec_test_secret"})
	const v1 = "v1=88a022085c6bdb887b02cb26ff76dd681234d9675c0f22844059f55552a8883a"
	zero := "v1=" + strings.Repeat("00", 32)
	for value, cause := range map[string]string{
		"t=1492774577," + v1:                                             "",
		v1 + ",t=1492774577":                                             "",
		"t=1492774577, " + v1 + ",v0=6ffbb59b":                           "",
		"t=1492774577," + zero + "," + v1:                                "",
		"t=1492774577," + strings.Repeat(zero+",", maxSignatures-1) + v1: "",
		"t=1492774577," + strings.Repeat(zero+",", maxSignatures) + v1:   causeSignatureWrong,
		"t=1492774577,v0=" + v1[3:]:                                      causeSignatureWrong,
		"t=1492774578," + v1:                                             causeSignatureWrong,
		"t=1492774577":                                                   causeSignatureWrong,
		v1:                                                               causeTimestampBad,
		"":                                                               causeSignatureWrong,
		",,,=,":                                                          causeSignatureWrong,
		"t=1492774577,t=1492774577," + v1:                                causeTimestampBad,
		"t=," + v1:                                                       causeTimestampBad,
		"t=+1492774577," + v1:                                            causeTimestampBad,
		"t=-1," + v1:                                                     causeTimestampBad,
		"t=1492774577.0," + v1:                                           causeTimestampBad,
		"t=0x58f9f031," + v1:                                             causeTimestampBad,
		"t=١," + v1:                                                      causeTimestampBad,
		"t=9223372036854775807," + v1:                                    causeTimestampBad,
		"t=99999999999999999999999," + v1:                                causeTimestampBad,
		"t=junk," + v1:                                                   causeTimestampBad,
	} {
		r := arrived(
			request(`{"id":"evt_test_webhook","object":"event"}`, "Stripe-Signature", value), time.Unix(1492774577, 0),
		)
		if cause == "" {
			require.NoError(t, stripe.Verify(r), value)
		} else {
			rejected(t, stripe, r, cause)
		}
	}
}

func TestTimestampsOfStandardWebhooks(t *testing.T) {
	s := compiled(t, `{"preset":"standard-webhooks","secrets":["env:S"]}`, vault{"S": standardSecret})
	for _, timestamp := range []string{
		"",
		"junk",
		"-1",
		"+1706616000",
		" 1706616000",
		"1706616000 ",
		"1706616000.5",
		"1e9",
		"9223372036854775807",
		"9223372036854775808",
		"-9223372036854775808", "2024-01-30T12:00:00Z", "１７０６６１６０００", strings.Repeat("9", 10000),
	} {
		r := request(`{}`, "Webhook-Id", "msg_1")
		require.NoError(t, s.Sign(r, now))
		r.Header.Set("Webhook-Timestamp", timestamp)
		rejected(t, s, r, causeTimestampBad)
		r.Header.Del("Webhook-Timestamp")
		rejected(t, s, r, causeTimestampBad)
	}

	r := request(`{}`, "Webhook-Id", "msg_1")
	require.NoError(t, s.Sign(r, now))
	r.Header.Set("Webhook-Timestamp", "999999999999")
	rejected(t, s, r, causeSignatureWrong)
	r = request(`{}`, "Webhook-Id", "msg_1")
	require.NoError(t, s.Sign(r, time.Unix(999999999999, 0)))
	rejected(t, s, r, causeTimestampStale)
	r = request(`{}`, "Webhook-Id", "msg_1")
	require.NoError(t, s.Sign(r, time.Unix(0, 0)))
	rejected(t, s, r, causeTimestampStale)
}

func TestTimesOfZendesk(t *testing.T) {
	for text, ok := range map[string]bool{
		"2021-03-25T05:09:27Z": true, "2021-03-25T05:09:27.123Z": true, "2021-03-25T07:09:27+02:00": true,
		"2021-03-25T05:09:27": false, "2021-03-25": false, "2021-03-25 05:09:27Z": false, "2021-3-25T05:09:27Z": false,
		"10000-03-25T05:09:27Z": false, "2021-03-25T05:09:60Z": false, "2021-03-25T24:09:00Z": false, "infinity": false,
		"2021-03-25T05:09:27+24:00": false,
		"2021-03-25T05:09:27,5Z":    false,
		"2021-03-25T5:09:27Z":       false,
		"":                          false,
		"Z":                         false,
	} {
		_, is := parseTimestamp("rfc3339", text)
		require.Equal(t, ok, is, text)
	}
}

// With both families of headers in one request, the signature must cover the header that makes the id.
func TestSvixHeaders(t *testing.T) {
	s := compiled(t, `{"preset":"svix","secrets":["env:S"]}`, vault{"S": standardSecret})
	plain := compiled(t, `{"preset":"standard-webhooks","secrets":["env:S"]}`, vault{"S": standardSecret})
	r := request(`{}`, "Webhook-Id", "msg_1")
	require.NoError(t, plain.Sign(r, now))
	require.NoError(t, s.Verify(r), "it falls back to the standard headers")

	r.Header.Set("Svix-Id", "msg_2")
	rejected(t, s, r, causeSignatureWrong)
	r.Header.Del("Svix-Id")
	r.Header.Set("Svix-Timestamp", "1706616001")
	rejected(t, s, r, causeSignatureWrong)
}

func TestStandardWebhooksTakeSeveralKinds(t *testing.T) {
	secrets := vault{
		"S":       standardSecret,
		"BARE":    strings.TrimPrefix(standardSecret, "whsec_"),
		"PRIVATE": standardKey,
		"PUBLIC":  standardPublic,
	}
	sign := func(ref string) string {
		r := request(`{}`, "Webhook-Id", "msg_1")
		require.NoError(t, compiled(t, `{"preset":"standard-webhooks","secrets":["`+ref+`"]}`, secrets).Sign(r, now))
		return r.Header.Get("Webhook-Signature")
	}
	v1, v1a := sign("env:S"), sign("env:PRIVATE")
	require.Equal(t, v1, sign("env:BARE"))
	with := func(signature string) *event.Request {
		return request(`{}`, "Webhook-Id", "msg_1", "Webhook-Timestamp", "1706616000", "Webhook-Signature", signature)
	}

	both := compiled(t, `{"preset":"standard-webhooks","secrets":["env:S","env:PUBLIC"]}`, secrets)
	require.NoError(t, both.Verify(with(v1)))
	require.NoError(t, both.Verify(with(v1a)))
	require.NoError(t, both.Verify(with("v1,AAAA v2,x "+v1a)))
	rejected(t, both, with("v1,AAAA v1a,AAAA"), causeSignatureWrong)

	public := compiled(t, `{"preset":"standard-webhooks","secrets":["env:PUBLIC"]}`, secrets)
	require.NoError(t, public.Verify(with(v1a)))
	rejected(t, public, with(v1), causeSignatureWrong)
	rejected(t, public, with("v1a,"+strings.TrimPrefix(v1, "v1,")), causeSignatureWrong)
	// Everybody has the public key: as an HMAC key it must not sign.
	forged := request(`{}`, "Webhook-Id", "msg_1")
	forger := compiled(
		t, `{"preset":"standard-webhooks","secrets":["env:S"]}`,
		vault{"S": strings.TrimPrefix(standardPublic, "whpk_")},
	)
	require.NoError(t, forger.Sign(forged, now))
	rejected(t, public, forged, causeSignatureWrong)
	rejected(t, both, forged, causeSignatureWrong)
}

// A right token does not make up for a wrong signature.
func TestGitLabNeverFallsBack(t *testing.T) {
	secrets := vault{"TOKEN": "a token", "S": standardSecret}
	both := compiled(t, `{"preset":"gitlab","secrets":["env:TOKEN","env:S"]}`, secrets)
	require.NoError(t, both.Verify(request(`{}`, "X-Gitlab-Token", "a token")))
	rejected(t, both, request(`{}`, "X-Gitlab-Token", "a tokem"), causeCredentialsWrong)
	rejected(t, both, request(`{}`, "X-Gitlab-Token", standardSecret), causeCredentialsWrong)

	r := request(`{}`, "Webhook-Id", "msg_1")
	signing := compiled(t, `{"preset":"gitlab","secrets":["env:S"]}`, secrets)
	require.NoError(t, signing.Sign(r, now))
	require.NoError(t, both.Verify(r))
	r.Header.Set("X-Gitlab-Token", "a token")
	require.NoError(t, both.Verify(r))
	r.Wire = []byte(`{"a":1}`)
	rejected(t, both, r, causeSignatureWrong)
	r.Header.Set("Webhook-Signature", "")
	rejected(t, both, r, causeSignatureWrong)

	tokenOnly := compiled(t, `{"preset":"gitlab","secrets":["env:TOKEN"]}`, secrets)
	rejected(t, tokenOnly, r, causeSignatureWrong)

	// The order of the methods does not matter.
	turned := compiled(t, `{"preset":"gitlab","secrets":["env:TOKEN","env:S"],"verify":[
		{"scheme":"token","header":"X-Gitlab-Token","secret_not":"whsec_"},
		{"scheme":"hmac","final":true,"header":"Webhook-Signature","secret_prefix":"whsec_","secret":"base64"}
	]}`, secrets)
	rejected(t, turned, r, causeSignatureWrong)
	r.Header.Del("Webhook-Signature")
	require.NoError(t, turned.Verify(r))

	require.False(t, *tokenOnly.Config().IDSigned)
	require.False(t, *both.Config().IDSigned)
	require.True(t, *signing.Config().IDSigned)
}

func TestTwilioBodies(t *testing.T) {
	settings := `{"preset":"twilio","secrets":["env:S"],"url":"https://example.com/twilio?a=b"}`
	s := compiled(t, settings, vault{"S": "12345"})
	const form = "application/x-www-form-urlencoded; charset=UTF-8"

	r := request("B=2&A=1&B=1&B=2", "Content-Type", form)
	require.NoError(t, s.Sign(r, now))
	require.NoError(t, s.Verify(r))
	r.Wire = []byte("A=1&B=1&B=2")
	require.NoError(t, s.Verify(r), "the order and repetitions are not signed")
	r.Wire = []byte("A=1&B=1&B=3")
	rejected(t, s, r, causeSignatureWrong)
	r.Wire = []byte("A=1&B=1&B=%zz")
	rejected(t, s, r, causeSignatureWrong)
	r.Wire = []byte("A=1&B=1&B=2")
	r.Header.Set("Content-Type", "application/json")
	rejected(t, s, r, causeSignatureWrong)
	r.Header.Set("Content-Type", form)
	r.URL.RawQuery = "a=c"
	rejected(t, s, r, causeSignatureWrong)

	r = request(`{"a":1}`, "Content-Type", "application/json")
	require.NoError(t, s.Sign(r, now))
	require.Contains(t, r.URL.RawQuery, "a=b&bodySHA256=")
	require.NoError(t, s.Verify(r))
	r.Wire = []byte(`{"a":2}`)
	rejected(t, s, r, causeSignatureWrong)
	r.URL.RawQuery = "a=b"
	rejected(t, s, r, causeSignatureWrong)
	r.URL.RawQuery = "a=b&bodySHA256="
	rejected(t, s, r, causeSignatureWrong)

	require.Equal(t, []string{"https://example.com/twilio?x=1", "https://example.com:443/twilio?x=1"},
		twilioAddresses("https://example.com/twilio?a=b", &url.URL{RawQuery: "x=1"}))
	require.Equal(t, []string{"http://example.com:80/twilio?a=b", "http://example.com/twilio?a=b"},
		twilioAddresses("http://example.com:80/twilio?a=b", &url.URL{}))
	require.Equal(t, []string{"https://example.com:8443"}, twilioAddresses("https://example.com:8443", nil))
}

func TestCredentials(t *testing.T) {
	bearer := compiled(t, `{"preset":"bearer","secrets":["env:S"]}`, vault{"S": "a token"})
	for value, ok := range map[string]bool{
		"Bearer a token": true, "bearer a token": true, "BEARER   a token": true,
		"a token":         false,
		"Bearer":          false,
		"Bearer ":         false,
		"Basic a token":   false,
		"Bearer a token!": false,
		"":                false,
		"Bearer\ta token": false,
	} {
		err := bearer.Verify(request(`{}`, "Authorization", value))
		require.Equal(t, ok, err == nil, value)
		if err != nil {
			rejected(t, bearer, request(`{}`, "Authorization", value), causeCredentialsWrong)
		}
	}
	basic := compiled(t, `{"preset":"basic","secrets":["env:S"]}`, vault{"S": "user:pass:word"})
	r := request(`{}`)
	require.NoError(t, basic.Sign(r, now))
	require.NoError(t, basic.Verify(r))
	h := http.Request{Header: r.Header}
	user, password, ok := h.BasicAuth()
	require.True(t, ok)
	require.Equal(t, []string{"user", "pass:word"}, []string{user, password})
	rejected(t, basic, request(`{}`, "Authorization", "Basic !!!"), causeCredentialsWrong)
	rejected(t, basic, request(`{}`, "Authorization", "Basic dXNlcjpwYXNz"), causeCredentialsWrong)
	rejected(t, basic, request(`{}`), causeCredentialsMissing)
}

// TestSecretsAreChecked compiles secrets that cannot be right. No error repeats one.
func TestSecretsAreChecked(t *testing.T) {
	for name, c := range map[string]struct{ settings, secret, want string }{
		"empty": {`{"preset":"github","secrets":["env:S"]}`, "", "secrets[0] env:S is empty"},
		"nothing after the prefix": {
			`{"preset":"standard-webhooks","secrets":["env:S"]}`,
			"whsec_",
			"secrets[0] env:S is empty",
		},
		"only padding": {
			`{"preset":"standard-webhooks","secrets":["env:S"]}`,
			"whsec_====",
			"secrets[0] env:S is empty",
		},
		"no base64": {
			`{"preset":"standard-webhooks","secrets":["env:S"]}`,
			"whsec_hidden!",
			"secrets[0] env:S does not hold base64",
		},
		"short key": {
			`{"preset":"standard-webhooks","secrets":["env:S"]}`,
			"whpk_hidden",
			"secrets[0] env:S must hold a public key of 32 bytes or a private key of 64, found 4 bytes",
		},
		"no hex": {
			`{"preset":"discord","secrets":["env:S"]}`,
			"hidden",
			"secrets[0] env:S does not hold hex",
		},
		"mismatched halves": {
			`{"preset":"discord","secrets":["env:S"]}`,
			strings.Repeat("00", 64),
			"secrets[0] env:S holds a private key that does not fit its public one",
		},
		"no user": {
			`{"preset":"basic","secrets":["env:S"]}`,
			"hidden",
			"secrets[0] env:S must hold user:password",
		},
		"of no method": {
			`{"preset":"hmac","verify":[{"header":"X-Sig","secret_prefix":"sk_"}],"secrets":["env:S"]}`, "hidden",
			"secrets[0] env:S begins with nothing that a secret of this source should begin with",
		},
		"not there": {`{"preset":"github","secrets":["env:T"]}`, "hidden", "secrets[0] env:T is not set"},
		"nor one that is valid now": {
			`{"preset":"github","secrets":["env:T",{"ref":"env:S","until":"2001-01-01T00:00:00Z"},` +
				`{"ref":"env:S","from":"2999-01-01T00:00:00Z"}]}`,
			"hidden",
			"secrets[0] env:T is not set",
		},
	} {
		t.Run(name, func(t *testing.T) {
			config, err := ParseConfig([]byte(c.settings))
			require.NoError(t, err)
			_, err = Compile("test", config, vault{"S": c.secret}.resolve)
			var bad *event.BadSettingsError
			require.ErrorAs(t, err, &bad)
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "hidden")
		})
	}
	// A secret whose time is over may be missing.
	s := compiled(
		t, `{"preset":"github","secrets":["env:S",{"ref":"env:GONE","until":"2001-01-01T00:00:00Z"}]}`, vault{"S": "x"},
	)
	require.Len(t, s.methods[0].keys, 1)
}

func TestNothingPrintsSecrets(t *testing.T) {
	s := compiled(t, `{"preset":"github","secrets":["env:S"]}`, vault{"S": "xyzzy-plugh"})
	type holder struct{ inside *Source }
	texts := []string{fmt.Sprint(errors.Unwrap(s.Verify(request("x"))))}
	for _, value := range []any{
		s, holder{s}, s.methods, s.methods[0], *s.methods[0], s.methods[0].keys[0], s.Redactor, s.handshake, s.Config(),
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%t"} {
			texts = append(texts, fmt.Sprintf(verb, value))
		}
		text, err := json.Marshal(value)
		require.NoError(t, err)
		texts = append(texts, string(text))
	}
	for _, text := range texts {
		require.NotContains(t, text, "plugh")
		require.NotContains(t, text, fmt.Sprintf("%x", "plugh"))
		require.NotContains(t, text, "112 108 117 103 104")
	}
}

// A secret that can be guessed is a warning: who may send to one source could try out those of others.
func TestSecretsThatCanBeGuessed(t *testing.T) {
	const warning = "env:S has fewer than 16 bytes: it can be guessed"
	basic := `{"preset":"none","verify":[{"scheme":"basic"}],"secrets":["env:S"]}`
	github := `{"preset":"github","secrets":["env:S"]}`
	for _, c := range []struct {
		settings, secret string
		want             []string
	}{
		{github, "correct-horse-b", []string{warning}},
		{github, "correct-horse-ba", nil},
		{basic, "somebody-with-a-name:hunter2", []string{warning}},
		{basic, "a:correct-horse-battery", nil},
		{`{"preset":"standard-webhooks","secrets":["env:S"]}`, "whsec_c2hvcnQ=", []string{warning}},
		{`{"preset":"standard-webhooks","secrets":["env:S"]}`, standardSecret, nil},
	} {
		require.Equal(t, c.want, compiled(t, c.settings, vault{"S": c.secret}).warnings(now), c.secret)
	}
}

// G2: any secret that can be read serves. One that cannot is a warning.
func TestSomeSecretsCannotBeRead(t *testing.T) {
	for name, c := range map[string]struct {
		settings string
		want     []string
	}{
		"rotated, the old one is gone": {
			`{"preset":"github","secrets":["env:S",{"ref":"env:GONE","until":"2999-01-01T00:00:00Z"}]}`,
			[]string{"secrets[1] env:GONE is not set"},
		},
		"rotated, the new one is not there yet": {
			`{"preset":"github","secrets":["env:GONE",{"ref":"env:S","until":"2999-01-01T00:00:00Z"}]}`,
			[]string{"secrets[0] env:GONE is not set"},
		},
		"one is no key": {
			`{"preset":"standard-webhooks","secrets":["env:BAD","env:W","env:EMPTY"]}`,
			[]string{"secrets[0] env:BAD does not hold base64", "secrets[2] env:EMPTY is empty"},
		},
		"a word": {
			`{"preset":"meta","secrets":["env:S"],"verify_token":"env:GONE"}`,
			[]string{"verify_token env:GONE is not set"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := compiled(
				t,
				c.settings,
				vault{"S": "good-and-long-enough", "W": standardSecret, "BAD": "whsec_!", "EMPTY": ""},
			)
			require.Equal(t, c.want, s.warnings(now))
			r, err := s.Sample(now)
			require.NoError(t, err)
			require.NoError(t, s.Verify(r))
			r.Header.Set(s.methods[0].headers[0], "sha256="+strings.Repeat("0", 64))
			require.Error(t, s.Verify(r))
		})
	}
	// Without its word a source does not tell Meta that the word is wrong.
	s := compiled(t, `{"preset":"meta","secrets":["env:S"],"verify_token":"env:GONE"}`, vault{"S": "good"})
	ask := &event.Request{Method: http.MethodGet, URL: &url.URL{
		RawQuery: "hub.mode=subscribe&hub.challenge=1&hub.verify_token=x",
	}}
	answer, ok := s.Handshake(ask)
	require.True(t, ok)
	require.Equal(t, http.StatusServiceUnavailable, answer.Status)
}

// A1: no credential gets into an id, a type or a time, though the settings were not checked.
func TestReaderSeesNoCredentials(t *testing.T) {
	for _, settings := range []string{
		`{"preset":"token","secrets":["env:S"],"verify":[{"header":"X-Tok"}],"id":["{header:X-Tok}"],` +
			`"type":["{header:X-Tok}"]}`,
		`{"preset":"bearer","secrets":["env:S"],"id":["{header:Authorization}"],"type":["{header:X-Session}"]}`,
		`{"preset":"bearer","secrets":["env:S"],"id":["{query:token}"],"type":["{header:X-Plain}"]}`,
		`{"preset":"token","secrets":["env:S"],"verify":[{"header":"Ce-Type"}],"format":"cloudevents"}`,
		`{"preset":"github","secrets":["env:S"],"id":["{header:X-Hub-Signature-256}"],"type":["{body:/type}"]}`,
	} {
		c, err := ParseConfig([]byte(settings))
		require.NoError(t, err)
		preset, _ := PresetOf(c.Preset)
		s := &Source{config: c.overlay(preset.Config)}
		s.Redactor = NewRedactor(s.config)
		s.learn("a long secret")
		s.reader, err = newReader("shop", s.config, &s.Redactor)
		require.NoError(t, err)
		r := sent(`{"type":"a long secret"}`, "X-Tok", "a long secret", "Authorization", "Bearer a long secret",
			"X-Session", "hidden", "X-Plain", "a long secret", "X-Hub-Signature-256", "sha256=hidden",
			"Ce-Id", "1", "Ce-Source", "/s", "Ce-Specversion", "1.0", "Ce-Type", "a long secret")
		r.URL.RawQuery = "token=hidden"
		events, _, err := s.Read(r)
		if err != nil {
			require.NotContains(t, err.Error(), "long secret")
			continue
		}
		shown := fmt.Sprintf("%s %s %s", events[0].ID, events[0].Type, events[0].Headers)
		require.NotContains(t, shown, "long secret", settings)
		require.NotContains(t, events[0].ID+events[0].Type, "hidden", settings)
	}
}

// A13: one signature is right for one request, though what separates its parts may stand in them too.
func TestOneSignatureForOneRequest(t *testing.T) {
	for signed, moved := range map[string][2][2]string{ // two pairs of a header and a body
		"{header:X-Id}.{body}":    {{"a", "b.c"}, {"a.b", "c"}},
		"{body}.{header:X-Id}":    {{"c", "a.b"}, {"b.c", "a"}},
		"{header:X-Id}--{body}":   {{"a", "-b"}, {"a-", "b"}},
		"v1:{header:X-Id}:{body}": {{"a", "b:c"}, {"a:b", "c"}},
	} {
		s := compiled(t, `{"preset":"hmac","secrets":["env:S"],"verify":[{"header":"X-Sig","signed":"`+signed+`"}]}`,
			vault{"S": "a long secret"})
		m := s.methods[0]
		right := 0
		for _, pair := range moved {
			r := request(pair[1], "X-Id", pair[0])
			sum := m.hmacSum(m.keys[0].hashes.Get().(*hmacState), r, "")
			r.Header.Set("X-Sig", hex.EncodeToString(sum))
			if s.Verify(r) == nil {
				right++
			}
		}
		require.Equal(t, 1, right, signed)
	}
}

// A source without a valid secret rejects every request.
func TestNoSecretIsValid(t *testing.T) {
	for _, preset := range Presets() {
		tr := trials()[preset]
		if tr.open {
			continue
		}
		signer := compiled(t, tr.with(preset, `"env:S"`), vault{"S": tr.secret})
		s := compiled(t, tr.with(preset, `{"ref":"env:S","from":"2999-01-01T00:00:00Z"}`), vault{"S": tr.secret})
		r, err := signer.Sample(now)
		require.NoError(t, err)
		require.Error(t, s.Verify(r), preset)
		require.ErrorIs(t, s.Sign(r, now), errNoKey, preset)
		require.NotEmpty(t, s.warnings(now))
		require.NotContains(t, signer.warnings(now), s.warnings(now)[len(s.warnings(now))-1])

		gone := compiled(t, tr.with(preset, `{"ref":"env:GONE","until":"2001-01-01T00:00:00Z"}`), vault{"S": tr.secret})
		_, wrong := gone.methods[0].causes()
		if preset == "gitlab" {
			wrong = causeSignatureWrong
		}
		rejected(t, gone, r, wrong)
		rejected(t, gone, request("x"), wrong)
		require.NotEmpty(t, gone.warnings(now))
	}
}

func BenchmarkVerifyGitHub(b *testing.B) {
	benchmarkVerify(b, "github")
}

func BenchmarkVerifyStripe(b *testing.B) {
	benchmarkVerify(b, "stripe")
}

func benchmarkVerify(b *testing.B, preset string) {
	s := compiled(b, trials()[preset].with(preset, `"env:S"`), vault{"S": "It's a Secret to Everybody"})
	r := request(strings.Repeat("x", 1<<10))
	require.NoError(b, s.Sign(r, now))
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Verify(r); err != nil {
			b.Fatal(err)
		}
	}
}

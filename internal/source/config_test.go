package source

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

func parsed(t testing.TB, settings string) Config {
	t.Helper()
	c, err := ParseConfig([]byte(settings))
	require.NoError(t, err)
	return c
}

// complaints are the problems of settings, as "field detail".
func complaints(t testing.TB, err error) []string {
	t.Helper()
	var bad *event.BadSettingsError
	require.ErrorAs(t, err, &bad)
	var list []string
	for _, p := range bad.Problems {
		list = append(list, strings.TrimSpace(p.Field+" "+p.Detail))
	}
	require.NotEmpty(t, list)
	return list
}

func TestConfigForms(t *testing.T) {
	yes := true
	require.Equal(t, Config{
		Preset: "hmac",
		Secrets: []Secret{
			{Ref: "env:NEW"},
			{Ref: "file:/run/secrets/old", Until: time.Date(2024, 1, 30, 11, 0, 0, 0, time.UTC)},
		},
		Verify: []Method{
			{Header: []string{"X-Sig"}, Tolerance: 90 * time.Second},
			{Scheme: "token", Header: []string{"A", "B"}, Tolerance: 2 * day},
		},
		ID: []string{"{body:/id}"}, Type: []string{}, IDSigned: &yes,
		Limits: Limits{Rate: 0.5, Burst: 10}, Rejected: Budget{Rows: 5, Bytes: 1 << 40, Age: 36 * time.Hour},
	}, parsed(t, `{
		"preset": "hmac",
		"secrets": ["env:NEW", {"ref": "file:/run/secrets/old", "until": "2024-01-30T12:00:00+01:00"}],
		"verify": [{"header": "X-Sig", "tolerance": 90}, {"scheme": "token", "header": ["A", "B"], "tolerance": "2d"}],
		"id": "{body:/id}", "type": [], "id_signed": true,
		"limits": {"rate": 0.5, "burst": 10}, "rejected": {"rows": 5, "bytes": 1099511627776, "age": "1.5d"}
	}`))
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		`5`:       5 * time.Second,
		`0.5`:     time.Second / 2,
		`"5m"`:    5 * time.Minute,
		`"1h30m"`: 90 * time.Minute,
		`"7d"`:    7 * day,
		`"250ms"`: time.Second / 4,
	} {
		d, ok := readDuration([]byte(text))
		require.True(t, ok, text)
		require.Equal(t, want, d, text)
	}
	for _, text := range []string{
		`"5"`,
		`"d"`,
		`"5w"`,
		`""`,
		`null`,
		`true`,
		`1e300`,
		`"1e300d"`,
		`"NaNd"`,
		`"Infd"`,
		`{}`,
		`"-"`,
	} {
		_, ok := readDuration([]byte(text))
		require.False(t, ok, text)
	}
	for d, want := range map[time.Duration]string{
		0:                "",
		time.Second:      "1s",
		5 * time.Minute:  "5m",
		time.Hour:        "1h",
		90 * time.Minute: "1h30m",
		day:              "1d",
		7 * day:          "7d",
		36 * time.Hour:   "36h",
		time.Millisecond: "1ms",
		10 * time.Hour:   "10h", 10 * time.Minute: "10m", time.Hour + time.Second: "1h0m1s",
	} {
		require.Equal(t, want, formatDuration(d))
	}
}

func TestBadSettingsAreNotParsed(t *testing.T) {
	for name, c := range map[string]struct {
		settings string
		want     []string
	}{
		"no JSON": {`{`, []string{"must be a JSON object without members that come twice"}},
		"empty":   {``, []string{"must be a JSON object without members that come twice"}},
		"a repeated name": {
			`{"preset":"none","preset":"none"}`,
			[]string{"must be a JSON object without members that come twice"},
		},
		"a lone surrogate": {`{"preset":"\ud800"}`, []string{"must be a JSON object without members that come twice"}},
		"an array":         {`[]`, []string{"must be an object, found an array"}},
		"too much": {
			`{"preset":"` + strings.Repeat("x", event.MaxSettings) + `"}`,
			[]string{"must have at most 65536 bytes, found 65549"},
		},
		"unknown members and wrong types, all of them": {
			`{"Preset":"x","secrets":{},"verify":[{"scheme":1,"salt":"x"},2],"format":null,"id":[1],` +
				`"id_signed":"yes","limits":[],"rejected":{"age":"soon","rows":1.5,"size":1},"url":"a\u0000"}`,
			[]string{
				"Preset is no setting; there are conflicts, format, handshake, id, id_signed, limits, preset, " +
					"rejected, secrets, time, type, url, verify, verify_token, volatile",
				"secrets must be a list of secrets, found an object",
				"verify[0].scheme must be a string, found a number",
				"verify[0].salt is no setting; there are assign, encoding, final, hash, header, key, past_only, " +
					"scheme, secret, secret_not, secret_prefix, separator, signed, timestamp, tolerance, unit",
				"verify[1] must be an object, found a number",
				"format must be a string, found null",
				"id[0] must be a string, found a number",
				"id_signed must be true or false, found a string",
				"limits must be an object, found an array",
				`rejected.age must be a duration such as "5m", "12h" or "7d", or a number of seconds`,
				"rejected.rows must be a whole number",
				"rejected.size is no setting; there are age, bytes, rows",
				"url must not contain control characters",
			},
		},
		"bad secrets": {
			`{"secrets":[1,{"ref":"env:A","from":"soon","value":"x"}]}`,
			[]string{
				"secrets[0] must be a reference such as env:NAME, or an object with ref, from and until, " +
					"found a number",
				"secrets[1].from " + timeWanted + "another string",
				"secrets[1].value is no setting; there are from, ref, until",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseConfig([]byte(c.settings))
			require.Equal(t, c.want, complaints(t, err))
		})
	}
}

// TestMembersAreFields compares the names that ParseConfig reads with those that MarshalJSON writes.
func TestMembersAreFields(t *testing.T) {
	for _, place := range []interface{ members() members }{&Config{}, &Secret{}, &Method{}, &Limits{}, &Budget{}} {
		fields := reflect.TypeOf(place).Elem()
		require.Len(t, place.members(), fields.NumField(), fields.Name())
		for i := range fields.NumField() {
			name, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ",")
			if name == "-" {
				name = strings.ToLower(fields.Field(i).Name)
			}
			require.Same(t, reflect.ValueOf(place).Elem().Field(i).Addr().Interface(), place.members()[name], name)
		}
	}
}

func TestResolvedPresets(t *testing.T) {
	for _, preset := range Presets() {
		tr := trials()[preset]
		c := parsed(t, tr.with(preset, `"env:S"`))
		r, err := c.Resolve()
		require.NoError(t, err, preset)

		again, err := r.Resolve()
		require.NoError(t, err, preset)
		require.Equal(t, r, again, preset)

		for _, config := range []Config{c, r} {
			text, err := json.Marshal(config)
			require.NoError(t, err)
			require.Equal(t, config, parsed(t, string(text)), preset)
		}

		p, known := PresetOf(preset)
		require.True(t, known)
		require.NotEmpty(t, p.Title)
		require.NotEmpty(t, p.Steps)
		p.Config.Verify[0].Scheme = "changed" // it is the caller's own
		steps := strings.Join(p.StepsFor("mine", r, unseen), "\n")
		require.NotContains(t, steps, "{")
		if r.URL == "" {
			require.Contains(t, steps, "/webhook/mine", preset)
		} else {
			require.Contains(t, steps, r.URL, preset)
		}
		if !tr.open {
			require.Contains(t, steps, "env:S", preset)
		}
	}
	require.GreaterOrEqual(t, len(Presets()), 20)
}

// Some providers have their id in a header that they do not sign.
func TestWhetherIDsAreSigned(t *testing.T) {
	unsigned := map[string]bool{
		"github":    true,
		"shopify":   true,
		"gitlab":    true,
		"linear":    true,
		"sentry":    true,
		"zendesk":   true,
		"gitea":     true,
		"gogs":      true,
		"bitbucket": true,
	}
	for _, preset := range Presets() {
		r, err := parsed(t, trials()[preset].with(preset, `"env:S"`)).Resolve()
		require.NoError(t, err)
		require.Equal(t, !unsigned[preset], *r.IDSigned, preset)
	}
	const hmac = `{"preset":"hmac","secrets":["env:S"],"verify":[{"header":"X-Sig","signed":"{header:X-A|X-B}.{body}"}]`
	for text, signed := range map[string]bool{
		`{"preset":"github","secrets":["env:S"],"id":"{body:/id}"}`:                                    true,
		`{"preset":"github","secrets":["env:S"],"id_signed":true}`:                                     true,
		`{"preset":"stripe","secrets":["env:S"],"id_signed":false}`:                                    false,
		`{"preset":"stripe","secrets":["env:S"],"id":["{body:/id}","{query:id}"]}`:                     false,
		`{"preset":"svix","secrets":["env:S"],"id":["{header:webhook-id}","{header:svix-id}"]}`:        false,
		`{"preset":"standard-webhooks","secrets":["env:S"],"id":["{header:webhook-id}","{header:x}"]}`: true,
		`{"preset":"twilio","secrets":["env:S"],"url":"https://a.b/","id":"{query:id}"}`:               true,
		hmac + `,"id":["{header:x-a}","{header:x-b}"]}`:                                                true,
		hmac + `,"id":["{header:x-b}"]}`:                                                               false,
		hmac + `,"id":["{header:x-a}/{body:/id}","{header:x-b}"]}`:                                     false,
		hmac + `,"id":["{header:x-a}","{header:x-c}"]}`:                                                false,
		hmac + `,"id":["{hash}","{header:x-c}"]}`:                                                      false,
		hmac + `,"id":"{{{header:X-Request-Id}"}`:                                                      false, // a brace
		hmac + `,"format":"cloudevents"}`:                                                              false, // ce-id
		`{"preset":"cloudevents","secrets":["env:S"],"verify":[{"scheme":"hmac","header":"X-Sig",` +
			`"signed":"{header:Ce-Id} {header:Ce-Source} {body}"}]}`: true,
	} {
		r, err := parsed(t, text).Resolve()
		require.NoError(t, err, text)
		require.Equal(t, signed, *r.IDSigned, text)
	}
}

func TestResolveOverlays(t *testing.T) {
	r, err := parsed(
		t,
		`{"preset":"stripe","secrets":["env:S"],"verify":[{"tolerance":"10m"}],"volatile":[],"type":"{body:/kind}",`+
			`"conflicts":"refuse","rejected":{"rows":7}}`,
	).Resolve()
	require.NoError(t, err)
	preset, _ := PresetOf("stripe")
	want := preset.Config.Verify[0]
	want.Tolerance = 10 * time.Minute
	require.Equal(t, []Method{want}, r.Verify)
	require.Equal(t, []string{}, r.Volatile)
	require.Equal(t, []string{"{body:/kind}"}, r.Type)
	require.Equal(t, []string{"{body:/id}"}, r.ID)
	require.Equal(t, "refuse", r.Conflicts)
	require.Equal(t, Budget{Rows: 7, Bytes: 16 << 20, Age: 7 * day}, r.Rejected)

	// An empty list is not left out.
	text, err := json.Marshal(r)
	require.NoError(t, err)
	require.Contains(t, string(text), `"volatile":[]`)

	r, err = parsed(
		t,
		`{"preset":"hmac","secrets":["env:S"],"verify":[{"scheme":"hmac","header":"X-Sig",`+
			`"timestamp":"header:X-Time","signed":"{timestamp}{body}"}]}`,
	).Resolve()
	require.NoError(t, err)
	require.Equal(t, []Method{{
		Scheme:    "hmac",
		Header:    []string{"X-Sig"},
		Signed:    "{timestamp}{body}",
		Hash:      "sha256",
		Encoding:  "hex",
		Secret:    "text",
		Timestamp: []string{"header:X-Time"}, Unit: "seconds", Tolerance: defaultTolerance,
	}}, r.Verify)
}

func TestBadSettingsAreNotResolved(t *testing.T) {
	hmac := func(method string) string {
		return `{"preset":"hmac","secrets":["env:S"],"verify":[{"scheme":"hmac","header":"X-Sig",` + method + `}]}`
	}
	for name, c := range map[string]struct {
		settings string
		want     []string
	}{
		"no preset":      {`{}`, []string{"preset is required: one of " + strings.Join(Presets(), ", ")}},
		"unknown preset": {`{"preset":"gitbuh"}`, []string{"preset must be one of " + strings.Join(Presets(), ", ")}},
		"no secret": {
			`{"preset":"github"}`,
			[]string{"secrets must have at least one reference: env:NAME, file:NAME or file:/absolute/path"},
		},
		"a secret unused": {
			`{"preset":"envelope","secrets":["env:S"]}`,
			[]string{"secrets are given, but nothing is verified: choose another preset, or say in verify how"},
		},
		"hmac of nothing": {
			`{"preset":"hmac","secrets":["env:S"]}`,
			[]string{"verify[0].header is required: the name of the header that holds the signature or the token"},
		},
		"no method": {
			`{"preset":"none","verify":[]}`,
			[]string{`verify must have at least one method; {"scheme":"none"} takes requests from anyone`},
		},
		"none and another": {
			`{"preset":"github","secrets":["env:S"],"verify":[{},{"scheme":"none"}]}`,
			[]string{"verify[1] takes requests from anyone and must be the only method"},
		},
		"no scheme": {
			`{"preset":"github","secrets":["env:S"],"verify":[{},{"header":"X"}]}`,
			[]string{"verify[1].scheme must be one of hmac, ed25519, token, bearer, basic, twilio, none"},
		},
		"a secret itself": {
			`{"preset":"github","secrets":["hunter2",{"ref":"file:rel/ative"},"env:A B","file:/a/../b","file:/",` +
				`"env:",{"ref":"env:S","from":"2024-01-02T00:00:00Z","until":"2024-01-01T00:00:00Z"}]}`,
			[]string{
				"secrets[0].ref must be a reference: env:NAME, file:NAME or file:/absolute/path, never the secret itself",
				"secrets[1].ref must be a reference: env:NAME, file:NAME or file:/absolute/path, never the secret itself",
				"secrets[2].ref must be a reference: env:NAME, file:NAME or file:/absolute/path, never the secret itself",
				"secrets[3].ref must be a reference: env:NAME, file:NAME or file:/absolute/path, never the secret itself",
				"secrets[4].ref must be a reference: env:NAME, file:NAME or file:/absolute/path, never the secret itself",
				"secrets[5].ref must be a reference: env:NAME, file:NAME or file:/absolute/path, never the secret itself",
				"secrets[6].until must be later than from",
			},
		},
		"Meta without its word": {
			`{"preset":"meta","secrets":["env:S"]}`,
			[]string{
				"verify_token is required: a reference to the word that Meta asks for when the webhook is set up, " +
					"such as env:NAME",
			},
		},
		"a word of nobody": {
			`{"preset":"github","secrets":["env:S"],"verify_token":"x"}`,
			[]string{
				"verify_token must be a reference: env:NAME, file:NAME or file:/absolute/path, never the secret itself",
				"verify_token is only for the handshake meta",
			},
		},
		"Twilio without address": {
			`{"preset":"twilio","secrets":["env:S"]}`,
			[]string{
				"url is required: Twilio signs the address as it is entered there, " +
					"such as https://example.com/webhook/twilio",
			},
		},
		"Square without address": {
			`{"preset":"square","secrets":["env:S"]}`,
			[]string{"url is required: the address is signed as it is entered at the provider"},
		},
		"bad address": {
			`{"preset":"square","secrets":["env:S"],"url":"example.com"}`,
			[]string{"url must be an address such as https://example.com/webhook/name"},
		},
		"address with password": {
			`{"preset":"square","secrets":["env:S"],"url":"https://u:hidden@example.com"}`,
			[]string{"url must not hold a user or password"},
		},
		"address with fragment": {
			`{"preset":"square","secrets":["env:S"],"url":"https://example.com#a"}`,
			[]string{"url must not have a fragment"},
		},
		"choices": {
			`{"preset":"none","format":"xml","handshake":"x","conflicts":"drop","rejected":{"rows":-1,"bytes":-1,` +
				`"age":"1s"},"limits":{"rate":-1,"address_burst":5,"burst":-2}}`,
			[]string{
				"format must be one of envelope, body, cloudevents",
				"conflicts must be one of keep, refuse",
				"handshake must be one of none, slack, meta, discord, cloudevents",
				"limits.rate must be a number of requests a second, or 0 for no limit",
				"limits.burst must not be negative",
				"limits.address_burst is nothing without a rate",
				"rejected.rows must not be negative",
				"rejected.bytes must not be negative",
				"rejected.age must be at least a minute",
			},
		},
		"a signature's settings for a token": {
			`{"preset":"bearer","secrets":["env:S"],"verify":[{"scheme":"bearer","header":"X Y","signed":"{body}",` +
				`"hash":"sha256","encoding":"hex","separator":",","assign":"=","key":"a","secret":"hex",` +
				`"timestamp":"key:a","unit":"seconds","tolerance":1,"past_only":true}]}`,
			[]string{
				"verify[0].header[0] must be the name of a header",
				"verify[0].separator is not for the scheme bearer",
				"verify[0].assign is not for the scheme bearer",
				"verify[0].key is not for the scheme bearer",
				"verify[0].signed is not for the scheme bearer",
				"verify[0].hash is not for the scheme bearer",
				"verify[0].encoding is not for the scheme bearer",
				"verify[0].secret is not for the scheme bearer",
				"verify[0].timestamp is not for the scheme bearer",
				"verify[0].unit is not for the scheme bearer",
				"verify[0].tolerance is not for the scheme bearer", "verify[0].past_only is not for the scheme bearer",
			},
		},
		"hash, encoding, secret": {
			hmac(`"hash":"md5","encoding":"base32","secret":"rot13"`),
			[]string{
				"verify[0].hash must be one of sha256, sha1, sha512",
				"verify[0].encoding must be one of hex, base64",
				"verify[0].secret must be one of text, base64, hex",
			},
		},
		"ed25519 with a hash and text": {
			`{"preset":"discord","secrets":["env:S"],"verify":[{"hash":"sha256","secret":"text"}]}`,
			[]string{
				"verify[0].hash is not for the scheme ed25519",
				"verify[0].secret must be base64 or hex for the scheme ed25519",
			},
		},
		// A1: a rule names no header or parameter that carries a credential or a signature.
		"rules of credentials": {
			`{"preset":"token","secrets":["env:S"],"verify":[{"header":"X-Tok"}],"id":["{header:x-tok}"],` +
				`"type":["a.{header:Authorization}","{header:X-Session}"],"time":["{header:Cookie}","{query:access_token}"]}`,
			[]string{
				"id[0] names {header:X-Tok}, which may hold a credential or a signature",
				"type[0] names {header:Authorization}, which may hold a credential or a signature",
				"type[1] names {header:X-Session}, which may hold a credential or a signature",
				"time[0] names {header:Cookie}, which may hold a credential or a signature",
				"time[1] names {query:access_token}, which may hold a credential or a signature",
			},
		},
		"rules of signatures": {
			`{"preset":"gitlab","secrets":["env:S"],"id":["{header:Webhook-Signature}","{header:X-Gitlab-Token}"]}`,
			[]string{
				"id[0] names {header:Webhook-Signature}, which may hold a credential or a signature",
				"id[1] names {header:X-Gitlab-Token}, which may hold a credential or a signature",
			},
		},
		"rules of signatures that nobody checks": {
			`{"preset":"none","id":["{header:X-Hub-Signature-256}","{header:Stripe-Signature}","{header:X-Sig}"],` +
				`"type":["{header:X-Hmac}","{header:X-Mac}"],"time":"{header:X-Signature-Timestamp}"}`,
			[]string{
				"id[0] names {header:X-Hub-Signature-256}, which may hold a credential or a signature",
				"id[1] names {header:Stripe-Signature}, which may hold a credential or a signature",
				"id[2] names {header:X-Sig}, which may hold a credential or a signature",
				"type[0] names {header:X-Hmac}, which may hold a credential or a signature",
				"type[1] names {header:X-Mac}, which may hold a credential or a signature",
			},
		},
		"rules of another signature than the source's": {
			`{"preset":"github","secrets":["env:S"],"id":"{header:X-Hub-Signature}"}`,
			[]string{"id[0] names {header:X-Hub-Signature}, which may hold a credential or a signature"},
		},
		"rules of credentials in the body": {
			`{"preset":"none","id":["{form:token}","{body:/token}","{body:/auth/api_key/0}"],` +
				`"type":["{body:/key}","{body:/code}","{body:/session_id}","{form:AccessCode}"]}`,
			[]string{
				"id[0] names {form:token}, which may hold a credential or a signature",
				"id[1] names {body:/token}, which may hold a credential or a signature",
				"id[2] names {body:/auth/api_key/0}, which may hold a credential or a signature",
				"type[3] names {form:AccessCode}, which may hold a credential or a signature",
			},
		},
		"signed parts of credentials": {
			hmac(`"signed":"{header:X-Id|Proxy-Authorization}.{header:X-Sig}.{timestamp}.{body}",` +
				`"timestamp":["header:X-Api-Key","header:X-Auth-Timestamp"]`),
			[]string{
				"verify[0].signed names {header:Proxy-Authorization}, which may hold a credential or a signature",
				"verify[0].signed names {header:X-Sig}, which may hold a credential or a signature",
				"verify[0].timestamp[0] names the header X-Api-Key, which may hold a credential or a signature",
			},
		},
		"a token where Spine reads something else": {
			`{"preset":"token","secrets":["env:S"],"format":"cloudevents",` +
				`"verify":[{"header":["ce-id","Content-Type","X-Forwarded-For"]}]}`,
			[]string{
				"verify[0].header[0] Ce-Id must not hold a signature or a token: Spine reads it",
				"verify[0].header[1] Content-Type must not hold a signature or a token: Spine reads it",
				"verify[0].header[2] X-Forwarded-For must not hold a signature or a token: Spine reads it",
			},
		},
		"prefixes that would tell a secret": {
			`{"preset":"hmac","secrets":["env:S"],"verify":[{"header":"X","secret_prefix":["a","whsec_a"],` +
				`"secret_not":["abcdefghijklmnop_"]}]}`,
			[]string{
				"verify[0].secret_prefix[0] must end in _ and have at most 16 bytes",
				"verify[0].secret_prefix[1] must end in _ and have at most 16 bytes",
				"verify[0].secret_not[0] must end in _ and have at most 16 bytes",
			},
		},
		// A13: what nothing separates.
		"an id of parts that touch": {
			`{"preset":"none","id":["{header:A}{header:B}","{header:A}-{header:B}","{body:/a}and{hash}","{hash}%{body:/a}"]}`,
			[]string{
				"id[0] must have text between {header:A} and {header:B}, or two events could get one id",
				"id[2] must have text between {body:/a} and {hash} that begins and ends with a sign such as / or -",
				"id[3] must have text between {hash} and {body:/a} that begins and ends with a sign such as / or -",
			},
		},
		"signed parts that touch": {
			hmac(`"signed":"{timestamp}{header:X-Id}{body}","timestamp":"header:X-Time"`),
			[]string{
				"verify[0].signed must have text between {timestamp} and {header:X-Id}, " +
					"or one signature is right for two requests",
			},
		},
		"a header before the body": {
			hmac(`"signed":"{header:X-Id}{body}"`),
			[]string{
				"verify[0].signed must have text between {header:X-Id} and {body}, " +
					"or one signature is right for two requests",
			},
		},
		"a time after the body": {
			hmac(`"signed":"{body}{timestamp}","timestamp":"header:X-Time"`),
			[]string{
				"verify[0].signed must have text between {body} and {timestamp}, " +
					"or one signature is right for two requests",
			},
		},
		"a time that may be ahead": {
			hmac(`"signed":"{timestamp}{body}","timestamp":"header:X-Time","past_only":true`),
			[]string{
				"verify[0].signed must have text between {timestamp} and {body}, " +
					"or one signature is right for two requests",
			},
		},
		"a key without assign": {hmac(`"key":"v1"`), []string{"verify[0].key and assign go together"}},
		"the body is not signed": {
			hmac(`"signed":"{header:X-Id}"`),
			[]string{"verify[0].signed must hold {body}, or anybody could change it"},
		},
		"an unknown placeholder": {
			hmac(`"signed":"{bdy}"`),
			[]string{"verify[0].signed may hold {body}, {timestamp}, {url} and {header:Name} in braces"},
		},
		"an open brace": {hmac(`"signed":"{body}{"`), []string{"verify[0].signed has a { without its }"}},
		"no header's name": {
			hmac(`"signed":"{body}{header:}"`),
			[]string{"verify[0].signed names a header that cannot be one"},
		},
		"a timestamp from nowhere": {
			hmac(`"signed":"{timestamp}{body}"`),
			[]string{"verify[0].timestamp is required: where {timestamp} is, as header:Name or key:name"},
		},
		"a timestamp not signed": {
			hmac(`"timestamp":"header:X-Time"`),
			[]string{"verify[0].signed must hold {timestamp}, or anybody could change it"},
		},
		"a timestamp of a bad kind": {hmac(
			`"signed":"{body}","timestamp":["cookie:a","body:id","key:","header:"]`,
		), []string{
			"verify[0].timestamp[0] must be header:Name, key:name, or body:/json/pointer",
			"verify[0].timestamp[1] must be header:Name, key:name, or body:/json/pointer",
			"verify[0].timestamp[2] must be header:Name, key:name, or body:/json/pointer",
			"verify[0].timestamp[3] must be header:Name, key:name, or body:/json/pointer",
		}},
		"a key of no list": {
			hmac(`"signed":"{timestamp}{body}","timestamp":"key:t"`),
			[]string{
				"verify[0].timestamp[0] is for a header that lists names and values: say separator, assign and key",
			},
		},
		"a tolerance of nothing": {
			hmac(`"tolerance":5`),
			[]string{"verify[0].timestamp is required for unit, tolerance and past_only"},
		},
		"a bad unit, a bad tolerance": {
			hmac(`"timestamp":"body:/t","unit":"days","tolerance":-5`),
			[]string{
				"verify[0].unit must be one of seconds, milliseconds, rfc3339",
				"verify[0].tolerance must be between 0 and 365d",
			},
		},
		"more than anybody could need": {
			`{"preset":"github","secrets":["env:S"` + strings.Repeat(`,"env:S"`, maxSecrets) + `]}`,
			[]string{"secrets must have at most 10, found 11"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parsed(t, c.settings).Resolve()
			require.Equal(t, c.want, complaints(t, err))
			require.NotContains(t, err.Error(), "hidden")
			require.NotContains(t, err.Error(), "hunter2")
		})
	}
}

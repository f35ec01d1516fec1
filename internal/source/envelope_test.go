package source

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

// body is an envelope with the given members in place of those of the same name. An empty text leaves a member out.
func body(members ...string) []byte {
	fields := [][2]string{
		{"event_id", `"evt-1"`},
		{"event_type", `"user.created"`},
		{"occurred_at", `"2024-01-30T12:00:00Z"`},
		{"payload", `{"user_id":123}`},
	}
	var parts []string
	for _, f := range fields {
		for i := 0; i < len(members); i += 2 {
			if members[i] == f[0] {
				f[1] = members[i+1] //nolint:gosec // members come in pairs
			}
		}
		if f[1] != "" {
			parts = append(parts, fmt.Sprintf("%q:%s", f[0], f[1]))
		}
	}
	return []byte("{" + strings.Join(parts, ",") + "}")
}

// with adds text just before the end of a valid envelope.
func with(text string) []byte {
	b := body()
	return []byte(string(b[:len(b)-1]) + text + "}")
}

func nested(levels int) string {
	return strings.Repeat(`{"a":`, levels-1) + "{}" + strings.Repeat("}", levels-1)
}

func problems(t *testing.T, body []byte) []event.Problem {
	t.Helper()
	e, err := ReadEnvelope(body)
	var invalid *event.InvalidError
	require.ErrorAs(t, err, &invalid)
	require.NotEmpty(t, invalid.Problems)
	require.Zero(t, e)
	return invalid.Problems
}

func read(t *testing.T, body []byte) event.Event {
	t.Helper()
	e, err := ReadEnvelope(body)
	require.NoError(t, err)
	return e
}

func TestNotJSON(t *testing.T) {
	valid := string(body())
	for name, text := range map[string]string{
		"empty":                     "",
		"white space":               " \r\n\t",
		"truncated":                 valid[:len(valid)-1],
		"truncated in a string":     valid[:15],
		"truncated after a name":    `{"event_id"`,
		"only an opening brace":     "{",
		"byte order mark":           "\ufeff" + valid,
		"UTF-16":                    "{\x00\"\x00e\x00",
		"NaN":                       string(body("payload", `{"a":NaN}`)),
		"Infinity":                  string(body("payload", `{"a":-Infinity}`)),
		"line comment":              "// hello\n" + valid,
		"block comment":             string(body("payload", `{"a":1 /* one */}`)),
		"trailing value":            valid + valid,
		"trailing value on a line":  valid + "\n{}",
		"trailing garbage":          valid + "x",
		"trailing NUL":              valid + "\x00",
		"trailing brace":            valid + "}",
		"trailing comma":            string(with(",")),
		"missing comma":             string(with(`"a":1`)),
		"name that is no string":    string(with(`,1:1`)),
		"unquoted name":             string(with(`,a:1`)),
		"single quotes":             string(body("event_id", `'evt-1'`)),
		"newline in a string":       string(body("event_id", "\"evt\n1\"")),
		"NUL in a string":           string(body("event_id", "\"evt\x001\"")),
		"control character in text": string(body("payload", "{\"a\":\"\x1f\"}")),
		"NUL between tokens":        string(with(",\x00\"a\":1")),
		"form feed between tokens":  string(with(",\f\"a\":1")),
		"invalid UTF-8 outside":     string(with(",\xff")),
		"unknown escape":            string(body("payload", `{"a":"\x41"}`)),
		"escape cut short":          string(body("payload", `{"a":"\u12"}`)),
		"leading zero":              string(body("payload", `{"a":01}`)),
		"plus sign":                 string(body("payload", `{"a":+1}`)),
		"bare decimal point":        string(body("payload", `{"a":1.}`)),
		"empty exponent":            string(body("payload", `{"a":1e}`)),
		"mismatched brackets":       string(body("payload", `{"a":[}`)),
		"top level garbage":         "hello",
		"top level e":               "e1",
		"two top level numbers":     "1 2",
		"truncated array":           "[1,",
		"form":                      "event_id=1&event_type=2",
	} {
		t.Run(name, func(t *testing.T) {
			e, err := ReadEnvelope([]byte(text))
			var syntax *event.SyntaxError
			require.ErrorAs(t, err, &syntax)
			require.NotEmpty(t, syntax.Detail)
			require.GreaterOrEqual(t, syntax.Offset, int64(0))
			require.LessOrEqual(t, syntax.Offset, int64(len(text)))
			require.Zero(t, e)
		})
	}
}

func TestSyntaxErrorTellsWhereButEchoesNothingLong(t *testing.T) {
	name := strings.Repeat("n", 10_000)
	for text, want := range map[string]string{
		"":       "the body is empty",
		`{"a":1`: "the body is cut short after byte 6",
		`{} {}`:  "the body is not JSON: more data after the end of the JSON value at byte 5",
		`{"` + name + `":{"b":nul }}`: "the body is not JSON: " +
			"invalid character ' ' in literal null (expecting 'l') at byte 10012",
		`{"` + name + `":"` + name + "\n": "the body is not JSON: " +
			"invalid character '\\n' in string (expecting non-control character) at byte 20005",
	} {
		_, err := ReadEnvelope([]byte(text))
		require.EqualError(t, err, want)
	}
}

func TestTopLevelMustBeAnObject(t *testing.T) {
	for text, found := range map[string]string{
		`[]`:                       "an array",
		`["event_id"]`:             "an array",
		` "event" `:                "a string",
		`1`:                        "a number",
		`-0.5e3`:                   "a number",
		`true`:                     "a boolean",
		`false`:                    "a boolean",
		`null`:                     "null",
		"\"\xff\\ud800\"":          "a string",
		"[" + string(body()) + "]": "an array",
	} {
		require.Equal(
			t, []event.Problem{{Field: "", Detail: "must be an object, found " + found}}, problems(t, []byte(text)),
			text,
		)
	}
}

func TestAllProblemsAreListedAtOnce(t *testing.T) {
	require.Equal(t, []event.Problem{
		{Field: "event_id", Detail: "is required"},
		{Field: "event_type", Detail: "is required"},
		{Field: "occurred_at", Detail: "is required"},
		{Field: "payload", Detail: "is required"},
	}, problems(t, []byte(` {} `)))

	require.Equal(t, []event.Problem{
		{Field: "event_id", Detail: "must have 1 to 255 characters, found 0"},
		{Field: "event_type", Detail: "must be a string of 1 to 100 characters, found null"},
		{Field: "occurred_at", Detail: timeWanted + "a number"},
		{Field: "payload", Detail: "has a number whose exponent is beyond ±1000"},
		{Field: "", Detail: "holds a member that is nested more than 512 levels deep"},
	}, problems(
		t,
		[]byte(
			`{"payload":{"a":1e1001},"x":`+nested(513)+`,"y":1e9999,"occurred_at":5,"event_type":null,"event_id":""}`,
		),
	))
}

func TestInvalidErrorReadsAsOneLine(t *testing.T) {
	_, err := ReadEnvelope(body("event_id", "", "event_type", `[]`))
	require.EqualError(
		t, err,
		"invalid event: event_id is required; event_type must be a string of 1 to 100 characters, found an array",
	)
	_, err = ReadEnvelope([]byte(`[]`))
	require.EqualError(t, err, "invalid event: must be an object, found an array")
}

func TestInvalidField(t *testing.T) {
	long := strings.Repeat("x", 1_000_000)
	for name, tc := range map[string]struct{ field, value string }{
		"id null":                       {"event_id", `null`},
		"id number":                     {"event_id", `1`},
		"id boolean":                    {"event_id", `true`},
		"id object":                     {"event_id", `{"a":1}`},
		"id empty":                      {"event_id", `""`},
		"id of 256":                     {"event_id", `"` + strings.Repeat("x", 256) + `"`},
		"id of 256 code points":         {"event_id", `"` + strings.Repeat("é", 256) + `"`},
		"id of 256 code points escaped": {"event_id", `"` + strings.Repeat(`\ud83d\ude00`, 256) + `"`},
		"id very long":                  {"event_id", `"` + long + `"`},
		"id with newline":               {"event_id", `"a\nb"`},
		"id with escape character":      {"event_id", `"a\u001bb"`},
		"id with DEL":                   {"event_id", "\"a\x7fb\""},
		"id with C1":                    {"event_id", "\"a\u0085b\""},
		"id with escaped C1":            {"event_id", `"a\u009fb"`},
		"id with U+0000":                {"event_id", `"a\u0000b"`},
		"id with lone high surrogate":   {"event_id", `"a\ud800b"`},
		"id with lone low surrogate":    {"event_id", `"\udc00"`},
		"id with reversed surrogates":   {"event_id", `"\ude00\ud83d"`},
		"id with invalid UTF-8":         {"event_id", "\"a\xffb\""},
		"id with overlong UTF-8":        {"event_id", "\"a\xc0\xafb\""},
		"id with surrogate as UTF-8":    {"event_id", "\"a\xed\xa0\x80b\""},
		"type null":                     {"event_type", `null`},
		"type array":                    {"event_type", `["a"]`},
		"type empty":                    {"event_type", `""`},
		"type of 101":                   {"event_type", `"` + strings.Repeat("ü", 101) + `"`},
		"type with U+0000":              {"event_type", `"\u0000"`},
		"type with lone surrogate":      {"event_type", `"\uDBFF"`},
		"type with invalid UTF-8":       {"event_type", "\"\x80\""},
		"payload null":                  {"payload", `null`},
		"payload array":                 {"payload", `[{}]`},
		"payload string":                {"payload", `"{}"`},
		"payload number":                {"payload", `1`},
		"payload false":                 {"payload", `false`},
		"payload too deep":              {"payload", nested(513)},
		"payload with too deep arrays": {
			"payload",
			`{"a":` + strings.Repeat("[", 512) + strings.Repeat("]", 512) + `}`,
		},
		"payload far too deep": {"payload", nested(9_000)},
		"exponent of 400000":   {"payload", `{"a":1e400000}`},
		"exponent of 131071": {
			"payload",
			`{"a":[` + strings.Repeat(`1e131071,`, 999) + `1e131071]}`,
		},
		"exponent of 1001":                      {"payload", `{"a":1e1001}`},
		"exponent of +1001":                     {"payload", `{"a":[0,-1.5E+1001]}`},
		"exponent of -1001":                     {"payload", `{"a":1e-1001}`},
		"exponent of zero":                      {"payload", `{"a":0e1001}`},
		"exponent with leading zeros":           {"payload", `{"a":1e0001001}`},
		"exponent beyond int64":                 {"payload", `{"a":1e99999999999999999999999}`},
		"exponent that wraps around":            {"payload", `{"a":1e18446744073709551617}`},
		"exponent after true":                   {"payload", `{"a":true,"b":1e1001}`},
		"exponent after a string":               {"payload", `{"a\\":"\"","b":1e1001}`},
		"time null":                             {"occurred_at", `null`},
		"time number":                           {"occurred_at", `1706616000`},
		"time empty":                            {"occurred_at", `""`},
		"time infinity":                         {"occurred_at", `"infinity"`},
		"time now":                              {"occurred_at", `"now"`},
		"time date only":                        {"occurred_at", `"2024-01-30"`},
		"time without seconds":                  {"occurred_at", `"2024-01-30T12:00Z"`},
		"time with space":                       {"occurred_at", `"2024-01-30 12:00:00Z"`},
		"time with comma":                       {"occurred_at", `"2024-01-30T12:00:00,5Z"`},
		"time with bare point":                  {"occurred_at", `"2024-01-30T12:00:00.Z"`},
		"time with one hour digit":              {"occurred_at", `"2024-01-30T1:00:00Z"`},
		"time with one hour digit and fraction": {"occurred_at", `"2024-01-30T1:00:00.5Z"`},
		"time second 60":                        {"occurred_at", `"2016-12-31T23:59:60Z"`},
		"time hour 24":                          {"occurred_at", `"2024-01-30T24:00:00Z"`},
		"time minute 60":                        {"occurred_at", `"2024-01-30T12:60:00Z"`},
		"time month 13":                         {"occurred_at", `"2024-13-30T12:00:00Z"`},
		"time 30 February":                      {"occurred_at", `"2024-02-30T12:00:00Z"`},
		"time year 0":                           {"occurred_at", `"0000-06-01T00:00:00Z"`},
		"time year 0 by zone":                   {"occurred_at", `"0000-12-31T23:59:59-01:00"`},
		"time year 10000":                       {"occurred_at", `"10000-01-01T00:00:00Z"`},
		"time year 0 in UTC":                    {"occurred_at", `"0001-01-01T00:00:00+00:01"`},
		"time year 10000 in UTC":                {"occurred_at", `"9999-12-31T23:59:59-00:01"`},
		"time negative year":                    {"occurred_at", `"-001-01-01T00:00:00Z"`},
		"time offset of 24 hours":               {"occurred_at", `"2024-01-30T12:00:00+24:00"`},
		"time offset of 60 minutes":             {"occurred_at", `"2024-01-30T12:00:00+01:60"`},
		"time offset without colon":             {"occurred_at", `"2024-01-30T12:00:00+0100"`},
		"time offset of hours":                  {"occurred_at", `"2024-01-30T12:00:00+01"`},
		"time with zone name":                   {"occurred_at", `"2024-01-30T12:00:00 UTC"`},
		"time with Z and offset":                {"occurred_at", `"2024-01-30T12:00:00Z+01:00"`},
		"time with white space":                 {"occurred_at", `" 2024-01-30T12:00:00Z"`},
		"time with U+0000":                      {"occurred_at", `"2024-01-30T12:00:00Z\u0000"`},
		"time with invalid UTF-8":               {"occurred_at", "\"2024-01-30T12:00:00Z\xff\""},
		"time very long":                        {"occurred_at", `"` + long + `"`},
	} {
		t.Run(name, func(t *testing.T) {
			got := problems(t, body(tc.field, tc.value))
			require.Len(t, got, 1)
			require.Equal(t, tc.field, got[0].Field)
			require.NotEmpty(t, got[0].Detail)
			require.Less(t, len(got[0].Detail), 150)
		})
	}
}

func TestEveryFieldIsRequired(t *testing.T) {
	for f := range field(fieldCount) {
		require.Equal(t, []event.Problem{{Field: f.String(), Detail: "is required"}}, problems(t, body(f.String(), "")))
	}
}

func TestRepeatedFieldIsInvalid(t *testing.T) {
	for f := range field(fieldCount) {
		for _, name := range []string{f.String(), strings.Replace(f.String(), "e", `\u0065`, 1)} {
			for _, value := range []string{`"evt-1"`, `null`, `{"user_id":123}`} {
				once := fmt.Sprintf(`,"%s":%s`, strings.Replace(name, "payload", `\u0070ayload`, 1), value)
				for _, text := range []string{once, once + once} {
					require.Equal(
						t, []event.Problem{{Field: f.String(), Detail: "must be given only once"}},
						problems(t, with(text)), text,
					)
				}
			}
		}
	}
}

func TestNamesAreCaseSensitive(t *testing.T) {
	require.Equal(t, "evt-1", read(t, with(`,"EVENT_ID":"other","Event_Id":7`)).ID)
	require.Equal(t, []event.Problem{{Field: "event_id", Detail: "is required"}},
		problems(t, bytes.Replace(body(), []byte("event_id"), []byte("Event_ID"), 1)))
}

func TestOtherMembersAreIgnored(t *testing.T) {
	want := read(t, body())
	for _, text := range []string{
		`,"x":1`,
		`,"x":1,"x":null`,
		`,"":{"a":1,"a":2}`,
		`,"x":"\u0000\ud800"`,
		",\"\xff\":\"\xff\"",
		`,"\ud800":[]`,
		`,"event_id\u0000":1,"event_id ":1`,
		`,"x":` + nested(512) + `,"y":[1e1000,-1E-1000]`,
	} {
		require.Equal(t, want, read(t, with(text)), text)
	}
}

func TestLimitsHoldForTheWholeBody(t *testing.T) {
	for text, detail := range map[string]string{
		`,"x":` + nested(513): "holds a member that " + tooDeep,
		`,"x":` + strings.Repeat("[", 513) + strings.Repeat("]", 513): "holds a member that " + tooDeep,
		`,"x":-1.0e-01001`: "holds a member that " + tooLarge,
	} {
		require.Equal(t, []event.Problem{{Field: "", Detail: detail}}, problems(t, with(text)))
	}
}

// The decoder itself stops at a nesting of 10,000.
func TestNestingBeyondTheDecoder(t *testing.T) {
	for name, text := range map[string][]byte{
		"payload":         body("payload", nested(11_000)),
		"payload arrays":  body("payload", `{"a":`+strings.Repeat("[", 100_000)+strings.Repeat("]", 100_000)+"}"),
		"other member":    with(`,"x":` + nested(11_000)),
		"top level array": []byte(strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000)),
		"never closed":    []byte(strings.Repeat("[", 20_000)),
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, []event.Problem{{Field: "", Detail: tooDeep}}, problems(t, text))
		})
	}
}

func TestAcceptedEvent(t *testing.T) {
	payload := "{ \"b\" : 1.0 ,\n\t\"a\":[ 12345678901234567890, -0, 1E2, 1.10 ] }"
	text := []byte(" {\"payload\" : " + payload + " ,\n" +
		`"occurred_at":"2024-01-30T13:00:00.123456789+01:00","event_type":"ÜÖ\u00e4\n\ud83d\ude00",` +
		`"event\u005fid":"a b/\"é"}` + "\r\n")
	sent := bytes.Clone(text)
	e := read(t, text)
	require.Equal(t, event.DefaultSource, e.Source)
	require.Equal(t, `a b/"é`, e.ID)
	require.Equal(t, "ÜÖä\n😀", e.Type)
	require.Equal(t, time.Date(2024, 1, 30, 12, 0, 0, 123456000, time.UTC), e.OccurredAt)
	require.Equal(t, payload, string(e.Payload))
	require.Empty(t, e.Unqueryable)
	require.Equal(t, sent, text, "the body must not be changed")
	require.Same(t, &text[bytes.Index(text, e.Payload)], &e.Payload[0], "the payload must be a part of the body")
}

func TestLongestStrings(t *testing.T) {
	for _, c := range []string{"x", "é", "😀"} {
		e := read(t, body("event_id", `"`+strings.Repeat(c, 255)+`"`, "event_type", `"`+strings.Repeat(c, 100)+`"`))
		require.Equal(t, strings.Repeat(c, 255), e.ID)
		require.Equal(t, strings.Repeat(c, 100), e.Type)
	}
}

func TestLargestPayloadNestingAndExponent(t *testing.T) {
	for _, payload := range []string{
		nested(512),
		`{"a":` + strings.Repeat("[", 511) + strings.Repeat("]", 511) + `}`,
		`{"a":[` + strings.Repeat("[{}],", 1000) + `[]]}`,
		`{"a":[1e1000,1E+1000,-1.5e-1000,1e0000000000001000]}`,
		`{"1e9999":"1e9999 \"2e9999","true":true,"false":false}`,
		`{"` + strings.Repeat("[", 1000) + `":"` + strings.Repeat("{", 1000) + `\"["}`,
	} {
		require.Equal(t, payload, string(read(t, body("payload", payload)).Payload))
	}
}

func TestTimes(t *testing.T) {
	noon := time.Date(2024, 1, 30, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"2024-01-30T12:00:00Z":                  noon,
		"2024-01-30t12:00:00z":                  noon,
		"2024-01-30T12:00:00":                   noon,
		"2024-01-30t12:00:00.25":                noon.Add(250 * time.Millisecond),
		"2024-01-30T12:00:00.5Z":                noon.Add(500 * time.Millisecond),
		"2024-01-30T12:00:00.1234567890123456Z": noon.Add(123456 * time.Microsecond),
		"2024-01-30T12:00:00+00:00":             noon,
		"2024-01-30T12:00:00-00:00":             noon,
		"2024-01-30T17:30:00+05:30":             noon,
		"2024-01-29T12:01:00-23:59":             noon,
		"0001-01-01T00:00:00Z":                  time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC),
		"9999-12-31T23:59:59.999999999Z":        time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC),
		"2024-02-29T23:59:59Z":                  time.Date(2024, 2, 29, 23, 59, 59, 0, time.UTC),
		`2024\u002d01-30T12:00:00Z`:             noon,
	} {
		require.Equal(t, want, read(t, body("occurred_at", `"`+text+`"`)).OccurredAt, text)
	}
}

// example is an envelope of 1 kB as a provider might send it, with its names in any order.
func example() []byte {
	payload := `{"user_id":123,"email":"test@example.com","name":"Zoë Example","active":true,"score":12.50,` +
		`"tags":["new","trial","eu"],` +
		`"address":{"street":"1 Example Street","city":"Utrecht","zip":"3511 AB","country":"NL"},"items":[` +
		strings.TrimSuffix(strings.Repeat(`{"sku":"A-1001","quantity":2,"price":1999,"note":null},`, 12), ",") + `]}`
	return body("event_id", `"0190c2f0-7c1e-7a34-9d0e-3f6a5b1c2d3e"`, "payload", payload)
}

func BenchmarkReadEnvelope(b *testing.B) {
	text := example()
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ReadEnvelope(text); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzReadEnvelope(f *testing.F) {
	f.Add(body())
	f.Add(example())
	f.Add(with(`,"x":[1e1000,"\u0000"],"x":{}`))
	f.Add(body("payload", `{"a":1,"a":2}`))
	f.Add(body("payload", `{"a":"\ud800","\\u0000":"\u0000"}`))
	f.Add(body("payload", "{\"a\":\"\xff\"}"))
	f.Add(body("payload", `{"a":1e1001}`, "event_id", "null"))
	f.Add([]byte(strings.Repeat("[", 10_001)))
	f.Add([]byte(`[1e`))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := ReadEnvelope(text)
		if err != nil {
			return
		}
		if !json.Valid(text) || !json.Valid(e.Payload) {
			t.Fatalf("accepted what is not JSON: %q", text)
		}
		if e.Unqueryable != "" {
			return
		}
		var indented bytes.Buffer
		if err := json.Indent(&indented, e.Payload, " ", "\t"); err != nil {
			t.Fatal(err)
		}
		hash, reason := fingerprint(indented.Bytes())
		if reason != "" || hash != e.Hash {
			t.Fatalf("white space changed the hash of %q (%s)", e.Payload, reason)
		}
	})
}

package source

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestSamePayload(t *testing.T) {
	for _, payloads := range [][]string{
		{`{"a":1,"b":2}`, `{"b":2,"a":1}`, " { \"b\" :\n2 ,\t\"a\":1\r} "},
		{`{"a":"é/\n😀"}`, `{"\u0061":"\u00e9\/\u000a\ud83d\ude00"}`, `{"a":"\u00E9\u002f\n\uD83D\uDE00"}`},
		{`{"x":[{"a":1,"b":[]},{}]}`, `{"x":[ {"b":[ ],"a":1}, { } ]}`},
		{`{"a":"\\u0000"}`, `{"a":"\u005cu0000"}`},
		{"{\"a\":\"\x7f\"}", `{"a":"\u007f"}`},
	} {
		want, reason := fingerprint([]byte(payloads[0]))
		require.Empty(t, reason)
		for _, p := range payloads[1:] {
			got, reason := fingerprint([]byte(strings.TrimSpace(p)))
			require.Empty(t, reason)
			require.Equal(t, want, got, p)
		}
	}
}

func TestOtherPayload(t *testing.T) {
	seen := make(map[[32]byte]string)
	for _, p := range []string{
		`{}`, `{"a":1}`, `{"a":1.0}`, `{"a":1e0}`, `{"a":1E0}`, `{"a":"1"}`, `{"a":[1]}`, `{"A":1}`,
		`{"a":0}`, `{"a":-0}`, `{"a":0.0}`, `{"a":1.1}`, `{"a":1.10}`,
		`{"a":9007199254740992}`, `{"a":9007199254740993}`,
		`{"a":12345678901234567890}`, `{"a":12345678901234567891}`,
		`{"a":0.1000000000000000055}`, `{"a":0.1000000000000000056}`,
		`{"a":[1,2]}`, `{"a":[2,1]}`,
		`{"a":"é"}`, `{"a":"e\u0301"}`, `{"a":null}`, `{"a":false}`, `{"a":""}`, `{"a":" "}`,
	} {
		hash, reason := fingerprint([]byte(p))
		require.Empty(t, reason)
		require.NotContains(t, seen, hash, "%s and %s", p, seen[hash])
		seen[hash] = p
	}
}

// Others can compute the hash too: names are in the order of their UTF-16 code units, and strings have the fewest
// escapes.
func TestCanonicalForm(t *testing.T) {
	payload := "{\"\U0001F600\":1, \"\uFB01\":-0, \"b\":\"\\u2028\\/\\u0008\\u001F\\\"\\u007f<>&\", \"\":[1E2,1.10]}"
	hash, reason := fingerprint([]byte(payload))
	require.Empty(t, reason)
	want := sha256.Sum256(
		[]byte("{\"\":[1E2,1.10],\"b\":\"\u2028/\\b\\u001f\\\"\x7f<>&\",\"\U0001F600\":1,\"\uFB01\":-0}"),
	)
	require.Equal(t, hex.EncodeToString(want[:]), hex.EncodeToString(hash[:]))
}

func TestUnqueryablePayload(t *testing.T) {
	for payload, reason := range map[string]string{
		`{"a":"\u0000"}`:              `\u0000 in a string`,
		`{"a":"x\\\u0000"}`:           `\u0000 in a string`,
		`{"a":"\\u0000\u0000"}`:       `\u0000 in a string`,
		`{"a\u0000":1}`:               `\u0000 in a string`,
		`{"a":["\ud800"]}`:            "a lone surrogate in a string",
		`{"a":"\udc00\ud800"}`:        "a lone surrogate in a string",
		`{"\uD83D":1}`:                "a lone surrogate in a string",
		"{\"a\":\"\xff\"}":            "invalid UTF-8 in a string",
		"{\"\xc3\":1}":                "invalid UTF-8 in a string",
		"{\"a\":\"\xed\xa0\x80\"}":    "invalid UTF-8 in a string",
		`{"a":1,"a":1}`:               "duplicate names in an object",
		`{"a":1,"b":2,"\u0061":3}`:    "duplicate names in an object",
		`{"x":[0,{"y":{"":1,"":2}}]}`: "duplicate names in an object",
	} {
		t.Run(payload, func(t *testing.T) {
			e := read(t, body("payload", payload))
			require.Equal(t, reason, e.Unqueryable)
			require.Equal(t, payload, string(e.Payload))
			require.Equal(t, sha256.Sum256([]byte(payload)), e.Hash)

			spaced := read(t, body("payload", payload[:1]+" "+payload[1:]))
			require.Equal(t, reason, spaced.Unqueryable)
			require.NotEqual(t, e.Hash, spaced.Hash, "the hash must be over the exact bytes")
		})
	}
}

func TestQueryablePayload(t *testing.T) {
	for _, payload := range []string{
		`{"a":"\\u0000"}`,
		`{"a":"\\\\u0000\\u0000"}`,
		`{"a":"\ud83d\ude00 \uffff \u0001"}`,
		`{"a":{"a":1},"b":{"a":1}}`,
		`{"a":1,"A":1}`,
		"{\"a\":\"\u0085\ufeff\U0010ffff\"}",
	} {
		require.Empty(t, read(t, body("payload", payload)).Unqueryable, payload)
	}
}

// Each value is built together with its nesting and its largest exponent.
func TestMeasureAgreesWithWhatWasBuilt(t *testing.T) {
	type built struct {
		text  string
		depth int
		exp   int
	}
	var value func(t *rapid.T, levels int) built
	value = func(t *rapid.T, levels int) built {
		kind := rapid.IntRange(0, 5).Draw(t, "kind")
		if levels == 0 && kind > 3 {
			kind = 0
		}
		switch kind {
		case 0:
			return built{rapid.SampledFrom([]string{"true", "false", "null", "1", "-1.5"}).Draw(t, "scalar"), 0, 0}
		case 1, 2:
			exp := rapid.IntRange(0, 1001).Draw(t, "exponent")
			sign := rapid.SampledFrom([]string{"e", "E", "e+", "E-", "e-000"}).Draw(t, "sign")
			return built{"1" + sign + strconv.Itoa(exp), 0, exp}
		case 3:
			return built{rapid.SampledFrom([]string{`"[{1e9"`, `"\"[1e9"`, `"\\"`, `""`}).Draw(t, "string"), 0, 0}
		default:
			open, name, end := "[", "", "]"
			if kind == 5 {
				open, name, end = "{", `"1e9]\\":`, "}"
			}
			out := built{text: open, depth: 1}
			for i := range rapid.IntRange(0, 3).Draw(t, "members") {
				m := value(t, levels-1)
				if i > 0 {
					out.text += ","
				}
				out.text += name + m.text
				out.depth, out.exp = max(out.depth, 1+m.depth), max(out.exp, m.exp)
			}
			out.text += end
			return out
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		b := value(t, 5)
		depth, exponent := measureJSON([]byte(b.text))
		require.Equal(t, b.depth, depth, b.text)
		require.Equal(t, b.exp, exponent, b.text)
	})
}

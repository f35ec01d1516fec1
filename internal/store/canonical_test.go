package store_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/webhookspine/spine/internal/source" //nolint:depguard // the property is that both sides agree
)

// jsonText draws a JSON value as a sender might write it: any white space, any
// way of escaping, names out of order, some twice.
func jsonText(t *rapid.T, levels int) string {
	space := func() string { return rapid.SampledFrom([]string{"", "", "", " ", "\n\t\r "}).Draw(t, "space") }
	kind := rapid.IntRange(0, 5).Draw(t, "kind")
	if levels == 0 {
		kind %= 3
	}
	switch kind {
	case 0:
		return rapid.SampledFrom([]string{
			"true",
			"false",
			"null",
			"0",
			"-0",
			"0.0",
			"-0.00",
			"1",
			"1.0",
			"1.10",
			"1e2",
			"1E2",
			"1E+2",
			"1e-02",
			"1e999",
			"-1e-1000",
			"9007199254740993",
			"12345678901234567890123456789012345678901234567890",
			"0.1000000000000000055511151231257827",
		}).Draw(t, "scalar")
	case 1, 2:
		return jsonString(t)
	case 3:
		var items []string
		for range rapid.IntRange(0, 4).Draw(t, "items") {
			items = append(items, space()+jsonText(t, levels-1)+space())
		}
		return "[" + strings.Join(items, ",") + space() + "]"
	default:
		return jsonObject(t, levels)
	}
}

func jsonObject(t *rapid.T, levels int) string {
	space := func() string { return rapid.SampledFrom([]string{"", "", " ", "\r\n"}).Draw(t, "space") }
	var members []string
	for range rapid.IntRange(0, 4).Draw(t, "members") {
		members = append(members, space()+jsonString(t)+space()+":"+space()+jsonText(t, levels-1)+space())
	}
	return "{" + strings.Join(members, ",") + space() + "}"
}

// jsonString draws characters from where orders and escapes differ: around the
// surrogates, beyond U+FFFF, controls. Some cannot be queried.
func jsonString(t *rapid.T) string {
	character := rapid.OneOf(
		rapid.SampledFrom([]string{
			"a",
			"b",
			"Z",
			"0",
			"_",
			" ",
			"/",
			`\/`,
			`\\`,
			`\"`,
			`\b`,
			`\f`,
			`\n`,
			`\r`,
			`\t`,
			`\u0001`,
			`\u001f`,
			`\u001F`,
			`\u0041`,
			`\u00e9`,
			"é",
			"e\u0301",
			"\u007f",
			"\u0080",
			"\u2028",
			"\u2029",
			"<",
			">",
			"&",
			"'",
			"\ud7ff",
			"\ue000",
			"\ufb01",
			"\ufeff",
			"\ufffd",
			"\uffff",
			"\U00010000",
			"\U0001f600",
			"\U0010ffff",
			`\ud83d\ude00`,
			`\uD83D\uDE00`,
			`\udbff\udfff`,
			`\ud7ff`,
			`\ue000`,
			`\uffff`,
			`\\u0000`,
		}),
		rapid.Map(
			rapid.Rune().Filter(func(r rune) bool { return r >= 0x20 && r != '"' && r != '\\' }),
			func(r rune) string { return string(r) },
		),
		rapid.Map(rapid.IntRange(1, 0xd7ff), func(c int) string { return fmt.Sprintf(`\u%04x`, c) }),
	)
	text := strings.Join(rapid.SliceOfN(character, 0, 4).Draw(t, "text"), "")
	if rapid.IntRange(0, 30).Draw(t, "unqueryable") == 0 {
		escapes := []string{`\u0000`, `\ud800`, `\udc00`, `\udc00\ud800`, `\ud800a`, `\ud83d\ud83d\ude00`}
		text += rapid.SampledFrom(escapes).Draw(t, "escape")
	}
	return `"` + text + `"`
}

func TestDatabaseAndEdgeAgreeOnPayloads(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	var n, unqueryable int
	agree := func(t require.TestingT, payload string) {
		edge, err := source.ReadEnvelope(
			[]byte(`{"event_id":"x","event_type":"a","occurred_at":"2024-01-30T12:00:00Z","payload":` + payload + `}`),
		)
		require.NoError(t, err, payload)
		n++
		var hash []byte
		var reason string
		_, err = d.Pool().Exec(d.t.Context(), "select spine.ingest($1, 'a', $2)", fmt.Sprint(n), payload)
		require.NoError(t, err, payload)
		const stored = "select payload_hash, coalesce(unqueryable, '') from spine.events where event_id = $1"
		err = d.Pool().QueryRow(d.t.Context(), stored, fmt.Sprint(n)).Scan(&hash, &reason)
		require.NoError(t, err, payload)
		require.Equal(
			t,
			edge.Unqueryable == "",
			reason == "",
			"edge: %q, database: %q: %s",
			edge.Unqueryable,
			reason,
			payload,
		)
		require.Equal(t, edge.Hash[:], hash, payload)
		if reason != "" {
			unqueryable++
		}
	}
	for _, payload := range []string{
		`{}`,
		`{"a":[]}`,
		`{"":{"":[{}]}}`,
		` { } `,
		"{\"\U0001f600\":1,\"\ufb01\":2,\"\ue000\":3,\"\uffff\":4,\"a\":5,\"aa\":6,\"a\U00010000\":7,\"a\ufffd\":8}",
		`{"\ud83d\ude00":1,"\ufb01":2}`,
		`{"a":1,"b":2,"\u0061":3}`,
		`{"x":[0,{"y":{"":1,"":2}}]}`,
		`{"a":"\u0000"}`,
		`{"a\u0000":1}`,
		`{"a":"\ud800"}`,
		`{"\udc00":1}`,
		strings.Repeat(`{"a":`, 511) + "{}" + strings.Repeat("}", 511),
		`{"a":` + strings.Repeat("[", 511) + strings.Repeat("]", 511) + "}",
	} {
		agree(t, payload)
	}
	fixed := unqueryable
	require.Equal(t, 6, fixed)
	rapid.Check(t, func(t *rapid.T) { agree(t, jsonObject(t, 4)) })
	if testing.Short() {
		return // too few were drawn for all kinds to come up
	}
	require.Greater(t, unqueryable, fixed, "the property was put to the test on unqueryable payloads as well")
	require.Greater(t, n-unqueryable, 25, "and on queryable ones")
}

// A parallel worker must not be asked for what takes a subtransaction.
func TestUnqueryableUnderParallelism(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 10)...)
	name := d.value("select name from pg_settings where name in ('force_parallel_mode', 'debug_parallel_query')")
	conn := d.psql("set " + name + " = on")
	require.Equal(
		t,
		"10|10",
		value(
			t,
			conn,
			"select count(*), count(*) filter (where spine.unqueryable(payload::text) is null) from spine.events",
		),
	)
	require.Equal(t, "1", value(t, conn, "select count(distinct spine.canonical(payload)) from spine.events"))
}

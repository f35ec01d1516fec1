package source

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

var came = time.Date(2024, 1, 30, 12, 0, 0, 123_456_789, time.UTC)

// reading makes a reader of settings.
func reading(t testing.TB, settings string) *reader {
	t.Helper()
	c, err := ParseConfig([]byte(settings))
	require.NoError(t, err)
	c, err = c.Resolve()
	require.NoError(t, err)
	redactor := NewRedactor(c)
	r, err := newReader("shop", c, &redactor)
	require.NoError(t, err)
	return r
}

// sent is a request. The header is pairs of name and value.
func sent(body string, header ...string) *event.Request {
	q := &event.Request{
		Method: http.MethodPost,
		URL:    &url.URL{Path: "/webhook/shop", RawQuery: "n=q-1"},
		Header: http.Header{},
		Wire:   []byte(body),
		Body:   []byte(body),
		At:     came,
	}
	for pair := range slices.Chunk(header, 2) {
		q.Header.Add(pair[0], pair[1])
	}
	return q
}

func readOne(t *testing.T, r *reader, q *event.Request) event.Event {
	t.Helper()
	events, batch, err := r.read(q)
	require.NoError(t, err)
	require.False(t, batch)
	require.Len(t, events, 1)
	require.Equal(t, "shop", events[0].Source)
	return events[0]
}

func requireInvalid(t *testing.T, r *reader, q *event.Request, field string) {
	t.Helper()
	_, _, err := r.read(q)
	var invalid *event.InvalidError
	require.ErrorAs(t, err, &invalid)
	for _, p := range invalid.Problems {
		if p.Field == field {
			return
		}
	}
	require.Fail(t, "no problem of this field", "%s: %v", field, invalid.Problems)
}

const any1 = `{"preset":"none","id":["{header:X-Id}","{body:/data/id}","{form:id}","{query:nothing}"],` +
	`"type":["{header:X-Type}.{body:/action}","{header:X-Type}"],"time":["{body:/at}"]}`

func TestRules(t *testing.T) {
	r := reading(t, any1)
	for _, c := range []struct {
		body     string
		header   []string
		id, kind string
	}{
		{`{"data":{"id":"b"}}`, []string{"X-Id", "h", "X-Type", "t"}, "h", "t"},
		{`{"data":{"id":"b"},"action":"go"}`, []string{"X-Type", "t"}, "b", "t.go"},
		{`{"data":{"id":12345678901234567890}}`, nil, "12345678901234567890", "shop"},
		{`{"data":{"id":1.50}}`, nil, "1.50", "shop"},
		{`{"data":{"id":true}}`, nil, "true", "shop"},
		{`{"data":{"id":"\u00e9\n"}}`, []string{"X-Id", "h"}, "h", "shop"},
		{`{"Data":{"id":"x"},"data":{"ID":"y","id":"b"}}`, nil, "b", "shop"}, // case matters
		{`{"data":{"id":"b"},"x":{"data":{"id":"c"}}}`, nil, "b", "shop"},
		{`{"d\u0061ta":{"id":"b"}}`, nil, "b", "shop"},
		{`{"other":1,"other":2,"data":{"id":"b"}}`, nil, "b", "shop"}, // repeated elsewhere
	} {
		e := readOne(t, r, sent(c.body, append([]string{"Content-Type", "application/json"}, c.header...)...))
		require.Equal(t, c.id, e.ID, c.body)
		require.Equal(t, c.kind, e.Type, c.body)
		require.False(t, e.IDDerived)
		require.Equal(t, c.body, string(e.Payload))
	}
	for _, body := range []string{
		`{}`,
		`{"data":{"id":null}}`,
		`{"data":{"id":{}}}`,
		`{"data":{"id":""}}`,
		`{"data":[{"id":1}]}`,
	} {
		e := readOne(t, r, sent(body))
		require.True(t, e.IDDerived, body)
		sum := sha256.Sum256([]byte(body))
		require.Equal(t, "sha256:"+hexOf(sum[:]), e.ID)
	}
	requireInvalid(t, r, sent(`{"data":{"id":"a","id":"b"}}`), "/data/id")
	requireInvalid(t, r, sent(`{"data":{"id":"a"},"data":{"id":"b"}}`), "/data/id")
	requireInvalid(t, r, sent("{\"data\":{\"id\":\"a\xff\"}}", "Content-Type", "application/json"), "/data/id")
	requireInvalid(t, r, sent(`{"data":{"id":"\ud800"}}`), "/data/id")
	requireInvalid(t, r, sent(`{"data":{"id":"a\u0000"}}`), "event_id")
	requireInvalid(t, r, sent(`{"data":{"id":"`+strings.Repeat("a", 256)+`"}}`), "event_id")
	requireInvalid(t, r, sent(`{}`, "X-Id", "a\xff"), "event_id")
	require.Equal(
		t, strings.Repeat("é", 100), readOne(t, r, sent(`{}`, "X-Type", strings.Repeat("é", 300))).Type,
		"a type is no reason to reject an event",
	)
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for _, c := range b {
		s.WriteByte(digits[c>>4])
		s.WriteByte(digits[c&15])
	}
	return s.String()
}

func TestTemplates(t *testing.T) {
	for _, wrong := range []string{
		"",
		"{",
		"{header}",
		"{header:}",
		"{body:x}",
		"{body:/a~2}",
		"{nothing:x}",
		"{hash:x}",
		"a{b",
	} {
		_, err := parseTemplate(wrong)
		require.Error(t, err, wrong)
	}
	tpl, err := parseTemplate("{{a}-{header:x-y}-{hash}")
	require.NoError(t, err)
	text, ok := tpl.render(func(kind, name string) (string, bool) { return kind + name, true })
	require.True(t, ok)
	require.Equal(t, "{a}-headerX-Y-hash", text)
	_, err = Config{Preset: "none", ID: []string{"{"}, Volatile: []string{"x"}}.Resolve()
	var bad *event.BadSettingsError
	require.ErrorAs(t, err, &bad)
	require.Len(t, bad.Problems, 2)
}

func TestTimesOfProviders(t *testing.T) {
	r := reading(t, any1)
	for text, want := range map[string]string{
		`"2024-01-30T13:00:00.5+01:00"`: "2024-01-30T12:00:00.5Z", `"2024-01-30T12:00:00z"`: "2024-01-30T12:00:00Z",
		`1706616000`:    "2024-01-30T12:00:00Z",
		`1706616000123`: "2024-01-30T12:00:00.123Z",
		`"1706616000"`:  "2024-01-30T12:00:00Z",
		`1706616000.25`: "2024-01-30T12:00:00.25Z", `1706616000123456789`: "2024-01-30T12:00:00.123456Z",
		`"Tue, 30 Jan 2024 12:00:00 GMT"`: "2024-01-30T12:00:00Z",
	} {
		require.Equal(t, want, readOne(t, r, sent(`{"at":`+text+`}`)).OccurredAt.Format(time.RFC3339Nano), text)
	}
	for _, junk := range []string{
		`"10000-01-01T00:00:00Z"`,
		`"2024-01-30T24:00:00Z"`,
		`"2024-01-30T12:00:60Z"`,
		`"infinity"`,
		`9223372036854775807000000000`,
		`"NaN"`,
		`"Inf"`,
		`{}`,
		`null`,
		`""`,
		`"0000-01-01T00:00:00Z"`,
	} {
		require.Equal(t, came.Truncate(time.Microsecond), readOne(t, r, sent(`{"at":`+junk+`}`)).OccurredAt, junk)
	}
}

func TestBodies(t *testing.T) {
	r := reading(t, any1)
	for name, c := range map[string]struct {
		body, contentType    string
		payload, unqueryable string
		raw                  bool
	}{
		"JSON":             {`{"a": 1.0}`, "application/json; charset=utf-8", `{"a": 1.0}`, "", false},
		"JSON of a kind":   {`[1]`, "application/vnd.x+json", `[1]`, "", false},
		"JSON as text":     {`{"a":1}`, "text/plain; charset=UTF-8", `{"a":1}`, "", false},
		"JSON unannounced": {"\n [1,2]", "", "\n [1,2]", "", false},
		"a JSON scalar":    {`"x"`, "application/json", `"x"`, "", false},
		"NUL in JSON":      {`{"a":"\u0000"}`, "application/json", `{"a":"\u0000"}`, `\u0000 in a string`, false},
		"a lone surrogate": {
			`{"a":"\ud800"}`,
			"application/json",
			`{"a":"\ud800"}`,
			"a lone surrogate in a string",
			false,
		},
		"invalid UTF-8": {
			"{\"a\":\"\xff\"}",
			"application/json",
			"{\"a\":\"\xff\"}",
			"invalid UTF-8 in a string",
			false,
		},
		"duplicate names": {
			`{"a":1,"a":2}`,
			"application/json",
			`{"a":1,"a":2}`,
			"duplicate names in an object",
			false,
		},
		"form": {
			"b=2&a=1&a=%C3%A9&c=",
			"application/x-www-form-urlencoded",
			`{"a":["1","é"],"b":"2","c":""}`,
			"",
			true,
		},
		"JSON in a form":    {"payload=%7B%22a%22%3A1%7D", "application/x-www-form-urlencoded", `{"a":1}`, "", true},
		"no JSON in a form": {"payload=%7B", "application/x-www-form-urlencoded", `{"payload":"{"}`, "", true},
		"markup in a form":  {"a=%3Cb%3E", "application/x-www-form-urlencoded", `{"a":"<b>"}`, "", true},
		"a form that is bad": {
			"a=%zz",
			"application/x-www-form-urlencoded",
			"a=%zz",
			"the body is not a well-formed form",
			false,
		},
		"bytes in a form": {
			"a=%ff",
			"application/x-www-form-urlencoded",
			"a=%ff",
			"invalid UTF-8 in a field of the form",
			false,
		},
		"NUL in a form": {"a=%00", "application/x-www-form-urlencoded", "a=%00", `\u0000 in a string`, false},
		"XML":           {"<a/>", "text/xml", "<a/>", "the body is not JSON but text/xml", false},
		"bytes": {
			"\x00\xff",
			"application/octet-stream",
			"\x00\xff",
			"the body is not JSON but application/octet-stream",
			false,
		},
		"text":                {"hello", "", "hello", "the body is not JSON", false},
		"a broken brace":      {"{hello", "text/plain", "{hello", "the body is not JSON but text/plain", false},
		"nothing":             {"", "", "", "the body is not JSON", false},
		"a junk type":         {"x", "a/b; ;;\x00", "x", "the body is not JSON but a/b", false},
		"a type that is none": {"x", "x y", "x", "the body is not JSON", false},
	} {
		t.Run(name, func(t *testing.T) {
			e := readOne(t, r, sent(c.body, "Content-Type", c.contentType, "X-Id", "1"))
			require.Equal(t, c.payload, string(e.Payload))
			require.Equal(t, c.unqueryable, e.Unqueryable)
			require.Equal(t, c.raw, e.Raw != nil)
			if e.Raw != nil {
				require.Equal(t, c.body, string(e.Raw))
			}
			if e.Unqueryable != "" || e.Raw != nil {
				require.Equal(t, sha256.Sum256([]byte(c.body)), e.Hash)
			}
		})
	}
	for name, body := range map[string]string{
		"empty":     "",
		"cut short": `{"a":`,
		"a mark":    "\ufeff{}",
		"trailing":  "{} x",
		"NaN":       `{"a":NaN}`,
	} {
		_, _, err := r.read(sent(body, "Content-Type", "application/json"))
		var syntax *event.SyntaxError
		require.ErrorAs(t, err, &syntax, name)
	}
	for name, body := range map[string]string{
		"deep":  strings.Repeat("[", 600) + strings.Repeat("]", 600),
		"large": `{"a":1e400000}`,
	} {
		_, _, err := r.read(sent(body, "Content-Type", "application/json"))
		var invalid *event.InvalidError
		require.ErrorAs(t, err, &invalid, name)
	}
	require.Equal(t, "7", readOne(t, r, sent("id=7", "Content-Type", "application/x-www-form-urlencoded")).ID)
	require.Equal(
		t, "8",
		readOne(
			t, r,
			sent("payload="+url.QueryEscape(`{"data":{"id":8}}`), "Content-Type", "application/x-www-form-urlencoded"),
		).ID,
	)
}

// A14: nothing unsigned changes what signed bytes mean. Whatever the content type says, a signed body is one event with
// one id and one payload.
func TestSignedBytesMeanOneThing(t *testing.T) {
	for body, payload := range map[string]string{
		`{"data":{"id":"b"}}`:      `{"data":{"id":"b"}}`,
		`{"id":"evt_1","n":"1+1"}`: `{"id":"evt_1","n":"1+1"}`,
		" [1]":                     " [1]",
		`"text"`:                   `"text"`,
		"12":                       "12",
		"id=7&x=1":                 `{"id":"7","x":"1"}`,
		"a=hello world":            `{"a":"hello world"}`,
		"payload=%7B%22data%22%3A%7B%22id%22%3A8%7D%7D": `{"data":{"id":8}}`,
		"a=%zz":         "a=%zz",
		"<a b=\"c\"/>":  "<a b=\"c\"/>",
		"hello":         "hello",
		"aGVsbG8=":      "aGVsbG8=",
		"hello = world": "hello = world",
		"a=1\nb=2":      "a=1\nb=2",
		"":              "",
	} {
		for _, settings := range []string{
			`{"preset":"hmac","secrets":["env:S"],"verify":[{"header":"X-Sig"}],"id":["{body:/data/id}","{form:id}"]}`,
			`{"preset":"github","secrets":["env:S"]}`,
		} {
			r := reading(t, settings)
			var first *event.Event
			for _, contentType := range []string{
				"application/x-www-form-urlencoded", "text/plain", "", "application/xml", "multipart/form-data; boundary=a",
				"application/octet-stream", "junk/; a", "application/json",
			} {
				events, _, err := r.read(sent(body, "Content-Type", contentType))
				if err != nil { // what is declared as JSON and is none is rejected, as it always was
					require.Equal(t, "application/json", contentType, body)
					continue
				}
				e := events[0]
				e.Unqueryable = "" // it names the content type
				if first == nil {
					first = &e
				}
				require.Equal(t, *first, e, "%s as %s", body, contentType)
				require.Equal(t, payload, string(e.Payload), "%s as %s", body, contentType)
			}
		}
	}
	// Without a signature the sender's word counts, but JSON is JSON.
	r := reading(t, any1)
	const form = "application/x-www-form-urlencoded"
	require.JSONEq(t, `{"id":"e"}`, string(readOne(t, r, sent(`{"id":"e"}`, "Content-Type", form)).Payload))
	require.Equal(t, "id=7", string(readOne(t, r, sent("id=7", "Content-Type", "text/plain")).Payload))
	require.JSONEq(t, `{"id":"7"}`, string(readOne(t, r, sent("id=7", "Content-Type", form)).Payload))
}

// A14: the bytes of a signed CloudEvent decide which event it is. Headers that nobody signed do not.
func TestSignedCloudEventsMeanOneThing(t *testing.T) {
	const one = `{"specversion":"1.0","id":"17","source":"/orders","type":"order.paid","data":{"n":1}}`
	forged := []string{"Ce-Specversion", "1.0", "Ce-Id", "forged", "Ce-Source", "/forged", "Ce-Type", "forged"}
	const hmac = `{"preset":"cloudevents","secrets":["env:S"],"verify":[{"scheme":"hmac","header":"X-Sig"`
	r := reading(t, hmac+`}]}`)
	for body, ids := range map[string][]string{
		one:                         {"/orders 17"},
		" " + one:                   {"/orders 17"},
		"[" + one + "]":             {"/orders 17"},
		"[" + one + "," + one + "]": {"/orders 17", "/orders 17"},
		"[]":                        {},
		`{"specversion":"1.0","id":"17","source":"/orders"}`: nil,
		"[1," + one + "]": nil,
	} {
		for _, contentType := range []string{
			cloudType, "application/cloudevents-batch+json", "application/json", "text/plain", "application/cloudevents+xml",
		} {
			got := []string{}
			events, _, err := r.read(sent(body, append([]string{"Content-Type", contentType}, forged...)...))
			for _, e := range events {
				got = append(got, e.ID)
			}
			if contentType == "application/cloudevents+xml" && err != nil {
				continue
			}
			if ids == nil {
				require.Error(t, err, "%s as %s", body, contentType)
				continue
			}
			require.Equal(t, ids, got, "%s as %s", body, contentType)
		}
	}
	// Data alone has its attributes in headers. Such an id is not signed.
	e := readOne(t, r, sent(`{"n":1}`, append([]string{"Content-Type", "application/json"}, forged...)...))
	require.Equal(t, "/forged forged", e.ID)
	require.True(t, e.IDUnsigned)
	requireInvalid(t, r, sent(`{"n":1}`, append([]string{"Content-Type", cloudType}, forged...)...), "id")
	// Where those headers are signed, the body is data, whatever it looks like.
	r = reading(t, hmac+`,"signed":"{header:Ce-Id} {header:Ce-Source} {body}"}]}`)
	for _, contentType := range []string{cloudType, "application/json"} {
		e = readOne(t, r, sent(one, append([]string{"Content-Type", contentType}, forged...)...))
		require.Equal(t, "/forged forged", e.ID)
		require.False(t, e.IDUnsigned)
	}
	// A1: no attribute is a credential.
	requireInvalid(t, r, sent("{}", "Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Source", "/s",
		"Ce-Type", "Bearer eyJhbGciOi"), "ce-type")
}

// A13: other values never make the same id, and ids of values without separators stay as they are.
func TestJoinedIDsAreInjective(t *testing.T) {
	values := []string{"a", "b", "/", "a/b", "//", "%", "%2F", "a%2Fb", "2F", "-", "a-", "-/-", "é/", ""}
	for _, texts := range [][]string{
		{"{header:A}/{header:B}"},
		{"{header:A}/{header:B}/{header:C}"},
		{"x{header:A}-{header:B}/-{header:C}y"},
		{"{header:A}"},
		{"{header:A}·{header:B}"},
		{"{header:A} é {header:B}"},
		{"{header:A}/{header:B}", "{header:A}"}, // as GitHub's
		{"{header:A}/{header:B}/{header:C}", "{header:A}/{header:B}", "{header:A}"},
		{"{header:A}/{header:B}/{header:C}", "{header:A}-{header:B}", "{header:A}"},
	} {
		all, err := parseRules(texts)
		require.NoError(t, err)
		escapes := escapesOf(all)
		made := map[string]string{}
		for _, a := range values {
			for _, b := range values {
				for _, c := range values {
					used := map[string]string{}
					id, ok := all.render(func(_, name string) (string, bool) {
						value := map[string]string{"A": a, "B": b, "C": c}[name]
						return value, value != ""
					}, func(string) bool { return false }, escapes)
					if !ok {
						continue
					}
					// The first rule counts whose values are all there.
					for _, tpl := range all {
						clear(used)
						for _, at := range tpl.placeholders() {
							used[tpl[at].name] = map[string]string{"A": a, "B": b, "C": c}[tpl[at].name]
						}
						if !slices.Contains(slices.Collect(maps.Values(used)), "") {
							break
						}
					}
					whose := fmt.Sprintf("%q", used)
					before, isKnown := made[id]
					require.True(t, !isKnown || before == whose, "%s makes %s of %s and %s", texts, id, before, whose)
					made[id] = whose
				}
			}
		}
	}
	for settings, c := range map[string]struct {
		header []string
		want   string
	}{
		`{"preset":"github","secrets":["env:S"]}`: {
			[]string{"X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958", "X-GitHub-Hook-ID", "7"},
			"72d3162e-cc78-11e3-81ab-4c9367dc0958/7",
		},
		`{"preset":"shopify","secrets":["env:S"]}`: {
			[]string{
				"X-Shopify-Shop-Domain", "a.myshopify.com", "X-Shopify-Topic", "orders/create", "X-Shopify-Event-Id", "e-1",
			},
			"a.myshopify.com/orders/create/e-1",
		},
		`{"preset":"sentry","secrets":["env:S"]}`: {[]string{"Request-Id", "a/b%20c"}, "a/b%20c"},
	} {
		require.Equal(t, c.want, readOne(t, reading(t, settings), sent("{}", c.header...)).ID)
	}
}

func TestVolatile(t *testing.T) {
	r := reading(t, `{"preset":"none","volatile":["/n","/list/*/n","/a~1b","/deep/0"]}`)
	hash := func(body string) [event.HashSize]byte { return readOne(t, r, sent(body)).Hash }
	same := hash(`{"id":1,"n":1,"list":[{"n":1,"m":2}],"a/b":1,"deep":[1,2]}`)
	for _, other := range []string{
		`{"id":1,"n":2,"list":[{"n":9,"m":2}],"a/b":[],"deep":[7,2]}`,
		`{"deep":[{},2],"list":[{"m":2}],"id":1}`,
		"{\"id\":1,\n\"n\":{\"x\":[1,{}]},\"list\":[{\"m\":2,\"n\":null}],\"deep\":[null, 2]}",
	} {
		require.Equal(t, same, hash(other), other)
	}
	require.NotEqual(t, same, hash(`{"id":2,"n":1,"list":[{"n":1,"m":2}],"a/b":1,"deep":[1,2]}`))
	require.NotEqual(t, same, hash(`{"id":1,"n":1,"list":[{"n":1,"m":3}],"a/b":1,"deep":[1,2]}`))
	body := `{"id":1,"n":1}`
	require.Equal(t, body, string(readOne(t, r, sent(body)).Payload), "what is delivered is what came")
}

const (
	cloud     = `{"preset":"cloudevents","secrets":["env:X"]}`
	cloudType = "application/cloudevents+json; charset=UTF-8"
)

func TestCloudEvents(t *testing.T) {
	r := reading(t, cloud)
	structured := `{"specversion":"1.0","id":"17","source":"/orders","type":"order.paid",` +
		`"time":"2024-01-30T12:00:00Z","datacontenttype":"application/json","data":{"n":1}}`
	e := readOne(t, r, sent(structured, "Content-Type", "Application/CloudEvents+JSON"))
	require.Equal(t, "/orders 17", e.ID)
	require.Equal(t, "order.paid", e.Type)
	require.Equal(t, "2024-01-30T12:00:00Z", e.OccurredAt.Format(time.RFC3339))
	require.Equal(t, structured, string(e.Payload))

	binary := []string{
		"Content-Type",
		"application/json",
		"ce-specversion",
		"1.0",
		"ce-id",
		`"a \"b\" %E2%82%AC"`,
		"ce-source",
		"/s%20x",
		"ce-type",
		"t",
	}
	e = readOne(t, r, sent(`{"n":1}`, binary...))
	require.Equal(t, `/s%20x a "b" €`, e.ID)
	require.Equal(t, `{"n":1}`, string(e.Raw))
	require.Equal(t, came.Truncate(time.Microsecond), e.OccurredAt)

	long := readOne(
		t, r, sent(strings.Replace(structured, "/orders", "/"+strings.Repeat("o", 400), 1), "Content-Type", cloudType),
	)
	require.Regexp(t, "^sha256:[0-9a-f]{32} 17$", long.ID)
	// A13: no two events share an id.
	ids := map[string]bool{}
	for _, pair := range [][2]string{
		{"a b", "c"},
		{"a", "b c"},
		{"/" + strings.Repeat("o", 400), "17"},
		{strings.TrimSuffix(long.ID, " 17"), "17"},
	} {
		ids[cloudEventID(pair[0], pair[1])] = true
	}
	require.Len(t, ids, 4)

	for field, body := range map[string]string{
		"id":          `{"specversion":"1.0","id":"","source":"/s","type":"t"}`,
		"source":      `{"specversion":"1.0","id":"1","type":"t"}`,
		"specversion": `{"id":"1","source":"/s","type":"t"}`,
		"type":        `{"specversion":"1.0","id":"1","source":"/s","type":null}`,
	} {
		requireInvalid(t, r, sent(body, "Content-Type", cloudType), field)
	}
	requireInvalid(
		t, r, sent(`{"specversion":"1.0","id":"1","id":"2","source":"/s","type":"t"}`, "Content-Type", cloudType), "id",
	)
	requireInvalid(t, r, sent(`[]`, "Content-Type", cloudType), "")
	requireInvalid(t, r, sent(`<a/>`, "Content-Type", "application/cloudevents+xml"), "Content-Type")
	requireInvalid(t, r, sent(`{}`, "Content-Type", "application/json"), "")
	requireInvalid(
		t, r, sent(`{}`, "ce-specversion", "1.0", "ce-id", "%ff", "ce-source", "/s", "ce-type", "t"), "ce-id",
	)
	requireInvalid(t, r, sent(`{}`, "ce-specversion", "1.0", "ce-id", "%f", "ce-source", "/s", "ce-type", "t"), "ce-id")
	requireInvalid(
		t, r, sent(`{}`, "ce-specversion", "1.0", "ce-id", "1", "ce-id", "2", "ce-source", "/s", "ce-type", "t"),
		"ce-id",
	)

	events, batch, err := r.read(
		sent("["+structured+","+structured+"]", "Content-Type", "application/cloudevents-batch+json"),
	)
	require.NoError(t, err)
	require.True(t, batch)
	require.Len(t, events, 2)
	events, batch, err = r.read(sent("[]", "Content-Type", "application/cloudevents-batch+json"))
	require.NoError(t, err)
	require.True(t, batch)
	require.Empty(t, events)
	requireInvalid(t, r, sent("["+structured+",{}]", "Content-Type", "application/cloudevents-batch+json"), "[1].id")
	requireInvalid(
		t, r,
		sent(
			"["+strings.Repeat(structured+",", maxBatch)+structured+"]", "Content-Type",
			"application/cloudevents-batch+json",
		),
		"",
	)
	requireInvalid(t, r, sent(structured, "Content-Type", "application/cloudevents-batch+json"), "")
}

// C16: an event has one shape and one hash, in whatever mode it comes. Its attributes are in it.
func TestACloudEventHasOneShape(t *testing.T) {
	r := reading(t, cloud)
	core := []string{"ce-specversion", "1.0", "ce-id", "17", "ce-source", "/orders", "ce-type", "order.paid"}
	const attributes = `"id":"17","source":"/orders","specversion":"1.0","type":"order.paid"`
	for name, c := range map[string]struct {
		header     []string
		body       string
		payload    string
		structured string // the same event, where a sender writes it otherwise
	}{
		"with extensions": {
			header: []string{
				"Content-Type", "application/json", "ce-subject", "o/é%2C1", "ce-traceparent", "00-0af7-b7ad-01",
			},
			body: `{"n":1,"m":[1.0,2]}`,
			payload: `"subject":"o/é,1","traceparent":"00-0af7-b7ad-01","datacontenttype":"application/json",` +
				`"data":{"n":1,"m":[1.0,2]}`,
		},
		"with attributes that are no strings": {
			header: []string{
				"Content-Type", "application/json; charset=utf-8", "ce-sequence", "5", "ce-sampled", "true",
			},
			body: `[]`,
			payload: `"sequence":"5","sampled":"true",` +
				`"datacontenttype":"application/json; charset=utf-8","data":[]`,
			structured: `"sequence":5,"sampled":true,"subject":null,"data":[ ]`,
		},
		"without data":   {payload: ``},
		"with null":      {body: `null`, payload: `"data":null`},
		"without a type": {body: `7`, payload: `"data":7`, structured: `"data":7,"datacontenttype":"application/json"`},
		"text": {
			header: []string{"Content-Type", "text/csv"}, body: "a;é\n",
			payload:    `"datacontenttype":"text/csv","data":"a;é\n"`,
			structured: `"datacontenttype":"text/csv","data_base64":"YTvDqQo="`,
		},
		"bytes": {
			header: []string{"Content-Type", "image/png"}, body: "\x89PNG\x00",
			payload: `"datacontenttype":"image/png","data_base64":"iVBORwA="`,
		},
	} {
		e := readOne(t, r, sent(c.body, append(c.header, core...)...))
		want := "{" + strings.TrimSuffix(attributes+","+c.payload, ",") + "}"
		require.Empty(t, e.Unqueryable, name)
		require.JSONEq(t, want, string(e.Payload), name)
		require.NotNil(t, e.Raw, name)
		require.Equal(t, c.body, string(e.Raw), name)
		if c.structured != "" {
			want = "{" + attributes + "," + c.structured + "}"
		}
		again := readOne(t, r, sent(want, "Content-Type", cloudType))
		require.Equal(t, want, string(again.Payload), name)
		require.Equal(t, e.ID, again.ID, name)
		require.Equal(t, e.Hash, again.Hash, name)
		other := readOne(t, r, sent(strings.Replace(want, "{", `{"extra":"x",`, 1), "Content-Type", cloudType))
		require.NotEqual(t, e.Hash, other.Hash, name)
	}

	// What cannot be part of such an object stays as it came.
	e := readOne(t, r, sent(`{"a":1,"a":2}`, append([]string{"Content-Type", "application/json"}, core...)...))
	require.Equal(t, `{"a":1,"a":2}`, string(e.Payload))
	require.Equal(t, "duplicate names in an object", e.Unqueryable)

	// Neither a credential nor what nobody vouches for becomes a part of an event.
	e = readOne(t, r, sent(`{}`, append([]string{
		"ce-authorization", "Bearer 0123456789abcdef", "ce-apikey", "k", "ce-note", "token=abcdefgh",
		"ce-twice", "1", "ce-twice", "2", "ce-data", "x", "ce-datacontenttype", "x", "ce-under_score", "x",
	}, core...)...))
	require.JSONEq(t, "{"+attributes+`,"data":{}}`, string(e.Payload))
	signed := reading(t, `{"preset":"cloudevents","secrets":["env:S"],"verify":[{"scheme":"hmac","header":"X-Sig",`+
		`"signed":"{header:Ce-Id} {header:Ce-Source} {header:Ce-Subject} {body}"}]}`)
	e = readOne(t, signed, sent(`{}`, append([]string{
		"Content-Type", "application/json", "ce-subject", "s", "ce-other", "x",
	}, core...)...))
	require.JSONEq(t, "{"+attributes+`,"subject":"s","data":{}}`, string(e.Payload))
}

func TestHandshakesByPost(t *testing.T) {
	ask := func(kind, body string) (event.Answer, bool) {
		return (&Source{config: Config{Handshake: kind}}).newHandshake(nil).answer(sent(body))
	}
	a, ok := ask("slack", `{"token":"x","challenge":"3eZbrw1aB","type":"url_verification"}`)
	require.True(t, ok)
	require.JSONEq(t, `{"challenge":"3eZbrw1aB"}`, string(a.Body))
	_, ok = ask("slack", `{"type":"event_callback","challenge":"x"}`)
	require.False(t, ok)
	_, ok = ask("none", `{"type":"url_verification","challenge":"x"}`)
	require.False(t, ok)
	a, ok = ask("discord", `{"id":"1","type":1}`)
	require.True(t, ok)
	require.JSONEq(t, `{"type":1}`, string(a.Body))
	a, ok = ask("discord", `{"version":1,"application_id":"1","type":0}`)
	require.True(t, ok)
	require.Equal(t, http.StatusNoContent, a.Status)
	for _, body := range []string{
		`{"type":1,"event":{"type":"APPLICATION_AUTHORIZED"}}`,
		`{"type":2}`,
		`{}`,
		`[]`,
		``,
	} {
		_, ok = ask("discord", body)
		require.False(t, ok, body)
	}
}

func BenchmarkReadGitHub(b *testing.B) {
	r := reading(b, `{"preset":"github","secrets":["env:X"]}`)
	q := sent(
		`{"action":"opened","issue":{"id":1,"body":"`+strings.Repeat("x", 900)+`"}}`, "Content-Type",
		"application/json", "X-GitHub-Event", "issues", "X-GitHub-Delivery", "1",
	)
	b.ReportAllocs()
	b.SetBytes(int64(len(q.Body)))
	for b.Loop() {
		if _, _, err := r.read(q); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzPath compares the value at a pointer with that of encoding/json.
func FuzzPath(f *testing.F) {
	f.Add(`{"a":{"b":[1,"x",{"c":true}]}}`, "/a/b/2/c")
	f.Add(`{"a/b":{"~":1.50}}`, "/a~1b/~0")
	f.Add(`{"a":1,"a":2}`, "/a")
	f.Add("{\"a\":\"\xff\"}", "/a")
	f.Fuzz(func(t *testing.T, text, at string) {
		p, err := parsePointer(at)
		if err != nil {
			return
		}
		found := extractValues([]byte(text), []pointer{p})[0]
		if checkJSON([]byte(text)) != nil || found.repeated {
			return
		}
		dec := json.NewDecoder(strings.NewReader(text))
		dec.UseNumber()
		var v any
		if dec.Decode(&v) != nil || hasDuplicates([]byte(text)) {
			return
		}
		for _, token := range p {
			switch in := v.(type) {
			case map[string]any:
				v = in[token]
			case []any:
				v = nil
				for i := range in {
					if token == itoa(i) {
						v = in[i]
					}
				}
			default:
				v = nil
			}
		}
		want, ok := "", true
		switch v := v.(type) {
		case string:
			want = v
		case json.Number:
			want = v.String()
		case bool:
			want = map[bool]string{true: "true", false: "false"}[v]
		default:
			ok = false
		}
		if found.invalid {
			return // encoding/json replaces what is no text
		}
		if found.ok != ok || found.text != want {
			t.Fatalf("%q at %q: found %q %t, want %q %t", text, at, found.text, found.ok, want, ok)
		}
	})
}

func itoa(i int) string { b, _ := json.Marshal(i); return string(b) }

// hasDuplicates reports whether a name comes twice in an object, or a text is not valid. Then libraries differ in what
// they read.
func hasDuplicates(text []byte) bool {
	_, unqueryable := fingerprint(text)
	return unqueryable != ""
}

// FuzzVolatile compares a hash that leaves out a value with that of the text without it.
func FuzzVolatile(f *testing.F) {
	f.Add(`{"a":{"b":[1,"x",{"c":true}]},"d":2}`, "/a/b")
	f.Add(`[1,[2,3],{"x":1}]`, "/1/0")
	f.Fuzz(func(t *testing.T, text, at string) {
		p, err := parsePointer(at)
		if err != nil || checkJSON([]byte(text)) != nil || hasDuplicates([]byte(text)) {
			return
		}
		if plain := dropPointers([]byte(text), nil); !bytes.Equal(plain, []byte(text)) {
			a, _ := fingerprint(plain)
			b, _ := fingerprint([]byte(text))
			if a != b {
				t.Fatalf("%q became %q", text, plain)
			}
		}
		left := dropPointers([]byte(text), []pointer{p})
		if checkJSON(left) != nil {
			t.Fatalf("%q without %q is %q", text, at, left)
		}
		value := extractValues(left, []pointer{p})[0]
		if value.ok && !strings.Contains(at, "*") && !strings.ContainsAny(at, "0123456789") {
			t.Fatalf("%q without %q is %q", text, at, left)
		}
	})
}

func FuzzCloudEventsHeaders(f *testing.F) {
	f.Add("1.0", "1", "/s", "t", "2024-01-30T12:00:00Z", `{"a":1}`)
	f.Add("1.0", `"a%20"`, "/s%", "", "x", "")
	r := reading(f, cloud)
	f.Fuzz(func(t *testing.T, version, id, from, kind, at, body string) {
		q := sent(body)
		for name, value := range map[string]string{
			"Ce-Specversion": version,
			"Ce-Id":          id,
			"Ce-Source":      from,
			"Ce-Type":        kind,
			"Ce-Time":        at,
		} {
			q.Header.Set(name, value)
		}
		events, _, err := r.read(q)
		if err != nil {
			return
		}
		requireStorable(t, events)
	})
}

func FuzzEnvelope(f *testing.F) {
	f.Add([]byte(`{"event_id":"1","event_type":"a","occurred_at":"2024-01-30T12:00:00Z","payload":{}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := ReadEnvelope(body)
		if err == nil {
			requireStorable(t, []event.Event{e})
		}
	})
}

// requireStorable checks the promises of every event.
func requireStorable(t *testing.T, events []event.Event) {
	for _, e := range events {
		if problem := checkID(e.ID); problem != "" {
			t.Fatalf("the id %q %s", e.ID, problem)
		}
		if n := len([]rune(e.Type)); n < 1 || n > maxTypeLength || strings.Contains(e.Type, "\x00") {
			t.Fatalf("the type %q", e.Type)
		}
		if year := e.OccurredAt.Year(); year < 1 || year > 9999 {
			t.Fatalf("the time %s", e.OccurredAt)
		}
		if e.Unqueryable == "" && hasDuplicates(e.Payload) {
			t.Fatalf("the payload %q", e.Payload)
		}
	}
}

// C4: a byte order mark is no part of a payload or of a form. The exact bytes are kept.
func TestAByteOrderMark(t *testing.T) {
	const mark = "\ufeff"
	s := compiled(t, `{"preset":"none","verify":[{"scheme":"none"}],"id":["{body:/id}","{form:id}"]}`, nil)
	read := func(body, contentType string) event.Event {
		events, _, err := s.Read(sent(body, "Content-Type", contentType))
		require.NoError(t, err)
		require.Len(t, events, 1)
		return events[0]
	}
	for contentType, body := range map[string]string{
		"application/json":                  `{"id":"7","a":1}`,
		"text/plain":                        `{"id":"7","a":1}`,
		"application/x-www-form-urlencoded": "id=7&a=1",
	} {
		plain, marked := read(body, contentType), read(mark+body, contentType)
		require.Equal(t, "7", marked.ID, contentType)
		require.Equal(t, string(plain.Payload), string(marked.Payload), contentType)
		require.Equal(t, plain.Hash, marked.Hash, "%s: it is the same payload", contentType)
		require.Equal(t, mark+body, string(marked.Raw), contentType)
	}
	for _, body := range []string{`{"id":"7","a":"\u0000"}`, "no JSON"} {
		marked := read(mark+body, "text/plain")
		require.NotEmpty(t, marked.Unqueryable)
		require.Equal(t, mark+body, string(marked.Payload))
		require.Equal(t, sha256.Sum256([]byte(mark+body)), marked.Hash)
	}
}

// B1: the fields of a form take no more room as JSON than a few times the form.
func TestAFormOfControlCharactersIsKeptAsBytes(t *testing.T) {
	s := compiled(t, `{"preset":"none","verify":[{"scheme":"none"}],"id":["{form:id}"]}`, nil)
	for n, queryable := range map[int]bool{1000: true, 100_000: false} {
		body := "id=7&a=" + strings.Repeat("\x01", n)
		events, _, err := s.Read(sent(body, "Content-Type", "application/x-www-form-urlencoded"))
		require.NoError(t, err)
		require.Equal(t, "7", events[0].ID)
		require.Equal(t, queryable, events[0].Unqueryable == "")
		require.LessOrEqual(t, len(events[0].Payload)+len(events[0].Raw), 2*len(body)+6*maxFormControl)
	}
}

// A13, of its kind: an id is no guess. A field or a parameter that comes twice could mean either value.
func TestARepeatedFieldMakesNoID(t *testing.T) {
	s := compiled(t, `{"preset":"none","verify":[{"scheme":"none"}],"id":["{form:a}/{form:b}","{query:id}"]}`, nil)
	for text, id := range map[[2]string]string{
		{"", "a=x&b=1"}:      "x/1",
		{"", "a=x&a=y&b=1"}:  "",
		{"", "a=x&a=x&b=1"}:  "",
		{"id=1", "c=1"}:      "1",
		{"id=1&id=2", "c"}:   "",
		{"id=1&o=1&o=2", ""}: "1",
	} {
		q := sent(text[1], "Content-Type", "application/x-www-form-urlencoded")
		q.URL = &url.URL{Path: "/webhook/shop", RawQuery: text[0]}
		events, _, err := s.Read(q)
		if id == "" {
			var invalid *event.InvalidError
			require.ErrorAs(t, err, &invalid, text)
			require.Equal(t, "must be given only once", invalid.Problems[0].Detail)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, id, events[0].ID, text)
	}
}

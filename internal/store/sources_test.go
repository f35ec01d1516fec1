package store_test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/view"
)

const githubSettings = `{"preset":"github","secrets":["env:A"]}`

func TestSources(t *testing.T) {
	t.Parallel()
	s := open(t)
	all, err := s.Sources(t.Context())
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.JSONEq(t, `{"preset":"envelope"}`, string(all[0].Settings))
	require.Nil(t, all[0].DisabledAt)

	put := func(name, settings string) (string, error) {
		c, err := s.PutSource(t.Context(), name, json.RawMessage(settings), "somebody")
		return c.Change, err
	}
	for _, want := range []string{"added", "unchanged"} {
		change, err := put("github", githubSettings)
		require.NoError(t, err)
		require.Equal(t, want, change)
	}
	change, err := put("github", `{"secrets":["env:A"],"preset":"github","conflicts":"refuse"}`)
	require.NoError(t, err)
	require.Equal(t, "changed", change)

	const hidden = "the-secret-itself"
	for name, settings := range map[string]string{
		"not an object":     `[]`,
		"no preset":         `{}`,
		"no text":           `{"preset":1}`,
		"unknown":           `{"preset":"none","x":1}`,
		"a secret by value": `{"preset":"github","secrets":["` + hidden + `"]}`,
		"one in an object":  `{"preset":"github","secrets":[{"ref":"` + hidden + `"}]}`,
		"no list":           `{"preset":"github","secrets":"` + hidden + `"}`,
		"a number":          `{"preset":"github","secrets":[1]}`,
		"null":              `{"preset":"github","secrets":null}`,
		"a word by value":   `{"preset":"meta","verify_token":"` + hidden + `"}`,
		"a relative path":   `{"preset":"github","secrets":["file:a/b"]}`,
		"a file of no name": `{"preset":"github","secrets":["file:"]}`,
		// A1: neither does a hand in psql put one elsewhere.
		"a password in the url":  `{"preset":"twilio","secrets":["env:A"],"url":"https://u:` + hidden + `@h.example/x"}`,
		"a prefix with a secret": `{"preset":"hmac","secrets":["env:A"],"verify":[{"secret_prefix":"` + hidden + `"}]}`,
		"one in a list": `{"preset":"hmac","secrets":["env:A"],
			"verify":[{"secret_not":["whsec_","` + hidden + `"]}]}`,
	} {
		_, err := put("github", settings)
		var bad *event.BadSettingsError
		require.ErrorAs(t, err, &bad, name)
		require.NotContains(t, err.Error(), hidden, name)
	}
	for _, settings := range []string{
		`{"preset":"twilio","secrets":["env:A"],"url":"https://h.example/a@b?c=d@e"}`,
		`{"preset":"hmac","secrets":["env:A"],"url":null,"verify":[{"secret_prefix":["whsec_",""],"secret_not":null}]}`,
	} {
		_, err := put("allowed", settings)
		require.NoError(t, err, settings)
	}
	require.NoError(t, s.RemoveSource(t.Context(), "allowed", "somebody"))
	for _, name := range []string{"", "No-Slug", "-x", strings.Repeat("a", 64)} {
		_, err := put(name, githubSettings)
		var bad *event.BadSettingsError
		require.ErrorAs(t, err, &bad, name)
	}

	rotated, err := s.RotateSource(t.Context(), "github", "env:B", time.Hour, "somebody")
	require.NoError(t, err)
	var settings struct{ Secrets []any }
	require.NoError(t, json.Unmarshal(rotated.Settings, &settings))
	require.Len(t, settings.Secrets, 2)
	require.Equal(t, "env:B", settings.Secrets[0])
	require.Contains(t, settings.Secrets[1], "until")
	rotated, err = s.RotateSource(t.Context(), "github", "env:C", 0, "somebody")
	require.NoError(t, err)
	require.Contains(t, string(rotated.Settings), `["env:C"]`)
	_, err = s.RotateSource(t.Context(), "github", hidden, 0, "somebody")
	var bad *event.BadSettingsError
	require.ErrorAs(t, err, &bad)

	for _, want := range []bool{true, false} {
		changed, err := s.EnableSource(t.Context(), "github", false, "somebody")
		require.NoError(t, err)
		require.Equal(t, want, changed)
	}
	changed, err := s.EnableSource(t.Context(), "github", true, "somebody")
	require.NoError(t, err)
	require.True(t, changed)
	require.NoError(t, s.RemoveSource(t.Context(), "github", "somebody"))
	var none *event.NoSourceError
	require.ErrorAs(t, s.RemoveSource(t.Context(), "github", "somebody"), &none)
	_, err = s.Source(t.Context(), "github")
	require.ErrorAs(t, err, &none)
	require.ErrorAs(t, s.RemoveSource(t.Context(), event.DefaultSource, "somebody"), &bad)

	rows, _, err := s.Audit(t.Context(), view.Page{Limit: 100}, view.StepFilter{Source: "github"})
	require.NoError(t, err)
	var actions []string
	for _, r := range rows {
		actions = append(actions, string(r.Action))
		require.Contains(t, string(r.Details), "somebody")
		require.NotContains(t, string(r.Details), hidden)
		require.Equal(t, "success", r.Success)
	}
	require.Equal(
		t,
		[]string{
			"source_removed",
			"source_enabled",
			"source_disabled",
			"source_changed",
			"source_changed",
			"source_changed",
			"source_added",
		},
		actions,
	)
}

func TestSourcesAreAppliedTogether(t *testing.T) {
	t.Parallel()
	s := open(t)
	apply := func(prune, dry bool, puts map[string]json.RawMessage) (string, error) {
		changes, err := s.ApplySources(t.Context(), puts, prune, dry, "a file")
		var all []string
		for _, c := range changes {
			all = append(all, c.Source+" "+c.Change)
		}
		return strings.Join(all, ", "), err
	}
	two := map[string]json.RawMessage{
		"github": json.RawMessage(githubSettings),
		"stripe": json.RawMessage(`{"preset":"stripe"}`),
	}
	for _, dry := range []bool{true, false} {
		said, err := apply(false, dry, two)
		require.NoError(t, err)
		require.Equal(t, "github added, stripe added", said)
	}
	said, err := apply(true, false, map[string]json.RawMessage{"stripe": json.RawMessage(`{"preset":"stripe"}`)})
	require.NoError(t, err)
	require.Equal(t, "github removed, stripe unchanged", said)
	_, err = apply(
		true,
		false,
		map[string]json.RawMessage{"a": json.RawMessage(githubSettings), "b": json.RawMessage(`{}`)},
	)
	require.Error(t, err)
	require.Contains(t, err.Error(), "must be a JSON object with a preset")
	all, err := s.Sources(t.Context())
	require.NoError(t, err)
	require.Len(t, all, 2, "all or nothing")
}

// What a hand changes is told and audited as well, and a noted arrival is not.
func TestSourcesChangedByHand(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("insert into spine.sources (name, settings) values ('x', '{\"preset\":\"none\"}')")
	d.run("update spine.sources set last_arrival_at = now()")
	d.run("update spine.sources set settings = settings where name = 'x'")
	d.run("update spine.sources set settings = '{\"preset\":\"none\",\"conflicts\":\"refuse\"}' where name = 'x'")
	require.Equal(t, []string{
		`source_added|{"preset": {"to": "none"}}`, `source_changed|{"conflicts": {"to": "refuse"}}`,
	}, d.rows("select action || '|' || (details->'changes')::text from spine.audit_log where source = 'x' order by id"))
	require.ErrorContains(t, d.failure("update spine.sources set name = 'y' where name = 'x'"), "cannot be changed")
	require.ErrorContains(t, d.failure("delete from spine.sources where name = 'default'"), "cannot be removed")
}

func (d *database) failure(sql string) error {
	_, err := d.Pool().Exec(d.t.Context(), sql)
	return err
}

func rejected(source, cause string, n int, size int) []event.RejectedRequest {
	var all []event.RejectedRequest
	for i := range n {
		all = append(all, event.RejectedRequest{
			Source: source,
			At:     event.Timestamp{Time: time.Now()},
			Cause:  cause,
			Status: 401,
			Detail: "No.",
			Remote: "192.0.2.1",
			Method: "POST",
			Target: "/webhook/" + source,
			Headers: json.RawMessage(
				`{"A":["b"]}`,
			),
			Body: []byte(fmt.Sprintf("%s-%d-%s", cause, i, strings.Repeat("x", size))),
		})
	}
	return all
}

func TestRejectedRequests(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.run("select spine.put_source('github', '" + githubSettings + "')")
	keep := func(budget event.Budget, requests ...event.RejectedRequest) {
		require.NoError(t, d.KeepRejected(t.Context(), requests, map[string]event.Budget{"github": budget}, false))
	}
	counts := func() []string {
		return d.rows("select cause || ' ' || count(*) from spine.rejected_requests group by cause order by cause")
	}
	roomy := event.Budget{Rows: 10, Bytes: 1 << 20, Age: time.Hour}
	keep(roomy, append(rejected("github", "few", 2, 10), rejected("github", "flood", 50, 10)...)...)
	require.Equal(t, []string{"few 2", "flood 8"}, counts(), "who sends most gives most")
	require.Equal(
		t,
		[]string{"flood-42", "flood-43", "flood-44", "flood-45", "flood-46", "flood-47", "flood-48", "flood-49"},
		d.rows(
			"select left(convert_from(body, 'UTF8'), 8) from spine.rejected_requests where cause = 'flood' order by id",
		),
		"the oldest went",
	)
	keep(event.Budget{Rows: 10, Bytes: 200, Age: time.Hour})
	require.Equal(t, []string{"t"}, d.rows("select sum(size) between 170 and 200 from spine.rejected_requests"))
	keep(event.Budget{Rows: 1, Bytes: 1 << 20, Age: time.Hour})
	require.Equal(t, []string{"1"}, d.rows("select count(*) from spine.rejected_requests"))
	keep(event.Budget{Rows: 10, Bytes: 1 << 20, Age: 0})
	require.Empty(t, counts(), "all are too old")

	// One with headers that are none, and one of a source that is gone.
	odd := rejected("github", "odd", 1, 0)
	odd[0].Headers, odd[0].Target = json.RawMessage(`{"A":["\u0000"]}`), "/\x00\xff"
	keep(roomy, append(odd, rejected("gone", "x", 1, 0)...)...)
	require.Equal(t, []string{"odd 1"}, counts())
	require.Equal(t, []string{"{}"}, d.rows("select headers::text from spine.rejected_requests"))

	keep(roomy, rejected("github", "signature_wrong", 3, 10)...)
	page, next, err := d.RejectedRequests(
		t.Context(),
		view.Page{Limit: 2},
		view.RejectedFilter{Source: "github", Cause: "signature_wrong"},
	)
	require.NoError(t, err)
	require.Len(t, page, 2)
	rest, next, err := d.RejectedRequests(
		t.Context(),
		view.Page{Limit: 2, Cursor: next.Cursor},
		view.RejectedFilter{Source: "github", Cause: "signature_wrong"},
	)
	require.NoError(t, err)
	require.Len(t, rest, 1)
	require.Empty(t, next.Cursor)
	_, _, err = d.RejectedRequests(t.Context(), view.Page{Limit: 2, Cursor: "x"}, view.RejectedFilter{})
	require.ErrorIs(t, err, view.ErrBadCursor)
	whole, err := d.RejectedRequest(t.Context(), page[0].ID)
	require.NoError(t, err)
	require.Contains(t, *whole.Text, "signature_wrong-2")
	require.JSONEq(t, `{"A":["b"]}`, string(whole.Headers))
	_, err = d.RejectedRequest(t.Context(), 999)
	require.ErrorIs(t, err, event.ErrNotKept)

	// A replay hands each out once at a time.
	require.ErrorIs(t, d.ReplayRejected(t.Context(), 999, false, "x"), event.ErrNotKept)
	require.NoError(t, d.ReplayRejected(t.Context(), page[0].ID, true, "x"))
	taken, err := d.TakeRequested(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, taken, 1)
	require.True(t, taken[0].Trust)
	require.NotEmpty(t, taken[0].Body)
	again, err := d.TakeRequested(t.Context(), 10)
	require.NoError(t, err)
	require.Empty(t, again)
	d.run("update spine.rejected_requests set taken_until = now() - interval '1 second' where taken_until is not null")
	again, err = d.TakeRequested(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, again, 1, "whoever had it is gone")
	require.NoError(t, d.SettleRejected(t.Context(), page[0].ID, true, event.RejectedTakenIn, "accepted", "id-1"))
	n, err := d.ReplayAllRejected(
		t.Context(),
		view.RejectedFilter{Source: "github", Cause: "signature_wrong"},
		false,
		"x",
	)
	require.NoError(t, err)
	require.Equal(t, int64(2), n, "not what was taken in")
	n, err = d.ReplayAllRejected(
		t.Context(),
		view.RejectedFilter{Source: "github", Cause: "signature_wrong"},
		false,
		"x",
	)
	require.NoError(t, err)
	require.Zero(t, n, "they are asked for already")
	n, err = d.ReplayAllRejected(
		t.Context(),
		view.RejectedFilter{Source: "github", Cause: "signature_wrong"},
		true,
		"x",
	)
	require.NoError(t, err)
	require.Equal(t, int64(2), n, "but not so")
	state := "select state, note from spine.rejected_requests where id = " + strconv.FormatInt(page[1].ID, 10)
	require.NoError(t, d.SettleRejected(t.Context(), page[1].ID, false, event.RejectedAgain, "unsigned", ""))
	require.Equal(t, "requested|", d.value(state), "whoever had it from before looked at it in another way")
	require.NoError(t, d.SettleRejected(t.Context(), page[1].ID, false, event.RejectedTakenIn, "accepted", "id-2"))
	require.Equal(t, "taken_in|accepted", d.value(state), "what is stored is stored")
	require.NoError(t, d.ReplayRejected(t.Context(), page[0].ID, true, "x"))
	require.Equal(
		t,
		event.RejectedTakenIn,
		d.value("select state from spine.rejected_requests where id = $1", page[0].ID),
	)
	require.Len(t, d.rows(`
		select l.id
		from spine.rejected_requests r cross join lateral spine.rejected_like(convert_from(r.body, 'UTF8')) l
		where r.id = $1`, page[0].ID), 1)

	// B2: a request that is full of words has few of them noted, those with a digit first, and each takes 8 bytes.
	require.Equal(t, "40|344|1|1|0", d.value(`
		with headers as (
			select jsonb_object_agg('X-' || n, array[case n when 99 then 'evt_099' else repeat('é', 31) || n end])
				|| jsonb_build_object(
					'A', array['without a digit'], 'Id', array['Evt_ö1'], 'L', array[repeat('я', 250) || 1],
					'U', array['größe']) as h
			from generate_series(1, 99) n
		), request as (
			select spine.rejected_words(h::text::json, '/webhook/github?id=evt_2', repeat('"w_1",', 5000)::bytea) as words
			from headers
		)
		select cardinality(words), pg_column_size(words),
			(words @> array[spine.word_number(encode('evt_ö1', 'escape'))])::integer,
			(words @> array[spine.word_number(encode(convert_to(repeat('я', 250) || 1, 'UTF8'), 'escape'))])::integer,
			(words && array[spine.word_number('without a digit'), spine.word_number(encode('größe', 'escape'))])::integer
		from request`))
	causes, err := d.RejectedCauses(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]map[string]int64{"github": {"odd": 1, "signature_wrong": 3}}, causes)

	// Those of a source that sends nothing any more are aged by its settings.
	d.run("update spine.rejected_requests set at = now() - interval '2 days', state = 'kept'")
	require.NoError(t, d.ExpireRejected(t.Context()))
	require.NotEmpty(t, counts())
	d.run(`select spine.put_source('github', '{"preset":"github","secrets":["env:A"],"rejected":{"age":"1d"}}')`)
	require.NoError(t, d.ExpireRejected(t.Context()))
	require.Empty(t, counts())
	d.run(`select spine.put_source('github', '{"preset":"github","secrets":["env:A"],"rejected":{"age":"nonsense"}}')`)
	require.NoError(t, d.ExpireRejected(t.Context()))
}

func TestRequestsOfProviders(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	hash := func(b byte) (h [event.HashSize]byte) { h[0] = b; return h }
	headers := []byte(`{"X-A":["1"]}`)
	one := event.Event{
		Source:     "github",
		ID:         "1",
		Type:       "t",
		OccurredAt: time.Now(),
		Payload:    []byte(`[1]`),
		Hash:       hash(1),
		Headers:    headers,
		IDUnsigned: true,
	}
	form := event.Event{
		Source:     "github",
		ID:         "2",
		Type:       "t",
		OccurredAt: time.Now(),
		Payload:    []byte(`{"a":"1"}`),
		Raw:        []byte("a=1"),
		Hash:       hash(2),
		Headers:    headers,
		IDDerived:  true,
	}
	bytes := event.Event{
		Source:      "github",
		ID:          "3",
		Type:        "t",
		OccurredAt:  time.Now(),
		Payload:     []byte("\x00\xff"),
		Unqueryable: "no JSON",
		Hash:        hash(3),
		Headers:     headers,
	}
	mixed := webhook("plain", `{"a":1}`)
	receipts, err := d.Ingest(t.Context(), []event.Event{one, mixed, form, bytes})
	require.NoError(t, err)
	require.Len(t, receipts, 4)
	again := one
	again.ID = "4"
	_, err = d.Ingest(t.Context(), []event.Event{again})
	require.NoError(t, err)
	other := again
	other.ID, other.Source = "5", "else"
	_, err = d.Ingest(t.Context(), []event.Event{other})
	require.NoError(t, err)
	require.Equal(t, []string{
		"1||[1]|||t|",
		"2||{\"a\":\"1\"}|a=1|t||",
		"3|no JSON||\\000\\377|||",
		"plain||{\"a\":1}||||",
		"4||[1]|||t|1",
		"5||[1]|||t|",
	}, d.rows(`
		select concat_ws(
			'|', event_id, coalesce(unqueryable, ''), coalesce(payload::text, ''),
			coalesce(encode(raw_body, 'escape'), ''), coalesce(left(id_derived::text, 1), ''),
			coalesce(left(id_unsigned::text, 1), ''), coalesce(same_body_as, '')
		)
		from spine.events
		order by id`))
	require.Equal(
		t,
		[]string{`{"same_body_as": "1"}`},
		d.rows("select details::text from spine.audit_log where event_id = '4' and action = 'event_inserted'"),
	)
	require.Equal(t, []string{"5"}, d.rows("select count(*) from spine.events where headers is not null"))

	// An envelope's payload is an object still.
	scalar := webhook("scalar", `[1]`)
	_, err = d.Ingest(t.Context(), []event.Event{scalar})
	require.ErrorIs(t, err, event.ErrInvalidData)

	claimed, err := d.Claim(
		t.Context(),
		event.Claim{Destination: "default", Limit: 10, Lease: time.Minute, Worker: "w"},
	)
	require.NoError(t, err)
	byID := map[string]event.Job{}
	for _, j := range claimed.Jobs {
		byID[j.ID] = j
	}
	require.Equal(t, "a=1", string(byID["2"].Raw))
	require.JSONEq(t, `{"a":"1"}`, string(byID["2"].Payload))
	require.False(t, byID["2"].Unqueryable)
	require.True(t, byID["3"].Unqueryable)
	require.Equal(t, "\x00\xff", string(byID["3"].Payload))
	require.Nil(t, byID["1"].Raw)

	h, err := d.Event(t.Context(), "4", "")
	require.NoError(t, err)
	require.JSONEq(t, string(headers), string(h.Headers))
	require.Equal(t, "1", *h.SameBodyAs)
	h, err = d.Event(t.Context(), "plain", "")
	require.NoError(t, err)
	require.Nil(t, h.Headers)
}

func TestConflicts(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run(`select spine.ingest('c', 'first', '{"a":1,"b":{"x":[1,2,{"y":null}]},"gone":true}')`)
	for i := range 3 {
		d.run(fmt.Sprintf(`select spine.ingest('c', 'other', '{"a":%d,"b":{"x":[1,3]},"/~":0}')`, i+2))
	}
	d.run(`select spine.ingest('c', 'other', '{"a":"\u0000"}')`)
	all, next, err := d.Conflicts(t.Context(), view.Page{Limit: 3}, view.ConflictFilter{EventID: "c"})
	require.NoError(t, err)
	require.Len(t, all, 3)
	require.Nil(t, all[0].Differences)
	require.NotEmpty(t, all[0].Unqueryable)
	var paths []string
	for _, diff := range all[1].Differences {
		paths = append(paths, fmt.Sprintf("%s %s→%s", diff.Path, diff.Was, diff.Is))
	}
	require.Equal(
		t,
		[]string{"/a 1→4", `/b/x/1 2→3`, `/b/x/2 {"y": null}→`, "/gone true→", "/~1~0 →0"},
		paths,
	)
	rest, next, err := d.Conflicts(t.Context(), view.Page{Limit: 3, Cursor: next.Cursor}, view.ConflictFilter{})
	require.NoError(t, err)
	require.Len(t, rest, 1)
	require.Empty(t, next.Cursor)
	none, _, err := d.Conflicts(t.Context(), view.Page{Limit: 3}, view.ConflictFilter{Source: "else"})
	require.NoError(t, err)
	require.Empty(t, none)

	hash := all[1].PayloadHash
	for range 2 {
		id, err := d.AcceptConflict(t.Context(), "c", "", hash[:12], "me")
		require.NoError(t, err)
		require.Equal(t, "c~"+hash[:8], id)
	}
	newest, err := d.AcceptConflict(t.Context(), "c", "default", "", "me")
	require.NoError(t, err)
	require.Equal(t, "c~"+all[0].PayloadHash[:8], newest)
	require.Equal(
		t,
		[]string{"c|first", "c~" + hash[:8] + "|other", newest + "|other"},
		d.rows("select event_id || '|' || event_type from spine.events order by id"),
	)
	require.Equal(t, []string{"3"}, d.rows("select count(*) from spine.processing_state where status = 'pending'"))
	require.Equal(
		t,
		[]string{"2"},
		d.rows(`
			select count(*)
			from spine.audit_log
			where action = 'conflict_accepted' and event_id = 'c' and details->>'caller' = 'me'`),
	)
	// B: whoever may send to the source cannot take the id away.
	other := webhook("t", `{"n":2}`)
	hash = hex.EncodeToString(other.Hash[:])
	d.ingest(webhook("t", `{"n":1}`), other, webhook("t~"+hash[:8], `{"n":3}`), webhook("t~"+hash[:16], `{"n":3}`))
	for range 2 {
		id, err := d.AcceptConflict(t.Context(), "t", "", "", "me")
		require.NoError(t, err)
		require.Equal(t, "t~"+hash[:32], id)
	}
	require.JSONEq(t, `{"n":2}`, d.value("select payload from spine.events where event_id = $1", "t~"+hash[:32]))
	other = webhook("u", `{"n":2}`)
	hash = hex.EncodeToString(other.Hash[:])
	d.ingest(webhook("u", `{"n":1}`), other)
	for _, n := range []int{8, 16, 32, 64} {
		d.ingest(webhook("u~"+hash[:n], `{"n":3}`))
	}
	id, err := d.AcceptConflict(t.Context(), "u", "", "", "me")
	require.NoError(t, err)
	require.Regexp(t, `^u~[0-9a-f]{8}-[0-9a-f-]{27}$`, id)
	again, err := d.AcceptConflict(t.Context(), "u", "", "", "me")
	require.NoError(t, err)
	require.Equal(t, id, again)

	var missing *view.NotStoredError
	_, err = d.AcceptConflict(t.Context(), "c", "", "ffffffffffff", "me")
	require.ErrorAs(t, err, &missing)
	_, err = d.AcceptConflict(t.Context(), "never", "", "", "me")
	require.ErrorAs(t, err, &missing)
}

// G13: a key that is gone differs from one that is null, in psql and from Go.
func TestDifferencesTellNullFromGone(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run(`select spine.ingest('n', 'a', '{"gone":1,"null":1,"was":null,"both":null,"list":[1]}')`)
	d.run(`select spine.ingest('n', 'a', '{"null":null,"was":2,"new":null,"both":null,"list":[1,null]}')`)
	all, _, err := d.Conflicts(t.Context(), view.Page{Limit: 3}, view.ConflictFilter{EventID: "n"})
	require.NoError(t, err)
	require.Len(t, all, 1)
	text, err := json.Marshal(all[0].Differences)
	require.NoError(t, err)
	want := `[{"path":"/gone","was":1},{"path":"/list/1","is":null},{"path":"/new","is":null},` +
		`{"path":"/null","was":1,"is":null},{"path":"/was","was":null,"is":2}]`
	require.Equal(t, want, string(text))
	var seen string
	require.NoError(t, d.Pool().QueryRow(t.Context(), "select differences::text from spine.conflicting").Scan(&seen))
	require.JSONEq(t, want, seen)

	// The audit log tells the settings of a source the same way.
	d.run(`select spine.put_source('s', '{"preset":"none","url":null,"id":"{hash}"}')`)
	d.run(`select spine.put_source('s', '{"preset":"none","type":null}')`)
	require.NoError(t, d.Pool().QueryRow(t.Context(),
		"select details->>'changes' from spine.audit_log where action = 'source_changed'").Scan(&seen))
	require.JSONEq(t, `{"url":{"from":null},"id":{"from":"{hash}"},"type":{"to":null}}`, seen)
}

// G1: what processes tell of the sources is there until they tell otherwise, end, or are silent.
func TestReportsOfSources(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	report := func(source, state string, problems ...string) event.SourceReport {
		at := event.Timestamp{Time: time.Date(2026, 1, 2, 3, 4, 5, 678_901_000, time.UTC)}
		return event.SourceReport{
			Source:     source,
			SettingsAt: at,
			State:      state,
			Problems:   append([]string{}, problems...),
		}
	}
	tell := func(process string, reports ...event.SourceReport) {
		t.Helper()
		require.NoError(t, d.TellSources(t.Context(), process, reports))
	}
	read := func(names ...string) (all []string, processes []string) {
		t.Helper()
		found, err := d.SourceReports(t.Context(), names)
		require.NoError(t, err)
		for _, r := range found.Reports {
			require.Equal(t, report("", "").SettingsAt, r.SettingsAt)
			all = append(all, strings.Join(append([]string{r.Process, r.Source, r.State}, r.Problems...), "|"))
		}
		return all, found.Processes
	}
	tell("p", report("a", "broken", "one", "two\x00\xff é"), report("b", "open"))
	tell("q")
	all, processes := read()
	require.Equal(t, []string{"p|a|broken|one|two\uFFFD\uFFFD é", "p|b|open"}, all)
	require.Equal(t, []string{"p", "q"}, processes)
	all, processes = read("b", "c")
	require.Equal(t, []string{"p|b|open"}, all)
	require.Equal(t, []string{"p", "q"}, processes, "also those that have told nothing of these")

	// What stays the same is not written again.
	version := d.value("select xmin from spine.source_reports where source = 'b'")
	tell("p", report("b", "open"), report("c", "closed", "why"))
	require.Equal(t, version, d.value("select xmin from spine.source_reports where source = 'b'"))
	tell("q", report("a", "verified"))
	all, _ = read()
	require.Equal(t, []string{"p|b|open", "p|c|closed|why", "q|a|verified"}, all)

	d.run("update spine.receivers set told_at = told_at - interval '3 minutes' where process = 'q'")
	_, processes = read()
	require.Equal(t, []string{"p"}, processes)
	tell("q", report("a", "verified"))
	_, processes = read()
	require.Equal(t, []string{"p", "q"}, processes)
	d.run("update spine.receivers set told_at = told_at - interval '11 minutes' where process = 'q'")
	tell("p")
	require.Equal(t, "1", d.value("select count(*) from spine.receivers"))
	require.NoError(t, d.ForgetReceiver(t.Context(), "p"))
	require.Equal(t, "0", d.value("select count(*) from spine.receivers"))
	require.Equal(t, "0", d.value("select count(*) from spine.source_reports"))
}

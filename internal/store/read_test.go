package store_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// pages reads a list to its end, limit rows at a time.
func pages[Row any](
	t *testing.T,
	limit int,
	read func(view.Page) ([]Row, view.Next, error),
	name func(Row) string,
) (names []string) {
	t.Helper()
	names = []string{}
	page := view.Page{Limit: limit}
	for {
		rows, next, err := read(page)
		require.NoError(t, err)
		require.LessOrEqual(t, len(rows), limit)
		for _, r := range rows {
			names = append(names, name(r))
		}
		if page.Cursor = next.Cursor; next.Cursor == "" {
			require.Nil(t, next.LookedBackTo)
			return names
		}
		if len(rows) == 0 {
			require.NotNil(t, next.LookedBackTo, "a page that was announced is empty")
		}
	}
}

// A list by status is the list with the others left out, whether its rows are
// among the newest events or far below them.
func TestListsByStatus(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	statuses := []string{"pending", "processing", "completed", "failed", "dead"}
	for i := range 60 {
		if i%20 == 0 {
			d.run("select setval('spine.events_id_seq', $1)", 1+i*1000)
		}
		e := webhook(fmt.Sprint(i), payloadA)
		e.Type, e.Source = fmt.Sprint("type-", i%3), []string{"default", "other"}[i%2]
		d.ingest(e)
	}
	d.run(`
		insert into spine.processing_state (event_id, source, destination)
		select event_id, source, 'second'
		from spine.events
		where id % 4 = 0`)
	for i, status := range statuses {
		d.run("update spine.processing_state set status = $1 where (event + length(destination)) % 5 = $2", status, i)
	}
	for _, status := range append(statuses, "") {
		for _, source := range []string{"", "other"} {
			for _, eventType := range []string{"", "type-1"} {
				where := fmt.Sprintf(
					" where '%s' in ('', status) and '%s' in ('', p.source) and '%s' in ('', event_type)",
					status,
					source,
					eventType,
				)
				const from = " from spine.processing_state p join spine.events e on e.id = p.event"
				processing := d.rows(
					"select p.event || destination" + from + where + " order by p.event desc, destination desc",
				)
				events := d.rows("select e.id" + from + where + " group by e.id order by e.id desc")
				for _, limit := range []int{1, 7, 1000} {
					require.Equal(
						t,
						processing,
						pages(t, limit, func(p view.Page) ([]view.ProcessingRow, view.Next, error) {
							return d.Processing(
								t.Context(),
								p,
								view.ProcessingFilter{Status: status, Source: source, Type: eventType},
							)
						}, func(r view.ProcessingRow) string { return fmt.Sprint(r.Event, r.Destination) }),
						"processing, %s, limit %d",
						where,
						limit,
					)
					require.Equal(t, events, pages(t, limit, func(p view.Page) ([]view.StoredEvent, view.Next, error) {
						return d.Events(
							t.Context(),
							p,
							view.EventFilter{Status: status, Source: source, Type: eventType},
						)
					}, func(r view.StoredEvent) string {
						return fmt.Sprint(r.ID)
					}), "events, %s, limit %d", where, limit)
				}
			}
		}
	}
	rows, next, err := d.Processing(t.Context(), view.Page{Limit: 10}, view.ProcessingFilter{Status: "lost"})
	require.NoError(t, err)
	require.Empty(t, rows)
	require.Equal(t, view.Next{}, next)
}

// Short pages, of which many are empty, come to the whole list in the end.
func TestFilteredListsAreWhole(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.fillLong()
	// What lies on both sides of the end of a page, and many rows of one time.
	d.run(
		"update spine.audit_trail set timestamp = $1 where event between 30000 and 48000",
		longAgo.Add(39_000*time.Second),
	)
	d.run(
		"update spine.events set created_at = created_at + (id % 50) * interval '1 second'",
	) // as transactions overlap
	first, last := longAgo.Add(21_003*time.Second), longAgo.Add(45_000*time.Second)
	spans := map[string]view.Span{
		"true":                      {},
		"%s >= '" + at(first) + "'": {Since: first},
		"%s < '" + at(last) + "'":   {Until: last},
		"%[1]s >= '" + at(first) + "' and %[1]s < '" + at(last) + "'": {Since: first, Until: last},
	}
	const processing = " from spine.processing_state p join spine.events e on e.id = p.event where "
	for span, s := range spans {
		if testing.Short() && s.Since.IsZero() != s.Until.IsZero() {
			continue // both ends at once have each of them
		}
		of := func(column string) string {
			if span == "true" {
				return span
			}
			return fmt.Sprintf(span, column)
		}
		for where, f := range map[string]view.EventFilter{
			"event_type = 'rare'":                          {Type: "rare"},
			"source = 'rare'":                              {Source: "rare"},
			"source = 'rare' and event_type = 'rare'":      {Source: "rare", Type: "rare", Status: "completed"},
			"source = 'default' and event_type = 'rare'":   {Source: "default", Type: "rare"},
			"id in (select event from spine.dead_letters)": {Status: "dead"},
		} {
			f.Span = s
			require.Equal(
				t,
				d.rows("select id from spine.events where "+where+" and "+of("created_at")+" order by id desc"),
				pages(
					t,
					3,
					func(p view.Page) ([]view.StoredEvent, view.Next, error) { return d.Events(t.Context(), p, f) },
					func(r view.StoredEvent) string { return fmt.Sprint(r.ID) },
				),
				"events, %s, %s",
				where,
				span,
			)
		}
		for where, f := range map[string]view.ProcessingFilter{
			"event_type = 'rare'":     {Type: "rare"},
			"p.source = 'rare'":       {Source: "rare", Status: "completed"},
			"destination = 'rare'":    {Destination: "rare"},
			"p.status = 'failed'":     {Status: "failed"},
			"p.event_id = 'stored-3'": {EventID: "stored-3"},
		} {
			f.Span = s
			require.Equal(
				t,
				d.rows(
					"select p.event"+processing+where+" and "+of(
						"e.created_at",
					)+" order by p.event desc, destination desc",
				),
				pages(
					t,
					3,
					func(p view.Page) ([]view.ProcessingRow, view.Next, error) {
						return d.Processing(t.Context(), p, f)
					},
					func(r view.ProcessingRow) string { return fmt.Sprint(r.Event) },
				),
				"processing, %s, %s",
				where,
				span,
			)
		}
		for where, f := range map[string]view.StepFilter{
			"action = 'claims_paused'": {Action: "claims_paused"},
			"success = 'failure'":      {Success: "failure"},
			"source = 'rare'":          {Source: "rare"},
			"event in (select id from spine.events where event_type = 'rare')": {Type: "rare"},
			"event_id = 'stored-3'": {EventID: "stored-3"},
		} {
			f.Span = s
			require.Equal(
				t,
				d.rows(
					"select id from spine.audit_log where "+where+" and "+of(
						"timestamp",
					)+" order by timestamp desc, id desc",
				),
				pages(t, 3, func(p view.Page) ([]trail.Step, view.Next, error) { return d.Audit(t.Context(), p, f) },
					func(r trail.Step) string { return fmt.Sprint(r.ID) }),
				"audit, %s, %s",
				where,
				span,
			)
		}
		f := view.AttemptFilter{Outcome: "failure", Span: s}
		require.Equal(
			t,
			d.rows(
				"select id from spine.audit_log where action = 'processing_attempt_failed' and "+of(
					"timestamp",
				)+" order by timestamp desc, id desc",
			),
			pages(
				t,
				3,
				func(p view.Page) ([]view.AttemptRow, view.Next, error) { return d.Attempts(t.Context(), p, f) },
				func(r view.AttemptRow) string { return fmt.Sprint(r.ID) },
			),
			"attempts, %s",
			span,
		)
	}
}

// at is how Postgres reads a time.
func at(t time.Time) string { return t.Format(time.RFC3339Nano) }

// A long queue is walked like all else, and nothing is missed.
func TestAListByAStatusThatManyHave(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run(`
		insert into spine.events (event_id, event_type, occurred_at, payload, payload_hash)
		select 'e-' || n, 'common', now(), '{}', '\x00'
		from generate_series(1, 50020) n`)
	d.run(`
		insert into spine.processing_state (event, event_id, status, lease_token)
		select id, event_id, case when id % 8000 = 5 then 'failed' else 'pending' end, 0
		from spine.events`)
	want := d.rows("select event from spine.processing_state where status = 'failed' order by event desc")
	require.Len(t, want, 7)
	require.Equal(t, want, pages(t, 5, func(p view.Page) ([]view.ProcessingRow, view.Next, error) {
		return d.Processing(t.Context(), p, view.ProcessingFilter{Status: "failed"})
	}, func(r view.ProcessingRow) string { return fmt.Sprint(r.Event) }))
	require.Equal(t, want, pages(t, 5, func(p view.Page) ([]view.StoredEvent, view.Next, error) {
		return d.Events(t.Context(), p, view.EventFilter{Status: "failed"})
	}, func(r view.StoredEvent) string { return fmt.Sprint(r.ID) }))
}

func TestEventsWithin(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	within := func(since, until string) string {
		return d.value(
			"select (spine.events_within(nullif($1, '')::timestamptz, nullif($2, '')::timestamptz))::text",
			since,
			until,
		)
	}
	require.Equal(t, "(,)", within("2024-01-01Z", "2024-01-02Z"), "no events")
	d.run(`
		insert into spine.events (event_id, event_type, occurred_at, payload, payload_hash, created_at)
		select 'e-' || n, 't', now(), '{}', '\x00', $1::timestamptz + n * interval '1 minute'
		from generate_series(1, 1000) n`, longAgo)
	d.run("delete from spine.events where id between 300 and 399") // as retention leaves gaps
	require.Equal(t, "(,)", within("", ""))
	require.Equal(t, "(1,)", within("2023-01-01Z", ""))
	require.Equal(t, "(1001,)", within("2025-01-01Z", "2026-01-01Z"), "none is as young")
	require.Equal(t, "(57,)", within("2024-01-01T01:00:00Z", ""))
	require.Equal(t, "(,63)", within("", "2024-01-01T01:00:00Z"))
	require.Equal(t, "(57,123)", within("2024-01-01T01:00:00Z", "2024-01-01T02:00:00Z"))

	d.run("update spine.events set created_at = '-infinity' where id % 5 = 0")
	d.run("update spine.events set created_at = 'infinity' where id % 5 = 1")
	for n := 100; n <= 900; n += 50 {
		from, to := longAgo.Add(time.Duration(n)*time.Minute), longAgo.Add(time.Duration(n+40)*time.Minute)
		ids := d.rows(
			"select id from spine.events where created_at >= $1 and created_at < $2 order by id desc",
			from,
			to,
		)
		require.Equal(t, ids, pages(t, 7, func(p view.Page) ([]view.StoredEvent, view.Next, error) {
			return d.Events(t.Context(), p, view.EventFilter{Span: view.Span{Since: from, Until: to}})
		}, func(r view.StoredEvent) string { return fmt.Sprint(r.ID) }), "odd rows do not lead astray")
	}
}

func TestSearch(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("insert into spine.sources (name) values ('other')")
	other := webhook("a", payloadA)
	other.Source = "other"
	const beyond = "\U0010FFFF"
	d.ingest(
		webhook("a", payloadA),
		other,
		webhook("A", payloadA),
		webhook("a%", payloadA),
		webhook("a%b", payloadA),
		webhook("a_", payloadA),
		webhook(`a\`, payloadA),
		webhook(
			"a"+beyond,
			payloadA,
		),
		webhook("a"+beyond+"x", payloadA),
		webhook(beyond, payloadA),
		webhook(beyond+beyond+"z", payloadA),
		webhook(
			"\uD7FF",
			payloadA,
		),
		webhook("\uD7FFx", payloadA),
		webhook("\uE000", payloadA),
		webhook("é", payloadA),
		webhook("b", payloadA),
	)
	d.run("update spine.processing_state set status = 'dead', next_attempt_at = null where event_id = 'b'")
	for text, want := range map[string][]string{
		"a": {
			"a default",
			"a other",
			"a% default",
			"a%b default",
			`a\ default`,
			"a_ default",
			"a" + beyond + " default",
			"a" + beyond + "x default",
		},
		"A":          {"A default"},
		"a%":         {"a% default", "a%b default"},
		"a_":         {"a_ default"},
		`a\`:         {`a\ default`},
		"a" + beyond: {"a" + beyond + " default", "a" + beyond + "x default"},
		beyond:       {beyond + " default", beyond + beyond + "z default"},
		"\uD7FF": {
			"\uD7FF default",
			"\uD7FFx default",
		},
		"é":                      {"é default"},
		"c":                      nil,
		strings.Repeat("a", 300): nil,
	} {
		found, err := d.Search(t.Context(), text)
		require.NoError(t, err)
		require.NotNil(t, found)
		var got []string
		for _, f := range found {
			got = append(got, f.EventID+" "+f.Source)
		}
		require.Equal(t, want, got, "%q", text)
	}
	found, err := d.Search(t.Context(), "b")
	require.NoError(t, err)
	require.Equal(t, "dead", *found[0].Status)
	require.Equal(t, "user.created", found[0].EventType)

	d.ingest(webhooks("many", 30)...)
	found, err = d.Search(t.Context(), "many")
	require.NoError(t, err)
	require.Len(t, found, 20)
}

func TestAttempts(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("a", payloadA))
	d.settle(failed(d.claim(1)[0], time.Hour))
	d.due()
	d.settle(completed(d.claim(1)[0]))
	d.run(`insert into spine.audit_trail (action, event_id, source, details) values
		(
			'processing_attempt_failed', 'by hand', 'other',
			'{"attempt":"first","status":1.5,"destination":"second","error":null,"duration_ms":2}'
		),
		('processing_attempt_failed', null, null, null), ('processing_attempt_failed', null, null, '[1]')`)
	all, next, err := d.Attempts(t.Context(), view.Page{Limit: 10}, view.AttemptFilter{})
	require.NoError(t, err)
	require.Equal(t, view.Next{}, next)
	require.Len(t, all, 5)
	for i := range all {
		require.WithinDuration(t, time.Now(), all[i].Timestamp.Time, time.Minute)
		require.Positive(t, all[i].ID)
		all[i].Timestamp, all[i].ID = event.Timestamp{}, 0
	}
	p := func(n int64) *int64 { return &n }
	half, one, two := 12.5, 1.0, 2.0
	thanks, no, why := "thank you", "not now", "HTTP 503"
	require.Equal(t, []view.AttemptRow{
		{Destination: "default", Outcome: "failure"},
		{Destination: "default", Outcome: "failure"},
		{EventID: "by hand", Source: "other", Destination: "second", Outcome: "failure", DurationMS: &two},
		{
			EventID:     "a",
			Source:      "default",
			Destination: "default",
			Attempt:     p(2),
			Outcome:     "success",
			Status:      p(200),
			DurationMS:  &half,
			Answer:      &thanks,
		},
		{
			EventID:     "a",
			Source:      "default",
			Destination: "default",
			Attempt:     p(1),
			Outcome:     "failure",
			Status:      p(503),
			DurationMS:  &one,
			Error:       &why,
			Answer:      &no,
		},
	}, all)

	for want, f := range map[string]view.AttemptFilter{
		"[2]":     {Outcome: "success"},
		"[2 1]":   {EventID: "a"},
		"[1]":     {EventID: "a", Outcome: "failure"},
		"[2 1 ]":  {Type: "user.created"},
		"[2  1]":  {Source: "default"},
		"[ ]":     {EventID: "b"},
		"[]":      {Span: view.Span{Until: time.Now().Add(-time.Hour)}},
		"[2 1  ]": {EventID: "a", Span: view.Span{Since: time.Now().Add(-time.Hour)}},
	} {
		rows, _, err := d.Attempts(t.Context(), view.Page{Limit: 10}, f)
		require.NoError(t, err)
		numbers := []int64{}
		for _, r := range rows {
			numbers = append(numbers, *r.Attempt)
		}
		require.Equal(
			t,
			strings.Fields(strings.Trim(want, "[]")),
			strings.Fields(strings.Trim(fmt.Sprint(numbers), "[]")),
			"%v",
			f,
		)
	}
}

// Who dies in the middle of an attempt leaves one that failed.
func TestAttemptsWhoseLeaseRanOut(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("a", payloadA))
	d.claim(1)
	d.due()
	require.Len(t, d.look(1).Expired, 1)
	d.due()
	d.settle(completed(d.claim(1)[0]))
	for outcome, want := range map[string][]string{
		"":        {"2 success -", "1 failure the lease ran out: worker-1 did not report back"},
		"success": {"2 success -"},
		"failure": {"1 failure the lease ran out: worker-1 did not report back"},
	} {
		require.Equal(t, want, pages(t, 1, func(p view.Page) ([]view.AttemptRow, view.Next, error) {
			return d.Attempts(t.Context(), p, view.AttemptFilter{Outcome: outcome})
		}, func(r view.AttemptRow) string {
			problem := "-"
			if r.Error != nil {
				problem = *r.Error
			}
			return fmt.Sprint(*r.Attempt, " ", r.Outcome, " ", problem)
		}), outcome)
	}
}

// Rows of a status that are looked up one by one, for their type or their time,
// are no more than on any page of a filtered list.
func TestAListByAStatusAndWhatAnotherTableHas(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run(`
		insert into spine.events (event_id, event_type, occurred_at, payload, payload_hash)
		select 'e-' || n, case n when 7 then 'rare' else 'common' end, now(), '{}', '\x00'
		from generate_series(1, 10020) n`)
	d.run(`
		insert into spine.processing_state (event, event_id, status, lease_token, next_attempt_at)
		select id, event_id, 'dead', 0, null
		from spine.events`)
	_, next, err := d.Events(t.Context(), view.Page{Limit: 5}, view.EventFilter{Status: "dead", Type: "rare"})
	require.NoError(t, err)
	require.NotNil(t, next.LookedBackTo)
	_, next, err = d.Processing(t.Context(), view.Page{Limit: 5}, view.ProcessingFilter{Status: "dead", Type: "rare"})
	require.NoError(t, err)
	require.NotNil(t, next.LookedBackTo)
	require.Equal(t, []string{"7"}, pages(t, 5, func(p view.Page) ([]view.StoredEvent, view.Next, error) {
		return d.Events(t.Context(), p, view.EventFilter{Status: "dead", Type: "rare", Span: view.Span{Since: longAgo}})
	}, func(r view.StoredEvent) string { return fmt.Sprint(r.ID) }))
	require.Equal(t, []string{"7"}, pages(t, 5, func(p view.Page) ([]view.ProcessingRow, view.Next, error) {
		return d.Processing(t.Context(), p, view.ProcessingFilter{Status: "dead", Type: "rare"})
	}, func(r view.ProcessingRow) string { return fmt.Sprint(r.Event) }))
}

// Events may go, by a hand or by retention, between a look-up and the list of
// their sources.
func TestAnAmbiguousEventThatIsGone(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run(
		`
		create or replace function spine.id_of(_event_id text, _source text default null) returns bigint
		language plpgsql as $$
		begin raise exception 'several' using errcode = 'cardinality_violation'; end $$`,
	)
	_, err := d.Event(t.Context(), "a", "")
	var ambiguous *view.AmbiguousError
	require.Error(t, err)
	require.NotErrorAs(t, err, &ambiguous)
}

// The log is read backwards in steps. Rows far from one another, of no time and
// of the default partition come in one order, and so does a trail that begins
// before its event was stored, as only a hand can make one.
func TestTheAuditLogOverAllTimes(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("a", payloadA), webhook("b", payloadA), webhook("c", payloadA))
	d.run(`insert into spine.audit_trail (timestamp, event, event_id, action)
		select t.at, e.id, e.event_id, 'event_queued'
		from spine.events e, (values
			('infinity'::timestamptz), ('-infinity'), ('0044-03-15 BC'), ('2024-01-30'), ('9999-01-01'),
			(now() - interval '23 hours'), (now() - interval '25 hours'), (now() - interval '15 days'),
			(now() - interval '17 days'), (now() - interval '3 years')) t(at), generate_series(1, 3)`)
	d.run(`
		update spine.events
		set created_at = case event_id when 'a' then now() + interval '2 days' else 'infinity' end
		where event_id <> 'b'`)
	d.run(`
		delete from spine.audit_trail
		where event_id = 'b' and (timestamp < now() - interval '1 hour' or action <> 'event_queued')`)
	for _, limit := range []int{1, 4, 10, 1000} {
		for where, f := range map[string]view.StepFilter{
			"true":                    {},
			"action = 'event_queued'": {Action: "event_queued"},
			"event_id = 'a'":          {EventID: "a"},
			"event_id = 'b'":          {EventID: "b"},
			"event_id = 'c'":          {EventID: "c"},
			"timestamp < '2024-01-30'": {
				Span: view.Span{Until: time.Date(2024, 1, 30, 0, 0, 0, 0, time.UTC)},
			},
			"timestamp >= now() - interval '1 year'": {Span: view.Span{Since: time.Now().AddDate(-1, 0, 0)}},
		} {
			require.Equal(
				t,
				d.rows("select id from spine.audit_log where "+where+" order by timestamp desc, id desc"),
				pages(
					t,
					limit,
					func(p view.Page) ([]trail.Step, view.Next, error) { return d.Audit(t.Context(), p, f) },
					func(r trail.Step) string { return fmt.Sprint(r.ID) },
				),
				"%s, limit %d",
				where,
				limit,
			)
		}
	}
	for _, id := range []string{"a", "b", "c"} {
		want := d.rows("select id from spine.audit_log where event_id = $1 order by timestamp, id", id)
		require.Equal(t, want, d.rows("select id from spine.trace($1)", id))
		history, err := d.Event(t.Context(), id, "")
		require.NoError(t, err)
		got := []string{}
		for _, r := range history.Timeline {
			got = append(got, fmt.Sprint(r.ID))
		}
		require.Equal(t, want, got)
	}
}

package store_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/view"
)

// lived is a database in which all has happened that happens to events.
func lived(t *testing.T) *database {
	d := newDatabase(t, 1)
	other := webhook("x", payloadB)
	other.Source = "github"
	d.ingest(webhook("first", payloadA)) // whose trail the audit log may not have from its beginning on
	d.ingest(
		webhook("x", payloadA),
		webhook("x", payloadA),
		other,
		webhook("y", payloadA),
		webhook("z", payloadA),
		webhook("waits", payloadA),
	)
	d.ingest(webhook("x", payloadB), webhook("x", payloadB), webhook("y", payloadA))
	d.run("insert into spine.destinations (name) values ('other')")
	d.run("insert into spine.processing_state (event_id, destination, attempt_count) values ('y', 'other', 3)")
	d.run("update spine.processing_state set next_attempt_at = now() + interval '1 h' where event_id = 'waits'")
	psql := d.psql()
	const unreached = `select spine.settle(
			array_agg(event), array_agg(destination), array_agg(lease_token), array_agg('deferred'::text),
			array_agg('0 s'::interval), array_agg('connection refused'::text), array_agg('{}'::text)
		)
		from spine.processing_state where status = 'processing'`
	for _, statement := range []string{
		// Of z: given back, failed, its lease ran out twice and it died, replayed, a late result, completed.
		`select spine.claim('default', 10, '1 h', 'me')`,
		`
			select spine.give_back(array_agg(event), array_agg(destination), array_agg(lease_token))
			from spine.processing_state
			where event_id = 'z'`,
		`select spine.settle(
				array_agg(event), array_agg(destination), array_agg(lease_token), array_agg('completed'::text),
				array_agg(null::interval), array_agg(null::text), array_agg('{}'::text)
			)
			from spine.processing_state where status = 'processing' and event_id <> 'z'`,
		`select spine.claim('default', 10, '1 h', 'me')`,
		`select spine.settle(
				array_agg(event), array_agg(destination), array_agg(lease_token), array_agg('failed'::text),
				array_agg('0 s'::interval), array_agg('HTTP 500'::text), array_agg('{"status":500}'::text)
			)
			from spine.processing_state where status = 'processing'`,
		// Its destination was not reached, twice.
		`select spine.claim('default', 10, '1 h', 'me')`,
		unreached,
		`select spine.claim('default', 10, '1 h', 'me')`,
		unreached,
		`select spine.claim('default', 10, '0 s', 'me')`,
		`select spine.claim('default', 10, '0 s', 'me', array['0 s', '0 s', '0 s']::interval[])`,
		`select spine.claim('default', 10, '0 s', 'me', array['0 s', '0 s', '0 s']::interval[])`,
		`select spine.claim('default', 10, '0 s', 'me', array[]::interval[])`,
		`select spine.settle(
				array_agg(event), array_agg(destination), array_agg(lease_token - 1), array_agg('completed'::text),
				array_agg(null::interval), array_agg(null::text), array_agg('{}'::text)
			)
			from spine.processing_state where event_id = 'z'`,
		`select spine.replay('z')`,
		`select spine.claim('default', 10, '1 h', 'me')`,
		// By hand: of y at another destination, whose attempts a hand has set.
		`select spine.claim('other', 10, '1 h', 'me')`,
		`select spine.settle(
				array_agg(event), array_agg(destination), array_agg(lease_token), array_agg('failed'::text),
				array_agg('0 s'::interval), array_agg('HTTP 500'::text), array_agg('{}'::text)
			)
			from spine.processing_state where destination = 'other'`,
		`select spine.claim('other', 10, '1 h', 'me')`,
		`update spine.processing_state set status = 'dead' where destination = 'other'`,
		`select spine.accept_conflict('x', 'default')`,
	} {
		run(t, psql, statement)
	}
	return d
}

// broken are the invariants that do not hold, as a query on a session.
const broken = "select invariant || ': ' || (examples -> 0 ->> 'detail') from spine.verify() where violations > 0"

func TestVerifyFindsNothingWhereAllIsWell(t *testing.T) {
	t.Parallel()
	d := lived(t)
	require.Empty(t, d.rows(broken))
	require.Equal(t, "7", d.value("select distinct checked from spine.verify()"))
	require.Contains(t, d.trail("z"), "lease_lost")
	require.Contains(t, d.trail("z"), "lease_expired")
	require.Contains(t, d.trail("z"), "processing_failed_permanently")
	require.Contains(t, d.trail("z"), "delivery_deferred")

	invariants, err := d.Verify(t.Context(), time.Now().Add(-3*time.Hour), time.Time{}, 5)
	require.NoError(t, err)
	require.NotEmpty(t, invariants)
	for _, i := range invariants {
		require.EqualValues(t, 7, i.Checked)
		require.Zero(t, i.Violations)
	}
	require.Equal(
		t,
		"0",
		d.value("select distinct checked from spine.verify(now() - interval '2 h', now() - interval '1 h')"),
	)

	// What is inserted by hand is brought into order.
	d.run("insert into spine.destinations (name) values ('third'), ('fourth')")
	d.run(`
		insert into spine.processing_state (event_id, destination, status)
		values ('y', 'third', 'completed'), ('y', 'fourth', 'dead')`)
	require.Empty(t, d.rows(broken))

	// The second of two steps did not name its destination at first.
	d.run(`update spine.audit_trail set details = (details::jsonb - 'destination')::json
		where action in ('retry_scheduled', 'processing_failed_permanently') and details ->> 'destination' = 'other'`)
	require.Empty(t, d.rows(broken))

	// What retention took away is not missed.
	d.run("delete from spine.audit_trail where id in (select id from spine.audit_trail order by timestamp, id limit 2)")
	require.Empty(t, d.rows(broken))
	require.Equal(
		t,
		"4|3",
		d.value("select looked_at || '|' || deleted from spine.expire_events(now() + interval '1 s', 0, 4)"),
	)
	require.Empty(t, d.rows(broken))
	d.run("delete from spine.audit_trail where timestamp <= (select max(created_at) from spine.events)")
	require.Empty(t, d.rows(broken))
}

// The command goes by the hour, and by as many events as one look may take.
func TestVerifyStepByStep(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		d.ingest(webhook(id, payloadA))
	}
	d.run("update spine.events set created_at = created_at - (6 - id % 10) * interval '40 min'")
	d.run("delete from spine.processing_state where event_id in ('a', 'c', 'e')")
	invariants, err := store.VerifySpans(d.Store, t.Context(), time.Now().Add(-24*time.Hour), time.Time{}, 2, 1)
	require.NoError(t, err)
	for _, i := range invariants {
		require.EqualValues(t, 5, i.Checked)
		if i.Name == "event_queued" {
			require.EqualValues(t, 3, i.Violations)
			require.Len(t, i.Examples, 2)
		}
	}
}

// Events that are lost are found by their steps, also those before all that are there, and where none is there.
func TestVerifyFindsWhatIsBeforeTheFirstEvent(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ago(20)
	lost := func() int64 {
		invariants, err := d.Verify(t.Context(), time.Time{}, time.Time{}, 2)
		require.NoError(t, err)
		for _, i := range invariants {
			if i.Name == "event_kept" {
				return i.Violations
			}
		}
		return -1
	}
	require.Zero(t, lost())
	d.run(`insert into spine.audit_trail (timestamp, event, event_id, action)
		select now() - interval '480 hours' - n * interval '1 second', 1000 + n, 'gone-' || n, 'event_inserted'
		from generate_series(1, 10) n`)
	require.EqualValues(t, 10, lost())
	d.ingest(webhook("x", payloadA))
	require.EqualValues(t, 10, lost())
	d.run("update spine.events set created_at = 'infinity'")
	require.EqualValues(t, 10, lost())
}

// Every invariant is broken in turn, by what would break it.
func TestVerifyFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	d := lived(t)
	const of = " where event = (select id from spine.events where event_id = '"
	for name, c := range map[string]struct {
		invariant string
		do        []string
	}{
		"an event that nobody queued": {
			"event_queued",
			[]string{"delete from spine.processing_state" + of + "waits')"},
		},
		"an event that is gone": {"row_has_event", []string{"delete from spine.events where event_id = 'y'"}},
		"evidence of nothing": {
			"row_has_event",
			[]string{"delete from spine.events where event_id = 'x' and source = 'default'", `
			delete from spine.processing_state where event_id = 'x' and source = 'default'`},
		},
		"an event that is gone, and all that is of it": {"event_kept", []string{
			"delete from spine.events where event_id = 'waits'",
			"delete from spine.processing_state where event_id = 'waits'",
		}},
		"an event that is gone, and retention took others": {"event_kept", []string{
			`
				insert into spine.audit_trail (action, details)
				values ('events_expired', '{"oldest":"2026-01-30T12:00:00Z","newest":"2026-01-30T13:00:00Z"}')`,
			"delete from spine.events where event_id = 'waits'",
			"delete from spine.processing_state where event_id = 'waits'",
		}},
		"a row of the newest event, which is gone": {"row_has_event", []string{`
			insert into spine.processing_state (event, event_id) values (1000000000, 'none')`}},
		"a row of the oldest event, which is gone": {"row_has_event", []string{`
			insert into spine.processing_state (event, event_id) values (0, 'none')`}},
		"a destination that is queued no more": {
			"row_as_told",
			[]string{"delete from spine.processing_state where destination = 'other'"},
		},
		"a row of another name": {
			"row_names_event",
			[]string{"update spine.processing_state set event_id = 'a'" + of + "y')"},
		},
		"evidence of another name": {"row_names_event", []string{"update spine.conflicts set source = 'a'"}},
		"never due": {
			"row_claimable",
			[]string{"update spine.processing_state set next_attempt_at = null" + of + "waits')"},
		},
		"no such destination": {
			"row_claimable",
			[]string{"update spine.processing_state set destination = 'nowhere'" + of + "waits')"},
		},
		"completed and due": {"row_at_rest", []string{`
			update spine.processing_state set next_attempt_at = now() where status = 'completed'`}},
		"completed at no time": {"row_at_rest", []string{`
			update spine.processing_state set completed_at = null where status = 'completed'`}},
		"a token that fell back": {
			"lease_current",
			[]string{"update spine.processing_state set lease_token = 1" + of + "z')"},
		},
		"a result that counted twice": {"lease_spent_once", []string{`
			insert into spine.audit_trail (event, event_id, action, details)
			select event, event_id, action, details
			from spine.audit_trail
			where action = 'processing_succeeded' and event_id = 'y'`}},
		"a delivery that nobody began": {"path_legal", []string{`
			delete from spine.audit_trail where action = 'processing_attempt_started' and event_id = 'y'`}},
		"an attempt that came to nothing, silently": {"path_legal", []string{`
			delete from spine.audit_trail where action = 'processing_attempt_failed'`}},
		"a deferral, silently": {"path_legal", []string{`
			delete from spine.audit_trail where action = 'delivery_deferred'`}},
		"a deferral that is told twice": {"lease_spent_once", []string{`
			insert into spine.audit_trail (event, event_id, action, details)
			select event, event_id, action, details
			from spine.audit_trail
			where action = 'delivery_deferred'`}},
		"a trail without a beginning": {"path_legal", []string{`
			delete from spine.audit_trail where action = 'event_inserted' and event_id = 'y'`}},
		"an attempt left out": {"attempts_counted", []string{`
			update spine.audit_trail
			set details = replace(details::text, '"attempt":1', '"attempt":2')::json
			where event_id = 'y'`}},
		"a step that is not told": {"row_as_told", []string{`
			delete from spine.audit_trail where action = 'processing_succeeded' and event_id = 'y'`}},
		"attempts beyond those told": {"row_as_told", []string{`
			update spine.processing_state set attempt_count = 9 where status = 'completed'`}},
		"a row without a trail": {"row_as_told", []string{`
			delete from spine.audit_trail where event_id = 'waits' and action = 'event_inserted'`}},
		"seen more often than received": {"receipts_counted", []string{`
			update spine.events set seen_count = seen_count + 1 where event_id = 'waits'`}},
		"a duplicate that is not told": {"receipts_counted", []string{`
			delete from spine.audit_trail where action = 'event_deduped' and event_id = 'y'`}},
		"stored twice, by the trail": {"receipts_counted", []string{`
			insert into spine.audit_trail (event, event_id, action)
			select event, event_id, action
			from spine.audit_trail
			where action = 'event_inserted' and event_id = 'waits'`}},
		"evidence that is gone": {"evidence_counted", []string{"delete from spine.conflicts"}},
		"evidence that was seen more often than told": {
			"evidence_counted",
			[]string{"update spine.conflicts set seen_count = 7"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			psql := d.psql()
			tx, err := psql.Begin(t.Context())
			require.NoError(t, err)
			defer func() { require.NoError(t, tx.Rollback(t.Context())) }()
			for _, table := range []string{"processing_state", "events", "conflicts"} { // no trigger comes to help
				_, err = tx.Exec(t.Context(), "alter table spine."+table+" disable trigger user")
				require.NoError(t, err)
			}
			for _, statement := range c.do {
				tag, err := tx.Exec(t.Context(), statement)
				require.NoError(t, err)
				require.Positive(t, tag.RowsAffected(), statement)
			}
			found, err := tx.Query(t.Context(), "select invariant, examples from spine.verify() where violations > 0")
			require.NoError(t, err)
			all, err := pgx.CollectRows(found, func(row pgx.CollectableRow) (i view.Invariant, err error) {
				return i, row.Scan(&i.Name, &i.Examples)
			})
			require.NoError(t, err)
			var names []string
			for _, i := range all {
				names = append(names, i.Name)
				require.NotEmpty(t, i.Examples)
				require.NotEmpty(t, i.Examples[0].Detail, i.Name)
			}
			require.Contains(t, names, c.invariant)
		})
	}
}

// BenchmarkVerify checks 10,000 delivered events; it says what one costs.
func BenchmarkVerify(b *testing.B) {
	ctx := b.Context()
	url := databases.New(b)
	s, err := store.Open(ctx, store.Config{URL: url, MaxConns: 1, AppName: "spine test"})
	require.NoError(b, err)
	defer s.Close()
	const n = 10_000
	for _, statement := range []string{
		// the audit log may not have its beginning
		`select spine.ingest_events(array['first'], array['t'], array[now()], array['{}'])`,
		`
			select spine.ingest_events(
				array_agg('v-' || n), array_agg('t'::text), array_agg(now()), array_agg('{"n":' || n || '}')
			)
			from generate_series(1, 10000) n`,
		`select count(*) from spine.claim('default', 10001, '1 h', 'me')`,
		`select spine.settle(
				array_agg(event), array_agg(destination), array_agg(lease_token), array_agg('completed'::text),
				array_agg(null::interval), array_agg(null::text), array_agg('{"status":200}'::text)
			)
			from spine.processing_state`,
	} {
		_, err := s.Pool().Exec(ctx, statement)
		require.NoError(b, err)
	}
	for b.Loop() {
		invariants, err := s.Verify(ctx, time.Now().Add(-time.Minute), time.Time{}, 5)
		require.NoError(b, err)
		require.EqualValues(b, n+1, invariants[0].Checked)
		require.Zero(b, invariants[0].Violations)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/n, "µs/event")
}

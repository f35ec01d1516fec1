package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// exec runs a statement on a pool or in a transaction.
func exec(t *testing.T, on interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, sql string, args ...any,
) {
	t.Helper()
	var ignored any
	if err := on.QueryRow(t.Context(), sql, args...).Scan(&ignored); !errors.Is(err, pgx.ErrNoRows) {
		require.NoError(t, err)
	}
}

// note writes a step.
func note(t *testing.T, on interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, eventID string,
) {
	t.Helper()
	exec(
		t,
		on,
		"insert into spine.audit_trail (event_id, source, action) values ($1, 'default', 'event_queued')",
		eventID,
	)
}

func begin(t *testing.T, s *store.Store) pgx.Tx {
	t.Helper()
	tx, err := s.Pool().Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
	return tx
}

// readAll hands all steps after c that are committed now and match f to each, and returns the cursor after the last
// page that each took, with an error too.
func readAll(
	ctx context.Context,
	r trail.Reader,
	c trail.Cursor,
	f trail.Filter,
	each func([]trail.Step) error,
) (trail.Cursor, error) {
	for {
		steps, next, err := r.ReadSteps(ctx, c, f)
		if err != nil {
			return c, err
		}
		if len(steps) > 0 {
			if err := each(steps); err != nil {
				return c, err
			}
		}
		if c = next; c.Settled() {
			return c, nil
		}
	}
}

// followed reads on from c and returns the event ids that it saw.
func followed(t *testing.T, s *store.Store, c *trail.Cursor, f trail.Filter) (seen []string) {
	t.Helper()
	next, err := readAll(t.Context(), s, *c, f, func(rows []trail.Step) error {
		for _, r := range rows {
			id := "-"
			if r.EventID != nil {
				id = *r.EventID
			}
			seen = append(seen, id)
		}
		return nil
	})
	require.NoError(t, err)
	*c = next
	return seen
}

func TestFollowWhereTransactionsCommitOutOfOrder(t *testing.T) {
	t.Parallel()
	s := open(t)
	start := time.Now().Add(-time.Minute)
	early := begin(t, s)
	note(t, early, "began first")
	current, err := s.CurrentCursor(t.Context())
	require.NoError(t, err)
	since := trail.CursorSince(start)

	note(t, s.Pool(), "second")
	for _, c := range []*trail.Cursor{&current, &since} {
		require.Equal(t, []string{"second"}, followed(t, s, c, trail.Filter{}))
		require.Empty(t, followed(t, s, c, trail.Filter{}), "nothing is doubled while the first is open")
	}
	note(t, s.Pool(), "third")
	for _, c := range []*trail.Cursor{&current, &since} {
		require.Equal(t, []string{"third"}, followed(t, s, c, trail.Filter{}))
	}
	require.NoError(t, early.Commit(t.Context()))
	for _, c := range []*trail.Cursor{&current, &since} {
		require.Equal(t, []string{"began first"}, followed(t, s, c, trail.Filter{}), "committed last, and shown once")
		require.Empty(t, followed(t, s, c, trail.Filter{}))
	}
}

func TestFollowSinceShowsThePastInOrder(t *testing.T) {
	t.Parallel()
	s := open(t)
	exec(t, s.Pool(), `insert into spine.audit_trail (event_id, timestamp, action) values
		('too old', now() - interval '1 hour', 'event_queued'), ('b', now() - interval '1 minute', 'event_queued'),
		('a', now() - interval '2 minutes', 'event_queued'), ('never ends', 'infinity', 'event_queued'),
		('never began', '-infinity', 'event_queued')`)
	c := trail.CursorSince(time.Now().Add(-10 * time.Minute))
	require.Equal(t, []string{"a", "b", "never ends"}, followed(t, s, &c, trail.Filter{}))
	note(t, s.Pool(), "live")
	exec(t, s.Pool(), `
		insert into spine.audit_trail (event_id, timestamp, action)
		values ('written late', now() - interval '1 hour', 'event_queued')`)
	require.Equal(t, []string{"written late", "live"}, followed(t, s, &c, trail.Filter{}))
}

func TestFollowPages(t *testing.T) {
	t.Parallel()
	for name, since := range map[string]bool{"past": true, "live": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			c, err := s.CurrentCursor(t.Context())
			require.NoError(t, err)
			if since {
				c = trail.CursorSince(time.Now().Add(-time.Hour))
			}
			// Both a transaction larger than a page and many small ones, all of
			// one moment, among others that do not match.
			exec(t, s.Pool(), `do $$ declare at timestamptz := clock_timestamp(); begin
				insert into spine.audit_trail (timestamp, event_id, action)
				select at, n, 'event_queued'
				from generate_series(1, 2500) n;
				for n in 2501..3000 loop
					insert into spine.audit_trail (timestamp, event_id, action)
					values (at, n, 'event_queued'), (at, n, 'event_replayed');
					commit;
				end loop;
			end $$`)

			var seen []string
			failure := errors.New("the reader gave up")
			pages := 0
			each := func(rows []trail.Step) error {
				if pages++; pages == 2 {
					return failure
				}
				require.LessOrEqual(t, len(rows), 500)
				for _, r := range rows {
					seen = append(seen, *r.EventID)
				}
				return nil
			}
			filter := trail.Filter{Actions: []trail.Action{"event_queued", "nothing like it"}}
			c, err = readAll(t.Context(), s, c, filter, each)
			require.ErrorIs(t, err, failure)
			require.Len(t, seen, 500)
			note(t, s.Pool(), "3001")
			c, err = readAll(t.Context(), s, c, filter, each)
			require.NoError(t, err, "it goes on with the page that was not taken")
			_, err = readAll(t.Context(), s, c, filter, each)
			require.NoError(t, err)

			want := make([]string, 3001)
			for i := range want {
				want[i] = fmt.Sprint(i + 1)
			}
			require.Equal(t, want, seen)
		})
	}
}

func TestFollowWhereALargeTransactionEndsLate(t *testing.T) {
	t.Parallel()
	s := open(t)
	c, err := s.CurrentCursor(t.Context())
	require.NoError(t, err)
	const many = `
		insert into spine.audit_trail (event_id, action) select 'large', 'event_queued' from generate_series(1, 2500)`
	large, failing, late := begin(t, s), begin(t, s), begin(t, s)
	exec(t, large, many)
	exec(t, failing, many)
	note(t, late, "open")
	note(t, s.Pool(), "a")
	require.Equal(t, []string{"a"}, followed(t, s, &c, trail.Filter{}))
	require.NoError(t, large.Commit(t.Context()))
	require.NoError(t, failing.Rollback(t.Context()))
	note(t, s.Pool(), "b")
	got := followed(t, s, &c, trail.Filter{})
	require.Len(t, got, 2501)
	require.Equal(t, "b", got[2500])
	// What is known does not depend on rows that are still there.
	exec(t, s.Pool(), "delete from spine.audit_log")
	require.Empty(t, followed(t, s, &c, trail.Filter{}))
	require.NoError(t, late.Commit(t.Context()))
	require.Equal(t, []string{"open"}, followed(t, s, &c, trail.Filter{}))
	require.Empty(t, followed(t, s, &c, trail.Filter{}))
}

func TestFollowFilters(t *testing.T) {
	t.Parallel()
	s := open(t)
	live, err := s.CurrentCursor(t.Context())
	require.NoError(t, err)
	exec(t, s.Pool(), "insert into spine.sources (name) values ('other')")
	ingest(t, s, "default", "'e' || n", 3)
	ingest(t, s, "other", "'e1'", 1)
	exec(t, s.Pool(), "insert into spine.audit_trail (action) values ('claims_paused')")
	for want, f := range map[string]trail.Filter{
		"[- e1 e2 e3 e1 e2 e3 e1 e1 -]": {},
		"[e1 e1 e1 e1]":                 {EventIDs: []string{"e1"}},
		"[e1 e2 e1 e2 e1 e1]":           {EventIDs: []string{"e1", "e2", "never"}},
		"[]":                            {EventIDs: []string{"never"}},
		"[- e1 e1]":                     {Sources: []string{"other", "nowhere"}},
		"[e1]": {
			EventIDs: []string{"e1"},
			Sources:  []string{"default"},
			Actions:  []trail.Action{"event_inserted"},
		},
		"[e1 e2 e3 e1]": {Actions: []trail.Action{"event_inserted", "event_replayed"}},
		"[e2 e2]":       {Types: []string{"t0", "nothing like it"}},
		"[e1 e3 e1 e3]": {Types: []string{"t1"}, Sources: []string{"default"}},
	} {
		for name, c := range map[string]trail.Cursor{
			"past": trail.CursorSince(time.Now().Add(-time.Hour)),
			"live": live,
		} {
			require.ElementsMatch(t, strings.Fields(strings.Trim(want, "[]")), followed(t, s, &c, f), "%s %+v", name, f)
			require.Empty(t, followed(t, s, &c, f))
		}
	}
}

func TestFollowByTheStatusThatAStepLeadsTo(t *testing.T) {
	t.Parallel()
	s := open(t)
	exec(t, s.Pool(), `insert into spine.audit_trail (event_id, action, details) values
		('new', 'event_inserted', null), ('queued', 'event_queued', '{"status":"pending"}'),
		('queued dead', 'event_queued', '{"status":"dead"}'),
		('replayed', 'event_replayed', null), ('returned', 'lease_returned', '{"attempt":1}'),
		('returned again', 'lease_returned', '{"attempt":2}'),
		('started', 'processing_attempt_started', null), ('done', 'processing_succeeded', null),
		('failed', 'retry_scheduled', null),
		('died', 'processing_failed_permanently', null),
		('by hand', 'status_changed', '{"from":"dead","to":"completed"}'),
		('stays', 'processing_attempt_failed', null), ('received', 'event_received', null),
		('late', 'lease_lost', null)`)
	for status, want := range map[string][]string{
		"pending":    {"new", "queued", "replayed", "returned"},
		"processing": {"started"},
		"completed":  {"done", "by hand"},
		"failed":     {"returned again", "failed"},
		"dead":       {"queued dead", "died"},
	} {
		c := trail.CursorSince(time.Now().Add(-time.Hour))
		require.Equal(t, want, followed(t, s, &c, trail.Filter{Statuses: []string{status}}), status)
	}
	c := trail.CursorSince(time.Now().Add(-time.Hour))
	require.Len(t, followed(t, s, &c, trail.Filter{Statuses: []string{"dead", "completed"}}), 4)
}

// The past of one event is found by the event: each row once, whatever is
// committed meanwhile and in which order.
func TestFollowOneEventWhereTransactionsCommitOutOfOrder(t *testing.T) {
	t.Parallel()
	s := open(t)
	ingest(t, s, "default", "'e' || n", 2)
	early := begin(t, s)
	exec(t, early, "select spine.ingest('e1', 'user.created', '{}')")
	only := trail.Filter{EventIDs: []string{"e1"}, Actions: []trail.Action{"event_deduped", "event_inserted"}}
	c := trail.CursorSince(time.Now().Add(-time.Hour))
	require.Equal(t, []string{"e1"}, followed(t, s, &c, only))
	require.NoError(t, early.Commit(t.Context()))
	ingest(t, s, "default", "'e' || n", 2)
	require.Equal(t, []string{"e1", "e1"}, followed(t, s, &c, only))
	require.Empty(t, followed(t, s, &c, only))
}

// The numbers of transactions whose end had not come to disk are given out
// again after a crash. A cursor that took them for seen would miss rows.
func TestFollowThroughACrash(t *testing.T) {
	t.Parallel()
	server := postgrestest.Server(t)
	_, err := store.Migrate(t.Context(), server.URL(), nil)
	require.NoError(t, err)
	s, err := store.Open(t.Context(), store.Config{URL: server.URL(), MaxConns: 4, AppName: "spine test"})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	note(t, s.Pool(), "before")
	since := trail.CursorSince(time.Now().Add(-time.Hour))
	require.Equal(t, []string{"before"}, followed(t, s, &since, trail.Filter{}))
	current := since
	for range 20 {
		require.NoError(t, s.Notify(t.Context(), "anything", ""))
		require.Empty(t, followed(t, s, &since, trail.Filter{}))
		current, err = s.CurrentCursor(t.Context())
		require.NoError(t, err)
	}
	server.Kill()
	require.NoError(t, server.Restart(t.Context()))

	var want []string
	for i := range 20 {
		want = append(want, fmt.Sprint(i))
		require.Eventually(t, func() bool {
			_, err := s.Pool().Exec(t.Context(), "select") // connections of before are dead
			return err == nil
		}, patience, 10*time.Millisecond)
		note(t, s.Pool(), fmt.Sprint(i))
	}
	for _, c := range []*trail.Cursor{&since, &current} {
		require.Equal(t, want, followed(t, s, c, trail.Filter{}))
		require.Empty(t, followed(t, s, c, trail.Filter{}))
	}
}

func TestFollowGoesOnFromTheTextOfItsCursor(t *testing.T) {
	t.Parallel()
	s := open(t)
	c, err := s.CurrentCursor(t.Context())
	require.NoError(t, err)
	large, open := begin(t, s), begin(t, s)
	const many = `
		insert into spine.audit_trail (event_id, action) select n, 'event_queued' from generate_series(1, 1500) n`
	exec(t, large, many)
	note(t, open, "open")
	note(t, s.Pool(), "a")
	seen := map[string]int{}
	read := func() {
		rows, next, err := s.ReadSteps(t.Context(), c, trail.Filter{})
		require.NoError(t, err)
		for _, r := range rows {
			seen[*r.EventID]++
		}
		c, err = trail.ParseCursor(next.String())
		require.NoError(t, err)
		require.Equal(t, next, c)
	}
	read()
	require.True(t, c.Settled())
	require.NoError(t, large.Commit(t.Context()))
	note(t, s.Pool(), "b")
	read()
	require.False(t, c.Settled(), "it ended in the middle of the large transaction, which ended late")
	require.NoError(t, open.Commit(t.Context()))
	for read(); !c.Settled(); {
		read()
	}
	for read(); !c.Settled(); {
		read()
	}
	require.Len(t, seen, 1503)
	for id, times := range seen {
		require.Equal(t, 1, times, id)
	}
}

func TestACursorAheadOfTheDatabaseIsRejected(t *testing.T) {
	t.Parallel()
	s := open(t)
	c, err := s.CurrentCursor(t.Context())
	require.NoError(t, err)
	c.Seen.End += 1 << 40
	_, _, err = s.ReadSteps(t.Context(), c, trail.Filter{})
	require.ErrorIs(t, err, trail.ErrCursorAhead)
}

func TestFollowKeepsItsCursorThroughAnError(t *testing.T) {
	t.Parallel()
	s := open(t)
	c, err := s.CurrentCursor(t.Context())
	require.NoError(t, err)
	note(t, s.Pool(), "a")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	c, err = readAll(gone, s, c, trail.Filter{}, func([]trail.Step) error { panic("nothing was read") })
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, []string{"a"}, followed(t, s, &c, trail.Filter{}))
}

// ingest stores events named by sql, an expression over n.
func ingest(t *testing.T, s *store.Store, source, sql string, count int) {
	t.Helper()
	exec(t, s.Pool(), `select count(*) from (
		select spine.ingest_events(array_agg((`+sql+`)::text),
			array_agg('t' || n % 2), array_agg(now()), array_agg('{}'::text), array_agg($1::text))
		from generate_series(1, $2) n) i`, source, count)
}

// kill has all events of a destination die n seconds ago, n from their order.
func kill(t *testing.T, s *store.Store) {
	t.Helper()
	exec(
		t,
		s.Pool(),
		`update spine.processing_state
		set status = 'dead', next_attempt_at = null, attempt_count = 5, lease_token = lease_token + 1,
		updated_at = clock_timestamp() - event * interval '1 second'`,
	)
}

func TestReplayDead(t *testing.T) {
	t.Parallel()
	s := open(t)
	ingest(t, s, "default", "'e' || n", 3500)
	kill(t, s)

	var progress []int64
	told := func(n int64) { progress = append(progress, n) }
	n, err := s.ReplayDead(t.Context(), store.DeadFilter{}, 0, told)
	require.NoError(t, err)
	require.EqualValues(t, 3500, n)
	require.Equal(t, []int64{1000, 2000, 3000, 3500}, progress)
	var transactions, pending int
	require.NoError(
		t,
		s.Pool().
			QueryRow(t.Context(), "select count(distinct xid) from spine.audit_log where action = 'event_replayed'").
			Scan(&transactions),
	)
	require.Equal(t, 4, transactions)
	require.NoError(
		t,
		s.Pool().
			QueryRow(t.Context(), "select count(*) from spine.processing_state where status = 'pending' and attempt_count = 0").
			Scan(&pending),
	)
	require.Equal(t, 3500, pending)

	n, err = s.ReplayDead(t.Context(), store.DeadFilter{}, 0, told)
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestReplayDeadChooses(t *testing.T) {
	t.Parallel()
	s := open(t)
	ingest(t, s, "default", "'e' || n", 1200) // e1 died last
	kill(t, s)
	now := time.Now()
	for _, tc := range []struct {
		name  string
		f     store.DeadFilter
		limit int64
		want  int64
	}{
		{"another source", store.DeadFilter{Source: "other"}, 0, 0},
		{"another destination", store.DeadFilter{Destination: "other"}, 0, 0},
		{"another type", store.DeadFilter{EventType: "t2"}, 0, 0},
		{"before all", store.DeadFilter{Until: now.Add(-time.Hour)}, 0, 0},
		{"after all", store.DeadFilter{Since: now.Add(time.Hour)}, 0, 0},
		{"a limit above a chunk", store.DeadFilter{Source: "default", Destination: "default"}, 1001, 1001},
		{
			"one type of those that are left",
			store.DeadFilter{EventType: "t1", Since: now.Add(-30 * time.Minute)},
			0,
			100,
		},
		{"the rest", store.DeadFilter{}, 200, 99},
	} {
		counted, err := s.CountDead(t.Context(), tc.f, 1_000_000)
		require.NoError(t, err, tc.name)
		n, err := s.ReplayDead(t.Context(), tc.f, tc.limit, func(int64) {})
		require.NoError(t, err, tc.name)
		require.Equal(t, tc.want, n, tc.name)
		if tc.limit == 0 {
			require.Equal(t, n, counted, tc.name)
		}
	}
}

// An event that dies again as soon as it is put back does not come round.
func TestReplayDeadLeavesWhatDiesMeanwhile(t *testing.T) {
	t.Parallel()
	s := open(t)
	ingest(t, s, "default", "'e' || n", 3)
	kill(t, s)
	rounds := 0
	n, err := s.ReplayDead(t.Context(), store.DeadFilter{Until: time.Now().Add(time.Hour)}, 0, func(int64) {
		rounds++
		require.LessOrEqual(t, rounds, 1)
		exec(t, s.Pool(), "update spine.processing_state set status = 'dead', updated_at = clock_timestamp()")
	})
	require.NoError(t, err)
	require.EqualValues(t, 3, n)
}

func TestCountDeadIsBounded(t *testing.T) {
	t.Parallel()
	s := open(t)
	ingest(t, s, "default", "'e' || n", 10)
	kill(t, s)
	n, err := s.CountDead(t.Context(), store.DeadFilter{}, 7)
	require.NoError(t, err)
	require.EqualValues(t, 7, n)
}

func TestReplay(t *testing.T) {
	t.Parallel()
	s := open(t)
	exec(t, s.Pool(), "insert into spine.sources (name) values ('other')")
	ingest(t, s, "default", "'a'", 1)
	ingest(t, s, "default", "'b'", 1)
	ingest(t, s, "other", "'b'", 1)

	_, err := s.Replay(t.Context(), "never", "", "", "")
	var notStored *view.NotStoredError
	require.ErrorAs(t, err, &notStored)
	require.ErrorContains(t, err, `event "never" was never stored. Source default: last arrival 20`)
	_, err = s.Replay(t.Context(), "a", "other", "", "")
	require.ErrorAs(t, err, &notStored)
	_, err = s.Replay(t.Context(), "a", "", "nowhere", "")
	require.ErrorAs(t, err, &notStored)
	_, err = s.Replay(t.Context(), "b", "", "", "")
	var ambiguous *view.AmbiguousError
	require.ErrorAs(t, err, &ambiguous)
	require.Equal(t, []string{"default", "other"}, ambiguous.Sources)

	n, err := s.Replay(t.Context(), "b", "other", "", "")
	require.NoError(t, err)
	require.Zero(t, n, "it is pending")
	kill(t, s)
	n, err = s.Replay(t.Context(), "b", "other", "default", "")
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
}

func TestStuckAndPaused(t *testing.T) {
	t.Parallel()
	s := open(t)
	ingest(t, s, "default", "'e' || n", 3)
	stuck, err := s.Stuck(t.Context(), 10)
	require.NoError(t, err)
	require.Empty(t, stuck)
	exec(t, s.Pool(), "update spine.processing_state set next_attempt_at = '-infinity' where event_id = 'e2'")
	exec(
		t,
		s.Pool(),
		"update spine.processing_state set next_attempt_at = now() - interval '1 minute' where event_id = 'e1'",
	)
	stuck, err = s.Stuck(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, stuck, 2)
	require.Equal(t, "e2", stuck[0].EventID)
	require.Equal(t, "-infinity", stuck[0].DueAt.String())
	stuck, err = s.Stuck(t.Context(), 1)
	require.NoError(t, err)
	require.Len(t, stuck, 1)

	_, err = s.Pause(t.Context(), "nowhere", "", "")
	require.ErrorIs(t, err, view.ErrNoDestination)
	for _, want := range []int64{1, 0} {
		n, err := s.Pause(t.Context(), "default", "why", "me")
		require.NoError(t, err)
		require.Equal(t, want, n)
	}
	paused := func() []view.PauseRow {
		t.Helper()
		o, err := s.Overview(t.Context(), 15*time.Minute)
		require.NoError(t, err)
		return o.Paused
	}
	require.Len(t, paused(), 1)
	require.Equal(t, "default", paused()[0].Destination)
	require.NotNil(t, paused()[0].PausedBy)
	require.Equal(t, "why", *paused()[0].Reason)
	stuck, err = s.Stuck(t.Context(), 1)
	require.NoError(t, err)
	require.Contains(t, stuck[0].Reason, "paused")

	n, err := s.Resume(t.Context(), "", "")
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	require.Empty(t, paused())
}

// B: however much is stuck, a reader pays for the reasons of the rows that he fetches. A reason takes a millisecond.
func TestReasonsAreAskedForTheRowsThatAreRead(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.ingest(webhooks("e", 3000)...)
	d.run(
		"update spine.processing_state set next_attempt_at = now() - event * interval '1 second' - interval '1 minute'",
	)
	for _, analyzed := range []bool{false, true} {
		if analyzed {
			d.run("vacuum (analyze) spine.processing_state, spine.events")
		}
		reasons := 0.0
		var count func(node map[string]any)
		count = func(node map[string]any) {
			if node["Function Name"] == "why_waiting" {
				reasons += node["Actual Loops"].(float64)
			}
			children, _ := node["Plans"].([]any)
			for _, child := range children {
				count(child.(map[string]any))
			}
		}
		for _, query := range []string{
			"select * from spine.stuck limit 5", "select * from spine.stuck order by due_at limit 5",
			"select reason from spine.stuck where destination = 'default' order by due_at limit 5",
		} {
			var plans []map[string]any
			require.NoError(t, json.Unmarshal([]byte(d.value("explain (analyze, format json) "+query)), &plans))
			reasons = 0
			count(plans[0]["Plan"].(map[string]any))
			require.InDelta(t, 5, reasons, 0, query)
		}
		stuck, err := d.Stuck(t.Context(), 5)
		require.NoError(t, err)
		require.Len(t, stuck, 5)
		require.Equal(t, d.value("select event_id from spine.events order by id desc limit 1"), stuck[0].EventID)
	}
}

func TestAReplaySaysWhoAskedForIt(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("a", payloadA))
	for caller, want := range map[string]string{
		`192.0.2.1 as "me"`:      `192.0.2.1 as "me"`,
		"nul \x00, bytes \xff":   "nul \uFFFD, bytes \uFFFD",
		strings.Repeat("é", 400): strings.Repeat("é", 300),
		"":                       "",
	} {
		d.run("update spine.processing_state set status = 'dead'")
		n, err := d.Replay(t.Context(), "a", "", "", caller)
		require.NoError(t, err)
		require.EqualValues(t, 1, n)
		require.Equal(
			t,
			want,
			d.value(`
				select coalesce(details ->> 'caller', '')
				from spine.audit_log
				where action = 'event_replayed'
				order by id desc
				limit 1`),
		)
	}
	d.run("update spine.processing_state set status = 'dead'")
	d.run("select spine.replay('a')")
	require.Equal(
		t,
		"f",
		d.value(
			"select details ? 'caller' from spine.audit_log where action = 'event_replayed' order by id desc limit 1",
		),
		"no caller is left over from before",
	)
}

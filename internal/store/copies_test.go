package store_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/trail"
)

// noted calls NoteDatabase and returns what it found.
func (d *database) noted() string {
	d.t.Helper()
	found, err := d.NoteDatabase(d.t.Context())
	require.NoError(d.t, err)
	return found
}

// claimable is how many events a worker gets.
func (d *database) claimable() int {
	d.t.Helper()
	claimed, err := d.Claim(d.t.Context(), event.Claim{
		Destination: event.DefaultDestination, Limit: 10, Lease: time.Minute, Worker: "w",
	})
	require.NoError(d.t, err)
	return len(claimed.Jobs)
}

// E29: a copy in another database or on another server does not deliver what waits, until somebody resumes it. A
// database that stays where it is never pauses, and neither does one without events.
func TestACopyStartsPaused(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 4)
	require.Empty(t, d.noted(), "a new database")
	d.ingest(webhook("waits", `{}`), webhook("too", `{}`))
	require.Empty(t, d.noted(), "a start")
	require.Equal(
		t,
		"t",
		d.value("select system_identifier is not null and noted_at <= now() from spine.database_identity"),
	)
	for what, moves := range map[string]string{
		"another database":                   "update spine.database_identity set database_oid = 1",
		"another server":                     "update spine.database_identity set system_identifier = 1",
		"a table whose rows were not copied": "delete from spine.database_identity",
	} {
		d.run(moves)
		// Several processes start at once. One of them finds it.
		var starts sync.WaitGroup
		found := make(chan string, 4)
		for range cap(found) {
			starts.Go(func() {
				says, err := d.NoteDatabase(t.Context())
				if err != nil {
					says = err.Error()
				}
				found <- says
			})
		}
		starts.Wait()
		close(found)
		var all []string
		for says := range found {
			if says != "" {
				all = append(all, says)
			}
		}
		require.Len(t, all, 1, what)
		require.Contains(t, all[0], "run spine resume", what)
		require.Zero(t, d.claimable(), what)
		paused, err := d.Paused(t.Context())
		require.NoError(t, err)
		require.Len(t, paused, 1, what)
		require.Contains(t, *paused[0].PausedBy, "for Spine itself", what)
		require.Contains(t, *paused[0].Reason, "this database is a copy", what)
		require.Equal(t, "Spine itself|t", d.value(`
			select details->>'caller', details->>'reason' like '%spine resume%'
			from spine.audit_log
			where action = 'claims_paused'
			order by id desc
			limit 1`), what)
		_, err = d.Resume(t.Context(), "", "me")
		require.NoError(t, err)
		require.Empty(t, d.noted(), what)
		require.Equal(t, 2, d.claimable(), what)
		d.run("update spine.processing_state set status = 'pending', next_attempt_at = now()")
	}

	// A later connection that meets another server finds it too, before it is used.
	var moved []string
	other, err := store.Open(t.Context(), store.Config{
		URL: d.url, MaxConns: 1, AppName: "spine test", Moved: func(found string) { moved = append(moved, found) },
	})
	require.NoError(t, err)
	t.Cleanup(other.Close)
	found, err := other.NoteDatabase(t.Context())
	require.NoError(t, err)
	require.Empty(t, found)
	d.run("update spine.database_identity set system_identifier = 1")
	store.ForgetServer(other) // as if the next one had started at another time
	other.Pool().Reset()
	require.NoError(t, other.CheckWritable(t.Context()))
	require.Len(t, moved, 1)
	require.Zero(t, d.claimable())

	empty := newDatabase(t, 1)
	empty.run("update spine.database_identity set database_oid = 1, system_identifier = 1")
	require.Empty(t, empty.noted())
	require.Equal(t, "0", empty.value("select count(*) from spine.destinations where paused_at is not null"))
}

// E17: numbers of transactions are lower in a younger server, and reach those of the copied rows one after the other.
// Whoever follows the log is told new steps only, and each of them. Numbers over time count each step once.
func TestACopyInAYoungerServerTellsOnlyNewSteps(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	require.Empty(t, d.noted())
	d.ingest(webhook("old", `{}`))
	for range 20 {
		insert(t, d.Pool())
	}
	d.rollUp()
	before, err := d.CurrentCursor(t.Context())
	require.NoError(t, err)
	before.Seen.End += 100000 // it has seen steps of after the dump

	const next = "pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
	d.run("update spine.audit_trail set xid = (" + next + " + id)::text::xid8")
	d.run("update spine.rollup_state set next_xid = (" + next + " + 1000)::text::xid8")
	d.run("select setval('spine.audit_trail_id_seq', 1), setval('spine.events_id_seq', 1)")
	d.run("update spine.database_identity set system_identifier = 1")
	require.NotEmpty(t, d.noted())

	after, err := d.CurrentCursor(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"-"}, followed(t, d.Store, &before, trail.Filter{}), "that claims were paused")
	for round := range 20 {
		late := begin(t, d.Store)
		note(t, late, "late")
		insert(t, d.Pool())
		note(t, d.Pool(), fmt.Sprint(round))
		for _, c := range []*trail.Cursor{&before, &after} {
			require.Equal(t, []string{"x", fmt.Sprint(round)}, followed(t, d.Store, c, trail.Filter{}))
		}
		require.NoError(t, late.Commit(t.Context()))
		for _, c := range []*trail.Cursor{&before, &after} {
			require.Equal(t, []string{"late"}, followed(t, d.Store, c, trail.Filter{}))
			text, err := trail.ParseCursor(c.String())
			require.NoError(t, err)
			require.Equal(t, *c, text)
		}
		d.rollUp()
	}
	d.requireAccepted(1 + 20 + 20)
	require.Equal(t, "t", d.value("select count(distinct id) = count(*) from spine.audit_trail"))

	// It may move again. Positions only ever grow.
	d.run("update spine.database_identity set system_identifier = 1")
	require.NotEmpty(t, d.noted())
	note(t, d.Pool(), "again")
	for _, c := range []*trail.Cursor{&before, &after} {
		require.Equal(
			t,
			[]string{"again"},
			followed(t, d.Store, c, trail.Filter{Actions: []trail.Action{"event_queued"}}),
		)
	}
}

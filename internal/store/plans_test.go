package store_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
)

// statement is one whose cost must not grow with what is stored.
type statement struct {
	name string
	rows int // that one call handles
	call func()
}

// hotPath is what Spine calls all the time, in an order in which each finds
// something to do.
func hotPath(d *database) []statement {
	t := d.t
	var (
		batch int
		jobs  []event.Job
		low   time.Time
	)
	claim := func(lease time.Duration, from time.Time) {
		claimed, err := d.Claim(t.Context(), "default", 50, lease, "worker-1", policy, from)
		require.NoError(t, err)
		require.Len(t, claimed.Jobs, 50)
		jobs = claimed.Jobs
		low = jobs[0].DueAt.Add(-time.Minute)
	}
	return []statement{
		{"ingest of new events", 150, func() {
			batch++
			d.ingest(webhooks("hot-"+strconv.Itoa(batch), 150)...)
		}},
		{"ingest of duplicates and conflicts", 150, func() {
			events := webhooks("hot-"+strconv.Itoa(batch), 150)
			for i := range events[:75] {
				events[i].Hash[0]++
			}
			d.ingest(events...)
		}},
		{"claim", 50, func() { claim(lease, time.Time{}) }},
		{"renew", 50, func() {
			_, err := d.Renew(t.Context(), jobs, lease)
			require.NoError(t, err)
		}},
		{"settle", 50, func() {
			settlements := make([]event.Settlement, len(jobs))
			for i, job := range jobs {
				settlements[i] = []event.Settlement{completed(job), failed(job, time.Hour), dead(job)}[i%3]
			}
			d.settle(settlements...)
		}},
		{"settle again", 50, func() {
			settlements := make([]event.Settlement, len(jobs))
			for i, job := range jobs {
				settlements[i] = completed(job)
			}
			d.settle(settlements...)
		}},
		{"claim above the watermark", 50, func() { claim(lease, low) }},
		{"give back", 50, func() { require.NoError(t, d.GiveBack(t.Context(), jobs)) }},
		{"claim that no worker keeps", 50, func() { claim(-time.Hour, time.Time{}) }},
		{"claim of leases that ran out", 50, func() { require.Len(t, d.look(50).Expired, 50) }},
		{"sample", 50, func() {
			_, err := d.Sample(t.Context())
			require.NoError(t, err)
		}},
		{"replay", 100, func() { d.run("select spine.replay_dead(_limit => 100)") }},
	}
}

// lookUps is what people and pages ask for.
func lookUps(d *database) []statement {
	t := d.t
	return []statement{
		{"id_of", 1, func() { d.run("select spine.id_of('hot-1-1')") }},
		{"trace", 10, func() { require.NotEmpty(t, d.trail("hot-1-1")) }},
		{"event", 10, func() { d.run("select spine.event('hot-1-1')") }},
		{"processing_state by id_of", 1, func() { d.run("select * from spine.processing_state where event = spine.id_of('hot-1-1')") }},
		{"follow", 200, func() {
			cursor, err := d.CurrentCursor(t.Context())
			require.NoError(t, err)
			d.ingest(webhook("hot-1-1", payloadA))
			seen := 0
			_, err = d.Follow(t.Context(), cursor, store.FollowFilter{}, func(rows []event.AuditRow) error {
				seen += len(rows)
				return nil
			})
			require.NoError(t, err)
			require.Equal(t, 2, seen)
		}},
		{"replay", 1, func() { d.run("select spine.replay('hot-1-1')") }},
	}
}

// retention is what a walk of retention calls, and what gives it something to
// do.
func retention(d *database) []statement {
	t := d.t
	var batch int
	var after int64
	return []statement{
		{"deliveries", 100, func() {
			batch++
			d.ingest(webhooks("old-"+strconv.Itoa(batch), 100)...)
			settlements := make([]event.Settlement, 100)
			for i, job := range d.look(100).Jobs {
				settlements[i] = completed(job)
			}
			d.settle(settlements...)
		}},
		{"expiry of events", 100, func() {
			e, err := d.ExpireEvents(t.Context(), 0, after, 100)
			require.NoError(t, err)
			require.Positive(t, e.LookedAt)
			after = e.Last
		}},
		{"expiry of what is young", 100, func() {
			_, err := d.ExpireEvents(t.Context(), time.Hour, after, 100)
			require.NoError(t, err)
		}},
		{"old audit rows", 100, func() {
			d.run("insert into spine.audit_trail (timestamp, action) select '2020-01-01', 'event_queued' from generate_series(1, 100)")
		}},
		{"expiry of audit rows", 100, func() {
			n, err := d.ExpireAudit(t.Context(), time.Hour, 100)
			require.NoError(t, err)
			require.Equal(t, 100, n)
		}},
	}
}

// read is how many rows were read so far: in scans of a whole table, of those
// that always grow, and in all.
func (d *database) read() (sequential, all int) {
	d.t.Helper()
	d.run("select pg_stat_force_next_flush()")
	err := d.Pool().QueryRow(d.t.Context(), `
		select sum(t.seq_tup_read) filter (where t.relname <> 'conflicts'),
			sum(t.seq_tup_read + (select sum(i.idx_tup_read) from pg_stat_user_indexes i where i.relid = t.relid))
		from pg_stat_user_tables t
		where t.schemaname = 'spine' and t.relname ~ '^(events|processing_state|conflicts|audit_log.*)$'`).Scan(&sequential, &all)
	require.NoError(d.t, err)
	return sequential, all
}

// requireCheap calls the statements several times in one session: often enough
// for their plans to be cached.
func requireCheap(t *testing.T, d *database, statements []statement) {
	t.Helper()
	for round := range 8 {
		for _, s := range statements {
			sequentialBefore, allBefore := d.read()
			s.call()
			sequential, all := d.read()
			require.Equal(t, sequentialBefore, sequential, "%s, round %d: reads a whole table", s.name, round)
			require.LessOrEqual(t, all-allBefore, 50*s.rows+50, "%s, round %d: reads too many rows", s.name, round)
		}
	}
}

// fill stores 20,000 events, of which nine in ten are done.
func (d *database) fill() {
	d.t.Helper()
	d.ingest(webhooks("stored", 20_000)...)
	d.run(`update spine.processing_state set status = 'completed', lease_token = lease_token + 1, next_attempt_at = null, completed_at = now()
		where event_id like 'stored-%' and event % 10 <> 0`)
}

func TestPlansInAFreshDatabase(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	requireCheap(t, d, append(hotPath(d), lookUps(d)...))
	requireCheap(t, d, retention(d))
}

func TestPlansInALargeDatabase(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.fill()
	d.run("vacuum analyze")
	requireCheap(t, d, append(hotPath(d), lookUps(d)...))
	requireCheap(t, d, []statement{
		{"newest events", 50, func() {
			d.run("select event_id, event_type, created_at, payload from spine.events order by id desc limit 50")
		}},
		{"newest audit rows", 200, func() {
			d.run("select event_id, action, success, timestamp from spine.audit_log order by timestamp desc limit 20")
		}},
	})
	requireCheap(t, d, retention(d))
}

// Worker sessions are long: what they planned when there was next to nothing
// must still do when there is much.
func TestPlansInADatabaseThatGrew(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("alter table spine.processing_state set (autovacuum_enabled = off)")
	statements := append(hotPath(d), retention(d)...)
	d.run("vacuum analyze")
	for range 8 {
		for _, s := range statements {
			s.call()
		}
		d.run("vacuum analyze")
	}
	openDatabase(t, d.url, 1).fill()
	requireCheap(t, d, statements)
}

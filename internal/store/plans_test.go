package store_test

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
)

// statement is one whose cost must not grow with what is stored.
type statement struct {
	name string
	rows int    // that one call handles
	uses string // indexes of the tables that grow, in the order of their names; with a ? where it depends on how old things are
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
		{"ingest of new events", 150, "events_event_id_source_key", func() {
			batch++
			d.ingest(webhooks("hot-"+strconv.Itoa(batch), 150)...)
		}},
		{"ingest of duplicates and conflicts", 150, "events_event_id_source_key", func() {
			events := webhooks("hot-"+strconv.Itoa(batch), 150)
			for i := range events[:75] {
				events[i].Hash[0]++
			}
			d.ingest(events...)
		}},
		{"claim", 50, "events_pkey processing_state_due processing_state_pkey", func() { claim(lease, time.Time{}) }},
		{"renew", 50, "processing_state_pkey", func() {
			_, err := d.Renew(t.Context(), jobs, lease)
			require.NoError(t, err)
		}},
		{"settle", 50, "processing_state_pkey", func() {
			settlements := make([]event.Settlement, len(jobs))
			for i, job := range jobs {
				settlements[i] = []event.Settlement{completed(job), failed(job, time.Hour), dead(job)}[i%3]
			}
			d.settle(settlements...)
		}},
		{"settle again", 50, "audit_trail_event processing_state_pkey", func() {
			settlements := make([]event.Settlement, len(jobs))
			for i, job := range jobs {
				settlements[i] = completed(job)
			}
			d.settle(settlements...)
		}},
		{"claim above the watermark", 50, "events_pkey processing_state_due processing_state_pkey", func() { claim(lease, low) }},
		{"give back", 50, "processing_state_pkey", func() { require.NoError(t, d.GiveBack(t.Context(), jobs)) }},
		{"claim that no worker keeps", 50, "events_pkey processing_state_due processing_state_pkey", func() { claim(-time.Hour, time.Time{}) }},
		{"claim of leases that ran out", 50, "processing_state_due processing_state_pkey", func() { require.Len(t, d.look(50).Expired, 50) }},
		{"sample", 50, "events_pkey processing_state_due", func() {
			_, err := d.Sample(t.Context())
			require.NoError(t, err)
		}},
		{"note arrivals", 1, "events_pkey", func() { require.NoError(t, d.NoteArrivals(t.Context())) }},
		{"roll up", 200, "audit_trail_event? audit_trail_xid events_pkey", func() {
			// What the others of this round have audited.
			lag, err := d.RollUp(t.Context())
			require.NoError(t, err)
			require.Zero(t, lag)
		}},
		{"roll up where nothing happened", 0, "audit_trail_xid", func() { d.rollUp() }},
		{"overview", 1, "audit_trail_xid", func() { d.overview() }},
		{"replay of dead events", 100, "events_pkey processing_state_dead processing_state_pkey", func() { d.run("select spine.replay_dead(_limit => 100)") }},
	}
}

// lookUps is what people and pages ask for.
func lookUps(d *database) []statement {
	t := d.t
	return []statement{
		{"id_of", 1, "events_event_id_source_key", func() { d.run("select spine.id_of('hot-1-1')") }},
		{"trace", 10, "audit_trail_event events_event_id_source_key", func() { require.NotEmpty(t, d.trail("hot-1-1")) }},
		{"event", 10, "events_event_id_source_key events_pkey processing_state_pkey", func() { d.run("select spine.event('hot-1-1')") }},
		{"processing_state by id_of", 1, "events_event_id_source_key processing_state_pkey", func() { d.run("select * from spine.processing_state where event = spine.id_of('hot-1-1')") }},
		{"follow", 200, "audit_trail_xid events_event_id_source_key", func() {
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
		{"follow the past of an event", 50, "audit_trail_event audit_trail_xid events_event_id_source_key events_pkey", func() {
			seen := 0
			f := store.FollowFilter{EventIDs: []string{"hot-1-1"}, Types: []string{"user.created"}, Statuses: []string{"pending"}}
			_, err := d.Follow(t.Context(), store.CursorSince(time.Now().Add(-7*24*time.Hour)), f, func(rows []event.AuditRow) error {
				seen += len(rows)
				return nil
			})
			require.NoError(t, err)
			require.Positive(t, seen)
		}},
		{"what is in flight", 3000, "processing_state_dead processing_state_due processing_state_pkey", func() {
			_, err := d.InFlight(t.Context(), "hot-", 50)
			require.NoError(t, err)
		}},
		{"names", 1000, "events_pkey", func() {
			_, err := d.RecentTypes(t.Context())
			require.NoError(t, err)
		}},
		{"replay of an event", 1, "events_event_id_source_key processing_state_pkey", func() { d.run("select spine.replay('hot-1-1')") }},
		{"history of an event", 10, "audit_trail_event events_event_id_source_key events_pkey processing_state_pkey", func() {
			_, err := d.Event(t.Context(), "hot-1-1", "")
			require.NoError(t, err)
		}},
		{"sample of the depth", 3000, "audit_trail_xid processing_state_dead processing_state_due", func() { d.sampleDepth() }},
		{"stuck", 30, "processing_state_due", func() {
			_, err := d.Stuck(t.Context(), 5)
			require.NoError(t, err)
		}},
		{"depth and dead letters", 3000, "processing_state_dead processing_state_due", func() {
			_, err := d.Backlog(t.Context())
			require.NoError(t, err)
			_, err = d.Dead(t.Context(), 20)
			require.NoError(t, err)
		}},
	}
}

// firstPages is what the API's lists read first.
func firstPages(d *database) []statement {
	t := d.t
	events := func(status string) func() {
		return func() {
			_, _, err := d.Events(t.Context(), event.Page{Limit: 50}, event.Filter{Status: status})
			require.NoError(t, err)
		}
	}
	processing := func(status string) func() {
		return func() {
			_, _, err := d.Processing(t.Context(), event.Page{Limit: 50}, event.ProcessingFilter{Status: status})
			require.NoError(t, err)
		}
	}
	return []statement{
		{"events", 50, "events_pkey processing_state_pkey", events("")},
		{"completed events", 110, "events_pkey processing_state_pkey", events("completed")},
		{"dead events", 110, "processing_state_dead processing_state_pkey", events("dead")},
		{"processing", 50, "processing_state_pkey", processing("")},
		{"completed processing", 110, "processing_state_pkey", processing("completed")},
		{"pending processing", 110, "processing_state_pkey", processing("pending")},
		{"dead processing", 110, "processing_state_dead processing_state_pkey", processing("dead")},
		{"audit", 100, "audit_trail_timestamp", func() {
			_, _, err := d.Audit(t.Context(), event.Page{Limit: 100}, event.AuditFilter{})
			require.NoError(t, err)
		}},
		{"audit of an event", 100, "audit_trail_event events_event_id_source_key", func() {
			_, _, err := d.Audit(t.Context(), event.Page{Limit: 100}, event.AuditFilter{EventID: "hot-1-1"})
			require.NoError(t, err)
		}},
	}
}

// retention is what a walk of retention calls, and what gives it something to
// do.
func retention(d *database) []statement {
	t := d.t
	var batch int
	var after int64
	return []statement{
		{"deliveries", 100, "events_event_id_source_key events_pkey processing_state_due processing_state_pkey", func() {
			batch++
			d.ingest(webhooks("old-"+strconv.Itoa(batch), 100)...)
			settlements := make([]event.Settlement, 100)
			for i, job := range d.look(100).Jobs {
				settlements[i] = completed(job)
			}
			d.settle(settlements...)
		}},
		{"expiry of events", 100, "events_pkey processing_state_pkey", func() {
			e, err := d.ExpireEvents(t.Context(), 0, after, 100)
			require.NoError(t, err)
			require.Positive(t, e.LookedAt)
			after = e.Last
		}},
		{"expiry of what is young", 100, "events_pkey processing_state_pkey", func() {
			_, err := d.ExpireEvents(t.Context(), time.Hour, after, 100)
			require.NoError(t, err)
		}},
		{"old audit rows", 100, "", func() {
			d.run("insert into spine.audit_trail (timestamp, action) select '2020-01-01', 'event_queued' from generate_series(1, 100)")
		}},
		{"expiry of audit rows", 100, "audit_trail_timestamp", func() {
			n, err := d.ExpireAudit(t.Context(), time.Hour, 100)
			require.NoError(t, err)
			require.Equal(t, 100, n)
		}},
	}
}

// read is how many rows were read so far: in scans of a whole table, of those
// that always grow, and in all; and how often each index was used.
func (d *database) read() (sequential, all int, scans map[string]int) {
	d.t.Helper()
	d.run("select pg_stat_force_next_flush()")
	err := d.Pool().QueryRow(d.t.Context(), `
		select sum(t.seq_tup_read) filter (where t.relname <> 'conflicts'),
			sum(t.seq_tup_read + (select sum(i.idx_tup_read) from pg_stat_user_indexes i where i.relid = t.relid))
		from pg_stat_user_tables t
		where t.schemaname = 'spine' and t.relname ~ '^(events|processing_state|conflicts|audit_trail.*)$'`).Scan(&sequential, &all)
	require.NoError(d.t, err)
	scans = map[string]int{}
	// Partitions name theirs audit_trail_20240130_event_idx.
	for _, line := range d.rows(`
		select regexp_replace(indexrelname, '^audit_trail_(\d+|default)_(.*)_idx$', 'audit_trail_\2'), sum(idx_scan)
		from pg_stat_user_indexes where schemaname = 'spine' and relname ~ '^(events|processing_state|audit_trail.*)$' group by 1`) {
		name, count, _ := strings.Cut(line, "|")
		scans[name], err = strconv.Atoi(count)
		require.NoError(d.t, err)
	}
	return sequential, all, scans
}

// requireCheap calls the statements several times in one session: often enough
// for their plans to be cached.
func requireCheap(t *testing.T, d *database, statements []statement) {
	t.Helper()
	for round := range 8 {
		for _, s := range statements {
			sequentialBefore, allBefore, scansBefore := d.read()
			s.call()
			sequential, all, scans := d.read()
			var uses []string
			for _, index := range slices.Sorted(maps.Keys(scans)) {
				if scans[index] > scansBefore[index] {
					uses = append(uses, index)
				}
			}
			want := slices.DeleteFunc(strings.Fields(s.uses), func(index string) bool {
				name, optional := strings.CutSuffix(index, "?")
				return optional && !slices.Contains(uses, name)
			})
			require.Equal(t, strings.ReplaceAll(strings.Join(want, " "), "?", ""), strings.Join(uses, " "), "%s, round %d", s.name, round)
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
	d.rollUp()
}

func TestPlansInAFreshDatabase(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	requireCheap(t, d, slices.Concat(hotPath(d), lookUps(d), firstPages(d)))
	requireCheap(t, d, retention(d))
}

func TestPlansInALargeDatabase(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.fill()
	d.run("vacuum analyze")
	requireCheap(t, d, slices.Concat(hotPath(d), lookUps(d), firstPages(d)))
	requireCheap(t, d, []statement{
		{"newest events", 50, "events_pkey", func() {
			d.run("select event_id, event_type, created_at, payload from spine.events order by id desc limit 50")
		}},
		{"newest audit rows", 200, "audit_trail_timestamp", func() {
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

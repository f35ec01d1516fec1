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
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// statement is one whose cost must not grow with what is stored.
type statement struct {
	name string
	rows int // that one call handles
	// indexes of the tables that grow, in the order of their names; with a ? where it depends on how old things are
	uses string
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
		claimed, err := d.Claim(
			t.Context(),
			event.Claim{
				Destination: event.DefaultDestination,
				Limit:       50,
				Lease:       lease,
				Worker:      "worker-1",
				Delays:      policy,
				Low:         from,
			},
		)
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
		{
			"claim above the watermark",
			50,
			"events_pkey processing_state_due processing_state_pkey",
			func() { claim(lease, low) },
		},
		{"give back", 50, "processing_state_pkey", func() { require.NoError(t, d.GiveBack(t.Context(), jobs)) }},
		{
			"claim that no worker keeps",
			50,
			"events_pkey processing_state_due processing_state_pkey",
			func() { claim(-time.Hour, time.Time{}) },
		},
		{
			"claim of leases that ran out",
			50,
			"processing_state_due processing_state_pkey",
			func() { require.Len(t, d.look(50).Expired, 50) },
		},
		{"sample", 50, "events_pkey processing_state_due", func() {
			_, err := d.Sample(t.Context())
			require.NoError(t, err)
		}},
		{"note arrivals", 1, "events_pkey", func() { require.NoError(t, d.NoteArrivals(t.Context())) }},
		{"roll up", 200, "audit_trail_event? audit_trail_xid events_pkey", func() {
			// What the others of this round have audited.
			lag, _, err := d.RollUp(t.Context())
			require.NoError(t, err)
			require.Zero(t, lag)
		}},
		{"roll up where nothing happened", 0, "audit_trail_xid", func() { d.rollUp() }},
		{"overview", 1, "audit_trail_xid", func() { d.overview() }},
		{
			"replay of dead events",
			100,
			"events_pkey processing_state_dead processing_state_pkey",
			func() { d.run("select spine.replay_dead(_limit => 100)") },
		},
	}
}

// lookUps is what people and pages ask for.
func lookUps(d *database) []statement {
	t := d.t
	return []statement{
		{"id_of", 1, "events_event_id_source_key", func() { d.run("select spine.id_of('hot-1-1')") }},
		{
			"trace",
			30,
			"audit_trail_event events_event_id_source_key events_pkey processing_state_pkey",
			func() { require.NotEmpty(t, d.trail("hot-1-1")) },
		},
		{
			"event",
			30,
			"audit_trail_event events_event_id_source_key events_pkey processing_state_pkey",
			func() { d.run("select spine.event('hot-1-1')") },
		},
		{
			"processing_state by id_of",
			1,
			"events_event_id_source_key processing_state_pkey",
			func() { d.run("select * from spine.processing_state where event = spine.id_of('hot-1-1')") },
		},
		{"follow", 200, "audit_trail_xid events_event_id_source_key", func() {
			cursor, err := d.CurrentCursor(t.Context())
			require.NoError(t, err)
			d.ingest(webhook("hot-1-1", payloadA))
			seen := 0
			_, err = readAll(t.Context(), d, cursor, trail.Filter{}, func(rows []trail.Step) error {
				seen += len(rows)
				return nil
			})
			require.NoError(t, err)
			require.Equal(t, 2, seen)
		}},
		{
			"follow the past of an event",
			50,
			"audit_trail_event audit_trail_xid events_event_id_source_key events_pkey",
			func() {
				seen := 0
				f := trail.Filter{
					EventIDs: []string{"hot-1-1"},
					Types:    []string{"user.created"},
					Statuses: []string{"pending"},
				}
				_, err := readAll(
					t.Context(),
					d,
					trail.CursorSince(time.Now().Add(-7*24*time.Hour)),
					f,
					func(rows []trail.Step) error {
						seen += len(rows)
						return nil
					},
				)
				require.NoError(t, err)
				require.Positive(t, seen)
			},
		},
		{"what is in flight", 3000, "processing_state_dead processing_state_due processing_state_pkey", func() {
			_, err := d.InFlight(t.Context(), "hot-", "default", 50)
			require.NoError(t, err)
		}},
		{"names", 1000, "events_pkey", func() {
			_, err := d.RecentTypes(t.Context())
			require.NoError(t, err)
		}},
		{
			"replay of an event",
			1,
			"events_event_id_source_key processing_state_pkey",
			func() { d.run("select spine.replay('hot-1-1')") },
		},
		{
			"near ids (F1)",
			200,
			"events_event_id_source_key",
			func() {
				near := d.rows("select * from spine.near_ids('HOT-l-i', null, 1)")
				require.Equal(t, []string{"hot-1-1|default|looks_alike"}, near)
			},
		},
		{
			"history of an event",
			30,
			"audit_trail_event events_event_id_source_key events_pkey processing_state_pkey",
			func() {
				_, err := d.Event(t.Context(), "hot-1-1", "")
				require.NoError(t, err)
			},
		},
		{
			"sample of the depth",
			3000,
			"audit_trail_xid processing_state_dead processing_state_due",
			func() { d.sampleDepth() },
		},
		{"stuck", 60, "audit_trail_timestamp? processing_state_due processing_state_pkey?", func() {
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
			_, _, err := d.Events(t.Context(), view.Page{Limit: 50}, view.EventFilter{Status: status})
			require.NoError(t, err)
		}
	}
	processing := func(status string) func() {
		return func() {
			_, _, err := d.Processing(t.Context(), view.Page{Limit: 50}, view.ProcessingFilter{Status: status})
			require.NoError(t, err)
		}
	}
	return []statement{
		{"events", 50, "events_pkey processing_state_pkey", events("")},
		{"completed events", 450, "events_pkey processing_state_pkey", events("completed")},
		{"dead events", 110, "processing_state_dead", events("dead")},
		{"processing", 50, "processing_state_pkey", processing("")},
		{"pending processing", 220, "processing_state_due", processing("pending")},
		{"dead processing", 110, "processing_state_dead", processing("dead")},
		{"audit", 100, "audit_trail_timestamp", func() {
			_, _, err := d.Audit(t.Context(), view.Page{Limit: 100}, view.StepFilter{})
			require.NoError(t, err)
		}},
		{"audit of an event", 100, "audit_trail_event events_event_id_source_key events_pkey", func() {
			_, _, err := d.Audit(t.Context(), view.Page{Limit: 100}, view.StepFilter{EventID: "hot-1-1"})
			require.NoError(t, err)
		}},
	}
}

// filteredPages is what the API's lists read first with filters that have no
// index, and whose values are in no row or far down.
func filteredPages(d *database) []statement {
	t := d.t
	// What is looked at twice, for the end of the page and for its rows, after
	// the first rows of both.
	const events, audit, both = 850, 1250, 450
	list := func(f view.EventFilter) func() {
		return func() {
			rows, next, err := d.Events(t.Context(), view.Page{Limit: 50}, f)
			require.NoError(t, err)
			require.Empty(t, rows)
			require.NotNil(t, next.LookedBackTo)
		}
	}
	processing := func(f view.ProcessingFilter) func() {
		return func() {
			rows, next, err := d.Processing(t.Context(), view.Page{Limit: 50}, f)
			require.NoError(t, err)
			require.Empty(t, rows)
			require.NotNil(t, next.LookedBackTo)
		}
	}
	auditOf := func(f view.StepFilter) func() {
		return func() {
			rows, next, err := d.Audit(t.Context(), view.Page{Limit: 50}, f)
			require.NoError(t, err)
			require.Empty(t, rows)
			require.NotNil(t, next.LookedBackTo)
		}
	}
	span := view.Span{Since: longAgo.Add(20_000 * time.Second), Until: longAgo.Add(40_000 * time.Second)}
	return []statement{
		{"events by type", events, "events_pkey", list(view.EventFilter{Type: "rare"})},
		{"events by source", events, "events_pkey", list(view.EventFilter{Source: "rare"})},
		{"events by type in a time", events, "events_pkey", list(view.EventFilter{Type: "none", Span: span})},
		{
			"completed events by source",
			both,
			"events_pkey",
			list(view.EventFilter{Source: "rare", Status: "completed"}),
		},
		{
			"processing by source",
			events,
			"events_pkey processing_state_pkey",
			processing(view.ProcessingFilter{Source: "rare"}),
		},
		{
			"processing by destination",
			events,
			"events_pkey processing_state_pkey",
			processing(view.ProcessingFilter{Destination: "none"}),
		},
		{
			"processing by type",
			2 * both,
			"events_pkey processing_state_pkey",
			processing(view.ProcessingFilter{Type: "rare"}),
		},
		{
			"processing by source in a time",
			both,
			"events_pkey processing_state_pkey",
			processing(view.ProcessingFilter{Source: "none", Span: span}),
		},
		{"audit by action", audit, "audit_trail_timestamp", auditOf(view.StepFilter{Action: "claims_paused"})},
		{"audit by success", audit, "audit_trail_timestamp", auditOf(view.StepFilter{Success: "failure"})},
		{"audit by source", audit, "audit_trail_timestamp", auditOf(view.StepFilter{Source: "rare"})},
		{"audit by type", 2 * both, "audit_trail_timestamp events_pkey", auditOf(view.StepFilter{Type: "rare"})},
		{"attempts", audit, "audit_trail_timestamp", func() {
			_, _, err := d.Attempts(t.Context(), view.Page{Limit: 50}, view.AttemptFilter{Outcome: "failure"})
			require.NoError(t, err)
		}},
		{"events of a time", 110, "events_pkey processing_state_pkey", func() {
			rows, _, err := d.Events(t.Context(), view.Page{Limit: 50}, view.EventFilter{Span: span})
			require.NoError(t, err)
			require.Len(t, rows, 50)
		}},
		{"audit of a time", 110, "audit_trail_timestamp", func() {
			rows, _, err := d.Audit(t.Context(), view.Page{Limit: 50}, view.StepFilter{Span: span})
			require.NoError(t, err)
			require.Len(t, rows, 50)
		}},
		{"search", 20, "events_event_id_source_key processing_state_pkey", func() {
			found, err := d.Search(t.Context(), "stored-")
			require.NoError(t, err)
			require.Len(t, found, 20)
		}},
	}
}

// longAgo is when the first event of fillLong was stored.
var longAgo = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// fillLong stores 70,000 events, one a second since longAgo and all delivered.
// Ten of them, from the third on, are rare in every way. The newest event is of
// the year 2024 as well: all audit rows are in the default partition.
func (d *database) fillLong() {
	d.t.Helper()
	for _, sql := range []string{
		`insert into spine.sources (name) values ('rare')`,
		`delete from spine.audit_trail`, // which says so, today
		`insert into spine.destinations (name) values ('rare')`,
		`insert into spine.events (event_id, source, event_type, occurred_at, payload, payload_hash, created_at)
			select 'stored-' || n, case when n % 7000 = 3 then 'rare' else 'default' end,
				case when n % 7000 = 3 then 'rare' else 'common' end,
				$1::timestamptz, '{"a":1}', '\x00', $1 + (n - 1) * interval '1 second'
			from generate_series(1, 70000) n where n % 7000 <> 3 or n < 30000`,
		`insert into spine.processing_state (
				event, event_id, source, destination, status, lease_token, next_attempt_at, completed_at, created_at
			)
			select id, event_id, source, source, 'completed', 0, null, created_at, created_at from (
				select id, event_id, case source when 'rare' then 'rare' else 'default' end as source, created_at,
					$1::timestamptz
				from spine.events) e`,
		`insert into spine.audit_trail (timestamp, event, event_id, source, action, details)
			select e.created_at, e.id, e.event_id, nullif(e.source, 'default'), s.action::spine.audit_action,
				s.details::json
			from spine.events e, (values
				('event_received', null),
				('processing_succeeded', '{"attempt":1,"status":200,"duration_ms":1.5}')) s(action, details)
			where e.created_at >= $1 order by e.id, s.action`,
		`insert into spine.audit_trail (timestamp, event, event_id, source, action, details)
			select e.created_at, e.id, e.event_id, nullif(e.source, 'default'), s.action::spine.audit_action,
				'{"attempt":1}'
			from spine.events e, (values ('claims_paused'), ('processing_attempt_failed')) s(action)
			where e.created_at >= $1 and e.source = 'rare' order by e.id, s.action`,
	} {
		if strings.Contains(sql, "$1") {
			d.run(sql, longAgo)
		} else {
			d.run(sql)
		}
	}
}

// retention is what a walk of retention calls, and what gives it something to
// do.
func retention(d *database) []statement {
	t := d.t
	var batch int
	var after int64
	return []statement{
		{
			"deliveries",
			100,
			"events_event_id_source_key events_pkey processing_state_due processing_state_pkey",
			func() {
				batch++
				d.ingest(webhooks("old-"+strconv.Itoa(batch), 100)...)
				settlements := make([]event.Settlement, 100)
				for i, job := range d.look(100).Jobs {
					settlements[i] = completed(job)
				}
				d.settle(settlements...)
			},
		},
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
			d.run(`
				insert into spine.audit_trail (timestamp, action)
				select '2020-01-01', 'event_queued'
				from generate_series(1, 100)`)
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
		where t.schemaname = 'spine'
			and t.relname ~ '^(events|processing_state|conflicts|audit_trail.*)$'`).Scan(&sequential, &all)
	require.NoError(d.t, err)
	scans = map[string]int{}
	// Partitions name theirs audit_trail_20240130_event_idx.
	for _, line := range d.rows(`
		select regexp_replace(indexrelname, '^audit_trail_(\d+|default)_(.*)_idx$', 'audit_trail_\2'), sum(idx_scan)
		from pg_stat_user_indexes
		where schemaname = 'spine' and relname ~ '^(events|processing_state|audit_trail.*)$'
		group by 1`) {
		name, count, _ := strings.Cut(line, "|")
		scans[name], err = strconv.Atoi(count)
		require.NoError(d.t, err)
	}
	return sequential, all, scans
}

// requireCheap calls the statements several times in one session: often enough
// for their plans to be cached. Its tests do not run beside others: while any
// session of the server keeps an old snapshot, dead entries of indexes stay, are
// read again, and are counted.
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
			fields := strings.Fields(s.uses)
			if byKey := strings.Contains(s.uses, "audit_trail_xid") ||
				strings.Contains(s.uses, "audit_trail_event"); byKey &&
				!strings.Contains(s.uses, "audit_trail_timestamp") {
				// The planner may ask it for the first time of a partition. What it reads for that counts, too.
				fields = append(fields, "audit_trail_timestamp?")
				slices.Sort(fields)
			}
			want := slices.DeleteFunc(fields, func(index string) bool {
				name, optional := strings.CutSuffix(index, "?")
				return optional && !slices.Contains(uses, name)
			})
			require.Equal(
				t,
				strings.ReplaceAll(strings.Join(want, " "), "?", ""),
				strings.Join(uses, " "),
				"%s, round %d",
				s.name,
				round,
			)
			require.Equal(t, sequentialBefore, sequential, "%s, round %d: reads a whole table", s.name, round)
			require.LessOrEqual(t, all-allBefore, 50*s.rows+50, "%s, round %d: reads too many rows", s.name, round)
		}
	}
}

// fill stores 20,000 events, of which nine in ten are done.
func (d *database) fill() {
	d.t.Helper()
	d.ingest(webhooks("stored", 20_000)...)
	d.run(
		`update spine.processing_state
		set status = 'completed', lease_token = lease_token + 1, next_attempt_at = null, completed_at = now()
		where event_id like 'stored-%' and event % 10 <> 0`,
	)
	d.rollUp()
	// An idle session counts for seconds after: it would be counted in the middle of a comparison.
	d.run("select pg_stat_force_next_flush()")
}

func TestPlansInAFreshDatabase(t *testing.T) {
	d := newDatabase(t, 1)
	requireCheap(t, d, slices.Concat(hotPath(d), lookUps(d), firstPages(d)))
	requireCheap(t, d, retention(d))
}

func TestPlansInALargeDatabase(t *testing.T) {
	wholeRun(t)
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

// A page of a filtered list looks at a bounded number of rows, whatever the
// planner knows of them.
func TestPlansOfFilteredPages(t *testing.T) {
	wholeRun(t)
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("alter table spine.events set (autovacuum_enabled = off)")
	d.fillLong()
	requireCheap(t, d, filteredPages(d))
	d.run("vacuum analyze")
	requireCheap(t, d, filteredPages(d))
}

// Worker sessions are long: what they planned when there was next to nothing
// must still do when there is much.
func TestPlansInADatabaseThatGrew(t *testing.T) {
	wholeRun(t)
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

// Without retention the audit log has one partition more each day. What reads
// its newest rows, or the trail of a young event, leaves the old ones alone.
func TestPlansOverManyPartitions(t *testing.T) {
	wholeRun(t)
	t.Parallel()
	d := newDatabase(t, 1)
	d.run(`do $$ declare _day date; begin
		set local timezone = 'UTC';
		for _day in select current_date - n from generate_series(1, 300) n loop
			execute format(
				'create table spine.audit_trail_%s partition of spine.audit_trail for values from (%L) to (%L)',
				to_char(_day, 'YYYYMMDD'), _day, _day + 1
			);
		end loop;
		insert into spine.audit_trail (timestamp, action)
		select current_date - n + interval '12 hours', 'event_queued'
		from generate_series(1, 300) n, generate_series(1, 10);
	end $$`)
	d.ingest(webhooks("young", 1000)...)
	d.run("vacuum analyze")
	for round := range 8 {
		for name, call := range map[string]func(){
			"audit": func() {
				rows, _, err := d.Audit(t.Context(), view.Page{Limit: 100}, view.StepFilter{})
				require.NoError(t, err)
				require.Len(t, rows, 100)
			},
			"audit by action": func() {
				rows, _, err := d.Audit(t.Context(), view.Page{Limit: 10}, view.StepFilter{Action: "event_inserted"})
				require.NoError(t, err)
				require.Len(t, rows, 10)
			},
			"audit of a time": func() {
				rows, _, err := d.Audit(t.Context(), view.Page{Limit: 5}, view.StepFilter{
					Span: view.Span{Until: time.Now().AddDate(0, 0, -200)},
				})
				require.NoError(t, err)
				require.Len(t, rows, 5)
			},
			"audit of an event": func() {
				rows, _, err := d.Audit(t.Context(), view.Page{Limit: 100}, view.StepFilter{EventID: "young-1"})
				require.NoError(t, err)
				require.Len(t, rows, 2)
			},
			"history of an event": func() {
				history, err := d.Event(t.Context(), "young-1", "")
				require.NoError(t, err)
				require.Len(t, history.Timeline, 2)
			},
			"trace": func() { require.Len(t, d.trail("young-1"), 2) },
		} {
			_, _, before := d.read()
			call()
			_, _, after := d.read()
			scans := 0
			for index, n := range after {
				scans += n - before[index]
			}
			require.LessOrEqual(t, scans, 60, "%s, round %d: reads old partitions", name, round)
		}
	}
}

package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/view"
)

// rollUp rolls up all that is committed.
func (d *database) rollUp() {
	d.t.Helper()
	lag, elsewhere, err := d.RollUp(d.t.Context())
	require.NoError(d.t, err)
	require.False(d.t, elsewhere)
	require.Zero(d.t, lag)
}

// happened are the sums of all steps of one length, of all sources.
func (d *database) happened(step int) string {
	d.t.Helper()
	return d.value(
		`select format('received %s accepted %s deduplicated %s conflicts %s rejected %s '
			|| 'attempts %s failed %s delivered %s died %s',
			coalesce(sum(received), 0), coalesce(sum(accepted), 0), coalesce(sum(deduplicated), 0),
			coalesce(sum(conflicts), 0), coalesce(sum(rejected), 0), coalesce(sum(attempts), 0),
			coalesce(sum(attempts_failed), 0), coalesce(sum(delivered), 0), coalesce(sum(died), 0))
		from spine.rollups where step = $1`,
		step,
	)
}

// requireAccepted requires that so many new events were counted, in steps of each length.
func (d *database) requireAccepted(want int) {
	d.t.Helper()
	for _, step := range []int{10, 60, 300, 3600} {
		require.Equal(
			d.t,
			fmt.Sprint(want),
			d.value("select coalesce(sum(accepted), 0) from spine.rollups where step = $1", step),
			"steps of %d s",
			step,
		)
	}
}

// insert writes an audit row of a new event.
func insert(t *testing.T, on session) {
	t.Helper()
	run(t, on, "insert into spine.audit_trail (event_id, action) values ('x', 'event_inserted')")
}

func TestRollupsCountWhatHappened(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.run("insert into spine.sources (name) values ('github')")
	d.ingest(webhooks("x", 3)...)
	other := webhook("y", payloadA)
	other.Source = "github"
	d.ingest(other, webhook("x-1", `{"a":1}`), webhook("x-2", payloadB))
	jobs := d.claim(4)
	d.settle(completed(jobs[0]), failed(jobs[1], 0), dead(jobs[2]))
	require.NoError(t, d.Reject(t.Context(), []event.RejectionSummary{
		{Source: event.DefaultSource, Cause: "bad_json", Status: 400, Count: 41, Since: time.Now()},
		{Cause: "no_such_source", Status: 404, Count: 7, Since: time.Now()},
	}, false))
	d.due()
	require.Len(t, d.look(10).Expired, 1)
	d.run(`
		insert into spine.audit_trail (action, details)
		values ('request_rejected', '{"count": "many"}'), ('claims_paused', null)`)
	d.rollUp()
	for _, step := range []int{10, 60, 300, 3600} {
		require.Equal(
			t,
			"received 6 accepted 4 deduplicated 1 conflicts 1 rejected 49 attempts 5 failed 3 delivered 1 died 1",
			d.happened(step),
		)
	}
	require.Equal(
		t,
		[]string{"|8", "default|41", "github|0"},
		d.rows("select source, sum(rejected) from spine.rollups where step = 3600 group by source order by source"),
	)
	require.Equal(t, "1", d.value("select received from spine.rollups where step = 3600 and source = 'github'"))
	require.Equal(
		t,
		"1",
		d.value(`
			select sum(n)
			from spine.rates, unnest(array[delivered]) n
			where source = 'default' and latency_p50 < '1 minute'`),
	)
}

func TestRollupsCountEachRowOnceWhereTransactionsCommitOutOfOrder(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 4)
	early, never := begin(t, d.Store), begin(t, d.Store)
	insert(t, early)
	insert(t, never)
	insert(t, d.Pool())
	d.rollUp()
	d.rollUp()
	d.requireAccepted(1)
	insert(t, d.Pool())
	d.rollUp()
	d.requireAccepted(2)
	require.NoError(t, early.Commit(t.Context()))
	d.rollUp()
	d.rollUp()
	d.requireAccepted(3)
	require.NoError(t, never.Rollback(t.Context()))
	insert(t, d.Pool())
	d.rollUp()
	d.requireAccepted(4)
}

// Where counting begins there may be transactions in progress before and after
// its end of the log.
func TestRollupsCountEachRowOnceWhereTheyBeginAmidTransactions(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 4)
	early, late := begin(t, d.Store), begin(t, d.Store)
	insert(t, early)
	insert(t, d.Pool())
	insert(t, late)
	d.run("select pg_current_xact_id()") // so that the snapshot lists late
	d.run("update spine.rollup_state set next_xid = '1000000000000'")
	d.rollUp()
	require.Equal(t, "t", d.value("select cardinality(in_progress) >= 2 from spine.rollup_state"))
	d.requireAccepted(0)
	require.NoError(t, late.Commit(t.Context()))
	require.NoError(t, early.Commit(t.Context()))
	// Only what is after the beginning is counted, and the clock of a row is its own.
	d.run("update spine.rollup_state set covered_from = covered_from - interval '1 hour'")
	d.rollUp()
	d.requireAccepted(2)
	d.rollUp()
	d.requireAccepted(2)
}

// The log takes what people write into it by hand; no row of theirs is to stop
// the numbers.
func TestRollupsOutliveOddRows(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 7)...)
	for id, at := range map[string]string{
		"x-1": "-infinity",
		"x-2": "infinity",
		"x-3": "4713-11-24 BC",
		"x-4": "294276-12-31",
	} {
		d.run("update spine.events set created_at = $2::text::timestamptz where event_id = $1", id, at)
	}
	for _, job := range d.claim(7) {
		if job.ID != "x-5" {
			d.settle(completed(job))
		}
	}
	d.run("update spine.events set created_at = created_at - interval '1 hour' where event_id = 'x-5'")
	for _, details := range []string{
		`{"attempt":1,"lease":3,"answer":"\u0000"}`,
		`{"attempt":1,"lease":3,"destination":"\ud800"}`,
		`{"lease":"\u0000"}`,
	} {
		d.run(`
			insert into spine.audit_trail (timestamp, event, event_id, action, details)
			select clock_timestamp(), id, event_id, 'processing_succeeded', $1::text::json
			from spine.events
			where event_id = 'x-5'`, details)
	}
	d.run(`
		insert into spine.audit_trail (timestamp, event, event_id, action)
		select at, id, event_id, 'processing_succeeded'
		from spine.events, unnest('{infinity,-infinity,294276-12-31}'::timestamptz[]) at
		where event_id in ('x-3', 'x-6')`)
	d.run(`insert into spine.audit_trail (action, details) values
		('request_rejected', '{"count":"\u0000"}'), ('request_rejected', '{"count":3,"path":"\ud800"}'),
		('request_rejected', '{"count":3,"path":"\u003c"}'), ('request_rejected', '7')`)
	d.rollUp()
	require.Equal(
		t,
		"received 7 accepted 7 deduplicated 0 conflicts 0 rejected 6 attempts 7 failed 0 delivered 13 died 0",
		d.happened(3600),
	)
}

func TestRollupsOfATransactionThatRollsUpItself(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	tx := begin(t, d.Store)
	insert(t, tx)
	run(t, tx, "select spine.roll_up()")
	insert(t, tx)
	run(t, tx, "select spine.roll_up()")
	require.NoError(t, tx.Commit(t.Context()))
	d.rollUp()
	d.requireAccepted(2)
}

func TestRollUpThatIsCutOffLosesNothing(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	insert(t, d.Pool())
	tx := begin(t, d.Store)
	run(t, tx, "select spine.roll_up()")
	require.Equal(t, "1", value(t, tx, "select sum(accepted) from spine.rollups where step = 10"))
	insert(t, d.Pool())
	lag, elsewhere, err := d.RollUp(t.Context())
	require.NoError(t, err)
	require.True(t, elsewhere, "another is at it")
	require.Positive(t, lag)
	d.requireAccepted(0)
	require.NoError(t, tx.Rollback(t.Context()))
	d.rollUp()
	d.requireAccepted(2)
}

func TestManyRollUpAtOnce(t *testing.T) {
	t.Parallel()
	const writers, rows = 4, 100
	d := newDatabase(t, 2*writers)
	_, errs := together(2*writers, func(i int) (any, error) {
		for range rows {
			sql := "select spine.roll_up(7)"
			if i < writers {
				sql = `
					with a as (insert into spine.audit_trail (event_id, action) values ('x', 'event_inserted'))
					select pg_notify('x', '')`
			}
			if _, err := d.Pool().Exec(t.Context(), sql); err != nil {
				return nil, err
			}
		}
		return nil, nil
	})
	requireNoErrors(t, errs)
	d.rollUp()
	d.requireAccepted(writers * rows)
}

func TestRollUpTakesTurns(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	turn := func() bool { return d.value("select spine.roll_up(100) > '0'") == "t" }
	for range 5 {
		d.run(
			"insert into spine.audit_trail (event_id, action) select 'x', 'event_inserted' from generate_series(1, 40)",
		)
	}
	require.True(t, turn())
	d.requireAccepted(80)
	require.Equal(
		t,
		d.value("select min(timestamp) from spine.audit_trail where id > 80"),
		d.value("select spine.rolled_up_to()"),
		"when the first row is from that is left",
	)
	require.True(t, turn())
	require.False(t, turn())
	d.requireAccepted(200)

	d.run("insert into spine.audit_trail (event_id, action) select 'x', 'event_inserted' from generate_series(1, 300)")
	insert(t, d.Pool())
	require.True(t, turn(), "a transaction is counted as a whole")
	d.requireAccepted(500)
	require.False(t, turn())
	d.requireAccepted(501)
}

func TestRollUpWritesNothingWhereNothingHappened(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	insert(t, d.Pool())
	d.rollUp()
	require.NoError(t, d.SampleDepth(t.Context()))
	idle := func(statement string) {
		tx := begin(t, d.Store)
		run(t, tx, statement)
		require.Equal(t, "t", value(t, tx, "select pg_current_xact_id_if_assigned() is null"), statement)
		require.NoError(t, tx.Rollback(t.Context()))
	}
	idle("select spine.roll_up()")
	other := begin(t, d.Store)
	insert(t, other)
	idle("select spine.roll_up()")
	require.NoError(t, other.Rollback(t.Context()))
	idle("select spine.roll_up()")
	// The sample is of this step of ten seconds: where that has just ended there is another.
	require.Eventually(t, func() bool {
		d.sampleDepth()
		tx := begin(t, d.Store)
		defer func() { require.NoError(t, tx.Rollback(t.Context())) }()
		run(t, tx, "select spine.sample_depth(0)")
		return value(t, tx, "select pg_current_xact_id_if_assigned() is null") == "t"
	}, patience, time.Millisecond)
	require.Equal(
		t,
		"t",
		d.value(`
			select spine.rolled_up_to() > covered_to and spine.rolled_up_to() > clock_timestamp() - interval '1 minute'
			from spine.rollup_state`),
		"all there is is counted up to now",
	)
}

// Transactions of other databases end as well, so that it may take a few turns.
func TestNothingIsLookedForWhereNoTransactionEnded(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	insert(t, d.Pool())
	d.rollUp()
	scans := func() string {
		d.run("select pg_stat_force_next_flush()")
		return d.value(
			"select sum(idx_scan) from pg_stat_user_indexes where relname ~ '^audit_trail' and indexrelname ~ 'xid'",
		)
	}
	for _, look := range []func(){d.rollUp, func() { require.NoError(t, d.SampleDepth(t.Context())) }} {
		require.Eventually(t, func() bool {
			look() // and writes, perhaps
			look()
			before := scans()
			look()
			return scans() == before
		}, patience, time.Millisecond)
	}
	d.ingest(webhook("x", payloadA))
	d.rollUp()
	d.requireAccepted(2)
	require.Eventually(t, func() bool {
		require.NoError(t, d.SampleDepth(t.Context()))
		return len(d.overview().Depth.Rows) == 1
	}, patience, time.Millisecond, "once the last sample is old enough")
}

func TestLatencyIsFromStoredToDelivered(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("insert into spine.destinations (name) values ('other')")
	d.ingest(webhook("quick", payloadA))
	d.settle(completed(d.claim(1)[0]))

	d.ingest(
		webhook("retried", payloadA),
		webhook("given back", payloadA),
		webhook("expired", payloadA),
		webhook(
			"replayed",
			payloadA,
		),
		webhook("replayed twice", payloadA),
		webhook("by hand", payloadA),
		webhook("queued by hand", payloadA),
	)
	d.run("update spine.events set created_at = created_at - interval '1 hour' where event_id <> 'quick'")
	d.run("insert into spine.processing_state (event_id, destination) values ('queued by hand', 'other')")
	deliver := func(settle func(event.Job) event.Settlement) {
		for _, job := range d.claim(7) {
			if job.ID != "queued by hand" {
				d.settle(settle(job))
			} else {
				require.NoError(t, d.GiveBack(t.Context(), []event.Job{job}))
			}
		}
	}
	deliver(func(job event.Job) event.Settlement {
		switch job.ID {
		case "given back":
			require.NoError(t, d.GiveBack(t.Context(), []event.Job{job}))
		case "retried":
			return failed(job, 0)
		case "expired":
			d.run("update spine.processing_state set next_attempt_at = '-infinity' where event_id = 'expired'")
			d.look(1)
			d.due()
		}
		return dead(job) // changes nothing where the lease is lost
	})
	d.run("select spine.replay('replayed'), spine.replay('replayed twice')")
	d.run("update spine.processing_state set status = 'pending' where event_id = 'by hand'")
	deliver(func(job event.Job) event.Settlement {
		if job.ID == "replayed twice" {
			return dead(job)
		}
		return completed(job)
	})
	d.run("select spine.replay('replayed twice')")
	for _, job := range d.claim(2) {
		d.settle(completed(job))
	}
	other, err := d.Claim(
		t.Context(),
		event.Claim{Destination: "other", Limit: 10, Lease: lease, Worker: "worker-1", Delays: policy},
	)
	require.NoError(t, err)
	d.settle(completed(other.Jobs[0]))
	d.rollUp()

	slow := d.rows(
		"select l.i from spine.rollups, unnest(latency) with ordinality l(n, i) where step = 3600 and n > 0 and i > 80",
	)
	require.NotEmpty(t, slow)
	for _, step := range []int{10, 60, 300, 3600} {
		require.Equal(t, "9", d.value("select sum(delivered) from spine.rollups where step = $1", step))
		require.Equal(
			t,
			"5",
			d.value("select sum(n) from spine.rollups, unnest(latency) n where step = $1", step),
			"without what was replayed",
		)
		require.Equal(
			t,
			"4",
			d.value(
				"select sum(n) from spine.rollups, unnest(latency) with ordinality l(n, i) where step = $1 and i > 80",
				step,
			),
			"retried, given back, expired, and queued in the first place",
		)
	}
	require.Equal(
		t,
		"t",
		d.value("select latency_p99 between interval '54 minutes' and interval '66 minutes' from spine.rates"),
	)
}

func TestOfOldPartitionsNoneIsAskedForAYoungEvent(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run(`
		create table spine.audit_trail_20200101
		partition of spine.audit_trail
		for values from ('2020-01-01 00:00+00') to ('2020-01-02 00:00+00')`)
	d.ingest(webhook("x", payloadA))
	scans := func(createdAt string) string {
		for range 8 {
			d.run(
				`select spine.replayed(id, $1::text::timestamptz, now(), '{"lease":3,"attempt":1}') from spine.events`,
				createdAt,
			)
		}
		d.run("select pg_stat_force_next_flush()")
		return d.value("select sum(idx_scan) from pg_stat_user_indexes where relname = 'audit_trail_20200101'")
	}
	require.Equal(t, "0", scans("yesterday"))
	require.Equal(t, "8", scans("2019-12-31"))
}

func TestLatencyPercentiles(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	// A histogram of what took 1 to 1000 ms.
	d.run(`
		create temp table h as
		select array_agg(coalesce(n, 0) order by i) as h
		from generate_series(1, 40) i
		left join (
			select least(1 + ceil(ln(ms) / ln(1.2)), 130)::integer as i, count(*) as n
			from generate_series(1, 1000) ms
			group by 1
		) c using (i)`)
	for fraction, want := range map[float64]float64{0: 1, 0.5: 500, 0.95: 950, 0.99: 990, 1: 1000} {
		var ms float64
		require.NoError(
			t,
			d.Pool().
				QueryRow(t.Context(), "select extract(epoch from spine.latency_percentile(h, $1)) * 1000 from h", fraction).
				Scan(&ms),
		)
		require.InEpsilon(t, want, ms, 0.12, "%v", fraction)
	}
	require.Equal(
		t,
		"t|t",
		d.value("select spine.latency_percentile('{}', 0.5) is null, spine.latency_percentile(null, 0.5) is null"),
	)
}

func TestRollupsDoNotCountWhatIsOlderThanTheyAre(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run(`
		insert into spine.audit_trail (event_id, action, timestamp)
		values ('x', 'event_inserted', '-infinity'), ('x', 'event_inserted', now() - interval '1 day'),
			('x', 'event_inserted', 'infinity')`)
	d.rollUp()
	d.requireAccepted(1)
	require.Equal(t, "t", d.value("select bool_and(at <= now()) from spine.rollups"))
}

func TestRollupsOfARestoredDump(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	insert(t, d.Pool())
	d.rollUp()
	// As in a server that has not come as far as the one that was dumped.
	d.run("update spine.audit_trail set xid = (pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 3)::text::xid8")
	d.run("update spine.rollup_state set next_xid = '1000000'")
	insert(t, d.Pool())
	d.rollUp()
	for range 5 {
		insert(t, d.Pool())
	}
	d.rollUp()
	d.requireAccepted(6)
}

func TestRollupsOutliveTheAuditLog(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	insert(t, d.Pool())
	d.rollUp()
	insert(t, d.Pool())
	d.run("truncate spine.audit_trail")
	d.rollUp()
	d.requireAccepted(1)
	insert(t, d.Pool())
	d.rollUp()
	d.requireAccepted(2)
}

func TestOldStepsAreDeleted(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	for _, age := range []string{"1 hour", "3 hours", "1 day", "4 days", "91 days"} {
		d.run(`
			insert into spine.rollups (step, at, source)
			select step, date_bin('1 hour', now() - $1::interval, 'epoch'), 'x'
			from spine.rollup_steps()`, age)
		d.run(`
			insert into spine.depth_samples
			select step, date_bin('1 hour', now() - $1::interval, 'epoch'), 0, 0, 0, 0, '0'
			from spine.rollup_steps()`, age)
	}
	d.run("update spine.rollup_state set tidied_at = now() - interval '2 minutes'")
	d.run("update spine.depth_state set tidied_at = now() - interval '2 minutes'")
	insert(t, d.Pool())
	d.rollUp()
	require.NoError(t, d.SampleDepth(t.Context()))
	want := []string{"10|1", "60|2", "300|3", "3600|4"}
	require.Equal(
		t,
		want,
		d.rows("select step, count(*) from spine.rollups where source = 'x' group by step order by step"),
	)
	require.Equal(
		t,
		want,
		d.rows(`
			select step, count(*)
			from spine.depth_samples
			where at < date_bin('1 hour', now(), 'epoch')
			group by step
			order by step`),
	)
	require.Equal(
		t,
		"t|t",
		d.value(`
			select r.tidied_at > now() - interval '1 minute', d.tidied_at > now() - interval '1 minute'
			from spine.rollup_state r, spine.depth_state d`),
	)
}

// overview reads one, of the last quarter of an hour.
func (d *database) overview() view.Overview {
	d.t.Helper()
	o, err := d.Overview(d.t.Context(), 15*time.Minute)
	require.NoError(d.t, err)
	return o
}

// sampleDepth samples though it may have done so a moment ago.
func (d *database) sampleDepth() {
	d.t.Helper()
	d.run("select spine.sample_depth(0)")
}

func sum(numbers []*int64) (sum int64) {
	for _, n := range numbers {
		if n != nil {
			sum += *n
		}
	}
	return sum
}

func TestOverview(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("insert into spine.sources (name) values ('github')")
	d.run("update spine.rollup_state set covered_from = date_bin('10 s', now(), 'epoch')")
	o := d.overview()
	require.Nil(t, o.Depth.At, "there is no sample yet")
	require.Nil(t, o.OldestReady)
	require.Empty(t, o.Depth.Rows)
	require.NotNil(t, o.Depth.Rows)
	require.NotNil(t, o.Paused)
	require.Len(t, o.Series.At, 90)

	d.ingest(webhooks("x", 5)...)
	jobs := d.claim(5)
	d.settle(completed(jobs[0]), failed(jobs[1], time.Hour), dead(jobs[2]))
	require.NoError(t, d.GiveBack(t.Context(), jobs[3:4]))
	d.run("select spine.pause()")
	d.rollUp()
	d.sampleDepth()

	o = d.overview()
	require.Equal(t, []string{"dead 1", "failed 1", "pending 1", "processing 1"}, depthOf(o))
	require.NotNil(t, o.Depth.At)
	require.InDelta(t, 0, o.At.Time.Sub(o.Depth.At.Time).Seconds(), 60)
	require.Equal(t, []string{event.DefaultDestination}, []string{o.Paused[0].Destination})
	require.Equal(t, "default", o.Sources[0].Source)
	require.NotNil(t, o.Sources[0].LastArrivalAt)
	require.Equal(t, view.SourceArrival{Source: "github"}, o.Sources[1])
	states := func() (states []string) {
		o, err := d.Overview(t.Context(), 15*time.Minute)
		require.NoError(t, err)
		for _, s := range o.Sources {
			if s.State != nil {
				states = append(states, s.Source+" is "+*s.State)
			}
		}
		return states
	}
	// G16: a source that a running process cannot use is told. What a process said of older settings is not.
	d.run("insert into spine.receivers values ('p', clock_timestamp()), ('q', clock_timestamp())")
	d.run("insert into spine.source_reports select 'p', name, updated_at, 'broken' from spine.sources")
	d.run("insert into spine.source_reports select 'q', name, updated_at, 'open' from spine.sources")
	require.Equal(t, []string{"default is broken", "github is broken"}, states())
	d.run("update spine.sources set updated_at = updated_at + interval '1 s' where name = 'default'")
	require.Equal(t, []string{"github is broken"}, states())
	d.run("update spine.receivers set told_at = told_at - interval '3 minutes' where process = 'p'")
	require.Empty(t, states())
	d.run("update spine.sources set disabled_at = now() where name = 'github'")
	require.Equal(t, []string{"github is disabled"}, states())
	s := o.Series
	require.Equal(t, []int64{5, 5, 0, 0, 0, 5, 2, 1, 1}, []int64{
		sum(
			s.Received,
		),
		sum(s.Accepted),
		sum(s.Deduplicated),
		sum(s.Conflicts),
		sum(s.Rejected),
		sum(s.Attempts),
		sum(s.AttemptsFailed),
		sum(s.Delivered),
		sum(s.Died),
	})
	last := len(s.At) - 1
	require.Nil(t, s.Received[0], "before all that is known")
	require.Nil(t, s.Pending[0])
	require.NotNil(t, s.Received[last])
	require.Equal(
		t,
		[]int64{1, 1, 1, 1},
		[]int64{*s.Pending[last], *s.Processing[last], *s.Failed[last], *s.Dead[last]},
	)
	require.LessOrEqual(t, s.At[last], o.At.Time.Unix())
	require.Greater(t, s.At[last]+10, o.At.Time.Unix()-1)
	for i, at := range s.At {
		require.Zero(t, at%10)
		require.Equal(t, s.At[0]+int64(i)*10, at)
	}
	for _, column := range [][]*int64{
		s.Received,
		s.Accepted,
		s.Deduplicated,
		s.Conflicts,
		s.Rejected,
		s.Attempts,
		s.AttemptsFailed,
		s.Delivered,
		s.Died,
		s.Pending,
		s.Processing,
		s.Failed,
		s.Dead,
	} {
		require.Len(t, column, 90)
	}
	for _, column := range [][]*float64{s.LatencyP50, s.LatencyP95, s.LatencyP99, s.OldestReady} {
		require.Len(t, column, 90)
	}
}

func depthOf(o view.Overview) (lines []string) {
	for _, r := range o.Depth.Rows {
		lines = append(lines, fmt.Sprint(r.Status, " ", r.Count))
	}
	return lines
}

func TestOverviewOfEachRange(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("update spine.rollup_state set covered_from = now() - interval '30 days'")
	// As of two sources, one event a step, and each took a second.
	d.run(`insert into spine.rollups (step, at, source, accepted, delivered, latency)
		select s.step, at, source, 1, 1, array_append(array_fill(0::bigint, array[38]), 1)
		from spine.rollup_steps() s,
			generate_series(
				date_bin(s.step * interval '1 s', now(), 'epoch') - least(s.kept, '8 days') + interval '1 hour',
			now(), s.step * interval '1 s') at, unnest(array['a', 'b']) source`)
	for over, want := range map[time.Duration]struct{ step, each int64 }{
		15 * time.Minute:   {10, 2},
		time.Hour:          {10, 2},
		6 * time.Hour:      {60, 2},
		24 * time.Hour:     {300, 2},
		7 * 24 * time.Hour: {3600, 2},
	} {
		o, err := d.Overview(t.Context(), over)
		require.NoError(t, err)
		n := int(over/time.Second) / int(want.step)
		require.Equal(
			t,
			[]int64{int64(over / time.Second), want.step},
			[]int64{int64(o.RangeSeconds), int64(o.StepSeconds)},
		)
		require.Len(t, o.Series.At, n)
		for i, accepted := range o.Series.Accepted[:n-1] {
			require.NotNil(t, accepted, "%s: %d", over, i)
			require.Equal(t, want.each, *accepted, "%s: %d", over, i)
			require.InEpsilon(t, 1000.0, *o.Series.LatencyP50[i], 0.1)
			require.Nil(t, o.Series.Pending[i])
			require.Zero(t, *o.Series.Died[i])
		}
	}
	_, err := d.Overview(t.Context(), time.Minute)
	require.ErrorContains(t, err, "1m0s")
}

func TestOverviewDoesNotPassOffWhatIsNotCountedYet(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run(`
		update spine.rollup_state
		set covered_from = now() - interval '1 hour', covered_to = now() - interval '1 minute'`)
	o := d.overview()
	require.NotNil(t, o.Series.Received[89], "nothing is left to be counted")
	require.Zero(t, *o.Series.Received[89])
	insert(t, d.Pool())
	o = d.overview()
	require.Nil(t, o.Series.Received[89])
	require.Nil(t, o.Series.Received[86])
	require.NotNil(t, o.Series.Received[80])
	require.Less(t, o.CoveredTo.Time, o.At.Time.Add(-59*time.Second))
}

func TestOverviewDoesNotPassOffAPartOfAStepAsTheWhole(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run(`
		update spine.rollup_state
		set covered_from = date_bin('10 s', now(), 'epoch') - interval '299 s',
			covered_to = date_bin('10 s', now(), 'epoch') - interval '41 s'`)
	insert(t, d.Pool())
	o := d.overview()
	at := func(back time.Duration) *int64 {
		for i, at := range o.Series.At {
			if at == o.CoveredTo.Time.Add(41*time.Second).Unix()-int64(back/time.Second) {
				return o.Series.Received[i]
			}
		}
		t.Fatal("no such step")
		return nil
	}
	require.Nil(t, at(300*time.Second), "covered but for its first second")
	require.NotNil(t, at(290*time.Second))
	require.NotNil(t, at(60*time.Second))
	require.Nil(t, at(50*time.Second), "covered but for its last second")
}

// A dashboard asks every second: the cost is that of the range and not of all
// that is kept.
func TestOverviewReadsItsRangeOnly(t *testing.T) {
	t.Parallel()
	const sources = 20
	d := newDatabase(t, 1)
	d.run(`insert into spine.rollups (step, at, source, received, latency)
		select s.step, at, 'source-' || source, 1, '{0,1}'
		from spine.rollup_steps() s, generate_series(now() - s.kept, now(), s.step * interval '1 s') at,
			generate_series(1, $1::integer) source
		where s.step <= 60`, sources)
	d.run(`
		insert into spine.depth_samples
		select 10, at, 0, 0, 0, 0, '0'
		from generate_series(now() - interval '2 hours', now(), '10 s') at`)
	d.run("analyze spine.rollups, spine.depth_samples")
	read := func(call func()) (rows int) {
		for range 8 { // until plans are cached
			call()
		}
		count := func() (n int) {
			d.run("select pg_stat_force_next_flush()")
			require.NoError(
				t,
				d.Pool().QueryRow(t.Context(), `
					select sum(idx_tup_read + seq_tup_read)
					from pg_stat_user_tables t
					join pg_stat_user_indexes i using (relid)
					where t.relname in ('rollups', 'depth_samples')`).Scan(
					&n,
				),
			)
			return n
		}
		before := count()
		call()
		return count() - before
	}
	require.LessOrEqual(t, read(func() { d.overview() }), 2*sources*91+100)
	require.LessOrEqual(
		t,
		read(func() { d.run("set enable_seqscan = off; select count(*) from spine.rates") }),
		sources*61,
	)
}

func TestDepthSaysHowOldItIs(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.ingest(webhooks("x", 3)...)
	d.sampleDepth()
	age := func() (seconds float64, o view.Overview) {
		o = d.overview()
		return o.At.Time.Sub(o.Depth.At.Time).Seconds(), o
	}
	d.run("update spine.depth_state set sampled_at = sampled_at - interval '10 s', oldest_ready = '5 s'")
	old, o := age()
	require.Less(t, old, 5.0, "nothing was audited since: it is as it was")
	require.Greater(t, *o.OldestReady, 14.9)
	d.ingest(webhook("y", payloadA))
	old, o = age()
	require.GreaterOrEqual(t, old, 10.0)
	require.InDelta(t, 5, *o.OldestReady, 0)
	require.Equal(t, []string{"pending 3"}, depthOf(o))
	d.sampleDepth()
	_, o = age()
	require.Equal(t, []string{"pending 4"}, depthOf(o))
	d.run("delete from spine.processing_state")
	d.sampleDepth()
	_, o = age()
	require.Empty(t, o.Depth.Rows, "not audited, and seen all the same")
	d.run("update spine.depth_state set sampled_at = sampled_at - interval '1 hour'")
	old, _ = age()
	require.GreaterOrEqual(t, old, 3600.0, "nobody looks any more")
}

func TestDepthIsSampledInAShareOfTheTime(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	require.NoError(t, d.SampleDepth(t.Context()))
	d.run("update spine.depth_state set took = '10 s'")
	d.ingest(webhook("x", payloadA))
	require.NoError(t, d.SampleDepth(t.Context()))
	require.Empty(t, d.overview().Depth.Rows, "whoever asks")
	d.run("update spine.depth_state set sampled_at = sampled_at - interval '200 s'")
	require.NoError(t, d.SampleDepth(t.Context()))
	require.Equal(t, []string{"pending 1"}, depthOf(d.overview()))

	tx := begin(t, d.Store)
	run(t, tx, "lock table spine.depth_state in share update exclusive mode")
	d.ingest(webhook("y", payloadA))
	d.sampleDepth()
	require.Equal(t, []string{"pending 1"}, depthOf(d.overview()), "another is at it")
}

func TestDepthIsSampledAfterTheClockWasSetBack(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	require.NoError(t, d.SampleDepth(t.Context()))
	d.run("update spine.depth_state set sampled_at = now() + interval '1 day'")
	require.NoError(t, d.SampleDepth(t.Context()))
	require.Equal(t, "t", d.value("select sampled_at < now() + interval '1 minute' from spine.depth_state"))
}

// What a commit does not wait for stays within its transaction.
func TestOnlyCountingDoesNotWaitForTheDisk(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.rollUp()
	require.NoError(t, d.SampleDepth(t.Context()))
	require.Equal(t, "on", d.value("show synchronous_commit"))
}

func TestCountingInADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	d := openDatabase(t, "postgres://nobody@127.0.0.1:1/nowhere", 1)
	_, _, err := d.RollUp(t.Context())
	require.ErrorContains(t, err, "whether to roll up")
	require.ErrorContains(t, d.SampleDepth(t.Context()), "to sample the depth")
	_, err = d.Overview(t.Context(), time.Hour)
	require.ErrorContains(t, err, "reading the overview")
}

// A process of an earlier version counts under another lock. Nothing is counted twice beside it.
func TestRollUpBesideAnEarlierVersion(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 3)
	d.ingest(webhooks("x", 3)...)
	earlier := begin(t, d.Store)
	run(t, earlier, `update spine.rollup_state s set next_xid = n.next_xid, in_progress = n.in_progress
		from spine.audited_now() n`)
	done := make(chan error, 1)
	go func() {
		_, err := d.Pool().Exec(t.Context(), "select spine.roll_up()")
		done <- err
	}()
	d.awaitBlocked("%spine.roll_up()%")
	require.NoError(t, earlier.Commit(t.Context()))
	require.NoError(t, <-done)
	require.Equal(t, "0", d.value("select count(*) from spine.rollups"))
}

package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

func TestTrailOfTwoFailuresAndASuccess(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("x", payloadA))
	for attempt, delay := range policy[:2] {
		job := d.claim(1)[0]
		require.Equal(t, attempt+1, job.Attempt)
		require.Equal(t, []event.LeaseState{event.LeaseHeld}, d.settle(failed(job, delay)))
		require.Equal(
			t,
			fmt.Sprintf("failed|%d|HTTP 503|%s||worker-1", attempt+1, delay),
			d.value(`
				select status, attempt_count, error_message,
					extract(epoch from next_attempt_at - updated_at)::integer || 's', completed_at, worker
				from spine.processing_state`),
		)
		require.Empty(t, d.look(10).Jobs, "it waits for its time")
		d.due()
	}
	job := d.claim(1)[0]
	require.Equal(
		t,
		"processing|3|t|t",
		d.value(`
			select status, attempt_count, last_attempt_at = updated_at, next_attempt_at = updated_at + interval '30 s'
			from spine.processing_state`),
	)
	require.Equal(t, []event.LeaseState{event.LeaseHeld}, d.settle(completed(job)))
	require.Equal(
		t,
		"completed|3||t|t|",
		d.value(
			`select status, attempt_count, error_message, completed_at = updated_at, last_attempt_at < completed_at,
			next_attempt_at
		from spine.processing_state`,
		),
	)

	require.Equal(t, []string{
		"event_received|success||||||",
		"event_inserted|success||||||",
		"processing_attempt_started|pending|1|worker-1||||",
		"processing_attempt_failed|failure|1||503|HTTP 503||not now",
		"retry_scheduled|pending|1||||1000|",
		"processing_attempt_started|pending|2|worker-1||||",
		"processing_attempt_failed|failure|2||503|HTTP 503||not now",
		"retry_scheduled|pending|2||||2000|",
		"processing_attempt_started|pending|3|worker-1||||",
		"processing_succeeded|success|3||200|||thank you",
	}, d.rows(`
		select action, success, details ->> 'attempt', details ->> 'worker', details ->> 'status', details ->> 'error',
		(details ->> 'delay_ms')::numeric::integer, details ->> 'answer' from spine.trace('x')`))
	require.Equal(
		t,
		"12.5",
		d.value("select details ->> 'duration_ms' from spine.trace('x') where action = 'processing_succeeded'"),
	)
}

func TestTheLastFailureIsNotFollowedByARetry(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("x", payloadA))
	require.Equal(t, []event.LeaseState{event.LeaseHeld}, d.settle(dead(d.claim(1)[0])))
	require.Equal(t, []string{
		"processing_attempt_started|pending|1||",
		"processing_attempt_failed|failure|1|410|HTTP 410",
		"processing_failed_permanently|failure|1||HTTP 410",
	}, d.rows(`
		select action, success, details ->> 'attempt', details ->> 'status', details ->> 'error'
		from spine.trace('x') offset 2`))
	require.Equal(
		t,
		"dead|1||HTTP 410|",
		d.value(
			"select status, attempt_count, next_attempt_at, error_message, completed_at from spine.processing_state",
		),
	)
	d.due()
	require.Empty(t, d.look(10).Jobs)
}

func TestClaimHandsOutWhatADeliveryNeeds(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	e := webhook("x", `{"b": 1.10}`)
	e.Source = "github"
	d.ingest(e)
	job := d.claim(1)[0]
	dueAt, at := job.DueAt, job.OccurredAt
	require.True(t, at.Equal(occurredAt))
	require.WithinDuration(t, time.Now(), dueAt, time.Minute)
	job.DueAt, job.OccurredAt = time.Time{}, time.Time{}
	require.Equal(t, event.Job{
		Event:       1,
		Destination: "default",
		Lease:       1,
		Attempt:     1,
		Source:      "github",
		ID:          "x",
		Type:        "user.created",
		Payload:     []byte(`{"b": 1.10}`),
	}, job)
}

func TestClaimTakesTheOldestFirst(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 6)...)
	for id, at := range map[string]string{
		"x-1": "infinity",
		"x-2": "now() + interval '1 h'",
		"x-3": "now() - interval '1 s'",
		"x-4": "-infinity",
		"x-5": "now() - interval '1 h'",
		"x-6": "now() - interval '2 s'",
	} {
		if !strings.Contains(at, "now") {
			at = "'" + at + "'"
		}
		d.run("update spine.processing_state set next_attempt_at = "+at+" where event_id = $1", id)
	}
	first := d.look(2)
	require.ElementsMatch(t, []string{"x-4", "x-5"}, eventIDs(first.Jobs))
	require.ElementsMatch(t, []string{"x-6"}, eventIDs(d.look(1).Jobs))
	require.ElementsMatch(t, []string{"x-3"}, eventIDs(d.look(10).Jobs))
	require.Empty(t, d.look(10).Jobs)
	require.Empty(t, d.look(0).Jobs)
}

func TestClaimKeepsDestinationsApart(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 3)...)
	d.run("insert into spine.processing_state (event_id, destination) values ('x-2', 'other')")
	claimed, err := d.Claim(
		t.Context(),
		event.Claim{Destination: "other", Limit: 10, Lease: lease, Worker: "worker-1", Delays: policy},
	)
	require.NoError(t, err)
	require.Equal(t, []string{"x-2"}, eventIDs(claimed.Jobs))
	require.Equal(t, "other", claimed.Jobs[0].Destination)
	require.Len(t, d.look(10).Jobs, 3)
	claimed, err = d.Claim(
		t.Context(),
		event.Claim{Destination: "unknown", Limit: 10, Lease: lease, Worker: "worker-1", Delays: policy},
	)
	require.NoError(t, err)
	require.Empty(t, claimed.Jobs)
}

func TestClaimSkipsWhatAnotherIsClaiming(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.ingest(webhooks("x", 10)...)
	tx := begin(t, d.Store)
	first := rows(t, tx, "select event_id from spine.claim('default', 4, '30 s', 'worker-2')")
	require.Len(t, first, 4)
	second := eventIDs(d.look(10).Jobs)
	require.Len(t, second, 6, "it neither waits for the others nor takes them")
	require.NoError(t, tx.Rollback(t.Context()))
	require.ElementsMatch(t, first, eventIDs(d.look(10).Jobs))
}

func TestClaimersTakeEachEventOnce(t *testing.T) {
	d := newDatabase(t, 4)
	const many = 2000
	d.ingest(webhooks("x", many)...)
	taken, errs := together(4, func(i int) (jobs []event.Job, err error) {
		for {
			claimed, err := d.Claim(
				t.Context(),
				event.Claim{
					Destination: event.DefaultDestination,
					Limit:       7,
					Lease:       lease,
					Worker:      fmt.Sprint(i),
					Delays:      policy,
				},
			)
			if err != nil || len(claimed.Jobs) == 0 {
				return jobs, err
			}
			jobs = append(jobs, claimed.Jobs...)
		}
	})
	requireNoErrors(t, errs)
	seen := map[int64]bool{}
	for _, jobs := range taken {
		for _, job := range jobs {
			require.False(t, seen[job.Event], "claimed twice")
			seen[job.Event] = true
		}
	}
	require.Len(t, seen, many)
	require.Equal(t, "1|1", d.value("select min(attempt_count), max(attempt_count) from spine.processing_state"))
	require.Equal(
		t,
		"2000",
		d.value("select count(*) from spine.audit_log where action = 'processing_attempt_started'"),
	)
}

func TestClaimWhilePaused(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 2)...)
	held := d.look(1).Jobs
	require.Equal(t, "1", d.value("select spine.pause()"))
	require.Empty(t, d.look(10).Jobs)
	require.Equal(t, []event.LeaseState{event.LeaseHeld}, d.settle(completed(held[0])), "what is in hand is finished")
	require.Equal(t, "1", d.value("select spine.resume('default')"))
	require.Len(t, d.look(10).Jobs, 1)
}

func TestClaimLooksNoLowerThanTheWatermark(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 3)...)
	d.run("update spine.processing_state set next_attempt_at = '2024-01-01' where event_id = 'x-1'")
	d.run("update spine.processing_state set next_attempt_at = '-infinity' where event_id = 'x-2'")
	claimed, err := d.Claim(
		t.Context(),
		event.Claim{
			Destination: event.DefaultDestination,
			Limit:       10,
			Lease:       lease,
			Worker:      "worker-1",
			Delays:      policy,
			Low:         time.Date(2024, 6, 1, 0, 0, 0, 0, time.UTC),
		},
	)
	require.NoError(t, err)
	require.Equal(t, []string{"x-3"}, eventIDs(claimed.Jobs))
	claimed, err = d.Claim(
		t.Context(),
		event.Claim{
			Destination: event.DefaultDestination,
			Limit:       10,
			Lease:       lease,
			Worker:      "worker-1",
			Delays:      policy,
			Low:         time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC),
		},
	)
	require.NoError(t, err)
	require.Equal(t, []string{"x-1"}, eventIDs(claimed.Jobs))
	require.Equal(t, []string{"x-2"}, eventIDs(d.claim(1)))
}

// A transaction that was open for long commits below what was claimed
// meanwhile; a look at all finds it.
func TestClaimFindsWhatWasCommittedLate(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	tx := begin(t, d.Store)
	run(t, tx, "select spine.ingest('late', 'a', '{}')")
	d.ingest(webhook("early", payloadA))
	early := d.claim(1)
	require.Equal(t, []string{"early"}, eventIDs(early))
	require.NoError(t, tx.Commit(t.Context()))
	claimed, err := d.Claim(
		t.Context(),
		event.Claim{
			Destination: event.DefaultDestination,
			Limit:       10,
			Lease:       lease,
			Worker:      "worker-1",
			Delays:      policy,
			Low:         early[0].DueAt,
		},
	)
	require.NoError(t, err)
	require.Empty(t, claimed.Jobs)
	require.Equal(t, []string{"late"}, eventIDs(d.claim(1)))
}

func TestNextDue(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	next := func() time.Duration {
		claimed, err := d.Claim(
			t.Context(),
			event.Claim{
				Destination: event.DefaultDestination,
				Limit:       0,
				Lease:       lease,
				Worker:      "worker-1",
				Delays:      policy,
			},
		)
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), claimed.Now, time.Minute)
		return claimed.NextDue
	}
	at := func(at string) { d.run("update spine.processing_state set next_attempt_at = " + at) }
	require.Zero(t, next(), "an empty queue")
	d.ingest(webhook("x", payloadA))
	require.Zero(t, next(), "what is due is looked past")
	at("'infinity'")
	require.Zero(t, next())
	at("'-infinity'")
	require.Zero(t, next())
	// The machine may stall until it is due: then it is tried again.
	soon := func(makeDue func()) {
		t.Helper()
		require.Eventually(t, func() bool {
			makeDue()
			got := next()
			return got > 0 && got <= time.Second
		}, patience, time.Millisecond)
	}
	soonDue := func() { at("clock_timestamp() + interval '0.9 s'") }
	soon(soonDue)
	at("clock_timestamp() + interval '10 s'")
	require.Zero(t, next(), "what is further ahead need not be known yet")
	at("now()")
	job := d.claim(1)[0]
	require.Zero(t, next(), "the end of a lease")
	soon(soonDue)
	settled := false
	soon(func() {
		if settled {
			soonDue()
			return
		}
		d.settle(failed(job, 900*time.Millisecond))
		settled = true
	})
}

func TestExpiredLeaseSpendsItsAttempt(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("x", payloadA))
	var want []string
	for attempt, delay := range policy {
		job := d.claim(1)[0]
		require.Equal(t, attempt+1, job.Attempt)
		d.due()
		claimed := d.look(10)
		require.Empty(t, claimed.Jobs, "it backs off first")
		require.Equal(
			t,
			[]event.Job{{Event: job.Event, Destination: "default", Attempt: attempt + 1, Source: "default", ID: "x"}},
			claimed.Expired,
		)
		require.Equal(
			t,
			fmt.Sprintf(
				"failed|%d|the lease ran out: worker-1 did not report back|%d",
				attempt+1,
				int(delay.Seconds()),
			),
			d.value(`
				select status, attempt_count, error_message, extract(epoch from next_attempt_at - updated_at)::integer
				from spine.processing_state`),
		)
		require.Equal(t, []event.LeaseState{event.LeaseLost}, d.settle(completed(job)), "the late result is rejected")
		want = append(want,
			fmt.Sprintf("processing_attempt_started|pending|%d|worker-1|", attempt+1),
			fmt.Sprintf("lease_expired|success|%d|worker-1|", attempt+1),
			fmt.Sprintf("retry_scheduled|pending|%d||%d", attempt+1, delay.Milliseconds()),
			"lease_lost|success|||")
		d.due()
	}
	d.claim(1)
	d.due()
	claimed := d.look(10)
	require.Len(t, claimed.Expired, 1)
	require.Equal(t, 5, claimed.Expired[0].Attempt)
	require.Zero(t, claimed.NextDue)
	want = append(
		want,
		"processing_attempt_started|pending|5|worker-1|",
		"lease_expired|success|5|worker-1|",
		"processing_failed_permanently|failure|5||",
	)
	require.Equal(
		t,
		want,
		d.rows(`
			select action, success, details ->> 'attempt', details ->> 'worker',
				(details ->> 'delay_ms')::numeric::integer
			from spine.trace('x') offset 2`),
	)
	require.Equal(t, "dead|5|", d.value("select status, attempt_count, next_attempt_at from spine.processing_state"))
	d.due()
	require.Empty(t, d.look(10).Expired, "a poison event does not loop for ever")
}

func TestExpiredLeaseWithoutRetries(t *testing.T) {
	t.Parallel()
	for name, delays := range map[string][]time.Duration{"none": nil, "empty": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDatabase(t, 1)
			look := func(limit int) event.Claimed {
				claimed, err := d.Claim(
					t.Context(),
					event.Claim{
						Destination: event.DefaultDestination,
						Limit:       limit,
						Lease:       lease,
						Worker:      "worker-1",
						Delays:      delays,
					},
				)
				require.NoError(t, err)
				return claimed
			}
			d.ingest(webhooks("x", 2)...)
			require.Len(t, look(1).Jobs, 1)
			d.run(
				"update spine.processing_state set status = 'processing' where status = 'pending'",
			) // by hand, no attempt was made
			d.due()
			require.Len(t, look(10).Expired, 2)
			require.Equal(
				t,
				[]string{"dead|1", "failed|0"},
				d.rows("select status, attempt_count from spine.processing_state order by status"),
			)
			require.Len(t, look(10).Jobs, 1, "what was never tried is due")
		})
	}
}

func TestExpiredLeasesCountAgainstTheLimit(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 3)...)
	d.claim(3)
	d.due()
	d.ingest(webhooks("y", 3)...)
	claimed := d.look(4)
	require.Len(t, claimed.Expired, 3)
	require.Len(t, claimed.Jobs, 1)
}

// An attempt that did not reach the destination is not counted. The event backs off, further each time in a row, a
// minute at most.
func TestDeferral(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("x", payloadA))
	const state = `
		select status, attempt_count, deferrals, error_message,
			case
				-- At the limit the delays differ.
				when next_attempt_at - updated_at between '54 s' and '60 s' then 60000
				else round(extract(epoch from next_attempt_at - updated_at) * 1000)
			end
		from spine.processing_state`
	for n, delay := range []int{1500, 3000, 6000, 12000, 24000, 48000, 60000, 60000} {
		job := d.claim(1)[0]
		require.Equal(t, 1, job.Attempt)
		require.Equal(t, []event.LeaseState{event.LeaseHeld}, d.settle(deferred(job, 1500*time.Millisecond)))
		require.Equal(t, fmt.Sprintf("failed|0|%d|connection refused|%d", n+1, delay), d.value(state))
		require.Equal(
			t,
			fmt.Sprintf("delivery_deferred|success|1|%d|connection refused|1|t|t", job.Lease),
			d.value(`
				select a.action, a.success, a.details ->> 'attempt', a.details ->> 'lease', a.details ->> 'error',
					a.details ->> 'duration_ms', a.details ->> 'delay_ms' = trim_scale(
						extract(epoch from p.next_attempt_at - p.updated_at) * 1000)::text,
					(a.details ->> 'next_attempt_at')::timestamptz = p.next_attempt_at
				from spine.audit_log a join spine.processing_state p using (event)
				order by a.id desc limit 1`),
		)
		require.Equal(t, []event.LeaseState{event.LeaseHeld}, d.settle(deferred(job, time.Second)), "told twice")
		d.due()
	}
	// One that counts ends the row.
	job := d.claim(1)[0]
	d.settle(failed(job, time.Hour))
	require.Equal(t, "failed|1||HTTP 503|3600000", d.value(state))
	d.due()
	job = d.claim(1)[0]
	require.Equal(t, 2, job.Attempt)
	d.settle(deferred(job, 1500*time.Millisecond))
	require.Equal(t, "failed|1|1|connection refused|1500", d.value(state))
	d.due()
	d.settle(completed(d.claim(1)[0]))
	require.Equal(t, "completed|2|||", d.value(state))
	require.Empty(t, d.rows(broken))
	d.run("select spine.roll_up()")
	require.Equal(t, "11|10|1", d.value(`
		select sum(attempts), sum(attempts_failed), sum(delivered) from spine.rollups where step = 10`))
}

// What could not be reached for 72 hours is dead. A replay, and a status set by hand, begin anew.
func TestDeferralEnds(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 3)...)
	defers := func(want string) {
		t.Helper()
		job := d.claim(1)[0]
		state := event.LeaseHeld
		if strings.HasPrefix(want, "dead") {
			state = event.LeaseGivenUp
		}
		require.Equal(t, []event.LeaseState{state}, d.settle(deferred(job, 0)))
		require.Equal(t, want, d.value(`
			select status || ' ' || attempt_count from spine.processing_state where event = $1`, job.Event))
		require.Equal(t, []event.LeaseState{state}, d.settle(deferred(job, 0)), "told twice")
	}
	later := func(what string) {
		d.run(`
			update spine.processing_state
			set next_attempt_at = next_attempt_at + interval '1 h' where next_attempt_at is not null`)
		d.run("update spine.processing_state set next_attempt_at = clock_timestamp() where event_id = $1", what)
	}
	ages := func(what, interval string) {
		d.run(`
			update spine.processing_state
			set created_at = now() - interval '80 h', deferred_since = now() - $2::interval
			where event_id = $1`, what, interval)
	}
	later("x-1")
	ages("x-1", "80 h")
	d.run("update spine.processing_state set deferred_since = null")
	defers("failed 0") // however long it had waited before, for a pause or for workers
	later("x-1")
	ages("x-1", "71 h 59 min")
	defers("failed 0")
	ages("x-1", "72 h")
	defers("dead 1")
	require.Equal(
		t,
		[]string{
			"event_received", "event_inserted", "processing_attempt_started", "delivery_deferred",
			"processing_attempt_started", "delivery_deferred",
			"processing_attempt_started", "processing_attempt_failed", "processing_failed_permanently",
		},
		d.trail("x-1"),
	)
	require.Equal(t, "connection refused (the destination was not reached for 72 hours)",
		d.value("select error_message from spine.dead_letters"))

	d.run("select spine.replay('x-1')")
	defers("failed 0")
	ages("x-1", "72 h")
	defers("dead 1")
	d.run("update spine.processing_state set status = 'pending' where event_id = 'x-1'")
	defers("failed 1")

	// The destination was paused for a long time between two attempts: the row of attempts begins anew.
	later("x-2")
	defers("failed 0")
	ages("x-2", "100 h")
	d.run("alter table spine.audit_trail disable trigger user")
	d.run("update spine.audit_trail set timestamp = now() - interval '13 h' where action = 'delivery_deferred'")
	d.run("alter table spine.audit_trail enable trigger user")
	defers("failed 0")
	require.Equal(t, "2|t", d.value(`
		select deferrals, deferred_since > now() - interval '1 h'
		from spine.processing_state where event_id = 'x-2'`))
	ages("x-2", "73 h")
	defers("dead 1")
	require.Empty(t, d.rows(broken))
}

// F6: the reason of a delay stands in the step.
func TestReasonOfADelay(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 2)...)
	jobs := d.claim(2)
	asked := failed(jobs[0], time.Hour)
	asked.Asked, asked.Result.RetryAfter = true, time.Hour
	d.settle(asked, failed(jobs[1], time.Second))
	const reasons = `
		select event_id, details ->> 'reason', details ->> 'delay_ms'
		from spine.audit_log where action = 'retry_scheduled' order by id`
	require.Equal(t, []string{"x-1|Retry-After|3600000", "x-2|policy|1000"}, d.rows(reasons))
	require.Equal(t, []string{"3600000", ""}, d.rows(`
		select details ->> 'retry_after_ms' from spine.audit_log where action = 'processing_attempt_failed' order by id`))
	d.due()
	d.claim(2)
	d.due()
	require.Len(t, d.look(10).Expired, 2)
	require.Equal(t, []string{"policy|2000", "policy|2000"}, d.rows(`
		select details ->> 'reason', details ->> 'delay_ms'
		from spine.audit_log where action = 'retry_scheduled' order by id offset 2`))
}

func TestSettlingTwiceCountsAndChangesNothing(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 3)...)
	jobs := d.claim(3)
	batch := []event.Settlement{completed(jobs[0]), failed(jobs[1], time.Hour), dead(jobs[2])}
	require.Equal(t, []event.LeaseState{event.LeaseHeld, event.LeaseHeld, event.LeaseHeld}, d.settle(batch...))
	const state = `
		select (select jsonb_agg(p order by event) from spine.processing_state p),
			(select jsonb_agg(a order by id) from spine.audit_log a)`
	before := d.value(state)
	require.Equal(
		t,
		[]event.LeaseState{event.LeaseHeld, event.LeaseHeld, event.LeaseHeld},
		d.settle(batch...),
		"the answer to the commit was lost",
	)
	require.Equal(t, before, d.value(state))

	d.ingest(webhook("y", payloadA))
	job := d.claim(1)[0]
	require.Equal(
		t,
		[]event.LeaseState{event.LeaseHeld, event.LeaseHeld, event.LeaseHeld},
		d.settle(completed(job), batch[0], completed(job)),
		"with others, and twice in one batch",
	)
	require.Equal(
		t,
		[]string{"event_received", "event_inserted", "processing_attempt_started", "processing_succeeded"},
		d.trail("y"),
	)
}

// Under one lease there is one result.
func TestSettleAnotherResult(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 2)...)
	jobs := d.claim(2)
	d.settle(completed(jobs[0]), failed(jobs[1], time.Hour))
	before := d.rows("select * from spine.processing_state order by event")
	require.Equal(
		t,
		[]event.LeaseState{event.LeaseLost, event.LeaseLost},
		d.settle(failed(jobs[0], 0), completed(jobs[1])),
	)
	require.Equal(t, before, d.rows("select * from spine.processing_state order by event"))
	require.Equal(
		t,
		[]string{"failed", "completed"},
		d.rows("select details ->> 'outcome' from spine.audit_log where action = 'lease_lost' order by id"),
	)
	require.Empty(t, d.rows(broken))
}

func TestSettleUnderALostLease(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 2)...)
	jobs := d.claim(2)
	lost, never, unknown := jobs[0], jobs[0], jobs[0]
	d.run("update spine.processing_state set next_attempt_at = now() where event_id = $1", lost.ID)
	require.Len(t, d.look(10).Expired, 1)
	never.Lease, unknown.Event = 99, 99
	state := d.value("select to_jsonb(p) from spine.processing_state p where event_id = $1", lost.ID)
	require.Equal(
		t,
		[]event.LeaseState{event.LeaseLost, event.LeaseHeld, event.LeaseLost, event.LeaseLost},
		d.settle(dead(lost), completed(jobs[1]), completed(never), completed(unknown)),
	)
	require.Equal(t, state, d.value("select to_jsonb(p) from spine.processing_state p where event_id = $1", lost.ID))
	require.Equal(
		t,
		[]string{"lease_lost|success|1|default|dead", "lease_lost|success|99|default|completed"},
		d.rows(
			`select action, success, details ->> 'lease', details ->> 'destination', details ->> 'outcome'
			from spine.trace($1)
			where action = 'lease_lost' order by details ->> 'lease'`,
			lost.ID,
		),
	)
}

// Tokens are counted for each destination: the same number in another one is
// another lease.
func TestSettleTellsDestinationsApart(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("x", payloadA))
	d.run("insert into spine.processing_state (event_id, destination, lease_token) values ('x', 'other', 1)")
	d.run("update spine.processing_state set lease_token = 1")
	claimed, err := d.Claim(
		t.Context(),
		event.Claim{Destination: "other", Limit: 1, Lease: lease, Worker: "worker-1", Delays: policy},
	)
	require.NoError(t, err)
	here, other := d.claim(1)[0], claimed.Jobs[0]
	require.Equal(t, here.Lease, other.Lease)
	require.Equal(t, []event.LeaseState{event.LeaseHeld}, d.settle(completed(here)))
	d.run("update spine.processing_state set status = 'failed' where destination = 'other'")
	require.Equal(t, []event.LeaseState{event.LeaseLost}, d.settle(completed(other)))
}

func TestSettleKeepsBadTextFromItsNeighbours(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 8)...)
	batch := make([]event.Settlement, 8)
	for i, job := range d.claim(8) {
		batch[i] = failed(job, time.Hour)
	}
	batch[1].Result.Answer = "a\x00b"
	batch[3].Result.Answer = "a\xffb"
	batch[4].Result.Error = "a\x00b"
	batch[6].Result.Error = "a\xffb"
	require.Equal(
		t,
		[]event.LeaseState{
			event.LeaseHeld,
			event.LeaseHeld,
			event.LeaseHeld,
			event.LeaseHeld,
			event.LeaseHeld,
			event.LeaseHeld,
			event.LeaseHeld,
			event.LeaseHeld,
		},
		d.settle(batch...),
	)
	require.Equal(t, "8", d.value("select count(*) from spine.processing_state where status = 'failed'"))
	details := func(i int) string {
		return d.value(`
			select details ->> 'status', details ->> 'answer', details ->> 'error'
			from spine.trace($1)
			where action = 'processing_attempt_failed'`, batch[i].Job.ID)
	}
	require.Equal(t, "503|not now|HTTP 503", details(0))
	require.Equal(t, "503||HTTP 503, and the rest cannot be stored", details(1))
	require.Equal(t, "503|a\ufffdb|HTTP 503", details(3))
	require.Equal(t, "503||HTTP 503, and the rest cannot be stored", details(4))
	require.Equal(t, "503||HTTP 503, and the rest cannot be stored", details(6))
}

func TestSettleOfNothing(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	require.Empty(t, d.settle())
	held, err := d.Renew(t.Context(), nil, lease)
	require.NoError(t, err)
	require.Empty(t, held)
	require.NoError(t, d.GiveBack(t.Context(), nil))
}

func TestRenewProlongsWhatIsHeld(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 3)...)
	jobs := d.claim(3)
	d.settle(completed(jobs[1]))
	held, err := d.Renew(t.Context(), jobs, time.Hour)
	require.NoError(t, err)
	require.Equal(t, []event.LeaseState{event.LeaseHeld, event.LeaseLost, event.LeaseHeld}, held)
	require.Equal(
		t,
		"2|2",
		d.value(`
			select count(*), count(*) filter (where next_attempt_at > now() + interval '50 min')
			from spine.processing_state
			where status = 'processing'`),
	)
	require.Equal(
		t,
		[]event.LeaseState{event.LeaseHeld, event.LeaseHeld},
		d.settle(completed(jobs[0]), completed(jobs[2])),
		"under the same token",
	)
}

func TestGiveBackSpendsNoAttempt(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 3)...)
	d.run("update spine.processing_state set attempt_count = 2, status = 'failed' where event_id = 'x-2'")
	jobs := d.claim(3)
	slices.SortFunc(jobs, func(a, b event.Job) int { return strings.Compare(a.ID, b.ID) })
	d.settle(completed(jobs[2]))
	require.NoError(t, d.GiveBack(t.Context(), jobs))
	require.Equal(
		t,
		[]string{"x-1|pending|0|t", "x-2|failed|2|t", "x-3|completed|1|"},
		d.rows(`
			select event_id, status, attempt_count, next_attempt_at <= clock_timestamp()
			from spine.processing_state
			order by event_id`),
	)
	require.Equal(
		t,
		[]string{"x-1|success|1|1|worker-1|default", "x-2|success|3|2|worker-1|default"},
		d.rows(
			`select event_id, success, details ->> 'attempt', details ->> 'lease', details ->> 'worker',
				details ->> 'destination'
			from spine.audit_log where action = 'lease_returned' order by event_id`,
		),
	)
	require.Equal(
		t,
		[]event.LeaseState{event.LeaseLost, event.LeaseLost, event.LeaseHeld},
		d.settle(completed(jobs[0]), completed(jobs[1]), completed(jobs[2])),
	)
}

func TestLeaseTokensNeverRepeat(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("x", payloadA))
	last := int64(0)
	claim := func() event.Job {
		job := d.claim(1)[0]
		require.Greater(t, job.Lease, last)
		last = job.Lease
		return job
	}
	for range 3 {
		d.settle(failed(claim(), 0))
		require.NoError(t, d.GiveBack(t.Context(), []event.Job{claim()}))
		claim()
		d.due()
		require.Len(t, d.look(1).Expired, 1)
		d.due()
		claim()
		d.run("update spine.processing_state set status = 'pending'")
		d.settle(dead(claim()))
		require.Equal(t, "1", d.value("select spine.replay('x')"))
	}
	old := claim()
	d.settle(completed(old))
	require.Equal(t, "1", d.value("select spine.replay('x')"))
	claim()
	require.Equal(
		t,
		[]event.LeaseState{event.LeaseHeld},
		d.settle(completed(old)),
		"this very result was settled before the replay",
	)
	require.Equal(
		t,
		"processing",
		d.value("select status from spine.processing_state"),
		"and does not touch the new lease",
	)
}

func TestSample(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	sample, err := d.Sample(t.Context())
	require.NoError(t, err)
	none := map[string]int64{"pending": 0, "processing": 0, "failed": 0, "dead": 0}
	require.Equal(t, event.Sample{
		LastArrivals: map[string]time.Time{}, Paused: map[string]bool{"default": false}, Depth: none,
	}, sample)

	d.ingest(webhooks("x", 3)...)
	d.run("select spine.pause('default')")
	d.run("update spine.processing_state set status = 'dead' where event_id = 'x-1'")
	require.NoError(t, d.SampleDepth(t.Context()))
	sample, err = d.Sample(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]bool{"default": true}, sample.Paused)
	require.Equal(t, map[string]int64{"pending": 2, "processing": 0, "failed": 0, "dead": 1}, sample.Depth)
	d.run("select spine.resume('default')")
	d.run(`
		update spine.processing_state
		set next_attempt_at = now() - interval '1 h', updated_at = now() - interval '3 h'
		where event_id = 'x-2'`)
	d.run("update spine.processing_state set next_attempt_at = '-infinity' where event_id = 'x-3'")
	sample, err = d.Sample(t.Context())
	require.NoError(t, err)
	require.Less(t, sample.OldestReady, time.Minute, "the infinite past counts from the last change")
	d.run("update spine.processing_state set status = 'completed' where event_id = 'x-3'")
	sample, err = d.Sample(t.Context())
	require.NoError(t, err)
	require.InDelta(t, time.Hour, sample.OldestReady, float64(time.Minute))
	require.WithinDuration(t, time.Now(), sample.LastArrivals["default"], time.Minute)
}

func TestLastArrivalsAreNoted(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("insert into spine.sources (name) values ('rare'), ('silent')")
	rare := webhook("r", payloadA)
	rare.Source = "rare"
	d.ingest(rare)
	expected := d.value("select created_at from spine.events")
	const answer = "select spine.last_arrival('rare')"
	note := func() string {
		t.Helper()
		require.NoError(t, d.NoteArrivals(t.Context()))
		require.Equal(t, expected, d.value(answer))
		return d.value("select event || ' ' || next_event from spine.arrivals_watermark")
	}
	require.Equal(t, "0 0", note(), "not for so few")

	late := d.psql("begin", "select spine.ingest('late', 'test', '{}', _source => 'rare')")
	d.run("select setval('spine.events_id_seq', 10000)")
	d.ingest(webhook("x", payloadA))
	require.Equal(t, "0 10001", note())
	d.run("select setval('spine.events_id_seq', 30000)")
	d.ingest(webhook("y", payloadA))
	require.Equal(t, "0 10001", note(), "a transaction may still commit an event that is older")
	// B4: a reader need not search all that comes meanwhile.
	require.Equal(t, "30001", d.value("select seen from spine.arrivals_watermark"))
	require.Equal(t, expected, d.value("select last_arrival_at from spine.sources where name = 'rare'"))
	run(t, late, "commit")
	expected = d.value("select created_at from spine.events where event_id = 'late'")
	require.Eventually(t, func() bool { // not before the watermark has passed it, since 30,000 events came later
		require.NoError(t, d.NoteArrivals(t.Context()))
		return d.value(answer) == expected
	}, patience, 10*time.Millisecond)
	// The transactions of other tests hold it up as well.
	require.Eventually(t, func() bool { return note() == "10001 30001" }, patience, 10*time.Millisecond)
	require.Equal(t, expected, d.value("select last_arrival_at from spine.sources where name = 'rare'"))
	require.Equal(t, "10001 30001", note())
	require.Equal(
		t,
		"|",
		d.value("select last_arrival_at, spine.last_arrival('silent') from spine.sources where name = 'silent'"),
	)

	d.run("select setval('spine.events_id_seq', 50000)")
	rare.ID = "r-2"
	d.ingest(rare)
	expected = d.value("select created_at from spine.events where event_id = 'r-2'")
	require.Eventually(t, func() bool { return note() == "30001 50001" }, patience, 10*time.Millisecond)
}

package store_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

func TestStatementsOfTheContract(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("test-001", payloadA))
	psql := d.psql("set search_path = spine")
	require.Equal(t, "f", value(t, psql, "select rolsuper from pg_roles where rolname = current_user"))

	require.Equal(
		t,
		"test-001|user.created",
		value(t, psql, "SELECT event_id, event_type FROM (SELECT event_id, event_type, created_at FROM events) shown"),
	)
	require.Equal(
		t,
		[]string{"test-001|event_inserted|success", "test-001|event_received|success"},
		rows(
			t,
			psql,
			"SELECT event_id, action, success FROM ("+
				"SELECT event_id, action, success, timestamp FROM audit_log ORDER BY timestamp DESC LIMIT 20"+
				") shown ORDER BY action",
		),
	)
	require.Equal(
		t,
		"test-001|pending|0|",
		value(t, psql, "SELECT event_id, status, attempt_count, last_attempt_at FROM processing_state"),
	)

	err := statementError(
		t,
		psql,
		"INSERT INTO processing_state (event_id, status, attempt_count) VALUES ('test-001','pending',0)",
	)
	require.Equal(t, "23505", err.Code)
	err = statementError(
		t,
		psql,
		"INSERT INTO processing_state (event_id, status, attempt_count) VALUES ('test-002','pending',0)",
	)
	require.Equal(t, "23503", err.Code)
	require.Contains(t, err.Message, "test-002")
	require.Contains(t, err.Hint, "last arrival")
	require.Equal(
		t,
		"23503",
		statementError(t, psql, "INSERT INTO processing_state (event_id, source) VALUES ('test-001','github')").Code,
	)
	require.Equal(
		t,
		"23503",
		statementError(t, psql, "INSERT INTO processing_state (event, event_id) VALUES (999999,'test-001')").Code,
		"an event of another number",
	)
	require.Equal(
		t,
		"23503",
		statementError(t, psql, "INSERT INTO processing_state (event, event_id) VALUES (1,'ghost')").Code,
	)
	require.Equal(t, "23514", statementError(t, psql, "UPDATE processing_state SET status = 'done'").Code)
}

// Whoever is at the keyboard, and whatever their session is like.
var sessions = map[string][]string{
	"no search_path": {"set search_path = ''"},
	"public":         {"set search_path = public"},
	"spine":          {"set search_path = spine"},
	"temporary doubles": {
		"set search_path = spine",
		"create temp table events (id int)",
		"create temp table processing_state (id int)",
		"create temp table audit_log (id int)",
		"create temp table conflicts (id int)",
		"create temp table destinations (id int)",
	},
	"doubles in public": {
		"set search_path = public, spine",
		"create table public.events (id int)",
		"create function public.announce(bigint, text[], timestamptz) returns void language sql as 'select 1/0'",
	},
	"a look-alike now()": {
		"set search_path = public, pg_catalog",
		"create function public.clock_timestamp() returns timestamptz language sql as 'select ''epoch''::timestamptz'",
	},
	"another zone": {
		"set timezone = 'Pacific/Kiritimati'",
		"set datestyle = 'SQL, DMY'",
		"set intervalstyle = 'iso_8601'",
	},
}

func TestFunctionsAndTriggersUnderAnySession(t *testing.T) {
	t.Parallel()
	for name, statements := range sessions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDatabase(t, 1)
			l := listen(d)
			psql := d.psql(statements...)
			for _, statement := range []string{
				`select spine.ingest('x', 'a', '{"b":{"c":1},"a":"é"}')`,
				`select spine.ingest('x', 'a', '{"b":{"c":2},"a":"é"}')`,
				`insert into spine.processing_state (event_id, destination) values ('x', 'other')`,
				`select spine.claim('default', 10, '30 s', 'me')`,
				`update spine.processing_state set status = 'dead' where destination = 'default'`,
				`select spine.replay_dead()`,
				`select spine.claim('default', 10, '0 s', 'me')`,
				`select spine.claim('default', 10, '0 s', 'me', array[]::interval[])`,
				`select spine.replay('x')`,
				`select spine.claim('default', 10, '30 s', 'me')`,
				`select spine.renew(array[1], array['default'], array[7], '30 s')`,
				`select spine.settle(array[1], array['default'], array[7], array['completed'],
					array[null]::interval[], array[null], array['{}'])`,
				`select spine.settle(array[1], array['default'], array[5], array['completed'],
					array[null]::interval[], array[null], array['{}'])`,
				`select spine.claim('other', 1, '30 s', 'me')`,
				`select spine.settle(array[1], array['other'], array[p.lease_token], array['deferred'],
					array['1 s'::interval], array['refused'], array['{}'])
					from spine.processing_state p where p.destination = 'other'`,
				`select spine.pause()`, `select spine.resume()`,
				`select spine.trace('x'), spine.event('x'), spine.id_of('x'), spine.oldest_ready(), spine.arrivals()`,
				`select * from spine.depth, spine.stuck, spine.dead_letters`,
				`select spine.ensure_audit_partitions(20)`,
				`select spine.reject(array['default'], array['bad'], array[400], array[1], array[now()],
					array[interval '0'], false)`,
			} {
				run(t, psql, statement)
			}
			require.Equal(
				t,
				"23503",
				statementError(t, psql, "insert into spine.processing_state (event_id) values ('y')").Code,
			)
			require.Equal(t, "P0002", statementError(t, psql, "select spine.trace('y')").Code)
			require.Equal(t, []string{
				"event_received",
				"event_inserted",
				"event_received",
				"conflict_detected",
				"event_queued",
				"processing_attempt_started",
				"status_changed",
				"event_replayed",
				"processing_attempt_started",
				"lease_expired",
				"processing_failed_permanently",
				"event_replayed",
				"processing_attempt_started",
				"processing_succeeded",
				"lease_lost",
				"processing_attempt_started",
				"delivery_deferred",
			}, d.trail("x"))
			require.Equal(
				t,
				[]string{"completed", "failed"},
				d.rows("select status from spine.processing_state order by destination"),
			)
			require.Len(t, l.heard(), 5, "ingest, insert, replay_dead, replay, resume")
		})
	}
}

func TestRowQueuedByHandFindsItsEvent(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	other := webhook("x", payloadB)
	other.Source = "github"
	d.ingest(webhook("x", payloadA), other)
	d.run("insert into spine.processing_state (event_id, source, destination) values ('x', 'github', 'other')")
	require.Equal(t, "t|pending|0", d.value(`select p.event = e.id, p.status, p.attempt_count
		from spine.processing_state p
		join spine.events e using (event_id, source)
		where p.destination = 'other' and source = 'github'`))
	require.Equal(
		t,
		[]string{"event_received", "event_inserted"},
		d.rows("select action from spine.trace('x', 'default')"),
	)
	require.Equal(
		t,
		"event_queued|success|other|pending|t",
		d.value(`
			select action, success, details ->> 'destination', details ->> 'status', details ->> 'by' = session_user
			from spine.trace('x', 'github') offset 2`),
	)

	claimed, err := d.Claim(
		t.Context(),
		event.Claim{Destination: "other", Limit: 10, Lease: lease, Worker: "worker-1", Delays: policy},
	)
	require.NoError(t, err)
	require.Len(t, claimed.Jobs, 1)
	require.Equal(t, "github", claimed.Jobs[0].Source)
	require.Equal(t, payloadB, string(claimed.Jobs[0].Payload))
	require.Equal(t, []event.LeaseState{event.LeaseHeld}, d.settle(completed(claimed.Jobs[0])))
}

func TestRowDeletedByHandMayBeQueuedAgain(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("x", payloadA))
	d.run("delete from spine.processing_state")
	d.run("insert into spine.processing_state (event_id) values ('x')")
	require.Equal(t, []string{"x"}, eventIDs(d.claim(1)))
}

// bring makes an event and brings it into a status. It returns the job if a
// worker has it.
func (d *database) bring(id, status string) event.Job {
	d.t.Helper()
	d.ingest(webhook(id, payloadA))
	if status == "pending" {
		d.run("update spine.processing_state set next_attempt_at = now() + interval '1 h' where event_id = $1", id)
		return event.Job{}
	}
	job := d.claim(1)[0]
	switch status {
	case "completed":
		d.settle(completed(job))
	case "failed":
		d.settle(failed(job, time.Hour))
	case "dead":
		d.settle(dead(job))
	}
	return job
}

func TestStatusChangedByHandWins(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	statuses := []string{"pending", "processing", "completed", "failed", "dead"}
	for _, from := range statuses {
		for _, to := range statuses {
			if from == to {
				continue
			}
			id := from + "-" + to
			t.Run(id, func(t *testing.T) {
				job := d.bring(id, from)
				before := d.trail(id)
				token := d.value("select lease_token from spine.processing_state where event_id = $1", id)
				d.run("update spine.processing_state set status = $2 where event_id = $1", id, to)

				due, done := to == "pending" || to == "failed" || to == "processing", to == "completed"
				require.Equal(
					t,
					fmt.Sprintf("%s|%s|%t|%t|%t", to, token, due, done, !due),
					d.value(
						`select status, lease_token - 1, coalesce(next_attempt_at <= clock_timestamp(), false)::text,
						(completed_at is not null)::text, (next_attempt_at is null)::text
						from spine.processing_state
						where event_id = $1`,
						id,
					),
				)
				voided := ""
				if from == "processing" {
					voided = token
				}
				require.Equal(
					t,
					fmt.Sprintf("status_changed|success|%s|%s|%s|default|t", from, to, voided),
					d.value(
						`select action, success, details ->> 'from', details ->> 'to', details ->> 'lease_voided',
							details ->> 'destination', details ->> 'by' = session_user
						from spine.trace($1) order by id desc limit 1`,
						id,
					),
				)

				var late []string
				if from == "processing" {
					state := d.value("select to_jsonb(p) from spine.processing_state p where event_id = $1", id)
					held, err := d.Renew(t.Context(), []event.Job{job}, lease)
					require.NoError(t, err)
					require.Equal(t, []event.LeaseState{event.LeaseLost}, held)
					require.NoError(t, d.GiveBack(t.Context(), []event.Job{job}))
					require.Equal(t, []event.LeaseState{event.LeaseLost}, d.settle(completed(job)))
					require.Equal(
						t,
						state,
						d.value("select to_jsonb(p) from spine.processing_state p where event_id = $1", id),
					)
					late = []string{"lease_lost"}
				}
				require.Equal(t, slices.Concat(before, []string{"status_changed"}, late), d.trail(id))
				d.run("delete from spine.processing_state")
			})
		}
	}
}

func TestStatusChangedByHandKeepsWhatElseWasSaid(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	const state = `
		select status, next_attempt_at, completed_at, error_message, attempt_count from spine.processing_state`
	d.bring("x", "dead")
	d.run("update spine.processing_state set status = 'failed', next_attempt_at = '2100-01-01', attempt_count = 2")
	require.Equal(t, "failed|2100-01-01 00:00:00+00||HTTP 410|2", d.value(state))
	d.run("update spine.processing_state set status = 'completed', completed_at = '2024-01-01'")
	require.Equal(t, "completed||2024-01-01 00:00:00+00||2", d.value(state))
	d.run("update spine.processing_state set status = 'pending', next_attempt_at = null")
	require.Equal(t, []string{"x"}, eventIDs(d.claim(1)), "without a time it is due at once, and not never")
}

// A transaction left open in psql holds up its own row and no other: the
// worker is told at once, and learns later what became of it.
func TestStatusChangedByHandWhileAWorkerSettles(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	job, other := d.bring("x", "processing"), d.bring("y", "processing")
	psql := d.psql("begin", "update spine.processing_state set status = 'dead' where event_id = 'x'")
	held, err := d.Renew(t.Context(), []event.Job{job, other}, lease)
	require.NoError(t, err)
	require.Equal(t, []event.LeaseState{event.LeaseLocked, event.LeaseHeld}, held)
	require.NoError(t, d.GiveBack(t.Context(), []event.Job{job}))
	require.Equal(t, []event.LeaseState{event.LeaseLocked, event.LeaseHeld}, d.settle(completed(job), completed(other)))
	run(t, psql, "commit")
	require.Equal(t, []event.LeaseState{event.LeaseLost}, d.settle(completed(job)))
	require.Equal(
		t,
		[]string{"event_received", "event_inserted", "processing_attempt_started", "status_changed", "lease_lost"},
		d.trail("x"),
	)
}

func TestManyStatusesChangedByHand(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 1000)...)
	d.run("update spine.processing_state set status = 'dead'")
	require.Equal(
		t,
		"1000|0",
		d.value(`
			select count(*), count(next_attempt_at)
			from spine.processing_state
			where status = 'dead' and lease_token = 1`),
	)
	require.Equal(t, "1000", d.value("select count(*) from spine.audit_log where action = 'status_changed'"))
}

// A queue row that was deleted and inserted again does not repeat its tokens.
func TestRowDeletedAndInsertedAgain(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("x", payloadA))
	for range 3 {
		job := d.claim(1)[0]
		d.run("delete from spine.processing_state where event_id = 'x'")
		d.run(`
			insert into spine.processing_state (event_id, status, attempt_count, next_attempt_at)
			values ('x', 'pending', 0, null)`)
		require.Equal(t, []event.LeaseState{event.LeaseLost}, d.settle(completed(job)))
		require.Equal(
			t,
			"pending|0|t",
			d.value("select status, attempt_count, next_attempt_at <= clock_timestamp() from spine.processing_state"),
		)
	}
	require.Equal(
		t,
		"23514",
		statementError(t, d.Pool(), "update spine.processing_state set attempt_count = 2147483647").Code,
		"a count that could not be raised would stop every claim",
	)
}

// Somebody's open transaction on one event is told apart from a failure.
func TestIngestOfALockedEvent(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.ingest(webhook("x", payloadA))
	psql := d.psql("begin", "select 1 from spine.events for update")
	_, err := d.Ingest(t.Context(), []event.Event{webhook("x", payloadA)})
	require.ErrorIs(t, err, event.ErrLocked)
	_, err = d.Ingest(t.Context(), []event.Event{webhook("y", payloadA)})
	require.NoError(t, err)
	run(t, psql, "commit")
	receipts, err := d.Ingest(t.Context(), []event.Event{webhook("x", payloadA)})
	require.NoError(t, err)
	require.Equal(t, event.Deduplicated, receipts[0].Outcome)
}

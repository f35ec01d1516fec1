package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

const age = 24 * time.Hour // retention in these tests

// finish delivers everything that is due.
func (d *database) finish() {
	d.t.Helper()
	for {
		jobs := d.look(1000).Jobs
		if len(jobs) == 0 {
			return
		}
		settlements := make([]event.Settlement, len(jobs))
		for i, job := range jobs {
			settlements[i] = completed(job)
		}
		d.settle(settlements...)
	}
}

// grow makes all events of a name like the pattern older by two days, as far
// as retention looks at it.
func (d *database) grow(pattern string) {
	d.t.Helper()
	d.run("update spine.events set created_at = created_at - interval '2 days' where event_id like $1", pattern)
	d.run(`
		update spine.processing_state
		set updated_at = updated_at - interval '2 days', completed_at = completed_at - interval '2 days'
		where event_id like $1`, pattern)
}

// expire walks all events in batches, and returns how many old ones it looked
// at and how many it deleted.
func (d *database) expire(limit int) (lookedAt, deleted int) {
	d.t.Helper()
	var after int64
	for {
		e, err := d.ExpireEvents(d.t.Context(), age, after, limit)
		require.NoError(d.t, err)
		lookedAt, deleted = lookedAt+e.LookedAt, deleted+e.Deleted
		if !e.More {
			return lookedAt, deleted
		}
		require.Greater(d.t, e.Last, after)
		after = e.Last
	}
}

func (d *database) stored() []string {
	d.t.Helper()
	return d.rows("select event_id from spine.events order by id")
}

const orphans = `
	select event from (select event from spine.processing_state union select event from spine.conflicts) rows
	where not exists (select from spine.events e where e.id = event)`

func TestOnlyWhatIsDoneWithAndOldExpires(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	names := []string{
		"completed", "dead", "pending", "failed", "processing", "half-done", "both-done", "unqueued", "replayed",
		"old-but-completed-today", "unqueued-today", "today",
	}
	for _, name := range names {
		d.ingest(webhook(name, payloadA))
	}
	d.ingest(webhook("completed", payloadB), webhook("pending", payloadB)) // conflicts
	d.run("insert into spine.destinations (name) values ('other')")
	d.run(`
		insert into spine.processing_state (event_id, destination)
		values ('half-done', 'other'), ('both-done', 'other')`)
	d.run("delete from spine.processing_state where event_id in ('unqueued', 'unqueued-today')")
	for name, status := range map[string]string{
		"completed":               "completed",
		"dead":                    "dead",
		"failed":                  "failed",
		"processing":              "processing",
		"both-done":               "completed",
		"replayed":                "completed",
		"old-but-completed-today": "completed",
		"today":                   "completed",
	} {
		d.run("update spine.processing_state set status = $2 where event_id = $1", name, status)
	}
	d.run("update spine.processing_state set status = 'dead' where event_id = 'half-done' and destination = 'default'")
	for _, name := range names[:10] {
		d.grow(name)
	}
	d.run("update spine.processing_state set updated_at = now() where event_id = 'old-but-completed-today'")
	d.run("select spine.replay('replayed')")
	trail := d.trail("completed")

	require.Equal(t, "12", d.value("select count(*) from spine.events"))
	lookedAt, deleted := d.expire(500)
	require.Equal(t, []int{10, 4}, []int{lookedAt, deleted})
	require.Equal(
		t,
		[]string{
			"pending",
			"failed",
			"processing",
			"half-done",
			"replayed",
			"old-but-completed-today",
			"unqueued-today",
			"today",
		},
		d.stored(),
	)
	require.Empty(t, d.rows(orphans))
	require.Equal(
		t,
		[]string{"pending"},
		d.rows("select event_id from spine.conflicts"),
		"evidence goes with its event",
	)
	require.Equal(
		t,
		trail,
		d.rows("select action from spine.audit_log where event_id = 'completed' order by timestamp, id"),
		"a trail goes with its day",
	)

	lookedAt, deleted = d.expire(3)
	require.Equal(t, []int{6, 0}, []int{lookedAt, deleted})
	d.finish()
	d.grow("%")
	d.grow("%")
	d.run("update spine.processing_state set status = 'dead' where status <> 'completed'")
	d.run("update spine.processing_state set updated_at = now() - interval '2 days'")
	_, deleted = d.expire(3)
	require.Equal(t, 8, deleted)
	require.Empty(t, d.stored())
	require.Empty(t, d.rows("select from spine.processing_state"))
	require.Empty(t, d.rows("select from spine.conflicts"))
}

func TestExpiryIsAudited(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 7)...)
	d.expire(3)
	const audited = `
		select success, event_id, details->>'count', details->>'oldest' <= details->>'newest',
			details->>'newest' < details->>'before'
		from spine.audit_log
		where action = 'events_expired'
		order by id`
	require.Empty(t, d.rows(audited), "a batch without any says nothing")
	d.finish()
	d.grow("%")
	d.expire(3)
	require.Equal(t, []string{"success||3|t|t", "success||3|t|t", "success||1|t|t"}, d.rows(audited))
	d.expire(3)
	require.Len(t, d.rows(audited), 3)
}

// Neither a walk that meets the young nor one that meets a stray stops short.
func TestExpiryGoesOnWhereItWasAndEndsAtWhatIsYoung(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	for _, e := range webhooks("a", 20) {
		d.ingest(e)
	}
	d.finish()
	d.grow("%")
	d.run(
		"update spine.events set created_at = now() + interval '1 year' where event_id = 'a-2'",
	) // the clock was wrong
	ids := d.rows("select id from spine.events order by id")

	e, err := d.ExpireEvents(t.Context(), age, 0, 5)
	require.NoError(t, err)
	require.Equal(t, event.Expired{LookedAt: 4, Deleted: 4, Last: e.Last, More: true}, e)
	require.Equal(t, ids[4], fmt.Sprint(e.Last))
	_, deleted := d.expire(5)
	require.Equal(t, 15, deleted)
	require.Equal(t, []string{"a-2"}, d.stored())

	d.ingest(webhooks("young", 20)...)
	e, err = d.ExpireEvents(t.Context(), age, 0, 5)
	require.NoError(t, err)
	require.Equal(t, event.Expired{}, e)
}

// An id that is gone is new again.
func TestIngestOfAnIDThatExpires(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 3)
	d.ingest(webhook("x", payloadA))
	d.finish()
	d.grow("x")

	tx := begin(t, d.Store)
	require.Equal(
		t,
		"1|1",
		value(t, tx, "select looked_at, deleted from spine.expire_events(now() - interval '1 day')"),
	)
	done := make(chan []event.Receipt, 1)
	failed := make(chan error, 1)
	go func() {
		receipts, err := d.persistently(webhook("x", payloadB))
		failed <- err
		done <- receipts
	}()
	d.awaitBlocked("%spine.ingest_events(%")
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, <-failed)
	require.Equal(t, []event.Receipt{{Outcome: event.Accepted}}, <-done)
	require.Equal(t, "pending", d.value("select status from spine.processing_state"))
	require.Empty(t, d.rows(orphans))
	require.Empty(t, d.rows("select from spine.conflicts"))
	d.claim(1)
}

// Whatever the order in which they come, each event is whole or gone, and new
// exactly as often as it was gone before.
func TestIngestAndExpiryAtOnce(t *testing.T) {
	d := newDatabase(t, 6)
	const rounds, ids = 30, 40
	for range rounds {
		d.ingest(webhooks("x", ids)...)
		d.finish()
		d.run("update spine.events set created_at = now() - interval '2 days'")
		d.run("update spine.processing_state set updated_at = now() - interval '2 days'")
		_, errs := together(4, func(i int) (event.Expired, error) {
			if i%2 == 0 {
				return d.ExpireEvents(t.Context(), age, 0, 1000)
			}
			events := webhooks("x", ids)
			for j := range events[:ids/2] {
				events[j] = webhook(events[j].ID, payloadB)
			}
			_, err := d.persistently(events...)
			return event.Expired{}, err
		})
		requireNoErrors(t, errs)
		require.Empty(t, d.rows(orphans))
		require.Equal(
			t,
			"t",
			d.value("select count(*) = (select count(*) from spine.processing_state) from spine.events"),
		)
	}
	require.NotEmpty(t, d.rows("select from spine.audit_log where action = 'events_expired'"))
	require.Equal(
		t,
		d.value("select count(*) from spine.audit_log where action = 'event_inserted'"),
		d.value(`
			select (select count(*) from spine.events) + sum((details->>'count')::int)
			from spine.audit_log
			where action = 'events_expired'`),
	)
}

func TestExpiryPassesOverWhatIsLocked(t *testing.T) {
	t.Parallel()
	for name, statement := range map[string]string{
		"the event":            "select from spine.events where event_id = 'x-2' for update",
		"a duplicate":          "select spine.ingest('x-2', 'user.created', '{\"a\":1}')",
		"a conflict":           "select spine.ingest('x-2', 'user.created', '{\"a\":2}')",
		"its row of the queue": "select from spine.processing_state where event_id = 'x-2' for update",
		"a replay":             "select spine.replay('x-2')",
		"all that died":        "select spine.replay_dead()",
		"a change by hand":     "update spine.processing_state set status = 'pending' where event_id = 'x-2'",
		"a row by hand":        "insert into spine.processing_state (event_id, destination) values ('x-2', 'other')",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDatabase(t, 2)
			d.ingest(webhooks("x", 3)...)
			d.finish()
			d.run("update spine.processing_state set status = 'dead' where event_id = 'x-2'")
			d.grow("%")
			tx := begin(t, d.Store)
			run(t, tx, statement)
			_, deleted := d.expire(500) // an error if it waited
			require.Equal(t, 2, deleted)
			require.Equal(t, []string{"x-2"}, d.stored())
			require.NoError(t, tx.Commit(t.Context()))
			require.Empty(t, d.rows(orphans))
			require.NotEmpty(t, d.rows("select from spine.processing_state"))
		})
	}
}

// What was decided while somebody else's change was not yet committed is
// decided again under the lock.
func TestWhatExpiresWhileItIsTakenUpByHand(t *testing.T) {
	t.Parallel()
	for name, statement := range map[string]string{
		"replay":        "select spine.replay('x')",
		"row by hand":   "insert into spine.processing_state (event_id, destination) values ('x', 'other')",
		"status change": "update spine.processing_state set status = 'pending' where event_id = 'x'",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDatabase(t, 2)
			d.ingest(webhook("x", payloadA))
			d.finish()
			d.grow("x")
			tx := begin(t, d.Store)
			run(t, tx, "select spine.expire_events(now() - interval '1 day')")
			done := make(chan error, 1)
			psql := d.psql()
			go func() {
				_, err := psql.Exec(t.Context(), statement)
				done <- err
			}()
			d.awaitBlocked(statement)
			require.NoError(t, tx.Commit(t.Context()))
			if err := <-done; name == "row by hand" {
				require.ErrorContains(t, err, `there is no event "x"`)
			} else {
				require.NoError(t, err, "nothing is left to change")
			}
			require.Empty(t, d.stored())
			require.Empty(t, d.rows("select from spine.processing_state"))
		})
	}
}

func TestExpiryByManyAtOnce(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 4)
	d.ingest(webhooks("x", 2000)...)
	d.finish()
	d.grow("%")

	tx := begin(t, d.Store)
	require.Equal(
		t,
		"100|100|t",
		value(t, tx, `
			select looked_at, deleted, last is not null
			from spine.expire_events(now() - interval '1 day', _limit => 100)`),
	)
	e, err := d.ExpireEvents(t.Context(), age, 0, 100)
	require.NoError(t, err)
	require.Equal(t, event.Expired{}, e, "the walk is left to the one that is at it")
	require.NoError(t, tx.Commit(t.Context()))

	deleted, errs := together(4, func(int) (deleted int, err error) {
		for after := int64(0); ; {
			e, err := d.ExpireEvents(t.Context(), age, after, 100)
			if deleted += e.Deleted; err != nil || !e.More {
				return deleted, err
			}
			after = e.Last
		}
	})
	requireNoErrors(t, errs)
	_, rest := d.expire(100)
	require.Equal(t, 1900, deleted[0]+deleted[1]+deleted[2]+deleted[3]+rest)
	require.Empty(t, d.stored())
	require.Empty(t, d.rows("select from spine.processing_state"))
	require.Equal(
		t,
		"2000",
		d.value("select sum((details->>'count')::int) from spine.audit_log where action = 'events_expired'"),
	)
}

// ago makes a partition of the audit log that holds the rows of one day.
func (d *database) ago(days int) (name string) {
	d.t.Helper()
	name = d.value("select 'audit_trail_' || to_char(current_date - $1::integer, 'YYYYMMDD')", days)
	d.run(
		"create table spine." + name +
			" (like spine.audit_trail including defaults including constraints including comments)",
	)
	d.run(fmt.Sprintf(`do $$ begin
		execute format(
			'alter table spine.audit_trail attach partition spine.%s for values from (%%L) to (%%L)', current_date - %d,
			current_date - %d + 1
		);
	end $$`, name, days, days))
	d.run(`
		insert into spine.audit_trail (timestamp, event_id, action)
		values (current_date - $1::integer, 'old', 'event_queued')`, days)
	return name
}

func TestOldAuditPartitionsAreDropped(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ensurePartitions()
	kept := d.rows(partitions)
	oldest, older := d.ago(12), d.ago(11)
	d.ago(1) // of which less than a day ago is a part

	var dropped []string
	for {
		name, err := d.DropAuditPartition(t.Context(), age)
		require.NoError(t, err)
		if name == "" {
			break
		}
		dropped = append(dropped, name)
	}
	require.Equal(t, []string{oldest, older}, dropped)
	require.Len(t, d.rows(partitions), len(kept)+1)
	require.Equal(t, "1", d.value("select count(*) from spine.audit_log where event_id = 'old'"))
	require.Equal(
		t,
		[]string{"success||" + oldest, "success||" + older},
		d.rows(`
			select success, event_id, details->>'partition'
			from spine.audit_log
			where action = 'audit_expired'
			order by id`),
	)
	d.ingest(webhook("x", payloadA))
	require.Zero(t, d.ensurePartitions())

	psql := d.psql("set datestyle = 'SQL, DMY'", "set timezone = 'Pacific/Kiritimati'", "set search_path = public")
	require.Equal(t, oldest, d.ago(12))
	require.Equal(t, oldest, value(t, psql, "select spine.drop_audit_partition(now() - interval '1 day')"))
}

// Whoever reads the log holds up the drop, and what waits behind that does not
// wait for long.
func TestAuditPartitionThatIsReadIsDroppedLater(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 3)
	old := d.ago(12)
	reader := begin(t, d.Store)
	require.Equal(t, "1", value(t, reader, "select count(*) from spine.audit_log where event_id = 'old'"))

	type result struct {
		name string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		name, err := d.DropAuditPartition(t.Context(), age)
		done <- result{name, err}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := d.Ingest(ctx, webhooks("x", 1))
	require.NoError(t, err)
	r := <-done
	require.ErrorIs(t, r.err, event.ErrLocked)
	require.Empty(t, r.name)
	require.Contains(t, d.rows(partitions), old)

	require.NoError(t, reader.Commit(t.Context()))
	name, err := d.DropAuditPartition(t.Context(), age)
	require.NoError(t, err)
	require.Equal(t, old, name)
}

func TestPartitionsAreMadeAndDroppedAtOnce(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 6)
	d.ensurePartitions()
	d.ago(12)
	d.ago(11)
	_, errs := together(6, func(i int) (string, error) {
		switch i % 3 {
		case 0:
			_, err := d.Pool().Exec(t.Context(), "select spine.ensure_audit_partitions(20)")
			return "", err
		case 1:
			name, err := d.DropAuditPartition(t.Context(), age)
			if errors.Is(err, event.ErrLocked) {
				err = nil // in the next round
			}
			return name, err
		}
		_, err := d.persistently(webhooks(fmt.Sprintf("x-%d", i), 10)...)
		return "", err
	})
	requireNoErrors(t, errs)
	require.Equal(t, "20", d.value("select count(*) from spine.events"))
}

func TestOldRowsOfTheDefaultPartitionAreDeleted(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.run(`insert into spine.audit_trail (timestamp, action)
		select now() - interval '2 days' - n * interval '1 day', 'event_queued' from generate_series(1, 10) n`)
	d.run(`
		insert into spine.audit_trail (timestamp, action)
		values (now() - interval '20 hours', 'event_queued'), (now() + interval '30 days', 'event_queued')`)
	tx := begin(t, d.Store)
	run(t, tx, `
		select
		from spine.audit_trail_default
		where timestamp = (select min(timestamp) from spine.audit_trail_default)
		for update`)

	var batches []int
	for {
		n, err := d.ExpireAudit(t.Context(), age, 4)
		require.NoError(t, err)
		if n == 0 {
			break
		}
		batches = append(batches, n)
	}
	require.Equal(t, []int{4, 4, 1}, batches, "what is locked stays")
	require.NoError(t, tx.Rollback(t.Context()))
	n, err := d.ExpireAudit(t.Context(), age, 4)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Equal(
		t,
		"0",
		d.value(
			`
				select count(*)
				from spine.audit_log
				where action = 'event_queued' and timestamp < now() - interval '1 day'`,
		),
	)
	require.Equal(t, "2", d.value("select count(*) from spine.audit_log where action = 'event_queued'"))
	require.Equal(
		t,
		"audit_trail_default|4,4,1,1",
		d.value(`select min(details->>'partition'), string_agg(details->>'count', ',' order by id)
		from spine.audit_log where action = 'audit_expired'`),
	)
}

func TestRetentionWhereThereIsNothing(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	lookedAt, deleted := d.expire(500)
	require.Zero(t, lookedAt+deleted)
	n, err := d.ExpireAudit(t.Context(), age, 500)
	require.NoError(t, err)
	require.Zero(t, n)
	name, err := d.DropAuditPartition(t.Context(), age)
	require.NoError(t, err)
	require.Empty(t, name)
	require.Empty(t, d.rows("select from spine.audit_log"))
}

func TestRetentionOfADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	s := openDatabase(t, "postgres://nobody@127.0.0.1:1/nowhere", 1)
	_, err := s.ExpireEvents(t.Context(), age, 0, 500)
	require.ErrorContains(t, err, "deleting old events")
	_, err = s.ExpireAudit(t.Context(), age, 500)
	require.ErrorContains(t, err, "deleting old audit rows")
	_, err = s.DropAuditPartition(t.Context(), age)
	require.ErrorContains(t, err, "dropping an audit partition")
}

package store_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

const partitions = `select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
	where i.inhparent = 'spine.audit_trail'::regclass and c.relname <> 'audit_trail_default' order by 1`

// withoutPartitions is a database whose audit log has the default partition
// alone, as after weeks without upkeep.
func withoutPartitions(t *testing.T, conns int32) *database {
	t.Helper()
	d := newDatabase(t, conns)
	for _, name := range d.rows(partitions) {
		d.run("drop table spine." + name)
	}
	return d
}

func (d *database) ensurePartitions() int {
	d.t.Helper()
	made, err := d.EnsurePartitions(d.t.Context())
	require.NoError(d.t, err)
	return made
}

func TestPartitionsAreMadeAWeekAhead(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ensurePartitions() // the template may be of yesterday
	require.Equal(
		t,
		d.rows(`
			select 'audit_trail_' || to_char(d, 'YYYYMMDD')
			from generate_series(current_date, current_date + 7, interval '1 day') d`),
		d.rows(partitions),
	)
	require.Zero(t, d.ensurePartitions())
	require.Equal(t, "3", d.value("select spine.ensure_audit_partitions(10)"))

	d.run(`insert into spine.audit_trail (timestamp, action)
		select current_date + d + t, 'event_queued'
		from generate_series(0, 10) d, unnest(array['00:00', '23:59:59.999999']::interval[]) t`)
	require.Empty(t, d.rows("select from spine.audit_trail_default"))
	require.Len(
		t,
		d.rows("select tableoid::regclass, count(*) from spine.audit_trail group by 1 having count(*) = 2"),
		11,
	)
	d.run("insert into spine.audit_trail (timestamp, action) values (current_date + 11, 'event_queued')")
	require.Len(t, d.rows("select from spine.audit_trail_default"), 1)
}

func TestPartitionsAreOfUTCDays(t *testing.T) {
	t.Parallel()
	d := withoutPartitions(t, 1)
	psql := d.psql("set timezone = 'Pacific/Kiritimati'") // fourteen hours ahead
	run(t, psql, "select spine.ensure_audit_partitions()")
	require.Equal(
		t,
		d.rows(`
			select 'audit_trail_' || to_char(d, 'YYYYMMDD')
			from generate_series(current_date, current_date + 7, interval '1 day') d`),
		d.rows(partitions),
	)
	d.run("insert into spine.audit_trail (timestamp, action) values (current_date + interval '1 s', 'event_queued')")
	require.Empty(t, d.rows("select from spine.audit_trail_default"))
}

func TestPartitionsMadeByManyAtOnce(t *testing.T) {
	t.Parallel()
	d := withoutPartitions(t, 4)
	made, errs := together(4, func(int) (int, error) { return d.EnsurePartitions(t.Context()) })
	requireNoErrors(t, errs)
	require.Equal(t, 8, made[0]+made[1]+made[2]+made[3])
}

func TestMissingPartitionFailsNothing(t *testing.T) {
	t.Parallel()
	d := withoutPartitions(t, 1)
	d.ingest(webhooks("x", 100)...)
	jobs := d.claim(100)
	d.settle(completed(jobs[0]))
	const all = "select jsonb_agg(a order by id) from spine.audit_log a"
	require.Equal(t, "301", d.value("select count(*) from spine.audit_trail_default"))
	before := d.value(all)

	require.Equal(t, 8, d.ensurePartitions())
	require.Equal(
		t,
		"0",
		d.value("select count(*) from spine.audit_trail_default"),
		"its rows moved to where they belong",
	)
	require.Equal(t, before, d.value(all), "and kept their ids and transactions")
	require.Equal(
		t,
		[]string{"event_received", "event_inserted", "processing_attempt_started", "processing_succeeded"},
		d.trail(jobs[0].ID),
	)
	d.ingest(webhook("y", payloadA))
	require.Equal(t, "0", d.value("select count(*) from spine.audit_trail_default"))
}

// The two hold each other up only where a partition had been missing.
func TestPartitionsAndEventsDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.ensurePartitions()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	tx := begin(t, d.Store)
	run(t, tx, "select spine.ingest('open', 'a', '{}')")
	require.Equal(t, "2", d.value("select spine.ensure_audit_partitions(9)"), "while an ingest is open")
	require.NoError(t, tx.Commit(t.Context()))

	tx = begin(t, d.Store)
	require.Equal(t, "2", value(t, tx, "select spine.ensure_audit_partitions(11)"))
	_, err := d.Ingest(ctx, webhooks("x", 1))
	require.NoError(t, err)
	claimed, err := d.Claim(
		ctx,
		event.Claim{Destination: event.DefaultDestination, Limit: 10, Lease: lease, Worker: "worker-1", Delays: policy},
	)
	require.NoError(t, err)
	require.Len(t, claimed.Jobs, 2)
	counted, err := d.Settle(ctx, []event.Settlement{completed(claimed.Jobs[0]), failed(claimed.Jobs[1], time.Hour)})
	require.NoError(t, err)
	require.Equal(t, []event.LeaseState{event.LeaseHeld, event.LeaseHeld}, counted)
	require.NoError(t, tx.Rollback(t.Context()))
}

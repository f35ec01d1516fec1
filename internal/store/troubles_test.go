package store_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
)

// E24: a clock that was set back is shown, with what to do.
func TestAClockThatWasSetBack(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	troubles, err := d.Troubles(t.Context())
	require.NoError(t, err)
	require.Empty(t, troubles)
	d.ingest(webhooks("x", 3)...)
	jobs := d.claim(3)
	d.ingest(webhook("y", payloadA))
	d.settle(failed(jobs[0], 20*time.Minute), completed(jobs[1]))
	// As if all of this had been an hour from now, and the clock is set back.
	d.run("alter table spine.processing_state disable trigger user")
	d.run(`update spine.processing_state set created_at = created_at + interval '1 hour',
		updated_at = updated_at + interval '1 hour', next_attempt_at = next_attempt_at + interval '1 hour'`)
	d.run("update spine.audit_trail set timestamp = timestamp + interval '1 hour'")
	d.run("alter table spine.processing_state enable trigger user")

	troubles, err = d.Troubles(t.Context())
	require.NoError(t, err)
	require.Len(t, troubles, 1)
	require.Equal(t, "clock", troubles[0].Topic)
	require.Regexp(t, `the database's clock was set back: the audit log has a step of [^ ]+, (59m\d+s|1h) from now, .*`+
		`select spine\.mend_clock\(\) plans them anew$`, troubles[0].Says)
	require.Equal(t, []string{"f|t", "p|t", "w|t"}, d.rows(`
		select case status when 'failed' then 'f' when 'pending' then 'p' else 'w' end,
			overdue < '0' and reason like 'planned at %, which is later than now: the database''s clock was set back%'
		from spine.stuck order by 1`))

	require.Equal(t, "3", d.value("select spine.mend_clock()"))
	require.Empty(t, d.rows("select from spine.stuck"))
	require.Equal(t, "0", d.value("select spine.mend_clock()"))
	require.Equal(t, []string{"failed|t", "pending|t", "processing|t"}, d.rows(`
		select status, next_attempt_at - clock_timestamp() between
			case status when 'failed' then '19 min' else '-10 s' end::interval and
			case status when 'failed' then '21 min' when 'pending' then '0' else '61 s' end::interval
		from spine.processing_state where status <> 'completed' order by status`))
	require.Equal(t, "y", d.claim(1)[0].ID, "the pending one")

	// Rows that somebody wrote by hand hide no others.
	d.run("alter table spine.processing_state disable trigger user")
	d.run("update spine.processing_state set updated_at = 'infinity', next_attempt_at = now() + interval '1 hour'" +
		" where event_id = 'y'")
	require.Equal(t, "0", d.value("select spine.mend_clock()"))
	d.run("update spine.processing_state set next_attempt_at = '-infinity' where event_id = 'y'")
	require.Equal(t, "y|t", d.value("select event_id, overdue is null from spine.stuck where due_at = '-infinity'"))
	require.Equal(t, "00:00:00", d.value("select spine.oldest_ready()::text"))
}

// The trail of an event is whole although the clock was set back over midnight while it was under way.
func TestATrailOverAClockThatWasSetBack(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("x", payloadA))
	d.settle(completed(d.claim(1)[0]))
	d.run("update spine.audit_trail set timestamp = timestamp - interval '1 day' where action = 'processing_succeeded'")
	require.Equal(t, "4", d.value("select count(*) from spine.trace('x')"))
	require.Equal(t, "1", d.value("select count(*) from spine.explain('x') where says like '%completed%'"))
	// It was years back for a moment.
	d.run("update spine.processing_state set updated_at = '2020-01-01'")
	require.Equal(t, "4", d.value("select count(*) from spine.trace('x')"))
}

// E18: that nobody makes partitions is shown days before they are needed. E23: whoever can store nothing knows it.
func TestTroublesAreShownEarly(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 3)
	d.ensurePartitions()
	kept := d.value("select to_char((now() at time zone 'UTC')::date + 2, 'YYYYMMDD')")
	for _, name := range d.rows(partitions) {
		if name > "audit_trail_"+kept {
			d.run("drop table spine." + name)
		}
	}
	troubles, err := d.Troubles(t.Context())
	require.NoError(t, err)
	require.Empty(t, troubles, "three days are there")
	d.run("drop table spine.audit_trail_" + kept)
	troubles, err = d.Troubles(t.Context())
	require.NoError(t, err)
	require.Len(t, troubles, 1)
	require.Equal(t, "partitions", troubles[0].Topic)
	require.Contains(t, troubles[0].Says, "no partition for "+d.value("select $1::date", kept))

	require.NoError(t, d.CheckWritable(t.Context()))
	lock := d.psql("begin", "lock table spine.events in share mode")
	require.ErrorContains(t, d.CheckWritable(t.Context()), "somebody has locked a table of Spine")
	require.Eventually(t, func() bool {
		return d.value("select count(*) from spine.troubles() where topic = 'locked' and says like "+
			"'the table events is locked (ShareLock) by pid %: nothing can be stored meanwhile'") == "1"
	}, patience, 50*time.Millisecond)
	run(t, lock, "rollback")
	lock = d.psql("begin", "lock table spine.audit_trail in access exclusive mode")
	require.Equal(t, "0", d.value("select count(*) from spine.stuck"), "it does not wait")
	run(t, lock, "rollback")
	require.NoError(t, d.CheckWritable(t.Context()))
	require.Equal(
		t,
		"0|0",
		d.value("select (select count(*) from spine.events), (select count(*) from spine.audit_log)"),
	)
}

// E15: what hinders a new partition does not stop a migration. It is told.
func TestMigrateWithoutNewPartitions(t *testing.T) {
	t.Parallel()
	d := withoutPartitions(t, 1)
	d.run("create table spine.audit_trail_" +
		d.value("select to_char((now() at time zone 'UTC')::date + 6, 'YYYYMMDD')") + " ()") // somebody's own
	m, err := migrateAgain(t, d)
	require.NoError(t, err)
	require.True(t, m.Functions)
	require.Zero(t, m.Partitions)
	require.True(t, strings.HasPrefix(m.Problem, "audit partitions could not be made ("), m.Problem)
	require.Equal(t, []event.Outcome{event.Accepted}, d.ingest(webhook("x", payloadA)))
}

// migrateAgain puts the functions in place once more.
func migrateAgain(t *testing.T, d *database) (store.Migrated, error) {
	t.Helper()
	d.run("update spine.schema_functions set digest = 'of another one'")
	return store.Migrate(t.Context(), d.url, nil)
}

package store_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// E16: no look at the audit log opens the partitions of old days. After ten years there are more of them than a server
// has locks for. They are locked here, so that a look at one would wait.
func TestOldDaysAreLeftAlone(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 6)
	d.ensurePartitions()
	// As many steps of today as a list with a filter reads at most.
	d.run(`insert into spine.audit_trail (event, event_id, action)
		select -n, 'filler', 'event_deduped' from generate_series(1, 31000) n`)
	d.run("vacuum (analyze) spine.audit_trail")
	d.rollUp()
	locker := begin(t, d.Store)
	d.ago(1200) // of the first days verify reads the first step, to know where the log begins
	for _, days := range []int{40, 200, 1000} {
		old := d.ago(days)
		run(t, locker, "lock table spine."+old+" in access exclusive mode")
	}
	d.run(`do $$ begin
		execute format('alter database %I set lock_timeout = %L', current_database(), '5s');
	end $$`)
	looker := openDatabase(t, d.url, 4)
	everything(t, looker)

	psql := looker.psql()
	for _, sql := range []string{
		"select count(*) from spine.trace('e-1')",
		"select count(*) from spine.explain('e-2')",
		"select count(*) from spine.event('e-2')",
		"select count(*) from spine.trace('e-3', 'default')",
		"select count(*) from spine.verify()",
		"select count(*) from spine.rates",
		"select count(*) from spine.depth",
		"select spine.mend_sequences()",
		"select spine.ensure_audit_partitions()",
		"select spine.mark_audit()",
		"select spine.note_database()",
		"select spine.replay('e-1')",
		"select * from spine.audited_now()",
	} {
		_, err := psql.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
	// Settling looks into the log for late results, and at the end of 72 hours of deferrals.
	claimed, err := looker.Claim(t.Context(), event.Claim{
		Destination: event.DefaultDestination, Limit: 3, Lease: time.Minute, Worker: "w",
	})
	require.NoError(t, err)
	require.Len(t, claimed.Jobs, 3)
	completed := event.Settlement{Job: claimed.Jobs[0], Disposition: event.Completed}
	deferred := event.Settlement{Job: claimed.Jobs[1], Disposition: event.Deferred, Delay: time.Second}
	d.run("update spine.processing_state set deferred_since = now() - interval '73 hours' where event = $1",
		deferred.Job.Event)
	looker.settle(completed, deferred)
	looker.settle(completed, deferred)

	cursor, err := looker.CurrentCursor(t.Context())
	require.NoError(t, err)
	looker.ingest(webhook("live", payloadA))
	require.Equal(t, []string{"live", "live"}, followed(t, looker.Store, &cursor, trail.Filter{}))
	since := trail.CursorSince(time.Now().Add(-time.Minute))
	require.NotEmpty(t, followed(t, looker.Store, &since, trail.Filter{EventIDs: []string{"live"}}))
}

// A follower finds its next steps without looking at old days.
func TestMarksOfTheAuditLog(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	since := func(position int) string {
		return d.value("select spine.audit_since($1::text::xid8)::text", fmt.Sprint(position))
	}
	require.NotEqual(t, "-infinity", since(0), "a new log has a mark at its beginning")
	d.run("truncate spine.audit_marks")
	require.Equal(t, "-infinity", since(5))
	d.run(`insert into spine.audit_marks (position, since, id)
		values ('100', '2024-01-01Z', 1), ('200', '2024-01-05Z', 2), ('300', '2024-01-03Z', 3), ('400', '2024-01-08Z', 4)`)
	day := func(position int) string { return strings.SplitN(since(position), " ", 2)[0] }
	require.Equal(t, "-infinity", since(99))
	require.Equal(t, "2024-01-01", day(100))
	require.Equal(t, "2024-01-01", day(199))
	require.Equal(t, "2024-01-03", day(200), "the clock was set back after it")
	require.Equal(t, "2024-01-03", day(399))
	require.Equal(t, "2024-01-08", day(400))
	require.Equal(t, "2024-01-08", day(math.MaxInt32))

	d.run("update spine.audit_marks set since = now() + interval '1 day' where position = '400'")
	require.Equal(t, "t", d.value("select spine.audit_since('400') <= clock_timestamp() - interval '3 days'"),
		"the clock was ahead then")

	// One a day, and at once where the clock went back.
	marks := func() string { return d.value("select count(*) from spine.audit_marks") }
	d.run("truncate spine.audit_marks")
	d.ingest(webhook("x", payloadA))
	d.rollUp()
	d.rollUp()
	require.Equal(t, "1", marks())
	require.Equal(t, "t", d.value(`select position < spine.trail_end()
			and position > (select max(xid) from spine.audit_trail)
			and since between now() - interval '3 days 1 minute' and now() - interval '3 days'
		from spine.audit_marks`))
	d.run("update spine.audit_marks set since = since - interval '23 hours'")
	d.rollUp()
	require.Equal(t, "1", marks())
	d.run("update spine.audit_marks set since = since - interval '1 hour'")
	d.rollUp()
	require.Equal(t, "2", marks())
	d.run("update spine.audit_marks set since = since + interval '1 minute'")
	d.rollUp()
	require.Equal(t, "3", marks())
	d.run("update spine.audit_marks set position = '1000000000', since = since - interval '2 days' where position = (" +
		"select position from spine.audit_marks order by position desc limit 1)")
	d.rollUp()
	require.Equal(t, "3", marks(), "a copy has none before its positions are moved")
}

// A clock that was set back hides no step from those that follow, and none from the rollups.
func TestStepsOfAClockThatWasSetBackAreTold(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.ensurePartitions()
	d.ingest(webhook("x", payloadA))
	d.rollUp()
	// As a process marked the log while the clock was ahead by a week.
	d.run(`insert into spine.audit_marks (position, since, id)
		values (pg_current_xact_id(), now() + interval '4 days', 100)`)
	cursor, err := d.CurrentCursor(t.Context())
	require.NoError(t, err)
	d.ingest(webhook("back", payloadA))
	require.Equal(t, []string{"back", "back"}, followed(t, d.Store, &cursor, trail.Filter{}))
	d.rollUp()
	d.requireAccepted(2)
}

// steps of the log, each in one line.
const allSteps = `select timestamp, id, xid, event, action, event_id, source, details
	from spine.audit_trail order by timestamp, id`

// days makes partitions of days that follow each other, from a date on, with steps in each.
func (d *database) days(from string, n, steps int) {
	d.t.Helper()
	d.run(fmt.Sprintf(`do $$ begin
		perform set_config('timezone', 'UTC', true);
		for i in 0 .. %d loop
			execute format('create table spine.audit_trail_%%s partition of spine.audit_trail
				for values from (%%L) to (%%L)',
				to_char(date '%s' + i, 'YYYYMMDD'), date '%s' + i, date '%s' + i + 1);
		end loop;
	end $$`, n-1, from, from, from))
	d.run(fmt.Sprintf(`insert into spine.audit_trail (timestamp, event, action, event_id, source, details)
		select timestamptz '%sZ' + (24 * d + s) * interval '1 hour', s, 'event_received', 'd' || d, nullif('s' || s, 's1'),
			case when s > 1 then json_build_object('n', s) end
		from generate_series(0, %d) d, generate_series(0, %d) s`, from, n-1, steps-1))
}

// merge merges days of a month that ended 35 days ago, at once.
func (d *database) merge() (name string) {
	d.t.Helper()
	name = d.value("select spine.copy_audit_days(now() - interval '35 days')")
	if name != "" {
		require.Equal(d.t, name, d.value("select spine.merge_audit_days('0')"))
	}
	return name
}

func TestOldDaysAreMerged(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.ensurePartitions()
	kept := d.rows(partitions)
	d.days("2024-01-20", 45, 3) // to 4 March
	d.days("2024-03-06", 26, 2) // to the end of March
	d.days("2024-04-30", 1, 2)
	d.run("insert into spine.audit_trail (timestamp, action) values ('2024-03-05 12:00Z', 'claims_paused')")
	before := d.rows(allSteps)

	require.Equal(t, "audit_trail_20240120_20240131", d.merge())
	require.Equal(t, before, d.rows(allSteps))
	require.Equal(t, "audit_trail_20240201_20240229", d.merge())
	require.Equal(t, "audit_trail_20240301_20240304", d.merge(), "where a day is missing, a partition ends")
	require.Equal(t, "audit_trail_20240306_20240331", d.merge())
	require.Empty(t, d.merge())
	require.Equal(t, before, d.rows(allSteps))
	require.Equal(t, append([]string{
		"audit_trail_20240120_20240131", "audit_trail_20240201_20240229", "audit_trail_20240301_20240304",
		"audit_trail_20240306_20240331", "audit_trail_20240430",
	}, kept...), d.rows(partitions))

	const name = "audit_trail_20240201_20240229"
	require.Equal(t, "f|", d.value(`select c.relreplident, (select string_agg(conname, ',') from pg_constraint k
		where k.conrelid = c.oid and k.contype <> 'n') from pg_class c where c.relname = $1`, name))
	require.Equal(t, "The audit log from 2024-02-01 to 2024-02-29 (UTC).",
		d.value("select obj_description(('spine.' || $1)::regclass)", name))
	const indexes = `select indkey::text, exists (select from pg_inherits h where h.inhrelid = i.indexrelid)
		from pg_index i where i.indrelid = ('spine.' || $1)::regclass order by 1`
	require.Equal(t, []string{"1|t", "3|t", "4|t"}, d.rows(indexes, name))
	require.Equal(t, d.value("select relowner from pg_class where relname = $1", kept[0]),
		d.value("select relowner from pg_class where relname = $1", name))

	// Retention takes it as a whole.
	dropped, err := d.DropAuditPartition(t.Context(), age)
	require.NoError(t, err)
	require.Equal(t, "audit_trail_20240120_20240131", dropped)
	d.ingest(webhook("x", payloadA))
}

func TestAMergedPartitionHasALargestSize(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.days("2024-02-10", 20, 2)
	d.run(`insert into spine.audit_trail (timestamp, action, details)
		select '2024-02-15 10:00Z', 'event_received', json_build_object('n', repeat('x', 1000)) from generate_series(1, 500)`)
	day := d.value("select pg_table_size('spine.audit_trail_20240210')")
	merge := func() string {
		name := d.value("select spine.copy_audit_days(now() - interval '35 days', 4 * $1::text::bigint)", day)
		d.run("select spine.merge_audit_days('0')")
		return name
	}
	before := d.rows(allSteps)
	var names []string
	for name := merge(); name != ""; name = merge() {
		names = append(names, name)
	}
	require.Equal(t, []string{
		"audit_trail_20240210_20240213", "audit_trail_20240216_20240219", "audit_trail_20240220_20240223",
		"audit_trail_20240224_20240227", "audit_trail_20240228_20240229",
	}, names, "the 15th alone is too large, and nothing fits beside the 14th")
	require.Equal(t, before, d.rows(allSteps))
}

func TestWhatIsNotMerged(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.ensurePartitions()
	d.days(d.value("select (date_trunc('month', now() - interval '35 days') - interval '1 day')::date"), 20, 1)
	require.Empty(t, d.merge(), "one day of a month, and a month of which 35 days ago is a part")

	d.days("2024-01-20", 2, 1)
	d.run("update spine.retention_state set before = now() - interval '399 days'")
	require.Empty(t, d.merge(), "retention drops each day in its time")
	d.run("update spine.retention_state set before = now() - interval '401 days'")
	d.run("create publication p for table spine.audit_trail")
	require.Empty(t, d.merge(), "a subscriber has no such partition")
	d.run("drop publication p")
	d.run(`insert into spine.audit_trail (timestamp, action, details)
		select '1999-01-01', 'claims_paused', json_build_object('n', repeat('x', 1000)) from generate_series(1, 9000)`)
	require.Empty(t, d.merge(), "attaching would read the default partition, and hold up the log for as long")
	d.run("truncate spine.audit_trail_default")
	d.run("create view public.of_a_day as select * from spine.audit_trail_20240121")
	d.days("2024-02-01", 2, 1)
	require.Equal(
		t,
		"audit_trail_20240201_20240202",
		d.merge(),
		"the day before cannot be dropped, and holds nobody up",
	)
	require.Empty(t, d.merge())
	for d.value("select spine.copy_audit_days('infinity')") != "" {
		d.run("select spine.merge_audit_days('0')")
	}
	require.Empty(t, d.rows(`select name from spine.audit_partitions()
		where until > date_trunc('month', now(), 'UTC') and until > since + interval '1 day'`),
		"this month is not over, whatever somebody asks for")
}

// What changes after the copy is not lost: the days are copied anew.
func TestDaysThatChangeAreCopiedAnew(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.ensurePartitions()
	d.days("2024-01-20", 3, 2)
	const copyDays = "select spine.copy_audit_days(now() - interval '35 days')"
	const dependent = "create function public.of_a_day() returns bigint " +
		"begin atomic select count(*) from spine.audit_trail_20240121; end"
	merged := func() (name string) {
		t.Helper()
		name, _, err := d.MergeAuditDays(t.Context(), time.Hour)
		require.NoError(t, err)
		return name
	}
	late := func() { d.run("update spine.audit_merge set seen_at = seen_at - interval '1 minute'") }
	back := map[string]string{
		"alter table spine.audit_trail detach partition spine.audit_trail_20240121": "alter table spine.audit_trail" +
			" attach partition spine.audit_trail_20240121 for values from ('2024-01-21Z') to ('2024-01-22Z')",
		"create publication p for table spine.audit_trail": "drop publication p",
		dependent: "drop function public.of_a_day()",
	}
	for _, change := range []string{
		"alter table spine.audit_trail detach partition spine.audit_trail_20240121",
		"create publication p for table spine.audit_trail",
		dependent,
		"insert into spine.audit_trail (timestamp, action) values ('2024-01-20 13:00Z', 'claims_paused')",
		"delete from spine.audit_trail where timestamp = '2024-01-20 13:00Z'",
		"update spine.audit_trail set details = '{}' where timestamp = '2024-01-22 01:00Z'",
		"drop table spine.audit_trail_20240122",
	} {
		require.Equal(t, "audit_trail_20240120_20240122", d.value(copyDays))
		require.Equal(t, "audit_trail_20240120_20240122", d.value(copyDays), "one at a time")
		require.Empty(t, merged(), "the minute begins")
		d.run(change)
		late()
		require.Empty(t, d.value("select spine.merge_audit_days()"), change)
		require.Empty(t, d.rows("select partition from spine.audit_merge"))
		d.run(back[change])
	}
	before := d.rows(allSteps)
	require.Equal(t, "audit_trail_20240120_20240121", d.value(copyDays))
	tx := begin(t, d.Store)
	run(t, tx, "set transaction isolation level repeatable read")
	require.Equal(t, "25001", statementError(t, tx, "select spine.merge_audit_days('0')").Code)
	require.NoError(t, tx.Rollback(t.Context()))
	require.Empty(t, merged(), "the minute begins")
	d.run("update spine.audit_merge set seen_at = seen_at + interval '1 hour'")
	require.Empty(t, merged(), "the clock was set back, and the minute begins again")
	require.Empty(t, merged())
	late()
	require.Equal(t, "audit_trail_20240120_20240121", merged())
	require.Equal(t, before, d.rows(allSteps))
}

// A working role that makes a day vanish does not have the owner read a view of its own instead.
func TestMergingTakesNoTemporaryView(t *testing.T) {
	t.Parallel()
	s := newStrange(t, "worker")
	require.NoError(t, store.Grant(t.Context(), s.owner.url, []string{"worker"}, nil))
	s.owner.days("2024-01-20", 3, 2)
	worker := s.role.psql(
		"create function pg_temp.who() returns bigint language plpgsql as $$ begin "+
			"raise exception 'run by %', current_user; end $$",
		"select spine.copy_audit_days(now())",
	)
	for _, temporary := range []string{"audit_trail_20240120", "audit_trail_20240120_20240122"} {
		run(
			t,
			worker,
			"create temporary view "+temporary+` as select '2024-01-20Z'::timestamptz as timestamp, 1::bigint as id,
			'1'::xid8 as xid, pg_temp.who() as event, 'event_received'::text as action, ''::text as event_id,
			''::text as source, '{}'::json as details`,
		)
		run(t, worker, "grant all on "+temporary+" to public")
	}
	run(t, worker, "select spine.drop_audit_partition(now())")
	require.Empty(t, s.owner.rows("select name from spine.audit_partitions() where name = 'audit_trail_20240120'"))
	run(t, worker, "select spine.merge_audit_days('-1 day')")
	run(t, worker, "select spine.copy_audit_days(now())")
	s.owner.run("drop table spine.audit_trail_20240121_20240122")
	run(t, worker, "create temporary view audit_trail_20240121_20240122 as select * from pg_temp.audit_trail_20240120")
	run(t, worker, "select spine.merge_audit_days('-1 day')")
	require.Equal(t, "4", s.owner.value("select count(*) from spine.audit_trail where timestamp < '2024-02-01Z'"))
}

// A session that works with one of the days holds up the merge, and nobody else.
func TestWhoUsesADayHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 5)
	d.ensurePartitions()
	d.days("2024-01-20", 3, 2)
	d.run("select spine.copy_audit_days(now() - interval '35 days')")
	for name, statement := range map[string]string{
		"a reader of the copy": "select from spine.audit_trail_20240120_20240122",
		"a reader":             "select from spine.audit_trail_20240121",
		"a writer":             "delete from spine.audit_trail_20240121",
	} {
		t.Run(name, func(t *testing.T) {
			user := begin(t, d.Store)
			run(t, user, statement)
			merged := make(chan error, 1)
			go func() {
				_, err := d.Pool().Exec(t.Context(), "select spine.merge_audit_days('0')")
				merged <- err
			}()
			for i := 0; ; i++ {
				_, err := d.Ingest(t.Context(), webhooks(fmt.Sprintf("%s-%d", name, i), 1))
				require.NoError(t, err)
				select {
				case err := <-merged:
					require.ErrorContains(t, err, "55P03")
					require.NoError(t, user.Rollback(t.Context()))
					return
				default:
				}
			}
		})
	}
	require.Equal(t, "audit_trail_20240120_20240122", d.value("select spine.merge_audit_days('0')"))
}

// Readers see each step once, whenever they look, and ingests go on.
func TestDaysAreMergedWhileTheLogIsInUse(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 7)
	d.ensurePartitions()
	d.days("2023-09-01", 120, 2)
	var over atomic.Bool
	defer over.Store(true)
	var others sync.WaitGroup
	failed := make(chan error, 10)
	loop := func(do func(i int) error) {
		others.Go(func() {
			for i := 0; !over.Load(); i++ {
				if err := do(i); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	const count = "select count(*) from spine.audit_trail where timestamp < '2024-01-01Z'"
	counts := func(on interface {
		QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	},
	) error {
		var n int
		err := on.QueryRow(t.Context(), count).Scan(&n)
		if err == nil && n != 240 {
			err = fmt.Errorf("%d steps", n)
		}
		return err
	}
	loop(func(int) error { return counts(d.Pool()) })
	loop(func(int) error { // with a snapshot that is older than the locks of the query
		tx, err := d.Pool().BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(t.Context()) }()
		if _, err := tx.Exec(t.Context(), "select from spine.events"); err != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
		return counts(tx)
	})
	loop(func(i int) error {
		_, err := d.persistently(webhook(fmt.Sprintf("x-%d", i), payloadA))
		return err
	})
	last := ""
	for range 4 {
		copied := d.value("select spine.copy_audit_days(now() - interval '35 days')")
		time.Sleep(time.Second) // instead of a minute: the readers here are quick
		for merged := ""; merged != copied; {
			err := d.Pool().QueryRow(t.Context(), "select spine.merge_audit_days('0')").Scan(&merged)
			if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "55P03" {
				continue // in the next round
			}
			require.NoError(t, err)
		}
		last = copied
	}
	over.Store(true)
	others.Wait()
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
	require.Equal(t, "audit_trail_20231201_20231229", last)
}

// A day that a partition covers needs none of its own, whatever the partition is called.
func TestADayThatIsCoveredNeedsNoPartition(t *testing.T) {
	t.Parallel()
	d := withoutPartitions(t, 1)
	d.run(`do $$ begin execute format('create table spine.of_these_days partition of spine.audit_trail
		for values from (%L) to (%L)', current_date - 3, current_date + 2); end $$`)
	require.Equal(t, 6, d.ensurePartitions())
	require.Empty(t, d.rows("select says from spine.troubles()"))
	d.ingest(webhook("x", payloadA))
	require.Equal(t, "2", d.value("select count(*) from spine.of_these_days"))
}

// A page is read in stretches of time. Its rows are the same as those of one query over all of it.
func TestListsOverYears(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.ensurePartitions()
	d.days("2017-02-01", 3, 2)
	d.days("2023-02-01", 3, 2)
	d.run(`insert into spine.audit_trail (timestamp, action, source)
		select t, 'claims_paused', 's1' from unnest(array[
			'-infinity', '0004-01-01Z BC', '0001-01-01Z', '2001-01-01Z', '2016-12-31Z', '2017-02-05Z', '2020-01-01Z',
			'2022-09-20Z', '2022-09-21Z', '2024-01-01Z', 'infinity', '2199-01-01Z']::timestamptz[]) t`)
	d.run(`insert into spine.audit_trail (timestamp, action)
		select now() - n * interval '1 day', 'claims_resumed' from unnest(array[0, 1, 2, 15, 16, 17, 143, 144, 145, 272]) n`)

	for name, filter := range map[string]view.StepFilter{
		"all":       {},
		"source":    {Source: "s1"},
		"no source": {Source: "none"},
		"action":    {Action: trail.ClaimsResumed},
		"from 2020": {Span: view.Span{Since: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}},
		"to 2023":   {Span: view.Span{Until: time.Date(2023, 2, 2, 0, 0, 0, 0, time.UTC)}},
	} {
		t.Run(name, func(t *testing.T) {
			wanted := d.rows(`select id from spine.audit_log where ($1 = '' or source = $1) and ($2 = '' or action = $2)
				and timestamp >= coalesce($3, '-infinity'::timestamptz)
				and ($4::timestamptz is null or timestamp < $4)
				order by timestamp desc, id desc`,
				filter.Source, string(filter.Action), timeOrNil(filter.Since), timeOrNil(filter.Until))
			for _, limit := range []int{1, 4, 100} {
				listed := []string{}
				page := view.Page{Limit: limit}
				for {
					rows, next, err := d.Audit(t.Context(), page, filter)
					require.NoError(t, err)
					for _, r := range rows {
						listed = append(listed, fmt.Sprint(r.ID))
					}
					if page.Cursor = next.Cursor; page.Cursor == "" {
						break
					}
				}
				require.Equal(t, wanted, listed)
			}
		})
	}

	wanted := d.rows("select id from spine.audit_log order by timestamp, id")
	for from, left := range map[string]int{"1999-01-01": 3, "2017-02-02": 7, "2022-09-21": 14} {
		at, err := time.Parse(time.DateOnly, from)
		require.NoError(t, err)
		var seen []string
		_, err = readAll(t.Context(), d.Store, trail.CursorSince(at), trail.Filter{}, func(rows []trail.Step) error {
			for _, r := range rows {
				seen = append(seen, fmt.Sprint(r.ID))
			}
			return nil
		})
		require.NoError(t, err)
		slices.Sort(seen)
		expected := slices.Clone(wanted[left:])
		slices.Sort(expected)
		require.Equal(t, expected, seen, from)
	}
}

// A page that finds nothing ends after so many partitions. Its reader goes on from there, or knows how far it looked.
func TestAPageWithAFilterReadsSoManyPartitions(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.ensurePartitions()
	const days = 300
	d.days(d.value("select (current_date - $1::int)::text", fmt.Sprint(days)), days-8, 2)
	filter := view.StepFilter{Action: trail.ClaimsPaused}
	ends := func() (all []int) {
		page := view.Page{Limit: 50}
		for {
			rows, next, err := d.Audit(t.Context(), page, filter)
			require.NoError(t, err)
			require.Empty(t, rows)
			if page.Cursor = next.Cursor; page.Cursor == "" {
				require.Nil(t, next.LookedBackTo)
				return all
			}
			all = append(all, int(time.Since(next.LookedBackTo.Time)/(24*time.Hour)))
		}
	}
	require.Equal(t, []int{143, 287}, ends(), "16 days and 128 partitions each, today's among them")
	for d.merge() != "" {
	}
	require.Empty(t, ends(), "months are few")
}

// The trail of an old event is read up to 100 days after its last change in the queue. Where the event came again, it
// is read to the end.
func TestATrailEndsSometimeAfterItsDeliveries(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.ensurePartitions()
	d.ingest(
		webhook("once", payloadA),
		webhook("again", payloadA),
		webhook("again", payloadA),
		webhook("new", payloadA),
	)
	d.run("delete from spine.audit_trail")
	d.run(`insert into spine.audit_trail (timestamp, event, event_id, action)
		select '2017-02-01Z'::timestamptz + n * interval '1 day', id, event_id,
			case n when 0 then 'event_inserted' when 1 then 'processing_succeeded' else 'lease_lost' end::spine.audit_action
		from spine.events, unnest(array[0, 1, 100, 102, 2000]) n`)
	d.run("update spine.events set created_at = '2017-02-01Z'")
	d.run(`update spine.processing_state set status = 'completed', lease_token = 1, next_attempt_at = null,
		created_at = '2017-02-01Z', completed_at = '2017-02-02Z',
		updated_at = case event_id when 'new' then now() else '2017-02-02 12:00Z' end`)
	whole := []string{"0", "1", "100", "102", "2000"}
	for id, days := range map[string][]string{"once": whole[:3], "again": whole, "new": whole} {
		require.Equal(
			t,
			days,
			d.rows("select extract(day from timestamp - '2017-02-01Z') from spine.trace($1)", id),
			id,
		)
		history, err := d.Event(t.Context(), id, "")
		require.NoError(t, err)
		require.Len(t, history.Timeline, len(days), id)
	}
	d.run("delete from spine.processing_state")
	require.Len(t, d.rows("select from spine.trace('once')"), len(whole))
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

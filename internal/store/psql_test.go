package store_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

func TestIDOf(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("insert into spine.sources (name) values ('github')")
	err := statementError(t, d.Pool(), "select spine.id_of('x')")
	require.Equal(t, "P0002", err.Code)
	require.Equal(
		t,
		`event "x" was never stored. Source default: nothing of it is stored yet. `+
			`Source github: nothing of it is stored yet.`,
		err.Message,
	)

	d.ingest(webhook("x", payloadA))
	other := webhook("x", payloadA)
	other.Source = "github"
	require.Equal(t, "1", d.value("select spine.id_of('x')"))
	d.ingest(other)
	require.Equal(t, "1|2", d.value("select spine.id_of('x', 'default'), spine.id_of('x', 'github')"))

	err = statementError(t, d.Pool(), "select spine.id_of('x')")
	require.Equal(t, "21000", err.Code)
	require.Equal(t, `event "x" exists in the sources default, github: name one`, err.Message)
	require.Equal(t, "For example: id_of('x', 'default')", err.Hint)

	for call, message := range map[string]string{
		"spine.id_of('y')": `event "y" was never stored. Source default: last arrival 20..-..-..T\S*Z\. ` +
			`Source github: last arrival 20`,
		"spine.id_of('y', 'github')": `event "y" was never stored in source "github". Source github: last arrival 20`,
		"spine.id_of('x', 'nowhere')": `event "x" was never stored in source "nowhere". ` +
			`There is no source named "nowhere"`,
		"spine.trace('y')":  "was never stored",
		"spine.event('y')":  "was never stored",
		"spine.replay('y')": "was never stored",
	} {
		err := statementError(t, d.Pool(), "select "+call)
		require.Equal(t, "P0002", err.Code, call)
		require.Regexp(t, message, err.Message, call)
	}
	for _, call := range []string{"spine.trace('x')", "spine.event('x')", "spine.replay('x')"} {
		require.Equal(t, "21000", statementError(t, d.Pool(), "select "+call).Code, call)
	}
	require.Equal(
		t,
		"2|t",
		d.value(`
			select event, event = spine.id_of('x', 'github')
			from spine.processing_state
			where event = spine.id_of('x', 'github')`),
	)
}

func TestEventInOneLook(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("x", payloadA), webhook("x", payloadB), webhook("x", payloadA))
	d.run("insert into spine.processing_state (event_id, destination) values ('x', 'other')")
	d.settle(completed(d.claim(1)[0]))
	require.Equal(
		t,
		[]string{
			`x|default|user.created|{"a":1}|3|1|default|completed|1`,
			`x|default|user.created|{"a":1}|3|1|other|pending|0`,
		},
		d.rows(`
			select event_id, source, event_type, payload, seen_count, conflicts, destination, status, attempt_count
			from spine.event('x')`),
	)
	d.run("delete from spine.processing_state")
	require.Equal(t, "x|", d.value("select event_id, status from spine.event('x')"), "also when it is queued nowhere")
}

func TestReplayPutsBackWhatIsDone(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	for status, replayed := range map[string]string{
		"pending":    "0",
		"processing": "0",
		"completed":  "1",
		"failed":     "1",
		"dead":       "1",
	} {
		d.bring(status, status)
		before := d.trail(status)
		require.Equal(t, replayed, d.value("select spine.replay($1)", status), status)
		if replayed == "0" {
			require.Equal(t, before, d.trail(status))
			continue
		}
		require.Equal(
			t,
			"pending|0|||t",
			d.value(`select status, attempt_count, completed_at, error_message, next_attempt_at <= clock_timestamp()
			from spine.processing_state where event_id = $1`, status),
		)
		require.Equal(
			t,
			"event_replayed|success|"+status+"|1|default|t",
			d.value(`select action, success, details ->> 'from', details ->> 'attempts',
			details ->> 'destination', details ->> 'by' = session_user
			from spine.trace($1)
			order by id desc
			limit 1`, status),
		)
		d.run("delete from spine.processing_state where event_id = $1", status)
	}
	require.Equal(
		t,
		`event "dead" is queued for no destination`,
		statementError(t, d.Pool(), "select spine.replay('dead')").Message,
	)
}

func TestReplayOfOneDestination(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.bring("x", "completed")
	d.run("insert into spine.processing_state (event_id, destination, status) values ('x', 'other', 'dead')")
	require.Equal(t, "1", d.value("select spine.replay('x', _destination => 'other')"))
	require.Equal(
		t,
		[]string{"completed", "pending"},
		d.rows("select status from spine.processing_state order by destination"),
	)
	require.Equal(t, "1", d.value("select spine.replay('x', 'default')"), "all that can be")
	require.Contains(
		t,
		statementError(t, d.Pool(), "select spine.replay('x', _destination => 'nowhere')").Message,
		"'nowhere'",
	)
}

func TestReplayDeadOverManyRows(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 3500)...)
	jobs := d.claim(3500)
	settlements := make([]event.Settlement, len(jobs))
	for i, job := range jobs {
		if settlements[i] = dead(job); i%10 == 0 {
			settlements[i] = completed(job)
		}
	}
	d.settle(settlements...)
	require.Equal(t, "7", d.value("select spine.replay_dead(_limit => 7)"))
	require.Equal(t, "1200", d.value("select spine.replay_dead(_limit => 1200)"))
	require.Equal(t, "0", d.value("select spine.replay_dead(_limit => 0)"))
	require.Equal(t, "1943", d.value("select spine.replay_dead()"))
	require.Equal(t, "0", d.value("select spine.replay_dead()"))
	require.Equal(
		t,
		[]string{"completed|350|1", "pending|3150|0"},
		d.rows("select status, count(*), max(attempt_count) from spine.processing_state group by 1 order by 1"),
	)
	require.Equal(t, "3150", d.value("select count(*) from spine.audit_log where action = 'event_replayed'"))
	d.claim(3150)
}

func TestReplayDeadFilters(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	for i, c := range []struct{ source, kind, died string }{
		{"default", "a", "2024-01-01"},
		{"default", "b", "2024-01-02"},
		{"github", "a", "2024-01-03"},
		{"github", "b", "2024-01-04"},
	} {
		e := webhook("x", payloadA)
		e.Source, e.Type = c.source, c.kind
		if i%2 == 1 {
			e.ID = "y"
		}
		d.ingest(e)
		d.run(
			"update spine.processing_state set status = 'dead', destination = $1 where status = 'pending'",
			[]string{"default", "other"}[i/2],
		)
		d.run("update spine.processing_state set updated_at = $1 where updated_at > '2025-01-01'", c.died)
	}
	for _, c := range []struct {
		call string
		want []string
	}{
		{"spine.replay_dead('2024-01-02', '2024-01-04')", []string{"2", "3"}},
		{"spine.replay_dead(_source => 'github')", []string{"3", "4"}},
		{"spine.replay_dead(_event_type => 'a')", []string{"1", "3"}},
		{"spine.replay_dead(_destination => 'other')", []string{"3", "4"}},
		{"spine.replay_dead('2024-01-02', _event_type => 'b', _source => 'default')", []string{"2"}},
		{"spine.replay_dead(_limit => 2)", []string{"1", "2"}},
		{"spine.replay_dead(now())", nil},
	} {
		tx := begin(t, d.Store)
		run(t, tx, "select "+c.call)
		require.Equal(
			t,
			append([]string{}, c.want...),
			append(
				[]string{},
				rows(t, tx, "select event from spine.processing_state where status = 'pending' order by event")...),
			c.call,
		)
		require.NoError(t, tx.Rollback(t.Context()))
	}
}

func TestReplayDeadSkipsWhatAnotherHolds(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("x", 3)...)
	d.run("update spine.processing_state set status = 'dead'")
	d.psql("begin", "select 1 from spine.processing_state where event_id = 'x-2' for update")
	require.Equal(t, "2", d.value("select spine.replay_dead()"))
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("insert into spine.destinations (name) values ('other')")
	for _, c := range []struct{ call, changed, paused string }{
		{"spine.pause('other')", "1", "other"},
		{"spine.pause()", "1", "default,other"},
		{"spine.pause()", "0", "default,other"},
		{"spine.resume('other')", "1", "default"},
		{"spine.resume()", "1", ""},
		{"spine.resume()", "0", ""},
	} {
		require.Equal(t, c.changed, d.value("select "+c.call), c.call)
		require.Equal(
			t,
			c.paused,
			d.value(`
				select string_agg(name, ',' order by name)
				from spine.destinations
				where paused_at is not null and paused_by = session_user`),
			c.call,
		)
	}
	require.Equal(t, []string{
		"claims_paused|success|other|t",
		"claims_paused|success|default|t",
		"claims_resumed|success|other|t",
		"claims_resumed|success|default|t",
	}, d.rows(`
		select action, success, details ->> 'destination', details ->> 'by' = session_user
		from spine.audit_log
		order by timestamp, id`))
	for _, call := range []string{"spine.pause('nowhere')", "spine.resume('nowhere')"} {
		err := statementError(t, d.Pool(), "select "+call)
		require.Equal(t, "P0002", err.Code)
		require.Equal(t, "Known: default, other", err.Hint)
	}
}

func TestViewsOfWhatIsNotDone(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	const depth = `
		select destination, status, count, next_attempt_at is not null, oldest_created_at is not null,
			paused_at is not null
		from spine.depth
		order by status`
	const stuck = "select event_id, status, overdue between '59 s' and '90 s', reason from spine.stuck"
	require.Empty(t, d.rows(depth))
	d.ingest(webhooks("x", 9)...)
	jobs := d.look(6).Jobs
	d.settle(completed(jobs[0]), failed(jobs[1], lease), failed(jobs[2], lease), dead(jobs[3]))
	require.Equal(
		t,
		[]string{
			"default|dead|1|f|t|f",
			"default|failed|2|t|t|f",
			"default|pending|3|t|t|f",
			"default|processing|2|t|t|f",
		},
		d.rows(depth),
	)
	require.Equal(
		t,
		jobs[3].ID+"|default|user.created|default|t|1|HTTP 410",
		d.value(`
			select event_id, source, event_type, destination, died_at <= now(), attempt_count, error_message
			from spine.dead_letters`),
	)

	require.Empty(t, d.rows(stuck))
	for id, at := range map[string]string{jobs[4].ID: "61 s", jobs[1].ID: "60 s"} {
		d.run(`
			update spine.processing_state
			set next_attempt_at = now() - $2::interval, updated_at = now() - interval '2 h'
			where event_id = $1`, id, at)
	}
	require.Equal(t, []string{
		jobs[4].ID + "|processing|t|the lease of worker-1 ran out and no worker took it back: " +
			"no process of Spine seems to be connected",
		jobs[1].ID + "|failed|t|due and not claimed: no process of Spine seems to be connected",
	}, d.rows(stuck))
	d.run("select spine.pause()")
	for _, line := range d.rows(stuck) {
		require.Regexp(t, `claims are paused since 20.* by .*, no reason was given \(spine resume, or select `, line)
	}
	require.Equal(
		t,
		[]string{"f", "t", "t", "t"},
		d.rows("select paused_at is not null from spine.depth order by status"),
	)
}

package store_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

// listener hears spine_ready.
type listener struct {
	d    *database
	conn *pgx.Conn
}

type ready struct {
	Count    int      `json:"count"`
	EventIDs []string `json:"event_ids"`
	Due      string   `json:"due"`
}

func listen(d *database) *listener {
	d.t.Helper()
	return &listener{d, d.psql("listen spine_ready", "listen fence")}
}

// heard returns what was announced since the last call by transactions that
// have committed.
func (l *listener) heard() (messages []ready) {
	t := l.d.t
	t.Helper()
	run(t, l.conn, "notify fence")
	for {
		n, err := l.conn.WaitForNotification(t.Context())
		require.NoError(t, err)
		if n.Channel == "fence" {
			return messages
		}
		require.Less(t, len(n.Payload), 8000)
		var m ready
		require.NoError(t, json.Unmarshal([]byte(n.Payload), &m))
		require.LessOrEqual(t, len(m.EventIDs), 5)
		messages = append(messages, m)
	}
}

func one(id string) []ready { return []ready{{Count: 1, EventIDs: []string{id}}} }

// undated leaves out since when rows have been due.
func undated(messages []ready) []ready {
	for i := range messages {
		messages[i].Due = ""
	}
	return messages
}

func TestWhatWakesWorkers(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	l := listen(d)

	d.ingest(webhooks("x", 7)...)
	heard := l.heard()
	require.Len(t, heard, 1)
	require.Equal(t, 7, heard[0].Count)
	require.Len(t, heard[0].EventIDs, 5)
	require.Subset(t, []string{"x-1", "x-2", "x-3", "x-4", "x-5", "x-6", "x-7"}, heard[0].EventIDs)

	jobs := d.claim(7)
	d.settle(completed(jobs[0]), failed(jobs[1], lease), dead(jobs[2]), dead(jobs[3]), failed(jobs[4], lease))
	_, err := d.Renew(t.Context(), jobs[5:], lease)
	require.NoError(t, err)
	require.Empty(t, l.heard(), "claims, settlements and renewals wake nobody")

	where := func(job event.Job) string { return fmt.Sprintf(" where event = %d", job.Event) }
	for _, c := range []struct {
		name, statement string
		want            []ready
	}{
		{"a duplicate", "select spine.ingest('x-1', 'a', '{\"a\":1}')", nil},
		{"a conflict", "select spine.ingest('x-1', 'a', '{\"a\":2}')", nil},
		{"no rows inserted", `
			insert into spine.processing_state (event_id) select event_id from spine.events where false`, nil},
		{"no rows updated", "update spine.processing_state set next_attempt_at = now() where false", nil},
		{"a row inserted by hand", `
			insert into spine.processing_state (event_id, destination) values ('x-1', 'other')`, one("x-1")},
		{"due long after", `
			insert into spine.processing_state (event_id, destination, next_attempt_at)
			values ('x-1', 'later', now() + interval '2 h')`, nil},
		{"due soon, perhaps before the commit", `
			insert into spine.processing_state (event_id, destination, next_attempt_at)
			values ('x-1', 'soon', now() + interval '1 s')`, one("x-1")},
		{"nothing to do", `
			insert into spine.processing_state (event_id, destination, status)
			values ('x-1', 'done', 'completed')`, nil},
		{
			"a status set to pending",
			"update spine.processing_state set status = 'pending'" + where(jobs[2]),
			one(jobs[2].ID),
		},
		{
			"a status set to failed",
			"update spine.processing_state set status = 'failed'" + where(jobs[3]),
			one(jobs[3].ID),
		},
		{"a lease voided", "update spine.processing_state set status = 'pending'" + where(jobs[6]), one(jobs[6].ID)},
		{
			"a retry put off",
			"update spine.processing_state set next_attempt_at = now() + interval '2 h'" + where(jobs[4]),
			nil,
		},
		{
			"a retry to come soon",
			"update spine.processing_state set next_attempt_at = now() + interval '1 s'" + where(jobs[4]),
			one(jobs[4].ID),
		},
		{
			"a retry brought forward",
			"update spine.processing_state set next_attempt_at = now()" + where(jobs[4]),
			one(jobs[4].ID),
		},
		{
			"a retry brought forward to the infinite past",
			"update spine.processing_state set next_attempt_at = '-infinity'" + where(jobs[1]),
			one(jobs[1].ID),
		},
		{"another column", "update spine.processing_state set error_message = 'a note'" + where(jobs[1]), nil},
		{"replay", "select spine.replay('x-1', _destination => 'default')", one("x-1")},
		{"replay of what is pending", "select spine.replay('x-1', _destination => 'default')", nil},
		{"pause", "select spine.pause()", nil},
		{"resume", "select spine.resume()", []ready{{EventIDs: []string{}}}},
		{"resume of what is not paused", "select spine.resume()", nil},
	} {
		d.run(c.statement)
		require.Equal(t, c.want, undated(l.heard()), c.name)
	}

	require.NoError(t, d.GiveBack(t.Context(), jobs[5:]))
	require.Equal(t, one(jobs[5].ID), undated(l.heard()), "the other lease was voided")
}

// What fell due long ago is looked at when a wake-up says so.
func TestWakeUpsSaySinceWhenRowsAreDue(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	l := listen(d)
	d.ingest(webhooks("x", 9)...)
	due := func() (all []string) {
		for _, m := range l.heard() {
			all = append(all, m.Due)
		}
		return all
	}
	require.Equal(t, d.rows("select to_json(min(next_attempt_at)) #>> '{}' as due from spine.processing_state"), due())
	d.run("update spine.processing_state set next_attempt_at = '-infinity' where event_id = 'x-1'")
	require.Equal(t, []string{"-infinity"}, due())
	d.run(`update spine.processing_state p set next_attempt_at = '2024-01-01Z'::timestamptz + interval '1 day' * n
		from (
			values ('x-1', 5), ('x-2', 6), ('x-3', 7), ('x-4', 8), ('x-5', 9), ('x-6', 6), ('x-7', 4), ('x-8', 8),
				('x-9', 3)
		) as d(id, n)
		where p.event_id = d.id`)
	heard := due()
	require.GreaterOrEqual(t, len(heard), 5)
	require.Contains(t, heard, "2024-01-04T00:00:00+00:00", "the oldest, however late it comes")
	d.run("select spine.pause()")
	d.run("select spine.resume()")
	require.Equal(t, []string{"-infinity"}, due())
}

func TestWakeUpsAreBounded(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	const many = 10_000
	d.ingest(webhooks("x", many)...)
	l := listen(d)

	d.run("insert into spine.processing_state (event_id, destination) select event_id, 'other' from spine.events")
	heard := l.heard()
	require.Len(t, heard, 1)
	require.Equal(t, many, heard[0].Count)

	d.run("update spine.processing_state set status = 'dead' where destination = 'other' and event <= 1000")
	require.Empty(t, l.heard())
	for _, statement := range []string{
		"update spine.processing_state set status = 'pending' where destination = 'other' and event <= 1000",
		"update spine.processing_state set next_attempt_at = now() where destination = 'other'",
	} {
		d.run(statement)
		heard = l.heard()
		require.NotEmpty(t, heard)
		require.LessOrEqual(t, len(heard), 5)
	}

	d.run("update spine.processing_state set status = 'dead' where event <= 1500 and destination = 'default'")
	require.Empty(t, l.heard())
	require.Equal(t, "1500", d.value("select spine.replay_dead()"))
	heard = l.heard()
	require.Len(t, heard, 2, "one for each chunk")
	require.Equal(t, 1500, heard[0].Count+heard[1].Count)

	// Replays do not use up what a transaction may announce row by row.
	d.run("update spine.processing_state set status = 'dead' where event_id in ('x-1', 'x-2')")
	tx := begin(t, d.Store)
	run(t, tx, "select spine.replay('x-1', _destination => 'default')")
	run(
		t,
		tx,
		"update spine.processing_state set status = 'pending' where event_id = 'x-2' and destination = 'default'",
	)
	require.NoError(t, tx.Commit(t.Context()))
	require.Equal(t, append(one("x-1"), one("x-2")...), undated(l.heard()))
}

func TestWakeUpsFitIntoANotification(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	l := listen(d)
	for name, character := range map[string]string{
		"quote":     `"`,
		"backslash": `\`,
		"emoji":     "\U0001F600",
		"last":      "\U0010FFFF",
	} {
		var want []string
		for i := range 5 {
			want = append(want, strings.Repeat(character, 254)+fmt.Sprint(i))
		}
		d.run(`
			select spine.ingest_events(
				$1, array_fill('a'::text, array[5]), array_fill(now(), array[5]), array_fill('{}'::text, array[5])
			)`, want)
		heard := l.heard()
		require.Len(t, heard, 1, name)
		require.Equal(t, 5, heard[0].Count)
		require.ElementsMatch(t, want, heard[0].EventIDs, name)
	}
}

func TestNotify(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	l := listen(d)
	require.NoError(t, d.Notify(t.Context(), "spine_ready", `{"count":3}`))
	require.Equal(t, []ready{{Count: 3}}, undated(l.heard()))
	require.Error(t, d.Notify(t.Context(), "spine_ready", strings.Repeat("x", 8000)))
}

package systemtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// tenYears is how many days of the audit log a database has after that time.
const tenYears = 3700

// makeDays makes the audit log's partitions of past days, with some steps in each, up to yesterday.
func makeDays(t *testing.T, database string, days int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	require.NoError(t, err)
	defer func() { _ = conn.Close(t.Context()) }()
	for _, statement := range []string{
		"set timezone = 'UTC'",
		fmt.Sprintf(`do $$ begin
			for n in 1 .. %d loop
				execute format(
					'create table spine.audit_trail_%%s partition of spine.audit_trail for values from (%%L) to (%%L)',
					to_char(current_date - n, 'YYYYMMDD'), current_date - n, current_date - n + 1);
				insert into spine.audit_trail (timestamp, event, event_id, action)
				select current_date - m * interval '1 day' / 10, -m, 'old-' || m, 'event_deduped'
				from generate_series(10 * n - 9, 10 * n) m;
				if n %% 50 = 0 then
					commit;
				end if;
			end loop;
		end $$`, days),
	} {
		_, err := conn.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
}

// E16: a database of ten years serves its viewers and its queue, before its days are merged and while they are. It says
// how quick it is, beside one of a week.
func TestTenYearsOfDays(t *testing.T) {
	t.Parallel()
	wholeRun(t)
	for _, days := range []int{7, tenYears} {
		t.Run(fmt.Sprintf("%d days", days), func(t *testing.T) { servesDays(t, days) })
	}
}

func servesDays(t *testing.T, days int) {
	t.Helper()
	database := ownServer(t).URL()
	code, out, errs := spine(t, []string{"DATABASE_URL=" + database}, "migrate")
	require.Zero(t, code, "%s%s", out, errs)
	makeDays(t, database, days)

	destination := newDestination(t)
	said := &complaints{}
	s := newTarget(
		t,
		runServiceSaying(t, said, both, database, "LOG_LEVEL=info", "MOCK_API_URL="+destination.url),
		database,
	)
	var followers []<-chan string
	for range 4 {
		tail := startTail(t, database, "--json")
		require.Eventually(t, func() bool { return strings.Contains(tail.stderr.String(), "following") },
			patience, 10*time.Millisecond)
		followers = append(followers, tail.lines)
	}
	for range 3 {
		followers = append(followers, s.stream(t))
	}

	const events = 40
	var told []time.Duration
	for n := range events {
		began := time.Now()
		id := fmt.Sprintf("new-%d", n)
		s.accept(t, id, `{"a":1}`)
		for i, lines := range followers {
			awaitStep(t, lines, id, "processing_succeeded", fmt.Sprintf("follower %d", i))
		}
		told = append(told, time.Since(began))
		time.Sleep(50 * time.Millisecond)
	}
	await(t, s.db, events, "select count(*) from spine.processing_state where status = 'completed'")
	slices.Sort(told)
	t.Logf("stored, delivered and told to seven followers within %v in the middle, %v at most",
		told[events/2], told[events-1])

	s.deduplicate(t, "new-2", `{"a":1}`)
	s.age(t, days-3, "new-0", "new-2")
	s.timesLists(t)
	environment := []string{"DATABASE_URL=" + database}
	for _, command := range [][]string{
		{"verify"}, {"verify", "--since", "5000d"}, {"trace", "new-1"}, {"trace", "new-0"}, {"trace", "new-2"}, {"status"},
	} {
		began := time.Now()
		code, out, errs := spine(t, environment, command...)
		require.Zero(t, code, "%s%s", out, errs)
		t.Logf("spine %s took %v", strings.Join(command, " "), time.Since(began))
	}
	require.NotContains(t, said.String(), "shared memory")

	// All of them become months, and nothing is lost.
	const whole = "select count(*) from spine.audit_trail where action = 'event_deduped'"
	for copied := true; copied; {
		execute(t, s.db, "select spine.merge_audit_days('0')")
		copied = value[bool](t, s.db, "select spine.copy_audit_days(now() - interval '35 days') is not null")
	}
	t.Log("Now the days are merged.")
	s.timesLists(t)
	require.Equal(t, 10*days, value[int](t, s.db, whole))
	require.Less(t, value[int](t, s.db, "select count(*) from spine.audit_partitions()"), 200)
}

// E16: the trail of an old event is read although the days since then have more tables than the server has locks for.
// So is what verify compares.
func TestTrailsAreLongerThanTheLocksOfAServer(t *testing.T) {
	t.Parallel()
	const days, age = 440, 420
	database := ownServer(t, [2]string{"max_locks_per_transaction", "16"}, [2]string{"max_connections", "20"}).URL()
	code, out, errs := spine(t, []string{"DATABASE_URL=" + database}, "migrate")
	require.Zero(t, code, "%s%s", out, errs)
	makeDays(t, database, days)
	said := &complaints{}
	s := newTarget(t, runServiceSaying(t, said, both, database, "LOG_LEVEL=info",
		"MOCK_API_URL="+newDestination(t).url), database)
	for _, id := range []string{"old", "without-beginning", "replayed", "new"} {
		s.accept(t, id, `{"a":1}`)
		s.awaitStatus(t, id, "completed")
	}
	s.deduplicate(t, "old", `{"a":1}`)
	execute(t, s.db, "select spine.roll_up()")
	s.age(t, age, "old", "without-beginning", "replayed")
	execute(t, s.db, "select spine.replay('replayed')")
	s.awaitStatus(t, "replayed", "completed")
	execute(t, s.db, fmt.Sprintf(`delete from spine.audit_trail where timestamp > %s and timestamp < %s
		and event_id = 'without-beginning' and action = 'event_received'`, daysAgo(age+1), daysAgo(age-1)))
	_, err := s.db.Exec(t.Context(), "select count(*) from spine.audit_log where event_id = 'old'")
	require.ErrorContains(t, err, "53200", "the server must have too few locks for this test to say anything")

	environment := []string{"DATABASE_URL=" + database}
	for id, steps := range map[string]int{"old": 6, "without-beginning": 3, "replayed": 7} {
		require.Len(t, s.actions(t, id), steps)
		require.Equal(t, steps, value[int](t, s.db, "select count(*) from spine.trace($1)", id))
		require.True(t, value[bool](t, s.db, "select 'standing' in (select topic from spine.explain($1))", id))
		rows, _ := s.rows(t, "/api/audit?event_id="+id)
		require.Len(t, rows, steps)
		code, out, errs = spine(t, environment, "trace", id)
		require.Zero(t, code, "%s%s", out, errs)
		require.Equal(t, http.StatusOK, s.request(t, http.MethodPost, "/api/event/replay?event_id="+id, "").code)
		s.awaitStatus(t, id, "completed")
		require.Eventually(t, func() bool { return len(s.actions(t, id)) == steps+3 }, patience, 10*time.Millisecond)
	}
	tail := startTail(t, database, "--json", "--since", "10000d", "--event", "old")
	awaitStep(t, tail.lines, "old", "event_inserted", "tail")
	awaitStep(t, tail.lines, "old", "event_replayed", "tail")

	// verify finds violations, however old they are.
	broken := func(since string) map[string]int {
		code, out, errs := spine(t, environment, "verify", "--json", "--since", since)
		require.Equal(t, 1, code, "%s%s", out, errs)
		var found []struct {
			Invariant           string
			Checked, Violations int
		}
		require.NoError(t, json.Unmarshal([]byte(out), &found))
		violations := map[string]int{"checked": found[0].Checked}
		for _, f := range found {
			if f.Violations > 0 {
				violations[f.Invariant] = f.Violations
			}
		}
		return violations
	}
	require.Equal(t, map[string]int{"checked": 4, "receipts_counted": 1}, broken("10000d"))
	execute(t, s.db, "delete from spine.processing_state where event_id = 'old'")
	require.Equal(t, map[string]int{"checked": 4, "receipts_counted": 1, "event_queued": 1, "row_as_told": 1},
		broken("10000d"))
	execute(t, s.db, "delete from spine.events where event_id = 'without-beginning'")
	require.Equal(t, 1, broken("10000d")["event_kept"])
	require.NotContains(t, said.String(), "shared memory")
}

// daysAgo is a time as SQL writes it, so that the planner knows it.
func daysAgo(n int) string { return time.Now().UTC().AddDate(0, 0, -n).Format("'2006-01-02Z'") }

// age makes events of today, and their trails, as old as that.
func (s *target) age(t *testing.T, days int, ids ...string) {
	t.Helper()
	execute(t, s.db, fmt.Sprintf("update spine.events set created_at = created_at - interval '%d days'"+
		" where event_id = any ($1)", days), ids)
	for _, column := range []string{"created_at", "last_attempt_at", "updated_at"} {
		execute(t, s.db, fmt.Sprintf("update spine.processing_state set %s = %[1]s - interval '%d days'"+
			" where event_id = any ($1)", column, days), ids)
	}
	execute(t, s.db, fmt.Sprintf("update spine.audit_trail set timestamp = timestamp - interval '%d days'"+
		" where timestamp > %s and event_id = any ($1)", days, daysAgo(1)), ids)
}

// deduplicate sends an event again. Then nothing says when its trail ends.
func (s *target) deduplicate(t *testing.T, id, payload string) {
	t.Helper()
	r, err := s.send(t.Context(), webhook(id, payload))
	require.NoError(t, err)
	require.Equal(t, "deduplicated", r.status())
}

// timesLists says how long lists and an event take.
func (s *target) timesLists(t *testing.T) {
	t.Helper()
	for _, path := range []string{
		"/api/audit", "/api/audit?source=default", "/api/audit?action=claims_paused", "/api/attempts?outcome=failure",
		"/api/event?event_id=new-1", "/api/event?event_id=new-0", "/api/event?event_id=new-2", "/api/overview",
		"/api/audit?event_id=new-1",
	} {
		var took []time.Duration
		for range 9 {
			began := time.Now()
			require.Equal(t, http.StatusOK, s.request(t, http.MethodGet, path, "").code, path)
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		t.Logf("%s took %v in the middle, %v at most", path, took[4], took[8])
	}
}

// awaitStep waits until a follower tells a step of an event.
func awaitStep(t *testing.T, lines <-chan string, id, action, who string) {
	t.Helper()
	for {
		select {
		case line, ok := <-lines:
			require.True(t, ok, "%s has ended", who)
			var step struct {
				EventID string `json:"event_id"`
				Action  string
			}
			require.NoError(t, json.Unmarshal([]byte(line), &step))
			if step.EventID == id && step.Action == action {
				return
			}
		case <-time.After(patience):
			require.FailNow(t, who+" does not tell "+id)
		}
	}
}

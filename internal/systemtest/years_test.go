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
				if n %% 50 = 0 then
					commit;
				end if;
			end loop;
		end $$`, days),
		fmt.Sprintf(`insert into spine.audit_trail (timestamp, event, event_id, action)
			select date_trunc('day', now()) - n * interval '1 day' / 10, -n, 'old-' || n, 'event_deduped'
			from generate_series(1, 10 * %d) n`, days),
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

	s.timesLists(t)
	environment := []string{"DATABASE_URL=" + database}
	for _, command := range [][]string{{"verify"}, {"trace", "new-1"}, {"status"}} {
		code, out, errs := spine(t, environment, command...)
		require.Zero(t, code, "%s%s", out, errs)
	}
	require.NotContains(t, said.String(), "shared memory")

	// All of them become months, and nothing is lost.
	const whole = "select count(*) from spine.audit_trail where action = 'event_deduped'"
	for copied := true; copied; {
		execute(t, s.db, "update spine.audit_merge set copied_at = copied_at - interval '1 hour'")
		execute(t, s.db, "select spine.merge_audit_days()")
		copied = value[bool](t, s.db, "select spine.copy_audit_days(now() - interval '35 days') is not null")
	}
	t.Log("Now the days are merged.")
	s.timesLists(t)
	require.Equal(t, 10*days, value[int](t, s.db, whole))
	require.Less(t, value[int](t, s.db, "select count(*) from spine.audit_partitions()"), 200)
}

// timesLists says how long lists and an event take.
func (s *target) timesLists(t *testing.T) {
	t.Helper()
	for _, path := range []string{
		"/api/audit", "/api/audit?source=default", "/api/audit?action=claims_paused", "/api/attempts?outcome=failure",
		"/api/event?event_id=new-1", "/api/overview", "/api/audit?event_id=new-1",
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

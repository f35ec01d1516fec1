package systemtest

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/command"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/trail"
)

// ingested stores events right in the database.
func ingested(t *testing.T, db *pgxpool.Pool, source string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		execute(
			t,
			db,
			"select spine.ingest($1, 'user.created', '{}', timestamptz '2024-01-30T12:00:00Z', $2)",
			id,
			source,
		)
	}
}

// tailing is a running spine tail, or another command like it.
type tailing struct {
	lines  chan string
	stderr *complaints
	stop   func() (code int)
}

// complaints are what a command writes on the standard error.
type complaints struct {
	mu   sync.Mutex
	text []byte
}

func (c *complaints) Write(text []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, text...)
	return len(text), nil
}

func (c *complaints) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}

func startTail(t *testing.T, database string, args ...string) tailing {
	t.Helper()
	return startLines(t, database, append([]string{"tail"}, args...)...)
}

// startLines runs a command that goes on until it is stopped.
func startLines(t *testing.T, database string, args ...string) tailing {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	out, stdout := io.Pipe()
	stderr := &complaints{}
	ended := make(chan int, 1)
	go func() {
		ended <- command.Run(ctx, args, []string{"DATABASE_URL=" + database}, strings.NewReader(""), stdout, stderr, "")
		_ = stdout.Close()
	}()
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	return tailing{lines, stderr, func() int {
		cancel()
		code := <-ended
		for range lines { // until its reader has ended too
		}
		return code
	}}
}

// next returns the next line.
func (tail tailing) next(t *testing.T) string {
	t.Helper()
	select {
	case line, ok := <-tail.lines:
		require.True(t, ok, "it has ended: %s", tail.stderr)
		return line
	case <-time.After(patience):
		require.FailNow(t, "it is silent")
		return ""
	}
}

// awaitEnd waits until the command has ended by itself.
func (tail tailing) awaitEnd(t *testing.T) {
	t.Helper()
	limit := time.After(patience)
	for {
		select {
		case _, ok := <-tail.lines:
			if !ok {
				return
			}
		case <-limit:
			require.FailNow(t, "it goes on", "%s", tail.stderr)
		}
	}
}

// until returns the events that tail prints up to the one named.
func (tail tailing) until(t *testing.T, last string) (seen []string) {
	t.Helper()
	limit := time.After(patience)
	for {
		select {
		case line, ok := <-tail.lines:
			require.True(t, ok, "tail has ended after %v", seen)
			var row trail.Step
			require.NoError(t, json.Unmarshal(withoutTime(line), &row), line)
			seen = append(seen, *row.EventID)
			if *row.EventID == last {
				return seen
			}
		case <-limit:
			require.FailNow(t, "tail is silent", "after %v", seen)
		}
	}
}

// withoutTime drops the timestamp, because its type does not read JSON.
func withoutTime(line string) []byte {
	return regexp.MustCompile(`"timestamp":"[^"]*",`).ReplaceAll([]byte(line), nil)
}

func noted(t *testing.T, db *pgxpool.Pool, id string) {
	t.Helper()
	execute(
		t,
		db,
		"insert into spine.audit_trail (event_id, source, action) values ($1, 'default', 'status_changed')",
		id,
	)
}

func TestTailOutlivesTheDatabase(t *testing.T) {
	t.Parallel()
	server := postgrestest.Server(t)
	_, err := store.Migrate(t.Context(), server.URL(), nil)
	require.NoError(t, err)
	// A transaction that must survive has a session of its own.
	reconnect := func() *pgxpool.Pool { return open(t, server.URL(), nil) }
	db := reconnect()
	noted(t, db, "before")
	tail := startTail(t, server.URL(), "--json", "--since", "1h")
	require.Equal(t, []string{"before"}, tail.until(t, "before"))
	noted(t, db, "live")
	require.Equal(t, []string{"live"}, tail.until(t, "live"))

	tx, err := db.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(
		t.Context(),
		"insert into spine.audit_trail (event_id, action) values ('began early', 'status_changed')",
	)
	require.NoError(t, err)
	noted(t, db, "meanwhile")
	require.Equal(t, []string{"meanwhile"}, tail.until(t, "meanwhile"))
	killed := value[int](
		t,
		db,
		`select count(pg_terminate_backend(pid)) from pg_stat_activity
		where application_name in ('spine tail', 'spine operator')`,
	)
	require.GreaterOrEqual(t, killed, 2)
	require.NoError(t, tx.Commit(t.Context()))
	noted(t, db, "after the loss")
	require.Equal(t, []string{"began early", "after the loss"}, tail.until(t, "after the loss"))

	server.Kill()
	isAway := regexp.MustCompile(`away.*\n\z`)
	require.Eventually(
		t,
		func() bool { return isAway.MatchString(tail.stderr.String()) },
		patience,
		10*time.Millisecond,
	)
	require.NoError(t, server.Restart(t.Context()))
	db = reconnect()
	noted(t, db, "after the crash")
	noted(t, db, "last")
	require.Equal(t, []string{"after the crash", "last"}, tail.until(t, "last"))

	require.Zero(t, tail.stop())
	require.Regexp(
		t,
		`\Aspine: following .+\n(spine: the database is away, trying again: .+\n`+
			`spine: the database is back, nothing was missed\n)+\z`,
		tail.stderr.String(),
	)
}

// A database that is put back to an earlier state lacks what was printed. It gives out the numbers of transactions
// and rows again. No later step may count as printed already.
func TestTailAndTraceOutliveARestore(t *testing.T) {
	wholeRun(t)
	t.Parallel()
	server := postgrestest.Server(t)
	_, err := store.Migrate(t.Context(), server.URL(), nil)
	require.NoError(t, err)
	ingested(t, open(t, server.URL(), nil), "default", "waits")
	data, backup := filepath.Join(server.Dir(), "data"), filepath.Join(server.Dir(), "backup")
	server.Kill()
	//nolint:gosec // folders of our own
	copied, err := exec.CommandContext(
		t.Context(),
		"cp",
		"-a",
		data,
		backup,
	).CombinedOutput()
	require.NoError(t, err, "%s", copied)
	require.NoError(t, server.Restart(t.Context()))
	db := open(t, server.URL(), nil)
	for range 40 { // more than the numbers that Postgres skips after a crash
		noted(t, db, "waits")
	}

	tail := startTail(t, server.URL(), "--json", "--since", "1h", "--action", "status_changed")
	trace := startLines(t, server.URL(), "trace", "waits", "--follow")
	for !strings.HasPrefix(trace.next(t), "attempt 1 is due ") {
	}
	for trace.next(t) != "" { // why it waits
	}
	noted(t, db, "waits")
	require.Regexp(t, "status changed by hand", trace.next(t))
	noted(t, db, "lost")
	tail.until(t, "lost")

	server.Kill()
	require.NoError(t, os.RemoveAll(data))
	require.NoError(t, os.Rename(backup, data))
	require.NoError(t, server.Restart(t.Context()))
	putBack := regexp.MustCompile(`(?m)^spine: the database was put back .*from now.*\n`)
	for _, command := range []tailing{tail, trace} {
		require.Eventually(
			t,
			func() bool { return putBack.MatchString(command.stderr.String()) },
			patience,
			10*time.Millisecond,
		)
	}
	db = open(t, server.URL(), nil)
	noted(t, db, "waits")
	require.Regexp(t, "status changed by hand", trace.next(t))
	noted(t, db, "last")
	require.Equal(t, []string{"waits", "last"}, tail.until(t, "last"))
	execute(
		t,
		db,
		"update spine.processing_state set status = 'completed', completed_at = now(), next_attempt_at = null",
	)
	require.Regexp(t, "status changed by hand from pending to completed", trace.next(t))
	require.Empty(t, trace.next(t))
	require.Regexp(t, "^completed .+, nothing more to do$", trace.next(t))
	require.Zero(t, trace.stop())
	require.Zero(t, tail.stop())
	for _, command := range []tailing{tail, trace} {
		require.Len(t, putBack.FindAllString(command.stderr.String(), -1), 1, "it is said once")
		require.NotContains(t, command.stderr.String(), "nothing was missed")
	}
}

// Without --since only what happens from now on is printed.
func TestTailChooses(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	db := open(t, database, nil)
	ingested(t, db, "default", "past")
	tail := startTail(
		t,
		database,
		"--json",
		"--action",
		"event_inserted,status_changed",
		"--source",
		"default",
		"--source",
		"none",
	)
	// The listener is the last that tail starts.
	await(
		t,
		db,
		true,
		"select count(*) > 0 from pg_stat_activity where application_name = 'spine tail' and datname = current_database()",
	)
	execute(t, db, "insert into spine.sources (name) values ('other')")
	ingested(t, db, "other", "not asked for")
	ingested(t, db, "default", "one", "two")
	noted(t, db, "last")
	require.Equal(t, []string{"one", "two", "last"}, tail.until(t, "last"))
	require.Zero(t, tail.stop())
	require.Equal(t, "spine: following the steps that fit --source, --action, from now on; Ctrl-C ends it\n",
		tail.stderr.String())
}

func TestTrace(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	db, env := open(t, database, nil), []string{"DATABASE_URL=" + database}

	code, stdout, stderr := spine(t, env, "trace", "never")
	require.Equal(t, 1, code)
	require.Empty(t, stdout)
	require.Equal(
		t,
		"spine: event \"never\" was never stored.\n  Source default: nothing of it is stored yet.\n",
		stderr,
	)

	// GitHub shows the first part of an id alone.
	ingested(t, db, "default", "delivery/7")
	code, stdout, stderr = spine(t, env, "trace", "delivery")
	require.Zero(t, code)
	require.Contains(t, stdout, "event     delivery/7\n")
	require.Equal(
		t,
		"spine: this is delivery/7 of source default, the one event whose id begins with delivery/\n",
		stderr,
	)
	ingested(t, db, "default", "delivery/8")
	code, _, stderr = spine(t, env, "trace", "delivery")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "\n  \"delivery/8\" of source \"default\" begins with it and is stored, pending.\n")
	execute(t, db, "delete from spine.processing_state; delete from spine.events")

	ingested(t, db, "default", "test-001", "test-001")
	execute(t, db, "select spine.ingest('test-001', 'user.created', '{\"other\":1}')")
	for _, outcome := range []string{"failed", "completed"} {
		execute(t, db, "update spine.processing_state set next_attempt_at = '-infinity' where status <> 'completed'")
		execute(t, db, "select spine.claim('default', 10, '1 minute', 'worker-1')")
		execute(
			t,
			db,
			`select spine.settle(
				array[event], array[destination], array[lease_token],
				array[$1], array['2 s'::interval], array[$2], array[$3])
			from spine.processing_state`,
			outcome,
			map[string]any{"failed": "HTTP 503 Service Unavailable"}[outcome],
			map[string]string{
				"failed":    `{"status":503,"duration_ms":12.4,"answer":"no\u001b[31m"}`,
				"completed": `{"status":200,"duration_ms":3.5,"answer":"ok"}`,
			}[outcome],
		)
	}
	execute(t, db, "update spine.audit_log set timestamp = '2024-01-30T12:00:00Z'::timestamptz + id * interval '13 ms'")
	execute(
		t,
		db,
		"update spine.processing_state set created_at = '2024-01-30T12:00:00.1Z', completed_at = '2024-01-30T12:00:02Z'",
	)

	code, stdout, stderr = spine(t, env, "trace", "test-001")
	require.Zero(t, code, stderr)
	require.Regexp(t, `stored    \d{4}-\S+Z \(.* ago\)`, stdout)
	require.Equal(t, `event     test-001
type      user.created
source    default
stored    …
received  3 times
conflicts 1 other payload kept
status    completed, 2 attempts

     +0 ms  ✓ received
    +13 ms  ✓ stored and queued
    +26 ms  ✓ received
    +39 ms  ✓ known already, with this payload
    +52 ms  ✓ received
    +65 ms  ✗ known already, with another payload: kept as evidence
    +78 ms  · attempt 1 started by worker-1
    +91 ms  ✗   failed after 12ms: HTTP 503 Service Unavailable, answer no\x1b[31m
   +104 ms  ·   next attempt in 2s, by the retry policy
   +117 ms  · attempt 2 started by worker-1
   +130 ms  ✓   delivered after 3.5ms: HTTP 200, answer ok

completed 2024-01-30T12:00:02.000Z, 1.9s after it was queued, but another payload under this id was not delivered
another payload came once, first …; it differs at /other: absent -> 1; not delivered (spine conflicts accept test-001)
`, regexp.MustCompile(`(?m)^(stored   |another payload came once, first) [^;\n]*`).ReplaceAllString(stdout, "$1 …"))

	code, stdout, _ = spine(t, env, "trace", "test-001", "--json")
	require.Zero(t, code)
	var h struct {
		EventID    string `json:"event_id"`
		Processing []struct{ Status string }
		Timeline   []struct{ Action string }
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &h))
	require.Equal(t, "test-001", h.EventID)
	require.Len(t, h.Processing, 1)
	require.Len(t, h.Timeline, 11)

	execute(t, db, "insert into spine.sources (name) values ('other')")
	ingested(t, db, "other", "test-001")
	code, _, stderr = spine(t, env, "trace", "test-001")
	require.Equal(t, 1, code)
	require.Equal(t, "spine: the id exists in the sources default, other: name one with --source\n", stderr)
	execute(t, db, "update spine.processing_state set next_attempt_at = 'infinity' where source = 'other'")
	code, stdout, stderr = spine(t, env, "trace", "test-001", "--source", "other")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "attempt 1 is due infinity (never)\n")

	execute(t, db, "select spine.pause()")
	_, stdout, _ = spine(t, env, "trace", "test-001", "--source", "other")
	require.Regexp(t, `attempt 1 is due infinity \(never\)\n  claims are paused since \d{4}-\S+Z by .+\n`, stdout)
	_, stdout, _ = spine(t, env, "trace", "test-001", "--source", "default")
	require.NotContains(t, stdout, "paused", "what is completed waits for nothing")
}

func TestTraceFollows(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	db := open(t, database, nil)
	ingested(t, db, "default", "test-001", "other", "dies")
	attempt := func(id, outcome string) {
		t.Helper()
		execute(
			t,
			db,
			`update spine.processing_state
			set next_attempt_at = case event_id when $1 then '-infinity'::timestamptz else 'infinity' end`,
			id,
		)
		execute(t, db, "select spine.claim('default', 10, '1 minute', 'worker-1')")
		execute(
			t,
			db,
			`select spine.settle(
				array[event], array[destination], array[lease_token],
				array[$1], array['2 s'::interval], array[$2], array['{"status":503}'])
			from spine.processing_state
			where event_id = $3`,
			outcome,
			map[string]any{"failed": "HTTP 503", "dead": "HTTP 410"}[outcome],
			id,
		)
	}
	attempt("test-001", "failed")

	trace := startLines(t, database, "trace", "test-001", "--follow")
	waits := func(line string) bool { return strings.HasPrefix(line, "attempt 2 is due ") }
	var seen []string
	for line := trace.next(t); !waits(line); line = trace.next(t) {
		seen = append(seen, line)
	}
	require.Contains(t, strings.Join(seen, "\n"), "✗   failed: HTTP 503\n")
	for trace.next(t) != "" { // why it waits
	}
	attempt("other", "completed")
	ingested(t, db, "default", "test-001")
	attempt("test-001", "completed")
	for _, want := range []string{
		"✓ received",
		"✓ known already, with this payload",
		"· attempt 2 started by worker-1",
		"✓   delivered: HTTP 503",
	} {
		require.Regexp(t, `^ +\+\S+( m?s)?  `+want+`$`, trace.next(t))
	}
	require.Empty(t, trace.next(t))
	require.Regexp(t, `^completed .+, nothing more to do$`, trace.next(t))
	for line := range trace.lines {
		require.Fail(t, "it goes on", line)
	}
	require.Zero(t, trace.stop())
	require.Empty(t, trace.stderr.String())

	dies := startLines(t, database, "trace", "dies", "--follow", "--json")
	attempt("dies", "dead")
	var h struct{ Processing []struct{ Status string } }
	require.NoError(t, json.Unmarshal([]byte(dies.next(t)), &h))
	require.Equal(t, "dead", h.Processing[0].Status)
	require.Equal(t, 1, dies.stop())
	require.Equal(t, "spine: the event is dead\n", dies.stderr.String())

	code, stdout, _ := spine(t, []string{"DATABASE_URL=" + database}, "trace", "test-001", "--follow")
	require.Zero(t, code)
	require.Equal(t, 1, strings.Count(stdout, "completed, 2 attempts"), "what is over is shown at once")
	require.Equal(t, 1, strings.Count(stdout, "nothing more to do"))
}

// Exit code 0 means delivered. A script must not get 0 because somebody ended trace, or because the event is gone.
func TestTraceThatEndsBeforeItsEventFails(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	db := open(t, database, nil)
	ingested(t, db, "default", "interrupted", "deleted")
	listening := func(n int) {
		t.Helper()
		await(
			t,
			db,
			n,
			"select count(*) from pg_stat_activity where application_name = 'spine tail' and datname = current_database()",
		)
	}

	inWords := startLines(t, database, "trace", "interrupted", "--follow")
	inJSON := startLines(t, database, "trace", "interrupted", "--follow", "--json")
	listening(2)
	for _, trace := range []tailing{inWords, inJSON} {
		require.Equal(t, 1, trace.stop())
		require.Equal(t, "spine: ended before the event was delivered or dead\n", trace.stderr.String())
	}

	listening(0)
	inWords = startLines(t, database, "trace", "deleted", "--follow")
	inJSON = startLines(t, database, "trace", "deleted", "--follow", "--json")
	listening(2)
	execute(t, db, "delete from spine.processing_state where event_id = 'deleted'")
	execute(t, db, "delete from spine.events where event_id = 'deleted'")
	for _, trace := range []tailing{inWords, inJSON} {
		trace.awaitEnd(t)
		require.Equal(t, 1, trace.stop())
		require.Equal(t, "spine: the event is no longer stored\n", trace.stderr.String())
	}
}

func TestAReplayNamesWhoAskedForIt(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	db, env := open(t, database, nil), []string{"DATABASE_URL=" + database}
	ingested(t, db, "default", "a")
	execute(t, db, "update spine.processing_state set status = 'dead'")
	code, _, stderr := spine(t, env, "replay", "a")
	require.Zero(t, code, stderr)
	code, stdout, stderr := spine(t, env, "trace", "a")
	require.Zero(t, code, stderr)
	require.Regexp(t, `replayed by \w+ \(spine replay\), was dead\n`, stdout)
}

func TestStatus(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	db, env := open(t, database, nil), []string{"DATABASE_URL=" + database}
	code, stdout, stderr := spine(t, env, "status")
	require.Zero(t, code, stderr)
	require.Regexp(t, `\Aschema  current

Nothing waits and nothing is dead\.

PER SECOND       now   1 min   5 min  15 min
received +(0|\?) +(0|\?) +(0|\?) +(0|\?)
(.+\n){8}latency      p50 [-?]       p95 [-?]       p99 [-?]       worst p99 [-?]
\z`, stdout, "what was before the hour in which the database was made is not known")

	ingested(t, db, "default", "stuck", "dead", "waits")
	execute(
		t,
		db,
		`update spine.processing_state
		set next_attempt_at = '-infinity', updated_at = now() - interval '1 hour'
		where event_id = 'stuck'`,
	)
	execute(
		t,
		db,
		"update spine.processing_state set status = 'dead', error_message = 'HTTP 410 Gone' where event_id = 'dead'",
	)
	execute(t, db, "update spine.processing_state set next_attempt_at = 'infinity' where event_id = 'waits'")
	code, stdout, stderr = spine(t, env, "status")
	require.Zero(t, code, stderr)
	require.Regexp(t, `oldest waiting +due for 1h(0m\d+s)?\n`, stdout)

	execute(t, db, "select spine.pause('default')")
	code, stdout, stderr = spine(t, env, "status")
	require.Zero(t, code, stderr)
	require.Regexp(t, `oldest waiting +due for 1h`, stdout, "nobody forgets a pause")
	for _, want := range []string{
		`last arrival +\d{4}-\S+Z +\(.+ ago\) +from default\n`, `paused +default +since \d{4}-\S+Z by \w+\n`,
		`default +pending +2 +.+ ago +always\n`, `default +dead +1 +.+ ago +-\n`,
		`\nSTUCK +DUE +WHY\nstuck +always +claims are paused`, `\nLAST DIED +WHEN +WHY\ndead +.+ ago +HTTP 410 Gone\n`,
	} {
		require.Regexp(t, want, stdout)
	}
	code, stdout, stderr = spine(t, env, "status", "--json")
	require.Zero(t, code, stderr)
	var o struct {
		Schema      string
		OldestReady float64 `json:"oldest_ready_seconds"`
		Backlog     []struct {
			Status string
			Count  int
		}
		Paused, Stuck []struct{ Destination string }
		DeadLetters   []struct {
			EventID string `json:"event_id"`
		} `json:"dead_letters"`
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &o))
	require.Len(t, o.Backlog, 2)
	require.Len(t, o.Stuck, 1)
	require.Equal(t, "dead", o.DeadLetters[0].EventID)
	require.InDelta(t, 3600, o.OldestReady, 60)

	execute(t, db, "select spine.resume()")
	code, stdout, stderr = spine(t, env, "status", "--json")
	require.Zero(t, code, stderr)
	require.NoError(t, json.Unmarshal([]byte(stdout), &o))
	require.InDelta(t, 3600, o.OldestReady, 60)

	code, stdout, stderr = spine(t, []string{"DATABASE_URL=" + databases.Empty(t)}, "status")
	require.Equal(t, 1, code)
	require.Empty(t, stdout)
	require.Equal(t, "spine: the database is not migrated: run spine migrate\n", stderr)
}

func TestReplayCommand(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	db, env := open(t, database, nil), []string{"DATABASE_URL=" + database}
	ingested(t, db, "default", "a", "b", "c")
	replay := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		code, stdout, stderr := spine(t, env, append([]string{"replay"}, args...)...)
		require.Equal(t, want, code, stderr)
		return stdout, stderr
	}
	die := func() {
		t.Helper()
		execute(
			t,
			db,
			"update spine.processing_state set status = 'dead', updated_at = now() - event * interval '1 hour'",
		)
	}

	_, stderr := replay(1, "never")
	require.Contains(t, stderr, `event "never" was never stored`)
	_, _ = replay(1, "a", "--source", "other")
	_, _ = replay(1, "a", "--destination", "other")
	stdout, _ := replay(0, "a")
	require.Equal(t, "0 replayed: it is pending or processing already\n", stdout)
	die()
	stdout, _ = replay(0, "a", "--source", "default", "--destination", "default")
	require.Equal(t, "1 replayed\n", stdout)

	_, stderr = replay(2, "--dead")
	require.Equal(t, "spine: there is no terminal to ask on: give --yes\n", stderr)
	require.Equal(
		t,
		2,
		value[int](t, db, "select count(*) from spine.processing_state where status = 'dead'"),
		"nothing was done unasked",
	)
	die()
	stdout, _ = replay(0, "--dead", "--yes", "--since", "150m", "--until", "90m", "--type", "user.created")
	require.Equal(t, "1 replayed\n", stdout)
	require.Equal(t, "pending", value[string](t, db, "select status from spine.processing_state where event_id = 'b'"))
	stdout, _ = replay(0, "--dead", "--yes", "--limit", "1", "--json")
	require.JSONEq(t, `{"replayed":1}`, stdout)
	stdout, _ = replay(0, "--dead", "--yes", "--type", "other")
	require.Equal(t, "0 replayed\n", stdout)
	stdout, _ = replay(0, "--dead", "--yes")
	require.Equal(t, "1 replayed\n", stdout)
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	db, env := open(t, database, nil), []string{"DATABASE_URL=" + database}
	ingested(t, db, "default", "a")
	call := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		code, stdout, stderr := spine(t, env, args...)
		require.Equal(t, want, code, stderr)
		return stdout, stderr
	}
	claimed := func() int {
		t.Helper()
		return value[int](t, db, "select count(*) from spine.claim('default', 10, '1 minute', 'worker-1')")
	}

	_, stderr := call(1, "pause", "--destination", "nowhere")
	require.Equal(t, "spine: there is no such destination: nowhere\n", stderr)
	_, _ = call(1, "resume", "--destination", "nowhere")
	stdout, _ := call(0, "resume")
	require.Equal(t, "0 destinations resumed\n", stdout)

	stdout, _ = call(0, "pause")
	require.Equal(t, "1 destination paused\n", stdout)
	stdout, _ = call(0, "pause", "--destination", "default", "--json")
	require.JSONEq(t, `{"paused":0}`, stdout)
	require.Zero(t, claimed())
	stdout, _ = call(0, "resume", "--destination", "default", "--json")
	require.JSONEq(t, `{"resumed":1}`, stdout)
	require.Equal(t, 1, claimed())
}

func TestMigrateCommand(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=postgres://spine@127.0.0.1:1/spine", "DIRECT_DATABASE_URL=" + databases.Empty(t)}
	code, stdout, stderr := spine(t, env, "migrate")
	require.Zero(t, code, stderr)
	require.Regexp(
		t,
		`^The schema is at version \d+: \d+ migrations? applied, functions updated, 8 audit partitions created\.\n$`,
		stdout,
	)
	code, stdout, stderr = spine(t, env, "migrate", "--json")
	require.Zero(t, code, stderr)
	require.Regexp(t, `^{"version":\d+,"applied":\[\],"functions":false,"partitions":0}\n$`, stdout)
}

func TestOperatorExitCodes(t *testing.T) {
	const unreachable = "DATABASE_URL=postgres://spine@127.0.0.1:1/spine"
	for _, tc := range []struct {
		want int
		args []string
	}{
		{2, []string{"trace"}},
		{2, []string{"trace", "a", "b"}},
		{2, []string{"tail", "a"}},
		{2, []string{"tail", "--since", "x"}},
		{2, []string{"tail", "--action", "event_inserted,foo"}},
		{2, []string{"tail", "--status", "done"}},
		{2, []string{"status", "--interval", "2"}},
		{2, []string{"status", "--watch", "--interval", "1ms"}},
		{1, []string{"status", "--watch"}},
		{1, []string{"trace", "a", "--follow"}},
		{2, []string{"pause", "default"}},
		{1, []string{"pause"}},
		{1, []string{"resume"}},
		{2, []string{"status", "--no-such-flag"}},
		{2, []string{"status", "--database-url", "nonsense"}},
		{2, []string{"replay"}},
		{2, []string{"replay", "a", "--dead"}},
		{2, []string{"replay", "a", "--yes"}},
		{2, []string{"replay", "--dead", "--limit", "0"}},
		{1, []string{"tail"}},
		{1, []string{"trace", "a"}},
		{1, []string{"status"}},
		{1, []string{"replay", "a"}},
		{1, []string{"replay", "--dead", "--yes"}},
	} {
		code, stdout, stderr := spine(t, []string{unreachable}, tc.args...)
		require.Equal(t, tc.want, code, "%v: %s", tc.args, stderr)
		require.Empty(t, stdout)
		require.Regexp(t, "^spine: [^\n]+\n$", stderr, "one line")
	}
	code, _, stderr := spine(t, nil, "status")
	require.Equal(t, 2, code)
	require.Contains(t, stderr, "DATABASE_URL")
}

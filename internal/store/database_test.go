package store_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
)

// session is a pool, a connection or a transaction.
type session interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// database is a test's own database, as Spine sees it and as psql shows it.
type database struct {
	*store.Store
	t   *testing.T
	url string
}

// newDatabase makes a migrated database and a store on it with up to conns
// connections.
func newDatabase(t *testing.T, conns int32) *database {
	t.Helper()
	return openDatabase(t, databases.New(t), conns)
}

func openDatabase(t *testing.T, url string, conns int32) *database {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: url, MaxConns: conns, AppName: "spine test"})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return &database{Store: s, t: t, url: url}
}

// psql opens a session of its own and runs the given statements in it.
func (d *database) psql(statements ...string) *pgx.Conn {
	d.t.Helper()
	conn, err := pgx.Connect(d.t.Context(), d.url)
	require.NoError(d.t, err)
	d.t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(d.t.Context())) })
	for _, s := range statements {
		run(d.t, conn, s)
	}
	return conn
}

func (d *database) run(sql string, args ...any) {
	d.t.Helper()
	run(d.t, d.Pool(), sql, args...)
}

func (d *database) rows(sql string, args ...any) []string {
	d.t.Helper()
	return rows(d.t, d.Pool(), sql, args...)
}

func (d *database) value(sql string, args ...any) string {
	d.t.Helper()
	return value(d.t, d.Pool(), sql, args...)
}

func run(t *testing.T, on session, sql string, args ...any) {
	t.Helper()
	_, err := on.Exec(t.Context(), sql, args...)
	require.NoError(t, err, sql)
}

// rows returns what psql -At would print: a line a row, columns joined by |.
func rows(t *testing.T, on session, sql string, args ...any) []string {
	t.Helper()
	result, err := on.Query(t.Context(), sql, append([]any{pgx.QueryResultFormats{pgx.TextFormatCode}}, args...)...)
	require.NoError(t, err, sql)
	lines, err := pgx.CollectRows(result, func(row pgx.CollectableRow) (string, error) {
		columns := make([]string, len(row.RawValues()))
		for i, c := range row.RawValues() {
			columns[i] = string(c)
		}
		return strings.Join(columns, "|"), nil
	})
	require.NoError(t, err, sql)
	return lines
}

func value(t *testing.T, on session, sql string, args ...any) string {
	t.Helper()
	lines := rows(t, on, sql, args...)
	require.Len(t, lines, 1, sql)
	return lines[0]
}

// noteCommits notes in public.commits how durable each commit is that changes a row of Spine's.
func noteCommits(t *testing.T, on session) {
	t.Helper()
	run(t, on, "create table public.commits (setting text)")
	run(t, on, `create function public.note_commit() returns trigger language plpgsql as $$ begin
		insert into public.commits values (current_setting('synchronous_commit')); return null; end $$`)
	run(t, on, `do $$ declare _table regclass; begin
		for _table in
			select c.oid
			from pg_class c
			where c.relnamespace = 'spine'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
				and c.relname !~ '^audit_trail_' -- it becomes a partition, and gets the trigger then
		loop
			execute format('create constraint trigger commits after insert or update or delete on %s '
				'deferrable initially deferred for each row execute function public.note_commit()', _table);
		end loop; end $$`)
}

// statementError returns the error with which the database rejects a statement.
func statementError(t *testing.T, on session, sql string) *pgconn.PgError {
	t.Helper()
	_, err := on.Exec(t.Context(), sql)
	var pgErr *pgconn.PgError
	require.ErrorAs(t, err, &pgErr, sql)
	return pgErr
}

var occurredAt = time.Date(2024, 1, 30, 12, 0, 0, 0, time.UTC)

// webhook is an event whose payload is in canonical form already.
func webhook(id, payload string) event.Event {
	return event.Event{
		Source: event.DefaultSource, ID: id, Type: "user.created", OccurredAt: occurredAt,
		Payload: []byte(payload), Hash: sha256.Sum256([]byte(payload)),
	}
}

// webhooks are n events, named prefix-1 to prefix-n.
func webhooks(prefix string, n int) []event.Event {
	events := make([]event.Event, n)
	for i := range events {
		events[i] = webhook(fmt.Sprintf("%s-%d", prefix, i+1), `{"a":1}`)
	}
	return events
}

// ingest stores events, a thousand at a time.
func (d *database) ingest(events ...event.Event) (outcomes []event.Outcome) {
	d.t.Helper()
	for len(events) > 0 {
		n := min(len(events), 1000)
		receipts, err := d.Ingest(d.t.Context(), events[:n])
		require.NoError(d.t, err)
		for _, r := range receipts {
			outcomes = append(outcomes, r.Outcome)
		}
		events = events[n:]
	}
	return outcomes
}

// trail is an event's audit trail, as actions.
func (d *database) trail(id string) []string {
	d.t.Helper()
	return d.rows("select action from spine.trace($1)", id)
}

// policy is the contract's: five attempts.
var policy = []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}

const lease = 30 * time.Second

// wholeRun leaves a test out of a short run. It takes seconds of a processor, and nearby tests hold most of the same.
// make proof runs it.
func wholeRun(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("in a whole run only: make proof, or make test RUN=" + t.Name())
	}
}

// patience is how long a test waits for what takes milliseconds on an idle machine. It ends only a
// wait for something that never comes.
const patience = 2 * time.Minute

// ask is what a worker asks for that looks at all of the default destination.
func ask(limit int) event.Claim {
	return event.Claim{
		Destination: event.DefaultDestination,
		Limit:       limit,
		Lease:       lease,
		Worker:      "worker-1",
		Delays:      policy,
	}
}

// look claims up to limit events of the default destination.
func (d *database) look(limit int) event.Claimed {
	d.t.Helper()
	claimed, err := d.Claim(d.t.Context(), ask(limit))
	require.NoError(d.t, err)
	return claimed
}

// claim claims all that is due, which must be n events.
func (d *database) claim(n int) []event.Job {
	d.t.Helper()
	claimed := d.look(10_000)
	require.Empty(d.t, claimed.Expired)
	require.Len(d.t, claimed.Jobs, n)
	return claimed.Jobs
}

// completed, failed and dead are settlements as a worker makes them.
func completed(job event.Job) event.Settlement {
	return event.Settlement{
		Job: job, Disposition: event.Completed,
		Result: event.Result{Class: event.Done, Status: 200, Answer: "thank you", Duration: 12500 * time.Microsecond},
	}
}

func failed(job event.Job, delay time.Duration) event.Settlement {
	return event.Settlement{
		Job:         job,
		Disposition: event.Failed,
		Delay:       delay,
		Result: event.Result{
			Class:    event.TryAgain,
			Status:   503,
			Answer:   "not now",
			Error:    "HTTP 503",
			Duration: time.Millisecond,
		},
	}
}

func dead(job event.Job) event.Settlement {
	return event.Settlement{
		Job: job, Disposition: event.Dead,
		Result: event.Result{Class: event.GiveUp, Status: 410, Error: "HTTP 410", Duration: time.Millisecond},
	}
}

// deferred is the settlement of an attempt that did not reach the destination.
func deferred(job event.Job, delay time.Duration) event.Settlement {
	return event.Settlement{
		Job: job, Disposition: event.Deferred, Delay: delay,
		Result: event.Result{Class: event.Unreached, Error: "connection refused", Duration: time.Millisecond},
	}
}

// settle settles, and returns for each whether it counted.
func (d *database) settle(settlements ...event.Settlement) []event.LeaseState {
	d.t.Helper()
	counted, err := d.Settle(d.t.Context(), settlements)
	require.NoError(d.t, err)
	return counted
}

// due makes what waits for a retry, and leases, fall due.
func (d *database) due() {
	d.t.Helper()
	d.run("update spine.processing_state set next_attempt_at = clock_timestamp() where next_attempt_at is not null")
}

func eventIDs(jobs []event.Job) []string {
	names := make([]string, len(jobs))
	for i, j := range jobs {
		names[i] = j.ID
	}
	return names
}

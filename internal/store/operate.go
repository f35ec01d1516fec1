package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// CurrentCursor returns a cursor after all audit rows that are committed now.
func (s *Store) CurrentCursor(ctx context.Context) (trail.Cursor, error) {
	now, err := s.audited(ctx, 0)
	return trail.CursorAt(now), err
}

// statusAfter is the status into which a row of spine.audit_log a brings its
// event; null where it brings it into none.
const statusAfter = `(case a.action
	when 'event_inserted' then 'pending'
	when 'event_replayed' then 'pending'
	when 'event_queued' then coalesce(a.details->>'status', 'pending')
	when 'lease_returned' then case when a.details->>'attempt' = '1' then 'pending' else 'failed' end
	when 'processing_attempt_started' then 'processing'
	when 'processing_succeeded' then 'completed'
	when 'retry_scheduled' then 'failed'
	when 'processing_failed_permanently' then 'dead'
	when 'status_changed' then a.details->>'to'
end)`

// follow adds what f asks for as conditions on spine.audit_log a. The type is
// not a join, which the planner might begin with the events.
func (q *query) follow(f trail.Filter) {
	among(q, "a.event_id", f.EventIDs)
	among(q, "a.source", f.Sources)
	among(q, "a.action", f.Actions)
	among(q, statusAfter, f.Statuses)
	among(q, typeOf("a.event"), f.Types)
}

// among adds a condition where there are values, that the expression is one of them.
func among[T ~string](q *query, expression string, values []T) {
	if len(values) > 0 {
		q.where(expression+" = any (?::text[])", values)
	}
}

// followPage is how many audit rows ReadAudit returns at most: some 100 kB as
// JSON, which a viewer of the stream takes as one message.
const followPage = 500

// Follow hands all audit rows after c that are committed now and match f to
// each, in pages ordered by timestamp and id, and returns the cursor after the
// last page that each took; it does so with an error too. Call it again with
// what it returned. No statement is open while each runs: a slow reader holds
// back neither vacuum nor the queue.
func (s *Store) Follow(ctx context.Context, c trail.Cursor, f trail.Filter, each func([]trail.Step) error) (trail.Cursor, error) {
	for {
		rows, next, err := s.ReadAudit(ctx, c, f)
		if err != nil {
			return c, err
		}
		if len(rows) > 0 {
			if err := each(rows); err != nil {
				return c, err
			}
		}
		if c = next; c.Settled() {
			return c, nil
		}
	}
}

// ReadAudit returns the page after c of the audit rows that match f, ordered by
// timestamp and id, and the cursor after it. Pages are read up to what c is
// reading to, or where it is not, to what is committed now; next is settled
// with the last of them. A page may be empty. The error is
// trail.ErrCursorAhead, or that of the database.
func (s *Store) ReadAudit(ctx context.Context, c trail.Cursor, f trail.Filter) (rows []trail.Step, next trail.Cursor, err error) {
	if c.Until == nil {
		now, err := s.audited(ctx, c.Seen.End)
		if err != nil {
			return nil, c, err
		}
		if c = c.ReadingTo(now); c.Settled() {
			return nil, c, nil
		}
	}
	rows, last, err := s.auditPage(ctx, c, f)
	if err != nil {
		return nil, c, err
	}
	return rows, c.After(last, len(rows) == followPage), nil
}

// snapshotTimeout is how soon Follow gives up a connection whose other end is
// gone without a word. What it asks at first takes no time at all.
const snapshotTimeout = 5 * time.Second

// audited returns the transactions whose rows in the audit log are committed
// now, up to least at least: the newest rows may have been dropped. The error is
// trail.ErrCursorAhead where the database has not got as far as least. It relies
// on audit_trail_xid.
//
// It ends with the newest row and leaves out what pg_current_snapshot() knows
// beyond, though nothing is there. After a crash Postgres gives those numbers
// out again that had not come to disk: of transactions that failed, and of
// those that only notified, whose commit nobody waits for. The newest row's
// commit was waited for, so that no number up to it comes again.
//
// Rows of the future are passed over: a dump restored into a younger server has
// numbers that this one has not reached.
func (s *Store) audited(ctx context.Context, least uint64) (t trail.Transactions, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, snapshotTimeout, errors.New("the database does not answer"))
	defer cancel()
	var newest, next string
	var inProgress []string
	err = s.pool.QueryRow(ctx, `select coalesce((select a.xid from spine.audit_log a
			where a.xid < pg_snapshot_xmax(pg_current_snapshot()) order by a.xid desc limit 1)::text, '0'),
		pg_snapshot_xmax(pg_current_snapshot())::text,
		array(select x::text from pg_snapshot_xip(pg_current_snapshot()) x)`).Scan(&newest, &next, &inProgress)
	if err != nil {
		return t, fmt.Errorf("reading the audit log: %w", err)
	}
	numbers := make([]uint64, 0, 2+len(inProgress))
	for _, text := range append([]string{newest, next}, inProgress...) {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return t, fmt.Errorf("reading the audit log: %w", err)
		}
		numbers = append(numbers, n)
	}
	if least > numbers[1] {
		return t, fmt.Errorf("reading the audit log: %w", trail.ErrCursorAhead)
	}
	t.End = max(numbers[0]+1, least)
	for _, xid := range numbers[2:] {
		if xid < t.End {
			t.Except = append(t.Except, xid)
		}
	}
	slices.Sort(t.Except)
	return t, nil
}

// auditPage reads the page after c: of the past, of transactions that ended
// late, or of new ones, in this order. Going by xid it reads each backlog once,
// however long it is, and nothing again for the sake of a transaction that
// stays open. It relies on audit_trail_xid, and in the past on
// audit_trail_timestamp, or on audit_trail_event where events are named: a row
// of an event is never committed before the event, so that its past is found by
// it whatever was committed since c.Until was taken.
func (s *Store) auditPage(ctx context.Context, c trail.Cursor, f trail.Filter) (rows []trail.Step, last trail.Key, err error) {
	var q query
	q.where("a.xid < ?::text::xid8 and a.xid <> all (?::text[]::xid8[])", strconv.FormatUint(c.Until.End, 10), xids(c.Until.Except))
	q.follow(f)
	from, order, how := "spine.audit_log", "a.timestamp, a.id", withIndex
	after := c.Last.Timestamp.String() // as text, since it may be infinite
	if !c.Live {
		// The first term is implied by the second; partitions are pruned by it.
		q.where("a.timestamp >= ?::text::timestamptz and (a.timestamp, a.id) > (?::text::timestamptz, ?::bigint)", after, after, c.Last.ID)
		if len(f.EventIDs) > 0 {
			since, err := s.trailStart(ctx, f.EventIDs...)
			if err != nil {
				return nil, trail.Key{}, err
			}
			how = byEvent
			from = trailRows("any (array(select n.id from spine.events n where n.event_id = any ("+q.arg(f.EventIDs)+"::text[])))", q.arg(since))
		}
	} else {
		if c.Late {
			q.where("a.xid = any (?::text[]::xid8[])", xids(c.EndedLate()))
		} else {
			q.where("a.xid >= ?::text::xid8", strconv.FormatUint(c.Seen.End, 10))
		}
		q.where("(a.xid, a.timestamp, a.id) > (?::text::xid8, ?::text::timestamptz, ?::bigint)", strconv.FormatUint(c.Last.XID, 10), after, c.Last.ID)
		order = "a.xid, " + order
	}
	sql := "select " + stepColumns + ", a.xid::text from " + from + " a" + q.conditions() + " order by " + order + " limit " + q.arg(followPage)

	type row struct {
		trail.Step
		XID string
	}
	found, err := readRows[row](ctx, s, how, "reading the audit log", sql, q.args...)
	if err != nil {
		return nil, trail.Key{}, err
	}
	for _, r := range found {
		rows = append(rows, r.Step)
	}
	if n := len(found); n > 0 {
		last = trail.Key{Timestamp: found[n-1].Timestamp, ID: found[n-1].ID}
		if last.XID, err = strconv.ParseUint(found[n-1].XID, 10, 64); err != nil {
			return nil, trail.Key{}, fmt.Errorf("reading the audit log: %w", err)
		}
	}
	slices.SortFunc(rows, func(a, b trail.Step) int {
		return cmp.Or(cmp.Compare(a.Timestamp.UnixMicro(), b.Timestamp.UnixMicro()), cmp.Compare(a.ID, b.ID))
	})
	return rows, last, nil
}

// xids are the numbers of transactions as texts, which xid8 can be made of.
func xids(numbers []uint64) []string {
	texts := make([]string, len(numbers))
	for i, n := range numbers {
		texts[i] = strconv.FormatUint(n, 10)
	}
	return texts
}

const pausedSQL = "select name, paused_at, paused_by from spine.destinations where paused_at is not null order by name"

// Paused lists the destinations whose claims are paused.
func (s *Store) Paused(ctx context.Context) ([]view.PauseRow, error) {
	return collect[view.PauseRow](ctx, s, "listing what is paused",
		pausedSQL)
}

// StuckRow is a row of the queue that should have been claimed some time ago.
type StuckRow struct {
	EventID     string          `json:"event_id"`
	Source      string          `json:"source"`
	Destination string          `json:"destination"`
	Status      string          `json:"status"`
	DueAt       event.Timestamp `json:"due_at"`
	Reason      string          `json:"reason"` // what may hold it up
}

// queuedDestinations are the destinations that the queue holds something for,
// also where they are not known otherwise, by a skip scan of
// processing_state_due.
const queuedDestinations = `(with recursive queued (name) as (
		(select p.destination from spine.processing_state p where p.status in ('pending', 'failed', 'processing') order by p.destination limit 1)
		union all
		select (select p.destination from spine.processing_state p
			where p.status in ('pending', 'failed', 'processing') and p.destination > q.name order by p.destination limit 1)
		from queued q where q.name is not null
	) select name from queued where name is not null)`

// Stuck lists what has been due for ten seconds or longer, longest first, at
// most limit rows. It relies on processing_state_due, and reads no more of it
// than limit rows for each destination, however much is stuck.
func (s *Store) Stuck(ctx context.Context, limit int) ([]StuckRow, error) {
	return list[StuckRow](ctx, s, "listing what is stuck", `select s.* from `+queuedDestinations+` n cross join lateral (
		-- The view goes by a clock that moves on, for which no index can be used.
		select event_id, source, destination, status, due_at, reason from spine.stuck
		where destination = n.name and due_at < now() - interval '10 seconds' order by due_at limit $1) s
		order by s.due_at limit $1`, limit)
}

// collect reads all rows of a query into structs, field by column.
func collect[T any](ctx context.Context, s *Store, doing, sql string, args ...any) ([]T, error) {
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[T])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	return all, nil
}

// Replay delivers an event again, to every destination or to the one named,
// and returns how many rows were replayed: none where they are pending or
// processing. source and destination may be empty. The error is an
// *view.NotStoredError (also where the event was never queued for
// destination), an *view.AmbiguousError, or that of the database. Called
// again after a lost answer it finds the rows pending and changes nothing.
//
// caller says who asks, for the audit log, which keeps its first 300
// characters. What Postgres does not take as text is replaced.
func (s *Store) Replay(ctx context.Context, eventID, source, destination, caller string) (replayed int64, err error) {
	batch := &pgx.Batch{} // one transaction
	batch.Queue("select set_config('spine.caller', $1, true)", storable(caller))
	batch.Queue("select spine.replay($1, nullif($2, ''), nullif($3, ''))", eventID, source, destination).
		QueryRow(func(row pgx.Row) error { return row.Scan(&replayed) })
	if err := s.pool.SendBatch(ctx, batch).Close(); err != nil {
		return 0, s.lookupError(ctx, "replaying an event", eventID, err)
	}
	return replayed, nil
}

// lookupError tells what spine.id_of() and its callers say of an event from
// the errors of the database, which it wraps.
func (s *Store) lookupError(ctx context.Context, doing, eventID string, err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.Code {
		case "P0002":
			return &view.NotStoredError{Detail: pgErr.Message}
		case "21000":
			ambiguous := &view.AmbiguousError{Detail: pgErr.Message}
			err := s.pool.QueryRow(ctx, "select array_agg(e.source order by e.source) from spine.events e where e.event_id = $1", eventID).
				Scan(&ambiguous.Sources)
			if err == nil && len(ambiguous.Sources) > 1 { // or else events have gone since
				return ambiguous
			}
		}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// DeadFilter chooses dead rows of the queue. Zero fields choose all.
type DeadFilter struct {
	Since       time.Time // when it died, inclusive
	Until       time.Time // when it died, exclusive
	Source      string
	EventType   string
	Destination string
}

// args are $1 to $5 of the statements on dead rows. Both ends of the time are
// text, for infinity.
func (f DeadFilter) args() []any {
	since, until := event.Timestamp{Infinity: -1}, event.Timestamp{Infinity: 1}
	if !f.Since.IsZero() {
		since = event.Timestamp{Time: f.Since.UTC()}
	}
	if !f.Until.IsZero() {
		until = event.Timestamp{Time: f.Until.UTC()}
	}
	return []any{since.String(), until.String(), f.Source, f.EventType, f.Destination}
}

// CountDead counts the dead rows that f chooses, up to most. It relies on
// processing_state_dead.
func (s *Store) CountDead(ctx context.Context, f DeadFilter, most int64) (count int64, err error) {
	err = s.pool.QueryRow(ctx, `select count(*) from (
		select from spine.processing_state p join spine.events e on e.id = p.event
		where p.status = 'dead' and p.updated_at >= $1::text::timestamptz and p.updated_at < $2::text::timestamptz
			and ($3 = '' or p.source = $3) and ($4 = '' or e.event_type = $4) and ($5 = '' or p.destination = $5)
		limit $6) d`, append(f.args(), most)...).Scan(&count)
	if err != nil {
		return 0, fmt.Errorf("counting what is dead: %w", err)
	}
	return count, nil
}

// replayChunk is how many rows one transaction of ReplayDead puts back.
const replayChunk = 1000

// ReplayDead delivers again the dead rows that f chooses, oldest first, at
// most limit or all where that is 0. It returns how many it replayed, with an
// error too: each chunk is a transaction, after which progress is told the
// count. What dies meanwhile stays dead; an event that no destination takes
// would else come round for ever.
func (s *Store) ReplayDead(ctx context.Context, f DeadFilter, limit int64, progress func(replayed int64)) (replayed int64, err error) {
	args := f.args()
	var until string
	if err := s.pool.QueryRow(ctx, "select least(clock_timestamp(), $1::text::timestamptz)::text", args[1]).Scan(&until); err != nil {
		return 0, fmt.Errorf("reading the database's clock: %w", err)
	}
	args[1] = until
	for limit == 0 || replayed < limit {
		chunk := int64(replayChunk)
		if limit > 0 {
			chunk = min(chunk, limit-replayed)
		}
		var n int64
		err := s.pool.QueryRow(ctx, `select spine.replay_dead($1::text::timestamptz, $2::text::timestamptz,
			nullif($3, ''), nullif($4, ''), nullif($5, ''), $6)`, append(args, chunk)...).Scan(&n)
		if err != nil {
			return replayed, fmt.Errorf("replaying what is dead: %w", err)
		}
		if n == 0 {
			break
		}
		replayed += n
		progress(replayed)
	}
	return replayed, nil
}

// ErrNoDestination says that a destination was named that does not exist.
var ErrNoDestination = errors.New("there is no such destination")

// Pause stops claims for a destination, or for all where it is empty. What is
// in hand is finished, and events go on being stored and queued. It returns
// how many destinations it changed. Errors: ErrNoDestination, or that of the
// database.
func (s *Store) Pause(ctx context.Context, destination string) (changed int64, err error) {
	return s.setPaused(ctx, "pausing claims", "select spine.pause(nullif($1, ''))", destination)
}

// Resume takes up claims again that Pause stopped, and returns as Pause does.
func (s *Store) Resume(ctx context.Context, destination string) (changed int64, err error) {
	return s.setPaused(ctx, "resuming claims", "select spine.resume(nullif($1, ''))", destination)
}

func (s *Store) setPaused(ctx context.Context, doing, sql, destination string) (changed int64, err error) {
	err = s.pool.QueryRow(ctx, sql, destination).Scan(&changed)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "P0002" {
		return 0, fmt.Errorf("%w: %s", ErrNoDestination, destination)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", doing, err)
	}
	return changed, nil
}

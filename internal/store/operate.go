package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// ErrNotFound says that what was asked for is not there, such as an event
// that was never stored. The error's text says what, and when the source last
// sent something.
var ErrNotFound = errors.New("not found")

// ErrSeveralSources says that an event id exists in several sources and none
// was named. The error's text names them.
var ErrSeveralSources = errors.New("the id exists in several sources")

// lookupError has the database's own words and one of the sentinels above.
type lookupError struct {
	message  string
	sentinel error
}

func (e lookupError) Error() string { return e.message }
func (e lookupError) Unwrap() error { return e.sentinel }

// lookup tells the errors of looking for something from those of the
// database, which it wraps with what was being done.
func lookup(doing string, err error) error {
	if err == nil {
		return nil
	}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.Code {
		case "P0002":
			return lookupError{pgErr.Message, ErrNotFound}
		case "21000":
			return lookupError{pgErr.Message, ErrSeveralSources}
		}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// Step is one row of the audit log. Its times, like all that somebody may have
// set by hand, can be infinite.
type Step struct {
	Timestamp pgtype.Timestamptz `json:"timestamp"`
	ID        int64              `json:"id"`
	EventID   *string            `json:"event_id"` // nil where no event is concerned
	Source    *string            `json:"source"`
	Action    string             `json:"action"`
	Success   string             `json:"success"` // success, failure or pending
	Details   json.RawMessage    `json:"details"` // an object
}

// StepFilter chooses steps; an empty field chooses all.
type StepFilter struct {
	EventID string
	Source  string
	Actions []string
}

// Cursor is a place in the audit log from which Follow goes on. It misses
// nothing and repeats nothing even where transactions commit in another order
// than they began, since it is the set of transactions whose steps were read.
// It outlives connections and restarts of the database.
type Cursor struct {
	seen  string // pg_snapshot: what is visible in it has been read; empty in the past that CursorSince asks for
	until string // pg_snapshot up to which pages are being read; empty when there is none
	last  position
}

// position is where the last page ended: steps are paged by timestamp and id
// in the past, by xid, timestamp and id from there on.
type position struct {
	xid       string
	timestamp pgtype.Timestamptz
	id        int64
}

// CursorSince returns a cursor before all steps of time t and later.
func CursorSince(t time.Time) Cursor {
	return Cursor{last: position{timestamp: pgtype.Timestamptz{Time: t, Valid: true}}}
}

// CurrentCursor returns a cursor after all steps that are committed now.
func (s *Store) CurrentCursor(ctx context.Context) (Cursor, error) {
	seen, err := s.snapshot(ctx)
	return Cursor{seen: seen}, err
}

// stepPage is how many steps Follow holds at most.
const stepPage = 1000

// Follow hands all steps after c that are committed now and match f to each,
// in pages of at most stepPage, every page in the order of the steps, and
// returns the cursor after the last page that each took. That is so with an
// error too: Follow may be called again with what it returned. No statement is
// open while each runs, so that a slow reader does not hold up vacuum.
func (s *Store) Follow(ctx context.Context, c Cursor, f StepFilter, each func([]Step) error) (Cursor, error) {
	if c.until == "" {
		now, err := s.snapshot(ctx)
		if err != nil || now == c.seen {
			return c, err
		}
		c.until = now
		if c.seen != "" {
			c.last = position{xid: "0", timestamp: pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}}
		}
	}
	for {
		steps, last, err := s.steps(ctx, c, f)
		if err != nil {
			return c, fmt.Errorf("reading the audit log: %w", err)
		}
		if len(steps) > 0 {
			if err := each(steps); err != nil {
				return c, err
			}
			c.last = last
		}
		if len(steps) < stepPage {
			return Cursor{seen: c.until}, nil
		}
	}
}

func (s *Store) snapshot(ctx context.Context) (snapshot string, err error) {
	if err := s.pool.QueryRow(ctx, "select pg_current_snapshot()::text").Scan(&snapshot); err != nil {
		return "", fmt.Errorf("reading the audit log: %w", err)
	}
	return snapshot, nil
}

const stepColumns = `select a.timestamp, a.id, a.event_id, a.source, a.action, a.success, a.details, a.xid::text from spine.audit_log a
	where pg_visible_in_snapshot(a.xid, $1::text::pg_snapshot)
		and ($2 = '' or a.event_id = $2) and ($3 = '' or a.source = $3) and (cardinality($4::text[]) = 0 or a.action = any ($4)) `

// Reading by xid takes each backlog once, however many pages it has. Relies on
// audit_log_xid, and in the past on audit_log_timestamp.
const (
	stepsAfter = stepColumns + `and a.xid >= pg_snapshot_xmin($6::text::pg_snapshot) and not pg_visible_in_snapshot(a.xid, $6::text::pg_snapshot)
		and (a.xid, a.timestamp, a.id) > ($7::text::xid8, $8::timestamptz, $9::bigint)
	order by a.xid, a.timestamp, a.id limit $5`
	stepsSince = stepColumns + `and a.timestamp >= $6::timestamptz and (a.timestamp, a.id) > ($6, $7::bigint)
	order by a.timestamp, a.id limit $5`
)

// steps reads the page after c.
func (s *Store) steps(ctx context.Context, c Cursor, f StepFilter) (steps []Step, last position, err error) {
	query, args := stepsSince, []any{c.until, f.EventID, f.Source, f.Actions, stepPage}
	if f.Actions == nil {
		args[3] = []string{}
	}
	if c.seen == "" {
		args = append(args, c.last.timestamp, c.last.id)
	} else {
		query, args = stepsAfter, append(args, c.seen, c.last.xid, c.last.timestamp, c.last.id)
	}
	batch := &pgx.Batch{}
	// Local to the batch, which is one transaction: without statistics the
	// planner would read whole partitions.
	batch.Queue("select set_config('enable_seqscan', 'off', true)")
	batch.Queue(query, args...).Query(func(rows pgx.Rows) error {
		var step Step
		scan := []any{&step.Timestamp, &step.ID, &step.EventID, &step.Source, &step.Action, &step.Success, &step.Details, &last.xid}
		_, err := pgx.ForEachRow(rows, scan, func() error {
			steps = append(steps, step)
			last.timestamp, last.id = step.Timestamp, step.ID
			step = Step{} // what was appended keeps its own details
			return nil
		})
		return err
	})
	if err := s.pool.SendBatch(ctx, batch).Close(); err != nil {
		return nil, position{}, err
	}
	slices.SortFunc(steps, func(a, b Step) int {
		return cmp.Or(
			cmp.Compare(a.Timestamp.InfinityModifier, b.Timestamp.InfinityModifier),
			a.Timestamp.Time.Compare(b.Timestamp.Time), cmp.Compare(a.ID, b.ID))
	})
	return steps, last, nil
}

// Trail is all that is known of one event.
type Trail struct {
	EventID     string             `json:"event_id"`
	Source      string             `json:"source"`
	EventType   string             `json:"event_type"`
	OccurredAt  pgtype.Timestamptz `json:"occurred_at"`
	CreatedAt   pgtype.Timestamptz `json:"created_at"` // when it was stored
	Payload     json.RawMessage    `json:"payload"`    // nil where Unqueryable is set
	Unqueryable *string            `json:"unqueryable,omitempty"`
	SeenCount   int64              `json:"seen_count"` // how often it was received
	Conflicts   int64              `json:"conflicts"`  // how many other payloads are kept
	Standings   []Standing         `json:"processing"` // one for each destination
	Steps       []Step             `json:"timeline"`   // in their order, at most MaxTrailSteps
	Truncated   bool               `json:"timeline_truncated,omitempty"`
}

// Standing is where an event stands on its way to one destination.
type Standing struct {
	Destination   string             `json:"destination"`
	Status        string             `json:"status"` // pending, processing, completed, failed or dead
	AttemptCount  int                `json:"attempt_count"`
	NextAttemptAt pgtype.Timestamptz `json:"next_attempt_at"` // while processing, the end of the lease
	LastAttemptAt pgtype.Timestamptz `json:"last_attempt_at"`
	CompletedAt   pgtype.Timestamptz `json:"completed_at"`
	ErrorMessage  *string            `json:"error_message"`
}

// MaxTrailSteps bounds a Trail: an event may be posted without end.
const MaxTrailSteps = 10_000

// Trace reads one event and its steps, both as of one moment. source may be
// empty where the id exists in one source only. Errors: ErrNotFound,
// ErrSeveralSources, and those of the database.
func (s *Store) Trace(ctx context.Context, eventID, source string) (*Trail, error) {
	t := &Trail{Standings: []Standing{}, Steps: []Step{}}
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `select event_id, source, event_type, occurred_at, created_at, payload, unqueryable, seen_count, conflicts,
				destination, status, attempt_count, next_attempt_at, last_attempt_at, completed_at, error_message
			from spine.event($1, nullif($2, ''))`, eventID, source)
		if err != nil {
			return err
		}
		// An event that is queued for no destination has one row without one.
		var destination, status *string
		var attempts *int
		var at Standing
		_, err = pgx.ForEachRow(rows, []any{
			&t.EventID, &t.Source, &t.EventType, &t.OccurredAt, &t.CreatedAt, &t.Payload, &t.Unqueryable, &t.SeenCount, &t.Conflicts,
			&destination, &status, &attempts, &at.NextAttemptAt, &at.LastAttemptAt, &at.CompletedAt, &at.ErrorMessage,
		}, func() error {
			if destination != nil {
				at.Destination, at.Status, at.AttemptCount = *destination, *status, *attempts
				t.Standings = append(t.Standings, at)
				at = Standing{}
			}
			return nil
		})
		if err != nil {
			return err
		}
		rows, err = tx.Query(ctx, `select "timestamp", id, action, success, details from spine.trace($1, $2) order by "timestamp", id limit $3`,
			t.EventID, t.Source, MaxTrailSteps+1)
		if err != nil {
			return err
		}
		var step Step
		_, err = pgx.ForEachRow(rows, []any{&step.Timestamp, &step.ID, &step.Action, &step.Success, &step.Details}, func() error {
			step.EventID, step.Source = &t.EventID, &t.Source
			t.Steps = append(t.Steps, step)
			step = Step{}
			return nil
		})
		if len(t.Steps) > MaxTrailSteps {
			t.Steps, t.Truncated = t.Steps[:MaxTrailSteps], true
		}
		return err
	})
	if err != nil {
		return nil, lookup("tracing an event", err)
	}
	return t, nil
}

// Depth is how many rows of the queue have one destination and status.
type Depth struct {
	Destination     string             `json:"destination"`
	Status          string             `json:"status"` // pending, processing, failed or dead; what is completed is not counted
	Count           int64              `json:"count"`
	NextAttemptAt   pgtype.Timestamptz `json:"next_attempt_at"`   // of the first to fall due
	OldestCreatedAt pgtype.Timestamptz `json:"oldest_created_at"` // when the oldest was queued
}

// Depth counts what is not done, by destination and status.
func (s *Store) Depth(ctx context.Context) ([]Depth, error) {
	return collect[Depth](ctx, s, "counting the queue", `select destination, status, count, next_attempt_at, oldest_created_at from spine.depth
		order by destination, array_position(array['pending', 'processing', 'failed', 'dead'], status)`)
}

// Pause says that the claims of a destination are paused.
type Pause struct {
	Destination string             `json:"destination"`
	PausedAt    pgtype.Timestamptz `json:"paused_at"`
	PausedBy    *string            `json:"paused_by"` // database role
}

// Pauses lists the destinations whose claims are paused.
func (s *Store) Pauses(ctx context.Context) ([]Pause, error) {
	return collect[Pause](ctx, s, "listing pauses", `select name, paused_at, paused_by from spine.destinations where paused_at is not null order by name`)
}

// Stuck is a row of the queue that should have been claimed long ago.
type Stuck struct {
	EventID     string             `json:"event_id"`
	Source      string             `json:"source"`
	Destination string             `json:"destination"`
	Status      string             `json:"status"`
	DueAt       pgtype.Timestamptz `json:"due_at"`
	Overdue     time.Duration      `json:"-"`
	Reason      string             `json:"reason"` // why it may be, and where to look
}

// Stuck lists what has been due for ten seconds or longer, longest first, at
// most limit rows.
func (s *Store) Stuck(ctx context.Context, limit int) ([]Stuck, error) {
	return collect[Stuck](ctx, s, "listing what is stuck", `select event_id, source, destination, status, due_at, overdue, reason from spine.stuck limit $1`, limit)
}

// DeadLetter is a row of the queue that will not be tried again by itself.
type DeadLetter struct {
	EventID      string             `json:"event_id"`
	Source       string             `json:"source"`
	EventType    string             `json:"event_type"`
	Destination  string             `json:"destination"`
	DiedAt       pgtype.Timestamptz `json:"died_at"`
	AttemptCount int                `json:"attempt_count"`
	ErrorMessage *string            `json:"error_message"`
}

// DeadLetters lists what is dead, last died first, at most limit rows.
func (s *Store) DeadLetters(ctx context.Context, limit int) ([]DeadLetter, error) {
	return collect[DeadLetter](ctx, s, "listing dead letters",
		`select event_id, source, event_type, destination, died_at, attempt_count, error_message from spine.dead_letters limit $1`, limit)
}

// collect reads rows into structs by position.
func collect[T any](ctx context.Context, s *Store, doing, query string, args ...any) ([]T, error) {
	rows, err := s.pool.Query(ctx, query, args...)
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
// and returns how many rows were put back: none where they are pending or
// processing. source and destination may be empty. Errors: ErrNotFound,
// ErrSeveralSources, and those of the database. Called again after a lost
// answer it finds the rows pending and changes nothing.
func (s *Store) Replay(ctx context.Context, eventID, source, destination string) (replayed int64, err error) {
	err = s.pool.QueryRow(ctx, "select spine.replay($1, nullif($2, ''), nullif($3, ''))", eventID, source, destination).Scan(&replayed)
	return replayed, lookup("replaying an event", err)
}

// DeadFilter chooses dead rows; a zero field chooses all.
type DeadFilter struct {
	Since       time.Time // when it died, inclusive
	Until       time.Time // when it died, exclusive
	Source      string
	EventType   string
	Destination string
}

// args are the parameters $1 to $5 of both statements on dead rows.
func (f DeadFilter) args() []any {
	since := pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}
	if !f.Since.IsZero() {
		since = pgtype.Timestamptz{Time: f.Since, Valid: true}
	}
	until := pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}
	if !f.Until.IsZero() {
		until = pgtype.Timestamptz{Time: f.Until, Valid: true}
	}
	return []any{since, until, f.Source, f.EventType, f.Destination}
}

// CountDead counts the dead rows that f chooses, up to most.
func (s *Store) CountDead(ctx context.Context, f DeadFilter, most int64) (count int64, err error) {
	err = s.pool.QueryRow(ctx, `select count(*) from (
		select from spine.processing_state p join spine.events e on e.id = p.event
		where p.status = 'dead' and p.updated_at >= $1 and p.updated_at < $2
			and ($3 = '' or p.source = $3) and ($4 = '' or e.event_type = $4) and ($5 = '' or p.destination = $5)
		limit $6) d`, append(f.args(), most)...).Scan(&count)
	if err != nil {
		return 0, fmt.Errorf("counting dead letters: %w", err)
	}
	return count, nil
}

// replayChunk is how many rows one transaction of ReplayDead puts back.
const replayChunk = 1000

// ReplayDead delivers again the dead rows that f chooses, oldest first, in
// transactions of replayChunk rows, and returns how many it put back, with an
// error too. limit is how many at most; 0 means all. After each transaction
// progress is called with the count so far. What dies while it runs is left
// dead, or an event that no destination takes would come round without end.
func (s *Store) ReplayDead(ctx context.Context, f DeadFilter, limit int64, progress func(replayed int64)) (replayed int64, err error) {
	args := f.args()
	if err := s.pool.QueryRow(ctx, "select least(clock_timestamp(), $1::timestamptz)", args[1]).Scan(&args[1]); err != nil {
		return 0, fmt.Errorf("reading the database's clock: %w", err)
	}
	for {
		chunk := int64(replayChunk)
		if limit > 0 {
			chunk = min(chunk, limit-replayed)
		}
		if chunk == 0 {
			return replayed, nil
		}
		var n int64
		err := s.pool.QueryRow(ctx, "select spine.replay_dead($1, $2, nullif($3, ''), nullif($4, ''), nullif($5, ''), $6)", append(args, chunk)...).Scan(&n)
		if err != nil {
			return replayed, fmt.Errorf("replaying dead letters: %w", err)
		}
		if n == 0 {
			return replayed, nil
		}
		replayed += n
		progress(replayed)
	}
}

// Pause stops claims for a destination, or for all where it is empty. What is
// in hand is finished, and events go on being stored and queued. It returns
// how many destinations it changed. Error: ErrNotFound.
func (s *Store) Pause(ctx context.Context, destination string) (changed int64, err error) {
	err = s.pool.QueryRow(ctx, "select spine.pause(nullif($1, ''))", destination).Scan(&changed)
	return changed, lookup("pausing claims", err)
}

// Resume takes up claims again that Pause stopped. Error: ErrNotFound.
func (s *Store) Resume(ctx context.Context, destination string) (changed int64, err error) {
	err = s.pool.QueryRow(ctx, "select spine.resume(nullif($1, ''))", destination).Scan(&changed)
	return changed, lookup("resuming claims", err)
}

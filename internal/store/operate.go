package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/view"
)

const pausedSQL = `select name, paused_at, paused_by, paused_reason
	from spine.destinations where paused_at is not null order by name`

// StuckRow is a row of the queue that should have been claimed some time ago.
type StuckRow struct {
	EventID     string          `json:"event_id"`
	Source      string          `json:"source"`
	Destination string          `json:"destination"`
	Status      string          `json:"status"`
	DueAt       event.Timestamp `json:"due_at"`
	Reason      string          `json:"reason"` // what may hold it up
}

// queuedDestinations are the destinations that the queue holds something for, also where they are not known otherwise.
// It is a skip scan of processing_state_due.
const queuedDestinations = `(with recursive queued (name) as (
		(select p.destination from spine.processing_state p
			where p.status in ('pending', 'failed', 'processing')
			order by p.destination limit 1)
		union all
		select (select p.destination from spine.processing_state p
			where p.status in ('pending', 'failed', 'processing') and p.destination > q.name
			order by p.destination limit 1)
		from queued q where q.name is not null
	) select name from queued where name is not null)`

// ConnectedWorkers says whether a worker is connected to the database, in words.
func (s *Store) ConnectedWorkers(ctx context.Context) (says string, err error) {
	if err = s.call(ctx, []any{&says}, "select spine.connected_workers()"); err != nil {
		return "", fmt.Errorf("looking for workers: %w", err)
	}
	return says, nil
}

// Stuck lists up to limit rows that have been due for ten seconds or longer, longest first. It relies on
// processing_state_due. It reads no more of it than limit rows for each destination, however much is stuck.
func (s *Store) Stuck(ctx context.Context, limit int) ([]StuckRow, error) {
	return list[StuckRow](
		ctx,
		s,
		"listing stuck rows",
		`select s.event_id, s.source, s.destination, s.status, s.due_at, s.reason
		from `+queuedDestinations+` n cross join lateral (
			-- The view goes by a clock that moves on, for which no index can be used.
			select p.event from spine.processing_state p
			where p.status in ('pending', 'failed', 'processing') and p.destination = n.name
				and p.next_attempt_at < now() - interval '10 seconds'
			order by p.next_attempt_at limit $1
		) first cross join lateral (
			select k.* from spine.stuck k where k.event = first.event and k.destination = n.name limit 1
		) s
		order by s.due_at limit $1`,
		limit,
	)
}

// Replay delivers an event again, to every destination or to the one named. It returns how many rows were replayed. A
// pending or processing row is not. source and destination may be empty. The error is a *view.NotStoredError, a
// *view.AmbiguousError, or the database's. It is a NotStoredError also where the event was never queued for
// destination. Called again after a lost answer, it finds the rows pending and changes nothing.
//
// caller says who asks, for the audit log, which keeps its first 300 characters. Characters that Postgres does not take
// as text are replaced.
func (s *Store) Replay(ctx context.Context, eventID, source, destination, caller string) (replayed int64, err error) {
	batch := &pgx.Batch{}
	batch.Queue("select set_config('spine.caller', $1, true)", storable(caller))
	batch.Queue("select spine.replay($1, nullif($2, ''), nullif($3, ''))", eventID, source, destination).
		QueryRow(func(row pgx.Row) error { return row.Scan(&replayed) })
	if err := s.send(ctx, batch); err != nil {
		return 0, s.lookupError(ctx, "replaying an event", eventID, err)
	}
	return replayed, nil
}

// lookupError returns what spine.id_of() and its callers say of an event, as an error of package view. It wraps every
// other error of the database.
func (s *Store) lookupError(ctx context.Context, doing, eventID string, err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.Code {
		case "P0002":
			return &view.NotStoredError{Detail: strings.TrimSpace(pgErr.Message + " " + pgErr.Detail)}
		case "21000":
			ambiguous := &view.AmbiguousError{Detail: pgErr.Message}
			err := s.one(
				ctx,
				"select array_agg(e.source order by e.source) from spine.events e where e.event_id = $1",
				[]any{eventID},
				&ambiguous.Sources,
			)
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

// args are $1 to $5 of the statements on dead rows. Both ends of the time are text, since they may be infinite.
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

// CountDead counts the dead rows that f chooses, up to most. It relies on processing_state_dead.
func (s *Store) CountDead(ctx context.Context, f DeadFilter, most int64) (count int64, err error) {
	err = s.readOne(ctx, `select count(*) from (
		select from spine.processing_state p join spine.events e on e.id = p.event
		where p.status = 'dead' and p.updated_at >= $1::text::timestamptz and p.updated_at < $2::text::timestamptz
			and ($3 = '' or p.source = $3) and ($4 = '' or e.event_type = $4) and ($5 = '' or p.destination = $5)
		limit $6) d`, append(f.args(), most), &count)
	if err != nil {
		return 0, fmt.Errorf("counting dead letters: %w", err)
	}
	return count, nil
}

// replayChunk is how many rows one transaction of ReplayDead puts back.
const replayChunk = 1000

// ReplayDead delivers again the dead rows that f chooses, oldest first: up to limit, or all where limit is 0. It
// returns how many it replayed, also with an error. Each chunk is a transaction, after which it calls progress with the
// count so far. A row that dies meanwhile stays dead. Otherwise an event that no destination takes would come round for
// ever.
func (s *Store) ReplayDead(
	ctx context.Context,
	f DeadFilter,
	limit int64,
	progress func(replayed int64),
) (replayed int64, err error) {
	args := f.args()
	var until string
	const now = "select least(clock_timestamp(), $1::text::timestamptz)::text"
	if err := s.one(ctx, now, []any{args[1]}, &until); err != nil {
		return 0, fmt.Errorf("reading the database's clock: %w", err)
	}
	args[1] = until
	for limit == 0 || replayed < limit {
		chunk := int64(replayChunk)
		if limit > 0 {
			chunk = min(chunk, limit-replayed)
		}
		var n int64
		err := s.one(ctx, `select spine.replay_dead($1::text::timestamptz, $2::text::timestamptz,
			nullif($3, ''), nullif($4, ''), nullif($5, ''), $6)`, append(args, chunk), &n)
		if err != nil {
			return replayed, fmt.Errorf("replaying dead letters: %w", err)
		}
		if n == 0 {
			break
		}
		replayed += n
		progress(replayed)
	}
	return replayed, nil
}

// ReplayRows delivers again those of the rows that are dead, and returns how many they were. caller is as for Replay.
// Called again after a lost answer, it finds the rows pending and changes nothing. It relies on processing_state_pkey.
func (s *Store) ReplayRows(ctx context.Context, rows []view.ProcessingRow, caller string) (replayed int64, err error) {
	events, destinations := make([]int64, len(rows)), make([]string, len(rows))
	for i, row := range rows {
		events[i], destinations[i] = row.Event, row.Destination
	}
	err = s.operate(ctx, caller, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `select spine.replay_rows(
				coalesce(array_agg(d.event), '{}'), coalesce(array_agg(d.destination), '{}'))
			from (
				select p.event, p.destination
				from unnest($1::bigint[], $2::text[]) as i(event, destination)
				join spine.processing_state p on p.event = i.event and p.destination = i.destination
				where p.status = 'dead'
				for update of p
			) d`, events, destinations).Scan(&replayed)
	})
	if err != nil {
		return 0, fmt.Errorf("replaying dead letters: %w", err)
	}
	return replayed, nil
}

// Pause stops claims for a destination, or for all where it is empty. What is in hand is finished, and events go on
// being stored and queued. reason is for those who ask later and may be empty; caller is who asked, for the audit log.
// It returns how many destinations it changed. Errors: view.ErrNoDestination, or that of the database.
func (s *Store) Pause(ctx context.Context, destination, reason, caller string) (changed int64, err error) {
	return s.setPaused(
		ctx,
		"pausing claims",
		"select spine.pause(nullif($1, ''), nullif($2, ''))",
		destination,
		caller,
		storable(reason),
	)
}

// Resume takes up claims again that Pause stopped, and returns as Pause does.
func (s *Store) Resume(ctx context.Context, destination, caller string) (changed int64, err error) {
	return s.setPaused(ctx, "resuming claims", "select spine.resume(nullif($1, ''))", destination, caller)
}

func (s *Store) setPaused(
	ctx context.Context, doing, sql, destination, caller string, more ...any,
) (changed int64, err error) {
	err = s.operate(ctx, caller, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, sql, append([]any{destination}, more...)...).Scan(&changed)
	})
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "P0002" {
		return 0, fmt.Errorf("%w: %s", view.ErrNoDestination, destination)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", doing, err)
	}
	return changed, nil
}

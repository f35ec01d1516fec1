package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/webhookspine/spine/internal/event"
)

// A notification is a hint. Postgres keeps those that some session has not read yet in one queue for all databases of
// the cluster. A session of anybody that listens and then stays in a transaction holds all of them back. Once the queue
// is full, each commit that notifies fails. So Spine sends none from half full on, and workers find by their sweep what
// nobody tells them.

const (
	// hintlessFrom is how full the queue is from which on Spine sends no notifications, hintsUntil how full it is at
	// most when Spine begins again.
	hintlessFrom = 0.5
	hintsUntil   = 0.25

	// All commits that notify take one lock. After jamPatience this Store asks whether a transaction waits for it. Then
	// it sends no notifications, until it has seen nobody wait for jamTime.
	jamPatience = 700 * time.Millisecond
	jamTime     = time.Minute
	// jamLookPatience limits the question.
	jamLookPatience = 2 * time.Second
)

// commit runs do, which ends with a commit. It runs do once more where Postgres has rolled that back for one of three
// causes. The queue of notifications was full, or its lock was held up: then do sends none. Or a sequence gave out a
// number twice: then spine.mend_sequences() has raised it.
func (s *Store) commit(ctx context.Context, do func() error) error {
	if !s.hintless.Load() {
		slow := time.AfterFunc(jamPatience, func() { s.lookForJam(context.WithoutCancel(ctx)) })
		defer slow.Stop()
	}
	err := do()
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case !ok:
		return err
	case pgErr.Code == "57014" && ctx.Err() == nil && s.jam.Load() != nil:
		return do()
	case isQueueFull(pgErr):
		s.hintless.Store(true)
		return do()
	case lagsBehind(pgErr):
		mend := s.plainlyOn(ctx, s.pool, func(on executor) error {
			_, err := on.Exec(ctx, "select spine.mend_sequences()")
			return err
		})
		if mend != nil {
			return fmt.Errorf("a sequence lags behind its table, and could not be mended (%w): %w", mend, err)
		}
		return do()
	}
	return err
}

// lagsBehind reports whether a sequence gave out a number that a row has already, as after a logical switch-over.
func lagsBehind(err *pgconn.PgError) bool {
	return err.Code == "23505" &&
		(err.ConstraintName == "events_pkey" || err.ConstraintName == "rejected_requests_pkey")
}

// isQueueFull reports whether a commit failed because the notify queue is full. Postgres uses 54000 for other limits
// too.
func isQueueFull(err *pgconn.PgError) bool {
	return err.Code == "54000" && err.Routine == "PreCommit_Notify"
}

// jam is that somebody holds up all commits that notify.
type jam struct {
	until  time.Time // when Spine notifies again
	holder string    // in words
}

// lookForJam asks whether somebody holds up all commits that notify. Then this Store sends no notifications, and its
// commits that wait are cancelled: commit does them again. It tells no error: others tell that a database is away.
func (s *Store) lookForJam(ctx context.Context) {
	if !s.looking.CompareAndSwap(false, true) {
		return
	}
	defer s.looking.Store(false)
	ctx, cancel := context.WithTimeout(ctx, jamLookPatience)
	defer cancel()
	_ = s.apart(ctx, func(conn *pgx.Conn) error { return s.clearJam(ctx, conn) })
}

// clearJam cancels commits of this Store that wait to notify, until nobody waits.
func (s *Store) clearJam(ctx context.Context, on executor) error {
	none, ours := []int32{}, []int32{}
	s.pids.Range(func(pid, _ any) bool {
		ours = append(ours, int32(pid.(uint32))) //nolint:gosec,forcetypeassert // as the server has it
		return true
	})
	for { // the commit that is slow may have begun to wait just now
		holder, err := notifyJam(ctx, on, none)
		if err != nil || holder == "" {
			return err
		}
		// Before the waits are cancelled, so that commit knows why.
		s.jam.Store(&jam{until: time.Now().Add(jamTime), holder: holder})
		s.hintless.Store(true)
		if _, err := notifyJam(ctx, on, ours); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(jamLookPatience / 4):
		}
	}
}

// notifyJam calls spine.notify_jam().
func notifyJam(ctx context.Context, on executor, ours []int32) (holder string, err error) {
	var found *string
	if err := on.QueryRow(ctx, "select spine.notify_jam($1)", ours).Scan(&found); err != nil {
		return "", fmt.Errorf("looking for who holds up commits: %w", err)
	}
	if found == nil {
		return "", nil
	}
	return *found, nil
}

// NotifyQueue tells how full the queue of notifications is, and decides whether this Store sends any. Asking makes
// Postgres free what every session has read: without that, the queue may stay full after the session has ended that
// filled it. Call it every few seconds.
func (s *Store) NotifyQueue(ctx context.Context) (q event.NotifyQueue, err error) {
	if err := s.call(ctx, []any{&q.Usage}, "select pg_catalog.pg_notification_queue_usage()"); err != nil {
		return q, fmt.Errorf("looking at the queue of notifications: %w", err)
	}
	switch {
	case q.Usage >= hintlessFrom:
		s.hintless.Store(true)
	case q.Usage <= hintsUntil && !s.isJammed(ctx):
		s.hintless.Store(false)
		s.holder.Store(0)
	}
	if q.Hintless = s.hintless.Load(); !q.Hintless {
		return q, nil
	}
	if jam := s.jam.Load(); jam != nil {
		q.Jammed, q.Holders = true, jam.holder
		return q, nil
	}
	// A role that may not see what others do sees their names all the same.
	const holders = `
		select coalesce(string_agg(
			format('pid %s of role %s in database %s', h.pid, h.usename, h.datname)
				|| coalesce(', in a transaction since ' || h.xact_start::text, ''), '; '), '')
		from (
			select a.pid, a.usename, a.datname, a.xact_start
			from pg_stat_activity a
			where a.pid = $1
				or a.backend_type = 'client backend' and a.xact_start < clock_timestamp() - interval '2 seconds'
			order by a.pid = $1 desc, a.xact_start
			limit 3) h`
	if err := s.one(ctx, holders, []any{s.holder.Load()}, &q.Holders); err != nil {
		return q, fmt.Errorf("looking for who holds notifications back: %w", err)
	}
	if q.Holders == "" {
		q.Holders = "this role may not see whom (grant pg_read_all_stats)"
	}
	return q, nil
}

// isJammed reports whether somebody has held up commits that notify within the last minute. It looks whether he still
// does: others wait for him, too.
func (s *Store) isJammed(ctx context.Context) bool {
	known := s.jam.Load()
	if known == nil {
		return false
	}
	if holder, err := notifyJam(ctx, s.pool, []int32{}); err == nil && holder != "" {
		s.jam.Store(&jam{until: time.Now().Add(jamTime), holder: holder})
		return true
	}
	if time.Now().Before(known.until) {
		return true
	}
	s.jam.Store(nil)
	return false
}

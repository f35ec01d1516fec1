// Package store has Spine's calls into Postgres. A method that writes calls a function of sql/functions. A method that
// reads has its own query.
//
// It promises that what a method wrote is committed once the method returns without an error. RollUp and SampleDepth
// are the exception: a crash may take back what they wrote, and they write it again.
//
// After an error a method may be called again with the same arguments: nothing is stored or counted twice. Reject and
// KeepRejected must then be called with again set. The package leaves retries to its callers, but for Migrate, which
// tries again while somebody else holds its locks. It knows nothing of HTTP or of its callers.
package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/webhookspine/spine/internal/event"
)

// Config says how to reach the database.
type Config struct {
	URL      string // of the database, or of a transaction pooler in front of it
	MaxConns int32  // connections of the pool, 1 or more
	AppName  string // application_name, as pg_stat_activity shows it
	// ReadTimeout limits each statement that reads for an operator. 0 sets no limit.
	ReadTimeout time.Duration
	// Moved is called with what NoteDatabase would return where a later connection finds another database. It may be
	// nil.
	Moved func(found string)
}

// Store is a pool of connections to one database.
type Store struct {
	pool        *pgxpool.Pool
	readTimeout time.Duration
	pids        sync.Map // of the server processes behind the pool's connections

	pooled   atomic.Bool // a pooler stands between that may know no prepared statements
	explicit atomic.Bool // each transaction begins with what it needs, since the session's default is another
	hintless atomic.Bool // no notifications are sent: see NotifyQueue

	moved func(found string)     // see Config.Moved
	notes atomic.Bool            // NoteDatabase was called
	noted atomic.Pointer[string] // the last server on which a new connection has called it

	jam     atomic.Pointer[jam] // that commits which notify are held up; nil for not
	looking atomic.Bool         // for that

	holder atomic.Int64 // a server process that holds notifications back, as Postgres last told; 0 is not known

	idle    atomic.Pointer[glance] // when RollUp last found nothing to count
	sampled atomic.Pointer[glance] // when SampleDepth last looked
}

// Open makes the pool. It does not wait for the database: the first call that needs a connection makes one.
func Open(ctx context.Context, c Config) (*Store, error) {
	config, _, err := parseURL(c.URL, c.AppName)
	if err != nil {
		return nil, err
	}
	config.MaxConns = c.MaxConns
	config.MinConns = 0
	config.PingTimeout = time.Second // of a connection that was idle, before it is used again
	s := &Store{readTimeout: c.ReadTimeout, moved: c.Moved}
	s.notes.Store(c.Moved != nil)
	config.ConnConfig.OnNotice = s.noteWarning
	config.ConnConfig.OnPgError = s.noteError
	config.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		if s.pooled.Load() && c.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
			setMode(c, pgx.QueryExecModeCacheDescribe)
		}
		return nil
	}
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		mode := conn.Config().DefaultQueryExecMode
		found, err := prepare(ctx, conn)
		if err != nil {
			return err // and BeforeClose is not called
		}
		if found.pooled {
			s.pooled.Store(true)
		}
		if found.unusual {
			s.explicit.Store(true)
		}
		conn.PgConn().CustomData()[prepares] = mode == pgx.QueryExecModeCacheStatement
		registerArrays(conn.TypeMap())
		if err := s.noteAgain(ctx, conn, found.server); err != nil {
			return err
		}
		s.pids.Store(conn.PgConn().PID(), nil)
		return nil
	}
	config.PrepareConn = func(_ context.Context, conn *pgx.Conn) (bool, error) {
		if !s.pooled.Load() {
			return true, nil
		}
		prepares, _ := conn.PgConn().CustomData()[prepares].(bool)
		return !prepares, nil // the next one does not
	}
	config.BeforeClose = func(conn *pgx.Conn) { s.pids.Delete(conn.PgConn().PID()) }
	if s.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, fmt.Errorf("making the connection pool: %w", err)
	}
	return s, nil
}

// noteError sees each error that the database answers. It learns from them how to go on, and gives up the connection
// where it returns false.
func (s *Store) noteError(_ *pgconn.PgConn, err *pgconn.PgError) bool {
	switch err.Code {
	case "25006", "40001": // it reads only, or has another isolation level: prepare asks each new one
		return false
	case "26000", "42P05": // a pooler without prepared statements, which looks like the server itself
		s.pooled.Store(true)
		return false
	}
	return err.SeverityUnlocalized != "FATAL" && err.Severity != "FATAL"
}

// Owns reports whether a server process works for this pool.
func (s *Store) Owns(pid uint32) bool {
	_, ok := s.pids.Load(pid)
	return ok
}

// closePatience is the time limit of Close. A connection whose other end is gone without a word would delay it for much
// longer.
const closePatience = time.Second

// Close closes the pool. It waits for connections in use, up to closePatience: their users must have ended before.
func (s *Store) Close() {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		s.pool.Close()
	}()
	select {
	case <-closed:
	case <-time.After(closePatience):
	}
}

// Pool gives access to the pool's statistics.
func (s *Store) Pool() *pgxpool.Pool { return s.pool }

// classify wraps errors that lie in the data with event.ErrInvalidData: SQLSTATE classes 22 (data exception), 23
// (integrity constraint violation) and 54 (program limit exceeded). It wraps 55P03, a row that somebody else has
// locked, with event.ErrLocked. Every other error may pass when the call is tried again.
//
// Three errors of these classes may pass too, and are not wrapped:
//
//   - 54000, where it says that the queue of notifications is full;
//   - 23514 of the audit log's default partition: the day got its own partition meanwhile;
//   - 23505 of a primary key whose numbers a sequence gives out.
//
// Data that break a constraint that somebody added may be good: event.ErrForeignRule.
func classify(err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return err
	}
	switch {
	case pgErr.Code == "55P03":
		return fmt.Errorf("%w: %w", event.ErrLocked, err)
	case isQueueFull(pgErr):
		return err
	case pgErr.Code == "23514" && pgErr.TableName == "audit_trail_default":
		return err
	case lagsBehind(pgErr):
		return err
	case pgErr.Code[:2] == "23" && pgErr.ConstraintName != "": // what Spine's own functions reject names none
		return fmt.Errorf("%w: %w", event.ErrForeignRule, err)
	case slices.Contains([]string{"22", "23", "54"}, pgErr.Code[:2]):
		return fmt.Errorf("%w: %w", event.ErrInvalidData, err)
	}
	return err
}

// leaseStates reads the answers of the functions that write under a lease. true says that the lease was held, and false
// that it was lost. NULL says that the row was locked.
func leaseStates(answers []*bool) []event.LeaseState {
	states := make([]event.LeaseState, len(answers))
	for i, held := range answers {
		switch {
		case held == nil:
			states[i] = event.LeaseLocked
		case !*held:
			states[i] = event.LeaseLost
		}
	}
	return states
}

// Notify sends a notification. payload must be shorter than 8000 bytes. The error is event.ErrHintless while no
// notifications are sent.
func (s *Store) Notify(ctx context.Context, channel, payload string) error {
	if s.hintless.Load() {
		return event.ErrHintless
	}
	if err := s.call(ctx, nil, "select pg_catalog.pg_notify($1, $2)", channel, payload); err != nil {
		return fmt.Errorf("notifying %s: %w", channel, err)
	}
	return nil
}

// Connector returns a function that makes single connections to url, for LISTEN. The caller closes them.
func Connector(url, appName string) (func(ctx context.Context) (*pgx.Conn, error), error) {
	config, _, err := parseURL(url, appName)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (*pgx.Conn, error) {
		conn, err := pgx.ConnectConfig(ctx, config.ConnConfig.Copy())
		if err != nil {
			return nil, fmt.Errorf("connecting: %w", err)
		}
		if _, err := prepare(ctx, conn); err != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
			return nil, err
		}
		return conn, nil
	}, nil
}

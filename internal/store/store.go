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
	"net"
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
}

// Store is a pool of connections to one database.
type Store struct {
	pool        *pgxpool.Pool
	readTimeout time.Duration
	pids        sync.Map // of the server processes behind the pool's connections

	idle    atomic.Pointer[glance] // when RollUp last found nothing to count
	sampled atomic.Pointer[glance] // when SampleDepth last looked
}

// Open makes the pool. It does not wait for the database: the first call that needs a connection makes one.
func Open(ctx context.Context, c Config) (*Store, error) {
	config, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return nil, fmt.Errorf("reading the database URL: %w", err)
	}
	configure(config.ConnConfig, c.AppName)
	config.MaxConns = c.MaxConns
	config.MinConns = 0
	config.PingTimeout = time.Second // of a connection that was idle, before it is used again
	config.ConnConfig.OnNotice = noteWarning
	s := &Store{readTimeout: c.ReadTimeout}
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if err := tune(ctx, conn); err != nil {
			return err // and BeforeClose is not called
		}
		registerArrays(conn.TypeMap())
		s.pids.Store(conn.PgConn().PID(), nil)
		return nil
	}
	config.BeforeClose = func(conn *pgx.Conn) { s.pids.Delete(conn.PgConn().PID()) }
	if s.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, fmt.Errorf("making the connection pool: %w", err)
	}
	return s, nil
}

// Owns reports whether a server process works for this pool.
func (s *Store) Owns(pid uint32) bool {
	_, ok := s.pids.Load(pid)
	return ok
}

// configure sets what all connections have in common.
func configure(c *pgx.ConnConfig, appName string) {
	// Keepalive notices a host that vanishes without closing its sockets. The time-out notices one that does not
	// answer.
	dialer := &net.Dialer{Timeout: 3 * time.Second, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3,
	}}
	c.DialFunc = dialer.DialContext
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = 5 * time.Second
	}
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = appName
	}
	// Audit details and errors are shown in UTC, whatever the server's zone.
	c.RuntimeParams["timezone"] = "UTC"
}

// configureDirect is configure for a connection without a pooler in front. Such a connection takes settings as it
// begins. By these the server, too, soon notices a client that is gone without a word.
func configureDirect(c *pgx.ConnConfig, appName string) {
	configure(c, appName)
	for name, value := range map[string]string{
		"tcp_keepalives_idle":                 "10",
		"tcp_keepalives_interval":             "5",
		"tcp_keepalives_count":                "3",
		"idle_in_transaction_session_timeout": "10s",
	} {
		if c.RuntimeParams[name] == "" {
			c.RuntimeParams[name] = value
		}
	}
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

// tune sets up a new session. A commit is on disk before it is answered, also in a database whose default says
// otherwise. No query is compiled (jit), since compiling our short queries takes longer than running them. A session
// whose client is gone without a word soon ends and releases its locks; by itself Postgres would notice after two
// hours.
func tune(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `
		select pg_catalog.set_config('jit', 'off', false),
			pg_catalog.set_config('tcp_keepalives_idle', '10', false),
			pg_catalog.set_config('tcp_keepalives_interval', '5', false),
			pg_catalog.set_config('tcp_keepalives_count', '3', false),
			case when pg_catalog.current_setting('idle_in_transaction_session_timeout') operator(pg_catalog.=) '0'
				then pg_catalog.set_config('idle_in_transaction_session_timeout', '10s', false) end,
			case when pg_catalog.current_setting('synchronous_commit') operator(pg_catalog.=) 'off'
				then pg_catalog.set_config('synchronous_commit', 'on', false) end`)
	if err != nil {
		return fmt.Errorf("setting up a connection: %w", err)
	}
	return nil
}

// warned is the key under which a connection remembers a warning.
const warned = "spine.warned"

// noteWarning remembers on the connection that Postgres raised a WARNING. A commit whose wait for a synchronous standby
// was cut short succeeds with nothing but a warning, and must not be acknowledged.
func noteWarning(conn *pgconn.PgConn, n *pgconn.Notice) {
	if n.SeverityUnlocalized == "WARNING" {
		conn.CustomData()[warned] = n.Message
	}
}

// classify wraps errors that lie in the data with event.ErrInvalidData: SQLSTATE classes 22 (data exception), 23
// (integrity constraint violation) and 54 (program limit exceeded). It wraps 55P03, a row that somebody else has
// locked, with event.ErrLocked. Every other error may pass when the call is tried again.
//
// Two errors of these classes may pass too, and are not wrapped:
//
//   - 54000, with which Postgres also says that the notify queue is full;
//   - 23514 of the audit log's default partition: the day got its own partition meanwhile.
func classify(err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return err
	}
	switch {
	case pgErr.Code == "55P03":
		return fmt.Errorf("%w: %w", event.ErrLocked, err)
	case pgErr.Code == "54000":
		return err
	case pgErr.Code == "23514" && pgErr.TableName == "audit_trail_default":
		return err
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

// Notify sends a notification. payload must be shorter than 8000 bytes.
func (s *Store) Notify(ctx context.Context, channel, payload string) error {
	if _, err := s.pool.Exec(ctx, "select pg_catalog.pg_notify($1, $2)", channel, payload); err != nil {
		return fmt.Errorf("notifying %s: %w", channel, err)
	}
	return nil
}

// Connector returns a function that makes single connections to url, for LISTEN. The caller closes them.
func Connector(url, appName string) (func(ctx context.Context) (*pgx.Conn, error), error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("reading the database URL: %w", err)
	}
	configureDirect(config, appName)
	return func(ctx context.Context) (*pgx.Conn, error) {
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			return nil, fmt.Errorf("connecting: %w", err)
		}
		return conn, nil
	}, nil
}

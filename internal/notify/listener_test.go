package notify

import (
	"bytes"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
)

// patience is a time that no test is meant to wait.
const patience = 2 * time.Minute

// soon is how often a condition is looked at.
const soon = 5 * time.Millisecond

// pooled notifies through a pool, as the store does.
func pooled(pool *pgxpool.Pool) notifierFunc {
	return func(ctx context.Context, channel, payload string) error {
		_, err := pool.Exec(ctx, "select pg_notify($1, $2)", channel, payload)
		return err
	}
}

// deafConn is a connection whose other end can vanish: from then on nothing
// arrives, and nothing tells so.
type deafConn struct {
	net.Conn
	deaf atomic.Bool
}

func (c *deafConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.deaf.Load() {
			return n, err
		}
	}
}

// line is how a listener under test connects.
type line struct {
	config *pgx.ConnConfig
	before func(ctx context.Context, call int) error // before each connection, counted from 0; may be nil

	mu    sync.Mutex
	calls int
	conn  *deafConn // the last
	pid   uint32    // of its backend
}

func newLine(t *testing.T, address string) *line {
	t.Helper()
	config, err := pgx.ParseConfig(address)
	require.NoError(t, err)
	l := &line{config: config}
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.conn = &deafConn{Conn: conn}
		return l.conn, nil
	}
	return l
}

func (l *line) connect(ctx context.Context) (*pgx.Conn, error) {
	l.mu.Lock()
	call := l.calls
	l.calls++
	l.mu.Unlock()
	if l.before != nil {
		if err := l.before(ctx, call); err != nil {
			return nil, err
		}
	}
	conn, err := pgx.ConnectConfig(ctx, l.config)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pid = conn.PgConn().PID()
	return conn, nil
}

// backend is the process that serves the last connection.
func (l *line) backend() uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pid
}

// vanish has the other end of the last connection vanish.
func (l *line) vanish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn.deaf.Store(true)
}

// hearing is a listener at work on spine_ready.
type hearing struct {
	*Listener
	heard   chan Notification
	metrics *prometheus.Registry
	log     *bytes.Buffer // to be read after stop
	cancel  context.CancelFunc
	ended   chan struct{}
}

// listen runs a listener until stop, or the end of the test. adjust may change
// its intervals, which are short otherwise; its time-out is one that no ping is
// meant to reach.
func listen(t *testing.T, l *line, notifier Notifier, adjust func(c *ListenerConfig)) *hearing {
	t.Helper()
	config := DefaultListenerConfig(l.connect)
	config.PingInterval, config.PingTimeout, config.MaxBackoff = 20*time.Millisecond, patience, 20*time.Millisecond
	if adjust != nil {
		adjust(&config)
	}
	h := &hearing{
		heard:   make(chan Notification, 1000),
		metrics: prometheus.NewRegistry(),
		log:     &bytes.Buffer{},
		ended:   make(chan struct{}),
	}
	h.Listener = NewListener(config, notifier, zerolog.New(zerolog.SyncWriter(h.log)), h.metrics)
	h.Handle(ReadyChannel, func(n Notification) { h.heard <- n })
	ctx, cancel := context.WithCancel(t.Context())
	h.cancel = cancel
	go func() {
		defer close(h.ended)
		if err := h.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(h.stop)
	return h
}

func (h *hearing) stop() {
	h.cancel()
	<-h.ended
}

// next waits for a notification.
func (h *hearing) next(t *testing.T) Notification {
	t.Helper()
	select {
	case n := <-h.heard:
		return n
	case <-time.After(patience):
		require.FailNow(t, "nothing was heard")
		return Notification{}
	}
}

func (h *hearing) requireHears(t *testing.T) {
	t.Helper()
	require.Eventually(t, h.Hears, patience, soon)
	require.NoError(t, h.Check(t.Context()))
}

func (h *hearing) connections() int { return int(testutil.ToFloat64(h.reconnects)) }

// up is the gauge spine_listener_up.
func (h *hearing) up(t *testing.T) float64 {
	t.Helper()
	families, err := h.metrics.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == "spine_listener_up" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	require.FailNow(t, "no such gauge")
	return 0
}

func TestNotificationReachesItsHandler(t *testing.T) {
	t.Parallel()
	pool := databases.Pool(t)
	l := newLine(t, pool.Config().ConnString())
	there := make(chan struct{})
	l.before = func(context.Context, int) error { <-there; return nil }
	h := listen(t, l, pooled(pool), nil)
	require.False(t, h.Hears())
	require.Error(t, h.Check(t.Context()))
	require.Zero(t, h.up(t))
	close(there)

	require.Equal(t, Notification{Missed: true}, h.next(t))
	h.requireHears(t)
	require.InDelta(t, 1, h.up(t), 0)
	for _, payload := range []string{`{"count":1}`, "", `{"count":2}`} {
		require.NoError(t, pooled(pool)(t.Context(), ReadyChannel, payload))
		require.Equal(t, payload, h.next(t).Payload)
	}
	require.NoError(t, pooled(pool)(t.Context(), ActivityChannel, "another channel"))
	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	_, err = conn.Exec(t.Context(), "select pg_notify($1, 'last')", ReadyChannel)
	require.NoError(t, err)
	require.Equal(t, Notification{Payload: "last", PID: conn.Conn().PgConn().PID()}, h.next(t))
	require.Equal(t, 1, h.connections())

	h.stop()
	require.False(t, h.Hears())
	require.Empty(t, h.heard)
	require.Contains(t, h.log.String(), "notifications arrive")
	require.NotContains(t, h.log.String(), "lost its connection", "a stop is no loss")
}

func TestTerminatedBackendIsReplacedAndMissesAreSaid(t *testing.T) {
	t.Parallel()
	pool := databases.Pool(t)
	l := newLine(t, pool.Config().ConnString())
	h := listen(t, l, pooled(pool), nil)
	for i := range 3 {
		require.Equal(t, Notification{Missed: true}, h.next(t))
		h.requireHears(t)
		require.Equal(t, i+1, h.connections())
		var terminated bool
		require.NoError(t, pool.QueryRow(t.Context(), "select pg_terminate_backend($1)", l.backend()).Scan(&terminated))
		require.True(t, terminated)
	}
	require.Equal(t, Notification{Missed: true}, h.next(t))
	require.NoError(t, pooled(pool)(t.Context(), ReadyChannel, "again"))
	require.Equal(t, "again", h.next(t).Payload)
}

func TestPostgresThatComesBackIsHeardAgain(t *testing.T) {
	t.Parallel()
	server := postgrestest.Server(t)
	pool, err := pgxpool.New(t.Context(), server.URL())
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	h := listen(t, newLine(t, server.URL()), pooled(pool), nil)
	require.Equal(t, Notification{Missed: true}, h.next(t))
	h.requireHears(t)
	server.Kill()
	require.Eventually(t, func() bool { return h.Check(t.Context()) != nil }, patience, soon)
	require.False(t, h.Hears())
	require.NoError(t, server.Restart(t.Context()))
	require.Equal(t, Notification{Missed: true}, h.next(t))
	h.requireHears(t)
}

func TestConnectionWhoseOtherEndHasVanishedIsReplaced(t *testing.T) {
	t.Parallel()
	pool := databases.Pool(t)
	l := newLine(t, pool.Config().ConnString())
	h := listen(t, l, pooled(pool), func(c *ListenerConfig) { c.PingTimeout = 2 * time.Second })
	require.Equal(t, Notification{Missed: true}, h.next(t))
	h.requireHears(t)
	l.vanish()
	require.NoError(t, pooled(pool)(t.Context(), ReadyChannel, "into the void"))
	require.Equal(t, Notification{Missed: true}, h.next(t))
	h.requireHears(t)
	require.NoError(t, pooled(pool)(t.Context(), ReadyChannel, "heard"))
	require.Equal(t, "heard", h.next(t).Payload)
	h.stop()
	require.NotContains(t, h.log.String(), "poll-only", "where pings have come back, they will again")
}

func TestPollOnlyWhereNoPingEverComesBack(t *testing.T) {
	t.Parallel()
	pool := databases.Pool(t)
	var arrives atomic.Bool
	notifier := notifierFunc(func(ctx context.Context, channel, payload string) error {
		if !arrives.Load() {
			return nil // as behind a transaction pooler
		}
		return pooled(pool)(ctx, channel, payload)
	})
	h := listen(
		t,
		newLine(t, pool.Config().ConnString()),
		notifier,
		func(c *ListenerConfig) { c.PingTimeout = 2 * time.Second },
	)
	require.Equal(t, Notification{Missed: true}, h.next(t))
	require.Error(t, h.Check(t.Context()))
	require.Eventually(t, func() bool { return h.Check(t.Context()) == nil }, patience, soon)
	require.False(t, h.Hears())
	require.Zero(t, h.up(t))
	arrives.Store(true) // it is mended
	h.requireHears(t)
	h.stop()
	require.Equal(t, 1, bytes.Count(h.log.Bytes(), []byte("DIRECT_DATABASE_URL")), "said once")
}

func TestListenerThatCannotConnectIsNotPollOnly(t *testing.T) {
	t.Parallel()
	l := &line{before: func(context.Context, int) error { return errAway }}
	pings := make(chan struct{}, 1000)
	notifier := notifierFunc(func(context.Context, string, string) error { pings <- struct{}{}; return nil })
	h := listen(t, l, notifier, func(c *ListenerConfig) { c.PingTimeout = time.Millisecond })
	for range 5 {
		<-pings
	}
	require.Error(t, h.Check(t.Context()))
	h.stop()
	require.NotContains(t, h.log.String(), "poll-only")
	require.Contains(t, h.log.String(), errAway.Error())
	require.Zero(t, h.connections())
}

func TestPingThatCannotBeSentCostsNoConnection(t *testing.T) {
	t.Parallel()
	pool := databases.Pool(t)
	var failures atomic.Int32
	notifier := notifierFunc(func(ctx context.Context, channel, payload string) error {
		if failures.Add(-1) >= 0 {
			return errAway
		}
		return pooled(pool)(ctx, channel, payload)
	})
	h := listen(t, newLine(t, pool.Config().ConnString()), notifier, nil)
	require.Equal(t, Notification{Missed: true}, h.next(t))
	h.requireHears(t)
	failures.Store(1000)
	require.Eventually(t, func() bool { return failures.Load() < 995 }, patience, soon)
	require.Error(t, h.Check(t.Context()), "it is not proven to hear")
	require.NoError(t, pooled(pool)(t.Context(), ReadyChannel, "and yet"))
	require.Equal(t, "and yet", h.next(t).Payload, "it does")
	failures.Store(0)
	h.requireHears(t)
	require.Equal(t, 1, h.connections())
}

// After an outage those that send find their connections gone when they first
// use them: that must not cost the time between two pings.
func TestPingThatCannotBeSentIsSentAgainSoon(t *testing.T) {
	t.Parallel()
	pool := databases.Pool(t)
	var failures atomic.Int32
	failures.Store(3)
	notifier := notifierFunc(func(ctx context.Context, channel, payload string) error {
		if failures.Add(-1) >= 0 {
			return errAway
		}
		return pooled(pool)(ctx, channel, payload)
	})
	h := listen(
		t, newLine(t, pool.Config().ConnString()), notifier, func(c *ListenerConfig) { c.PingInterval = time.Hour },
	)
	h.requireHears(t)
	require.Equal(t, 1, h.connections())
}

// E14: while no notifications are sent, the process is ready, and polls. It hears again once they are.
func TestAListenerWithoutHints(t *testing.T) {
	t.Parallel()
	pool := databases.Pool(t)
	var hintless atomic.Bool
	hintless.Store(true)
	notifier := notifierFunc(func(ctx context.Context, channel, payload string) error {
		if hintless.Load() {
			return event.ErrHintless
		}
		return pooled(pool)(ctx, channel, payload)
	})
	h := listen(t, newLine(t, pool.Config().ConnString()), notifier, nil)
	require.Equal(t, Notification{Missed: true}, h.next(t))
	require.Eventually(t, func() bool { return h.Check(t.Context()) == nil }, patience, soon)
	require.False(t, h.Hears())
	hintless.Store(false)
	h.requireHears(t)
	require.Equal(t, 1, h.connections())
	hintless.Store(true)
	require.Eventually(t, func() bool { return !h.Hears() }, patience, soon)
	require.NoError(t, h.Check(t.Context()))
}

func TestPingThatWasSentTooEarlyIsSentAgain(t *testing.T) {
	t.Parallel()
	pool := databases.Pool(t)
	l := newLine(t, pool.Config().ConnString())
	pinged := make(chan struct{})
	var once sync.Once
	notifier := notifierFunc(func(ctx context.Context, channel, payload string) error {
		err := pooled(pool)(ctx, channel, payload)
		once.Do(func() { close(pinged) })
		return err
	})
	l.before = func(context.Context, int) error { <-pinged; return nil }
	h := listen(t, l, notifier, func(c *ListenerConfig) { c.PingTimeout = 2 * patience })
	h.requireHears(t) // long before that ping is given up
	require.Equal(t, 1, h.connections())
}

func TestStopWhileConnectingEnds(t *testing.T) {
	t.Parallel()
	connecting := make(chan struct{}, 1)
	l := &line{before: func(ctx context.Context, _ int) error {
		connecting <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}}
	h := listen(
		t, l, notifierFunc(func(ctx context.Context, _, _ string) error { <-ctx.Done(); return ctx.Err() }), nil,
	)
	<-connecting
	h.stop()
	require.False(t, h.Hears())
}

func TestPausesBetweenConnectionsGrowAndCarryJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := DefaultListenerConfig(func(context.Context) (*pgx.Conn, error) { return nil, errAway })
		l := NewListener(config, nil, zerolog.Nop(), prometheus.NewRegistry())
		seen := map[time.Duration]bool{}
		for i, longest := range []time.Duration{0, 100, 200, 400, 800, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000} {
			longest *= time.Millisecond
			began := time.Now()
			_, err := l.connect(t.Context())
			require.ErrorIs(t, err, errAway)
			pause := time.Since(began)
			require.LessOrEqual(t, pause, longest+1, "attempt %d", i)
			require.GreaterOrEqual(t, pause, longest/2, "attempt %d", i)
			seen[pause] = true
		}
		require.Greater(t, len(seen), 8, "processes do not come back in step")

		l.pollOnly.Store(true)
		began := time.Now()
		_, err := l.connect(t.Context())
		require.ErrorIs(t, err, errAway)
		require.GreaterOrEqual(t, time.Since(began), 15*time.Second, "in poll-only mode it is not tried often")

		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errAway)
		began = time.Now()
		_, err = l.connect(ctx)
		require.ErrorIs(t, err, errAway)
		require.Zero(t, time.Since(began), "a stop does not wait for a pause")
	})
}

func TestDue(t *testing.T) {
	noon := time.Date(2024, 1, 30, 12, 0, 0, 0, time.UTC)
	for payload, want := range map[string]time.Time{
		`{"count":1,"event_ids":["x"],"due":"2024-01-30T12:00:00.123456+00:00"}`: noon.Add(123456 * time.Microsecond),

		`{"due":"2024-01-30T12:00:00+05:30"}`:    noon.Add(-5*time.Hour - 30*time.Minute),
		`{"due":"-infinity"}`:                    {},
		`{"due":"0044-03-15T12:00:00+00:00 BC"}`: {},
	} {
		since, ok := Notification{Payload: payload}.Due()
		require.True(t, ok, payload)
		require.True(t, want.Equal(since), payload)
	}
	for _, payload := range []string{"", "nonsense", `{}`, `{"due":null}`, `{"due":7}`} {
		_, ok := Notification{Payload: payload}.Due()
		require.False(t, ok, payload)
	}
}

// A session may listen to channels that nobody here asked for: behind a transaction pooler it was another process's.
// Their notifications end nothing. The watchdog still finds out that the connection is broken.
func TestStrayNotificationsEndNothing(t *testing.T) {
	t.Parallel()
	pool := databases.Pool(t)
	l := newLine(t, pool.Config().ConnString())
	h := listen(t, l, pooled(pool), func(c *ListenerConfig) {
		connect := c.Connect
		c.PingTimeout = 2 * time.Second
		c.Connect = func(ctx context.Context) (*pgx.Conn, error) {
			conn, err := connect(ctx)
			if err == nil {
				_, err = conn.Exec(ctx, "listen stray")
			}
			return conn, err
		}
	})
	h.requireHears(t)
	require.True(t, h.next(t).Missed)
	for range 3 {
		require.NoError(t, pooled(pool)(t.Context(), "stray", "x"))
	}
	require.NoError(t, pooled(pool)(t.Context(), ReadyChannel, "after"))
	for n := h.next(t); n.Payload != "after"; n = h.next(t) {
		require.True(t, n.Missed)
	}
	l.vanish()
	require.Eventually(t, func() bool { return h.connections() > 1 }, patience, soon)
	h.requireHears(t)
	h.stop()
	require.NotContains(t, h.log.String(), `"warn","error":"missing handler`)
}

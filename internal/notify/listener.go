// Package notify hears and sends Postgres notifications. It listens on a connection of its own through pgxlisten. A
// watchdog proves every few seconds that notifications really arrive. Summaries on spine_activity are limited in rate.
//
// A notification is a hint, never data: it says that reading the tables is worth while. The package promises that it
// calls each handler once after every (re)connection, since notifications may have been missed before.
//
// It must not know what handlers do.
package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgxlisten"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/bell"
	"github.com/webhookspine/spine/internal/event"
)

// Channels that Spine speaks on.
const (
	ReadyChannel    = "spine_ready"    // events are due
	ActivityChannel = "spine_activity" // a summary of what happened
	SourcesChannel  = "spine_sources"  // a source was changed, or a replay of rejected requests was requested
)

// Notification is passed to a handler.
type Notification struct {
	Payload string
	PID     uint32 // of the Postgres backend whose transaction sent it
	Missed  bool   // true after a (re)connection: notifications may have been missed; Payload is empty
}

// Due returns when the oldest event that a notification on ReadyChannel announces fell due. The zero time stands for
// any time in the past. ok is false where the notification does not say.
func (n Notification) Due() (since time.Time, ok bool) {
	var ready struct {
		Due *string `json:"due"`
	}
	if err := json.Unmarshal([]byte(n.Payload), &ready); err != nil || ready.Due == nil {
		return time.Time{}, false
	}
	if since, err := time.Parse(time.RFC3339, *ready.Due); err == nil {
		return since, true
	}
	return time.Time{}, true // -infinity, or a year that Go does not know
}

// Notifier sends a notification on another connection than the listener's. It is safe for concurrent use.
type Notifier interface {
	Notify(ctx context.Context, channel, payload string) error
}

// ListenerConfig says how to listen.
type ListenerConfig struct {
	Connect      func(ctx context.Context) (*pgx.Conn, error) // a direct connection, not one of a transaction pooler
	PingInterval time.Duration                                // between two proofs that notifications arrive
	PingTimeout  time.Duration                                // for a ping to come back; then the connection is closed
	MaxBackoff   time.Duration                                // longest pause between two attempts to connect
}

// DefaultListenerConfig returns intervals that find a dead connection within eight seconds and a returned Postgres
// within one.
func DefaultListenerConfig(connect func(ctx context.Context) (*pgx.Conn, error)) ListenerConfig {
	return ListenerConfig{
		Connect:      connect,
		PingInterval: 5 * time.Second,
		PingTimeout:  3 * time.Second,
		MaxBackoff:   time.Second,
	}
}

// Listener hears notifications. Make one with NewListener, add handlers, then Run.
type Listener struct {
	config   ListenerConfig
	notifier Notifier
	log      zerolog.Logger
	handlers map[string]func(Notification)

	pingChannel string
	connected   *bell.Bell  // LISTEN is in force on a new connection
	pongs       chan string // the last ping that came back
	hears       atomic.Bool // the last ping came back
	pollOnly    atomic.Bool // connections are made, pings are sent, and none ever came back
	hintless    atomic.Bool // no notifications are sent, so that nobody can tell whether they arrive

	mu       sync.Mutex
	conn     *pgx.Conn // nil while there is none
	failures int       // connections in a row, made or not, on which no ping came back

	roundTrip  prometheus.Histogram
	reconnects prometheus.Counter
}

// NewListener returns a Listener with its metrics registered with reg.
func NewListener(config ListenerConfig, notifier Notifier, log zerolog.Logger, reg prometheus.Registerer) *Listener {
	l := &Listener{
		config: config, notifier: notifier, log: log,
		handlers:    map[string]func(Notification){},
		pingChannel: "spine_ping_" + uuid.NewString()[:8],
		connected:   bell.New(),
		pongs:       make(chan string, 1),
		roundTrip: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "spine_listener_round_trip_seconds",
			Help:    "Time from NOTIFY to its arrival at this process's listener.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 14),
		}),
		reconnects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_listener_connections_total",
			Help: "Connections the listener has made; more than one means it had to reconnect.",
		}),
	}
	reg.MustRegister(l.roundTrip, l.reconnects, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "spine_listener_up",
		Help: "1 while notifications are proven to arrive, 0 in poll-only mode or while reconnecting.",
	}, func() float64 {
		if l.Hears() {
			return 1
		}
		return 0
	}))
	return l
}

// Handle makes the listener call f for each notification on channel, one at a time, and once after each connection. f
// must not block. Call Handle before Run.
func (l *Listener) Handle(channel string, f func(Notification)) { l.handlers[channel] = f }

// Hears reports whether the last ping came back. While it did not, Spine polls.
func (l *Listener) Hears() bool { return l.hears.Load() }

// Check returns an error unless the listener hears, is in poll-only mode, or no notifications are sent. Poll-only is
// the mode for places where notifications cannot arrive at all, as behind a transaction pooler.
func (l *Listener) Check(context.Context) error {
	if l.Hears() || l.pollOnly.Load() || l.hintless.Load() {
		return nil
	}
	return errors.New("the listener is not connected")
}

// Run listens until ctx ends. It survives every outage of the database.
func (l *Listener) Run(ctx context.Context) error {
	listener := &pgxlisten.Listener{
		Connect: l.connect,
		// The delay is in connect, where it can grow and have jitter.
		ReconnectDelay: -1,
		LogError: func(ctx context.Context, err error) {
			if l.isOpen() {
				// It heard a channel that it did not ask for, on a session that a pooler gives to several.
				l.log.Debug().Err(err).Msg("a notification had no handler")
				return
			}
			l.hears.Store(false)
			l.setConn(nil)
			level := zerolog.WarnLevel
			if l.pollOnly.Load() { // it has said so, and each try ends in this way
				level = zerolog.DebugLevel
			}
			if ctx.Err() == nil {
				l.log.WithLevel(level).Err(err).Msg("the listener lost its connection, polling until it is back")
			}
		},
	}
	for channel, f := range l.handlers {
		listener.Handle(channel, handler(f))
	}
	listener.Handle(l.pingChannel, pongHandler{l})
	var watch sync.WaitGroup
	watch.Go(func() { l.watchdog(ctx) })
	err := listener.Listen(ctx)
	watch.Wait()
	l.hears.Store(false)
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("listening: %w", err)
}

// Reasons why a ping did not prove that notifications arrive.
var (
	errPingLost    = errors.New("a ping did not come back")
	errReconnected = errors.New("the listener has a new connection, and the ping may have been sent before it")
)

// handler calls a function for each notification, and once for each new connection. LISTEN is in force by then, so no
// notification is lost between the two.
type handler func(Notification)

func (f handler) HandleNotification(_ context.Context, n *pgconn.Notification, _ *pgx.Conn) error {
	f(Notification{Payload: n.Payload, PID: n.PID})
	return nil
}

func (f handler) HandleBacklog(context.Context, string, *pgx.Conn) error {
	f(Notification{Missed: true})
	return nil
}

// pongHandler receives the pings that this process sends to itself.
type pongHandler struct{ l *Listener }

func (h pongHandler) HandleNotification(_ context.Context, n *pgconn.Notification, _ *pgx.Conn) error {
	select {
	case <-h.l.pongs: // an earlier ping that came late: nothing waits for it
	default:
	}
	h.l.pongs <- n.Payload // there is room: this is the only sender
	return nil
}

// HandleBacklog makes the watchdog ping at once when a connection is new.
func (h pongHandler) HandleBacklog(context.Context, string, *pgx.Conn) error {
	h.l.connected.Ring()
	return nil
}

// connect makes the next connection, after a pause that grows with failures in a row. The pause has jitter, so that
// many processes do not come back at the same moment.
func (l *Listener) connect(ctx context.Context) (*pgx.Conn, error) {
	l.mu.Lock()
	failures := l.failures
	l.failures++
	l.mu.Unlock()
	if failures > 0 {
		pause := min(l.config.MaxBackoff, 50*time.Millisecond<<min(failures, 10))
		if l.pollOnly.Load() {
			pause = 30 * l.config.MaxBackoff // tried seldom: nothing depends on it while Spine polls
		}
		pause = pause/2 + rand.N(pause/2+1) //nolint:gosec // jitter needs no secrecy
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
	conn, err := l.config.Connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting to listen: %w", err)
	}
	l.reconnects.Inc()
	l.setConn(conn)
	return conn, nil
}

// isOpen reports whether there is a connection that pgxlisten has not closed.
func (l *Listener) isOpen() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn != nil && !l.conn.IsClosed()
}

func (l *Listener) setConn(conn *pgx.Conn) {
	l.mu.Lock()
	l.conn = conn
	l.mu.Unlock()
}

// watchdog pings the listener through the database, the whole way of a real notification. When a ping does not come
// back, it closes the socket. Otherwise the listener would wait for ever on a connection whose other end has vanished.
func (l *Listener) watchdog(ctx context.Context) {
	var (
		listened bool // LISTEN came into force, on whatever connection
		heard    bool // a ping came back, on whatever connection
	)
	timer := time.NewTimer(l.config.PingInterval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.connected.C():
			listened = true
		case <-timer.C:
		}
		timer.Reset(l.config.PingInterval)
		took, err := l.ping(ctx)
		l.hintless.Store(errors.Is(err, event.ErrHintless))
		switch {
		case ctx.Err() != nil:
			return
		case l.hintless.Load():
			l.hears.Store(false)
		case err == nil && l.isOpen():
			l.roundTrip.Observe(took.Seconds())
			l.mu.Lock()
			l.failures = 0
			l.mu.Unlock()
			heard = true
			l.pollOnly.Store(false)
			if !l.hears.Swap(true) {
				l.log.Info().Dur("round_trip_ms", took).Msg("listening: notifications arrive")
			}
		case err == nil, errors.Is(err, errReconnected):
			listened = true
			timer.Reset(0)
		default:
			l.hears.Store(false)
			// A ping that could not be sent proves nothing about the listener's connection. It is tried again soon: the
			// pool finds its own dead connection only by using it.
			if !errors.Is(err, errPingLost) {
				timer.Reset(l.config.MaxBackoff / 2)
			}
			if errors.Is(err, errPingLost) && l.closeSocket() && listened && !heard && !l.pollOnly.Swap(true) {
				l.log.Warn().Msg("notifications do not arrive, working in poll-only mode; " +
					"behind a transaction pooler set DIRECT_DATABASE_URL")
			}
		}
	}
}

// ping sends a notification to this process and waits for it.
func (l *Listener) ping(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.PingTimeout)
	defer cancel()
	payload := uuid.NewString()
	start := time.Now()
	if err := l.notifier.Notify(ctx, l.pingChannel, payload); err != nil {
		return 0, fmt.Errorf("sending a ping: %w", err)
	}
	for {
		select {
		case got := <-l.pongs:
			if got == payload {
				return time.Since(start), nil
			}
		case <-l.connected.C():
			return 0, errReconnected
		case <-ctx.Done():
			return 0, errPingLost
		}
	}
}

// closeSocket closes the connection under the listener, which then makes a new one. It reports whether there was one.
func (l *Listener) closeSocket() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return false
	}
	_ = l.conn.PgConn().Conn().Close() // it is closed because it is broken
	return true
}

package observe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

// Limits on slow clients. A body of the largest size arrives well within readTimeout. writeTimeout leaves the handler
// time to answer that a body was too slow. Streams extend their own deadlines with http.ResponseController.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 15 * time.Second
	writeTimeout      = 30 * time.Second
	maxHeaderBytes    = 16 << 10                  // no provider sends more, and thousands of connections may hold as much
	endless           = 1 << 62 * time.Nanosecond // net/http takes 0 for readTimeout
)

// Listen binds address, HOST:PORT. Port 0 takes a free one, which the listener's Addr tells.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf(
			"listening on %s: another process is using this address: %w",
			address,
			syscall.EADDRINUSE,
		)
	}
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", address, err)
	}
	return l, nil
}

// URL returns the address under which this machine can reach a listener.
func URL(l net.Listener) string {
	host, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return "http://" + l.Addr().String()
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// Server serves HTTP on a listener until its context ends, and then drains.
type Server struct {
	Listener net.Listener // closed when Run returns
	Handler  http.Handler
	Health   *Health // drained at the stop; may be nil
	Log      zerolog.Logger
	Name     string // of what it serves, for the log; empty for what the process is for

	// Delay is how long new requests are still accepted after the stop, while /readyz already answers 503. It is the
	// time that a load balancer needs to notice.
	Delay time.Duration
	// IdleTimeout is how long a connection may be without a request. The load balancer in front must close idle
	// connections first: where Spine does, a request may meet a closed connection. 0 is no limit.
	IdleTimeout time.Duration
	// Timeout is how long requests in hand may then take. After it their contexts are cancelled and their connections
	// closed.
	Timeout time.Duration

	// Memory is what connections may take that wait for their client, in bytes. Of too many the oldest are closed. 0 is
	// 128 MB, which is enough for 8,192 connections.
	Memory int64
}

// Run serves until ctx ends. It returns nil when every request in hand was answered or was cut at the Timeout, which is
// logged. Requests outlive ctx, so streams must watch for the stop themselves.
func (s Server) Run(ctx context.Context) error {
	requests, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	srv := &http.Server{
		Handler:           pastHeaders(readOn(s.Handler)),
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       cmp.Or(s.IdleTimeout, endless),
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          stdlog.New(warnings{s.Log}, "", 0),
		BaseContext:       func(net.Listener) context.Context { return requests },
	}
	crowd := newCrowd(cmp.Or(s.Memory, defaultMemory), s.Log)
	srv.ConnState = crowd.note
	srv.ConnContext = withHeaded
	served := make(chan error, 1)
	go func() { served <- srv.Serve(fewHeaders{s.Listener, crowd}) }()
	s.Log.Info().Str("url", URL(s.Listener)).Msg(strings.TrimSpace("serving " + s.Name))

	select {
	case err := <-served:
		return fmt.Errorf("serving %s: %w", s.Listener.Addr(), err)
	case <-ctx.Done():
	}
	if s.Health != nil {
		s.Health.Drain()
	}
	<-time.After(s.Delay)
	limit, cancel := context.WithTimeout(requests, s.Timeout)
	defer cancel()
	if err := srv.Shutdown(limit); err != nil {
		s.Log.Warn().Err(err).Dur("limit_ms", s.Timeout).Msg("cutting the requests still in hand")
		cut()
		_ = srv.Close() // an error of a connection that is cut anyway
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving %s: %w", s.Listener.Addr(), err)
	}
	return nil
}

// warnings writes net/http's own messages to the log.
type warnings struct{ log zerolog.Logger }

func (w warnings) Write(line []byte) (int, error) {
	w.log.Warn().Str("from", "net/http").Msg(string(line))
	return len(line), nil
}

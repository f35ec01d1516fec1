package observe

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// get asks a handler and reads its JSON answer.
func get(t *testing.T, h http.Handler, path string) (int, map[string]any) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	var body map[string]any
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &body), w.Body.String())
	return w.Code, body
}

func passing(name string) Check {
	return Check{Name: name, Probe: func(context.Context) error { return nil }}
}

func TestReadyzNamesTheCheckThatFailsAndKeepsTheReasonInTheLog(t *testing.T) {
	var log bytes.Buffer
	h := NewHealth(zerolog.New(&log), passing("schema"),
		Check{Name: "database", Probe: func(context.Context) error { return errors.New("password is sesame") }})

	code, body := get(t, h.Around(nil), "/readyz")

	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Equal(t, map[string]any{
		"status": "not ready",
		"checks": map[string]any{"schema": "ok", "database": "failed"},
	}, body)
	require.Contains(t, log.String(), "sesame")
}

func TestReadyzLogsEachReasonOnce(t *testing.T) {
	var log bytes.Buffer
	var fault error
	h := NewHealth(zerolog.New(&log), passing("schema"),
		Check{Name: "database", Probe: func(context.Context) error { return fault }})
	for _, step := range []struct {
		fault error
		line  string
	}{
		{nil, ""},
		{
			errors.New("refused"),
			`{"level":"warn","error":"refused","check":"database","message":"a readiness check fails"}`,
		},
		{errors.New("refused"), ""},
		{
			errors.New("reset by 127.0.0.1:5000"), // another reason
			`{"level":"warn","error":"reset by 127.0.0.1:5000","check":"database","message":"a readiness check fails"}`,
		},
		{errors.New("reset by 127.0.0.1:6000"), ""},
		{errors.New("refused"), ""},
		{nil, `{"level":"info","check":"database","message":"a readiness check passes again"}`},
		{nil, ""},
		{
			errors.New("timeout"),
			`{"level":"warn","error":"timeout","check":"database","message":"a readiness check fails"}`,
		},
	} {
		log.Reset()
		fault = step.fault
		h.latest = probeResult{} // as if a second had passed
		get(t, h.Around(nil), "/readyz")
		require.Equal(t, step.line, strings.TrimSpace(log.String()))
	}
}

func TestReadyzLimitsTheTimeOfAllChecksTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		h := NewHealth(zerolog.Nop(), Check{"database", slow}, Check{"listener", slow})
		start := time.Now()

		code, _ := get(t, h.Around(nil), "/readyz")

		require.Equal(t, http.StatusServiceUnavailable, code)
		require.Equal(t, checkTimeout, time.Since(start))
	})
}

// B1, of its kind: however many strangers ask, one probe runs at a time, and its result is for all that ask within a
// second.
func TestReadyzProbesOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var probes, at, most atomic.Int64
		h := NewHealth(zerolog.Nop(), Check{"database", func(context.Context) error {
			probes.Add(1)
			most.Store(max(most.Load(), at.Add(1)))
			time.Sleep(300 * time.Millisecond)
			at.Add(-1)
			return nil
		}})
		var all sync.WaitGroup
		for range 2000 {
			all.Go(func() {
				code, _ := get(t, h.Around(nil), "/readyz")
				assert.Equal(t, http.StatusOK, code)
			})
		}
		all.Wait()
		require.EqualValues(t, 1, most.Load())
		require.EqualValues(t, 1, probes.Load())
		time.Sleep(2 * time.Second)
		get(t, h.Around(nil), "/readyz")
		require.EqualValues(t, 2, probes.Load(), "no result is old")
	})
}

func TestReadyzAndHealthz(t *testing.T) {
	h := NewHealth(zerolog.Nop(), passing("database"))

	code, body := get(t, h.Around(nil), "/readyz")
	require.Equal(t, http.StatusOK, code)
	require.Equal(t, map[string]any{"status": "ready", "checks": map[string]any{"database": "ok"}}, body)

	h.Drain()
	code, body = get(t, h.Around(nil), "/readyz")
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Equal(t, map[string]any{"status": "draining"}, body)

	code, _ = get(t, h.Around(nil), "/healthz")
	require.Equal(t, http.StatusOK, code, "a process that drains is up")
}

func TestRootSaysWhoThisIs(t *testing.T) {
	code, body := get(t, NewHealth(zerolog.Nop()).Around(nil), "/")

	require.Equal(t, http.StatusOK, code)
	require.Equal(t, "spine", body["service"])
	require.Equal(t, "healthy", body["status"])
	stamp, err := time.Parse(time.RFC3339, body["timestamp"].(string))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), stamp, time.Minute)
}

func TestAround(t *testing.T) {
	next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	h := NewHealth(zerolog.Nop())
	for _, tc := range []struct {
		method, path string
		next         http.Handler
		code         int
		allow        string
	}{
		{method: http.MethodPost, path: "/readyz", next: next, code: http.StatusMethodNotAllowed, allow: "GET, HEAD"},
		{method: http.MethodPost, path: "/", next: next, code: http.StatusMethodNotAllowed, allow: "GET, HEAD"},
		{method: http.MethodGet, path: "/metrics", next: next, code: http.StatusTeapot},
		{
			method: http.MethodDelete, path: "/healthz", next: next, code: http.StatusMethodNotAllowed,
			allow: "GET, HEAD",
		},
		{method: http.MethodHead, path: "/readyz", next: next, code: http.StatusOK},
		{method: http.MethodPost, path: "/webhook", next: next, code: http.StatusTeapot},
		{method: http.MethodGet, path: "//readyz", next: next, code: http.StatusTeapot},
		{method: http.MethodGet, path: "/webhook", code: http.StatusNotFound},
	} {
		t.Run(tc.method+tc.path, func(t *testing.T) {
			w := httptest.NewRecorder()
			r := httptest.NewRequestWithContext(t.Context(), tc.method, "/", nil)
			r.URL.Path = tc.path
			h.Around(tc.next).ServeHTTP(w, r)
			require.Equal(t, tc.code, w.Code)
			require.Equal(t, tc.allow, w.Header().Get("Allow"))
			if tc.code == http.StatusMethodNotAllowed || tc.code == http.StatusNotFound {
				require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
			}
		})
	}
}

func TestMetricsHasTheStagesAndTheProcess(t *testing.T) {
	metrics := NewMetrics()
	events := prometheus.NewCounter(prometheus.CounterOpts{Name: "spine_events_total", Help: "Events."})
	metrics.MustRegister(events)
	events.Add(3)
	w := httptest.NewRecorder()

	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil)
	MetricsHandler(metrics).ServeHTTP(w, r)

	require.Equal(t, http.StatusOK, w.Code)
	require.Contains(t, w.Body.String(), "\nspine_events_total 3\n")
	require.Contains(t, w.Body.String(), "\ngo_goroutines ")
}

func TestListenSaysThatTheAddressIsInUse(t *testing.T) {
	first, err := Listen(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, first.Close()) }()

	_, err = Listen(t.Context(), first.Addr().String())

	require.EqualError(
		t, err, "listening on "+first.Addr().String()+": another process is using this address: address already in use",
	)
}

func TestURLCanBeReachedFromThisMachine(t *testing.T) {
	for listen, want := range map[string]string{
		":80": "http://127.0.0.1:80", "0.0.0.0:80": "http://127.0.0.1:80", "[::]:80": "http://127.0.0.1:80",
		"[::1]:80": "http://[::1]:80", "10.1.2.3:80": "http://10.1.2.3:80",
	} {
		addr, err := net.ResolveTCPAddr("tcp", listen)
		require.NoError(t, err)
		require.Equal(t, want, URL(&pipes{addr: addr}), listen)
	}
}

// pipes is a network of its own, within which synctest's clock holds.
type pipes struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes {
	return &pipes{
		addr:   &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80},
		conns:  make(chan net.Conn),
		closed: make(chan struct{}),
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return p.addr }

// code asks for a path on a connection of its own, and returns the status, or
// 0 where the connection was refused or cut.
func (p *pipes) code(ctx context.Context, path string) int {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			select {
			case p.conns <- far:
				return near, nil
			case <-p.closed:
				return nil, net.ErrClosed
			}
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://spine"+path, nil)
	if err != nil {
		return 0
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// running starts a server on p and returns how to stop it and its end.
func running(t *testing.T, s Server) (stop context.CancelFunc, ended <-chan error) {
	ctx, stop := context.WithCancel(t.Context())
	end := make(chan error, 1)
	go func() { end <- s.Run(ctx) }()
	return stop, end
}

func TestServerGoesOnServingForTheDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		h := NewHealth(zerolog.Nop())
		stop, ended := running(
			t, Server{Listener: p, Handler: h.Around(nil), Health: h, Log: zerolog.Nop(), Delay: 10 * time.Second},
		)
		require.Equal(t, http.StatusOK, p.code(t.Context(), "/readyz"))

		stop()
		synctest.Wait()
		require.Equal(t, http.StatusServiceUnavailable, p.code(t.Context(), "/readyz"))
		<-time.After(9 * time.Second)
		require.Equal(t, http.StatusOK, p.code(t.Context(), "/healthz"))
		<-time.After(time.Second)
		synctest.Wait()
		require.Zero(t, p.code(t.Context(), "/healthz"))
		require.NoError(t, <-ended)
	})
}

func TestServerAnswersWhatIsInHandBeforeItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		entered, leave := make(chan struct{}), make(chan struct{})
		stop, ended := running(t, Server{
			Listener: p, Log: zerolog.Nop(), Timeout: time.Minute,
			Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				close(entered)
				select {
				case <-leave:
				case <-r.Context().Done():
					panic(http.ErrAbortHandler)
				}
			}),
		})
		code := make(chan int, 1)
		go func() { code <- p.code(t.Context(), "/") }()
		<-entered

		stop()
		synctest.Wait()
		require.Empty(t, ended, "ended with a request in hand")
		close(leave)
		require.Equal(t, http.StatusOK, <-code)
		require.NoError(t, <-ended)
	})
}

func TestServerCutsWhatOutlivesTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		var log bytes.Buffer
		entered, cancelled := make(chan struct{}), make(chan struct{})
		stop, ended := running(t, Server{
			Listener: p, Log: zerolog.New(&log), Timeout: 3 * time.Second,
			Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				close(entered)
				<-r.Context().Done()
				close(cancelled)
				panic(http.ErrAbortHandler)
			}),
		})
		code := make(chan int, 1)
		go func() { code <- p.code(t.Context(), "/") }()
		<-entered

		start := time.Now()
		stop()
		require.NoError(t, <-ended)
		require.Equal(t, 3*time.Second, time.Since(start))
		<-cancelled
		require.Zero(t, <-code)
		require.Contains(t, log.String(), "cutting the requests still in hand")
	})
}

// D6: a load balancer in front keeps idle connections for 600 s, or longer where a setting says so. A request just
// before is answered, on the same connection.
func TestIdleConnectionsOutlastTheLoadBalancer(t *testing.T) {
	for name, tc := range map[string]struct{ timeout, idle time.Duration }{
		"a request after 120 s":                   {0, 120 * time.Second},
		"what keeps connections for 600 s":        {11 * time.Minute, 620 * time.Second},
		"what keeps connections for over an hour": {2 * time.Hour, 4000 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPipes()
				stop, ended := running(t, Server{
					Listener: p, Log: zerolog.Nop(), IdleTimeout: tc.timeout,
					Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
				})
				near, far := net.Pipe()
				p.conns <- far
				ask := func() error {
					if _, err := io.WriteString(near, "GET / HTTP/1.1\r\nHost: spine\r\n\r\n"); err != nil {
						return err
					}
					resp, err := http.ReadResponse(bufio.NewReader(near), nil)
					if err != nil {
						return err
					}
					return resp.Body.Close()
				}
				require.NoError(t, ask())
				<-time.After(tc.idle)
				require.NoError(t, ask())
				if tc.timeout > 0 {
					<-time.After(tc.timeout + time.Second)
					require.Error(t, ask(), "an idle connection is not kept for ever")
				}
				_ = near.Close()
				stop()
				require.NoError(t, <-ended)
			})
		})
	}
}

// A handler answers without the body. The sender still gets to write all of it, and sees the answer.
func TestAnswersReachWhoIsStillSending(t *testing.T) {
	head := "POST / HTTP/1.1\r\nHost: spine\r\nContent-Length: 900000\r\n"
	part := strings.Repeat("x", 300_000)
	for name, tc := range map[string]struct {
		head  string
		parts []string
		took  time.Duration
		keeps bool // the connection
		asks  bool // the handler, for the first byte
	}{
		"all of a large body":               {head, []string{part, part, part}, 0, true, false},
		"a body whose end never comes":      {head, []string{part, part}, readOnTime, false, false},
		"a body that waits to be asked for": {head + "Expect: 100-continue\r\n", nil, 0, false, false},
		"a body that was asked for":         {head + "Expect: 100-continue\r\n", []string{part, part, part}, 0, true, true},
		"a body of unknown length": {
			"POST / HTTP/1.1\r\nHost: spine\r\nTransfer-Encoding: chunked\r\n",
			[]string{"493e0\r\n" + part + "\r\n0\r\n\r\n"},
			0, true, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPipes()
				stop, ended := running(t, Server{
					Listener: p,
					Log:      zerolog.Nop(),
					Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if tc.asks {
							_, _ = r.Body.Read(make([]byte, 1))
						}
						w.WriteHeader(http.StatusUnsupportedMediaType)
					}),
				})
				near, far := net.Pipe()
				p.conns <- far
				answers := bufio.NewReader(near)
				begun := time.Now()
				_, err := io.WriteString(near, tc.head+"\r\n")
				require.NoError(t, err)
				if tc.asks {
					resp, err := http.ReadResponse(answers, nil)
					require.NoError(t, err)
					require.NoError(t, resp.Body.Close())
					require.Equal(t, http.StatusContinue, resp.StatusCode)
				}
				for _, text := range tc.parts {
					_, err := io.WriteString(near, text)
					require.NoError(t, err)
				}
				resp, err := http.ReadResponse(answers, nil)
				require.NoError(t, err)
				require.NoError(t, resp.Body.Close())
				require.Equal(t, http.StatusUnsupportedMediaType, resp.StatusCode)
				require.Equal(t, tc.keeps, !resp.Close)
				require.Equal(t, tc.took, time.Since(begun))
				_ = near.Close()
				<-time.After(time.Second) // net/http waits so before it closes a connection
				stop()
				require.NoError(t, <-ended)
			})
		})
	}
}

// B1, of its kind: of a crowd of connections, those that have waited longest for their client are closed, one for each
// new one. So whoever opens very many does not shut others out. One with a request in hand gets its answer.
func TestACrowdOfConnectionsIsNotKept(t *testing.T) {
	for name, text := range map[string]string{
		"without a request":      "",
		"with half a header":     "POST /x HTTP/1.1\r\nX-A: ",
		"with a part of a body":  "POST /x HTTP/1.1\r\nHost: spine\r\nContent-Length: 100\r\n\r\nabc",
		"with a part of a chunk": "POST /x HTTP/1.1\r\nHost: spine\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nabc",
		"with a second, in part": "GET /x HTTP/1.1\r\nHost: spine\r\n\r\nPOST /x HTTP/1.1\r\nX-A: ",
		"with a second, no body": "GET /x HTTP/1.1\r\nHost: spine\r\n\r\n" +
			"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n",
		"between two requests":     "GET /x HTTP/1.1\r\nHost: spine\r\n\r\n",
		"between two, with bodies": "POST /x HTTP/1.1\r\nHost: spine\r\nContent-Length: 1\r\n\r\na",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPipes()
				stop, ended := running(t, Server{
					Listener: p, Log: zerolog.Nop(), Memory: 5 * connectionMemory * 4 / 3,
					Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
						_, _ = io.Copy(io.Discard, r.Body)
						if r.URL.Path == "/slow" {
							<-time.After(time.Second)
						}
					}),
				})
				var all []net.Conn
				connect := func(text string) net.Conn {
					near, far := net.Pipe()
					p.conns <- far
					all = append(all, near)
					go func() { _, _ = io.WriteString(near, text) }()
					<-time.After(time.Millisecond)
					return near
				}
				answer := func(conn net.Conn) {
					resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
					require.NoError(t, err)
					require.NoError(t, resp.Body.Close())
				}
				const whole = "POST /slow HTTP/1.1\r\nHost: spine\r\nContent-Length: 2\r\n\r\n{}"
				inHand := connect(whole)
				var stopped []net.Conn
				for range 4 {
					conn := connect(text)
					if strings.HasPrefix(name, "between") || strings.HasPrefix(name, "with a second") {
						answer(conn)
					}
					stopped = append(stopped, conn)
				}
				synctest.Wait()
				for n := range 4 {
					connect("")
					answered := all[len(all)-1]
					go func() { _, _ = io.WriteString(answered, "GET /x HTTP/1.1\r\nHost: spine\r\n\r\n") }()
					answer(answered)
					for i, conn := range stopped {
						_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
						_, err := conn.Read(make([]byte, 1))
						require.Equal(t, i <= n, errors.Is(err, io.EOF), "%d after %d: %v", i, n, err)
					}
				}
				answer(inHand)
				for _, conn := range all {
					_ = conn.Close()
				}
				<-time.After(time.Second)
				stop()
				require.NoError(t, <-ended)
			})
		})
	}
}

// B1, of its kind: half-sent headers take more memory than the connections that send them. They have a limit of their
// own, at which the oldest are closed.
func TestHalfSentHeadersHaveALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		const lines, each = 150, 100
		const size = lines*(each+lineMemory) + 1000 // and a little
		stop, ended := running(t, Server{
			Listener: p,
			Log:      zerolog.Nop(),
			Memory:   4 * 5 * size, // for five of them, and many connections
			Handler: http.HandlerFunc(
				func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) },
			),
		})
		var all []net.Conn
		send := func(conn net.Conn, text string) { go func() { _, _ = io.WriteString(conn, text) }() }
		connect := func(text string) net.Conn {
			near, far := net.Pipe()
			p.conns <- far
			all = append(all, near)
			send(near, text)
			<-time.After(time.Millisecond)
			return near
		}
		open := func(conns []net.Conn) (n int) {
			for _, conn := range conns {
				_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
				if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
					n++
				}
			}
			return n
		}
		half := "POST /x HTTP/1.1\r\nHost: spine\r\n" + strings.Repeat("a: "+strings.Repeat("b", each-5)+"\r\n", lines)
		idle := connect("GET /x HTTP/1.1\r\nHost: spine\r\n\r\n")
		answer := func(conn net.Conn) {
			_ = conn.SetReadDeadline(time.Time{})
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
		}
		answer(idle)
		<-time.After(time.Second)
		for range 3 { // what is closed counts no more
			var heavy []net.Conn
			for range 5 {
				heavy = append(heavy, connect(half))
			}
			require.Equal(t, 5, open(heavy))
			// The oldest give way: they, and not a connection that was idle for longer, and whose request is younger.
			send(idle, "GET /x HTTP/1.1\r\nHost: spine\r\n")
			for range 3 {
				connect(half)
			}
			require.Equal(t, 2, open(heavy))
			require.Equal(t, 3, open(all[len(all)-3:]))
			send(idle, "\r\n")
			answer(idle)
			for _, conn := range all[1:] {
				_ = conn.Close()
			}
			synctest.Wait()
		}
		for _, conn := range all {
			_ = conn.Close()
		}
		<-time.After(time.Second)
		stop()
		require.NoError(t, <-ended)
	})
}

// B1: very many short headers take much memory, so their number is limited, before a request is complete.
func TestARequestHasSoManyHeaders(t *testing.T) {
	require.Implements(t, (*interface{ CloseWrite() error })(nil), &headed{}, "net/http closes one half first")
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		stop, ended := running(t, Server{
			Listener: p,
			Log:      zerolog.Nop(),
			Handler: http.HandlerFunc(
				func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) },
			),
		})
		connect := func() (net.Conn, *bufio.Reader) {
			near, far := net.Pipe()
			p.conns <- far
			return near, bufio.NewReader(near)
		}
		conn, reader := connect()
		for n := range 3 { // each request of a connection has as many, and lines of a body do not count
			body := strings.Repeat("a:\r\n", 1000)
			send := fmt.Sprintf("POST /x HTTP/1.1\r\nHost: spine\r\nContent-Length: %d\r\n%s\r\n%s",
				len(body), strings.Repeat("a:\r\n", 150), body)
			if n == 2 { // its headers come with the request before
				send = "POST /x HTTP/1.1\r\nHost: spine\r\nContent-Length: 0\r\n\r\n" + send
			}
			go func() { _, _ = io.WriteString(conn, send) }()
			for range 1 + n/2 {
				resp, err := http.ReadResponse(reader, nil)
				require.NoError(t, err)
				require.Equal(t, http.StatusOK, resp.StatusCode)
				require.NoError(t, resp.Body.Close())
				synctest.Wait()
			}
		}
		_ = conn.Close()

		conn, reader = connect()
		_, err := io.WriteString(conn, "POST /x HTTP/1.1\r\nHost: spine\r\nContent-Length: 0\r\n\r\n")
		require.NoError(t, err)
		resp, err := http.ReadResponse(reader, nil)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		synctest.Wait()
		go func() { // net/http passes over empty lines after a POST
			_, _ = io.WriteString(conn, "\r\r\n\nGET /x HTTP/1.1\r\nHost: spine\r\n"+strings.Repeat("a:\n", 199))
		}()
		resp, err = http.ReadResponse(reader, nil)
		require.NoError(t, err, "although the headers have no end")
		require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, resp.StatusCode)
		_, err = io.Copy(io.Discard, resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		_, err = conn.Write([]byte("a:\r\n"))
		require.Error(t, err, "it is closed")

		conn, reader = connect()
		all := "GET /x HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("a:\n", 300) + "\r\n"
		go func() { _, _ = io.WriteString(conn, all) }()
		resp, err = http.ReadResponse(reader, nil)
		require.NoError(t, err)
		require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, resp.StatusCode, "also where all come at once")
		require.NoError(t, resp.Body.Close())
		stop()
		require.NoError(t, <-ended)
	})
}

func TestServerReportsABrokenListener(t *testing.T) {
	p := newPipes()
	require.NoError(t, p.Close())

	err := Server{Listener: p, Handler: http.NotFoundHandler(), Log: zerolog.Nop()}.Run(t.Context())

	require.ErrorIs(t, err, net.ErrClosed)
}

func TestLogger(t *testing.T) {
	for _, format := range []Format{Auto, JSON} {
		var out bytes.Buffer
		log := Logger(&out, zerolog.InfoLevel, format)
		log.Debug().Msg("quiet")
		log.Info().Str("event_id", "e1").Msg("stored")

		var line map[string]string
		require.NoError(t, json.Unmarshal(out.Bytes(), &line), "%s: %s", format, out.String())
		require.Regexp(t, `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`, line["time"])
		delete(line, "time")
		require.Equal(t, map[string]string{"level": "info", "event_id": "e1", "message": "stored"}, line)
	}
	var out bytes.Buffer
	log := Logger(&out, zerolog.InfoLevel, Text)
	log.Info().Str("event_id", "e1").Msg("stored")
	require.Regexp(t, `^\d\d:\d\d:\d\d\.\d{3} INF stored event_id=e1\n$`, out.String())
}

func TestServerLogsWhatNetHTTPComplainsOf(t *testing.T) {
	var out bytes.Buffer
	n, err := warnings{zerolog.New(&out)}.Write([]byte("http: panic serving\n"))
	require.NoError(t, err)
	require.Equal(t, 20, n)
	require.JSONEq(t, `{"level":"warn","from":"net/http","message":"http: panic serving\n"}`, out.String())
}

func TestParseFormat(t *testing.T) {
	_, err := ParseFormat("xml")
	require.EqualError(t, err, `unknown log format "xml"`)
	f, err := ParseFormat("JSON")
	require.NoError(t, err)
	require.Equal(t, JSON, f)
}

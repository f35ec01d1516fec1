package systemtest

import (
	"bufio"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// rawDestination answers each request with a text, and hands it the connection before. It returns its URL.
func rawDestination(t *testing.T, answer func(conn net.Conn, served int) (text string, closes bool)) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			go func() {
				defer stop()
				defer func() { _ = conn.Close() }()
				reader := bufio.NewReader(conn)
				for served := 0; ; served++ {
					r, err := http.ReadRequest(reader)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, r.Body)
					text, closes := answer(conn, served)
					if _, err := io.WriteString(conn, text); err != nil || closes {
						return
					}
				}
			}()
		}
	}()
	return "http://" + listener.Addr().String()
}

// standing is where an event stands, and its attempts.
func (s *target) standing(t *testing.T, id string) string {
	t.Helper()
	return value[string](
		t, s.db, "select status || ' ' || attempt_count from spine.processing_state where event_id = $1", id)
}

// D1: the status line decides. Each of these answers was once delivered five times and then dead.
func TestMalformedAnswerCompletes(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"a line without a colon":      "HTTP/1.1 200 OK\r\nno header\r\nContent-Length: 2\r\n\r\nok",
		"Transfer-Encoding: identity": "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok",
		"two lengths":                 "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 9\r\n\r\nok",
		"nothing else":                "HTTP/1.1 204",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int32
			url := rawDestination(t, func(net.Conn, int) (string, bool) {
				requests.Add(1)
				return answer, true
			})
			s := startService(t, both, databases.New(t), "DESTINATION_URL="+url)
			id := newID("malformed")
			s.accept(t, id, `{}`)
			s.awaitStatus(t, id, "completed")
			require.EqualValues(t, 1, requests.Load())
			require.Equal(t, "completed 1", s.standing(t, id))
		})
	}
}

// D2: a destination closes idle connections after a while, 20 ms away: Spine learns of it only 20 ms later. Deliveries
// come at gaps near that while, and have one attempt in all. The while is short here, so that 1,000 take no hour.
func TestDestinationThatClosesIdleConnections(t *testing.T) {
	t.Parallel()
	const idle, way, each = 100 * time.Millisecond, 20 * time.Millisecond, 10
	rounds := 100
	if testing.Short() {
		rounds = 40
	}
	var met atomic.Int32 // requests that came to a connection that was closed already
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "ok")
	}))
	t.Cleanup(backend.Close)
	far := distant(t, backend.Listener.Addr().String(), way, idle, &met)
	s := startService(
		t, both, databases.New(t), "DESTINATION_URL=http://"+far, "MAX_RETRY_ATTEMPTS=1", "LEASE_DURATION=60s")
	for round := range rounds {
		var wg sync.WaitGroup
		for i := range each {
			wg.Go(func() { s.accept(t, fmt.Sprintf("idle-%d-%d", round, i), `{}`) })
		}
		wg.Wait()
		// The last answers come two ways later, and the connections are then idle. The gaps end around the close.
		time.Sleep(idle + way/2 + time.Duration(round%10)*way*3/10)
	}
	await(t, s.db, rounds*each, "select count(*) from spine.processing_state where status in ('completed', 'dead')")
	require.Zero(t, value[int](t, s.db, "select count(*) from spine.processing_state where status = 'dead'"))
	require.Equal(t, 1, value[int](t, s.db, "select max(attempt_count) from spine.processing_state"))
	t.Logf("%d requests met a closed connection", met.Load())
	require.NotZero(t, met.Load(), "the test has met what it is for")
}

// distant passes bytes on to address, each way late by some time, and closes a connection on which no request came for
// a while after an answer. It counts those on which one came after that. It returns its own address.
func distant(t *testing.T, address string, way, idle time.Duration, met *atomic.Int32) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	type late struct {
		at    time.Time
		bytes []byte
	}
	serve := func(near net.Conn) {
		defer func() { _ = near.Close() }()
		far, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			return
		}
		defer func() { _ = far.Close() }()
		there, back := make(chan late, 1000), make(chan late, 1000)
		read := func(from net.Conn, into chan<- late) {
			defer close(into)
			for {
				b := make([]byte, 64<<10)
				n, err := from.Read(b)
				if n > 0 {
					into <- late{time.Now().Add(way), b[:n]}
				}
				if err != nil {
					return
				}
			}
		}
		go read(near, there)
		go read(far, back)
		quiet := time.NewTimer(time.Hour) // until the first answer it is not idle
		defer quiet.Stop()
		for {
			select {
			case l, ok := <-there:
				if !ok {
					return
				}
				time.Sleep(time.Until(l.at))
				_, _ = far.Write(l.bytes)
				quiet.Stop() // it waits for an answer
			case l, ok := <-back:
				if !ok {
					return
				}
				time.Sleep(time.Until(l.at))
				_, _ = near.Write(l.bytes)
				quiet.Reset(idle)
			case <-quiet.C: // the end is on its way, and so may be a request
				select {
				case <-time.After(way):
				case _, ok := <-there:
					if ok {
						met.Add(1)
					}
				}
				return
			}
		}
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	return listener.Addr().String()
}

// downAddress is an address that refuses connections until listen is called. No other server gets it meanwhile.
func downAddress(t *testing.T) (address string, listen func() net.Listener) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	syscall.CloseOnExec(fd)
	bound := os.NewFile(uintptr(fd), "bound")
	t.Cleanup(func() { _ = bound.Close() })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	own, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	port := own.(*syscall.SockaddrInet4).Port //nolint:forcetypeassert // of this family
	return fmt.Sprintf("127.0.0.1:%d", port), func() net.Listener {
		require.NoError(t, syscall.Listen(fd, syscall.SOMAXCONN))
		listener, err := net.FileListener(bound)
		require.NoError(t, err)
		return listener
	}
}

// A destination is down for a while, and an event has one attempt in all: none is dead, all arrive once it is back.
func TestDestinationThatIsDown(t *testing.T) {
	t.Parallel()
	address, listen := downAddress(t)
	s := startService(
		t,
		both,
		databases.New(t),
		"DESTINATION_URL=http://"+address,
		"MAX_RETRY_ATTEMPTS=1",
		"INITIAL_RETRY_DELAY=100ms",
	)
	const events = 100
	for i := range events {
		s.accept(t, fmt.Sprintf("down-%d", i), `{}`)
	}
	await(t, s.db, events, `
		select count(*) from spine.processing_state
		where status in ('failed', 'processing') and deferrals >= 2 and attempt_count <= 1`)
	require.Zero(t, value[int](t, s.db, `
		select count(*) from spine.audit_log
		where action in ('processing_attempt_failed', 'processing_failed_permanently', 'retry_scheduled')`))
	code, out, stderr := spine(t, []string{"DATABASE_URL=" + s.db.Config().ConnString()}, "trace", "down-0")
	require.Zero(t, code, stderr)
	require.Regexp(
		t, `· +not counted, the destination was not reached after \S+: connection refused; next attempt in \d`, out)
	require.NotZero(t, s.metric(t, `spine_delivery_attempts_total{outcome="deferred"}`))

	var arrived atomic.Int32
	back := &httptest.Server{Listener: listen(), Config: &http.Server{ //nolint:gosec // a server of a test
		Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { arrived.Add(1) }),
	}}
	back.Start()
	t.Cleanup(back.Close)
	await(
		t,
		s.db,
		events,
		"select count(*) from spine.processing_state where status = 'completed' and attempt_count = 1",
	)
	require.EqualValues(t, events, arrived.Load())
}

// The settings can count such attempts like any other.
func TestUnreachedMayCount(t *testing.T) {
	t.Parallel()
	s := startService(t, both, databases.New(t), "DESTINATION_URL=http://127.0.0.1:1", "MAX_RETRY_ATTEMPTS=2",
		"INITIAL_RETRY_DELAY=10ms", "COUNT_UNREACHED=true")
	id := newID("counted")
	s.accept(t, id, `{}`)
	s.awaitStatus(t, id, "dead")
	require.Equal(t, attempts(2, "dead"), s.actions(t, id))
}

// D3: only the proxy knows the destination's name.
func TestDeliveryThroughAProxy(t *testing.T) {
	t.Parallel()
	d := newDestination(t)
	var asked atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.URL.Host != "hooks.invalid" {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		d.ServeHTTP(w, r)
	}))
	t.Cleanup(proxy.Close)
	s := startService(t, both, databases.New(t), "DESTINATION_URL=http://hooks.invalid/third_party/mock",
		"HTTP_PROXY="+proxy.Listener.Addr().String(), "NO_PROXY=.internal")
	id := newID("proxied")
	s.accept(t, id, `{}`)
	d.await(t, id, 1)
	s.awaitStatus(t, id, "completed")
	require.EqualValues(t, 1, asked.Load())

	// What NO_PROXY names is asked for itself.
	s = startService(t, both, databases.New(t), "DESTINATION_URL=http://hooks.invalid/third_party/mock",
		"HTTP_PROXY="+proxy.URL, "NO_PROXY=.internal,hooks.invalid")
	s.accept(t, id, `{}`)
	await(t, s.db, true, `
		select count(*) > 0 from spine.audit_log where action = 'delivery_deferred' and event_id = $1`, id)
	require.EqualValues(t, 1, asked.Load())
}

// D5 and G10: a compressed answer is kept as text, and none has white space at its end.
func TestAnswersAreKeptAsText(t *testing.T) {
	t.Parallel()
	var compress atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !compress.Load() {
			_, _ = io.WriteString(w, "{\"ok\":true}\r\n\n")
			return
		}
		w.Header().Set("Content-Encoding", "gzip")
		zip := gzip.NewWriter(w)
		_, _ = io.WriteString(zip, "thank you, Zoë\n")
		_ = zip.Close()
	}))
	t.Cleanup(server.Close)
	s := startService(t, both, databases.New(t), "DESTINATION_URL="+server.URL)
	for zipped, want := range map[bool]string{false: `{"ok":true}`, true: "thank you, Zoë"} {
		compress.Store(zipped)
		id := newID("answer")
		s.accept(t, id, `{}`)
		s.awaitStatus(t, id, "completed")
		require.Equal(t, want, value[string](t, s.db, `
			select details ->> 'answer' from spine.audit_log
			where event_id = $1 and action = 'processing_succeeded'`, id))
	}
}

// F6: the step and spine trace say why a retry is due when it is.
func TestReasonOfADelay(t *testing.T) {
	t.Parallel()
	s, _ := startWithDestination(t)
	for what, want := range map[string][2]string{
		"status=503&retry_after=3600": {"Retry-After", `next attempt in [^,]+, as the destination asked \(Retry-After\)`},
		"status=500":                  {"policy", `next attempt in 1[^,]*s, by the retry policy`},
		"status=503&retry_after=0":    {"policy", `next attempt in 1[^,]*s, by the retry policy`},
	} {
		id := newID("reason")
		s.accept(t, id, do(what))
		await(t, s.db, want[0], `
			select details ->> 'reason' from spine.audit_log where event_id = $1 and action = 'retry_scheduled'`, id)
		code, out, stderr := spine(t, []string{"DATABASE_URL=" + s.db.Config().ConnString()}, "trace", id)
		require.Zero(t, code, stderr)
		require.Regexp(t, want[1], out)
	}
}

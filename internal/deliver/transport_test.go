package deliver

import (
	"bufio"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

func TestTLS(t *testing.T) {
	var opened atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	}))
	server.EnableHTTP2 = true // offered, and not to be taken
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	c := client(t, Config{URL: server.URL})

	got := c.Deliver(t.Context(), job)
	require.Equal(t, event.Unreached, got.Class)
	require.Contains(t, got.Error, "certificate signed by unknown authority")

	opened.Store(0)
	c.transport.tls.RootCAs = x509.NewCertPool()
	c.transport.tls.RootCAs.AddCert(server.Certificate())
	for range 5 {
		got = c.Deliver(t.Context(), job)
		require.Equal(t, event.Done, got.Class, got.Error)
		require.Contains(t, got.Answer, `"payload":{"user_id":123}`)
	}
	require.EqualValues(t, 1, opened.Load())
}

// large is a job whose request does not fit into the buffers of a connection.
func large() event.Job {
	j := job
	j.Payload = []byte(`{"text":"` + strings.Repeat("x", 16<<20) + `"}`)
	return j
}

// A destination may reject a request of which it has read the beginning, and
// read no more of it.
func TestAnswerBeforeTheEndOfTheRequest(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = listener.Close() }()
	hold := make(chan struct{})
	defer close(hold)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		_, _ = http.ReadRequest(bufio.NewReader(conn))
		_, _ = io.WriteString(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
		<-hold
		_ = conn.Close()
	}()
	c := client(t, Config{URL: "http://" + listener.Addr().String()})
	got := c.Deliver(t.Context(), large())
	require.Equal(t, 413, got.Status, got.Error)
	require.Empty(t, c.transport.idle, "the connection is in the middle of a request")
}

func TestRequestThatIsNotReadTimesOut(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0") // never accepts
	require.NoError(t, err)
	defer func() { _ = listener.Close() }()
	c := client(t, Config{URL: "http://" + listener.Addr().String(), Timeout: 50 * time.Millisecond})
	got := c.Deliver(t.Context(), large())
	require.Equal(t, "timeout after 50ms", got.Error)
	require.Equal(t, event.TryAgain, got.Class)
}

func TestLargeRequestIsReceived(t *testing.T) {
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		if n != r.ContentLength {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	c := client(t, Config{URL: server.URL})
	deliver := func() {
		got := c.Deliver(t.Context(), large())
		require.Equal(t, 200, got.Status, got.Error)
	}
	for range 3 {
		deliver()
	}
	// A connection is kept whose last byte is known to be written when the answer is read: on a busy machine that is
	// not always so.
	for range 100 {
		if len(c.transport.idle) > 0 {
			break
		}
		deliver()
	}
	require.Len(t, c.transport.idle, 1)
}

// What comes on an idle connection is the answer to nothing.
func TestUnaskedAnswerIsNotTaken(t *testing.T) {
	var requests atomic.Int32
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = listener.Close() }()
	sent := make(chan struct{}, 10)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				requests.Add(1)
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				time.Sleep(10 * time.Millisecond) // so that it does not come with the answer
				_, _ = io.WriteString(conn, "HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")
				sent <- struct{}{}
				defer func() { _ = conn.Close() }()
			}
		}
	}()
	c := client(t, Config{URL: "http://" + listener.Addr().String()})
	for n := range int32(3) {
		require.Equal(t, 200, c.Deliver(t.Context(), job).Status)
		<-sent
		require.Equal(t, n+1, requests.Load())
	}
}

func TestIdleConnectionsAge(t *testing.T) {
	server, opened := countConnections(t, func(http.ResponseWriter, *http.Request) {})
	c := client(t, Config{URL: server.URL})
	age := func() {
		c.transport.idle[0].since = time.Now().Add(-idleTimeout)
	}
	require.Equal(t, 200, c.Deliver(t.Context(), job).Status)
	age()
	require.Equal(t, 200, c.Deliver(t.Context(), job).Status)
	require.EqualValues(t, 2, opened.Load())
	require.Len(t, c.transport.idle, 1)

	c.transport.reap()
	require.Len(t, c.transport.idle, 1)
	require.NotNil(t, c.transport.reaper)
	age()
	c.transport.reap()
	require.Empty(t, c.transport.idle)
	require.Nil(t, c.transport.reaper)
}

func TestHead(t *testing.T) {
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Host+r.RequestURI) //nolint:gosec // nobody takes it for markup
	})
	for url, want := range map[string]string{
		server.URL:              strings.TrimPrefix(server.URL, "http://") + "/",
		server.URL + "?a=b":     strings.TrimPrefix(server.URL, "http://") + "/?a=b",
		server.URL + "/ü x?é#f": strings.TrimPrefix(server.URL, "http://") + "/%C3%BC%20x?é",
	} {
		got := client(t, Config{URL: url}).Deliver(t.Context(), job)
		require.Equal(t, want, got.Answer, url)
	}
}

package deliver

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

// D2: the destination closes a connection that it has kept, just as the next request comes. Each such request has its
// first and only attempt on a new connection.
func TestRequestThatMeetsAClosedConnection(t *testing.T) {
	for name, last := range map[string]string{
		"without a byte":       "",
		"with a word of it":    "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
		"with an HTTP/1.0 408": "HTTP/1.0 408 Request Time-out\r\n\r\n<html>Your browser didn't send a request</html>",
	} {
		long := job
		long.Payload = []byte(`{"text":"` + strings.Repeat("x", 4*largeRequest) + `"}`)
		for size, payload := range map[string]event.Job{"small": job, "large": long} {
			t.Run(name+", "+size, func(t *testing.T) {
				var answered atomic.Int32
				url := scripted(t, func(_, request int) (string, bool) {
					if request == 2 { // it has read the request, which a reset connection would not tell
						return last, true
					}
					answered.Add(1)
					return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false
				})
				c := client(t, Config{URL: url})
				const deliveries = 10
				for range deliveries {
					got := c.Deliver(t.Context(), payload)
					require.Equal(t, event.Done, got.Class, got.Error)
				}
				require.EqualValues(t, deliveries, answered.Load())
			})
		}
	}
}

// A new connection that is closed without an answer is no idle one, and neither is an answer on it that breaks off or
// is a 408.
func TestOnlyAReusedConnectionIsReplaced(t *testing.T) {
	for name, tc := range map[string]struct {
		answer, want string
		at           int // request on its connection
	}{
		"a new one, without a byte": {"", "connection closed without an answer", 0},
		"a new one, with a 408": {
			"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", "HTTP 408 Request Timeout", 0,
		},
		"a reused one, with a byte": {"H", "connection closed without an answer", 1},
		// The destination read the request: it keeps the connection, or asks for a wait.
		"a reused one, with a 408 that keeps it": {
			"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", "HTTP 408 Request Timeout", 1,
		},
		"a reused one, with a 408 and Retry-After": {
			"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nRetry-After: 7\r\n\r\n",
			"HTTP 408 Request Timeout",
			1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int32
			url := scripted(t, func(_, request int) (string, bool) {
				requests.Add(1)
				if request == tc.at {
					return tc.answer, true
				}
				return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false
			})
			c := client(t, Config{URL: url})
			for range tc.at {
				require.Equal(t, event.Done, c.Deliver(t.Context(), job).Class)
			}
			got := c.Deliver(t.Context(), job)
			require.Equal(t, event.TryAgain, got.Class)
			require.Equal(t, tc.want, got.Error)
			require.EqualValues(t, tc.at+1, requests.Load())
		})
	}
}

// D2: a destination that worked on a request and then closed its reused connection does not get it twice in one
// attempt, whether it says 408 or nothing.
func TestConnectionThatEndsLate(t *testing.T) {
	for name, last := range map[string]string{
		"without a byte": "",
		"with a 408":     "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int32
			url := scripted(t, func(_, request int) (string, bool) {
				requests.Add(1)
				if request == 1 {
					time.Sleep(closedSoon + 200*time.Millisecond)
					return last, true
				}
				return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false
			})
			c := client(t, Config{URL: url})
			require.Equal(t, event.Done, c.Deliver(t.Context(), job).Class)
			require.Equal(t, event.TryAgain, c.Deliver(t.Context(), job).Class)
			require.EqualValues(t, 2, requests.Load())
		})
	}
}

// D2: a request that was sent counts, also where the destination died of it and no new connection can be opened.
func TestRequestThatKilledTheDestination(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	died := make(chan struct{})
	go func() {
		defer close(died)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_ = listener.Close()
		reader := bufio.NewReader(conn)
		for n := range 2 {
			r, err := http.ReadRequest(reader)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			if n == 0 {
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		}
	}()
	c := client(t, Config{URL: "http://" + listener.Addr().String()})
	require.Equal(t, event.Done, c.Deliver(t.Context(), job).Class)
	got := c.Deliver(t.Context(), job)
	require.Equal(t, event.TryAgain, got.Class)
	require.Equal(t, "connection closed without an answer", got.Error)
	<-died
}

// D3: TLS 1.3 tells a client that its certificate is missing only after the handshake.
func TestRejectedHandshakeIsUnreached(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13}
	server.StartTLS()
	defer server.Close()
	c := client(t, Config{URL: server.URL})
	c.transport.tls.RootCAs = x509.NewCertPool()
	c.transport.tls.RootCAs.AddCert(server.Certificate())
	got := c.Deliver(t.Context(), job)
	require.Equal(t, event.Unreached, got.Class)
	require.Contains(t, got.Error, "certificate required")
}

// D3: a forwarding proxy that says why it could not connect does not pass for the destination. What else it answers
// does.
func TestProxyThatCannotConnect(t *testing.T) {
	for header, want := range map[string]event.Class{
		"X-Squid-Error: ERR_CONNECT_FAIL 111":            event.Unreached,
		"X-Squid-Error: ERR_DNS_FAIL 0":                  event.Unreached,
		"Proxy-Status: hop; error=connection_refused":    event.Unreached,
		"Proxy-Status: hop; error=http_response_timeout": event.TryAgain,
		"X-Squid-Error: ERR_READ_TIMEOUT 0":              event.TryAgain,
		"Server: gone":                                   event.TryAgain,
	} {
		proxied := scripted(t, func(int, int) (string, bool) {
			return "HTTP/1.1 503 Service Unavailable\r\n" + header + "\r\nContent-Length: 0\r\n\r\n", false
		})
		via, err := url.Parse(proxied)
		require.NoError(t, err)
		got := client(t, Config{URL: "http://a.invalid/", Proxy: via}).Deliver(t.Context(), job)
		require.Equal(t, want, got.Class, header)
		got = client(t, Config{URL: proxied}).Deliver(t.Context(), job)
		require.Equal(t, event.TryAgain, got.Class, header)
	}
}

// A destination that hangs on a connection that was used before gets no second request: there is no time left.
func TestReusedConnectionThatHangs(t *testing.T) {
	var requests atomic.Int32
	server := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if requests.Add(1) == 2 {
			<-r.Context().Done()
		}
	})
	c := client(t, Config{URL: server.URL, Timeout: time.Second})
	require.Equal(t, event.Done, c.Deliver(t.Context(), job).Class)
	require.Equal(t, "timeout after 1s", c.Deliver(t.Context(), job).Error)
	require.EqualValues(t, 2, requests.Load())
}

// D2 again: the destination went away with the connections that it kept. Nothing was lost, so nothing is counted.
func TestDestinationThatWentAway(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	c := client(t, Config{URL: server.URL})
	require.Equal(t, event.Done, c.Deliver(t.Context(), job).Class)
	server.Close()
	got := c.Deliver(t.Context(), job)
	require.Equal(t, event.Unreached, got.Class)
	require.Equal(t, "connection refused", got.Error)
}

// An attempt that does not reach the destination says so.
func TestUnreached(t *testing.T) {
	plain := serve(t, func(http.ResponseWriter, *http.Request) {})
	full, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0") // never answers
	require.NoError(t, err)
	defer func() { _ = full.Close() }()
	for name, tc := range map[string]struct{ url, want string }{
		"an unknown name":         {"http://spine.invalid/", "lookup spine.invalid"},
		"no TLS":                  {"https" + strings.TrimPrefix(plain.URL, "http"), "tls: first record"},
		"TLS that never answers":  {"https://" + full.Addr().String(), "no connection within 500ms"},
		"TLS that ends":           {"https://" + rawServer(t, ""), "connection closed without an answer"},
		"a port of another world": {"http://127.0.0.1:99999/", "invalid port"},
	} {
		t.Run(name, func(t *testing.T) {
			c := client(t, Config{URL: tc.url, Timeout: 500 * time.Millisecond})
			got := c.Deliver(t.Context(), job)
			require.Equal(t, event.Unreached, got.Class, got.Error)
			if name != "an unknown name" { // whose lookup may be slow
				require.Contains(t, got.Error, tc.want)
			}
		})
	}

	c := client(t, Config{URL: "https://" + full.Addr().String()})
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(errors.New("the worker was stopped")) })
	got := c.Deliver(ctx, job)
	require.Equal(t, event.Unreached, got.Class)
	require.Equal(t, "cancelled: the worker was stopped", got.Error)
}

// D4: while deliveries flow, no connection is used for longer than its greatest age.
func TestConnectionsHaveAGreatestAge(t *testing.T) {
	const age = 200 * time.Millisecond
	var mu sync.Mutex
	first := map[string]time.Time{}
	var longest time.Duration
	server := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if first[r.RemoteAddr].IsZero() {
			first[r.RemoteAddr] = time.Now()
		}
		longest = max(longest, time.Since(first[r.RemoteAddr]))
	})
	c := client(t, Config{URL: server.URL})
	require.Equal(t, time.Minute, c.transport.maxAge)
	c.transport.maxAge = age
	for begin := time.Now(); time.Since(begin) < 4*age; time.Sleep(5 * time.Millisecond) {
		require.Equal(t, event.Done, c.Deliver(t.Context(), job).Class)
	}
	mu.Lock()
	defer mu.Unlock()
	require.Greater(t, len(first), 2)
	require.Less(t, longest, 10*age, "but for the way of a request on a busy machine")
}

// proxyServer is an HTTP proxy that knows one name: whatever it is asked for, it connects to address. It remembers what
// it was asked, with the credentials.
func proxyServer(t *testing.T, address string, reject int) (server *httptest.Server, asked func() []string) {
	t.Helper()
	var mu sync.Mutex
	var all []string
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		all = append(all, r.Method+" "+r.RequestURI+" "+r.Header.Get("Proxy-Authorization"))
		mu.Unlock()
		if reject != 0 {
			w.WriteHeader(reject)
			return
		}
		if r.Method != http.MethodConnect {
			r.RequestURI, r.URL.Host = "", address
			r.Header.Del("Proxy-Authorization")
			response, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			defer func() { _ = response.Body.Close() }()
			w.WriteHeader(response.StatusCode)
			_, _ = io.Copy(w, response.Body)
			return
		}
		to, err := net.Dial("tcp", address) //nolint:noctx // a proxy of a test
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		from, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(from, "HTTP/1.1 200 Connection established\r\n\r\n")
		join(from, buffered.Reader, to)
	}))
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections) //nolint:forcetypeassert // it is one
	t.Cleanup(server.Close)
	return server, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), all...)
	}
}

// join passes bytes on in both directions.
func join(from net.Conn, read io.Reader, to net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(to, read); _ = to.Close() })
	wg.Go(func() { _, _ = io.Copy(from, to); _ = from.Close() })
	wg.Wait()
}

// D3: a destination that only the proxy can find, with and without TLS, through each kind of proxy.
func TestProxy(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Proxy-Authorization") != "" {
			w.WriteHeader(http.StatusTeapot)
		}
		_, _ = io.WriteString(w, r.Host+r.URL.Path) //nolint:gosec // nobody takes it for markup
	})
	plain, encrypted := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	t.Cleanup(plain.Close)
	t.Cleanup(encrypted.Close)
	trusting := func(c *Client) *Client {
		if c.transport.tls != nil {
			c.transport.tls.RootCAs = x509.NewCertPool()
			c.transport.tls.RootCAs.AddCert(encrypted.Certificate())
			c.transport.tls.ServerName = "example.com" // as the certificate has it
		}
		return c
	}
	const auth = " Basic dXNlcjpodW50ZXIy"
	for name, tc := range map[string]struct{ target, backend, asked string }{
		"https": {"https://hooks.invalid/in", encrypted.Listener.Addr().String(), "CONNECT hooks.invalid:443" + auth},
		"https at a port": {
			"https://hooks.invalid:8443/in", encrypted.Listener.Addr().String(), "CONNECT hooks.invalid:8443" + auth,
		},
		"http": {"http://hooks.invalid/in", plain.Listener.Addr().String(), "POST http://hooks.invalid/in" + auth},
	} {
		t.Run(name, func(t *testing.T) {
			server, asked := proxyServer(t, tc.backend, 0)
			via, err := url.Parse(strings.Replace(server.URL, "http://", "http://user:hunter2@", 1))
			require.NoError(t, err)
			c := trusting(client(t, Config{URL: tc.target, Proxy: via}))
			for range 2 {
				got := c.Deliver(t.Context(), job)
				require.Equal(t, event.Done, got.Class, got.Error)
				require.True(t, strings.HasPrefix(got.Answer, "hooks.invalid"), got.Answer)
			}
			for _, line := range asked() {
				require.Equal(t, tc.asked, line)
			}
		})
		t.Run(name+" through SOCKS", func(t *testing.T) {
			address, names := socksServer(t, tc.backend)
			c := trusting(client(t, Config{
				URL:   tc.target,
				Proxy: &url.URL{Scheme: "socks5", Host: address, User: url.UserPassword("user", "hunter2")},
			}))
			for range 2 {
				got := c.Deliver(t.Context(), job)
				require.Equal(t, event.Done, got.Class, got.Error)
			}
			require.Equal(t, "hooks.invalid", <-names)
		})
	}
	t.Run("encrypted", func(t *testing.T) {
		server, asked := proxyServer(t, encrypted.Listener.Addr().String(), 0)
		front := httptest.NewUnstartedServer(server.Config.Handler)
		front.StartTLS()
		defer front.Close()
		via, err := url.Parse(front.URL)
		require.NoError(t, err)
		c := trusting(client(t, Config{URL: "https://hooks.invalid/in", Proxy: via}))
		c.transport.relay.tls.RootCAs = x509.NewCertPool()
		c.transport.relay.tls.RootCAs.AddCert(front.Certificate())
		got := c.Deliver(t.Context(), job)
		require.Equal(t, event.Done, got.Class, got.Error)
		require.Equal(t, []string{"CONNECT hooks.invalid:443 "}, asked())
	})
}

// An attempt that ended at the proxy did not reach the destination.
func TestProxyThatFails(t *testing.T) {
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	rejecting, _ := proxyServer(t, "", http.StatusProxyAuthRequired)
	lost, _ := proxyServer(t, closed.Listener.Addr().String(), 0)
	for name, tc := range map[string]struct{ target, proxy, want string }{
		"away":        {"https://a.invalid", closed.URL, "no connection through the proxy: connection refused"},
		"away, plain": {"http://a.invalid", closed.URL, "no connection through the proxy: connection refused"},
		"rejecting": {
			"https://a.invalid",
			rejecting.URL,
			"no connection through the proxy: it answered HTTP 407 Proxy Authentication Required",
		},
		"rejecting, plain": {
			"http://a.invalid",
			rejecting.URL,
			"the proxy answered HTTP 407 Proxy Authentication Required",
		},
		"finding nothing": {
			"https://a.invalid",
			lost.URL,
			"no connection through the proxy: it answered HTTP 502 Bad Gateway",
		},
		"speaking otherwise": {
			"https://a.invalid",
			"http://" + rawServer(t, "SSH-2.0\r\n"),
			`no connection through the proxy: malformed HTTP response "SSH-2.0"`,
		},
		"speaking too soon": {
			"https://a.invalid",
			"http://" + rawServer(t, "HTTP/1.1 200 OK\r\n\r\nx"),
			"no connection through the proxy: its answer is malformed",
		},
		"closing": {
			"https://a.invalid",
			"http://" + rawServer(t, ""),
			"no connection through the proxy: connection closed without an answer",
		},
		"no SOCKS": {
			"https://a.invalid",
			"socks5://" + rawServer(t, "HTTP/1.1 400 Bad\r\n\r\n"),
			"no connection through the proxy: ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			via, err := url.Parse(strings.Replace(tc.proxy, "://", "://user:hunter2@", 1))
			require.NoError(t, err)
			got := client(t, Config{URL: tc.target, Proxy: via}).Deliver(t.Context(), job)
			require.Equal(t, event.Unreached, got.Class)
			require.Contains(t, got.Error, tc.want)
			require.NotContains(t, got.Error, "hunter2")
			require.Zero(t, got.Status)
		})
	}
	t.Run("hanging", func(t *testing.T) {
		listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0") // never answers
		require.NoError(t, err)
		defer func() { _ = listener.Close() }()
		via := &url.URL{Scheme: "http", Host: listener.Addr().String()}
		got := client(t, Config{URL: "https://a.invalid", Proxy: via, Timeout: 100 * time.Millisecond}).
			Deliver(t.Context(), job)
		require.Equal(t, event.Unreached, got.Class)
		require.Equal(t, "no connection through the proxy: no connection within 100ms", got.Error)
	})
}

// socksServer is a SOCKS5 proxy that connects to address, and tells which names it was asked for.
func socksServer(t *testing.T, address string) (listens string, names chan string) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	names = make(chan string, 10)
	read := func(from io.Reader, n int) []byte {
		b := make([]byte, n)
		_, _ = io.ReadFull(from, b)
		return b
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				r := bufio.NewReader(conn)
				read(r, int(read(r, 2)[1]))
				_, _ = conn.Write([]byte{5, 2}) // wants a user and a password
				read(r, int(read(r, 2)[1]))     // the user
				read(r, int(read(r, 1)[0]))
				_, _ = conn.Write([]byte{1, 0})
				names <- string(read(r, int(read(r, 5)[4])))
				read(r, 2)
				_, _ = conn.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
				to, err := net.Dial("tcp", address) //nolint:noctx // a proxy of a test
				if err != nil {
					_ = conn.Close()
					return
				}
				join(conn, r, to)
			}()
		}
	}()
	return listener.Addr().String(), names
}

// The connection to an encrypted destination is checked against the destination's name, not the proxy's.
func TestProxyCannotPoseAsTheDestination(t *testing.T) {
	posing := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(posing.Close)
	server, _ := proxyServer(t, posing.Listener.Addr().String(), 0)
	via, err := url.Parse(server.URL)
	require.NoError(t, err)
	c := client(t, Config{URL: "https://hooks.invalid/in", Proxy: via})
	c.transport.tls.RootCAs = x509.NewCertPool()
	c.transport.tls.RootCAs.AddCert(posing.Certificate())
	got := c.Deliver(t.Context(), job)
	require.Equal(t, event.Unreached, got.Class)
	require.Contains(t, got.Error, "hooks.invalid")
}

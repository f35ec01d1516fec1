package deliver

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// transport posts requests over HTTP/1.1 and keeps connections for use again. It replaces http.Transport, which has two
// goroutines for each connection: without them one delivery costs half as much. Besides, http.Transport does not tell
// the status of an answer whose header it rejects, and it never repeats a POST that met the end of an idle connection.
//
// It speaks HTTP/1.1 only, so that an attempt that times out closes only its own connection. The next attempt then
// never waits on the same dead one.
type transport struct {
	address string      // HOST:PORT of the destination
	tls     *tls.Config // nil for plain HTTP
	relay   *relay      // nil without a proxy
	dialer  net.Dialer
	slots   chan struct{} // one for each connection that may be open
	maxAge  time.Duration // how long after its opening a connection may be used

	mu     sync.Mutex
	idle   []*connection // the one used last is at the end
	reaper *time.Timer   // closes connections that have been idle for long; nil while none is idle
}

// largeRequest is the size in bytes from which a request is written while its answer is already awaited. A destination
// may reject such a request before it has read all of it, and then read no further.
const largeRequest = 64 << 10

// maxInterim is how many 1xx answers may precede the final one.
const maxInterim = 5

// past is a deadline that ends every read and write on a connection.
var past = time.Unix(1, 0)

// errHeaderTooLarge says that an answer's header is larger than maxAnswerHeader.
var errHeaderTooLarge = fmt.Errorf("the answer's header is larger than %d bytes", maxAnswerHeader)

// newTransport returns a transport to the host of u that opens at most connections at once. host is the host and port
// as a request names them. via is the proxy, if there is one.
func newTransport(u *url.URL, host string, via *relay, connections int) *transport {
	t := &transport{
		relay:  via,
		dialer: net.Dialer{KeepAlive: 30 * time.Second},
		slots:  make(chan struct{}, connections),
		maxAge: maxAge,
	}
	name := (&url.URL{Host: host}).Hostname()
	if strings.Contains(u.Hostname(), "%") {
		name = u.Hostname() // the zone of an IPv6 address, which requests leave out
	}
	port := "80"
	if u.Scheme == "https" {
		port = "443"
		t.tls = &tls.Config{ServerName: name, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	}
	t.address = net.JoinHostPort(name, cmp.Or(u.Port(), port))
	return t
}

// connection is a connection to the destination. It carries one request at a time.
type connection struct {
	net.Conn                 // to read and write
	tcp      net.Conn        // below TLS; without TLS the same
	raw      syscall.RawConn // to see whether the destination has closed it; nil where that cannot be seen
	reader   *bufio.Reader
	measured measured // the body of an answer whose length is known
	answer   answer   // the last answer
	allowed  int64    // bytes that may still be read
	got      bool     // whether a byte was read since the request
	used     bool     // whether it has carried a request before
	opened   time.Time
	since    time.Time // when it became idle
}

// abandon closes a connection without a word. TLS's own Close would send a farewell, and wait up to 5 s for a
// destination that does not read.
func (c *connection) abandon() { _ = c.tcp.Close() }

// Read reads at most the allowed number of bytes.
func (c *connection) Read(p []byte) (int, error) {
	if c.allowed <= 0 {
		return 0, errHeaderTooLarge
	}
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.allowed)])
	c.allowed -= int64(n)
	c.got = c.got || n > 0
	return n, err //nolint:wrapcheck // explained by Client.explain
}

// reading gets an answer and its body. It returns whether it has seen the end of the body.
type reading func(a *answer, body io.Reader) (ended bool)

// roundTrip sends a request, head and body, and hands the answer to read while its body can be read. It returns by the
// deadline, and soon after ctx ends. An unreachedError says that the request was never sent. The destination may close
// an idle connection at any time, also just as a request is on its way. Such a request is sent once more at once, on a
// new connection.
func (t *transport) roundTrip(ctx context.Context, deadline time.Time, wire []byte, read reading) error {
	select {
	case t.slots <- struct{}{}:
	default:
		wait, cancel := context.WithDeadline(ctx, deadline)
		defer cancel()
		select {
		case t.slots <- struct{}{}:
		case <-wait.Done():
			return unreachedError{os.ErrDeadlineExceeded}
		}
	}
	defer func() { <-t.slots }()

	c := t.takeIdle(deadline)
	if c != nil {
		closed, err := t.exchange(ctx, c, deadline, wire, read)
		if !closed {
			return err
		}
	}
	c, err := t.dial(ctx, deadline)
	if err != nil {
		return err
	}
	_, err = t.exchange(ctx, c, deadline, wire, read)
	return err
}

// exchange sends a request and reads its answer, and keeps or closes the connection. closed says that the destination
// had closed the connection, which it was free to do, before the request came.
func (t *transport) exchange(
	ctx context.Context, c *connection, deadline time.Time, wire []byte, read reading,
) (closed bool, err error) {
	_ = c.SetDeadline(deadline) // fails only on a closed connection, which the exchange finds out
	release := context.AfterFunc(ctx, func() { _ = c.SetDeadline(past) })
	again, err := c.exchange(ctx, deadline, wire, read)
	if release() && err == nil && again {
		t.putIdle(c)
		return false, nil
	}
	c.abandon()
	if errors.Is(err, errTimedOutIdle) {
		return true, nil
	}
	timeout, isNetwork := errors.AsType[net.Error](err)
	timedOut := isNetwork && timeout.Timeout()
	return err != nil && c.used && !c.got && !timedOut && ctx.Err() == nil, err
}

// errTimedOutIdle says that an answer is for no request: the destination waited for one for too long. Some servers and
// load balancers say so before they close an idle connection.
var errTimedOutIdle = errors.New("the idle connection timed out")

// exchange sends a request and reads its answer. again says whether the connection can be used again.
func (c *connection) exchange(
	ctx context.Context, deadline time.Time, wire []byte, read reading,
) (again bool, err error) {
	var writeErr error // once written is closed
	written := make(chan struct{})
	write := func() {
		defer close(written)
		_, writeErr = c.Write(wire)
	}
	c.got, c.allowed = false, maxAnswerHeader
	if len(wire) < largeRequest {
		write()
	} else {
		go write()
		// The write ends with the connection, at the latest.
		defer func() {
			if !again {
				c.abandon()
				<-written
			}
		}()
	}
	a := &c.answer
	if err := c.readAnswer(a); err != nil {
		// An answer counts even if the destination has not read all of the request. Without one the first error is the
		// reason.
		select {
		case <-written:
			return false, cmp.Or(writeErr, err)
		default:
			return false, err
		}
	}
	if c.used && a.status == http.StatusRequestTimeout {
		return false, errTimedOutIdle
	}
	c.allowed = 1 << 62
	if !read(a, c.body(ctx, deadline, a)) || !c.endOf(a) {
		return false, nil
	}
	select {
	case <-written:
		return writeErr == nil, nil
	default: // the answer came before the end of the request
		return false, nil
	}
}

// takeIdle returns the idle connection that was used last, so that the others grow old and are closed. It returns nil
// when none can be used.
func (t *transport) takeIdle(deadline time.Time) *connection {
	for {
		t.mu.Lock()
		last := len(t.idle) - 1
		if last < 0 {
			t.mu.Unlock()
			return nil
		}
		c := t.idle[last]
		t.idle = t.idle[:last]
		t.mu.Unlock()
		// Outside of the lock: silent makes a system call, which other deliveries need not wait for. The new deadline
		// comes first, since after the old one the call would fail.
		if time.Since(c.since) < idleTimeout && time.Since(c.opened) < t.maxAge &&
			c.SetDeadline(deadline) == nil && c.silent() {
			return c
		}
		c.abandon()
	}
}

func (t *transport) putIdle(c *connection) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.since, c.used = time.Now(), true
	t.idle = append(t.idle, c)
	if t.reaper == nil {
		t.reaper = time.AfterFunc(idleTimeout, t.reap)
	}
}

// reap closes the connections that have been idle for long, and comes again while others are idle.
func (t *transport) reap() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.idle) > 0 && time.Since(t.idle[0].since) >= idleTimeout {
		_ = t.idle[0].Close()
		t.idle = t.idle[1:]
	}
	t.reaper = nil
	if len(t.idle) > 0 {
		t.reaper = time.AfterFunc(time.Until(t.idle[0].since.Add(idleTimeout)), t.reap)
	}
}

// closeIdle closes the connections that are not in use.
func (t *transport) closeIdle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.idle {
		_ = c.Close()
	}
	t.idle = nil
	if t.reaper != nil {
		t.reaper.Stop()
		t.reaper = nil
	}
}

// silent reports whether an idle connection has received nothing: neither its end nor an answer without a request.
func (c *connection) silent() bool {
	if c.raw == nil {
		return true
	}
	var one [1]byte
	var n int
	var err error
	if failed := c.raw.Read(func(fd uintptr) bool {
		n, err = syscall.Read(int(fd), one[:])
		return true
	}); failed != nil {
		return false
	}
	return n < 0 && (errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EWOULDBLOCK))
}

// head returns the beginning of every request: the request line and the headers that do not change. host is the host
// and port that it names. A request that a proxy forwards names the whole URL.
func head(u *url.URL, header http.Header, forwarded bool) (text []byte, host string, err error) {
	r := &http.Request{Method: http.MethodPost, URL: u, Header: header, ContentLength: 0}
	var b bytes.Buffer
	write := r.Write
	if forwarded {
		write = r.WriteProxy
	}
	if err := write(&b); err != nil {
		return nil, "", fmt.Errorf("writing a request: %w", err)
	}
	written, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b.Bytes())))
	if err != nil {
		return nil, "", fmt.Errorf("reading it back: %w", err)
	}
	text = bytes.TrimSuffix(b.Bytes(), []byte("\r\n"))
	return bytes.Replace(text, []byte("Content-Length: 0\r\n"), nil, 1), written.Host, nil
}

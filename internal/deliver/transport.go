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

// closedSoon is how soon after a request the end of its connection must come. Only then can the destination have closed
// it as an idle one. A destination that worked on the request for longer does not get it again at once.
const closedSoon = time.Second

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

	deadline time.Time       // of the exchange
	done     <-chan struct{} // closed when the exchange is cancelled
	decided  bool            // the final status is known, and the rest of the answer is not yet limited in time

	wrote  bool      // whether any of the request was written; once the write has ended
	sent   time.Time // when all of the request was written; zero before
	opened time.Time
	since  time.Time // when it became idle
}

// abandon closes a connection without a word. TLS's own Close would send a farewell, and wait up to 5 s for a
// destination that does not read.
func (c *connection) abandon() { _ = c.tcp.Close() }

// Read reads at most the allowed number of bytes.
func (c *connection) Read(p []byte) (int, error) {
	if c.allowed <= 0 {
		return 0, errHeaderTooLarge
	}
	if c.decided {
		c.decided = false
		c.hasten()
	}
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.allowed)])
	c.allowed -= int64(n)
	c.got = c.got || n > 0
	return n, err //nolint:wrapcheck // explained by Client.explain
}

// hasten limits how long the rest of an answer is awaited. Only answers that do not come at once pay for it.
func (c *connection) hasten() {
	if soon := time.Now().Add(restPatience); soon.Before(c.deadline) {
		_ = c.SetReadDeadline(soon)
		select {
		case <-c.done: // or it would have been put off
			_ = c.SetDeadline(past)
		default:
		}
	}
}

// reading gets an answer and its body. It returns whether it has seen the end of the body.
type reading func(a *answer, body io.Reader) (ended bool)

// roundTrip sends a request, head and body, and hands the answer to read while its body can be read. It returns by the
// deadline, and soon after ctx ends. An unreachedError says that the request was never sent. The destination may close
// an idle connection at any time, also just as a request is on its way. Such a request is sent once more at once, on a
// new connection. Where none can be opened, the first request may have been read, and it is no unreachedError.
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

	var first error // of a request that was sent, at least in part
	if c := t.takeIdle(deadline); c != nil {
		closed, err := t.exchange(ctx, c, deadline, wire, read)
		if !closed {
			return err
		}
		if c.wrote {
			first = err
		}
	}
	c, err := t.dial(ctx, deadline)
	if err != nil {
		return cmp.Or(first, err)
	}
	_, err = t.exchange(ctx, c, deadline, wire, read)
	if _, unreached := errors.AsType[unreachedError](err); unreached {
		return cmp.Or(first, err)
	}
	return err
}

// exchange sends a request and reads its answer, and keeps or closes the connection. closed says that the destination
// had closed the connection, which it was free to do, before the request came.
func (t *transport) exchange(
	ctx context.Context, c *connection, deadline time.Time, wire []byte, read reading,
) (closed bool, err error) {
	_ = c.SetDeadline(deadline) // fails only on a closed connection, which the exchange finds out
	release := context.AfterFunc(ctx, func() { _ = c.SetDeadline(past) })
	c.deadline, c.done = deadline, ctx.Done()
	again, err := c.exchange(wire, read)
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
	if err == nil || c.got || timedOut || ctx.Err() != nil {
		return false, err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" && !c.used {
		return false, unreachedError{err} // a TLS alert: the end of a handshake that the destination rejects
	}
	return c.used && c.soon(), err
}

// soon reports whether the request was sent not long ago. A request that was not sent as a whole was not read either.
func (c *connection) soon() bool { return c.sent.IsZero() || time.Since(c.sent) <= closedSoon }

// errTimedOutIdle says that an answer is for no request: the destination waited for one for too long. Some servers and
// load balancers say so before they close an idle connection. A 408 that keeps the connection, asks for a wait or comes
// late is an answer to the request.
var errTimedOutIdle = errors.New("the idle connection timed out")

// exchange sends a request and reads its answer. again says whether the connection can be used again.
func (c *connection) exchange(wire []byte, read reading) (again bool, err error) {
	var writeErr error // once written is closed
	written := make(chan struct{})
	write := func() {
		defer close(written)
		var n int
		n, writeErr = c.Write(wire)
		c.wrote = n > 0
		if writeErr == nil {
			c.sent = time.Now()
		}
	}
	c.got, c.allowed, c.decided = false, maxAnswerHeader, false
	c.wrote, c.sent = false, time.Time{}
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
	if c.used && a.status == http.StatusRequestTimeout && a.closes && a.retryAfter == "" {
		select {
		case <-written:
			if c.soon() {
				return false, errTimedOutIdle
			}
		default:
			return false, errTimedOutIdle
		}
	}
	c.allowed = 1 << 62
	if !read(a, c.body(a)) || !c.endOf(a) {
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

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
// goroutines for each connection: without them one delivery costs half as much.
//
// It speaks HTTP/1.1 only, so that an attempt that times out closes only its own connection. The next attempt then
// never waits on the same dead one.
type transport struct {
	address string      // HOST:PORT to dial
	tls     *tls.Config // nil for plain HTTP
	dialer  net.Dialer
	slots   chan struct{} // one for each connection that may be open

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
// as a request names them.
func newTransport(u *url.URL, host string, connections int) *transport {
	t := &transport{
		dialer: net.Dialer{KeepAlive: 30 * time.Second},
		slots:  make(chan struct{}, connections),
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
	allowed  int64     // bytes that may still be read
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
	return n, err //nolint:wrapcheck // explained by Client.explain
}

// roundTrip sends a request, head and body, and hands the answer to read while its body can be read. It returns by the
// deadline, and soon after ctx ends. read returns whether it has seen the end of the body.
func (t *transport) roundTrip(
	ctx context.Context,
	deadline time.Time,
	wire []byte,
	read func(*http.Response) (ended bool),
) error {
	select {
	case t.slots <- struct{}{}:
	default:
		wait, cancel := context.WithDeadline(ctx, deadline)
		defer cancel()
		select {
		case t.slots <- struct{}{}:
		case <-wait.Done():
			return os.ErrDeadlineExceeded
		}
	}
	defer func() { <-t.slots }()

	c := t.takeIdle(deadline)
	if c == nil {
		var err error
		if c, err = t.dial(ctx, deadline); err != nil {
			return err
		}
	}
	_ = c.SetDeadline(deadline) // fails only on a closed connection, which the exchange finds out
	release := context.AfterFunc(ctx, func() { _ = c.SetDeadline(past) })
	again, err := c.exchange(wire, read)
	if release() && err == nil && again {
		t.putIdle(c)
	} else {
		c.abandon()
	}
	return err
}

// exchange sends a request and reads its answer. again says whether the connection can be used again.
func (c *connection) exchange(wire []byte, read func(*http.Response) bool) (again bool, err error) {
	var writeErr error // once written is closed
	written := make(chan struct{})
	write := func() {
		defer close(written)
		_, writeErr = c.Write(wire)
	}
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
	c.allowed = maxAnswerHeader
	response, err := c.readAnswer() //nolint:bodyclose // read reads it, and its result ends the connection or not
	if err != nil {
		// An answer counts even if the destination has not read all of the request. Without one the first error is the
		// reason.
		select {
		case <-written:
			return false, cmp.Or(writeErr, err)
		default:
			return false, err
		}
	}
	c.allowed = 1 << 62
	if ended := read(response); !ended || response.Close || c.reader.Buffered() > 0 {
		return false, nil
	}
	select {
	case <-written:
		return writeErr == nil, nil
	default: // the answer came before the end of the request
		return false, nil
	}
}

// posted is all that http.ReadResponse needs to know of the request.
var posted = &http.Request{Method: http.MethodPost}

// readAnswer reads the header of the final answer.
func (c *connection) readAnswer() (*http.Response, error) {
	for range maxInterim + 1 {
		response, err := http.ReadResponse(c.reader, posted)
		if err != nil {
			return nil, err //nolint:wrapcheck // explained by Client.explain
		}
		if response.StatusCode < 100 || response.StatusCode >= 200 ||
			response.StatusCode == http.StatusSwitchingProtocols {
			return response, nil
		}
	}
	return nil, errors.New("too many interim answers")
}

// dial opens a connection.
func (t *transport) dial(ctx context.Context, deadline time.Time) (*connection, error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	conn, err := t.dialer.DialContext(ctx, "tcp", t.address)
	if err != nil {
		return nil, err //nolint:wrapcheck // explained by Client.explain
	}
	c := &connection{Conn: conn, tcp: conn}
	if tcp, ok := conn.(syscall.Conn); ok {
		c.raw, _ = tcp.SyscallConn() // fails only on a closed connection
	}
	if t.tls != nil {
		secure := tls.Client(conn, t.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, err //nolint:wrapcheck // explained by Client.explain
		}
		c.Conn = secure
	}
	c.reader = bufio.NewReader(c)
	return c, nil
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
		if time.Since(c.since) < idleTimeout && c.SetDeadline(deadline) == nil && c.silent() {
			return c
		}
		c.abandon()
	}
}

func (t *transport) putIdle(c *connection) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.since = time.Now()
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
// and port that it names.
func head(u *url.URL, header http.Header) (text []byte, host string, err error) {
	r := &http.Request{Method: http.MethodPost, URL: u, Header: header, ContentLength: 0}
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		return nil, "", fmt.Errorf("writing a request: %w", err)
	}
	written, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b.Bytes())))
	if err != nil {
		return nil, "", fmt.Errorf("reading it back: %w", err)
	}
	text = bytes.TrimSuffix(b.Bytes(), []byte("\r\n"))
	return bytes.Replace(text, []byte("Content-Length: 0\r\n"), nil, 1), written.Host, nil
}

// drain reads up to maxDrain more bytes, and reports whether the body ended.
func drain(body io.Reader) bool {
	n, err := io.CopyN(io.Discard, body, maxDrain)
	return n < maxDrain && errors.Is(err, io.EOF)
}

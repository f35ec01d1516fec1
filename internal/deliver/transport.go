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

// transport posts requests over HTTP/1.1 and keeps connections for use again.
// It is what http.Transport would be here, without the two goroutines that it
// has for each connection: one delivery costs half as much.
//
// HTTP/1.1 only: an attempt that times out takes just its own connection with
// it, and the next attempt never waits on the same dead one.
type transport struct {
	address string      // HOST:PORT to dial
	tls     *tls.Config // nil for plain HTTP
	dialer  net.Dialer
	slots   chan struct{} // one for each connection that may be open

	mu     sync.Mutex
	idle   []*connection // the last one used at the end
	reaper *time.Timer   // closes what has been idle for long; nil while nothing is idle
}

// largeRequest is the size in bytes from which a request is written while the
// answer is already awaited: a destination may refuse it before it has read
// it, and then wait for us.
const largeRequest = 64 << 10

// maxInterim is how many answers of class 1xx may precede the answer.
const maxInterim = 5

// past is a deadline that ends what waits for a connection.
var past = time.Unix(1, 0)

// errHeaderTooLarge says that an answer's header is beyond maxAnswerHeader.
var errHeaderTooLarge = fmt.Errorf("the answer's header is larger than %d bytes", maxAnswerHeader)

// newTransport returns a transport to the host of u, with at most connections
// open at once. host is the host and port as a request names them.
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

// connection is a connection to the destination. While one request is made on
// it nothing else is.
type connection struct {
	net.Conn                 // what is read and written
	tcp      net.Conn        // below TLS, where that is
	raw      syscall.RawConn // to see whether an idle connection was closed; nil where that cannot be seen
	reader   *bufio.Reader
	allowed  int64     // bytes that may still be read
	since    time.Time // since when it has been idle, where it is
}

// abandon closes a connection on which nothing more will be said. TLS's own
// Close would say so, and wait 5 s for a destination that does not read.
func (c *connection) abandon() { _ = c.tcp.Close() }

// Read reads what is allowed.
func (c *connection) Read(p []byte) (int, error) {
	if c.allowed <= 0 {
		return 0, errHeaderTooLarge
	}
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.allowed)])
	c.allowed -= int64(n)
	return n, err //nolint:wrapcheck // explained by Client.explain
}

// roundTrip sends a request, head and body, and hands the answer to read while its body can
// be read. It returns by the deadline, and soon after ctx is done. read's
// result says whether it has seen the body's end.
func (t *transport) roundTrip(ctx context.Context, deadline time.Time, wire []byte, read func(*http.Response) (ended bool)) error {
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
	_ = c.SetDeadline(deadline) // it fails for a connection that is gone, as the next step will tell
	release := context.AfterFunc(ctx, func() { _ = c.SetDeadline(past) })
	again, err := c.exchange(wire, read)
	if release() && err == nil && again {
		t.putIdle(c)
	} else {
		c.abandon()
	}
	return err
}

// exchange sends a request and reads its answer, and says whether the
// connection can be used again.
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
		// It ends with the connection, at the latest.
		defer func() {
			if !again {
				c.abandon()
				<-written
			}
		}()
	}
	c.allowed = maxAnswerHeader
	response, err := c.readAnswer() //nolint:bodyclose // read reads it, and the connection ends or lives on by what read says
	if err != nil {
		// An answer counts although not all of the request was read; without
		// one, what went wrong first is the reason.
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
	default: // an answer before the end of the request
		return false, nil
	}
}

// posted is all that reading an answer needs to know of its request.
var posted = &http.Request{Method: http.MethodPost}

// readAnswer reads the header of the final answer.
func (c *connection) readAnswer() (*http.Response, error) {
	for range maxInterim + 1 {
		response, err := http.ReadResponse(c.reader, posted)
		if err != nil {
			return nil, err //nolint:wrapcheck // explained by Client.explain
		}
		if response.StatusCode < 100 || response.StatusCode >= 200 || response.StatusCode == http.StatusSwitchingProtocols {
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

// takeIdle returns the idle connection that was used last, so that the others
// age; nil when there is none that can be used.
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
		// Asking the system takes its time: the others need not wait for it. It
		// would not be asked after the deadline of the last request.
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

// reap closes the connections that have been idle for long, and comes again as
// long as there are others.
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

// silent reports whether nothing has come on an idle connection: neither its
// end, nor an answer that nobody asked for.
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

// head returns what every request begins with: the request line and the
// headers that do not change. host is the host and port that it names.
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

// drain reads on a little, and reports whether that was all.
func drain(body io.Reader) bool {
	n, err := io.CopyN(io.Discard, body, maxDrain)
	return n < maxDrain && errors.Is(err, io.EOF)
}

package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
)

// maxIdle is how long a connection may rest and still be used. It is well below the idle time-outs
// of common servers, so that no request meets a connection that the server is closing.
const maxIdle = 10 * time.Second

// client is one connection to the target, opened when it is needed. It writes requests as they are
// and never repeats one: the system would count a repeated POST as a duplicate that the load did
// not ask for.
type client struct {
	address string
	timeout time.Duration

	conn    net.Conn // nil when not open
	release func() bool
	reader  *bufio.Reader
	answer  fasthttp.Response
	used    time.Time
}

// dialError is a failure to connect, before anything was sent.
type dialError struct{ error }

func (e dialError) Unwrap() error { return e.error }

// post sends one request and returns its answer, which is valid until the next post. When ctx ends,
// the connection ends too, whatever is under way on it.
func (c *client) post(ctx context.Context, wire []byte) (status int, body []byte, err error) {
	now := time.Now()
	if c.conn != nil && now.Sub(c.used) > maxIdle {
		c.close()
	}
	if c.conn == nil {
		dialer := net.Dialer{Timeout: c.timeout}
		conn, err := dialer.DialContext(ctx, "tcp", c.address)
		if err != nil {
			return 0, nil, dialError{err}
		}
		c.conn = conn
		c.release = context.AfterFunc(ctx, func() { _ = conn.Close() })
		c.reader = bufio.NewReader(conn)
	}
	defer func() {
		if err != nil || c.answer.ConnectionClose() {
			c.close()
		}
	}()
	c.used = now
	if err := c.conn.SetDeadline(now.Add(c.timeout)); err != nil {
		return 0, nil, fmt.Errorf("setting the deadline: %w", err)
	}
	if _, err := c.conn.Write(wire); err != nil {
		return 0, nil, fmt.Errorf("sending the request: %w", err)
	}
	c.answer.Reset()
	if err := c.answer.ReadLimitBody(c.reader, 1<<20); err != nil {
		return 0, nil, fmt.Errorf("reading the answer: %w", err)
	}
	return c.answer.StatusCode(), c.answer.Body(), nil
}

func (c *client) close() {
	if c.conn != nil {
		c.release()
		_ = c.conn.Close()
		c.conn = nil
	}
}

// The kinds of errors in a Report, besides "http NNN".
const (
	kindRefused    = "connection refused"
	kindNoConnect  = "cannot connect"
	kindTimeout    = "timeout"
	kindBroken     = "connection broken"
	kindUnknown    = "answer not understood" // a 2xx without a known status
	kindHTTPPrefix = "http "
)

// kindOf returns the kind of what post returned. err may be nil.
func kindOf(status int, err error) string {
	var timeout interface{ Timeout() bool } // fasthttp's is no net.Error
	var dial dialError
	switch {
	case err == nil && status >= 200 && status < 300:
		return kindUnknown
	case err == nil:
		return kindHTTPPrefix + strconv.Itoa(status)
	case errors.Is(err, syscall.ECONNREFUSED):
		return kindRefused
	case errors.As(err, &timeout) && timeout.Timeout():
		return kindTimeout
	case errors.As(err, &dial):
		return kindNoConnect
	}
	return kindBroken
}

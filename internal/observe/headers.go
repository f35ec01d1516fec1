package observe

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// maxHeaderLines is how many lines the headers of a request may have. net/http limits only their bytes. A header of
// three letters takes a hundred bytes of memory.
const maxHeaderLines = 200

// tooManyHeaders is what net/http answers where headers are too large.
const tooManyHeaders = "HTTP/1.1 431 Request Header Fields Too Large\r\n" +
	"Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n431 Request Header Fields Too Large"

// fewHeaders is a listener whose connections count the headers of a request as they arrive. Too many end the
// connection. net/http would hold all of them first.
type fewHeaders struct {
	net.Listener

	crowd *crowd
}

func (l fewHeaders) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err //nolint:wrapcheck // net/http looks at it
	}
	return &headed{Conn: conn, crowd: l.crowd}, nil
}

// headed is a connection that counts the lines of headers that it reads. Headers that came with the request before are
// in the server's buffer of 4 kB, and are not counted.
type headed struct {
	net.Conn

	crowd *crowd
	past  atomic.Bool // the headers have ended
	begun bool        // the request has begun: net/http passes over line ends before it
	blank bool        // the line has no character yet
	lines int
	bytes int          // of the headers
	waits atomic.Int64 // since when it waits for its client, in nanoseconds of Unix time; 0 while a request is in hand
	held  atomic.Int64 // memory that its half-sent headers take, in bytes
}

// next says that the server waits for the headers of the next request.
func (c *headed) next() {
	c.begun, c.blank, c.lines, c.bytes = false, false, 0, 0
	c.past.Store(false)
	c.waits.Store(0)
}

// hold counts the memory of headers of which the rest is still to come. A request whose headers come in one piece does
// not get here.
func (c *headed) hold() {
	size := int64(c.bytes + c.lines*lineMemory)
	before := c.held.Swap(size)
	if before == 0 {
		c.waits.Store(time.Now().UnixNano()) // and not since the request before
	}
	c.crowd.hold(size - before)
}

// drop says that there are no half-sent headers any more.
func (c *headed) drop() {
	if n := c.held.Swap(0); n > 0 {
		c.crowd.hold(-n)
	}
}

func (c *headed) Read(p []byte) (int, error) {
	// Once it has the whole request, net/http reads a single byte, to notice that the client has gone.
	if len(p) == 1 {
		c.waits.Store(0)
	} else if c.waits.Load() == 0 {
		c.waits.Store(time.Now().UnixNano())
	}
	n, err := c.Conn.Read(p)
	c.bytes += n
	for rest := p[:n]; !c.past.Load() && len(rest) > 0; {
		if !c.begun {
			text := bytes.TrimLeft(rest, "\r\n")
			c.lines += bytes.Count(rest[:len(rest)-len(text)], []byte{'\n'})
			rest, c.begun = text, len(text) > 0
			continue
		}
		end := bytes.IndexByte(rest, '\n')
		line := rest
		if end >= 0 {
			line = rest[:end]
		}
		empty := len(line) == 0 || len(line) == 1 && line[0] == '\r'
		if end < 0 {
			c.blank = c.blank && empty
			break
		}
		if c.blank && empty {
			c.past.Store(true)
		}
		c.blank = true
		c.lines++
		rest = rest[end+1:]
	}
	if n > 0 && c.begun && !c.past.Load() {
		c.hold()
	}
	if c.lines > maxHeaderLines {
		_, _ = io.WriteString(c.Conn, tooManyHeaders)
		return 0, io.EOF
	}
	return n, err //nolint:wrapcheck // it is the same connection
}

// CloseWrite closes one half of the connection. net/http does that first where a sender is still sending, so that the
// answer arrives.
func (c *headed) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite() //nolint:wrapcheck // it is the same connection
	}
	return nil
}

// headedKey is the key of a request's connection in its context.
type headedKey struct{}

func withHeaded(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, headedKey{}, conn)
}

// pastHeaders tells the connection that the headers of a request are complete, wherever they came from. What comes next
// is its body.
func pastHeaders(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if conn, ok := r.Context().Value(headedKey{}).(*headed); ok {
			conn.past.Store(true)
			conn.drop()
		}
		next.ServeHTTP(w, r)
	})
}

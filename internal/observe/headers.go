package observe

import (
	"bytes"
	"io"
	"net"
)

// maxHeaderLines is how many lines the headers of a request may have. net/http limits their bytes alone, and a header
// of three letters takes a hundred bytes of memory.
const maxHeaderLines = 200

// tooManyHeaders is what net/http answers where headers are too large.
const tooManyHeaders = "HTTP/1.1 431 Request Header Fields Too Large\r\n" +
	"Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n431 Request Header Fields Too Large"

// fewHeaders is a listener whose connections end where a request has too many headers, before somebody holds them all.
type fewHeaders struct{ net.Listener }

func (l fewHeaders) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err //nolint:wrapcheck // net/http looks at it
	}
	return &headed{Conn: conn, blank: true}, nil
}

// headed is a connection that counts the lines of the headers that it reads. What comes of the next request before the
// server asks for it is not counted: that is no more than one buffer.
type headed struct {
	net.Conn
	past  bool // the headers have ended
	begun bool // a line has had a character: net/http passes over empty lines before a request
	blank bool // the line has no character yet
	lines int
}

// next says that the server waits for the headers of the next request.
func (c *headed) next() { c.past, c.begun, c.blank, c.lines = false, false, true, 0 }

func (c *headed) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for rest := p[:n]; !c.past && len(rest) > 0; {
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
		c.begun = c.begun || !c.blank || !empty
		c.past = c.begun && c.blank && empty
		c.blank = true
		c.lines++
		rest = rest[end+1:]
	}
	if !c.past && c.lines > maxHeaderLines {
		_, _ = io.WriteString(c.Conn, tooManyHeaders)
		return 0, io.EOF
	}
	return n, err //nolint:wrapcheck // it is the same connection
}

package deliver

import (
	"bufio"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// restPatience is how long the rest of an answer is awaited once its status is known. The destination may keep the
// connection open without ever sending the end of the header, of the body or of the trailer.
const restPatience = 2 * time.Second

// answer is what the beginning of an answer says: its status, and the few headers that matter here. Only the status has
// to be well-formed. http.ReadResponse would reject the whole answer for one bad line, and with it the status.
type answer struct {
	status     int
	retryAfter string // Retry-After and Date, where the status is no 2xx
	date       string
	codings    []string // Content-Encoding and Transfer-Encoding but "chunked", the first applied first; lower case

	length  int64 // Content-Length: the least, where several were given; -1 without one
	chunked bool
	closes  bool // the destination closes the connection after this answer
	odd     bool // a line breaks the rules, so that the next answer might not begin where this one ends
	broken  bool // the header breaks off
	stopped bool // a proxy says that it could not connect to the destination
}

// statusLine reads a status line. It returns 0 where it is none.
func statusLine(line []byte) (status int, version []byte) {
	const name = "HTTP/"
	if len(line) < len(name) || !bytes.EqualFold(line[:len(name)], []byte(name)) {
		return 0, nil
	}
	rest := line[len(name):]
	end := bytes.IndexAny(rest, " \t")
	if end < 1 || bytes.ContainsFunc(rest[:end], func(r rune) bool { return r != '.' && (r < '0' || r > '9') }) {
		return 0, nil
	}
	version, rest = rest[:end], bytes.TrimLeft(rest[end:], " \t")
	digits := 0
	for digits < len(rest) && rest[digits] >= '0' && rest[digits] <= '9' {
		status = min(10*status+int(rest[digits]-'0'), 1000)
		digits++
	}
	if digits != 3 || status < 100 {
		return 0, nil
	}
	return status, version
}

// readStatus reads up to the end of a status line. The answer counts as soon as its code is there, even if the line
// then breaks off.
func (c *connection) readStatus(a *answer) error {
	for {
		line, err := c.reader.ReadSlice('\n')
		cut := err != nil && !errors.Is(err, bufio.ErrBufferFull)
		text := bytes.TrimRight(line, "\r\n")
		status, version := statusLine(text)
		switch {
		case status != 0:
			closes := string(version) != "1.1"
			*a = answer{status: status, length: -1, closes: closes, broken: cut, codings: a.codings[:0]}
			if err != nil && !cut {
				a.broken = c.skipLine() != nil
			}
			return nil
		case cut:
			return err //nolint:wrapcheck // explained by Client.explain
		case len(text) > 0:
			return fmt.Errorf("malformed HTTP response %q", text)
		}
	}
}

// skipLine reads up to the end of a line that is longer than the reader's buffer.
func (c *connection) skipLine() error {
	for {
		_, err := c.reader.ReadSlice('\n')
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err //nolint:wrapcheck // nobody reads it
		}
	}
}

// readHeader reads the lines after a status line, up to the empty one. It passes over lines that are no headers, but
// then the connection is not used again.
func (c *connection) readHeader(a *answer) {
	for !a.broken {
		line, err := c.reader.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		if err != nil && !long {
			a.broken = true
			return
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			return
		}
		a.read(line, long)
		if long {
			a.broken = c.skipLine() != nil
		}
	}
}

// read reads a line of a header. Of a long one it gets the beginning.
func (a *answer) read(line []byte, long bool) {
	name, value, found := bytes.Cut(line, []byte(":"))
	trimmed := bytes.TrimRight(name, " \t")
	if !found || len(trimmed) == 0 || len(trimmed) < len(name) || name[0] == ' ' || name[0] == '\t' {
		a.odd = true
	}
	is := func(header string) bool {
		return len(trimmed) == len(header) && bytes.EqualFold(trimmed, []byte(header))
	}
	value = bytes.TrimSpace(value)
	switch {
	case !found:
	case is("Content-Length"):
		for part := range bytes.SplitSeq(value, []byte(",")) {
			n, err := strconv.ParseInt(string(bytes.TrimSpace(part)), 10, 64)
			switch {
			case err != nil || n < 0 || long:
				a.odd = true
			case a.length < 0:
				a.length = n
			case a.length != n:
				a.length, a.odd = min(a.length, n), true
			}
		}
	case is("Transfer-Encoding"):
		for _, coding := range tokens(value) {
			switch coding {
			case "chunked":
				a.odd = a.odd || a.chunked
				a.chunked = true
			case "identity":
				a.odd = true
			default:
				a.odd = true
				a.codings = append(a.codings, coding)
			}
		}
	case is("Content-Encoding"):
		for _, coding := range tokens(value) {
			if coding != "identity" {
				a.codings = append(a.codings, coding)
			}
		}
	case is("Connection"):
		options := tokens(value)
		switch {
		case slices.Contains(options, "close"):
			a.closes = true
		case slices.Contains(options, "keep-alive"):
			a.closes = false // also of HTTP/1.0
		}
	case a.status < 300:
	case is("Proxy-Status"), is("X-Squid-Error"):
		a.stopped = a.stopped || noConnection(string(value))
	case is("Retry-After") && a.retryAfter == "":
		a.retryAfter = string(value)
	case is("Date") && a.date == "":
		a.date = string(value)
	}
}

// noConnection reports whether a proxy's reason for an answer of its own is that it could not connect. The reasons are
// those of Proxy-Status (RFC 9209, section 2.3) and of Squid.
func noConnection(reason string) bool {
	return slices.ContainsFunc([]string{
		"error=dns_timeout", "error=dns_error", "error=destination_not_found", "error=destination_unavailable",
		"error=destination_ip_prohibited", "error=destination_ip_unroutable", "error=connection_refused",
		"error=connection_timeout", "ERR_DNS_FAIL", "ERR_CONNECT_FAIL", "ERR_CANNOT_FORWARD",
	}, func(s string) bool { return strings.Contains(reason, s) })
}

// tokens are the items of a list, in lower case and without parameters.
func tokens(value []byte) []string {
	list := strings.Split(strings.ToLower(string(value)), ",")
	for i, item := range list {
		item, _, _ = strings.Cut(item, ";")
		list[i] = strings.TrimSpace(item)
	}
	return slices.DeleteFunc(list, func(item string) bool { return item == "" })
}

// final reports whether an answer is no interim one. What follows 101 is no HTTP, so no other answer comes.
func (a *answer) final() bool { return a.status >= 200 || a.status == 101 }

// readAnswer reads the header of the final answer. An error says that there is no status.
func (c *connection) readAnswer(a *answer) error {
	for range maxInterim + 1 {
		if err := c.readStatus(a); err != nil {
			return err
		}
		c.decided = a.final()
		if c.readHeader(a); a.final() {
			return nil
		}
	}
	return errors.New("too many interim answers")
}

// measured reads a body of a known length.
type measured struct {
	from io.Reader
	left int64
}

func (m *measured) Read(p []byte) (int, error) {
	if m.left <= 0 {
		return 0, io.EOF
	}
	n, err := m.from.Read(p[:min(int64(len(p)), m.left)])
	m.left -= int64(n)
	if m.left > 0 && errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err //nolint:wrapcheck // nobody reads it
}

// body returns the body of an answer.
func (c *connection) body(a *answer) io.Reader {
	c.measured = measured{from: c.reader}
	switch {
	case a.broken, a.status < 200, a.status == 204, a.status == 304:
		return &c.measured
	case a.chunked:
		a.odd = a.odd || a.length >= 0
		return httputil.NewChunkedReader(c.reader)
	case a.length >= 0:
		c.measured.left = a.length
		return &c.measured
	}
	a.closes = true
	return c.reader
}

// endOf reports whether a connection is at the end of an answer whose body was read to its end.
func (c *connection) endOf(a *answer) bool {
	if a.chunked {
		c.allowed = maxAnswerHeader
		c.readHeader(a) // the trailer
	}
	return !a.closes && !a.odd && !a.broken && c.reader.Buffered() == 0
}

// readAnswer returns the beginning of an answer's body as text, decoded, without white space at its end. It reads on a
// little, so that the connection can be used again; ended says that it can.
func readAnswer(body io.Reader, codings []string) (text string, ended bool) {
	buf := answers.Get().(*[maxAnswer]byte) //nolint:forcetypeassert // nothing else is in the pool
	defer answers.Put(buf)
	n, err := fill(body, buf[:])
	kept := buf[:n]
	if n > 0 && (len(codings) > 0 || isGzip(kept)) {
		text = decoded(kept, body, codings)
	} else {
		text = plain(kept, err == nil)
	}
	ended = errors.Is(err, io.EOF)
	if err == nil { // there may be more
		ended = drain(body)
	}
	return text, ended
}

// fill reads until p is full or an error ends it.
func fill(from io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var more int
		more, err = from.Read(p[n:])
		n += more
	}
	return n, err
}

// plain is an answer as text that Postgres can hold: valid, and without NUL. cut says that it may be cut in the middle
// of a character.
func plain(answer []byte, cut bool) string {
	if cut {
		answer = trimCutRune(answer)
	}
	text := strings.ReplaceAll(strings.ToValidUTF8(string(answer), "\uFFFD"), "\x00", "\uFFFD")
	return strings.TrimRightFunc(text, unicode.IsSpace)
}

// drain reads up to maxDrain more bytes, and reports whether the body ended.
func drain(body io.Reader) bool {
	n, err := io.CopyN(io.Discard, body, maxDrain)
	return n < maxDrain && errors.Is(err, io.EOF)
}

func isGzip(beginning []byte) bool { return bytes.HasPrefix(beginning, []byte{0x1f, 0x8b}) }

// decoded is the beginning of a compressed answer as text, or a word that it is compressed. beginning was read from it,
// and rest follows. It reads maxDrain of it at most, and undoes one compression: what a bomb makes of that is bounded.
func decoded(beginning []byte, rest io.Reader, codings []string) string {
	if len(codings) == 0 {
		codings = []string{"gzip"} // as its first bytes say
	}
	compressed := "(compressed: " + oneLine(strings.Join(codings, ", ")) + ")"
	if len(codings) > 1 {
		return compressed
	}
	raw := bufio.NewReader(io.LimitReader(io.MultiReader(bytes.NewReader(beginning), rest), maxDrain))
	var reader io.Reader
	var err error
	switch codings[0] {
	case "gzip", "x-gzip":
		reader, err = gzip.NewReader(raw)
	case "deflate": // with the frame of zlib, or without
		if head, _ := raw.Peek(2); len(head) == 2 && head[0]&0x0f == 8 && (int(head[0])<<8|int(head[1]))%31 == 0 {
			reader, err = zlib.NewReader(raw)
		} else {
			reader = flate.NewReader(raw)
		}
	default:
		return compressed
	}
	var out [maxAnswer]byte
	n := 0
	var end error
	if err == nil {
		n, end = fill(reader, out[:])
	}
	switch {
	case n > 0:
		return plain(out[:n], !errors.Is(end, io.EOF))
	case errors.Is(end, io.EOF):
		return ""
	case readable(beginning):
		return plain(beginning, true) // it only says that it is compressed
	}
	return compressed
}

// readable reports whether bytes look like text.
func readable(b []byte) bool {
	text := trimCutRune(b)
	return utf8.Valid(text) && !bytes.ContainsFunc(text, func(r rune) bool {
		return unicode.IsControl(r) && !unicode.IsSpace(r)
	})
}

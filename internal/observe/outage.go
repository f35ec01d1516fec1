package observe

import (
	"bytes"
	"encoding/json"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// outagePeriod is the shortest time between two lines about the database being away.
const outagePeriod = time.Second

// outageWriter stands between all loggers of a process and its log. It makes every error one line of text. While the
// database is away, every part of the process fails again and again: of all their warnings it lets one through a
// second. That one says how many it stands for, and begins with the last cause, which is what an operator must mend.
//
// It works on lines and not in the parts, so that no part can be forgotten. It looks only at lines that have an error.
type outageWriter struct {
	out io.Writer
	now func() time.Time

	mu     sync.Mutex
	said   time.Time // when the last line about an outage was let through
	unsaid int       // lines since then that were not
}

func newOutageWriter(out io.Writer, now func() time.Time) *outageWriter {
	return &outageWriter{out: out, now: now}
}

// Write writes a line that has no level.
func (w *outageWriter) Write(line []byte) (int, error) { return w.out.Write(line) }

// errorMember is how the error of a line begins. Within a text the quotes would be escaped.
var errorMember = []byte(`"` + zerolog.ErrorFieldName + `":"`)

// WriteLevel writes a line, or leaves it out.
func (w *outageWriter) WriteLevel(level zerolog.Level, line []byte) (int, error) {
	before, rest, hasError := bytes.Cut(line, errorMember)
	if !hasError {
		return w.out.Write(line)
	}
	literal := quotedText(rest)
	var text string
	if json.Unmarshal(literal, &text) != nil {
		return w.out.Write(line)
	}
	text, causes := flatten(text)
	after := bytes.TrimRight(rest[len(literal)-1:], "\n")
	if level >= zerolog.WarnLevel && level <= zerolog.PanicLevel && isOutage(line, text) {
		text = causeFirst(causes)
		say, unsaid := w.turn()
		if !say {
			return len(line), nil
		}
		if unsaid > 0 {
			after = slices.Concat(bytes.TrimSuffix(after, []byte("}")),
				[]byte(`,"lines_left_out":`+strconv.Itoa(unsaid)+"}"))
		}
	}
	shown := slices.Concat(before, errorMember[:len(errorMember)-1], quote(text), after, []byte("\n"))
	if _, err := w.out.Write(shown); err != nil {
		return 0, err
	}
	return len(line), nil
}

// turn reports whether a line about an outage may be said now, and how many were not since the last.
func (w *outageWriter) turn() (say bool, unsaid int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	if since := now.Sub(w.said); since >= 0 && since < outagePeriod {
		w.unsaid++
		return false, 0
	}
	unsaid = w.unsaid
	w.said, w.unsaid = now, 0
	return true, unsaid
}

// quotedText returns the JSON string at the beginning of a text, of which the first quote is missing, as a literal.
func quotedText(rest []byte) []byte {
	for i := 0; i < len(rest); i++ {
		switch rest[i] {
		case '\\':
			i++
		case '"':
			return append([]byte{'"'}, rest[:i+1]...)
		}
	}
	return nil
}

// quote is a text as a JSON string.
func quote(text string) []byte {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(text) // a string can always be encoded
	return bytes.TrimSpace(out.Bytes())
}

// flatten puts an error on one line. pgx tries several ways to connect and tells of each on a line of its own, mostly
// the same. causes are these lines without repetitions.
func flatten(text string) (flat string, causes []string) {
	for line := range strings.Lines(text) {
		line = strings.Join(strings.Fields(line), " ")
		if line != "" && !slices.Contains(causes, line) {
			causes = append(causes, line)
		}
	}
	if len(causes) == 0 {
		return "", []string{""}
	}
	flat = causes[0]
	for i, cause := range causes[1:] {
		separator := "; "
		if i == 0 && strings.HasSuffix(flat, ":") {
			separator = " "
		}
		flat += separator + cause
	}
	return flat, causes
}

// causeFirst begins an error with its last cause: wrapped errors have it at the end of the line.
func causeFirst(causes []string) string {
	last := causes[len(causes)-1]
	cut := strings.LastIndex(last, ": ")
	if cut < 0 {
		if len(causes) == 1 {
			return last
		}
		return last + " (" + strings.Join(causes[:len(causes)-1], " ") + ")"
	}
	way := append(slices.Clone(causes[:len(causes)-1]), last[:cut])
	return last[cut+len(": "):] + " (" + strings.Join(way, " ") + ")"
}

// outageSigns are what errors say that come from a database that cannot be reached, is going away or is coming up.
var outageSigns = []string{
	"failed to connect to `", "(SQLSTATE 57P", "(SQLSTATE 08", "(SQLSTATE 53", "conn closed", "closed pool",
	"failed to receive message", "failed to write", "unexpected EOF", "connection reset by peer", "broken pipe",
	"use of closed network connection", "i/o timeout", ": context deadline exceeded", ": timeout",
	"the listener is not connected",
}

// isOutage reports whether a line is about the database being away. The attempt to deliver an event says much the same
// about its destination, so lines with an attempt are none.
func isOutage(line []byte, text string) bool {
	if bytes.Contains(line, []byte(`"attempt":`)) {
		return false
	}
	return slices.ContainsFunc(outageSigns, func(sign string) bool { return strings.Contains(text, sign) })
}

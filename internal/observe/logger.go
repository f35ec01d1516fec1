package observe

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/terminal"
)

// Format is the form of the log lines.
type Format string

// The forms of log lines.
const (
	Auto Format = "auto" // Text on a terminal, else JSON
	JSON Format = "json" // one object a line, for machines
	Text Format = "text" // one readable line each, in colour on a terminal
)

// ParseFormat reads a Format in upper or lower case.
func ParseFormat(s string) (Format, error) {
	switch f := Format(strings.ToLower(s)); f {
	case Auto, JSON, Text:
		return f, nil
	}
	return "", fmt.Errorf("unknown log format %q", s)
}

// Logger writes lines of level and above to w, with the time in UTC to the millisecond. An error is on one line, and
// while the database is away its many victims share one line a second: see outageWriter.
func Logger(w io.Writer, level zerolog.Level, format Format) zerolog.Logger {
	tty := terminal.IsTerminal(w)
	if format == Text || format == Auto && tty {
		w = zerolog.ConsoleWriter{Out: w, NoColor: !tty || os.Getenv("NO_COLOR") != "", TimeFormat: "15:04:05.000"}
	}
	return zerolog.New(newOutageWriter(w, time.Now)).Level(level).Hook(zerolog.HookFunc(addTimestamp))
}

// addTimestamp replaces zerolog's own time stamp, whose form is a global variable without milliseconds.
func addTimestamp(e *zerolog.Event, _ zerolog.Level, _ string) {
	e.Str(zerolog.TimestampFieldName, time.Now().UTC().Format("2006-01-02T15:04:05.000Z07:00"))
}

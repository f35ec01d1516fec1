package command

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/webhookspine/spine/internal/service"
)

// timeFlag is a flag that takes a time in the past as parseMoment reads it. Its
// zero value is unset.
type timeFlag struct{ time.Time }

func (m *timeFlag) String() string { return "" }
func (m *timeFlag) Type() string   { return "TIME" }
func (m *timeFlag) Set(text string) (err error) {
	m.Time, err = parsePastTime(text, time.Now())
	return err
}

// parsePastTime reads an RFC 3339 time, or how long ago: 90 (seconds), 10m, 7d.
func parsePastTime(text string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	ago, err := service.ParseDuration(text)
	if err != nil || ago < 0 {
		return time.Time{}, errors.New("must be how long ago, such as 10m or 7d, or a time as 2024-01-30T12:00:00Z")
	}
	return now.Add(-ago), nil
}

func readFile(name string, stdin io.Reader) ([]byte, error) {
	if name != "-" {
		return os.ReadFile(name) //nolint:gosec // the file that the user asks to be sent
	}
	body, err := io.ReadAll(stdin)
	if err != nil {
		return nil, fmt.Errorf("reading the payload from the standard input: %w", err)
	}
	return body, nil
}

// flagValues is what a flag gives that may come several times: nothing where it was
// given once and empty, which takes the setting back.
func flagValues(values []string) []string {
	if len(values) == 1 && values[0] == "" {
		return nil
	}
	return values
}

// durationFlag is a flag that takes what parseDuration reads.
type durationFlag time.Duration

func (d *durationFlag) String() string { return time.Duration(*d).String() }
func (d *durationFlag) Type() string   { return "DURATION" }
func (d *durationFlag) Set(text string) error {
	parsed, err := service.ParseDuration(text)
	if err == nil && parsed < 0 {
		err = errors.New("must not be negative")
	}
	*d = durationFlag(parsed)
	return err
}

// intervalFlag is a flag that takes the time between two looks.
type intervalFlag time.Duration

func (e *intervalFlag) String() string { return time.Duration(*e).String() }
func (e *intervalFlag) Type() string   { return "DURATION" }
func (e *intervalFlag) Set(text string) error {
	d, err := service.ParseDuration(text)
	if err == nil && d < watchLeast {
		err = fmt.Errorf("must be at least %s", watchLeast)
	}
	*e = intervalFlag(d)
	return err
}

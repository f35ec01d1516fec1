package command

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/webhookspine/spine/internal/service"
)

// timeFlag is a flag that takes a time in the past, as parsePastTime reads it. Its zero value is unset.
type timeFlag struct{ time.Time }

func (f *timeFlag) String() string { return "" }
func (f *timeFlag) Type() string   { return "TIME" }
func (f *timeFlag) Set(text string) (err error) {
	f.Time, err = parsePastTime(text, time.Now())
	return err
}

// parsePastTime reads an RFC 3339 time, or how long ago it was: 90 (seconds), 10m, 7d.
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

// durationFlag is a flag that takes a duration as settings do, and none below its least.
type durationFlag struct {
	time.Duration
	least time.Duration
}

func (f *durationFlag) String() string { return f.Duration.String() }
func (f *durationFlag) Type() string   { return "DURATION" }
func (f *durationFlag) Set(text string) error {
	d, err := service.ParseDuration(text)
	switch {
	case err != nil:
		return err
	case d < 0:
		return errors.New("must not be negative")
	case d < f.least:
		return fmt.Errorf("must be at least %s", f.least)
	}
	f.Duration = d
	return nil
}

// listValues are the values of a flag that may be given several times. Given once and empty, it has none.
func listValues(values []string) []string {
	if len(values) == 1 && values[0] == "" {
		return nil
	}
	return values
}

// readFile reads the file that a flag names; - is the standard input.
func readFile(name string, stdin io.Reader) ([]byte, error) {
	if name != "-" {
		return os.ReadFile(name) //nolint:gosec // the user names it
	}
	text, err := io.ReadAll(stdin)
	if err != nil {
		return nil, fmt.Errorf("reading the standard input: %w", err)
	}
	return text, nil
}

package command

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/view"
)

// operatorConns are enough for one command: one works, one sends a ping.
const operatorConns = 2

// openDatabase connects for commands that look at the database or set something right
// there, and do no work of their own. It checks the schema: one that is newer
// than this binary is fine, as for processes that run during an upgrade. The
// caller closes the store.
func openDatabase(ctx context.Context, d service.DatabaseSettings) (*store.Store, error) {
	s, err := store.Open(ctx, store.Config{URL: string(d.URL), MaxConns: operatorConns, AppName: "spine operator"})
	if err != nil {
		return nil, err
	}
	if err := s.CheckSchema(ctx); err != nil && !errors.Is(err, store.ErrTooNew) {
		s.Close()
		return nil, err
	}
	return s, nil
}

// nameSource tells whoever gave an ambiguous id what to do about it.
func nameSource(err error) error {
	if ambiguous, ok := errors.AsType[*view.AmbiguousError](err); ok {
		return fmt.Errorf("the id exists in the sources %s: name one with --source", strings.Join(ambiguous.Sources, ", "))
	}
	return err
}

// moment is a flag that takes a time in the past as parseMoment reads it. Its
// zero value is unset.
type moment struct{ time.Time }

func (m *moment) String() string { return "" }
func (m *moment) Type() string   { return "TIME" }
func (m *moment) Set(text string) (err error) {
	m.Time, err = parseMoment(text, time.Now())
	return err
}

// parseMoment reads an RFC 3339 time, or how long ago: 90 (seconds), 10m, 7d.
func parseMoment(text string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	ago, err := service.ParseDuration(text)
	if err != nil || ago < 0 {
		return time.Time{}, errors.New("must be how long ago, such as 10m or 7d, or a time as 2024-01-30T12:00:00Z")
	}
	return now.Add(-ago), nil
}

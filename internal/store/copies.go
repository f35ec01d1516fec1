package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/webhookspine/spine/internal/view"
)

// ErrMayNotNote says that the role may not note which database this is.
var ErrMayNotNote = errors.New(
	"this role may not note which database this is (spine.note_database), so a copy would not be known")

// NoteDatabase notes which database this is. Where another one was noted, it pauses all claims and says so in found. A
// read-only database is left as it is. From then on each new connection does the same where it meets another server, or
// the same one after a start. The error is ErrMayNotNote, event.ErrLocked where somebody holds a lock on the audit log,
// or that of the database.
func (s *Store) NoteDatabase(ctx context.Context) (found string, err error) {
	s.notes.Store(true)
	var says *string
	err = s.call(ctx, []any{&says}, "select spine.note_database()")
	switch {
	case sqlState(err) == "42501":
		return "", fmt.Errorf("%w: %w", ErrMayNotNote, err)
	case err != nil:
		return "", fmt.Errorf("noting which database this is: %w", classify(err))
	case says != nil:
		found = *says
	}
	return found, nil
}

// noteAgain is NoteDatabase for a new connection, before anything else uses it: a server may be replaced while a
// process runs.
func (s *Store) noteAgain(ctx context.Context, conn *pgx.Conn, server string) error {
	if known := s.noted.Load(); !s.notes.Load() || known != nil && *known == server {
		return nil
	}
	var says *string
	err := s.plainlyOn(ctx, conn, func(on executor) error {
		// A pooler may know no prepared statements.
		return on.QueryRow(ctx, "select spine.note_database()", pgx.QueryExecModeExec).Scan(&says)
	})
	switch sqlState(err) {
	case "42501", "42883", "3F000": // the role may not, or another one has taken the database's place: all else says so
		return nil
	}
	if err != nil {
		return fmt.Errorf("noting which database this is: %w", err)
	}
	s.noted.Store(&server)
	if says != nil && s.moved != nil {
		s.moved(*says)
	}
	return nil
}

// Paused lists the destinations whose claims are paused.
func (s *Store) Paused(ctx context.Context) ([]view.PauseRow, error) {
	return list[view.PauseRow](ctx, s, "looking for what is paused", pausedSQL)
}

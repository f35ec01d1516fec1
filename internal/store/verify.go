package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/webhookspine/spine/internal/event"
)

// verifyStep is the span of events that are checked in one statement, so that
// none holds a snapshot for long.
const verifyStep = time.Hour

// Verify checks the invariants of the events that were stored from since to
// until, and returns each with its violations, of which examples are told. It
// reads only, each hour's events as of one moment of its own.
func (s *Store) Verify(ctx context.Context, since, until time.Time, examples int) ([]event.Invariant, error) {
	var first, now time.Time
	if err := s.pool.QueryRow(ctx, "select coalesce((select e.created_at from spine.events e order by e.id limit 1), now()), now()").Scan(&first, &now); err != nil {
		return nil, fmt.Errorf("looking for the first event: %w", err)
	}
	// Clocks are set back: what is first may not be the oldest.
	if first = first.Add(-24 * time.Hour); since.Before(first) {
		since = first
	}
	if until.IsZero() || until.After(now) {
		until = now
	}
	var all []event.Invariant
	for {
		end := since.Add(verifyStep)
		if end.After(until) {
			end = until
		}
		rows, err := s.pool.Query(ctx, "select invariant, meaning, checked, violations, examples from spine.verify($1, $2, $3)", since, end, examples)
		if err != nil {
			return nil, fmt.Errorf("verifying: %w", err)
		}
		part, err := pgx.CollectRows(rows, pgx.RowToStructByPos[event.Invariant])
		if err != nil {
			return nil, fmt.Errorf("verifying: %w", err)
		}
		for i := range part {
			if all == nil {
				all = part
				break
			}
			all[i].Checked += part[i].Checked
			all[i].Violations += part[i].Violations
			all[i].Examples = append(all[i].Examples, part[i].Examples...)
			all[i].Examples = all[i].Examples[:min(len(all[i].Examples), examples)]
		}
		if since = end; !since.Before(until) {
			return all, nil
		}
	}
}

package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/webhookspine/spine/internal/view"
)

// Limits on the events that one statement checks: those of a span of time, and no more than a number of them. They keep
// a statement from holding a snapshot for long. Spans grow while statements are quick: years may have few events.
const (
	verifySpan    = time.Hour
	verifyLongest = 30 * 24 * time.Hour
	verifyQuick   = time.Second
	verifyEvents  = 200_000
)

// Verify checks the invariants of the events that were stored from since to until. It returns each invariant with its
// violations and up to examples of them. It only reads. It checks one span of time after another, each as of one moment
// of its own.
func (s *Store) Verify(ctx context.Context, since, until time.Time, examples int) ([]view.Invariant, error) {
	return s.verifySpans(ctx, since, until, examples, verifyEvents)
}

func (s *Store) verifySpans(
	ctx context.Context,
	since, until time.Time,
	examples, events int,
) ([]view.Invariant, error) {
	var first, now time.Time
	// Where the oldest events are gone, the audit log still has them.
	const begin = `select least(now(), nullif(spine.audit_begins(), '-infinity'), (
			select e.created_at from spine.events e where isfinite(e.created_at) order by e.id limit 1)), now()`
	if err := s.one(ctx, begin, nil, &first, &now); err != nil {
		return nil, fmt.Errorf("looking for the beginning: %w", err)
	}
	// Clocks are set back: the first event may not be the oldest.
	if first = first.Add(-24 * time.Hour); since.Before(first) {
		since = first
	}
	if until.IsZero() || until.After(now) {
		until = now
	}
	var all []view.Invariant
	span := verifySpan
	for {
		began := time.Now()
		end, err := s.verifySpanEnd(ctx, since, until, span, events)
		if err != nil {
			return nil, err
		}
		var part []view.Invariant
		err = s.plainly(ctx, func(on executor) error {
			rows, err := on.Query(
				ctx,
				"select invariant, meaning, checked, violations, examples from spine.verify($1, $2, $3)",
				since,
				end,
				examples,
			)
			if err == nil {
				part, err = pgx.CollectRows(rows, pgx.RowToStructByPos[view.Invariant])
			}
			return err
		})
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
		if span = min(2*span, verifyLongest); time.Since(began) > verifyQuick {
			span = verifySpan
		}
	}
}

// verifySpanEnd returns the end of what one statement checks from since on: of a span, or of as many events.
func (s *Store) verifySpanEnd(
	ctx context.Context, since, until time.Time, span time.Duration, events int,
) (time.Time, error) {
	end := since.Add(span)
	if end.After(until) {
		end = until
	}
	var reached time.Time
	err := s.one(
		ctx,
		`select e.created_at from spine.events e
		where e.id > spine.first_id_since($1) + $2 and isfinite(e.created_at)
		order by e.id
		limit 1`,
		[]any{since, events},
		&reached,
	)
	switch {
	case err != nil && !errors.Is(err, pgx.ErrNoRows):
		return end, fmt.Errorf("looking for the end of a span: %w", err)
	case err == nil && reached.After(since) && reached.Before(end):
		end = reached
	}
	return end, nil
}

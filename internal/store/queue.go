package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/webhookspine/spine/internal/event"
)

// lookAhead is how far ahead a claim looks for the next row to fall due. It is more than the time between two sweeps.
const lookAhead = time.Second

const claimSQL = `select event, lease, attempt, due_at, event_id, source, event_type, occurred_at, payload, raw_body
	from spine.claim($1, $2, $3, $4, $5, $6, $7)`

// Claim leases due events. All its times are of the database's clock.
func (s *Store) Claim(ctx context.Context, c event.Claim) (event.Claimed, error) {
	var claimed event.Claimed
	err := s.plainly(ctx, func(on executor) error {
		rows, err := on.Query(ctx, claimSQL, claimArguments(c)...)
		if err == nil {
			claimed, err = readClaimed(rows, c.Destination)
		}
		return err
	})
	if err != nil {
		return event.Claimed{}, fmt.Errorf("claiming events for %s: %w", c.Destination, err)
	}
	return claimed, nil
}

// claimArguments are the parameters of claimSQL.
func claimArguments(c event.Claim) []any {
	var from any = "-infinity"
	if !c.Low.IsZero() {
		from = c.Low
	}
	return []any{c.Destination, c.Limit, c.Lease, c.Worker, c.Delays, from, lookAhead}
}

// readClaimed reads all rows that claimSQL returns.
func readClaimed(rows pgx.Rows, destination string) (claimed event.Claimed, err error) {
	var (
		key, token            pgtype.Int8
		attempt               pgtype.Int4
		dueAt, occurredAt     pgtype.Timestamptz
		id, source, eventType pgtype.Text
		payload, raw          []byte
	)
	_, err = pgx.ForEachRow(
		rows,
		[]any{&key, &token, &attempt, &dueAt, &id, &source, &eventType, &occurredAt, &payload, &raw},
		func() error {
			job := event.Job{
				Event:       key.Int64,
				Destination: destination,
				Lease:       token.Int64,
				Attempt:     int(attempt.Int32),
				DueAt:       dueAt.Time,
				Source:      source.String,
				ID:          id.String,
				Type:        eventType.String,
				OccurredAt:  occurredAt.Time,
				Payload:     payload,
			}
			switch {
			case !key.Valid: // the last row
				claimed.Now = occurredAt.Time
				if dueAt.Valid {
					claimed.NextDue = max(dueAt.Time.Sub(claimed.Now), time.Microsecond)
				}
			case !token.Valid:
				claimed.Expired = append(claimed.Expired, job)
			default:
				switch {
				case raw != nil && payload != nil:
					job.Raw = raw
				case raw != nil:
					job.Payload, job.Unqueryable = raw, true
				}
				claimed.Jobs = append(claimed.Jobs, job)
			}
			payload, raw = nil, nil // they are the job's now
			return nil
		},
	)
	return claimed, err
}

// keys turns jobs into the arrays that name them to the database.
func keys(jobs []event.Job) (events []int64, destinations []string, leases []int64) {
	events, destinations, leases = make([]int64, len(jobs)), make([]string, len(jobs)), make([]int64, len(jobs))
	for i := range jobs {
		events[i], destinations[i], leases[i] = jobs[i].Event, jobs[i].Destination, jobs[i].Lease
	}
	return events, destinations, leases
}

// Renew prolongs the leases of jobs until lease from now, and returns the state of each. A delivery whose lease is lost
// must stop at once. The lease of a locked row was not prolonged.
func (s *Store) Renew(ctx context.Context, jobs []event.Job, lease time.Duration) ([]event.LeaseState, error) {
	var held []*bool
	events, destinations, leases := keys(jobs)
	err := s.call(ctx, []any{&held},
		"select spine.renew($1, $2, $3, $4)",
		events, destinations, leases, lease)
	if err == nil && len(held) != len(jobs) {
		err = fmt.Errorf("got %d answers", len(held))
	}
	if err != nil {
		return nil, fmt.Errorf("renewing %d leases: %w", len(jobs), err)
	}
	return leaseStates(held), nil
}

// GiveBack returns the leases of jobs whose delivery was never started.
func (s *Store) GiveBack(ctx context.Context, jobs []event.Job) error {
	events, destinations, leases := keys(jobs)
	if err := s.call(
		ctx,
		nil,
		"select spine.give_back($1, $2, $3)",
		events,
		destinations,
		leases,
	); err != nil {
		return fmt.Errorf("giving back %d leases: %w", len(jobs), err)
	}
	return nil
}

// attemptDetails is what the audit log keeps of an attempt's answer.
type attemptDetails struct {
	Status     int     `json:"status,omitempty"`
	Answer     string  `json:"answer,omitempty"`
	DurationMS float64 `json:"duration_ms"`
	// RetryAfterMS is there where it decides when the next attempt is. spine.settle then names it as the reason.
	RetryAfterMS float64 `json:"retry_after_ms,omitempty"`
}

// Settle records results of attempts, and returns the state of each lease. The result of a lost lease changes nothing.
// That of a locked row must be settled again later. Settling the same result twice counts once and succeeds twice.
// Where the database rejects a batch, Settle halves it, so that no result fails its neighbours. A single result that is
// still rejected is settled without its answer.
func (s *Store) Settle(ctx context.Context, settlements []event.Settlement) ([]event.LeaseState, error) {
	held, err := s.settle(ctx, settlements)
	if !errors.Is(err, event.ErrInvalidData) {
		return held, err
	}
	if len(settlements) == 1 {
		bare := settlements[0]
		bare.Result.Answer = ""
		if bare.Result.Error != "" {
			bare.Result.Error = fmt.Sprintf("HTTP %d, and the rest cannot be stored", bare.Result.Status)
		}
		return s.settle(ctx, []event.Settlement{bare})
	}
	half := len(settlements) / 2
	first, err := s.Settle(ctx, settlements[:half])
	if err != nil {
		return nil, err
	}
	second, err := s.Settle(ctx, settlements[half:])
	if err != nil {
		return nil, err
	}
	return append(first, second...), nil
}

func (s *Store) settle(ctx context.Context, settlements []event.Settlement) ([]event.LeaseState, error) {
	n := len(settlements)
	var (
		jobs     = make([]event.Job, n)
		outcomes = make([]string, n)
		delays   = make([]*time.Duration, n)
		failures = make([]*string, n)
		details  = make([]string, n)
	)
	for i := range settlements {
		v := &settlements[i]
		jobs[i], outcomes[i] = v.Job, string(v.Disposition)
		if v.Disposition == event.Failed || v.Disposition == event.Deferred {
			delays[i] = &v.Delay
		}
		if v.Disposition != event.Completed {
			failures[i] = &v.Result.Error
		}
		about := attemptDetails{
			Status:     v.Result.Status,
			Answer:     v.Result.Answer,
			DurationMS: float64(v.Result.Duration.Microseconds()) / 1000,
		}
		if v.Asked {
			about.RetryAfterMS = float64(v.Result.RetryAfter.Milliseconds())
		}
		text, err := json.Marshal(about)
		if err != nil {
			return nil, fmt.Errorf("describing an attempt: %w", err)
		}
		details[i] = string(text)
	}
	events, destinations, leases := keys(jobs)
	var held []*bool
	err := s.call(ctx, []any{&held},
		"select spine.settle($1, $2, $3, $4, $5, $6, $7)",
		events, destinations, leases, outcomes, delays, failures, details)
	if err == nil && len(held) != n {
		err = fmt.Errorf("got %d answers", len(held))
	}
	if err != nil {
		return nil, fmt.Errorf("settling %d attempts: %w", n, classify(err))
	}
	states := leaseStates(held)
	if slices.Contains(outcomes, string(event.Deferred)) {
		if err := s.noteGivenUp(ctx, settlements, states); err != nil {
			return nil, err
		}
	}
	return states, nil
}

// noteGivenUp marks the results that were to be deferred and made dead letters. After a failure the results may be
// settled again, as always.
func (s *Store) noteGivenUp(ctx context.Context, settlements []event.Settlement, states []event.LeaseState) error {
	var deferred []event.Job
	var at []int
	for i := range settlements {
		if settlements[i].Disposition == event.Deferred && states[i] == event.LeaseHeld {
			deferred, at = append(deferred, settlements[i].Job), append(at, i)
		}
	}
	events, destinations, leases := keys(deferred)
	var given []int
	if err := s.call(ctx, []any{&given},
		"select spine.given_up($1, $2, $3)",
		events, destinations, leases); err != nil {
		return fmt.Errorf("looking for what was given up: %w", err)
	}
	for _, n := range given {
		states[at[n-1]] = event.LeaseGivenUp
	}
	return nil
}

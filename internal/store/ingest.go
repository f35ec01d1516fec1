package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/webhookspine/spine/internal/event"
)

const ingestSQL = "select spine.ingest_events($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"

// Ingest stores events in one transaction and returns their receipts in the same order. When it returns without an
// error, the events are committed. After an error they may or may not be; ingesting them again is safe.
func (s *Store) Ingest(ctx context.Context, events []event.Event) ([]event.Receipt, error) {
	var outcomes []string
	err := s.acknowledged(ctx, func(on executor) error {
		return on.QueryRow(ctx, ingestSQL, ingestArguments(events)...).Scan(&outcomes)
	})
	if err != nil {
		return nil, fmt.Errorf("ingesting %d events: %w", len(events), err)
	}
	return receiptsOf(events, outcomes)
}

// IngestAndClaim stores events as Ingest does and claims in the same transaction: one round trip and one commit instead
// of two. The stored events are due, and claimed as far as the claim reaches; others see them leased from the
// beginning. After an error all of it may be committed or nothing, and nothing is returned: leases whose answer was
// lost run out.
func (s *Store) IngestAndClaim(
	ctx context.Context,
	events []event.Event,
	c event.Claim,
) ([]event.Receipt, event.Claimed, error) {
	var outcomes []string
	var claimed event.Claimed
	err := s.acknowledged(ctx, func(on executor) error {
		// Without a BEGIN, what is sent in one batch is one transaction.
		var batch pgx.Batch
		batch.Queue(
			ingestSQL,
			ingestArguments(events)...).QueryRow(
			func(row pgx.Row) error { return row.Scan(&outcomes) },
		)
		batch.Queue(claimSQL, claimArguments(c)...).Query(func(rows pgx.Rows) (err error) {
			claimed, err = readClaimed(rows, c.Destination)
			return err
		})
		return on.SendBatch(ctx, &batch).Close() // it says how the commit ended
	})
	if err != nil {
		return nil, event.Claimed{}, fmt.Errorf("ingesting %d events and claiming: %w", len(events), err)
	}
	receipts, err := receiptsOf(events, outcomes)
	if err != nil {
		return nil, event.Claimed{}, err
	}
	return receipts, claimed, nil
}

// acknowledged is plainly for what is acknowledged. It returns without an error only if the commit has waited as long
// as it should. Errors are classified.
func (s *Store) acknowledged(ctx context.Context, do func(on executor) error) error {
	return classify(s.commit(ctx, func() error {
		return s.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
			data := conn.Conn().PgConn().CustomData()
			delete(data, warned)
			if err := s.plainlyOn(ctx, conn.Conn(), do); err != nil {
				return err
			}
			// From here on it is committed, unless the wait for a synchronous standby was cut short.
			if warning, ok := data[warned]; ok {
				return fmt.Errorf("the commit may be lost: %v", warning)
			}
			return nil
		})
	}))
}

// ingestArguments are the parameters of ingestSQL.
func ingestArguments(events []event.Event) []any {
	n := len(events)
	var (
		ids      = make([]string, n)
		types    = make([]string, n)
		times    = make([]time.Time, n)
		payloads = make([][]byte, n)
		sources  = make([]string, n)
		hashes   = make([][]byte, n)
		// NULL as a whole where every payload can be queried and is the exact text.
		raw          [][]byte
		unqueryables []*string
		// NULL as a whole where all came in an envelope.
		headers           []*string
		derived, unsigned []*bool
	)
	yes := true
	for i := range events {
		e := &events[i]
		ids[i], types[i], times[i], sources[i], hashes[i] = e.ID, e.Type, e.OccurredAt, e.Source, e.Hash[:]
		if e.Headers != nil {
			if headers == nil {
				headers, derived, unsigned = make([]*string, n), make([]*bool, n), make([]*bool, n)
			}
			text := string(e.Headers)
			headers[i] = &text
			if e.IDDerived {
				derived[i] = &yes
			}
			if e.IDUnsigned {
				unsigned[i] = &yes
			}
		}
		if e.Unqueryable == "" {
			payloads[i] = e.Payload
		}
		if e.Unqueryable == "" && e.Raw == nil {
			continue
		}
		if raw == nil {
			raw, unqueryables = make([][]byte, n), make([]*string, n)
		}
		if e.Unqueryable == "" {
			raw[i] = e.Raw
		} else {
			raw[i], unqueryables[i] = e.Payload, &e.Unqueryable
		}
	}
	return []any{ids, types, times, payloads, sources, hashes, raw, unqueryables, headers, derived, unsigned}
}

// receiptsOf makes receipts of what ingestSQL returned.
func receiptsOf(events []event.Event, outcomes []string) ([]event.Receipt, error) {
	if len(outcomes) != len(events) {
		return nil, fmt.Errorf("ingesting %d events: got %d outcomes", len(events), len(outcomes))
	}
	receipts := make([]event.Receipt, len(events))
	for i, outcome := range outcomes {
		receipts[i].Outcome = event.Outcome(outcome)
	}
	return receipts, nil
}

// Reject audits summaries of rejected requests. Each step has the time at which the first of them came. again says that
// a call with the same ones ended with an error before. An error that wraps event.ErrInvalidData lies in the data.
func (s *Store) Reject(ctx context.Context, summaries []event.RejectionSummary, again bool) error {
	n := len(summaries)
	var (
		sources  = make([]*string, n)
		causes   = make([]string, n)
		statuses = make([]int32, n)
		counts   = make([]int64, n)
		since    = make([]time.Time, n)
		ages     = make([]time.Duration, n) // the database's clock may be another one
	)
	for i, r := range summaries {
		if r.Source != "" {
			sources[i] = &summaries[i].Source
		}
		causes[i], counts[i], since[i], ages[i] = r.Cause, r.Count, r.Since, time.Since(r.Since)
		statuses[i] = int32(r.Status) //nolint:gosec // an HTTP status is below 1000
	}
	err := s.call(
		ctx,
		nil,
		"select spine.reject($1, $2, $3, $4, $5, $6, $7)",
		sources,
		causes,
		statuses,
		counts,
		since,
		ages,
		again,
	)
	if err != nil {
		return fmt.Errorf("auditing rejections: %w", classify(err))
	}
	return nil
}

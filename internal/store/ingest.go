package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/webhookspine/spine/internal/event"
)

const ingestSQL = `select outcome from spine.ingest(
	$1::text[], $2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::bytea[], $7::bytea[], $8::text[])`

// Ingest stores events in one transaction and returns a receipt for each, in
// their order. When it returns without an error, the events are committed.
// After any error they may or may not be; ingesting them again is safe.
func (s *Store) Ingest(ctx context.Context, events []event.Event) ([]event.Receipt, error) {
	n := len(events)
	var (
		ids          = make([]string, n)
		types        = make([]string, n)
		times        = make([]time.Time, n)
		payloads     = make([]*string, n)
		sources      = make([]string, n)
		hashes       = make([][]byte, n)
		raw          = make([][]byte, n)
		unqueryables = make([]*string, n)
	)
	for i := range events {
		e := &events[i]
		ids[i], types[i], times[i], sources[i], hashes[i] = e.ID, e.Type, e.OccurredAt, e.Source, e.Hash[:]
		if e.Unqueryable == "" {
			payload := string(e.Payload)
			payloads[i] = &payload
		} else {
			raw[i], unqueryables[i] = e.Payload, &e.Unqueryable
		}
	}
	receipts := make([]event.Receipt, 0, n)
	err := s.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		data := conn.Conn().PgConn().CustomData()
		delete(data, warned)
		rows, err := conn.Query(ctx, ingestSQL, ids, types, times, payloads, sources, hashes, raw, unqueryables)
		if err != nil {
			return err
		}
		var outcome string
		if _, err := pgx.ForEachRow(rows, []any{&outcome}, func() error {
			receipts = append(receipts, event.Receipt{Outcome: event.Outcome(outcome)})
			return nil
		}); err != nil {
			return err
		}
		// From here on the events are committed, unless the commit came with a warning.
		if warning, ok := data[warned]; ok {
			return fmt.Errorf("the commit came with a warning: %v", warning)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("ingesting %d events: %w", n, classify(err))
	}
	if len(receipts) != n {
		return nil, fmt.Errorf("ingesting %d events: got %d receipts", n, len(receipts))
	}
	return receipts, nil
}

// Reject audits summaries of refused requests.
func (s *Store) Reject(ctx context.Context, rejections []event.Rejection) error {
	n := len(rejections)
	var (
		sources  = make([]*string, n)
		causes   = make([]string, n)
		statuses = make([]int32, n)
		counts   = make([]int64, n)
		since    = make([]time.Time, n)
	)
	for i, r := range rejections {
		if r.Source != "" {
			sources[i] = &rejections[i].Source
		}
		causes[i], statuses[i], counts[i], since[i] = r.Cause, int32(r.Status), r.Count, r.Since //nolint:gosec // an HTTP status is below 1000
	}
	_, err := s.pool.Exec(ctx, "select spine.reject($1::text[], $2::text[], $3::integer[], $4::bigint[], $5::timestamptz[])",
		sources, causes, statuses, counts, since)
	if err != nil {
		return fmt.Errorf("auditing rejections: %w", err)
	}
	return nil
}

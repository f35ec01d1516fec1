package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/webhookspine/spine/internal/event"
)

// NoteArrivals keeps short what Sample has to read of the newest events. Call it every few seconds. It relies on
// events_pkey.
func (s *Store) NoteArrivals(ctx context.Context) error {
	if _, err := s.pool.Exec(ctx, "select spine.note_arrivals()"); err != nil {
		return fmt.Errorf("noting the sources' last arrivals: %w", err)
	}
	return nil
}

// Sample reads how long the oldest claimable event has been due, and when each source last sent a new event. It reads
// only the ends of indexes.
func (s *Store) Sample(ctx context.Context) (event.Sample, error) {
	sample := event.Sample{LastArrivals: map[string]time.Time{}}
	batch := &pgx.Batch{}
	batch.Queue("select spine.oldest_ready()").
		QueryRow(func(row pgx.Row) error { return row.Scan(&sample.OldestReady) })
	batch.Queue("select name, spine.last_arrival(name) from spine.sources").
		Query(func(rows pgx.Rows) error {
			var name string
			var at *time.Time
			_, err := pgx.ForEachRow(rows, []any{&name, &at}, func() error {
				if at != nil {
					sample.LastArrivals[name] = *at
				}
				return nil
			})
			return err
		})
	if err := s.pool.SendBatch(ctx, batch).Close(); err != nil {
		return event.Sample{}, fmt.Errorf("sampling the queue: %w", err)
	}
	return sample, nil
}

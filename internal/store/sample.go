package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/webhookspine/spine/internal/event"
)

// NoteArrivals keeps short what Sample has to read of the newest events. Call it every few seconds. It relies on
// events_pkey.
func (s *Store) NoteArrivals(ctx context.Context) error {
	if err := s.call(ctx, nil, "select spine.note_arrivals()"); err != nil {
		return fmt.Errorf("noting the sources' last arrivals: %w", err)
	}
	return nil
}

// Sample reads how long the oldest claimable event has been due, the last depth sample, which destinations are paused,
// and when each source last sent a new event. It reads only the ends of indexes and a few small rows.
func (s *Store) Sample(ctx context.Context) (event.Sample, error) {
	sample := event.Sample{
		LastArrivals: map[string]time.Time{}, Paused: map[string]bool{},
		Depth: map[string]int64{
			event.StatusPending: 0, event.StatusProcessing: 0, event.StatusFailed: 0, event.StatusDead: 0,
		},
	}
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
	batch.Queue("select name, paused_at from spine.destinations").
		Query(func(rows pgx.Rows) error {
			var name string
			var at *time.Time
			_, err := pgx.ForEachRow(rows, []any{&name, &at}, func() error {
				sample.Paused[name] = at != nil
				return nil
			})
			return err
		})
	batch.Queue("select rows from spine.depth_state").
		Query(func(rows pgx.Rows) error {
			var text []byte
			_, err := pgx.ForEachRow(rows, []any{&text}, func() error {
				var counted []struct {
					Status string
					Count  int64
				}
				if err := json.Unmarshal(text, &counted); err != nil {
					return fmt.Errorf("reading the depth: %w", err)
				}
				for _, one := range counted {
					sample.Depth[one.Status] += one.Count
				}
				return nil
			})
			return err
		})
	if err := s.send(ctx, batch); err != nil {
		return event.Sample{}, fmt.Errorf("sampling the queue: %w", err)
	}
	return sample, nil
}

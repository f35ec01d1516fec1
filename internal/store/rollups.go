package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// RollUp counts in the rollups what the audit log has got since somebody last
// did, and returns how far they lag behind: 0 when they have all that is
// committed. A call counts a bounded number of rows, and does nothing while
// another process is at it.
func (s *Store) RollUp(ctx context.Context) (lag time.Duration, err error) {
	err = s.unhurried(ctx, func(batch *pgx.Batch) {
		batch.Queue("select spine.roll_up()").QueryRow(func(row pgx.Row) error { return row.Scan(&lag) })
	})
	if err != nil {
		return 0, fmt.Errorf("rolling up the audit log: %w", err)
	}
	return lag, nil
}

// SampleDepth counts what is not done in the queue, for Overview. On a long
// queue it takes its time, and rests longer than that before it counts again.
func (s *Store) SampleDepth(ctx context.Context) error {
	err := s.unhurried(ctx, func(batch *pgx.Batch) { batch.Queue("select spine.sample_depth()") })
	if err != nil {
		return fmt.Errorf("sampling the depth of the queue: %w", err)
	}
	return nil
}

// unhurried runs a batch as a transaction whose commit does not wait for the
// disk: what a crash takes back of it is done again from where it was, since
// numbers and cursor are lost together. The disk's time is left to those who
// have somebody waiting.
func (s *Store) unhurried(ctx context.Context, fill func(*pgx.Batch)) error {
	batch := &pgx.Batch{}
	batch.Queue("select set_config('synchronous_commit', 'off', true)")
	fill(batch)
	return s.pool.SendBatch(ctx, batch).Close()
}

package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// glance is the state of the database when something was last read. Reading opens an index of each partition of the
// log; asking whether a transaction has ended since does not.
type glance struct {
	snapshot string // pg_current_snapshot()
	at       time.Time
}

// glance is to be called before what it stands for.
func (s *Store) glance(ctx context.Context) (g glance, err error) {
	g.at = time.Now()
	return g, s.call(ctx, []any{&g.snapshot}, "select pg_catalog.pg_current_snapshot()")
}

// RollUp counts new steps of the audit log in the rollups, a bounded number in one call. It returns how far the rollups
// lag behind: 0 where they hold all committed steps. While another process counts it counts nothing, and elsewhere is
// true.
func (s *Store) RollUp(ctx context.Context) (lag time.Duration, elsewhere bool, err error) {
	now, err := s.glance(ctx)
	if err != nil {
		return 0, false, fmt.Errorf("looking whether to roll up: %w", err)
	}
	if idle := s.idle.Load(); idle != nil && idle.snapshot == now.snapshot {
		return 0, false, nil
	}
	var wrote bool
	err = s.unhurried(ctx, func(batch *pgx.Batch) {
		batch.Queue(`
			select coalesce(lag, greatest(clock_timestamp() - spine.rolled_up_to(), '0')), lag is null
			from spine.roll_up() lag`).
			QueryRow(func(row pgx.Row) error { return row.Scan(&lag, &elsewhere) })
		batch.Queue("select pg_current_xact_id_if_assigned() is not null").
			QueryRow(func(row pgx.Row) error { return row.Scan(&wrote) })
	})
	if err != nil {
		return 0, false, fmt.Errorf("rolling up the audit log: %w", err)
	}
	// A crash may take back what was written.
	if lag == 0 && !wrote {
		s.idle.Store(&now)
	}
	return lag, elsewhere, nil
}

// resample is after how long the depth is sampled although no transaction has ended: spine.sample_depth() also records
// that nothing changed.
const resample = 10 * time.Second

// depthRest is how many times as long as the last sample took none is taken after it.
const depthRest = 20.0

// SampleDepth counts the unfinished rows of the queue, for Overview. On a long queue that takes seconds; it then rests
// for longer than that before it counts again.
func (s *Store) SampleDepth(ctx context.Context) error {
	now, err := s.glance(ctx)
	if err != nil {
		return fmt.Errorf("looking whether to sample the depth of the queue: %w", err)
	}
	if last := s.sampled.Load(); last != nil && last.snapshot == now.snapshot && now.at.Sub(last.at) < resample {
		return nil
	}
	var rested bool
	err = s.unhurried(ctx, func(batch *pgx.Batch) {
		batch.Queue("select coalesce(clock_timestamp() >= sampled_at + took * $1, true) from spine.depth_state",
			depthRest).QueryRow(func(row pgx.Row) error { return row.Scan(&rested) })
		batch.Queue("select spine.sample_depth($1)", depthRest)
	})
	if err != nil {
		return fmt.Errorf("sampling the depth of the queue: %w", err)
	}
	if rested { // otherwise sample_depth has not counted
		s.sampled.Store(&now)
	}
	return nil
}

// unhurried runs a batch as a transaction whose commit does not wait for the disk. A crash may take it back with its
// cursor, so that the next call does it again. The disk's time is left to callers with somebody waiting.
func (s *Store) unhurried(ctx context.Context, fill func(*pgx.Batch)) error {
	batch := &pgx.Batch{}
	batch.Queue("select set_config('synchronous_commit', 'off', true)")
	fill(batch)
	return s.send(ctx, batch)
}

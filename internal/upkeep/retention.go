package upkeep

import (
	"context"
	"time"
)

const (
	retentionInterval = 5 * time.Minute // between the starts of two rounds

	// A batch takes about 12 ms. A duplicate of an event that is being deleted waits for that. An ingest gives up a
	// locked row after a quarter of a second.
	retentionBatch = 500

	// After each batch retention rests this many times as long as the batch took, and at least for minRest. So it takes
	// a tenth of one connection's time, and leaves the disk time for the commits of others. That allows about 4,000
	// events a second.
	restFactor = 9
	minRest    = 50 * time.Millisecond

	// Time limit of a batch. The first one of a round walks the dead index entries that vacuum has not removed yet.
	// These are many while an old snapshot is open.
	retentionPatience = time.Minute
)

// retain does rounds of retention until ctx ends.
func (u *Upkeep) retain(ctx context.Context) {
	rounds := time.NewTicker(retentionInterval)
	defer rounds.Stop()
	for {
		u.expireAudit(ctx)
		u.expireEvents(ctx)
		select {
		case <-ctx.Done():
			return
		case <-rounds.C:
		}
	}
}

// expireAudit drops the old partitions of the audit log, and deletes the old rows of the default partition.
func (u *Upkeep) expireAudit(ctx context.Context) {
	u.batches(ctx, "dropping an audit partition", func(ctx context.Context) (more bool, err error) {
		name, err := u.store.DropAuditPartition(ctx, u.config.Retention)
		if err != nil || name == "" {
			return false, err
		}
		u.partitionsDropped.Inc()
		u.log.Info().Str("partition", name).Msg("an old audit partition was dropped")
		return true, nil
	})
	deleted := 0
	u.batches(ctx, "deleting old audit rows", func(ctx context.Context) (more bool, err error) {
		n, err := u.store.ExpireAudit(ctx, u.config.Retention, retentionBatch)
		deleted += n
		return n > 0, err
	})
	if deleted > 0 {
		u.log.Info().Int("deleted", deleted).Msg("old rows of the default audit partition were deleted")
	}
}

// expireEvents walks all old events once, and deletes those that are done with.
func (u *Upkeep) expireEvents(ctx context.Context) {
	var after int64
	var lookedAt, deleted int
	u.batches(ctx, "deleting old events", func(ctx context.Context) (more bool, err error) {
		e, err := u.store.ExpireEvents(ctx, u.config.Retention, after, retentionBatch)
		if err != nil {
			return false, err
		}
		after = e.Last
		lookedAt, deleted = lookedAt+e.LookedAt, deleted+e.Deleted
		u.eventsDeleted.Add(float64(e.Deleted))
		return e.More, nil
	})
	if deleted > 0 {
		u.log.Info().Int("deleted", deleted).Int("kept", lookedAt-deleted).Msg("old events were deleted")
	}
}

// batches calls batch until it has no more to do, it fails, or ctx ends, and rests after each call. After a failure the
// next round goes on.
func (u *Upkeep) batches(ctx context.Context, doing string, batch func(ctx context.Context) (more bool, err error)) {
	for ctx.Err() == nil {
		began := time.Now()
		more, err := withTimeLimit(ctx, retentionPatience, batch)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			u.failures.Inc()
			u.log.Warn().Err(err).Msg(doing + " failed, trying again in the next round")
			return
		case !more:
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(max(minRest, restFactor*time.Since(began))):
		}
	}
}

func withTimeLimit(
	ctx context.Context,
	limit time.Duration,
	batch func(ctx context.Context) (more bool, err error),
) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return batch(ctx)
}

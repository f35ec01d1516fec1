package upkeep

import (
	"context"
	"time"
)

const (
	mergeInterval = time.Hour // between the starts of two rounds

	// Days of the audit log that are younger stay days.
	mergeAge = 35 * 24 * time.Hour

	// A shorter retention keeps few days, and drops each in its time. Of a month it would keep the first day for as
	// long as the last.
	mergeRetention = 400 * 24 * time.Hour

	// Time limit of one merge. A gigabyte takes about half a minute, and more on a slow disk.
	mergePatience = 15 * time.Minute
)

// mergeMonths merges old days of the audit log into months, in rounds until ctx ends. Between two merges it rests as
// retention does.
func (u *Upkeep) mergeMonths(ctx context.Context) {
	rounds := time.NewTicker(mergeInterval)
	defer rounds.Stop()
	for {
		u.batches(
			ctx,
			mergePatience,
			"merging days of the audit log",
			func(ctx context.Context) (more bool, err error) {
				name, err := u.store.MergeAuditDays(ctx, mergeAge)
				if err != nil || name == "" {
					return false, err
				}
				u.log.Info().Str("partition", name).Msg("old days of the audit log were merged")
				return true, nil
			},
		)
		select {
		case <-ctx.Done():
			return
		case <-rounds.C:
		}
	}
}

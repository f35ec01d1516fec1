package upkeep

import (
	"context"
	"time"
)

const (
	mergeInterval = time.Hour // between two rounds

	// Days of the audit log that are younger stay days.
	mergeAge = 35 * 24 * time.Hour

	// A shorter retention keeps few days, and drops each in its time. Of a month it would keep the first day for as
	// long as the last.
	mergeRetention = 400 * 24 * time.Hour

	// A copy is put in place a minute after it was made, and a second for clocks.
	mergeRest = time.Minute + time.Second

	// Time limit of one merge. Four gigabytes take some two minutes to copy and as long to compare, and more on a slow
	// disk.
	mergePatience = 30 * time.Minute
)

// mergeMonths merges old days of the audit log into months until ctx ends. It rests as retention does, and for a minute
// at least.
func (u *Upkeep) mergeMonths(ctx context.Context) {
	repeat(ctx, func(ctx context.Context) (rest time.Duration) {
		ctx, cancel := context.WithTimeout(ctx, mergePatience)
		defer cancel()
		began := time.Now()
		merged, waits, err := u.store.MergeAuditDays(ctx, mergeAge)
		if merged != "" {
			u.log.Info().Str("partition", merged).Msg("old days of the audit log were merged")
		}
		switch {
		case err != nil:
			u.failures.Inc()
			u.log.Warn().Err(err).Msg("merging days of the audit log failed, trying again in an hour")
			return mergeInterval
		case waits == "":
			return mergeInterval
		}
		return max(mergeRest, restFactor*time.Since(began))
	})
}

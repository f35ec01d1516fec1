package store

import (
	"context"
	"fmt"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// ExpireEvents deletes one batch of finished events whose last change is longer than age ago, by the database's clock.
// It reads up to limit events after the one with events.id after, and passes over locked ones. After a lost answer it
// is called again: what it deleted is gone.
func (s *Store) ExpireEvents(ctx context.Context, age time.Duration, after int64, limit int) (event.Expired, error) {
	var e event.Expired
	var last *int64
	err := s.one(
		ctx,
		"select looked_at, deleted, last from spine.expire_events(clock_timestamp() - $1::interval, $2, $3)",
		[]any{age, after, limit},
		&e.LookedAt,
		&e.Deleted,
		&last,
	)
	if err != nil {
		return event.Expired{}, fmt.Errorf("deleting old events: %w", classify(err))
	}
	if last != nil {
		e.Last, e.More = *last, true
	}
	return e, nil
}

// DropAuditPartition drops the oldest partition of the audit log, if all of it is older than age. It returns the
// partition's name, or an empty text where there is none. Ingests wait behind it for 100 ms at most. The error is
// event.ErrLocked where somebody reads the log.
func (s *Store) DropAuditPartition(ctx context.Context, age time.Duration) (name string, err error) {
	const drop = "select coalesce(spine.drop_audit_partition(clock_timestamp() - $1::interval), '')"
	err = s.one(ctx, drop, []any{age}, &name)
	if err != nil {
		return "", fmt.Errorf("dropping an audit partition: %w", classify(err))
	}
	return name, nil
}

// MergeAuditDays merges old days of the audit log, in two steps that are a minute apart. It puts a copy of days in
// their place. Then it copies the next days, four gigabytes at most. They are of one month, which ended before age. The
// partition merged is in place now. A later call puts the copy waits in place. Either may be empty. The error is
// event.ErrLocked where somebody reads the log all the time.
func (s *Store) MergeAuditDays(ctx context.Context, age time.Duration) (merged, waits string, err error) {
	const merge = "select coalesce(spine.merge_audit_days(), '')"
	err = s.one(ctx, merge, nil, &merged)
	if err == nil {
		const next = "select coalesce(spine.copy_audit_days(clock_timestamp() - $1::interval), '')"
		err = s.one(ctx, next, []any{age}, &waits)
	}
	if err == nil && waits != "" {
		var none string
		err = s.one(ctx, merge, nil, &none) // the minute begins
	}
	if err != nil {
		return merged, "", fmt.Errorf("merging days of the audit log: %w", classify(err))
	}
	return merged, waits, nil
}

// ExpireAudit deletes up to limit rows older than age that stand in no daily partition of the audit log, and returns
// how many.
func (s *Store) ExpireAudit(ctx context.Context, age time.Duration, limit int) (deleted int, err error) {
	const expire = "select spine.expire_audit(clock_timestamp() - $1::interval, $2)"
	err = s.one(ctx, expire, []any{age, limit}, &deleted)
	if err != nil {
		return 0, fmt.Errorf("deleting old audit rows: %w", classify(err))
	}
	return deleted, nil
}

// ExpireRejected deletes rejected requests that are older than the budgets of their sources allow.
func (s *Store) ExpireRejected(ctx context.Context) error {
	if err := s.call(ctx, nil, "select spine.expire_rejected()"); err != nil {
		return fmt.Errorf("deleting old rejected requests: %w", classify(err))
	}
	return nil
}

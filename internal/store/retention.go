package store

import (
	"context"
	"fmt"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// ExpireEvents deletes one batch of events that are done with and were last
// changed longer than age ago, by the database's clock: it looks at up to limit
// events after the one whose events.id is after. What somebody else has locked
// is passed over. After a lost answer the batch is walked again, and what it
// deleted is not there any more.
func (s *Store) ExpireEvents(ctx context.Context, age time.Duration, after int64, limit int) (event.Expired, error) {
	var e event.Expired
	var last *int64
	err := s.pool.QueryRow(ctx, "select looked_at, deleted, last from spine.expire_events(clock_timestamp() - $1::interval, $2, $3)", age, after, limit).
		Scan(&e.LookedAt, &e.Deleted, &last)
	if err != nil {
		return event.Expired{}, fmt.Errorf("deleting old events: %w", classify(err))
	}
	if last != nil {
		e.Last, e.More = *last, true
	}
	return e, nil
}

// DropAuditPartition drops the oldest daily partition of the audit log, if all
// of it is older than age, and returns its name: empty where there is none.
// Ingests wait behind it for 100 ms at most; the error is then an
// event.ErrLocked, since somebody reads the log.
func (s *Store) DropAuditPartition(ctx context.Context, age time.Duration) (name string, err error) {
	err = s.pool.QueryRow(ctx, "select coalesce(spine.drop_audit_partition(clock_timestamp() - $1::interval), '')", age).Scan(&name)
	if err != nil {
		return "", fmt.Errorf("dropping an audit partition: %w", classify(err))
	}
	return name, nil
}

// ExpireAudit deletes up to limit rows older than age that no daily partition
// of the audit log had taken, and returns how many it deleted.
func (s *Store) ExpireAudit(ctx context.Context, age time.Duration, limit int) (deleted int, err error) {
	err = s.pool.QueryRow(ctx, "select spine.expire_audit(clock_timestamp() - $1::interval, $2)", age, limit).Scan(&deleted)
	if err != nil {
		return 0, fmt.Errorf("deleting old audit rows: %w", classify(err))
	}
	return deleted, nil
}

// ExpireRejected deletes rejected requests that are older than their sources
// have them kept.
func (s *Store) ExpireRejected(ctx context.Context) error {
	if _, err := s.pool.Exec(ctx, "select spine.expire_rejected()"); err != nil {
		return fmt.Errorf("deleting old rejected requests: %w", classify(err))
	}
	return nil
}

package upkeep

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

const month = 30 * 24 * time.Hour

// retentionStore is the part of a fakeStore that has old events, with the ids
// 1 to events, and audit rows. Each batch takes a while.
type retentionStore struct {
	events  int64
	kept    int64 // of the events, the first that are not done with
	oldDays []string
	audit   int
	takes   time.Duration

	oldMonths []string // days of these can be merged
	copied    string   // of one of them, not in place yet

	mu    sync.Mutex // guards both below
	calls []call
	ages  map[time.Duration]bool
	down  func(name string) error // may be nil
}

type call struct {
	name  string
	at    time.Time
	after int64
}

func (s *retentionStore) called(ctx context.Context, c call, age time.Duration) error {
	c.at = time.Now()
	s.mu.Lock()
	s.calls = append(s.calls, c)
	if s.ages == nil {
		s.ages = make(map[time.Duration]bool)
	}
	s.ages[age] = true
	s.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(s.takes):
	}
	if s.down != nil {
		return s.down(c.name)
	}
	return nil
}

func (s *retentionStore) ExpireEvents(
	ctx context.Context,
	age time.Duration,
	after int64,
	limit int,
) (event.Expired, error) {
	if err := s.called(ctx, call{name: "events", after: after}, age); err != nil {
		return event.Expired{}, err
	}
	last := min(after+int64(limit), s.events)
	return event.Expired{
		LookedAt: int(last - after), Deleted: int(last - max(after, min(s.kept, last))),
		Last: last, More: last == after+int64(limit),
	}, nil
}

func (s *retentionStore) DropAuditPartition(ctx context.Context, age time.Duration) (name string, err error) {
	if err := s.called(ctx, call{name: "partition"}, age); err != nil || len(s.oldDays) == 0 {
		return "", err
	}
	name, s.oldDays = s.oldDays[0], s.oldDays[1:]
	return name, nil
}

func (s *retentionStore) MergeAuditDays(
	ctx context.Context, age time.Duration,
) (merged, copied string, err error) {
	if err := s.called(ctx, call{name: "merge"}, age); err != nil {
		return "", "", err
	}
	merged, s.copied = s.copied, ""
	if len(s.oldMonths) > 0 {
		s.copied, s.oldMonths = s.oldMonths[0], s.oldMonths[1:]
	}
	return merged, s.copied, nil
}

func (s *retentionStore) ExpireAudit(ctx context.Context, age time.Duration, limit int) (deleted int, err error) {
	if err := s.called(ctx, call{name: "audit"}, age); err != nil {
		return 0, err
	}
	deleted = min(s.audit, limit)
	s.audit -= deleted
	return deleted, nil
}

// names are the methods called from one time to another after the beginning.
func (s *fakeStore) names(from, to time.Duration) (names []string) {
	for _, c := range s.calls {
		if at := c.at.Sub(s.began); at >= from && at < to {
			names = append(names, c.name)
		}
	}
	return names
}

func TestNothingGoesByDefault(t *testing.T) {
	s := &fakeStore{retentionStore: retentionStore{events: 10}}
	run(t, Config{}, s, 59*time.Minute)
	require.Equal(t, []string{"merge"}, s.names(0, time.Hour))
}

func TestOldDaysAreMerged(t *testing.T) {
	months := []string{"audit_trail_20240101_20240131", "audit_trail_20240201_20240229"}
	for _, retention := range []time.Duration{0, 500 * 24 * time.Hour} {
		s := &fakeStore{retentionStore: retentionStore{oldMonths: months, takes: time.Second}}
		_, log := run(t, Config{Retention: retention}, s, 65*time.Minute)
		merges := func(from, to time.Duration) (n int) {
			for _, name := range s.names(from, to) {
				if name == "merge" {
					n++
				}
			}
			return n
		}
		require.Equal(t, 1, merges(0, time.Minute))
		require.Equal(t, 2, merges(time.Minute, 30*time.Minute), "a minute after each copy, until there are no more")
		require.Equal(t, 1, merges(30*time.Minute, 2*time.Hour), "and again in an hour")
		require.True(t, s.ages[35*24*time.Hour])
		require.Contains(t, log.String(), `"partition":"audit_trail_20240201_20240229"`)
	}

	s := &fakeStore{retentionStore: retentionStore{oldMonths: months}}
	run(t, Config{Retention: 400 * 24 * time.Hour}, s, 61*time.Minute)
	require.NotContains(t, s.names(0, 2*time.Hour), "merge", "retention drops each day in its time")
}

func TestAMergeThatFailsIsTriedAgain(t *testing.T) {
	s := &fakeStore{retentionStore: retentionStore{down: func(string) error { return errAway }}}
	u, log := run(t, Config{}, s, 61*time.Minute)
	require.Equal(t, []string{"merge", "merge"}, s.names(0, 2*time.Hour))
	require.InDelta(t, 2, testutil.ToFloat64(u.failures), 0)
	require.Contains(t, log.String(), "merging days of the audit log failed")
}

func TestRoundOfRetention(t *testing.T) {
	s := &fakeStore{
		retentionStore: retentionStore{
			events:  1200,
			kept:    3,
			oldDays: []string{"audit_trail_20240101", "audit_trail_20240102"},
			audit:   501,
		},
	}
	u, log := run(t, Config{Retention: month}, s, 4*time.Minute)
	require.Equal(
		t,
		[]string{"partition", "partition", "partition", "audit", "audit", "audit", "events", "events", "events"},
		s.names(0, time.Hour),
	)
	require.Equal(t, map[time.Duration]bool{month: true}, s.ages)
	for i, after := range []int64{0, 500, 1000} {
		require.Equal(t, after, s.calls[6+i].after, "a walk goes on where it was")
	}
	require.InDelta(t, 1197, testutil.ToFloat64(u.eventsDeleted), 0)
	require.InDelta(t, 2, testutil.ToFloat64(u.partitionsDropped), 0)
	require.Zero(t, testutil.ToFloat64(u.failures))
	require.Contains(t, log.String(), `"partition":"audit_trail_20240102"`)
	require.Contains(t, log.String(), `"deleted":501`)
	require.Contains(t, log.String(), `"deleted":1197,"kept":3`)
}

func TestRetentionGoesRoundAndRound(t *testing.T) {
	s := &fakeStore{}
	_, log := run(t, Config{Retention: month}, s, 10*time.Minute+time.Second)
	round := []string{"partition", "audit", "events"}
	require.Equal(t, round, s.names(0, time.Second))
	require.Equal(t, round, s.names(5*time.Minute, 5*time.Minute+time.Second))
	require.Equal(t, round, s.names(10*time.Minute, time.Hour))
	require.Len(t, s.calls, 9)
	require.Zero(t, s.calls[8].after, "each round begins at the oldest")
	require.NotContains(t, log.String(), "deleted", "nothing to say")
}

func TestRetentionTakesASmallShare(t *testing.T) {
	s := &fakeStore{retentionStore: retentionStore{events: 1 << 40, takes: 20 * time.Millisecond}}
	run(t, Config{Retention: month}, s, 20*time.Minute)
	require.InDelta(t, 20*60*5, len(s.calls), 10, "a tenth of the time, and on beyond the next round")
	require.InDelta(t, 20*12, len(s.samples), 1, "the others go on meanwhile")

	s = &fakeStore{retentionStore: retentionStore{events: 1 << 40}}
	run(t, Config{Retention: month}, s, time.Minute)
	require.InDelta(t, 60*20, len(s.calls), 10, "not more than 20 batches a second, however quick they are")
}

func TestRetentionThatFailsIsTriedAgain(t *testing.T) {
	for _, name := range []string{"partition", "audit", "events"} {
		t.Run(name, func(t *testing.T) {
			first := true
			s := &fakeStore{retentionStore: retentionStore{
				events: 10, oldDays: []string{"audit_trail_20240101"}, audit: 10,
				down: func(called string) error {
					if called == name && first {
						first = false
						return errAway
					}
					return nil
				},
			}}
			u, log := run(t, Config{Retention: month}, s, 6*time.Minute)
			require.InDelta(t, 1, testutil.ToFloat64(u.failures), 0)
			require.Contains(t, log.String(), errAway.Error())
			require.Contains(t, s.names(0, time.Minute), "events", "one that fails holds up no other")
			require.Empty(t, s.oldDays)
			require.Zero(t, s.audit)
			require.GreaterOrEqual(t, testutil.ToFloat64(u.eventsDeleted), 10.0) // this store's events never end
			require.InDelta(t, 1, testutil.ToFloat64(u.partitionsDropped), 0)
		})
	}
}

func TestRetentionThatHangsIsGivenUp(t *testing.T) {
	s := &fakeStore{retentionStore: retentionStore{takes: time.Hour}}
	u, _ := run(t, Config{Retention: month}, s, 4*time.Minute)
	require.Equal(t, []string{"partition", "audit", "events"}, s.names(0, time.Hour))
	require.InDelta(t, 3, testutil.ToFloat64(u.failures), 0)
	run(t, Config{Retention: month}, s, 90*time.Second) // ends in the middle of a batch, as run checks
}

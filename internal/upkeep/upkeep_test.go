package upkeep

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/webhookspine/spine/internal/event"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errAway = errors.New("the database is away")

// fakeStore is a Store that notes when it is called.
type fakeStore struct {
	began      time.Time
	partitions []time.Duration
	notes      []time.Duration
	samples    []time.Duration
	made       int
	sample     event.Sample
	fail       func(ctx context.Context) error // may be nil
	retentionStore
}

func (s *fakeStore) answer(ctx context.Context) error {
	if s.fail != nil {
		return s.fail(ctx)
	}
	return nil
}

func (s *fakeStore) EnsurePartitions(ctx context.Context) (int, error) {
	s.partitions = append(s.partitions, time.Since(s.began))
	return s.made, s.answer(ctx)
}

func (s *fakeStore) NoteArrivals(ctx context.Context) error {
	s.notes = append(s.notes, time.Since(s.began))
	return s.answer(ctx)
}

func (s *fakeStore) Sample(ctx context.Context) (event.Sample, error) {
	s.samples = append(s.samples, time.Since(s.began))
	return s.sample, s.answer(ctx)
}

// run does upkeep for a while, in a bubble, and returns it with what it logged.
func run(t *testing.T, c Config, s *fakeStore, d time.Duration) (u *Upkeep, log *bytes.Buffer) {
	t.Helper()
	log = &bytes.Buffer{}
	synctest.Test(t, func(t *testing.T) {
		s.began = time.Now()
		u = New(c, s, zerolog.New(log), prometheus.NewRegistry())
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		require.NoError(t, u.Run(ctx))
		require.Equal(t, d, time.Since(s.began), "it ends when it is told to")
	})
	return u, log
}

func TestRounds(t *testing.T) {
	s := &fakeStore{made: 8}
	u, log := run(t, Config{}, s, 2*time.Hour+time.Second)
	require.Equal(t, []time.Duration{0, time.Hour, 2 * time.Hour}, s.partitions)
	require.Len(t, s.samples, 2*60*12+1)
	for i, at := range s.samples {
		require.Equal(t, time.Duration(i)*5*time.Second, at)
	}
	require.Equal(t, s.samples, s.notes)
	require.Zero(t, testutil.ToFloat64(u.failures))
	require.Equal(t, 3, bytes.Count(log.Bytes(), []byte(`"made":8`)))
}

func TestGaugesShowTheSample(t *testing.T) {
	s := &fakeStore{sample: event.Sample{
		OldestReady: 1500 * time.Millisecond,
		LastArrivals: map[string]time.Time{
			"default": time.UnixMilli(1_700_000_000_250), "stripe": time.UnixMilli(1_700_000_001_000),
		},
	}}
	u, log := run(t, Config{}, s, time.Second)
	require.InDelta(t, 1.5, testutil.ToFloat64(u.oldestReady), 0)
	require.Equal(t, 2, testutil.CollectAndCount(u.lastArrival))
	require.InDelta(t, 1_700_000_000.25, testutil.ToFloat64(u.lastArrival.WithLabelValues("default")), 0)
	require.InDelta(t, 1_700_000_001, testutil.ToFloat64(u.lastArrival.WithLabelValues("stripe")), 0)
	require.Empty(t, log.String(), "nothing made, nothing to say")
}

func TestFailuresAreCountedAndTriedAgain(t *testing.T) {
	s := &fakeStore{fail: func(context.Context) error { return errAway }, sample: event.Sample{OldestReady: time.Hour}}
	u, log := run(t, Config{}, s, time.Hour+time.Second)
	require.Len(t, s.partitions, 2)
	require.Len(t, s.samples, 60*12+1)
	require.InDelta(t, len(s.partitions)+len(s.notes)+len(s.samples), testutil.ToFloat64(u.failures), 0)
	require.Zero(t, testutil.ToFloat64(u.oldestReady), "a sample that failed is not shown")
	require.Contains(t, log.String(), errAway.Error())
}

func TestStoreThatHangsIsGivenUp(t *testing.T) {
	s := &fakeStore{fail: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
	u, _ := run(t, Config{}, s, time.Hour)
	require.Greater(t, len(s.samples), 3)
	require.GreaterOrEqual(t, testutil.ToFloat64(u.failures), 4.0)
	require.Equal(t, 2*patience, s.samples[0], "partitions and arrivals come first")
}

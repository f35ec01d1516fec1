package upkeep

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
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
	queues     []event.NotifyQueue             // what NotifyQueue tells, one after the other
	fail       func(ctx context.Context) error // may be nil
	retentionStore

	counting        sync.Mutex // what goes on beside the rounds
	rollUps         []time.Duration
	depths          []time.Duration
	rollUp          func() (lag, takes time.Duration, err error) // may be nil
	elsewhere       bool                                         // another process rolls up
	unhurried, most int                                          // calls that go on at once
	depth           func() (takes time.Duration, err error)      // may be nil
}

// count notes an unhurried call until it is over.
func (s *fakeStore) count(calls *[]time.Duration) (over func()) {
	s.counting.Lock()
	defer s.counting.Unlock()
	*calls = append(*calls, time.Since(s.began))
	s.unhurried++
	s.most = max(s.most, s.unhurried)
	return func() {
		s.counting.Lock()
		defer s.counting.Unlock()
		s.unhurried--
	}
}

func (s *fakeStore) RollUp(ctx context.Context) (lag time.Duration, elsewhere bool, err error) {
	defer s.count(&s.rollUps)()
	if s.rollUp == nil {
		return 0, s.elsewhere, nil
	}
	lag, takes, err := s.rollUp()
	return lag, s.elsewhere, errors.Join(err, wait(ctx, takes))
}

func (s *fakeStore) ExpireRejected(context.Context) error { return nil }

func (s *fakeStore) SampleDepth(ctx context.Context) error {
	defer s.count(&s.depths)()
	if s.depth == nil {
		return nil
	}
	takes, err := s.depth()
	return errors.Join(err, wait(ctx, takes))
}

// wait lets time pass, and not at all where there is none to pass.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		// A timer that is due at once now and then crashes Go 1.26 in a bubble under -race.
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
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

func (s *fakeStore) NotifyQueue(ctx context.Context) (event.NotifyQueue, error) {
	var queue event.NotifyQueue
	if len(s.queues) > 0 {
		queue, s.queues = s.queues[0], s.queues[1:]
	}
	return queue, s.answer(ctx)
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
		u = New(c, s, zerolog.New(zerolog.SyncWriter(log)), prometheus.NewRegistry())
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
		Paused: map[string]bool{"default": true, "billing": false},
		Depth:  map[string]int64{"pending": 3, "dead": 0},
	}}
	u, log := run(t, Config{}, s, time.Second)
	require.InDelta(t, 1.5, testutil.ToFloat64(u.oldestReady), 0)
	require.Equal(t, 2, testutil.CollectAndCount(u.lastArrival.vec))
	require.InDelta(t, 1_700_000_000.25, testutil.ToFloat64(u.lastArrival.vec.WithLabelValues("default")), 0)
	require.InDelta(t, 1_700_000_001, testutil.ToFloat64(u.lastArrival.vec.WithLabelValues("stripe")), 0)
	require.InDelta(t, 1, testutil.ToFloat64(u.paused.vec.WithLabelValues("default")), 0) // F11
	require.InDelta(t, 0, testutil.ToFloat64(u.paused.vec.WithLabelValues("billing")), 0)
	require.InDelta(t, 3, testutil.ToFloat64(u.depth.vec.WithLabelValues("pending")), 0)
	require.Equal(t, 2, testutil.CollectAndCount(u.depth.vec), "0 is shown too")
	require.Empty(t, log.String(), "nothing made, nothing to say")
}

// F14: what is gone from the database leaves the metrics.
func TestGaugesForgetWhatIsGone(t *testing.T) {
	g := newGauges("spine_test", "Test.", "source")
	g.set(map[string]float64{"default": 1, "github": 2})
	g.set(map[string]float64{"default": 3})
	require.Equal(t, 1, testutil.CollectAndCount(g.vec))
	require.InDelta(t, 3, testutil.ToFloat64(g.vec.WithLabelValues("default")), 0)
}

func TestFailuresAreCountedAndTriedAgain(t *testing.T) {
	s := &fakeStore{fail: func(context.Context) error { return errAway }, sample: event.Sample{OldestReady: time.Hour}}
	u, log := run(t, Config{}, s, time.Hour+time.Second)
	require.Len(t, s.partitions, 2)
	require.Len(t, s.samples, 60*12+1)
	require.InDelta(t, len(s.partitions)+len(s.notes)+2*len(s.samples), testutil.ToFloat64(u.failures), 0)
	require.Zero(t, testutil.ToFloat64(u.oldestReady), "a sample that failed is not shown")
	require.Contains(t, log.String(), errAway.Error())
}

func TestStoreThatHangsIsGivenUp(t *testing.T) {
	s := &fakeStore{fail: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
	u, _ := run(t, Config{}, s, time.Hour)
	require.Greater(t, len(s.samples), 3)
	require.GreaterOrEqual(t, testutil.ToFloat64(u.failures), 4.0)
	require.Equal(t, 3*patience, s.samples[0], "partitions, notifications and arrivals come first")
}

func TestNumbersAreKeptUpToDate(t *testing.T) {
	s := &fakeStore{}
	u, _ := run(t, Config{}, s, time.Minute+time.Millisecond)
	require.Len(t, s.rollUps, 61)
	require.Len(t, s.depths, 61)
	for i := range s.rollUps {
		require.Equal(t, time.Duration(i)*time.Second, s.rollUps[i])
		require.Equal(t, time.Duration(i)*time.Second, s.depths[i])
	}
	require.Zero(t, testutil.ToFloat64(u.rollupLag))
	require.Zero(t, testutil.ToFloat64(u.failures))
}

func TestBacklogIsWorkedOffInHalfOfTheTime(t *testing.T) {
	s := &fakeStore{
		rollUp: func() (time.Duration, time.Duration, error) { return time.Hour, 100 * time.Millisecond, nil },
	}
	u, _ := run(t, Config{}, s, time.Minute-time.Millisecond)
	require.InDelta(t, 60*5, len(s.rollUps), 1)
	require.InDelta(t, 3600, testutil.ToFloat64(u.rollupLag), 0)
	require.Greater(t, len(s.depths), 10, "the others go on meanwhile")
	require.Equal(t, 1, s.most, "and take a connection in turns")

	s = &fakeStore{rollUp: func() (time.Duration, time.Duration, error) { return time.Hour, 0, nil }}
	run(t, Config{}, s, time.Minute-time.Millisecond)
	require.Len(t, s.rollUps, 60*20, "not more than 20 turns a second, however quick they are")

	s = &fakeStore{elsewhere: true, rollUp: func() (time.Duration, time.Duration, error) { return time.Hour, 0, nil }}
	u, _ = run(t, Config{}, s, time.Minute-time.Millisecond)
	require.Len(t, s.rollUps, 60, "another works it off")
	require.InDelta(t, 3600, testutil.ToFloat64(u.rollupLag), 0)
}

func TestLongSampleIsTakenSeldom(t *testing.T) {
	s := &fakeStore{depth: func() (time.Duration, error) { return time.Second, nil }}
	run(t, Config{}, s, time.Minute-time.Millisecond)
	require.Equal(t, []time.Duration{0, 21 * time.Second, 42 * time.Second}, s.depths, "a twentieth of the time")
	require.InDelta(t, 58.5, len(s.rollUps), 1.5, "late by no more than the samples took")
	require.Equal(t, 1, s.most, "it and the roll-ups take a connection in turns")
}

func TestCountingThatFailsIsTriedAgain(t *testing.T) {
	s := &fakeStore{
		rollUp: func() (time.Duration, time.Duration, error) { return 0, 0, errAway },
		depth:  func() (time.Duration, error) { return 0, errAway },
	}
	u, log := run(t, Config{}, s, time.Minute-time.Millisecond)
	require.Len(t, s.rollUps, 60)
	require.Len(t, s.depths, 60)
	require.InDelta(t, 120, testutil.ToFloat64(u.failures), 0)
	require.Contains(t, log.String(), errAway.Error())
	require.InDelta(t, 59, testutil.ToFloat64(u.rollupLag), 0, "nobody knows, so it rises")
	require.Equal(t, 4, bytes.Count(log.Bytes(), []byte(`"level":"warn"`)), "the third and the sixtieth of each")

	s = &fakeStore{
		rollUp: func() (time.Duration, time.Duration, error) { return 0, time.Hour, nil },
		depth:  func() (time.Duration, error) { return time.Hour, nil },
	}
	run(t, Config{}, s, 45*time.Minute)
	require.InDelta(
		t,
		4.5,
		len(s.rollUps),
		0.5,
		"what hangs is given up after five minutes: a transaction may be large, and left alone for as long",
	)
	require.InDelta(t, 2.5, len(s.depths), 0.5, "and this one after a minute")
	require.Equal(t, 1, s.most)
}

func TestLagGoesOnFromWhereItWas(t *testing.T) {
	calls := 0
	s := &fakeStore{rollUp: func() (time.Duration, time.Duration, error) {
		if calls++; calls > 10 {
			return 0, 0, errAway
		}
		return time.Second, 0, nil
	}}
	u, _ := run(t, Config{}, s, time.Minute-time.Millisecond)
	require.InDelta(t, 1+59-9, testutil.ToFloat64(u.rollupLag), 0)
}

// E14: a queue of notifications that fills up is told once, with who holds it back, and so is its end.
func TestAFullNotifyQueueIsToldOnce(t *testing.T) {
	full := event.NotifyQueue{Usage: 0.78, Hintless: true, Holders: "pid 7 of role mallory in database x"}
	_, log := run(
		t,
		Config{},
		&fakeStore{queues: []event.NotifyQueue{{Usage: 0.4}, full, full, {Usage: 0.1}}},
		18*time.Second,
	)
	require.Equal(t, 1, strings.Count(log.String(), "mallory"))
	require.Contains(
		t,
		log.String(),
		`"message":"Postgres's queue of notifications is 78 % full: Spine sends none, and polls"`,
	)
	require.Equal(t, 1, strings.Count(log.String(), "sends notifications again"))
}

// E15, E24: what lasts is told once, and again once it is over.
func TestLastingTroublesAreToldOnce(t *testing.T) {
	looks := 0
	troubles := func(context.Context) ([]event.Trouble, error) {
		if looks++; looks < 2 || looks > 4 {
			return nil, nil
		}
		return []event.Trouble{{Topic: "rights", Says: "no rights"}, {Topic: "clock", Says: "it was set back"}}, nil
	}
	u, log := run(t, Config{Troubles: troubles}, &fakeStore{}, 12*time.Second)
	require.Len(t, u.Troubles(), 2)
	require.Equal(t, 1, strings.Count(log.String(), `"message":"it was set back"`))
	require.NotContains(t, log.String(), "no rights", "readiness tells it")

	looks = 0
	u, log = run(t, Config{Troubles: troubles}, &fakeStore{}, 22*time.Second)
	require.Empty(t, u.Troubles())
	require.Equal(t, 1, strings.Count(log.String(), `"message":"it was set back"`))
	require.Equal(t, 1, strings.Count(log.String(), "past the time from which it was set back"))

	failing := &fakeStore{fail: func(context.Context) error { return errAway }}
	_, log = run(t, Config{}, failing, 3*time.Hour+time.Second)
	require.Equal(t, 1, strings.Count(log.String(),
		`{"level":"warn","error":"the database is away","message":"making audit partitions failed`))
}

package ingest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/webhookspine/spine/internal/event"
)

// one is the configuration of most tests: one flusher, so that what happens is
// one thing after another.
func one() CommitterConfig {
	config := DefaultCommitterConfig()
	config.Flushers = 1
	return config
}

// committing is a committer at work, in the bubble of a test.
type committing struct {
	*Committer
	cancel context.CancelFunc
	ended  chan struct{}
}

func commit(t *testing.T, config CommitterConfig, store Store) *committing {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &committing{NewCommitter(store, config, zerolog.Nop(), metrics()), cancel, make(chan struct{})}
	go func() {
		defer close(c.ended)
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(c.stop)
	return c
}

func (c *committing) stop() {
	c.cancel()
	<-c.ended
}

// answered is what a sender was told, and when.
type answered struct {
	outcome event.Outcome
	err     error
	after   time.Duration
}

// submit hands events in from a sender each, in order, and returns a function
// that waits for all the answers.
func (c *committing) submit(ctx context.Context, events ...event.Event) (wait func() []answered) {
	answers := make([]answered, len(events))
	var senders sync.WaitGroup
	for i, e := range events {
		senders.Go(func() {
			began := time.Now()
			receipts, err := c.Submit(ctx, e)
			answers[i] = answered{err: err, after: time.Since(began)}
			if err == nil {
				answers[i].outcome = receipts[0].Outcome
			}
		})
		synctest.Wait()
	}
	return func() []answered {
		senders.Wait()
		return answers
	}
}

func some(from, n int) []event.Event {
	events := make([]event.Event, n)
	for i := range events {
		events[i] = event.Event{Source: event.DefaultSource, ID: strconv.Itoa(from + i), Payload: []byte("{}")}
	}
	return events
}

// slow is a transaction that takes a second.
func slow(context.Context, []event.Event) error {
	<-time.After(time.Second)
	return nil
}

var accepted = answered{outcome: event.Accepted}

func TestIdleEventGoesAloneAndAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &modelStore{}
		c := commit(t, DefaultCommitterConfig(), store)
		for i := range 3 {
			require.Equal(t, []answered{accepted}, c.submit(t.Context(), some(i, 1)...)())
		}
		require.Equal(t, []int{1, 1, 1}, store.sizes())
		require.InDelta(
			t, 3, testutil.ToFloat64(c.metrics.outcomes.WithLabelValues(event.DefaultSource, "accepted")), 0,
		)
	})
}

func TestWhatWaitsBecomesOneBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &modelStore{before: slow}
		c := commit(t, one(), store)
		answers := c.submit(t.Context(), some(0, 100)...)()
		require.Equal(t, []int{1, 99}, store.sizes())
		require.Equal(t, answered{event.Accepted, nil, time.Second}, answers[0])
		for _, a := range answers[1:] {
			require.Equal(t, answered{event.Accepted, nil, 2 * time.Second}, a)
		}
		for i, e := range store.batches[1] {
			require.Equal(t, strconv.Itoa(i+1), e.ID, "in the order in which they came")
		}
	})
}

func TestFlushersWorkSideBySideWhenThereIsEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &modelStore{before: slow}
		config := DefaultCommitterConfig()
		c := commit(t, config, store)
		answers := c.submit(t.Context(), some(0, 1+config.JoinRows)...)()
		require.Equal(t, []int{1, config.JoinRows}, store.sizes())
		require.Equal(t, answered{event.Accepted, nil, time.Second}, answers[1])
	})
}

// A little is left to the flusher that is at work, unless that hangs.
func TestLittleWaitsForTheTransactionBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pause := 10 * time.Millisecond
		store := &modelStore{before: func(context.Context, []event.Event) error {
			time.Sleep(pause)
			return nil
		}}
		config := DefaultCommitterConfig()
		c := commit(t, config, store)
		answers := c.submit(t.Context(), some(0, 10)...)()
		require.Equal(t, answered{event.Accepted, nil, 2 * pause}, answers[9])

		pause = time.Second
		answers = c.submit(t.Context(), some(10, 10)...)()
		require.Equal(t, answered{event.Accepted, nil, config.JoinAfter + pause}, answers[9])
		require.Equal(t, []int{1, 9, 1, 9}, store.sizes())
	})
}

func TestBatchesAreBounded(t *testing.T) {
	large := func(id string, bytes int) event.Event {
		return event.Event{Source: event.DefaultSource, ID: id, Payload: []byte(strings.Repeat(" ", bytes))}
	}
	for name, c := range map[string]struct {
		rows, bytes int
		events      []event.Event
		sizes       []int
	}{
		"rows": {10, 1000, some(1, 25), []int{1, 10, 10, 5}},
		"bytes": {
			10, 1000,
			[]event.Event{large("1", 500), large("2", 500), large("3", 1), large("4", 999), large("5", 2)},
			[]int{1, 2, 2, 1},
		},
		"an event that is too large": {
			10, 1000, []event.Event{large("1", 1), large("2", 5000), large("3", 1)}, []int{1, 1, 1, 1},
		},
		"the bound is met to the row": {10, 1000, some(1, 10), []int{1, 10}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &modelStore{before: slow}
				config := one()
				config.BatchRows, config.BatchBytes = c.rows, c.bytes
				config.Patience = time.Minute
				for _, a := range commit(t, config, store).submit(t.Context(), append(some(0, 1), c.events...)...)() {
					require.Equal(t, event.Accepted, a.outcome)
				}
				require.Equal(t, c.sizes, store.sizes())
			})
		})
	}
}

// of makes events those of a source.
func of(source string, events ...event.Event) []event.Event {
	for i := range events {
		events[i].Source = source
	}
	return events
}

func TestFullIntakeRejectsAtOnce(t *testing.T) {
	bytes := func(n int) event.Event {
		return event.Event{ID: "large", Source: event.DefaultSource, Payload: []byte(strings.Repeat(" ", n))}
	}
	mixed := func(first, second event.Event) []event.Event {
		return slices.Concat(of("one", first), of("two", second))
	}
	full := answered{err: ErrFull}
	for name, c := range map[string]struct {
		rows, bytes int
		waiting     []event.Event
		more        event.Event
		want        answered
	}{
		"rows":  {2, 1000, mixed(some(1, 1)[0], some(2, 1)[0]), some(4, 1)[0], full},
		"bytes": {10, 1000, mixed(bytes(499), bytes(500)), bytes(2), full},
		"room for one more": {
			3, 1000, mixed(some(1, 1)[0], some(2, 1)[0]), some(4, 1)[0], answered{event.Accepted, nil, 2 * time.Second},
		},
		"just enough bytes": {
			10, 1000, mixed(bytes(498), bytes(500)), some(4, 1)[0], answered{event.Accepted, nil, 2 * time.Second},
		},
		"half the rows for one source":  {6, 1000, some(1, 3), some(4, 1)[0], full},
		"half the bytes for one source": {10, 1000, []event.Event{bytes(499)}, bytes(2), full},
		"the other half for others": {
			6, 1000, of("other", some(1, 3)...), some(6, 1)[0], answered{event.Accepted, nil, 2 * time.Second},
		},
		"larger than the bound, but nothing waits": {
			10, 1000, nil, bytes(2000), answered{event.Accepted, nil, 2 * time.Second},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &modelStore{before: slow}
				config := one()
				config.QueueRows, config.QueueBytes = c.rows, c.bytes
				run := commit(t, config, store)
				underWay := run.submit(t.Context(), bytes(100_000)) // what is under way does not wait any more
				waiting := run.submit(t.Context(), c.waiting...)
				require.Equal(
					t,
					[]answered{c.want},
					run.submit(t.Context(), func() event.Event { e := c.more; e.ID = "more"; return e }())(),
				)
				underWay()
				waiting()
				require.Equal(
					t,
					[]answered{{event.Accepted, nil, time.Second}},
					run.submit(t.Context(), some(9, 1)...)(),
					"there is room again",
				)
			})
		})
	}
}

func TestAnswersComeAfterTheCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var steps []string
		store := &modelStore{}
		store.before = func(context.Context, []event.Event) error {
			<-time.After(time.Second)
			steps = append(steps, "stored")
			return nil
		}
		config := one()
		config.Committed = func(events []event.Event, receipts []event.Receipt) {
			steps = append(steps, fmt.Sprint("told of ", events[0].ID, " ", receipts[0].Outcome))
		}
		c := commit(t, config, store)
		_, err := c.Submit(t.Context(), some(7, 1)[0])
		steps = append(steps, "answered")
		require.NoError(t, err)
		require.Equal(t, []string{"stored", "told of 7 accepted", "answered"}, steps)
	})
}

// Of a batch, exactly those events are affected that the database rejects; and
// of these, those whose payload is at fault are kept as bytes.
func TestRejectedDataCostsItsNeighboursNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		kind := rapid.SampledFrom([]string{"good", "good", "good", "good", "payload", "rejected", "known bytes"})
		kinds := rapid.SliceOfN(kind, 1, 60).Draw(rt, "kinds")
		store := &modelStore{}
		events := some(0, len(kinds))
		for i := range events {
			events[i].Payload = fmt.Appendf(nil, `{"n":%d}`, i)
			if kinds[i] == "known bytes" {
				events[i].Unqueryable = "the reader knew"
			}
		}
		store.before = func(_ context.Context, batch []event.Event) error {
			<-time.After(time.Millisecond)
			for _, e := range batch {
				i, _ := strconv.Atoi(e.ID)
				if kinds[i] == "rejected" || kinds[i] == "payload" && e.Unqueryable == "" {
					return fmt.Errorf("storing: %w: 22P05", event.ErrInvalidData)
				}
			}
			return nil
		}
		var answers []answered
		synctest.Test(t, func(t *testing.T) {
			config := one()
			config.Patience = time.Minute
			answers = commit(t, config, store).submit(t.Context(), events...)()
		})
		for i, a := range answers {
			e, ok := store.get(strconv.Itoa(i))
			require.Equal(rt, kinds[i] != "rejected", ok)
			switch kinds[i] {
			case "rejected":
				require.ErrorIs(rt, a.err, ErrUnavailable)
			case "payload":
				require.Equal(rt, event.Accepted, a.outcome)
				require.NotEmpty(rt, e.Unqueryable)
				require.Equal(rt, sha256.Sum256(events[i].Payload), e.Hash)
				require.Equal(rt, events[i].Payload, e.Payload)
			default:
				require.Equal(rt, event.Accepted, a.outcome)
				require.Equal(rt, events[i], e)
			}
		}
	})
}

func TestErrorsAreTriedAgainAsLongAsPatienceLasts(t *testing.T) {
	for name, c := range map[string]struct {
		away time.Duration
		want answered
	}{
		"back in time": {2 * time.Second, answered{event.Accepted, nil, 2 * time.Second}},
		"too late":     {time.Hour, answered{err: ErrUnavailable, after: 4 * time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				store := &modelStore{before: func(context.Context, []event.Event) error {
					if time.Since(began) < c.away {
						return errAway
					}
					return nil
				}}
				config := one()
				run := commit(t, config, store)
				a := run.submit(t.Context(), some(0, 1)...)()[0]
				require.Equal(t, c.want.outcome, a.outcome)
				require.Equal(t, c.want.err, a.err)
				require.InDelta(t, c.want.after, a.after, float64(400*time.Millisecond))
				require.LessOrEqual(t, a.after, config.Patience)
				require.InDelta(
					t, len(store.batches), testutil.ToFloat64(run.metrics.flushErrors)+float64(store.count()), 0,
				)
				require.Less(t, len(store.batches), 20, "not in a tight loop")
			})
		})
	}
}

// A database that takes its time for each event is offered five times what it can
// take: it goes on storing at its rate, and does nothing in vain.
func TestOverloadDoesNotCollapse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each = 10 * time.Millisecond
		store := &modelStore{before: func(ctx context.Context, events []event.Event) error {
			select {
			case <-time.After(time.Duration(len(events)) * each):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		config := DefaultCommitterConfig()
		c := commit(t, config, store)
		const seconds, rate = 60, 1000 // two flushers take 200 a second
		var mu sync.Mutex
		taken, slowest := 0, time.Duration(0)
		var senders sync.WaitGroup
		for i := range seconds * rate {
			senders.Go(func() {
				began := time.Now()
				_, err := c.Submit(t.Context(), some(i, 1)...)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					taken, slowest = taken+1, max(slowest, time.Since(began))
				}
			})
			time.Sleep(time.Second / rate)
		}
		senders.Wait()
		require.Greater(t, taken, 9*seconds*200/10)
		require.LessOrEqual(t, slowest, config.Patience)

		// As soon as it is quick again, batches are large again.
		store.before = nil
		for range 10 {
			c.submit(t.Context(), some(seconds*rate, 1)...)()
		}
		store.before = slow
		c.submit(t.Context(), some(seconds*rate+1, 1+config.BatchRows)...)()
		require.Contains(t, store.sizes(), config.BatchRows)
	})
}

// A database on which each transaction takes long, whatever its size, gets large ones again after it was away, however
// many events a request has.
func TestTransactionsGrowAgainOnAFarDatabase(t *testing.T) {
	for _, each := range []int{1, 10, 30} {
		t.Run(fmt.Sprintf("%d a request", each), func(t *testing.T) { growsAgain(t, each) })
	}
}

func growsAgain(t *testing.T, each int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		store := &modelStore{
			before: func(ctx context.Context, _ []event.Event) error { <-ctx.Done(); return ctx.Err() },
		}
		c := commit(t, DefaultCommitterConfig(), store)
		require.ErrorIs(t, c.submit(t.Context(), some(0, 1)...)()[0].err, ErrUnavailable)
		store.before = func(context.Context, []event.Event) error { <-time.After(500 * time.Millisecond); return nil }
		var senders sync.WaitGroup
		var failed atomic.Int64
		began := time.Now()
		for i := range 60_000 / max(10, 2*each) {
			senders.Go(func() {
				isLate := time.Since(began) > 30*time.Second
				if _, err := c.Submit(t.Context(), some(i*each, each)...); err != nil && isLate {
					failed.Add(1)
				}
			})
			time.Sleep(time.Duration(max(10, 2*each)) * time.Millisecond)
		}
		senders.Wait()
		require.Zero(t, failed.Load())
		// A single event that is slow says nothing about others.
		store.before = func(context.Context, []event.Event) error { <-time.After(1100 * time.Millisecond); return nil }
		c.submit(t.Context(), some(1_000_000, 1)...)()
		require.Greater(t, c.limit, 10)
	})
}

func TestStoreThatHangsIsCutWhenPatienceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &modelStore{
			before: func(ctx context.Context, _ []event.Event) error { <-ctx.Done(); return ctx.Err() },
		}
		c := commit(t, one(), store)
		require.Equal(t, []answered{{"", ErrUnavailable, 4 * time.Second}}, c.submit(t.Context(), some(0, 1)...)())
	})
}

func TestEventThatWaitedTooLongIsAnsweredWithoutATry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &modelStore{
			before: func(context.Context, []event.Event) error { <-time.After(5 * time.Second); return nil },
		}
		c := commit(t, one(), store)
		first := c.submit(t.Context(), some(0, 1)...)
		old := c.submit(t.Context(), some(1, 2)...)
		<-time.After(4 * time.Second)
		young := c.submit(t.Context(), some(3, 1)...)
		for _, a := range old() {
			require.Equal(t, answered{"", ErrUnavailable, 5 * time.Second}, a)
		}
		first()
		require.Equal(t, event.Accepted, young()[0].outcome)
		require.Equal(t, []int{1, 1}, store.sizes())
	})
}

func TestLostAnswerToACommitIsMetByTheNextTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := false
		store := &modelStore{after: func() error {
			if !lost {
				lost = true
				return errors.New("the connection is gone")
			}
			return nil
		}}
		a := commit(t, one(), store).submit(t.Context(), some(0, 1)...)()[0]
		require.NoError(t, a.err)
		require.Equal(t, event.Deduplicated, a.outcome)
		require.Equal(t, 1, store.count())
	})
}

func TestStopDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &modelStore{before: slow}
		config := one()
		config.BatchRows, config.Patience = 10, time.Minute
		c := commit(t, config, store)
		answers := c.submit(t.Context(), some(0, 25)...)
		c.stop()
		require.Equal(t, 25, store.count(), "all is stored when Run returns")
		for _, a := range answers() {
			require.Equal(t, event.Accepted, a.outcome)
		}
	})
}

func TestStopEndsWithoutTheDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &modelStore{before: func(context.Context, []event.Event) error { return errAway }}
		c := commit(t, one(), store)
		answers := c.submit(t.Context(), some(0, 5)...)
		began := time.Now()
		c.stop()
		require.LessOrEqual(t, time.Since(began), c.config.Patience)
		for _, a := range answers() {
			require.ErrorIs(t, a.err, ErrUnavailable)
		}
	})
}

// Whoever comes after the end is told so, and so is an event that was put off
// because its row was locked.
func TestNobodyWaitsForACommitterThatHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &modelStore{before: func(context.Context, []event.Event) error { return event.ErrLocked }}
		c := commit(t, one(), store)
		locked := c.submit(t.Context(), some(0, 1)...)
		c.stop()
		late := c.submit(t.Context(), some(1, 1)...)()[0]
		require.ErrorIs(t, late.err, ErrUnavailable)
		require.Zero(t, late.after)
		put := locked()[0]
		require.ErrorIs(t, put.err, ErrUnavailable)
		require.LessOrEqual(t, put.after, c.config.Patience)
	})
}

func TestSenderThatLeavesDisturbsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &modelStore{before: slow}
		c := commit(t, one(), store)
		gone := errors.New("the sender is gone")
		ctx, leave := context.WithCancelCause(t.Context())
		first := c.submit(t.Context(), some(0, 1)...)
		leaving := c.submit(ctx, some(1, 1)...)
		others := c.submit(t.Context(), some(2, 2)...)
		leave(gone)
		require.Equal(t, []answered{{err: gone}}, leaving())
		first()
		for _, a := range others() {
			require.Equal(t, event.Accepted, a.outcome)
		}
		require.Equal(t, []int{1, 3}, store.sizes(), "it is stored all the same")
	})
}

// One event's row is locked by somebody's open transaction: its sender waits as
// long as patience lasts, and nobody waits with it.
func TestLockedRowCostsItsNeighboursNothing(t *testing.T) {
	for name, c := range map[string]struct {
		locked time.Duration
		want   error
	}{
		"let go in time": {2 * time.Second, nil},
		"too late":       {time.Hour, ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				store := &modelStore{before: func(_ context.Context, events []event.Event) error {
					<-time.After(time.Millisecond) // what a transaction takes
					for _, e := range events {
						if e.ID == "3" && time.Since(began) < c.locked {
							return fmt.Errorf("55P03: %w", event.ErrLocked)
						}
					}
					return nil
				}}
				run := commit(t, one(), store)
				first := run.submit(t.Context(), some(0, 10)...)
				later := run.submit(t.Context(), some(10, 20)...)
				for i, a := range append(first(), later()...) {
					if i == 3 {
						require.Equal(t, c.want, a.err)
						require.LessOrEqual(t, a.after, one().Patience)
						continue
					}
					require.Equal(t, event.Accepted, a.outcome)
					require.Less(t, a.after, 100*time.Millisecond)
				}
			})
		})
	}
}

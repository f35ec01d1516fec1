package worker

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

// storing is an intake that stores an event a while after the last and claims
// for r at once.
func storing(r *running, q *modelQueue, slots int, events ...int64) error {
	<-time.After(restTime)
	return r.Lend(
		context.Background(),
		slots,
		func(c event.Claim) (event.Claimed, error) { //nolint:usetesting // an intake does not end with the worker
			q.add(time.Now(), events...)
			return q.claim(c), nil
		},
	)
}

// free says how many slots a worker has.
func (w *Worker) freeNow() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.config.Concurrency - w.busy
}

func TestLentSlotsAreUsedAsTheWorkersOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		r := start(t, config, q, take(time.Minute)) // twice its lease
		pass(2*config.Sweep + restTime)
		looks := len(q.claims)
		var asked event.Claim
		require.NoError(t, r.Lend(t.Context(), 3, func(c event.Claim) (event.Claimed, error) {
			asked = c
			q.add(time.Now(), 1)
			<-time.After(9 * time.Millisecond)
			return q.claim(c), nil
		}))
		low := asked.Low
		require.Equal(t, event.Claim{
			Destination: config.Destination,
			Limit:       3,
			Lease:       config.Lease,
			Worker:      config.Name,
			Delays:      standard.Delays(),
			Low:         low,
		}, asked)
		require.WithinRange(t, low, time.Now().Add(-config.Margin-config.Sweep), time.Now().Add(-config.Margin))
		synctest.Wait()
		require.Len(t, q.claims, looks, "there was no need to look")
		require.Equal(t, 3, r.freeNow())
		require.InDelta(t, 1, testutil.ToFloat64(r.metrics.inHand), 0)
		require.InDelta(t, 1, testutil.ToFloat64(r.metrics.claimed), 0)
		require.Equal(t, 1, r.looks(Lent))
		require.Equal(t, 1, r.activity.all()["processing_attempt_started"])
		pass(2 * time.Minute)
		require.Equal(t, event.Completed, q.row(1).status, "its lease was renewed")
		require.Equal(t, config.Concurrency, r.freeNow())
		require.InDelta(t, 0, testutil.ToFloat64(r.metrics.inHand), 0)
		require.Equal(t, 1, r.activity.all()["processing_succeeded"])
	})
}

func TestLeaseOfALentSlotBeginsWhenItIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		q.hook(hooks{beforeRenew: func(context.Context) error { return errAway }})
		r := start(t, config, q, take(time.Hour))
		pass(config.Sweep + restTime)
		asked := time.Now()
		require.NoError(t, r.Lend(t.Context(), 2, func(c event.Claim) (event.Claimed, error) {
			<-time.After(3 * time.Second)
			q.add(time.Now(), 1)
			return q.claim(c), nil
		}))
		pass(time.Until(asked.Add(config.Lease * 9 / 10)))
		require.Equal(t, 1, q.count(event.Failed), "cancelled before the lease can have ended")
	})
}

func TestNothingIsLent(t *testing.T) {
	never := func(t *testing.T, r *Worker, slots int, why string) {
		t.Helper()
		require.ErrorIs(t, r.Lend(t.Context(), slots, func(event.Claim) (event.Claimed, error) {
			t.Error("claimed")
			return event.Claimed{}, nil
		}), ErrBusy, why)
	}
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		away := make(chan struct{})
		q.hook(hooks{beforeClaim: func(context.Context) error {
			<-away
			return nil
		}})
		r := start(t, config, q, take(time.Minute))
		never(t, r.Worker, 1, "before the first look")
		close(away)
		synctest.Wait()
		never(t, r.Worker, 1, "just after a look")
		<-time.After(restTime)
		never(t, r.Worker, config.Concurrency+1, "more than there are")
		require.NoError(t, storing(r, q, 2, 1))
		never(t, r.Worker, 1, "just after a claim with slots that were lent")
		<-time.After(restTime)
		never(t, r.Worker, config.Concurrency, "more than are free")
		require.NoError(t, storing(r, q, config.Concurrency-1, 2, 3, 4))
		synctest.Wait()
		never(t, r.Worker, 1, "all are in use, and there may be more")
		r.stop()
		never(t, r.Worker, 1, "after the stop")
		require.Equal(t, 4, q.count(event.Failed))
	})
}

func TestLentSlotsComeBackAfterAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		r := start(t, config, q, deliverFunc(succeed))
		pass(config.Sweep / 2)
		require.ErrorIs(
			t,
			r.Lend(
				t.Context(),
				config.Concurrency,
				func(event.Claim) (event.Claimed, error) { return event.Claimed{}, errAway },
			),
			errAway,
		)
		require.Equal(t, config.Concurrency, r.freeNow())
		require.ErrorIs(t, storing(r, q, 1), ErrBusy, "not before a claim of the worker itself has succeeded")
		q.hook(hooks{beforeClaim: func(context.Context) error { return errAway }})
		r.Wake(Ingested)
		synctest.Wait()
		require.ErrorIs(t, storing(r, q, 1), ErrBusy)
		q.hook(hooks{})
		pass(2 * config.Sweep)
		require.NoError(t, storing(r, q, 2, 1))
		pass(time.Second)
		require.Equal(t, event.Completed, q.row(1).status)
	})
}

// Older events take the place of those that were stored: the worker looks for these.
func TestAFullClaimWithLentSlotsIsFollowedByALook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		r := start(t, config, q, deliverFunc(succeed))
		q.add(time.Now(), 1, 2) // nobody says so
		<-time.After(restTime)
		began := time.Now().Add(restTime)
		require.NoError(t, storing(r, q, 2, 3))
		synctest.Wait()
		require.Equal(t, 3, q.count(event.Completed))
		require.Equal(t, 1, r.looks(Ingested))
		require.Equal(t, began, time.Now())
	})
}

// A stop waits for what others claim for the worker, and gives it back.
func TestStopWhileSlotsAreLent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		r := start(t, config, q, deliverFunc(succeed))
		<-time.After(restTime)
		var intake sync.WaitGroup
		intake.Go(func() {
			if err := r.Lend(context.WithoutCancel(t.Context()), 2, func(c event.Claim) (event.Claimed, error) {
				<-time.After(time.Second)
				q.add(time.Now(), 1)
				return q.claim(c), nil
			}); err != nil {
				t.Error(err)
			}
		})
		<-time.After(time.Millisecond)
		q.hook(hooks{giveBack: func() error {
			<-time.After(500 * time.Millisecond)
			return nil
		}})
		began := time.Now()
		r.cancel()
		intake.Wait()
		require.Equal(
			t,
			999*time.Millisecond,
			time.Since(began),
			"the intake does not wait for the lease to be given back",
		)
		<-r.ended
		require.Equal(t, 1499*time.Millisecond, time.Since(began))
		require.Len(t, q.returned, 1)
		require.False(t, q.row(1).leased)
		require.Zero(t, q.row(1).attempts)
		require.Equal(t, 1, r.activity.all()["lease_returned"])
		require.Equal(t, config.Concurrency, r.freeNow())
	})
}

// What is lent and what the worker claims itself are never more than its slots.
func TestNeverMoreThanConcurrencyWithLentSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		inFlight, most := 0, 0
		q := &modelQueue{}
		r := start(t, config, q, deliverFunc(func(ctx context.Context, job event.Job) event.Result {
			mu.Lock()
			inFlight++
			most = max(most, inFlight)
			mu.Unlock()
			defer func() {
				mu.Lock()
				inFlight--
				mu.Unlock()
			}()
			return take(time.Duration(1+job.Event%3)*time.Millisecond)(ctx, job)
		}))
		const events = 600
		var intake sync.WaitGroup
		for flusher := range int64(2) {
			intake.Go(func() {
				for i := range int64(events / 2) {
					id := 2*i + flusher
					err := r.Lend(context.WithoutCancel(t.Context()), 2, func(c event.Claim) (event.Claimed, error) {
						<-time.After(time.Duration(id%3) * time.Millisecond)
						if id%11 == 0 {
							return event.Claimed{}, errAway
						}
						q.add(time.Now(), id)
						return q.claim(c), nil
					})
					if err != nil {
						q.add(time.Now(), id)
						r.Wake(Ingested)
					}
					<-time.After(time.Duration(id%7) * time.Millisecond)
				}
			})
		}
		intake.Wait()
		pass(time.Minute)
		require.Equal(t, events, q.count(event.Completed))
		require.LessOrEqual(t, most, config.Concurrency)
		require.Equal(t, config.Concurrency, r.freeNow())
		require.Greater(t, r.looks(Lent), events/10)
	})
}

// A claim that is lost costs an attempt, and there is only one.
func TestNothingIsLentWhereThereIsOneAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		once := config
		once.Policy.MaxAttempts = 1
		r := start(t, once, &modelQueue{}, take(time.Minute))
		pass(2*config.Sweep + restTime)
		require.ErrorIs(t, r.Lend(t.Context(), 1, func(event.Claim) (event.Claimed, error) {
			t.Error("claimed")
			return event.Claimed{}, nil
		}), ErrBusy)
	})
}

package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
)

var config = Config{
	Destination: event.DefaultDestination,
	Name:        "tester",
	Concurrency: 4,
	Lease:       30 * time.Second,
	Sweep:       500 * time.Millisecond,
	Hears:       func() bool { return true },
	Margin:      time.Second,
	StopTimeout: 5 * time.Second,
	Policy:      standard,
}

var errAway = errors.New("the database is away")

func name(id int64) string { return fmt.Sprintf("event-%d", id) }

// deliverFunc is a Deliverer.
type deliverFunc func(ctx context.Context, job event.Job) event.Result

func (f deliverFunc) Deliver(ctx context.Context, job event.Job) event.Result { return f(ctx, job) }

func succeed(context.Context, event.Job) event.Result {
	return event.Result{Class: event.Done, Status: 200}
}

// take returns a delivery that lasts d, or until it is cancelled.
func take(d time.Duration) deliverFunc {
	return func(ctx context.Context, _ event.Job) event.Result {
		select {
		case <-time.After(d):
			return event.Result{Class: event.Done, Status: 200, Duration: d}
		case <-ctx.Done():
			return event.Result{Class: event.TryAgain, Error: context.Cause(ctx).Error()}
		}
	}
}

// activities is an Activity that counts.
type activities struct {
	mu     sync.Mutex
	counts map[string]int
}

func (a *activities) Add(action trail.Action, _ string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counts[string(action)]++
}

func (a *activities) all() map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.counts)
}

// running is a worker at work, in the bubble of a test.
type running struct {
	*Worker
	activity *activities
	log      *bytes.Buffer // to be read after stop
	cancel   context.CancelFunc
	ended    chan struct{}
}

// start runs a worker until stop, or the end of the test.
func start(t *testing.T, c Config, q Queue, d Deliverer) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{
		activity: &activities{counts: map[string]int{}},
		log:      &bytes.Buffer{},
		cancel:   cancel,
		ended:    make(chan struct{}),
	}
	r.Worker = New(c, q, d, r.activity, zerolog.New(zerolog.SyncWriter(r.log)), NewMetrics(prometheus.NewRegistry()))
	go func() {
		defer close(r.ended)
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	synctest.Wait()
	t.Cleanup(func() { r.stop() })
	return r
}

// stop stops the worker and says how long that took.
func (r *running) stop() time.Duration {
	began := time.Now()
	r.cancel()
	<-r.ended
	return time.Since(began)
}

func (r *running) looks(c Cause) int {
	return int(testutil.ToFloat64(r.metrics.wakes.WithLabelValues(string(c))))
}

func (r *running) swept() int { return int(testutil.ToFloat64(r.metrics.swept)) }

// pass lets the bubble's time pass until all goroutines are idle again.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestNeverMoreThanConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		inFlight, most := 0, 0
		deliverer := deliverFunc(func(ctx context.Context, job event.Job) event.Result {
			mu.Lock()
			inFlight++
			most = max(most, inFlight)
			mu.Unlock()
			defer func() {
				mu.Lock()
				inFlight--
				mu.Unlock()
			}()
			return take(time.Duration(job.Event)*100*time.Millisecond)(ctx, job)
		})
		q := &modelQueue{}
		for id := range int64(20) {
			q.add(time.Now(), id+1)
		}
		q.afterClaim = func(claimed event.Claimed) {
			mu.Lock()
			defer mu.Unlock()
			if inFlight+len(claimed.Jobs) > config.Concurrency {
				t.Errorf("claimed %d with %d in flight", len(claimed.Jobs), inFlight)
			}
		}
		r := start(t, config, q, deliverer)
		pass(time.Minute)
		r.stop()
		require.Equal(t, 20, q.count(event.Completed))
		require.Equal(t, config.Concurrency, most)
		for _, c := range q.claims {
			require.GreaterOrEqual(t, c.limit, 1)
			require.LessOrEqual(t, c.limit, config.Concurrency)
		}
		require.Equal(t, config.Concurrency, q.claims[0].limit)
		require.Equal(t, map[string]int{"processing_attempt_started": 20, "processing_succeeded": 20}, r.activity.all())
		require.Zero(t, testutil.ToFloat64(r.metrics.inHand))
	})
}

func TestFullBatchIsFollowedByAnotherAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		for id := range int64(400) {
			q.add(time.Now(), id)
		}
		r := start(t, config, q, deliverFunc(succeed))
		pass(config.Sweep - time.Millisecond)
		require.Equal(t, 400, q.count(event.Completed))
		require.NotZero(t, r.looks(SlotFreed))
		require.Zero(t, r.looks(Swept))
	})
}

func TestEveryWakeUpIsALookAtOnce(t *testing.T) {
	for _, cause := range []Cause{Notified, Ingested, Reconnected} {
		t.Run(string(cause), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := &modelQueue{}
				r := start(t, config, q, deliverFunc(succeed))
				require.Equal(t, 1, r.looks(Started))
				pass(config.Sweep / 3)
				q.add(time.Now(), 1)
				r.Wake(cause)
				synctest.Wait()
				require.Equal(t, 1, q.count(event.Completed))
				require.Equal(t, 1, r.looks(cause))
				require.Zero(t, r.looks(Swept))
				last := q.claims[len(q.claims)-1]
				require.Equal(t, cause == Reconnected, last.low.IsZero(), "after a reconnect all is looked at")
			})
		})
	}
}

func TestWakeUpDuringAClaimIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		answer := make(chan struct{})
		q.afterClaim = func(event.Claimed) { <-answer }
		r := start(t, config, q, deliverFunc(succeed)) // the first claim has seen an empty queue
		q.add(time.Now(), 1)
		for range 3 {
			r.Wake(Notified) // never blocks, and says the same
		}
		close(answer)
		synctest.Wait()
		require.Equal(t, 1, q.count(event.Completed))
		require.Equal(t, 1, r.looks(Notified), "wake-ups that say the same are one")
		require.Len(t, q.claims, 2)
	})
}

func TestNextDueIsMetToTheMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		began := time.Now()
		q.add(began.Add(137*time.Millisecond), 1)
		q.add(began.Add(138*time.Millisecond), 2)
		var at []time.Duration
		var mu sync.Mutex
		r := start(t, config, q, deliverFunc(func(ctx context.Context, job event.Job) event.Result {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Since(began))
			return succeed(ctx, job)
		}))
		pass(400 * time.Millisecond)
		require.Equal(t, []time.Duration{137 * time.Millisecond, 138 * time.Millisecond}, at)
		require.Equal(t, 2, r.looks(TimerFired))
		require.Zero(t, r.swept())
	})
}

func TestRetriesComeWhenTheyAreDue(t *testing.T) {
	for name, policy := range map[string]Policy{
		"standard": standard,
		"shorter than the sweep": {
			MaxAttempts:  5,
			InitialDelay: 10 * time.Millisecond,
			MaxDelay:     40 * time.Millisecond,
		},
		"around the sweep": {MaxAttempts: 5, InitialDelay: 450 * time.Millisecond, MaxDelay: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := &modelQueue{}
				q.add(time.Now(), 1)
				var attempts []time.Time
				c := config
				c.Policy = policy
				r := start(t, c, q, deliverFunc(func(context.Context, event.Job) event.Result {
					attempts = append(attempts, time.Now())
					return event.Result{Class: event.TryAgain, Status: 500, Error: "HTTP 500"}
				}))
				pass(time.Minute)
				r.stop()
				require.Len(t, attempts, 5)
				for i := 1; i < len(attempts); i++ {
					require.Equal(t, q.settled[i-1][0].Delay, attempts[i].Sub(attempts[i-1]))
					require.InDelta(t, policy.Delay(i), q.settled[i-1][0].Delay, float64(policy.Delay(i)/10)+1)
				}
				require.Equal(t, 1, q.count(event.Dead))
				require.Zero(t, r.swept(), "no retry waits for the sweep")
				require.Equal(t, map[string]int{
					"processing_attempt_started":    5,
					"processing_attempt_failed":     5,
					"retry_scheduled":               4,
					"processing_failed_permanently": 1,
				}, r.activity.all())
				require.InDelta(t, 4, testutil.ToFloat64(r.metrics.attempts.WithLabelValues(string(event.Failed))), 0)
				require.InDelta(t, 1, testutil.ToFloat64(r.metrics.attempts.WithLabelValues(string(event.Dead))), 0)
			})
		})
	}
}

// D3: the queue gives up an event that was deferred for too long. Nobody is then told that it will be tried again.
func TestDeferredForTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		r := start(t, config, q, deliverFunc(func(context.Context, event.Job) event.Result {
			return event.Result{Class: event.Unreached, Error: "connection refused"}
		}))
		deferred, dead := string(event.Deferred), string(event.Dead)
		require.Equal(t, 4, testutil.CollectAndCount(r.metrics.attempts), "each outcome begins at 0")
		q.add(time.Now(), 1)
		q.mu.Lock()
		for _, row := range q.rows {
			row.overdue = true
		}
		q.mu.Unlock()
		pass(config.Sweep)
		r.stop()
		require.Zero(t, testutil.ToFloat64(r.metrics.attempts.WithLabelValues(deferred)))
		require.InDelta(t, 1, testutil.ToFloat64(r.metrics.attempts.WithLabelValues(dead)), 0)
		require.Equal(t, map[string]int{
			"processing_attempt_started":    1,
			"processing_attempt_failed":     1,
			"processing_failed_permanently": 1,
		}, r.activity.all())
	})
}

func TestSweepFindsWhatNobodyAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		r := start(t, config, q, deliverFunc(succeed))
		pass(10 * time.Millisecond)
		q.add(time.Now(), 1)
		pass(config.Sweep)
		require.Equal(t, 1, q.count(event.Completed))
		require.Equal(t, 1, r.swept())

		// What the sweep finds just before its wake-up arrives is no wonder.
		pass(config.Sweep - 20*time.Millisecond)
		q.add(time.Now(), 2)
		pass(10 * time.Millisecond)
		require.Equal(t, 2, q.count(event.Completed))
		require.Equal(t, 1, r.swept())
	})
}

func TestWhatLiesBelowTheWatermarkIsFoundByAWorkerThatIsNeverIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		r := start(t, config, q, deliverFunc(succeed))
		const beat = 10 * time.Millisecond
		id := int64(1)
		announce := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); id++ {
				q.add(time.Now(), id)
				r.Wake(Notified)
				pass(beat)
			}
		}
		announce(5 * time.Second)
		q.add(time.Time{}, 0) // by hand, to the infinite past
		announce(config.Sweep + beat)
		require.Equal(t, int(id), q.count(event.Completed))

		r.stop()
		var scanned time.Time
		above := 0
		for _, c := range q.claims {
			if c.low.IsZero() {
				scanned = c.at
			} else {
				above++
			}
			require.Less(t, c.at.Sub(scanned), config.Sweep+beat)
		}
		require.Greater(t, above, len(q.claims)/2, "and yet most looks spare themselves the rest")
	})
}

func TestClaimThatFailedIsTriedAgainScanningAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		r := start(t, config, q, deliverFunc(succeed))
		pass(5 * time.Second)
		failures := 3
		q.hook(hooks{beforeClaim: func(context.Context) error {
			if failures > 0 {
				failures--
				return errAway
			}
			return nil
		}})
		q.add(time.Now(), 1)
		seen := len(q.claims)
		r.Wake(Notified)
		pass(3 * config.Sweep)
		require.Equal(t, 1, q.count(event.Completed))
		require.Equal(t, 3, r.looks(Recovered))
		require.True(t, q.claims[seen].low.IsZero())
		require.InDelta(t, 3, testutil.ToFloat64(r.metrics.queueErrors), 0)
	})
}

func TestPanicIsAFailedAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		q.add(time.Now(), 1, 2)
		r := start(t, config, q, deliverFunc(func(ctx context.Context, job event.Job) event.Result {
			if job.Event == 1 && job.Attempt == 1 {
				panic("boom")
			}
			return succeed(ctx, job)
		}))
		pass(2 * time.Second)
		r.stop()
		require.Equal(t, 2, q.count(event.Completed), "the worker lives, and so does the event")
		require.Equal(t, 2, q.row(1).attempts)
		for _, s := range q.settled[0] {
			if s.Job.Event == 1 {
				require.Equal(t, event.Failed, s.Disposition)
				require.Equal(t, "panic: boom", s.Result.Error)
			}
		}
		require.Contains(t, r.log.String(), "worker_test.go", "the log tells where")
	})
}

func TestLongDeliveryKeepsItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		q.add(time.Now(), 1)
		c := config
		c.Lease = 6 * time.Second
		began := time.Now()
		r := start(t, c, q, take(time.Minute))
		pass(59 * time.Second)
		require.False(t, q.row(1).due.Before(time.Now().Add(c.Lease/2)), "it is renewed long before it ends")
		pass(time.Second)
		require.Equal(t, 1, q.count(event.Completed))
		require.Equal(t, 1, q.row(1).attempts)
		require.Zero(t, testutil.ToFloat64(r.metrics.expired))
		pass(time.Minute)
		r.stop()
		require.Greater(t, len(q.renewals), 10)
		require.False(t, q.renewals[len(q.renewals)-1].After(began.Add(time.Minute)), "what is settled is not renewed")
	})
}

func TestShortDeliveryIsNotRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		for id := range int64(100) {
			q.add(time.Now(), id)
		}
		r := start(t, config, q, take(5*time.Second))
		pass(3 * time.Minute)
		r.stop()
		require.Equal(t, 100, q.count(event.Completed))
		require.Empty(t, q.renewals)
	})
}

// cancelled is a delivery that lasts until it is cancelled and says why, when,
// and what becomes of it.
func cancelled(causes chan<- error) deliverFunc {
	return func(ctx context.Context, _ event.Job) event.Result {
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return event.Result{Class: event.Done, Status: 200} // the destination took it all the same
	}
}

func TestRefusedRenewalCancelsTheDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		q.add(time.Now(), 1)
		causes := make(chan error, 1)
		r := start(t, config, q, cancelled(causes))
		q.take(1)
		began := time.Now()
		require.ErrorIs(t, <-causes, errLeaseLost)
		require.LessOrEqual(t, time.Since(began), config.Lease/2)
		synctest.Wait()
		require.Equal(t, map[string]int{"processing_attempt_started": 1, "lease_lost": 1}, r.activity.all())
		require.InDelta(t, 1, testutil.ToFloat64(r.metrics.lost), 0)
		require.Zero(
			t,
			testutil.ToFloat64(r.metrics.attempts.WithLabelValues(string(event.Completed))),
			"never a success",
		)
		require.Zero(t, q.count(event.Completed))
	})
}

func TestDeliveryEndsBeforeALeaseThatCannotBeRenewed(t *testing.T) {
	for name, away := range map[string]func(context.Context) error{
		"errors": func(context.Context) error { return errAway },
		"hangs":  func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := &modelQueue{}
				q.beforeRenew = away
				q.beforeClaim = func(context.Context) error {
					<-time.After(time.Second) // counts as lease: the claim may have been made at its start
					return nil
				}
				q.add(time.Now(), 1)
				began := time.Now()
				causes := make(chan error, 1)
				start(t, config, q, cancelled(causes))
				require.ErrorIs(t, <-causes, errLeaseLost)
				require.Equal(t, config.Lease*9/10, time.Since(began))
			})
		})
	}
}

func TestRenewalsComeBackAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		failures := 1
		q.beforeRenew = func(context.Context) error {
			if failures > 0 {
				failures--
				return errAway
			}
			return nil
		}
		q.add(time.Now(), 1)
		r := start(t, config, q, take(2*time.Minute))
		pass(2 * time.Minute)
		require.Equal(t, 1, q.count(event.Completed))
		require.InDelta(t, 1, testutil.ToFloat64(r.metrics.queueErrors), 0)
	})
}

// scanned is a queue in which a look at everything takes long, as it does
// while an old snapshot keeps dead rows.
type scanned struct {
	*modelQueue
	takes time.Duration
	scans atomic.Int64
}

func (q *scanned) Claim(ctx context.Context, c event.Claim) (event.Claimed, error) {
	if c.Low.IsZero() {
		q.scans.Add(1)
		time.Sleep(q.takes)
	}
	return q.modelQueue.Claim(ctx, c)
}

func TestTimeBetweenLooksAtEverything(t *testing.T) {
	for _, c := range []struct {
		took        time.Duration
		hears, busy bool
		want        time.Duration
	}{
		{0, true, false, config.Sweep},
		{cheapScan, true, true, config.Sweep},
		{100 * time.Millisecond, true, false, config.Sweep},
		{100 * time.Millisecond, true, true, 2 * time.Second},
		{300 * time.Millisecond, true, false, 900 * time.Millisecond},
		{300 * time.Millisecond, false, true, config.Sweep},
		{time.Second, true, true, maxScanInterval},
		{time.Minute, true, false, maxScanInterval},
	} {
		w := &Worker{config: config}
		w.config.Hears = func() bool { return c.hears }
		require.Equal(t, c.want, w.scanInterval(c.took, c.busy), "%+v", c)
	}
}

func TestLooksAtEverythingTakeLittleOfTheTime(t *testing.T) {
	for hears, scans := range map[bool]struct{ least, most int64 }{true: {28, 32}, false: {45, 61}} {
		synctest.Test(t, func(t *testing.T) {
			q := &scanned{modelQueue: &modelQueue{}, takes: 250 * time.Millisecond}
			c := config
			c.Hears = func() bool { return hears }
			r := start(t, c, q, deliverFunc(succeed))
			pass(30 * time.Second)
			require.LessOrEqual(t, q.scans.Load(), scans.most)
			require.GreaterOrEqual(t, q.scans.Load(), scans.least)

			// What is said to be due for long is looked for at once.
			before := q.scans.Load()
			for q.scans.Load() == before {
				pass(100 * time.Millisecond)
			}
			pass(300 * time.Millisecond) // in the middle between two scans
			before = q.scans.Load()
			q.add(time.Now().Add(-time.Minute), 1)
			r.Due(time.Now().Add(-time.Minute))
			r.Wake(Notified)
			pass(20 * time.Millisecond)
			if hears {
				require.Equal(t, 1, q.count(event.Completed))
				require.Equal(t, before, q.scans.Load(), "from then on, not from ever on")
			}
			q.add(time.Time{}, 2)
			r.Due(time.Time{})
			r.Wake(Notified)
			pass(time.Second)
			require.Equal(t, 2, q.count(event.Completed))
		})
	}
}

// A busy worker claims for many slots at once, since a claim of few rows costs
// nearly as much.
func TestBusyWorkerClaimsForManySlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		for id := range int64(640) {
			q.add(time.Now(), id)
		}
		many := config
		many.Concurrency = 64
		var n atomic.Int64
		r := start(t, many, q, deliverFunc(func(ctx context.Context, job event.Job) event.Result {
			time.Sleep(time.Millisecond + time.Duration(n.Add(1)%64)*10*time.Microsecond)
			return succeed(ctx, job)
		}))
		pass(many.Sweep - time.Millisecond)
		require.Equal(t, 640, q.count(event.Completed))
		require.Zero(t, r.looks(Swept))
		require.LessOrEqual(t, len(q.claims), 1+640/32)
	})
}

// But it does not leave a slot empty for long.
func TestFreeSlotIsFilledSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		for id := range int64(9) {
			q.add(time.Now(), id)
		}
		many := config
		many.Concurrency = 8
		began := time.Now()
		var started atomic.Int64
		var last time.Duration
		start(t, many, q, deliverFunc(func(ctx context.Context, job event.Job) event.Result {
			switch started.Add(1) {
			case 1:
				time.Sleep(100 * time.Millisecond)
			case 9:
				last = time.Since(began)
			default:
				<-ctx.Done()
			}
			return succeed(ctx, job)
		}))
		pass(time.Second)
		require.Equal(t, 100*time.Millisecond, last)
	})
}

func TestExpiredLeasesAreNotedAndNotDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		for id := range int64(9) {
			q.add(time.Now(), id)
		}
		q.claim(
			event.Claim{Destination: event.DefaultDestination, Limit: 9, Lease: time.Second},
		) // by a worker that dies
		r := start(t, config, q, deliverFunc(succeed))
		pass(time.Second)
		require.InDelta(t, 9, testutil.ToFloat64(r.metrics.expired), 0, "also when they fill one look after another")
		require.Equal(t, 9, r.activity.all()["lease_expired"])
		require.Zero(t, q.count(event.Completed))
		pass(standard.InitialDelay + gatherTime)
		require.Equal(t, 9, q.count(event.Completed))
	})
}

func TestSettleIsTriedAgainInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		var mu sync.Mutex
		var tries [][]int64
		q.beforeSettle = func(_ context.Context, batch []event.Settlement) error {
			mu.Lock()
			defer mu.Unlock()
			var ids []int64
			for _, s := range batch {
				ids = append(ids, s.Job.Event)
			}
			if tries = append(tries, ids); len(tries) <= 5 {
				return errAway
			}
			return nil
		}
		q.add(time.Now(), 1)
		r := start(t, config, q, deliverFunc(succeed))
		for id := int64(2); id <= 4; id++ {
			q.add(time.Now(), id)
			r.Wake(Notified)
			synctest.Wait()
		}
		pass(5 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		require.Equal(
			t,
			[][]int64{{1}, {1}, {1}, {1}, {1}, {1}, {2, 3, 4}},
			tries,
			"what comes meanwhile makes up the next batch",
		)
		require.Equal(t, 4, q.count(event.Completed))
		require.Equal(t, 4, r.activity.all()["processing_succeeded"], "each counts once")
		require.InDelta(t, 5, testutil.ToFloat64(r.metrics.queueErrors), 0)
		require.Zero(t, testutil.ToFloat64(r.metrics.inHand))
	})
}

func TestSlotsAreFreedWhileSettlingIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		q.beforeSettle = func(context.Context, []event.Settlement) error { <-time.After(3 * time.Second); return nil }
		const events = settleRows + 100
		for id := range int64(events) {
			q.add(time.Now(), id)
		}
		r := start(t, config, q, deliverFunc(succeed))
		started := r.activity.all()["processing_attempt_started"]
		require.Greater(t, started, config.Concurrency)
		pass(2 * time.Second)
		require.LessOrEqual(
			t,
			r.activity.all()["processing_attempt_started"],
			settleRows+2*config.Concurrency,
			"and yet what is unsettled is bounded",
		)
		pass(10 * time.Minute)
		require.Equal(t, events, q.count(event.Completed))
		require.Zero(t, testutil.ToFloat64(r.metrics.lost))
	})
}

func TestUnsettledResultsKeepTheirLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		q.beforeSettle = func(context.Context, []event.Settlement) error { return errAway }
		q.add(time.Now(), 1)
		start(t, config, q, deliverFunc(succeed))
		pass(10 * config.Lease)
		q.hook(hooks{})
		pass(2 * time.Second)
		require.Equal(t, 1, q.count(event.Completed))
		require.Equal(t, 1, q.row(1).attempts, "it is not delivered again")
	})
}

func TestJobsClaimedDuringTheStopAreGivenBack(t *testing.T) {
	for name, refusal := range map[string]error{"": nil, "unless that fails": errAway} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := &modelQueue{}
				q.giveBack = func() error { return refusal }
				q.add(time.Now(), 1, 2)
				q.beforeClaim = func(context.Context) error { <-time.After(time.Second); return nil }
				delivered := false
				r := start(t, config, q, deliverFunc(func(ctx context.Context, job event.Job) event.Result {
					delivered = true
					return succeed(ctx, job)
				}))
				require.Equal(t, time.Second, r.stop())
				require.False(t, delivered)
				if refusal != nil {
					require.Zero(t, r.activity.all()["lease_returned"])
					return
				}
				require.Len(t, q.returned, 2)
				require.Zero(t, q.row(1).attempts)
				require.Equal(t, 2, r.activity.all()["lease_returned"])
			})
		})
	}
}

func TestDeliveriesInHandMayFinishAfterTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		q.add(time.Now(), 1)
		q.beforeSettle = func(context.Context, []event.Settlement) error {
			<-time.After(100 * time.Millisecond)
			return nil
		}
		r := start(t, config, q, take(3*time.Second))
		q.add(time.Now(), 2)
		require.Equal(t, 3100*time.Millisecond, r.stop())
		require.Equal(t, 1, q.count(event.Completed), "settled before Run returns")
		require.Zero(t, q.row(2).attempts, "and nothing is claimed any more")
	})
}

func TestDeliveriesAreCutAtTheStopTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		q.add(time.Now(), 1)
		r := start(t, config, q, take(time.Hour))
		require.Equal(t, config.StopTimeout, r.stop())
		require.Equal(t, 1, q.count(event.Failed))
		require.Equal(t, errStopping.Error(), q.settled[0][0].Result.Error)
	})
}

func TestStopDoesNotHang(t *testing.T) {
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	fail := func(context.Context) error { return errAway }
	for name, c := range map[string]struct {
		claim, settle func(context.Context) error
		limit         time.Duration
	}{
		"on a claim":                  {claim: hang, limit: config.StopTimeout},
		"on results that are refused": {settle: fail, limit: config.StopTimeout + time.Second},
		"on results that hang":        {settle: hang, limit: config.StopTimeout + time.Second},
		"on both":                     {claim: hang, settle: hang, limit: config.StopTimeout + time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := &modelQueue{}
				for id := range int64(100) {
					q.add(time.Now(), id)
				}
				if c.settle != nil {
					q.beforeSettle = func(ctx context.Context, _ []event.Settlement) error { return c.settle(ctx) }
				}
				r := start(t, config, q, deliverFunc(succeed))
				pass(time.Second)
				h := q.hooked()
				h.beforeClaim = c.claim
				q.hook(h)
				q.add(time.Now(), 100)
				r.Wake(Notified)
				pass(time.Second)
				require.LessOrEqual(t, r.stop(), c.limit)
				if c.settle != nil {
					require.Contains(t, r.log.String(), "results could not be recorded")
					require.Zero(t, r.activity.all()["processing_succeeded"])
				}
			})
		})
	}
}

func TestUnsettledResultsAreGivenUpASecondAfterTheLastDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		q.beforeSettle = func(context.Context, []event.Settlement) error { return errAway }
		q.add(time.Now(), 1)
		r := start(t, config, q, deliverFunc(succeed))
		require.Equal(t, time.Second, r.stop())
	})
}

// arrival is a row that is committed at one time and due at another.
type arrival struct {
	committed, due time.Duration // since the start
	announced      bool
}

// Whatever is due is claimed within a sweep of being committed and due, late
// commits and lost wake-ups included, and the watermark trails and never goes
// back. The worker always has a free slot here.
func TestNothingDueIsForgotten(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		arrivals := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) arrival {
			committed := rapid.Int64Range(0, 10_000).Draw(rt, "committed")
			due := committed + rapid.SampledFrom([]int64{0, 0, 0, -1, -500, -1500, -5000, -1 << 30, 1, 700, 3000}).
				Draw(rt, "due")
			return arrival{
				time.Duration(committed) * time.Millisecond, time.Duration(due) * time.Millisecond,
				rapid.Bool().Draw(rt, "announced"),
			}
		}), 1, 40).Draw(rt, "arrivals")
		c := config
		c.Concurrency = rapid.SampledFrom([]int{40, 80}).Draw(rt, "concurrency")

		waits := make([]time.Duration, len(arrivals))
		q := &modelQueue{}
		var completed int
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			var mu sync.Mutex
			r := start(t, c, q, deliverFunc(func(ctx context.Context, job event.Job) event.Result {
				mu.Lock()
				defer mu.Unlock()
				a := arrivals[job.Event]
				waits[job.Event] = time.Since(began) - max(a.committed, a.due)
				return succeed(ctx, job)
			}))
			for i, a := range arrivals {
				go func() {
					<-time.After(a.committed)
					q.add(began.Add(a.due), int64(i))
					if a.announced {
						r.Wake(Notified)
					}
				}()
			}
			pass(14 * time.Second)
			r.stop()
			completed = q.count(event.Completed)
		})

		require.Equal(rt, len(arrivals), completed)
		for i, wait := range waits {
			require.GreaterOrEqual(rt, wait, time.Duration(0), "%+v", arrivals[i])
			require.LessOrEqual(rt, wait, c.Sweep, "%+v", arrivals[i])
		}
		var low, limit time.Time
		for _, call := range q.claims {
			if !call.low.IsZero() {
				require.False(rt, call.low.Before(low), "the watermark went back")
				require.False(rt, call.low.After(limit), "the watermark does not trail")
				low = call.low
			}
			limit = call.now.Add(-c.Margin)
		}
	})
}

// More than a worker can hold falls due below the watermark at once: after a
// pause, or when a large transaction commits late. It is not left to one claim
// for each sweep.
func TestBacklogBelowTheWatermarkIsDrained(t *testing.T) {
	for name, due := range map[string]func() time.Time{
		"an hour ago":       func() time.Time { return time.Now().Add(-time.Hour) },
		"the infinite past": func() time.Time { return time.Time{} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := &modelQueue{}
				r := start(t, config, q, deliverFunc(succeed))
				pass(10 * config.Sweep)
				for id := range int64(50 * config.Concurrency) {
					q.add(due(), id)
				}
				r.Wake(Notified)
				pass(config.Sweep + 10*time.Millisecond)
				require.Equal(t, 50*config.Concurrency, q.count(event.Completed))
			})
		})
	}
}

// A row that somebody else has locked keeps its result waiting, and no other.
func TestLockedRowHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		q.add(time.Now(), 1, 2, 3)
		lock := func(id int64, locked bool) {
			q.mu.Lock()
			defer q.mu.Unlock()
			q.rows[id].locked = locked
		}
		lock(1, true)
		lock(2, true)
		r := start(t, config, q, deliverFunc(succeed))
		pass(time.Second)
		require.Equal(t, 1, q.count(event.Completed))
		require.InDelta(t, 2, testutil.ToFloat64(r.metrics.inHand), 0)

		lock(1, false)
		q.take(2) // the hand changed its status, and commits
		lock(2, false)
		pass(time.Second)
		require.Equal(t, 2, q.count(event.Completed))
		require.InDelta(t, 1, testutil.ToFloat64(r.metrics.lost), 0)
		require.InDelta(t, 0, testutil.ToFloat64(r.metrics.inHand), 0)

		// A row that stays locked does not hold up the stop.
		q.add(time.Now(), 4)
		lock(4, true)
		r.Wake(Notified)
		pass(time.Second)
		require.LessOrEqual(t, r.stop(), config.StopTimeout+2*time.Second)
	})
}

// A delivery that does not heed its cancellation keeps the worker waiting, but
// not busy: in a bubble, time would not pass for one that spins.
func TestStopWaitsIdlyForADeliveryThatDoesNotHeedIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &modelQueue{}
		q.add(time.Now(), 1)
		r := start(t, config, q, deliverFunc(func(context.Context, event.Job) event.Result {
			<-time.After(time.Hour)
			return event.Result{Class: event.Done, Status: 200}
		}))
		require.InDelta(t, time.Hour, r.stop(), float64(time.Second))
		require.Zero(t, q.count(event.Completed), "what comes so late is left to its lease")
	})
}

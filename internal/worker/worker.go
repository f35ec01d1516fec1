// Package worker takes events from the queue to their destination. It claims due events, delivers with bounded
// concurrency, holds and renews leases, settles results in batches, and drains when it is stopped.
//
// It promises that it forgets no event: each claimed one is delivered and settled, or given back, or left to a lease
// that runs out. No transaction is open during a delivery. The package knows the queue and the destination only through
// the interfaces below. An idle worker lends its slots: whoever stores an event may claim it for the worker.
//
// claim.go claims, lend.go lends slots, attempt.go delivers, lease.go renews, settle.go settles, policy.go decides on
// retries.
package worker

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
)

// Queue is where jobs come from and results go to. Its methods are safe for concurrent use, and may be called again
// after an error.
type Queue interface {
	// Claim leases due jobs. If its answer is lost, their leases run out.
	Claim(ctx context.Context, claim event.Claim) (event.Claimed, error)
	// Renew prolongs leases until lease from now, and returns the state of each.
	Renew(ctx context.Context, jobs []event.Job, lease time.Duration) ([]event.LeaseState, error)
	// Settle records results, and returns the state of each lease. A result counts where its lease was held. Where the
	// row was locked it must be settled again.
	Settle(ctx context.Context, settlements []event.Settlement) ([]event.LeaseState, error)
	// GiveBack returns leases whose delivery was never started.
	GiveBack(ctx context.Context, jobs []event.Job) error
}

// Deliverer makes one attempt. It returns when the attempt has ended, or soon after ctx has. It is safe for concurrent
// use.
type Deliverer interface {
	Deliver(ctx context.Context, job event.Job) event.Result
}

// Activity gathers steps for the activity channel. Add must not block.
type Activity interface {
	Add(action trail.Action, eventID string)
}

// Cause is what woke the claim loop.
type Cause string

// The causes of a claim.
const (
	Notified    Cause = "notify"    // a notification arrived
	Ingested    Cause = "ingest"    // this process stored an event
	Lent        Cause = "lent"      // this process stored an event and claimed it at once, with a lent slot
	Reconnected Cause = "reconnect" // the listener has a new connection and may have missed notifications
	TimerFired  Cause = "timer"     // a retry fell due or a lease ended
	SlotFreed   Cause = "slot"      // the last claim took all it could, and there is room again
	Swept       Cause = "sweep"     // no wake-up came for a while; it finds a due row whose wake-up was lost
	Started     Cause = "start"
	Recovered   Cause = "recover" // the last claim failed
)

// causes are all of them.
var causes = []Cause{Notified, Ingested, Lent, Reconnected, TimerFired, SlotFreed, Swept, Started, Recovered}

// scansAll reports whether a claim must not trust the low watermark.
func (c Cause) scansAll() bool {
	switch c {
	case Started, Reconnected, Recovered:
		return true
	case Notified, Ingested, Lent, TimerFired, SlotFreed, Swept:
	}
	return false
}

// Reasons to cancel a delivery.
var (
	errLeaseLost = errors.New("the lease was lost")
	errStopping  = errors.New("the worker was stopped")
)

// Config says how a worker works.
type Config struct {
	Destination string        // whose events
	Name        string        // of the worker, as audited
	Concurrency int           // deliveries at once, 1 or more
	Lease       time.Duration // how long a claim holds; renewed while a delivery lasts
	Sweep       time.Duration // interval of the sweep; below one second, so that a due event is claimed within one
	Hears       func() bool   // whether notifications are proven to arrive; they name what is due below the watermark
	// Margin is how far the low watermark trails. A row committed less than Margin after its due time is found without
	// a sweep.
	Margin      time.Duration
	StopTimeout time.Duration // how long deliveries in hand may go on after a stop
	Policy      Policy
}

// queuePatience is the time limit of one call to the queue.
const queuePatience = 5 * time.Second

// Worker delivers the events of one destination.
type Worker struct {
	config    Config
	queue     Queue
	deliverer Deliverer
	activity  Activity
	log       zerolog.Logger
	failures  zerolog.Logger // sampled: a destination that is down does not flood the log
	metrics   *Metrics
	delays    []time.Duration // the policy, as claims need it

	wake    chan Cause    // one pending wake-up stands for all; a channel and no Bell, since it carries the cause
	freed   chan struct{} // as many slots are free as the claim loop wants
	results chan event.Settlement

	mu     sync.Mutex
	busy   int                 // slots in use, or lent
	wanted int                 // free slots that the claim loop waits for; 0 while it does not wait
	leases map[leaseKey]*lease // in hand, until settled
	told   bool                // Due was called since the last claim
	due    time.Time           // the earliest time that Due was told; the zero time stands for ever
	loan   *loan               // the terms on which slots are lent; nil while none are

	lending sync.WaitGroup // claims under way with lent slots
}

// New returns a worker; Run makes it work.
func New(
	config Config,
	queue Queue,
	deliverer Deliverer,
	activity Activity,
	log zerolog.Logger,
	metrics *Metrics,
) *Worker {
	return &Worker{
		config:    config,
		queue:     queue,
		deliverer: deliverer,
		activity:  activity,
		log:       log,
		metrics:   metrics,
		delays:    config.Policy.Delays(),
		failures:  log.Sample(&zerolog.BurstSampler{Burst: 20, Period: time.Second}),
		wake:      make(chan Cause, 1),
		freed:     make(chan struct{}, 1),
		results:   make(chan event.Settlement, config.Concurrency),
		leases:    map[leaseKey]*lease{},
	}
}

// InHand is how many events the worker holds: claimed, and not settled yet.
func (w *Worker) InHand() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.leases)
}

// Run works until ctx ends, and then drains. It claims no more, gives back what it has not started, and lets deliveries
// in hand go on for StopTimeout. Then it cancels the rest, and settles every result.
func (w *Worker) Run(ctx context.Context) error {
	base := context.WithoutCancel(ctx)
	deliveries, cancelDeliveries := context.WithCancelCause(base)
	defer cancelDeliveries(errStopping)

	renewing, stopRenewing := context.WithCancel(base)
	settling, stopSettling := context.WithCancel(base)
	defer stopSettling()
	delivered, settled := make(chan struct{}), make(chan struct{})
	var background sync.WaitGroup
	background.Go(func() { w.renewLoop(renewing) })
	background.Go(func() {
		defer close(settled)
		w.settleLoop(settling)
	})
	// The time limit runs from the stop itself, whatever hangs: a claim, a delivery, or a result that waits for others.
	// Only claims with lent slots go by the time limit of the borrower.
	background.Go(func() {
		<-ctx.Done()
		select {
		case <-delivered:
		case <-time.After(w.config.StopTimeout):
			cancelDeliveries(errStopping)
		}
		// Results that cannot be settled within one more second are left to their leases.
		select {
		case <-settled:
		case <-time.After(time.Second):
			stopSettling()
		}
	})

	var runners sync.WaitGroup
	jobs := make(chan claimedJob)
	w.claimLoop(ctx, deliveries, func(job event.Job, asked time.Time) {
		next := claimedJob{job, asked}
		select {
		case jobs <- next: // to a runner that has nothing to do
		default:
			runners.Go(func() { w.runner(deliveries, next, jobs) })
		}
	})
	w.lending.Wait()
	close(jobs)
	runners.Wait()
	close(delivered)
	close(w.results)
	<-settled
	stopRenewing()
	background.Wait()
	return nil
}

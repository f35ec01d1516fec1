// Package worker takes events from the queue to their destination: it claims
// what is due, delivers with bounded concurrency, holds and renews leases,
// settles results in batches, and drains when it is stopped.
//
// It promises that every claimed event is delivered and settled, given back,
// or left to a lease that runs out: none is forgotten. No transaction is open
// during a delivery. It knows the queue and the destination only through the
// interfaces below. While it has nothing to do, others may claim for it.
package worker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
)

// Queue is where jobs come from and results go to. All methods are safe to
// call again after an error, and concurrently.
type Queue interface {
	// Claim leases due jobs. A claim whose answer is lost leaves leases that
	// run out.
	Claim(ctx context.Context, claim event.Claim) (event.Claimed, error)
	// Renew prolongs leases to lease from now and says which are still held.
	Renew(ctx context.Context, jobs []event.Job, lease time.Duration) ([]event.LeaseState, error)
	// Settle records results and says which count: those of leases still held.
	// Those of locked rows are to be settled again.
	Settle(ctx context.Context, settlements []event.Settlement) ([]event.LeaseState, error)
	// GiveBack returns leases whose delivery was never started.
	GiveBack(ctx context.Context, jobs []event.Job) error
}

// Deliverer makes one attempt and returns when it has ended, or soon after
// ctx has. It is called concurrently.
type Deliverer interface {
	Deliver(ctx context.Context, job event.Job) event.Result
}

// Activity is told what happens, for summaries. Add must not block.
type Activity interface {
	Add(action trail.Action, eventID string)
}

// Cause says why the worker looks at the queue.
type Cause string

// The causes of a look at the queue.
const (
	Notified    Cause = "notify"    // a notification arrived
	Ingested    Cause = "ingest"    // this process stored an event
	Lent        Cause = "lent"      // it stored one, and claimed for the worker at once
	Reconnected Cause = "reconnect" // the listener has a new connection and may have missed something
	TimerFired  Cause = "timer"     // a retry fell due or a lease ended
	SlotFreed   Cause = "slot"      // the last claim took all it could, and there is room again
	Swept       Cause = "sweep"     // nothing: the safety net
	Started     Cause = "start"
	Recovered   Cause = "recover" // the last claim failed
)

// scansAll reports whether a look must not trust the low watermark.
func (c Cause) scansAll() bool {
	switch c {
	case Started, Reconnected, Recovered:
		return true
	case Notified, Ingested, Lent, TimerFired, SlotFreed, Swept:
	}
	return false
}

// ErrBusy says that the worker lends nothing now.
var ErrBusy = errors.New("the worker lends no slots")

// Reasons for which a delivery is cancelled.
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
	Sweep       time.Duration // between two looks that nothing caused; below a second, so that whatever is due is claimed within one
	Hears       func() bool   // whether notifications are proven to arrive: they say what is due below the watermark
	Margin      time.Duration // how far the low watermark trails: commits this much later than their own clock are found without the sweeper
	StopTimeout time.Duration // how long deliveries in hand may go on after a stop
	Policy      Policy
}

// settleRows is how many results one transaction settles at most.
const settleRows = 500

// gatherTime is how long a busy worker waits at most for more free slots before
// it claims, and for more results before it settles: a transaction for a few
// costs nearly as much as one for many.
const gatherTime = 2 * time.Millisecond

// restTime is how long ago a worker's last claim must be for it to lend slots.
// From some 300 events/s on, whoever borrows had better store the next event
// while the worker claims the last one.
const restTime = 2 * time.Millisecond

// queuePatience bounds one call to the queue.
const queuePatience = 5 * time.Second

// lockedPause is how long the result of a row that somebody else has locked
// waits for its next try, where no other result comes before.
const lockedPause = 100 * time.Millisecond

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

	wake    chan Cause    // one pending wake-up; what it would say twice it need not say
	freed   chan struct{} // as many slots are free as were wanted
	results chan event.Settlement

	mu     sync.Mutex
	busy   int // slots in use, or lent
	wanted int // how many free slots the claim loop waits for; 0 when it does not
	held   map[leaseKey]*held
	told   bool      // of something due, since the last look
	due    time.Time // since when the oldest of that has been due; the zero time stands for ever
	loan   *loan     // on what terms slots are lent; nil when none are

	lending sync.WaitGroup // claims under way with slots that were lent
}

// loan is how a job comes into the worker that somebody else claims for it.
type loan struct {
	low     time.Time // where to look: all that fell due before has been claimed
	since   time.Time // when the last claim ended
	start   func(job event.Job, asked time.Time)
	stopped <-chan struct{}
}

type leaseKey struct{ event, lease int64 }

// held is a lease this worker holds, until its result is settled.
type held struct {
	job     event.Job
	renewed time.Time // when its last renewal, or its claim, was asked for
	cancel  context.CancelCauseFunc
	expiry  *time.Timer // cancels the delivery before the lease ends
}

// New returns a worker; Run makes it work.
func New(config Config, queue Queue, deliverer Deliverer, activity Activity, log zerolog.Logger, metrics *Metrics) *Worker {
	return &Worker{
		config: config, queue: queue, deliverer: deliverer, activity: activity, log: log, metrics: metrics, delays: config.Policy.Delays(),
		failures: log.Sample(&zerolog.BurstSampler{Burst: 20, Period: time.Second}),
		wake:     make(chan Cause, 1),
		freed:    make(chan struct{}, 1),
		results:  make(chan event.Settlement, config.Concurrency),
		held:     map[leaseKey]*held{},
	}
}

// Due tells the worker since when something has been due, so that its next look
// goes back as far; the zero time stands for ever. It never blocks.
func (w *Worker) Due(since time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.told || since.Before(w.due) {
		w.told, w.due = true, since
	}
}

// takeDue returns low, or since when something has been due where that is before.
func (w *Worker) takeDue(low time.Time) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told && w.due.Before(low) {
		low = w.due
	}
	w.told = false
	return low
}

// Wake makes the worker look at the queue. It never blocks.
func (w *Worker) Wake(cause Cause) {
	select {
	case w.wake <- cause:
	default: // a wake-up is pending, and the look that follows sees everything
	}
}

// Run works until ctx ends, and then drains: it claims no more, gives back what
// it has not started, lets deliveries in hand go on for StopTimeout, cancels
// those that are left, and settles every result.
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
	// The clock of the stop runs from the stop itself, whatever hangs: a claim
	// on its way, a delivery, or a result that waits for those before it. Only
	// claims with slots that were lent go by the clock of who borrowed them.
	background.Go(func() {
		<-ctx.Done()
		select {
		case <-delivered:
		case <-time.After(w.config.StopTimeout):
			cancelDeliveries(errStopping)
		}
		// What cannot be settled within a second more is left to its lease.
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

// claimLoop claims whenever there may be something due and a slot is free, and
// hands each job to start. It returns when ctx has ended. A claim that is on its
// way then may go on until claims ends.
func (w *Worker) claimLoop(ctx, claims context.Context, start func(job event.Job, asked time.Time)) {
	sweep := time.NewTicker(w.config.Sweep)
	defer sweep.Stop()
	due := time.NewTimer(w.config.Sweep)
	defer due.Stop()

	var low time.Time                          // everything due before has been claimed, but for what was committed late
	var scanned time.Time                      // when all was last looked at, below the watermark too
	var scanning, scanningBefore time.Duration // how long that took, and the look before
	cause, look := Started, true
	for ctx.Err() == nil {
		if !look {
			look = true
			w.lend(&loan{low: low, since: time.Now(), start: start, stopped: ctx.Done()})
			select {
			case cause = <-w.wake:
			case <-due.C:
				cause = TimerFired
			case <-sweep.C:
				cause = Swept
				select {
				case cause = <-w.wake: // it was told after all
				default:
				}
			case <-ctx.Done():
			}
			w.lend(nil)
			if ctx.Err() != nil {
				return
			}
		}
		wanted := 1
		if cause == SlotFreed {
			wanted = (w.config.Concurrency + 1) / 2
		}
		free := w.awaitSlots(ctx, wanted)
		if free == 0 {
			return
		}

		w.metrics.wakes.WithLabelValues(string(cause)).Inc()
		asked := time.Now()
		low = w.takeDue(low)
		from := low
		// Also in a worker that is never idle, what lies below the watermark is found in time.
		interval := w.scanInterval(min(scanning, scanningBefore), cause == SlotFreed) // one that took long may have met a slow disk
		all := cause.scansAll() || cause == Swept && interval <= w.config.Sweep || asked.Sub(scanned) >= interval
		if all {
			from = time.Time{}
		}
		claimed, err := w.claim(claims, free, from)
		took := time.Since(asked)
		if all {
			scanned, scanning, scanningBefore = asked, took, scanning
		}
		if err != nil {
			w.metrics.queueErrors.Inc()
			w.log.Warn().Err(err).Msg("claiming failed, trying again")
			cause = Recovered
			select {
			case <-time.After(w.config.Sweep):
			case <-ctx.Done():
			}
			continue
		}
		w.noteClaim(claimed, cause)
		if ctx.Err() != nil {
			w.giveBack(ctx, claimed.Jobs)
			return
		}
		for _, job := range claimed.Jobs {
			w.takeSlot()
			start(job, asked)
		}

		// A full batch means that there may be more. Otherwise nothing is due
		// until the next wake-up or the next timer.
		look, cause = len(claimed.Jobs)+len(claimed.Expired) == free, SlotFreed
		// It looked at what was due when it began, and tells the time of its end.
		low = w.watermark(low, from, look, claimed, claimed.Now.Add(-took))
		if claimed.NextDue > 0 {
			due.Reset(claimed.NextDue)
		} else {
			due.Stop()
		}
	}
}

// maxScanInterval bounds how long a look at everything may be put off.
const maxScanInterval = 10 * time.Second

// cheapScan is how long a look at everything may take without being put off:
// a tenth of the time between two sweeps.
const cheapScan = 50 * time.Millisecond

// scanInterval is how much time there is between two looks at everything: a
// sweep. While an old snapshot keeps dead rows from being removed, such a look
// walks over all of them. It then takes a third of the time, and of a worker
// that has all it can do a twentieth, as long as notifications are heard, which
// say what is due below the watermark. Late by that much is then only what
// nobody announces: a row that somebody had locked and leaves as it was.
func (w *Worker) scanInterval(took time.Duration, busy bool) time.Duration {
	if took <= cheapScan || !w.config.Hears() {
		return w.config.Sweep
	}
	share := time.Duration(3)
	if busy {
		share = 20
	}
	return min(max(share*took, w.config.Sweep), maxScanInterval)
}

// watermark returns the low watermark after a claim that looked from there on
// at what was due at the time looked, and was full or not: all that fell due a
// margin before what was claimed last, or before that time, has been claimed. A look at everything may take it back, for
// below it there may be more than one claim can hold: after a pause, after a
// large transaction, after the database's clock was set back.
func (w *Worker) watermark(low, from time.Time, full bool, claimed event.Claimed, looked time.Time) time.Time {
	reached := looked
	if full {
		reached = time.Time{}
		for _, job := range claimed.Jobs {
			if job.DueAt.After(reached) {
				reached = job.DueAt
			}
		}
	}
	all := from.IsZero()
	switch {
	case reached.Unix() <= 0: // only leases that had run out, or what was set due since ever: nothing to go by
		if all {
			return time.Time{}
		}
		return low
	case all, reached.Add(-w.config.Margin).After(low):
		return reached.Add(-w.config.Margin)
	}
	return low
}

// claim asks the queue for jobs. It is not cut short by a stop at once: a claim
// whose answer is thrown away holds its leases until they run out.
func (w *Worker) claim(ctx context.Context, limit int, low time.Time) (event.Claimed, error) {
	ctx, cancel := context.WithTimeout(ctx, queuePatience)
	defer cancel()
	return w.queue.Claim(ctx, w.look(limit, low))
}

// look is what the worker asks the queue for.
func (w *Worker) look(limit int, low time.Time) event.Claim {
	return event.Claim{
		Destination: w.config.Destination, Limit: limit, Lease: w.config.Lease, Worker: w.config.Name, Delays: w.delays, Low: low,
	}
}

func (w *Worker) noteClaim(claimed event.Claimed, cause Cause) {
	w.metrics.claimed.Add(float64(len(claimed.Jobs)))
	w.metrics.expired.Add(float64(len(claimed.Expired)))
	for _, job := range claimed.Expired {
		w.activity.Add(trail.LeaseExpired, job.ID)
		w.log.Warn().Str("event_id", job.ID).Str("source", job.Source).Int("attempt", job.Attempt).Msg("a lease ran out and was taken back")
	}
	for _, job := range claimed.Jobs {
		wait := claimed.Now.Sub(job.DueAt)
		w.metrics.waited.Observe(wait.Seconds())
		// A sweep may just be quicker than a wake-up that is on its way.
		if cause == Swept && wait > w.config.Sweep/2 {
			w.metrics.swept.Inc()
		}
		w.activity.Add(trail.ProcessingAttemptStarted, job.ID)
	}
}

// lend sets on what terms slots are lent from now on; nil: not at all.
func (w *Worker) lend(terms *loan) {
	w.mu.Lock()
	w.loan = terms
	w.mu.Unlock()
}

// Lend lets somebody else claim for the worker: up to slots jobs, which are
// delivered as if the worker itself had claimed them. It returns ErrBusy, and
// claim is not called, unless the worker has claimed all that was due and has
// had nothing to claim for a little while; nor where an event has one attempt in
// all, which a claim that is lost would spend. An error of claim is returned, and
// nothing is lent until the worker's own next claim has succeeded; what such a
// claim leased all the same runs out. A stop waits for claims under way, and
// what they lease then is given back.
func (w *Worker) Lend(ctx context.Context, slots int, claim func(event.Claim) (event.Claimed, error)) error {
	w.mu.Lock()
	terms := w.loan
	if terms == nil || w.config.Policy.MaxAttempts == 1 || time.Since(terms.since) < restTime || w.config.Concurrency-w.busy < slots {
		w.mu.Unlock()
		return ErrBusy
	}
	w.busy += slots
	w.lending.Add(1)
	w.mu.Unlock()
	defer w.lending.Done()

	asked := time.Now()
	claimed, err := claim(w.look(slots, terms.low))
	if err != nil {
		w.lend(nil)
		w.freeSlots(slots)
		return err
	}
	w.metrics.wakes.WithLabelValues(string(Lent)).Inc()
	w.mu.Lock()
	terms.since = time.Now()
	w.mu.Unlock()
	started := 0
	select {
	case <-terms.stopped:
		// Nobody who waits for the claim should wait for this too.
		w.lending.Go(func() { w.giveBack(ctx, claimed.Jobs) })
	default:
		for _, job := range claimed.Jobs {
			terms.start(job, asked)
		}
		started = len(claimed.Jobs)
	}
	w.freeSlots(slots - started)
	w.noteClaim(claimed, Lent)
	if len(claimed.Jobs)+len(claimed.Expired) == slots {
		w.Wake(Ingested) // there may be more
	}
	return nil
}

// giveBack returns jobs that were claimed while the worker was being stopped.
func (w *Worker) giveBack(ctx context.Context, jobs []event.Job) {
	if len(jobs) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := w.queue.GiveBack(ctx, jobs); err != nil {
		w.log.Warn().Err(err).Int("events", len(jobs)).Msg("giving back leases failed; they run out by themselves")
		return
	}
	for _, job := range jobs {
		w.activity.Add(trail.LeaseReturned, job.ID)
	}
}

// awaitSlots waits for free slots and returns how many there are: wanted or
// more, or fewer when gatherTime was over; 0 when ctx has ended.
func (w *Worker) awaitSlots(ctx context.Context, wanted int) (free int) {
	gathered := time.NewTimer(gatherTime)
	defer gathered.Stop()
	for {
		w.mu.Lock()
		free, w.wanted = w.config.Concurrency-w.busy, wanted
		if free >= wanted {
			w.wanted = 0
		}
		w.mu.Unlock()
		if free >= wanted {
			return free
		}
		select {
		case <-w.freed:
		case <-gathered.C:
			wanted = 1
		case <-ctx.Done():
			return 0
		}
	}
}

func (w *Worker) takeSlot() {
	w.mu.Lock()
	w.busy++
	w.mu.Unlock()
}

// freeSlots lets the claim loop know when as many are free as it wanted.
func (w *Worker) freeSlots(n int) {
	w.mu.Lock()
	w.busy -= n
	enough := w.wanted > 0 && w.config.Concurrency-w.busy >= w.wanted
	w.mu.Unlock()
	if enough {
		select {
		case w.freed <- struct{}{}:
		default:
		}
	}
}

// claimedJob is a job and when its claim was asked for.
type claimedJob struct {
	job   event.Job
	asked time.Time
}

// runner delivers one job after another, until there are no more to come or
// none has come for a sweep's time. A new goroutine for each job would have to
// grow its stack each time.
func (w *Worker) runner(ctx context.Context, next claimedJob, jobs <-chan claimedJob) {
	idle := time.NewTimer(w.config.Sweep)
	defer idle.Stop()
	for {
		w.deliver(ctx, next.job, next.asked)
		idle.Reset(w.config.Sweep)
		var ok bool
		select {
		case next, ok = <-jobs:
			if !ok {
				return
			}
		case <-idle.C:
			return
		}
	}
}

// deliver makes one attempt under its lease and hands the result on. The slot
// is free again when the result has been handed on.
func (w *Worker) deliver(ctx context.Context, job event.Job, asked time.Time) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	key := leaseKey{job.Event, job.Lease}
	h := &held{job: job, renewed: asked, cancel: cancel}
	// The lease began at the database no earlier than it was asked for here.
	h.expiry = time.AfterFunc(time.Until(asked.Add(w.safeLease())), func() { cancel(errLeaseLost) })
	w.mu.Lock()
	w.held[key] = h
	w.mu.Unlock()
	w.metrics.inHand.Inc()

	result := w.attempt(ctx, job)
	h.expiry.Stop()
	disposition, delay := w.config.Policy.Decide(job.Attempt, result, rand.Float64()) //nolint:gosec // jitter needs no secrecy
	w.results <- event.Settlement{Job: job, Result: result, Disposition: disposition, Delay: delay}
	w.freeSlots(1)
}

// safeLease is how long a delivery may rely on a lease: a little less than it holds.
func (w *Worker) safeLease() time.Duration { return w.config.Lease - w.config.Lease/10 }

// attempt delivers, and turns a panic into a failed attempt: it must cost this
// event an attempt, and nothing else anything.
func (w *Worker) attempt(ctx context.Context, job event.Job) (result event.Result) {
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			w.log.Error().Str("event_id", job.ID).Str("source", job.Source).Any("panic", p).Bytes("stack", debug.Stack()).Msg("a delivery panicked")
			result = event.Result{Class: event.TryAgain, Error: fmt.Sprintf("panic: %v", p), Duration: time.Since(start)}
		}
	}()
	return w.deliverer.Deliver(ctx, job)
}

// renewLoop prolongs the leases of deliveries that take long.
func (w *Worker) renewLoop(ctx context.Context) {
	tick := time.NewTicker(w.config.Lease / 6)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.renew(ctx)
		}
	}
}

// renew prolongs what is older than a third of its lease, and cancels the
// deliveries whose lease turns out to be lost. When the database does not
// answer, the deliveries are cancelled by their own timers in time.
func (w *Worker) renew(ctx context.Context) {
	asked := time.Now()
	var jobs []event.Job
	w.mu.Lock()
	for _, h := range w.held {
		if asked.Sub(h.renewed) >= w.config.Lease/3 {
			jobs = append(jobs, h.job)
		}
	}
	w.mu.Unlock()
	if len(jobs) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, w.config.Lease/3)
	defer cancel()
	holds, err := w.queue.Renew(ctx, jobs, w.config.Lease)
	if err != nil {
		w.metrics.queueErrors.Inc()
		w.log.Warn().Err(err).Msg("renewing leases failed, trying again")
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, job := range jobs {
		h := w.held[leaseKey{job.Event, job.Lease}]
		switch {
		case h == nil: // settled meanwhile
		case holds[i] == event.LeaseLost:
			h.cancel(errLeaseLost)
		case holds[i] == event.LeaseHeld && h.expiry.Stop():
			h.renewed = asked
			h.expiry.Reset(time.Until(asked.Add(w.safeLease())))
		}
	}
}

// settleLoop settles results until there are no more to come. Like the intake,
// it clocks itself: what arrives during one transaction makes up the next.
// Results of rows that somebody else has locked are carried into later batches.
func (w *Worker) settleLoop(ctx context.Context) {
	results := w.results
	var carried []event.Settlement
	for results != nil || len(carried) > 0 {
		batch := carried
		var again <-chan time.Time
		if len(carried) > 0 {
			again = time.After(lockedPause)
		}
		var gaveUp <-chan struct{} // as long as results come, they must be taken
		if results == nil {
			gaveUp = ctx.Done()
		}
		select {
		case s, ok := <-results:
			if ok {
				batch = append(batch, s)
			} else {
				results = nil
			}
		case <-again:
		case <-gaveUp:
			w.leave(carried)
			return
		}
		batch, results = w.gather(batch, results)
		carried = nil
		if len(batch) > 0 {
			carried = w.settle(ctx, batch)
		}
	}
}

// gather adds the results that are there to a batch, and, as long as more
// deliveries are under way than it has, those that come within gatherTime. It
// returns no channel of results once there are no more to come.
func (w *Worker) gather(batch []event.Settlement, results chan event.Settlement) ([]event.Settlement, chan event.Settlement) {
	var gathered <-chan time.Time
	for len(batch) < settleRows && results != nil {
		select {
		case s, ok := <-results:
			if !ok {
				return batch, nil
			}
			batch = append(batch, s)
			continue
		default:
		}
		if !w.moreUnderWay(len(batch)) {
			return batch, results
		}
		if gathered == nil {
			timer := time.NewTimer(gatherTime)
			defer timer.Stop()
			gathered = timer.C
		}
		select {
		case s, ok := <-results:
			if !ok {
				return batch, nil
			}
			batch = append(batch, s)
		case <-gathered:
			return batch, results
		}
	}
	return batch, results
}

// moreUnderWay reports whether more results may come soon than there are.
func (w *Worker) moreUnderWay(have int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.busy > have
}

// settle records results, again and again until it succeeds or the worker gives
// up, and returns those whose rows are locked. Until the commit the leases hold
// the events; after it, the result stands.
func (w *Worker) settle(ctx context.Context, batch []event.Settlement) (locked []event.Settlement) {
	for pause := 25 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		start := time.Now()
		try, cancel := context.WithTimeout(ctx, queuePatience)
		holds, err := w.queue.Settle(try, batch)
		cancel()
		if err == nil {
			var done []event.Settlement
			var counted []bool
			for i, s := range batch {
				if holds[i] == event.LeaseLocked {
					locked = append(locked, s)
					continue
				}
				done, counted = append(done, s), append(counted, holds[i] == event.LeaseHeld)
			}
			took := time.Since(start)
			if took > w.config.Margin/2 && slices.ContainsFunc(done, func(s event.Settlement) bool { return s.Disposition == event.Failed }) {
				w.Due(time.Time{}) // they may have fallen due long before they were committed
				w.Wake(TimerFired)
			}
			w.metrics.settleTime.Observe(took.Seconds())
			w.metrics.settleRows.Observe(float64(len(done)))
			w.noteSettled(done, counted)
			w.release(done)
			return locked
		}
		w.metrics.queueErrors.Inc()
		w.log.Warn().Err(err).Int("events", len(batch)).Msg("settling failed, trying again")
		select {
		case <-ctx.Done():
			w.leave(batch)
			return nil
		case <-time.After(pause):
		}
	}
}

// leave gives up results that cannot be recorded before the worker ends.
func (w *Worker) leave(batch []event.Settlement) {
	w.log.Error().Int("events", len(batch)).Msg("results could not be recorded; the events are delivered again when their leases run out")
	w.release(batch)
}

// release forgets the leases of a batch.
func (w *Worker) release(batch []event.Settlement) {
	w.mu.Lock()
	for i := range batch {
		delete(w.held, leaseKey{batch[i].Job.Event, batch[i].Job.Lease})
	}
	w.mu.Unlock()
	w.metrics.inHand.Sub(float64(len(batch)))
}

func (w *Worker) noteSettled(batch []event.Settlement, counted []bool) {
	soonest := w.config.Sweep
	for i := range batch {
		s := &batch[i]
		w.metrics.duration.Observe(s.Result.Duration.Seconds())
		line := func(l zerolog.Logger, level zerolog.Level) *zerolog.Event {
			return l.WithLevel(level).Str("event_id", s.Job.ID).Str("source", s.Job.Source).Int("attempt", s.Job.Attempt).
				Int("status", s.Result.Status).Dur("duration_ms", s.Result.Duration)
		}
		if !counted[i] {
			w.metrics.lost.Inc()
			w.activity.Add(trail.LeaseLost, s.Job.ID)
			line(w.log, zerolog.WarnLevel).Msg("a result did not count: the lease was lost")
			continue
		}
		w.metrics.attempts.WithLabelValues(string(s.Disposition)).Inc()
		switch s.Disposition {
		case event.Completed:
			w.activity.Add(trail.ProcessingSucceeded, s.Job.ID)
			line(w.log, zerolog.DebugLevel).Str("outcome", "completed").Msg("delivered")
		case event.Failed:
			soonest = min(soonest, s.Delay)
			w.activity.Add(trail.ProcessingAttemptFailed, s.Job.ID)
			w.activity.Add(trail.RetryScheduled, s.Job.ID)
			line(w.failures, zerolog.InfoLevel).Str("outcome", "failed").Str("error", s.Result.Error).Dur("retry_in_ms", s.Delay).Msg("delivery failed, to be tried again")
		case event.Dead:
			w.activity.Add(trail.ProcessingAttemptFailed, s.Job.ID)
			w.activity.Add(trail.ProcessingFailedPermanently, s.Job.ID)
			line(w.failures, zerolog.WarnLevel).Str("outcome", "dead").Str("error", s.Result.Error).Msg("delivery given up")
		}
	}
	// A retry that falls due before the next sweep is in no claim's NextDue yet.
	if soonest < w.config.Sweep {
		time.AfterFunc(soonest, func() { w.Wake(TimerFired) })
	}
}

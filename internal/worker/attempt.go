package worker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// claimedJob is a job, and when its claim was sent.
type claimedJob struct {
	job   event.Job
	asked time.Time
}

// runner delivers one job after another, until jobs is closed or none has come for a sweep's time. A new goroutine for
// each job would have to grow its stack each time.
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

// deliver makes one attempt under its lease and hands the result to the settle loop. Then the slot is free again.
func (w *Worker) deliver(ctx context.Context, job event.Job, asked time.Time) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	key := leaseKey{job.Event, job.Lease}
	l := &lease{job: job, renewed: asked, cancel: cancel}
	// The lease began at the database no earlier than its claim was sent from here.
	l.expiry = time.AfterFunc(time.Until(asked.Add(w.safeLease())), func() { cancel(errLeaseLost) })
	w.mu.Lock()
	w.leases[key] = l
	w.mu.Unlock()
	w.metrics.inHand.Inc()

	result := w.attempt(ctx, job)
	l.expiry.Stop()
	jitter := rand.Float64() //nolint:gosec // it needs no secrecy
	disposition, delay, byRetryAfter := w.config.Policy.Decide(job.Attempt, result, jitter)
	w.results <- event.Settlement{Job: job, Result: result, Disposition: disposition, Delay: delay, Asked: byRetryAfter}
	w.freeSlots(1)
}

// attempt delivers, and turns a panic into a failed attempt: it costs this event an attempt, and others nothing.
func (w *Worker) attempt(ctx context.Context, job event.Job) (result event.Result) {
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			w.log.Error().
				Str("event_id", job.ID).
				Str("source", job.Source).
				Any("panic", p).
				Bytes("stack", debug.Stack()).
				Msg("a delivery panicked")
			result = event.Result{
				Class:    event.TryAgain,
				Error:    fmt.Sprintf("panic: %v", p),
				Duration: time.Since(start),
			}
		}
	}()
	return w.deliverer.Deliver(ctx, job)
}

package worker

import (
	"context"
	"errors"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// ErrBusy says that the worker lends nothing now.
var ErrBusy = errors.New("the worker lends no slots")

// restTime is how long ago a worker's last claim must have ended for it to lend slots. Above some 300 events/s it is
// better that the borrower stores the next event while the worker claims the last one.
const restTime = 2 * time.Millisecond

// loan is the terms on which somebody else claims for the worker.
type loan struct {
	low     time.Time // the low watermark: every row due before has been claimed, except those committed late or locked
	since   time.Time // when the last claim ended
	start   func(job event.Job, asked time.Time)
	stopped <-chan struct{}
}

// lend sets the terms on which slots are lent from now on. With nil none are.
func (w *Worker) lend(terms *loan) {
	w.mu.Lock()
	w.loan = terms
	w.mu.Unlock()
}

// Lend lets somebody else claim up to slots jobs for the worker, which delivers them as if it had claimed them itself.
//
// It returns ErrBusy without calling claim for one of these reasons. The worker is not waiting for work: it claims, is
// stopped, or has not claimed yet. Its last claim ended less than restTime ago. Fewer than slots slots are free. An
// event has a single attempt, and a claim whose answer is lost would spend it.
//
// It returns an error of claim as it is. The worker then lends nothing until its own next claim has succeeded. The
// leases of a claim whose answer was lost run out. A stop waits for claims under way and gives back what they lease.
func (w *Worker) Lend(ctx context.Context, slots int, claim func(event.Claim) (event.Claimed, error)) error {
	w.mu.Lock()
	terms := w.loan
	if terms == nil || w.config.Policy.MaxAttempts == 1 || time.Since(terms.since) < restTime ||
		w.config.Concurrency-w.busy < slots {
		w.mu.Unlock()
		return ErrBusy
	}
	w.busy += slots
	w.lending.Add(1)
	w.mu.Unlock()
	defer w.lending.Done()

	asked := time.Now()
	claimed, err := claim(w.claimFor(slots, terms.low))
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
		// In the background: whoever waits for the claim need not wait for this.
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

package worker

import (
	"context"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

type leaseKey struct{ event, lease int64 }

// lease is a lease that this worker holds until its result is settled.
type lease struct {
	job     event.Job
	renewed time.Time // when its last renewal, or its claim, was sent
	cancel  context.CancelCauseFunc
	expiry  *time.Timer // cancels the delivery before the lease ends
}

// safeLease is how long a delivery may rely on a lease: nine tenths of it.
func (w *Worker) safeLease() time.Duration { return w.config.Lease - w.config.Lease/10 }

// renewLoop renews the leases of long deliveries until ctx ends.
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

// renew renews leases of which a third has passed, and cancels the deliveries whose lease turns out to be lost. When
// the database does not answer, each delivery is cancelled in time by its own timer.
func (w *Worker) renew(ctx context.Context) {
	asked := time.Now()
	var jobs []event.Job
	w.mu.Lock()
	for _, l := range w.leases {
		if asked.Sub(l.renewed) >= w.config.Lease/3 {
			jobs = append(jobs, l.job)
		}
	}
	w.mu.Unlock()
	if len(jobs) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, w.config.Lease/3)
	defer cancel()
	states, err := w.queue.Renew(ctx, jobs, w.config.Lease)
	if err != nil {
		w.metrics.queueErrors.Inc()
		w.log.Warn().Err(err).Msg("renewing leases failed, trying again")
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, job := range jobs {
		l := w.leases[leaseKey{job.Event, job.Lease}]
		switch {
		case l == nil: // settled meanwhile
		case states[i] == event.LeaseLost:
			l.cancel(errLeaseLost)
		case states[i] == event.LeaseHeld && l.expiry.Stop():
			l.renewed = asked
			l.expiry.Reset(time.Until(asked.Add(w.safeLease())))
		}
	}
}

// release forgets the leases of a batch.
func (w *Worker) release(batch []event.Settlement) {
	w.mu.Lock()
	for i := range batch {
		delete(w.leases, leaseKey{batch[i].Job.Event, batch[i].Job.Lease})
	}
	w.mu.Unlock()
	w.metrics.inHand.Sub(float64(len(batch)))
}

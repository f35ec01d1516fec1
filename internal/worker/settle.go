package worker

import (
	"context"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
)

// settleRows is the limit on results that one transaction settles.
const settleRows = 500

// lockedPause is how long the result of a locked row waits for its next try, unless another result comes before.
const lockedPause = 100 * time.Millisecond

// settleLoop settles results until their channel is closed and none is left. It sets its own pace, as ingest does: the
// results that arrive during one transaction make up the next. It carries results of locked rows into later batches.
func (w *Worker) settleLoop(ctx context.Context) {
	results := w.results
	var carried []event.Settlement
	for results != nil || len(carried) > 0 {
		batch := carried
		var again <-chan time.Time
		if len(carried) > 0 {
			again = time.After(lockedPause)
		}
		var gaveUp <-chan struct{} // nil while results may come, since the loop must receive them
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

// gather adds the waiting results to a batch. While more deliveries are under way than the batch holds, it also adds
// those that come within gatherTime. It returns a nil channel once results is closed.
func (w *Worker) gather(
	batch []event.Settlement,
	results chan event.Settlement,
) ([]event.Settlement, chan event.Settlement) {
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

// moreUnderWay reports whether more deliveries are under way than have results.
func (w *Worker) moreUnderWay(have int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.busy > have
}

// settle records results. It tries until it succeeds or ctx ends, and returns the results of locked rows. A crash
// before the commit leaves the events to their leases; after it, the results stand.
func (w *Worker) settle(ctx context.Context, batch []event.Settlement) (locked []event.Settlement) {
	for pause := 25 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		start := time.Now()
		try, cancel := context.WithTimeout(ctx, queuePatience)
		states, err := w.queue.Settle(try, batch)
		cancel()
		if err == nil {
			var done []event.Settlement
			var counted []bool
			for i, s := range batch {
				if states[i] == event.LeaseLocked {
					locked = append(locked, s)
					continue
				}
				if states[i] == event.LeaseGivenUp {
					s.Disposition = event.Dead
				}
				done, counted = append(done, s), append(counted, states[i] != event.LeaseLost)
			}
			took := time.Since(start)
			if took > w.config.Margin/2 &&
				slices.ContainsFunc(done, func(s event.Settlement) bool {
					return s.Disposition == event.Failed || s.Disposition == event.Deferred
				}) {
				w.Due(time.Time{}) // the retries may have fallen due long before the commit
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

// leave gives up results that cannot be recorded before the worker ends. Their leases run out.
func (w *Worker) leave(batch []event.Settlement) {
	w.log.Error().
		Int("events", len(batch)).
		Msg("results could not be recorded; the events are delivered again when their leases run out")
	w.release(batch)
}

func (w *Worker) noteSettled(batch []event.Settlement, counted []bool) {
	soonest := w.config.Sweep
	for i := range batch {
		s := &batch[i]
		w.metrics.duration.Observe(s.Result.Duration.Seconds())
		line := func(l zerolog.Logger, level zerolog.Level) *zerolog.Event {
			return l.WithLevel(level).
				Str("event_id", s.Job.ID).
				Str("source", s.Job.Source).
				Int("attempt", s.Job.Attempt).
				Int("status", s.Result.Status).
				Dur("duration_ms", s.Result.Duration)
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
			line(
				w.failures,
				zerolog.InfoLevel,
			).Str("outcome", "failed").
				Str("error", s.Result.Error).
				Dur("retry_in_ms", s.Delay).
				Msg("delivery failed, to be tried again")
		case event.Deferred:
			soonest = min(soonest, s.Delay)
			w.activity.Add(trail.DeliveryDeferred, s.Job.ID)
			line(
				w.failures,
				zerolog.InfoLevel,
			).Str("outcome", "deferred").
				Str("error", s.Result.Error).
				Msg("the destination was not reached, to be tried again")
		case event.Dead:
			w.activity.Add(trail.ProcessingAttemptFailed, s.Job.ID)
			w.activity.Add(trail.ProcessingFailedPermanently, s.Job.ID)
			line(
				w.failures,
				zerolog.WarnLevel,
			).Str("outcome", "dead").
				Str("error", s.Result.Error).
				Msg("delivery given up")
		}
	}
	// A retry that falls due before the next sweep is in no claim's NextDue yet.
	if soonest < w.config.Sweep {
		time.AfterFunc(soonest, func() { w.Wake(TimerFired) })
	}
}

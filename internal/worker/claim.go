package worker

import (
	"context"
	"time"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
)

// gatherTime is how long a busy worker waits at most for more free slots before it claims, and for more results before
// it settles. A transaction for a few rows costs nearly as much as one for many.
const gatherTime = 2 * time.Millisecond

// Due tells the worker since when an event has been due, so that its next claim goes back as far. The zero time stands
// for ever. It never blocks.
func (w *Worker) Due(since time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.told || since.Before(w.due) {
		w.told, w.due = true, since
	}
}

// takeDue returns low, or the earliest time that Due was told where that is earlier.
func (w *Worker) takeDue(low time.Time) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told && w.due.Before(low) {
		low = w.due
	}
	w.told = false
	return low
}

// Wake makes the worker claim. It never blocks.
func (w *Worker) Wake(cause Cause) {
	select {
	case w.wake <- cause:
	default: // a wake-up is pending, and the claim that follows it sees everything
	}
}

// claimLoop claims whenever an event may be due and a slot is free, and hands each job to start. It returns when ctx
// has ended. A claim that is under way then may go on until claims ends.
func (w *Worker) claimLoop(ctx, claims context.Context, start func(job event.Job, asked time.Time)) {
	sweep := time.NewTicker(w.config.Sweep)
	defer sweep.Stop()
	due := time.NewTimer(w.config.Sweep)
	defer due.Stop()

	var low time.Time                          // the low watermark, as watermark returns it
	var scanned time.Time                      // when the last full scan began
	var scanning, scanningBefore time.Duration // how long it took, and the one before
	cause, again := Started, true
	for ctx.Err() == nil {
		if !again {
			again = true
			w.lend(&loan{low: low, since: time.Now(), start: start, stopped: ctx.Done()})
			select {
			case cause = <-w.wake:
			case <-due.C:
				cause = TimerFired
			case <-sweep.C:
				cause = Swept
				select {
				case cause = <-w.wake: // a wake-up came after all
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
		// Also a worker that is never idle must find rows below the watermark in time. One slow scan may have met a
		// slow disk, so the interval goes by the quicker of the last two.
		interval := w.scanInterval(min(scanning, scanningBefore), cause == SlotFreed)
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

		// A full batch means that there may be more. Otherwise nothing is due until the next wake-up or timer.
		again, cause = len(claimed.Jobs)+len(claimed.Expired) == free, SlotFreed
		// A claim reads the rows that are due when it begins, and tells the time of its end.
		low = w.watermark(low, from, again, claimed, claimed.Now.Add(-took))
		if claimed.NextDue > 0 {
			due.Reset(claimed.NextDue)
		} else {
			due.Stop()
		}
	}
}

// maxScanInterval is the longest time between two full scans.
const maxScanInterval = 10 * time.Second

// cheapScan is how long a full scan may take to be part of each sweep: a tenth of the time between two sweeps.
const cheapScan = 50 * time.Millisecond

// scanInterval returns the time between two full scans: that of a sweep, unless scans are expensive. While an old
// snapshot keeps dead rows from being removed, a full scan walks over all of them. It may then take a third of the
// worker's time, and a twentieth of a busy worker's. That holds only while notifications arrive, which name what is due
// below the watermark. Only a row that nobody announces is then late: one that somebody had locked and left as it was.
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

// watermark returns the new low watermark. Every row due before it has been claimed, except rows committed late or
// locked. The claim has read what was due between the times from and until. If it was full, the watermark trails the
// last row claimed by a margin; otherwise it trails until. A full scan may take the watermark back. Below it there may
// be more rows than one claim can hold. That is so after a pause, after a large transaction, or after the database's
// clock was set back.
func (w *Worker) watermark(low, from time.Time, full bool, claimed event.Claimed, until time.Time) time.Time {
	reached := until
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
	case reached.Unix() <= 0: // only leases that had run out, or rows due since ever: nothing to go by
		if all {
			return time.Time{}
		}
		return low
	case all, reached.Add(-w.config.Margin).After(low):
		return reached.Add(-w.config.Margin)
	}
	return low
}

// claim asks the queue for jobs. A stop does not cut it short at once: a claim whose answer is thrown away holds its
// leases until they run out.
func (w *Worker) claim(ctx context.Context, limit int, low time.Time) (event.Claimed, error) {
	ctx, cancel := context.WithTimeout(ctx, queuePatience)
	defer cancel()
	return w.queue.Claim(ctx, w.claimFor(limit, low))
}

// claimFor is a claim of up to limit jobs from the watermark low on.
func (w *Worker) claimFor(limit int, low time.Time) event.Claim {
	return event.Claim{
		Destination: w.config.Destination,
		Limit:       limit,
		Lease:       w.config.Lease,
		Worker:      w.config.Name,
		Delays:      w.delays,
		Low:         low,
	}
}

func (w *Worker) noteClaim(claimed event.Claimed, cause Cause) {
	w.metrics.claimed.Add(float64(len(claimed.Jobs)))
	w.metrics.expired.Add(float64(len(claimed.Expired)))
	for _, job := range claimed.Expired {
		w.activity.Add(trail.LeaseExpired, job.ID)
		w.log.Warn().
			Str("event_id", job.ID).
			Str("source", job.Source).
			Int("attempt", job.Attempt).
			Msg("a lease ran out and was taken back")
	}
	for _, job := range claimed.Jobs {
		wait := claimed.Now.Sub(job.DueAt)
		w.metrics.waited.Observe(wait.Seconds())
		// A sweep may just be quicker than a wake-up under way.
		if cause == Swept && wait > w.config.Sweep/2 {
			w.metrics.swept.Inc()
		}
		w.activity.Add(trail.ProcessingAttemptStarted, job.ID)
	}
}

// giveBack gives back the leases of jobs that were claimed while the worker was being stopped.
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

// awaitSlots waits for free slots and returns their number: wanted or more, or fewer after gatherTime, or 0 when ctx
// has ended.
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

// freeSlots tells the claim loop when as many slots are free as it wants.
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

package worker

import (
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// jitterShare is how much of a delay jitter adds at most. It is enough to spread the retries after an outage.
const jitterShare = 0.1

// The delay after the first attempt in a row that did not reach the destination is the policy's first one, within these
// limits. Such attempts have no end soon, so a policy without a delay must not make them a loop.
const (
	minDeferral = 100 * time.Millisecond
	maxDeferral = 50 * time.Second // with jitter below the minute beyond which spine.settle lets none grow
)

// Policy says whether and when a failed delivery is tried again.
type Policy struct {
	MaxAttempts    int           // attempts in all, 1 or more
	InitialDelay   time.Duration // after the first failed attempt; doubled after each further one
	MaxDelay       time.Duration // of the doubling, before jitter
	CountUnreached bool          // attempts that did not reach the destination count like any other
}

// Delay returns how long to wait after failed attempt n (1 for the first).
func (p Policy) Delay(n int) time.Duration {
	delay := p.InitialDelay
	for range n - 1 {
		if delay > p.MaxDelay/2 {
			return p.MaxDelay
		}
		delay *= 2
	}
	return min(delay, p.MaxDelay)
}

// Delays returns the delay after each attempt that another may follow. The queue wants the policy in this form, for
// leases that run out.
func (p Policy) Delays() []time.Duration {
	delays := make([]time.Duration, p.MaxAttempts-1)
	for i := range delays {
		delays[i] = p.Delay(i + 1)
	}
	return delays
}

// Decide says what becomes of a job after an attempt. The delay is the larger of the policy's and the destination's;
// asked says that it is the latter. jitter is a random number from 0 to 1. It only ever adds to the delay. An attempt
// that did not reach the destination is deferred, and counts for nothing.
func (p Policy) Decide(
	attempt int,
	result event.Result,
	jitter float64,
) (disposition event.Disposition, delay time.Duration, asked bool) {
	longer := func(d time.Duration) time.Duration { return d + time.Duration(float64(d)*jitterShare*jitter) }
	switch result.Class {
	case event.Done:
		return event.Completed, 0, false
	case event.GiveUp:
		return event.Dead, 0, false
	case event.Unreached:
		if !p.CountUnreached {
			return event.Deferred, longer(min(max(p.InitialDelay, minDeferral), maxDeferral)), false
		}
	case event.TryAgain:
	}
	if attempt >= p.MaxAttempts {
		return event.Dead, 0, false
	}
	delay = p.Delay(attempt)
	asked = result.RetryAfter > delay
	return event.Failed, longer(max(delay, result.RetryAfter)), asked
}

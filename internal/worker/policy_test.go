package worker

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/webhookspine/spine/internal/event"
)

// standard is the policy of the default settings.
var standard = Policy{MaxAttempts: 5, InitialDelay: time.Second, MaxDelay: time.Minute}

func TestDecide(t *testing.T) {
	tryAgain := event.Result{Class: event.TryAgain, Status: 503}
	after := func(d time.Duration) event.Result {
		return event.Result{Class: event.TryAgain, Status: 429, RetryAfter: d}
	}
	many := Policy{MaxAttempts: math.MaxInt, InitialDelay: time.Second, MaxDelay: time.Minute}
	unreached := event.Result{Class: event.Unreached, Error: "connection refused"}
	single := Policy{MaxAttempts: 1, InitialDelay: time.Second, MaxDelay: time.Minute}
	hourly := Policy{MaxAttempts: 5, InitialDelay: time.Hour, MaxDelay: time.Hour}
	counting := standard
	counting.CountUnreached = true
	for name, c := range map[string]struct {
		policy      Policy
		attempt     int
		result      event.Result
		jitter      float64
		disposition event.Disposition
		delay       time.Duration
	}{
		"attempt 1 failed":              {standard, 1, tryAgain, 0, event.Failed, time.Second},
		"attempt 2 failed":              {standard, 2, tryAgain, 0, event.Failed, 2 * time.Second},
		"attempt 3 failed":              {standard, 3, tryAgain, 0, event.Failed, 4 * time.Second},
		"attempt 4 failed":              {standard, 4, tryAgain, 0, event.Failed, 8 * time.Second},
		"the last attempt failed":       {standard, 5, tryAgain, 0, event.Dead, 0},
		"beyond the last":               {standard, 6, tryAgain, 0, event.Dead, 0},
		"the last, asked to come again": {standard, 5, after(time.Minute), 0, event.Dead, 0},
		"below the cap":                 {many, 6, tryAgain, 0, event.Failed, 32 * time.Second},
		"capped":                        {many, 7, tryAgain, 0, event.Failed, time.Minute},
		"attempt 63: no overflow":       {many, 63, tryAgain, 0, event.Failed, time.Minute},
		"attempt 65: no overflow":       {many, 65, tryAgain, 0, event.Failed, time.Minute},
		"a huge attempt: no overflow":   {many, math.MaxInt32, tryAgain, 0, event.Failed, time.Minute},
		"a huge cap: no overflow": {
			Policy{MaxAttempts: math.MaxInt, InitialDelay: time.Second, MaxDelay: math.MaxInt64},
			math.MaxInt32,
			tryAgain,
			0,
			event.Failed,
			math.MaxInt64,
		},
		"a cap of an odd length": {
			Policy{MaxAttempts: 9, InitialDelay: time.Second, MaxDelay: 2*time.Second + 1},
			2,
			tryAgain,
			0,
			event.Failed,
			2 * time.Second,
		},
		"a cap below the first delay": {
			Policy{MaxAttempts: 9, InitialDelay: time.Minute, MaxDelay: time.Second},
			1,
			tryAgain,
			0,
			event.Failed,
			time.Second,
		},
		"only one attempt":                  {single, 1, tryAgain, 0, event.Dead, 0},
		"not reached":                       {standard, 1, unreached, 0, event.Deferred, time.Second},
		"not reached at the last attempt":   {single, 1, unreached, 1, event.Deferred, 1100 * time.Millisecond},
		"not reached, without a delay":      {Policy{MaxAttempts: 5}, 1, unreached, 0, event.Deferred, minDeferral},
		"not reached, with a long delay":    {hourly, 1, unreached, 1, event.Deferred, 55 * time.Second},
		"not reached, which is to count":    {counting, 4, unreached, 0, event.Failed, 8 * time.Second},
		"not reached, which counts as last": {counting, 5, unreached, 0, event.Dead, 0},
		"Retry-After is larger":             {standard, 1, after(30 * time.Second), 0, event.Failed, 30 * time.Second},
		"Retry-After is beyond the cap":     {standard, 1, after(time.Hour), 0, event.Failed, time.Hour},
		"Retry-After is smaller":            {standard, 4, after(2 * time.Second), 0, event.Failed, 8 * time.Second},
		"half the jitter":                   {standard, 4, tryAgain, 0.5, event.Failed, 8400 * time.Millisecond},
		"all the jitter":                    {standard, 1, tryAgain, 1, event.Failed, 1100 * time.Millisecond},
		"jitter comes on top of the cap":    {many, 7, tryAgain, 1, event.Failed, 66 * time.Second},
		"jitter comes on top of the answer": {standard, 1, after(10 * time.Second), 1, event.Failed, 11 * time.Second},
		"done": {
			standard,
			1,
			event.Result{Class: event.Done, Status: 200},
			1,
			event.Completed,
			0,
		},
		"done at the last attempt": {standard, 5, event.Result{Class: event.Done, Status: 204}, 1, event.Completed, 0},
		"done, with a Retry-After": {
			standard,
			1,
			event.Result{Class: event.Done, RetryAfter: time.Minute},
			1,
			event.Completed,
			0,
		},
		"given up at the first attempt": {
			standard,
			1,
			event.Result{Class: event.GiveUp, Status: 400},
			1,
			event.Dead,
			0,
		},
		"given up, with a Retry-After": {
			standard,
			1,
			event.Result{Class: event.GiveUp, RetryAfter: time.Minute},
			1,
			event.Dead,
			0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			disposition, delay, asked := c.policy.Decide(c.attempt, c.result, c.jitter)
			require.Equal(t, c.disposition, disposition)
			require.Equal(t, c.delay, delay)
			require.Equal(t, disposition == event.Failed && c.result.RetryAfter > c.policy.Delay(c.attempt), asked)
		})
	}
}

func TestDelays(t *testing.T) {
	require.Equal(t, []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}, standard.Delays())
	require.Empty(t, Policy{MaxAttempts: 1, InitialDelay: time.Second, MaxDelay: time.Minute}.Delays())
}

func TestDelayIsTheDoublingWithinItsCap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Policy{
			MaxAttempts:  math.MaxInt,
			InitialDelay: time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "initial")),
			MaxDelay:     time.Duration(rapid.Int64Range(1, int64(24*time.Hour)).Draw(t, "max")),
		}
		n := rapid.IntRange(1, 200).Draw(t, "attempt")
		want := math.Min(float64(p.InitialDelay)*math.Pow(2, float64(n-1)), float64(p.MaxDelay))
		require.InDelta(t, want, float64(p.Delay(n)), 0)

		asked := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "asked"))
		jitter := rapid.Float64Range(0, 1).Draw(t, "jitter")
		disposition, delay, reason := p.Decide(n, event.Result{Class: event.TryAgain, RetryAfter: asked}, jitter)
		require.Equal(t, event.Failed, disposition)
		require.Equal(t, asked > p.Delay(n), reason)
		least := max(p.Delay(n), asked)
		require.GreaterOrEqual(t, delay, least)
		require.LessOrEqual(t, delay, least+least/10+1)
	})
}

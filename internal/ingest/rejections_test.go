package ingest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

// audited is a call to a Rejector.
type audited struct {
	after     time.Duration // since the start
	summaries []event.RejectionSummary
	again     bool
}

// rejectorFunc is a Rejector.
type rejectorFunc func(ctx context.Context, summaries []event.RejectionSummary, again bool) error

func (f rejectorFunc) Reject(ctx context.Context, summaries []event.RejectionSummary, again bool) error {
	return f(ctx, summaries, again)
}

// audit runs f beside Rejections at work, stops them, and returns what was
// tried. fail says which calls fail, counted from 0.
func audit(t *testing.T, fail func(call int) error, f func(r *Rejections)) (calls []audited) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		reject := func(ctx context.Context, summaries []event.RejectionSummary, again bool) error {
			if err := ctx.Err(); err != nil {
				t.Error("a call that could not succeed")
				return err
			}
			calls = append(calls, audited{time.Since(began), slices.Clone(summaries), again})
			if fail != nil {
				return fail(len(calls) - 1)
			}
			return nil
		}
		r := NewRejections(rejectorFunc(reject), time.Now, zerolog.Nop())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- r.Run(ctx) }()
		f(r)
		cancel()
		require.NoError(t, <-ended)
	})
	return calls
}

func TestFirstRejectionIsAuditedWithinASecondAndThenEveryTen(t *testing.T) {
	calls := audit(t, nil, func(r *Rejections) {
		for range 25 * 1000 {
			r.Add(event.DefaultSource, "not_json", 400)
			<-time.After(time.Millisecond)
		}
	})
	var at []time.Duration
	var total int64
	for _, c := range calls {
		at = append(at, c.after.Round(100*time.Millisecond))
		require.Len(t, c.summaries, 1)
		total += c.summaries[0].Count
	}
	require.Equal(
		t,
		[]time.Duration{time.Second, 11 * time.Second, 21 * time.Second, 25 * time.Second},
		at,
		"the last at the stop",
	)
	require.Equal(t, int64(25_000), total, "every one is counted, once")
}

func TestRejectionsAreCountedByKind(t *testing.T) {
	var began time.Time
	calls := audit(t, nil, func(r *Rejections) {
		began = time.Now()
		r.Add(event.DefaultSource, "not_json", 400)
		r.Add(event.DefaultSource, "not_json", 400)
		r.Add("", "no_such_source", 404)
		<-time.After(1500 * time.Millisecond)
		r.Add(event.DefaultSource, "too_large", 413)
		r.Add(event.DefaultSource, "not_json", 400)
		<-time.After(time.Minute)
	})
	require.Len(t, calls, 3)
	require.ElementsMatch(t, []event.RejectionSummary{
		{Source: event.DefaultSource, Cause: "not_json", Status: 400, Count: 2, Since: began},
		{Source: "", Cause: "no_such_source", Status: 404, Count: 1, Since: began},
	}, calls[0].summaries)
	later := began.Add(1500 * time.Millisecond)
	require.Equal(t, audited{2 * time.Second, []event.RejectionSummary{
		{Source: event.DefaultSource, Cause: "too_large", Status: 413, Count: 1, Since: later},
	}, false}, calls[1], "another kind does not wait for the first")
	require.Equal(t, audited{11 * time.Second, []event.RejectionSummary{
		{Source: event.DefaultSource, Cause: "not_json", Status: 400, Count: 1, Since: later},
	}, false}, calls[2])
}

// It may have been audited all the same: it is handed in again as it was, and as
// what it is.
func TestRejectionsThatCannotBeAuditedAreKept(t *testing.T) {
	var began time.Time
	calls := audit(t, func(call int) error {
		if call < 2 {
			return errAway
		}
		return nil
	}, func(r *Rejections) {
		began = time.Now()
		r.Add(event.DefaultSource, "not_json", 400)
		<-time.After(5 * time.Second)
		r.Add(event.DefaultSource, "not_json", 400)
		<-time.After(time.Minute)
	})
	first := []event.RejectionSummary{
		{Source: event.DefaultSource, Cause: "not_json", Status: 400, Count: 1, Since: began},
	}
	second := []event.RejectionSummary{
		{Source: event.DefaultSource, Cause: "not_json", Status: 400, Count: 1, Since: began.Add(5 * time.Second)},
	}
	require.Equal(t, []audited{
		{
			time.Second,
			first,
			false,
		}, {11 * time.Second, first, true}, {21 * time.Second, first, true}, {21 * time.Second, second, false},
	}, calls)
}

// Summaries that the database never accepts must not hold up the others.
func TestRejectionsThatTheDatabaseRejectsAreDropped(t *testing.T) {
	calls := audit(t, func(call int) error {
		if call == 0 {
			return fmt.Errorf("no: %w", event.ErrInvalidData)
		}
		return nil
	}, func(r *Rejections) {
		r.Add(event.DefaultSource, "odd", 400)
		<-time.After(1500 * time.Millisecond)
		r.Add(event.DefaultSource, "not_json", 400)
		<-time.After(time.Minute)
	})
	require.Len(t, calls, 2)
	require.Equal(t, "not_json", calls[1].summaries[0].Cause)
	require.Equal(t, 2*time.Second, calls[1].after)
}

func TestNothingRejectedNothingAudited(t *testing.T) {
	require.Empty(t, audit(t, nil, func(*Rejections) { <-time.After(time.Minute) }))
}

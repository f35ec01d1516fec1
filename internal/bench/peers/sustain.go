package main

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/webhookspine/spine/internal/bench"
)

// How S5 searches for the highest rate that a system ingests and delivers at once. A closed loop
// would not do, because ingest runs ahead and delivery falls behind.
const (
	sustainedShare = 0.97 // share of the offered events to deliver by the end
	sustainedStep  = 1.15
	sustainedTries = 12
)

// step is one rate that was tried.
type step struct {
	rate      float64
	delivered float64 // a second, from the first event to the last arrival
	grown     float64 // events a second, by which the backlog grew
	p50, p99  float64 // POST to arrival, ms
}

// sustained reports whether the system kept up. It delivered nearly everything within the time of
// sending, and its backlog grew by no more than the same share allows.
func (s step) sustained() bool {
	return s.delivered >= sustainedShare*s.rate && s.grown <= (1-sustainedShare)*s.rate
}

func sustain(ctx context.Context, t *trial) error {
	if err := t.start(ctx, together, t.sinkURL()); err != nil {
		return err
	}
	rate, known := t.sustained[t.system.name]
	switch {
	case known: // from the round before
	case t.options.short:
		rate = 300
	case t.system.name == "spine":
		rate = 4_000
	default:
		rate = 1_000
	}
	best, tried, err := searchRate(rate, sustainedTries, func(rate float64) (step, error) { return t.offer(ctx, rate) })
	t.note("%s", tried)
	if err != nil {
		return err
	}
	t.sustained[t.system.name] = best.rate
	t.figure(s5Rate, best.delivered)
	t.figure(s5P50, best.p50)
	t.figure(s5P99, best.p99)
	t.peakMemory(s5Memory)
	return t.costs(ctx, best.rate)
}

// costs puts on a rate once more, to see what an event costs the database. It lasts longer than
// others, because sessions report their commits only once a second.
func (t *trial) costs(ctx context.Context, rate float64) error {
	r, err := t.watchedE2E(ctx, bench.Soak{E2E: bench.E2E{Load: bench.Load{
		Connections: 256, Rate: rate, WarmUp: 2 * warmUp, Duration: 2 * t.options.duration,
	}}})
	if err != nil {
		return fmt.Errorf("offering %.0f/s once more: %w", rate, err)
	}
	t.perEvent(r, s5WAL, s5Commits, s5Statements)
	return nil
}

// searchRate finds the highest rate that is sustained: up from the given one in steps, or down if
// that is too much, and then once in between.
func searchRate(rate float64, tries int, offer func(rate float64) (step, error)) (best step, tried string, err error) {
	var all []string
	tooMuch := math.Inf(1)
	for range tries {
		s, err := offer(math.Round(rate/10) * 10)
		if err != nil {
			return best, strings.Join(all, ", "), err
		}
		all = append(all, fmt.Sprintf("%.0f → %.0f", s.rate, s.delivered))
		if s.sustained() {
			best = s
		} else {
			tooMuch = s.rate
			all[len(all)-1] += " (not sustained)"
		}
		switch {
		case best.rate == 0:
			rate = s.rate / sustainedStep
		case math.IsInf(tooMuch, 1):
			rate = best.rate * sustainedStep
		case tooMuch/best.rate > math.Sqrt(sustainedStep)+0.01:
			rate = math.Sqrt(best.rate * tooMuch)
		default:
			return best, strings.Join(all, ", "), nil
		}
	}
	if best.rate == 0 {
		return best, strings.Join(all, ", "), fmt.Errorf("not even %.0f/s were sustained", tooMuch)
	}
	return best, strings.Join(all, ", ") + " (more was not tried)", nil
}

// offer puts on one rate. It has many connections, so that they are not the limit.
func (t *trial) offer(ctx context.Context, rate float64) (step, error) {
	var mutex sync.Mutex
	var snapshots []bench.Snapshot
	load := bench.Load{Connections: 256, Rate: rate, WarmUp: warmUp, Duration: t.options.duration}
	load.Progress = func(s bench.Snapshot) {
		if s.Elapsed >= load.WarmUp+time.Second && s.Elapsed <= load.WarmUp+load.Duration {
			mutex.Lock()
			defer mutex.Unlock()
			snapshots = append(snapshots, s)
		}
	}
	r, err := t.e2e(ctx, load)
	if err != nil {
		return step{}, fmt.Errorf("offering %.0f/s: %w", rate, err)
	}
	s := step{rate: rate, delivered: r.Delivery.PerSecond, p50: r.Delivery.Latency.P50, p99: r.Delivery.Latency.P99}
	mutex.Lock()
	defer mutex.Unlock()
	if n := len(snapshots); n > 1 {
		first, last := snapshots[0], snapshots[n-1]
		grown := (last.Acknowledged - last.Delivered) - (first.Acknowledged - first.Delivered)
		s.grown = float64(grown) / (last.Elapsed - first.Elapsed).Seconds()
	}
	return s, nil
}

package main

import (
	"context"
	"slices"

	"github.com/webhookspine/spine/internal/bench"
)

// SK offers a share of the rate that S5 reached, or a rate of its own if S5 was left out.
const (
	soakShare   = 0.6
	soakDefault = 3_000
	soakWarmUp  = 10 * warmUp
)

// soakLong puts on a load that leaves room, for so long that any growth would show.
func soakLong(ctx context.Context, t *trial) error {
	if err := t.start(ctx, together, t.sinkURL()); err != nil {
		return err
	}
	load := bench.Load{Connections: 256, Rate: soakDefault, WarmUp: soakWarmUp, Duration: t.options.soak}
	if t.options.short {
		load.Rate, load.WarmUp = soakDefault/10, warmUp
	}
	if found, ok := t.sustained[t.system.name]; ok {
		load.Rate = soakShare * found
	}
	if !t.options.short && !slices.Contains(t.options.only, "S5") {
		t.note("a rate of its own, since S5 was left out")
	}
	r, err := t.watchedE2E(ctx, bench.Soak{E2E: bench.E2E{Load: load}})
	if err != nil {
		return err
	}
	front := t.processes[0].name
	for i := len(r.Samples) - 1; i >= 0; i-- {
		if use, ok := r.Samples[i].Process(front); ok {
			t.figure(skMemory, use.MemoryMB)
			break
		}
	}
	t.kept(r, skMemoryKept, bench.TrendMemory, front)
	t.kept(r, skDeadKept, bench.TrendDeadTuples, bench.AllTables)
	t.kept(r, skArriveKept, bench.TrendArrive, "")
	t.perEvent(r, skWAL, skCommits, skStatements)

	t.note("%s/s for %v, POST to arrival p50 %.1f ms, p99 %.1f ms",
		formatNumber(load.Rate), load.Duration, r.Delivery.Latency.P50, r.Delivery.Latency.P99)
	notFlat := 0
	for _, trend := range r.Trends {
		if !trend.Flat {
			notFlat++
		}
		t.note("first and last third, %s", trend)
	}
	t.figure(skNotFlat, float64(notFlat))
	for _, remark := range r.Remarks {
		t.note("%s", remark)
	}
	return nil
}

// kept reports a trend, last third ÷ first, if it was measured.
func (t *trial) kept(r bench.SoakReport, what row, trend, of string) {
	if trend, ok := r.Trend(trend, of); ok && trend.First > 0 {
		t.figure(what, trend.Ratio)
	}
}

// perEvent reports what an event cost the database.
func (t *trial) perEvent(r bench.SoakReport, wal, commits, statements row) {
	d := r.Database
	if d == nil {
		return
	}
	t.figure(wal, d.WALBytes/1000)
	t.figure(commits, d.Commits)
	if d.Statements != nil {
		t.figure(statements, *d.Statements)
	}
}

// peakMemory reports the most memory that the ingesting process has had, if the system tells.
func (t *trial) peakMemory(what row) {
	if peak, err := bench.PeakMemory(t.processes[0].command.Process.Pid); err == nil {
		t.figure(what, float64(peak)/1e6)
	}
}

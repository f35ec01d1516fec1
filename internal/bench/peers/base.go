package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/bench"
)

// baseName is the name of the earlier binary among the systems.
const baseName = "base"

// baseRate is the rate of S5 beside an earlier binary, in events a second. It is about half of what two
// cores sustain, so that both binaries do the same work in the same time.
const baseRate = 4_000

// cost is the processor time that an event took.
type cost struct {
	process time.Duration // of Spine
	all     time.Duration // of Spine and PostgreSQL
}

// baseScenario puts load on a running Spine and counts events. The measurement begins where it calls
// begin, and ends where it returns.
type baseScenario struct {
	name, about string
	run         func(ctx context.Context, t *trial, begin func() error) (events int64, err error)
}

func baseScenarios() []baseScenario {
	return []baseScenario{
		{"S1", "ingest, stored only, 64 connections", ingestCost},
		{"S3", "drain a backlog", drainCost},
		{"S5", fmt.Sprintf("ingest and delivery at once, %d/s", baseRate), sustainCost},
	}
}

func ingestCost(ctx context.Context, t *trial, begin func() error) (int64, error) {
	if err := t.start(ctx, together, storeOnly); err != nil {
		return 0, err
	}
	if _, err := t.ingest(ctx, bench.Load{Connections: 64, Duration: warmUp}); err != nil {
		return 0, fmt.Errorf("warming up: %w", err)
	}
	if err := begin(); err != nil {
		return 0, err
	}
	report, err := t.ingest(ctx, bench.Load{Connections: 64, Duration: t.options.duration})
	return report.Acknowledged, err
}

func drainCost(ctx context.Context, t *trial, begin func() error) (int64, error) {
	if err := t.start(ctx, together, t.sinkURL()); err != nil {
		return 0, err
	}
	if _, err := t.drain(ctx, t.backlog()); err != nil {
		return 0, fmt.Errorf("warming up: %w", err)
	}
	var beginErr error
	t.drainOpened = func() { beginErr = begin() }
	report, err := t.drain(ctx, t.backlog())
	return report.Acknowledged, errors.Join(beginErr, err)
}

func sustainCost(ctx context.Context, t *trial, begin func() error) (int64, error) {
	if err := t.start(ctx, together, t.sinkURL()); err != nil {
		return 0, err
	}
	load := bench.Load{Connections: 256, Rate: baseRate, Duration: warmUp}
	if t.options.short {
		load.Rate = 300
	}
	if _, err := t.e2e(ctx, load); err != nil {
		return 0, fmt.Errorf("warming up: %w", err)
	}
	if err := begin(); err != nil {
		return 0, err
	}
	load.Duration = t.options.duration
	report, err := t.e2e(ctx, load)
	return report.Acknowledged, err
}

// compareBase measures the processor time of an event beside an earlier binary: in pairs, in turns, each on a fresh
// database. It writes medians of the ratios.
func compareBase(ctx context.Context, o options, stdout, progress io.Writer) (err error) {
	l, closeLab, err := openLab(ctx, o, progress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeLab()) }()
	now, base := spineSystem(), spineSystem()
	base.name = baseName
	costs := map[string][]cost{} // by scenario and system
	for pair := 1; pair <= o.pairs; pair++ {
		systems := []system{now, base}
		if pair%2 == 0 {
			slices.Reverse(systems) // whichever is measured second has the warmer machine
		}
		for _, s := range baseScenarios() {
			if !slices.Contains(o.only, s.name) {
				continue
			}
			for _, under := range systems {
				c, err := l.cost(ctx, fmt.Sprintf("pair%d_%s_%s", pair, s.name, under.name), s, under)
				if err != nil {
					return fmt.Errorf("pair %d, %s, %s: %w", pair, s.name, under.name, err)
				}
				costs[s.name+under.name] = append(costs[s.name+under.name], c)
				_, _ = fmt.Fprintf(progress, "%d/%d %s %-5s %v of Spine, %v with PostgreSQL\n",
					pair, o.pairs, s.name, under.name, c.process, c.all)
			}
		}
	}
	out := &printer{w: stdout}
	out.line("Processor time an event, and its ratio to the earlier binary's: "+
		"medians of %d pairs in turns, least and most.\n", o.pairs)
	cells := [][]string{{"", "what", "Spine, µs", "before", "ratio", "with PostgreSQL, µs", "before", "ratio"}}
	for _, s := range baseScenarios() {
		if of, before := costs[s.name+now.name], costs[s.name+baseName]; len(of) > 0 {
			row := []string{s.name, s.about}
			row = append(row, paired(of, before, func(c cost) time.Duration { return c.process })...)
			cells = append(cells, append(row, paired(of, before, func(c cost) time.Duration { return c.all })...))
		}
	}
	out.table(cells)
	return out.err
}

// cost measures one scenario with one binary on a database of its own.
func (l *lab) cost(ctx context.Context, name string, s baseScenario, under system) (c cost, err error) {
	t := &trial{lab: l, scenario: s.name, system: under}
	done, err := t.open(ctx, strings.ToLower(name))
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, done()) }()
	session := l.admin.Config()
	serverTime, err := bench.ServerProcessorTime(int(l.admin.PgConn().PID()), session.User, session.Database)
	if err != nil {
		return c, err
	}
	used := func() (now cost, err error) {
		if now.process, err = bench.ProcessorTime(t.processes[0].command.Process.Pid); err != nil {
			return now, err
		}
		server, err := serverTime()
		now.all = now.process + server
		return now, err
	}
	var before cost
	events, err := s.run(ctx, t, func() error {
		before, err = used()
		return err
	})
	if err != nil {
		return c, err
	}
	after, err := used()
	if err != nil {
		return c, err
	}
	if events == 0 {
		return c, errors.New("no event was acknowledged")
	}
	return cost{
		process: (after.process - before.process) / time.Duration(events),
		all:     (after.all - before.all) / time.Duration(events),
	}, nil
}

// paired returns the medians of both in microseconds, and that of the ratios with its least and most.
func paired(now, before []cost, part func(cost) time.Duration) []string {
	var a, b, ratios []float64
	for i := range now {
		a = append(a, float64(part(now[i]))/1e3)
		b = append(b, float64(part(before[i]))/1e3)
		ratios = append(ratios, a[i]/b[i])
	}
	return []string{
		fmt.Sprintf("%.1f", median(a)), fmt.Sprintf("%.1f", median(b)),
		fmt.Sprintf("%.3f (%.2f to %.2f)", median(ratios), slices.Min(ratios), slices.Max(ratios)),
	}
}

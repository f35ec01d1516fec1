package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/webhookspine/spine/internal/bench"
	"github.com/webhookspine/spine/internal/postgres"
)

// manyConnections is the number of connections to all fronts together, one or three.
const manyConnections = 192

// compareMany compares three processes of each kind with one that is both, and samples what the
// database sessions wait for.
func compareMany(ctx context.Context, t *trial) error {
	rates := map[layout][2]float64{} // ingest, drain
	for _, how := range []layout{together, threeEach} {
		name := map[layout]string{together: "one process", threeEach: "three of each"}[how]
		if err := t.startAfresh(ctx, how, storeOnly); err != nil {
			return err
		}
		if _, err := t.spread(ctx, warmUp); err != nil {
			return fmt.Errorf("warming up: %w", err)
		}
		stop := t.watchWaits(ctx)
		ingested, err := t.spread(ctx, t.options.duration)
		waits, watchErr := stop()
		if err := errors.Join(err, watchErr); err != nil {
			return err
		}
		t.note("%s, ingest: sessions at work, on average: %s", name, waits)

		if err := t.startAfresh(ctx, how, t.sinkURL()); err != nil {
			return err
		}
		if _, err := t.drain(ctx, t.backlog()/20); err != nil {
			return fmt.Errorf("warming up: %w", err)
		}
		stop = t.watchWaits(ctx)
		drained, err := t.drain(ctx, t.backlog())
		waits, watchErr = stop()
		if err := errors.Join(err, watchErr); err != nil {
			return err
		}
		t.note("%s, backlog and drain: sessions at work, on average: %s", name, waits)
		rates[how] = [2]float64{ingested, drained.Delivery.PerSecond}
	}
	one, three := rates[together], rates[threeEach]
	t.figure(smIngest, three[0])
	t.figure(smIngestKept, three[0]/one[0])
	t.figure(smDrain, three[1])
	t.figure(smDrainKept, three[1]/one[1])
	return nil
}

// startAfresh starts Spine on tables that are empty again.
func (t *trial) startAfresh(ctx context.Context, how layout, destination string) error {
	if err := t.halt(); err != nil {
		return err
	}
	if _, err := t.pool.Exec(ctx, "drop schema if exists spine cascade"); err != nil {
		return fmt.Errorf("emptying the database: %w", err)
	}
	return t.start(ctx, how, destination)
}

// spread spreads the connections over all fronts, and returns the sum of their rates.
func (t *trial) spread(ctx context.Context, duration time.Duration) (float64, error) {
	fronts := t.fronts()
	rates := make([]float64, len(fronts))
	g, ctx := errgroup.WithContext(ctx)
	for i, front := range fronts {
		g.Go(func() error {
			r, err := t.ingest(
				ctx,
				bench.Load{Target: front, Connections: manyConnections / len(fronts), Duration: duration},
			)
			rates[i] = r.AcknowledgedPerSecond
			return err
		})
	}
	err := g.Wait()
	var sum float64
	for _, rate := range rates {
		sum += rate
	}
	return sum, err
}

const waitInterval = 10 * time.Millisecond

// watchWaits samples every 10 ms what Spine's sessions do, until the returned function is called.
// That returns how many sessions, on average, ran or waited for what.
func (t *trial) watchWaits(ctx context.Context) (stop func() (string, error)) {
	stopped := make(chan struct{})
	counts, samples := map[string]int{}, 0
	var watching errgroup.Group
	watching.Go(func() error {
		conn, err := pgx.Connect(ctx, t.server.SuperuserURL())
		if err != nil {
			return fmt.Errorf("connecting to watch the sessions: %w", err)
		}
		defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
		ticker := time.NewTicker(waitInterval)
		defer ticker.Stop()
		for ; ; samples++ {
			select {
			case <-stopped:
				return nil
			case <-ticker.C:
			}
			rows, err := conn.Query(ctx, `
				select coalesce(wait_event_type || '/' || wait_event, 'running'), count(*)
				from pg_stat_activity where usename = $1 and state = 'active' group by 1`, postgres.Role)
			if err != nil {
				return fmt.Errorf("watching the sessions: %w", err)
			}
			var what string
			var n int
			if _, err := pgx.ForEachRow(
				rows,
				[]any{&what, &n},
				func() error { counts[what] += n; return nil },
			); err != nil {
				return fmt.Errorf("watching the sessions: %w", err)
			}
		}
	})
	return func() (string, error) {
		close(stopped)
		err := watching.Wait()
		return topWaits(counts, max(1, samples), 6), err
	}
}

// topWaits returns the most frequent waits, most of them at most, as text.
func topWaits(counts map[string]int, samples, most int) string {
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int { return counts[b] - counts[a] })
	var top []string
	for _, name := range names[:min(most, len(names))] {
		top = append(top, fmt.Sprintf("%.2f %s", float64(counts[name])/float64(samples), name))
	}
	return strings.Join(top, ", ")
}

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/webhookspine/spine/internal/bench"
)

// Settings of SV: how many dashboards are open, what they ask of the stream, and how often at most
// each reads its figures and its list, as the page does.
const (
	viewerCount   = 5
	viewerMaxRows = 200
	viewerGap     = time.Second
	viewedRate    = 2_000
	viewedTimes   = 15 // as long as other loads
)

// watchDashboards measures a load without and with viewers, in pairs. It checks that the viewers
// are told of every row of the audit log.
func watchDashboards(ctx context.Context, t *trial) error {
	load := bench.Load{
		Connections: 64,
		Rate:        viewedRate,
		WarmUp:      2 * warmUp,
		Duration:    viewedTimes * t.options.duration,
	}
	pairs := 3
	if t.options.short {
		pairs, load.Rate, load.Duration = 1, viewedRate/10, t.options.duration
	}
	if err := t.startAfresh(ctx, together, t.sinkURL()); err != nil {
		return err
	}
	var without, with, ratios, slowest []float64
	for pair := range pairs {
		var p99 [2]float64 // without, with
		for i := range p99 {
			watched := (pair+i)%2 == 1 // they take turns in being first
			report, answers, err := t.watch(ctx, load, watched)
			if err != nil {
				return err
			}
			if watched {
				p99[1] = report.AcknowledgeLatency.P99
				slowest = append(slowest, answers)
			} else {
				p99[0] = report.AcknowledgeLatency.P99
			}
		}
		without, with = append(without, p99[0]), append(with, p99[1])
		ratios = append(ratios, p99[1]/p99[0])
	}
	t.figure(svP99, median(with))
	t.figure(svP99Kept, median(ratios))
	t.figure(svSlowest, slices.Max(slowest))
	t.peakMemory(svMemory)
	t.note("acknowledgement p99, ms: without viewers %s, with %d %s",
		formatNumbers(without), viewerCount, formatNumbers(with))
	return nil
}

// watch puts on the load, with viewers or without. It also returns how many milliseconds the
// slowest answer to a viewer took.
func (t *trial) watch(
	ctx context.Context, load bench.Load, watched bool,
) (report bench.Report, slowest float64, err error) {
	if !watched {
		report, err = t.e2e(ctx, load)
		return report, 0, err
	}
	before, err := t.audited(ctx)
	if err != nil {
		return report, 0, err
	}
	viewing, stop := context.WithCancel(ctx)
	defer stop()
	viewers := make([]*viewer, viewerCount)
	var g errgroup.Group
	for i := range viewers {
		v := &viewer{front: t.fronts()[0], joined: make(chan struct{})}
		viewers[i] = v
		g.Go(func() error { return v.run(viewing) })
	}
	for _, v := range viewers {
		select {
		case <-v.joined:
		case <-time.After(settlePatience):
			stop()
			return report, 0, errors.Join(errors.New("a viewer was not let in"), g.Wait())
		}
	}
	if report, err = t.e2e(ctx, load); err == nil {
		err = t.awaitSeen(ctx, viewers, before)
	}
	stop()
	err = errors.Join(err, g.Wait())
	for _, v := range viewers {
		slowest = max(slowest, milliseconds(time.Duration(v.slowest.Load())))
	}
	return report, slowest, err
}

// audited counts the rows of the audit log.
func (t *trial) audited(ctx context.Context) (rows int64, err error) {
	if err = t.pool.QueryRow(ctx, "select count(*) from audit_log").Scan(&rows); err != nil {
		return 0, fmt.Errorf("counting the audit log: %w", err)
	}
	return rows, nil
}

// awaitSeen waits until every viewer was told of all new rows of the audit log, one by one or in
// summaries. before is the log's count before.
func (t *trial) awaitSeen(ctx context.Context, viewers []*viewer, before int64) error {
	for deadline := time.Now().Add(settlePatience); ; {
		rows, err := t.audited(ctx)
		if err != nil {
			return err
		}
		rows -= before
		wrong := slices.IndexFunc(viewers, func(v *viewer) bool { return v.seen.Load() != rows })
		if wrong < 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf(
				"the audit log grew by %d rows, and a viewer was told of %d",
				rows,
				viewers[wrong].seen.Load(),
			)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(viewerGap / 4):
		}
	}
}

// viewer does what an open dashboard does.
type viewer struct {
	front   string
	joined  chan struct{} // closed at the stream's first message
	seen    atomic.Int64  // rows it was told of
	slowest atomic.Int64  // answer, in nanoseconds
}

// run follows the stream until ctx ends.
func (v *viewer) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	news := make(chan struct{}, 1)
	g.Go(func() error { return v.follow(ctx, news) })
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-news:
			}
			for _, path := range []string{"/api/overview", "/api/events"} {
				began := time.Now()
				if err := v.get(ctx, path, func(body io.Reader) error {
					_, err := io.Copy(io.Discard, body)
					return err
				}); err != nil {
					return err
				}
				v.slowest.Store(max(v.slowest.Load(), int64(time.Since(began))))
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(viewerGap):
			}
		}
	})
	return g.Wait()
}

// follow counts the rows of the stream (HTML, server-sent events).
func (v *viewer) follow(ctx context.Context, news chan<- struct{}) error {
	return v.get(ctx, fmt.Sprintf("/api/stream?max_rows=%d", viewerMaxRows), func(body io.Reader) error {
		lines := bufio.NewScanner(body)
		lines.Buffer(nil, 64<<20)
		kind, first := "", true
		for lines.Scan() {
			name, data, _ := strings.Cut(lines.Text(), ":")
			data = strings.TrimPrefix(data, " ")
			switch name {
			case "event":
				kind = data
				if first {
					first = false
					close(v.joined)
				}
			case "data":
				if err := v.told(kind, []byte(data)); err != nil {
					return err
				}
				select {
				case news <- struct{}{}:
				default:
				}
			}
		}
		return lines.Err()
	})
}

// told reads one message.
func (v *viewer) told(kind string, data []byte) error {
	switch kind {
	case "audit":
		var rows []json.RawMessage
		if err := json.Unmarshal(data, &rows); err != nil {
			return fmt.Errorf("reading rows of the stream: %w", err)
		}
		v.seen.Add(int64(len(rows)))
	case "summary":
		var summary struct{ Rows int64 }
		if err := json.Unmarshal(data, &summary); err != nil {
			return fmt.Errorf("reading a summary of the stream: %w", err)
		}
		v.seen.Add(summary.Rows)
	case "reset":
		return errors.New("the stream told a viewer to begin anew")
	}
	return nil
}

// get passes the body of an answer to read. It returns no error if ctx ended.
func (v *viewer) get(ctx context.Context, path string, read func(io.Reader) error) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, v.front+path, nil)
	if err != nil {
		return fmt.Errorf("asking for %s: %w", path, err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err == nil {
		defer func() { _ = answer.Body.Close() }()
		if err = read(answer.Body); answer.StatusCode != http.StatusOK {
			err = errors.New(answer.Status)
		}
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("asking for %s: %w", path, err)
	}
	return nil
}

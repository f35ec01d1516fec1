package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/webhookspine/spine/internal/bench"
)

// limitSystem stands for the limits that no system here can exceed.
func limitSystem() system {
	return system{
		name:      "limit",
		processes: func(layout) []program { return []program{{name: "http", front: true}} },
		settings:  "each part alone: HTTP without a database, statements without HTTP",
	}
}

// runHTTP runs only the front: a router and a check that the body is JSON.
func runHTTP(ctx context.Context, s settings) error {
	router := mux.NewRouter()
	router.HandleFunc("/readyz", func(http.ResponseWriter, *http.Request) {}).Methods(http.MethodGet)
	router.HandleFunc("/webhook", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil || !json.Valid(body) {
			http.Error(w, "the body must be JSON", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"status":"accepted"}`) // the client may be gone
	}).Methods(http.MethodPost)
	return serveHTTP(ctx, s.listen, router)
}

// measureLimits measures each part alone.
func measureLimits(ctx context.Context, t *trial) error {
	if err := t.start(ctx, together, storeOnly); err != nil {
		return err
	}
	report, err := bench.RunIngest(ctx, bench.Load{
		Target: t.fronts()[0], Connections: 64, WarmUp: warmUp, Duration: t.options.duration,
	})
	if err == nil && len(report.Errors) > 0 {
		err = fmt.Errorf("some requests failed: %v", report.Errors)
	}
	if err != nil {
		return err
	}
	t.figure(limitHTTP, report.AcknowledgedPerSecond)

	if _, err := t.pool.Exec(ctx, "create table bare (event_id text, payload json)"); err != nil {
		return fmt.Errorf("making a bare table: %w", err)
	}
	if err := t.measureInserts(ctx); err != nil {
		return err
	}
	if err := t.measureNotify(ctx); err != nil {
		return err
	}
	return t.measureCommits(ctx)
}

// measureInserts inserts 1 kB rows, 100 a statement, on two connections.
func (t *trial) measureInserts(ctx context.Context) error {
	const batch = 100
	payload := `{"padding":"` + strings.Repeat("x", 1000) + `"}`
	ids, payloads := make([]string, batch), make([]string, batch)
	for i := range ids {
		ids[i], payloads[i] = fmt.Sprintf("event-%010d", i), payload
	}
	var rows [2]int
	began := time.Now()
	g, inserting := errgroup.WithContext(ctx)
	for n := range rows {
		g.Go(func() error {
			for time.Since(began) < t.options.duration {
				_, err := t.pool.Exec(
					inserting,
					"insert into bare select * from unnest($1::text[], $2::json[])",
					ids,
					payloads,
				)
				if err != nil {
					return fmt.Errorf("inserting into a bare table: %w", err)
				}
				rows[n] += batch
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	t.figure(limitInsert, float64(rows[0]+rows[1])/time.Since(began).Seconds())
	return nil
}

// measureNotify takes the time from sending a NOTIFY to its arrival on another
// connection.
func (t *trial) measureNotify(ctx context.Context) error {
	listener, err := pgx.Connect(ctx, t.database)
	if err != nil {
		return fmt.Errorf("connecting a listener: %w", err)
	}
	defer func() { _ = listener.Close(context.WithoutCancel(ctx)) }()
	if _, err := listener.Exec(ctx, "listen peers"); err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	times := make([]float64, 300)
	for i := range times {
		began := time.Now()
		sent := make(chan error, 1)
		go func() {
			_, err := t.pool.Exec(ctx, "notify peers")
			sent <- err
		}()
		_, err := listener.WaitForNotification(ctx)
		times[i] = milliseconds(time.Since(began))
		if sendErr := <-sent; sendErr != nil {
			return fmt.Errorf("notifying: %w", sendErr)
		}
		if err != nil {
			return fmt.Errorf("waiting for a notification: %w", err)
		}
	}
	t.figure(limitNotify, median(times))
	return nil
}

// measureCommits takes the time of two commits, one after the other, that
// write a row each: what a stored and delivered event takes at least.
func (t *trial) measureCommits(ctx context.Context) error {
	times := make([]float64, 300)
	for i := range times {
		began := time.Now()
		for range 2 {
			if _, err := t.pool.Exec(ctx, "insert into bare values ('event', '{}')"); err != nil {
				return fmt.Errorf("committing: %w", err)
			}
		}
		times[i] = milliseconds(time.Since(began))
	}
	t.figure(limitCommits, median(times))
	return nil
}

// measureFsync takes the time that 8 kB take to come to disk in dir, in
// milliseconds.
func measureFsync(dir string) (float64, error) {
	file, err := os.CreateTemp(dir, "fsync-")
	if err != nil {
		return 0, fmt.Errorf("measuring fsync: %w", err)
	}
	defer func() {
		_ = file.Close()
		_ = os.Remove(file.Name()) //nolint:gosec // G703: the file that we have just made
	}()
	page := make([]byte, 8192)
	times := make([]float64, 200)
	for i := range times {
		began := time.Now()
		_, err := file.WriteAt(page, 0)
		if err == nil {
			err = file.Sync()
		}
		if err != nil {
			return 0, fmt.Errorf("measuring fsync: %w", err)
		}
		times[i] = milliseconds(time.Since(began))
	}
	return median(times), nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// median of at least one value.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

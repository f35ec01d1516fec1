package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/webhookspine/spine/internal/bench"
)

// drainWithSnapshot drains backlogs while an idle transaction keeps its snapshot, so that no dead
// row or index entry can be removed. It ends after 200,000 events, or when less than a third of the
// rate is left.
func drainWithSnapshot(ctx context.Context, t *trial) error {
	if err := t.start(ctx, together, t.sinkURL()); err != nil {
		return err
	}
	if _, err := t.drain(ctx, t.backlog()/20); err != nil {
		return fmt.Errorf("warming up: %w", err)
	}
	tx, err := t.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return fmt.Errorf("opening a transaction: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	// The first statement takes the snapshot.
	if _, err := tx.Exec(ctx, "select count(*) from pg_class"); err != nil {
		return fmt.Errorf("taking a snapshot: %w", err)
	}
	churn := 10
	if t.options.short {
		churn = 3
	}
	var rates []float64
	for range churn {
		r, err := t.drain(ctx, t.backlog())
		if err != nil {
			return err
		}
		rates = append(rates, r.Delivery.PerSecond)
		if r.Delivery.PerSecond < rates[0]/3 {
			break // the rest would take minutes and show nothing new
		}
	}
	// The median of three, since one of Spine's drains takes less than a second.
	first, last := median(rates[:min(3, len(rates))]), median(rates[max(0, len(rates)-3):])
	t.figure(s6First, first)
	t.figure(s6Last, last)
	t.figure(s6Kept, last/first)
	t.note("%d events each: %.0f", t.backlog(), rates)
	return nil
}

// killPatience is how long a system may take, after a crash, to deliver everything that it had
// acknowledged.
const killPatience = 30 * time.Second

// killDuringDrain kills the delivering process when a third of a backlog has arrived, and starts it
// again at once. It ends when the system has recorded that everything is delivered, or after 30 s.
// It counts what has not arrived by then.
func killDuringDrain(ctx context.Context, t *trial) (err error) {
	count := int64(10_000)
	if t.options.short {
		count = 2_000
	}
	if err := t.start(ctx, together, storeOnly); err != nil {
		return err
	}
	if _, err := t.ingest(ctx, bench.Load{Connections: 64, Count: count}); err != nil {
		return err
	}
	stopSink, err := t.openSink(ctx)
	if err != nil {
		return err
	}
	defer func() {
		_, sinkErr := stopSink()
		err = errors.Join(err, sinkErr)
	}()

	if err := t.start(ctx, together, t.sinkURL()); err != nil {
		return err
	}
	r := bench.SinkReport{}
	limit := time.After(killPatience)
	for r.DistinctIDs < count/3 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-limit:
			return fmt.Errorf("only %d of %d events arrived within %v", r.DistinctIDs, count, killPatience)
		case <-time.After(2 * time.Millisecond):
		}
		if r, err = t.arrivals(ctx); err != nil {
			return err
		}
	}
	t.kill()
	t.deployment = nil
	if r, err = t.arrivals(ctx); err != nil {
		return err
	}
	if r.DistinctIDs == count {
		return errors.New("everything was delivered before the kill")
	}
	unfinished, restarted := int64(1), time.Now()
	if err := t.start(ctx, together, t.sinkURL()); err != nil {
		return err
	}
	for r.DistinctIDs < count || unfinished > 0 {
		if time.Since(restarted) > killPatience {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if r, err = t.arrivals(ctx); err != nil {
			return err
		}
		if unfinished, err = t.unfinished(ctx); err != nil {
			return err
		}
	}
	t.figure(s7Left, float64(count-r.DistinctIDs))
	t.figure(s7Unnoted, float64(max(0, unfinished-(count-r.DistinctIDs))))
	t.figure(s7Repeated, float64(r.RepeatedIDs))
	return nil
}

// arrivals asks the sink what has arrived.
func (t *trial) arrivals(ctx context.Context) (r bench.SinkReport, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, t.sinkURL()+"stats", nil)
	if err != nil {
		return r, fmt.Errorf("asking the sink: %w", err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return r, fmt.Errorf("asking the sink: %w", err)
	}
	defer func() { _ = answer.Body.Close() }()
	if err := json.NewDecoder(answer.Body).Decode(&r); err != nil {
		return r, fmt.Errorf("reading the sink's answer: %w", err)
	}
	return r, nil
}

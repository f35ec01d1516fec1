package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// River's settings: the shortest interval between fetches that it allows, and the poll interval of
// its own benchmark command. With the defaults, 100 ms and 1 s, its throughput and its latency are
// far worse. These did best here of 100, 200 and 500 workers, 8 to 64 connections and 1 to 10 ms.
const (
	riverWorkers       = 500
	riverConnections   = 16
	riverFetchCooldown = time.Millisecond
	riverPollInterval  = 20 * time.Millisecond
)

func riverSystem() system {
	return system{
		name:       "river",
		module:     "github.com/riverqueue/river",
		processes:  func(layout) []program { return []program{{name: "river", front: true}} },
		unfinished: "select count(*) from river_job where state <> 'completed'",
		settings: fmt.Sprintf("LISTEN/NOTIFY, FetchCooldown %v, FetchPollInterval %v, MaxWorkers %d, %d connections; "+
			"else River's defaults",
			riverFetchCooldown, riverPollInterval, riverWorkers, riverConnections),
	}
}

// delivery is a job. It carries the event's number and not the event, as is usual. River is better
// with it, because it writes a job three times: with 1 kB in it, S1 and S5 were a fifth slower and
// S3 a little faster.
type delivery struct {
	ID int64 `json:"id"`
}

func (delivery) Kind() string { return "delivery" }

type riverWorker struct {
	river.WorkerDefaults[delivery]
	deliverer
	pool *pgxpool.Pool
}

func (w *riverWorker) Work(ctx context.Context, job *river.Job[delivery]) error {
	e, err := readEvent(ctx, w.pool, job.Args.ID)
	if err != nil {
		return err
	}
	return w.deliver(ctx, e)
}

// runRiver is a small service as a user of River would write it. A request is one transaction that
// stores the event, once for each event_id, and inserts its job. River's client delivers in the
// same process.
func runRiver(ctx context.Context, s settings) (err error) {
	pool, err := openPool(ctx, s.database, riverConnections)
	if err != nil {
		return err
	}
	defer pool.Close()
	driver := riverpgxv5.New(pool)
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if _, err := pool.Exec(ctx, eventsTable); err != nil {
		return fmt.Errorf("making the table: %w", err)
	}
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: logger})
	if err == nil {
		_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
	}
	if err != nil {
		return fmt.Errorf("making River's tables: %w", err)
	}

	config := &river.Config{Logger: logger}
	if s.sink != "" {
		config.Workers = river.NewWorkers()
		river.AddWorker(config.Workers, &riverWorker{deliverer: newDeliverer(s.sink, riverWorkers), pool: pool})
		config.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: riverWorkers}}
		config.FetchCooldown, config.FetchPollInterval = riverFetchCooldown, riverPollInterval
	}
	client, err := river.NewClient(driver, config)
	if err != nil {
		return fmt.Errorf("setting River up: %w", err)
	}
	if s.sink != "" {
		if err := client.Start(context.WithoutCancel(ctx)); err != nil {
			return fmt.Errorf("starting River: %w", err)
		}
		defer func() {
			limit, done := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer done()
			err = errors.Join(err, client.Stop(limit))
		}()
	}
	return serve(ctx, s.listen, func(ctx context.Context, e envelope) (answer string, err error) {
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			var id int64
			err := tx.QueryRow(ctx, `
				insert into events (event_id, event_type, occurred_at, payload, payload_hash)
				values ($1, $2, $3, $4, $5)
				on conflict (event_id) do nothing returning id`,
				e.EventID, e.EventType, e.OccurredAt, e.Payload, hashOf(e.Payload)).Scan(&id)
			switch {
			case errors.Is(err, pgx.ErrNoRows):
				answer, err = judgeRepeat(ctx, tx, e)
				return err
			case err != nil:
				return fmt.Errorf("storing: %w", err)
			}
			answer = accepted
			_, err = client.InsertTx(ctx, tx, delivery{id}, nil)
			return err
		})
		return answer, err
	})
}

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Settings of the plain implementation, chosen by trial as River's were.
const (
	plainWorkers      = 64
	plainConnections  = 16
	plainPollInterval = 20 * time.Millisecond
	plainLease        = deliveryTimeout + 5*time.Second
)

func plainSystem() system {
	return system{
		name:       "plain",
		processes:  func(layout) []program { return []program{{name: "plain", front: true}} },
		unfinished: "select count(*) from jobs where done_at is null",
		settings: fmt.Sprintf("polls every %v when idle, claims up to %d at once, as many deliveries, %d connections",
			plainPollInterval, plainWorkers, plainConnections),
	}
}

const jobsTable = `
	create table if not exists jobs (
		event bigint primary key,
		attempts integer not null default 0,
		run_at timestamptz not null default now(),
		done_at timestamptz
	);
	create index if not exists jobs_waiting on jobs (run_at) where done_at is null`

// runPlain is what many teams write themselves, done well. A request is one transaction of one
// statement. A worker polls, claims with SKIP LOCKED, and records each delivery in a transaction of
// its own. A claim postpones the next attempt, so that the jobs of a worker that died come up
// again.
func runPlain(ctx context.Context, s settings) error {
	pool, err := openPool(ctx, s.database, plainConnections)
	if err != nil {
		return err
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, eventsTable+";"+jobsTable); err != nil {
		return fmt.Errorf("making the tables: %w", err)
	}
	var worker sync.WaitGroup
	defer worker.Wait()
	if s.sink != "" {
		worker.Go(func() { workPlain(ctx, pool, newDeliverer(s.sink, plainWorkers)) })
	}
	return serve(ctx, s.listen, func(ctx context.Context, e envelope) (string, error) {
		var id int64
		err := pool.QueryRow(ctx, `
			with stored as (
				insert into events (event_id, event_type, occurred_at, payload, payload_hash)
				values ($1, $2, $3, $4, $5)
				on conflict (event_id) do nothing returning id
			)
			insert into jobs (event) select id from stored returning event`,
			e.EventID, e.EventType, e.OccurredAt, e.Payload, hashOf(e.Payload)).Scan(&id)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return judgeRepeat(ctx, pool, e)
		case err != nil:
			return "", fmt.Errorf("storing: %w", err)
		}
		return accepted, nil
	})
}

type plainJob struct {
	id    int64
	event envelope
}

// workPlain delivers until ctx is done, and then finishes the deliveries under way.
func workPlain(ctx context.Context, pool *pgxpool.Pool, d deliverer) {
	free := make(chan struct{}, plainWorkers)
	for range plainWorkers {
		free <- struct{}{}
	}
	var all sync.WaitGroup
	defer all.Wait()
	for ctx.Err() == nil {
		<-free
		slots := 1
		for more := true; more; {
			select {
			case <-free:
				slots++
			default:
				more = false
			}
		}
		jobs, err := claimPlain(ctx, pool, slots) // an error is transient, or ctx ended: poll again
		for _, job := range jobs {
			all.Go(func() {
				defer func() { free <- struct{}{} }()
				finishing := context.WithoutCancel(ctx)
				statement := "update jobs set done_at = now() where event = $1"
				if d.deliver(finishing, job.event) != nil {
					statement = `
						update jobs set run_at = now() + interval '1 second' * 2 ^ least(attempts, 10) where event = $1`
				}
				_, _ = pool.Exec(finishing, statement, job.id) // if it fails, the job comes up again
			})
		}
		for range slots - len(jobs) {
			free <- struct{}{}
		}
		if err != nil || len(jobs) == 0 {
			select {
			case <-ctx.Done():
			case <-time.After(plainPollInterval):
			}
		}
	}
}

func claimPlain(ctx context.Context, pool *pgxpool.Pool, limit int) ([]plainJob, error) {
	rows, err := pool.Query(ctx, `
		with due as (
			select event from jobs where done_at is null and run_at <= now()
			order by run_at limit $1 for update skip locked
		), claimed as (
			update jobs set run_at = now() + $2, attempts = attempts + 1 from due where jobs.event = due.event
			returning jobs.event
		)
		select e.id, e.event_id, e.event_type, e.occurred_at, e.payload
		from claimed join events e on e.id = claimed.event`, limit, plainLease)
	if err != nil {
		return nil, fmt.Errorf("claiming: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (plainJob, error) {
		var j plainJob
		err := row.Scan(&j.id, &j.event.EventID, &j.event.EventType, &j.event.OccurredAt, &j.event.Payload)
		return j, err
	})
}

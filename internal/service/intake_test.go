package service

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/worker"
)

// faultyStore is a store whose joint transaction can be made to go wrong.
type faultyStore struct {
	*store.Store
	joint atomic.Int64 // calls of IngestAndClaim
	fault func(ctx context.Context, events []event.Event, claim event.Claim) error
}

func (s *faultyStore) IngestAndClaim(
	ctx context.Context,
	events []event.Event,
	claim event.Claim,
) ([]event.Receipt, event.Claimed, error) {
	s.joint.Add(1)
	if s.fault != nil {
		if err := s.fault(ctx, events, claim); err != nil {
			return nil, event.Claimed{}, err
		}
	}
	return s.Store.IngestAndClaim(ctx, events, claim)
}

type nobody struct{}

func (nobody) Add(trail.Action, string) {}

type deliverFunc func(ctx context.Context, job event.Job) event.Result

func (f deliverFunc) Deliver(ctx context.Context, job event.Job) event.Result { return f(ctx, job) }

// never is a sweep interval with which the worker claims only when it is woken.
const never = time.Hour

// startIntake runs a worker whose deliveries succeed. It returns an intake beside that worker, once the worker lends
// slots.
func startIntake(t *testing.T, s *faultyStore, sweep time.Duration) intake {
	t.Helper()
	w := worker.New(worker.Config{
		Destination: event.DefaultDestination, Name: "tester", Concurrency: 4, Lease: patience, Sweep: sweep,
		Hears: func() bool { return false }, Margin: watermarkMargin, StopTimeout: patience,
		Policy: worker.Policy{MaxAttempts: 3, InitialDelay: 10 * time.Millisecond, MaxDelay: time.Second},
	}, s, deliverFunc(func(context.Context, event.Job) event.Result {
		return event.Result{Class: event.Done, Status: 200}
	}), nobody{}, zerolog.Nop(), worker.NewMetrics(prometheus.NewRegistry()))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		assert.NoError(t, <-ended)
	})
	i := intake{store: s, worker: w, log: zerolog.Nop()}
	i.awaitIdle(t)
	return i
}

// awaitIdle waits until the worker lends all slots, and does so for a while: a wake-up may have been on its way.
func (i intake) awaitIdle(t *testing.T) {
	t.Helper()
	const rest, while = 10 * time.Millisecond, 3 // longer than the worker's own
	idle := 0
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		err := i.worker.Lend(t.Context(), 4, func(event.Claim) (event.Claimed, error) { return event.Claimed{}, nil })
		if idle++; err != nil {
			idle = 0
			i.worker.Wake(worker.Recovered)
		}
		require.GreaterOrEqual(c, idle, while)
	}, patience, rest)
	<-time.After(rest)
}

func newEvents(n int) []event.Event {
	all := make([]event.Event, n)
	for i := range all {
		all[i] = event.Event{
			Source:     event.DefaultSource,
			ID:         fmt.Sprint("e", i),
			Type:       "a",
			OccurredAt: time.Now(),
			Payload:    []byte("{}"),
		}
	}
	return all
}

var acceptedOne = []event.Receipt{{Outcome: event.Accepted}}

// If the joint transaction fails, the events are stored without it.
func TestIntakeStoresAlone(t *testing.T) {
	t.Parallel()
	errAway := errors.New("the connection was lost")
	for name, c := range map[string]struct {
		fault    func(s *faultyStore) error // what goes wrong at the first joint transaction
		n        int
		joint    int64
		outcome  event.Outcome
		attempts int
	}{
		"more than one event": {n: 2, outcome: event.Accepted, attempts: 1},
		"the claim fails": {
			fault: func(*faultyStore) error { return errAway },
			n:     1, joint: 1, outcome: event.Accepted, attempts: 1,
		},
		// The leases that nobody knows of run out, and cost an attempt.
		"the answer to the commit is lost": {fault: func(s *faultyStore) error {
			_, _, err := s.Store.IngestAndClaim(t.Context(), newEvents(1), event.Claim{
				Destination: event.DefaultDestination, Limit: 2, Lease: time.Second, Worker: "tester",
				Delays: []time.Duration{0, 0},
			})
			return errors.Join(err, errAway)
		}, n: 1, joint: 1, outcome: event.Deduplicated, attempts: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := databases.Pool(t)
			s := &faultyStore{Store: openTestStore(t, db)}
			i := startIntake(t, s, never)
			if c.fault != nil {
				s.fault = func(context.Context, []event.Event, event.Claim) error {
					s.fault = nil
					return c.fault(s)
				}
			}
			receipts, err := i.Ingest(t.Context(), newEvents(c.n))
			require.NoError(t, err)
			require.Len(t, receipts, c.n)
			require.Equal(t, c.outcome, receipts[0].Outcome)
			require.Equal(t, c.joint, s.joint.Load())
			i.awaitIdle(t)
			require.EventuallyWithT(t, func(collect *assert.CollectT) {
				i.worker.Wake(worker.Recovered) // it claims everything, as it does within a second
				var n int
				require.NoError(
					collect,
					db.QueryRow(t.Context(),
						"select count(*) from spine.processing_state where status = 'completed' and attempt_count = $1",
						c.attempts).Scan(
						&n,
					),
				)
				require.Equal(collect, c.n, n)
			}, patience, 10*time.Millisecond)
		})
	}
}

// Data that the database rejects is rejected, and takes no slot with it.
func TestIntakeRejectsBadData(t *testing.T) {
	t.Parallel()
	db := databases.Pool(t)
	s := &faultyStore{Store: openTestStore(t, db)}
	i := startIntake(t, s, never)
	bad := newEvents(1)
	bad[0].Payload = []byte(`{"a":`)
	receipts, err := i.Ingest(t.Context(), bad)
	require.ErrorIs(t, err, event.ErrInvalidData)
	require.Nil(t, receipts)
	require.EqualValues(t, 1, s.joint.Load())
	var stored int
	require.NoError(t, db.QueryRow(t.Context(), "select count(*) from spine.events").Scan(&stored))
	require.Zero(t, stored)
	i.awaitIdle(t)
	receipts, err = i.Ingest(t.Context(), newEvents(1))
	require.NoError(t, err)
	require.Equal(t, acceptedOne, receipts)
	awaitCompleted(t, db, 1)
}

// If somebody alters a table, claims wait for the lock, but storing does not.
func TestIntakeDoesNotWaitForAClaim(t *testing.T) {
	t.Parallel()
	db := databases.Pool(t)
	i := startIntake(t, &faultyStore{Store: openTestStore(t, db)}, sweepInterval)
	tx, err := db.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "lock table spine.destinations")
	require.NoError(t, err)
	for n := range 3 {
		receipts, err := i.Ingest(
			t.Context(),
			[]event.Event{
				{Source: "default", ID: fmt.Sprint(n), Type: "a", OccurredAt: time.Now(), Payload: []byte("{}")},
			},
		)
		require.NoError(t, err)
		require.Equal(t, acceptedOne, receipts)
	}
	require.NoError(t, tx.Rollback(t.Context()))
	awaitCompleted(t, db, 3)
}

// awaitCompleted waits until n events are completed at their first attempt.
func awaitCompleted(t *testing.T, db *pgxpool.Pool, n int) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var completed int
		require.NoError(
			c,
			db.QueryRow(t.Context(),
				"select count(*) from spine.processing_state where status = 'completed' and attempt_count = 1").Scan(
				&completed,
			),
		)
		require.Equal(c, n, completed)
	}, patience, 10*time.Millisecond)
}

func openTestStore(t *testing.T, db *pgxpool.Pool) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: db.Config().ConnString(), MaxConns: 4, AppName: "spine test"})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

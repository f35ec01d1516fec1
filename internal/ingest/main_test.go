package ingest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/webhookspine/spine/internal/event"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errAway = errors.New("the database is away")

// modelStore is a store that keeps the promises of the database's. The hooks,
// where set, are called outside its lock and may block.
type modelStore struct {
	before func(ctx context.Context, events []event.Event) error // before anything is stored
	after  func() error                                          // after the commit: an error is a lost answer

	mu      sync.Mutex
	stored  map[string]event.Event
	batches [][]event.Event // tried, in order
}

func (s *modelStore) Ingest(ctx context.Context, events []event.Event) ([]event.Receipt, error) {
	s.mu.Lock()
	s.batches = append(s.batches, events)
	s.mu.Unlock()
	if s.before != nil {
		if err := s.before(ctx, events); err != nil {
			return nil, err
		}
	}
	receipts := s.commit(events)
	if s.after != nil {
		if err := s.after(); err != nil {
			return nil, err
		}
	}
	return receipts, nil
}

func (s *modelStore) commit(events []event.Event) []event.Receipt {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stored == nil {
		s.stored = map[string]event.Event{}
	}
	receipts := make([]event.Receipt, len(events))
	for i, e := range events {
		switch first, known := s.stored[e.ID]; {
		case !known:
			s.stored[e.ID] = e
			receipts[i].Outcome = event.Accepted
		case first.Hash == e.Hash:
			receipts[i].Outcome = event.Deduplicated
		default:
			receipts[i].Outcome = event.Conflict
		}
	}
	return receipts
}

// sizes are the numbers of events of the batches so far.
func (s *modelStore) sizes() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sizes []int
	for _, b := range s.batches {
		sizes = append(sizes, len(b))
	}
	return sizes
}

// get returns a stored event.
func (s *modelStore) get(id string) (event.Event, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.stored[id]
	return e, ok
}

func (s *modelStore) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.stored)
}

func metrics() *Metrics { return NewMetrics(prometheus.NewRegistry()) }

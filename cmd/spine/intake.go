package main

import (
	"context"
	"errors"
	"slices"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/worker"
)

// jointRows is how many events are claimed by the transaction that stores them
// at most. Of more, two transactions cost little an event, and while one
// claims the next could already store.
const jointRows = 8

// intake is the store of a process that has a worker too. What comes in while
// that worker is idle is stored and claimed in one transaction; otherwise it
// is stored, and the worker is woken without the way through the database.
type intake struct {
	store interface {
		Ingest(ctx context.Context, events []event.Event) ([]event.Receipt, error)
		IngestAndClaim(ctx context.Context, events []event.Event, claim event.Claim) ([]event.Receipt, event.Claimed, error)
	}
	worker *worker.Worker
	log    zerolog.Logger
}

// Ingest keeps the promises of ingest.Store. Only storing alone can fail: after
// any error of the joint transaction the events are stored once more without a
// claim. Where only the answer to its commit was lost, they come back as
// deduplicated, and are delivered when the leases that nobody knows of run out.
func (i intake) Ingest(ctx context.Context, events []event.Event) ([]event.Receipt, error) {
	if len(events) <= jointRows {
		var receipts []event.Receipt
		// The slot more shows whether that was all that is due.
		err := i.worker.Lend(ctx, len(events)+1, func(claim event.Claim) (claimed event.Claimed, err error) {
			receipts, claimed, err = i.store.IngestAndClaim(ctx, events, claim)
			return claimed, err
		})
		if err == nil {
			return receipts, nil
		}
		if !errors.Is(err, worker.ErrBusy) {
			i.log.Warn().Err(err).Int("events", len(events)).Msg("storing and claiming at once failed, storing alone")
		}
	}
	receipts, err := i.store.Ingest(ctx, events)
	if slices.Contains(receipts, event.Receipt{Outcome: event.Accepted}) {
		i.worker.Wake(worker.Ingested)
	}
	return receipts, err
}

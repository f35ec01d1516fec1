package service

import (
	"context"
	"errors"
	"slices"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/worker"
)

// intake is the store of a process that has a worker too. It stores and claims an event in one transaction if the event
// comes alone and the worker is idle. It stores other events and wakes the worker without the way through the database,
// so that the worker claims while the next events are stored.
type intake struct {
	store interface {
		Ingest(ctx context.Context, events []event.Event) ([]event.Receipt, error)
		IngestAndClaim(
			ctx context.Context,
			events []event.Event,
			claim event.Claim,
		) ([]event.Receipt, event.Claimed, error)
	}
	worker *worker.Worker
	log    zerolog.Logger
}

// Ingest keeps the promises of ingest.Store. Only storing alone can fail: after any error of the joint transaction the
// event is stored once more without a claim. If only the answer to the joint commit was lost, the event comes back as
// deduplicated. It is delivered when the lease that nobody knows of runs out.
func (i intake) Ingest(ctx context.Context, events []event.Event) ([]event.Receipt, error) {
	if len(events) == 1 {
		var receipts []event.Receipt
		// The second slot shows whether another event was due.
		err := i.worker.Lend(ctx, 2, func(claim event.Claim) (claimed event.Claimed, err error) {
			receipts, claimed, err = i.store.IngestAndClaim(ctx, events, claim)
			return claimed, err
		})
		switch {
		case err == nil:
			return receipts, nil
		case errors.Is(err, event.ErrInvalidData):
			return nil, err
		case errors.Is(err, worker.ErrBusy), errors.Is(err, event.ErrLocked):
		default:
			i.log.Warn().Err(err).Str("event_id", events[0].ID).
				Msg("storing and claiming at once failed, storing alone")
		}
	}
	receipts, err := i.store.Ingest(ctx, events)
	if slices.Contains(receipts, event.Receipt{Outcome: event.Accepted}) {
		i.worker.Wake(worker.Ingested)
	}
	return receipts, err
}

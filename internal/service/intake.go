package service

import (
	"context"
	"errors"
	"slices"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/worker"
)

// intake is the store of a process that has a worker too. An event that comes
// alone while that worker is idle is stored and claimed in one transaction.
// Others are stored, and the worker is woken without the way through the
// database: they claim while the next are stored.
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

// Ingest keeps the promises of ingest.Store. Only storing alone can fail: after
// any error of the joint transaction the event is stored once more without a
// claim. Where only the answer to its commit was lost, it comes back as
// deduplicated, and is delivered when the lease that nobody knows of runs out.
func (i intake) Ingest(ctx context.Context, events []event.Event) ([]event.Receipt, error) {
	if len(events) == 1 {
		var receipts []event.Receipt
		// The second slot shows whether that was all that is due.
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
			i.log.Warn().Err(
				err,
			).Str(
				"event_id",
				events[0].ID,
			).Msg(
				"storing and claiming at once failed, storing alone",
			)
		}
	}
	receipts, err := i.store.Ingest(ctx, events)
	if slices.Contains(receipts, event.Receipt{Outcome: event.Accepted}) {
		i.worker.Wake(worker.Ingested)
	}
	return receipts, err
}

// operator does what the API is asked to do. It wakes the worker of its process,
// which takes notifications of the store's connections for the intake's.
type operator struct {
	*store.Store
	worker *worker.Worker // nil where there is none
}

// AcceptConflict keeps the promises of api.SourceOperator.
func (o operator) AcceptConflict(ctx context.Context, eventID, source, hash, caller string) (newID string, err error) {
	newID, err = o.Store.AcceptConflict(ctx, eventID, source, hash, caller)
	if err == nil && o.worker != nil {
		o.worker.Wake(worker.Notified)
	}
	return newID, err
}

// Replay keeps the promises of api.Operator.
func (o operator) Replay(ctx context.Context, eventID, source, destination, caller string) (replayed int64, err error) {
	replayed, err = o.Store.Replay(ctx, eventID, source, destination, caller)
	if replayed > 0 && o.worker != nil {
		o.worker.Wake(worker.Notified)
	}
	return replayed, err
}

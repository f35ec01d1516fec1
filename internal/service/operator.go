package service

import (
	"context"
	"time"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/source"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/upkeep"
	"github.com/webhookspine/spine/internal/view"
	"github.com/webhookspine/spine/internal/worker"
)

// operator makes the changes that the API is asked for. It wakes the worker of its process, because heardReady ignores
// the notifications of the store's own connections.
type operator struct {
	*store.Store
	worker  *worker.Worker // nil if there is none
	secrets source.Secrets
}

// reader reads for the API. Its overview has the troubles that upkeep has found.
type reader struct {
	*store.Store
	upkeep *upkeep.Upkeep
}

// Overview keeps the promises of api.Reader.
func (r reader) Overview(ctx context.Context, over time.Duration) (view.Overview, error) {
	o, err := r.Store.Overview(ctx, over)
	o.Troubles = r.upkeep.Troubles()
	return o, err
}

// RotateSource keeps the promises of api.SourceOperator. It rejects a secret that this process may not read.
func (o operator) RotateSource(
	ctx context.Context, name, reference string, keep time.Duration, caller string,
) (event.SourceSettings, error) {
	if err := o.secrets.Check(reference); err != nil {
		return event.SourceSettings{}, &event.BadSettingsError{
			Problems: []event.Problem{{Field: "secret", Detail: err.Error()}},
		}
	}
	return o.Store.RotateSource(ctx, name, reference, keep, caller)
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
	return o.wake(replayed, err)
}

// ReplayRows keeps the promises of api.Operator.
func (o operator) ReplayRows(
	ctx context.Context,
	rows []view.ProcessingRow,
	caller string,
) (replayed int64, err error) {
	replayed, err = o.Store.ReplayRows(ctx, rows, caller)
	return o.wake(replayed, err)
}

// Resume keeps the promises of api.Operator.
func (o operator) Resume(ctx context.Context, destination, caller string) (changed int64, err error) {
	changed, err = o.Store.Resume(ctx, destination, caller)
	return o.wake(changed, err)
}

// wake wakes the worker if there is something to claim.
func (o operator) wake(n int64, err error) (int64, error) {
	if n > 0 && o.worker != nil {
		o.worker.Wake(worker.Notified)
	}
	return n, err
}

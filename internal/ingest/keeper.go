package ingest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/webhookspine/spine/internal/event"
)

// RejectedStore keeps rejected requests, those of each source within its budget.
type RejectedStore interface {
	// KeepRejected keeps requests. again says that some of them may be kept already: an earlier call with them ended
	// with an error.
	KeepRejected(
		ctx context.Context, requests []event.RejectedRequest, budgets map[string]event.Budget, again bool,
	) error
}

// Limits of the Keeper. They make a flood of requests cheap: the database keeps only what a source's budget allows, and
// the audit log has the sums of all.
const (
	keptPerSecond = 20       // requests of one source and cause
	keptBurst     = 100      // of one source and cause at once
	keptWaiting   = 1000     // requests that wait for the database
	keptBytes     = 32 << 20 // of their bodies
	keptInterval  = 250 * time.Millisecond
	keptPatience  = 5 * time.Second // for one call to the database
)

// Keeper keeps rejected requests, so that those rejected by mistake can be replayed. It never delays an answer: a
// request beyond its limits is counted and not kept.
type Keeper struct {
	store   RejectedStore
	log     zerolog.Logger
	metrics *Metrics

	doubtful bool // the last call ended with an error, and may have kept its requests all the same

	mu      sync.Mutex
	waiting []event.RejectedRequest
	rows    int // requests that wait or are being stored
	bytes   int // of their bodies
	budgets map[string]event.Budget
	rates   map[keeperKey]*rate.Limiter
}

// keeperKey is bounded: sources that exist, and the causes of this package.
type keeperKey struct{ source, cause string }

// NewKeeper returns a Keeper; Run makes it work.
func NewKeeper(store RejectedStore, log zerolog.Logger, metrics *Metrics) *Keeper {
	return &Keeper{
		store: store, log: log, metrics: metrics,
		budgets: map[string]event.Budget{}, rates: map[keeperKey]*rate.Limiter{},
	}
}

// keep hands in a rejected request.
func (k *Keeper) keep(a *arrival, rej *rejection) {
	budget := a.policy.Kept
	body := a.request.Wire
	k.mu.Lock()
	key := keeperKey{a.name, rej.cause}
	limiter := k.rates[key]
	if limiter == nil {
		limiter = rate.NewLimiter(keptPerSecond, keptBurst)
		k.rates[key] = limiter
	}
	full := k.rows >= keptWaiting || k.bytes+len(body) > keptBytes || int64(len(body)) > budget.Bytes
	if budget.Rows <= 0 || full || !limiter.Allow() {
		k.mu.Unlock()
		k.metrics.unkept.Inc()
		return
	}
	k.mu.Unlock()

	// Outside of the lock, since redacting may take a while.
	kept := event.RejectedRequest{
		Source: a.name, At: event.Timestamp{Time: a.request.At},
		Cause: rej.cause, Status: rej.status, Detail: rej.longDetail(),
		Remote: a.remote, Method: a.request.Method, Target: a.source.RedactTarget(a.request.URL),
		Headers: a.source.Redact(a.request.Header), Body: body,
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.waiting = append(k.waiting, kept)
	k.rows++
	k.bytes += len(body)
	k.budgets[a.name] = budget
}

// Run stores rejected requests until ctx ends, and then those that are left.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(keptInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			k.flush(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			k.flush(last)
			return nil
		}
	}
}

// flush stores the requests that wait. If that fails they wait on. They then still count towards the limits, so in a
// long outage the newest requests are not kept.
func (k *Keeper) flush(ctx context.Context) {
	k.mu.Lock()
	requests, budgets := k.waiting, k.budgets
	if len(requests) == 0 {
		k.mu.Unlock()
		return
	}
	k.waiting, k.budgets = nil, map[string]event.Budget{}
	k.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, keptPatience)
	defer cancel()
	err := k.store.KeepRejected(ctx, requests, budgets, k.doubtful)
	k.doubtful = err != nil && !errors.Is(err, event.ErrInvalidData)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil || errors.Is(err, event.ErrInvalidData) {
		for _, r := range requests {
			k.rows--
			k.bytes -= len(r.Body)
		}
	}
	switch {
	case err == nil:
		return
	case errors.Is(err, event.ErrInvalidData): // every further try would fail too
		k.log.Error().Err(err).Int("requests", len(requests)).Msg("rejected requests cannot be kept")
		k.metrics.unkept.Add(float64(len(requests)))
		return
	}
	k.log.Warn().Err(err).Int("requests", len(requests)).Msg("keeping rejected requests failed, trying again later")
	k.waiting = append(requests, k.waiting...)
	for name, budget := range budgets {
		if _, newer := k.budgets[name]; !newer {
			k.budgets[name] = budget
		}
	}
}

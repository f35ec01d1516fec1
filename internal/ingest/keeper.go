package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/webhookspine/spine/internal/event"
)

// RejectedStore keeps requests that were refused, each source's within its
// budget.
type RejectedStore interface {
	// again says that some of the requests may have been kept: a call with them
	// ended with an error.
	KeepRejected(ctx context.Context, requests []event.RejectedRequest, budgets map[string]event.Budget, again bool) error
}

// What the keeper does at most, so that a flood of requests costs little: the
// database holds a thousand of a source, and the sums are audited.
const (
	keptPerSecond = 20 // of one source and cause
	keptBurst     = 100
	keptWaiting   = 1000     // requests that wait to be stored
	keptBytes     = 32 << 20 // of those
	keptInterval  = 250 * time.Millisecond
	keptPatience  = 5 * time.Second
)

// Keeper keeps requests that were refused, so that what was refused by mistake
// can be taken in later. It never holds up an answer: what there is no room for
// is counted and not kept.
type Keeper struct {
	store   RejectedStore
	log     zerolog.Logger
	metrics *Metrics

	doubtful bool // the last try ended with an error, and may have kept what it was to keep

	mu      sync.Mutex
	waiting []event.RejectedRequest
	rows    int // that wait, or are being stored
	bytes   int // of their bodies
	budgets map[string]event.Budget
	rates   map[keeperKey]*rate.Limiter
}

// keeperKey is bounded: sources that exist, and the causes of this package.
type keeperKey struct{ source, cause string }

// NewKeeper returns a Keeper; Run makes it work.
func NewKeeper(store RejectedStore, log zerolog.Logger, metrics *Metrics) *Keeper {
	return &Keeper{store: store, log: log, metrics: metrics, budgets: map[string]event.Budget{}, rates: map[keeperKey]*rate.Limiter{}}
}

// keep hands in a request that was refused.
func (k *Keeper) keep(a *arrival, f *refusal) {
	budget := a.source.Policy().Kept
	body := a.request.Wire
	k.mu.Lock()
	key := keeperKey{a.name, f.cause}
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

	// Outside of the lock: it may take a while.
	kept := event.RejectedRequest{
		Source: a.name, At: event.Timestamp{Time: a.request.At}, Cause: f.cause, Status: f.status, Detail: f.detail,
		Remote: a.remote, Method: a.request.Method, Target: a.source.RedactTarget(a.request.URL),
		Headers: a.source.Redact(a.request.Header), Body: body,
	}
	for _, p := range f.problems {
		kept.Detail += " " + p.Field + " " + p.Detail + "."
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.waiting = append(k.waiting, kept)
	k.rows++
	k.bytes += len(body)
	k.budgets[a.name] = budget
}

// Run stores what is kept until ctx ends, and then what is left.
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

// flush stores what waits. What cannot be stored now waits on, and when that
// becomes too much, what comes is not kept.
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
	case errors.Is(err, event.ErrInvalidData): // they would be refused for ever
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

// RequestedStore hands out kept requests that somebody wants to be looked at
// again. Those that are not settled are handed out once more after a while.
type RequestedStore interface {
	TakeRequested(ctx context.Context, limit int) ([]event.RejectedRequest, error)
	SettleRejected(ctx context.Context, id int64, trust bool, state, note, eventID string) error
}

// How often it is looked whether something is to be looked at again where no
// notification says so, how much at a time, and how long that may take.
const (
	replayInterval = 5 * time.Second
	replayBatch    = 20
	replayPatience = 20 * time.Second // less than they are handed out for
)

// Replayer looks at kept requests again, as if they came now.
type Replayer struct {
	store   RequestedStore
	handler *Handler
	log     zerolog.Logger
	rung    chan struct{}
}

// NewReplayer returns a Replayer that has handler take requests in.
func NewReplayer(store RequestedStore, handler *Handler, log zerolog.Logger) *Replayer {
	return &Replayer{store: store, handler: handler, log: log, rung: make(chan struct{}, 1)}
}

// Ring says that something may be to be looked at. It never waits.
func (p *Replayer) Ring() {
	select {
	case p.rung <- struct{}{}:
	default:
	}
}

// Run works until ctx ends.
func (p *Replayer) Run(ctx context.Context) error {
	tick := time.NewTicker(replayInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-p.rung:
		}
		for p.batch(ctx) && ctx.Err() == nil {
		}
	}
}

// batch looks at some requests, and reports whether there may be more.
func (p *Replayer) batch(ctx context.Context) (more bool) {
	ctx, cancel := context.WithTimeout(ctx, replayPatience)
	defer cancel()
	requests, err := p.store.TakeRequested(ctx, replayBatch)
	if err != nil {
		if ctx.Err() == nil {
			p.log.Debug().Err(err).Msg("looking for requests to look at again failed, trying again later")
		}
		return false
	}
	for _, kept := range requests {
		state, note, eventID := p.again(ctx, kept)
		if state == "" {
			continue // a fault of ours: it is handed out once more
		}
		if err := p.store.SettleRejected(ctx, kept.ID, kept.Trust, state, note, eventID); err != nil {
			p.log.Warn().Err(err).Int64("request", kept.ID).Msg("noting what came of a rejected request failed, it is looked at once more")
		}
	}
	return len(requests) == replayBatch
}

// again takes a request in, or says why not. It is judged by the time at which
// it came, and without being verified where somebody vouches for it.
func (p *Replayer) again(ctx context.Context, kept event.RejectedRequest) (state, note, eventID string) {
	r, err := requestOf(kept)
	if err != nil {
		return event.RejectedAgain, "What was kept of it cannot be read: " + err.Error() + ".", ""
	}
	a := &arrival{request: r, remote: kept.Remote}
	defer p.handler.letGo(a)
	source, err := p.handler.sources.Lookup(kept.Source)
	f := p.handler.found(a, kept.Source, source, err)
	if f == nil {
		f = checkHeaders(r.Header, source)
	}
	if f == nil && !kept.Trust {
		f = p.handler.verify(a)
	}
	var result taken
	if f == nil {
		result, f = p.handler.take(ctx, a)
	}
	switch {
	case f == nil && len(result.receipts) == 0:
		return event.RejectedTakenIn, "It was answered; there is no event in it.", ""
	case f == nil:
		return event.RejectedTakenIn, string(result.receipts[0].Outcome), result.events[0].ID
	case f.status >= http.StatusInternalServerError:
		return "", "", ""
	}
	note = f.detail
	for _, problem := range f.problems {
		note += " " + problem.Field + " " + problem.Detail + "."
	}
	if f.cause == "credentials_missing" || f.cause == "credentials_wrong" {
		note += " Credentials are not kept, so that it cannot be verified again: it can be taken in by trusting it."
	}
	return event.RejectedAgain, note, ""
}

// requestOf is a kept request as it came, but for the secrets in it.
func requestOf(kept event.RejectedRequest) (*event.Request, error) {
	r := &event.Request{Method: kept.Method, Header: http.Header{}, Wire: kept.Body, At: kept.At.Time}
	var err error
	if r.URL, err = url.Parse(kept.Target); err != nil {
		return nil, errors.New("its address is none")
	}
	if err := json.Unmarshal(kept.Headers, &r.Header); err != nil {
		return nil, errors.New("its headers are not JSON")
	}
	return r, nil
}

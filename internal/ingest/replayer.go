package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/bell"
	"github.com/webhookspine/spine/internal/event"
)

// RequestedStore hands out rejected requests that an operator wants replayed.
type RequestedStore interface {
	// TakeRequested hands out up to limit requests. One that is not settled within 30 seconds is handed out again.
	TakeRequested(ctx context.Context, limit int) ([]event.RejectedRequest, error)
	// SettleRejected notes what became of a request that was handed out with trust. Where an operator has changed
	// trust meanwhile, only a request that was admitted is settled.
	SettleRejected(ctx context.Context, id int64, trust bool, state, note, eventID string) error
}

// Poll interval, batch size and time limit of the Replayer.
const (
	replayInterval = 5 * time.Second
	replayBatch    = 20
	replayPatience = 20 * time.Second // below the 30 s after which the store hands requests out again
)

// Replayer replays rejected requests, as if they came now but with the time at which they came.
type Replayer struct {
	store   RequestedStore
	handler *Handler
	log     zerolog.Logger
	bell    *bell.Bell
}

// NewReplayer returns a Replayer that replays requests through handler.
func NewReplayer(store RequestedStore, handler *Handler, log zerolog.Logger) *Replayer {
	return &Replayer{store: store, handler: handler, log: log, bell: bell.New()}
}

// Ring says that a replay may have been requested. It never blocks. Without a ring the Replayer polls.
func (p *Replayer) Ring() { p.bell.Ring() }

// Run works until ctx ends.
func (p *Replayer) Run(ctx context.Context) error {
	tick := time.NewTicker(replayInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-p.bell.C():
		}
		for p.nextBatch(ctx) && ctx.Err() == nil {
		}
	}
}

// nextBatch replays some requests, and reports whether there may be more.
func (p *Replayer) nextBatch(ctx context.Context) (more bool) {
	ctx, cancel := context.WithTimeout(ctx, replayPatience)
	defer cancel()
	requests, err := p.store.TakeRequested(ctx, replayBatch)
	if err != nil {
		if ctx.Err() == nil {
			p.log.Debug().Err(err).Msg("reading requested replays failed, trying again later")
		}
		return false
	}
	for _, kept := range requests {
		state, note, eventID := p.replay(ctx, kept)
		if state == "" {
			continue // our fault: the store hands it out again
		}
		if err := p.store.SettleRejected(ctx, kept.ID, kept.Trust, state, note, eventID); err != nil {
			p.log.Warn().
				Err(err).
				Int64("request", kept.ID).
				Msg("noting the result of a replay failed, replaying once more")
		}
	}
	return len(requests) == replayBatch
}

// replay admits a request, or says why it is rejected again. state is empty where that is our fault.
func (p *Replayer) replay(ctx context.Context, kept event.RejectedRequest) (state, note, eventID string) {
	r, err := requestOf(kept)
	if err != nil {
		return event.RejectedAgain, "The kept request cannot be read: " + err.Error() + ".", ""
	}
	a := &arrival{asked: kept.Source, remote: kept.Remote, request: r}
	defer p.handler.release(a)
	done, rej := p.handler.admit(ctx, a, options{trusted: kept.Trust})
	switch {
	case rej == nil && len(done.events) == 0:
		return event.RejectedTakenIn, "The request was answered. It holds no event.", ""
	case rej == nil:
		return event.RejectedTakenIn, string(done.receipts[0].Outcome), done.events[0].ID
	case rej.isStray():
		// A later try changes nothing until the operator does. Without an answer it would go on for ever.
		return event.RejectedAgain, tellOperator(rej), ""
	case rej.ourFault():
		return "", "", ""
	}
	note = rej.longDetail()
	if rej.cause == "credentials_missing" || rej.cause == "credentials_wrong" {
		note += " Credentials are not kept, so this request can only be replayed with trust."
	}
	return event.RejectedAgain, note, ""
}

// tellOperator says what an operator must do before a request to a source that takes none can be replayed.
func tellOperator(rej *rejection) string {
	switch rej.cause {
	case sourceDisabled.cause:
		return "The source is disabled. Enable it first."
	case sourceBroken.cause:
		return "The source cannot be used. Correct its settings or secrets first."
	}
	return rej.detail
}

// requestOf returns a kept request as it came, without its secrets.
func requestOf(kept event.RejectedRequest) (event.Request, error) {
	r := event.Request{Method: kept.Method, Header: http.Header{}, Wire: kept.Body, At: kept.At.Time}
	var err error
	if r.URL, err = url.Parse(kept.Target); err != nil {
		return r, errors.New("its target is not a URL")
	}
	if err := json.Unmarshal(kept.Headers, &r.Header); err != nil {
		return r, errors.New("its headers are not JSON")
	}
	return r, nil
}

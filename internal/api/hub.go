package api

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/bell"
	"github.com/webhookspine/spine/internal/trail"
)

// hub follows the audit log once for all viewers, as long as there is one, and hands each page to all of them.
type hub struct {
	follower trail.Follower
	bell     *bell.Bell // of the follower; also rung where somebody wants to join
	log      zerolog.Logger

	mu       sync.Mutex
	joining  map[*viewer]bool // whether the log was read to its end since the viewer asked to join
	watching map[*viewer]struct{}
}

// newHub returns a hub that spends at most timeout on one read.
func newHub(reader trail.Reader, timeout time.Duration, log zerolog.Logger) *hub {
	ring := bell.New()
	return &hub{
		follower: trail.Follower{Reader: reader, Bell: ring, Timeout: timeout}, bell: ring, log: log,
		joining: map[*viewer]bool{}, watching: map[*viewer]struct{}{},
	}
}

// join lets v in as soon as the hub is at a place that contains what v has seen. The place comes on v.joined, and the
// pages after it in v's queue. v must leave in the end.
func (h *hub) join(v *viewer) {
	h.mu.Lock()
	h.joining[v] = false
	h.mu.Unlock()
	h.bell.Ring()
}

func (h *hub) leave(v *viewer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.joining, v)
	delete(h.watching, v)
}

func (h *hub) watched() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.joining)+len(h.watching) > 0
}

// Run follows the log while it is watched, until ctx ends.
func (h *hub) Run(ctx context.Context) {
	for {
		select {
		case <-h.bell.C():
		case <-ctx.Done():
			return
		}
		if h.watched() {
			h.follow(ctx)
		}
	}
}

// follow hands out pages until nobody watches or ctx ends.
func (h *hub) follow(ctx context.Context) {
	away := false // the database
	for page, err := range h.follower.Follow(ctx) {
		switch {
		case err != nil && !away:
			h.log.Warn().Err(err).Msg("the stream cannot read the audit log, trying again")
		case err == nil && away:
			h.log.Info().Msg("the stream reads the audit log again, nothing was missed")
		}
		if away = err != nil; !away {
			h.handOut(page)
		}
		if !h.watched() {
			return
		}
	}
}

// handOut gives a page to all who watch, and lets in who wants to join.
func (h *hub) handOut(p trail.Page) {
	switch {
	case p.Restarted:
		h.log.Warn().Err(trail.ErrCursorAhead).Msg("the stream begins anew")
		h.push(message{reset: true, after: p.After.String()})
	case len(p.Steps) > 0:
		h.push(message{page: &page{steps: p.Steps}, after: p.After.String()})
	}
	if p.After.Settled() {
		h.admit(p.After)
	}
}

// push gives a message to all who watch.
func (h *hub) push(m message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for v := range h.watching {
		v.push(m)
	}
}

// admit lets in the viewers whose past is contained in place, to which the log was just read. A viewer may have seen
// steps that were committed after this read began: it waits for the next one, which contains them. What is not
// contained then either was seen in another database, and the viewer finds out by comparing.
func (h *hub) admit(place trail.Cursor) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for v, waited := range h.joining {
		if !waited && v.seen != nil && !place.Seen.Contains(*v.seen) {
			h.joining[v] = true
			h.bell.Ring()
			continue
		}
		delete(h.joining, v)
		h.watching[v] = struct{}{}
		v.joined <- place
	}
}

package ingest

import (
	"math"
	"net/http"
	"slices"

	"github.com/rs/zerolog"
	"golang.org/x/sync/semaphore"

	"github.com/webhookspine/spine/internal/event"
)

// Trial is what would become of a request.
type Trial struct {
	Status   int             // HTTP status of the answer
	Cause    string          // a short word for why it would be refused; empty where it would not
	Detail   string          // that in a sentence
	Problems []event.Problem // and where
	Answer   []byte          // body of the answer to a handshake, which holds no events
	Events   []event.Event   // that would be stored
}

// Try takes a request through the same steps as one that comes over the network,
// judged by its At, up to where its events would be stored. Its source is what
// looking it up by name ended with. Limits of rate do not hold for it. maxBody is
// in bytes, for the body before and after decompression.
func Try(source Source, lookup error, r *event.Request, maxBody int64) Trial {
	h := &Handler{config: HandlerConfig{MaxBody: maxBody}, inFlight: semaphore.NewWeighted(math.MaxInt64), log: zerolog.Nop()}
	a := &arrival{request: r}
	f := h.found(a, "tried", source, lookup)
	var events []event.Event
	var at *answer
	if f == nil {
		events, at, f = h.try(a)
	}
	switch {
	case f != nil:
		return Trial{Status: f.status, Cause: f.cause, Detail: f.detail, Problems: f.problems}
	case at != nil:
		return Trial{Status: at.status, Answer: at.body}
	}
	return Trial{Status: http.StatusOK, Events: events}
}

func (h *Handler) try(a *arrival) ([]event.Event, *answer, *refusal) {
	if a.request.Method != http.MethodPost {
		if slices.Contains(a.source.Allowed(), a.request.Method) {
			if said, ok := a.source.Handshake(a.request); ok {
				said := handshake(said)
				return nil, &said, nil
			}
		}
		return nil, nil, &refusal{status: http.StatusMethodNotAllowed, cause: "method", detail: "The path does not take " + a.request.Method + "."}
	}
	if f := checkHeaders(a.request.Header, a.source); f != nil {
		return nil, nil, f
	}
	if int64(len(a.request.Wire)) > h.config.MaxBody {
		return nil, nil, h.tooLarge()
	}
	if f := h.verify(a); f != nil {
		return nil, nil, f
	}
	events, _, at, f := h.read(a)
	return events, at, f
}

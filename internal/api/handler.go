package api

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/gorilla/mux"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/respond"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// Reader reads what is stored. A list is newest first. It returns a page and how the list goes on, or view.ErrBadCursor
// for a cursor that is not its own. Event returns an *view.NotStoredError or an *view.AmbiguousError where there is not
// exactly one event to return. All methods heed their context and may be called concurrently.
type Reader interface {
	Events(
		ctx context.Context,
		page view.Page,
		filter view.EventFilter,
	) (rows []view.StoredEvent, next view.Next, err error)
	Audit(ctx context.Context, page view.Page, filter view.StepFilter) (rows []trail.Step, next view.Next, err error)
	Processing(
		ctx context.Context,
		page view.Page,
		filter view.ProcessingFilter,
	) (rows []view.ProcessingRow, next view.Next, err error)
	Attempts(
		ctx context.Context,
		page view.Page,
		filter view.AttemptFilter,
	) (rows []view.AttemptRow, next view.Next, err error)
	Event(ctx context.Context, eventID, source string) (view.History, error)
	// Overview reaches back over 15 minutes, 1, 6 or 24 hours, or 7 days.
	Overview(ctx context.Context, over time.Duration) (view.Overview, error)
	Search(ctx context.Context, text string) ([]view.SearchHit, error)
	Names(ctx context.Context) (view.Names, error)
}

// Operator changes what is stored. caller is who asked, for the audit log. Each method returns once its change is
// committed, heeds its context, and may be called concurrently, and again after any error.
type Operator interface {
	// Replay delivers an event again, to one destination, or to all where destination is empty. It returns how many
	// deliveries that are: 0 where they are already under way. Its errors are those of Reader.Event.
	Replay(ctx context.Context, eventID, source, destination, caller string) (replayed int64, err error)
	// ReplayRows delivers again those of the rows that are dead.
	ReplayRows(ctx context.Context, rows []view.ProcessingRow, caller string) (replayed int64, err error)
	// Pause stops claims for a destination, and Resume takes them up again. They return how many destinations they
	// changed, or view.ErrNoDestination.
	Pause(ctx context.Context, destination, reason, caller string) (changed int64, err error)
	Resume(ctx context.Context, destination, caller string) (changed int64, err error)
}

// MaxLimit is the most rows that a page may have.
const MaxLimit = 1000

// Handler answers /api/….
type Handler struct {
	responder
	reader   Reader
	operator Operator
}

// NewHandler returns a Handler that spends at most timeout on a request.
func NewHandler(reader Reader, operator Operator, timeout time.Duration, log zerolog.Logger) *Handler {
	return &Handler{responder: responder{timeout: timeout, log: log}, reader: reader, operator: operator}
}

// Register adds the handler's routes:
//
//	GET  /api/events                    type, source, status, since, until
//	GET  /api/audit                     event_id, source, type, action, success, since, until
//	GET  /api/processing                event_id, source, type, destination, status, since, until
//	GET  /api/attempts                  event_id, source, type, outcome, since, until
//	GET  /api/event                     event_id, source
//	GET  /api/events/{event_id}         source
//	GET  /api/search                    q
//	GET  /api/overview                  range
//	GET  /api/names
//	POST /api/event/replay              event_id, source, destination
//	POST /api/events/{event_id}/replay  source, destination
//	POST /api/dead/replay               event_id, source, type, destination, since, until
//	POST /api/destinations/{destination}/pause   {"reason":"…"}
//	POST /api/destinations/{destination}/resume
//
// SourceHandler has more.
//
// The lists also take limit (1 to MaxLimit) and cursor, which comes in the Link header (RFC 8288) of the page before. A
// page may have fewer rows than its limit, or none, although more follow: one request scans a limited number of rows.
// The header Spine-Looked-Back-To then says how far back it has scanned. since (inclusive) and until (exclusive) are
// times of RFC 3339.
//
// The router must have UseEncodedPath and SkipClean set, since an event_id may hold any character. Requests that change
// something rely on Guard around the router.
func (h *Handler) Register(r *mux.Router) {
	for path, answer := range map[string]http.HandlerFunc{
		"/api/events":            h.events,
		"/api/audit":             h.audit,
		"/api/processing":        h.processing,
		"/api/attempts":          h.attempts,
		"/api/event":             h.event,
		"/api/events/{event_id}": h.event,
		"/api/overview":          h.overview,
		"/api/search":            h.search,
		"/api/names":             h.names,
	} {
		r.Path(path).Methods(http.MethodGet, http.MethodHead).Handler(h.bounded(answer))
	}
	for path, answer := range map[string]http.HandlerFunc{
		"/api/event/replay":                      h.replay,
		"/api/events/{event_id}/replay":          h.replay,
		"/api/dead/replay":                       h.replayDead,
		"/api/destinations/{destination}/pause":  h.pause,
		"/api/destinations/{destination}/resume": h.resume,
	} {
		r.Path(path).Methods(http.MethodPost).Handler(h.bounded(answer))
	}
}

func (h *Handler) events(w http.ResponseWriter, r *http.Request) {
	q, faults := readListQuery(r, 50, "type", "source", "status", "since", "until")
	if rejectQuery(w, faults) {
		return
	}
	rows, next, err := h.reader.Events(r.Context(), q.page, view.EventFilter{
		Type: q.filter["type"], Source: q.filter["source"], Status: q.filter["status"], Span: q.span,
	})
	h.answer(w, r, rows, next, err)
}

func (h *Handler) audit(w http.ResponseWriter, r *http.Request) {
	q, faults := readListQuery(r, 100, "event_id", "source", "type", "action", "success", "since", "until")
	if rejectQuery(w, faults) {
		return
	}
	rows, next, err := h.reader.Audit(r.Context(), q.page, view.StepFilter{
		EventID: q.filter["event_id"], Source: q.filter["source"], Type: q.filter["type"],
		Action: trail.Action(q.filter["action"]), Success: q.filter["success"], Span: q.span,
	})
	h.answer(w, r, rows, next, err)
}

func (h *Handler) processing(w http.ResponseWriter, r *http.Request) {
	q, faults := readListQuery(r, 50, "event_id", "source", "type", "destination", "status", "since", "until")
	if rejectQuery(w, faults) {
		return
	}
	rows, next, err := h.reader.Processing(r.Context(), q.page, view.ProcessingFilter{
		EventID: q.filter["event_id"], Source: q.filter["source"], Type: q.filter["type"],
		Destination: q.filter["destination"], Status: q.filter["status"], Span: q.span,
	})
	h.answer(w, r, rows, next, err)
}

func (h *Handler) attempts(w http.ResponseWriter, r *http.Request) {
	q, faults := readListQuery(r, 50, "event_id", "source", "type", "outcome", "since", "until")
	if rejectQuery(w, faults) {
		return
	}
	rows, next, err := h.reader.Attempts(r.Context(), q.page, view.AttemptFilter{
		EventID: q.filter["event_id"],
		Source:  q.filter["source"],
		Type:    q.filter["type"],
		Outcome: q.filter["outcome"],
		Span:    q.span,
	})
	h.answer(w, r, rows, next, err)
}

func (h *Handler) event(w http.ResponseWriter, r *http.Request) {
	id, query, ok := eventQuery(w, r, "source")
	if !ok {
		return
	}
	history, err := h.reader.Event(r.Context(), id, query["source"])
	h.answer(w, r, history, view.Next{}, err)
}

func (h *Handler) search(w http.ResponseWriter, r *http.Request) {
	query, faults := parameters(r, "q")
	if len(faults) == 0 && query["q"] == "" {
		faults = append(faults, respond.Fault{Parameter: "q", Detail: "must be an event_id or the beginning of one"})
	}
	if rejectQuery(w, faults) {
		return
	}
	found, err := h.reader.Search(r.Context(), query["q"])
	h.answer(w, r, found, view.Next{}, err)
}

func (h *Handler) names(w http.ResponseWriter, r *http.Request) {
	if _, faults := parameters(r); rejectQuery(w, faults) {
		return
	}
	names, err := h.reader.Names(r.Context())
	h.answer(w, r, names, view.Next{}, err)
}

// replayDead replays one page of dead letters. The pages are those of /api/processing, so that it replays what a reader
// of that list has seen. A letter that dies again is not on a later page.
func (h *Handler) replayDead(w http.ResponseWriter, r *http.Request) {
	q, faults := readListQuery(r, 500, "event_id", "source", "type", "destination", "since", "until")
	if rejectQuery(w, faults) {
		return
	}
	rows, next, err := h.reader.Processing(r.Context(), q.page, view.ProcessingFilter{
		EventID: q.filter["event_id"], Source: q.filter["source"], Type: q.filter["type"],
		Destination: q.filter["destination"], Status: event.StatusDead, Span: q.span,
	})
	var n int64
	if err == nil && len(rows) > 0 {
		n, err = h.operator.ReplayRows(r.Context(), rows, caller(r))
	}
	h.answer(w, r, struct {
		Replayed int64 `json:"replayed"`
	}{n}, next, err)
}

func (h *Handler) pause(w http.ResponseWriter, r *http.Request) {
	if _, faults := parameters(r); rejectQuery(w, faults) {
		return
	}
	body, ok := readSmallBody(w, r)
	if !ok {
		return
	}
	var asked struct {
		Reason string `json:"reason"`
	}
	if len(body) > 0 && json.Unmarshal(body, &asked) != nil {
		respond.Reject(w, respond.Problem{
			Status: http.StatusUnprocessableEntity,
			Detail: `The body must be empty, or an object such as {"reason":"deploying billing"}.`,
		})
		return
	}
	h.changeClaims(w, r, func(ctx context.Context, destination string) (int64, error) {
		return h.operator.Pause(ctx, destination, asked.Reason, caller(r))
	})
}

func (h *Handler) resume(w http.ResponseWriter, r *http.Request) {
	if _, faults := parameters(r); rejectQuery(w, faults) {
		return
	}
	h.changeClaims(w, r, func(ctx context.Context, destination string) (int64, error) {
		return h.operator.Resume(ctx, destination, caller(r))
	})
}

// changeClaims makes a change to the claims of the destination in the path.
func (h *Handler) changeClaims(
	w http.ResponseWriter,
	r *http.Request,
	change func(ctx context.Context, destination string) (int64, error),
) {
	n, err := change(r.Context(), mux.Vars(r)["destination"])
	h.answer(w, r, struct {
		Changed bool `json:"changed"`
	}{n > 0}, view.Next{}, err)
}

func (h *Handler) replay(w http.ResponseWriter, r *http.Request) {
	id, query, ok := eventQuery(w, r, "source", "destination")
	if !ok {
		return
	}
	n, err := h.operator.Replay(r.Context(), id, query["source"], query["destination"], caller(r))
	h.answer(w, r, struct {
		Replayed int64 `json:"replayed"`
	}{n}, view.Next{}, err)
}

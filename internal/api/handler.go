package api

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gorilla/mux"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/respond"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// Reader reads what is stored. The lists are newest first; they return with a
// page how they go on, and view.ErrBadCursor for a cursor that is not theirs.
// Event returns an *view.NotStoredError or an *view.AmbiguousError where there
// is not one event to return. All heed their context and are called
// concurrently.
type Reader interface {
	Events(ctx context.Context, page view.Page, filter view.Filter) (rows []view.Stored, next view.Next, err error)
	Audit(ctx context.Context, page view.Page, filter view.AuditFilter) (rows []trail.Step, next view.Next, err error)
	Processing(ctx context.Context, page view.Page, filter view.ProcessingFilter) (rows []view.ProcessingRow, next view.Next, err error)
	Attempts(ctx context.Context, page view.Page, filter view.AttemptFilter) (rows []view.AttemptRow, next view.Next, err error)
	Event(ctx context.Context, eventID, source string) (view.History, error)
	// Overview reaches back over 15 minutes, 1, 6 or 24 hours, or 7 days.
	Overview(ctx context.Context, over time.Duration) (view.Overview, error)
	Search(ctx context.Context, text string) ([]view.Found, error)
}

// Operator changes what is stored. Replay delivers an event again, to one
// destination or to all where it is empty, and returns how many deliveries that
// are once they are committed: 0 where they are under way already. It returns
// errors as Reader.Event does, and may be called again after any of them. caller
// is who asked, in the audit log's words. It heeds its context and is called
// concurrently.
type Operator interface {
	Replay(ctx context.Context, eventID, source, destination, caller string) (replayed int64, err error)
}

// MaxLimit is how many rows a page has at most.
const MaxLimit = 1000

// Handler answers /api/….
type Handler struct {
	reader   Reader
	operator Operator
	timeout  time.Duration
	log      zerolog.Logger
}

// NewHandler returns a Handler that spends at most timeout on a request.
func NewHandler(reader Reader, operator Operator, timeout time.Duration, log zerolog.Logger) *Handler {
	return &Handler{reader: reader, operator: operator, timeout: timeout, log: log}
}

// Register adds the handler's routes:
//
//	GET  /api/events                    type, source, status, since, until
//	GET  /api/audit                     event_id, source, type, action, success, since, until
//	GET  /api/processing                event_id, source, type, destination, status, since, until
//	GET  /api/attempts                  event_id, source, type, outcome, since, until
//	GET  /api/events/{event_id}         source
//	GET  /api/search                    q
//	GET  /api/overview                  range
//	POST /api/events/{event_id}/replay  source, destination
//
// SourceHandler has more. The lists also take limit (1 to MaxLimit) and cursor, which comes in the
// Link header (RFC 8288) of the page before. A page may have fewer rows than its
// limit, or none, and a next one all the same: it ends where enough rows were
// looked at, and says in Spine-Looked-Back-To of what time the last one was.
// since (inclusive) and until (exclusive) are times of RFC 3339.
//
// The router must have UseEncodedPath and SkipClean set, since an event_id may
// hold any character. What changes something relies on SameOrigin around it.
func (h *Handler) Register(r *mux.Router) {
	for path, answer := range map[string]http.HandlerFunc{
		"/api/events":            h.events,
		"/api/audit":             h.audit,
		"/api/processing":        h.processing,
		"/api/attempts":          h.attempts,
		"/api/events/{event_id}": h.event,
		"/api/overview":          h.overview,
		"/api/search":            h.search,
	} {
		r.Path(path).Methods(http.MethodGet, http.MethodHead).Handler(h.bounded(answer))
	}
	r.Path("/api/events/{event_id}/replay").Methods(http.MethodPost).Handler(h.bounded(http.HandlerFunc(h.replay)))
}

// bounded ends a request's context after the handler's timeout.
func (h *Handler) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), h.timeout)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func (h *Handler) events(w http.ResponseWriter, r *http.Request) {
	q, faults := list(r, 50, "type", "source", "status", "since", "until")
	if refuseQuery(w, faults) {
		return
	}
	rows, next, err := h.reader.Events(r.Context(), q.page, view.Filter{
		Type: q.filter["type"], Source: q.filter["source"], Status: q.filter["status"], Span: q.span,
	})
	h.answer(w, r, rows, next, err)
}

func (h *Handler) audit(w http.ResponseWriter, r *http.Request) {
	q, faults := list(r, 100, "event_id", "source", "type", "action", "success", "since", "until")
	if refuseQuery(w, faults) {
		return
	}
	rows, next, err := h.reader.Audit(r.Context(), q.page, view.AuditFilter{
		EventID: q.filter["event_id"], Source: q.filter["source"], Type: q.filter["type"],
		Action: trail.Action(q.filter["action"]), Success: q.filter["success"], Span: q.span,
	})
	h.answer(w, r, rows, next, err)
}

func (h *Handler) processing(w http.ResponseWriter, r *http.Request) {
	q, faults := list(r, 50, "event_id", "source", "type", "destination", "status", "since", "until")
	if refuseQuery(w, faults) {
		return
	}
	rows, next, err := h.reader.Processing(r.Context(), q.page, view.ProcessingFilter{
		EventID: q.filter["event_id"], Source: q.filter["source"], Type: q.filter["type"],
		Destination: q.filter["destination"], Status: q.filter["status"], Span: q.span,
	})
	h.answer(w, r, rows, next, err)
}

func (h *Handler) attempts(w http.ResponseWriter, r *http.Request) {
	q, faults := list(r, 50, "event_id", "source", "type", "outcome", "since", "until")
	if refuseQuery(w, faults) {
		return
	}
	rows, next, err := h.reader.Attempts(r.Context(), q.page, view.AttemptFilter{
		EventID: q.filter["event_id"], Source: q.filter["source"], Type: q.filter["type"], Outcome: q.filter["outcome"], Span: q.span,
	})
	h.answer(w, r, rows, next, err)
}

func (h *Handler) event(w http.ResponseWriter, r *http.Request) {
	query, faults := parameters(r, "source")
	if refuseQuery(w, faults) {
		return
	}
	id, ok := eventID(w, r)
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
	if refuseQuery(w, faults) {
		return
	}
	found, err := h.reader.Search(r.Context(), query["q"])
	h.answer(w, r, found, view.Next{}, err)
}

func (h *Handler) replay(w http.ResponseWriter, r *http.Request) {
	query, faults := parameters(r, "source", "destination")
	if refuseQuery(w, faults) {
		return
	}
	id, ok := eventID(w, r)
	if !ok {
		return
	}
	n, err := h.operator.Replay(r.Context(), id, query["source"], query["destination"], caller(r))
	h.answer(w, r, struct {
		Replayed int64 `json:"replayed"`
	}{n}, view.Next{}, err)
}

// eventID reads the id in a path. What cannot be one is answered 404.
func eventID(w http.ResponseWriter, r *http.Request) (id string, ok bool) {
	id, err := url.PathUnescape(mux.Vars(r)["event_id"])
	if ok = err == nil && storable(id); !ok {
		respond.Reject(w, respond.Problem{Status: http.StatusNotFound, Detail: "No event can have this id: it is no text that can be stored."})
	}
	return id, ok
}

// answer sends what came of a request, or says why nothing did.
func (h *Handler) answer(w http.ResponseWriter, r *http.Request, body any, next view.Next, err error) {
	var notStored *view.NotStoredError
	var ambiguous *view.AmbiguousError
	var noSource *event.NoSourceError
	var badSettings *event.BadSettingsError
	switch {
	case err == nil:
		if next.Cursor != "" {
			query := r.URL.Query()
			query.Set("cursor", next.Cursor)
			w.Header().Set("Link", "<"+r.URL.EscapedPath()+"?"+query.Encode()+`>; rel="next"`)
		}
		if next.LookedBackTo != nil {
			w.Header().Set("Spine-Looked-Back-To", next.LookedBackTo.String())
		}
		if err := respond.JSON(w, http.StatusOK, body); err != nil {
			h.log.Error().Err(err).Str("path", r.URL.Path).Msg("writing an answer failed")
		}
	case errors.As(err, &notStored):
		respond.Reject(w, respond.Problem{Status: http.StatusNotFound, Detail: notStored.Detail})
	case errors.As(err, &ambiguous):
		respond.Reject(w, respond.Problem{
			Status: http.StatusBadRequest, Sources: ambiguous.Sources,
			Detail: "This event_id exists in several sources: name one, as in ?source=" + url.QueryEscape(ambiguous.Sources[0]) + ".",
		})
	case errors.Is(err, event.ErrNotKept):
		respond.Reject(w, respond.Problem{Status: http.StatusNotFound, Detail: "No such rejected request is kept: it may have made room for newer ones."})
	case errors.As(err, &noSource):
		respond.Reject(w, respond.Problem{Status: http.StatusNotFound, Detail: noSource.Detail})
	case errors.As(err, &badSettings):
		p := respond.Problem{Status: http.StatusUnprocessableEntity, Detail: "The settings make no sense: see errors."}
		for _, problem := range badSettings.Problems {
			p.Errors = append(p.Errors, respond.Fault{Field: problem.Field, Detail: problem.Detail})
		}
		respond.Reject(w, p)
	case errors.Is(err, view.ErrBadCursor):
		refuseQuery(w, []respond.Fault{{Parameter: "cursor", Detail: "was not given by this list: start again without it"}})
	case errors.Is(r.Context().Err(), context.Canceled):
		// Nobody is there to be answered.
	case errors.Is(r.Context().Err(), context.DeadlineExceeded):
		h.log.Warn().Err(err).Str("path", r.URL.Path).Msg("a request took too long")
		respond.Reject(w, respond.Problem{Status: http.StatusServiceUnavailable, Detail: "The database did not answer within " + h.timeout.String() + "."})
	default:
		h.log.Error().Err(err).Str("path", r.URL.Path).Msg("a request failed")
		respond.Reject(w, respond.Problem{Status: http.StatusServiceUnavailable, Detail: "The database cannot be " + verb(r) + " now."})
	}
}

// verb is what a request does to the database.
func verb(r *http.Request) string {
	if changes(r) {
		return "written to"
	}
	return "read"
}

// refuseQuery answers 400 if there are faults, and reports whether it did.
func refuseQuery(w http.ResponseWriter, faults []respond.Fault) bool {
	if len(faults) == 0 {
		return false
	}
	details := make([]string, len(faults))
	for i, f := range faults {
		details[i] = strings.TrimSpace(f.Parameter + " " + f.Detail)
	}
	respond.Reject(w, respond.Problem{Status: http.StatusBadRequest, Detail: strings.Join(details, "; ") + ".", Errors: faults})
	return true
}

// listQuery is what is asked of a list.
type listQuery struct {
	page   view.Page
	filter map[string]string
	span   view.Span
}

// list reads the parameters of a list.
func list(r *http.Request, defaultLimit int, filters ...string) (q listQuery, faults []respond.Fault) {
	q.filter, faults = parameters(r, append(filters, "limit", "cursor")...)
	q.page = view.Page{Limit: defaultLimit, Cursor: q.filter["cursor"]}
	if text, ok := q.filter["limit"]; ok {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > MaxLimit {
			faults = append(faults, respond.Fault{Parameter: "limit", Detail: "must be a whole number from 1 to " + strconv.Itoa(MaxLimit)})
		}
		q.page.Limit = n
	}
	if status, ok := q.filter["status"]; ok && !event.ValidStatus(status) {
		faults = append(faults, respond.Fault{Parameter: "status", Detail: "must be pending, processing, completed, failed or dead"})
	}
	faults = append(faults, checkSuccess(q.filter)...)
	if outcome, ok := q.filter["outcome"]; ok && outcome != "success" && outcome != "failure" {
		faults = append(faults, respond.Fault{Parameter: "outcome", Detail: "must be success or failure"})
	}
	for name, end := range map[string]*time.Time{"since": &q.span.Since, "until": &q.span.Until} {
		// Stricter than time.Parse, which takes some times that are not of RFC 3339.
		text, ok := q.filter[name]
		switch {
		case !ok:
		case end.UnmarshalText([]byte(text)) != nil:
			faults = append(faults, respond.Fault{Parameter: name, Detail: "must be a time of RFC 3339, as in 2024-01-30T12:00:00Z; a + in it is written %2B"})
		case end.IsZero(): // the first moment of the year 1, which is no open end
			*end = end.Add(time.Microsecond)
		}
	}
	if s := q.span; !s.Since.IsZero() && !s.Until.IsZero() && !s.Since.Before(s.Until) {
		faults = append(faults, respond.Fault{Parameter: "until", Detail: "must be later than since"})
	}
	return q, faults
}

// checkSuccess returns what is wrong with a filter by success.
func checkSuccess(filter map[string]string) []respond.Fault {
	if success, ok := filter["success"]; ok && success != "success" && success != "failure" && success != "pending" {
		return []respond.Fault{{Parameter: "success", Detail: "must be success, failure or pending"}}
	}
	return nil
}

// parameters reads a query, in which each known name may stand once. What is
// asked for and not understood must not be passed over: the answer would look
// as if it were one to the question.
func parameters(r *http.Request, known ...string) (values map[string]string, faults []respond.Fault) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		faults = append(faults, respond.Fault{Detail: "the query is not well-formed"})
	}
	slices.Sort(known)
	values = make(map[string]string, len(query))
	for name, given := range query {
		switch {
		case !slices.Contains(known, name):
			faults = append(faults, respond.Fault{Parameter: name, Detail: "is not known here; known are " + strings.Join(known, ", ")})
		case len(given) > 1:
			faults = append(faults, respond.Fault{Parameter: name, Detail: "came more than once"})
		case given[0] == "":
			faults = append(faults, respond.Fault{Parameter: name, Detail: "must not be empty"})
		case !storable(given[0]):
			faults = append(faults, respond.Fault{Parameter: name, Detail: "is no text that can be stored"})
		default:
			values[name] = given[0]
		}
	}
	slices.SortFunc(faults, func(a, b respond.Fault) int { return strings.Compare(a.Parameter, b.Parameter) })
	return values, faults
}

// storable reports whether Postgres takes s as text.
func storable(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

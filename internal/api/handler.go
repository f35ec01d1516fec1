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
)

// Reader reads what is stored. The lists are newest first; they return with a
// page the cursor of the next one, empty where there is none, and
// event.ErrBadCursor for a cursor that is not theirs. Event returns an
// *event.NotStoredError or an *event.AmbiguousError where there is not one
// event to return. All heed their context and are called concurrently.
type Reader interface {
	Events(ctx context.Context, page event.Page, filter event.Filter) (rows []event.Stored, next string, err error)
	Audit(ctx context.Context, page event.Page, filter event.AuditFilter) (rows []event.AuditRow, next string, err error)
	Processing(ctx context.Context, page event.Page, filter event.ProcessingFilter) (rows []event.ProcessingRow, next string, err error)
	Event(ctx context.Context, eventID, source string) (event.History, error)
	// Overview reaches back over 15 minutes, 1, 6 or 24 hours, or 7 days.
	Overview(ctx context.Context, over time.Duration) (event.Overview, error)
}

// MaxLimit is how many rows a page has at most.
const MaxLimit = 1000

// Handler answers GET /api/….
type Handler struct {
	reader  Reader
	timeout time.Duration
	log     zerolog.Logger
}

// NewHandler returns a Handler that spends at most timeout on a question.
func NewHandler(reader Reader, timeout time.Duration, log zerolog.Logger) *Handler {
	return &Handler{reader: reader, timeout: timeout, log: log}
}

// Register adds the handler's routes:
//
//	GET /api/events             type, source, status
//	GET /api/audit              event_id, source, type, action, success
//	GET /api/processing         event_id, source, type, destination, status
//	GET /api/events/{event_id}  source
//	GET /api/overview           range
//
// The lists also take limit (1 to MaxLimit) and cursor, which comes in the
// Link header (RFC 8288) of the page before. The router must have UseEncodedPath
// and SkipClean set, since an event_id may hold any character.
func (h *Handler) Register(r *mux.Router) {
	for path, answer := range map[string]http.HandlerFunc{
		"/api/events":            h.events,
		"/api/audit":             h.audit,
		"/api/processing":        h.processing,
		"/api/events/{event_id}": h.event,
		"/api/overview":          h.overview,
	} {
		r.Path(path).Methods(http.MethodGet, http.MethodHead).Handler(h.bounded(answer))
	}
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
	page, filter, faults := list(r, 50, "type", "source", "status")
	if refuseQuery(w, faults) {
		return
	}
	rows, next, err := h.reader.Events(r.Context(), page, event.Filter{
		Type: filter["type"], Source: filter["source"], Status: filter["status"],
	})
	h.answer(w, r, rows, next, err)
}

func (h *Handler) audit(w http.ResponseWriter, r *http.Request) {
	page, filter, faults := list(r, 100, "event_id", "source", "type", "action", "success")
	if refuseQuery(w, faults) {
		return
	}
	rows, next, err := h.reader.Audit(r.Context(), page, event.AuditFilter{
		EventID: filter["event_id"], Source: filter["source"], Type: filter["type"], Action: filter["action"], Success: filter["success"],
	})
	h.answer(w, r, rows, next, err)
}

func (h *Handler) processing(w http.ResponseWriter, r *http.Request) {
	page, filter, faults := list(r, 50, "event_id", "source", "type", "destination", "status")
	if refuseQuery(w, faults) {
		return
	}
	rows, next, err := h.reader.Processing(r.Context(), page, event.ProcessingFilter{
		EventID: filter["event_id"], Source: filter["source"], Type: filter["type"], Destination: filter["destination"], Status: filter["status"],
	})
	h.answer(w, r, rows, next, err)
}

func (h *Handler) event(w http.ResponseWriter, r *http.Request) {
	query, faults := parameters(r, "source")
	if refuseQuery(w, faults) {
		return
	}
	id, err := url.PathUnescape(mux.Vars(r)["event_id"])
	if err != nil || !storable(id) {
		respond.Refuse(w, respond.Problem{Status: http.StatusNotFound, Detail: "No event can have this id: it is no text that can be stored."})
		return
	}
	history, err := h.reader.Event(r.Context(), id, query["source"])
	h.answer(w, r, history, "", err)
}

// answer sends what was read, or says why it could not be.
func (h *Handler) answer(w http.ResponseWriter, r *http.Request, body any, next string, err error) {
	var notStored *event.NotStoredError
	var ambiguous *event.AmbiguousError
	switch {
	case err == nil:
		if next != "" {
			query := r.URL.Query()
			query.Set("cursor", next)
			w.Header().Set("Link", "<"+r.URL.EscapedPath()+"?"+query.Encode()+`>; rel="next"`)
		}
		if err := respond.JSON(w, http.StatusOK, body); err != nil {
			h.log.Error().Err(err).Str("path", r.URL.Path).Msg("writing an answer failed")
		}
	case errors.As(err, &notStored):
		respond.Refuse(w, respond.Problem{Status: http.StatusNotFound, Detail: notStored.Detail})
	case errors.As(err, &ambiguous):
		respond.Refuse(w, respond.Problem{
			Status: http.StatusBadRequest, Sources: ambiguous.Sources,
			Detail: "This event_id exists in several sources: name one, as in ?source=" + url.QueryEscape(ambiguous.Sources[0]) + ".",
		})
	case errors.Is(err, event.ErrBadCursor):
		refuseQuery(w, []respond.Fault{{Parameter: "cursor", Detail: "was not given by this list: start again without it"}})
	case errors.Is(r.Context().Err(), context.Canceled):
		// Nobody is there to be answered.
	case errors.Is(r.Context().Err(), context.DeadlineExceeded):
		h.log.Warn().Err(err).Str("path", r.URL.Path).Msg("a question took too long")
		respond.Refuse(w, respond.Problem{
			Status: http.StatusServiceUnavailable,
			Detail: "The database did not answer within " + h.timeout.String() + ". Filters that match little on a large table take longest.",
		})
	default:
		h.log.Error().Err(err).Str("path", r.URL.Path).Msg("reading failed")
		respond.Refuse(w, respond.Problem{Status: http.StatusServiceUnavailable, Detail: "The database cannot be read now."})
	}
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
	respond.Refuse(w, respond.Problem{Status: http.StatusBadRequest, Detail: strings.Join(details, "; ") + ".", Errors: faults})
	return true
}

// list reads the parameters of a list.
func list(r *http.Request, defaultLimit int, filters ...string) (page event.Page, filter map[string]string, faults []respond.Fault) {
	filter, faults = parameters(r, append(filters, "limit", "cursor")...)
	page = event.Page{Limit: defaultLimit, Cursor: filter["cursor"]}
	if text, ok := filter["limit"]; ok {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > MaxLimit {
			faults = append(faults, respond.Fault{Parameter: "limit", Detail: "must be a whole number from 1 to " + strconv.Itoa(MaxLimit)})
		}
		page.Limit = n
	}
	if status, ok := filter["status"]; ok && !event.ValidStatus(status) {
		faults = append(faults, respond.Fault{Parameter: "status", Detail: "must be pending, processing, completed, failed or dead"})
	}
	if success, ok := filter["success"]; ok && success != "success" && success != "failure" && success != "pending" {
		faults = append(faults, respond.Fault{Parameter: "success", Detail: "must be success, failure or pending"})
	}
	return page, filter, faults
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

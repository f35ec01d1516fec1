package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/gorilla/mux"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/respond"
	"github.com/webhookspine/spine/internal/view"
)

// SourceReader reads sources, rejected requests and conflicts. Its lists are like those of Reader. Its errors are
// *event.NoSourceError, event.ErrNotKept, view.ErrBadCursor, or the database's. It heeds its context and may be called
// concurrently.
type SourceReader interface {
	Sources(ctx context.Context) ([]event.SourceSettings, error)
	Source(ctx context.Context, name string) (event.SourceSettings, error)
	RejectedCauses(ctx context.Context) (map[string]map[string]int64, error) // of the last day, by source and cause
	RejectedRequests(
		ctx context.Context,
		page view.Page,
		filter view.RejectedFilter,
	) ([]event.RejectedRequest, view.Next, error)
	RejectedRequest(ctx context.Context, id int64) (event.RejectedRequest, error)
	Conflicts(ctx context.Context, page view.Page, filter view.ConflictFilter) ([]view.ConflictRow, view.Next, error)
}

// SourceOperator changes sources, replays rejected requests, and accepts conflicts. caller is who asked, for the audit
// log. Its errors are those of SourceReader, *event.BadSettingsError, and for conflicts those of Reader.Event. Each
// method may be called again after an error.
type SourceOperator interface {
	PutSource(ctx context.Context, name string, settings json.RawMessage, caller string) (view.SourceChange, error)
	EnableSource(ctx context.Context, name string, enabled bool, caller string) (changed bool, err error)
	RemoveSource(ctx context.Context, name, caller string) error
	RotateSource(
		ctx context.Context,
		name, secret string,
		keep time.Duration,
		caller string,
	) (event.SourceSettings, error)
	ReplayRejected(ctx context.Context, id int64, trust bool, caller string) error
	AcceptConflict(ctx context.Context, eventID, source, hash, caller string) (newID string, err error)
}

// SourceProcess is this process's own state of the sources.
type SourceProcess interface {
	Statuses() []event.SourceStatus
	// Check returns settings as they are stored, or an *event.BadSettingsError.
	Check(settings []byte) (json.RawMessage, error)
	Presets() any // as JSON
	// Sample sends a sample to the source, signed as its provider signs, and returns the answer.
	Sample(ctx context.Context, name string) (status int, body []byte, err error)
}

// SourceHandler answers /api/sources, /api/rejected and /api/conflicts.
type SourceHandler struct {
	responder
	reader   SourceReader
	operator SourceOperator
	process  SourceProcess
}

// NewSourceHandler returns a SourceHandler that spends at most timeout on a request.
func NewSourceHandler(
	reader SourceReader,
	operator SourceOperator,
	process SourceProcess,
	timeout time.Duration,
	log zerolog.Logger,
) *SourceHandler {
	return &SourceHandler{
		responder: responder{timeout: timeout, log: log},
		reader:    reader,
		operator:  operator,
		process:   process,
	}
}

// Register adds the handler's routes:
//
//	GET    /api/presets
//	GET    /api/sources
//	GET    /api/sources/{source}
//	PUT    /api/sources/{source}              the settings as JSON
//	DELETE /api/sources/{source}
//	POST   /api/sources/{source}/disable
//	POST   /api/sources/{source}/enable
//	POST   /api/sources/{source}/rotate       {"secret":"env:NAME","keep_seconds":86400}
//	POST   /api/sources/{source}/sample
//	GET    /api/rejected                      source, cause, state, since, until
//	GET    /api/rejected/{id}
//	POST   /api/rejected/{id}/replay          trust
//	GET    /api/conflicts                     event_id, source, since, until
//	POST   /api/event/accept                  event_id, source, hash
//	POST   /api/conflicts/{event_id}/accept   source, hash
//
// Requests that change something rely on Guard around the router.
func (h *SourceHandler) Register(r *mux.Router) {
	for _, route := range []struct {
		method, path string
		answer       http.HandlerFunc
	}{
		{http.MethodGet, "/api/presets", h.presets},
		{http.MethodGet, "/api/sources", h.sources},
		{http.MethodGet, "/api/sources/{source}", h.source},
		{http.MethodPut, "/api/sources/{source}", h.put},
		{http.MethodDelete, "/api/sources/{source}", h.remove},
		{http.MethodPost, "/api/sources/{source}/disable", h.enable(false)},
		{http.MethodPost, "/api/sources/{source}/enable", h.enable(true)},
		{http.MethodPost, "/api/sources/{source}/rotate", h.rotate},
		{http.MethodPost, "/api/sources/{source}/sample", h.sample},
		{http.MethodGet, "/api/rejected", h.rejected},
		{http.MethodGet, "/api/rejected/{id}", h.rejectedRequest},
		{http.MethodPost, "/api/rejected/{id}/replay", h.replayRejected},
		{http.MethodGet, "/api/conflicts", h.conflicts},
		{http.MethodPost, "/api/event/accept", h.accept},
		{http.MethodPost, "/api/conflicts/{event_id}/accept", h.accept},
	} {
		methods := []string{route.method}
		if route.method == http.MethodGet {
			methods = append(methods, http.MethodHead)
		}
		r.Path(route.path).Methods(methods...).Handler(h.bounded(route.answer))
	}
}

// sourceRow is a source as the API shows it: its settings, and its state in this process, which is empty until the
// process has read them.
type sourceRow struct {
	Source      string           `json:"source"`
	State       string           `json:"state"`    // open, verified, disabled or broken
	Problems    []string         `json:"problems"` // why it is broken
	Preset      string           `json:"preset"`
	Path        string           `json:"path"`  // to which its provider posts
	Steps       []string         `json:"steps"` // what to enter there
	Settings    json.RawMessage  `json:"settings"`
	DisabledAt  *event.Timestamp `json:"disabled_at"`
	CreatedAt   event.Timestamp  `json:"created_at"`
	UpdatedAt   event.Timestamp  `json:"updated_at"`
	UpdatedBy   *string          `json:"updated_by"`
	LastArrival *event.Timestamp `json:"last_arrival_at"`
	Rejected    map[string]int64 `json:"rejected"` // requests of the last day that were rejected and kept, by cause
}

// rows joins sources with their state in this process.
func (h *SourceHandler) rows(ctx context.Context, stored ...event.SourceSettings) ([]sourceRow, error) {
	causes, err := h.reader.RejectedCauses(ctx)
	if err != nil {
		return nil, err
	}
	statuses := map[string]event.SourceStatus{}
	for _, s := range h.process.Statuses() {
		statuses[s.Source] = s
	}
	rows := make([]sourceRow, len(stored))
	for i, s := range stored {
		status := statuses[s.Source]
		rows[i] = sourceRow{
			Source:      s.Source,
			State:       status.State,
			Problems:    status.Problems,
			Preset:      status.Preset,
			Path:        status.Path,
			Steps:       status.Steps,
			Settings:    s.Settings,
			DisabledAt:  s.DisabledAt,
			CreatedAt:   s.CreatedAt,
			UpdatedAt:   s.UpdatedAt,
			UpdatedBy:   s.UpdatedBy,
			LastArrival: s.LastArrival,
			Rejected:    causes[s.Source],
		}
	}
	return rows, nil
}

func (h *SourceHandler) presets(w http.ResponseWriter, r *http.Request) {
	if _, faults := parameters(r); rejectQuery(w, faults) {
		return
	}
	h.answer(w, r, h.process.Presets(), view.Next{}, nil)
}

func (h *SourceHandler) sources(w http.ResponseWriter, r *http.Request) {
	if _, faults := parameters(r); rejectQuery(w, faults) {
		return
	}
	stored, err := h.reader.Sources(r.Context())
	var rows []sourceRow
	if err == nil {
		rows, err = h.rows(r.Context(), stored...)
	}
	h.answer(w, r, rows, view.Next{}, err)
}

func (h *SourceHandler) source(w http.ResponseWriter, r *http.Request) {
	if _, faults := parameters(r); rejectQuery(w, faults) {
		return
	}
	h.answerSource(w, r, mux.Vars(r)["source"])
}

// answerSource answers with a source as it is now.
func (h *SourceHandler) answerSource(w http.ResponseWriter, r *http.Request, name string) {
	stored, err := h.reader.Source(r.Context(), name)
	rows := make([]sourceRow, 1)
	if err == nil {
		rows, err = h.rows(r.Context(), stored)
	}
	if err != nil {
		rows = make([]sourceRow, 1)
	}
	h.answer(w, r, rows[0], view.Next{}, err)
}

func (h *SourceHandler) put(w http.ResponseWriter, r *http.Request) {
	if _, faults := parameters(r); rejectQuery(w, faults) {
		return
	}
	body, ok := readSmallBody(w, r)
	if !ok {
		return
	}
	settings, err := h.process.Check(body)
	var change view.SourceChange
	if err == nil {
		change, err = h.operator.PutSource(r.Context(), mux.Vars(r)["source"], settings, caller(r))
	}
	h.answer(w, r, change, view.Next{}, err)
}

// readSmallBody reads a small body, or rejects the request.
func readSmallBody(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, event.MaxSettings))
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		respond.Reject(
			w,
			respond.Problem{
				Status: http.StatusRequestEntityTooLarge,
				Detail: "The body is larger than " + strconv.Itoa(event.MaxSettings) + " bytes.",
			},
		)
		return nil, false
	}
	if err != nil {
		respond.Reject(w, respond.Problem{Status: http.StatusBadRequest, Detail: "The body is cut short."})
		return nil, false
	}
	return body, true
}

func (h *SourceHandler) remove(w http.ResponseWriter, r *http.Request) {
	if _, faults := parameters(r); rejectQuery(w, faults) {
		return
	}
	name := mux.Vars(r)["source"]
	err := h.operator.RemoveSource(r.Context(), name, caller(r))
	h.answer(w, r, view.SourceChange{Source: name, Change: "removed"}, view.Next{}, err)
}

func (h *SourceHandler) enable(enabled bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if _, faults := parameters(r); rejectQuery(w, faults) {
			return
		}
		changed, err := h.operator.EnableSource(r.Context(), mux.Vars(r)["source"], enabled, caller(r))
		h.answer(w, r, struct {
			Changed bool `json:"changed"`
		}{changed}, view.Next{}, err)
	}
}

func (h *SourceHandler) rotate(w http.ResponseWriter, r *http.Request) {
	if _, faults := parameters(r); rejectQuery(w, faults) {
		return
	}
	body, ok := readSmallBody(w, r)
	if !ok {
		return
	}
	var asked struct {
		Secret string   `json:"secret"`
		Keep   *float64 `json:"keep_seconds"`
	}
	if json.Unmarshal(body, &asked) != nil || asked.Secret == "" ||
		asked.Keep != nil && !(*asked.Keep >= 0 && *asked.Keep <= 1e8) {
		respond.Reject(w, respond.Problem{
			Status: http.StatusUnprocessableEntity,
			Detail: `The body must be an object such as {"secret":"env:NAME","keep_seconds":86400}.`,
		})
		return
	}
	keep := 24 * time.Hour
	if asked.Keep != nil {
		keep = time.Duration(*asked.Keep * float64(time.Second))
	}
	name := mux.Vars(r)["source"]
	if _, err := h.operator.RotateSource(r.Context(), name, asked.Secret, keep, caller(r)); err != nil {
		h.answer(w, r, nil, view.Next{}, err)
		return
	}
	h.answerSource(w, r, name)
}

// sample sends a sample, and answers 200 with its answer, whatever that is.
func (h *SourceHandler) sample(w http.ResponseWriter, r *http.Request) {
	if _, faults := parameters(r); rejectQuery(w, faults) {
		return
	}
	status, body, err := h.process.Sample(r.Context(), mux.Vars(r)["source"])
	if err != nil {
		respond.Reject(w, respond.Problem{
			Status: http.StatusConflict,
			Detail: "No sample can be sent: " + err.Error() + ".",
		})
		return
	}
	h.answer(w, r, struct {
		Status int             `json:"status"`
		Answer json.RawMessage `json:"answer"`
	}{status, body}, view.Next{}, nil)
}

func (h *SourceHandler) rejected(w http.ResponseWriter, r *http.Request) {
	q, faults := readListQuery(r, 50, "source", "cause", "state", "since", "until")
	if rejectQuery(w, faults) {
		return
	}
	rows, next, err := h.reader.RejectedRequests(r.Context(), q.page, view.RejectedFilter{
		Source: q.filter["source"], Cause: q.filter["cause"], State: q.filter["state"], Span: q.span,
	})
	h.answer(w, r, rows, next, err)
}

func (h *SourceHandler) rejectedRequest(w http.ResponseWriter, r *http.Request) {
	if _, faults := parameters(r); rejectQuery(w, faults) {
		return
	}
	id, ok := requestNumber(w, r)
	if !ok {
		return
	}
	request, err := h.reader.RejectedRequest(r.Context(), id)
	h.answer(w, r, request, view.Next{}, err)
}

// requestNumber reads the number of a rejected request in a path. It answers 404 to a text that is not a number.
func requestNumber(w http.ResponseWriter, r *http.Request) (int64, bool) {
	id, err := strconv.ParseInt(mux.Vars(r)["id"], 10, 64)
	if err != nil {
		respond.Reject(
			w,
			respond.Problem{Status: http.StatusNotFound, Detail: "The id of a rejected request is a number."},
		)
	}
	return id, err == nil
}

func (h *SourceHandler) replayRejected(w http.ResponseWriter, r *http.Request) {
	query, faults := parameters(r, "trust")
	if trust, given := query["trust"]; given && trust != "1" {
		faults = append(faults, respond.Fault{Parameter: "trust", Detail: "must be 1, or be left out"})
	}
	if rejectQuery(w, faults) {
		return
	}
	id, ok := requestNumber(w, r)
	if !ok {
		return
	}
	err := h.operator.ReplayRejected(r.Context(), id, query["trust"] == "1", caller(r))
	h.answer(w, r, struct {
		State string `json:"state"`
	}{event.RejectedRequested}, view.Next{}, err)
}

func (h *SourceHandler) conflicts(w http.ResponseWriter, r *http.Request) {
	q, faults := readListQuery(r, 20, "event_id", "source", "since", "until")
	if rejectQuery(w, faults) {
		return
	}
	rows, next, err := h.reader.Conflicts(
		r.Context(),
		q.page,
		view.ConflictFilter{EventID: q.filter["event_id"], Source: q.filter["source"], Span: q.span},
	)
	if rows == nil {
		rows = []view.ConflictRow{}
	}
	h.answer(w, r, rows, next, err)
}

func (h *SourceHandler) accept(w http.ResponseWriter, r *http.Request) {
	id, query, ok := eventQuery(w, r, "source", "hash")
	if !ok {
		return
	}
	accepted, err := h.operator.AcceptConflict(r.Context(), id, query["source"], query["hash"], caller(r))
	h.answer(w, r, struct {
		EventID string `json:"event_id"`
	}{accepted}, view.Next{}, err)
}

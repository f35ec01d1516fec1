// Package dashboard shows an operator at a glance how things are going, on one
// page that a browser refreshes by itself.
//
// It promises that what senders and destinations sent never becomes markup,
// that the page runs no script and loads nothing from elsewhere, and that what
// could not be read is said to be so and not shown as nothing. It changes
// nothing, and knows the database only through the Reader interface. Who may
// see it is for others to decide.
package dashboard

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"time"

	"github.com/gorilla/mux"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/respond"
)

// Rows of the page's tables.
const (
	eventRows = 20
	auditRows = 30
	deadRows  = 20
)

// Reader reads what the page shows: the newest events and audit rows, what is
// not completed by destination and status, and what died last. All heed their
// context and are called concurrently.
type Reader interface {
	Events(ctx context.Context, page event.Page, filter event.Filter) (rows []event.Stored, next event.Next, err error)
	Audit(ctx context.Context, page event.Page, filter event.AuditFilter) (rows []event.AuditRow, next event.Next, err error)
	Backlog(ctx context.Context) ([]event.BacklogRow, error)
	Dead(ctx context.Context, limit int) ([]event.ProcessingRow, error)
}

//go:embed page.html style.css
var files embed.FS

// Handler answers GET /dashboard.
type Handler struct {
	reader  Reader
	timeout time.Duration
	log     zerolog.Logger
	page    *template.Template
	style   []byte
}

// New returns a Handler that spends at most timeout on reading a page.
func New(reader Reader, timeout time.Duration, log zerolog.Logger) (*Handler, error) {
	page, err := template.New("page.html").Funcs(template.FuncMap{"at": at, "link": link}).ParseFS(files, "page.html")
	if err != nil {
		return nil, fmt.Errorf("reading the page's template: %w", err)
	}
	style, err := files.ReadFile("style.css")
	if err != nil {
		return nil, fmt.Errorf("reading the page's style: %w", err)
	}
	return &Handler{reader: reader, timeout: timeout, log: log, page: page, style: style}, nil
}

// Register adds the handler's routes: GET /dashboard and what it loads.
func (h *Handler) Register(r *mux.Router) {
	r.Path("/dashboard").Methods(http.MethodGet, http.MethodHead).HandlerFunc(h.show)
	r.Path("/dashboard/style.css").Methods(http.MethodGet, http.MethodHead).HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusOK, "text/css; charset=utf-8", h.style)
	})
}

// view is what the template is given.
type view struct {
	At      time.Time
	Backlog section[event.BacklogRow]
	Dead    section[event.ProcessingRow]
	Events  section[event.Stored]
	Audit   section[event.AuditRow]
}

// section is one table, or the fact that it could not be read.
type section[Row any] struct {
	Rows   []Row
	Failed bool
}

func (h *Handler) show(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), h.timeout)
	defer cancel()
	v := view{At: time.Now()}
	events, _, err := h.reader.Events(ctx, event.Page{Limit: eventRows}, event.Filter{})
	v.Events = newSection(h, events, err)
	audit, _, err := h.reader.Audit(ctx, event.Page{Limit: auditRows}, event.AuditFilter{})
	v.Audit = newSection(h, audit, err)
	dead, err := h.reader.Dead(ctx, deadRows)
	v.Dead = newSection(h, dead, err)
	// Last, since it alone takes longer the longer the queue is.
	backlog, err := h.reader.Backlog(ctx)
	v.Backlog = newSection(h, backlog, err)

	status := http.StatusOK
	if v.Events.Failed && v.Audit.Failed && v.Dead.Failed && v.Backlog.Failed {
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", respond.RetryAfter)
	}
	var html bytes.Buffer
	if err := h.page.Execute(&html, v); err != nil {
		h.log.Error().Err(err).Msg("rendering the dashboard failed")
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		return
	}
	write(w, status, "text/html; charset=utf-8", html.Bytes())
}

func newSection[Row any](h *Handler, rows []Row, err error) section[Row] {
	if err != nil {
		h.log.Warn().Err(err).Msg("a part of the dashboard could not be read")
	}
	return section[Row]{Rows: rows, Failed: err != nil}
}

func write(w http.ResponseWriter, status int, contentType string, body []byte) {
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
	respond.Write(w, status, contentType, body)
}

// at is how the page shows a time, to the millisecond in UTC.
func at(t event.Timestamp) string {
	if t.Infinity != 0 {
		return t.String()
	}
	return t.Time.Format("2006-01-02 15:04:05.000")
}

// link is where the API tells an event's life.
func link(eventID, source string) string {
	return "/api/events/" + url.PathEscape(eventID) + "?source=" + url.QueryEscape(source)
}

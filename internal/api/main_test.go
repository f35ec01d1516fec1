package api_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gorilla/mux"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/webhookspine/spine/internal/api"
	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/respond"
	"github.com/webhookspine/spine/internal/store" //nolint:depguard // tests see a real database
)

var databases = postgrestest.Databases{Migrate: func(ctx context.Context, url string) error {
	_, err := store.Migrate(ctx, url, nil)
	return err
}}

func TestMain(m *testing.M) { goleak.VerifyTestMain(databases.Main(m)) }

// system is the API on a database of its own.
type system struct {
	t       *testing.T
	store   *store.Store
	pool    *pgxpool.Pool // of the store
	handler http.Handler
}

func newSystem(t *testing.T) *system {
	t.Helper()
	return systemOn(t, databases.New(t), 30*time.Second)
}

func systemOn(t *testing.T, url string, timeout time.Duration) *system {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: url, MaxConns: 4, AppName: t.Name()})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return &system{t: t, store: s, pool: s.Pool(), handler: serve(s, s, timeout)}
}

// serve routes as a process does.
func serve(reader api.Reader, operator api.Operator, timeout time.Duration) http.Handler {
	root := mux.NewRouter().SkipClean(true).UseEncodedPath()
	root.NotFoundHandler = respond.NotFound()
	root.MethodNotAllowedHandler = respond.MethodNotAllowed(root)
	root.Methods(http.MethodPost).Path("/webhook").Handler(http.NotFoundHandler())
	admin := root.NewRoute().Subrouter()
	admin.Use(api.Guard(api.GuardConfig{Open: true}, zerolog.Nop()))
	api.NewHandler(reader, operator, timeout, zerolog.Nop()).Register(admin)
	return root
}

// answer is what a client gets.
type answer struct {
	code   int
	header http.Header
	body   []byte
}

func ask(t *testing.T, h http.Handler, method, target string) answer {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, target, nil))
	return answer{w.Code, w.Header(), w.Body.Bytes()}
}

func (s *system) get(target string) answer {
	s.t.Helper()
	return ask(s.t, s.handler, http.MethodGet, target)
}

// rows reads the answer to a list.
func (a answer) rows(t *testing.T) []map[string]any {
	t.Helper()
	require.Equal(t, http.StatusOK, a.code, string(a.body))
	require.Equal(t, "application/json", a.header.Get("Content-Type"))
	var rows []map[string]any
	require.NoError(t, json.Unmarshal(a.body, &rows), string(a.body))
	require.NotNil(t, rows)
	return rows
}

// object reads the answer that is one object.
func (a answer) object(t *testing.T) map[string]any {
	t.Helper()
	var object map[string]any
	require.NoError(t, json.Unmarshal(a.body, &object), string(a.body))
	return object
}

// requireProblem checks that an answer is a problem by RFC 9457.
func requireProblem(t *testing.T, a answer, status int, detail string) {
	t.Helper()
	require.Equal(t, status, a.code, string(a.body))
	require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
	p := a.object(t)
	require.Equal(t, "about:blank", p["type"])
	require.Equal(t, http.StatusText(status), p["title"])
	require.EqualValues(t, status, p["status"])
	require.Contains(t, p["detail"], detail)
	if status == http.StatusServiceUnavailable {
		require.NotEmpty(t, a.header.Get("Retry-After"))
	}
}

// webhook is an event as it comes from a sender.
func webhook(source, id, eventType, payload string) event.Event {
	return event.Event{
		Source: source, ID: id, Type: eventType, Payload: []byte(payload), Hash: sha256.Sum256([]byte(payload)),
		OccurredAt: time.Date(2024, 1, 30, 12, 0, 0, 0, time.UTC),
	}
}

func (s *system) ingest(events ...event.Event) {
	s.t.Helper()
	_, err := s.store.Ingest(s.t.Context(), events)
	require.NoError(s.t, err)
}

func (s *system) exec(sql string) {
	s.t.Helper()
	_, err := s.pool.Exec(s.t.Context(), sql)
	require.NoError(s.t, err)
}

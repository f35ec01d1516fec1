package dashboard_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/mux"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/webhookspine/spine/internal/dashboard"
	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/store" //nolint:depguard // what is tested is what an operator sees of a real database
)

var databases = postgrestest.Databases{Migrate: func(ctx context.Context, url string) error {
	_, err := store.Migrate(ctx, url)
	return err
}}

func TestMain(m *testing.M) { goleak.VerifyTestMain(databases.Main(m)) }

// reader is a Reader of fixed rows, or of errors.
type reader struct {
	events         []event.Stored
	audit          []event.AuditRow
	dead           []event.ProcessingRow
	err            error
	endlessBacklog bool
}

func (r *reader) Events(_ context.Context, _ event.Page, _ event.Filter) ([]event.Stored, event.Next, error) {
	return r.events, event.Next{}, r.err
}

func (r *reader) Audit(_ context.Context, _ event.Page, _ event.AuditFilter) ([]event.AuditRow, event.Next, error) {
	return r.audit, event.Next{}, r.err
}

func (r *reader) Dead(_ context.Context, _ int) ([]event.ProcessingRow, error) {
	return r.dead, r.err
}

func (r *reader) Backlog(ctx context.Context) ([]event.BacklogRow, error) {
	if r.endlessBacklog {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, r.err
}

func get(t *testing.T, r dashboard.Reader, path string) *httptest.ResponseRecorder {
	t.Helper()
	h, err := dashboard.New(r, 5*time.Second, zerolog.Nop())
	require.NoError(t, err)
	root := mux.NewRouter().SkipClean(true).UseEncodedPath()
	h.Register(root)
	w := httptest.NewRecorder()
	root.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w
}

const notRead = "This could not be read in time."

func TestADatabaseThatIsAwayIsSaidToBeSo(t *testing.T) {
	w := get(t, &reader{err: errors.New("password is sesame")}, "/dashboard")
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.NotEmpty(t, w.Header().Get("Retry-After"))
	require.Equal(t, 4, strings.Count(w.Body.String(), notRead))
	require.NotContains(t, w.Body.String(), "sesame")
	require.NotContains(t, w.Body.String(), "Nothing waits")
}

func TestACountThatTakesTooLongIsNotShownAsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		w := get(t, &reader{endlessBacklog: true}, "/dashboard")
		require.Equal(t, 5*time.Second, time.Since(start))
		require.Equal(t, http.StatusOK, w.Code)
		require.Equal(t, 1, strings.Count(w.Body.String(), notRead))
		require.NotContains(t, w.Body.String(), "Nothing waits")
		require.Contains(t, w.Body.String(), "None yet.")
	})
}

func TestWhatOthersSentNeverBecomesMarkup(t *testing.T) {
	const evil = `"'><script>alert(1)</script>{{.}}`
	text := evil
	details, err := json.Marshal(map[string]string{"answer": evil})
	require.NoError(t, err)
	require.NotContains(t, string(details), "<script>")
	details = []byte(strings.NewReplacer(`\u003c`, "<", `\u003e`, ">").Replace(string(details))) // as jsonb has it
	require.Contains(t, string(details), "<script>")

	body := get(t, &reader{
		events: []event.Stored{{EventID: evil, EventType: evil, Source: evil}},
		audit:  []event.AuditRow{{EventID: &text, Source: &text, Action: evil, Success: evil, Details: details}},
		dead:   []event.ProcessingRow{{EventID: evil, Source: evil, Destination: evil, ErrorMessage: &text, Status: evil}},
	}, "/dashboard").Body.String()

	require.NotContains(t, body, "<script")
	require.NotContains(t, body, `"'>`)
	require.Equal(t, 12, strings.Count(body, "&lt;script&gt;"))
	require.Contains(t, body, `href="/api/events/%22%27%3E%3Cscript%3Ealert%281%29%3C%2Fscript%3E%7B%7B.%7D%7D?source=%22%27%3E`)
}

func TestThePageRunsNoScriptAndIsNotKept(t *testing.T) {
	for path, contentType := range map[string]string{"/dashboard": "text/html; charset=utf-8", "/dashboard/style.css": "text/css; charset=utf-8"} {
		w := get(t, &reader{}, path)
		require.Equal(t, http.StatusOK, w.Code)
		require.Equal(t, contentType, w.Header().Get("Content-Type"))
		require.Equal(t, "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'", w.Header().Get("Content-Security-Policy"))
		require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
		require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
		require.NotEmpty(t, w.Body.String())
	}
	require.NotContains(t, get(t, &reader{}, "/dashboard").Body.String(), "style=", "the policy forbids inline style")
}

func TestThePageShowsWhatTheDatabaseHolds(t *testing.T) {
	s, err := store.Open(t.Context(), store.Config{URL: databases.New(t), MaxConns: 2, AppName: t.Name()})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	for _, id := range []string{"waits", "put off", "gone/for good", "older death", "done"} {
		_, err := s.Ingest(t.Context(), []event.Event{{Source: "default", ID: id, Type: "t", Payload: []byte("{}"), OccurredAt: time.Now()}})
		require.NoError(t, err)
	}
	for _, sql := range []string{
		"update spine.processing_state set next_attempt_at = 'infinity' where event_id = 'put off'",
		"update spine.processing_state set status = 'dead', error_message = 'HTTP 410' where event_id = 'older death'",
		"update spine.processing_state set status = 'dead', error_message = 'HTTP 422' where event_id = 'gone/for good'",
		"update spine.processing_state set status = 'completed' where event_id = 'done'",
		"select spine.pause()",
	} {
		_, err := s.Pool().Exec(t.Context(), sql)
		require.NoError(t, err)
	}

	w := get(t, s, "/dashboard")

	require.Equal(t, http.StatusOK, w.Code)
	body := w.Body.String()
	require.NotContains(t, body, notRead)
	section := func(id string) string {
		_, rest, ok := strings.Cut(body, `<section id="`+id+`">`)
		require.True(t, ok)
		text, _, _ := strings.Cut(rest, "</section>")
		return text
	}
	inOrder(t, section("backlog"), "paused since", "dead", ">2<", "pending", ">2<", time.Now().UTC().Format("2006-"))
	inOrder(t, section("dead"), `href="/api/events/gone%2Ffor%20good?source=default"`, "gone/for good", "HTTP 422", "older death", "HTTP 410")
	inOrder(t, section("events"), "done", "completed", "older death", "dead", "gone/for good", "dead", "put off", "pending", "waits", "pending")
	inOrder(t, section("audit"), "claims_paused", "done", "status_changed", "event_inserted", "event_received")
}

// inOrder checks that text has all parts, one after the other.
func inOrder(t *testing.T, text string, parts ...string) {
	t.Helper()
	rest := text
	for _, part := range parts {
		_, after, ok := strings.Cut(rest, part)
		require.True(t, ok, "%q is missing or out of place in %s", part, text)
		rest = after
	}
}

package systemtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/service"
)

// adminHeader is what a request to the administration may need. SPINE_ADMIN_TOKEN is that of the Spine at SPINE_URL.
func adminHeader() []string {
	if token := os.Getenv("SPINE_ADMIN_TOKEN"); token != "" {
		return []string{"Authorization", "Bearer " + token}
	}
	return nil
}

// read gets a path that may need the admin token.
func (s *target) read(t *testing.T, path string) reply {
	t.Helper()
	return s.request(t, http.MethodGet, path, "", adminHeader()...)
}

// rows gets a list and the path of its next page, which is empty on the last page.
func (s *target) rows(t *testing.T, path string) (rows []map[string]any, next string) {
	t.Helper()
	r := s.read(t, path)
	require.Equal(t, http.StatusOK, r.code, "%s", r.body)
	require.Equal(t, "application/json", r.header.Get("Content-Type"))
	require.NoError(t, json.Unmarshal(r.body, &rows), "a plain array")
	require.NotNil(t, rows)
	if link := regexp.MustCompile(`^<([^>]+)>; rel="next"$`).FindStringSubmatch(r.header.Get("Link")); link != nil {
		next = link[1]
	}
	return rows, next
}

// momentOf is a row's time.
func momentOf(t *testing.T, row map[string]any, member string) time.Time {
	t.Helper()
	text, ok := row[member].(string)
	require.True(t, ok, "%s of %v", member, row)
	moment, err := time.Parse(time.RFC3339Nano, text)
	require.NoError(t, err)
	return moment
}

func contractHealth(t *testing.T, s *target) {
	var about map[string]string
	r := s.request(t, http.MethodGet, "/", "", "X-Forwarded-For", "192.0.2.1")
	require.NoError(t, json.Unmarshal(r.body, &about))
	require.Equal(t, "healthy", about["status"])
	require.NotEmpty(t, about["service"])
	moment, err := time.Parse(time.RFC3339Nano, about["timestamp"])
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), moment, time.Minute)
	require.Equal(t, http.StatusOK, s.read(t, "/metrics").code)
	for _, path := range []string{"/", "/healthz", "/readyz"} {
		require.Equal(
			t,
			http.StatusOK,
			s.request(t, http.MethodGet, path, "", "X-Forwarded-For", "192.0.2.1").code,
			"%s is open",
			path,
		)
		r := s.request(t, http.MethodPost, path, "")
		require.Equal(t, http.StatusMethodNotAllowed, r.code)
		require.Contains(t, r.header.Get("Allow"), "GET")
	}

	const series = `spine_ingest_events_total{outcome="accepted",source="default"}`
	s.accept(t, newID("metric"), `{}`)
	accepted := s.metric(t, series)
	s.accept(t, newID("metric"), `{}`)
	require.GreaterOrEqual(t, s.metric(t, series), accepted+1)
	for _, name := range []string{
		"spine_ingest_batch_events_count",
		"spine_ingest_flush_seconds_count",
		"spine_delivery_seconds_count",
		"spine_worker_wakes_total",
		"spine_worker_swept_total",
		"spine_worker_leases_lost_total",
		"spine_queue_oldest_ready_seconds",
		"spine_rollup_lag_seconds",
		"spine_listener_round_trip_seconds_count",
	} {
		s.metric(t, name)
	}
}

func contractLists(t *testing.T, s *target) {
	kind := newID("kind")
	const n = 120
	var ids []string
	for i := range n {
		id := newID("list")
		body := strings.Replace(webhook(id, fmt.Sprintf(`{"n":%d}`, i)), "user.created", kind, 1)
		require.Equal(t, "accepted", s.post(t, body).status())
		ids = append(ids, id)
	}
	for _, id := range ids {
		s.awaitDone(t, id)
	}
	slices.Reverse(ids)

	for _, list := range []struct {
		path, order string
		size        int
		members     []string
	}{
		{"/api/events", "created_at", 50, []string{
			"event_id",
			"source",
			"event_type",
			"occurred_at",
			"created_at",
			"payload",
		}},
		{"/api/audit", "timestamp", 100, []string{"timestamp", "event_id", "action", "details", "success"}},
		{"/api/processing", "created_at", 50, []string{
			"event_id",
			"status",
			"attempt_count",
			"last_attempt_at",
			"completed_at",
			"error_message",
		}},
	} {
		t.Run(list.path, func(t *testing.T) {
			first, next := s.rows(t, list.path+"?type="+kind)
			require.Len(t, first, list.size)
			require.NotEmpty(t, next)
			for _, member := range list.members {
				require.Contains(t, first[0], member)
			}
			all := first
			for next != "" {
				var more []map[string]any
				more, next = s.rows(t, next)
				all = append(all, more...)
			}
			var listed []string
			for i, row := range all {
				if id := row["event_id"].(string); !slices.Contains(listed, id) {
					listed = append(listed, id)
				}
				if i > 0 {
					require.False(
						t,
						momentOf(t, row, list.order).After(momentOf(t, all[i-1], list.order)),
						"newest first",
					)
				}
			}
			require.ElementsMatch(t, ids, listed, "every one of them")
			if list.path != "/api/audit" {
				require.Len(t, all, n, "and each once")
			} else {
				require.Len(
					t,
					all,
					value[int](t, s.db, "select count(*) from spine.audit_log where event_id = any($1)", ids),
				)
			}
			short, _ := s.rows(t, list.path+"?limit=3&type="+kind)
			require.Equal(t, all[:3], short)
			none, next := s.rows(t, list.path+"?type="+newID("no-such"))
			require.Empty(t, none)
			require.Empty(t, next)
			for _, query := range []string{"limit=0", "limit=x", "cursor=nonsense", "no-such=1", "limit=1&limit=2"} {
				requireProblem(t, s.read(t, list.path+"?"+query), http.StatusBadRequest)
			}
			requireProblem(t, s.request(t, http.MethodPost, list.path, "{}"), http.StatusMethodNotAllowed)
		})
	}

	t.Run("filters", func(t *testing.T) {
		completed, _ := s.rows(t, "/api/processing?limit=1000&status=completed&source=default&type="+kind)
		dead, _ := s.rows(t, "/api/processing?limit=1000&status=dead&type="+kind)
		require.Len(t, append(completed, dead...), n)
		for _, row := range completed {
			require.Equal(t, "completed", row["status"])
			require.Nil(t, row["error_message"])
			require.False(t, momentOf(t, row, "completed_at").Before(momentOf(t, row, "last_attempt_at")))
		}
	})
}

func contractOneEvent(t *testing.T, s *target) {
	type history struct {
		EventID   string          `json:"event_id"`
		EventType string          `json:"event_type"`
		Payload   json.RawMessage `json:"payload"`
		Source    string          `json:"source"`
		Timeline  []struct{ Action, Success string }
	}
	get := func(path string) (h history) {
		r := s.read(t, path)
		require.Equal(t, http.StatusOK, r.code, "%s", r.body)
		require.NoError(t, json.Unmarshal(r.body, &h))
		return h
	}
	for _, id := range []string{newID("one"), newID("a/b?c#d%2F é..//"), newID(".")} {
		s.accept(t, id, `{"n":1.10,"big":12345678901234567890}`)
		s.awaitDone(t, id)
		h := get("/api/events/" + strings.ReplaceAll(url.PathEscape(id), ".", "%2E"))
		require.Equal(t, id, h.EventID)
		require.Equal(t, "user.created", h.EventType)
		require.Equal(t, `{"n":1.10,"big":12345678901234567890}`, string(h.Payload))
		var timeline []string
		for _, step := range h.Timeline {
			timeline = append(timeline, step.Action)
		}
		require.Equal(t, s.actions(t, id), timeline)
	}

	never := newID("never")
	require.Contains(t, requireProblem(t, s.read(t, "/api/events/"+never), http.StatusNotFound).Detail, "never stored")

	shared := newID("shared")
	s.accept(t, shared, `{}`)
	execute(t, s.db, "insert into spine.sources (name) values ('contract-test') on conflict do nothing")
	require.Equal(
		t,
		"accepted",
		value[string](t, s.db, "select spine.ingest($1, 'a', '{}', _source => 'contract-test')", shared),
	)
	requireProblem(t, s.read(t, "/api/events/"+shared), http.StatusBadRequest)
	for _, source := range []string{"default", "contract-test"} {
		require.Equal(t, source, get("/api/events/"+shared+"?source="+source).Source)
	}
}

// TestAdmin says who may read at the address of LISTEN, by the settings.
func TestAdmin(t *testing.T) {
	t.Parallel()
	const secret = "a-secret-of-sixteen-or-more"
	database := databases.New(t)
	paths := []string{
		"/api/events",
		"/api/audit",
		"/api/processing",
		"/api/attempts",
		"/api/search?q=nobody",
		"/api/events/nobody",
		"/api/overview",
		"/dashboard",
		"/metrics",
	}
	may := func(t *testing.T, s *target, header ...string) (codes map[int]bool) {
		t.Helper()
		codes = map[int]bool{}
		for _, path := range paths {
			code := s.request(t, http.MethodGet, path, "", header...).code
			if path == "/api/events/nobody" && code == http.StatusNotFound {
				code = http.StatusOK // it may ask, and there is none
			}
			codes[code] = true
		}
		for _, path := range []string{"/", "/healthz", "/readyz"} {
			require.Equal(t, http.StatusOK, s.request(t, http.MethodGet, path, "", header...).code)
		}
		return codes
	}
	ok, unauthorized := map[int]bool{200: true}, map[int]bool{401: true}
	basic := func(password string) string {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.SetBasicAuth("anyone", password)
		return r.Header.Get("Authorization")
	}

	t.Run("a token", func(t *testing.T) {
		s := startService(t, service.Roles{API: true}, database, "ADMIN_TOKEN="+secret)
		require.Equal(t, unauthorized, may(t, s))
		require.Equal(t, unauthorized, may(t, s, "Authorization", "Bearer "+secret+"2"))
		require.Equal(t, unauthorized, may(t, s, "Authorization", "Bearer "))
		require.Equal(t, unauthorized, may(t, s, "Authorization", basic("")))
		require.Equal(t, ok, may(t, s, "Authorization", "Bearer "+secret))
		require.Equal(t, ok, may(t, s, "Authorization", "Bearer "+secret, "X-Forwarded-For", "192.0.2.1"))
		require.Equal(t, ok, may(t, s, "Authorization", basic(secret)))
		r := s.request(t, http.MethodGet, "/dashboard", "")
		requireProblem(t, r, http.StatusUnauthorized)
		require.Contains(
			t,
			strings.Join(r.header.Values("WWW-Authenticate"), ","),
			"Basic",
			"so that a browser can ask for it",
		)
		s.accept(t, newID("open"), `{}`) // who sends needs none
	})
	t.Run("none, openly", func(t *testing.T) {
		s := startService(t, service.Roles{API: true}, database, "ADMIN_AUTH=none")
		require.Equal(t, ok, may(t, s, "X-Forwarded-For", "192.0.2.1"))
		require.Equal(t, http.StatusOK, s.raw(t, "GET /api/events HTTP/1.1\r\nHost: example.com\r\n\r\n").code)
	})
}

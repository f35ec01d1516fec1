package api_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

// broken is a Reader that only ever fails, in its own way.
type broken func(context.Context) error

func (b broken) Events(ctx context.Context, _ event.Page, _ event.Filter) ([]event.Stored, string, error) {
	return nil, "", b(ctx)
}

func (b broken) Audit(ctx context.Context, _ event.Page, _ event.AuditFilter) ([]event.AuditRow, string, error) {
	return nil, "", b(ctx)
}

func (b broken) Processing(ctx context.Context, _ event.Page, _ event.ProcessingFilter) ([]event.ProcessingRow, string, error) {
	return nil, "", b(ctx)
}

func (b broken) Event(ctx context.Context, _, _ string) (event.History, error) {
	return event.History{}, b(ctx)
}

func (b broken) Overview(ctx context.Context, _ time.Duration) (event.Overview, error) {
	return event.Overview{}, b(ctx)
}

var paths = []string{"/api/events", "/api/audit", "/api/processing", "/api/events/x", "/api/overview"}

func TestAFaultOfTheDatabaseIs503AndStaysInTheLog(t *testing.T) {
	h := serve(broken(func(context.Context) error { return errors.New("password is sesame") }), time.Minute)
	for _, path := range paths {
		a := ask(t, h, http.MethodGet, path)
		requireProblem(t, a, http.StatusServiceUnavailable, "cannot be read now")
		require.NotContains(t, string(a.body), "sesame")
	}
}

func TestAQuestionTakesABoundedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := serve(broken(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }), 5*time.Second)
		for _, path := range paths {
			start := time.Now()
			requireProblem(t, ask(t, h, http.MethodGet, path), http.StatusServiceUnavailable, "within 5s")
			require.Equal(t, 5*time.Second, time.Since(start))
		}
	})
}

func TestADatabaseThatIsAwayIs503(t *testing.T) {
	s := systemOn(t, "postgres://spine@127.0.0.1:1/spine?sslmode=disable", 30*time.Second)
	for _, path := range paths {
		requireProblem(t, s.get(path), http.StatusServiceUnavailable, "cannot be read now")
	}
}

func TestADatabaseThatDoesNotAnswerIs503(t *testing.T) {
	url := databases.New(t)
	s := systemOn(t, url, 50*time.Millisecond)
	tx, err := s.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, tx.Rollback(t.Context())) }()
	_, err = tx.Exec(t.Context(), "lock table spine.events, spine.audit_log, spine.processing_state in access exclusive mode")
	require.NoError(t, err)
	for _, path := range paths {
		requireProblem(t, s.get(path), http.StatusServiceUnavailable, "within 50ms")
	}
}

func TestAQuestionThatIsNotUnderstoodIs400(t *testing.T) {
	s := newSystem(t)
	s.ingest(webhook("default", "a", "t", `{}`), webhook("default", "b", "t", `{}`))
	link := s.get("/api/audit?limit=1").header.Get("Link")
	auditCursor := parseLink(t, link).Query().Get("cursor")
	forged := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

	for query, want := range map[string]string{
		"/api/events?limit=0":                  "limit must be a whole number from 1 to 1000",
		"/api/events?limit=1001":               "limit must be a whole number from 1 to 1000",
		"/api/events?limit=-1":                 "limit must be",
		"/api/events?limit=1.5":                "limit must be",
		"/api/events?limit=ten":                "limit must be",
		"/api/events?limit=99999999999999":     "limit must be",
		"/api/events?limit=":                   "limit must not be empty",
		"/api/events?limit=5&limit=6":          "limit came more than once",
		"/api/events?offset=10":                "offset is not known here; known are cursor, limit, source, status, type",
		"/api/events?Limit=5":                  "Limit is not known here",
		"/api/events?source=":                  "source must not be empty",
		"/api/events?status=done":              "status must be pending, processing, completed, failed or dead",
		"/api/events?type=%00":                 "type is no text that can be stored",
		"/api/events?type=%ff":                 "type is no text that can be stored",
		"/api/events?type=%zz":                 "the query is not well-formed",
		"/api/events?cursor=x":                 "cursor was not given by this list",
		"/api/events?cursor=!":                 "cursor was not given by this list",
		"/api/events?cursor=" + auditCursor:    "cursor was not given by this list",
		"/api/events?cursor=" + forged("[]"):   "cursor was not given by this list",
		"/api/events?limit=0&offset=1":         "offset is not known here",
		"/api/audit?success=yes":               "success must be success, failure or pending",
		"/api/audit?status=dead":               "status is not known here",
		"/api/processing?status=DEAD":          "status must be",
		"/api/processing?action=event_deduped": "action is not known here",
		"/api/processing?cursor=" + forged(`{"list":"processing","id":1,"destination":"\u0000"}`): "cursor was not given by this list",
		"/api/events/a?limit=5": "limit is not known here; known are source",
		"/api/events/a?source=": "source must not be empty",
	} {
		requireProblem(t, s.get(query), http.StatusBadRequest, want)
	}
	require.Equal(t, []any{
		map[string]any{"parameter": "offset", "detail": "is not known here; known are cursor, limit, source, status, type"},
		map[string]any{"parameter": "limit", "detail": "must be a whole number from 1 to 1000"},
	}, s.get("/api/events?limit=0&offset=1").object(t)["errors"])

	// A forged time that Postgres does not know is only far away.
	for _, at := range []string{"9223372036854775807", "-9223372036854775808", "9223371331200000000", "-211900000000000000"} {
		s.get("/api/audit?cursor=" + forged(`{"list":"audit","id":1,"at":`+at+`}`)).rows(t)
	}
}

func TestPathsAndMethodsThatAreNotThere(t *testing.T) {
	h := serve(broken(func(context.Context) error { return errors.New("not reached") }), time.Minute)
	for _, path := range []string{"/", "/api", "/api/", "/api/event", "/api/events/", "/api/events/a/b", "/api//events", "/api/../api/events"} {
		requireProblem(t, ask(t, h, http.MethodGet, path), http.StatusNotFound, "nothing at this path")
	}
	for path, allow := range map[string]string{
		"/api/events": "GET, HEAD", "/api/audit": "GET, HEAD", "/api/processing": "GET, HEAD", "/api/events/a%2Fb": "GET, HEAD", "/webhook": "POST",
	} {
		for _, method := range []string{http.MethodPut, http.MethodDelete, http.MethodOptions, "BREW"} {
			a := ask(t, h, method, path)
			requireProblem(t, a, http.StatusMethodNotAllowed, "takes "+allow)
			require.Equal(t, allow, a.header.Get("Allow"))
		}
	}
}

func TestHeadAnswersAsGetWithoutABody(t *testing.T) {
	s := newSystem(t)
	s.ingest(webhook("default", "a", "t", `{}`), webhook("default", "b", "t", `{}`))
	server := httptest.NewServer(s.handler)
	defer server.Close()
	for _, path := range []string{"/api/events?limit=1", "/api/audit?limit=1", "/api/processing?limit=1", "/api/events/a"} {
		got := s.get(path)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodHead, server.URL+path, nil)
		require.NoError(t, err)
		head, err := server.Client().Do(r)
		require.NoError(t, err)
		require.NoError(t, head.Body.Close())
		require.Equal(t, http.StatusOK, head.StatusCode)
		require.EqualValues(t, len(got.body), head.ContentLength)
		require.Equal(t, got.header.Get("Link"), head.Header.Get("Link"))
	}
}

func TestNoBrowserOrCacheKeepsAnAnswer(t *testing.T) {
	h := serve(broken(func(context.Context) error { return errors.New("away") }), time.Minute)
	for _, path := range append(paths, "/nowhere", "/api/events?limit=0") {
		header := ask(t, h, http.MethodGet, path).header
		require.Equal(t, "nosniff", header.Get("X-Content-Type-Options"), path)
		require.Equal(t, "no-store", header.Get("Cache-Control"), path)
	}
}

// parseLink reads a Link header that says where the next page is.
func parseLink(t *testing.T, header string) *url.URL {
	t.Helper()
	target, ok := strings.CutSuffix(header, `>; rel="next"`)
	require.True(t, ok, header)
	link, err := url.Parse(strings.TrimPrefix(target, "<"))
	require.NoError(t, err)
	return link
}

// follow reads a list page by page to its end, and calls between between two
// pages. It returns each row by key.
func (s *system) follow(target string, key func(map[string]any) string, between func()) (keys []string, pages int) {
	s.t.Helper()
	for {
		a := s.get(target)
		rows := a.rows(s.t)
		require.NotEmpty(s.t, rows, "a page that was announced is empty")
		for _, row := range rows {
			keys = append(keys, key(row))
		}
		pages++
		link := a.header.Get("Link")
		if link == "" {
			return keys, pages
		}
		target = parseLink(s.t, link).String()
		between()
	}
}

func column(name string) func(map[string]any) string {
	return func(row map[string]any) string { return fmt.Sprint(row[name]) }
}

func TestPagesNeitherRepeatNorMissARowWhileOthersAreInserted(t *testing.T) {
	s := newSystem(t)
	var want []string
	var batch []event.Event
	for i := range 23 {
		id := fmt.Sprintf("event-%02d", i)
		batch = append(batch, webhook("default", id, "t", `{}`))
		want = append(want, id)
	}
	s.ingest(batch...) // in one statement: all audit rows have one timestamp
	slices.Reverse(want)
	steps := make([]string, 0, 2*len(want))
	for id := range 2 * len(want) {
		steps = append(steps, strconv.Itoa(2*len(want)-id))
	}
	later := 0
	insert := func() {
		later++
		s.ingest(webhook("default", fmt.Sprint("later-", later), "t", `{}`))
	}

	got, pages := s.follow("/api/events?limit=5", column("event_id"), insert)
	require.Equal(t, want, got)
	require.Equal(t, 5, pages)

	s.exec("delete from spine.events where event_id like 'later-%'")
	s.exec("delete from spine.processing_state where event_id like 'later-%'")
	s.exec("delete from spine.audit_log where event_id like 'later-%'")
	got, _ = s.follow("/api/processing?limit=5&destination=default", column("event_id"), insert)
	require.Equal(t, want, got)

	s.exec("delete from spine.audit_log where event_id like 'later-%'")
	got, _ = s.follow("/api/audit?limit=7", column("id"), insert)
	require.Equal(t, steps, got)

	s.exec("delete from spine.audit_log where event_id like 'later-%'")
	got, pages = s.follow("/api/audit?limit=23", column("id"), insert)
	require.Equal(t, steps, got)
	require.Equal(t, 2, pages, "a last page that is full announces no other")
}

func TestListsAreAsLongAsTheContractSays(t *testing.T) {
	s := newSystem(t)
	for _, path := range []string{"/api/events", "/api/audit", "/api/processing"} {
		require.Empty(t, s.get(path).rows(t))
	}
	var batch []event.Event
	for i := range 120 {
		batch = append(batch, webhook("default", strconv.Itoa(i), "t", `{}`))
	}
	s.ingest(batch...)
	require.Len(t, s.get("/api/events").rows(t), 50)
	require.Len(t, s.get("/api/audit").rows(t), 100)
	require.Len(t, s.get("/api/processing").rows(t), 50)
	require.Len(t, s.get("/api/audit?limit=1000").rows(t), 240)
}

func TestAPageOfLargeEventsIsShortAndStillGoesOn(t *testing.T) {
	s := newSystem(t)
	var want []string
	for i := range 12 {
		id := strconv.Itoa(i)
		s.ingest(webhook("default", id, "t", `{"filler":"`+strings.Repeat("x", 1<<20)+`"}`))
		want = append(want, id)
	}
	slices.Reverse(want)

	require.Less(t, len(s.get("/api/events").body), 10<<20)
	got, pages := s.follow("/api/events", column("event_id"), func() {})

	require.Equal(t, want, got)
	require.Equal(t, 2, pages)
}

func TestFilters(t *testing.T) {
	s := newSystem(t)
	s.ingest(
		webhook("default", "a", "user.created", `{}`),
		webhook("default", "b", "user.deleted", `{}`),
		webhook("stripe", "a", "user.created", `{}`),
		webhook("stripe", "c", "invoice.paid", `{}`),
	)
	s.exec("update spine.processing_state set status = 'dead' where event_id = 'b'")
	s.exec("update spine.processing_state set status = 'completed' where event_id = 'c'")
	s.exec("insert into spine.destinations (name) values ('archive')")
	s.exec("insert into spine.processing_state (event_id, source, destination) values ('c', 'stripe', 'archive')")
	key := func(row map[string]any) string {
		text := fmt.Sprint(row["source"], "/", row["event_id"])
		if row["destination"] != nil {
			text += fmt.Sprint(" ", row["destination"])
		}
		if row["action"] != nil {
			text += fmt.Sprint(" ", row["action"])
		}
		return text
	}
	for query, want := range map[string][]string{
		"/api/events?type=user.created":                                  {"stripe/a", "default/a"},
		"/api/events?source=default":                                     {"default/b", "default/a"},
		"/api/events?source=nobody":                                      nil,
		"/api/events?source=stripe&type=user.created":                    {"stripe/a"},
		"/api/events?status=dead":                                        {"default/b"},
		"/api/events?status=completed":                                   {"stripe/c"},
		"/api/events?status=pending":                                     {"stripe/c", "stripe/a", "default/a"},
		"/api/processing?status=pending":                                 {"stripe/c archive", "stripe/a default", "default/a default"},
		"/api/processing?status=dead":                                    {"default/b default"},
		"/api/processing?event_id=a":                                     {"stripe/a default", "default/a default"},
		"/api/processing?event_id=a&source=default":                      {"default/a default"},
		"/api/processing?event_id=nothing":                               nil,
		"/api/processing?destination=archive":                            {"stripe/c archive"},
		"/api/processing?type=invoice.paid":                              {"stripe/c default", "stripe/c archive"},
		"/api/audit?event_id=b":                                          {"default/b status_changed", "default/b event_inserted", "default/b event_received"},
		"/api/audit?event_id=a&source=stripe":                            {"stripe/a event_inserted", "stripe/a event_received"},
		"/api/audit?event_id=nothing":                                    nil,
		"/api/audit?action=event_queued":                                 {"stripe/c event_queued"},
		"/api/audit?type=user.deleted&success=success":                   {"default/b status_changed", "default/b event_inserted", "default/b event_received"},
		"/api/audit?success=failure":                                     nil,
		"/api/audit?success=success&action=event_received&source=stripe": {"stripe/c event_received", "stripe/a event_received"},
	} {
		var got []string
		for _, row := range s.get(query).rows(t) {
			got = append(got, key(row))
		}
		require.Equal(t, want, got, query)

		if len(want) > 1 {
			paged, pages := s.follow(query+"&limit=1", key, func() {})
			require.Equal(t, want, paged, query)
			require.Equal(t, len(want), pages, query)
		}
	}
}

func TestPayloadsAreShownAsTheyWereReceived(t *testing.T) {
	s := newSystem(t)
	const payload = `{"big":123456789012345678901234567890,"one":1.0,"neg":-0,"exp":1E2,"html":"<b>&amp;</b>","escaped":"\u00e9\/","separator":"` + "\u2028" + `"}`
	const other = `{"big":123456789012345678901234567891}`
	s.ingest(webhook("default", "a", "t", payload))
	s.ingest(webhook("default", "a", "t", other))

	require.Contains(t, string(s.get("/api/events").body), `"payload":`+payload)
	history := string(s.get("/api/events/a").body)
	require.Contains(t, history, `"payload":`+payload)
	require.Contains(t, history, `"payload":`+other)
}

func TestAPayloadThatCannotBeQueriedIsShownAsBytesWithTheReason(t *testing.T) {
	s := newSystem(t)
	e := webhook("default", "a", "t", "{\"x\":\"\xff\"}")
	e.Unqueryable = "invalid UTF-8"
	second := webhook("default", "a", "t", `{"x":"\u0000"}`)
	second.Unqueryable = "the character U+0000"
	s.ingest(e)
	s.ingest(second)

	row := s.get("/api/events").rows(t)[0]
	history := s.get("/api/events/a").object(t)
	conflicts, ok := history["conflicts"].([]any)
	require.True(t, ok)
	require.Len(t, conflicts, 1)
	conflict, ok := conflicts[0].(map[string]any)
	require.True(t, ok)
	for _, c := range []struct {
		row   map[string]any
		event event.Event
	}{{row, e}, {history, e}, {conflict, second}} {
		require.Contains(t, c.row, "payload")
		require.Nil(t, c.row["payload"])
		require.Equal(t, c.event.Unqueryable, c.row["unqueryable"])
		require.Equal(t, base64.StdEncoding.EncodeToString(c.event.Payload), c.row["payload_base64"])
	}

	s.ingest(webhook("default", "b", "t", `{}`))
	plain := s.get("/api/events?limit=1").rows(t)[0]
	require.NotContains(t, plain, "unqueryable")
	require.NotContains(t, plain, "payload_base64")
}

func TestTimesThatAreInfiniteOrFarAwayAreShown(t *testing.T) {
	s := newSystem(t)
	s.ingest(webhook("default", "a", "t", `{}`), webhook("default", "b", "t", `{}`), webhook("default", "c", "t", `{}`))
	s.exec("update spine.processing_state set next_attempt_at = 'infinity' where event_id = 'a'")
	s.exec("update spine.processing_state set next_attempt_at = '-infinity' where event_id = 'b'")
	s.exec("update spine.processing_state set next_attempt_at = '20000-01-01 00:00:00+00' where event_id = 'c'")
	s.exec("update spine.events set created_at = 'infinity', occurred_at = '9999-12-31 23:59:59+00' where event_id = 'a'")
	s.exec("update spine.events set occurred_at = '0001-01-01 00:00:00+00' where event_id = 'b'")
	s.exec("delete from spine.audit_log")
	s.exec(`insert into spine.audit_trail (timestamp, action) values
		('-infinity', 'event_received'), ('4000-01-01 BC', 'event_inserted'), ('2024-01-30 12:00:00.000001+00', 'event_deduped'),
		('20000-01-01', 'event_queued'), ('infinity', 'event_replayed'), ('infinity', 'lease_lost')`)

	var next, occurred []any
	for _, row := range s.get("/api/processing").rows(t) {
		next = append(next, row["next_attempt_at"])
	}
	for _, row := range s.get("/api/events").rows(t) {
		occurred = append(occurred, row["occurred_at"])
	}
	require.Equal(t, []any{"20000-01-01T00:00:00Z", "-infinity", "infinity"}, next)
	require.Equal(t, []any{"2024-01-30T12:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"}, occurred)
	require.Equal(t, "infinity", s.get("/api/events/a").object(t)["created_at"])

	actions, pages := s.follow("/api/audit?limit=1", column("action"), func() {})
	require.Equal(t, []string{"lease_lost", "event_replayed", "event_queued", "event_deduped", "event_inserted", "event_received"}, actions)
	require.Equal(t, 6, pages)
	require.Equal(t, "2024-01-30T12:00:00.000001Z", s.get("/api/audit?action=event_deduped").rows(t)[0]["timestamp"])
}

func TestTheRowsHaveWhatTheContractNames(t *testing.T) {
	s := newSystem(t)
	s.ingest(webhook("default", "a", "user.created", `{"user_id":123}`))

	e := s.get("/api/events").rows(t)[0]
	require.Equal(t, map[string]any{
		"id": 1.0, "event_id": "a", "source": "default", "event_type": "user.created", "occurred_at": "2024-01-30T12:00:00Z",
		"created_at": e["created_at"], "status": "pending", "seen_count": 1.0,
		"payload_hash": fmt.Sprintf("%x", webhook("", "", "", `{"user_id":123}`).Hash), "payload": map[string]any{"user_id": 123.0},
	}, e)

	p := s.get("/api/processing").rows(t)[0]
	require.Equal(t, map[string]any{
		"event": 1.0, "event_id": "a", "source": "default", "destination": "default", "status": "pending", "attempt_count": 0.0,
		"next_attempt_at": p["created_at"], "last_attempt_at": nil, "completed_at": nil, "error_message": nil, "worker": nil,
		"created_at": p["created_at"], "updated_at": p["created_at"],
	}, p)

	steps := s.get("/api/audit").rows(t)
	require.Equal(t, []map[string]any{
		{"timestamp": steps[0]["timestamp"], "id": 2.0, "event_id": "a", "source": "default", "action": "event_inserted", "success": "success", "details": map[string]any{}},
		{"timestamp": steps[1]["timestamp"], "id": 1.0, "event_id": "a", "source": "default", "action": "event_received", "success": "success", "details": map[string]any{}},
	}, steps)
	for _, at := range []any{e["created_at"], p["created_at"], steps[0]["timestamp"]} {
		moment, err := time.Parse(time.RFC3339, fmt.Sprint(at))
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), moment, time.Minute)
		require.True(t, strings.HasSuffix(fmt.Sprint(at), "Z"))
	}

	require.NoError(t, s.store.Reject(t.Context(), []event.Rejection{{Cause: "not_json", Status: 400, Count: 1, Since: time.Now()}}))
	rejected := s.get("/api/audit?limit=1").rows(t)[0]
	require.Nil(t, rejected["event_id"])
	require.Nil(t, rejected["source"])
}

func TestOneEventWithItsLife(t *testing.T) {
	s := newSystem(t)
	s.ingest(webhook("default", "a", "t", `{"n":1}`), webhook("default", "other", "t", `{}`))
	s.ingest(webhook("default", "a", "t2", `{"n":2}`))
	s.ingest(webhook("default", "a", "t", `{"n":1}`))
	claimed, err := s.store.Claim(t.Context(), "default", 1, time.Minute, "w", []time.Duration{time.Hour}, time.Time{})
	require.NoError(t, err)
	require.Len(t, claimed.Jobs, 1)
	_, err = s.store.Settle(t.Context(), []event.Settlement{{
		Job: claimed.Jobs[0], Disposition: event.Failed, Delay: time.Hour, Result: event.Result{Class: event.TryAgain, Status: 500, Error: "HTTP 500", Answer: "<no>"},
	}})
	require.NoError(t, err)

	a := s.get("/api/events/a").object(t)
	require.Equal(t, "a", a["event_id"])
	require.Equal(t, "failed", a["status"])
	require.EqualValues(t, 3, a["seen_count"])
	require.NotContains(t, a, "timeline_truncated")
	var actions []string
	for _, step := range objects(t, a["timeline"]) {
		require.Equal(t, "a", step["event_id"])
		actions = append(actions, fmt.Sprint(step["action"]))
	}
	require.Equal(t, []string{
		"event_received", "event_inserted", "event_received", "conflict_detected", "event_received", "event_deduped",
		"processing_attempt_started", "processing_attempt_failed", "retry_scheduled",
	}, actions)
	processing := objects(t, a["processing"])
	require.Len(t, processing, 1)
	require.Equal(t, "failed", processing[0]["status"])
	require.Equal(t, "HTTP 500", processing[0]["error_message"])
	require.EqualValues(t, 1, processing[0]["attempt_count"])
	conflicts := objects(t, a["conflicts"])
	require.Len(t, conflicts, 1)
	require.Equal(t, "t2", conflicts[0]["event_type"])
	require.Equal(t, map[string]any{"n": 2.0}, conflicts[0]["payload"])

	s.exec("delete from spine.processing_state where event_id = 'other'")
	s.exec("delete from spine.audit_log where event_id = 'other'")
	bare := s.get("/api/events/other").object(t)
	require.Nil(t, bare["status"])
	for _, part := range []string{"timeline", "processing", "conflicts"} {
		require.Equal(t, []any{}, bare[part], part)
	}
}

// objects reads a JSON array of objects.
func objects(t *testing.T, value any) (all []map[string]any) {
	t.Helper()
	array, ok := value.([]any)
	require.True(t, ok)
	for _, element := range array {
		object, ok := element.(map[string]any)
		require.True(t, ok)
		all = append(all, object)
	}
	return all
}

func TestAVeryLongTimelineIsCutToItsNewestSteps(t *testing.T) {
	s := newSystem(t)
	s.ingest(webhook("default", "a", "t", `{}`))
	s.exec(`insert into spine.audit_trail (timestamp, event, event_id, source, action)
		select now() + n * interval '1 s', e.id, e.event_id, e.source, 'event_deduped' from spine.events e, generate_series(1, 1000) n`)

	a := s.get("/api/events/a").object(t)

	require.Equal(t, true, a["timeline_truncated"])
	timeline := objects(t, a["timeline"])
	require.Len(t, timeline, 1000)
	require.Less(t, fmt.Sprint(timeline[0]["timestamp"]), fmt.Sprint(timeline[999]["timestamp"]))
	require.EqualValues(t, 1002, timeline[999]["id"])
}

func TestAnEventIsFoundWhateverItsIDIs(t *testing.T) {
	s := newSystem(t)
	ids := []string{
		"plain", "a/b", "/", "//", "a//b", "a b", "a+b", "100%", "a%2Fb", "%", "%00", "?x=1&y=2", "#", ";", "..", "a/../b", `\`, `"><script>`,
		"é", "☃", "日本語", "\u202e", "\u2028", "default/a", "{event_id}", strings.Repeat("☃", 255),
	}
	for _, id := range ids {
		s.ingest(webhook("default", id, "t", `{}`))
	}
	server := httptest.NewServer(s.handler)
	defer server.Close()
	for _, id := range ids {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/api/events/"+url.PathEscape(id), nil)
		require.NoError(t, err)
		resp, err := server.Client().Do(r)
		require.NoError(t, err)
		w := httptest.NewRecorder()
		_, err = w.Body.ReadFrom(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		a := answer{resp.StatusCode, resp.Header, w.Body.Bytes()}
		require.Equal(t, http.StatusOK, a.code, "%q: %s", id, a.body)
		require.Equal(t, id, a.object(t)["event_id"])
		require.Equal(t, id, s.get("/api/audit?limit=1&event_id=" + url.QueryEscape(id)).rows(t)[0]["event_id"])
	}
}

func TestAnEventThatWasNeverStoredIs404WithTheLastArrival(t *testing.T) {
	s := newSystem(t)
	requireProblem(t, s.get("/api/events/b"), http.StatusNotFound, "nothing has arrived yet")
	s.ingest(webhook("default", "a", "t", `{}`))

	requireProblem(t, s.get("/api/events/b"), http.StatusNotFound, `event "b" was never stored. Source default: last arrival 2`)
	requireProblem(t, s.get("/api/events/a?source=stripe"), http.StatusNotFound, `There is no source named "stripe".`)
	for _, id := range []string{"%00", "%ff", "a%00"} {
		requireProblem(t, s.get("/api/events/"+id), http.StatusNotFound, "No event can have this id")
	}
}

func TestAnEventOfSeveralSourcesNeedsItsSourceNamed(t *testing.T) {
	s := newSystem(t)
	s.ingest(webhook("default", "a", "t", `{}`), webhook("stripe", "a", "t", `{"n":1}`))

	a := s.get("/api/events/a")
	requireProblem(t, a, http.StatusBadRequest, "name one, as in ?source=default")
	require.Equal(t, []any{"default", "stripe"}, a.object(t)["sources"])
	require.Equal(t, map[string]any{"n": 1.0}, s.get("/api/events/a?source=stripe").object(t)["payload"])
}

func TestALinkKeepsTheQuestion(t *testing.T) {
	s := newSystem(t)
	s.ingest(webhook("default", "a", "x y&z>", `{}`), webhook("default", "b", "x y&z>", `{}`))

	link := parseLink(t, s.get("/api/events?type=x+y%26z%3E&limit=1").header.Get("Link"))

	require.Equal(t, "/api/events", link.Path)
	require.Equal(t, "x y&z>", link.Query().Get("type"))
	require.Equal(t, "1", link.Query().Get("limit"))
	require.Equal(t, "a", s.get(link.String()).rows(t)[0]["event_id"])
}

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
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// broken is a Reader and an Operator that only ever fails, in its own way.
type broken func(context.Context) error

func (b broken) Events(ctx context.Context, _ view.Page, _ view.EventFilter) ([]view.StoredEvent, view.Next, error) {
	return nil, view.Next{}, b(ctx)
}

func (b broken) Audit(ctx context.Context, _ view.Page, _ view.StepFilter) ([]trail.Step, view.Next, error) {
	return nil, view.Next{}, b(ctx)
}

func (b broken) Processing(
	ctx context.Context,
	_ view.Page,
	_ view.ProcessingFilter,
) ([]view.ProcessingRow, view.Next, error) {
	return nil, view.Next{}, b(ctx)
}

func (b broken) Event(ctx context.Context, _, _ string) (view.History, error) {
	return view.History{}, b(ctx)
}

func (b broken) Overview(ctx context.Context, _ time.Duration) (view.Overview, error) {
	return view.Overview{}, b(ctx)
}

func (b broken) Attempts(ctx context.Context, _ view.Page, _ view.AttemptFilter) ([]view.AttemptRow, view.Next, error) {
	return nil, view.Next{}, b(ctx)
}

func (b broken) Search(ctx context.Context, _ string) ([]view.SearchHit, error) { return nil, b(ctx) }

func (b broken) Names(ctx context.Context) (view.Names, error) { return view.Names{}, b(ctx) }

func (b broken) Replay(ctx context.Context, _, _, _, _ string) (int64, error) { return 0, b(ctx) }

func (b broken) ReplayRows(ctx context.Context, _ []view.ProcessingRow, _ string) (int64, error) {
	return 0, b(ctx)
}

func (b broken) Pause(ctx context.Context, _, _, _ string) (int64, error) { return 0, b(ctx) }

func (b broken) Resume(ctx context.Context, _, _ string) (int64, error) { return 0, b(ctx) }

// serve is the API on what is broken.
func (b broken) serve(timeout time.Duration) http.Handler { return serve(b, b, timeout) }

var paths = []string{
	"/api/events",
	"/api/audit",
	"/api/processing",
	"/api/attempts",
	"/api/events/x",
	"/api/search?q=x",
	"/api/overview",
}

func TestAFaultOfTheDatabaseIs503AndStaysInTheLog(t *testing.T) {
	h := broken(func(context.Context) error { return errors.New("password is sesame") }).serve(time.Minute)
	for _, path := range paths {
		a := ask(t, h, http.MethodGet, path)
		requireProblem(t, a, http.StatusServiceUnavailable, "cannot be read now")
		require.NotContains(t, string(a.body), "sesame")
	}
}

func TestAQuestionTakesABoundedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := broken(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }).serve(5 * time.Second)
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
	_, err = tx.Exec(
		t.Context(),
		"lock table spine.events, spine.audit_log, spine.processing_state in access exclusive mode",
	)
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
	forgedNUL := forged(`{"list":"processing","keys":{"event":1,"destination":"\u0000"}}`)
	forgedID := forged(`{"list":"processing","id":1}`)

	for query, want := range map[string]string{
		"/api/events?limit=0":              "limit must be a whole number from 1 to 1000",
		"/api/events?limit=1001":           "limit must be a whole number from 1 to 1000",
		"/api/events?limit=-1":             "limit must be",
		"/api/events?limit=1.5":            "limit must be",
		"/api/events?limit=ten":            "limit must be",
		"/api/events?limit=99999999999999": "limit must be",
		"/api/events?limit=":               "limit must not be empty",
		"/api/events?limit=5&limit=6":      "limit came more than once",

		"/api/events?offset=10": "offset is not known here; " +
			"known are cursor, limit, since, source, status, type, until",

		"/api/events?Limit=5":                  "Limit is not known here",
		"/api/events?source=":                  "source must not be empty",
		"/api/events?status=done":              "status must be pending, processing, completed, failed or dead",
		"/api/events?type=%00":                 "type is not text that can be stored",
		"/api/events?type=%ff":                 "type is not text that can be stored",
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

		"/api/processing?cursor=" + forgedNUL: "cursor was not given by this list",
		"/api/processing?cursor=" + forgedID:  "cursor was not given by this list",

		"/api/events?since=yesterday":                                              "since must be a time of RFC 3339",
		"/api/events?since=2024-01-30":                                             "since must be a time of RFC 3339",
		"/api/audit?until=2024-01-30T12:00:00":                                     "until must be a time of RFC 3339",
		"/api/audit?until=2024-01-30T12:00:00+02:00":                               "a + in it is written %2B",
		"/api/processing?since=1706616000":                                         "since must be a time of RFC 3339",
		"/api/attempts?since=":                                                     "since must not be empty",
		"/api/attempts?since=2024-01-30T12:00:00Z&until=2024-01-30T12:00:00Z":      "until must be later than since",
		"/api/events?since=2024-01-30T12:00:00Z&until=2024-01-30T13:00:00%2B02:00": "until must be later than since",

		"/api/attempts?outcome=pending":       "outcome must be success or failure",
		"/api/attempts?status=dead":           "status is not known here",
		"/api/attempts?cursor=" + auditCursor: "cursor was not given by this list",

		"/api/search":             "q must be an event_id or the beginning of one",
		"/api/search?q=":          "q must not be empty",
		"/api/search?q=%ff":       "q is not text that can be stored",
		"/api/search?q=a&limit=5": "limit is not known here; known are q",

		"/api/events/a?limit=5": "limit is not known here; known are source",
		"/api/events/a?source=": "source must not be empty",

		"/api/event":                      "event_id must name the event",
		"/api/event?event_id=":            "event_id must not be empty",
		"/api/event?event_id=%00":         "event_id is not text that can be stored",
		"/api/event?event_id=a&event_id=": "event_id came more than once",
		"/api/event?id=a":                 "id is not known here; known are event_id, source; event_id must name",
		"/api/events/a?event_id=b":        "event_id is not known here",
	} {
		requireProblem(t, s.get(query), http.StatusBadRequest, want)
	}
	require.Equal(t, []any{
		map[string]any{
			"parameter": "offset",
			"detail":    "is not known here; known are cursor, limit, since, source, status, type, until",
		},
		map[string]any{"parameter": "limit", "detail": "must be a whole number from 1 to 1000"},
	}, s.get("/api/events?limit=0&offset=1").object(t)["errors"])

	// A forged time that Postgres does not know is only far away.
	for _, at := range []string{
		"9223372036854775807",
		"-9223372036854775808",
		"9223371331200000000",
		"-211900000000000000",
	} {
		s.get("/api/audit?cursor=" + forged(`{"list":"audit","keys":{"id":1,"at":`+at+`}}`)).rows(t)
	}
}

func TestPathsAndMethodsThatAreNotThere(t *testing.T) {
	h := broken(func(context.Context) error { return errors.New("not reached") }).serve(time.Minute)
	for _, path := range []string{
		"/",
		"/api",
		"/api/",
		"/api/events/",
		"/api/events/a/b",
		"/api/event/a",
		"/api//events",
		"/api/../api/events",
	} {
		requireProblem(t, ask(t, h, http.MethodGet, path), http.StatusNotFound, "nothing at this path")
	}
	for path, allow := range map[string]string{
		"/api/events":       "GET, HEAD",
		"/api/audit":        "GET, HEAD",
		"/api/processing":   "GET, HEAD",
		"/api/events/a%2Fb": "GET, HEAD",
		"/webhook":          "POST",
		"/api/attempts":     "GET, HEAD", "/api/search": "GET, HEAD", "/api/events/a%2Fb/replay": "POST",
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
	for _, path := range []string{
		"/api/events?limit=1",
		"/api/audit?limit=1",
		"/api/processing?limit=1",
		"/api/attempts?limit=1",
		"/api/events/a",
		"/api/search?q=a",
	} {
		got := s.get(path)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodHead, server.URL+path, nil)
		require.NoError(t, err)
		head, err := server.Client().Do(r)
		require.NoError(t, err)
		require.NoError(t, head.Body.Close())
		require.Equal(t, http.StatusOK, head.StatusCode)
		// The sentences of an event say how long ago it came, which may take another digit meanwhile.
		require.InDelta(t, len(got.body), head.ContentLength, 4)
		require.Equal(t, got.header.Get("Link"), head.Header.Get("Link"))
	}
}

func TestNoBrowserOrCacheKeepsAnAnswer(t *testing.T) {
	h := broken(func(context.Context) error { return errors.New("away") }).serve(time.Minute)
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
		"/api/events?type=user.created":               {"stripe/a", "default/a"},
		"/api/events?source=default":                  {"default/b", "default/a"},
		"/api/events?source=nobody":                   nil,
		"/api/events?source=stripe&type=user.created": {"stripe/a"},
		"/api/events?status=dead":                     {"default/b"},
		"/api/events?status=completed":                {"stripe/c"},
		"/api/events?status=pending":                  {"stripe/c", "stripe/a", "default/a"},
		"/api/processing?status=pending":              {"stripe/c archive", "stripe/a default", "default/a default"},
		"/api/processing?status=dead":                 {"default/b default"},
		"/api/processing?event_id=a":                  {"stripe/a default", "default/a default"},
		"/api/processing?event_id=a&source=default":   {"default/a default"},
		"/api/processing?event_id=nothing":            nil,
		"/api/processing?destination=archive":         {"stripe/c archive"},
		"/api/processing?type=invoice.paid":           {"stripe/c default", "stripe/c archive"},
		"/api/audit?event_id=b": {
			"default/b status_changed",
			"default/b event_inserted",
			"default/b event_received",
		},
		"/api/audit?event_id=a&source=stripe": {"stripe/a event_inserted", "stripe/a event_received"},
		"/api/audit?event_id=nothing":         nil,
		"/api/audit?action=event_queued":      {"stripe/c event_queued"},
		"/api/audit?type=user.deleted&success=success": {
			"default/b status_changed",
			"default/b event_inserted",
			"default/b event_received",
		},
		"/api/audit?success=failure": nil,
		"/api/audit?success=success&action=event_received&source=stripe": {
			"stripe/c event_received",
			"stripe/a event_received",
		},
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
	const payload = `{"big":123456789012345678901234567890,"one":1.0,"neg":-0,"exp":1E2,"html":"<b>&amp;</b>",` +
		`"escaped":"\u00e9\/","separator":"` + "\u2028" + `"}`
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
	s.exec(
		"update spine.events set created_at = 'infinity', occurred_at = '9999-12-31 23:59:59+00' where event_id = 'a'",
	)
	s.exec("update spine.events set occurred_at = '0001-01-01 00:00:00+00' where event_id = 'b'")
	s.exec("delete from spine.audit_log")
	s.exec(`insert into spine.audit_trail (timestamp, action) values
		('-infinity', 'event_received'),
		('4000-01-01 BC', 'event_inserted'),
		('2024-01-30 12:00:00.000001+00', 'event_deduped'),
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
	require.Equal(
		t,
		[]string{"lease_lost", "event_replayed", "event_queued", "event_deduped", "event_inserted", "event_received"},
		actions,
	)
	require.Equal(t, 6, pages)
	require.Equal(t, "2024-01-30T12:00:00.000001Z", s.get("/api/audit?action=event_deduped").rows(t)[0]["timestamp"])
}

func TestTheRowsHaveWhatTheContractNames(t *testing.T) {
	s := newSystem(t)
	s.ingest(webhook("default", "a", "user.created", `{"user_id":123}`))

	e := s.get("/api/events").rows(t)[0]
	require.Equal(t, map[string]any{
		"id":          1.0,
		"event_id":    "a",
		"source":      "default",
		"event_type":  "user.created",
		"occurred_at": "2024-01-30T12:00:00Z",
		"created_at":  e["created_at"], "status": "pending", "seen_count": 1.0,
		"payload_hash": fmt.Sprintf(
			"%x",
			webhook("", "", "", `{"user_id":123}`).Hash,
		), "payload": map[string]any{"user_id": 123.0},
	}, e)

	p := s.get("/api/processing").rows(t)[0]
	require.Equal(t, map[string]any{
		"event":           1.0,
		"event_id":        "a",
		"source":          "default",
		"destination":     "default",
		"status":          "pending",
		"attempt_count":   0.0,
		"next_attempt_at": p["created_at"],
		"last_attempt_at": nil,
		"completed_at":    nil,
		"error_message":   nil,
		"worker":          nil,
		"created_at":      p["created_at"], "updated_at": p["created_at"],
	}, p)

	steps := s.get("/api/audit").rows(t)
	require.Equal(t, []map[string]any{
		{
			"timestamp": steps[0]["timestamp"],
			"id":        2.0,
			"event_id":  "a",
			"source":    "default",
			"action":    "event_inserted",
			"success":   "success",
			"details":   map[string]any{},
		},
		{
			"timestamp": steps[1]["timestamp"],
			"id":        1.0,
			"event_id":  "a",
			"source":    "default",
			"action":    "event_received",
			"success":   "success",
			"details":   map[string]any{},
		},
	}, steps)
	for _, at := range []any{e["created_at"], p["created_at"], steps[0]["timestamp"]} {
		moment, err := time.Parse(time.RFC3339, fmt.Sprint(at))
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), moment, time.Minute)
		require.True(t, strings.HasSuffix(fmt.Sprint(at), "Z"))
	}

	require.NoError(
		t,
		s.store.Reject(
			t.Context(),
			[]event.RejectionSummary{{Cause: "not_json", Status: 400, Count: 1, Since: time.Now()}},
			false,
		),
	)
	rejected := s.get("/api/audit?limit=1").rows(t)[0]
	require.Nil(t, rejected["event_id"])
	require.Nil(t, rejected["source"])
}

func TestOneEventWithItsLife(t *testing.T) {
	s := newSystem(t)
	s.ingest(webhook("default", "a", "t", `{"n":1}`), webhook("default", "other", "t", `{}`))
	s.ingest(webhook("default", "a", "t2", `{"n":2}`))
	s.ingest(webhook("default", "a", "t", `{"n":1}`))
	claimed, err := s.store.Claim(
		t.Context(),
		event.Claim{
			Destination: event.DefaultDestination,
			Limit:       1,
			Lease:       time.Minute,
			Worker:      "w",
			Delays:      []time.Duration{time.Hour},
		},
	)
	require.NoError(t, err)
	require.Len(t, claimed.Jobs, 1)
	_, err = s.store.Settle(t.Context(), []event.Settlement{{
		Job:         claimed.Jobs[0],
		Disposition: event.Failed,
		Delay:       time.Hour,
		Result:      event.Result{Class: event.TryAgain, Status: 500, Error: "HTTP 500", Answer: "<no>"},
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
		select now() + n * interval '1 s', e.id, e.event_id, e.source, 'event_deduped'
		from spine.events e, generate_series(1, 1000) n`)

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
		"plain",
		"a/b",
		"/",
		"//",
		"a//b",
		"a b",
		"a+b",
		"100%",
		"a%2Fb",
		"%",
		"%00",
		"?x=1&y=2",
		"#",
		";",
		"..",
		".",
		"./",
		"%2e%2e",
		" ",
		"\u00a0",
		"a/../b",
		`\`,
		`"><script>`,
		"é", "☃", "日本語", "\u202e", "\u2028", "default/a", "{event_id}", strings.Repeat("☃", 255),
	}
	for _, id := range ids {
		s.ingest(webhook("default", id, "t", `{}`))
	}
	server := httptest.NewServer(s.handler)
	defer server.Close()
	for _, id := range ids {
		// C18: as a parameter each id arrives as it is.
		query := "?event_id=" + url.QueryEscape(id)
		require.Equal(t, id, s.get("/api/event" + query + "&source=default").object(t)["event_id"])
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(
			w,
			httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/api/event/replay"+query, nil),
		)
		require.Equal(t, http.StatusOK, w.Code, "%q: %s", id, w.Body)

		r, err := http.NewRequestWithContext(
			t.Context(),
			http.MethodGet,
			server.URL+"/api/events/"+url.PathEscape(id),
			nil,
		)
		require.NoError(t, err)
		resp, err := server.Client().Do(r)
		require.NoError(t, err)
		w = httptest.NewRecorder()
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
	requireProblem(t, s.get("/api/events/b"), http.StatusNotFound, "nothing of it is stored yet")
	s.ingest(webhook("default", "a", "t", `{}`))

	requireProblem(
		t,
		s.get("/api/events/b"),
		http.StatusNotFound,
		`event "b" was never stored. Source default: last arrival 2`,
	)
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

func TestAPageThatEndsAfterManyScannedRowsSaysHowFar(t *testing.T) {
	s := newSystem(t)
	s.exec(`insert into spine.events (event_id, event_type, occurred_at, payload, payload_hash, created_at)
		select n, 'common', now(), '{}', '\x00', '2024-01-30T12:00:00.5Z'::timestamptz + n * interval '1 s'
		from generate_series(0, 20000) n`)

	a := s.get("/api/events?type=none&limit=7")
	require.Equal(t, "[]\n", string(a.body))
	require.Equal(t, "2024-01-30T12:00:01.5Z", a.header.Get("Spine-Looked-Back-To"))
	link := parseLink(t, a.header.Get("Link"))
	require.Equal(t, "none", link.Query().Get("type"))

	a = s.get(link.String())
	require.Equal(t, "[]\n", string(a.body))
	require.Empty(t, a.header.Values("Link"))
	require.Empty(t, a.header.Values("Spine-Looked-Back-To"))

	a = s.get("/api/events?type=common&limit=7")
	require.Len(t, a.rows(t), 7)
	require.NotEmpty(t, a.header.Get("Link"))
	require.Empty(t, a.header.Values("Spine-Looked-Back-To"))
}

func TestTheListsOfATime(t *testing.T) {
	s := newSystem(t)
	s.ingest(webhook("default", "a", "t", `{}`), webhook("default", "b", "t", `{}`), webhook("default", "c", "t", `{}`))
	s.exec("update spine.events set created_at = '2024-01-30T12:00:00Z'::timestamptz + (id - 1) * interval '1 hour'")
	s.exec(
		`update spine.audit_trail a set timestamp = e.created_at, action = 'processing_succeeded'
			from spine.events e where e.id = a.event and a.action = 'event_received'`,
	)
	s.exec("delete from spine.audit_trail where action <> 'processing_succeeded'")
	for _, path := range []string{"/api/events?", "/api/audit?", "/api/processing?", "/api/attempts?"} {
		for query, want := range map[string][]string{
			"since=2024-01-30T13:00:00Z":                                   {"c", "b"},
			"since=2024-01-30T14:00:00.000001%2B01:00":                     {"c"},
			"until=2024-01-30T13:00:00Z":                                   {"a"},
			"since=2024-01-30T12:30:00Z&until=2024-01-30T15:00:00%2B01:00": {"b"},
			"since=2024-01-30T16:00:00Z":                                   {},
			"until=0001-01-01T00:00:00Z":                                   {},
			"since=0001-01-01T00:00:00Z&until=9999-12-31T23:59:59Z":        {"c", "b", "a"},
		} {
			got := []string{}
			for _, row := range s.get(path + query).rows(t) {
				got = append(got, fmt.Sprint(row["event_id"]))
			}
			require.Equal(t, want, got, path+query)
		}
	}
}

func TestAttemptsAndSearch(t *testing.T) {
	s := newSystem(t)
	s.ingest(webhook("default", "a/b", "user.created", `{}`), webhook("stripe", "a", "t", `{}`))
	s.exec(`insert into spine.audit_trail (timestamp, event, event_id, action, details)
		select '2024-01-30T12:00:00Z', id, event_id, 'processing_attempt_failed',
			'{"attempt":2,"status":503,"duration_ms":1.25,"error":"HTTP 503","answer":"<no>"}'
		from spine.events where event_id = 'a/b'`)
	s.exec("update spine.events set created_at = '2024-01-30T12:00:00Z' where event_id = 'a/b'")

	require.Equal(t, []map[string]any{{
		"timestamp":   "2024-01-30T12:00:00Z",
		"id":          5.0,
		"event_id":    "a/b",
		"source":      "default",
		"destination": "default",
		"attempt":     2.0,
		"outcome":     "failure", "status": 503.0, "duration_ms": 1.25, "error": "HTTP 503", "answer": "<no>",
	}}, s.get("/api/attempts?outcome=failure&event_id=a/b&source=default&type=user.created").rows(t))
	require.Empty(t, s.get("/api/attempts?outcome=success").rows(t))

	found := s.get("/api/search?q=a").rows(t)
	require.Len(t, found, 2)
	require.Equal(t, map[string]any{
		"event_id":   "a",
		"source":     "stripe",
		"event_type": "t",
		"created_at": found[0]["created_at"],
		"status":     "pending",
	}, found[0])
	require.Equal(t, "a/b", found[1]["event_id"])
	require.Empty(t, s.get("/api/search?q=%25").rows(t))
}

func TestReplay(t *testing.T) {
	s := newSystem(t)
	s.ingest(
		webhook("default", "a/b", "t", `{}`),
		webhook("default", "both", "t", `{}`),
		webhook("stripe", "both", "t", `{}`),
	)
	post := func(target string, with func(*http.Request)) answer {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, target, nil)
		r.RemoteAddr = "[2001:db8::1]:4711"
		if with != nil {
			with(r)
		}
		s.handler.ServeHTTP(w, r)
		return answer{w.Code, w.Header(), w.Body.Bytes()}
	}
	died := func() { s.exec("update spine.processing_state set status = 'dead', next_attempt_at = null") }
	audited := func() (caller string) {
		require.NoError(
			t,
			s.pool.QueryRow(t.Context(), `select details ->> 'caller' from spine.audit_log
				where action = 'event_replayed' order by id desc limit 1`).
				Scan(&caller),
		)
		return caller
	}

	require.Equal(t, map[string]any{"replayed": 0.0}, post("/api/events/a%2Fb/replay", nil).object(t), "it is pending")
	died()
	require.Equal(t, map[string]any{"replayed": 1.0}, post("/api/events/a%2Fb/replay", nil).object(t))
	require.Equal(t, "2001:db8::1", audited())
	require.Equal(t, "pending", s.get("/api/events/a%2Fb").object(t)["status"])

	requireProblem(t, post("/api/events/both/replay", nil), http.StatusBadRequest, "name one, as in ?source=default")
	require.Equal(
		t,
		map[string]any{"replayed": 1.0},
		post("/api/events/both/replay?source=stripe&destination=default", nil).object(t),
	)
	requireProblem(
		t,
		post("/api/events/both/replay?source=stripe&destination=nowhere", nil),
		http.StatusNotFound,
		"queued for no destination 'nowhere'",
	)
	requireProblem(t, post("/api/events/never/replay", nil), http.StatusNotFound, "never stored")
	requireProblem(t, post("/api/events/%00/replay", nil), http.StatusNotFound, "No event can have this id")
	requireProblem(
		t,
		post("/api/events/both/replay?status=dead", nil),
		http.StatusBadRequest,
		"known are destination, source",
	)

	for user, want := range map[string]string{
		"alice":                   `2001:db8::1 as "alice"`,
		"":                        "2001:db8::1",
		`" as 192.0.2.1` + "\x00": `2001:db8::1 as "\" as 192.0.2.1\x00"`,
		strings.Repeat("é", 90):   `2001:db8::1 as "` + strings.Repeat("é", 60) + `…"`,
	} {
		died()
		a := post("/api/events/a%2Fb/replay", func(r *http.Request) { r.SetBasicAuth(user, "whatever") })
		require.Equal(t, http.StatusOK, a.code)
		require.Equal(t, want, audited())
	}
	// A11, of its kind: a token in the place of the user name does not get into the audit log.
	died()
	a := post("/api/events/a%2Fb/replay", func(r *http.Request) { r.SetBasicAuth("a-token-of-16-characters", "") })
	require.Equal(t, http.StatusOK, a.code)
	require.Equal(t, "2001:db8::1", audited())

	h := broken(func(context.Context) error { return errors.New("password is sesame") }).serve(time.Minute)
	requireProblem(
		t,
		ask(t, h, http.MethodPost, "/api/events/a/replay"),
		http.StatusServiceUnavailable,
		"cannot be written to now",
	)
}

func TestAPageOfAnotherOriginChangesNothing(t *testing.T) {
	s := newSystem(t)
	s.ingest(webhook("default", "a", "t", `{}`))
	for name, c := range map[string]struct {
		method string
		header []string
		want   int
	}{
		"no browser": {http.MethodPost, nil, 200},
		"Spine's page": {
			http.MethodPost,
			[]string{"Sec-Fetch-Site", "same-origin", "Origin", "http://192.0.2.1"},
			200,
		},
		"by hand":                      {http.MethodPost, []string{"Sec-Fetch-Site", "none"}, 200},
		"an old browser, Spine's page": {http.MethodPost, []string{"Origin", "http://192.0.2.1"}, 200},
		"another site":                 {http.MethodPost, []string{"Sec-Fetch-Site", "cross-site"}, 403},
		"a neighbour": {
			http.MethodPost,
			[]string{"Sec-Fetch-Site", "same-site", "Origin", "http://192.0.2.1"},
			403,
		},
		"an old browser, another site": {http.MethodPost, []string{"Origin", "http://evil.example"}, 403},
		"an old browser, another port": {http.MethodPost, []string{"Origin", "http://192.0.2.1:81"}, 403},
		"a sandbox":                    {http.MethodPost, []string{"Origin", "null"}, 403},
		"with a token, another site": {
			http.MethodPost,
			[]string{"Authorization", "Bearer x", "Sec-Fetch-Site", "cross-site"},
			403,
		},
		"a link to the page of another": {http.MethodGet, []string{"Sec-Fetch-Site", "cross-site"}, 200},
	} {
		t.Run(name, func(t *testing.T) {
			target := "/api/events/a"
			if c.method == http.MethodPost {
				target += "/replay"
			}
			r := httptest.NewRequestWithContext(t.Context(), c.method, target, nil)
			r.Host = "192.0.2.1"
			for i := 0; i < len(c.header); i += 2 {
				r.Header.Set(c.header[i], c.header[i+1])
			}
			w := httptest.NewRecorder()
			s.handler.ServeHTTP(w, r)
			a := answer{w.Code, w.Header(), w.Body.Bytes()}
			if c.want == http.StatusForbidden {
				requireProblem(t, a, c.want, "A page of another origin sent this.")
			} else {
				require.Equal(t, c.want, a.code, string(a.body))
			}
		})
	}
}

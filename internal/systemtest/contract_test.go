package systemtest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestContract holds what README promises at the edges. Its parts share one service; each has events of its own.
func TestContract(t *testing.T) {
	t.Parallel()
	s := contractTarget(t)
	holdsContract(t, s)
}

// holdsContract runs all parts of the contract but those that are named.
func holdsContract(t *testing.T, s *target, without ...string) {
	t.Helper()
	for name, holds := range map[string]func(t *testing.T, s *target){
		"idempotency":                 contractIdempotency,
		"payload conflict detection":  contractPayloadConflictDetection,
		"retry with eventual success": contractRetryWithEventualSuccess,
		"no double processing":        contractNoDoubleProcessing,
		"answer after the commit":     contractAnswerAfterTheCommit,
		"sources":                     contractSources,
		"methods":                     contractMethods,
		"fields":                      contractFields,
		"times":                       contractTimes,
		"bodies":                      contractBodies,
		"endless bodies":              contractEndlessBodies,
		"large bodies":                contractLargeBodies,
		"unqueryable payloads":        contractUnqueryablePayloads,
		"bad neighbours":              contractBadNeighbours,
		"rejections are audited":      contractRejectionsAreAudited,
		"audit vocabulary":            contractAuditVocabulary,
		"SQL":                         contractSQL,
		"lookups":                     contractLookups,
		"channels":                    contractChannels,
		"health":                      contractHealth,
		"lists":                       contractLists,
		"one event":                   contractOneEvent,
	} {
		if slices.Contains(without, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			holds(t, s)
		})
	}
}

// contractTarget is the Spine at SPINE_URL, with the database SPINE_TEST_DATABASE_URL and the mock API SPINE_MOCK_URL,
// which must fail some of the deliveries. Without SPINE_URL it is one of the test's own. The events stay behind.
func contractTarget(t *testing.T) *target {
	t.Helper()
	if base := os.Getenv("SPINE_URL"); base != "" {
		for _, name := range []string{"SPINE_TEST_DATABASE_URL", "SPINE_MOCK_URL"} {
			require.NotEmpty(t, os.Getenv(name), "%s must be set where SPINE_URL is", name)
		}
		s := newTarget(t, base, os.Getenv("SPINE_TEST_DATABASE_URL"))
		s.mock = strings.TrimRight(os.Getenv("SPINE_MOCK_URL"), "/")
		return s
	}
	mock := startMock(t, 0.5)
	database := as(t, databases.New(t), "search_path", "spine")
	s := startService(t, both, database, "MOCK_API_URL="+mock, "INITIAL_RETRY_DELAY=20ms", "MAX_RETRY_ATTEMPTS=8")
	s.mock = mock
	return s
}

// count counts the rows of an event in a table.
func (s *target) count(t *testing.T, table, id string) int {
	t.Helper()
	return value[int](t, s.db, "select count(*) from spine."+table+" where event_id = $1", id)
}

// tally counts actions.
func tally(actions []string) map[string]int {
	counts := map[string]int{}
	for _, a := range actions {
		counts[a]++
	}
	return counts
}

func contractIdempotency(t *testing.T, s *target) {
	intake := func(t *testing.T, id string) map[string]int {
		t.Helper()
		counts := tally(s.actions(t, id))
		for action := range counts {
			if action != "conflict_detected" && !strings.HasPrefix(action, "event_") {
				delete(counts, action)
			}
		}
		return counts
	}

	t.Run("ten times", func(t *testing.T) {
		id := newID("ten")
		var statuses []string
		for range 10 {
			statuses = append(statuses, s.post(t, webhook(id, `{"user_id":123}`)).status())
		}
		require.Equal(t, append([]string{"accepted"}, slices.Repeat([]string{"deduplicated"}, 9)...), statuses)
		require.Equal(t, 1, s.count(t, "events", id))
		require.Equal(t, 1, s.count(t, "processing_state", id))
		require.Equal(t, map[string]int{"event_received": 10, "event_inserted": 1, "event_deduped": 9}, intake(t, id))
	})

	t.Run("64 times at the same moment", func(t *testing.T) {
		id := newID("moment")
		statuses := s.postAtOnce(t, slices.Repeat([]string{webhook(id, `{"user_id":123}`)}, 64))
		require.Equal(t, map[string]int{"accepted": 1, "deduplicated": 63}, tally(statuses))
		require.Equal(t, 1, s.count(t, "events", id))
		require.Equal(t, 1, s.count(t, "processing_state", id))
		require.Equal(t, map[string]int{"event_received": 64, "event_inserted": 1, "event_deduped": 63}, intake(t, id))
	})

	t.Run("what makes no difference", func(t *testing.T) {
		id := newID("same")
		s.accept(t, id, `{"a":{"x":1,"y":[true,null]},"name":"é/\n","z":"𝄞"}`)
		for _, same := range []string{
			webhook(id, ` { "z" : "𝄞", "name":"é/\n" ,"a":{"y":[ true, null ],"x":1}}`),
			webhook(id, `{"a":{"x":1,"y":[true,null]},"n\u0061me":"\u00e9\/\u000a","z":"\ud834\udd1E"}`),
			strings.Replace(
				webhook(id, `{"a":{"x":1,"y":[true,null]},"name":"é/\n","z":"𝄞"}`),
				"user.created",
				"user.deleted",
				1,
			),
			strings.Replace(
				webhook(id, `{"a":{"x":1,"y":[true,null]},"name":"é/\n","z":"𝄞"}`),
				"2024-01-30",
				"2023-01-30",
				1,
			),
		} {
			require.Equal(t, "deduplicated", s.post(t, same).status(), same)
		}
		require.Equal(
			t,
			"user.created",
			value[string](t, s.db, "select event_type from spine.events where event_id = $1", id),
		)
	})
}

// postAtOnce posts all bodies at the same moment and returns what each came to.
func (s *target) postAtOnce(t *testing.T, bodies []string) []string {
	t.Helper()
	statuses := make([]string, len(bodies))
	start := make(chan struct{})
	var all sync.WaitGroup
	for i, body := range bodies {
		all.Go(func() {
			<-start
			r, err := s.send(t.Context(), body)
			if err != nil {
				t.Error(err)
				return
			}
			statuses[i] = r.status()
		})
	}
	close(start)
	all.Wait()
	return statuses
}

func contractPayloadConflictDetection(t *testing.T, s *target) {
	t.Run("A, B, A, B", func(t *testing.T) {
		id := newID("abab")
		var statuses []string
		for _, payload := range []string{`{"a":1}`, `{"a":2}`, `{"a":1}`, `{"a":2}`} {
			r := s.post(t, webhook(id, payload))
			require.Equal(t, http.StatusOK, r.code)
			statuses = append(statuses, r.status())
		}
		require.Equal(t, []string{"accepted", "conflict", "deduplicated", "conflict"}, statuses)
		require.JSONEq(
			t,
			`{"a":1}`,
			value[string](t, s.db, "select payload::text from spine.events where event_id = $1", id),
			"the first stays",
		)
		require.Equal(t, []string{`{"a":2} 2`}, value[[]string](
			t,
			s.db,
			"select array_agg(payload::text || ' ' || seen_count) from spine.conflicts where event_id = $1",
			id,
		), "evidence is kept once")
		var intake []string
		for _, step := range s.trail(t, id) {
			switch step.Action {
			case "event_inserted", "event_deduped":
				require.Equal(t, "success", step.Success)
				intake = append(intake, step.Action)
			case "conflict_detected":
				require.Equal(t, "failure", step.Success)
				intake = append(intake, step.Action)
			}
		}
		require.Equal(t, []string{"event_inserted", "conflict_detected", "event_deduped", "conflict_detected"}, intake)
	})

	t.Run("numbers are compared as written", func(t *testing.T) {
		for first, other := range map[string]string{
			`{"n":1}`:                     `{"n":1.0}`,
			`{"n":9007199254740992}`:      `{"n":9007199254740993}`,
			`{"n":100}`:                   `{"n":1E2}`,
			`{"n":0}`:                     `{"n":-0}`,
			`{"a":[1,2]}`:                 `{"a":[2,1]}`,
			`{"a":null}`:                  `{}`,
			`{"s":"é"}`:                   `{"s":"e\u0301"}`,
			`{"n":0.1000000000000000055}`: `{"n":0.1}`,
		} {
			id := newID("number")
			s.accept(t, id, first)
			require.Equal(t, "conflict", s.post(t, webhook(id, other)).status(), other)
		}
	})

	t.Run("at most ten pieces of evidence", func(t *testing.T) {
		id := newID("evidence")
		s.accept(t, id, `{"a":0}`)
		for n := range 12 {
			require.Equal(t, "conflict", s.post(t, webhook(id, fmt.Sprintf(`{"a":%d}`, n+1))).status())
		}
		require.Equal(t, 10, s.count(t, "conflicts", id))
		require.Equal(t, 12, tally(s.actions(t, id))["conflict_detected"])
	})

	t.Run("at the same moment", func(t *testing.T) {
		id := newID("race")
		bodies := slices.Repeat([]string{webhook(id, `{"a":1}`), webhook(id, `{"a":2}`)}, 16)
		got := tally(s.postAtOnce(t, bodies))
		require.Equal(t, map[string]int{"accepted": 1, "deduplicated": 15, "conflict": 16}, got)
	})
}

// attempts are the actions of a trail with so many failed attempts before its event came to status.
func attempts(failed int, status string) []string {
	trail := []string{"event_received", "event_inserted"}
	for n := range failed {
		trail = append(trail, "processing_attempt_started", "processing_attempt_failed")
		if status == "dead" && n == failed-1 {
			return append(trail, "processing_failed_permanently")
		}
		trail = append(trail, "retry_scheduled")
	}
	return append(trail, "processing_attempt_started", "processing_succeeded")
}

func contractRetryWithEventualSuccess(t *testing.T, s *target) {
	ids := make([]string, 20)
	for i := range ids {
		ids[i] = newID("retry")
		s.accept(t, ids[i], `{"user_id":123}`)
	}
	retried := 0
	for _, id := range ids {
		s.awaitDone(t, id)
		var status string
		var attempted int
		var completed bool
		var lastError *string
		require.NoError(
			t,
			s.db.QueryRow(t.Context(), `select status, attempt_count, completed_at is not null, error_message
			from spine.processing_state where event_id = $1`, id).Scan(&status, &attempted, &completed, &lastError),
		)
		failed := attempted
		if status == "completed" {
			failed--
			require.Nil(t, lastError)
		}
		require.Equal(t, status == "completed", completed)
		trail := s.trail(t, id)
		require.Equal(t, attempts(failed, status), s.actions(t, id))

		var delay float64
		for _, step := range trail {
			if step.Action == "retry_scheduled" {
				next := step.Details["delay_ms"].(float64)
				if delay > 0 && delay < 15_000 {
					require.InDelta(t, 2, next/delay, 0.25, "each delay is twice the one before, and a little")
				}
				delay = next
			}
		}

		answers := s.answers(t, id)
		require.Len(t, answers, attempted, "the mock API saw every attempt")
		if status == "completed" {
			require.Equal(t, 200, answers[attempted-1])
		}
		for _, code := range answers[:failed] {
			require.GreaterOrEqual(t, code, 500)
		}
		if status == "completed" && failed > 0 {
			retried++
		}
	}
	require.NotZero(t, retried, "no delivery failed and then succeeded: the mock API has to fail some")
}

// answers are the statuses with which the mock API answered an event's deliveries.
func (s *target) answers(t *testing.T, id string) []int {
	t.Helper()
	mock := &target{url: s.mock, http: s.http}
	r := mock.request(t, http.MethodGet, "/stats/"+url.PathEscape(id), "")
	require.Equal(t, http.StatusOK, r.code, "%s", r.body)
	var stats struct{ Statuses []int }
	require.NoError(t, json.Unmarshal(r.body, &stats))
	return stats.Statuses
}

func contractNoDoubleProcessing(t *testing.T, s *target) {
	const events, times = 100, 3
	var ids, bodies []string
	for range events {
		id := newID("double")
		ids = append(ids, id)
		bodies = append(bodies, slices.Repeat([]string{webhook(id, `{"user_id":123}`)}, times)...)
	}
	require.Equal(
		t,
		map[string]int{"accepted": events, "deduplicated": (times - 1) * events},
		tally(s.postAtOnce(t, bodies)),
	)
	await(
		t,
		s.db,
		events,
		"select count(*) from spine.processing_state where event_id = any($1) and status in ('completed', 'dead')",
		ids,
	)

	require.Zero(t, value[int](t, s.db, `
		select count(*) from spine.processing_state p
		where p.event_id = any($1) and (
			(
				select count(*) from spine.audit_log a
				where a.event = p.event and a.action = 'processing_attempt_started'
			) <> p.attempt_count
			or (
				select count(*) from spine.audit_log a
				where a.event = p.event and a.action = 'processing_succeeded'
			) <> (p.status = 'completed')::int
			or (
				select count(*) from spine.audit_log a
				where a.event = p.event and a.action = 'processing_attempt_failed'
			) <> p.attempt_count - (p.status = 'completed')::int
		)`,
		ids), "every attempt is counted once, and no event succeeds twice")
	for _, id := range ids {
		answers := s.answers(t, id)
		require.Len(
			t,
			answers,
			value[int](t, s.db, "select attempt_count from spine.processing_state where event_id = $1", id),
		)
		require.NotContains(t, answers[:len(answers)-1], 200, "nothing is delivered again after it was taken")
	}
}

func contractAnswerAfterTheCommit(t *testing.T, s *target) {
	id := newID("answer")
	for _, want := range []string{"accepted", "deduplicated"} {
		r := s.post(t, webhook(id, `{"user_id":123}`))
		require.Equal(t, http.StatusOK, r.code)
		require.Equal(t, "application/json", r.header.Get("Content-Type"))
		require.Equal(t, 1, s.count(t, "events", id), "it is there when the answer is")
		require.Equal(t, 1, s.count(t, "processing_state", id))
		var receipt map[string]string
		require.NoError(t, json.Unmarshal(r.body, &receipt))
		require.Equal(t, want, receipt["status"])
		require.Equal(t, id, receipt["event_id"])
		require.NotEmpty(t, receipt["message"])
	}
}

func contractSources(t *testing.T, s *target) {
	id := newID("source")
	require.Equal(t, "accepted", s.request(t, http.MethodPost, "/webhook/default", webhook(id, `{}`)).status())
	require.Equal(t, "deduplicated", s.post(t, webhook(id, `{}`)).status(), "default is the source of /webhook")
	require.Equal(t, "default", value[string](t, s.db, "select source from spine.events where event_id = $1", id))
	for _, slug := range []string{"", "Default", "-a", "_a", "a.b", "é", strings.Repeat("a", 64)} {
		_, err := s.db.Exec(t.Context(), "insert into spine.sources (name) values ($1)", slug)
		var refused *pgconn.PgError
		require.ErrorAs(t, err, &refused, slug)
		require.Equal(t, "23514", refused.Code, slug)
	}

	for _, path := range []string{
		"/webhook/nosuch",
		"/webhook/Default",
		"/webhook/%00",
		"/webhook/%ff",
		"/webhook/defaul%74%00",
		"/webhook/default/more",
		"/webhook/",
		"/webhook//default",
		"//webhook",
		"/webhook/..",
		"/webhook/%2e%2e",
		"/webhook/../webhook",
		"/nosuch",
	} {
		r := s.raw(t, "POST "+path+" HTTP/1.1\r\nHost: spine\r\nContent-Length: 2\r\n\r\n{}")
		requireProblem(t, r, http.StatusNotFound)
	}
}

// raw sends bytes as they are, and reads one answer.
func (s *target) raw(t *testing.T, request string) reply {
	t.Helper()
	conn := s.dial(t)
	_, err := io.WriteString(conn, request)
	require.NoError(t, err)
	return readReply(t, conn)
}

func (s *target) dial(t *testing.T) net.Conn {
	t.Helper()
	u, err := url.Parse(s.url)
	require.NoError(t, err)
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", u.Host)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	return conn
}

func readReply(t *testing.T, conn net.Conn) reply {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return reply{resp.StatusCode, resp.Header, body}
}

// problem is the body of a rejection (RFC 9457).
type refusalBody struct {
	Type, Title, Detail string
	Status              int
	Errors              []struct{ Field, Detail string }
}

func requireProblem(t *testing.T, r reply, status int) refusalBody {
	t.Helper()
	require.Equal(t, status, r.code, "%s", r.body)
	require.Equal(t, "application/problem+json", r.header.Get("Content-Type"))
	var p refusalBody
	require.NoError(t, json.Unmarshal(r.body, &p))
	require.Equal(t, status, p.Status)
	require.NotEmpty(t, p.Type)
	require.Equal(t, http.StatusText(status), p.Title)
	require.NotEmpty(t, p.Detail)
	return p
}

func contractMethods(t *testing.T, s *target) {
	for _, path := range []string{"/webhook", "/webhook/default"} {
		for _, method := range []string{
			http.MethodGet,
			http.MethodPut,
			http.MethodPatch,
			http.MethodDelete,
			http.MethodOptions,
			"BREW",
		} {
			r := s.request(t, method, path, "")
			requireProblem(t, r, http.StatusMethodNotAllowed)
			require.Equal(t, "POST", r.header.Get("Allow"), method+" "+path)
		}
	}
}

func contractFields(t *testing.T, s *target) {
	long := func(n int) string { return strings.Repeat("ü", n) }
	accepted := map[string]string{
		"an id of 255 characters":  webhook(long(200)+newID("fieldsfieldsfields-")[:55], `{}`),
		"an id of many scripts":    webhook("ид/🧾 \\\"'<>;--"+newID(""), `{}`),
		"a type of 100 characters": strings.Replace(webhook(newID("type"), `{}`), "user.created", long(100), 1),
		"anything else at the top": strings.Replace(
			webhook(newID("extra"), `{}`),
			"{",
			`{"more":[1,{"event_id":"x"}],"EVENT_ID":7,"":null,`,
			1,
		),
		"members in another order": fmt.Sprintf(
			`{"payload":{},"occurred_at":"2024-01-30T12:00:00Z","event_type":"a","event_id":%q}`,
			newID("order"),
		),
		"white space all around it": " \t\r\n" + webhook(newID("space"), `{}`) + " \t\r\n",
		"an escaped member name":    strings.Replace(webhook(newID("name"), `{}`), "event_id", `event\u005fid`, 1),
		"an exponent of 1000":       webhook(newID("exponent"), `{"n":1e1000,"m":-1E-1000}`),
		"a nesting of 512": webhook(
			newID("nesting"),
			`{"n":`+strings.Repeat("[", 511)+strings.Repeat("]", 511)+`}`,
		),
	}
	for name, body := range accepted {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, "accepted", s.post(t, body).status())
		})
	}

	with := func(field, value string) string {
		fields := map[string]string{
			"event_id": `"` + newID(
				"bad",
			) + `"`,
			"event_type":  `"user.created"`,
			"occurred_at": `"2024-01-30T12:00:00Z"`,
			"payload":     `{}`,
		}
		fields[field] = value
		if value == "" {
			delete(fields, field)
		}
		var members []string
		for name, value := range fields {
			members = append(members, `"`+name+`":`+value)
		}
		return "{" + strings.Join(members, ",") + "}"
	}
	quote := func(s string) string { return `"` + s + `"` }
	for field, values := range map[string][]string{
		"event_id": {
			"",
			"null",
			"7",
			"[]",
			"{}",
			"true",
			`""`,
			quote(long(256)),
			`"a\nb"`,
			`"a\u0000"`,
			`"\u007f"`,
			`"\u0085"`,
			`"\ud800"`,
			"\"\xff\"",
			`"a","event_id":"b"`,
			`"a","event\u005fid":"a"`,
		},
		"event_type": {"", "null", "7", `""`, quote(long(101)), `"\u0000"`, `"\udc00"`, `"a","event_type":"a"`},
		"occurred_at": {
			"",
			"null",
			"1706616000",
			`""`,
			`"yesterday"`,
			`"2024-01-30"`,
			`"2024-02-30T12:00:00Z"`,
			`"2024-01-30T12:00:60Z"`,
			`"2024-01-30T24:00:00Z"`,
			`"10000-01-01T00:00:00Z"`,
			`"infinity"`,
			`"0000-01-01T00:00:00Z"`,
			`"9999-12-31T23:59:59-01:00"`,
			`"2024-01-30T12:00:00+24:00"`,
			`"2024-01-30T12:00:00,5Z"`,
		},
		"payload": {
			"", "null", "7", `"{}"`, "[]", "true", `{"n":1e1001}`, `{"n":[-1E-1001]}`, `{"n":1e400000}`,
			`{"n":` + strings.Repeat("[", 512) + strings.Repeat("]", 512) + `}`, `{},"payload":{}`,
		},
	} {
		for _, bad := range values {
			t.Run(field+" "+bad[:min(len(bad), 40)], func(t *testing.T) {
				p := requireProblem(t, s.post(t, with(field, bad)), http.StatusUnprocessableEntity)
				require.Len(t, p.Errors, 1)
				require.Equal(t, field, p.Errors[0].Field)
				require.NotEmpty(t, p.Errors[0].Detail)
			})
		}
	}

	t.Run("all of them are listed", func(t *testing.T) {
		for body, want := range map[string][]string{
			`{}`: {"event_id", "event_type", "occurred_at", "payload"},
			`{"event_id":"","event_type":"a","occurred_at":1,"payload":[]}`: {"event_id", "occurred_at", "payload"},
			`{"Event_Id":"a","event_type":"a","occurred_at":"2024-01-30T12:00:00Z",` +
				`"payload":{},"extra":1e1001}`: {"event_id", ""},
			`[]`: {""}, `"a"`: {""}, `null`: {""}, `1`: {""},
		} {
			var fields []string
			for _, problem := range requireProblem(t, s.post(t, body), http.StatusUnprocessableEntity).Errors {
				fields = append(fields, problem.Field)
			}
			require.Equal(t, want, fields, body)
		}
	})
}

func contractTimes(t *testing.T, s *target) {
	for given, want := range map[string]string{
		"2024-01-30T12:00:00Z":           "2024-01-30 12:00:00",
		"2024-01-30T12:00:00":            "2024-01-30 12:00:00",
		"2024-01-30T12:00:00.25":         "2024-01-30 12:00:00.25",
		"2024-01-30T12:00:00+05:30":      "2024-01-30 06:30:00",
		"2024-01-30t12:00:00z":           "2024-01-30 12:00:00",
		"2024-01-30T12:00:00.123456789Z": "2024-01-30 12:00:00.123456",
		"0001-01-01T00:00:00Z":           "0001-01-01 00:00:00",
		"9999-12-31T23:59:59.999999Z":    "9999-12-31 23:59:59.999999",
	} {
		id := newID("time")
		require.Equal(
			t,
			"accepted",
			s.post(t, strings.Replace(webhook(id, `{}`), "2024-01-30T12:00:00Z", given, 1)).status(),
			given,
		)
		require.Equal(
			t,
			want,
			value[string](
				t,
				s.db,
				"select (occurred_at at time zone 'UTC')::text from spine.events where event_id = $1",
				id,
			),
			given,
		)
	}
}

func contractBodies(t *testing.T, s *target) {
	t.Run("not JSON", func(t *testing.T) {
		good := webhook(newID("never"), `{}`)
		for _, body := range []string{
			"",
			" ",
			"{",
			good[:len(good)-1],
			good + "x",
			good + good,
			good + ",",
			"\ufeff\ufeff" + good,
			`{"a":NaN}`,
			`{"a":Infinity}`,
			`{"a":1,}`,
			`{/* no */}`,
			"// no\n" + good,
			`{'a':1}`,
			`{a:1}`,
			"{\"a\":\"\t\"}",
			`{"a":"\x"}`,
			`{"a":01}`,
			`{"a":.5}`,
			`{"a":1e}`,
			`{"a":"\ud8"}`,
			"hello",
			"\x00",
			"\xff\xfe",
		} {
			requireProblem(t, s.post(t, body), http.StatusBadRequest)
		}
	})

	t.Run("types", func(t *testing.T) {
		for _, media := range []string{
			"application/json",
			"application/json; charset=utf-8",
			"APPLICATION/JSON",
			"application/json;;",
			"application/json; utf-8",
			"application/cloudevents+json",
			"application/vnd.a.b+json",
		} {
			require.Equal(
				t,
				"accepted",
				s.request(t, http.MethodPost, "/webhook", webhook(newID("type"), `{}`), "Content-Type", media).status(),
				media,
			)
		}
		require.Equal(
			t,
			"accepted",
			s.request(t, http.MethodPost, "/webhook", webhook(newID("type"), `{}`)).status(),
			"no type",
		)
		for _, media := range []string{
			"text/plain",
			"text/json",
			"application/x-www-form-urlencoded",
			"application/jsonp",
			"json",
			"*/*",
		} {
			requireProblem(
				t,
				s.request(t, http.MethodPost, "/webhook", webhook(newID("type"), `{}`), "Content-Type", media),
				http.StatusUnsupportedMediaType,
			)
		}
	})

	t.Run("encodings", func(t *testing.T) {
		id := newID("gzip")
		for i, encoding := range []string{"gzip", "GZIP", "identity"} {
			body := webhook(id, `{"text":"`+strings.Repeat("a", 1000)+`"}`)
			if i < 2 {
				body = zipped(t, body)
			}
			require.Equal(t, []string{"accepted", "deduplicated", "deduplicated"}[i],
				s.request(t, http.MethodPost, "/webhook", body, "Content-Encoding", encoding).status())
		}
		for _, encoding := range []string{"br", "deflate", "gzip, gzip", "zstd"} {
			requireProblem(
				t,
				s.request(t, http.MethodPost, "/webhook", webhook(newID("never"), `{}`), "Content-Encoding", encoding),
				http.StatusUnsupportedMediaType,
			)
		}
		whole := zipped(t, webhook(newID("never"), `{}`))
		for name, body := range map[string]string{
			"not gzip":  webhook(newID("never"), `{}`),
			"cut short": whole[:len(whole)-9],
			"bad sum":   whole[:len(whole)-8] + "\x00\x00\x00\x00" + whole[len(whole)-4:],
			"none":      "",
		} {
			t.Run(name, func(t *testing.T) {
				requireProblem(
					t,
					s.request(t, http.MethodPost, "/webhook", body, "Content-Encoding", "gzip"),
					http.StatusBadRequest,
				)
			})
		}
	})

	t.Run("a header twice", func(t *testing.T) {
		for _, name := range []string{
			"Content-Type",
			"Content-Encoding",
			"webhook-id",
			"webhook-timestamp",
			"webhook-signature",
			"Authorization",
		} {
			r := s.raw(
				t,
				"POST /webhook HTTP/1.1\r\nHost: spine\r\nContent-Length: 2\r\n"+
					name+": application/json\r\n"+name+": application/json\r\n\r\n{}",
			)
			requireProblem(t, r, http.StatusBadRequest)
		}
	})

	t.Run("byte by byte", func(t *testing.T) {
		r, err := s.do(
			t.Context(),
			http.MethodPost,
			"/webhook",
			iotest.OneByteReader(strings.NewReader(webhook(newID("slow"), `{"user_id":123}`))),
		)
		require.NoError(t, err)
		require.Equal(t, "accepted", r.status())
	})

	t.Run("cut short", func(t *testing.T) {
		id := newID("cut")
		body := webhook(id, `{}`)
		conn := s.dial(t)
		_, err := fmt.Fprintf(
			conn,
			"POST /webhook HTTP/1.1\r\nHost: spine\r\nContent-Length: %d\r\n\r\n%s",
			len(body)+1,
			body,
		)
		require.NoError(t, err)
		require.NoError(t, conn.(*net.TCPConn).CloseWrite())
		requireProblem(t, readReply(t, conn), http.StatusBadRequest)
		require.Zero(t, s.count(t, "events", id), "nothing is stored")
	})
}

// contractEndlessBodies takes as long as a body may.
func contractEndlessBodies(t *testing.T, s *target) {
	conn := s.dial(t)
	_, err := io.WriteString(conn, "POST /webhook HTTP/1.1\r\nHost: spine\r\nContent-Length: 100\r\n\r\n{")
	require.NoError(t, err)
	requireProblem(t, readReply(t, conn), http.StatusRequestTimeout)
}

func zipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := io.WriteString(w, text)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.String()
}

// limit is the largest body that Spine accepts, unless MAX_BODY_BYTES says otherwise.
const limit = 1 << 20

func contractLargeBodies(t *testing.T, s *target) {
	sized := func(id string, n int) string {
		frame := webhook(id, `{"text":""}`)
		return strings.Replace(frame, `""`, `"`+strings.Repeat("a", n-len(frame))+`"`, 1)
	}
	require.Equal(t, "accepted", s.post(t, sized(newID("large"), limit)).status(), "just the limit")

	id := newID("larger")
	larger := sized(id, limit+1)
	requireProblem(t, s.post(t, larger), http.StatusRequestEntityTooLarge)
	requireProblem(
		t,
		s.request(t, http.MethodPost, "/webhook", zipped(t, larger), "Content-Encoding", "gzip"),
		http.StatusRequestEntityTooLarge,
	)
	r, err := s.do(
		t.Context(),
		http.MethodPost,
		"/webhook",
		io.MultiReader(strings.NewReader(larger)),
	) // of a length that is not announced
	require.NoError(t, err)
	requireProblem(t, r, http.StatusRequestEntityTooLarge)
	r = s.raw(
		t,
		fmt.Sprintf(
			"POST /webhook HTTP/1.1\r\nHost: spine\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
			limit+1,
		),
	)
	requireProblem(t, r, http.StatusRequestEntityTooLarge) // and not 100
	require.Zero(t, s.count(t, "events", id))
}

// contractUnqueryablePayloads sends payloads that JSON allows and Postgres cannot query.
func contractUnqueryablePayloads(t *testing.T, s *target) {
	for name, payload := range map[string]string{
		"NUL":              `{"a":"\u0000"}`,
		"NUL in a name":    `{"\u0000":1}`,
		"high surrogate":   `{"a":"\ud800"}`,
		"low surrogate":    `{"a":"x\udc00y"}`,
		"invalid UTF-8":    "{\"a\":\"\xff\"}",
		"cut UTF-8":        "{\"a\":\"\xe2\x82\"}",
		"duplicate names":  `{"a":1,"a":1}`,
		"escaped the same": `{"a":[{"b":1,"\u0062":2}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			id := newID("unqueryable")
			s.accept(t, id, payload)
			require.Equal(t, "deduplicated", s.post(t, webhook(id, payload)).status())
			require.Equal(
				t,
				"conflict",
				s.post(t, webhook(id, strings.Replace(payload, ":", ": ", 1))).status(),
				"the hash is over the exact bytes",
			)
			var queryable bool
			var why string
			var kept []byte
			require.NoError(
				t,
				s.db.QueryRow(
					t.Context(),
					"select payload is not null, unqueryable, raw_body from spine.events where event_id = $1",
					id,
				).
					Scan(
						&queryable,
						&why,
						&kept,
					),
			)
			require.False(t, queryable)
			require.NotEmpty(t, why)
			require.Equal(t, payload, string(kept))
		})
	}
	t.Run("an escaped backslash is no escape", func(t *testing.T) {
		id := newID("queryable")
		s.accept(t, id, `{"a":"\\u0000","b":"\\ud800"}`)
		require.Equal(
			t,
			`\u0000`,
			value[string](t, s.db, "select payload->>'a' from spine.events where event_id = $1", id),
		)
	})
}

// contractBadNeighbours holds that bad requests disturb no other request in the same batch.
func contractBadNeighbours(t *testing.T, s *target) {
	var bodies, want []string
	for range 20 {
		for _, neighbour := range []struct{ body, status string }{
			{webhook(newID("good"), `{"a":1}`), "accepted"},
			{webhook(newID("bad"), `{"a":"\u0000"}`), "accepted"},
			{webhook(newID("bad"), "{\"a\":\"\xff\"}"), "accepted"},
			{webhook(newID("bad"), `{"a":1,"a":2}`), "accepted"},
			{webhook(newID("bad"), `{"a":1e1001}`), "422"},
			{webhook("", `{}`), "422"},
			{`{"a":`, "400"},
		} {
			bodies, want = append(bodies, neighbour.body), append(want, neighbour.status)
		}
	}
	got := s.postAtOnce(t, bodies)
	for i := range got {
		got[i], _, _ = strings.Cut(got[i], " ")
	}
	require.Equal(t, want, got)
}

func contractRejectionsAreAudited(t *testing.T, s *target) {
	// How many requests were rejected with a status, and how many steps say so.
	const counted = `select coalesce(sum((details->>'count')::int), 0), count(*) from spine.audit_log
		where action = 'request_rejected' and event_id is null and details->>'status' = $1`
	audited := func(c require.TestingT, status string) (requests, steps int) {
		require.NoError(c, s.db.QueryRow(t.Context(), counted, status).Scan(&requests, &steps))
		return requests, steps
	}
	bad, steps := audited(t, "400")
	unknown, _ := audited(t, "404")
	for range 50 {
		require.Equal(t, http.StatusBadRequest, s.post(t, "{").code)
	}
	require.Equal(t, http.StatusNotFound, s.request(t, http.MethodPost, "/webhook/nosuch", "{}").code)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		now, _ := audited(c, "400")
		require.GreaterOrEqual(c, now, bad+50)
		now, _ = audited(c, "404")
		require.Greater(c, now, unknown)
	}, patience, 100*time.Millisecond)
	_, now := audited(t, "400")
	require.LessOrEqual(t, now-steps, 40, "summaries, not one row each")
	require.True(
		t,
		value[bool](t, s.db, `select bool_and(success = 'failure' and details ? 'cause') from spine.audit_log
		where action = 'request_rejected' and event_id is null`),
	)
}

func contractAuditVocabulary(t *testing.T, s *target) {
	id := newID("vocabulary")
	s.accept(t, id, `{}`)
	s.awaitDone(t, id)
	require.Empty(t, value[[]string](t, s.db, `
		select coalesce(array_agg(distinct action || ' ' || success), '{}') from spine.audit_log
		where success <> case
			when action in ('processing_attempt_started', 'retry_scheduled') then 'pending'
			when action = 'conflict_detected' or action like '%\_failed%' or action like '%\_rejected' then 'failure'
			else 'success' end`))
	require.True(
		t,
		value[bool](
			t,
			s.db,
			"select bool_and(jsonb_typeof(details::jsonb) = 'object') from spine.audit_log where event_id = $1",
			id,
		),
	)
}

// contractSQL runs the statements of the contract as they stand.
func contractSQL(t *testing.T, s *target) {
	id := newID("sql")
	s.accept(t, id, `{"user_id":123}`)
	for _, statement := range []string{
		"SELECT event_id, event_type, created_at FROM events",
		"SELECT event_id, action, success, timestamp FROM audit_log ORDER BY timestamp DESC LIMIT 20",
		"SELECT event_id, status, attempt_count, last_attempt_at FROM processing_state",
		"SELECT event_id, source, event_type, occurred_at, payload, payload_hash, created_at FROM events",
		"SELECT event_id, source, destination, status, attempt_count, next_attempt_at, last_attempt_at, " +
			"completed_at, error_message, created_at, updated_at FROM processing_state",
		"SELECT timestamp, event_id, source, action, details, success FROM audit_log ORDER BY timestamp, id LIMIT 1",
		"SELECT * FROM processing_state WHERE event = id_of('" + id + "')",
		"SELECT * FROM trace('" + id + "')",
		"SELECT * FROM event('" + id + "')",
	} {
		rows, err := s.db.Query(t.Context(), statement)
		require.NoError(t, err, statement)
		require.True(t, rows.Next(), statement)
		rows.Close()
		require.NoError(t, rows.Err(), statement)
	}

	sqlState := func(statement string) string {
		_, err := s.db.Exec(t.Context(), statement)
		var refused *pgconn.PgError
		require.ErrorAs(t, err, &refused, statement)
		return refused.Code
	}
	insert := "INSERT INTO processing_state (event_id, status, attempt_count) VALUES ('%s','pending',0)"
	require.Equal(t, "23505", sqlState(fmt.Sprintf(insert, id)))
	require.Equal(t, "23503", sqlState(fmt.Sprintf(insert, newID("nowhere"))))

	s.awaitDone(t, id)
	execute(t, s.db, "DELETE FROM processing_state WHERE event_id = $1", id)
	execute(t, s.db, fmt.Sprintf(insert, id))
	s.awaitDone(t, id)
	require.Contains(t, s.actions(t, id), "event_queued")

	require.False(t, value[bool](t, s.db, "select exists (select from pg_extension where extname <> 'plpgsql')"))
	for _, table := range []string{"events", "processing_state", "audit_log"} {
		require.Equal(
			t,
			"spine",
			value[string](
				t,
				s.db,
				"select relnamespace::regnamespace::text from pg_class where oid = to_regclass($1)",
				table,
			),
		)
	}
}

// awaitDone waits until an event is completed or dead. The mock API may fail it every time.
func (s *target) awaitDone(t *testing.T, id string) {
	t.Helper()
	await(t, s.db, true, "select status in ('completed', 'dead') from spine.processing_state where event_id = $1", id)
}

func contractLookups(t *testing.T, s *target) {
	refusal := func(call string, args ...any) *pgconn.PgError {
		_, err := s.db.Exec(t.Context(), "select "+call, args...)
		var refused *pgconn.PgError
		require.ErrorAs(t, err, &refused, call)
		return refused
	}
	s.accept(t, newID("first"), `{}`)
	never := newID("never")
	for _, call := range []string{"spine.trace($1)", "spine.event($1)", "spine.id_of($1)", "spine.replay($1)"} {
		err := refusal(call, never)
		require.Equal(t, "P0002", err.Code)
		require.Contains(t, err.Message, never)
		require.Contains(t, err.Message, "never stored")
		require.Contains(t, err.Message, "default: last arrival 2")
	}

	shared := newID("shared")
	s.accept(t, shared, `{}`)
	execute(t, s.db, "insert into spine.sources (name) values ('contract-test') on conflict do nothing")
	require.Equal(
		t,
		"accepted",
		value[string](t, s.db, "select spine.ingest($1, 'a', '{}', _source => 'contract-test')", shared),
	)
	for _, call := range []string{"spine.trace($1)", "spine.event($1)", "spine.id_of($1)", "spine.replay($1)"} {
		err := refusal(call, shared)
		require.Equal(t, "21000", err.Code)
		require.Contains(t, err.Message, "contract-test, default")
	}
	require.NotEqual(t,
		value[int64](t, s.db, "select spine.id_of($1, 'default')", shared),
		value[int64](t, s.db, "select spine.id_of($1, 'contract-test')", shared))
	require.Equal(
		t,
		"contract-test",
		value[string](t, s.db, "select source from spine.event($1, 'contract-test')", shared),
	)
}

// contractChannels listens as psql does.
func contractChannels(t *testing.T, s *target) {
	pooled, err := s.db.Acquire(t.Context())
	require.NoError(t, err)
	conn := pooled.Hijack()
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	_, err = conn.Exec(t.Context(), "LISTEN spine_ready; LISTEN spine_activity")
	require.NoError(t, err)

	id := newID("channel")
	s.accept(t, id, `{}`)
	heard := map[string]bool{}
	waiting, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for !heard["spine_ready"] || !heard["spine_activity"] {
		n, err := conn.WaitForNotification(waiting)
		require.NoError(t, err, "heard %v", heard)
		var message struct {
			Count    *int
			V        int
			At       time.Time
			Counts   map[string]int
			EventIDs []string `json:"event_ids"`
		}
		require.NoError(t, json.Unmarshal([]byte(n.Payload), &message), n.Payload)
		require.LessOrEqual(t, len(message.EventIDs), 5)
		if n.Channel == "spine_ready" {
			require.NotNil(t, message.Count, n.Payload)
		} else {
			require.Equal(t, 1, message.V)
			require.NotZero(t, message.At)
			require.NotEmpty(t, message.Counts)
		}
		// On a busy Spine others may have the five places.
		if slices.Contains(message.EventIDs, id) || len(message.EventIDs) == 5 {
			heard[n.Channel] = true
		}
	}
}

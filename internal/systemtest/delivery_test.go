package systemtest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/service"
)

// do is a payload that asks a destination for something, attempt by attempt.
func do(what ...string) string {
	text, err := json.Marshal(map[string][]string{"do": what})
	if err != nil {
		panic(err) // strings are always fine
	}
	return string(text)
}

// TestTrail holds the trail of two failures and a success to the letter, with the default delays.
func TestTrail(t *testing.T) {
	t.Parallel()
	s, d := startWithDestination(t)
	id := newID("trail")
	s.accept(t, id, do("status=500", "status=503"))
	s.awaitStatus(t, id, "completed")

	trail := s.trail(t, id)
	var got []string
	for _, step := range trail {
		got = append(got, step.Action+" "+step.Success)
	}
	require.Equal(t, []string{
		"event_received success", "event_inserted success",
		"processing_attempt_started pending", "processing_attempt_failed failure", "retry_scheduled pending",
		"processing_attempt_started pending", "processing_attempt_failed failure", "retry_scheduled pending",
		"processing_attempt_started pending", "processing_succeeded success",
	}, got)

	for i, want := range map[int]struct {
		attempt, status float64
		answer          string
	}{3: {1, 500, "Internal Server Error"}, 6: {2, 503, "Service Unavailable"}, 9: {3, 200, "ok"}} {
		details := trail[i].Details
		require.InDelta(t, want.attempt, details["attempt"], 0)
		require.InDelta(t, want.status, details["status"], 0)
		require.Contains(t, details["answer"], want.answer)
		require.Contains(t, details, "duration_ms")
		require.NotEmpty(t, trail[i-1].Details["worker"])
	}
	arrivals := d.await(t, id, 3)
	for n, delay := range []time.Duration{time.Second, 2 * time.Second} {
		scheduled := trail[4+3*n]
		require.InDelta(
			t,
			delay.Milliseconds(),
			scheduled.Details["delay_ms"],
			float64(delay.Milliseconds())/10,
			"jitter is small",
		)
		require.GreaterOrEqual(t, scheduled.Details["delay_ms"], float64(delay.Milliseconds()), "and only ever adds")
		require.GreaterOrEqual(t, trail[5+3*n].Timestamp.Sub(scheduled.Timestamp), delay)
		require.GreaterOrEqual(
			t,
			arrivals[n+1].at.Sub(arrivals[n].at),
			delay-50*time.Millisecond,
			"but for the way of the answer",
		)
	}
	require.Equal(t, 3, value[int](t, s.db, "select attempt_count from spine.processing_state where event_id = $1", id))
}

// TestAnswers says what each answer of a destination does to the event.
func TestAnswers(t *testing.T) {
	t.Parallel()
	s, d := startWithDestination(t, "INITIAL_RETRY_DELAY=10ms", "MAX_RETRY_ATTEMPTS=3", "DELIVERY_TIMEOUT=3s")
	// A request that is cut on a connection that was used before is sent again within its attempt.
	d.server.Config.SetKeepAlivesEnabled(false)
	want := map[string]string{} // by id
	answer := map[string]string{}
	post := func(status string, payload string) {
		id := newID("answer")
		s.accept(t, id, payload)
		want[id], answer[id] = status, payload
	}
	for _, code := range []int{200, 201, 202, 204, 226, 299} {
		post("completed 1", do(fmt.Sprintf("status=%d", code)))
	}
	for _, code := range []int{300, 301, 302, 303, 304, 307, 308, 399, 400, 405, 410, 413, 414, 415, 422, 501} {
		post("dead 1", do(fmt.Sprintf("status=%d", code)))
	}
	for _, code := range []int{
		401,
		402,
		403,
		404,
		406,
		407,
		408,
		409,
		411,
		418,
		423,
		425,
		429,
		431,
		451,
		500,
		502,
		503,
		504,
		505,
		599,
	} {
		post("completed 2", do(fmt.Sprintf("status=%d", code)))
	}
	post("completed 2", do("cut=true"))
	post("completed 1", do("cut=body")) // the status has said it
	post("completed 3", do("hang=true", "cut=true"))
	post("dead 3", do("status=500", "cut=true", "hang=true"))
	post("dead 2", do("status=500", "status=400"))

	for id, status := range want {
		s.awaitDone(t, id)
		require.Equal(
			t,
			status,
			value[string](
				t,
				s.db,
				"select status || ' ' || attempt_count from spine.processing_state where event_id = $1",
				id,
			),
			answer[id],
		)
		failed, end := 0, "completed"
		if _, err := fmt.Sscan(strings.Fields(status)[1], &failed); strings.HasPrefix(status, "completed") {
			require.NoError(t, err)
			failed--
		} else {
			end = "dead"
		}
		require.Equal(t, attempts(failed, end), s.actions(t, id), answer[id])
		if end == "dead" {
			require.NotEmpty(
				t,
				value[string](t, s.db, "select error_message from spine.processing_state where event_id = $1", id),
			)
			require.Equal(t, 1, value[int](t, s.db, "select count(*) from spine.dead_letters where event_id = $1", id))
		}
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	var elsewhere, here int
	trap := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere++ }))
	t.Cleanup(trap.Close)
	redirecting := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		here++
		http.Redirect(w, r, trap.URL, http.StatusTemporaryRedirect)
	}))
	t.Cleanup(redirecting.Close)
	s := startService(t, both, databases.New(t), "DESTINATION_URL="+redirecting.URL)
	id := newID("redirect")
	s.accept(t, id, `{}`)
	s.awaitStatus(t, id, "dead")
	require.Equal(t, 1, here)
	require.Zero(t, elsewhere)
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	s, d := startWithDestination(t, "INITIAL_RETRY_DELAY=1s")
	between := map[string][2]float64{ // milliseconds, with the jitter of a tenth
		"status=503&retry_after=2":    {2000, 2200},
		"status=429&retry_after=3s":   {2000, 3300}, // is sent as a date, which has whole seconds
		"status=503&retry_after=0":    {1000, 1100},
		"status=503":                  {1000, 1100},
		"status=503&retry_after=2h":   {3_600_000, 3_960_000},
		"status=503&retry_after=7200": {3_600_000, 3_960_000},
	}
	ids := map[string]string{}
	for what := range between {
		ids[what] = newID("after")
		s.accept(t, ids[what], do(what))
	}
	for what, limits := range between {
		await(
			t,
			s.db,
			1,
			"select count(*) from spine.audit_log where event_id = $1 and action = 'retry_scheduled'",
			ids[what],
		)
		trail := s.trail(t, ids[what])
		delay := trail[4].Details["delay_ms"].(float64)
		require.GreaterOrEqual(t, delay, limits[0], what)
		require.LessOrEqual(t, delay, limits[1], what)
		if delay < 60_000 {
			arrivals := d.await(t, ids[what], 2)
			require.GreaterOrEqual(
				t,
				arrivals[1].at.Sub(arrivals[0].at),
				time.Duration(limits[0]-50)*time.Millisecond,
				what,
			)
		}
	}
}

func TestDelivery(t *testing.T) {
	t.Parallel()
	key := []byte("0123456789abcdef0123456789abcdef")
	s, d := startWithDestination(t, "DESTINATION_SECRET=whsec_"+base64.StdEncoding.EncodeToString(key))

	t.Run("body and headers", func(t *testing.T) {
		id := newID("delivery")
		payload := "{\n  \"n\" : 1.10, \"e\":1E2,\"z\": -0, \"big\":12345678901234567890123,\t" +
			"\"s\":\"\\u00e9\\/<>&\", \"b\":1, \"a\":{ } }"
		began := time.Now()
		s.accept(t, id, payload)
		got := d.await(t, id, 1)[0]
		var body struct {
			EventID    string          `json:"event_id"`
			Source     string          `json:"source"`
			EventType  string          `json:"event_type"`
			OccurredAt time.Time       `json:"occurred_at"`
			Payload    json.RawMessage `json:"payload"`
		}
		require.NoError(t, json.Unmarshal(got.body, &body))
		require.Equal(t, id, body.EventID)
		require.Equal(t, "default", body.Source)
		require.Equal(t, "user.created", body.EventType)
		require.Equal(t, time.Date(2024, 1, 30, 12, 0, 0, 0, time.UTC), body.OccurredAt)
		require.Contains(t, string(got.body), `"payload":`+payload, "the exact text")
		require.NotContains(t, string(got.body), "payload_base64")

		require.Equal(t, "application/json", got.header.Get("Content-Type"))
		require.Equal(t, id, got.header.Get("webhook-id"))
		stamp, err := strconv.ParseInt(got.header.Get("webhook-timestamp"), 10, 64)
		require.NoError(t, err)
		require.WithinRange(t, time.Unix(stamp, 0), began.Add(-2*time.Second), time.Now().Add(time.Second))
		require.Equal(t, signature(key, got), got.header.Get("webhook-signature"))
	})

	t.Run("what Postgres cannot query", func(t *testing.T) {
		for _, payload := range []string{`{"a":"\u0000"}`, `{"a":"\ud800"}`, "{\"a\":\"\xff\"}", `{"a":1,"a":2}`} {
			id := newID("bytes")
			s.accept(t, id, payload)
			got := d.await(t, id, 1)[0]
			var body struct {
				Payload json.RawMessage `json:"payload"`
				Base64  []byte          `json:"payload_base64"`
			}
			require.NoError(t, json.Unmarshal(got.body, &body))
			require.Equal(t, "null", string(body.Payload))
			require.Equal(t, payload, string(body.Base64))
			require.Equal(t, signature(key, got), got.header.Get("webhook-signature"))
		}
	})

	t.Run("ids", func(t *testing.T) {
		id := newID("é /%\"🧾")
		encoded := "%C3%A9%20%2F%25\"%F0%9F%A7%BE" + strings.TrimPrefix(id, "é /%\"🧾")
		s.accept(t, id, `{}`)
		got := d.await(t, encoded, 1)[0]
		require.Contains(t, string(got.body), `"event_id":"é /%\"🧾`)
		require.Equal(t, signature(key, got), got.header.Get("webhook-signature"))
		execute(t, s.db, "insert into spine.sources (name) values ('other')")
		require.Equal(
			t,
			"accepted",
			value[string](t, s.db, "select spine.ingest('an-id', 'a', '{}', _source => 'other')"),
		)
		require.Contains(t, string(d.await(t, "other/an-id", 1)[0].body), `"source":"other"`)
	})
}

// signature is the signature that a delivery should carry (Standard Webhooks).
func signature(key []byte, d delivery) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(d.header.Get("webhook-id") + "." + d.header.Get("webhook-timestamp") + "."))
	mac.Write(d.body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

func TestUnsignedWithoutSecret(t *testing.T) {
	t.Parallel()
	s, d := startWithDestination(t)
	id := newID("unsigned")
	s.accept(t, id, `{}`)
	require.Empty(t, d.await(t, id, 1)[0].header.Values("webhook-signature"))
}

func TestStoreOnly(t *testing.T) {
	t.Parallel()
	d := newDestination(t)
	s := startService(t, both, databases.New(t), "DESTINATION_URL=none", "MOCK_API_URL="+d.url)
	id := newID("none")
	s.accept(t, id, `{}`)
	// If there were a worker, it would be awake by now: its wake-up leaves with the commit, and the answer came after
	// that.
	require.Equal(
		t,
		"pending 0",
		value[string](
			t,
			s.db,
			"select status || ' ' || attempt_count from spine.processing_state where event_id = $1",
			id,
		),
	)
	require.Equal(t, []string{"event_received", "event_inserted"}, s.actions(t, id))
	require.Zero(t, d.count(id))
}

func TestReplay(t *testing.T) {
	t.Parallel()
	s, d := startWithDestination(t, "MAX_RETRY_ATTEMPTS=2", "INITIAL_RETRY_DELAY=10ms")
	replay := func(id string) int64 { return value[int64](t, s.db, "select spine.replay($1)", id) }

	dead := newID("dead")
	s.accept(t, dead, do("status=500", "status=500", "hold"))
	s.awaitStatus(t, dead, "dead")
	require.EqualValues(t, 1, replay(dead))
	d.await(t, dead, 3)
	require.Zero(t, replay(dead), "what is processing is not replayed")
	d.release()
	s.awaitStatus(t, dead, "completed")
	require.Equal(
		t,
		append(attempts(2, "dead"), "event_replayed", "processing_attempt_started", "processing_succeeded"),
		s.actions(t, dead),
	)
	require.Equal(
		t,
		1,
		value[int](t, s.db, "select attempt_count from spine.processing_state where event_id = $1", dead),
		"counted anew",
	)

	require.EqualValues(t, 1, replay(dead), "what is completed is")
	d.await(t, dead, 4)
	s.awaitStatus(t, dead, "completed")

	paused := newID("pending")
	execute(t, s.db, "select spine.pause()")
	s.accept(t, paused, `{}`)
	require.Zero(t, replay(paused), "what is pending is not")
	require.Zero(t, d.count(paused))
	execute(t, s.db, "select spine.resume()")
	s.awaitStatus(t, paused, "completed")
	require.Len(t, d.await(t, paused, 1), 1)
}

// A replay over HTTP is delivered at once too, by the worker of the same process. It needs no sweep.
func TestReplayOverHTTPWakesTheWorker(t *testing.T) {
	t.Parallel()
	s, d := startWithDestination(t)
	id := newID("again")
	s.accept(t, id, `{}`)
	s.awaitStatus(t, id, "completed")
	for n := range 5 {
		r := s.request(t, http.MethodPost, "/api/events/"+id+"/replay", "")
		require.Equal(t, http.StatusOK, r.code)
		require.JSONEq(t, `{"replayed":1}`, string(r.body))
		d.await(t, id, n+2)
		s.awaitStatus(t, id, "completed")
	}
	require.Less(
		t,
		s.metric(t, "spine_worker_swept_total"),
		5.0,
		"none of the five, unless the machine stalls between a commit and its wake-up",
	)
}

// TestStatusByHand changes the status of a row that a worker holds. The hand wins.
func TestStatusByHand(t *testing.T) {
	t.Parallel()
	s, d := startWithDestination(t)
	for status, more := range map[string][]string{
		"dead":      nil,
		"completed": nil,
		"failed":    {"processing_attempt_started", "processing_succeeded"}, // and is tried again at once
		"pending":   {"processing_attempt_started", "processing_succeeded"},
	} {
		t.Run(status, func(t *testing.T) {
			id := newID("hand")
			s.accept(t, id, do("hold", "status=200"))
			d.await(t, id, 1)
			execute(t, s.db, "update spine.processing_state set status = $2 where event_id = $1", id, status)
			want := status
			if more != nil {
				want = "completed"
				s.awaitStatus(t, id, "completed")
				require.Len(t, d.await(t, id, 2), 2)
			}
			d.release()
			await(t, s.db, 1, "select count(*) from spine.audit_log where event_id = $1 and action = 'lease_lost'", id)
			require.Equal(
				t,
				want,
				value[string](t, s.db, "select status from spine.processing_state where event_id = $1", id),
			)
			require.Equal(
				t,
				append(
					append(
						[]string{"event_received", "event_inserted", "processing_attempt_started", "status_changed"},
						more...),
					"lease_lost",
				),
				s.actions(t, id),
			)
		})
	}
	// The metric follows the commit.
	require.Eventually(
		t,
		func() bool { return s.metric(t, "spine_worker_leases_lost_total") == 4 },
		patience,
		10*time.Millisecond,
	)
}

// busySecond is a second, and the delay that a busy machine may add.
const busySecond = 20 * time.Second

// TestClaimedWithinASecond commits rows in ways that no wake-up and no low
// watermark can foresee.
func TestClaimedWithinASecond(t *testing.T) {
	t.Parallel()
	s, _ := startWithDestination(t)
	first := newID("first")
	s.accept(t, first, `{}`)
	s.awaitStatus(t, first, "completed")
	claimed := func(t *testing.T, id string, committed time.Time) {
		t.Helper()
		s.awaitStatus(t, id, "completed")
		claimedAt := value[time.Time](
			t,
			s.db,
			"select last_attempt_at from spine.processing_state where event_id = $1",
			id,
		)
		require.Less(t, claimedAt.Sub(committed), busySecond)
	}

	t.Run("an ingest that commits long after its now", func(t *testing.T) {
		id, later := newID("late"), newID("later")
		tx, err := s.db.Begin(t.Context())
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), "select spine.ingest($1, 'a', '{}')", id)
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), "select pg_sleep(3)")
		require.NoError(t, err)
		// Meanwhile the watermark moves on.
		s.accept(t, later, `{}`)
		s.awaitStatus(t, later, "completed")
		var committed time.Time
		require.NoError(t, tx.QueryRow(t.Context(), "select clock_timestamp()").Scan(&committed))
		require.NoError(t, tx.Commit(t.Context()))
		claimed(t, id, committed)
	})

	t.Run("a row set to the infinite past", func(t *testing.T) {
		id := newID("infinity")
		s.accept(t, id, do("status=503&retry_after=3600"))
		s.awaitStatus(t, id, "failed")
		now := value[time.Time](
			t,
			s.db,
			"update spine.processing_state set next_attempt_at = '-infinity' where event_id = $1 returning clock_timestamp()",
			id,
		)
		claimed(t, id, now)
	})

	t.Run("that, and without a trigger to tell of it", func(t *testing.T) {
		id := newID("untold")
		s.accept(t, id, do("status=503&retry_after=3600"))
		s.awaitStatus(t, id, "failed")
		execute(t, s.db, "alter table spine.processing_state disable trigger user")
		now := value[time.Time](
			t,
			s.db,
			"update spine.processing_state set next_attempt_at = '-infinity' where event_id = $1 returning clock_timestamp()",
			id,
		)
		claimed(t, id, now)
		execute(t, s.db, "alter table spine.processing_state enable trigger user")
	})

	t.Run("rows inserted by hand", func(t *testing.T) {
		id := newID("hand")
		s.accept(t, id, `{}`)
		s.awaitStatus(t, id, "completed")
		execute(t, s.db, "delete from spine.processing_state where event_id = $1", id)
		now := value[time.Time](
			t,
			s.db,
			`insert into spine.processing_state (event_id, status, attempt_count)
			values ($1, 'pending', 0)
			returning clock_timestamp()`,
			id,
		)
		claimed(t, id, now)
	})
}

// TestPollOnly takes the wake-up away: the sweep finds events.
func TestPollOnly(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	d := newDestination(t)
	api := startService(t, service.Roles{API: true}, database)
	worker := startService(t, service.Roles{Worker: true}, database, "MOCK_API_URL="+d.url)
	first := newID("first")
	api.accept(t, first, `{}`)
	api.awaitStatus(t, first, "completed")

	execute(t, api.db, "drop trigger processing_state_inserted on spine.processing_state")
	ids := make([]string, 20)
	for i := range ids {
		ids[i] = newID("polled")
		api.accept(t, ids[i], `{}`)
		if i < 5 { // what comes right after a look waits for the next one
			api.awaitStatus(t, ids[i], "completed")
		}
	}
	for _, id := range ids {
		api.awaitStatus(t, id, "completed")
	}
	require.Less(t, value[float64](t, api.db, `
		select extract(epoch from max(p.last_attempt_at - e.created_at))::float8
		from spine.processing_state p
		join spine.events e on e.id = p.event
		where p.event_id = any($1)`, ids), busySecond.Seconds())
	require.NotZero(t, worker.metric(t, "spine_worker_swept_total"), "only looking has found them")
}

// TestSearchPath holds that the functions and triggers work under any.
func TestSearchPath(t *testing.T) {
	wholeRun(t)
	t.Parallel()
	database := databases.New(t)
	d := newDestination(t)
	for _, path := range []string{"spine", "public", "pg_catalog", `""`} {
		t.Run(path, func(t *testing.T) {
			s := startService(
				t,
				both,
				as(t, database, "search_path", path),
				"MOCK_API_URL="+d.url,
				"INITIAL_RETRY_DELAY=10ms",
			)
			id := newID("path")
			s.accept(t, id, do("status=500"))
			s.awaitStatus(t, id, "completed")
			psql := open(t, database, map[string]string{"search_path": path})
			require.EqualValues(t, 1, value[int64](t, psql, "select spine.replay($1)", id))
			d.await(t, id, 3)
			s.awaitStatus(t, id, "completed")
			require.Len(t, s.trail(t, id), 10)
			for _, call := range []string{
				"spine.trace($1)",
				"spine.event($1)",
				"spine.id_of($1)",
				"(select spine.pause()) p, (select spine.resume()) r where $1 <> ''",
				"spine.depth where $1 <> 'a'",
				"spine.stuck where $1 <> 'a'",
				"spine.dead_letters where $1 <> 'a'",
				"spine.replay_dead() where $1 <> 'a'",
			} {
				rows, err := psql.Query(t.Context(), "select * from "+call, id)
				require.NoError(t, err)
				_, err = pgx.CollectRows(rows, pgx.RowToMap)
				require.NoError(t, err, call)
			}
			require.Equal(t, "accepted", value[string](t, psql, "select spine.ingest($1, 'a', '{}')", newID("sql")))
		})
	}
}

package systemtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/store"
)

// question is a planted case: what an operator finds, and what each way to ask must answer.
type question struct {
	fault string // its number in the table of faults
	name  string
	// plant makes the case, and returns the id that the operator asks for and what each answer must say: patterns.
	plant func(t *testing.T, w *ward) (eventID, source string, says []string)
	// never are patterns that no answer may hold.
	never []string
}

// ward is a Spine in which cases are planted. Nothing delivers, so that what waits goes on waiting.
type ward struct {
	*target
	database string
	c        commandLine
	stripe   *provider
}

// settled makes one attempt to deliver an event, with this outcome.
func (w *ward) settled(t *testing.T, id, outcome, fault, details string) {
	t.Helper()
	execute(t, w.db, "update spine.processing_state set next_attempt_at = '-infinity' where event_id = $1", id)
	execute(t, w.db, "select spine.claim('default', 1, '1 minute', 'worker-1')")
	execute(t, w.db, `select spine.settle(array[event], array[destination], array[lease_token], array[$2],
		array['1 h'::interval], array[nullif($3, '')], array[$4]) from spine.processing_state where event_id = $1`,
		id, outcome, fault, details)
}

// stored stores events that fall due in an hour.
func (w *ward) stored(t *testing.T, ids ...string) {
	t.Helper()
	for _, id := range ids {
		w.accept(t, id, `{"a":1}`)
		execute(
			t,
			w.db,
			"update spine.processing_state set next_attempt_at = now() + interval '1 h' where event_id = $1",
			id,
		)
	}
}

// answers asks for an event in each way: spine trace, psql's explain, trace and event, and the API, whose sentences the
// page shows too.
func (w *ward) answers(t *testing.T, eventID, source string) map[string]string {
	t.Helper()
	all := map[string]string{}
	args := []string{"trace", eventID}
	path := "/api/events/" + url.PathEscape(eventID)
	if source != "" {
		args = append(args, "--source", source)
		path += "?source=" + source
	}
	_, out, errs := w.c.run(args...)
	all["spine trace"] = out + errs
	all["select says from explain()"] = value[string](
		t, w.db, "select string_agg(says, e'\n') from spine.explain($1, nullif($2, ''))", eventID, source)
	for _, function := range []string{"trace", "event"} {
		all["select * from "+function+"()"] = w.psql(t, function, eventID, source)
	}
	var body struct {
		Detail      string
		Explanation []struct{ Says string }
	}
	require.NoError(t, json.Unmarshal(w.request(t, http.MethodGet, path, "").body, &body))
	said := body.Detail
	for _, s := range body.Explanation {
		said += "\n" + s.Says
	}
	all["GET "+path] = said
	return all
}

// psql is what psql shows of a call: notices, or an error with its detail.
func (w *ward) psql(t *testing.T, function, eventID, source string) string {
	t.Helper()
	config, err := pgx.ParseConfig(w.database)
	require.NoError(t, err)
	var said []string
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { said = append(said, n.Message) }
	conn, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	defer func() { _ = conn.Close(t.Context()) }()
	_, err = conn.Exec(t.Context(), "select * from spine."+function+"($1, nullif($2, ''))", eventID, source)
	if failed, ok := errors.AsType[*pgconn.PgError](err); ok {
		said = append(said, failed.Message, failed.Detail)
	}
	return strings.Join(said, "\n")
}

// questions are the planted cases that concern an event, and more of their kinds. TestNumbersAgree has F10, and
// TestMetricsTellWhatAnOperatorAsks F11 and F14.
func questions() []question {
	near := func(name, stored, asked, says string) question {
		return question{
			fault: "F1", name: name,
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				w.stored(t, stored)
				return asked, "", []string{`event "` + asked + `" was never stored`, says}
			},
		}
	}
	return []question{
		near("the letter O for a zero", "77O1", "7701",
			`"77O1" of source "default" looks like it and is stored, pending(?s:.*)"77O1": attempt 1 is due`),
		near("case, and l for 1, in several places", "Evt_1l9-Oo", "evt_119-00", `"Evt_1l9-Oo" .*looks like it`),
		near("a digit missing", "order-123456", "order-12356", `"order-123456" .*differs in one place`),
		near("two letters swapped", "invoice-ab9", "invoice-ba9", `"invoice-ab9" .*differs in one place`),
		near("the beginning alone", "9f8e7d6c-0001-4", "9f8e7d6c", `"9f8e7d6c-0001-4" .*begins with it`),
		{
			fault: "F1", name: "in another source, and as destinations see it",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				execute(t, w.db, "select spine.put_source('shop', '{\"preset\":\"none\",\"id\":[\"{body:/id}\"]}')")
				execute(t, w.db, "select spine.ingest('moved', 'a', '{}', _source => 'shop')")
				execute(
					t,
					w.db,
					"update spine.processing_state set next_attempt_at = 'infinity' where event_id = 'moved'",
				)
				for _, answer := range w.answers(t, "shop/moved", "") {
					require.Contains(t, answer, `Event "moved" of source "shop" is stored`)
				}
				return "moved", "default", []string{
					`was never stored in source "default"`, `Source "shop" has an event with this id`,
				}
			},
		},
		{
			fault: "F2", name: "rejected for its signature",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				r := w.request(t, http.MethodPost, "/webhook/stripe", `{"id":"evt_lost1","object":"event"}`)
				require.Equal(t, http.StatusUnauthorized, r.code)
				await(t, w.db, 1, "select count(*) from spine.rejected_like('evt_lost1')")
				return "evt_lost1", "", []string{
					"was never stored",
					`Request \d+ of source "stripe" at \S+ has this id in it and was rejected: 401 signature_missing`,
				}
			},
		},
		{
			fault: "F2", name: "rejected, and asked for with a look-alike",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				r := w.request(t, http.MethodPost, "/webhook/stripe", `{"a":{"b":["x","evt_O0l"]}}`)
				require.Equal(t, http.StatusUnauthorized, r.code)
				await(t, w.db, 1, "select count(*) from spine.rejected_like('EVT_001')")
				return "EVT_001", "", []string{"401 signature_missing"}
			},
		},
		{
			fault: "F3", name: "signed too long ago",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				late := w.stripe.sample(1, time.Now().Add(-time.Hour))
				require.Equal(t, http.StatusUnauthorized, w.deliver(t, "stripe", late).code)
				var sent struct{ ID string }
				require.NoError(t, json.Unmarshal(late.Wire, &sent))
				await(t, w.db, 1, "select count(*) from spine.rejected_like($1)", sent.ID)
				return sent.ID, "", []string{
					`401 timestamp_stale, The request was signed 1 h 0 min before it arrived, and the tolerance is 5 min`,
				}
			},
		},
		{
			fault: "F4", name: "sent while the source was disabled",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				w.c.ok("source", "disable", "stripe", "--reason", "moving")
				var r reply
				require.Eventually(t, func() bool {
					r = w.request(t, http.MethodPost, "/webhook/stripe", `{"id":"evt_lost4","object":"event"}`)
					return r.code == http.StatusServiceUnavailable
				}, patience, 50*time.Millisecond)
				w.c.ok("source", "enable", "stripe")
				w.awaitSource(t, "stripe")
				await(t, w.db, true, `select exists (
					select from spine.rejected_like('evt_lost4') r where r.cause = 'source_disabled')`)
				return "evt_lost4", "", []string{"was never stored", "503 source_disabled"}
			},
		},
		{
			fault: "F4", name: "the body was too large",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				large := `{"id":"evt_large","x":"` + strings.Repeat("x", 2<<20) + `"}`
				require.Equal(t, http.StatusRequestEntityTooLarge,
					w.request(t, http.MethodPost, "/webhook/stripe", large).code)
				await(t, w.db, 1, "select count(*) from spine.rejected_like('evt_large')")
				return "evt_large", "", []string{"was never stored", "413 too_large"}
			},
		},
		{
			fault: "F5", name: "locked by a transaction in psql while claims are paused",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				w.accept(t, "held", `{"a":1}`)
				execute(t, w.db, `update spine.processing_state set next_attempt_at = now() - interval '1 h'
					where event_id = 'held'`)
				pid := w.locks(t, "select from spine.processing_state where event_id = 'held' for update")
				w.c.ok("pause", "--reason", "deploying billing")
				t.Cleanup(func() {
					_, err := w.db.Exec(context.WithoutCancel(t.Context()), "select spine.resume()")
					require.NoError(t, err)
				})
				return "held", "", []string{
					`attempt 1 is due`,
					`claims are paused since \S+ by \S+ for spine pause, because: deploying billing`,
					`no worker seems to be connected: start spine worker, or set DESTINATION_URL`,
					fmt.Sprintf(`the row is locked by pid %d of role .+ since \d{4}-`, pid),
				}
			},
		},
		{
			fault: "F5", name: "locked by several, one of whom only reads",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				w.accept(t, "shared", `{"a":1}`)
				first := w.locks(t, "select from spine.processing_state where event_id = 'shared' for share")
				second := w.locks(t, "select from spine.processing_state where event_id = 'shared' for share")
				return "shared", "", []string{
					fmt.Sprintf(
						"the row is locked by pid %d ",
						first,
					),
					fmt.Sprintf("the row is locked by pid %d ", second),
				}
			},
		},
		{
			fault: "F5", name: "changed by hand and not yet committed",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				w.accept(t, "half-way", `{"a":1}`)
				pid := w.locks(t, "update spine.processing_state set status = 'dead' where event_id = 'half-way'")
				return "half-way", "", []string{fmt.Sprintf("the row is locked by pid %d ", pid)}
			},
		},
		{
			fault: "F6", name: "a retry due in an hour because of Retry-After",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				w.accept(t, "asked", `{"a":1}`)
				w.settled(t, "asked", "failed", "HTTP 429", `{"status":429,"retry_after_ms":3600000}`)
				return "asked", "", []string{
					`attempt 2 is due \S+ \(in .+\): HTTP 429`,
					`because the destination asked for that \(Retry-After\)`,
				}
			},
		},
		{
			fault: "F6", name: "a retry due in an hour, and a time set by hand",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				w.accept(t, "later", `{"a":1}`)
				w.settled(t, "later", "failed", "HTTP 503", `{"status":503}`)
				w.stored(t, "put-off")
				for _, answer := range w.answers(t, "put-off", "") {
					require.Contains(t, answer, "somebody set next_attempt_at by hand")
				}
				return "later", "", []string{
					`attempt 2 is due \S+ \(in .+\): HTTP 503`, `it waits for 1h, as the retry policy says`,
				}
			},
		},
		{
			fault: "F7", name: "set by hand, with a reason",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				w.stored(t, "by-hand")
				require.NoError(t, pgx.BeginFunc(t.Context(), w.db, func(tx pgx.Tx) error {
					_, err := tx.Exec(t.Context(), "select set_config('spine.reason', 'a test order', true)")
					require.NoError(t, err)
					_, err = tx.Exec(
						t.Context(),
						"update spine.processing_state set status = 'dead' where event_id = 'by-hand'",
					)
					return err
				}))
				return "by-hand", "", []string{
					`dead since \d{4}-`,
					`the status was set from pending to dead by hand by \S+ at \d{4}-\S+, because: a test order`,
				}
			},
		},
		{
			fault: "F7", name: "the source is disabled",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				execute(t, w.db, `select spine.put_source('closed', '{"preset":"token",
					"verify":[{"scheme":"token","header":"X-Shop"}],"secrets":["env:SHOP_WEBHOOK_SECRET"]}')`)
				w.c.ok("source", "disable", "closed", "--reason", "moved to the other cluster")
				return "not-here", "closed", []string{
					`Source "closed" is disabled since \S+ by \S+ for spine source disable, because: moved to the other cluster`,
				}
			},
		},
		{
			fault: "F8", name: "what a conflict differs in",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				w.accept(t, "twice", `{"amount":1,"note":"x","gone":true,"list":[1,2]}`)
				require.Equal(
					t,
					"conflict",
					w.post(t, webhook("twice", `{"amount":2,"note":null,"list":[1,3]}`)).status(),
				)
				return "twice", "", []string{
					`another payload came once, first \S+; it differs at /amount: 1 -> 2, /gone: true -> absent, ` +
						`/list/1: 2 -> 3, /note: "x" -> null; not delivered`,
				}
			},
		},
		{
			fault: "F8", name: "more than ten places, and what was accepted",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				members := func(value string) string {
					var all []string
					for c := 'a'; c < 'a'+12; c++ {
						all = append(all, fmt.Sprintf("%q:%s", string(c), value))
					}
					return "{" + strings.Join(all, ",") + "}"
				}
				w.accept(t, "many", members("1"))
				require.Equal(t, "conflict", w.post(t, webhook("many", members("2"))).status())
				accepted := value[string](t, w.db, "select spine.accept_conflict('many')")
				return "many", "", []string{
					`/j: 1 -> 2 and 2 more places; accepted as "` + regexp.QuoteMeta(accepted) + `"`,
				}
			},
			never: []string{"/k: 1"},
		},
		{
			fault: "F13", name: "an update that was not delivered",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				w.accept(t, "updated", `{"a":1}`)
				require.Equal(t, "conflict", w.post(t, webhook("updated", `{"a":2}`)).status())
				w.settled(t, "updated", "completed", "", `{"status":200}`)
				return "updated", "", []string{
					`completed \S+, \S+ after it was queued, but another payload under this id was not`,
				}
			},
			never: []string{"nothing more to do"},
		},
		{
			fault: "G11", name: "attempts since the replay, and in all",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				w.accept(t, "again", `{"a":1}`)
				for _, outcome := range []string{"failed", "dead"} {
					w.settled(t, "again", outcome, "HTTP 503", `{"status":503}`)
				}
				w.c.ok("replay", "again")
				w.settled(t, "again", "completed", "", `{"status":200}`)
				return "again", "", []string{`1 attempt since the replay, 3 in all`}
			},
		},
		{
			fault: "F15", name: "removed by retention",
			plant: func(t *testing.T, w *ward) (string, string, []string) {
				w.accept(t, "old", `{"a":1}`)
				w.settled(t, "old", "completed", "", `{"status":200}`)
				require.Positive(t, value[int](
					t,
					w.db,
					"select deleted from spine.expire_events((select updated_at from spine.processing_state where event_id = 'old') "+
						"+ interval '1 us')",
				))
				return "old", "", []string{`event "old" is not stored, or retention removed it`}
			},
			never: []string{"was never stored"},
		},
	}
}

// locks runs a statement in a transaction that stays open until the test ends, and returns the session's pid.
func (w *ward) locks(t *testing.T, statement string) (pid int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.database)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	_, err = conn.Exec(t.Context(), "set application_name = 'psql'")
	require.NoError(t, err)
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), statement)
	require.NoError(t, err)
	require.NoError(t, tx.QueryRow(t.Context(), "select pg_backend_pid()").Scan(&pid))
	return pid
}

// An operator asks once and has the answer: spine trace, psql, the API and with it the page tell the same causes.
func TestPlantedCases(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	w := &ward{
		target: newTarget(t, runService(t, service.Roles{API: true}, database), database), database: database,
		c: commandLine{t: t, env: []string{"DATABASE_URL=" + database}},
	}
	w.stripe = newProvider(t, w.target, "stripe", nil)
	for _, q := range questions() {
		t.Run(q.fault+" "+q.name, func(t *testing.T) {
			eventID, source, says := q.plant(t, w)
			for way, answer := range w.answers(t, eventID, source) {
				for _, pattern := range says {
					require.Regexp(t, pattern, answer, way)
				}
				for _, pattern := range q.never {
					require.NotRegexp(t, pattern, answer, way)
				}
			}
		})
	}
}

// F5: since when is told to those who may see it, and the others learn which right they lack.
func TestALockIsToldWithoutRights(t *testing.T) {
	t.Parallel()
	server := postgrestest.Server(t)
	_, err := store.Migrate(t.Context(), server.URL(), nil)
	require.NoError(t, err)
	db := open(t, server.URL(), nil)
	ingested(t, db, "default", "held")
	superuser, err := url.Parse(server.SuperuserURL())
	require.NoError(t, err)
	superuser.Path = "/" + db.Config().ConnConfig.Database
	w := &ward{database: superuser.String()}
	pid := w.locks(t, "select from spine.processing_state where event_id = 'held' for update")
	says := value[string](t, db, "select says from spine.explain('held') where topic = 'locked'")
	require.Regexp(t, fmt.Sprintf(`locked by pid %d of role \S+ .*not known \(grant pg_read_all_stats\)`, pid), says)

	require.Empty(t, value[string](t, db, "select coalesce(max(says), '') from spine.troubles()"))
	pid = w.locks(t, "lock table spine.events in share mode")
	says = value[string](t, db, "select says from spine.troubles() where topic = 'locked'")
	require.Regexp(t, fmt.Sprintf(`^the table events is locked \(ShareLock\) by pid %d of role .*not known`, pid), says)
}

// F10: one number has one source: the overview, status, and status --watch do not contradict one another.
func TestNumbersAgree(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	s := newTarget(t, runService(t, service.Roles{API: true}, database), database)
	c := commandLine{t: t, env: []string{"DATABASE_URL=" + database}}
	ingested(t, s.db, "default", "one", "two", "three")
	execute(t, s.db, `update spine.processing_state set
		next_attempt_at = now() - interval '20 min', updated_at = now() - interval '20 min',
		status = 'pending', lease_token = lease_token + 1 where event_id <> 'three'`)
	execute(t, s.db, `update spine.processing_state set
		next_attempt_at = now() - interval '25 min', updated_at = now() - interval '30 min', worker = 'gone',
		status = 'processing', attempt_count = 1, lease_token = lease_token + 1 where event_id = 'three'`)
	execute(t, s.db, "select spine.pause()")

	out := c.ok("status")
	require.Regexp(t, `oldest waiting +due for 25m`, out)
	require.Regexp(t, `worker +no worker seems to be connected: start spine worker`, out)
	require.Regexp(t, `STUCK +DUE +WHY\nthree +25m\d*s? ago +claims are paused`, out)
	var o struct {
		OldestReady float64 `json:"oldest_ready_seconds"`
		Depth       struct{ Rows []struct{ Count int } }
	}
	require.Eventually(t, func() bool {
		require.NoError(t, json.Unmarshal(s.request(t, http.MethodGet, "/api/overview", "").body, &o))
		return o.OldestReady > 1490 && o.OldestReady < 1700
	}, patience, 50*time.Millisecond)
	total := 0
	for _, r := range o.Depth.Rows {
		total += r.Count
	}
	require.Equal(t, 3, total)
	require.InDelta(t, 1500, value[float64](t, s.db, "select extract(epoch from spine.oldest_ready())::float8"), 200)
	watch := startLines(t, database, "status", "--watch")
	require.Regexp(t, `oldest_ready=25m`, watch.next(t))
	watch.stop()
}

// B4: an id that is not stored is answered from indexes, however large the rejected requests are that are kept, and
// also among very many ids.
func TestAMissingIdIsAnsweredFromIndexes(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	db := open(t, database, nil)
	execute(t, db, `insert into spine.rejected_requests
			(source, at, cause, status, detail, remote, method, target, headers, body, size)
		select 'default', now(), 'signature_wrong', 401, 'The signature does not match.', '192.0.2.1', 'POST', '/webhook',
			'{"X-Id":["h"]}', convert_to('{"id":"lost-' || n || '","x":"' || x || '"}', 'UTF8'), 1
		from generate_series(1, 150) n, (select string_agg(md5(m::text), '') x from generate_series(1, 6000) m) x`)
	execute(t, db, `insert into spine.events (event_id, source, event_type, occurred_at, payload, payload_hash)
		select md5(n::text), 'default', 'a', now(), '{}', '' from generate_series(1, 20000) n`)
	execute(t, db, "vacuum analyze spine.events, spine.rejected_requests")
	require.Greater(t, value[int](t, db, `
		select (pg_table_size('spine.rejected_requests') + pg_relation_size('spine.events')) / 8192`), 3000)
	answered := func(id string) (says string) {
		t.Helper()
		says = value[string](t, db, "select string_agg(x.says, e'\n') from spine.explain($1) x", id)
		var plan []struct {
			Plan struct {
				Hit  int `json:"Shared Hit Blocks"`
				Read int `json:"Shared Read Blocks"`
			}
		}
		require.NoError(t, db.QueryRow(t.Context(),
			"explain (analyze, buffers, format json) select spine.explain($1)", id).Scan(&plan))
		require.Positive(t, plan[0].Plan.Hit)
		require.Less(t, plan[0].Plan.Hit+plan[0].Plan.Read, 1500, id)
		return says
	}
	says := answered("NOPE")
	require.Contains(t, says, `event "NOPE" was never stored`)
	says = answered("LOST-7")
	require.Contains(t, says, "may have been it")
	stored := value[string](t, db, "select md5('7777')")
	says = answered(stored[:20] + "x" + stored[21:])
	require.Contains(t, says, `"`+stored+`" of source "default" differs in one place`)
	says = answered(strings.ToUpper(stored))
	require.Contains(t, says, `"`+stored+`" of source "default" looks like it`)
}

package store_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/store"
)

const (
	payloadA = `{"a":1}`
	payloadB = `{"b":2}`
)

func TestIngestComparesWithTheFirstPayload(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	a, b := webhook("x", payloadA), webhook("x", payloadB)
	require.Equal(t, []event.Outcome{"accepted"}, d.ingest(a))
	require.Equal(t, []event.Outcome{"conflict"}, d.ingest(b))
	require.Equal(t, []event.Outcome{"deduplicated"}, d.ingest(a))
	require.Equal(t, []event.Outcome{"conflict"}, d.ingest(b))

	require.Equal(t, []string{
		"event_received|success|", "event_inserted|success|",
		"event_received|success|", "conflict_detected|failure|kept",
		"event_received|success|", "event_deduped|success|",
		"event_received|success|", "conflict_detected|failure|known",
	}, d.rows("select action, success, details ->> 'evidence' from spine.trace('x')"))
	require.Equal(t, []string{`x|default|user.created|2024-01-30 12:00:00+00|{"a":1}|4`},
		d.rows("select event_id, source, event_type, occurred_at, payload, seen_count from spine.events"))
	require.Equal(t, []string{`x|{"b":2}|2`}, d.rows("select event_id, payload, seen_count from spine.conflicts"))
	require.Equal(t, []string{"x|default|default|pending|0"},
		d.rows("select event_id, source, destination, status, attempt_count from spine.processing_state"))
}

func TestIngestOneKeySeveralTimesInABatch(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	a, b := webhook("x", payloadA), webhook("x", payloadB)
	require.Equal(
		t,
		[]event.Outcome{"accepted", "accepted", "conflict", "deduplicated", "conflict"},
		d.ingest(a, webhook("y", payloadB), b, a, b),
	)
	require.Equal(t, []string{"x|4", "y|1"}, d.rows("select event_id, seen_count from spine.events order by event_id"))
	require.Equal(t, []string{"x|2"}, d.rows("select event_id, seen_count from spine.conflicts"))
	require.Equal(t, []string{
		"event_received", "event_inserted", "event_received", "conflict_detected",
		"event_received", "event_deduped", "event_received", "conflict_detected",
	}, d.trail("x"))

	require.Equal(
		t,
		[]event.Outcome{"conflict", "deduplicated"},
		d.ingest(b, a),
		"a later batch is judged by the first as well",
	)
	require.Equal(t, "6", d.value("select seen_count from spine.events where event_id = 'x'"))
	require.Equal(t, "3", d.value("select seen_count from spine.conflicts"))
}

func TestIngestOfNothing(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	receipts, err := d.Ingest(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, receipts)
	require.Equal(t, "0", d.value("select count(*) from spine.audit_log"))
}

func TestIngestAnotherTypeOrTimeIsADuplicate(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	e := webhook("x", payloadA)
	d.ingest(e)
	e.Type, e.OccurredAt = "user.deleted", occurredAt.Add(time.Hour)
	require.Equal(t, []event.Outcome{"deduplicated"}, d.ingest(e))
	require.Equal(t, "user.created|2024-01-30 12:00:00+00", d.value("select event_type, occurred_at from spine.events"))
}

func TestIngestTheSameIDFromTwoSources(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	one, two := webhook("x", payloadA), webhook("x", payloadB)
	two.Source = "github"
	require.Equal(t, []event.Outcome{"accepted", "accepted"}, d.ingest(one, two))
}

// together calls do from n goroutines at once and returns what they returned.
func together[T any](n int, do func(i int) (T, error)) ([]T, []error) {
	results, errs := make([]T, n), make([]error, n)
	start := make(chan struct{})
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			<-start
			results[i], errs[i] = do(i)
		})
	}
	close(start)
	all.Wait()
	return results, errs
}

// persistently ingests as the intake does: what waits too long for another
// transaction is tried again.
func (d *database) persistently(events ...event.Event) ([]event.Receipt, error) {
	for {
		receipts, err := d.Ingest(d.t.Context(), events)
		if !errors.Is(err, event.ErrLocked) {
			return receipts, err
		}
	}
}

func requireNoErrors(t *testing.T, errs []error) {
	t.Helper()
	for _, err := range errs {
		require.NoError(t, err)
	}
}

func TestIngestOneKeyFromManyConnections(t *testing.T) {
	many := 64
	if testing.Short() {
		many = 24
	}
	d := newDatabase(t, int32(many))
	for _, id := range []string{"cold", "warm"} { // all connections are open in the second round
		receipts, errs := together(many, func(int) ([]event.Receipt, error) {
			return d.persistently(webhook(id, payloadA))
		})
		requireNoErrors(t, errs)
		outcomes := map[event.Outcome]int{}
		for _, r := range receipts {
			outcomes[r[0].Outcome]++
		}
		require.Equal(t, map[event.Outcome]int{event.Accepted: 1, event.Deduplicated: many - 1}, outcomes)
		require.Equal(t, strconv.Itoa(many), d.value("select seen_count from spine.events where event_id = $1", id))
		require.Equal(t, "1", d.value("select count(*) from spine.processing_state where event_id = $1", id))
		want := []string{"event_received", "event_inserted"}
		for range many - 1 {
			want = append(want, "event_received", "event_deduped")
		}
		require.Equal(t, want, d.trail(id), "in the trail, too, the one that was stored comes first")
	}
}

// The batch that has to wait for another one's key is dated after it.
func TestIngestThatWaitedComesLaterInTheTrail(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	tx := begin(t, d.Store)
	run(t, tx, "select spine.ingest('before', 'a', '{}')")
	done := make(chan error, 1)
	go func() {
		_, err := d.persistently(webhook("before", payloadA), webhook("x", payloadA))
		done <- err
	}()
	d.awaitBlocked("%spine.ingest_events(%")
	run(t, tx, "select spine.ingest('x', 'a', '{}')")
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, <-done)
	require.Equal(t, []string{"event_received", "event_inserted", "event_received", "conflict_detected"}, d.trail("x"))
}

// awaitBlocked waits until a statement like the pattern waits for a lock.
func (d *database) awaitBlocked(pattern string) {
	d.t.Helper()
	conn := d.psql()
	require.Eventually(d.t, func() bool {
		return value(d.t, conn, `
			select count(*) > 0
			from pg_stat_activity
			where datname = current_database() and wait_event_type = 'Lock' and query like $1`, pattern) == "t"
	}, patience, time.Millisecond, "nothing waits for a lock")
}

func TestIngestInOppositeOrderDoesNotDeadlock(t *testing.T) {
	d := newDatabase(t, 4)
	forth := webhooks("x", 300)
	back := slices.Clone(forth)
	slices.Reverse(back)
	for range 10 {
		_, errs := together(4, func(i int) ([]event.Receipt, error) {
			return d.persistently([][]event.Event{forth, back}[i%2]...)
		})
		requireNoErrors(t, errs)
	}
	require.Equal(t, "300|40|40", d.value("select count(*), min(seen_count), max(seen_count) from spine.events"))
}

func TestEvidenceIsBoundedUnderConcurrency(t *testing.T) {
	d := newDatabase(t, 30)
	d.ingest(webhook("x", payloadA))
	receipts, errs := together(30, func(i int) ([]event.Receipt, error) {
		return d.persistently(webhook("x", fmt.Sprintf(`{"i":%d}`, i)))
	})
	requireNoErrors(t, errs)
	for _, r := range receipts {
		require.Equal(t, event.Conflict, r[0].Outcome)
	}
	require.Equal(
		t,
		"10|10|1",
		d.value("select count(*), count(distinct payload_hash), max(seen_count) from spine.conflicts"),
	)
	require.Equal(
		t,
		[]string{"full|20", "kept|10"},
		d.rows(`
			select details ->> 'evidence', count(*)
			from spine.trace('x')
			where action = 'conflict_detected'
			group by 1
			order by 1`),
	)

	known := d.value("select payload from spine.conflicts limit 1")
	_, errs = together(30, func(int) ([]event.Receipt, error) {
		return d.persistently(webhook("x", known))
	})
	requireNoErrors(t, errs)
	require.Equal(t, "10|31", d.value("select count(*), max(seen_count) from spine.conflicts"))
}

func TestUnqueryablePayloadIsKeptToTheByte(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	var events []event.Event
	for i, payload := range []string{`{"a":"\u0000"}`, `{"a":"\ud800"}`, "{\"a\":\"\xff\xfe\"}", `{"a":1, "a":2}`} {
		e := webhook(fmt.Sprint(i), payload)
		e.Unqueryable = "a reason"
		events = append(events, e)
	}
	require.Equal(t, slices.Repeat([]event.Outcome{event.Accepted}, len(events)), d.ingest(events...))
	require.Equal(t, slices.Repeat([]event.Outcome{event.Deduplicated}, len(events)), d.ingest(events...))
	require.Equal(
		t,
		"4",
		d.value(`
			select count(*)
			from spine.events
			where payload is null and unqueryable = 'a reason' and payload_hash = sha256(raw_body)`),
	)

	jobs := d.claim(len(events))
	slices.SortFunc(jobs, func(a, b event.Job) int { return strings.Compare(a.ID, b.ID) })
	for i, job := range jobs {
		require.True(t, job.Unqueryable)
		require.Equal(t, string(events[i].Payload), string(job.Payload))
	}

	other := events[0]
	other.Payload = []byte(`{"a" : "\u0000"}`)
	other.Hash = sha256.Sum256(other.Payload)
	require.Equal(t, []event.Outcome{event.Conflict}, d.ingest(other))
	require.Equal(
		t,
		`a reason|{"a" : "\u0000"}`,
		d.value("select unqueryable, convert_from(raw_body, 'UTF8') from spine.conflicts where payload is null"),
	)
}

func TestQueryablePayloadIsKeptToTheByte(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	payload := " { \"b\" : 1.10,\r\n\"a\":-0, \"e\":1E2, \"n\":12345678901234567890, \"\\u0061\\/\":\"\\u00e9\" } "
	d.ingest(webhook("x", payload))
	job := d.claim(1)[0]
	require.Equal(t, payload, string(job.Payload))
	require.False(t, job.Unqueryable)
}

func TestIngestRejectsBadDataAsAWhole(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	for name, spoil := range map[string]func(*event.Event){
		"id too long":                  func(e *event.Event) { e.ID = strings.Repeat("é", 256) },
		"id empty":                     func(e *event.Event) { e.ID = "" },
		"NUL in the id":                func(e *event.Event) { e.ID = "a\x00b" },
		"invalid UTF-8 in the type":    func(e *event.Event) { e.Type = "\xff" },
		"payload that is not JSON":     func(e *event.Event) { e.Payload = []byte(`{"a":`) },
		"payload empty":                func(e *event.Event) { e.Payload = nil },
		"invalid UTF-8 in the payload": func(e *event.Event) { e.Payload = []byte("{\"a\":\"\xff\"}") },
		"payload nested beyond measure": func(e *event.Event) {
			e.Payload = []byte(strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000))
		},
		"time that no RFC 3339 can say": func(e *event.Event) {
			e.OccurredAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
		},
		"time before the common era": func(e *event.Event) {
			e.OccurredAt = time.Date(0, 12, 31, 0, 0, 0, 0, time.UTC)
		},
		"conflict that is not JSON": func(e *event.Event) {
			e.ID, e.Payload, e.Hash = "known", []byte("no"), [32]byte{1}
		},
		"known twice, the second is bad": func(e *event.Event) {
			e.ID, e.Payload, e.Hash = "x-1", []byte("no"), [32]byte{1}
		},
	} {
		t.Run(name, func(t *testing.T) {
			d.run("truncate spine.events, spine.conflicts, spine.processing_state, spine.audit_trail")
			d.ingest(webhook("known", payloadA))
			batch := webhooks("x", 5)
			spoil(&batch[3])
			receipts, err := d.Ingest(t.Context(), batch)
			require.ErrorIs(t, err, event.ErrInvalidData)
			require.Nil(t, receipts)
			require.Equal(
				t,
				"1|0|1|2",
				d.value(`select (select count(*) from spine.events), (select count(*) from spine.conflicts),
				(select count(*) from spine.processing_state), (select count(*) from spine.audit_log)`),
			)
		})
	}
}

func TestIngestTakesTheLongestID(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	require.Equal(t, []event.Outcome{event.Accepted}, d.ingest(webhook(strings.Repeat("\U0001F600", 255), payloadA)))
}

func TestIngestErrorsThatAreNotTheDatas(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	s := openDatabase(t, d.url+"&statement_timeout=1", 1)
	_, err := s.Ingest(t.Context(), webhooks("x", 1000))
	require.Error(t, err)
	require.NotErrorIs(t, err, event.ErrInvalidData)
	require.Equal(t, "0", d.value("select count(*) from spine.events"))
}

// speakAtCommit makes commits that store events come with a message.
func (d *database) speakAtCommit(level string) {
	d.t.Helper()
	d.run("drop trigger if exists commits on spine.events")
	d.run(
		`create or replace function public.speak() returns trigger language plpgsql as $$ begin raise ` + level +
			` 'canceling the wait'; return null; end $$`,
	)
	d.run(`
		create constraint trigger commits after insert or update on spine.events
		deferrable initially deferred for each row
		execute function public.speak()`)
}

// E12: a warning that says nothing of the commit is no reason to store twice.
func TestOtherWarningsAreNoLoss(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.speakAtCommit("warning")
	require.Equal(t, []event.Outcome{event.Accepted}, d.ingest(webhook("x", payloadA)))
	receipts, claimed, err := d.IngestAndClaim(t.Context(), webhooks("y", 1), ask(2))
	require.NoError(t, err)
	require.Equal(t, []event.Receipt{{Outcome: event.Accepted}}, receipts)
	require.NotEmpty(t, claimed.Jobs)
	require.Equal(t, "2|4", d.value("select count(*), sum(seen_count) + 2 from spine.events"))
}

// E10, E13: a wait for a synchronous standby that is cut short ends in a commit with nothing but a WARNING. It is not
// acknowledged, whatever the database says of messages and of commits.
func TestACommitThatDidNotWaitIsNotAcknowledged(t *testing.T) {
	t.Parallel()
	server := postgrestest.Server(t)
	_, err := store.Migrate(t.Context(), server.URL(), nil)
	require.NoError(t, err)
	admin, err := pgx.Connect(t.Context(), server.SuperuserURL())
	require.NoError(t, err)
	defer func() { _ = admin.Close(context.WithoutCancel(t.Context())) }()
	u, err := url.Parse(server.URL())
	require.NoError(t, err)
	for _, setting := range []string{"client_min_messages = error", "synchronous_commit = off"} {
		run(t, admin, "alter database "+pgx.Identifier{u.Path[1:]}.Sanitize()+" set "+setting)
	}
	run(t, admin, "alter system set synchronous_standby_names = 'nobody'")
	run(t, admin, "select pg_reload_conf()")
	defer run(t, admin, "alter system reset synchronous_standby_names")

	d := openDatabase(t, server.URL(), 1)
	for name, store := range map[string]func() error{
		"alone": func() error {
			_, err := d.Ingest(t.Context(), webhooks("x", 1))
			return err
		},
		"with a claim": func() error {
			_, _, err := d.IngestAndClaim(t.Context(), webhooks("y", 1), ask(2))
			return err
		},
	} {
		done := make(chan error, 1)
		go func() { done <- store() }()
		require.Eventually(t, func() bool {
			return value(
				t,
				admin,
				"select count(pg_cancel_backend(pid)) from pg_stat_activity where wait_event = 'SyncRep'",
			) == "1"
		}, patience, 10*time.Millisecond, name+": it waits for the standby")
		err := <-done
		require.ErrorContains(t, err, "the commit may be lost", name)
		require.NotErrorIs(t, err, event.ErrInvalidData)
	}

	// E23: nothing can be stored. E26: a migration says for what it waits.
	require.ErrorContains(t, d.CheckWritable(t.Context()), "commits wait for a synchronous standby")
	troubles, err := d.Troubles(t.Context())
	require.NoError(t, err)
	require.Len(t, troubles, 1)
	require.Contains(t, troubles[0].Says, "(synchronous_standby_names = 'nobody')")
	changed, err := pgx.Connect(t.Context(), with(t, d.url, "options", "-csynchronous_commit=local"))
	require.NoError(t, err)
	run(t, changed, "update spine.schema_functions set digest = 'of another one'")
	require.NoError(t, changed.Close(t.Context()))
	waits, migrated := make(chan string, 1), make(chan error, 1)
	go func() {
		_, err := store.Migrate(t.Context(), d.url, func(what string) { waits <- what })
		migrated <- err
	}()
	require.Contains(t, <-waits, "a synchronous standby (synchronous_standby_names = 'nobody')")
	run(t, admin, "alter system reset synchronous_standby_names")
	run(t, admin, "select pg_reload_conf()")
	require.NoError(t, <-migrated)
	require.NoError(t, d.CheckWritable(t.Context()))
	require.Eventually(t, func() bool { return value(t, admin, "show synchronous_standby_names") == "" },
		patience, 10*time.Millisecond)
	require.Equal(t, []event.Outcome{event.Deduplicated}, d.ingest(webhook("x-1", payloadA)), "the same connection")
}

// E10: what is acknowledged is on disk, whatever the session, the role or the database says. The setting is that of the
// transaction, since a pooler gives each transaction another session.
func TestCommitsAreDurable(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]string{"off": "on", "local": "local", "remote_apply": "remote_apply"} {
		d := newDatabase(t, 1)
		noteCommits(t, d.Pool())
		o := openDatabase(t, d.url+"&options=-csynchronous_commit%3D"+setting, 1)
		commits := func() []string {
			all := d.rows("select distinct setting from public.commits")
			d.run("delete from public.commits")
			return all
		}
		o.ingest(webhook("x", payloadA))
		require.Equal(t, []string{want}, commits(), "ingest")
		_, _, err := o.IngestAndClaim(t.Context(), webhooks("y", 1), ask(1))
		require.NoError(t, err)
		require.Equal(t, []string{want}, commits(), "ingest and claim")
		jobs := o.claim(1)
		require.Equal(t, []string{want}, commits(), "claim")
		o.settle(event.Settlement{Job: jobs[0], Disposition: event.Completed})
		require.Equal(t, []string{want}, commits(), "settle")
		_, err = o.Pause(t.Context(), event.DefaultDestination, "", "me")
		require.NoError(t, err)
		require.Equal(t, []string{want}, commits(), "pause")
		require.Equal(t, setting, o.value("show synchronous_commit"), "nothing stays in the session")
	}
}

func TestIngestByHand(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	for _, c := range []struct{ call, outcome string }{
		{`spine.ingest('x', 'a', '{"a": 1, "b": "é"}')`, "accepted"},
		{`spine.ingest('x', 'a', '{"b":"\u00e9","a":1}')`, "deduplicated"},
		{`spine.ingest('x', 'a', '{"b":"\u00e9","a":1.0}')`, "conflict"},
		{`spine.ingest('x', 'a', '{}', _source => 'github', _occurred_at => '2024-01-30')`, "accepted"},
		{`spine.ingest('y', 'a', '{"a":"\u0000"}')`, "accepted"},
		{`spine.ingest('y', 'a', '{"a":"\u0000"}')`, "deduplicated"},
		{`spine.ingest('y', 'a', '{"a": "\u0000"}')`, "conflict"},
	} {
		assert.Equal(t, c.outcome, d.value("select "+c.call), c.call)
	}
	require.Equal(
		t,
		[]string{"x|default|t", "x|github|t", "y|default|f"},
		d.rows("select event_id, source, payload is not null from spine.events order by id"),
	)

	for call, code := range map[string]string{
		"spine.ingest('z', 'a', 'no')":                               "22P02",
		"spine.ingest('z', 'a', null)":                               "23514",
		"spine.ingest('', 'a', '{}')":                                "23514",
		"spine.ingest('z', 'a', '{}', 'infinity'::timestamptz)":      "23514",
		"spine.ingest('z', 'a', '{}', '0001-01-01 BC'::timestamptz)": "23514",
	} {
		assert.Equal(t, code, statementError(t, d.Pool(), "select "+call).Code, call)
	}
}

func TestRejectionsAreSummaries(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	since := time.Date(2024, 1, 30, 12, 0, 0, 0, time.UTC)
	rejections := []event.RejectionSummary{
		{Source: "default", Cause: "invalid", Status: 422, Count: 7, Since: since},
		{Cause: "no such source", Status: 404, Count: 1, Since: since},
	}
	require.NoError(t, d.Reject(t.Context(), rejections, false))
	audited := []string{
		"|default|request_rejected|failure|invalid|422|7|2024-01-30T12:00:00+00:00",
		"||request_rejected|failure|no such source|404|1|2024-01-30T12:00:00+00:00",
	}
	const query = `
		select event_id, source, action, success, details ->> 'cause', details ->> 'status', details ->> 'count',
			details ->> 'since'
		from spine.audit_log order by id`
	require.Equal(t, audited, d.rows(query))
	require.NoError(t, d.Reject(t.Context(), nil, false))

	// Handed in once more, of which one half is new, by a process whose clock is ahead.
	ahead := event.RejectionSummary{Cause: "clock", Status: 400, Count: 1, Since: time.Now().Add(2 * time.Hour)}
	for _, again := range []bool{false, true} {
		require.NoError(t, d.Reject(t.Context(), []event.RejectionSummary{ahead}, again))
	}
	require.Equal(t, "1", d.value("select count(*) from spine.audit_log where details ->> 'cause' = 'clock'"))
	d.run("delete from spine.audit_trail where details ->> 'cause' = 'clock'")
	rejections = append(
		rejections[1:],
		event.RejectionSummary{Cause: "no such source", Status: 404, Count: 1, Since: since.Add(time.Second)},
	)
	require.NoError(t, d.Reject(t.Context(), rejections, true))
	require.Equal(
		t,
		append(audited, "||request_rejected|failure|no such source|404|1|2024-01-30T12:00:01+00:00"),
		d.rows(query),
	)
}

// What HTTP rejects does not come in by hand either.
func TestIngestByHandHoldsTheRules(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	for _, call := range []string{
		`'', 'a', '{}'`,
		`repeat('x', 256), 'a', '{}'`,
		`E'x\ty', 'a', '{}'`,
		`U&'x\0085', 'a', '{}'`,
		`'x', '', '{}'`,
		`'x', repeat('a', 101), '{}'`,
		`'x', 'a', '[1]'`,
		`'x', 'a', '{}', _source => 'NO such!'`,
		`'x', 'a', '{}', _occurred_at => 'infinity'`,
	} {
		require.Equal(t, "23514", statementError(t, d.Pool(), "select spine.ingest("+call+")").Code, call)
	}
	require.Equal(t, "22P02", statementError(t, d.Pool(), "select spine.ingest('x', 'a', 'nonsense')").Code)
	require.Equal(t, "accepted", d.value(`select spine.ingest('ü€😀', 'ü', ' {}')`))
}

// B: a body on which the compression of Postgres takes a second a megabyte is compressed with another one, where the
// server has it.
func TestBodiesAreCompressedQuickly(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	large := `{"a":"` + strings.Repeat("0123456789", 1000) + `"}`
	d.ingest(webhook("x", large))
	d.ingest(webhook("x", large[:20]+`"}`), webhook("x", strings.Replace(large, "0", "1", 1)))
	wanted := []string{"pglz"}
	if d.value("select 'lz4' = any (enumvals) from pg_settings where name = 'default_toast_compression'") == "t" {
		wanted = []string{"lz4"}
	}
	require.Equal(t, wanted, d.rows("select pg_column_compression(payload) from spine.events"))
	require.Equal(t, wanted, d.rows(`select pg_column_compression(payload) from spine.conflicts
		where octet_length(payload::text) > 1000`))
}

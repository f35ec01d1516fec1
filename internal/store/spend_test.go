package store_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/view"
)

// B3: however senders make their payloads, a comparison ends soon, and one that would not says so.
func TestComparisonsAreBounded(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	members := func(n int, value string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"member%05d":%s`, i, value)
		}
		return "{" + b.String()[1:] + "}"
	}
	nested := func(depth int, core string) string {
		return strings.Repeat("[", depth) + core + strings.Repeat("]", depth)
	}
	branches := func(n, depth int, end string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"%d":%s`, i, nested(depth, `"`+strings.Repeat("x", 22_000)+end+`"`))
		}
		return "{" + b.String()[1:] + "}"
	}
	pad := `"` + strings.Repeat("x", 200_000) + `"`
	for name, c := range map[string]struct {
		was, is string
		places  int // 0: too large
	}{
		"a few": {`{"a":1,"b":2}`, `{"a":1,"b":3,"c":4}`, 2},
		"one of very many": {
			members(6000, "1"), strings.Replace(members(6000, "1"), ":1", ":2", 1), 1,
		},
		"hundreds":                       {members(1500, "1"), members(1500, "2"), 100},
		"deep, small":                    {nested(60, "1"), nested(60, "2"), 1},
		"a null that was absent":         {`{}`, `{"a":null}`, 1},
		"60,000 changed members":         {members(60_000, "1"), members(60_000, "2"), 0},
		"5,000 changed members":          {members(5000, "1"), members(5000, "2"), 0},
		"510 arrays around 900 kB":       {nested(510, `"`+strings.Repeat("x", 900_000)+`"`), nested(510, "1"), 0},
		"510 arrays around 200 kB":       {nested(510, pad+",1"), nested(510, pad+",2"), 0},
		"more decimals than jsonb holds": {`{"n":1}`, `{"n":0.` + strings.Repeat("1", 16_400) + `}`, 0},
		"more digits than jsonb holds":   {strings.Repeat("1", 140_000), strings.Repeat("1", 140_001), 0},
		"digits and an exponent":         {`{"n":1}`, `{"n":` + strings.Repeat("1", 131_000) + `e99}`, 0},
		"one of very many small elements": {
			"[" + strings.Repeat("1,", 130_500) + "0]", "[" + strings.Repeat("1,", 130_500) + "1]", 0,
		},
		"numbers that take much to write out": {`{"a":[` + strings.Repeat("1e999,", 20_000) + `1]}`, `{"a":1}`, 0},
		"long names": {
			`{"` + strings.Repeat("a", 2100) + `":{"b":1}}`, `{"` + strings.Repeat("a", 2100) + `":{"b":2}}`, 0,
		},
		"very many values under long names": {
			strings.Repeat(`{"`+strings.Repeat("a", 8000)+`":`, 24) + members(1350, "1") + strings.Repeat("}", 24),
			strings.Repeat(`{"`+strings.Repeat("a", 8000)+`":`, 24) + members(1350, "2") + strings.Repeat("}", 24), 0,
		},
		"many values under names of 1,000 letters": {
			`{"` + strings.Repeat("a", 1000) + `":` + members(1350, "1") + "}",
			`{"` + strings.Repeat("a", 1000) + `":` + members(1350, "2") + "}", 0,
		},
		"deep branches side by side": {branches(11, 176, "1"), branches(11, 176, "2"), 0},
		"deep, and small ones beside": {
			strings.Repeat("[1,1,1,1,1,1,1,1,1,1,", 480) + "1" + strings.Repeat("]", 480),
			strings.Repeat("[1,1,1,1,1,1,1,1,1,1,", 480) + "2" + strings.Repeat("]", 480), 0,
		},
		"a large object, 15 levels deep": {
			nested(14, members(6000, "1")), nested(14, strings.Replace(members(6000, "1"), ":1", ":2", 1)), 1,
		},
		"one large value": {
			`{"a":"` + strings.Repeat("x", 100_000) + `"}`, `{"a":"` + strings.Repeat("xy", 60_000) + `"}`, 0,
		},
	} {
		began := time.Now()
		got := d.rows("select path || ' ' || coalesce(was::text, '-') || ' ' || coalesce(\"is\"::text, '-') "+
			"from spine.differences($1::text::json, $2::text::json)", c.was, c.is)
		took := time.Since(began)
		t.Logf("%s: %d places in %s", name, len(got), took)
		require.Less(t, took, patience, "%s: without a bound it took minutes", name)
		if c.places == 0 {
			require.Equal(t, []string{" - -"}, got, name)
		} else {
			require.Len(t, got, c.places, name)
			require.NotEqual(t, " - -", got[0], name)
		}
	}
	require.Empty(t, d.rows("select path from spine.differences('{\"a\":1}', '{\"a\":1.0}')"))
	require.Empty(t, d.rows("select path from spine.differences(null, '{}')"))
}

// B3: one bad row hides no others, and many of them make no large page.
func TestLargeConflictsHideNoOthers(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	payload := func(n, size int) string { return fmt.Sprintf(`{"n":%d,"pad":"%s"}`, n, strings.Repeat("x", size)) }
	ingest := func(id string, n, size int) {
		d.ingest(webhook(id, payload(n, size)))
	}
	ingest("small", 0, 10)
	ingest("small", 1, 10)
	for i := range 30 {
		id := fmt.Sprintf("large-%d", i)
		ingest(id, 1000+2*i, 400_000)
		ingest(id, 1001+2*i, 400_000)
	}
	ingest("small", 2, 10)
	rows, _, err := d.Conflicts(t.Context(), view.Page{Limit: 100}, view.ConflictFilter{})
	require.NoError(t, err)
	require.Len(t, rows, 32)
	require.Equal(t, "small", rows[0].EventID)
	require.Len(t, rows[0].Differences, 1)
	require.Empty(t, rows[0].NotCompared)
	bytes := 0
	for _, r := range rows {
		bytes += len(r.Payload) + len(r.First.Payload)
		if strings.HasPrefix(r.EventID, "large") {
			require.Equal(t, view.ComparesTooLarge, r.NotCompared)
			require.Nil(t, r.Differences)
		}
	}
	require.LessOrEqual(t, bytes, 4<<20)
	require.Equal(t, "small", rows[31].EventID)
	require.Len(t, rows[31].Differences, 1, "behind thirty large ones")
	require.False(t, rows[31].PayloadsOmitted)
	require.True(t, rows[30].PayloadsOmitted)
	of, _, err := d.Conflicts(t.Context(), view.Page{Limit: 100}, view.ConflictFilter{EventID: "large-3"})
	require.NoError(t, err)
	require.Len(t, of, 1)
	require.False(t, of[0].PayloadsOmitted)
	require.Greater(t, len(of[0].Payload), 400_000)
}

// B3: payloads that unpack to much are a bounded part of a page of any length. They hide no row that is small as
// stored.
func TestAPageUnpacksSoMuch(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("small", `{"n":1}`), webhook("small", `{"n":2}`))
	ones := strings.Repeat("1,", 130_000)
	first := make([]event.Event, 0, 40)
	for i := range cap(first) {
		first = append(first, webhook(fmt.Sprintf("e-%d", i), `{"d":[`+ones+"0]}"))
	}
	d.ingest(first...)
	for c := range 4 {
		other := make([]event.Event, 0, len(first))
		for _, e := range first {
			other = append(other, webhook(e.ID, fmt.Sprintf(`{"d":[%s%d]}`, ones, c+1)))
		}
		d.ingest(other...)
	}
	rows, _, err := d.Conflicts(t.Context(), view.Page{Limit: 1000}, view.ConflictFilter{})
	require.NoError(t, err)
	require.Len(t, rows, 161)
	said := map[string]int{}
	for _, r := range rows {
		said[r.NotCompared]++
	}
	require.Equal(t, 1, said[""])
	require.Len(t, rows[160].Differences, 1, "behind all that unpack to much")
	require.InDelta(t, (32<<20)/(2*260_003), said[view.ComparesTooLarge], 2, "of 161 rows it unpacked only these")
	require.Equal(t, 160, said[view.ComparesTooLarge]+said[view.ComparesPageFull])
}

// B3: a page that is full says so of rows that are not too large to compare. The list of one event compares them.
func TestAFullPageOfConflictsSaysSo(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	for i := range 30 {
		for n := range 2 {
			d.ingest(
				webhook(fmt.Sprintf("e-%d", i), fmt.Sprintf(`{"n":%d,"pad":"%s"}`, n, strings.Repeat("x", 100_000))),
			)
		}
	}
	rows, _, err := d.Conflicts(t.Context(), view.Page{Limit: 100}, view.ConflictFilter{})
	require.NoError(t, err)
	require.Len(t, rows, 30)
	require.Len(t, rows[0].Differences, 1)
	require.Empty(t, rows[0].NotCompared)
	require.Equal(t, view.ComparesPageFull, rows[29].NotCompared)
	require.True(t, rows[29].PayloadsOmitted)
	of, _, err := d.Conflicts(t.Context(), view.Page{Limit: 100}, view.ConflictFilter{EventID: rows[29].EventID})
	require.NoError(t, err)
	require.Len(t, of[0].Differences, 1)
}

// B2: over the budget of bytes the largest cause gives, and what an operator wants replayed stays.
func TestBytesOverTheBudgetSpareOtherCauses(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.run("select spine.put_source('github', '" + githubSettings + "')")
	keep := func(budget event.Budget, requests ...event.RejectedRequest) {
		t.Helper()
		require.NoError(t, d.KeepRejected(t.Context(), requests, map[string]event.Budget{"github": budget}, false))
	}
	counts := func() []string {
		return d.rows("select cause || ' ' || count(*) from spine.rejected_requests group by cause order by cause")
	}
	keep(event.Budget{Rows: 1000, Bytes: 1 << 20, Age: time.Hour}, rejected("github", "signature_wrong", 20, 10)...)
	budget := event.Budget{Rows: 1000, Bytes: 50_000, Age: time.Hour}
	keep(budget, rejected("github", "not_json", 5, 20_000)...)
	require.Equal(
		t,
		[]string{"not_json 2", "signature_wrong 20"},
		counts(),
		"five large ones take nothing from the small",
	)

	d.run("select spine.request_replay(array(select id from spine.rejected_requests where cause = 'not_json'), false)")
	keep(budget, rejected("github", "too_large", 5, 20_000)...)
	require.Equal(t, []string{"not_json 2", "signature_wrong 20"}, counts(), "what is to be replayed stays")
	d.run("update spine.rejected_requests set at = now() - interval '1 day'")
	keep(budget)
	require.Equal(t, []string{"not_json 2"}, counts(), "however old it is")

	// B2: a sender's requests are kept while an operator's transaction holds some of them.
	d.run("update spine.rejected_requests set state = 'kept'")
	tx, err := d.Pool().Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "select spine.request_replay(array(select id from spine.rejected_requests), false)")
	require.NoError(t, err)
	keep(event.Budget{Rows: 1, Bytes: 50_000, Age: time.Hour}, rejected("github", "signature_wrong", 2, 10)...)
	require.NoError(t, tx.Commit(t.Context()))
	require.Equal(t, []string{"not_json 2", "signature_wrong 1"}, counts())
}

// A statement that reads for an operator ends, also where a pooler gives each transaction another session.
func TestReadsEnd(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	s, err := store.Open(t.Context(), store.Config{
		URL: d.url, MaxConns: 1, AppName: "spine test", ReadTimeout: 200 * time.Millisecond,
	})
	require.NoError(t, err)
	defer s.Close()
	for _, read := range []func(*store.Store, context.Context, string) (string, error){
		store.ReadOne, store.ReadList, store.ReadCollect,
	} {
		_, err = read(s, t.Context(), "select pg_sleep(60)::text")
		require.ErrorIs(t, err, view.ErrTooSlow)
		text, err := read(s, t.Context(), "select current_setting('statement_timeout')")
		require.NoError(t, err)
		require.Equal(t, "200ms", text)
	}
	var text string
	require.NoError(t, s.Pool().QueryRow(t.Context(), "show statement_timeout").Scan(&text))
	require.Equal(t, "0", text, "the session is as it was")
}

// F12: a rejection stands in the log at the time at which it happened, not when its summary was written.
func TestRejectionsAreStampedWhenTheyHappened(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("select spine.put_source('github', '" + githubSettings + "')")
	first := time.Now()
	time.Sleep(time.Second) // more than the age may be out by on a busy machine
	d.run("select spine.disable_source('github')")
	require.NoError(t, d.Reject(t.Context(), []event.RejectionSummary{
		{Source: "github", Cause: "signature_wrong", Status: 401, Count: 3, Since: first},
		{Source: "github", Cause: "source_disabled", Status: 503, Count: 1, Since: time.Now()},
	}, false))
	require.Equal(t, []string{"source_added", "signature_wrong", "source_disabled", "source_disabled"}, d.rows(`
		select coalesce(details ->> 'cause', action) from spine.audit_log where source = 'github' order by timestamp, id`))
	require.Equal(t, "t", d.value(`select timestamp between now() - interval '1 minute' and now() from spine.audit_log
		where details ->> 'cause' = 'signature_wrong'`))
}

// F4, G3: requests to a source that took none have a budget of their own. A beginning is kept and is not replayed.
func TestBeginningsAndTheBudgetOfOurOwnFaults(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("select spine.put_source('github', '" + githubSettings + "')")
	budgets := map[string]event.Budget{"github": {Rows: 10, Bytes: 1 << 20, Age: time.Hour}}
	keep := func(requests []event.RejectedRequest) {
		require.NoError(t, d.KeepRejected(t.Context(), requests, budgets, false))
	}
	keep(rejected("github", "source_disabled", 8, 10))
	keep(rejected("github", "source_broken", 2, 10))
	keep(rejected("github", "signature_wrong", 50, 10))
	require.Equal(t, []string{"signature_wrong 10", "source_broken 2", "source_disabled 8"}, d.rows(
		"select cause || ' ' || count(*) from spine.rejected_requests group by cause order by cause"))
	keep(rejected("github", "source_disabled", 50, 10))
	require.Equal(t, []string{"signature_wrong 10", "source_broken 2", "source_disabled 8"}, d.rows(
		"select cause || ' ' || count(*) from spine.rejected_requests group by cause order by cause"))

	// B2: what a disabled source sent has room of its own, and strangers cannot take it.
	sent := func(n, size int, verified bool) []event.RejectedRequest {
		requests := rejected("github", "source_disabled", n, size)
		for i := range requests {
			requests[i].Verified = &verified
		}
		return requests
	}
	keep(sent(350, 10, false))
	keep(sent(10, 10, true))
	keep(append(sent(50, 100_000, false), rejected("github", "source_broken", 50, 10)...))
	require.Equal(t, []string{
		"signature_wrong 5",
		"source_broken 5",
		"source_disabled 5",
		"source_disabled false 5",
		"source_disabled true 10",
	}, d.rows(`select concat_ws(' ', cause, verified::text, count(*)) as kind from spine.rejected_requests
		group by cause, verified order by concat_ws(' ', cause, verified::text, count(*)) collate "C"`))

	large := rejected("github", "too_large", 1, 1000)
	size := int64(5_000_000)
	large[0].BodyBytes = &size
	keep(large)
	found, _, err := d.RejectedRequests(t.Context(), view.Page{Limit: 1}, view.RejectedFilter{Cause: "too_large"})
	require.NoError(t, err)
	require.Equal(t, &size, found[0].BodyBytes)
	require.ErrorIs(t, d.ReplayRejected(t.Context(), found[0].ID, true, "x"), event.ErrBeginning)
	n, err := d.ReplayAllRejected(t.Context(), view.RejectedFilter{Cause: "too_large"}, true, "x")
	require.NoError(t, err)
	require.Zero(t, n)
}

// B3: however often one event is sent, its trail stays short. Every arrival is counted and in the audit log.
func TestATrailHasASampleOfVeryManyArrivals(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	send := func(n int, payload string) {
		d.run(`select spine.ingest_events(array_fill('e'::text, array[$1::int]), array_fill('t'::text, array[$1]),
			array_fill(now(), array[$1]), array_fill($2::text, array[$1]))`, n, payload)
	}
	trailed := func() string {
		return d.value("select count(*) from spine.trace('e') where action = 'event_received'")
	}
	numbers := func(from, to int) []string {
		return d.rows(
			`select (row_number() over (order by a.id))::text || case when a.event > 0 then ' trailed' else '' end
			from spine.audit_log a where a.event_id = 'e' and a.action = 'event_received' order by a.id
			offset $1 limit $2`,
			from-1,
			to-from+1,
		)
	}

	d.ingest(webhook("first", payloadA)) // verify passes over an event as old as the whole log
	send(1, `{"n":1}`)
	require.Empty(t, d.rows("select says from spine.explain('e') where topic = 'sampled'"))
	send(999, `{"n":1}`)
	require.Equal(t, "1000", trailed())
	send(12, `{"n":1}`)
	send(9, `{"n":2}`)
	require.Equal(t, []string{
		"999 trailed", "1000 trailed", "1001", "1002", "1003", "1004", "1005", "1006", "1007", "1008", "1009",
		"1010 trailed", "1011",
	}, numbers(999, 1011))
	require.Equal(t, "1002", trailed())
	require.Equal(t, []string{"conflict_detected 1", "event_deduped 1000", "event_inserted 1", "event_received 1002"},
		d.rows(`select t.action || ' ' || count(*)
			from spine.trace('e') t group by t.action order by t.action`))
	for range 12 {
		send(1000, `{"n":1}`)
	}
	require.Equal(t, "13021", d.value("select seen_count from spine.events where event_id = 'e'"))
	require.Equal(t, "26042", d.value("select count(*) from spine.audit_log where event_id = 'e'"))
	require.Equal(t, "1930", trailed(), "1,000, 900 of the next 9,000, and every 100th of the last 3,021")
	require.Equal(t, "1930", d.value("select spine.trailed(13021)"))
	require.Equal(t, "22182", d.value("select count(*) from spine.audit_log where event = -spine.id_of('e')"))
	require.Contains(t, d.explained("e"), "the trail has the first 1,000 arrivals and a sample of the others, "+
		"which are in spine.audit_log where event = -")
	require.Equal(t, []string{"0"}, d.rows("select distinct violations::text from spine.verify('-infinity')"))

	d.rollUp()
	require.Equal(t, "13022", d.value("select sum(received) from spine.rollups where step = 10"))
	steps, _, err := d.Audit(t.Context(), view.Page{Limit: 3}, view.StepFilter{Type: "t"})
	require.NoError(t, err)
	require.Len(t, steps, 3, "a filter by type knows them")

	d.run("update spine.events set seen_count = seen_count + 200 where event_id = 'e'")
	require.Equal(t, []string{"receipts_counted"},
		d.rows("select invariant from spine.verify('-infinity') where violations > 0"))
}

package store_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// explained is what spine.explain() says of an event, a line a sentence, each after its topic.
func (d *database) explained(args ...any) string {
	d.t.Helper()
	return strings.Join(d.rows(
		"select topic || ': ' || says from spine.explain("+strings.Join(
			[]string{"$1", "$2"}[:len(args)],
			", ",
		)+")",
		args...,
	), "\n")
}

// G11: attempts that did not reach the destination are in the sentence of the attempts, with their end. A lease that
// ran out is in the past tense.
func TestExplainDeferrals(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("x", payloadA))
	for range 2 {
		d.settle(deferred(d.claim(1)[0], time.Second))
		d.due()
	}
	require.Regexp(
		t,
		`attempts: 0 attempts counted; 2 in a row did not reach the destination, `+
			`the first at \S+: given up 72 hours after it`,
		d.explained("x"),
	)
	require.NotContains(t, d.explained("x"), "whose lease")
	d.claim(1)
	require.Regexp(t, `standing: attempt 1 is in the hands of \S+, whose lease ends \S+ \(in `, d.explained("x"))
	d.due()
	require.Regexp(t, `standing: attempt 1 is in the hands of \S+, whose lease ended \S+ \(.+ ago\)`, d.explained("x"))
}

// F5: explain() answers while somebody has a table locked, and says who.
func TestExplainOfALockedTable(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.ingest(webhook("x", payloadA))
	d.run("update spine.processing_state set next_attempt_at = now() - interval '1 min'")
	d.explained("x")
	for _, table := range []string{"processing_state", "events", "audit_trail", "destinations"} {
		tx := begin(t, d.Store)
		run(t, tx, "lock table spine."+table)
		require.Regexp(
			t,
			fmt.Sprintf(`^table_locked: the table %s is locked \(AccessExclusiveLock\) by pid %d of role \S+, since 20`,
				table, tx.Conn().PgConn().PID()),
			d.explained("x"),
		)
		require.NoError(t, tx.Rollback(t.Context()))
	}
	for _, table := range []string{"rejected_requests", "retention_state", "arrivals_watermark"} {
		tx := begin(t, d.Store)
		run(t, tx, "lock table spine."+table)
		require.Regexp(t, "^table_locked: ", d.explained("nowhere"))
		require.NoError(t, tx.Rollback(t.Context()))
	}
	for _, table := range []string{"processing_state", "audit_trail"} { // nothing can be claimed
		tx := begin(t, d.Store)
		run(t, tx, "lock table spine."+table+" in share mode")
		says := d.explained("x")
		require.Contains(t, says, fmt.Sprintf(
			"table_locked: the table %s is locked (ShareLock) by pid %d of role ", table, tx.Conn().PgConn().PID()))
		require.NotContains(t, says, "unclaimed")
		require.NoError(t, tx.Rollback(t.Context()))
	}
}

// F5: a claim of Spine's own holds rows for a moment. Nobody is told to end it.
func TestExplainOfAClaim(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.ingest(webhook("x", payloadA))
	for name, said := range map[string]bool{"spine": false, "psql": true} {
		tx := begin(t, d.Store)
		run(t, tx, "set local application_name = '"+name+"'")
		run(t, tx, "select from spine.processing_state for update")
		// Since some time that depends on the machine: the rule is for two seconds.
		began := time.Now()
		says := d.explained("x")
		if said || time.Since(began) < time.Second {
			require.Equal(t, said, strings.Contains(says, "locked: the row is locked by pid"), says)
		}
		require.NoError(t, tx.Rollback(t.Context()))
	}
}

// F5: whether a worker is connected is told, as far as its process has the name that Spine gives it.
func TestExplainWithoutAWorker(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.ingest(webhook("x", payloadA))
	d.run("update spine.processing_state set next_attempt_at = now() - interval '1 min'")
	require.Contains(t, d.explained("x"), "unclaimed: due and not claimed: no process of Spine seems to be connected")
	for name, says := range map[string]string{
		"spine api": "no worker seems to be connected: start spine worker, or set DESTINATION_URL",
		"spine":     "a worker is connected; is it busy with others, or stopping?",
	} {
		tx := begin(t, d.Store)
		run(t, tx, "set local application_name = '"+name+"'")
		require.Contains(t, d.explained("x"), "unclaimed: due and not claimed: "+says)
		require.NoError(t, tx.Rollback(t.Context()))
	}
	d.run("update spine.depth_state set sampled_at = now()")
	require.Contains(t, d.explained("x"), "is a worker running, has it a destination")
}

// F4: an event that was sent while its source was disabled for two seconds.
func TestExplainASourceThatWasDisabled(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run(`select spine.put_source('shop', '{"preset":"token",
		"verify":[{"scheme":"token","header":"X-Shop"}],"secrets":["env:SHOP_WEBHOOK_SECRET"]}')`)
	for n := range 7 {
		d.run("select spine.disable_source('shop', $1)", fmt.Sprintf("test %d", n))
		d.run("select spine.enable_source('shop')")
	}
	says := d.explained("nope", "shop")
	require.Regexp(t, `disabled: Source "shop" was disabled from 20\S+ to 20\S+ by \S+, because: test 6\n`, says)
	require.Equal(t, 5, strings.Count(says, "was disabled"))
	require.NotContains(t, d.explained("nope", "default"), "was disabled")

	d.run("select set_config('spine.caller', 'alice', false), spine.disable_source('shop')")
	d.run("select set_config('spine.caller', 'bob', false)")
	d.run(`
		update spine.sources set settings = settings || '{"url":"https://shop.example/"}' where name = 'shop'`)
	require.Regexp(t, `Source "shop" is disabled since \S+ by \S+ for alice`, d.explained("nope", "shop"))
}

package store_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

func TestIngestAndClaim(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("known", payloadA))
	d.claim(1)
	before := d.value("select pg_current_xact_id()")
	receipts, claimed, err := d.IngestAndClaim(
		t.Context(),
		[]event.Event{webhook("b", payloadA), webhook("known", payloadA), webhook("a", payloadA)},
		ask(4),
	)
	require.NoError(t, err)
	require.Equal(
		t,
		[]event.Receipt{{Outcome: event.Accepted}, {Outcome: event.Deduplicated}, {Outcome: event.Accepted}},
		receipts,
	)
	require.ElementsMatch(t, []string{"a", "b"}, eventIDs(claimed.Jobs))
	require.Empty(t, claimed.Expired)
	require.False(t, claimed.Now.IsZero())
	job := claimed.Jobs[0]
	require.Equal(
		t,
		[]any{1, payloadA, "user.created", event.DefaultDestination},
		[]any{job.Attempt, string(job.Payload), job.Type, job.Destination},
	)
	require.Equal(
		t,
		"1",
		d.value("select count(distinct xid) from spine.audit_trail where xid > $1::text::xid8", before),
		"it is one transaction",
	)
	require.Equal(t, []string{"event_received", "event_inserted", "processing_attempt_started"}, d.trail("a"))
	require.Equal(
		t,
		[]event.LeaseState{event.LeaseHeld, event.LeaseHeld},
		d.settle(completed(claimed.Jobs[0]), completed(claimed.Jobs[1])),
	)
}

func TestIngestAndClaimTakesTheOldestFirst(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhooks("old", 2)...)
	_, claimed, err := d.IngestAndClaim(t.Context(), webhooks("new", 2), ask(3))
	require.NoError(t, err)
	ids := eventIDs(claimed.Jobs)
	require.Subset(t, ids, []string{"old-1", "old-2"})
	require.Len(t, ids, 3)
	require.Len(t, d.claim(1), 1, "the fourth is left for the next look")
}

func TestIngestAndClaimWhilePaused(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	require.Equal(t, "1", d.value("select spine.pause()"))
	receipts, claimed, err := d.IngestAndClaim(t.Context(), webhooks("x", 1), ask(2))
	require.NoError(t, err)
	require.Equal(t, []event.Receipt{{Outcome: event.Accepted}}, receipts)
	require.Empty(t, claimed.Jobs)
	require.Equal(t, "pending", d.value("select status from spine.processing_state"))
}

// Others hear of what was stored although it is leased already.
func TestIngestAndClaimNotifies(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	listener := d.psql("listen spine_ready")
	_, _, err := d.IngestAndClaim(t.Context(), webhooks("x", 1), ask(2))
	require.NoError(t, err)
	n, err := listener.WaitForNotification(t.Context())
	require.NoError(t, err)
	require.Contains(t, n.Payload, "x-1")
}

// Whatever goes wrong before the commit leaves nothing behind.
func TestIngestAndClaimIsAllOrNothing(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.ingest(webhook("waits", payloadA))
	for name, c := range map[string]struct {
		payload string
		limit   int
	}{
		"an event is rejected": {`{"a":`, 2},
		"the claim fails":      {payloadA, -1},
	} {
		t.Run(name, func(t *testing.T) {
			receipts, claimed, err := d.IngestAndClaim(
				t.Context(),
				[]event.Event{webhook("x", c.payload)},
				ask(c.limit),
			)
			require.ErrorIs(t, err, event.ErrInvalidData)
			require.Nil(t, receipts)
			require.Empty(t, claimed)
			require.Equal(
				t,
				[]string{"waits|pending|0"},
				d.rows("select event_id, status, attempt_count from spine.processing_state"),
			)
			require.Equal(t, "1", d.value("select count(*) from spine.events"))
		})
	}
}

// Both statements have been answered when the commit fails.
func TestIngestAndClaimWhoseCommitFails(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.speakAtCommit("exception")
	receipts, claimed, err := d.IngestAndClaim(t.Context(), webhooks("x", 1), ask(2))
	require.ErrorContains(t, err, "canceling the wait")
	require.Nil(t, receipts)
	require.Empty(t, claimed)
	require.Equal(t, "0", d.value("select count(*) from spine.events"))
}

// A claim may wait for a table that storing does not need, but not for long.
func TestIngestAndClaimDoesNotWaitForLocks(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	open := d.psql("begin", "lock table spine.destinations")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, _, err := d.IngestAndClaim(ctx, webhooks("x", 1), ask(2))
	require.ErrorIs(t, err, event.ErrLocked)
	require.Equal(t, []event.Outcome{event.Accepted}, d.ingest(webhooks("x", 1)...), "storing alone does not wait")
	run(t, open, "rollback")
}

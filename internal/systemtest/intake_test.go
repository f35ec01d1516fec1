package systemtest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// An event that is stored while the worker is idle is claimed in the same transaction.
func TestStoredAndClaimedAtOnce(t *testing.T) {
	t.Parallel()
	d := newDestination(t)
	s := startService(t, both, databases.New(t), "MOCK_API_URL="+d.url)
	for i := range 20 {
		id := newID("joint")
		s.accept(t, id, `{}`)
		d.await(t, id, 1)
		s.awaitStatus(t, id, "completed")
		require.Equal(t, attempts(0, "completed"), s.actions(t, id), i)
	}
	require.Positive(
		t,
		value[int](t, s.db, `
			select count(*) from spine.audit_log a
			join spine.audit_log b using (event_id, xid)
			where a.action = 'event_inserted' and b.action = 'processing_attempt_started'
				and a.timestamp <= b.timestamp and a.id < b.id`),
	)
	require.Positive(t, s.metric(t, `spine_worker_wakes_total{cause="lent"}`))
	require.Less(
		t,
		s.metric(t, "spine_worker_swept_total"),
		20.0,
		"none of the twenty, unless the machine stalls between a commit and its wake-up",
	)
}

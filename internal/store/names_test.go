package store_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestInFlight(t *testing.T) {
	t.Parallel()
	s := open(t)
	ingest(t, s, "default", "'e' || n", 6)
	exec(
		t,
		s.Pool(),
		`update spine.processing_state
		set status = case event_id
			when 'e1' then 'dead'
			when 'e2' then 'failed'
			when 'e3' then 'completed'
			else status end,
		lease_token = lease_token + 1`,
	)
	// What is old is found by when it falls due, or died.
	ingest(t, s, "default", "'later' || n", 3000)
	exec(t, s.Pool(), `
		update spine.processing_state
		set status = 'completed', lease_token = lease_token + 1, next_attempt_at = null
		where event_id like 'later%'`)
	found := func(prefix, source string, limit int) (ids []string) {
		t.Helper()
		rows, err := s.InFlight(t.Context(), prefix, source, limit)
		require.NoError(t, err)
		for _, r := range rows {
			ids = append(ids, r.EventID+" "+r.Status)
		}
		return ids
	}
	require.Equal(t, []string{"e6 pending", "e5 pending", "e4 pending", "e2 failed", "e1 dead"}, found("", "", 50))
	require.Equal(t, []string{"e6 pending", "e5 pending"}, found("e", "", 2))
	require.Equal(t, []string{"e2 failed"}, found("e2", "", 50))
	require.Empty(t, found("%", "", 50))

	exec(t, s.Pool(), "insert into spine.sources (name) values ('github')")
	ingest(t, s, "github", "'e' || n", 2)
	ingest(t, s, "default", "'newer' || n", 2)
	require.Equal(t, []string{"e2 pending", "e1 pending"}, found("", "github", 2))
	require.Equal(t, []string{"e2 failed", "e1 dead"}, found("e", "default", 50)[3:])
	require.Empty(t, found("", "nobody", 50))
}

func TestNames(t *testing.T) {
	t.Parallel()
	s := open(t)
	exec(t, s.Pool(), "insert into spine.sources (name) values ('github')")
	exec(t, s.Pool(), "insert into spine.destinations (name) values ('billing')")
	ingest(t, s, "github", "'e' || n", 3)
	for want, list := range map[string]func() ([]string, error){
		"default github":  func() ([]string, error) { return s.SourceNames(t.Context()) },
		"billing default": func() ([]string, error) { return s.DestinationNames(t.Context()) },
		"t0 t1":           func() ([]string, error) { return s.RecentTypes(t.Context()) },
	} {
		got, err := list()
		require.NoError(t, err)
		require.Equal(t, want, got[0]+" "+got[1])
		require.Len(t, got, 2)
	}
}

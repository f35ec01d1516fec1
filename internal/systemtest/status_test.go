package systemtest

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/store"
)

func TestStatusWatchInAPipe(t *testing.T) {
	t.Parallel()
	server := postgrestest.Server(t)
	_, err := store.Migrate(t.Context(), server.URL(), nil)
	require.NoError(t, err)
	db := open(t, server.URL(), nil)
	ingested(t, db, "default", "a", "b")
	s, err := store.Open(t.Context(), store.Config{URL: server.URL(), MaxConns: 1, AppName: "spine test"})
	require.NoError(t, err)
	defer s.Close()
	_, _, err = s.RollUp(t.Context())
	require.NoError(t, err)
	require.NoError(t, s.SampleDepth(t.Context()))

	line := startLines(t, server.URL(), "status", "--watch", "--interval", "100ms")
	require.Regexp(
		t,
		`^\d{4}-\S+Z received=\S+ .* pending=2 processing=0 failed=0 dead=0 oldest_ready=\S+ p50=`,
		line.next(t),
	)
	machine := startLines(t, server.URL(), "status", "--watch", "--interval", "0.1", "--json")
	var o struct {
		Schema  string
		At      time.Time
		Backlog []struct{ Count int }
		Rates   map[string]map[string]*float64
	}
	require.NoError(t, json.Unmarshal([]byte(machine.next(t)), &o))
	require.Equal(t, "current", o.Schema)
	require.NotZero(t, o.At)
	require.Equal(t, 2, o.Backlog[0].Count)
	require.Contains(t, o.Rates["received"], "now")
	require.Zero(t, machine.stop())
	execute(t, db, "insert into spine.schema_version (version_id, is_applied) values (9999, true)")
	machine = startLines(t, server.URL(), "status", "--watch", "--interval", "0.1", "--json")
	require.NoError(t, json.Unmarshal([]byte(machine.next(t)), &o))
	require.Equal(t, "newer", o.Schema)
	require.Zero(t, machine.stop())

	server.Kill()
	isAway := regexp.MustCompile(`(?m)^spine: the database is away since \S+Z, trying again: `)
	require.Eventually(
		t,
		func() bool { return isAway.MatchString(line.stderr.String()) },
		patience,
		10*time.Millisecond,
	)
	require.NoError(t, server.Restart(t.Context()))
	require.Eventually(
		t,
		func() bool { return strings.HasSuffix(line.stderr.String(), "spine: the database is back\n") },
		patience,
		10*time.Millisecond,
	)
	for range cap(line.lines) { // what it said before
		select {
		case <-line.lines:
			continue
		default:
		}
		break
	}
	require.Contains(t, line.next(t), "pending=2")
	require.Zero(t, line.stop())
	require.Len(t, isAway.FindAllString(line.stderr.String(), -1), 1, "it is said once")
}

package systemtest

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/postgres/postgrestest"
)

// E9, E22: behind a PgBouncer that ignores no parameters Spine starts, is ready, and delivers within a second. With the
// address of the database itself it hears notifications; without it it polls.
func TestServiceBehindAPooler(t *testing.T) {
	t.Parallel()
	const completed = "select count(*) from spine.processing_state where status = 'completed'"
	for _, mode := range []string{"session", "transaction"} {
		for _, direct := range []bool{false, true} {
			t.Run(mode+map[bool]string{true: " and direct", false: ""}[direct], func(t *testing.T) {
				t.Parallel()
				database := databases.Empty(t)
				pooled := postgrestest.Pooler(t, database, mode)
				environment := []string{fewConnections, "MOCK_API_URL=" + startMock(t, 0), "DEFAULT_SOURCE=open"}
				if direct {
					environment = append(environment, "DIRECT_DATABASE_URL="+database)
				}
				s := newTarget(t, runService(t, both, pooled, environment...), database)
				s.acceptMany(t, 30, `{"a":1}`)
				await(t, s.db, 30, completed)
				execute(t, s.db, "select spine.ingest('by hand', 'a', '{}')")
				began := time.Now()
				await(t, s.db, 31, completed)
				t.Logf("delivered %s after it was stored elsewhere", time.Since(began))
				require.Equal(t, http.StatusOK, s.request(t, http.MethodGet, "/readyz", "").code)
			})
		}
	}
}

// E25: an address for LISTEN and migrations that leads elsewhere is rejected before anything is written there.
func TestAnotherDirectDatabaseIsRejected(t *testing.T) {
	t.Parallel()
	other := databases.Empty(t)
	environment := []string{
		"DATABASE_URL=" + databases.New(
			t,
		),
		"DIRECT_DATABASE_URL=" + other,
		"LISTEN=127.0.0.1:0",
		"DESTINATION_URL=none",
	}
	const want = "DIRECT_DATABASE_URL: leads to another database than DATABASE_URL"
	code, _, stderr := spine(t, environment, "migrate")
	require.Equal(t, 2, code)
	require.Contains(t, stderr, want)
	p := startProcess(t, environment, "serve")
	require.Equal(t, 2, p.awaitExit(t))
	require.Contains(t, p.output(), want)
	require.True(t, value[bool](t, open(t, other, nil), "select to_regnamespace('spine') is null"))
}

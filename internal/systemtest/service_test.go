package systemtest

import (
	"bufio"
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/bench"
	"github.com/webhookspine/spine/internal/observe"
	"github.com/webhookspine/spine/internal/service"
)

// A process that starts before its database answers from the start. It is alive but not ready, and tells senders to
// come again.
func TestServiceAnswersBeforeItsDatabaseDoes(t *testing.T) {
	t.Parallel()
	address, _ := downAddress(t)
	set, err := readSettings(
		"DATABASE_URL=postgres://nobody@"+address+"/nothing",
		"DESTINATION_URL=none",
		"LOG_LEVEL=error",
	)
	require.NoError(t, err)
	p, err := service.New(t.Context(), &set, both, "test", set.Log.Logger(t.Output()))
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()

	s := newTarget(t, p.URL(), "postgres://nobody@"+address+"/nothing")
	r, err := s.do(t.Context(), http.MethodGet, "/healthz", nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, r.code)
	r, err = s.do(t.Context(), http.MethodGet, "/readyz", nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, r.code)
	r, err = s.do(t.Context(), http.MethodPost, "/webhook",
		strings.NewReader(`{"event_id":"early","event_type":"a","occurred_at":"2024-01-30T12:00:00Z","payload":{}}`))
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, r.code)
	require.NotEmpty(t, r.header.Get("Retry-After"))

	select {
	case <-p.Ready():
		require.Fail(t, "ready without a database")
	default:
	}
	stop()
	require.NoError(t, <-ended, "told to stop, it stops")
}

// Every process with RETENTION deletes old events.
func TestServiceLetsGoOfWhatIsOld(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]service.Roles{"api": {API: true}, "worker": {Worker: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database := databases.New(t)
			db := open(t, database, nil)
			execute(t, db, "select spine.ingest(id, 'a', '{}') from unnest(array['old', 'waiting', 'young']) id")
			execute(t, db, "update spine.processing_state set status = 'completed' where event_id <> 'waiting'")
			execute(t, db, "update spine.events set created_at = now() - interval '2 days' where event_id <> 'young'")
			execute(
				t,
				db,
				"update spine.processing_state set updated_at = now() - interval '2 days' where event_id <> 'young'",
			)
			execute(
				t,
				db,
				"update spine.audit_trail set timestamp = timestamp - interval '2 days' where event_id <> 'young'",
			)

			s := startService(t, r, database, "DESTINATION_URL=none", "RETENTION=1d")
			await(t, s.db, int64(1), "select count(*) from spine.audit_log where action = 'events_expired'")
			require.Equal(
				t,
				"waiting,young",
				value[string](t, s.db, "select string_agg(event_id, ',' order by id) from spine.events"),
			)
			require.EventuallyWithT(t, func(c *assert.CollectT) {
				require.InDelta(c, 1, s.metric(t, "spine_retention_events_deleted_total"), 0)
			}, patience, 10*time.Millisecond)
		})
	}
}

// A process with the API alone streams what happens. Its viewers do not delay its stop.
func TestServiceStreamsAndStops(t *testing.T) {
	t.Parallel()
	set, err := readSettings("DATABASE_URL="+databases.New(t), "SHUTDOWN_TIMEOUT=5m", "LOG_LEVEL=warn")
	require.NoError(t, err)
	p, err := service.New(t.Context(), &set, service.Roles{API: true}, "test", set.Log.Logger(t.Output()))
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	s := newTarget(t, p.URL(), string(set.Database.URL))
	s.awaitReady(t)

	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/api/stream", nil)
	require.NoError(t, err)
	answer, err := s.http.Do(r)
	require.NoError(t, err)
	defer func() { _ = answer.Body.Close() }()
	lines := bufio.NewScanner(answer.Body)
	until := func(what string) {
		for lines.Scan() {
			if strings.Contains(lines.Text(), what) {
				return
			}
		}
		require.Fail(t, "the stream ended", "before %s: %v", what, lines.Err())
	}
	until("event: cursor")
	s.accept(t, "streamed", "{}")
	until(`"event_id":"streamed"`)
	stop()
	for lines.Scan() {
	}
	require.NoError(t, lines.Err(), "it ends, and is not torn")
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(patience):
		require.Fail(t, "the stream holds up the stop")
	}
}

// BenchmarkServe receives events and delivers them over HTTP, with the load and the destination in this process too.
// `make profile` records its profile, for which `make build` optimizes.
func BenchmarkServe(b *testing.B) {
	destination, err := observe.Listen(b.Context(), "127.0.0.1:0")
	require.NoError(b, err)
	url := runService(b, both, databases.New(b), "DESTINATION_URL="+observe.URL(destination)+"/")
	b.ResetTimer()
	report, err := bench.RunE2E(b.Context(), destination, bench.E2E{Load: bench.Load{Target: url, Count: int64(b.N)}})
	b.StopTimer()
	require.NoError(b, err)
	require.EqualValues(b, b.N, report.Delivery.Delivered)
}

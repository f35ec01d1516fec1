package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/webhookspine/spine/internal/bench"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
)

var databases postgrestest.Databases

// TestMain makes the test binary stand in for this program: the processes that
// it starts are its own peers.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && peers()[os.Args[1]] != nil {
		main()
	}
	goleak.VerifyTestMain(databases.Main(m))
}

func TestPeers(t *testing.T) {
	t.Parallel()
	for _, s := range []system{riverSystem(), plainSystem()} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			tr := newTrial(t, s)
			stopSink, err := tr.openSink(t.Context())
			require.NoError(t, err)
			require.NoError(t, tr.start(t.Context(), together, tr.sinkURL()))
			front := tr.fronts()[0]
			const event = `{"event_id":"e-1","event_type":"test","occurred_at":"2024-01-30T12:00:00Z",` +
				`"payload":{"n":1}}`
			for _, request := range []struct {
				body, answer string
				code         int
			}{
				{event, accepted, 200},
				{event, deduplicated, 200},
				{strings.Replace(event, `"n":1`, `"n":2`, 1), conflict, 200},
				{strings.Replace(event, "e-1", "e-2", 1), accepted, 200},
				{"{", "unexpected EOF", 400},
				{strings.Replace(event, `{"n":1}`, "1", 1), "payload", 422},
			} {
				code, answer := post(t, front, request.body)
				assert.Equal(t, request.code, code, answer)
				assert.Contains(t, answer, request.answer)
			}

			require.NoError(t, tr.awaitFinished(t.Context(), settlePatience))
			require.NoError(t, tr.halt(), "a peer stops when it is told to")
			report, err := stopSink()
			require.NoError(t, err)
			assert.Equal(t, int64(2), report.Deliveries, "each new event once")
			assert.Equal(t, int64(2), report.DistinctIDs)
			var payloads string
			const query = "select string_agg(payload::text, ' ' order by event_id) from events"
			require.NoError(t, tr.pool.QueryRow(t.Context(), query).Scan(&payloads))
			assert.Equal(t, `{"n":1} {"n":1}`, payloads, "the first stays")
		})
	}
}

func TestAPeerTriesAgain(t *testing.T) {
	t.Parallel()
	for _, s := range []system{riverSystem(), plainSystem()} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			tr := newTrial(t, s)
			require.NoError(t, tr.start(t.Context(), together, tr.sinkURL()))
			code, answer := post(t, tr.fronts()[0],
				`{"event_id":"e","event_type":"test","occurred_at":"2024-01-30T12:00:00Z","payload":{}}`)
			require.Equal(t, http.StatusOK, code, answer)
			tried := map[string]string{
				"river": "select attempt = 1 and state <> 'running' from river_job",
				"plain": "select attempts = 1 and run_at < now() + interval '10 seconds' from jobs",
			}[s.name]
			await(t, tr, tried)

			stopSink, err := tr.openSink(t.Context()) // from here on it is there
			require.NoError(t, err)
			require.NoError(t, tr.awaitFinished(t.Context(), settlePatience))
			report, err := stopSink()
			require.NoError(t, err)
			assert.Equal(t, int64(1), report.Deliveries)
		})
	}
}

func TestAProcessThatDoesNotStart(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, riverSystem())
	tr.database = "postgres://nobody@127.0.0.1:1/nothing"
	require.ErrorContains(t, tr.start(t.Context(), together, storeOnly), "river ended by itself:\npeers: ")
}

func TestAComparisonFromEndToEnd(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/figures.json"
	var report, progress bytes.Buffer
	code := run(
		t.Context(),
		[]string{"-short", "-only", "S3,S6", "-systems", "plain", "-json", path},
		&report,
		&progress,
	)
	require.Zero(t, code, "%s\n%s", report.String(), progress.String())
	assert.Regexp(t, `\| S3 +\| delivered, /s +\| [1-9]`, report.String())
	assert.Regexp(t, `\| S6 +\| last ÷ first +\| [0-9]`, report.String())
	assert.Contains(t, progress.String(), "1/1 S3  plain")
	figures, err := os.ReadFile(path) //nolint:gosec // G304: the test's own
	require.NoError(t, err)
	assert.Contains(t, string(figures), `"What": "delivered"`)
}

func TestALongRunIsWatched(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := &lab{
		self: os.Args[0], dir: t.TempDir(), server: postgrestest.Server(t),
		options: options{short: true, soak: 6 * time.Second}, sustained: map[string]float64{"plain": 200},
	}
	require.NoError(t, l.loadStatements(ctx))
	admin, err := pgx.Connect(ctx, l.server.SuperuserURL())
	require.NoError(t, err)
	l.admin = admin
	defer func() { assert.NoError(t, admin.Close(ctx)) }()
	tr := &trial{lab: l, scenario: "SK", system: plainSystem()}
	done, err := tr.open(ctx, "long_run")
	require.NoError(t, err)
	defer func() { assert.NoError(t, done()) }()

	require.NoError(t, soakLong(ctx, tr))
	said := strings.Join(tr.said, ", ")
	for _, r := range []row{skArriveKept, skWAL, skCommits} {
		assert.Contains(t, said, r.What+" ")
	}
	assert.NotContains(t, said, skDeadKept.What, "its tables have other names")
	assert.Equal(t, l.statements, strings.Contains(said, skStatements.What+" "))
	assert.Equal(t, "120/s for 6s", l.results.Notes[0].Lines[0][:len("120/s for 6s")])
	if l.statements {
		var track string
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			require.NoError(c, admin.QueryRow(ctx, "show pg_stat_statements.track").Scan(&track))
			assert.Equal(c, "none", track, "it counts only while it is looked at")
		}, 10*time.Second, 20*time.Millisecond)
	}
}

func TestWhoTakesPart(t *testing.T) {
	t.Parallel()
	spine, plain := spineSystem(), plainSystem()
	assert.True(t, scenario{}.concerns(plain, 2))
	assert.False(t, scenario{}.concerns(limitSystem(), 1))
	assert.False(t, scenario{systems: []string{"spine"}}.concerns(plain, 1))
	assert.True(t, scenario{once: true}.concerns(spine, 2))
	assert.False(t, scenario{once: true}.concerns(plain, 2))
	assert.True(t, scenario{single: true}.concerns(spine, 1))
	assert.False(t, scenario{single: true}.concerns(spine, 2))
}

func TestMisuse(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"-rounds", "0"},
		{"-soak", "1ms"},
		{"-stored", "10"},
		{"-only", "S99"},
		{"-systems", "kafka"},
		{"-nothing"},
		{"rivers"},
	} {
		assert.Equal(t, 2, run(t.Context(), args, io.Discard, io.Discard), args)
	}
	var said bytes.Buffer
	assert.Equal(t, 1, run(t.Context(), []string{"-spine", "/nowhere"}, io.Discard, &said))
	assert.Contains(t, said.String(), "-spine: ")
}

func TestVerify(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, plainSystem())
	ctx := t.Context()
	_, err := tr.pool.Exec(ctx, eventsTable+";"+jobsTable)
	require.NoError(t, err)
	_, err = tr.pool.Exec(ctx, `
		insert into events (event_id, event_type, occurred_at, payload, payload_hash)
		select id, 'test', now(), '{}', ''
		from unnest('{r-0000000000,r-0000000001,r2-0000000000,q-0000000000}'::text[]) id`)
	require.NoError(t, err)
	delivery := func(delivered, lost int64) *bench.Delivery { return &bench.Delivery{Delivered: delivered, Lost: lost} }

	require.NoError(t, tr.verify(ctx, bench.Report{RunID: "r", Accepted: 2}))
	require.NoError(t, tr.verify(ctx, bench.Report{RunID: "r", Accepted: 1, WarmUpSeconds: 0.1, OfferedPerSecond: 10}))
	require.NoError(t, tr.verify(ctx, bench.Report{RunID: "r", Accepted: 2, Delivery: delivery(2, 0)}))
	require.ErrorContains(t, tr.verify(ctx, bench.Report{RunID: "r", Accepted: 3}),
		"NOT DURABLE: 3 events were accepted and 2 are stored")
	require.ErrorContains(t, tr.verify(ctx, bench.Report{RunID: "r", Accepted: 1}), "NOT DURABLE")
	require.ErrorContains(t, tr.verify(ctx, bench.Report{RunID: "r", Accepted: 2, Delivery: delivery(1, 1)}), "LOST")
	unavailable := map[string]int64{"http 503": 1}
	require.ErrorContains(t, tr.verify(ctx, bench.Report{RunID: "r", Accepted: 2, Errors: unavailable}), "503")
}

// newTrial makes a trial on a database of its own.
func newTrial(t *testing.T, s system) *trial {
	t.Helper()
	pool := databases.Pool(t)
	sink, err := freeAddress(t.Context())
	require.NoError(t, err)
	tr := &trial{
		lab: &lab{self: os.Args[0], dir: t.TempDir()}, system: s,
		database: pool.Config().ConnString(), pool: pool, sink: sink,
	}
	t.Cleanup(func() { assert.NoError(t, tr.halt()) })
	return tr
}

func post(t *testing.T, front, body string) (code int, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, front+"/webhook", strings.NewReader(body))
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(text)
}

// await waits until a query returns a row that says true.
func await(t *testing.T, tr *trial, query string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var yes bool
		err := tr.pool.QueryRow(t.Context(), query).Scan(&yes)
		if !errors.Is(err, pgx.ErrNoRows) {
			require.NoError(c, err)
		}
		assert.True(c, yes)
	}, 10*time.Second, 20*time.Millisecond)
}

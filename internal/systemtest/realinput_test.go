package systemtest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// githubEvent is a payload that GitHub sends, under an id of ours.
type githubEvent struct {
	id, kind string
	payload  json.RawMessage
}

// githubEvents reads testdata/octokit.
func githubEvents(t *testing.T) []githubEvent {
	t.Helper()
	file, err := os.Open("testdata/octokit/index.json.gz")
	require.NoError(t, err)
	defer func() { _ = file.Close() }()
	text, err := gzip.NewReader(file)
	require.NoError(t, err)
	var kinds []struct {
		Name     string
		Examples []json.RawMessage
	}
	require.NoError(t, json.NewDecoder(text).Decode(&kinds))
	var events []githubEvent
	for _, kind := range kinds {
		for i, example := range kind.Examples {
			events = append(events, githubEvent{fmt.Sprintf("%s-%d", kind.Name, i), kind.Name, example})
		}
	}
	return events
}

func (e githubEvent) body(payload []byte) string {
	return fmt.Sprintf(
		`{"event_id":%q,"event_type":%q,"occurred_at":"2024-01-30T12:00:00Z","payload":%s}`,
		e.id,
		e.kind,
		payload,
	)
}

// compact is a payload without white space: the same payload in other bytes.
func compact(payload []byte) []byte {
	var b bytes.Buffer
	if err := json.Compact(&b, payload); err != nil {
		panic(err) // it was decoded
	}
	return b.Bytes()
}

// TestRealGitHubPayloads posts each payload three times. Every fifth payload is changed the third time. The
// destination fails half of the deliveries.
func TestRealGitHubPayloads(t *testing.T) {
	t.Parallel()
	events := githubEvents(t)
	require.GreaterOrEqual(t, len(events), 300)
	database := databases.New(t)
	mock := startProcess(t, []string{"LISTEN=127.0.0.1:0", "MOCK_API_FAILURE_RATE=0.5"}, "mock-api").url(t)
	spine := startProcess(t, []string{
		"DATABASE_URL=" + database, "LISTEN=127.0.0.1:0", "MOCK_API_URL=" + mock,
		"MAX_RETRY_ATTEMPTS=30", "INITIAL_RETRY_DELAY=10ms", "MAX_RETRY_DELAY=100ms",
	}, "serve")
	s := newTarget(t, spine.ready(t), database)

	var mu sync.Mutex
	got := map[string]int{}
	queue := make(chan githubEvent)
	var senders sync.WaitGroup
	changed := map[string]bool{}
	for i, e := range events {
		changed[e.id] = i%5 == 0
	}
	for range 8 {
		senders.Go(func() {
			for e := range queue {
				third := e.payload
				want := [3]string{"accepted", "deduplicated", "deduplicated"}
				if changed[e.id] {
					third = append([]byte(`{"changed":true,`), e.payload[1:]...)
					want[2] = "conflict"
				}
				for i, payload := range [][]byte{e.payload, compact(e.payload), third} {
					r, err := s.do(
						t.Context(),
						http.MethodPost,
						"/webhook",
						strings.NewReader(e.body(payload)),
						"Content-Type",
						"application/json",
					)
					if err != nil {
						t.Error(err)
						continue
					}
					assert.Equal(t, want[i], r.status(), e.id)
					mu.Lock()
					got[r.status()]++
					mu.Unlock()
				}
			}
		})
	}
	for _, e := range events {
		queue <- e
	}
	close(queue)
	senders.Wait()
	n := len(events)
	conflicts := (n + 4) / 5
	require.Equal(t, map[string]int{"accepted": n, "deduplicated": 2*n - conflicts, "conflict": conflicts}, got)

	await(t, s.db, n, "select count(*) from spine.processing_state where status = 'completed'")
	require.Equal(t, n, value[int](t, s.db, "select count(*) from spine.events"))
	require.Equal(t, n, value[int](t, s.db, "select count(*) from spine.processing_state"))
	require.Equal(t, conflicts, value[int](t, s.db, "select count(*) from spine.conflicts"))
	for _, e := range events {
		var payload, kind string
		require.NoError(
			t,
			s.db.QueryRow(t.Context(), "select payload::text, event_type from spine.events where event_id = $1", e.id).
				Scan(&payload, &kind),
		)
		require.Equal(t, string(e.payload), payload, "the first stays, as it was sent")
		require.Equal(t, e.kind, kind)
	}

	audited := map[string]int{}
	rows, err := s.db.Query(t.Context(), "select action, count(*) from spine.audit_log group by 1")
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var action string
		var count int
		require.NoError(t, rows.Scan(&action, &count))
		audited[action] = count
	}
	require.NoError(t, rows.Err())
	failures := audited["processing_attempt_failed"]
	require.NotZero(t, failures)
	require.Equal(t, map[string]int{
		"event_received":             3 * n,
		"event_inserted":             n,
		"event_deduped":              2*n - conflicts,
		"conflict_detected":          conflicts,
		"processing_attempt_started": n + failures,
		"processing_attempt_failed":  failures,
		"retry_scheduled":            failures,
		"processing_succeeded":       n,
	}, audited)

	var stats struct {
		Succeeded, Failed int
		DistinctIDs       int `json:"distinct_ids"`
		DistinctSucceeded int `json:"distinct_succeeded"`
		RepeatedSucceeded int `json:"repeated_succeeded"`
		WithoutID         int `json:"without_id"`
	}
	at := &target{url: mock, http: s.http}
	require.NoError(t, json.Unmarshal(at.request(t, http.MethodGet, "/stats", "").body, &stats))
	require.Equal(t, n, stats.DistinctIDs)
	require.Equal(t, n, stats.DistinctSucceeded)
	require.Equal(t, n, stats.Succeeded)
	require.Zero(t, stats.RepeatedSucceeded)
	require.Zero(t, stats.WithoutID)
	require.Equal(t, failures, stats.Failed)
}

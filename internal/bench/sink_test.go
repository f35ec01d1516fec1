package bench

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestASinkWithoutItsListenerIsAnError(t *testing.T) {
	ln := listen(t)
	require.NoError(t, ln.Close())
	_, err := RunSink(t.Context(), ln, SinkOptions{})
	require.ErrorContains(t, err, "sink")
}

func TestSink(t *testing.T) {
	start := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ln := listen(t)
	type result struct {
		report SinkReport
		err    error
	}
	ended := make(chan result, 1)
	go func() {
		report, err := RunSink(ctx, ln, SinkOptions{MaxIDs: 2})
		ended <- result{report, err}
	}()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	get := func(path string) (int, []byte) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+ln.Addr().String()+path, nil)
		require.NoError(t, err)
		answer, err := client.Do(r)
		require.NoError(t, err)
		defer func() { _ = answer.Body.Close() }()
		body, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		return answer.StatusCode, body
	}

	deliverTo(t.Context(), t, client, ln, "a/1", nil)
	deliverTo(t.Context(), t, client, ln, "a/1", []byte(`{"event_id":"not this one"}`))
	deliverTo(t.Context(), t, client, ln, "a/1", nil)
	deliverTo(t.Context(), t, client, ln, "", []byte(`{"source":"default","event_id":"b"}`))
	deliverTo(t.Context(), t, client, ln, "c", nil) // one too many
	deliverTo(t.Context(), t, client, ln, "", []byte(`{}`))

	status, body := get("/stats/a/1")
	assert.Equal(t, http.StatusOK, status)
	var arrival SinkArrival
	require.NoError(t, json.Unmarshal(body, &arrival))
	assert.Equal(t, "a/1", arrival.ID)
	assert.Equal(t, uint32(3), arrival.Deliveries)
	assert.WithinRange(t, arrival.First, start, time.Now())
	for _, path := range []string{"/", "/stats/", "/stats/c", "/stats/unknown"} {
		status, _ = get(path)
		assert.Equal(t, http.StatusNotFound, status, path)
	}
	status, body = get("/stats")
	assert.Equal(t, http.StatusOK, status)
	var report SinkReport
	require.NoError(t, json.Unmarshal(body, &report))
	assert.Positive(t, report.PerSecond)
	assert.Equal(t, int64(6), report.Deliveries)

	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+ln.Addr().String(), nil)
	require.NoError(t, err)
	answer, err := client.Do(r)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	assert.Equal(t, http.StatusMethodNotAllowed, answer.StatusCode)
	assert.Equal(t, "POST", answer.Header.Get("Allow"))

	cancel()
	end := <-ended
	require.NoError(t, end.err)
	assert.WithinRange(t, end.report.First, start, end.report.Last)
	end.report.First, end.report.Last, end.report.PerSecond = time.Time{}, time.Time{}, 0
	assert.Equal(t, SinkReport{
		Deliveries: 6, WithoutID: 1, DistinctIDs: 2, RepeatedIDs: 1, MaxIDs: 2, MaxIDsReached: true,
	}, end.report)
}

package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestALoadThatMakesNoSenseIsNamed(t *testing.T) {
	const target = "http://127.0.0.1:1"
	for name, load := range map[string]Load{
		"target":      {Target: "127.0.0.1:8000"},
		"connections": {Target: target, Connections: -1},
		"rate":        {Target: target, Rate: -1},
		"duration":    {Target: target, Duration: -1},
		"count":       {Target: target, Count: -1},
		"warm-up":     {Target: target, WarmUp: -1},
		"duplicate":   {Target: target, DuplicateRatio: 0.6, ConflictRatio: 0.6},
		"timeout":     {Target: target, Timeout: -1},
		"run id":      {Target: target, RunID: `"`},
		"body size":   {Target: target, BodySize: 100},
	} {
		_, err := load.complete()
		require.ErrorContains(t, err, name+" ")
		_, err = RunIngest(t.Context(), load)
		require.ErrorContains(t, err, name+" ")
	}
}

func TestDefaults(t *testing.T) {
	load, err := Load{Target: "http://localhost"}.complete()
	require.NoError(t, err)
	assert.Equal(t, "localhost:80", load.address())
	assert.Equal(t, 64, load.Connections)
	assert.Equal(t, 1024, load.BodySize)
	assert.Equal(t, 10*time.Second, load.Duration)
	assert.Equal(t, 10*time.Second, load.Timeout)
	other, err := Load{Target: "http://localhost"}.complete()
	require.NoError(t, err)
	assert.NotEqual(t, load.RunID, other.RunID)
}

func TestARequestIsAnEnvelopeOfTheGivenSize(t *testing.T) {
	load, err := Load{Target: "http://127.0.0.1:8000/base/", BodySize: 700, RunID: "run"}.complete()
	require.NoError(t, err)
	request := newRequest(load)
	request.set(42, 7)

	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(request.wire)))
	require.NoError(t, err)
	assert.Equal(t, "/base/webhook", r.URL.Path)
	assert.Equal(t, "127.0.0.1:8000", r.Host)
	body, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	assert.Len(t, body, 700)
	var envelope struct {
		EventID    string            `json:"event_id"`
		EventType  string            `json:"event_type"`
		OccurredAt time.Time         `json:"occurred_at"`
		Payload    map[string]string `json:"payload"`
	}
	require.NoError(t, json.Unmarshal(body, &envelope))
	assert.Equal(t, "run-0000000042", envelope.EventID)
	assert.Equal(t, "bench.event", envelope.EventType)
	assert.False(t, envelope.OccurredAt.IsZero())
	assert.Equal(t, "0000000007", envelope.Payload["variant"])

	n, ok := eventNumber([]byte(envelope.EventID), "run")
	assert.True(t, ok)
	assert.Equal(t, uint64(42), n)
	for _, foreign := range []string{"", "run", "run-42", "ran-0000000042", "run-000000004x", "run-00000000042"} {
		_, ok := eventNumber([]byte(foreign), "run")
		assert.False(t, ok, foreign)
	}
}

func TestField(t *testing.T) {
	for text, want := range map[string]string{
		`{"status":"accepted"}`:                        "accepted",
		`{"message":"status", "status" : "conflict" }`: "conflict",
		`{"status":1}`:                                 "",
		`{"status"}`:                                   "",
		`{"state":"accepted"}`:                         "",
		``:                                             "",
	} {
		assert.Equal(t, want, string(field([]byte(text), "status")), text)
	}
}

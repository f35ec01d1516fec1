package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/webhookspine/spine/internal/postgres/postgrestest"
)

var databases postgrestest.Databases

func TestMain(m *testing.M) { goleak.VerifyTestMain(databases.Main(m)) }

// system stands in for a system under test: the front of the contract, kept in memory.
type system struct {
	*httptest.Server
	deliver func(id string, body []byte) // called for each new event, before it is acknowledged; may be nil

	mu       sync.Mutex
	requests int
	sizes    map[int]int       // requests by body length
	payloads map[string][]byte // first payload by id
}

// newSystem starts a system. meddle, if set, may answer a request itself and then returns true. n
// counts requests from 0.
func newSystem(t *testing.T, meddle func(w http.ResponseWriter, r *http.Request, n int) bool) *system {
	t.Helper()
	s := &system{sizes: map[int]int{}, payloads: map[string][]byte{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler) // the client went
		}
		s.mu.Lock()
		n := s.requests
		s.requests++
		s.sizes[len(body)]++
		s.mu.Unlock()
		if meddle != nil && meddle(w, r, n) {
			return
		}
		var envelope struct {
			ID      string          `json:"event_id"`
			Payload json.RawMessage `json:"payload"`
		}
		if r.Method != http.MethodPost || r.URL.Path != "/webhook" ||
			r.Header.Get("Content-Type") != "application/json" ||
			json.Unmarshal(body, &envelope) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		s.mu.Lock()
		first, known := s.payloads[envelope.ID]
		if !known {
			s.payloads[envelope.ID] = envelope.Payload
		}
		s.mu.Unlock()
		outcome := "accepted"
		switch {
		case known && bytes.Equal(first, envelope.Payload):
			outcome = "deduplicated"
		case known:
			outcome = "conflict"
			w.WriteHeader(http.StatusConflict)
		case s.deliver != nil:
			s.deliver(envelope.ID, body)
		}
		_, _ = io.WriteString(w, `{"event_id":"x", "status": "`+outcome+`"}`)
	}))
	t.Cleanup(s.Close)
	return s
}

// alwaysAnswer returns a meddler that answers everything with a status and a body.
func alwaysAnswer(status int, body string) func(http.ResponseWriter, *http.Request, int) bool {
	return func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		return true
	}
}

func ingest(t *testing.T, load Load) Report {
	t.Helper()
	report, err := RunIngest(t.Context(), load)
	require.NoError(t, err)
	return report
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return ln
}

// deliverTo POSTs an event to a sink.
func deliverTo(ctx context.Context, t *testing.T, client *http.Client, ln net.Listener, id string, body []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+ln.Addr().String()+"/", bytes.NewReader(body))
	if err != nil {
		t.Error(err) // not in the test's own goroutine
		return
	}
	if id != "" {
		r.Header.Set("webhook-id", id)
	}
	answer, err := client.Do(r)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return // the last arrival ends the run, which may cut off its answer
	}
	if err != nil {
		t.Error(err)
		return
	}
	assert.Equal(t, http.StatusOK, answer.StatusCode)
	_ = answer.Body.Close()
}

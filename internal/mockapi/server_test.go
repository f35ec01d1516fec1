package mockapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/webhookspine/spine/internal/mockapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mockPath = "/third_party/mock"

func newServer(t *testing.T, config mockapi.Config) *mockapi.Server {
	t.Helper()
	s, err := mockapi.New(config)
	require.NoError(t, err)
	return s
}

// call sends one request straight to the handler.
func call(t *testing.T, h http.Handler, method, target, id, body string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	if id != "" {
		r.Header.Set("webhook-id", id)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// listen serves h on real connections, which can be cut.
func listen(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server
}

func post(ctx context.Context, t *testing.T, server *httptest.Server, target string) (*http.Response, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(
		ctx,
		http.MethodPost,
		server.URL+target,
		strings.NewReader(`{"event_id":"e1"}`),
	)
	require.NoError(t, err)
	return server.Client().Do(r)
}

// sequence returns its numbers one after the other, again and again.
func sequence(numbers ...float64) func() float64 {
	var n atomic.Int64
	return func() float64 { return numbers[int(n.Add(1)-1)%len(numbers)] }
}

func TestSettingsThatMakeNoSenseAreNamed(t *testing.T) {
	for setting, config := range map[string]mockapi.Config{
		"MOCK_API_FAILURE_RATE": {Behaviour: mockapi.Behaviour{FailureRate: 1.5}},
		"MOCK_API_STATUS":       {Behaviour: mockapi.Behaviour{Status: 99}},
		"MOCK_API_DELAY":        {Behaviour: mockapi.Behaviour{Delay: -time.Second}},
		"MOCK_API_CUT":          {Behaviour: mockapi.Behaviour{Cut: "sometimes"}},
		"MOCK_API_RETRY_AFTER":  {Behaviour: mockapi.Behaviour{RetryAfter: "soon"}},
		"MOCK_API_HANG":         {Behaviour: mockapi.Behaviour{Hang: true, Status: 500}},
		"MaxIDs":                {MaxIDs: -1},
	} {
		_, err := mockapi.New(config)
		require.ErrorContains(t, err, setting+" ")
	}
	_, err := mockapi.New(mockapi.Config{Behaviour: mockapi.Behaviour{FailureRate: math.NaN()}})
	require.ErrorContains(t, err, "MOCK_API_FAILURE_RATE ")
}

func TestQueriesThatMakeNoSenseAreRefused(t *testing.T) {
	s := newServer(t, mockapi.Config{})
	for query, parameter := range map[string]string{
		"failure_rate=2": "failure_rate", "failure_rate=-1": "failure_rate",
		"failure_rate=NaN": "failure_rate", "failure_rate=x": "failure_rate",
		"status=100": "status", "status=600": "status", "status=0": "status", "status=ok": "status",
		"status=500&status=200": "status", "status=500&cut=true": "status",
		"delay=6m": "delay", "delay=-1s": "delay", "delay=5": "delay",
		"hang=maybe": "hang", "hang=true&cut=body": "hang", "cut=maybe": "cut",
		"retry_after=-1s": "retry_after", "retry_after=-1": "retry_after", "retry_after=tomorrow": "retry_after",
		"stauts=500": "stauts", "%zz": "query",
	} {
		w := call(t, s, http.MethodPost, mockPath+"?"+query, "", "")
		assert.Equal(t, http.StatusBadRequest, w.Code, query)
		assert.Equal(t, "application/problem+json", w.Header().Get("Content-Type"), query)
		var problem struct{ Detail string }
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &problem), query)
		assert.True(t, strings.HasPrefix(problem.Detail, parameter+" "), "%s: %s", query, problem.Detail)
	}
	assert.Zero(t, s.Stats().Requests, "a rejected query is not an answer of the mock API")
}

func TestOtherRequestsAreRefused(t *testing.T) {
	s := newServer(t, mockapi.Config{})
	for _, c := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{http.MethodGet, mockPath, http.StatusMethodNotAllowed, "POST"},
		{http.MethodHead, mockPath, http.StatusMethodNotAllowed, "POST"},
		{http.MethodPost, "/stats", http.StatusMethodNotAllowed, "DELETE, GET, HEAD"},
		{http.MethodDelete, "/healthz", http.StatusMethodNotAllowed, "GET, HEAD"},
		{http.MethodPost, "/", http.StatusNotFound, ""},
		{http.MethodPost, "/third_party//mock", http.StatusNotFound, ""},
		{http.MethodGet, "/stats/never-seen", http.StatusNotFound, ""},
	} {
		w := call(t, s, c.method, c.path, "", "")
		assert.Equal(t, c.status, w.Code, "%s %s", c.method, c.path)
		assert.Equal(t, c.allow, w.Header().Get("Allow"), "%s %s", c.method, c.path)
		assert.Equal(t, "application/problem+json", w.Header().Get("Content-Type"), "%s %s", c.method, c.path)
	}
	assert.Equal(t, http.StatusOK, call(t, s, http.MethodGet, "/healthz", "", "").Code)
}

func TestItFailsAtTheGivenRate(t *testing.T) {
	// Two numbers for each failure: whether, and with which status.
	s := newServer(t, mockapi.Config{
		Behaviour: mockapi.Behaviour{FailureRate: 0.5},
		Random:    sequence(0.49, 0, 0.49, 0.34, 0.49, 0.99, 0.5),
	})
	for _, want := range []int{500, 502, 503, 200} {
		w := call(t, s, http.MethodPost, mockPath, "e1", "")
		assert.Equal(t, want, w.Code)
		assert.True(t, json.Valid(w.Body.Bytes()))
	}

	always := newServer(t, mockapi.Config{Behaviour: mockapi.Behaviour{FailureRate: 1}, Random: sequence(0.999)})
	assert.Equal(t, http.StatusServiceUnavailable, call(t, always, http.MethodPost, mockPath, "", "").Code)
	never := newServer(t, mockapi.Config{Random: sequence(0)})
	assert.Equal(t, http.StatusOK, call(t, never, http.MethodPost, mockPath, "", "").Code)
}

func TestAQueryReplacesTheSettings(t *testing.T) {
	s := newServer(t, mockapi.Config{
		Behaviour: mockapi.Behaviour{FailureRate: 1, Status: http.StatusTooManyRequests, RetryAfter: "7"},
		Random:    sequence(0.3),
	})
	for _, c := range []struct {
		query, retryAfter string
		status            int
	}{
		{"", "7", http.StatusTooManyRequests},
		{"?failure_rate=0.2", "", http.StatusOK},
		{"?failure_rate=0", "", http.StatusOK},
		{"?status=410", "7", http.StatusGone},
		{"?status=410&failure_rate=0.2", "", http.StatusOK},
		{"?status=410&failure_rate=0.4", "7", http.StatusGone},
		{"?status=410&failure_rate=0", "", http.StatusOK},
		{"?status=503&retry_after=2", "2", http.StatusServiceUnavailable},
		{"?status=204&retry_after=2", "", http.StatusNoContent},
		{"?hang=false", "", http.StatusOK},
	} {
		w := call(t, s, http.MethodPost, mockPath+c.query, "", "")
		assert.Equal(t, c.status, w.Code, c.query)
		assert.Equal(t, c.retryAfter, w.Header().Get("Retry-After"), c.query)
	}
}

func TestRetryAfterTakesBothForms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, mockapi.Config{})
		date := "Fri, 31 Dec 1999 23:59:59 GMT"
		w := call(t, s, http.MethodPost, mockPath+"?status=503&retry_after="+strings.ReplaceAll(date, " ", "+"), "", "")
		assert.Equal(t, date, w.Header().Get("Retry-After"))

		w = call(t, s, http.MethodPost, mockPath+"?status=503&retry_after=1500ms", "", "")
		at, err := http.ParseTime(w.Header().Get("Retry-After"))
		require.NoError(t, err)
		assert.Equal(t, 2*time.Second, time.Until(at), "rounded up to whole seconds")
	})
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, mockapi.Config{})
		start := time.Now()
		assert.Equal(t, http.StatusOK, call(t, s, http.MethodPost, mockPath+"?delay=300ms", "", "").Code)
		assert.Equal(t, 300*time.Millisecond, time.Since(start))
	})
}

func TestAHangEndsAtItsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, mockapi.Config{})
		start := time.Now()
		assert.PanicsWithValue(t, http.ErrAbortHandler, func() {
			call(t, s, http.MethodPost, mockPath+"?hang=true", "e1", "")
		})
		assert.Equal(t, mockapi.MaxDelay, time.Since(start))
		assert.Equal(t, map[int]int64{0: 1}, s.Stats().Statuses)
	})
}

func TestAHangEndsWithTheClient(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := newServer(t, mockapi.Config{Random: func() float64 {
		cancel() // the request arrived, so the client may go
		return 0
	}})
	ended := make(chan struct{})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		s.ServeHTTP(w, r)
	}))
	server.Start()
	defer server.Close()

	r, err := post(ctx, t, server, mockPath+"?hang=true")
	if err == nil {
		require.NoError(t, r.Body.Close())
	}
	require.ErrorIs(t, err, context.Canceled)
	<-ended
	assert.Equal(t, int64(1), s.Stats().Failed)
}

func TestAHangOutlivesTheServersTimeoutsAndEndsAtItsStop(t *testing.T) {
	stop := make(chan struct{})
	s := newServer(t, mockapi.Config{Stop: stop})
	server := httptest.NewUnstartedServer(s)
	server.Config.ReadTimeout = 50 * time.Millisecond
	server.Config.WriteTimeout = 50 * time.Millisecond
	server.Start()
	defer server.Close()

	start := time.Now()
	timer := time.AfterFunc(200*time.Millisecond, func() { close(stop) })
	defer timer.Stop()
	r, err := post(t.Context(), t, server, mockPath+"?hang=true")
	if err == nil {
		require.NoError(t, r.Body.Close())
	}
	require.ErrorIs(t, err, io.EOF)
	assert.GreaterOrEqual(t, time.Since(start), 200*time.Millisecond)
}

func TestConnectionsAreCut(t *testing.T) {
	s := newServer(t, mockapi.Config{})
	server := listen(t, s)

	r, err := post(t.Context(), t, server, mockPath+"?cut=true")
	if err == nil {
		require.NoError(t, r.Body.Close())
	}
	require.ErrorIs(t, err, io.EOF, "no byte of an answer")

	r, err = post(t.Context(), t, server, mockPath+"?cut=body")
	require.NoError(t, err)
	defer func() { _ = r.Body.Close() }()
	assert.Equal(t, http.StatusOK, r.StatusCode)
	half, err := io.ReadAll(r.Body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	assert.NotEmpty(t, half)

	stats := s.Stats()
	assert.Equal(t, int64(2), stats.Failed)
	assert.Zero(t, stats.Succeeded)
}

func TestConnectionsAreKept(t *testing.T) {
	address := listen(t, newServer(t, mockapi.Config{})).Listener.Addr().String()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	answers := bufio.NewReader(conn)
	body := strings.Repeat("x", 3<<20)
	for range 2 {
		_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: mock\r\nContent-Length: %d\r\n\r\n%s",
			mockPath, len(body), body)
		require.NoError(t, err)
		r, err := http.ReadResponse(answers, nil)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, r.Body)
		require.NoError(t, err)
		require.NoError(t, r.Body.Close())
		assert.Equal(t, http.StatusOK, r.StatusCode)
		assert.False(t, r.Close)
	}
}

func TestABodyCutShortIsNoRequest(t *testing.T) {
	s := newServer(t, mockapi.Config{})
	body := io.MultiReader(strings.NewReader("{"), broken{})
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, mockPath, body)
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	assert.Equal(t, http.StatusBadRequest, w.Code)
	assert.Zero(t, s.Stats().Requests)
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestStats(t *testing.T) {
	s := newServer(t, mockapi.Config{})
	call(t, s, http.MethodPost, mockPath+"?status=503", "a/1", `{"event_id":"not this one"}`)
	call(t, s, http.MethodPost, mockPath, "a/1", "")
	call(t, s, http.MethodPost, mockPath, "a/1", "")
	call(t, s, http.MethodPost, mockPath, "a/1", "")
	call(t, s, http.MethodPost, mockPath, "", `{"event_id":"b"}`)
	call(t, s, http.MethodPost, mockPath+"?status=500", "", `{"event_id":"c"}`)
	call(t, s, http.MethodPost, mockPath, "", `no json`)
	call(t, s, http.MethodPost, mockPath, "", "")

	w := call(t, s, http.MethodGet, "/stats", "", "")
	var stats mockapi.Stats
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &stats))
	assert.Equal(t, mockapi.Stats{
		Requests: 8, Succeeded: 6, Failed: 2, WithoutID: 2,
		DistinctIDs: 3, RepeatedIDs: 1, DistinctSucceeded: 2, RepeatedSucceeded: 1,
		MaxIDs: 1_000_000, Statuses: map[int]int64{200: 6, 500: 1, 503: 1},
	}, stats)

	w = call(t, s, http.MethodGet, "/stats/a/1", "", "")
	assert.JSONEq(t, `{"id":"a/1","received":4,"statuses":[503,200,200,200]}`, w.Body.String())

	assert.Equal(t, http.StatusNoContent, call(t, s, http.MethodDelete, "/stats", "", "").Code)
	assert.Equal(t, mockapi.Stats{MaxIDs: 1_000_000, Statuses: map[int]int64{}}, s.Stats())
	assert.Equal(t, http.StatusNotFound, call(t, s, http.MethodGet, "/stats/a/1", "", "").Code)
}

func TestMemoryIsBounded(t *testing.T) {
	s := newServer(t, mockapi.Config{MaxIDs: 3})
	for i := range 10_001 {
		call(t, s, http.MethodPost, mockPath, fmt.Sprint("e", i), "")
	}
	call(t, s, http.MethodPost, mockPath, "e0", "")
	call(t, s, http.MethodPost, mockPath, "e5", "")
	stats := s.Stats()
	assert.Equal(t, int64(10_003), stats.Succeeded)
	assert.Equal(t, int64(3), stats.DistinctIDs)
	assert.Equal(t, int64(1), stats.RepeatedIDs)
	assert.Equal(t, int64(1), stats.RepeatedSucceeded)
	assert.True(t, stats.MaxIDsReached)

	assert.Equal(t, http.StatusOK, call(t, s, http.MethodGet, "/stats/e10000", "", "").Code)
	w := call(t, s, http.MethodGet, "/stats/e1", "", "")
	assert.Equal(t, http.StatusNotFound, w.Code, "the oldest made room for e0")
	w = call(t, s, http.MethodGet, "/stats/e0", "", "")
	assert.JSONEq(
		t,
		`{"id":"e0","received":1,"statuses":[200]}`,
		w.Body.String(),
		"e0 made room for e10000 and came back",
	)

	for range 101 {
		call(t, s, http.MethodPost, mockPath, "busy", "")
	}
	var busy mockapi.IDStats
	require.NoError(t, json.Unmarshal(call(t, s, http.MethodGet, "/stats/busy", "", "").Body.Bytes(), &busy))
	assert.Equal(t, int64(101), busy.Received)
	assert.Len(t, busy.Statuses, 100)

	long := strings.Repeat("x", 5000)
	call(t, s, http.MethodPost, mockPath, long, "")
	assert.Equal(t, http.StatusNotFound, call(t, s, http.MethodGet, "/stats/"+long, "", "").Code)
}

func TestABodyAsksHowItsAttemptsAreAnswered(t *testing.T) {
	s := newServer(t, mockapi.Config{Behaviour: mockapi.Behaviour{FailureRate: 1}, Random: sequence(0)})
	body := func(attempt int, asks string) string {
		return fmt.Sprintf(`{"event_id":"e","attempt":%d,"payload":{"mock_api":%s}}`, attempt, asks)
	}
	for name, c := range map[string]struct {
		target, body string
		want         int
	}{
		"the first":           {mockPath, body(1, `["status=429","failure_rate=0"]`), http.StatusTooManyRequests},
		"the second":          {mockPath, body(2, `["status=429","failure_rate=0"]`), http.StatusOK},
		"one beyond":          {mockPath, body(3, `["status=429","failure_rate=0"]`), http.StatusInternalServerError},
		"none before":         {mockPath, body(0, `["status=429"]`), http.StatusInternalServerError},
		"a query wins":        {mockPath + "?status=418", body(1, `["status=429"]`), http.StatusTeapot},
		"what makes no sense": {mockPath, body(1, `["status=no"]`), http.StatusBadRequest},
		"no list":             {mockPath, body(1, `"status=429"`), http.StatusInternalServerError},
		"not in the payload":  {mockPath, `{"attempt":1,"mock_api":["status=429"]}`, http.StatusInternalServerError},
		"no JSON":             {mockPath, `{"mock_api"`, http.StatusInternalServerError},
	} {
		for _, id := range []string{"", "e"} {
			require.Equal(t, c.want, call(t, s, http.MethodPost, c.target, id, c.body).Code, "%s, id %q", name, id)
		}
	}
	known := call(t, s, http.MethodGet, "/stats/e", "", "")
	require.Equal(t, http.StatusOK, known.Code)
}

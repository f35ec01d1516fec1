package api_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/api"
	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
)

// told is one message of a stream.
type told struct {
	name, id string
	data     string
}

func (m told) rows(t *testing.T) (rows []trail.Step) {
	t.Helper()
	require.Equal(t, "audit", m.name)
	var read []struct {
		ID      int64
		EventID *string `json:"event_id"`
		Action  trail.Action
	}
	require.NoError(t, json.Unmarshal([]byte(m.data), &read))
	for _, r := range read {
		rows = append(rows, trail.Step{ID: r.ID, EventID: r.EventID, Action: r.Action})
	}
	return rows
}

type total struct {
	Rows   int            `json:"rows"`
	Counts map[string]int `json:"counts"`
	Since  time.Time      `json:"since"`
	Until  time.Time      `json:"until"`
}

func (m told) summary(t *testing.T) (sum total) {
	t.Helper()
	require.Equal(t, "summary", m.name)
	require.NoError(t, json.Unmarshal([]byte(m.data), &sum))
	counted := 0
	for _, n := range sum.Counts {
		counted += n
	}
	require.Equal(t, sum.Rows, counted)
	return sum
}

// readMessage reads as a browser does: a message that is cut is discarded.
func readMessage(r *bufio.Reader) (m told, err error) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return told{}, err
		}
		field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch field {
		case "event":
			m.name = value
		case "id":
			m.id = value
		case "data":
			m.data += value
		case "":
			if m.name != "" {
				return m, nil
			}
			m = told{}
		}
	}
}

// process is one process that serves the stream of a log.
type process struct {
	url  string
	ring func()
	stop func() // tells the stream to stop, and waits for it
}

// startProcess serves the stream of log on a socket until the test ends.
func startProcess(t *testing.T, log trail.Reader, config api.StreamConfig) process {
	t.Helper()
	stream := api.NewStream(log, config, zerolog.Nop(), prometheus.NewRegistry())
	router := mux.NewRouter()
	stream.Register(router)
	server := httptest.NewServer(router)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = stream.Run(ctx) })
	stop := sync.OnceFunc(func() {
		cancel()
		running.Wait()
		server.Close()
	})
	t.Cleanup(stop)
	return process{url: server.URL, ring: stream.Ring, stop: stop}
}

// opened is an answer whose body is open, until the test ends at the latest.
type opened struct {
	StatusCode int
	Header     http.Header
	Body       io.ReadCloser
}

// connect opens a stream, or returns nil where ctx ends before. The answer ends
// with ctx.
func connect(ctx context.Context, t *testing.T, url, query, last string) *opened {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/api/stream"+query, nil)
	require.NoError(t, err)
	if last != "" {
		r.Header.Set("Last-Event-ID", last)
	}
	answer, err := http.DefaultClient.Do(r)
	if ctx.Err() != nil && err != nil {
		return nil
	}
	require.NoError(t, err)
	t.Cleanup(func() { _ = answer.Body.Close() })
	return &opened{answer.StatusCode, answer.Header, answer.Body}
}

// watch opens a stream and returns a function that waits for its next message.
func watch(t *testing.T, url, query, last string) (next func() told) {
	t.Helper()
	answer := connect(t.Context(), t, url, query, last)
	require.Equal(t, http.StatusOK, answer.StatusCode)
	body := bufio.NewReader(answer.Body)
	return func() told {
		t.Helper()
		m, err := readMessage(body)
		require.NoError(t, err)
		return m
	}
}

// A client is cut fifty times while ten thousand events come in, at any byte, by either of two processes, each of which
// is replaced meanwhile. It shows each row of the table once.
func TestStreamThatIsCutShowsEachRowOnce(t *testing.T) {
	t.Parallel()
	cuts, batches, batch := 50, 100, 100
	if testing.Short() {
		cuts, batches = 15, 30
	}
	s := newSystem(t)
	config := api.DefaultStreamConfig()
	var mu sync.Mutex // over processes, where they are replaced
	processes := []process{startProcess(t, s.store, config), startProcess(t, s.store, config)}

	// The first message is a place to come back to, before anything happened.
	first := watch(t, processes[0].url, "", "")()
	require.Equal(t, "cursor", first.name)
	require.JSONEq(t, "{}", first.data)
	last := first.id

	more := make(chan int)
	var writers sync.WaitGroup
	for range 3 {
		writers.Go(func() {
			for n := range more {
				events := make([]event.Event, batch)
				for i := range events {
					events[i] = webhook("default", fmt.Sprintf("e-%d-%d", n, i), "t", "{}")
				}
				if _, err := s.store.Ingest(t.Context(), events); err != nil {
					t.Error(err)
				}
				mu.Lock()
				for _, p := range processes {
					p.ring()
				}
				mu.Unlock()
			}
		})
	}
	// Transactions that stay open while others commit, and some that fail.
	held := make(chan struct{})
	writers.Go(func() {
		for n := 0; ; n++ {
			tx, err := s.pool.Begin(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			_, err = tx.Exec(t.Context(), `insert into spine.audit_trail (event_id, source, action)
				select 'held', 'default', 'event_queued' from generate_series(1, $1)`, 1+n%2*1500)
			if err != nil {
				t.Error(err)
			}
			_, open := <-held
			if n%5 == 4 {
				_ = tx.Rollback(t.Context())
			} else if err := tx.Commit(t.Context()); err != nil {
				t.Error(err)
			}
			if !open {
				return
			}
		}
	})

	seen := map[int64]int{}
	take := func(m told) {
		if m.name == "audit" {
			for _, r := range m.rows(t) {
				seen[r.ID]++
			}
		} else {
			require.Equal(t, "cursor", m.name)
		}
		last = m.id
	}
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // cuts need no secrecy
	sent := 0
	for cut := range cuts {
		for range batches / cuts {
			more <- sent
			sent++
		}
		if cut%3 == 0 {
			held <- struct{}{}
		}
		if cut%20 == 10 {
			i := cut / 20 % 2
			processes[i].stop()
			replaced := startProcess(t, s.store, config)
			mu.Lock()
			processes[i] = replaced
			mu.Unlock()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond) // in case that no more comes
		if answer := connect(ctx, t, processes[random.IntN(2)].url, "", last); answer != nil {
			require.Equal(t, http.StatusOK, answer.StatusCode)
			body := bufio.NewReader(io.LimitReader(answer.Body, random.Int64N(140_000)))
			for {
				m, err := readMessage(body)
				if err != nil {
					break
				}
				take(m)
			}
			_ = answer.Body.Close()
		}
		cancel()
	}
	close(more)
	close(held)
	writers.Wait()

	shown := len(seen)
	rows, err := s.pool.Query(t.Context(), "select id from spine.audit_trail")
	require.NoError(t, err)
	want := map[int64]int{}
	for rows.Next() {
		var id int64
		require.NoError(t, rows.Scan(&id))
		want[id] = 1
	}
	require.NoError(t, rows.Err())
	require.Greater(t, len(want), batches*batch*3)
	// Any row that is missing, or comes twice, comes before this one or with it.
	s.exec("insert into spine.audit_trail (event_id, source, action) values ('the end', 'default', 'event_queued')")
	next := watch(t, processes[0].url, "", last)
	for ended := false; !ended; {
		m := next()
		take(m)
		if m.name == "audit" {
			for _, r := range m.rows(t) {
				if *r.EventID == "the end" {
					delete(seen, r.ID)
					ended = true
				}
			}
		}
	}
	require.Equal(t, want, seen)
	t.Logf("%d rows, %d of them before the last cut", len(want), shown)
}

func TestStreamFilters(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	p := startProcess(t, s.store, api.DefaultStreamConfig())
	begin := watch(t, p.url, "", "")()
	write := func() {
		s.exec(`insert into spine.audit_trail (event_id, source, action) values
			('a', null, 'event_queued'),
			('a', 'other', 'event_replayed'),
			('b', 'other', 'event_queued'),
			('b', 'other', 'processing_attempt_failed'),
			(null, null, 'claims_paused')`)
	}
	show := func(m told) string {
		var shown []string
		for _, r := range m.rows(t) {
			id := "-"
			if r.EventID != nil {
				id = *r.EventID
			}
			shown = append(shown, id+" "+string(r.Action))
		}
		return strings.Join(shown, ", ")
	}
	cases := map[string]string{
		"": "a event_queued, a event_replayed, b event_queued, b processing_attempt_failed, - claims_paused",

		"?event_id=a":                        "a event_queued, a event_replayed",
		"?source=other":                      "a event_replayed, b event_queued, b processing_attempt_failed",
		"?event_id=a&source=default":         "a event_queued",
		"?action=event_queued":               "a event_queued, b event_queued",
		"?success=failure":                   "b processing_attempt_failed",
		"?source=other&action=event_queued":  "b event_queued",
		"?source=other&success=failure":      "b processing_attempt_failed",
		"?action=claims_paused&max_rows=100": "- claims_paused",
	}
	live := map[string]func() told{}
	for query := range cases {
		live[query] = watch(t, p.url, query, "")
		require.Equal(t, "cursor", live[query]().name)
	}
	write()
	for query, want := range cases {
		require.Equal(t, want, show(live[query]()), query)
		missed := watch(t, p.url, query, begin.id)
		require.Equal(t, want, show(missed()), query)
		require.Equal(t, "cursor", missed().name)
	}
	// The parameter does what the header does.
	query := "?event_id=a&last_event_id=" + begin.id
	require.Equal(t, cases["?event_id=a"], show(watch(t, p.url, query, "")()))
}

func TestStreamBeginsAnewWhereItCannotGoOn(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	p := startProcess(t, s.store, api.DefaultStreamConfig())
	for name, last := range map[string]string{
		"garbage":          "yesterday",
		"another database": trail.CursorAt(trail.Transactions{End: 1 << 60}).String(),
		"another database, in the middle": trail.CursorAt(trail.Transactions{End: 1 << 59}).
			ReadingTo(trail.Transactions{End: 1 << 60}).String(),
	} {
		next := watch(t, p.url, "", last)
		m := next()
		require.Equal(t, "reset", m.name, name)
		require.JSONEq(t, "{}", m.data)
		s.ingest(webhook("default", name, "t", "{}"))
		require.Equal(t, name, *next().rows(t)[0].EventID)
		require.Equal(t, name, *watch(t, p.url, "", m.id)().rows(t)[0].EventID)
	}
}

func TestStreamRejectsAQueryThatItDoesNotUnderstand(t *testing.T) {
	t.Parallel()
	stream := api.NewStream(newModel(), api.DefaultStreamConfig(), zerolog.Nop(), prometheus.NewRegistry())
	router := mux.NewRouter()
	stream.Register(router)
	for query, detail := range map[string]string{
		"max_rows=0":           "max_rows must be a whole number from 1 to 10000",
		"max_rows=10001":       "max_rows must be a whole number from 1 to 10000",
		"max_rows=many":        "max_rows must be a whole number from 1 to 10000",
		"success=maybe":        "success must be success, failure or pending",
		"type=t":               "type is not known here",
		"event_id=":            "event_id must not be empty",
		"source=a&source=b":    "source came more than once",
		"event_id=%00":         "event_id is not text that can be stored",
		"last_event_id=&x=%zz": "the query is not well-formed",
	} {
		requireProblem(t, ask(t, router, http.MethodGet, "/api/stream?"+query), http.StatusBadRequest, detail)
	}
	for _, site := range []string{"cross-site", "same-site"} {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/stream", nil)
		r.Header.Set("Sec-Fetch-Site", site)
		router.ServeHTTP(w, r)
		requireProblem(t, answer{w.Code, w.Header(), w.Body.Bytes()}, http.StatusForbidden, "other origins")
	}
}

func TestNoProxyOrCacheKeepsAStream(t *testing.T) {
	t.Parallel()
	p := startProcess(t, newModel(), api.DefaultStreamConfig())
	answer := connect(t.Context(), t, p.url, "", "")
	for name, want := range map[string]string{
		"Content-Type":           "text/event-stream",
		"Cache-Control":          "no-store",
		"X-Content-Type-Options": "nosniff",
		"X-Accel-Buffering":      "no",
	} {
		require.Equal(t, want, answer.Header.Get(name))
	}
	line, err := bufio.NewReader(answer.Body).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "retry: 1000\n", line)
}

func TestStreamLimitsItsViewers(t *testing.T) {
	t.Parallel()
	config := api.DefaultStreamConfig()
	config.Viewers = 1
	p := startProcess(t, newModel(), config)
	ctx, leave := context.WithCancel(t.Context())
	first := connect(ctx, t, p.url, "", "")
	require.Equal(t, http.StatusOK, first.StatusCode)
	second := connect(t.Context(), t, p.url, "", "")
	require.Equal(t, http.StatusServiceUnavailable, second.StatusCode)
	require.NotEmpty(t, second.Header.Get("Retry-After"))
	require.Equal(t, "application/problem+json", second.Header.Get("Content-Type"))
	leave()
	require.Eventually(
		t,
		func() bool { return connect(t.Context(), t, p.url, "", "").StatusCode == http.StatusOK },
		time.Minute,
		5*time.Millisecond,
	)
}

func TestStreamsEndWhenTheProcessIsToldToStop(t *testing.T) {
	t.Parallel()
	model := newModel()
	stream := api.NewStream(model, api.DefaultStreamConfig(), zerolog.Nop(), prometheus.NewRegistry())
	router := mux.NewRouter()
	stream.Register(router)
	server := httptest.NewServer(router)
	t.Cleanup(server.Close)
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- stream.Run(ctx) }()

	reads := connect(t.Context(), t, server.URL, "?event_id=none", "")
	body := bufio.NewReader(reads.Body)
	_, err := readMessage(body)
	require.NoError(t, err)
	// This one takes nothing, and more is on the way than sockets hold.
	_ = connect(t.Context(), t, server.URL, "", trail.CursorAt(trail.Transactions{End: 1}).String())
	for range 100 {
		model.write(1000, "event_queued", strings.Repeat("x", 200))
	}
	stream.Ring()
	stop()
	require.NoError(t, <-stopped)
	_, err = io.Copy(io.Discard, body)
	require.NoError(t, err, "it ends, and is not torn")
	closed := make(chan struct{})
	go func() {
		server.Config.SetKeepAlivesEnabled(false)
		_ = server.Config.Shutdown(t.Context())
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Fatal("a stream holds up the stop")
	}
	w := httptest.NewRecorder()
	router.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/stream", nil))
	require.Equal(t, http.StatusOK, w.Code, "a browser comes back after a stream that ends, and not after an error")
	require.Equal(t, "text/event-stream", w.Header().Get("Content-Type"))
}

// model is an audit log in memory. Each row is a transaction of its own, which is committed at once.
type model struct {
	mu    sync.Mutex
	rows  []trail.Step
	reads int
	err   error
	slow  error         // of pages, where there is one to read
	hold  chan struct{} // what is read is answered when it is closed; nil: at once
}

func newModel() *model { return &model{} }

// write adds n rows.
func (m *model) write(n int, action trail.Action, eventID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for range n {
		m.rows = append(m.rows, trail.Step{
			Timestamp: event.Timestamp{
				Time: time.Now().UTC(),
			}, ID: int64(len(m.rows)) + 1, EventID: &eventID, Action: action, Success: "success",
		})
	}
}

func (m *model) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

func (m *model) failPages(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slow = err
}

// holdReads has reads from now on wait for the channel; nil has them wait for nothing.
func (m *model) holdReads(hold chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hold = hold
}

// asked returns how often the log was read since it was called before.
func (m *model) asked() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.reads
	m.reads = 0
	return n
}

func (m *model) now() trail.Transactions { return trail.Transactions{End: uint64(len(m.rows)) + 1} }

func (m *model) CurrentCursor(context.Context) (trail.Cursor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	return trail.CursorAt(m.now()), m.err
}

func (m *model) ReadSteps(_ context.Context, c trail.Cursor, f trail.Filter) ([]trail.Step, trail.Cursor, error) {
	rows, next, hold, err := m.read(c, f)
	if hold != nil {
		<-hold
	}
	return rows, next, err
}

func (m *model) read(c trail.Cursor, f trail.Filter) ([]trail.Step, trail.Cursor, chan struct{}, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	if m.err != nil {
		return nil, c, nil, m.err
	}
	if c.Until == nil {
		if c.Seen.End > m.now().End {
			return nil, c, nil, trail.ErrCursorAhead
		}
		if c = c.ReadingTo(m.now()); c.Settled() {
			return nil, c, m.hold, nil
		}
	}
	if m.slow != nil {
		return nil, c, nil, m.slow
	}
	const size = 500
	var rows []trail.Step
	last := trail.Key{}
	for xid := max(c.Seen.End, c.Last.XID+1); xid < c.Until.End && len(rows) < size; xid++ {
		r := m.rows[xid-1]
		if len(f.EventIDs) == 0 || f.EventIDs[0] == *r.EventID {
			rows = append(rows, r)
			last = trail.Key{XID: xid, Timestamp: r.Timestamp, ID: r.ID}
		}
	}
	return rows, c.After(last, len(rows) == size), m.hold, nil
}

// screen is a client within a bubble, which may be slow.
type screen struct {
	t      *testing.T
	header http.Header
	cancel context.CancelFunc
	done   chan struct{}
	before int // rows that it showed when it was opened

	mu       sync.Mutex
	text     bytes.Buffer
	deadline time.Time
	slow     chan struct{} // writes wait until it is closed; nil where they do not
}

func (s *screen) Header() http.Header { return s.header }
func (s *screen) WriteHeader(int)     {}
func (s *screen) Flush()              {}

func (s *screen) SetReadDeadline(time.Time) error { return nil }

func (s *screen) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	return nil
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	slow, deadline := s.slow, s.deadline
	s.mu.Unlock()
	if slow != nil {
		select {
		case <-slow:
		case <-time.After(time.Until(deadline)):
			return 0, os.ErrDeadlineExceeded
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

// stall makes the screen take nothing until the returned function is called.
func (s *screen) stall() (resume func()) {
	slow := make(chan struct{})
	s.mu.Lock()
	s.slow = slow
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		s.slow = nil
		s.mu.Unlock()
		close(slow)
	}
}

// shows returns the messages that came since it was called before, and the
// text that they were.
func (s *screen) shows() (messages []told, text string) {
	s.t.Helper()
	synctest.Wait()
	s.mu.Lock()
	text = s.text.String()
	s.text.Reset()
	s.mu.Unlock()
	r := bufio.NewReader(strings.NewReader(text))
	for {
		m, err := readMessage(r)
		if err != nil {
			return messages, text
		}
		messages = append(messages, m)
	}
}

// bubble is a stream of a model within a synctest bubble.
type bubble struct {
	t      *testing.T
	log    *model
	stream *api.Stream
	router *mux.Router
}

func inBubble(t *testing.T, config api.StreamConfig, f func(t *testing.T, b *bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{t: t, log: newModel(), router: mux.NewRouter()}
		b.stream = api.NewStream(b.log, config, zerolog.Nop(), prometheus.NewRegistry())
		b.stream.Register(b.router)
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		go func() {
			_ = b.stream.Run(ctx)
			close(stopped)
		}()
		f(t, b)
		cancel()
		<-stopped
	})
}

// fromTheBeginning asks for all that was ever written.
var fromTheBeginning = "last_event_id=" + trail.CursorAt(trail.Transactions{End: 1}).String()

// connect opens a stream.
func (b *bubble) connect(query string) *screen {
	ctx, cancel := context.WithCancel(b.t.Context())
	s := &screen{t: b.t, header: http.Header{}, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		b.router.ServeHTTP(s, httptest.NewRequestWithContext(ctx, http.MethodGet, "/api/stream"+query, nil))
	}()
	return s
}

// open opens a stream and takes its first message off it.
func (b *bubble) open(query string) *screen {
	b.t.Helper()
	s := b.connect(query)
	time.Sleep(100 * time.Millisecond) // in a bubble: by then the hub has let it in
	messages, _ := s.shows()
	require.NotEmpty(b.t, messages)
	s.before, _ = count(b.t, messages)
	return s
}

// write adds rows and rings.
func (b *bubble) write(n int, action trail.Action, eventID string) {
	b.log.write(n, action, eventID)
	b.stream.Ring()
}

// settle lets the hub read all, and everybody show it.
func (b *bubble) settle() {
	time.Sleep(100 * time.Millisecond) // in a bubble
	synctest.Wait()
}

// count returns how many rows messages show, and how many they sum up.
func count(t *testing.T, messages []told) (rows, summed int) {
	t.Helper()
	for _, m := range messages {
		switch m.name {
		case "audit":
			rows += len(m.rows(t))
		case "summary":
			summed += m.summary(t).Rows
		}
	}
	return rows, summed
}

func TestASlowViewerIsToldASummaryAndDelaysNobody(t *testing.T) {
	t.Parallel()
	config := api.DefaultStreamConfig()
	config.Patience = time.Hour
	inBubble(t, config, func(t *testing.T, b *bubble) {
		fast, slow := b.open(""), b.open("")
		resume := slow.stall()
		began := time.Now().UTC()
		for range 50 {
			b.write(600, "event_queued", "e")
			b.write(400, "event_received", "e")
			b.settle()
			messages, _ := fast.shows()
			rows, summed := count(t, messages)
			require.Equal(t, 1000, rows)
			require.Zero(t, summed)
		}
		ended := time.Now().UTC()
		resume()
		messages, _ := slow.shows()
		rows, summed := count(t, messages)
		require.Equal(t, 50_000, rows+summed)
		require.LessOrEqual(t, rows, 1000+config.Queue, "what was on the way, and what waited")
		require.Equal(t, "audit", messages[0].name, "on the way already")
		require.Equal(t, "summary", messages[1].name)
		for _, m := range messages[2:] {
			require.Equal(t, "audit", m.name)
		}
		sum := messages[1].summary(t)
		require.InDelta(t, 0.6, float64(sum.Counts["event_queued"])/float64(sum.Rows), 0.01)
		require.False(t, sum.Since.Before(began))
		require.False(t, sum.Until.After(ended))
		require.True(t, sum.Since.Before(sum.Until))

		// A viewer that comes back from the summary misses nothing and sees nothing twice.
		back := b.open("?last_event_id=" + messages[1].id)
		b.write(7, "event_queued", "e")
		b.settle()
		messages, _ = back.shows()
		again, _ := count(t, messages)
		require.Equal(t, 7, again)
		messages, _ = slow.shows()
		again, _ = count(t, messages)
		require.Equal(t, 7, again, "rows flow again")
	})
}

func TestAViewerThatComesBackFromASummaryIsToldTheRest(t *testing.T) {
	t.Parallel()
	config := api.DefaultStreamConfig()
	config.Patience, config.Queue = time.Hour, 3000
	inBubble(t, config, func(t *testing.T, b *bubble) {
		s := b.open("")
		resume := s.stall()
		for range 10 {
			b.write(500, "event_queued", "e")
			b.settle()
		}
		resume()
		messages, _ := s.shows()
		shown := 0
		for _, m := range messages {
			rows, summed := count(t, []told{m})
			shown += rows + summed
			back := b.connect("?last_event_id=" + m.id)
			b.settle()
			rest, _ := back.shows()
			rows, summed = count(t, rest)
			require.Equal(t, 5000, shown+rows)
			require.Zero(t, summed)
			back.cancel()
			<-back.done
		}
	})
}

func TestAViewerThatTakesNothingIsDropped(t *testing.T) {
	t.Parallel()
	inBubble(t, api.DefaultStreamConfig(), func(t *testing.T, b *bubble) {
		s := b.open("")
		s.stall()
		b.write(1, "event_queued", "e")
		began := time.Now()
		<-s.done
		require.InDelta(t, 10, time.Since(began).Seconds(), 1)
	})
}

func TestFewRowsASecondAndTheRestInSum(t *testing.T) {
	t.Parallel()
	inBubble(t, api.DefaultStreamConfig(), func(t *testing.T, b *bubble) {
		s := b.open("?max_rows=100")
		all := 0
		rows, summed, summaries := 0, 0, 0
		look := func() (messages []told) {
			messages, _ = s.shows()
			r, n := count(t, messages)
			rows += r
			summed += n
			for _, m := range messages {
				if m.name == "summary" {
					summaries++
				}
			}
			return messages
		}
		// 2,000 rows a second for ten seconds.
		for range 200 {
			b.write(100, "event_queued", "e")
			all += 100
			time.Sleep(50 * time.Millisecond)
			look()
		}
		require.LessOrEqual(t, rows, 1100)
		require.Positive(t, rows)
		require.LessOrEqual(t, summaries, 45, "some four a second")
		// The newest state goes out without anything coming after it.
		time.Sleep(300 * time.Millisecond)
		look()
		require.Equal(t, all, rows+summed)
		// Rows flow again when there are few.
		time.Sleep(time.Second)
		b.write(3, "event_queued", "e")
		b.settle()
		messages := look()
		require.Len(t, messages, 1)
		require.Len(t, messages[0].rows(t), 3)
		// What was missed is summed up as well.
		back := b.open("?max_rows=100&last_event_id=" + trail.CursorAt(trail.Transactions{End: 1}).String())
		time.Sleep(time.Second)
		messages, _ = back.shows()
		require.Empty(t, messages, "it was told before that it is where the hub is")
	})
}

func TestMissedRowsAreSummedUpForAViewerThatWantsFew(t *testing.T) {
	t.Parallel()
	inBubble(t, api.DefaultStreamConfig(), func(t *testing.T, b *bubble) {
		b.log.write(20_000, "event_queued", "e")
		s := b.connect("?max_rows=100&" + fromTheBeginning)
		b.settle()
		messages, _ := s.shows()
		_, summed := count(t, messages)
		require.Equal(t, 20_000, summed)
		require.LessOrEqual(t, len(messages), 3)
		require.Equal(t, "cursor", messages[len(messages)-1].name)
	})
}

// A viewer that asked for all rows gets all, however many. A viewer that asked for few is not told after half an hour
// that there were 35 million.
func TestAViewerThatWantsFewRowsBeginsAnewAfterALongTime(t *testing.T) {
	t.Parallel()
	inBubble(t, api.DefaultStreamConfig(), func(t *testing.T, b *bubble) {
		b.log.write(60_000, "event_queued", "e")
		for _, query := range []string{"?max_rows=100&", "?max_rows=10000&success=failure&"} {
			b.log.asked()
			few := b.connect(query + fromTheBeginning)
			b.settle()
			messages, _ := few.shows()
			require.Equal(t, "reset", messages[len(messages)-1].name, query)
			require.Less(t, b.log.asked(), 60, query)
			b.write(1, "event_queued", "e")
			b.settle()
			if query == "?max_rows=100&" {
				messages, _ = few.shows()
				rows, _ := count(t, messages)
				require.Equal(t, 1, rows, "rows flow again")
			}
		}
		all := b.open("?" + fromTheBeginning)
		require.Equal(t, 60_002, all.before)
	})
}

func TestASilentStreamIsKeptAwake(t *testing.T) {
	t.Parallel()
	inBubble(t, api.DefaultStreamConfig(), func(t *testing.T, b *bubble) {
		s := b.open("")
		time.Sleep(31 * time.Second)
		_, text := s.shows()
		require.Equal(t, strings.Repeat(": still here\n\n", 2), text)
	})
}

func TestAViewerWhoseFilterMatchesNothingIsToldTheCursor(t *testing.T) {
	t.Parallel()
	inBubble(t, api.DefaultStreamConfig(), func(t *testing.T, b *bubble) {
		s := b.open("?event_id=mine")
		for range 120 {
			b.write(10, "event_queued", "others")
			time.Sleep(100 * time.Millisecond)
		}
		messages, _ := s.shows()
		require.NotEmpty(t, messages)
		require.LessOrEqual(t, len(messages), 3, "one in five seconds")
		for _, m := range messages {
			require.Equal(t, "cursor", m.name)
		}
		// The newest place is told, too.
		time.Sleep(6 * time.Second)
		messages, _ = s.shows()
		require.Len(t, messages, 1)
		require.Equal(t, trail.CursorAt(b.log.now()).String(), messages[0].id)
	})
}

func TestManyViewersCostTheDatabaseNoMoreThanOne(t *testing.T) {
	t.Parallel()
	reads := map[int]int{}
	for _, viewers := range []int{1, 20} {
		inBubble(t, api.DefaultStreamConfig(), func(t *testing.T, b *bubble) {
			var screens []*screen
			for range viewers {
				screens = append(screens, b.open(""))
			}
			b.log.asked()
			for range 1000 {
				b.write(2, "event_queued", "e")
				time.Sleep(10 * time.Millisecond)
			}
			reads[viewers] = b.log.asked()
			b.settle()
			for _, s := range screens {
				messages, _ := s.shows()
				rows, _ := count(t, messages)
				require.Equal(t, 2000, rows)
				s.cancel()
				<-s.done
			}
			time.Sleep(2 * time.Second) // in a bubble
			synctest.Wait()
			b.log.asked()
			b.write(1, "event_queued", "e")
			time.Sleep(time.Minute)
			require.Zero(t, b.log.asked(), "nobody watches")
		})
	}
	t.Logf("reads in ten seconds, by viewers: %v", reads)
	require.Positive(t, reads[1])
	require.InDelta(t, reads[1], reads[20], float64(reads[1])/20)
	require.LessOrEqual(t, reads[20], 205, "twenty a second")
}

func TestStreamGoesOnAfterAnOutage(t *testing.T) {
	t.Parallel()
	inBubble(t, api.DefaultStreamConfig(), func(t *testing.T, b *bubble) {
		live := b.open("")
		b.log.fail(errors.New("the database is away"))
		b.write(5, "event_queued", "e")
		back := b.connect("?" + fromTheBeginning)
		time.Sleep(time.Minute)
		messages, text := back.shows()
		require.Empty(t, messages)
		require.Contains(t, text, ": still here")
		b.log.fail(nil)
		time.Sleep(5 * time.Second)
		for _, s := range []*screen{live, back} {
			messages, _ := s.shows()
			rows, _ := count(t, messages)
			require.Equal(t, 5, rows)
		}
	})
}

// A search that takes too long will take too long again. A database that is busy or away will answer later, and so will
// a read without a filter.
func TestOnlyASearchIsGivenUpForTakingTooLong(t *testing.T) {
	t.Parallel()
	timeout := fmt.Errorf("reading the audit log: %w", context.DeadlineExceeded)
	for name, c := range map[string]struct {
		query string
		fail  func(*model, error)
		reset bool
	}{
		"a search":                  {"?event_id=e&", (*model).failPages, true},
		"a search, no connection":   {"?event_id=e&", (*model).fail, false},
		"all rows":                  {"?", (*model).failPages, false},
		"rows chosen after reading": {"?success=success&", (*model).failPages, false},
	} {
		inBubble(t, api.DefaultStreamConfig(), func(t *testing.T, b *bubble) {
			b.log.write(5, "event_queued", "e")
			c.fail(b.log, timeout)
			s := b.connect(c.query + fromTheBeginning)
			time.Sleep(time.Minute)
			messages, text := s.shows()
			if c.reset {
				require.Len(t, messages, 1, name)
				require.Equal(t, "reset", messages[0].name, name)
				return
			}
			require.Empty(t, messages, name)
			require.Contains(t, text, ": still here", name)
			c.fail(b.log, nil)
			time.Sleep(5 * time.Second)
			messages, _ = s.shows()
			rows, _ := count(t, messages)
			require.Equal(t, 5, rows, name)
		})
	}
}

func TestAViewerThatWaitsForItsTurnIsKeptAwake(t *testing.T) {
	t.Parallel()
	config := api.DefaultStreamConfig()
	config.CatchUps = 1
	inBubble(t, config, func(t *testing.T, b *bubble) {
		b.log.write(5, "event_queued", "e")
		held := make(chan struct{})
		release := sync.OnceFunc(func() { close(held) })
		defer release()
		b.log.holdReads(held)
		first := b.connect("?" + fromTheBeginning)
		b.settle()
		b.log.holdReads(nil)
		second := b.connect("?" + fromTheBeginning)
		time.Sleep(31 * time.Second)
		messages, text := second.shows()
		require.Empty(t, messages)
		require.Equal(t, "retry: 1000\n\n"+strings.Repeat(": still here\n\n", 2), text)
		release()
		b.settle()
		for _, s := range []*screen{first, second} {
			messages, _ := s.shows()
			rows, _ := count(t, messages)
			require.Equal(t, 5, rows)
		}
	})
}

// A viewer that caught up while the hub was reading has seen steps that this read has not. It must not join after it.
func TestAViewerDoesNotJoinARunThatBeganBefore(t *testing.T) {
	t.Parallel()
	inBubble(t, api.DefaultStreamConfig(), func(t *testing.T, b *bubble) {
		first := b.open("")
		held := make(chan struct{})
		b.log.holdReads(held)
		b.write(3, "event_queued", "e")
		time.Sleep(100 * time.Millisecond) // in a bubble: the hub has read them, and waits
		b.log.holdReads(nil)
		b.log.write(4, "event_queued", "e")
		second := b.open("?last_event_id=" + trail.CursorAt(trail.Transactions{End: 1}).String())
		close(held)
		time.Sleep(2 * time.Second)
		b.write(5, "event_queued", "e")
		time.Sleep(2 * time.Second)
		for _, s := range []*screen{first, second} {
			messages, _ := s.shows()
			rows, _ := count(t, messages)
			require.Equal(t, 12, rows+s.before)
			for _, m := range messages {
				require.NotEqual(t, "reset", m.name)
			}
		}
	})
}

func TestViewersOfADatabaseThatWasPutBackBeginAnew(t *testing.T) {
	t.Parallel()
	inBubble(t, api.DefaultStreamConfig(), func(t *testing.T, b *bubble) {
		b.log.write(100, "event_queued", "e")
		s := b.open("")
		b.log.mu.Lock()
		b.log.rows = b.log.rows[:50]
		b.log.mu.Unlock()
		time.Sleep(2 * time.Second)
		messages, _ := s.shows()
		require.Len(t, messages, 1)
		require.Equal(t, "reset", messages[0].name)
		b.write(2, "event_queued", "e")
		b.settle()
		messages, _ = s.shows()
		rows, _ := count(t, messages)
		require.Equal(t, 2, rows)
	})
}

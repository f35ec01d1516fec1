package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/respond"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// StreamConfig says what a Stream spends on its viewers.
type StreamConfig struct {
	Viewers     int           // at a time; the next one is answered 503
	Queue       int           // rows that wait for a viewer before they become a summary
	CatchUps    int           // pages of the past that are read at a time, for whomever; fewer than there are connections
	Patience    time.Duration // for a client to take 16 kB of what it is sent, or all where that is less; then it is dropped
	KeepAlive   time.Duration // between two messages, at most; a comment is sent when there is nothing else
	ReadTimeout time.Duration // of one page
}

// DefaultStreamConfig returns what suits one process. The longest queue holds
// some 10 MB, and all viewers share it. Proxies commonly close what is silent
// for a minute.
func DefaultStreamConfig() StreamConfig {
	return StreamConfig{Viewers: 100, Queue: 20_000, CatchUps: 2, Patience: 10 * time.Second, KeepAlive: 15 * time.Second, ReadTimeout: 5 * time.Second}
}

const (
	retryMillis   = 1000                   // after which a browser connects again
	summaryGap    = 250 * time.Millisecond // between two summaries to a viewer who asked for few rows
	cursorGap     = 5 * time.Second        // before a viewer is told a cursor alone, where no row was theirs
	maxRows       = 10_000                 // a second that a viewer may ask for
	catchUpRounds = 3                      // of reading what was missed, each up to the time when it begins
	catchUpRecent = time.Second            // a round that took no longer is the last: the queue holds what came in meanwhile
	catchUpRows   = 20_000                 // that are read for a viewer who asked for few a second; as many as a queue holds
	streamChunk   = 16 << 10               // bytes that a client must take within StreamConfig.Patience
	closePatience = time.Second            // for a client to take the end of what it is being sent, where the stream ends
)

// Stream answers GET /api/stream: the audit log as it grows, as server-sent
// events (WHATWG HTML, section 9.2).
//
// It promises that a client which comes back with the last id it was told sees
// each row exactly once, or is told that rows were summed up, or to read
// everything anew; that viewers who keep up cost the database no more than one
// would; and that no viewer waits for another.
type Stream struct {
	config StreamConfig
	hub    *hub
	log    zerolog.Logger
	slots  chan struct{} // one for each page of the past that may be read now

	mu      sync.Mutex
	stopped bool
	open    map[*viewer]context.CancelFunc

	rows     *prometheus.CounterVec
	catchUps prometheus.Counter
	dropped  prometheus.Counter
}

// NewStream returns a Stream with its metrics registered with reg. It answers
// once Run runs.
func NewStream(audit AuditLog, config StreamConfig, log zerolog.Logger, reg prometheus.Registerer) *Stream {
	s := &Stream{
		config: config, hub: newHub(audit, config.ReadTimeout, log), log: log,
		slots: make(chan struct{}, config.CatchUps), open: map[*viewer]context.CancelFunc{},
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "spine_stream_rows_total", Help: "Audit rows that viewers of the stream were told, each on its own or within a summary.",
		}, []string{"as"}),
		catchUps: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_stream_catch_ups_total", Help: "Viewers that came back and read what they had missed.",
		}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_stream_dropped_total", Help: "Viewers that were dropped because they took nothing any more, or too little.",
		}),
	}
	reg.MustRegister(s.rows, s.catchUps, s.dropped, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "spine_stream_viewers", Help: "Viewers of the stream.",
	}, func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return float64(len(s.open))
	}))
	for range config.CatchUps {
		s.slots <- struct{}{}
	}
	return s
}

// Ring says that something may have happened. It never blocks.
func (s *Stream) Ring() { s.hub.ring() }

// Run follows the audit log while anybody watches, until ctx ends. It then ends
// all streams, so that clients connect to another process.
func (s *Stream) Run(ctx context.Context) error {
	s.hub.Run(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	for _, cancel := range s.open {
		cancel()
	}
	return nil
}

// Register adds the route:
//
//	GET /api/stream  event_id, source, action, success, max_rows, last_event_id
//
// The header Last-Event-ID says where to go on, and wins over the parameter.
func (s *Stream) Register(r *mux.Router) {
	r.Path("/api/stream").Methods(http.MethodGet).HandlerFunc(s.serve)
}

// request is what a viewer asks for.
type request struct {
	wants wants
	most  int    // rows a second; 0 for all
	last  string // id that they were told
}

func readRequest(r *http.Request) (q request, faults []respond.Fault) {
	values, faults := parameters(r, "event_id", "source", "action", "success", "max_rows", "last_event_id")
	if text, ok := values["max_rows"]; ok {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxRows {
			faults = append(faults, respond.Fault{Parameter: "max_rows", Detail: "must be a whole number from 1 to " + strconv.Itoa(maxRows)})
		}
		q.most = n
	}
	faults = append(faults, checkSuccess(values)...)
	q.wants.AuditFilter = view.AuditFilter{EventID: values["event_id"], Source: values["source"], Action: trail.Action(values["action"]), Success: values["success"]}
	if q.last = r.Header.Get("Last-Event-ID"); q.last == "" {
		q.last = values["last_event_id"]
	}
	return q, faults
}

func (s *Stream) serve(w http.ResponseWriter, r *http.Request) {
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		// It could not read the answer, but take the places of others.
		respond.Reject(w, respond.Problem{Status: http.StatusForbidden, Detail: "Pages of other origins may not open streams."})
		return
	}
	q, faults := readRequest(r)
	if refuseQuery(w, faults) {
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	v := newViewer(q.wants, s.config.Queue)
	switch s.enter(v, cancel) {
	case full:
		respond.Reject(w, respond.Problem{
			Status: http.StatusServiceUnavailable, Detail: fmt.Sprintf("%d streams are open, which is as many as this process has.", s.config.Viewers),
		})
		return
	case stopping:
		cancel() // browsers give up on an answer that is no stream, but come back after one that ends
	case entered:
		defer s.leave(v)
	}

	respond.Secure(w.Header())
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would keep it until it has a page full
	out := newSender(w, q, s)
	defer out.interruptible(ctx)()
	err := s.stream(ctx, out, v, q)
	if ctx.Err() == nil {
		if errors.Is(err, errTookNothing) {
			s.dropped.Inc()
		}
		s.log.Debug().Err(err).Str("remote", r.RemoteAddr).Msg("a stream ended")
	}
}

// Answers of enter.
const (
	entered = iota
	full
	stopping
)

func (s *Stream) enter(v *viewer, cancel context.CancelFunc) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return stopping
	case len(s.open) >= s.config.Viewers:
		return full
	}
	s.open[v] = cancel
	return entered
}

func (s *Stream) leave(v *viewer) {
	s.hub.leave(v)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, v)
}

// stream tells a client all that it has missed, then all that happens, until
// ctx ends or it is gone, which is the error. What was missed is read for this client alone, up to
// a moment ago; then it joins the hub between two runs and reads what is
// between the two, while what comes after waits in its queue.
func (s *Stream) stream(ctx context.Context, out *sender, v *viewer, q request) error {
	if err := out.begin(ctx); err != nil {
		return err
	}
	resumed, reset := trail.Cursor{}, false
	if q.last != "" {
		var err error
		if resumed, err = trail.ParseCursor(q.last); err == nil {
			s.catchUps.Inc()
			resumed, err = s.catchUp(ctx, out, resumed)
		}
		switch {
		case errors.Is(err, trail.ErrBadCursor), errors.Is(err, trail.ErrCursorAhead), errors.Is(err, errTooFar):
			reset = true
		case err != nil:
			return err
		default:
			v.from = &resumed.Seen
		}
	}
	s.hub.join(v)
	joined, err := await(ctx, out, v.joined)
	if err != nil {
		return err
	}
	reset = reset || joined.reset
	if v.from != nil && !reset {
		if between := resumed.ReadingTo(joined.at.Seen); !between.Settled() {
			_, err := s.readOn(ctx, out, between)
			switch {
			case errors.Is(err, errTooFar):
				reset = true
			case err != nil:
				return err
			}
		}
	}
	if err := out.start(ctx, reset, joined.at.String()); err != nil {
		return err
	}
	for {
		for m, ok := v.next(); ok; m, ok = v.next() {
			if err := out.put(ctx, m); err != nil {
				return err
			}
		}
		if err := out.wait(ctx, v.ready); err != nil {
			return err
		}
	}
}

// catchUp tells a client what it has missed up to a moment ago. What came in
// meanwhile is read as well, but not for ever: who takes less than comes in is a
// slow viewer, whose queue becomes a summary.
func (s *Stream) catchUp(ctx context.Context, out *sender, c trail.Cursor) (trail.Cursor, error) {
	for range catchUpRounds {
		began, toNow := time.Now(), c.Until == nil
		var err error
		if c, err = s.readOn(ctx, out, c); err != nil {
			return c, err
		}
		if toNow && time.Since(began) < catchUpRecent {
			break
		}
	}
	return c, nil
}

// errTooFar says that a client has missed too much: its filter finds so little
// in it that looking for a page takes longer than a read may, or it asked for
// few rows and there are more than catchUpRows. Whoever asked for all rows is
// told all, however long that takes.
var errTooFar = errors.New("what was missed takes too long to read")

// readOn tells a client all that it has not seen up to where c is reading to,
// or up to now, and returns the cursor after it. It waits for a database that
// is away.
func (s *Stream) readOn(ctx context.Context, out *sender, c trail.Cursor) (trail.Cursor, error) {
	var outage time.Duration
	filter := out.wants.inDatabase()
	for {
		if _, err := await(ctx, out, s.slots); err != nil {
			return c, err
		}
		rows, next, err := s.readPast(ctx, c, filter)
		switch {
		case ctx.Err() != nil:
			return c, context.Cause(ctx)
		case errors.Is(err, trail.ErrCursorAhead):
			return c, err
		case errors.Is(err, context.DeadlineExceeded) && next.Until != nil && out.wants.searches():
			return c, errTooFar // it was known how far to read, and a page of it took too long
		case err != nil:
			outage = min(max(2*outage, hubGap), hubMaxRetry)
			if !pause(ctx, nil, outage) {
				return c, context.Cause(ctx)
			}
			if err := out.flush(ctx); err != nil {
				return c, err
			}
			continue
		}
		outage = 0
		if out.past += len(rows); out.most > 0 && out.past > catchUpRows {
			return c, errTooFar
		}
		if err := out.put(ctx, message{page: &page{rows: rows}, after: next.String()}); err != nil {
			return c, err
		}
		if c = next; c.Settled() {
			return c, nil
		}
	}
}

// readPast reads a page for whoever was given a slot, and gives it back: it is
// not held while the client takes the page.
func (s *Stream) readPast(ctx context.Context, c trail.Cursor, f trail.Filter) ([]trail.Step, trail.Cursor, error) {
	defer func() { s.slots <- struct{}{} }()
	return read(ctx, s.hub.audit, s.config.ReadTimeout, c, f)
}

// sender writes a stream to one client.
type sender struct {
	w      http.ResponseWriter
	conn   *http.ResponseController
	config StreamConfig
	wants  wants
	most   int // rows a second; 0 for all
	rows   *prometheus.CounterVec

	at      string  // the cursor after all that was put
	told    string  // the cursor that the client was told last
	pending summary // of rows that were put and not told
	tokens  float64 // rows that may be told now, where there is a limit
	past    int     // rows that were read for this client alone

	filled time.Time // when tokens were counted
	summed time.Time // when the last summary went out
	toldAt time.Time
	wrote  time.Time
}

func newSender(w http.ResponseWriter, q request, s *Stream) *sender {
	return &sender{
		w: w, conn: http.NewResponseController(w), config: s.config, wants: q.wants, most: q.most, rows: s.rows,
		tokens: float64(q.most), filled: time.Now(), toldAt: time.Now(),
	}
}

// errTookNothing says that a client was sent a chunk and did not take it.
var errTookNothing = errors.New("the client takes nothing, or too little")

// interruptible ends a write that is under way when ctx ends, but for a client
// that takes it. What it returns must be called when nothing is written any
// more; it lets the end of the answer go out.
func (s *sender) interruptible(ctx context.Context) (done func()) {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = s.conn.SetWriteDeadline(time.Now().Add(closePatience)) // a connection without deadlines was refused by write
	})
	return func() {
		if !stop() {
			<-interrupted
		}
		_ = s.conn.SetWriteDeadline(time.Now().Add(closePatience)) // as above
	}
}

// begin sends the header, and how soon to come back.
func (s *sender) begin(ctx context.Context) error {
	// The time for a request's body would end the stream with it.
	if err := s.conn.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("beginning a stream: %w", err)
	}
	return s.write(ctx, "retry: "+strconv.Itoa(retryMillis)+"\n\n", nil, "")
}

// start says that the client is where the hub is.
func (s *sender) start(ctx context.Context, reset bool, at string) error {
	if reset {
		return s.put(ctx, message{reset: true, after: at})
	}
	if err := s.tellSummary(ctx); err != nil {
		return err
	}
	s.at = at
	return s.tell(ctx, "cursor", []byte("{}"))
}

// put tells a message, or counts it into the summary to come.
func (s *sender) put(ctx context.Context, m message) error {
	s.at = m.after
	switch {
	case m.reset:
		s.pending = summary{}
		return s.tell(ctx, "reset", []byte("{}"))
	case m.summary != nil:
		s.pending.merge(*m.summary)
	default:
		rows := s.wants.of(m.page.rows)
		if len(rows) == 0 {
			break
		}
		if s.pending.Rows > 0 || !s.may(len(rows)) {
			s.pending.add(rows)
			break
		}
		text, err := m.page.json()
		if !s.wants.all() {
			text, err = encodeLine(rows)
		}
		if err != nil {
			return err
		}
		s.rows.WithLabelValues("rows").Add(float64(len(rows)))
		return s.tell(ctx, "audit", text)
	}
	return s.flush(ctx)
}

// may reports whether so many rows may be told now, and takes them off what
// may be told within this second.
func (s *sender) may(rows int) bool {
	if s.most == 0 {
		return true
	}
	now := time.Now()
	s.tokens = min(float64(s.most), s.tokens+now.Sub(s.filled).Seconds()*float64(s.most))
	s.filled = now
	if float64(rows) > s.tokens {
		return false
	}
	s.tokens -= float64(rows)
	return true
}

// flush tells what is due: a summary, the cursor, or that the stream is alive.
func (s *sender) flush(ctx context.Context) error {
	now := time.Now()
	switch {
	case s.pending.Rows > 0:
		if now.Sub(s.summed) < s.summaryGap() {
			return nil
		}
		return s.tellSummary(ctx)
	case s.at != s.told && now.Sub(s.toldAt) >= cursorGap:
		return s.tell(ctx, "cursor", []byte("{}"))
	case now.Sub(s.wrote) >= s.config.KeepAlive:
		return s.write(ctx, ": still here\n\n", nil, "")
	}
	return nil
}

// due returns in what time flush has something to tell.
func (s *sender) due() time.Duration {
	due := s.wrote.Add(s.config.KeepAlive)
	switch {
	case s.pending.Rows > 0:
		due = s.summed.Add(s.summaryGap())
	case s.at != s.told:
		if cursor := s.toldAt.Add(cursorGap); cursor.Before(due) {
			due = cursor
		}
	}
	return max(0, time.Until(due))
}

// summaryGap is how long a summary waits for more. To a client that takes all
// rows it goes at once, since rows follow.
func (s *sender) summaryGap() time.Duration {
	if s.most == 0 {
		return 0
	}
	return summaryGap
}

func (s *sender) tellSummary(ctx context.Context) error {
	if s.pending.Rows == 0 {
		return nil
	}
	text, err := encodeLine(s.pending)
	if err != nil {
		return err
	}
	s.rows.WithLabelValues("summary").Add(float64(s.pending.Rows))
	s.pending, s.summed = summary{}, time.Now()
	return s.tell(ctx, "summary", text)
}

// wait tells what falls due until something is ready, and then.
func (s *sender) wait(ctx context.Context, ready <-chan struct{}) error {
	if _, err := await(ctx, s, ready); err != nil {
		return err
	}
	return s.flush(ctx)
}

// await tells what falls due until something comes.
func await[T any](ctx context.Context, s *sender, coming <-chan T) (came T, err error) {
	for {
		timer := time.NewTimer(s.due())
		select {
		case <-ctx.Done():
			timer.Stop()
			return came, context.Cause(ctx)
		case came = <-coming:
			timer.Stop()
			return came, nil
		case <-timer.C:
			if err := s.flush(ctx); err != nil {
				return came, err
			}
		}
	}
}

// tell sends a message with the cursor after all that was put.
func (s *sender) tell(ctx context.Context, name string, data []byte) error {
	s.told, s.toldAt = s.at, time.Now()
	return s.write(ctx, "event: "+name+"\nid: "+s.at+"\ndata: ", data, "\n\n")
}

// write writes in chunks, so that a client on a slow line is given time for a
// long message as long as it takes one chunk after the other. What ends between
// two chunks is no message to a client.
func (s *sender) write(ctx context.Context, head string, data []byte, tail string) error {
	var err error
	for chunk := range slices.Chunk(slices.Concat([]byte(head), data, []byte(tail)), streamChunk) {
		// Whoever ends ctx after this line ends the write by its deadline.
		if err = s.conn.SetWriteDeadline(time.Now().Add(s.config.Patience)); err != nil {
			return fmt.Errorf("writing a stream: %w", err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err = s.w.Write(chunk); err != nil {
			break
		}
		if err = s.conn.Flush(); err != nil {
			break
		}
	}
	s.wrote = time.Now()
	switch {
	case err == nil:
		return nil
	case isTimeout(err):
		return errTookNothing
	default:
		return fmt.Errorf("writing a stream: %w", err)
	}
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

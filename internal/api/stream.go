package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/respond"
	"github.com/webhookspine/spine/internal/trail"
)

// StreamConfig says what a Stream spends on its viewers.
type StreamConfig struct {
	Viewers int // at a time; the next one gets 503
	Queue   int // steps that wait for a viewer before they become a summary
	// CatchUps is how many pages of the past are read at a time, for all viewers. It must be less than the pool's
	// connections.
	CatchUps int
	// Patience is how long a client may take for 16 kB of what it is sent, or for all where that is less. Then the
	// client is dropped.
	Patience    time.Duration
	KeepAlive   time.Duration // between two messages, at most; a comment is sent when there is nothing else
	ReadTimeout time.Duration // of one page
}

// DefaultStreamConfig returns what suits one process. The longest queue holds some 10 MB, and all viewers share it.
// Proxies commonly close a connection that is silent for a minute.
func DefaultStreamConfig() StreamConfig {
	return StreamConfig{
		Viewers:     100,
		Queue:       20_000,
		CatchUps:    2,
		Patience:    10 * time.Second,
		KeepAlive:   15 * time.Second,
		ReadTimeout: 5 * time.Second,
	}
}

// maxStepsPerSecond is how many steps a second a viewer may ask for, as max_rows.
const maxStepsPerSecond = 10_000

// Stream answers GET /api/stream: the audit log as it grows, as server-sent events (WHATWG HTML, section 9.2).
//
// It promises that a client which comes back with its last id sees each step exactly once. Otherwise it is told so:
// steps were summed up, or it must read everything anew. Viewers that keep up cost the database no more than one viewer
// would. No viewer waits for another.
//
// A step goes one way: trail reads it, the hub gives it to every viewer's queue, and the viewer's sender writes it. A
// client that comes back first gets what it has missed by a catch-up of its own.
type Stream struct {
	config StreamConfig
	reader trail.Reader
	hub    *hub
	log    zerolog.Logger
	slots  chan struct{} // one for each page of the past that may be read now

	mu      sync.Mutex
	stopped bool
	open    map[*viewer]context.CancelCauseFunc

	rows     *prometheus.CounterVec
	catchUps prometheus.Counter
	dropped  prometheus.Counter
}

// NewStream returns a Stream with its metrics registered with reg. It answers once Run runs.
func NewStream(reader trail.Reader, config StreamConfig, log zerolog.Logger, reg prometheus.Registerer) *Stream {
	s := &Stream{
		config: config, reader: reader, hub: newHub(reader, config.ReadTimeout, log), log: log,
		slots: make(chan struct{}, config.CatchUps), open: map[*viewer]context.CancelCauseFunc{},
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "spine_stream_rows_total",
			Help: "Steps of the audit log told to viewers of the stream, each on its own or within a summary.",
		}, []string{"as"}),
		catchUps: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_stream_catch_ups_total", Help: "Viewers that came back and read what they had missed.",
		}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_stream_dropped_total",
			Help: "Viewers that were dropped because they took nothing any more, or too little.",
		}),
	}
	reg.MustRegister(s.rows, s.catchUps, s.dropped, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "spine_stream_viewers", Help: "Viewers of the stream.",
	}, func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return float64(len(s.open))
	}))
	for _, as := range []string{"rows", "summary"} {
		s.rows.WithLabelValues(as) // so that it begins at 0
	}
	for range config.CatchUps {
		s.slots <- struct{}{}
	}
	return s
}

// Ring says that there may be new steps. It never blocks.
func (s *Stream) Ring() { s.hub.bell.Ring() }

// Run follows the audit log while anybody watches, until ctx ends. It then ends all streams, so that clients connect to
// another process.
func (s *Stream) Run(ctx context.Context) error {
	s.hub.Run(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	for _, end := range s.open {
		end(nil)
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

// streamQuery is what a client asks for.
type streamQuery struct {
	selection selection
	maxRows   int    // steps a second; 0 for all
	lastID    string // the cursor that it was told last; empty where it is new
}

func readStreamQuery(r *http.Request) (q streamQuery, faults []respond.Fault) {
	values, faults := parameters(r, "event_id", "source", "action", "success", "max_rows", "last_event_id")
	if text, ok := values["max_rows"]; ok {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxStepsPerSecond {
			faults = append(faults, respond.Fault{
				Parameter: "max_rows",
				Detail:    "must be a whole number from 1 to " + strconv.Itoa(maxStepsPerSecond),
			})
		}
		q.maxRows = n
	}
	faults = append(faults, checkSuccess(values)...)
	q.selection = selection{
		eventID: values["event_id"],
		source:  values["source"],
		action:  trail.Action(values["action"]),
		success: values["success"],
	}
	if q.lastID = r.Header.Get("Last-Event-ID"); q.lastID == "" {
		q.lastID = values["last_event_id"]
	}
	return q, faults
}

func (s *Stream) serve(w http.ResponseWriter, r *http.Request) {
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		// It could not read the answer, but take the places of others.
		respond.Reject(
			w,
			respond.Problem{Status: http.StatusForbidden, Detail: "Pages of other origins may not open streams."},
		)
		return
	}
	q, faults := readStreamQuery(r)
	if rejectQuery(w, faults) {
		return
	}
	ctx, end := context.WithCancelCause(r.Context())
	defer end(nil)
	v := newViewer(q.selection, s.config.Queue)
	if !s.enter(v, end) {
		respond.Reject(w, respond.Problem{
			Status: http.StatusServiceUnavailable,
			Detail: fmt.Sprintf("%d streams are open, which is as many as this process has.", s.config.Viewers),
		})
		return
	}
	defer s.leave(v)

	respond.Secure(w.Header())
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would keep it until it has a page full
	now := time.Now()
	out := &sender{
		w:         w,
		conn:      http.NewResponseController(w),
		end:       end,
		config:    s.config,
		selection: q.selection,
		maxRows:   q.maxRows,
		rows:      s.rows,
		tokens:    float64(q.maxRows), filled: now, toldAt: now,
	}
	defer out.interruptible(ctx)()
	s.tell(ctx, out, v, q.lastID)
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		if errors.Is(err, errTookNothing) {
			s.dropped.Inc()
		}
		s.log.Debug().Err(err).Str("remote", r.RemoteAddr).Msg("a stream ended")
	}
}

// enter takes one of the places for viewers, and reports whether there was one. A process that stops answers with a
// stream that ends at once: browsers come back after that, but give up on any other answer.
func (s *Stream) enter(v *viewer, end context.CancelCauseFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		end(nil)
		return true
	}
	if len(s.open) >= s.config.Viewers {
		return false
	}
	s.open[v] = end
	return true
}

func (s *Stream) leave(v *viewer) {
	s.hub.leave(v)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, v)
}

// tell tells a client everything that it has not seen, until ctx ends. There are four stages:
//
//  1. A catch-up of its own tells it the steps that it has missed, up to a moment ago.
//  2. It joins the hub, at a place that contains the steps it has seen. Later steps wait in its queue.
//  3. The catch-up tells it the steps between the two.
//  4. It is told the steps in its queue, as the hub puts them there.
//
// A new client, and one that must begin anew, joins at once and sees the steps from then on.
func (s *Stream) tell(ctx context.Context, out *sender, v *viewer, lastID string) {
	out.begin(ctx)
	missed := &catchUp{stream: s, out: out}
	var anew error // why the client must begin anew
	if lastID != "" {
		v.seen, anew = missed.toNow(ctx, lastID)
	}
	s.hub.join(v)
	place, _ := await(ctx, out, v.joined)
	if v.seen != nil {
		anew = missed.to(ctx, *v.seen, place)
	}
	out.start(ctx, place.String(), anew != nil)
	for ctx.Err() == nil {
		for m, ok := v.next(); ok && ctx.Err() == nil; m, ok = v.next() {
			out.put(ctx, m)
		}
		await(ctx, out, v.ready.C())
		out.flush(ctx)
	}
}

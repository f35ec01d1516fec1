package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
)

// serveSink answers every POST on ln with 200. It hands arrived the time of reading and the id: the
// webhook-id header, else the event_id of the body, else nothing. GET requests go to show, if set.
// When ctx is done it closes ln and every connection, and returns; later deliveries are too late
// for the run. It serves connections one by one. fasthttp's Serve would leave a goroutine behind
// and wait for clients that keep an unused connection.
func serveSink(
	ctx context.Context, ln net.Listener, arrived func(id []byte, at time.Time), show fasthttp.RequestHandler,
) error {
	server := &fasthttp.Server{
		Handler: func(r *fasthttp.RequestCtx) {
			switch {
			case r.IsPost():
				at := time.Now()
				id := r.Request.Header.Peek("webhook-id")
				if len(id) == 0 {
					id = field(r.PostBody(), "event_id")
				}
				arrived(id, at)
			case r.IsGet() && show != nil:
				show(r)
			default:
				r.Response.Header.Set("Allow", "POST")
				r.SetStatusCode(fasthttp.StatusMethodNotAllowed)
			}
		},
		ReadTimeout:           30 * time.Second,
		IdleTimeout:           2 * time.Minute,
		NoDefaultDate:         true,
		NoDefaultServerHeader: true,
		Logger:                silent{}, // a client that hangs up is normal
	}
	ctx, stop := context.WithCancel(ctx)
	context.AfterFunc(ctx, func() { _ = ln.Close() })
	var clients sync.WaitGroup
	defer clients.Wait()
	defer stop()
	for {
		conn, err := ln.Accept()
		if err != nil && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepting deliveries at the sink %s: %w", ln.Addr(), err)
		}
		clients.Go(func() {
			release := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer release()
			_ = server.ServeConn(conn) // closes it
		})
	}
}

type silent struct{}

func (silent) Printf(string, ...any) {}

// defaultSinkIDs is how many ids a sink tells apart by default, at about 50 bytes each.
const defaultSinkIDs = 2_000_000

// SinkOptions configure RunSink.
type SinkOptions struct {
	// MaxIDs is how many ids the sink tells apart. 0 means 2 million.
	MaxIDs int
	// Progress, if set, is called about once a second.
	Progress func(SinkReport)
}

// SinkArrival is what a sink knows of one id.
type SinkArrival struct {
	ID         string    `json:"id"`
	Deliveries uint32    `json:"deliveries"`
	First      time.Time `json:"first"`
}

// sink counts deliveries. It tells ids apart by a seeded 64-bit hash. With 2 million ids, the
// probability that any two share a hash is 1 in 10 million.
type sink struct {
	seed maphash.Seed

	mu     sync.Mutex
	report SinkReport
	ids    map[uint64]sinkID
}

type sinkID struct {
	first      int64 // Unix time, ns
	deliveries uint32
}

func (s *sink) arrived(id []byte, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.report.Deliveries == 0 {
		s.report.First = at
	}
	s.report.Deliveries++
	s.report.Last = at
	if len(id) == 0 {
		s.report.WithoutID++
		return
	}
	key := maphash.Bytes(s.seed, id)
	known, ok := s.ids[key]
	switch {
	case !ok && len(s.ids) >= s.report.MaxIDs:
		s.report.MaxIDsReached = true
		return
	case !ok:
		known.first = at.UnixNano()
		s.report.DistinctIDs++
	case known.deliveries == 1:
		s.report.RepeatedIDs++
	}
	known.deliveries++
	s.ids[key] = known
}

func (s *sink) snapshot() SinkReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.report
	r.PerSecond = perSecond(r.Deliveries-1, r.Last.Sub(r.First))
	return r
}

// show answers GET /stats with the report so far, and GET /stats/ID with what the sink knows of one
// id.
func (s *sink) show(r *fasthttp.RequestCtx) {
	path := string(r.Path())
	if path == "/stats" {
		showJSON(r, s.snapshot())
		return
	}
	id, ok := strings.CutPrefix(path, "/stats/")
	s.mu.Lock()
	known := s.ids[maphash.String(s.seed, id)]
	s.mu.Unlock()
	if !ok || known.deliveries == 0 {
		r.SetStatusCode(fasthttp.StatusNotFound)
		return
	}
	showJSON(r, SinkArrival{ID: id, Deliveries: known.deliveries, First: time.Unix(0, known.first).UTC()})
}

func showJSON(r *fasthttp.RequestCtx, value any) {
	r.SetContentType("application/json")
	_ = json.NewEncoder(r).Encode(value) // into memory, and the values always encode
}

// RunSink takes deliveries on ln, answers each with 200, and counts them until ctx is done.
// Meanwhile GET /stats and GET /stats/ID say what it has seen. It closes ln. The report is valid
// also with an error.
func RunSink(ctx context.Context, ln net.Listener, options SinkOptions) (SinkReport, error) {
	if options.MaxIDs == 0 {
		options.MaxIDs = defaultSinkIDs
	}
	s := &sink{
		seed:   maphash.MakeSeed(),
		report: SinkReport{MaxIDs: options.MaxIDs},
		ids:    map[uint64]sinkID{},
	}
	if options.Progress != nil {
		defer every(time.Second, func(time.Time) { options.Progress(s.snapshot()) })()
	}
	err := serveSink(ctx, ln, s.arrived, s.show)
	return s.snapshot(), err
}

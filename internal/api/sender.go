package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	retryMillis = 1000                   // after which a browser connects again
	summaryGap  = 250 * time.Millisecond // between two summaries to a client that asked for few steps
	cursorGap   = 5 * time.Second        // before a client is told a cursor alone, where it wants none of the steps
	streamChunk = 16 << 10               // bytes that a client must take within StreamConfig.Patience
	// closePatience is how long a client may take for the rest of a message when the stream ends.
	closePatience = time.Second
)

// errTookNothing says that a client was sent a chunk and did not take it.
var errTookNothing = errors.New("the client takes nothing, or too little")

// sender writes the stream to one client. Where that fails it ends the client's context with the cause. It writes
// nothing after the context has ended.
type sender struct {
	w         http.ResponseWriter
	conn      *http.ResponseController
	end       context.CancelCauseFunc
	config    StreamConfig
	selection selection
	maxRows   int                    // steps a second; 0 for all
	rows      *prometheus.CounterVec // steps that were told

	after   string  // the cursor after all that was put
	told    string  // the cursor that the client was told last
	pending summary // of steps that were put and not told
	tokens  float64 // steps that may be told now, where there is a limit

	filled time.Time // when tokens were counted
	summed time.Time // when the last summary went out
	toldAt time.Time
	wrote  time.Time
}

// interruptible bounds a write that is under way when ctx ends to closePatience. The returned function must be called
// when nothing more is written. It lets the end of the answer go out.
func (s *sender) interruptible(ctx context.Context) (done func()) {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		// An error tells nothing new: write has ended the stream of a connection without deadlines.
		_ = s.conn.SetWriteDeadline(time.Now().Add(closePatience))
	})
	return func() {
		if !stop() {
			<-interrupted
		}
		_ = s.conn.SetWriteDeadline(time.Now().Add(closePatience)) // as above
	}
}

// begin sends the header, and how soon to come back.
func (s *sender) begin(ctx context.Context) {
	// The time for a request's body would end the stream with it.
	if err := s.conn.SetReadDeadline(time.Time{}); err != nil {
		s.end(fmt.Errorf("beginning a stream: %w", err))
	}
	s.write(ctx, "retry: "+strconv.Itoa(retryMillis)+"\n\n", nil, "")
}

// start tells the client the place from which it watches live, or that it must read everything anew there.
func (s *sender) start(ctx context.Context, place string, anew bool) {
	if anew {
		s.put(ctx, message{reset: true, after: place})
		return
	}
	s.tellSummary(ctx)
	s.after = place
	s.tell(ctx, "cursor", []byte("{}"))
}

// put tells a message, or counts it into the summary to come.
func (s *sender) put(ctx context.Context, m message) {
	s.after = m.after
	switch {
	case m.reset:
		s.pending = summary{}
		s.tell(ctx, "reset", []byte("{}"))
	case m.summary != nil:
		s.pending.merge(*m.summary)
		s.flush(ctx)
	default:
		s.putPage(ctx, m.page)
	}
}

func (s *sender) putPage(ctx context.Context, p *page) {
	steps := s.selection.of(p.steps)
	if len(steps) == 0 {
		s.flush(ctx)
		return
	}
	if s.pending.Rows > 0 || !s.takeTokens(len(steps)) {
		s.pending.add(steps)
		s.flush(ctx)
		return
	}
	text, err := p.json()
	if !s.selection.all() {
		text, err = encodeLine(steps)
	}
	if err != nil {
		s.end(err)
		return
	}
	s.rows.WithLabelValues("rows").Add(float64(len(steps)))
	s.tell(ctx, "audit", text)
}

// takeTokens reports whether so many steps may be told now, and takes them off what may be told within this second.
func (s *sender) takeTokens(steps int) bool {
	if s.maxRows == 0 {
		return true
	}
	now := time.Now()
	s.tokens = min(float64(s.maxRows), s.tokens+now.Sub(s.filled).Seconds()*float64(s.maxRows))
	s.filled = now
	if float64(steps) > s.tokens {
		return false
	}
	s.tokens -= float64(steps)
	return true
}

// flush tells what is due: a summary, the cursor, or that the stream is alive.
func (s *sender) flush(ctx context.Context) {
	now := time.Now()
	switch {
	case s.pending.Rows > 0:
		if now.Sub(s.summed) >= s.summaryGap() {
			s.tellSummary(ctx)
		}
	case s.after != s.told && now.Sub(s.toldAt) >= cursorGap:
		s.tell(ctx, "cursor", []byte("{}"))
	case now.Sub(s.wrote) >= s.config.KeepAlive:
		s.write(ctx, ": still here\n\n", nil, "")
	}
}

// due returns in what time flush has something to tell.
func (s *sender) due() time.Duration {
	due := s.wrote.Add(s.config.KeepAlive)
	switch {
	case s.pending.Rows > 0:
		due = s.summed.Add(s.summaryGap())
	case s.after != s.told:
		if cursor := s.toldAt.Add(cursorGap); cursor.Before(due) {
			due = cursor
		}
	}
	return max(0, time.Until(due))
}

// summaryGap is how long a summary waits for more. To a client that takes all steps it goes at once, since steps
// follow.
func (s *sender) summaryGap() time.Duration {
	if s.maxRows == 0 {
		return 0
	}
	return summaryGap
}

func (s *sender) tellSummary(ctx context.Context) {
	if s.pending.Rows == 0 {
		return
	}
	text, err := encodeLine(s.pending)
	if err != nil {
		s.end(err)
		return
	}
	s.rows.WithLabelValues("summary").Add(float64(s.pending.Rows))
	s.pending, s.summed = summary{}, time.Now()
	s.tell(ctx, "summary", text)
}

// await tells what falls due until something comes. It reports false where ctx ends first.
func await[T any](ctx context.Context, s *sender, coming <-chan T) (came T, ok bool) {
	for {
		select {
		case <-ctx.Done():
			return came, false
		case came = <-coming:
			return came, true
		case <-time.After(s.due()):
			s.flush(ctx)
		}
	}
}

// tell sends a message with the cursor after all that was put.
func (s *sender) tell(ctx context.Context, name string, data []byte) {
	s.told, s.toldAt = s.after, time.Now()
	s.write(ctx, "event: "+name+"\nid: "+s.after+"\ndata: ", data, "\n\n")
}

// write writes in chunks. A client on a slow line gets all the time it needs for a long message if it takes each chunk
// in time. It discards a message that ends between two chunks.
func (s *sender) write(ctx context.Context, head string, data []byte, tail string) {
	for chunk := range slices.Chunk(slices.Concat([]byte(head), data, []byte(tail)), streamChunk) {
		// In this order: where ctx ends after it was asked, interruptible sets a deadline after this one.
		err := s.conn.SetWriteDeadline(time.Now().Add(s.config.Patience))
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			_, err = s.w.Write(chunk)
		}
		if err == nil {
			err = s.conn.Flush()
		}
		if isTimeout(err) {
			err = errTookNothing
		}
		if err != nil {
			s.end(fmt.Errorf("writing a stream: %w", err))
			return
		}
	}
	s.wrote = time.Now()
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

package ingest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/gorilla/mux"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/respond"
)

// Read makes an event out of a request's body. Its error is an
// *event.SyntaxError or an *event.InvalidError; both are shown to the sender.
type Read func(body []byte) (event.Event, error)

// HandlerConfig says what requests are taken.
type HandlerConfig struct {
	MaxBody     int64         // bytes of a body at most, before and after decompression
	ReadTimeout time.Duration // for a whole body to arrive
}

// Handler takes webhooks in over HTTP.
type Handler struct {
	config     HandlerConfig
	read       Read
	committer  *Committer
	rejections *Rejections
	log        zerolog.Logger
	refusals   zerolog.Logger // sampled: a flood of refusals is not a flood of log lines
	metrics    *Metrics
}

// NewHandler returns a Handler that feeds committer.
func NewHandler(config HandlerConfig, read Read, committer *Committer, rejections *Rejections, log zerolog.Logger, metrics *Metrics) *Handler {
	return &Handler{
		config: config, read: read, committer: committer, rejections: rejections, metrics: metrics, log: log,
		refusals: log.Sample(&zerolog.BurstSampler{Burst: 10, Period: time.Second}),
	}
}

// Register adds the handler's routes: POST /webhook and POST /webhook/{source}.
// Other methods come here too, so that their refusal is audited like the rest.
func (h *Handler) Register(r *mux.Router) {
	r.Path("/webhook").HandlerFunc(h.receive)
	r.Path("/webhook/{source}").HandlerFunc(h.receive)
}

// receive answers one webhook. The answer comes after the commit or names the
// reason why there was none.
func (h *Handler) receive(w http.ResponseWriter, r *http.Request) {
	e, refusal := h.accept(w, r)
	if refusal != nil {
		h.refuse(w, r, e.Source, refusal)
		return
	}
	// The request's context also ends for a sender that has only closed its own
	// half of the connection and waits for the answer, and when a stop cuts the
	// requests in hand. A handler that returned then without an answer would have
	// net/http send an empty 200. The committer's patience bounds the wait.
	receipt, err := h.committer.Submit(context.WithoutCancel(r.Context()), e)
	if err != nil {
		refusal = unavailable
		if errors.Is(err, ErrFull) {
			refusal = intakeFull
		}
		h.refuse(w, r, e.Source, refusal)
		return
	}
	// From here on the event is safe: it is committed, whatever becomes of the answer.
	level := zerolog.DebugLevel
	if receipt.Outcome == event.Conflict {
		level = zerolog.InfoLevel
	}
	h.log.WithLevel(level).Str("event_id", e.ID).Str("source", e.Source).Str("event_type", e.Type).Str("outcome", string(receipt.Outcome)).Msg("event received")
	respond.Write(w, http.StatusOK, "application/json", appendAnswer(nil, receipt.Outcome, e.ID))
}

// appendAnswer appends the body of a 2xx.
func appendAnswer(b []byte, outcome event.Outcome, eventID string) []byte {
	message := ""
	switch outcome {
	case event.Accepted:
		message = "The event is stored."
	case event.Deduplicated:
		message = "The event was stored before; nothing is delivered again."
	case event.Conflict:
		message = "Another payload is stored under this event_id and stays; this one is kept as evidence."
	}
	b = append(b, `{"status":"`...)
	b = append(b, outcome...)
	b = append(b, `","message":"`...)
	b = append(b, message...)
	b = append(b, `","event_id":`...)
	b, _ = jsontext.AppendQuote(b, eventID) // an id is valid UTF-8
	return append(b, '}', '\n')
}

// accept reads a request as far as an event, or says why it is refused. The
// event's source is set wherever it is known.
func (h *Handler) accept(w http.ResponseWriter, r *http.Request) (event.Event, *refusal) {
	name, ok := mux.Vars(r)["source"]
	if !ok {
		name = event.DefaultSource
	}
	if name != event.DefaultSource {
		return event.Event{}, &refusal{status: http.StatusNotFound, cause: "no_such_source", detail: "There is no source of this name."}
	}
	named := event.Event{Source: name}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return named, &refusal{status: http.StatusMethodNotAllowed, cause: "method", detail: "This path takes POST."}
	}
	if f := checkHeaders(r.Header); f != nil {
		return named, f
	}
	body, f := h.body(w, r)
	if f != nil {
		return named, f
	}
	e, err := h.read(body)
	var syntax *event.SyntaxError
	var invalid *event.InvalidError
	switch {
	case err == nil:
		return e, nil
	case errors.As(err, &syntax):
		return named, &refusal{status: http.StatusBadRequest, cause: "not_json", detail: "The body is " + syntax.Detail + "."}
	case errors.As(err, &invalid):
		return named, &refusal{
			status: http.StatusUnprocessableEntity, cause: "invalid_event",
			detail: "The body is JSON, but not a valid event: see errors.", problems: invalid.Problems,
		}
	default:
		h.log.Error().Err(err).Msg("reading a body failed")
		return named, unavailable
	}
}

// singleHeaders must not come twice: which of the two counts would be a guess.
var singleHeaders = []string{
	"Content-Type", "Content-Encoding", "Authorization", "Webhook-Id", "Webhook-Timestamp", "Webhook-Signature",
}

func checkHeaders(header http.Header) *refusal {
	for _, name := range singleHeaders {
		if len(header[name]) > 1 {
			return &refusal{status: http.StatusBadRequest, cause: "repeated_header", detail: "The header " + name + " came more than once."}
		}
	}
	if value := header.Get("Content-Type"); value != "" {
		media, _, err := mime.ParseMediaType(value)
		if err != nil || (media != "application/json" && !strings.HasSuffix(media, "+json")) {
			return &refusal{status: http.StatusUnsupportedMediaType, cause: "content_type", detail: "The content type must be application/json, end in +json, or be left out."}
		}
	}
	switch strings.ToLower(header.Get("Content-Encoding")) {
	case "", "identity", "gzip":
		return nil
	}
	return &refusal{status: http.StatusUnsupportedMediaType, cause: "content_encoding", detail: "The content encoding must be gzip, or be left out."}
}

// body reads the whole body within the limits of size and time.
func (h *Handler) body(w http.ResponseWriter, r *http.Request) ([]byte, *refusal) {
	tooLarge := &refusal{
		status: http.StatusRequestEntityTooLarge, cause: "too_large",
		detail: "The body is larger than " + strconv.FormatInt(h.config.MaxBody, 10) + " bytes.",
	}
	// Checked before the first read, which would send 100 Continue.
	if r.ContentLength > h.config.MaxBody {
		w.Header().Set("Connection", "close")
		return nil, tooLarge
	}
	// A writer that cannot set a deadline leaves it to the server's own.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(h.config.ReadTimeout))
	wire := &io.LimitedReader{R: r.Body, N: h.config.MaxBody + 1}
	var source io.Reader = wire
	zipped := strings.EqualFold(r.Header.Get("Content-Encoding"), "gzip")
	if zipped {
		unzip, err := gzip.NewReader(wire)
		if err != nil {
			return nil, bodyRefusal(w, err)
		}
		source = &io.LimitedReader{R: unzip, N: h.config.MaxBody + 1}
	}
	var buffer bytes.Buffer
	if r.ContentLength > 0 && !zipped {
		// Grow to what was announced, but not on the word of a sender who has not sent it yet.
		buffer.Grow(int(min(r.ContentLength, 16<<10)) + bytes.MinRead)
	}
	if _, err := buffer.ReadFrom(source); err != nil {
		if wire.N <= 0 {
			w.Header().Set("Connection", "close")
			return nil, tooLarge
		}
		return nil, bodyRefusal(w, err)
	}
	if wire.N <= 0 || int64(buffer.Len()) > h.config.MaxBody {
		w.Header().Set("Connection", "close")
		return nil, tooLarge
	}
	return buffer.Bytes(), nil
}

// bodyRefusal says why a body could not be read to its end.
func bodyRefusal(w http.ResponseWriter, err error) *refusal {
	w.Header().Set("Connection", "close")
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &refusal{status: http.StatusRequestTimeout, cause: "too_slow", detail: "The body did not arrive in time."}
	}
	if errors.Is(err, context.Canceled) {
		return &refusal{status: http.StatusBadRequest, cause: "cut_short", detail: "The connection ended before the body did."}
	}
	return &refusal{status: http.StatusBadRequest, cause: "cut_short", detail: "The body is cut short or not what its headers say."}
}

// refusal is an answer that is not a 2xx.
type refusal struct {
	status   int
	cause    string // a short word for metrics, log and audit
	detail   string // a sentence for the sender
	problems []event.Problem
}

// The refusals that are our fault and not the sender's.
var (
	intakeFull = &refusal{
		status: http.StatusServiceUnavailable, cause: "intake_full",
		detail: "The intake is full. Send the event again in a moment.",
	}
	unavailable = &refusal{
		status: http.StatusServiceUnavailable, cause: "unavailable",
		detail: "The event could not be stored now. Send it again; if it was stored after all, it is not stored twice.",
	}
)

func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, source string, f *refusal) {
	h.metrics.rejections.WithLabelValues(f.cause, strconv.Itoa(f.status)).Inc()
	h.rejections.add(source, f.cause, f.status)
	h.refusals.Info().Str("source", source).Str("cause", f.cause).Int("status", f.status).Str("remote", r.RemoteAddr).Msg("request refused")
	p := respond.Problem{Status: f.status, Detail: f.detail}
	for _, problem := range f.problems {
		p.Errors = append(p.Errors, respond.Fault{Field: problem.Field, Detail: problem.Detail})
	}
	respond.Refuse(w, p)
}

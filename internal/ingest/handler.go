package ingest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"math"
	"mime"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/gorilla/mux"
	"github.com/rs/zerolog"
	"golang.org/x/sync/semaphore"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/respond"
)

// HandlerConfig says what requests are taken.
type HandlerConfig struct {
	MaxBody     int64          // bytes of a body at most, before and after decompression
	ReadTimeout time.Duration  // for a whole body to arrive
	InFlight    int64          // bytes of all bodies at most that are being read or wait for their commit
	Trusted     []netip.Prefix // proxies whose word on the client's address is taken
	Address     Rate           // of one client address, over all sources
}

// Handler takes webhooks in over HTTP.
type Handler struct {
	config     HandlerConfig
	sources    Sources
	committer  *Committer
	rejections *Rejections
	keeper     *Keeper
	limits     *limits
	brake      *brake
	inFlight   *semaphore.Weighted
	log        zerolog.Logger
	refusals   zerolog.Logger // sampled: a flood of refusals is not a flood of log lines
	metrics    *Metrics
}

// NewHandler returns a Handler that feeds committer.
func NewHandler(config HandlerConfig, sources Sources, committer *Committer, rejections *Rejections, keeper *Keeper, log zerolog.Logger, metrics *Metrics) *Handler {
	return &Handler{
		config: config, sources: sources, committer: committer, rejections: rejections, keeper: keeper, metrics: metrics, log: log,
		limits: newLimits(), brake: newBrake(), inFlight: semaphore.NewWeighted(config.InFlight),
		refusals: log.Sample(&zerolog.BurstSampler{Burst: 10, Period: time.Second}),
	}
}

// Register adds the handler's routes: POST /webhook and POST /webhook/{source}.
// Other methods come here too, so that their refusal is audited like the rest.
func (h *Handler) Register(r *mux.Router) {
	r.Path("/webhook").HandlerFunc(h.receive)
	r.Path("/webhook/{source}").HandlerFunc(h.receive)
}

// arrival is a request on its way to its answer.
type arrival struct {
	name    string // of the source; empty where there is none
	source  Source
	remote  string // address of the client
	request *event.Request
	read    bool  // its body was read, as far as it may be
	bytes   int64 // of its body, compressed and not
	held    int64 // of the room for bytes in flight
}

// receive answers one request. The answer comes after the commit or names the
// reason why there was none.
func (h *Handler) receive(w http.ResponseWriter, r *http.Request) {
	a := &arrival{remote: clientAddress(r, h.config.Trusted)}
	defer h.letGo(a)
	answer, f := h.handle(w, r, a)
	if f != nil {
		h.refuse(r.Context(), w, a, f)
		return
	}
	for name, value := range answer.header {
		w.Header().Set(name, value)
	}
	respond.Write(w, answer.status, answer.contentType, answer.body)
}

// handle takes a request through all that there is to it, in this order: nothing
// that was not verified costs others more than a look at it.
func (h *Handler) handle(w http.ResponseWriter, r *http.Request, a *arrival) (answer, *refusal) {
	if f := h.find(r, a); f != nil {
		return answer{}, f
	}
	policy := a.source.Policy()
	if f := h.limits.address(a, h.config.Address, policy.Address); f != nil {
		return answer{}, f
	}
	a.request = &event.Request{Method: r.Method, URL: r.URL, Header: r.Header, At: time.Now()}
	if r.Method != http.MethodPost {
		return h.greet(w, a)
	}
	if f := checkHeaders(r.Header, a.source); f != nil {
		return answer{}, f
	}
	wire, f := h.body(w, r, a)
	a.read = f == nil || f.status == http.StatusRequestEntityTooLarge
	if f != nil {
		return answer{}, f
	}
	a.request.Wire = wire
	if f := h.verify(a); f != nil {
		return answer{}, f
	}
	// The budget of a source is for those who may use it.
	if f := h.limits.source(a, policy.Verified); f != nil {
		return answer{}, f
	}
	// The request's context also ends for a sender that has only closed its own
	// half of the connection and waits for the answer, and when a stop cuts the
	// requests in hand. A handler that returned then without an answer would have
	// net/http send an empty 200. The committer's patience bounds the wait.
	result, f := h.take(context.WithoutCancel(r.Context()), a)
	return result.answer, f
}

// find looks up the source that a request is for.
func (h *Handler) find(r *http.Request, a *arrival) *refusal {
	name, named := mux.Vars(r)["source"]
	if !named {
		name = event.DefaultSource
	}
	found, err := h.sources.Lookup(name)
	return h.found(a, name, found, err)
}

// found notes the source of a request, or says why nothing is taken from it.
func (h *Handler) found(a *arrival, name string, found Source, err error) *refusal {
	switch {
	case err == nil:
		a.name, a.source = name, found
		return nil
	case errors.Is(err, event.ErrNoSource):
		return &refusal{status: http.StatusNotFound, cause: "no_such_source", detail: "There is no source of this name."}
	case errors.Is(err, event.ErrSourceDisabled):
		a.name = name
		return &refusal{status: http.StatusNotFound, cause: "source_disabled", detail: "There is no source of this name now."}
	case errors.Is(err, event.ErrSourceBroken):
		a.name = name
		h.refusals.Error().Err(err).Str("source", name).Msg("a source cannot be used")
		return sourceBroken
	}
	return unavailable // the sources have not been read yet
}

// greet answers what is no POST: handshakes of the source's provider.
func (h *Handler) greet(w http.ResponseWriter, a *arrival) (answer, *refusal) {
	if slices.Contains(a.source.Allowed(), a.request.Method) {
		if said, ok := a.source.Handshake(a.request); ok {
			return handshake(said), nil
		}
	}
	allowed := append([]string{http.MethodPost}, a.source.Allowed()...)
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	return answer{}, &refusal{status: http.StatusMethodNotAllowed, cause: "method", detail: "This path takes " + strings.Join(allowed, ", ") + "."}
}

// verify checks that a request comes from who may send.
func (h *Handler) verify(a *arrival) *refusal {
	err := a.source.Verify(a.request)
	var unverified *event.UnverifiedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unverified):
		return &refusal{status: http.StatusUnauthorized, cause: unverified.Cause, detail: unverified.Detail}
	}
	h.log.Error().Err(err).Str("source", a.name).Msg("verifying a request failed")
	return unavailable
}

// taken is what came of a verified request.
type taken struct {
	answer   answer
	events   []event.Event
	receipts []event.Receipt
}

// read decompresses a request that was verified and makes events of it. Where it
// holds none it is answered at once.
func (h *Handler) read(a *arrival) (events []event.Event, batch bool, at *answer, f *refusal) {
	if f := h.decompress(a); f != nil {
		return nil, false, nil, f
	}
	if said, ok := a.source.Handshake(a.request); ok {
		said := handshake(said)
		return nil, false, &said, nil
	}
	events, batch, err := a.source.Read(a.request)
	if err != nil {
		return nil, false, nil, h.unreadable(err)
	}
	if len(events) == 0 {
		return nil, batch, &answer{http.StatusOK, jsonType, nil, []byte("[]\n")}, nil
	}
	return events, batch, nil, nil
}

// take reads and stores a request that was verified.
func (h *Handler) take(ctx context.Context, a *arrival) (taken, *refusal) {
	events, batch, at, f := h.read(a)
	if f != nil {
		return taken{}, f
	}
	if at != nil {
		return taken{answer: *at}, nil
	}
	receipts, err := h.committer.Submit(ctx, events...)
	if err != nil {
		if errors.Is(err, ErrFull) {
			return taken{}, intakeFull
		}
		return taken{}, unavailable
	}
	// From here on the events are safe: they are committed, whatever becomes of the answer.
	status := http.StatusOK
	for i, receipt := range receipts {
		level := zerolog.DebugLevel
		if receipt.Outcome == event.Conflict {
			level = zerolog.InfoLevel
			if a.source.Policy().RefuseConflicts {
				status = http.StatusConflict
			}
		}
		e := &events[i]
		h.log.WithLevel(level).Str("event_id", e.ID).Str("source", e.Source).Str("event_type", e.Type).Str("outcome", string(receipt.Outcome)).Msg("event received")
	}
	return taken{answer{status, jsonType, nil, appendAnswers(nil, batch, events, receipts)}, events, receipts}, nil
}

// unreadable says what is wrong with a body.
func (h *Handler) unreadable(err error) *refusal {
	var syntax *event.SyntaxError
	var invalid *event.InvalidError
	switch {
	case errors.As(err, &syntax):
		return &refusal{status: http.StatusBadRequest, cause: "not_json", detail: "The body is " + syntax.Detail + "."}
	case errors.As(err, &invalid):
		return &refusal{
			status: http.StatusUnprocessableEntity, cause: "invalid_event",
			detail: "The body is not a valid event: see errors.", problems: invalid.Problems,
		}
	}
	h.log.Error().Err(err).Msg("reading a body failed")
	return unavailable
}

// Take has a request taken in that did not come over the network: it is looked
// up, verified, read and stored like any other, and the answer returned.
func (h *Handler) Take(ctx context.Context, name string, r *event.Request) (status int, body []byte) {
	a := &arrival{request: r}
	defer h.letGo(a)
	source, err := h.sources.Lookup(name)
	f := h.found(a, name, source, err)
	if f == nil {
		f = h.verify(a)
	}
	var result taken
	if f == nil {
		result, f = h.take(ctx, a)
	}
	if f != nil {
		return f.status, f.problem().Text()
	}
	return result.answer.status, result.answer.body
}

// answer is what a request is answered with that was taken.
type answer struct {
	status      int
	contentType string
	header      map[string]string
	body        []byte
}

const jsonType = "application/json"

// handshake is the answer to one.
func handshake(said event.Answer) answer {
	return answer{said.Status, said.Header["Content-Type"], said.Header, said.Body}
}

// appendAnswers appends the body of a 2xx: an object, or a list of such for a
// batch.
func appendAnswers(b []byte, batch bool, events []event.Event, receipts []event.Receipt) []byte {
	if !batch {
		return append(appendAnswer(b, receipts[0].Outcome, events[0].ID), '\n')
	}
	b = append(b, '[')
	for i, receipt := range receipts {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendAnswer(b, receipt.Outcome, events[i].ID)
	}
	return append(b, ']', '\n')
}

// appendAnswer appends what became of one event.
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
	return append(b, '}')
}

// singleHeaders must not come twice: which of the two counts would be a guess.
var singleHeaders = []string{
	"Content-Type", "Content-Encoding", "Authorization", "Webhook-Id", "Webhook-Timestamp", "Webhook-Signature",
}

func checkHeaders(header http.Header, source Source) *refusal {
	for _, names := range [2][]string{singleHeaders, source.SingleHeaders()} {
		for _, name := range names {
			if len(header[name]) > 1 {
				return &refusal{status: http.StatusBadRequest, cause: "repeated_header", detail: "The header " + name + " came more than once."}
			}
		}
	}
	if value := header.Get("Content-Type"); value != "" && source.InsistsOnJSON() {
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

// body reads the whole body as it comes over the wire, within the limits of size
// and time.
func (h *Handler) body(w http.ResponseWriter, r *http.Request, a *arrival) ([]byte, *refusal) {
	// Checked before the first read, which would send 100 Continue.
	if r.ContentLength > h.config.MaxBody {
		w.Header().Set("Connection", "close")
		return nil, h.tooLarge()
	}
	// A writer that cannot set a deadline leaves it to the server's own.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(h.config.ReadTimeout))
	var buffer bytes.Buffer
	if r.ContentLength > 0 {
		// Grow to what was announced, but not on the word of a sender who has not sent it yet.
		buffer.Grow(int(min(r.ContentLength, 16<<10)) + bytes.MinRead)
	}
	limited := &io.LimitedReader{R: r.Body, N: h.config.MaxBody + 1}
	_, err := buffer.ReadFrom(&counted{limited, func(n int64) bool { return h.hold(a, n) }})
	switch {
	case errors.Is(err, errInFlight):
		w.Header().Set("Connection", "close")
		return nil, tooManyBytes
	case limited.N <= 0:
		w.Header().Set("Connection", "close")
		return nil, h.tooLarge()
	case err != nil:
		w.Header().Set("Connection", "close")
		return nil, bodyRefusal(err)
	}
	return buffer.Bytes(), nil
}

func (h *Handler) tooLarge() *refusal {
	return &refusal{
		status: http.StatusRequestEntityTooLarge, cause: "too_large",
		detail: "The body is larger than " + strconv.FormatInt(h.config.MaxBody, 10) + " bytes.",
	}
}

// decompress sets the body of a request, within the limit of size.
func (h *Handler) decompress(a *arrival) *refusal {
	a.request.Body = a.request.Wire
	if !strings.EqualFold(a.request.Header.Get("Content-Encoding"), "gzip") {
		return nil
	}
	unzip, err := gzip.NewReader(bytes.NewReader(a.request.Wire))
	if err != nil {
		return bodyRefusal(err)
	}
	var buffer bytes.Buffer
	limited := &io.LimitedReader{R: unzip, N: h.config.MaxBody + 1}
	_, err = buffer.ReadFrom(&counted{limited, func(n int64) bool { return h.hold(a, n) }})
	switch {
	case errors.Is(err, errInFlight):
		return tooManyBytes
	case limited.N <= 0:
		return h.tooLarge()
	case err != nil:
		return bodyRefusal(err)
	}
	a.request.Body = buffer.Bytes()
	return nil
}

// bodyRefusal says why a body could not be read to its end.
func bodyRefusal(err error) *refusal {
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
	after    time.Duration // when to come again; 0 where the status has its own
}

// problem is what a sender is told.
func (f *refusal) problem() respond.Problem {
	p := respond.Problem{Status: f.status, Detail: f.detail}
	for _, problem := range f.problems {
		p.Errors = append(p.Errors, respond.Fault{Field: problem.Field, Detail: problem.Detail})
	}
	return p
}

// The refusals that are our fault and not the sender's.
var (
	intakeFull = &refusal{
		status: http.StatusServiceUnavailable, cause: "intake_full",
		detail: "The intake is full. Send the event again in a moment.",
	}
	tooManyBytes = &refusal{
		status: http.StatusServiceUnavailable, cause: "bytes_in_flight",
		detail: "More is on its way in than there is room for. Send the event again in a moment.",
	}
	sourceBroken = &refusal{
		status: http.StatusServiceUnavailable, cause: "source_broken",
		detail: "This source cannot be used now: its settings or its secrets are to be mended here. Send the event again.",
	}
	unavailable = &refusal{
		status: http.StatusServiceUnavailable, cause: "unavailable",
		detail: "The event could not be stored now. Send it again; if it was stored after all, it is not stored twice.",
	}
)

func (h *Handler) refuse(ctx context.Context, w http.ResponseWriter, a *arrival, f *refusal) {
	h.metrics.rejections.WithLabelValues(f.cause, strconv.Itoa(f.status)).Inc()
	h.rejections.add(a.name, f.cause, f.status)
	h.refusals.Info().Str("source", a.name).Str("cause", f.cause).Int("status", f.status).Str("remote", a.remote).Msg("request refused")
	if a.read && f.status < http.StatusInternalServerError && f.status != http.StatusTooManyRequests {
		h.keeper.keep(a, f)
	}
	if f.status < http.StatusInternalServerError { // what is our fault is told at once
		h.letGo(a)
		h.brake.hold(ctx)
	}
	if f.after > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(int64(math.Ceil(f.after.Seconds())), 10))
	}
	respond.Reject(w, f.problem())
}

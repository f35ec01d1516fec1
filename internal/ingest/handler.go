package ingest

import (
	"cmp"
	"context"
	"errors"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/respond"
)

// HandlerConfig says which requests a Handler admits.
type HandlerConfig struct {
	MaxBody     int64          // limit on the bytes of a body, before and after decompression
	ReadTimeout time.Duration  // for a whole body to arrive
	InFlight    int64          // limit on the bytes of all bodies being read or waiting for their commit
	Trusted     []netip.Prefix // proxies that Spine believes about the client's address
	Address     Rate           // of one client address, over all sources
	Brake       *Brake         // nil for one of the Handler's own
}

// Handler receives webhooks over HTTP.
type Handler struct {
	gate
	log         zerolog.Logger
	conflictLog zerolog.Logger // sampled, as every line that a sender can cause
	config      HandlerConfig
	committer   *Committer
	rejections  *Rejections
	keeper      *Keeper
	limits      *limits
	brake       *Brake
	metrics     *Metrics
}

// NewHandler returns a Handler that feeds committer.
func NewHandler(
	config HandlerConfig, sources Sources, committer *Committer, rejections *Rejections, keeper *Keeper,
	log zerolog.Logger, metrics *Metrics,
) *Handler {
	return &Handler{
		gate: gate{
			sources: sources, maxBody: config.MaxBody, room: newRoom(config.InFlight, config.MaxBody),
			shares: newShares(config.InFlight, config.MaxBody), rejectionLog: sampled(log), turns: newTurns(),
		},
		log: log, conflictLog: sampled(log),
		config: config, committer: committer, rejections: rejections, keeper: keeper, metrics: metrics,
		limits: newLimits(config.Address), brake: cmp.Or(config.Brake, NewBrake()),
	}
}

// sampled returns a log that takes ten lines a second. It is for lines that a sender can cause.
func sampled(log zerolog.Logger) zerolog.Logger {
	return log.Sample(&zerolog.BurstSampler{Burst: 10, Period: time.Second})
}

// Around answers webhooks, and hands every other request to next. Webhooks go to /webhook and /webhook/{source}, with
// any method, so that a request with a wrong one is audited like other rejections. They pass no router: it copies a
// request twice, which is a fortieth of the processor time of ingest.
func (h *Handler) Around(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if source, ok := sourceIn(r.URL.EscapedPath()); ok {
			h.receive(w, r, source)
		} else {
			next.ServeHTTP(w, r)
		}
	})
}

// sourceIn returns the source that the path of a webhook names, as it stands there.
func sourceIn(path string) (source string, ok bool) {
	if path == "/webhook" {
		return event.DefaultSource, true
	}
	source, ok = strings.CutPrefix(path, "/webhook/")
	return source, ok && source != "" && !strings.Contains(source, "/")
}

// receive answers one request from the network. The answer comes after the commit or says why there was none.
func (h *Handler) receive(w http.ResponseWriter, r *http.Request, asked string) {
	a := &arrival{
		asked:  asked,
		remote: ClientAddress(r, h.config.Trusted),
		request: event.Request{
			Method: r.Method,
			URL:    r.URL,
			Header: r.Header,
			At:     time.Now(),
		},
		announced: r.ContentLength,
	}
	defer h.release(a)
	var done admission
	rej := tooManyBytes
	if h.reserveHeaders(a) {
		done, rej = h.admit(r.Context(), a, options{limits: h.limits, upload: upload{w, r, h.config.ReadTimeout}})
	}
	if rej != nil {
		h.reject(r.Context(), w, a, rej)
		return
	}
	for name, value := range done.answer.header {
		w.Header().Set(name, value)
	}
	respond.Write(w, done.answer.status, done.answer.contentType, done.answer.body)
}

// Admit admits a request that did not come over the network, such as a signed sample, and returns its answer. Rate
// limits do not apply to it.
func (h *Handler) Admit(ctx context.Context, source string, r *event.Request) (status int, body []byte) {
	a := &arrival{asked: source, request: *r}
	defer h.release(a)
	done, rej := h.admit(ctx, a, options{})
	if rej != nil {
		return rej.status, rej.problem().Text()
	}
	return done.answer.status, done.answer.body
}

// admission is what became of a request that was not rejected.
type admission struct {
	answer   answer
	events   []event.Event   // committed; none for a handshake or an empty batch
	receipts []event.Receipt // one for each of events
}

// admit is the one path of every request that may be stored: the gate, then the commit.
func (h *Handler) admit(ctx context.Context, a *arrival, o options) (admission, *rejection) {
	v, rej := h.judge(a, o)
	if rej != nil || len(v.events) == 0 {
		return admission{answer: v.answer}, rej
	}
	if o.upload.request != nil {
		// The request's context also ends when a stop cuts the requests in hand. It ends too for a sender that has
		// closed its own half of the connection and waits for the answer. If the handler then returned without an
		// answer, net/http would send an empty 200. The committer's patience bounds the wait.
		ctx = context.WithoutCancel(ctx)
	}
	receipts, err := h.committer.Submit(ctx, v.events...)
	if err != nil {
		if errors.Is(err, ErrFull) {
			return admission{}, intakeFull
		}
		return admission{}, unavailable
	}
	// From here on the events are committed, even if the answer is lost.
	status := http.StatusOK
	for i, receipt := range receipts {
		log, level := &h.log, zerolog.DebugLevel
		if receipt.Outcome == event.Conflict {
			log, level = &h.conflictLog, zerolog.InfoLevel
			if a.policy.RejectConflicts {
				status = http.StatusConflict
			}
		}
		e := &v.events[i]
		log.WithLevel(level).Str("event_id", e.ID).Str("source", e.Source).Str("event_type", e.Type).
			Str("outcome", string(receipt.Outcome)).Msg("event received")
	}
	body := appendAnswers(nil, v.batch, v.events, receipts)
	return admission{answer{status: status, contentType: jsonType, body: body}, v.events, receipts}, nil
}

// answer is what the sender of an admitted request is told.
type answer struct {
	status      int
	contentType string
	header      map[string]string
	body        []byte
}

const jsonType = "application/json"

func handshakeAnswer(said event.Answer) answer {
	return answer{said.Status, said.Header["Content-Type"], said.Header, said.Body}
}

// appendAnswers appends the body of a 2xx: an object, or a list of objects for a batch.
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

// rejection is an answer that is not a 2xx.
type rejection struct {
	status   int
	cause    string // a short word for metrics, log and audit log
	detail   string // a sentence for the sender
	problems []event.Problem
	after    time.Duration // when to come again; 0 where that is not known
	allow    string        // the methods that the path takes; only for 405
	ask      string        // WWW-Authenticate; only for 401
}

// problem is what the sender is told.
func (rej *rejection) problem() respond.Problem {
	p := respond.Problem{Status: rej.status, Detail: rej.detail}
	for _, problem := range rej.problems {
		p.Errors = append(p.Errors, respond.Fault{Field: problem.Field, Detail: problem.Detail})
	}
	return p
}

// longDetail is the sentence for the sender and what is wrong with each field.
func (rej *rejection) longDetail() string {
	detail := rej.detail
	for _, problem := range rej.problems {
		detail += " " + problem.Field + " " + problem.Detail + "."
	}
	return detail
}

// ourFault reports whether the sender did nothing wrong.
func (rej *rejection) ourFault() bool { return rej.status >= http.StatusInternalServerError }

// isStray reports whether the source takes no requests now.
func (rej *rejection) isStray() bool { return isStrayCause(rej.cause) }

// Rejections that are our fault and not the sender's.
var (
	intakeFull = &rejection{
		status: http.StatusServiceUnavailable, cause: "intake_full",
		detail: "The intake is full. Send the event again in a moment.",
	}
	tooManyBytes = &rejection{
		status: http.StatusServiceUnavailable, cause: "bytes_in_flight",
		detail: "Too many bytes are being received at once. Send the event again in a moment.",
	}
	sourceDisabled = &rejection{
		status: http.StatusServiceUnavailable, cause: "source_disabled",
		detail: "This source takes no requests now. Send the event again later.",
	}
	sourceClosed = &rejection{
		status: http.StatusServiceUnavailable, cause: "source_closed",
		detail: "The source default is closed, since it would take events from anyone. Give it a secret " +
			"(spine source set default --preset standard-webhooks --format envelope --secret …), " +
			"or set DEFAULT_SOURCE=open.",
	}
	sourceBroken = &rejection{
		status: http.StatusServiceUnavailable, cause: "source_broken",
		detail: "This source cannot be used until its settings or secrets are corrected. Send the event again later.",
	}
	unavailable = &rejection{
		status: http.StatusServiceUnavailable, cause: "unavailable",
		detail: "The event could not be stored now. Send it again; if it was stored after all, it is not stored twice.",
	}
)

// reject counts, audits and logs a rejection, keeps what came of the request, and answers.
func (h *Handler) reject(ctx context.Context, w http.ResponseWriter, a *arrival, rej *rejection) {
	h.metrics.rejections.WithLabelValues(rej.cause, strconv.Itoa(rej.status)).Inc()
	h.rejections.Add(a.name, rej.cause, rej.status)
	level := zerolog.InfoLevel
	if rej == unavailable || rej == intakeFull {
		level = zerolog.DebugLevel // what keeps us from storing has a line of its own
	}
	h.rejectionLog.WithLevel(level).
		Str("source", a.name).
		Str("cause", rej.cause).
		Int("status", rej.status).
		Str("remote", a.remote).
		Msg("request rejected")
	if a.announced == 0 && a.bodyState == bodyUnread {
		a.bodyState = bodyWhole // there is none
	}
	if a.name != "" && a.request.Method != http.MethodHead {
		h.keeper.keep(a, rej)
	}
	// The sender is told of our faults at once. Strangers can ask a disabled source as often as they like.
	if !rej.ourFault() || rej.isStray() {
		h.release(a)
		h.brake.Wait(ctx)
	}
	if rej.allow != "" {
		w.Header().Set("Allow", rej.allow)
	}
	if rej.ask != "" {
		w.Header().Set("WWW-Authenticate", rej.ask)
	}
	if rej.after > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(int64(math.Ceil(rej.after.Seconds())), 10))
	}
	respond.Reject(w, rej.problem())
}

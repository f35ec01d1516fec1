package ingest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
)

// gate decides about a request: which source it is for, whether that source sent it, and which events it holds. It
// stores nothing, so a dry run passes it like every other request.
type gate struct {
	sources      Sources
	maxBody      int64          // limit on the bytes of a body, before and after decompression
	room         *room          // for all requests that are being read or wait for their commit
	shares       *shares        // of it
	uploads      uploads        // that give way where it is full
	rejectionLog zerolog.Logger // sampled: a flood of rejections is not a flood of log lines
	turns        *turns         // of requests that take much memory while they are read for events
}

// arrival is a request on its way to its answer.
type arrival struct {
	asked    string   // the source's name as the request gives it: anything
	name     string   // of the source; empty where there is none
	source   Source   // nil until it was found, or where it takes none now and cannot verify
	policy   Policy   // of the source
	redactor Redactor // of the source; nil where nobody knows its secrets
	remote   string   // the client's address; empty where it did not come over the network
	request  event.Request
	verified *bool // whether its source sent it; only where that takes none now, and can verify

	announced int64 // length of its body by its headers; -1 where they do not say it
	bodyState bodyState
	more      [1]byte   // scratch: what comes after a body that is as large as it may be
	reserved  int64     // bytes of gate.room, for its headers and its body, compressed and decompressed
	small     int64     // bytes of the room for small requests
	shared    int64     // of both, those that count towards its address, and once it is vouched for towards its source
	vouched   bool      // its source has verified it
	progress  *progress // of its upload; nil for a small one that came at once

	upload http.ResponseWriter // nil unless its body is being read
}

// bodyState says how much of a body has been read.
type bodyState int

const (
	bodyUnread bodyState = iota
	bodyPart
	bodyWhole
)

// options says what differs between requests. The zero value is for a request that is here with its whole body.
type options struct {
	limits  *limits // rate limits that it is charged to; nil for none
	upload  upload  // the body, where the sender is still sending it
	trusted bool    // an operator vouches for it, so it is not verified
}

// upload is a body that is still to be read from the network.
type upload struct {
	writer  http.ResponseWriter
	request *http.Request // nil where the body is here
	timeout time.Duration // for the whole body to arrive
}

// verdict is what the gate makes of a request that it does not reject.
type verdict struct {
	events []event.Event
	batch  bool   // the sender expects a list of answers
	answer answer // only where there are no events: a handshake or an empty batch
}

// judge takes a request through all checks, the cheap ones first. Before it is verified, a request costs no more than
// reading and hashing its body. A source's rate limit comes after verification, so that strangers cannot use it up.
func (g *gate) judge(a *arrival, o options) (verdict, *rejection) {
	stray := g.find(a)
	if stray != nil && (!stray.isStray() || a.request.Method != http.MethodPost) {
		return verdict{}, stray
	}
	if o.limits != nil {
		if rej := o.limits.chargeAddress(a); rej != nil {
			return verdict{}, rej
		}
	}
	if stray != nil {
		g.readStray(a, o.upload)
		return verdict{}, stray
	}
	if a.request.Method != http.MethodPost {
		v, rej := greet(a)
		if rej != nil {
			_ = g.readBody(a, o.upload) // as far as it comes, for who looks for it
		}
		return v, rej
	}
	if rej := g.readBody(a, o.upload); rej != nil {
		return verdict{}, rej
	}
	if rej := checkHeaders(a.request.Header, a.source); rej != nil {
		return verdict{}, rej // after the body, which can then be replayed
	}
	end, rej := g.takeTurn(a)
	if rej != nil {
		return verdict{}, rej
	}
	defer end()
	if !o.trusted {
		if rej := g.verify(a); rej != nil {
			return verdict{}, rej
		}
	}
	if !g.vouch(a) {
		return verdict{}, tooManyBytes
	}
	if o.limits != nil {
		if rej := o.limits.chargeSource(a); rej != nil {
			return verdict{}, rej
		}
	}
	if rej := g.decompress(a); rej != nil {
		return verdict{}, rej
	}
	return g.readEvents(a)
}

// find looks up the source that a request is for.
func (g *gate) find(a *arrival) *rejection {
	found, err := g.sources.Lookup(a.asked)
	switch {
	case err == nil:
		a.name, a.source, a.policy, a.redactor = a.asked, found, found.Policy(), found
		return nil
	case errors.Is(err, event.ErrNoSource):
		return &rejection{
			status: http.StatusNotFound,
			cause:  "no_such_source",
			detail: "There is no source of this name.",
		}
	case errors.Is(err, event.ErrSourceClosed):
		g.findStray(a)
		return sourceClosed
	case errors.Is(err, event.ErrSourceDisabled):
		g.findStray(a)
		return sourceDisabled
	case errors.Is(err, event.ErrSourceBroken):
		g.findStray(a)
		g.rejectionLog.Error().Err(err).Str("source", a.name).Msg("a source cannot be used")
		return sourceBroken
	}
	return unavailable // the sources have not been read yet
}

// findStray notes how to keep a request to a source that takes none now.
func (g *gate) findStray(a *arrival) {
	stray := g.sources.Stray(a.asked)
	a.name, a.source, a.policy.Kept, a.redactor = a.asked, stray.Source, stray.Kept, stray.Redactor
	if a.source != nil {
		a.verified = new(bool)
	}
}

// readStray reads a request to a source that takes none now, since its sender may not send it again. It notes whether
// the source sent it, so that strangers do not take the room of what is kept. The answer stays, whatever is wrong.
func (g *gate) readStray(a *arrival, u upload) {
	rej := g.readBody(a, u)
	if a.source == nil || rej != nil || checkHeaders(a.request.Header, a.source) != nil {
		return
	}
	end, rej := g.takeTurn(a)
	if rej != nil {
		return // nobody knows then whether the source sent it
	}
	defer end()
	*a.verified = g.verify(a) == nil
}

// largeBody is the size in bytes from which on a body is read for events in turn with others.
const largeBody = 64 << 10

// takeTurn waits for a turn where a request takes much memory or time while it is read. The caller ends it.
func (g *gate) takeTurn(a *arrival) (end func(), rej *rejection) {
	if len(a.request.Wire) <= largeBody && !isGzip(a.request.Header) && !bytes.HasPrefix(a.request.Wire, gzipStart) {
		return func() {}, nil
	}
	end, ok := g.turns.take(a.name)
	if !ok {
		return nil, intakeFull
	}
	return end, nil
}

// encodingOf is the header Content-Encoding, in lower case.
func encodingOf(header http.Header) string {
	return strings.ToLower(strings.TrimSpace(header.Get("Content-Encoding")))
}

func isGzip(header http.Header) bool {
	encoding := encodingOf(header)
	return encoding == "gzip" || encoding == "x-gzip"
}

// greet answers the handshakes of providers that do not use POST for them.
// HEAD asks whether the source can take requests, and it can: it was found.
func greet(a *arrival) (verdict, *rejection) {
	if a.request.Method == http.MethodHead {
		return verdict{answer: answer{status: http.StatusOK, contentType: jsonType}}, nil
	}
	if slices.Contains(a.source.Allowed(), a.request.Method) {
		if said, ok := a.source.Handshake(&a.request); ok {
			if said.Status == http.StatusForbidden {
				return verdict{}, verifyTokenWrong
			}
			return verdict{answer: handshakeAnswer(said)}, nil
		}
	}
	allow := strings.Join(append([]string{http.MethodPost}, a.source.Allowed()...), ", ")
	return verdict{}, &rejection{
		status: http.StatusMethodNotAllowed, cause: "method", detail: "This path takes " + allow + ".", allow: allow,
	}
}

// singleHeaders must not come twice: Spine would have to guess which of the two counts.
var singleHeaders = []string{
	"Content-Type",
	"Content-Encoding",
	"Authorization",
	"Webhook-Id",
	"Webhook-Timestamp",
	"Webhook-Signature",
}

func checkHeaders(header http.Header, source Source) *rejection {
	for _, names := range [2][]string{singleHeaders, source.SingleHeaders()} {
		for _, name := range names {
			if len(header[name]) > 1 {
				return &rejection{
					status: http.StatusBadRequest, cause: "repeated_header",
					detail: "The header " + name + " came more than once.",
				}
			}
		}
	}
	if media := event.MediaType(header.Get("Content-Type")); media != "" && source.InsistsOnJSON() {
		if media != "application/json" && !strings.HasSuffix(media, "+json") {
			return &rejection{
				status: http.StatusUnsupportedMediaType, cause: "content_type",
				detail: "The content type must be application/json, end in +json, or be left out.",
			}
		}
	}
	switch encodingOf(header) {
	case "", "identity", "none", "utf-8", "utf8", "gzip", "x-gzip": // some confuse it with the encoding of characters
		return nil
	}
	return &rejection{
		status: http.StatusUnsupportedMediaType, cause: "content_encoding",
		detail: "The content encoding must be gzip, or be left out.",
	}
}

// readBody sets the body as it comes over the wire, within the limits of size and time. A body that is here already
// has the same limit of size.
func (g *gate) readBody(a *arrival, u upload) *rejection {
	if u.request == nil {
		if int64(len(a.request.Wire)) > g.maxBody {
			return g.tooLarge()
		}
		return nil
	}
	rej := g.receiveBody(a, u)
	isAlone := a.progress == nil || g.uploads.remove(a.progress)
	a.bodyState = bodyWhole
	if rej != nil {
		a.bodyState = bodyPart
	}
	if rej != nil || !isAlone {
		u.writer.Header().Set("Connection", "close") // what is left of the body may not be read
	}
	return rej
}

func (g *gate) receiveBody(a *arrival, u upload) (rej *rejection) {
	// Checked before the first read, which would send 100 Continue.
	if a.announced > g.maxBody {
		a.request.Wire = readBeginning(u)
		return g.tooLarge()
	}
	// A writer that cannot set a deadline leaves it to the server's own.
	_ = http.NewResponseController(u.writer).SetReadDeadline(time.Now().Add(u.timeout))
	a.upload = u.writer
	if a.reserved > firstBuffer || a.announced > smallRequest || a.announced < 0 {
		g.watch(a)
	}
	a.request.Wire, rej = g.readAll(a, u.request.Body, a.announced)
	a.upload = nil
	if rej == nil {
		_ = u.request.Body.Close() // tells net/http that it need not look for more
	}
	if rej != nil && rej.cause == causeTooLarge {
		a.request.Wire = a.request.Wire[:min(len(a.request.Wire), keptBeginning)]
		a.announced = g.maxBody + 1 // at least
	}
	return rej
}

// gzipStart is how every gzip stream begins (RFC 1952, section 2.3.1): its magic number and deflate.
var gzipStart = []byte{0x1f, 0x8b, 0x08}

// decompress sets the body that is read for events, within the limit of size. The header Content-Encoding is hardly
// ever signed, so a signed body that is compressed is read as such without it too.
func (g *gate) decompress(a *arrival) (rej *rejection) {
	a.request.Body = a.request.Wire
	isDeclared := isGzip(a.request.Header)
	if !isDeclared && (!a.source.SignsBody() || !bytes.HasPrefix(a.request.Wire, gzipStart)) {
		return nil
	}
	var body []byte
	unzip, err := gzip.NewReader(bytes.NewReader(a.request.Wire))
	if err != nil {
		rej = bodyRejection(err)
	} else {
		body, rej = g.readAll(a, unzip, -1)
	}
	switch {
	case rej == nil:
		a.request.Body = body
	case !isDeclared && rej.status == http.StatusBadRequest:
		return nil // it only begins like one
	}
	return rej
}

// verify checks that a request comes from its source.
func (g *gate) verify(a *arrival) *rejection {
	err := a.source.Verify(&a.request)
	var unverified *event.UnverifiedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unverified):
		return &rejection{
			status: http.StatusUnauthorized,
			cause:  unverified.Cause,
			detail: unverified.Detail,
			ask:    a.source.Challenge(),
		}
	}
	g.rejectionLog.Error().Err(err).Str("source", a.name).Msg("verifying a request failed")
	return unavailable
}

// readEvents makes events of a verified request. A handshake and an empty batch hold none and are answered at once.
func (g *gate) readEvents(a *arrival) (verdict, *rejection) {
	if said, ok := a.source.Handshake(&a.request); ok {
		return verdict{answer: handshakeAnswer(said)}, nil
	}
	events, batch, err := a.source.Read(&a.request)
	if err != nil {
		return verdict{}, g.unreadable(err)
	}
	if len(events) == 0 {
		return verdict{
			batch:  batch,
			answer: answer{status: http.StatusOK, contentType: jsonType, body: []byte("[]\n")},
		}, nil
	}
	return verdict{events: events, batch: batch}, nil
}

// unreadable says what is wrong with a body.
func (g *gate) unreadable(err error) *rejection {
	var syntax *event.SyntaxError
	var invalid *event.InvalidError
	switch {
	case errors.As(err, &syntax):
		return &rejection{
			status: http.StatusBadRequest,
			cause:  "not_json",
			detail: "The body is " + syntax.Detail + ".",
		}
	case errors.As(err, &invalid):
		return &rejection{
			status: http.StatusUnprocessableEntity, cause: "invalid_event",
			detail: "The body is not a valid event: see errors.", problems: invalid.Problems,
		}
	}
	g.rejectionLog.Error().Err(err).Msg("reading a body failed")
	return unavailable
}

// verifyTokenWrong is the answer to who does not know Meta's word. As a rejection it is braked, counted and audited, so
// that nobody guesses the word unseen.
var verifyTokenWrong = &rejection{
	status: http.StatusForbidden, cause: causeVerifyToken, detail: "The verify token is another one.",
}

const causeVerifyToken = "verify_token_wrong" //nolint:gosec // a cause

const causeTooLarge = "too_large"

func (g *gate) tooLarge() *rejection {
	return &rejection{
		status: http.StatusRequestEntityTooLarge, cause: causeTooLarge,
		detail: "The body is larger than " + strconv.FormatInt(g.maxBody, 10) + " bytes.",
	}
}

// bodyRejection says why a body could not be read to its end.
func bodyRejection(err error) *rejection {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &rejection{
			status: http.StatusRequestTimeout,
			cause:  "too_slow",
			detail: "The body did not arrive in time.",
		}
	}
	if errors.Is(err, context.Canceled) {
		return &rejection{
			status: http.StatusBadRequest,
			cause:  "cut_short",
			detail: "The connection ended before the body did.",
		}
	}
	return &rejection{
		status: http.StatusBadRequest, cause: "cut_short",
		detail: "The body is cut short or does not match its headers.",
	}
}

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
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/semaphore"

	"github.com/webhookspine/spine/internal/event"
)

// gate decides about a request: which source it is for, whether that source sent it, and which events it holds. It
// stores nothing, so a dry run passes it like every other request.
type gate struct {
	sources      Sources
	maxBody      int64               // limit on the bytes of a body, before and after decompression
	inFlight     *semaphore.Weighted // bytes of all bodies that are being read or wait for their commit
	log          zerolog.Logger
	rejectionLog zerolog.Logger // sampled: a flood of rejections is not a flood of log lines
}

// arrival is a request on its way to its answer.
type arrival struct {
	asked    string // the source's name as the request gives it: anything
	name     string // of the source; empty where there is none
	source   Source // nil until it was found
	policy   Policy // of the source
	remote   string // the client's address; empty where it did not come over the network
	request  event.Request
	bodyRead bool  // its body was read, as far as the limit of size allows
	bytes    int64 // of its body, compressed and decompressed
	reserved int64 // bytes of gate.inFlight
}

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
	if rej := g.find(a); rej != nil {
		if rej.status == http.StatusNotFound && a.name != "" && a.request.Method == http.MethodHead {
			rej.status = http.StatusServiceUnavailable // a probe asks whether the source can take requests now
		}
		return verdict{}, rej
	}
	if o.limits != nil {
		if rej := o.limits.chargeAddress(a); rej != nil {
			return verdict{}, rej
		}
	}
	if a.request.Method != http.MethodPost {
		return greet(a)
	}
	if rej := checkHeaders(a.request.Header, a.source); rej != nil {
		return verdict{}, rej
	}
	if rej := g.readBody(a, o.upload); rej != nil {
		return verdict{}, rej
	}
	if !o.trusted {
		if rej := g.verify(a); rej != nil {
			return verdict{}, rej
		}
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
		a.name, a.source, a.policy = a.asked, found, found.Policy()
		return nil
	case errors.Is(err, event.ErrNoSource):
		return &rejection{
			status: http.StatusNotFound,
			cause:  "no_such_source",
			detail: "There is no source of this name.",
		}
	case errors.Is(err, event.ErrSourceClosed):
		a.name = a.asked
		return &rejection{
			status: http.StatusNotFound,
			cause:  "source_closed",
			detail: "The source default is closed, since it would take events from anyone. Give it a secret " +
				"(spine source set default --preset standard-webhooks --format envelope --secret …), " +
				"or set DEFAULT_SOURCE=open.",
		}
	case errors.Is(err, event.ErrSourceDisabled):
		a.name = a.asked
		return &rejection{
			status: http.StatusNotFound,
			cause:  "source_disabled",
			detail: "There is no source of this name now.",
		}
	case errors.Is(err, event.ErrSourceBroken):
		a.name = a.asked
		g.rejectionLog.Error().Err(err).Str("source", a.name).Msg("a source cannot be used")
		return sourceBroken
	}
	return unavailable // the sources have not been read yet
}

// greet answers the handshakes of providers that do not use POST for them.
// HEAD asks whether the source can take requests, and it can: it was found.
func greet(a *arrival) (verdict, *rejection) {
	if a.request.Method == http.MethodHead {
		return verdict{answer: answer{status: http.StatusOK, contentType: jsonType}}, nil
	}
	if slices.Contains(a.source.Allowed(), a.request.Method) {
		if said, ok := a.source.Handshake(&a.request); ok {
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
	if value := header.Get("Content-Type"); value != "" && source.InsistsOnJSON() {
		media, _, err := mime.ParseMediaType(value)
		if err != nil || (media != "application/json" && !strings.HasSuffix(media, "+json")) {
			return &rejection{
				status: http.StatusUnsupportedMediaType, cause: "content_type",
				detail: "The content type must be application/json, end in +json, or be left out.",
			}
		}
	}
	switch strings.ToLower(header.Get("Content-Encoding")) {
	case "", "identity", "gzip":
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
	a.bodyRead = rej == nil || rej.status == http.StatusRequestEntityTooLarge
	if rej != nil {
		u.writer.Header().Set("Connection", "close") // what is left of the body is not read
	}
	return rej
}

func (g *gate) receiveBody(a *arrival, u upload) *rejection {
	length := u.request.ContentLength
	// Checked before the first read, which would send 100 Continue.
	if length > g.maxBody {
		return g.tooLarge()
	}
	// A writer that cannot set a deadline leaves it to the server's own.
	_ = http.NewResponseController(u.writer).SetReadDeadline(time.Now().Add(u.timeout))
	var buffer bytes.Buffer
	if length > 0 {
		// Grow to the announced length, but no further than 16 KiB before any of it has arrived.
		buffer.Grow(int(min(length, 16<<10)) + bytes.MinRead)
	}
	rej := g.readAll(a, &buffer, u.request.Body)
	if rej == nil {
		a.request.Wire = buffer.Bytes()
	}
	return rej
}

// gzipStart is how every gzip stream begins (RFC 1952, section 2.3.1): its magic number and deflate.
var gzipStart = []byte{0x1f, 0x8b, 0x08}

// decompress sets the body that is read for events, within the limit of size. The header Content-Encoding is hardly
// ever signed, so a signed body that is compressed is read as such without it too.
func (g *gate) decompress(a *arrival) *rejection {
	a.request.Body = a.request.Wire
	isDeclared := strings.EqualFold(a.request.Header.Get("Content-Encoding"), "gzip")
	if !isDeclared && !(a.source.SignsBody() && bytes.HasPrefix(a.request.Wire, gzipStart)) {
		return nil
	}
	unzip, err := gzip.NewReader(bytes.NewReader(a.request.Wire))
	var buffer bytes.Buffer
	var rej *rejection
	if err != nil {
		rej = bodyRejection(err)
	} else {
		rej = g.readAll(a, &buffer, unzip)
	}
	switch {
	case rej == nil:
		a.request.Body = buffer.Bytes()
	case !isDeclared && rej.status == http.StatusBadRequest:
		return nil // it only begins like one
	}
	return rej
}

// readAll reads body to its end, within the limit of size and of all bytes in flight.
func (g *gate) readAll(a *arrival, buffer *bytes.Buffer, body io.Reader) *rejection {
	limited := &io.LimitedReader{R: body, N: g.maxBody + 1}
	_, err := buffer.ReadFrom(&reservingReader{limited, g, a})
	switch {
	case errors.Is(err, errInFlight):
		return tooManyBytes
	case limited.N <= 0:
		return g.tooLarge()
	case err != nil:
		return bodyRejection(err)
	}
	return nil
}

// verify checks that a request comes from its source.
func (g *gate) verify(a *arrival) *rejection {
	err := a.source.Verify(&a.request)
	var unverified *event.UnverifiedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unverified):
		return &rejection{status: http.StatusUnauthorized, cause: unverified.Cause, detail: unverified.Detail}
	}
	g.log.Error().Err(err).Str("source", a.name).Msg("verifying a request failed")
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
	g.log.Error().Err(err).Msg("reading a body failed")
	return unavailable
}

func (g *gate) tooLarge() *rejection {
	return &rejection{
		status: http.StatusRequestEntityTooLarge, cause: "too_large",
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

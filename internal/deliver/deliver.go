// Package deliver makes one attempt at one destination: it posts an event, signs it if the destination has a secret,
// and returns the Result.
//
// It promises that an attempt ends within its timeout, whatever the destination does, and that only a small part of an
// answer is read or kept. Every attempt ends with a Result, never with an error. No credential gets into a Result: of
// the URLs of the destination and of the proxy, or the secret. An answer that repeats one has a mark in its place.
//
// It decides which HTTP status is final (classify). It reports Retry-After, and does not decide when to try again. It
// must not know leases, the database or the names of settings.
package deliver

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/secret"
)

const (
	// maxAnswer limits how much of an answer's body is kept, in bytes.
	maxAnswer = 1 << 10
	// maxDrain limits how much more of it is read so that the connection can be used again, in bytes. Reading more
	// would cost more than a new connection.
	maxDrain = 64 << 10
	// maxAnswerHeader bounds the header of an answer, in bytes.
	maxAnswerHeader = 64 << 10
	// maxError limits Result.Error where a library made the text, in bytes.
	maxError = 256
	// maxRetryAfter is the longest wait that a destination can ask for.
	maxRetryAfter = time.Hour
	// idleTimeout is just below the 5 s after which Node.js and Apache close an idle connection. A delivery sent at
	// that moment would have to be sent again.
	idleTimeout = 4 * time.Second
	// maxAge is how long a connection is used, so that a new address of the destination's name is noticed.
	maxAge = time.Minute
)

// Config says where and how to deliver.
type Config struct {
	// URL receives the events. Its scheme is http or https. Its user and password are sent as HTTP Basic
	// authentication.
	URL string
	// Proxy is where to connect instead: http://, https:// or socks5://, with a user and password if need be. It looks
	// up the destination's name. nil means none.
	Proxy *url.URL
	// Secret signs the deliveries by Standard Webhooks (v1): base64 of 24 to 64 bytes, with or without the prefix
	// "whsec_". Without a secret they are not signed.
	Secret secret.Value
	// Timeout limits a whole attempt, from the dial to the last byte read. It is more than 0.
	Timeout time.Duration
	// Concurrency is how many attempts will be made at once, 1 or more. It limits the connections that are open.
	Concurrency int
	// UserAgent is sent as User-Agent. The header is left out where it is empty.
	UserAgent string
	// Now is the clock; nil means time.Now. It also times attempts, so it should keep the monotonic reading.
	Now func() time.Time
}

// ConfigError says which part of a Config New does not accept. It repeats neither a URL nor the secret.
type ConfigError struct {
	Field  string // the name of a field of Config: URL, Proxy, Secret, Timeout or Concurrency
	Detail string // what it must be, such as "must begin with http:// or https://"
}

func (e *ConfigError) Error() string { return e.Field + ": " + e.Detail }

// Client delivers to one destination. It is safe for concurrent use.
type Client struct {
	head      []byte // beginning of every request
	sign      signer // nil where deliveries are not signed
	timeout   time.Duration
	now       func() time.Time
	transport *transport
	mask      secret.Mask // hides what Config has of secrets
	forwarded bool        // a proxy reads the requests and sends requests of its own
}

// New makes a Client. Its error is a *ConfigError.
func New(cfg Config) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	switch {
	case err != nil:
		// The parser's error repeats parts of the URL, which may hold a password.
		return nil, &ConfigError{"URL", "cannot be parsed, want http://host[:port]/path or https://…"}
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, &ConfigError{"URL", "must begin with http:// or https://"}
	case u.Hostname() == "":
		return nil, &ConfigError{"URL", "has no host"}
	}
	signs, err := newSigner(cfg.Secret)
	if err != nil {
		return nil, &ConfigError{"Secret", err.Error()}
	}
	if cfg.Timeout <= 0 {
		return nil, &ConfigError{"Timeout", "must be more than 0, found " + cfg.Timeout.String()}
	}
	if cfg.Concurrency < 1 {
		return nil, &ConfigError{"Concurrency", "must be at least 1, found " + strconv.Itoa(cfg.Concurrency)}
	}

	c := &Client{sign: signs, timeout: cfg.Timeout, now: cfg.Now, mask: secret.NewMask(credentials(cfg, u)...)}
	if c.now == nil {
		c.now = time.Now
	}
	header := http.Header{"Content-Type": {"application/json"}, "User-Agent": {cfg.UserAgent}}
	if u.User != nil {
		header.Set("Authorization", basicAuth(u.User))
		u.User = nil
	}
	var via *relay
	if cfg.Proxy != nil {
		if via, err = newRelay(cfg.Proxy); err != nil {
			return nil, &ConfigError{"Proxy", err.Error()}
		}
	}
	c.forwarded = via != nil && via.forwards(u.Scheme)
	if c.forwarded && via.auth != "" {
		header.Set("Proxy-Authorization", via.auth)
	}
	var host string
	if c.head, host, err = head(u, header, c.forwarded); err != nil {
		return nil, &ConfigError{"URL", "cannot be requested"}
	}
	c.transport = newTransport(u, host, via, cfg.Concurrency)
	return c, nil
}

// Close closes the idle connections. Call it after the last Deliver has returned.
func (c *Client) Close() { c.transport.closeIdle() }

// Deliver makes one attempt. It returns within the timeout, and soon after ctx ends; the Result's Error then has the
// cause of that.
//
// The status line decides. An answer whose header is malformed or whose body breaks off or does not end in time counts
// by its status, and the Result's Answer has the part that had arrived.
func (c *Client) Deliver(ctx context.Context, job event.Job) event.Result {
	start := c.now()
	result := c.attempt(ctx, job, start)
	result.Duration = c.now().Sub(start)
	return result
}

// requests, bodies and answers pool buffers for whole requests, for their bodies, and for the beginnings of answers.
var (
	answers  = sync.Pool{New: func() any { return new([maxAnswer]byte) }}
	requests = sync.Pool{New: func() any { return new([]byte) }}
	bodies   = sync.Pool{New: func() any { return new([]byte) }}
)

// maxPooledRequest is the size in bytes above which a buffer is not pooled.
const maxPooledRequest = 64 << 10

func (c *Client) attempt(ctx context.Context, job event.Job, now time.Time) (result event.Result) {
	buffer := requests.Get().(*[]byte) //nolint:forcetypeassert // nothing else is in the pool
	defer func() {
		if cap(*buffer) <= maxPooledRequest {
			requests.Put(buffer)
		}
	}()
	*buffer = c.appendRequest((*buffer)[:0], job, now)
	if ctx.Err() != nil { // too late already
		return event.Result{Class: event.Unreached, Error: c.explain(ctx, ctx.Err())}
	}
	err := c.transport.roundTrip(ctx, time.Now().Add(c.timeout), *buffer, func(a *answer, body io.Reader) (ended bool) {
		result, ended = c.result(a, body)
		return ended
	})
	if err != nil {
		result = event.Result{Class: event.TryAgain, Error: c.explain(ctx, err)}
		if _, unreached := errors.AsType[unreachedError](err); unreached {
			result.Class = event.Unreached
		}
	}
	return result
}

// result is what an answer means. ended says whether its body was read to the end.
func (c *Client) result(a *answer, body io.Reader) (result event.Result, ended bool) {
	// The destination never saw the request.
	if c.forwarded && (a.status == http.StatusProxyAuthRequired || a.status >= 500 && a.stopped) {
		return event.Result{Class: event.Unreached, Error: "the proxy answered " + statusText(a.status)}, false
	}
	result = event.Result{Class: classify(a.status), Status: a.status}
	if a.status != http.StatusSwitchingProtocols { // what follows 101 is no answer
		result.Answer, ended = readAnswer(body, a.codings)
		result.Answer = c.mask.Hide(result.Answer, len(result.Answer) > maxAnswer-utf8.UTFMax)
	}
	if result.Class != event.Done {
		result.Error = statusText(a.status)
	}
	if result.Class == event.TryAgain {
		result.RetryAfter = retryAfter(a.retryAfter, a.date, c.now())
	}
	return result, ended
}

// appendRequest appends the request of one attempt at the time now.
func (c *Client) appendRequest(b []byte, job event.Job, now time.Time) []byte {
	body := bodies.Get().(*[]byte) //nolint:forcetypeassert // nothing else is in the pool
	defer func() {
		if cap(*body) <= maxPooledRequest {
			bodies.Put(body)
		}
	}()
	*body = appendBody((*body)[:0], job)
	id := messageID(job)
	timestamp := strconv.FormatInt(now.Unix(), 10)

	b = append(b, c.head...)
	member := func(name, value string) {
		b = append(b, name...)
		b = append(b, value...)
		b = append(b, "\r\n"...)
	}
	member("Webhook-Id: ", id)
	member("Webhook-Timestamp: ", timestamp)
	if c.sign != nil {
		member("Webhook-Signature: ", c.sign(id, timestamp, *body))
	}
	member("Content-Length: ", strconv.Itoa(len(*body)))
	b = append(b, "\r\n"...)
	return append(b, *body...)
}

// appendBody appends the JSON body of a delivery. It holds the payload byte for byte as it was received. A payload that
// was made of a body, such as a form, is followed by the bytes of the body.
func appendBody(b []byte, job event.Job) []byte {
	// AppendQuote replaces and reports invalid UTF-8, which stored text cannot hold.
	member := func(name, value string) {
		b = append(b, name...)
		b, _ = jsontext.AppendQuote(b, value)
	}
	member(`{"event_id":`, job.ID)
	member(`,"source":`, job.Source)
	member(`,"event_type":`, job.Type)
	member(`,"occurred_at":`, job.OccurredAt.UTC().Truncate(time.Microsecond).Format(time.RFC3339Nano))
	b = append(b, `,"attempt":`...)
	b = strconv.AppendInt(b, int64(job.Attempt), 10)
	b = append(b, `,"payload":`...)
	bytes := job.Raw
	if job.Unqueryable {
		b = append(b, "null"...)
		bytes = job.Payload
	} else {
		b = append(b, job.Payload...)
	}
	if bytes != nil {
		b = append(b, `,"payload_base64":"`...)
		b = base64.StdEncoding.AppendEncode(b, bytes)
		b = append(b, '"')
	}
	return append(b, '}')
}

// classify says what should happen after a status. A 3xx is final, and so are the few errors that the same request
// would get again. Every other error is tried again, 401 and 404 too: someone may mend the destination meanwhile.
func classify(status int) event.Class {
	switch {
	case status >= 200 && status <= 299:
		return event.Done
	case status >= 300 && status <= 399:
		return event.GiveUp
	}
	switch status {
	case http.StatusBadRequest,
		http.StatusMethodNotAllowed,
		http.StatusGone,
		http.StatusRequestEntityTooLarge,
		http.StatusRequestURITooLong,
		http.StatusUnsupportedMediaType,
		http.StatusUnprocessableEntity,
		http.StatusNotImplemented:
		return event.GiveUp
	}
	return event.TryAgain
}

// trimCutRune removes the beginning of a UTF-8 sequence from the end of b.
func trimCutRune(b []byte) []byte {
	for i := len(b) - 1; i >= 0 && i >= len(b)-utf8.UTFMax; i-- {
		if utf8.RuneStart(b[i]) {
			if !utf8.FullRune(b[i:]) {
				return b[:i]
			}
			break
		}
	}
	return b
}

// retryAfter reads Retry-After (RFC 9110, section 10.2.3) in both of its forms. It subtracts the answer's own Date from
// a date, if there is one, so that the two clocks need not agree.
func retryAfter(value, date string, now time.Time) time.Duration {
	if value == "" {
		return 0
	}
	var wait time.Duration
	if seconds, err := strconv.ParseInt(value, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		wait = time.Duration(min(max(seconds, 0), int64(maxRetryAfter/time.Second))) * time.Second
	} else if until, err := http.ParseTime(value); err == nil {
		if date, err := http.ParseTime(date); err == nil {
			now = date
		}
		wait = until.Sub(now)
	}
	return min(max(wait, 0), maxRetryAfter)
}

// explain says in one line why there was no answer.
func (c *Client) explain(ctx context.Context, err error) string {
	if cause := context.Cause(ctx); cause != nil {
		return oneLine("cancelled: " + cause.Error())
	}
	if _, ok := errors.AsType[proxyError](err); ok {
		return "no connection through the proxy: " + c.reason(err)
	}
	return c.reason(err)
}

// reason is an error in one line.
func (c *Client) reason(err error) string {
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		if _, unreached := errors.AsType[unreachedError](err); unreached {
			return "no connection within " + c.timeout.String()
		}
		return "timeout after " + c.timeout.String()
	}
	var errno syscall.Errno
	var op *net.OpError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed without an answer"
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &op):
		// Without the addresses around it, one of which changes every time.
		err = op.Err
	}
	return oneLine(c.mask.Hide(err.Error(), false)) // it may quote the destination
}

// oneLine makes a text that may quote the destination safe to show and to store.
func oneLine(s string) string {
	if len(s) > maxError {
		s = string(trimCutRune([]byte(s[:maxError]))) + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r // and U+FFFD for each invalid byte
	}, s)
}

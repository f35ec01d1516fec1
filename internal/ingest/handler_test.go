package ingest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/respond"
)

const (
	maxBody = 64 << 10
	// patience is a time-out that no test is meant to reach.
	patience = 20 * time.Second
)

// intake is a Handler behind a server of its own.
type intake struct {
	handler  *Handler
	server   *httptest.Server
	store    *modelStore
	sources  *sources
	kept     *Keeper              // rejected requests wait in it
	requests chan context.Context // the context of each request
}

// serve starts an intake on store. adjust may change the configurations.
func serve(t *testing.T, store *modelStore, adjust func(h *HandlerConfig, c *CommitterConfig)) *intake {
	t.Helper()
	hc, cc := HandlerConfig{MaxBody: maxBody, ReadTimeout: patience, InFlight: 64 << 20}, DefaultCommitterConfig()
	cc.Patience = patience
	if adjust != nil {
		adjust(&hc, &cc)
	}
	m := metrics()
	committer := NewCommitter(store, cc, zerolog.Nop(), m)
	in := &intake{
		store:    store,
		requests: make(chan context.Context, 1000),
		sources:  newSources(t),
		kept:     NewKeeper(nil, zerolog.Nop(), m),
	}
	in.handler = NewHandler(
		hc, in.sources, committer, NewRejections(nil, time.Now, zerolog.Nop()), in.kept, zerolog.Nop(), m,
	)

	around := in.handler.Around(respond.NotFound())
	in.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in.requests <- r.Context()
		around.ServeHTTP(w, r)
	}))
	in.server.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context())) // it outlives the requests, as in the program
	ended := make(chan error)
	go func() { ended <- committer.Run(ctx) }()
	t.Cleanup(func() {
		in.server.Close()
		cancel()
		require.NoError(t, <-ended)
	})
	return in
}

// reply is an answer read to its end.
type reply struct {
	status int
	header http.Header
	body   string
}

// post sends a request; headers are pairs of names and values.
func (in *intake) post(t *testing.T, path string, body io.Reader, headers ...string) reply {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, in.server.URL+path, body)
	require.NoError(t, err)
	for pair := range slices.Chunk(headers, 2) {
		r.Header.Add(pair[0], pair[1])
	}
	response, err := in.server.Client().Do(r)
	require.NoError(t, err)
	defer func() { require.NoError(t, response.Body.Close()) }()
	return read(t, response)
}

func read(t *testing.T, response *http.Response) reply {
	t.Helper()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return reply{response.StatusCode, response.Header, string(body)}
}

// wire is a connection on which a test writes what it likes.
type wire struct {
	*net.TCPConn
	in *bufio.Reader
}

func (in *intake) dial(t *testing.T) wire {
	t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", in.server.Listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() }) // most are closed by the server by then
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	return wire{conn.(*net.TCPConn), bufio.NewReader(conn)}
}

func (w wire) write(t *testing.T, text string) {
	t.Helper()
	_, err := io.WriteString(w, text)
	require.NoError(t, err)
}

// reply reads one answer.
func (w wire) reply(t *testing.T) reply {
	t.Helper()
	response, err := http.ReadResponse(w.in, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, response.Body.Close()) }()
	return read(t, response)
}

// head is the beginning of a POST /webhook.
func head(lines ...string) string {
	return "POST /webhook HTTP/1.1\r\nHost: spine\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// zipHead is the beginning of a POST /webhook with a compressed body.
func zipHead(length int) string {
	return head("Content-Encoding: gzip", "Content-Length: "+strconv.Itoa(length))
}

// envelope is a valid body with a payload.
func envelope(id, payload string) string {
	return fmt.Sprintf(
		`{"event_id":%q,"event_type":"user.created","occurred_at":"2024-01-30T12:00:00Z","payload":%s}`, id, payload,
	)
}

func zip(t *testing.T, text string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := io.WriteString(w, text)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return &b
}

// requireProblem checks an answer against RFC 9457.
func requireProblem(t *testing.T, status int, r reply) respond.Problem {
	t.Helper()
	require.Equal(t, status, r.status, r.body)
	require.Equal(t, "application/problem+json", r.header.Get("Content-Type"))
	var p respond.Problem
	require.NoError(t, json.Unmarshal([]byte(r.body), &p))
	require.Equal(t, "about:blank", p.Type)
	require.Equal(t, http.StatusText(status), p.Title)
	require.Equal(t, status, p.Status)
	require.NotEmpty(t, p.Detail)
	return p
}

func requireAnswer(t *testing.T, outcome event.Outcome, id string, r reply) {
	t.Helper()
	require.Equal(t, http.StatusOK, r.status, r.body)
	require.Equal(t, "application/json", r.header.Get("Content-Type"))
	var body map[string]string
	require.NoError(t, json.Unmarshal([]byte(r.body), &body))
	require.NotEmpty(t, body["message"])
	delete(body, "message")
	require.Equal(t, map[string]string{"status": string(outcome), "event_id": id}, body)
}

func TestAnswers(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	post := func(payload string) reply {
		return in.post(t, "/webhook", strings.NewReader(envelope("a", payload)), "Content-Type", "application/json")
	}
	requireAnswer(t, event.Accepted, "a", post(`{"x":1,"y":2}`))
	requireAnswer(t, event.Deduplicated, "a", post(`{ "y": 2, "x": 1 }`))
	requireAnswer(t, event.Conflict, "a", post(`{"x":1,"y":3}`))
	requireAnswer(t, event.Deduplicated, "a", post(`{"x":1,"y":2}`))
	requireAnswer(t, event.Conflict, "a", post(`{"x":1,"y":2.0}`))
	requireAnswer(t, event.Accepted, "b", in.post(t, "/webhook/default", strings.NewReader(envelope("b", "{}"))))
	e, ok := in.store.get("a")
	require.True(t, ok)
	require.Equal(t, `{"x":1,"y":2}`, string(e.Payload), "byte for byte")
}

func TestTypesAndEncodingsThatAreAccepted(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	for i, kind := range []string{
		"", "application/json", "Application/JSON", "application/json; charset=utf-8", "application/cloudevents+json",
		"application/vnd.x.y+json;v=1",
	} {
		id := "type-" + strconv.Itoa(i)
		requireAnswer(
			t, event.Accepted, id, in.post(t, "/webhook", strings.NewReader(envelope(id, "{}")), "Content-Type", kind),
		)
	}
	requireAnswer(t, event.Accepted, "none", in.post(t, "/webhook", strings.NewReader(envelope("none", "{}"))))
	requireAnswer(
		t, event.Accepted, "zip", in.post(t, "/webhook", zip(t, envelope("zip", "{}")), "Content-Encoding", "gzip"),
	)
	requireAnswer(
		t, event.Accepted, "ZIP", in.post(t, "/webhook", zip(t, envelope("ZIP", "{}")), "Content-Encoding", "GZIP"),
	)
	requireAnswer(
		t,
		event.Accepted,
		"same",
		in.post(t, "/webhook", strings.NewReader(envelope("same", "{}")), "Content-Encoding", "identity"),
	)
}

// C2, C3, C4: nothing rests on how a sender writes parameters, names an encoding of characters, or begins its body.
func TestBadlyWrittenHeadersAreTaken(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	for n, kind := range []string{
		"application/json; utf-8", "application/json, application/json", "; charset", "application/json;", "Application/JSON",
		"application/json; charset", ";", "application/vnd.api+json; x",
	} {
		id := fmt.Sprintf("type-%d", n)
		requireAnswer(t, event.Accepted, id,
			in.post(t, "/webhook", strings.NewReader(envelope(id, "{}")), "Content-Type", kind))
	}
	for _, encoding := range []string{"utf-8", "UTF8", "none", "identity", " identity "} {
		requireAnswer(t, event.Accepted, "e"+encoding,
			in.post(t, "/webhook", strings.NewReader(envelope("e"+encoding, "{}")), "Content-Encoding", encoding))
	}
	requireAnswer(t, event.Accepted, "x-gzip",
		in.post(t, "/webhook", zip(t, envelope("x-gzip", "{}")), "Content-Encoding", "x-gzip"))
	requireAnswer(t, event.Accepted, "mark", in.post(t, "/webhook", strings.NewReader("\ufeff"+envelope("mark", "{}"))))
}

// C11: some clients send their password only when they are asked for it.
func TestWhoIsNotVerifiedIsAsked(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	for scheme, want := range map[string]string{
		"basic":  `Basic realm="spine", charset="UTF-8"`,
		"bearer": `Bearer realm="spine"`,
		"hmac":   "",
	} {
		settings := `{"preset":"none","secrets":["file:/user"],"verify":[{"scheme":"` + scheme + `"` +
			map[string]string{"hmac": `,"header":"X-Sig","signed":"{body}"`}[scheme] + `}],"id":["{body:/id}"]}`
		in.sources.put(scheme, settings, Policy{})
		r := in.post(t, "/webhook/"+scheme, strings.NewReader(`{"id":"1"}`))
		requireProblem(t, http.StatusUnauthorized, r)
		require.Equal(t, want, r.header.Get("WWW-Authenticate"), scheme)
	}
}

func TestTypesAndEncodingsThatAreRejected(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	for _, kind := range []string{
		"text/plain", "application/x-www-form-urlencoded", "application/jsonp", "text/plain, application/json", "json", "/",
	} {
		requireProblem(
			t,
			http.StatusUnsupportedMediaType,
			in.post(t, "/webhook", strings.NewReader(envelope("a", "{}")), "Content-Type", kind),
		)
	}
	for _, encoding := range []string{"br", "deflate", "gzip, gzip", "zstd"} {
		requireProblem(
			t,
			http.StatusUnsupportedMediaType,
			in.post(t, "/webhook", strings.NewReader(envelope("a", "{}")), "Content-Encoding", encoding),
		)
	}
	require.Zero(t, in.store.count())
}

func TestRepeatedHeaders(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	for _, name := range []string{
		"Content-Type", "Content-Encoding", "Authorization", "webhook-id", "webhook-timestamp", "webhook-signature",
	} {
		r := in.post(t, "/webhook", strings.NewReader(envelope("a", "{}")), name, "gzip", name, "gzip")
		require.Contains(t, strings.ToLower(requireProblem(t, http.StatusBadRequest, r).Detail), strings.ToLower(name))
	}
	requireAnswer(
		t,
		event.Accepted,
		"b",
		in.post(t, "/webhook", strings.NewReader(envelope("b", "{}")), "X-Forwarded-For", "a", "X-Forwarded-For", "b"),
	)
	require.Equal(t, 1, in.store.count())
}

// Header bytes that are not UTF-8 do not reach the store: nothing of a header
// is kept.
func TestHeaderBytesThatAreNotUTF8(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	conn := in.dial(t)
	body := envelope("a", "{}")
	conn.write(t, head("X-Trace: \xff\xfe", "Content-Length: "+strconv.Itoa(len(body)))+body)
	requireAnswer(t, event.Accepted, "a", conn.reply(t))
	conn.write(t, head("Content-Type: \xff", "Content-Length: "+strconv.Itoa(len(body)))+body)
	requireProblem(t, http.StatusUnsupportedMediaType, conn.reply(t))
}

func TestPathsThatLeadNowhere(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	for path, routed := range map[string]bool{
		"/webhook/stripe": true, "/webhook/Default": true, "/webhook/%00": true, "/webhook/%ff": true,
		"/webhook/default%00": true,
		"/webhook/%64efault":  true, "/webhook/%2e%2e": true, "/webhook/..": true,
		"/webhook/" + strings.Repeat("a", 1000): true, "/webhook/default%2f": true,
		"/webhook/": false, "//webhook": false, "/webhook//": false, "/webhook//default": false,
		"/webhook/../webhook": false,
		"/./webhook":          false,
		"/webhook/default/":   false, "/webhook%00": false, "/Webhook": false, "/": false,
	} {
		r := in.post(t, path, strings.NewReader(envelope("a", "{}")))
		require.Equal(t, http.StatusNotFound, r.status, path)
		if routed { // the rest is answered by whoever owns the router
			requireProblem(t, http.StatusNotFound, r)
		}
	}
	require.Zero(t, in.store.count())
	require.Equal(
		t, map[rejectionKind]int64{{"", "no_such_source", 404}: 10}, rejectedKinds(in), "one kind, whatever the path",
	)
}

// rejectedKinds counts the rejections that are not audited yet.
func rejectedKinds(in *intake) map[rejectionKind]int64 {
	r := in.handler.rejections
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := map[rejectionKind]int64{}
	for kind, c := range r.kinds {
		counts[kind] = c.count
	}
	return counts
}

func TestTooLarge(t *testing.T) {
	fits := envelope("fits", `{"pad":"`+strings.Repeat("x", maxBody-len(envelope("fits", `{"pad":""}`)))+`"}`)
	require.Len(t, fits, maxBody)
	in := serve(t, &modelStore{}, nil)
	requireAnswer(t, event.Accepted, "fits", in.post(t, "/webhook", strings.NewReader(fits)))
	requireAnswer(
		t, event.Deduplicated, "fits", in.post(t, "/webhook", io.MultiReader(strings.NewReader(fits))),
	) // chunked
	requireAnswer(t, event.Deduplicated, "fits", in.post(t, "/webhook", zip(t, fits), "Content-Encoding", "gzip"))

	t.Run("by its length, before it is sent", func(t *testing.T) {
		conn := in.dial(t)
		conn.write(t, head("Content-Length: "+strconv.Itoa(maxBody+1)))
		requireProblem(t, http.StatusRequestEntityTooLarge, conn.reply(t))
	})
	t.Run("no 100 Continue", func(t *testing.T) {
		conn := in.dial(t)
		conn.write(t, head("Content-Length: "+strconv.Itoa(maxBody+1), "Expect: 100-continue"))
		requireProblem(t, http.StatusRequestEntityTooLarge, conn.reply(t))

		body := envelope("expected", "{}")
		conn = in.dial(t)
		conn.write(t, head("Content-Length: "+strconv.Itoa(len(body)), "Expect: 100-continue"))
		require.Equal(t, http.StatusContinue, conn.reply(t).status)
		conn.write(t, body)
		requireAnswer(t, event.Accepted, "expected", conn.reply(t))
	})
	t.Run("while it is read", func(t *testing.T) {
		conn := in.dial(t)
		conn.write(
			t, head("Transfer-Encoding: chunked")+fmt.Sprintf("%x\r\n%s", maxBody+1, strings.Repeat(" ", maxBody+1)),
		)
		requireProblem(t, http.StatusRequestEntityTooLarge, conn.reply(t))
	})
	t.Run("once inflated", func(t *testing.T) {
		bomb := zip(t, fits+strings.Repeat(" ", 100*maxBody))
		require.Less(t, bomb.Len(), maxBody)
		requireProblem(t, http.StatusRequestEntityTooLarge, in.post(t, "/webhook", bomb, "Content-Encoding", "gzip"))
		requireProblem(
			t, http.StatusRequestEntityTooLarge, in.post(t, "/webhook", zip(t, fits+" "), "Content-Encoding", "gzip"),
		)
	})
	t.Run("although it inflates to little", func(t *testing.T) {
		empty := zip(t, "").Bytes()
		conn := in.dial(t)
		conn.write(t, head("Transfer-Encoding: chunked", "Content-Encoding: gzip"))
		chunk := bytes.Repeat(empty, maxBody/len(empty)+1) // members that hold nothing
		conn.write(t, fmt.Sprintf("%x\r\n%s", len(chunk), chunk))
		requireProblem(t, http.StatusRequestEntityTooLarge, conn.reply(t))
	})
	require.Equal(t, 2, in.store.count())
}

func TestTooSlow(t *testing.T) {
	in := serve(t, &modelStore{}, func(h *HandlerConfig, _ *CommitterConfig) { h.ReadTimeout = 50 * time.Millisecond })
	body := envelope("a", "{}")
	zipped := zip(t, body).String()
	for name, sent := range map[string]string{
		"half of it":          head("Content-Length: "+strconv.Itoa(len(body))) + body[:len(body)/2],
		"none of it":          head("Content-Length: " + strconv.Itoa(len(body))),
		"a chunk without end": head("Transfer-Encoding: chunked") + "5\r\n{\"eve",
		"zipped":              zipHead(len(zipped)) + zipped[:len(zipped)-3],
		"zipped, its header":  zipHead(len(zipped)) + zipped[:3],
	} {
		t.Run(name, func(t *testing.T) {
			conn := in.dial(t)
			conn.write(t, sent)
			r := conn.reply(t)
			requireProblem(t, http.StatusRequestTimeout, r)
			_, err := conn.in.ReadByte()
			require.ErrorIs(t, err, io.EOF, "the connection is closed")
		})
	}
	require.Zero(t, in.store.count())
}

func TestCutShort(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	body := envelope("a", "{}")
	zipped := zip(t, body).String()
	for name, sent := range map[string]string{
		"below its length":     head("Content-Length: "+strconv.Itoa(len(body))) + body[:len(body)-1],
		"before the last zero": head("Transfer-Encoding: chunked") + fmt.Sprintf("%x\r\n%s\r\n", len(body), body),
		"not a chunk":          head("Transfer-Encoding: chunked") + "zz\r\n" + body,
		"zipped":               zipHead(len(zipped)) + zipped[:len(zipped)-3],
		"zipped, on purpose":   zipHead(len(zipped)-3) + zipped[:len(zipped)-3],
		"not zipped at all":    zipHead(len(body)) + body,
		"zipped, and more":     zipHead(len(zipped)+8) + zipped + "trailing",
		"zipped, but empty":    head("Content-Encoding: gzip", "Content-Length: 0"),
		"zipped, wrong sum":    zipHead(len(zipped)) + zipped[:len(zipped)-8] + "12345678",
	} {
		t.Run(name, func(t *testing.T) {
			conn := in.dial(t)
			conn.write(t, sent)
			require.NoError(t, conn.CloseWrite())
			requireProblem(t, http.StatusBadRequest, conn.reply(t))
		})
	}
	require.Zero(t, in.store.count())
}

func TestByteByByte(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	conn := in.dial(t)
	body := envelope("a", "{}")
	for _, b := range []byte(head("Content-Length: "+strconv.Itoa(len(body))) + body) {
		conn.write(t, string(rune(b)))
	}
	requireAnswer(t, event.Accepted, "a", conn.reply(t))
}

func TestGarbageOnTheWire(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	for name, sent := range map[string]string{
		"no HTTP":              "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
		"no version":           "POST /webhook\r\n\r\n",
		"two lengths":          head("Content-Length: 1", "Content-Length: 2") + "{}",
		"a negative length":    head("Content-Length: -1"),
		"two hosts":            "POST /webhook HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"a space in a name":    head("Content Length: 1"),
		"an unknown encoding":  head("Transfer-Encoding: gzip"),
		"a NUL in a header":    head("X-A: \x00"),
		"a path without slash": "POST webhook HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn := in.dial(t)
			conn.write(t, sent)
			require.NoError(t, conn.CloseWrite())
			status := conn.reply(t).status
			require.GreaterOrEqual(t, status, 400)
			require.LessOrEqual(t, status, 501)
			require.NotEqual(t, http.StatusInternalServerError, status)
		})
	}
	require.Zero(t, in.store.count())
	requireAnswer(t, event.Accepted, "a", in.post(t, "/webhook", strings.NewReader(envelope("a", "{}"))))
}

func TestAllProblemsAreListed(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	p := requireProblem(t, http.StatusUnprocessableEntity, in.post(t, "/webhook", strings.NewReader(
		`{"event_id":"","event_type":7,"occurred_at":"yesterday","payload":[]}`)))
	var fields []string
	for _, e := range p.Errors {
		fields = append(fields, e.Field)
		require.NotEmpty(t, e.Detail)
	}
	require.Equal(t, []string{"event_id", "event_type", "occurred_at", "payload"}, fields)
	p = requireProblem(t, http.StatusUnprocessableEntity, in.post(t, "/webhook", strings.NewReader(`[]`)))
	require.Len(t, p.Errors, 1)
	require.Empty(t, p.Errors[0].Field)
	require.Equal(t, map[rejectionKind]int64{{event.DefaultSource, "invalid_event", 422}: 2}, rejectedKinds(in))
	require.InDelta(t, 2, testutil.ToFloat64(in.handler.metrics.rejections.WithLabelValues("invalid_event", "422")), 0)
}

func TestUnavailable(t *testing.T) {
	away := &modelStore{before: func(context.Context, []event.Event) error { return errAway }}
	rejects := &modelStore{before: func(context.Context, []event.Event) error { return event.ErrInvalidData }}
	for name, c := range map[string]struct {
		in            *intake
		cause, detail string
	}{
		"the database is away": {
			serve(t, away, func(_ *HandlerConfig, c *CommitterConfig) { c.Patience = time.Millisecond }), "unavailable",
			"could not be stored now",
		},
		"the intake is full": {
			serve(t, &modelStore{}, func(_ *HandlerConfig, c *CommitterConfig) { c.QueueRows = 0 }), "intake_full",
			"The intake is full.",
		},
		"the database will never do": {serve(t, rejects, nil), "unavailable", "could not be stored now"},
	} {
		t.Run(name, func(t *testing.T) {
			r := c.in.post(t, "/webhook", strings.NewReader(envelope("a", "{}")))
			require.Contains(t, requireProblem(t, http.StatusServiceUnavailable, r).Detail, c.detail)
			require.Equal(t, map[rejectionKind]int64{{event.DefaultSource, c.cause, 503}: 1}, rejectedKinds(c.in))
			require.InDelta(
				t, 1, testutil.ToFloat64(c.in.handler.metrics.rejections.WithLabelValues(c.cause, "503")), 0,
			)
			seconds, err := strconv.Atoi(r.header.Get("Retry-After"))
			require.NoError(t, err)
			require.Positive(t, seconds)
			require.NotContains(t, r.body, errAway.Error(), "what is wrong inside is not the sender's to know")
		})
	}
}

// faulty are sources with a bug.
type faulty struct{ *sources }

func (f faulty) Lookup(name string) (Source, error) {
	found, err := f.sources.Lookup(name)
	return faultySource{found}, err
}

type faultySource struct{ Source }

func (faultySource) Read(*event.Request) ([]event.Event, bool, error) {
	return nil, false, errors.New("a bug")
}

func TestReaderThatFailsIsOurFault(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	in.handler.sources = faulty{in.sources}
	r := in.post(t, "/webhook", strings.NewReader(envelope("a", "{}")))
	requireProblem(t, http.StatusServiceUnavailable, r)
	require.NotContains(t, r.body, "a bug")
}

// A request's context ends when the sender has closed its own half of the
// connection. It is told what became of its event, and no 2xx before that.
func TestAnswerOutlivesTheRequestsContext(t *testing.T) {
	for name, c := range map[string]struct {
		patience time.Duration
		err      error
	}{
		"stored":     {patience, nil},
		"not stored": {time.Millisecond, errAway},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan (<-chan struct{}), 1)
			store := &modelStore{before: func(context.Context, []event.Event) error {
				<-<-ended
				return c.err
			}}
			in := serve(t, store, func(_ *HandlerConfig, cc *CommitterConfig) { cc.Patience = c.patience })
			conn := in.dial(t)
			body := envelope("a", "{}")
			conn.write(t, head("Content-Length: "+strconv.Itoa(len(body)))+body)
			require.NoError(t, conn.CloseWrite())
			ended <- (<-in.requests).Done()
			if r := conn.reply(t); c.err == nil {
				requireAnswer(t, event.Accepted, "a", r)
			} else {
				requireProblem(t, http.StatusServiceUnavailable, r)
			}
		})
	}
}

func TestSenderThatIsGoneLosesNothing(t *testing.T) {
	ended, arrived := make(chan (<-chan struct{}), 1), make(chan struct{})
	store := &modelStore{before: func(_ context.Context, events []event.Event) error {
		if events[0].ID == "gone" {
			close(arrived)
			<-<-ended
		}
		return nil
	}}
	in := serve(t, store, func(_ *HandlerConfig, c *CommitterConfig) { c.Flushers = 1 })
	conn := in.dial(t)
	body := envelope("gone", "{}")
	conn.write(t, head("Content-Length: "+strconv.Itoa(len(body)))+body)
	request := <-in.requests
	<-arrived
	require.NoError(t, conn.Close())
	ended <- request.Done()
	requireAnswer(t, event.Accepted, "next", in.post(t, "/webhook", strings.NewReader(envelope("next", "{}"))))
	require.Equal(t, 2, store.count())
}

// badInputs are bodies that JSON or the envelope does not allow, with the
// status that answers them.
func badInputs() map[string]struct {
	status int
	body   string
} {
	valid := envelope("bad", "{}")
	with := func(field, value string) string {
		return strings.Replace(valid, field, value, 1)
	}
	type input = struct {
		status int
		body   string
	}
	nest := func(n int) string { return strings.Repeat(`{"a":`, n-1) + "{}" + strings.Repeat("}", n-1) }
	return map[string]input{
		"empty":                       {400, ""},
		"two byte order marks":        {400, "\ufeff\ufeff" + valid},
		"truncated":                   {400, valid[:len(valid)-1]},
		"trailing value":              {400, valid + valid},
		"NaN":                         {400, envelope("bad", `{"a":NaN}`)},
		"comment":                     {400, envelope("bad", `{"a":1/* one */}`)},
		"control character":           {400, envelope("bad", "{\"a\":\"\x01\"}")},
		"10,000 levels, cut short":    {422, `{"payload":` + strings.Repeat("[", 20_000)},
		"two event_ids":               {422, with(`{"event_id"`, `{"event_id":"x","event_id"`)},
		"event_id in another case":    {422, with("event_id", "Event_ID")},
		"no event_id":                 {422, with("event_id", "id")},
		"event_id too long":           {422, with(`"bad"`, `"`+strings.Repeat("x", 256)+`"`)},
		"event_id with a NUL":         {422, with(`"bad"`, `"a\u0000"`)},
		"event_id with a newline":     {422, with(`"bad"`, `"a\n"`)},
		"event_id, lone surrogate":    {422, with(`"bad"`, `"\ud800"`)},
		"event_id, not UTF-8":         {422, with(`"bad"`, "\"\xff\"")},
		"huge exponent":               {422, envelope("bad", `{"a":1e400000}`)},
		"many huge exponents":         {422, envelope("bad", `{"a":[`+strings.Repeat("1e131071,", 1000)+`1]}`)},
		"tiny exponent":               {422, envelope("bad", `{"a":1e-400000}`)},
		"nesting":                     {422, envelope("bad", nest(513))},
		"year 10000":                  {422, with("2024-01-30T12:00:00Z", "10000-01-01T00:00:00Z")},
		"second 60":                   {422, with("12:00:00Z", "23:59:60Z")},
		"24:00":                       {422, with("12:00:00Z", "24:00:00Z")},
		"infinity":                    {422, with("2024-01-30T12:00:00Z", "infinity")},
		"a time that is a number":     {422, with(`"2024-01-30T12:00:00Z"`, "1706616000")},
		"payload that is no object":   {422, envelope("bad", `"text"`)},
		"payload that is null":        {422, envelope("bad", "null")},
		"a top level that is a list":  {422, "[" + valid + "]"},
		"absurd exponent, ignored":    {422, with(`{"event_id"`, `{"other":1e4000,"event_id"`)},
		"event_type with a NUL":       {422, with("user.created", `a\u0000`)},
		"event_type that is too long": {422, with("user.created", strings.Repeat("x", 101))},
	}
}

// oddInputs are payloads that JSON allows and Postgres does not, or that a
// careless reader changes: all are taken, byte for byte.
func oddInputs() map[string]struct {
	queryable bool
	payload   string
} {
	type input = struct {
		queryable bool
		payload   string
	}
	return map[string]input{
		"u0000":               {false, `{"a":"\u0000"}`},
		"u0000-in-a-name":     {false, `{"\u0000":1}`},
		"lone-surrogate":      {false, `{"a":"\ud800"}`},
		"low-surrogate-first": {false, `{"a":"\udc00\ud800"}`},
		"not-UTF-8":           {false, "{\"a\":\"\xff\xfe\"}"},
		"duplicate-names":     {false, `{"ID":"x","id":"y","id":"z"}`},
		"names-by-case":       {true, `{"ID":"x","id":"y"}`},
		"minus-zero":          {true, `{"a":-0}`},
		"capital-exponent":    {true, `{"a":1E2}`},
		"trailing-zero":       {true, `{"a":1.10}`},
		"big-integer":         {true, `{"a":9007199254740993}`},
		"largest-exponent":    {true, `{"a":1e1000}`},
		"deepest":             {true, strings.Repeat(`{"a":`, 511) + "{}" + strings.Repeat("}", 511)},
		"surrogate-pair":      {true, `{"a":"\ud83d\ude00"}`},
		"white-space":         {true, "{ \"a\" :\t1\r\n}"},
	}
}

// All bad input comes at once, between good events and in the same batches, and
// disturbs none of them.
func TestBadInputDisturbsNobody(t *testing.T) {
	in := serve(t, &modelStore{before: func(_ context.Context, events []event.Event) error {
		for _, e := range events {
			if e.Unqueryable == "" && strings.Contains(e.ID, "rejected") {
				return event.ErrInvalidData
			}
		}
		return nil
	}}, nil)
	var senders sync.WaitGroup
	good := 0
	for name, c := range badInputs() {
		senders.Go(func() {
			if r := in.post(t, "/webhook", strings.NewReader(c.body)); r.status != c.status {
				t.Errorf("%s: %d %s", name, r.status, r.body)
			}
		})
		good++
		senders.Go(func() {
			id := "good-" + name
			if r := in.post(t, "/webhook", strings.NewReader(envelope(id, "{}"))); r.status != http.StatusOK ||
				!strings.Contains(r.body, `"accepted"`) {
				t.Errorf("%s: %d %s", id, r.status, r.body)
			}
		})
	}
	for id, c := range oddInputs() {
		good++
		senders.Go(func() {
			if r := in.post(t, "/webhook", strings.NewReader(envelope(id, c.payload))); r.status != http.StatusOK ||
				!strings.Contains(r.body, `"accepted"`) {
				t.Errorf("%s: %d %s", id, r.status, r.body)
			}
		})
	}
	good++
	senders.Go(func() {
		if r := in.post(t, "/webhook", strings.NewReader(envelope("rejected", "{}"))); r.status != http.StatusOK {
			t.Errorf("rejected by the database: %d %s", r.status, r.body)
		}
	})
	senders.Wait()
	require.Equal(t, good, in.store.count())
	for id, c := range oddInputs() {
		e, ok := in.store.get(id)
		require.True(t, ok, id)
		require.Equal(t, c.payload, string(e.Payload), id)
		require.Equal(t, c.queryable, e.Unqueryable == "", id)
	}
	for name, c := range badInputs() {
		p := requireProblem(t, c.status, in.post(t, "/webhook", strings.NewReader(c.body)))
		require.Equal(t, c.status == http.StatusUnprocessableEntity, len(p.Errors) > 0, name)
	}
}

// B1: what a request reserves is the memory that it takes, whatever its sender announces and however its body comes.
func TestMemoryOfBodiesIsCounted(t *testing.T) {
	in := serve(t, &modelStore{}, func(h *HandlerConfig, _ *CommitterConfig) { h.MaxBody = 1 << 20 })
	g := &in.handler.gate
	for name, c := range map[string]struct {
		announced int64
		comes     int
	}{
		"as announced":      {1_048_570, 1_048_570},
		"stops":             {1_048_570, 1_000_000},
		"stops early":       {1_048_570, 300},
		"in chunks":         {-1, 700_000},
		"in chunks, all":    {-1, 1 << 20},
		"small":             {1200, 1200},
		"small, in chunks":  {-1, 1200},
		"of some kilobytes": {40_000, 40_000},
		"none":              {0, 0},
		"too large":         {-1, 1<<20 + 1},
	} {
		a := &arrival{}
		b, rej := g.readAll(a, io.LimitReader(endless{}, int64(c.comes)), c.announced)
		if c.comes > 1<<20 {
			require.Equal(t, http.StatusRequestEntityTooLarge, rej.status)
		} else {
			require.Nil(t, rej, name)
			require.Len(t, b, c.comes, name)
		}
		if c.comes > 0 {
			require.GreaterOrEqual(t, a.reserved, int64(cap(b))*9/10, name)
		}
		require.Less(t, cap(b), 2*max(c.comes, firstBuffer)+1, name)
		if c.announced >= 0 {
			require.LessOrEqual(t, int64(cap(b)), max(c.announced, firstBuffer), name)
		}
		g.release(a)
		require.Zero(t, a.reserved)
	}
	require.True(t, g.room.large.TryAcquire(56<<20), "all is given back")
	a := &arrival{}
	b, rej := g.readAll(a, endless{}, 10_000)
	require.Equal(t, tooManyBytes, rej)
	require.NotEmpty(t, b, "what came is there to be kept")
	g.room.large.Release(56 << 20)
}

// endless is a body without an end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// B5: conflicts, like all lines that a sender can cause, are logged as a sample.
func TestSendersDoNotFillTheLog(t *testing.T) {
	var log bytes.Buffer
	in := serve(t, &modelStore{}, nil)
	logged := NewHandler(
		in.handler.config, in.sources, in.handler.committer, in.handler.rejections, in.kept,
		zerolog.New(zerolog.SyncWriter(&log)).Level(zerolog.InfoLevel), metrics(),
	)
	in.sources.err["broken"] = event.ErrSourceBroken
	for n := range 200 {
		body := []byte(envelope("same", fmt.Sprintf(`{"n":%d}`, n)))
		request := func(wire []byte) *event.Request {
			return &event.Request{Method: http.MethodPost, Wire: wire, At: time.Now()}
		}
		code, _ := logged.Admit(t.Context(), event.DefaultSource, request(body))
		require.Equal(t, http.StatusOK, code)
		code, _ = logged.Admit(t.Context(), "broken", request(body))
		require.Equal(t, http.StatusServiceUnavailable, code)
	}
	lines := strings.Count(log.String(), "\n")
	require.Positive(t, lines)
	require.LessOrEqual(t, lines, 100, "in a few seconds")
}

func TestPathsOfWebhooks(t *testing.T) {
	for path, want := range map[string]string{
		"/webhook":            "default",
		"/webhook/github":     "github",
		"/webhook/git%2Fhub":  "git%2Fhub", // as it stands there
		"/webhook/..":         "..",
		"/webhook/":           "",
		"/webhook/github/":    "",
		"/webhook/git/hub":    "",
		"/webhooks":           "",
		"/webhook%2Fgithub":   "",
		"/Webhook":            "",
		"//webhook":           "",
		"/api/webhook/github": "",
		"":                    "",
	} {
		source, ok := sourceIn(path)
		require.Equal(t, want != "", ok, path)
		if ok {
			require.Equal(t, want, source, path)
		}
	}
}

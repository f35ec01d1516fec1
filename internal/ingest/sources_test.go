package ingest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/respond"
	"github.com/webhookspine/spine/internal/secret"
	"github.com/webhookspine/spine/internal/source" //nolint:depguard // the gate is tested with real sources
)

// sources are those of a test, by name.
type sources struct {
	t   testing.TB
	mu  sync.Mutex
	all map[string]testSource
	err map[string]error
}

// testSource is a real source with a policy of the test's.
type testSource struct {
	*source.Source
	policy Policy
}

func (s testSource) Policy() Policy { return s.policy }

// newSources has the source default.
func newSources(t testing.TB) *sources {
	t.Helper()
	s := &sources{t: t, all: map[string]testSource{}, err: map[string]error{}}
	s.put(event.DefaultSource, `{"preset":"envelope"}`, Policy{Kept: event.Budget{Rows: 10, Bytes: 1 << 20}})
	return s
}

// put adds a source, or gives it other settings. The secret that env:NAME names
// is NAME.
func (s *sources) put(name, settings string, policy Policy) {
	s.t.Helper()
	config, err := source.ParseConfig([]byte(settings))
	require.NoError(s.t, err)
	compiled, err := source.Compile(
		name,
		config,
		func(ref string) (secret.Value, error) { return secret.New(strings.TrimPrefix(ref, "env:")), nil },
	)
	require.NoError(s.t, err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[name] = testSource{compiled, policy}
}

func (s *sources) Stray(name string) Stray {
	s.mu.Lock()
	defer s.mu.Unlock()
	if found, ok := s.all[name]; ok {
		stray := Stray{Source: found, Redactor: found, Kept: found.policy.Kept}
		if errors.Is(s.err[name], event.ErrSourceClosed) { // as one that verifies nothing
			stray.Source = nil
		}
		return stray
	}
	return Stray{Kept: keeping.Kept}
}

func (s *sources) Lookup(name string) (Source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.err[name]; err != nil {
		return nil, err
	}
	found, ok := s.all[name]
	if !ok {
		return nil, event.ErrNoSource
	}
	return found, nil
}

const (
	githubSettings = `{"preset":"github","secrets":["env:S1"]}`
	ping           = `{"zen":"Keep it logically awesome.","hook_id":1}`
)

var keeping = Policy{Kept: event.Budget{Rows: 100, Bytes: 1 << 20}}

// github are headers with which GitHub sends a body.
func github(id, secret, body string) []string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	return []string{
		"Content-Type", "application/json", "X-GitHub-Event", "ping", "X-GitHub-Delivery", id,
		"X-Hub-Signature-256", "sha256=" + hex.EncodeToString(mac.Sum(nil)),
	}
}

func mustGet(t *testing.T, s *modelStore, id string) event.Event {
	t.Helper()
	e, ok := s.get(id)
	require.True(t, ok)
	return e
}

func status(t *testing.T, r reply) string {
	t.Helper()
	var answer struct{ Status any }
	require.NoError(t, json.Unmarshal([]byte(r.body), &answer), r.body)
	return fmt.Sprintf("%d %v", r.status, answer.Status)
}

func TestSignedRequest(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	in.sources.put("github", githubSettings, keeping)
	for _, want := range []string{"200 accepted", "200 deduplicated"} {
		require.Equal(
			t, want, status(t, in.post(t, "/webhook/github", strings.NewReader(ping), github("1", "S1", ping)...)),
		)
	}
	e := mustGet(t, in.store, "1")
	require.Equal(t, "ping", e.Type)
	require.JSONEq(t, ping, string(e.Payload))
	require.True(t, e.IDUnsigned)
	require.Contains(t, string(e.Headers), "X-Github-Event")
	require.Empty(t, in.kept.waiting)
}

// A request that is not verified changes no id and no event, and uses up no rate of verified ones.
func TestUnverifiedRequest(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	policy := keeping
	policy.Verified = Rate{PerSecond: 0.001, Burst: 1}
	in.sources.put("github", githubSettings, policy)
	unsigned := github("1", "S1", ping)[:6]
	for cause, headers := range map[string][]string{
		"signature_missing": unsigned,
		"signature_wrong":   github("1", "S2", ping),
	} {
		r := in.post(t, "/webhook/github", strings.NewReader(ping), headers...)
		requireProblem(t, http.StatusUnauthorized, r)
		require.InDelta(t, 1, testutil.ToFloat64(in.handler.metrics.rejections.WithLabelValues(cause, "401")), 0)
	}
	require.Zero(t, in.store.count())
	require.Equal(
		t,
		"200 accepted",
		status(t, in.post(t, "/webhook/github", strings.NewReader(ping), github("1", "S1", ping)...)),
		"the one request that the rate has room for",
	)
	limited := in.post(t, "/webhook/github", strings.NewReader(ping), github("2", "S1", ping)...)
	requireProblem(t, http.StatusTooManyRequests, limited)
	seconds, err := strconv.Atoi(limited.header.Get("Retry-After"))
	require.NoError(t, err)
	require.Greater(t, seconds, 500)

	policy.Verified = Rate{PerSecond: 1e6}
	in.sources.put("github", githubSettings, policy)
	require.Eventually(t, func() bool {
		return in.post(
			t,
			"/webhook/github",
			strings.NewReader(ping),
			github("2", "S1", ping)...).status == http.StatusOK
	}, patience, time.Millisecond, "a limit that is changed holds at once")

	kept := in.kept.waiting
	require.GreaterOrEqual(t, len(kept), 3)
	require.Equal(t, "source_rate", kept[2].Cause)
	for _, k := range kept[:2] {
		require.Equal(t, "github", k.Source)
		require.JSONEq(t, ping, string(k.Body))
		require.Equal(t, "127.0.0.1", k.Remote)
		require.Equal(t, "/webhook/github", k.Target)
		require.Equal(t, http.StatusUnauthorized, k.Status)
		require.NotEmpty(t, k.Detail)
		require.Contains(t, string(k.Headers), "X-Github-Delivery")
	}
}

func TestSourcesThatTakeNothing(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	in.sources.err = map[string]error{
		"closed": event.ErrSourceDisabled, "broken": fmt.Errorf("%w: env:X is not set", event.ErrSourceBroken),
		"early": event.ErrSourcesUnknown,
	}
	requireProblem(t, http.StatusNotFound, in.post(t, "/webhook/nobody", strings.NewReader("{}")))
	in.sources.put(
		"closed",
		`{"preset":"token","secrets":["env:S1"],"verify":[{"scheme":"token","header":["X-Mine"]}]}`,
		keeping,
	)
	for _, name := range []string{"closed", "broken", "early"} {
		r := in.post(t, "/webhook/"+name, strings.NewReader("{}"), "X-Mine", "S1", "X-Other", "1")
		requireProblem(t, http.StatusServiceUnavailable, r)
		require.Equal(t, respondAfter, r.header.Get("Retry-After"))
		require.NotContains(t, r.body, "env:X", "that is not for a sender to read")
	}
	// F4, G3: what came is kept, and without secrets also where nobody knows which headers hold them.
	require.Len(t, in.kept.waiting, 2)
	for i, want := range []event.RejectedRequest{
		{Source: "closed", Cause: "source_disabled"}, {Source: "broken", Cause: "source_broken"},
	} {
		kept := in.kept.waiting[i]
		require.Equal(t, want.Source, kept.Source)
		require.Equal(t, want.Cause, kept.Cause)
		require.Equal(t, "{}", string(kept.Body))
		require.Nil(t, kept.BodyBytes, "the whole body")
		require.NotContains(t, string(kept.Headers), "S1")
	}
	require.Contains(t, string(in.kept.waiting[0].Headers), "X-Other")
	require.Equal(t, "{}", string(in.kept.waiting[1].Headers))
	require.Equal(t, 1, in.kept.pots[oursVerified].rows)
	require.Equal(t, 1, in.kept.pots[oursUnknown].rows)
	require.Zero(t, in.kept.pots[theirs].rows)

	r, err := http.NewRequestWithContext(t.Context(), http.MethodHead, in.server.URL+"/webhook/closed", nil)
	require.NoError(t, err)
	response, err := in.server.Client().Do(r)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
	require.Len(t, in.kept.waiting, 2, "a probe is nothing to keep")
}

// B2, F4: strangers do not take the room of what a disabled source sent, and everyone gets the same answer. A flood at
// one source leaves room to wait for the database to the others.
func TestFloodOfADisabledSourceLeavesRoom(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	roomy := Policy{Kept: event.Budget{Rows: 1000, Bytes: 16 << 20}}
	in.sources.put("github", githubSettings, roomy)
	in.sources.err = map[string]error{
		"github": event.ErrSourceDisabled, "open": event.ErrSourceClosed, "broken": event.ErrSourceBroken,
	}
	send := func(source, method string, headers []string) {
		t.Helper()
		header := http.Header{}
		for i := 0; i < len(headers); i += 2 {
			header.Add(headers[i], headers[i+1])
		}
		a := &arrival{asked: source, bodyState: bodyWhole, request: event.Request{
			Method: method,
			URL:    &url.URL{Path: "/webhook/" + source},
			Header: header,
			Wire:   []byte(ping),
			At:     time.Now(),
		}}
		defer in.handler.release(a)
		_, rej := in.handler.admit(t.Context(), a, options{})
		require.NotNil(t, rej)
		require.True(t, rej.isStray())
		in.kept.keep(a, rej)
	}
	keptOf := func(source, prefix string) (found []event.RejectedRequest) {
		for _, kept := range in.kept.waiting {
			if kept.Source == source && strings.Contains(string(kept.Headers), prefix) {
				found = append(found, kept)
			}
		}
		return found
	}
	for i := range 3500 {
		headers := github(fmt.Sprintf("forged-%d", i), "S2", ping)
		switch i % 3 {
		case 0:
			send("github", http.MethodPost, headers[:6]) // unsigned
		case 1:
			send("github", http.MethodPost, headers)
		default: // of its kind: one that would be rejected all the same
			send("github", http.MethodPost, append(github(fmt.Sprintf("forged-%d", i), "S1", ping), headers[:2]...))
		}
		send("github", http.MethodGet, headers)
	}
	for i := range 100 {
		send("github", http.MethodPost, github(fmt.Sprintf("signed-%d", i), "S1", ping))
	}
	require.InDelta(t, keptFirst, len(keptOf("github", "forged-")), 20, "the first hundred, and a sample")
	signed := keptOf("github", "signed-")
	require.Len(t, signed, 100)

	in.sources.put("open", `{"preset":"none","id":["{body:/id}"]}`, roomy)
	for range 3500 {
		send("open", http.MethodPost, nil)
	}
	for range 60 {
		send("broken", http.MethodPost, nil)
	}
	require.Len(t, keptOf("open", ""), keptWaiting/2, "a source that verifies nothing")
	require.Len(t, keptOf("broken", ""), 60)

	forged := in.post(t, "/webhook/github", strings.NewReader(ping), github("forged", "S2", ping)...)
	requireProblem(t, http.StatusServiceUnavailable, forged)
	require.Equal(
		t, forged.body, in.post(t, "/webhook/github", strings.NewReader(ping), github("last", "S1", ping)...).body,
	)

	delete(in.sources.err, "github")
	store := &requestedStore{requested: signed, settled: map[int64][3]string{}}
	for i := range signed {
		signed[i].ID = int64(i)
	}
	NewReplayer(store, in.handler, zerolog.Nop()).nextBatch(t.Context())
	require.Len(t, store.settled, 100)
	for _, settled := range store.settled {
		require.Equal(t, event.RejectedTakenIn, settled[0])
	}
	require.Equal(t, 100, in.store.count())
}

// F4, CONTRACT section 1: every rejected request leaves what was read of it, and says where that is not all.
func TestBeginningsAreKept(t *testing.T) {
	in := serve(t, &modelStore{}, func(h *HandlerConfig, _ *CommitterConfig) { h.ReadTimeout = 300 * time.Millisecond })
	in.sources.put("github", githubSettings, keeping)
	large := `{"event_id":"big-1"` + strings.Repeat(" ", maxBody) + "}"
	last := func() event.RejectedRequest {
		in.kept.mu.Lock()
		defer in.kept.mu.Unlock()
		return in.kept.waiting[len(in.kept.waiting)-1]
	}
	for name, body := range map[string]io.Reader{
		"announced": strings.NewReader(large), "in chunks": io.MultiReader(strings.NewReader(large)),
	} {
		requireProblem(t, http.StatusRequestEntityTooLarge, in.post(t, "/webhook/github", body))
		kept := last()
		require.Equal(t, large[:keptBeginning], string(kept.Body), name)
		require.Less(t, cap(kept.Body), 2*keptBeginning, "the rest is not held")
		require.NotNil(t, kept.BodyBytes, name)
		require.Greater(t, *kept.BodyBytes, int64(maxBody), name)
	}
	for name, c := range map[string]struct {
		send string
		want int
		body string
	}{
		"stops": {
			"POST /webhook/github HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\nabc", http.StatusRequestTimeout, "abc",
		},
		"never begins": {
			"POST /webhook/github HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n", http.StatusRequestTimeout, "",
		},
		"too large, waits to be asked": {
			"POST /webhook/github HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5000000\r\n\r\n", 413, "",
		},
	} {
		conn := in.dial(t)
		conn.write(t, c.send)
		require.Equal(t, c.want, conn.reply(t).status, name)
		kept := last()
		require.Equal(t, c.want, kept.Status, name)
		require.Equal(t, c.body, string(kept.Body), name)
		require.NotNil(t, kept.BodyBytes, name)
		require.Greater(t, *kept.BodyBytes, int64(len(c.body)), name)
	}
	// C5: what is rejected for its headers alone has its body, which can be replayed.
	for name, send := range map[string]string{
		"a method":        "PUT /webhook/github HTTP/1.1\r\nHost: a\r\n",
		"an encoding":     "POST /webhook/github HTTP/1.1\r\nHost: a\r\nContent-Encoding: br\r\n",
		"a header, twice": "POST /webhook/github HTTP/1.1\r\nHost: a\r\nContent-Type: a/b\r\nContent-Type: a/b\r\n",
	} {
		conn := in.dial(t)
		conn.write(t, send+"Content-Length: 3\r\n\r\nabc")
		require.Contains(t, []int{400, 405, 415}, conn.reply(t).status, name)
		require.Equal(t, "abc", string(last().Body), name)
		require.Nil(t, last().BodyBytes, name)
	}
	conn := in.dial(t)
	conn.write(t, "DELETE /webhook/github HTTP/1.1\r\nHost: a\r\n\r\n")
	require.Equal(t, http.StatusMethodNotAllowed, conn.reply(t).status)
	require.Nil(t, last().BodyBytes, "it has no body")
}

const respondAfter = "2"

func TestConflictsAreRejectedWhereTheSourceSaysSo(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	other := `{"zen":"Other."}`
	for reject, want := range map[bool]string{false: "200 conflict", true: "409 conflict"} {
		name := fmt.Sprintf("s-%t", reject)
		in.sources.put(name, githubSettings, Policy{RejectConflicts: reject})
		require.Equal(
			t,
			"200 accepted",
			status(t, in.post(t, "/webhook/"+name, strings.NewReader(ping), github(name, "S1", ping)...)),
		)
		require.Equal(
			t, want, status(t, in.post(t, "/webhook/"+name, strings.NewReader(other), github(name, "S1", other)...)),
		)
	}
}

// A14: a signed body means the same under any Content-Encoding that it can have, and under any content type.
func TestHeadersDoNotChangeSignedBytes(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	in.sources.put("github", githubSettings, keeping)
	in.sources.put("hmac",
		`{"preset":"hmac","secrets":["env:S1"],"verify":[{"header":"X-Sig"}],"id":["{body:/id}"]}`, keeping)
	in.sources.put("none", `{"preset":"none","id":["{body:/id}"]}`, keeping)
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, err := w.Write([]byte(`{"id":"zipped"}`))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	signed := func(body string, header ...string) []string {
		mac := hmac.New(sha256.New, []byte("S1"))
		mac.Write([]byte(body))
		return append([]string{"X-Sig", hex.EncodeToString(mac.Sum(nil))}, header...)
	}
	post := func(source, body string, header []string) string {
		return status(t, in.post(t, "/webhook/"+source, strings.NewReader(body), header...))
	}
	body := zipped.String()
	require.Equal(t, "200 accepted", post("hmac", body, signed(body, "Content-Encoding", "gzip")))
	require.Equal(t, "200 deduplicated", post("hmac", body, signed(body)))
	require.Equal(t, "200 deduplicated", post("hmac", body, signed(body, "Content-Type", "application/gzip")))
	half := body[:len(body)-4]
	require.Equal(t, "200 accepted", post("hmac", half, signed(half)), "it only begins like gzip")
	require.Equal(t, "200 accepted", post("none", body, nil), "nobody has said that it is compressed")

	for i, contentType := range []string{"application/json", "application/x-www-form-urlencoded", "text/plain"} {
		header := signed(`{"id":"typed","n":"1+1"}`, "Content-Type", contentType)
		want := "200 deduplicated"
		if i == 0 {
			want = "200 accepted"
		}
		require.Equal(t, want, post("hmac", `{"id":"typed","n":"1+1"}`, header), contentType)
	}
}

func TestHandshakes(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	in.sources.put("meta", `{"preset":"meta","secrets":["env:S1"],"verify_token":"env:WORD"}`, keeping)
	in.sources.put("events", `{"preset":"cloudevents","secrets":["env:S1"]}`, keeping)
	ask := func(method, path string, headers ...string) reply {
		r, err := http.NewRequestWithContext(t.Context(), method, in.server.URL+path, nil)
		require.NoError(t, err)
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		response, err := in.server.Client().Do(r)
		require.NoError(t, err)
		defer func() { require.NoError(t, response.Body.Close()) }()
		return read(t, response)
	}
	r := ask(http.MethodGet, "/webhook/meta?hub.mode=subscribe&hub.verify_token=WORD&hub.challenge=1158201444")
	require.Equal(t, http.StatusOK, r.status)
	require.Equal(t, "1158201444", r.body)
	require.Equal(t, "nosniff", r.header.Get("X-Content-Type-Options"))
	// A6, of its kind: who guesses the word is rejected like who guesses a secret: counted, audited, kept and braked.
	r = ask(http.MethodGet, "/webhook/meta?hub.mode=subscribe&hub.verify_token=guess&hub.challenge=1")
	require.Equal(t, http.StatusForbidden, r.status)
	require.Contains(t, r.body, "The verify token is another one.")
	require.Equal(t, "verify_token_wrong", in.kept.waiting[len(in.kept.waiting)-1].Cause)
	require.NotContains(t, in.kept.waiting[len(in.kept.waiting)-1].Target, "guess")

	r = ask(http.MethodOptions, "/webhook/events", "WebHook-Request-Origin", "eventemitter.example.com")
	require.Equal(t, http.StatusOK, r.status)
	require.Equal(t, "eventemitter.example.com", r.header.Get("WebHook-Allowed-Origin"))
	require.Equal(t, "POST", r.header.Get("Allow"))

	r = ask(http.MethodGet, "/webhook/events")
	requireProblem(t, http.StatusMethodNotAllowed, r)
	require.Equal(t, "POST, OPTIONS", r.header.Get("Allow"))
	require.Zero(t, in.store.count())
}

const batchType = "application/cloudevents-batch+json"

func cloudEvent(id string) string {
	return `{"specversion":"1.0","id":"` + id + `","source":"/s","type":"t","data":{"n":1}}`
}

// A batch is one transaction with an answer for each of its events.
func TestBatch(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	in.sources.put("events", `{"preset":"cloudevents","secrets":["env:S1"]}`, keeping)
	post := func(body string) reply {
		return in.post(
			t, "/webhook/events", strings.NewReader(body), "Content-Type", batchType, "Authorization", "Bearer S1",
		)
	}
	r := post("[" + cloudEvent("1") + "," + cloudEvent("2") + "," + cloudEvent("1") + "]")
	require.Equal(t, http.StatusOK, r.status, r.body)
	var answers []struct {
		Status  string
		EventID string `json:"event_id"`
	}
	require.NoError(t, json.Unmarshal([]byte(r.body), &answers))
	require.Len(t, answers, 3)
	require.Equal(t, "accepted", answers[0].Status)
	require.Equal(t, "/s 2", answers[1].EventID)
	require.Equal(t, "deduplicated", answers[2].Status)
	require.Equal(t, []int{3}, in.store.sizes())

	requireProblem(t, http.StatusUnprocessableEntity, post("["+cloudEvent("3")+`,{"id":"4"}]`))
	require.Equal(t, []int{3}, in.store.sizes(), "all or nothing")
	require.Equal(t, "[]\n", post("[]").body)
}

func TestCommitterKeepsARequestTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &modelStore{before: slow}
		config := one()
		config.BatchRows, config.Patience = 3, time.Minute
		c := commit(t, config, store)
		var senders sync.WaitGroup
		for i, n := range []int{1, 2, 2, 5, 1} {
			senders.Go(func() {
				receipts, err := c.Submit(t.Context(), some(10*i, n)...)
				if err != nil || len(receipts) != n {
					t.Errorf("%d receipts, %v", len(receipts), err)
				}
			})
			synctest.Wait()
		}
		senders.Wait()
		require.Equal(t, []int{1, 2, 2, 5, 1}, store.sizes())
	})
}

func TestCommitterKeepsTheBytesOfABatchThatIsRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &modelStore{before: func(_ context.Context, events []event.Event) error {
			for _, e := range events {
				if e.ID == "1" && e.Unqueryable == "" {
					return event.ErrInvalidData
				}
			}
			return nil
		}}
		c := commit(t, one(), store)
		receipts, err := c.Submit(t.Context(), some(0, 2)...)
		require.NoError(t, err)
		require.Len(t, receipts, 2)
	})
}

func TestSignatureIsOverTheBytesOfTheWire(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	in.sources.put("github", githubSettings, keeping)
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, err := w.Write([]byte(ping))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	headers := append(github("1", "S1", zipped.String()), "Content-Encoding", "gzip")
	require.Equal(
		t, "200 accepted", status(t, in.post(t, "/webhook/github", bytes.NewReader(zipped.Bytes()), headers...)),
	)
	require.JSONEq(t, ping, string(mustGet(t, in.store, "1").Payload))
	headers = append(github("2", "S1", ping), "Content-Encoding", "gzip")
	requireProblem(
		t, http.StatusUnauthorized, in.post(t, "/webhook/github", bytes.NewReader(zipped.Bytes()), headers...),
	)
}

func TestRepeatedSignature(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	in.sources.put("github", githubSettings, keeping)
	for _, name := range []string{"X-Hub-Signature-256", "X-GitHub-Delivery", "X-GitHub-Event"} {
		requireProblem(
			t,
			http.StatusBadRequest,
			in.post(t, "/webhook/github", strings.NewReader(ping), append(github("1", "S1", ping), name, "x")...),
		)
	}
	require.Zero(t, in.store.count())
}

func TestAddressLimit(t *testing.T) {
	in := serve(
		t, &modelStore{}, func(h *HandlerConfig, _ *CommitterConfig) { h.Address = Rate{PerSecond: 0.01, Burst: 2} },
	)
	for range 2 {
		require.Equal(t, http.StatusUnprocessableEntity, in.post(t, "/webhook", strings.NewReader("{}")).status)
	}
	r := in.post(t, "/webhook", strings.NewReader("{}"))
	requireProblem(t, http.StatusTooManyRequests, r)
	require.NotEmpty(t, r.header.Get("Retry-After"))

	// Of one source alone.
	in = serve(t, &modelStore{}, nil)
	in.sources.put("github", githubSettings, Policy{Address: Rate{PerSecond: 0.01, Burst: 1}})
	require.Equal(t, http.StatusUnauthorized, in.post(t, "/webhook/github", strings.NewReader("{}")).status)
	require.Equal(t, http.StatusTooManyRequests, in.post(t, "/webhook/github", strings.NewReader("{}")).status)
	require.Equal(t, http.StatusUnprocessableEntity, in.post(t, "/webhook", strings.NewReader("{}")).status)
}

func TestClientAddress(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, c := range []struct {
		peer      string
		forwarded []string
		want      string
	}{
		{"192.0.2.1:1234", nil, "192.0.2.1"},
		{"192.0.2.1:1234", []string{"198.51.100.1"}, "192.0.2.1"}, // a peer that is not trusted
		{"10.0.0.1:1234", nil, "10.0.0.1"},
		{"10.0.0.1:1234", []string{"198.51.100.1"}, "198.51.100.1"},
		{"10.0.0.1:1234", []string{"203.0.113.9, 198.51.100.1"}, "198.51.100.1"}, // the client may write what it likes
		{"10.0.0.1:1234", []string{"203.0.113.9", "198.51.100.1, 10.0.0.2"}, "198.51.100.1"},
		{"10.0.0.1:1234", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		{"10.0.0.1:1234", []string{"198.51.100.1, nonsense"}, "10.0.0.1"},
		{"10.0.0.1:1234", []string{"nonsense, 198.51.100.1"}, "198.51.100.1"},
		{"10.0.0.1:1234", []string{"198.51.100.1:5555"}, "198.51.100.1"},
		{"10.0.0.1:1234", []string{""}, "10.0.0.1"},
		{"[::ffff:10.0.0.1]:1234", []string{"2001:db8::1"}, "2001:db8::1"},
		{"[fd00::1]:1234", []string{"::ffff:198.51.100.1"}, "198.51.100.1"},
		{"[2001:db8::1%eth0]:1", nil, "2001:db8::1%eth0"},
		{"@", nil, "@"},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
		r.RemoteAddr = c.peer
		for _, f := range c.forwarded {
			r.Header.Add("X-Forwarded-For", f)
		}
		require.Equal(t, c.want, ClientAddress(r, trusted), "%s %q", c.peer, c.forwarded)
	}
	require.Equal(t, "192.0.2.1", network("192.0.2.1"))
	require.Equal(t, network("2001:db8::1"), network("2001:db8::2"))
	require.NotEqual(t, network("2001:db8::1"), network("2001:db8:0:1::1"))
}

func TestBytesInFlight(t *testing.T) {
	const room = 32 << 10
	in := serve(t, &modelStore{}, func(h *HandlerConfig, _ *CommitterConfig) { h.InFlight = room })
	large := `{"event_id":"1","event_type":"a","occurred_at":"2024-01-30T12:00:00Z","payload":{"a":"` + strings.Repeat(
		"x", 50_000,
	) + `"}}`
	r := in.post(t, "/webhook", strings.NewReader(large))
	requireProblem(t, http.StatusServiceUnavailable, r)
	require.Equal(t, respondAfter, r.header.Get("Retry-After"))
	require.InDelta(
		t, 1, testutil.ToFloat64(in.handler.metrics.rejections.WithLabelValues("bytes_in_flight", "503")), 0,
	)
	for range 3 {
		require.Equal(
			t,
			http.StatusUnprocessableEntity,
			in.post(t, "/webhook", strings.NewReader("{}")).status,
			"room is given back",
		)
	}
	// B1, of its kind: headers take memory too.
	r = in.post(t, "/webhook", strings.NewReader("{}"), "X-Large", strings.Repeat("x", room))
	requireProblem(t, http.StatusServiceUnavailable, r)
	require.Equal(t, http.StatusUnprocessableEntity, in.post(t, "/webhook", strings.NewReader("{}")).status)
}

// B1, of its kind: uploads that do not go on leave room to all others, from however many addresses they come. They also
// leave room to other requests from their own.
func TestStoppedUploadsLeaveRoom(t *testing.T) {
	in := serve(t, &modelStore{}, func(h *HandlerConfig, _ *CommitterConfig) {
		h.InFlight, h.Trusted = 1<<20, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	large := `{"event_id":"%s","event_type":"a","occurred_at":"2024-01-30T12:00:00Z","payload":{"a":"` +
		strings.Repeat("x", 50_000) + `"}}`
	post := func(body, address string) int {
		return in.post(t, "/webhook", strings.NewReader(body), "X-Forwarded-For", address).status
	}
	stop := func(address string, announced, header int) net.Conn {
		var d net.Dialer
		conn, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(in.server.URL, "http://"))
		require.NoError(t, err)
		_, err = fmt.Fprintf(
			conn,
			"POST /webhook HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: %s\r\nX-A: %s\r\nContent-Length: %d\r\n\r\n%s",
			address,
			strings.Repeat("h", header),
			announced,
			strings.Repeat("x", announced*3/4),
		)
		require.NoError(t, err)
		return conn
	}
	held := func(address string) int64 {
		shares := in.handler.shares
		shares.mu.Lock()
		defer shares.mu.Unlock()
		return shares.held[network(address)]
	}
	for name, addresses := range map[string][]string{
		"of one network": {"2001:db8::%x"},
		"of four":        {"2001:db8::%x", "2001:db8:0:1::%x", "2001:db8:0:2::%x", "2001:db8:0:3::%x"},
	} {
		t.Run(name, func(t *testing.T) {
			var stopped []net.Conn
			for n := range 40 {
				conn := stop(fmt.Sprintf(addresses[n%len(addresses)], n), 64_000, 0)
				defer func() { _ = conn.Close() }()
				stopped = append(stopped, conn)
			}
			most := in.handler.shares.most - 64_000 // another one has no room
			require.Eventually(t, func() bool {
				sum := int64(0)
				for _, address := range addresses {
					sum += held(fmt.Sprintf(address, 0))
				}
				return sum > most
			}, patience, time.Millisecond)
			stranger := fmt.Sprintf(addresses[0], 1)
			require.Equal(t, http.StatusUnprocessableEntity, post("{}", stranger), "small ones have room at once")
			time.Sleep(uploadGrace) // they might still go on
			for n, address := range []string{"2001:db8:1::1", stranger} {
				for i := range 20 {
					require.Equal(t, http.StatusOK, post(fmt.Sprintf(large, fmt.Sprint(name, n, i)), address))
				}
			}
			answers := map[int]int{}
			for _, conn := range stopped {
				_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err == nil {
					answers[answer.StatusCode]++
					_ = answer.Body.Close()
				}
			}
			require.Positive(t, answers[http.StatusRequestTimeout], "some gave way")
			require.Less(t, answers[http.StatusRequestTimeout], 10, "no more than needed")
		})
	}
	for name, c := range map[string]struct{ announced, header int }{
		"small ones":               {smallRequest, 0},
		"small ones, with headers": {smallRequest, smallRequest - 1000},
		"headers alone":            {0, smallRequest - 1000},
	} {
		t.Run(name, func(t *testing.T) {
			for n := range 200 {
				conn := stop(fmt.Sprintf("2001:db8:%d::1", n), max(1, c.announced), c.header)
				defer func() { _ = conn.Close() }()
			}
			time.Sleep(uploadGrace + uploadGrace/2)
			for i := range 10 {
				require.Equal(t, http.StatusOK, post(fmt.Sprintf(large, fmt.Sprint(name, i)), "2001:db8:999::1"))
			}
		})
	}
}

func TestSlowUploadsGiveWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var all uploads
		var stopped []string
		begin := func(name, network string) *progress {
			var p *progress
			p = newProgress(network, func() { stopped = append(stopped, name); close(p.freed) })
			all.add(p)
			return p
		}
		require.False(t, all.giveWay("", nil), "there is none")
		quick, done := begin("quick", "a"), begin("done", "a")
		begin("slow", "a")
		own := begin("own", "b")
		begin("other", "b")
		require.False(t, all.giveWay("", own), "all are young")
		require.True(t, all.remove(done))
		time.Sleep(uploadGrace)
		begin("young", "b")
		quick.arrived(uploadPace)
		require.True(t, all.giveWay("b", own))
		require.False(t, all.giveWay("b", own))
		require.True(t, all.giveWay("", own))
		require.False(t, all.giveWay("", own))
		require.Equal(t, []string{"other", "slow"}, stopped)
		require.True(t, all.remove(own))
		time.Sleep(uploadGrace)
		require.True(t, all.giveWay("a", nil), "it has become slow")
		require.False(t, all.remove(quick), "it is told so")
		steady, burst := begin("steady", "d"), begin("burst", "d")
		burst.arrived(100 * uploadPace)
		for range 20 {
			time.Sleep(uploadGrace / 2)
			steady.arrived(uploadPace / 2)
		}
		require.True(t, all.giveWay("d", nil))
		require.Equal(t, "burst", stopped[len(stopped)-1], "what came early is no reason to stay")
		require.False(t, all.giveWay("d", nil))
		stuck := begin("stuck", "c")
		stuck.stop = func() {}
		time.Sleep(uploadGrace)
		require.True(t, all.giveWay("c", nil), "nobody waits for long")
	})
}

// rejectedStore is the database of a Keeper.
type rejectedStore struct {
	mu     sync.Mutex
	kept   []event.RejectedRequest
	budget map[string]event.Budget
	again  []bool // of each call
	err    error
}

func (s *rejectedStore) KeepRejected(
	_ context.Context,
	requests []event.RejectedRequest,
	budgets map[string]event.Budget,
	again bool,
) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.again = append(s.again, again)
	if s.err != nil {
		return s.err
	}
	s.kept = append(s.kept, requests...)
	s.budget = budgets
	return nil
}

func TestKeeperIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &rejectedStore{err: errors.New("away")}
		k := NewKeeper(store, zerolog.Nop(), metrics())
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- k.Run(ctx) }()
		all := newSources(t)
		all.put("github", githubSettings, Policy{Kept: event.Budget{Rows: 10, Bytes: 5000}})
		found, err := all.Lookup("github")
		require.NoError(t, err)
		reject := func(cause string, size int) {
			k.keep(&arrival{
				name: "github", source: found, policy: found.Policy(), redactor: found, bodyState: bodyWhole,
				request: event.Request{
					Method: http.MethodPost, URL: &url.URL{Path: "/webhook/github"},
					Header: http.Header{"Authorization": {"S1"}}, Wire: make([]byte, size), At: time.Now(),
				},
			}, &rejection{status: http.StatusUnauthorized, cause: cause, detail: "No."})
		}
		for range 10_000 {
			reject("signature_missing", 10)
		}
		reject("signature_wrong", 10) // it has room of its own
		reject("signature_wrong", 5001)
		settle := func() {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		settle()
		const kept = keptFirst + 1 + 2 // the one is sampled
		k.mu.Lock()
		require.Len(t, k.waiting, kept, "it waits for the database")
		held := int64(0)
		for _, waiting := range k.waiting {
			held += int64(len(waiting.Body) + len(waiting.Headers) + len(waiting.Target) + len(waiting.Detail))
		}
		require.Equal(t, held, k.pots[theirs].held, "all that it takes of memory counts")
		k.mu.Unlock()
		store.mu.Lock()
		require.Empty(t, store.kept)
		store.err = nil
		store.mu.Unlock()
		settle()
		store.mu.Lock()
		require.Len(t, store.kept, kept)
		require.True(t, store.again[len(store.again)-2], "some may have been kept, for all that is known")
		require.False(t, store.again[len(store.again)-1], "these were not among them")
		require.Equal(t, map[string]event.Budget{"github": {Rows: 10, Bytes: 5000}}, store.budget)
		require.NotContains(t, string(store.kept[0].Headers), "S1")
		cut := store.kept[kept-1]
		require.Len(t, cut.Body, keptBeginning, "it is larger than the source's budget")
		require.EqualValues(t, 5001, *cut.BodyBytes)
		require.InDelta(t, 10_000-keptFirst-1, testutil.ToFloat64(k.metrics.unkept), 0)
		store.mu.Unlock()
		require.Zero(t, k.pots[theirs].rows)
		require.Zero(t, k.pots[theirs].held)

		reject("signature_wrong", 10)
		stop()
		require.NoError(t, <-ended)
		require.Len(t, store.kept, kept+1, "what is left is stored at a stop")
		require.False(t, store.again[len(store.again)-1])
	})
}

// costlyStore is a database for which one request is too much.
type costlyStore struct {
	rejectedStore

	calls int
}

func (s *costlyStore) KeepRejected(
	ctx context.Context, requests []event.RejectedRequest, budgets map[string]event.Budget, again bool,
) error {
	s.calls++
	for _, r := range requests {
		if r.Cause == "costly" {
			<-ctx.Done()
			return ctx.Err()
		}
	}
	return s.rejectedStore.KeepRejected(ctx, requests, budgets, again)
}

// B2, of its kind: a request that costs the database too much delays those of others, and hides none of them.
func TestACostlyRequestHidesNoOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &costlyStore{}
		log := &bytes.Buffer{}
		k := NewKeeper(store, zerolog.New(zerolog.SyncWriter(log)), metrics())
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- k.Run(ctx) }()
		reject := func(cause string) {
			k.keep(&arrival{
				name: "a", policy: Policy{Kept: event.Budget{Rows: 1000, Bytes: 1 << 20}}, bodyState: bodyWhole,
				request: event.Request{URL: &url.URL{Path: "/"}, At: time.Now()},
			}, &rejection{status: http.StatusUnauthorized, cause: cause})
		}
		for n := range 60 {
			reject([]string{"usual", "other"}[n%2])
			if n == 30 {
				reject("costly")
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, store.kept, 60, "after %d calls", store.calls)
		require.Less(t, store.calls, 60)
		reject("costly")
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Less(t, store.calls, 120, "nor does it keep the database busy")
		reject("usual")
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, store.kept, 61)
		require.Contains(t, log.String(), "rejected requests cannot be kept")
		reject("costly")
		stop()
		require.NoError(t, <-ended)
		require.Contains(t, log.String(), "rejected requests were not kept, since this process stops")
	})
}

// B2: what a flood makes the database write does not grow with it. The first hundred of each kind in an hour are found
// all the same, and then a sample.
func TestFloodsAreKeptAsSamples(t *testing.T) {
	const second = 25 // requests
	for name, c := range map[string]struct {
		causes  []string
		size    int // of a body
		headers int
		target  int
		minutes int
		rows    int     // kept, at least
		rate    float64 // bytes a second at most, after the first minute too
	}{
		"large bodies, wrong signatures": {[]string{"signature_wrong"}, 1 << 20, 100, 10, 10, 650, 130_000},
		"of several causes": {
			[]string{"signature_wrong", "not_json", "too_slow"}, 1 << 20, 100, 10, 10, 3 * 650, 230_000,
		},
		"of a disabled and an open source": {[]string{"source_disabled", "not_json"}, 1 << 20, 100, 10, 10, 1600, 250_000},
		"large headers and targets":        {[]string{"signature_wrong"}, 0, 60_000, 60_000, 10, 650, 130_000},
		"of many causes, with many words": {
			strings.Fields("a b c d e f g h i j k l"), 8_000, 300, 30, 10, 12 * 100, 150_000,
		},
		"of many causes, with headers full of words": {
			strings.Fields("a b c d e f g h i j k l"), 8_000, 4_000, 100, 10, 12 * 100, 160_000,
		},
		"small ones": {[]string{"signature_wrong"}, 500, 300, 30, 10, 650, 30_000},
		"for hours":  {[]string{"signature_wrong"}, 2000, 300, 30, 130, 3*100 + 7000, 30_000},
	} {
		synctest.Test(t, func(t *testing.T) {
			store := &rejectedStore{}
			k := NewKeeper(store, zerolog.Nop(), metrics())
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- k.Run(ctx) }()
			all := newSources(t)
			all.put("github", githubSettings, Policy{Kept: event.Budget{Rows: 1000, Bytes: 16 << 20}})
			found, err := all.Lookup("github")
			require.NoError(t, err)
			body := make([]byte, c.size)
			for range c.minutes * 60 * second {
				for _, cause := range c.causes {
					k.keep(&arrival{
						name: "github", policy: found.Policy(), redactor: found, bodyState: bodyWhole,
						request: event.Request{
							Method: http.MethodPost, URL: &url.URL{Path: "/" + strings.Repeat("x", c.target)},
							Header: http.Header{"X-Pad": {strings.Repeat("x", c.headers)}}, Wire: body, At: time.Now(),
						},
					}, &rejection{status: http.StatusUnauthorized, cause: cause, detail: "No."})
				}
				time.Sleep(time.Second / second)
			}
			stop()
			require.NoError(t, <-ended)
			written := 0
			for _, r := range store.kept {
				size := len(r.Body) + len(r.Headers) + len(r.Target)
				written += size + min(size/4, 40)*130 + 500 // 40 words of 130 bytes
			}
			rate := float64(written) / float64(c.minutes*60)
			t.Logf("%s: %d requests, %.0f bytes a second", name, len(store.kept), rate)
			require.GreaterOrEqual(t, len(store.kept), c.rows, name)
			require.Less(t, rate, c.rate, name)
			sent := c.minutes * 60 * second * len(c.causes)
			require.InDelta(t, sent-len(store.kept), testutil.ToFloat64(k.metrics.unkept), 0, "and all are counted")
		})
	}
}

// requestedStore hands out requests that an operator wants replayed.
type requestedStore struct {
	mu        sync.Mutex
	requested []event.RejectedRequest
	settled   map[int64][3]string
}

func (s *requestedStore) TakeRequested(context.Context, int) ([]event.RejectedRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	requested := s.requested
	s.requested = nil
	return requested, nil
}

func (s *requestedStore) SettleRejected(_ context.Context, id int64, _ bool, state, note, eventID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled[id] = [3]string{state, note, eventID}
	return nil
}

func TestReplayer(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	in.sources.put("github", githubSettings, keeping)
	in.sources.put("token", `{"preset":"bearer","secrets":["env:S1"],"id":["{body:/id}"]}`, keeping)
	in.sources.err["broken"] = event.ErrSourceBroken
	require.Equal(
		t,
		http.StatusUnauthorized,
		in.post(t, "/webhook/github", strings.NewReader(ping), github("1", "S2", ping)...).status,
	)
	require.Equal(
		t,
		http.StatusUnauthorized,
		in.post(t, "/webhook/token", strings.NewReader(`{"id":"a"}`), "Authorization", "Bearer S2").status,
	)
	wrong, withToken := in.kept.waiting[0], in.kept.waiting[1]
	wrong.ID, withToken.ID = 1, 2
	require.NotContains(t, string(withToken.Headers), "S2")
	broken := wrong
	broken.ID, broken.Source = 3, "broken"

	store := &requestedStore{settled: map[int64][3]string{}}
	p := NewReplayer(store, in.handler, zerolog.Nop())
	again := func(requests ...event.RejectedRequest) map[int64][3]string {
		store.requested, store.settled = requests, map[int64][3]string{}
		p.nextBatch(t.Context())
		return store.settled
	}
	settled := again(wrong, withToken, broken)
	require.Equal(t, event.RejectedAgain, settled[1][0])
	require.Equal(t, event.RejectedAgain, settled[2][0])
	require.Contains(t, settled[2][1], "Credentials are not kept")
	require.Equal(t, event.RejectedAgain, settled[3][0], "no replay goes on for ever")
	require.Contains(t, settled[3][1], "Correct its settings or secrets first")
	closed := broken
	closed.Source = "closed"
	in.sources.err["closed"] = event.ErrSourceClosed
	settled = again(closed)
	require.Equal(t, event.RejectedAgain, settled[3][0])
	require.Contains(t, settled[3][1], "is closed")
	require.Zero(t, in.store.count())

	in.sources.put("github", `{"preset":"github","secrets":["env:S1","env:S2"]}`, keeping)
	require.Equal(t, [3]string{event.RejectedTakenIn, "accepted", "1"}, again(wrong)[1])
	require.Equal(t, [3]string{event.RejectedTakenIn, "deduplicated", "1"}, again(wrong)[1])
	withToken.Trust = true
	require.Equal(t, [3]string{event.RejectedTakenIn, "accepted", "a"}, again(withToken)[2])
}

func TestSampleIsAdmitted(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	in.sources.put("github", githubSettings, keeping)
	found, err := in.sources.Lookup("github")
	require.NoError(t, err)
	sample, err := found.(testSource).Sample(time.Now()) //nolint:forcetypeassert // it is what put has put
	require.NoError(t, err)
	code, body := in.handler.Admit(t.Context(), "github", sample)
	require.Equal(t, http.StatusOK, code, "%s", body)
	sample.Wire = append(sample.Wire, ' ')
	code, body = in.handler.Admit(t.Context(), "github", sample)
	require.Equal(t, http.StatusUnauthorized, code)
	require.Contains(t, string(body), `"status":401`)
	code, _ = in.handler.Admit(t.Context(), "nobody", sample)
	require.Equal(t, http.StatusNotFound, code)
}

// BenchmarkGitHub admits requests of GitHub of 1 kB each, with and without verification. It measures everything but the
// network and the database.
func BenchmarkGitHub(b *testing.B) {
	all := newSources(b)
	all.put("on", githubSettings, keeping)
	all.put("off", `{"preset":"github","verify":[{"scheme":"none"}]}`, keeping)
	m := metrics()
	committer := NewCommitter(discarding{}, DefaultCommitterConfig(), zerolog.Nop(), m)
	ctx, stop := context.WithCancel(b.Context())
	ended := make(chan error)
	go func() { ended <- committer.Run(ctx) }()
	h := NewHandler(HandlerConfig{MaxBody: maxBody, ReadTimeout: patience, InFlight: 64 << 20}, all, committer,
		NewRejections(nil, time.Now, zerolog.Nop()), NewKeeper(nil, zerolog.Nop(), m), zerolog.Nop(), m)
	around := h.Around(respond.NotFound())
	body := `{"action":"opened","issue":{"id":1,"body":"` + strings.Repeat("x", 950) + `"}}`
	headers := github("1", "S1", body)
	for _, name := range []string{"off", "on"} {
		b.Run("verification "+name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					r := httptest.NewRequestWithContext(
						b.Context(), http.MethodPost, "/webhook/"+name, strings.NewReader(body),
					)
					for i := 0; i < len(headers); i += 2 {
						r.Header.Set(headers[i], headers[i+1])
					}
					w := httptest.NewRecorder()
					around.ServeHTTP(w, r)
					if w.Code != http.StatusOK {
						b.Error(w.Code, w.Body)
						return
					}
				}
			})
		})
	}
	stop()
	if err := <-ended; err != nil {
		b.Error(err)
	}
}

// discarding is a store that keeps nothing.
type discarding struct{}

func (discarding) Ingest(_ context.Context, events []event.Event) ([]event.Receipt, error) {
	receipts := make([]event.Receipt, len(events))
	for i := range receipts {
		receipts[i].Outcome = event.Accepted
	}
	return receipts, nil
}

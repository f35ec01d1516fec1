package ingest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/respond"
)

// passed is what one path made of a request, in the form that all paths can be compared in.
type passed struct {
	status int // of the answer; 0 where the path does not tell: a replay of what was admitted, or of our fault
	cause  string
	detail string // with what is wrong with each field
	event  string // id of the event that was stored, or would be
	answer string // of a handshake
}

// pathRequest is a request that can be sent on every path.
type pathRequest struct {
	source, method string
	target         string // path and query
	headers        []string
	body           string
}

// slack returns a request that Slack signed at a time.
func slack(at time.Time, secret, body string) pathRequest {
	seconds := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte("v0:" + seconds + ":" + body))
	return pathRequest{source: "slack", body: body, headers: []string{
		"Content-Type", "application/json", "X-Slack-Request-Timestamp", seconds,
		"X-Slack-Signature", "v0=" + hex.EncodeToString(mac.Sum(nil)),
	}}
}

// pathSources makes the sources that a pathRequest names.
func pathSources(t *testing.T, in *intake) {
	t.Helper()
	in.sources.put("github", githubSettings, keeping)
	in.sources.put("slack", `{"preset":"slack","secrets":["env:S1"]}`, keeping)
	in.sources.put("meta", `{"preset":"meta","secrets":["env:S1"],"verify_token":"env:WORD"}`, keeping)
	in.sources.put("events", `{"preset":"cloudevents","secrets":["env:S1"]}`, keeping)
	in.sources.put("token", `{"preset":"bearer","secrets":["env:S1"],"id":["{body:/id}"]}`, keeping)
	in.sources.err = map[string]error{
		"disabled": event.ErrSourceDisabled, "early": event.ErrSourcesUnknown,
		"broken": fmt.Errorf("%w: env:X is not set", event.ErrSourceBroken),
	}
}

func (r pathRequest) request(t *testing.T, at time.Time) *event.Request {
	t.Helper()
	target, err := url.Parse(r.target)
	require.NoError(t, err)
	header := http.Header{}
	for i := 0; i < len(r.headers); i += 2 {
		header.Add(r.headers[i], r.headers[i+1])
	}
	return &event.Request{Method: r.method, URL: target, Header: header, Wire: []byte(r.body), At: at}
}

// live sends a request over the network.
func (r pathRequest) live(t *testing.T, in *intake) passed {
	t.Helper()
	before := rejectedKinds(in)
	sent, err := http.NewRequestWithContext(t.Context(), r.method, in.server.URL+r.target, strings.NewReader(r.body))
	require.NoError(t, err)
	for i := 0; i < len(r.headers); i += 2 {
		sent.Header.Add(r.headers[i], r.headers[i+1])
	}
	response, err := in.server.Client().Do(sent)
	require.NoError(t, err)
	defer func() { require.NoError(t, response.Body.Close()) }()
	reply := read(t, response)
	p := parseAnswer(t, reply.status, reply.body)
	for kind, n := range rejectedKinds(in) {
		if n > before[kind] {
			require.Empty(t, p.cause)
			require.Equal(t, p.status, kind.status)
			p.cause = kind.cause
		}
	}
	return p
}

// parseAnswer reads what a sender is told, of a batch about its first event.
func parseAnswer(t *testing.T, status int, body string) passed {
	t.Helper()
	p := passed{status: status}
	if batched, ok := strings.CutPrefix(body, "[{"); ok {
		first, _, _ := strings.Cut(batched, "}")
		body = "{" + first + "}"
	}
	var said struct {
		respond.Problem
		Status  any    `json:"status"`
		EventID string `json:"event_id"`
	}
	switch err := json.Unmarshal([]byte(body), &said); {
	case err == nil && said.EventID != "":
		p.event = said.EventID
	case err == nil && said.Title != "":
		p.detail = said.Detail
		for _, fault := range said.Errors {
			p.detail += " " + fault.Field + " " + fault.Detail + "."
		}
	default:
		p.answer = body
	}
	return p
}

// dryRun takes a request through the gate alone.
func (r pathRequest) dryRun(t *testing.T, in *intake, at time.Time) passed {
	t.Helper()
	found, lookup := in.sources.Lookup(r.source)
	trial := DryRun(found, lookup, r.request(t, at), maxBody)
	p := passed{status: trial.Status, cause: trial.Cause, detail: trial.Detail, answer: string(trial.Answer)}
	for _, problem := range trial.Problems {
		p.detail += " " + problem.Field + " " + problem.Detail + "."
	}
	if len(trial.Events) > 0 {
		p.event = trial.Events[0].ID
	}
	return p
}

// replay replays a request as it came, with all of its secrets.
func (r pathRequest) replay(t *testing.T, in *intake, at time.Time, trust bool) passed {
	t.Helper()
	request := r.request(t, at)
	headers, err := json.Marshal(request.Header)
	require.NoError(t, err)
	replayer := NewReplayer(nil, in.handler, zerolog.Nop())
	state, note, eventID := replayer.replay(t.Context(), event.RejectedRequest{
		Source: r.source, At: event.Timestamp{Time: at}, Method: r.method, Target: r.target, Headers: headers,
		Body: request.Wire, Trust: trust,
	})
	switch state {
	case event.RejectedTakenIn:
		return passed{event: eventID}
	case event.RejectedAgain:
		return passed{detail: note}
	}
	require.Empty(t, state)
	require.Empty(t, note)
	return passed{}
}

// However a request comes, it passes the same gate. The paths differ only in how much they tell of the verdict.
func TestEveryPathHasTheSameVerdict(t *testing.T) {
	now := time.Now()
	const (
		slackEvent = `{"type":"event_callback","event_id":"Ev1","event_time":1700000000,"event":{"type":"app_mention"}}`
		slackHello = `{"type":"url_verification","challenge":"3eZbrw"}`
	)
	signed := func(id, body string) pathRequest {
		return pathRequest{source: "github", headers: github(id, "S1", body), body: body}
	}
	with := func(r pathRequest, headers ...string) pathRequest {
		r.headers = append(r.headers[:len(r.headers):len(r.headers)], headers...)
		return r
	}
	large := `{"pad":"` + strings.Repeat("x", maxBody) + `"}`
	zipped := zip(t, ping).String()
	bomb := zip(t, large).String()
	batch := func(events string) pathRequest {
		return pathRequest{
			source:  "events",
			body:    events,
			headers: []string{"Content-Type", batchType, "Authorization", "Bearer S1"},
		}
	}
	for name, c := range map[string]struct {
		request pathRequest
		want    passed // without detail
	}{
		"good": {signed("good", ping), passed{status: 200, event: "good"}},
		"good, compressed": {
			with(signed("zip", zipped), "Content-Encoding", "gzip"), passed{status: 200, event: "zip"},
		},
		"good, with a time": {
			slack(now, "S1", slackEvent), passed{status: 200, event: "Ev1"},
		},
		"good, envelope": {
			pathRequest{source: event.DefaultSource, body: envelope("a", "{}")}, passed{status: 200, event: "a"},
		},
		"good, batch": {
			batch("[" + cloudEvent("1") + "," + cloudEvent("2") + "]"), passed{status: 200, event: "/s 1"},
		},
		"empty batch":     {batch("[]"), passed{status: 200, answer: "[]\n"}},
		"no source":       {pathRequest{source: "nobody", body: ping}, passed{status: 404, cause: "no_such_source"}},
		"disabled source": {pathRequest{source: "disabled", body: ping}, passed{status: 503, cause: "source_disabled"}},
		"broken source":   {pathRequest{source: "broken", body: ping}, passed{status: 503, cause: "source_broken"}},
		"sources unknown": {pathRequest{source: "early", body: ping}, passed{status: 503, cause: "unavailable"}},
		"repeated header": {
			with(signed("1", ping), "X-GitHub-Delivery", "2"), passed{status: 400, cause: "repeated_header"},
		},
		"repeated header, wrong signature": { // the order of the checks
			with(pathRequest{source: "github", headers: github("1", "S2", ping), body: ping}, "X-GitHub-Delivery", "2"),
			passed{status: 400, cause: "repeated_header"},
		},
		"content type": {
			pathRequest{
				source: event.DefaultSource, headers: []string{"Content-Type", "text/plain"}, body: envelope("b", "{}"),
			},
			passed{status: 415, cause: "content_type"},
		},
		"content encoding": {
			with(signed("1", ping), "Content-Encoding", "br"), passed{status: 415, cause: "content_encoding"},
		},
		"wrong signature": {
			pathRequest{source: "github", headers: github("1", "S2", ping), body: ping},
			passed{status: 401, cause: "signature_wrong"},
		},
		"no signature": {
			pathRequest{source: "github", headers: github("1", "S1", ping)[:6], body: ping},
			passed{status: 401, cause: "signature_missing"},
		},
		"wrong credentials": {
			pathRequest{source: "token", headers: []string{"Authorization", "Bearer S2"}, body: `{"id":"a"}`},
			passed{status: 401, cause: "credentials_wrong"},
		},
		"stale":     {slack(now.Add(-time.Hour), "S1", slackEvent), passed{status: 401, cause: "timestamp_stale"}},
		"too large": {signed("1", large), passed{status: 413, cause: "too_large"}},
		"too large, wrong signature": {
			pathRequest{source: "github", headers: github("1", "S2", large), body: large},
			passed{status: 413, cause: "too_large"},
		},
		"too large once inflated": {
			with(signed("1", bomb), "Content-Encoding", "gzip"), passed{status: 413, cause: "too_large"},
		},
		"cut short, compressed": {
			with(signed("1", zipped[:len(zipped)-3]), "Content-Encoding", "gzip"), passed{
				status: 400, cause: "cut_short",
			},
		},
		"not JSON": {signed("1", `{"zen":`), passed{status: 400, cause: "not_json"}},
		"invalid fields": {
			pathRequest{source: event.DefaultSource, body: `{"event_id":"","event_type":7}`},
			passed{status: 422, cause: "invalid_event"},
		},
		"handshake": {slack(now, "S1", slackHello), passed{status: 200, answer: `{"challenge":"3eZbrw"}`}},
		"handshake by GET": {
			pathRequest{
				source: "meta", method: http.MethodGet,
				target: "/webhook/meta?hub.mode=subscribe&hub.verify_token=WORD&hub.challenge=1158201444",
			},
			passed{status: 200, answer: "1158201444"},
		},
		"method": {pathRequest{source: "events", method: http.MethodGet}, passed{status: 405, cause: "method"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := c.request
			if r.method == "" {
				r.method = http.MethodPost
			}
			if r.target == "" {
				r.target = "/webhook/" + r.source
			}
			fresh := func() *intake { // each path has a store of its own
				in := serve(t, &modelStore{}, nil)
				pathSources(t, in)
				return in
			}
			onLive, onReplay, onAdmit := fresh(), fresh(), fresh()
			live := r.live(t, onLive)
			detail := live.detail
			require.Equal(t, live.cause != "", detail != "")
			live.detail = ""
			require.Equal(t, c.want, live)

			dry := r.dryRun(t, onLive, now)
			require.Equal(t, detail, dry.detail)
			dry.detail = ""
			require.Equal(t, c.want, dry)

			want := passed{event: c.want.event}
			if c.want.cause != "" && c.want.status < 500 {
				want.detail = detail
			}
			switch c.want.cause { // an operator can mend that, and is told
			case sourceDisabled.cause:
				want.detail = "The source is disabled. Enable it first."
			case sourceBroken.cause:
				want.detail = "The source cannot be used. Correct its settings or secrets first."
			}
			replayed := r.replay(t, onReplay, now, false)
			if strings.HasPrefix(c.want.cause, "credentials_") {
				require.Contains(t, replayed.detail, "Credentials are not kept")
				replayed.detail = want.detail
			}
			require.Equal(t, want, replayed)

			status, body := onAdmit.handler.Admit(t.Context(), r.source, r.request(t, now))
			admitted := parseAnswer(t, status, string(body))
			require.Equal(
				t, passed{status: c.want.status, detail: detail, event: c.want.event, answer: c.want.answer}, admitted,
			)

			require.Equal(t, onLive.store.count(), onReplay.store.count())
			require.Equal(t, onLive.store.count(), onAdmit.store.count())
		})
	}
}

// Trust stands for verification alone: every other check holds for a trusted request too.
func TestTrustReplacesVerificationAlone(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	pathSources(t, in)
	wrong := func(body string, headers ...string) pathRequest {
		return pathRequest{
			source: "github", method: http.MethodPost, target: "/webhook/github",
			headers: append(github("1", "S2", body), headers...), body: body,
		}
	}
	now := time.Now()
	require.Contains(t, wrong(ping).replay(t, in, now, false).detail, "signature")
	require.Contains(t, wrong("{").replay(t, in, now, true).detail, "cut short")
	require.Contains(t, wrong(ping, "X-GitHub-Delivery", "2").replay(t, in, now, true).detail, "more than once")
	require.Contains(t, wrong(strings.Repeat(" ", maxBody+1)).replay(t, in, now, true).detail, "larger than")
	in.sources.err["github"] = event.ErrSourceDisabled
	require.Contains(t, wrong(ping).replay(t, in, now, true).detail, "is disabled")
	delete(in.sources.err, "github")
	require.Zero(t, in.store.count())
	require.Equal(t, passed{event: "1"}, wrong(ping).replay(t, in, now, true))
	require.Equal(t, 1, in.store.count())
}

// Only requests from the network are charged to rate limits.
func TestRateLimitsAreForTheNetwork(t *testing.T) {
	in := serve(
		t, &modelStore{}, func(h *HandlerConfig, _ *CommitterConfig) { h.Address = Rate{PerSecond: 0.001, Burst: 1} },
	)
	pathSources(t, in)
	policy := keeping
	policy.Verified = Rate{PerSecond: 0.001, Burst: 1}
	in.sources.put("github", githubSettings, policy)
	r := pathRequest{
		source: "github", method: http.MethodPost, target: "/webhook/github", headers: github("1", "S1", ping),
		body: ping,
	}
	for range 3 {
		require.Equal(t, "1", r.dryRun(t, in, time.Now()).event)
		require.Equal(t, "1", r.replay(t, in, time.Now(), false).event)
		status, _ := in.handler.Admit(t.Context(), r.source, r.request(t, time.Now()))
		require.Equal(t, http.StatusOK, status)
	}
	require.Equal(t, http.StatusOK, r.live(t, in).status)
	require.Equal(t, "address_rate", r.live(t, in).cause)
}

func TestRequestThatWasKeptAndCannotBeRead(t *testing.T) {
	in := serve(t, &modelStore{}, nil)
	replayer := NewReplayer(nil, in.handler, zerolog.Nop())
	for want, kept := range map[string]event.RejectedRequest{
		"its target is not a URL":  {Source: event.DefaultSource, Target: "%", Headers: []byte("{}")},
		"its headers are not JSON": {Source: event.DefaultSource, Target: "/webhook", Headers: []byte("[")},
	} {
		state, note, _ := replayer.replay(t.Context(), kept)
		require.Equal(t, event.RejectedAgain, state)
		require.Equal(t, "The kept request cannot be read: "+want+".", note)
	}
	in.sources.err[event.DefaultSource] = errors.New("a bug")
	state, _, _ := replayer.replay(
		t.Context(), event.RejectedRequest{Source: event.DefaultSource, Target: "/", Headers: []byte("{}")},
	)
	require.Empty(t, state, "our fault: it is handed out again")
}

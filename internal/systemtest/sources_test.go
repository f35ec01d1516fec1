package systemtest

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/secret"
	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/source"
)

// provider sends to a source of a test. Its secrets are in files.
type provider struct {
	t    *testing.T
	name string
	id   string // of its files
	c    source.Config
}

// path is a file of the provider's.
func (p *provider) path(file string) string { return filepath.Join(secretFolder(), p.id+"-"+file) }

// secretOf is a secret as the provider of a preset makes it. Discord has a pair of keys; the receiver has the public
// one.
func secretOf(preset string, seed byte) (signs, verifies string) {
	key := bytes.Repeat([]byte{seed}, 32)
	switch preset {
	case "standard-webhooks", "svix", "gitlab":
		s := "whsec_" + base64.StdEncoding.EncodeToString(key)
		return s, s
	case "basic":
		return fmt.Sprintf("user:secret-%d-of-basic", seed), fmt.Sprintf("user:secret-%d-of-basic", seed)
	case "discord":
		private := ed25519.NewKeyFromSeed(key)
		return hex.EncodeToString(
				private,
			), hex.EncodeToString(
				private.Public().(ed25519.PublicKey),
			) //nolint:forcetypeassert // it is one
	}
	s := fmt.Sprintf("secret-%d-of-%s", seed, preset)
	return s, s
}

// newProvider adds a source of a preset, with the secret of seed 1.
func newProvider(t *testing.T, s *target, preset string, adjust func(c *source.Config)) *provider {
	t.Helper()
	p := &provider{t: t, name: preset, id: uuid.NewString()}
	p.c = source.Config{Preset: preset, Secrets: []source.Secret{{Ref: "file:" + p.path("secret")}}}
	_, verifies := secretOf(preset, 1)
	p.write("secret", verifies)
	switch preset {
	case "twilio", "square":
		p.c.URL = "https://hooks.example.com/webhook/" + preset
	case "meta":
		p.c.VerifyToken = "file:" + p.path("word")
		p.write("word", "verify-word-of-meta")
	case "hmac":
		p.c.Verify = []source.Method{{Scheme: "hmac", Header: []string{"X-Signature"}}}
		p.c.ID = []string{"{body:/id}"}
	case "token":
		p.c.Verify = []source.Method{{Scheme: "token", Header: []string{"X-Token"}}}
	}
	if adjust != nil {
		adjust(&p.c)
	}
	p.put(s)
	s.awaitSource(t, p.name)
	return p
}

func (p *provider) write(file, text string) {
	p.t.Helper()
	require.NoError(p.t, os.WriteFile(p.path(file), []byte(text+"\n"), 0o600))
}

func (p *provider) put(s *target) {
	p.t.Helper()
	settings, err := json.Marshal(p.c)
	require.NoError(p.t, err)
	execute(p.t, s.db, "select spine.put_source($1, $2)", p.name, settings)
}

// awaitSource waits until a process knows a source.
func (s *target) awaitSource(t *testing.T, name string) {
	t.Helper()
	require.Eventually(t, func() bool {
		r, err := s.do(t.Context(), http.MethodPost, "/webhook/"+name, strings.NewReader("{"))
		return err == nil && r.code != http.StatusNotFound
	}, patience, 10*time.Millisecond)
}

// sender signs with the secret of a seed.
func (p *provider) sender(seed byte) *source.Source {
	p.t.Helper()
	signs, _ := secretOf(p.name, seed)
	s, err := source.Compile(p.name, p.c, func(ref string) (secret.Value, error) {
		if strings.HasSuffix(ref, "word") {
			return secret.New("w"), nil
		}
		return secret.New(signs), nil
	})
	require.NoError(p.t, err)
	return s
}

// sample is a signed sample of a time.
func (p *provider) sample(seed byte, at time.Time) *event.Request {
	p.t.Helper()
	r, err := p.sender(seed).Sample(at)
	require.NoError(p.t, err)
	return r
}

// deliver posts a request as it is.
func (s *target) deliver(t *testing.T, name string, r *event.Request) reply {
	t.Helper()
	var header []string
	for name, values := range r.Header {
		for _, value := range values {
			header = append(header, name, value)
		}
	}
	path := "/webhook/" + name
	if r.URL != nil && r.URL.RawQuery != "" {
		path += "?" + r.URL.RawQuery
	}
	return s.request(t, http.MethodPost, path, string(r.Wire), header...)
}

// TestPresets tries each preset over HTTP: accepted, tampered with, stale,
// signed with another secret, and while a secret is replaced.
func TestPresets(t *testing.T) {
	t.Parallel()
	s := startService(t, service.Roles{API: true}, databases.New(t))
	for _, preset := range source.Presets() {
		if preset == "envelope" || preset == "none" {
			continue
		}
		t.Run(preset, func(t *testing.T) {
			p := newProvider(t, s, preset, nil)
			now := time.Now()
			require.Equal(t, "accepted", s.deliver(t, preset, p.sample(1, now)).status())

			r := p.sample(1, now)
			require.Equal(t, "accepted", s.deliver(t, preset, r).status())
			require.Equal(t, "deduplicated", s.deliver(t, preset, r).status(), "the same again")

			require.Equal(t, http.StatusUnauthorized, s.deliver(t, preset, p.sample(2, now)).code, "another secret")
			resolved, err := p.c.Resolve()
			require.NoError(t, err)
			for _, m := range resolved.Verify {
				for _, name := range m.Header {
					r.Header.Del(name)
				}
			}
			require.Equal(t, http.StatusUnauthorized, s.deliver(t, preset, r).code, "unsigned")
			switch preset {
			case "bearer", "basic", "token", "cloudevents": // they do not sign
			default:
				tampered := p.sample(1, now)
				tampered.Wire = bytes.Replace(tampered.Wire, []byte("e"), []byte("f"), 1)
				require.Equal(t, http.StatusUnauthorized, s.deliver(t, preset, tampered).code, "tampered with")
			}
			resolved, err = p.c.Resolve()
			require.NoError(t, err)
			for _, m := range resolved.Verify {
				if len(m.Timestamp) == 0 {
					continue
				}
				stale := s.deliver(t, preset, p.sample(1, now.Add(-m.Tolerance-time.Minute)))
				require.Equal(t, http.StatusUnauthorized, stale.code, "stale")
				break
			}

			// A second secret, then only that one.
			_, second := secretOf(preset, 2)
			p.write("second", second)
			p.c.Secrets = append(p.c.Secrets, source.Secret{Ref: "file:" + p.path("second")})
			p.put(s)
			require.Eventually(
				t,
				func() bool { return s.deliver(t, preset, p.sample(2, time.Now())).code == http.StatusOK },
				patience,
				20*time.Millisecond,
			)
			require.Equal(t, "accepted", s.deliver(t, preset, p.sample(1, time.Now())).status())
			p.c.Secrets = p.c.Secrets[1:]
			p.put(s)
			require.Eventually(
				t,
				func() bool { return s.deliver(t, preset, p.sample(1, time.Now())).code == http.StatusUnauthorized },
				patience,
				20*time.Millisecond,
			)
			require.Equal(t, "accepted", s.deliver(t, preset, p.sample(2, time.Now())).status())
		})
	}
}

// TestGitHubExamples sends all real payloads as GitHub does, twice.
func TestGitHubExamples(t *testing.T) {
	t.Parallel()
	s := startService(t, service.Roles{API: true}, databases.New(t))
	p := newProvider(t, s, "github", nil)
	sender := p.sender(1)
	examples := githubEvents(t)
	require.GreaterOrEqual(t, len(examples), 300)
	for _, want := range []string{"accepted", "deduplicated"} {
		for _, e := range examples {
			r := &event.Request{
				Method: http.MethodPost,
				Wire:   e.payload,
				Header: http.Header{
					"Content-Type":      {"application/json"},
					"X-Github-Event":    {e.kind},
					"X-Github-Delivery": {e.id},
					"X-Github-Hook-Id":  {"7"},
				},
			}
			require.NoError(t, sender.Sign(r, time.Now()))
			require.Equal(t, want, s.deliver(t, "github", r).status(), e.id)
		}
	}
	for _, e := range examples {
		var payload, kind string
		var derived *bool
		require.NoError(
			t,
			s.db.QueryRow(
				t.Context(),
				"select payload::text, event_type, id_derived from spine.events where source = 'github' and event_id = $1",
				e.id+"/7",
			).
				Scan(
					&payload,
					&kind,
					&derived,
				),
		)
		require.Equal(t, string(e.payload), payload)
		require.Nil(t, derived)
		var action struct{ Action *string }
		require.NoError(t, json.Unmarshal(e.payload, &action))
		if action.Action != nil && *action.Action != "" {
			e.kind += "." + *action.Action
		}
		require.Equal(t, e.kind, kind)
	}
	require.Equal(t, len(examples), value[int](t, s.db, "select count(*) from spine.events"))
}

// What a provider's habits ask for, one by one.
func TestHabitsOfProviders(t *testing.T) {
	t.Parallel()
	s := startService(t, service.Roles{API: true}, databases.New(t))
	p := newProvider(t, s, "github", nil)
	sender := p.sender(1)
	github := func(body string, header ...string) *event.Request {
		r := &event.Request{
			Method: http.MethodPost,
			Wire:   []byte(body),
			Header: http.Header{"Content-Type": {"application/json"}, "X-Github-Event": {"push"}},
		}
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		require.NoError(t, sender.Sign(r, time.Now()))
		return r
	}

	// An organisation's hook and a repository's share a delivery: both are kept.
	body := `{"ref":"refs/heads/main","n":1}`
	for _, hook := range []string{"1", "2"} {
		require.Equal(
			t,
			"accepted",
			s.deliver(t, "github", github(body, "X-GitHub-Delivery", "guid", "X-GitHub-Hook-ID", hook)).status(),
		)
	}
	// The second has the same body under another id. The id is not signed, and the answer says so.
	require.Equal(
		t,
		[]string{"guid/1|", "guid/2|guid/1"},
		rows(t, s, "select event_id || '|' || coalesce(same_body_as, '') from spine.events order by id"),
	)
	require.Equal(
		t,
		"guid/1",
		value[string](
			t,
			s.db,
			"select details->>'same_body_as' from spine.audit_log where event_id = 'guid/2' and action = 'event_inserted'",
		),
	)

	// A form, whose signature is over its bytes; the payload can be queried all the same.
	form := "payload=" + url.QueryEscape(`{"ref":"form"}`)
	require.Equal(
		t,
		"accepted",
		s.deliver(
			t,
			"github",
			github(form, "Content-Type", "application/x-www-form-urlencoded", "X-GitHub-Delivery", "form"),
		).status(),
	)
	require.Equal(t, "form", value[string](t, s.db, "select payload->>'ref' from spine.events where event_id = 'form'"))
	require.Equal(
		t,
		form,
		value[string](t, s.db, "select convert_from(raw_body, 'UTF8') from spine.events where event_id = 'form'"),
	)

	// XML and bytes.
	require.Equal(
		t,
		"accepted",
		s.deliver(t, "github", github("<a/>", "Content-Type", "text/xml", "X-GitHub-Delivery", "xml")).status(),
	)
	require.Equal(
		t,
		"accepted",
		s.deliver(
			t,
			"github",
			github("\x00\xff", "Content-Type", "application/octet-stream", "X-GitHub-Delivery", "bytes"),
		).status(),
	)
	require.Equal(
		t,
		"\\x00ff",
		value[string](
			t,
			s.db,
			"select raw_body::text from spine.events where event_id = 'bytes' and payload is null and unqueryable is not null",
		),
	)

	// Compressed: the signature covers the bytes on the wire.
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, err := w.Write([]byte(`{"zip":1}`))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.Equal(
		t,
		"accepted",
		s.deliver(
			t,
			"github",
			github(zipped.String(), "Content-Encoding", "gzip", "X-GitHub-Delivery", "zip"),
		).status(),
	)
	require.Equal(
		t,
		`{"zip":1}`,
		value[string](t, s.db, "select payload::text from spine.events where event_id = 'zip'"),
	)

	// No id at all: one is made of the body.
	require.Equal(t, "accepted", s.deliver(t, "github", github(`{"no":"id"}`)).status())
	require.Equal(t, "deduplicated", s.deliver(t, "github", github(`{"no":"id"}`)).status())
	require.Equal(
		t,
		1,
		value[int](t, s.db, "select count(*) from spine.events where id_derived and event_id like 'sha256:%'"),
	)

	// Headers are kept, but for secrets.
	r := github(
		`{}`,
		"X-GitHub-Delivery",
		"headers",
		"Authorization",
		"Bearer hidden-thing",
		"Cookie",
		"a=hidden-thing",
		"X-Custom",
		"shown",
	)
	require.Equal(t, "accepted", s.deliver(t, "github", r).status())
	headers := value[string](t, s.db, "select headers::text from spine.events where event_id = 'headers'")
	require.Contains(t, headers, "shown")
	require.NotContains(t, headers, "hidden-thing")

	// Each attempt of Stripe counts down what is pending; another amount is a conflict.
	stripe := newProvider(t, s, "stripe", func(c *source.Config) { c.Conflicts = "refuse" })
	post := func(pending, amount int) reply {
		r := &event.Request{
			Method: http.MethodPost,
			Header: http.Header{"Content-Type": {"application/json"}},
			Wire: fmt.Appendf(
				nil,
				`{"id":"evt_1","type":"a","created":1706616000,"pending_webhooks":%d,"amount":%d}`,
				pending,
				amount,
			),
		}
		require.NoError(t, stripe.sender(1).Sign(r, time.Now()))
		return s.deliver(t, "stripe", r)
	}
	require.Equal(t, "accepted", post(2, 1).status())
	require.Equal(t, "deduplicated", post(1, 1).status())
	conflict := post(0, 2)
	require.Equal(t, http.StatusConflict, conflict.code)
	require.Contains(t, string(conflict.body), `"status":"conflict"`)
	require.Equal(
		t,
		"2024-01-30 12:00:00+00",
		value[string](
			t,
			s.db,
			"select (occurred_at at time zone 'UTC')::text || '+00' from spine.events where event_id = 'evt_1'",
		),
	)
	require.Equal(
		t,
		[]string{"/amount", "/pending_webhooks"},
		rows(
			t,
			s,
			"select d->>'path' from spine.conflicting, json_array_elements(differences) d where event_id = 'evt_1'",
		),
	)
	require.Regexp(t, "^evt_1~[0-9a-f]{8}$", value[string](t, s.db, "select spine.accept_conflict('evt_1')"))
	require.Equal(t, 2, value[int](t, s.db, "select count(*) from spine.processing_state where event_id like 'evt_1%'"))

	// A time that is none, or too far away, is the sender's fault and no event.
	timed := newProvider(t, s, "standard-webhooks", nil)
	for _, junk := range []string{
		"",
		"x",
		"-1",
		"1e9",
		"9223372036854775807",
		"9223372036854775808",
		"1706616000.5",
		" 1",
	} {
		r := timed.sample(1, time.Now())
		r.Header.Set("Webhook-Timestamp", junk)
		require.Equal(t, http.StatusUnauthorized, s.deliver(t, "standard-webhooks", r).code, "%q", junk)
	}
	twice := timed.sample(1, time.Now())
	twice.Header.Add("Webhook-Id", "another")
	require.Equal(t, http.StatusBadRequest, s.deliver(t, "standard-webhooks", twice).code)

	// What no JSON is allowed to be, and what no id may be, from a provider too.
	for body, code := range map[string]int{
		`{"id":"a","type":"t","x":1e400000}`:                                 http.StatusUnprocessableEntity,
		`{"id":"a","id":"b"}`:                                                http.StatusUnprocessableEntity,
		`{"id":"a\u0000"}`:                                                   http.StatusUnprocessableEntity,
		`{"id":"` + strings.Repeat("a", 256) + `"}`:                          http.StatusUnprocessableEntity,
		`{"id":` + strings.Repeat("[", 600) + strings.Repeat("]", 600) + `}`: http.StatusUnprocessableEntity,
		`{"id":"a"`:                         http.StatusBadRequest,
		"":                                  http.StatusBadRequest,
		"\ufeff\ufeff{}":                    http.StatusBadRequest,
		`{"id":"nul","x":"\u0000"}`:         http.StatusOK,
		`{"id":"half","x":"\ud800"}`:        http.StatusOK,
		"{\"id\":\"bytes\",\"x\":\"\xff\"}": http.StatusOK,
		`{"id":"twice","x":1,"x":2}`:        http.StatusOK,
	} {
		r := &event.Request{
			Method: http.MethodPost,
			Header: http.Header{"Content-Type": {"application/json"}},
			Wire:   []byte(body),
		}
		require.NoError(t, stripe.sender(1).Sign(r, time.Now()))
		require.Equal(t, code, s.deliver(t, "stripe", r).code, "%.60q", body)
	}
	require.Equal(
		t,
		4,
		value[int](
			t,
			s.db,
			`select count(*) from spine.events
			where source = 'stripe' and event_id in ('nul', 'half', 'bytes', 'twice')
				and payload is null and unqueryable is not null`,
		),
	)

	// Slack asks first, signed.
	slack := newProvider(t, s, "slack", nil)
	ask := &event.Request{
		Method: http.MethodPost,
		Header: http.Header{"Content-Type": {"application/json"}},
		Wire:   []byte(`{"type":"url_verification","challenge":"c-1"}`),
	}
	require.Equal(t, http.StatusUnauthorized, s.deliver(t, "slack", ask).code)
	require.NoError(t, slack.sender(1).Sign(ask, time.Now()))
	answer := s.deliver(t, "slack", ask)
	require.Equal(t, http.StatusOK, answer.code)
	require.JSONEq(t, `{"challenge":"c-1"}`, string(answer.body))
	require.Zero(t, value[int](t, s.db, "select count(*) from spine.events where source = 'slack'"))
}

func rows(t *testing.T, s *target, query string) (all []string) {
	t.Helper()
	found, err := s.db.Query(t.Context(), query)
	require.NoError(t, err)
	defer found.Close()
	for found.Next() {
		var one string
		require.NoError(t, found.Scan(&one))
		all = append(all, one)
	}
	require.NoError(t, found.Err())
	return all
}

// A rejected request is kept, and is stored by a replay after the secret was corrected.
func TestRejectedRequestsAreTakenIn(t *testing.T) {
	t.Parallel()
	s := startService(t, service.Roles{API: true}, databases.New(t))
	p := newProvider(t, s, "github", func(c *source.Config) { c.Rejected.Rows = 5 })
	_, wrong := secretOf("github", 2)
	_, right := secretOf("github", 1)
	p.write("secret", wrong) // read again within a second
	require.Eventually(
		t,
		func() bool { return s.deliver(t, "github", p.sample(2, time.Now())).code == http.StatusOK },
		patience,
		50*time.Millisecond,
	)
	r := p.sample(1, time.Now())
	require.Equal(t, http.StatusUnauthorized, s.deliver(t, "github", r).code)
	for range 20 {
		require.Equal(t, http.StatusUnauthorized, s.request(t, http.MethodPost, "/webhook/github", "{}").code)
	}
	like := "from spine.rejected_like('" + r.Header.Get("X-GitHub-Delivery") + "')"
	await(t, s.db, 1, "select count(*) "+like)
	await(t, s.db, 5, "select count(*) from spine.rejected_requests where source = 'github'")
	time.Sleep(time.Second) // in which more might be kept
	require.Equal(t, 5, value[int](t, s.db, "select count(*) from spine.rejected_requests where source = 'github'"))
	// A flood with another cause does not push it out. One with the same cause would.
	p.c.Rejected.Rows = 1000
	p.put(s)
	id := value[int64](t, s.db, "select id "+like)
	replay := func() string {
		execute(t, s.db, "select spine.replay_rejected($1::bigint)", id)
		await(t, s.db, 0, "select count(*) from spine.rejected_requests where state = 'requested'")
		return value[string](t, s.db, "select state from spine.rejected_requests where id = $1", id)
	}
	require.Equal(t, event.RejectedAgain, replay())
	p.write("secret", right)
	require.Eventually(
		t,
		func() bool { return s.deliver(t, "github", p.sample(1, time.Now())).code == http.StatusOK },
		patience,
		50*time.Millisecond,
	)
	require.Equal(t, event.RejectedTakenIn, replay())
	require.Equal(
		t,
		r.Header.Get("X-GitHub-Delivery")+"/1",
		value[string](t, s.db, "select event_id from spine.rejected_requests where id = $1", id),
	)
	require.Equal(
		t,
		string(r.Wire),
		value[string](
			t,
			s.db,
			`select e.payload::text from spine.events e
			join spine.rejected_requests r on r.event_id = e.event_id
			where r.id = $1`,
			id,
		),
	)

	// Trace looks among them for an id that never came.
	require.Equal(
		t,
		1,
		value[int](t, s.db, "select count(*) from spine.rejected_like($1)", r.Header.Get("X-GitHub-Delivery")),
	)
}

// TestChangesUnderLoad changes a source under constant load, on two processes. Each answer is one that the settings
// allow. A change holds within a second.
func TestChangesUnderLoad(t *testing.T) {
	t.Parallel()
	perSecond := 300
	if testing.Short() {
		perSecond = 100
	}
	if given := os.Getenv("SPINE_TEST_LOAD"); given != "" {
		n, err := strconv.Atoi(given)
		require.NoError(t, err)
		perSecond = n
	}
	database := databases.New(t)
	one, two := startService(t, service.Roles{API: true}, database), startService(t, service.Roles{API: true}, database)
	p := newProvider(t, one, "github", nil)
	two.awaitSource(t, "github")
	_, second := secretOf("github", 2)
	p.write("second", second)

	// A request is right or wrong by the settings at the time it is sent. Around a change both answers are right.
	var mu sync.Mutex
	allowed := map[int]bool{http.StatusOK: true} // codes of requests signed with the first secret
	var wrong []string
	var sent atomic.Int64
	start := time.Now()
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	queue := make(chan struct{}, 100)
	load.Go(func() {
		defer close(queue)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		began := time.Now()
		for n := 0; ; {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			// By the clock: a ticker drops ticks when it is late.
			for due := int(time.Since(began).Seconds() * float64(perSecond)); n < due; n++ {
				select {
				case queue <- struct{}{}:
				default: // the machine is too slow for this rate
				}
			}
		}
	})
	sender := p.sender(1)
	for i := range 32 {
		s := []*target{one, two}[i%2]
		load.Go(func() {
			for range queue {
				r, err := sender.Sample(time.Now())
				if err != nil {
					continue
				}
				var header []string
				for name := range r.Header {
					header = append(header, name, r.Header.Get(name))
				}
				mu.Lock()
				before := fmt.Sprint(allowed)
				ok := map[int]bool{}
				for code := range allowed {
					ok[code] = true
				}
				mu.Unlock()
				answer, err := s.do(
					context.WithoutCancel(ctx),
					http.MethodPost,
					"/webhook/github",
					bytes.NewReader(r.Wire),
					header...)
				if err != nil {
					mu.Lock()
					wrong = append(wrong, err.Error())
					mu.Unlock()
					continue
				}
				sent.Add(1)
				mu.Lock()
				if !ok[answer.code] && !allowed[answer.code] {
					wrong = append(wrong, fmt.Sprintf("%d where %s", answer.code, before))
				}
				mu.Unlock()
			}
		})
	}
	change := func(what string, during, after []int, do func()) {
		set := func(codes []int) {
			mu.Lock()
			defer mu.Unlock()
			allowed = map[int]bool{}
			for _, code := range codes {
				allowed[code] = true
			}
		}
		set(during)
		do()
		// It holds within a second, or later on a busy machine.
		for _, s := range []*target{one, two} {
			require.Eventually(
				t,
				func() bool { return slices.Contains(after, s.deliver(t, "github", p.sample(1, time.Now())).code) },
				patience,
				10*time.Millisecond,
			)
		}
		set(after)
		time.Sleep(700 * time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		require.Empty(t, wrong, what)
	}
	const ok, no, off = http.StatusOK, http.StatusUnauthorized, http.StatusServiceUnavailable
	const many = http.StatusTooManyRequests
	time.Sleep(500 * time.Millisecond)
	change("rotated: the first holds on", []int{ok}, []int{ok}, func() {
		execute(t, one.db, "select spine.rotate_source('github', $1, '1 hour')", "file:"+p.path("second"))
	})
	change("the first is over", []int{ok, no}, []int{no}, func() {
		execute(t, one.db, "select spine.rotate_source('github', $1, '0')", "file:"+p.path("second"))
	})
	change("back", []int{ok, no}, []int{ok}, func() { p.put(one) })
	change(
		"disabled",
		[]int{ok, off},
		[]int{off},
		func() { execute(t, one.db, "select spine.disable_source('github')") },
	)
	change("enabled", []int{ok, off}, []int{ok}, func() { execute(t, one.db, "select spine.enable_source('github')") })
	change("limited", []int{ok, many}, []int{ok, many}, func() {
		p.c.Limits = source.Limits{Rate: 5, Burst: 5}
		p.put(one)
	})
	time.Sleep(2 * time.Second) // the limit is in force in both
	stored, began := value[int](t, one.db, "select count(*) from spine.events"), time.Now()
	time.Sleep(2 * time.Second)
	stored = value[int](t, one.db, "select count(*) from spine.events") - stored
	require.LessOrEqual(t, float64(stored), 2*5*time.Since(began).Seconds()+10, "5 a second and process")
	stop()
	load.Wait()
	require.Empty(t, wrong)
	t.Logf(
		"%d requests answered as they should be, %.0f/s",
		sent.Load(),
		float64(sent.Load())/time.Since(start).Seconds(),
	)
}

// TestFlood sends unsigned requests beside signed ones. The signed ones come through, and neither memory nor the
// table grows. The flood is as fast as Spine answers it. A process makes it that yields to all others, as if it came
// from elsewhere. So only its effect on Spine counts, not its own cost.
func TestFlood(t *testing.T) {
	t.Parallel()
	count, samples := 5_000, 200
	if testing.Short() {
		count = 2_000
	}
	if given := os.Getenv("SPINE_TEST_FLOOD"); given != "" {
		n, err := strconv.Atoi(given)
		require.NoError(t, err)
		count, samples = n, 2_000
	}
	database := databases.New(t)
	api := startProcess(t, quiet("DATABASE_URL="+database), "api")
	s := newTarget(t, api.ready(t), database)
	p := newProvider(t, s, "github", func(c *source.Config) { c.Rejected.Rows = 200 })
	sender := p.sender(1)
	signed := func(more func(n int) bool) (p50, p99 time.Duration) {
		var took []time.Duration
		for more(len(took)) {
			r, err := sender.Sample(time.Now())
			require.NoError(t, err)
			began := time.Now()
			require.Equal(t, "accepted", s.deliver(t, "github", r).status())
			took = append(took, time.Since(began))
			time.Sleep(2 * time.Millisecond)
		}
		return quantile(took, 0.5), quantile(took, 0.99)
	}
	quiet50, quiet99 := signed(func(n int) bool { return n < samples })

	//nolint:gosec // this test binary under another name
	flood := exec.CommandContext(
		t.Context(),
		"nice",
		"-n",
		"19",
		"flood",
		s.url+"/webhook/github",
		strconv.Itoa(count),
	)
	var said bytes.Buffer
	flood.Stdout, flood.Stderr = &said, &said
	began := time.Now()
	require.NoError(t, flood.Start())
	over := make(chan error, 1)
	go func() { over <- flood.Wait() }()
	var ended error
	var early int64 // memory when half of it is over
	loud50, loud99 := signed(func(int) bool {
		if early == 0 && time.Since(began) > time.Duration(count/2)*time.Millisecond {
			early = api.peakMemory(t)
		}
		select {
		case ended = <-over:
			return false
		default:
			return true
		}
	})
	require.NoError(t, ended, said.String())
	rate := float64(count) / time.Since(began).Seconds()
	require.Less(t, rate, 2000.0, "it is slowed down")
	grown := api.peakMemory(t) - early
	await(
		t,
		s.db,
		1,
		fmt.Sprintf(
			`select count(*) from (
				select sum((details->>'count')::bigint) as n from spine.audit_log
				where action = 'request_rejected' and details->>'cause' = 'signature_missing'
			) a
			where n >= %d`,
			count,
		),
	)
	kept := value[int](t, s.db, "select count(*) from spine.rejected_requests")
	require.LessOrEqual(t, kept, 200)
	require.Positive(t, kept)
	if os.Getenv("SPINE_TEST_FLOOD") != "" { // alone, and without the race detector, which multiplies it
		require.Less(t, grown, int64(64<<20))
	}
	t.Logf(
		"%d unsigned requests at %.0f/s; signed p50, p99: %v, %v without and %v, %v beside them, %.2f times; "+
			"%d kept, %d kB of memory, and %d kB more in its second half",
		count,
		rate,
		quiet50,
		quiet99,
		loud50,
		loud99,
		loud99.Seconds()/quiet99.Seconds(),
		kept,
		early>>10,
		grown>>10,
	)
}

// flood posts unsigned requests: its arguments say where and how many.
func flood() {
	const connections = 256
	count, err := strconv.ParseInt(os.Args[2], 10, 64)
	if err != nil {
		panic(err)
	}
	body := `{"x":"` + strings.Repeat("x", 1000) + `"}`
	var left atomic.Int64
	left.Store(count)
	var senders sync.WaitGroup
	for range connections {
		senders.Go(func() {
			// Each has its own pool. A shared one dials ahead, and Spine closes
			// a connection on which no header has come for five seconds.
			client := &http.Client{Transport: &http.Transport{}}
			answered := time.Now()
			for left.Add(-1) >= 0 {
				// On a busy machine this process, which yields to all others, sends a header too late.
				for err := post(client, body); err != nil; err = post(client, body) {
					if time.Since(answered) > patience {
						panic(err)
					}
				}
				answered = time.Now()
			}
		})
	}
	senders.Wait()
}

// post sends one request of the flood, which must be answered with 401. An error says that there was no answer.
func post(client *http.Client, body string) error {
	//nolint:gosec // the test says where
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, os.Args[1], strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	r, err := client.Do(req) //nolint:gosec // the test says where
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r.Body)
	_ = r.Body.Close()
	if err != nil || r.StatusCode != http.StatusUnauthorized {
		panic(fmt.Sprint(r.StatusCode, err))
	}
	return nil
}

func quantile(took []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(took))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// TestNoSecretIsShown uses every preset with its secrets, right and wrong, and
// looks for them wherever anything is written.
func TestNoSecretIsShown(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	set, err := readSettings("DATABASE_URL="+database, "LOG_LEVEL=debug")
	require.NoError(t, err)
	var log lockedBuffer
	p, err := service.New(t.Context(), &set, service.Roles{API: true}, "test", set.Log.Logger(&log))
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	s := newTarget(t, p.URL(), database)
	s.awaitReady(t)

	secrets := []string{"verify-word-of-meta"}
	for _, preset := range source.Presets() {
		if preset == "envelope" || preset == "none" {
			continue
		}
		p := newProvider(t, s, preset, nil)
		for seed := range byte(2) {
			signs, verifies := secretOf(preset, seed+1)
			secrets = append(secrets, signs)
			if preset != "discord" { // its key is public
				secrets = append(secrets, verifies)
			}
			s.deliver(t, preset, p.sample(seed+1, time.Now()))
		}
		s.request(
			t,
			http.MethodGet,
			"/webhook/"+preset+"?hub.mode=subscribe&hub.verify_token=verify-word-of-meta&hub.challenge=1",
			"",
		)
	}
	_, err = s.do(
		t.Context(),
		http.MethodPost,
		"/webhook/bearer?token="+secrets[1],
		strings.NewReader("x"),
		"Authorization",
		"Bearer "+secrets[1],
	)
	require.NoError(t, err)
	execute(t, s.db, "select spine.replay_rejected(null::text)")
	await(t, s.db, 0, "select count(*) from spine.rejected_requests where state = 'requested'")

	shown := map[string]string{}
	for _, path := range []string{
		"/api/sources",
		"/api/rejected?limit=1000",
		"/api/audit?limit=1000",
		"/api/events?limit=1000",
		"/api/conflicts",
		"/api/presets",
		"/metrics",
		"/api/overview",
	} {
		r := s.request(t, http.MethodGet, path, "")
		require.Equal(t, http.StatusOK, r.code, path)
		shown[path] = string(r.body)
	}
	ids := value[int64](t, s.db, "select max(id) from spine.rejected_requests")
	for id := range ids {
		shown[fmt.Sprintf("/api/rejected/%d", id+1)] = string(
			s.request(t, http.MethodGet, fmt.Sprintf("/api/rejected/%d", id+1), "").body,
		)
	}
	stop()
	require.NoError(t, <-ended)
	shown["the log"] = log.String()
	if dump, err := exec.LookPath("pg_dump"); err == nil {
		//nolint:gosec // the dump of this test's database
		text, err := exec.CommandContext(
			t.Context(),
			dump,
			"--data-only",
			database,
		).Output()
		if err == nil { // one that is older than the server refuses
			shown["a dump"] = string(text)
		}
	}
	require.NotEmpty(t, shown["the log"])
	for where, text := range shown {
		for _, hidden := range secrets {
			_, bare, prefixed := strings.Cut(hidden, "whsec_")
			if prefixed {
				require.NotContains(t, text, bare, where)
			}
			require.NotContains(t, text, hidden, where)
			require.NotContains(t, text, base64.StdEncoding.EncodeToString([]byte(hidden)), where)
		}
	}
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// The API for sources, over HTTP and with both tokens.
func TestSourcesAPI(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startService(
		t, service.Roles{API: true}, databases.New(t),
		"ADMIN_TOKEN=admin-1-of-sixteen", "ADMIN_READ_TOKEN=reader-1-of-sixteen", "SECRET_DIR="+dir,
	)
	admin := []string{"Authorization", "Bearer admin-1-of-sixteen"}
	reader := []string{"Authorization", "Bearer reader-1-of-sixteen"}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "s"), []byte("very-secret"), 0o600))
	settings := `{"preset":"github","secrets":["file:` + filepath.Join(dir, "s") + `"]}`

	require.Equal(
		t,
		http.StatusForbidden,
		s.request(t, http.MethodPut, "/api/sources/github", settings, reader...).code,
	)
	require.Equal(t, http.StatusUnauthorized, s.request(t, http.MethodPut, "/api/sources/github", settings).code)
	r := s.request(t, http.MethodPut, "/api/sources/github", settings, admin...)
	require.Equal(t, http.StatusOK, r.code, "%s", r.body)
	require.Contains(t, string(r.body), `"change":"added"`)
	s.awaitSource(t, "github")
	require.Contains(
		t,
		string(s.request(t, http.MethodPut, "/api/sources/github", settings, admin...).body),
		`"change":"unchanged"`,
	)
	for body, field := range map[string]string{
		`{"preset":"githb"}`:                            "preset",
		`{"preset":"github","secrets":["very-secret"]}`: "secrets[0]",
		`{"preset":"github","x":1}`:                     "x",
		`[]`:                                            "",
		// A1, A2: the API says at once which setting allows a secret.
		`{"preset":"github","secrets":["env:DATABASE_URL"]}`:                               "a setting of Spine itself",
		`{"preset":"github","secrets":["env:ADMIN_TOKEN"]}`:                                "a setting of Spine itself",
		`{"preset":"github","secrets":["env:HOME"]}`:                                       "SECRET_ENV allows only",
		`{"preset":"github","secrets":["file:/etc/shadow"]}`:                               "SECRET_DIR allows only",
		`{"preset":"github","secrets":["file:/proc/self/environ"]}`:                        "SECRET_DIR allows only",
		`{"preset":"meta","secrets":["env:A_SIGNING_SECRET"],"verify_token":"env:PGUSER"}`: "verify_token",
	} {
		r := s.request(t, http.MethodPut, "/api/sources/github", body, admin...)
		require.Equal(t, http.StatusUnprocessableEntity, r.code, "%s", r.body)
		require.Contains(t, string(r.body), field)
		require.NotContains(t, string(r.body), "very-secret")
	}
	require.Equal(
		t,
		http.StatusUnprocessableEntity,
		s.request(t, http.MethodPut, "/api/sources/No-Slug", settings, admin...).code,
	)
	require.Equal(t, http.StatusOK, s.request(t, http.MethodGet, "/api/sources", "", reader...).code)
	one := s.request(t, http.MethodGet, "/api/sources/github", "", reader...)
	require.Contains(t, string(one.body), `"state":"verified"`)
	require.Contains(t, string(one.body), "/webhook/github")
	require.Equal(t, http.StatusNotFound, s.request(t, http.MethodGet, "/api/sources/nobody", "", reader...).code)

	sample := s.request(t, http.MethodPost, "/api/sources/github/sample", "", admin...)
	require.Equal(t, http.StatusOK, sample.code, "%s", sample.body)
	require.Contains(t, string(sample.body), `"status":"accepted"`)
	require.Equal(
		t,
		http.StatusForbidden,
		s.request(t, http.MethodPost, "/api/sources/github/sample", "", reader...).code,
	)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "t"), []byte("other-secret"), 0o600))
	rotated := s.request(
		t,
		http.MethodPost,
		"/api/sources/github/rotate",
		`{"secret":"file:`+filepath.Join(dir, "t")+`","keep_seconds":60}`,
		admin...)
	require.Equal(t, http.StatusOK, rotated.code, "%s", rotated.body)
	require.Contains(t, string(rotated.body), `"until"`)
	require.Equal(
		t,
		http.StatusUnprocessableEntity,
		s.request(t, http.MethodPost, "/api/sources/github/rotate", `{"secret":"other-secret"}`, admin...).code,
	)

	require.Equal(
		t,
		http.StatusUnauthorized,
		s.request(
			t,
			http.MethodPost,
			"/webhook/github",
			`{"id":"looked-for"}`,
			"Content-Type",
			"application/json",
		).code,
	)
	await(t, s.db, 2, "select count(*) from spine.rejected_requests") // one is of waiting for the source
	require.Contains(
		t,
		string(s.request(t, http.MethodGet, "/api/rejected?source=github&cause=signature_missing", "", reader...).body),
		`"state":"kept"`,
	)
	id := value[int64](t, s.db, "select id from spine.rejected_like('looked-for')")
	path := fmt.Sprintf("/api/rejected/%d", id)
	require.Contains(t, string(s.request(t, http.MethodGet, path, "", reader...).body), "looked-for")
	require.Equal(t, http.StatusForbidden, s.request(t, http.MethodPost, path+"/replay", "", reader...).code)
	require.Equal(t, http.StatusOK, s.request(t, http.MethodPost, path+"/replay?trust=1", "", admin...).code)
	await(t, s.db, 1, "select count(*) from spine.rejected_requests where state = 'taken_in'")
	require.Equal(t, http.StatusNotFound, s.request(t, http.MethodGet, "/api/rejected/999999", "", reader...).code)

	require.Equal(t, http.StatusOK, s.request(t, http.MethodPost, "/api/sources/github/disable", "", admin...).code)
	require.Eventually(
		t,
		func() bool {
			return s.request(t, http.MethodPost, "/webhook/github", "{}").code == http.StatusServiceUnavailable
		},
		patience,
		10*time.Millisecond,
	)
	require.Equal(t, http.StatusOK, s.request(t, http.MethodDelete, "/api/sources/github", "", admin...).code)
	require.Equal(
		t,
		http.StatusUnprocessableEntity,
		s.request(t, http.MethodDelete, "/api/sources/default", "", admin...).code,
	)
	require.Equal(t, []string{
		"source_added", "source_changed", "request_replayed", "source_disabled", "source_removed",
	}, rows(t, s, `
		select action from spine.audit_log
		where source = 'github' and (action like 'source_%' or action = 'request_replayed')
		order by timestamp, id`))
	require.Equal(
		t,
		5,
		value[int](
			t,
			s.db,
			`select count(*) from spine.audit_log
			where source = 'github' and details->>'caller' = '127.0.0.1'
				and action in (
					'source_added', 'source_changed', 'request_replayed', 'source_disabled', 'source_removed')`,
		),
	)
	require.Equal(
		t,
		2,
		value[int](t, s.db, "select count(*) from spine.events where source = 'github'"),
		"its events stay",
	)
}

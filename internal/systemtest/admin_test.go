package systemtest

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/observe"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/service"
)

// startApart runs Spine with a listener of its own for the administration, and returns both addresses. Without more
// settings it is as serve is by default, but for its ports.
func startApart(t *testing.T, r service.Roles, environment ...string) (public, admin *target) {
	t.Helper()
	database := databases.New(t)
	set, err := readSettings(append([]string{
		"DATABASE_URL=" + database, "DESTINATION_URL=none", "LOG_LEVEL=warn",
		"ADMIN_LISTEN=localhost:0", "ADMIN_AUTH=", "DEFAULT_SOURCE=",
	}, environment...)...)
	require.NoError(t, err)
	p, err := service.New(t.Context(), &set, r, "test", set.Log.Logger(t.Output()))
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		assert.NoError(t, <-ended)
	})
	public, admin = newTarget(t, p.URL(), database), newTarget(t, p.AdminURL(), database)
	public.awaitReady(t)
	return public, admin
}

// from sends a request with a Host header, and more header lines.
func (s *target) from(t *testing.T, host, path string, lines ...string) int {
	t.Helper()
	return s.raw(t, "GET "+path+" HTTP/1.1\r\nHost: "+host+"\r\n"+strings.Join(append(lines, "\r\n"), "\r\n")).code
}

var adminPaths = []string{"/api/events", "/api/sources", "/api/stream?max_rows=x", "/dashboard", "/metrics"}

// A3, A4: nothing of the administration is served where webhooks are received, whatever a request looks like. On a
// listener of its own it needs no traces of a proxy, but a Host of this machine.
func TestAdministrationHasAListenerOfItsOwn(t *testing.T) {
	t.Parallel()
	public, admin := startApart(t, both)
	for _, path := range append(adminPaths, "/api", "/api/presets", "/dashboard/app.js") {
		for _, host := range []string{"localhost", "127.0.0.1:8000", "[::1]"} {
			require.Equal(t, http.StatusNotFound, public.from(t, host, path), path)
		}
	}
	r := requireProblem(
		t,
		public.request(t, http.MethodPut, "/api/sources/x", `{"preset":"none"}`),
		http.StatusNotFound,
	)
	require.Contains(t, r.Detail, "ADMIN_LISTEN")
	require.Equal(t, 1, value[int](t, public.db, "select count(*) from spine.sources"))
	for _, path := range []string{"/", "/healthz", "/readyz"} {
		require.Equal(t, http.StatusOK, public.from(t, "spine.example.com", path))
	}

	for _, path := range []string{"/api/events", "/api/sources", "/dashboard", "/metrics"} {
		require.Equal(t, http.StatusOK, admin.from(t, "localhost:8003", path), path)
		require.Equal(t, http.StatusOK, admin.from(t, "127.0.0.1", path, "X-Forwarded-For: 203.0.113.9"), path)
		for _, host := range []string{"evil.example:8003", "127.0.0.1.evil.example", "192.0.2.1", "0.0.0.0"} {
			require.Equal(t, http.StatusForbidden, admin.from(t, host, path), "%s %s", host, path)
		}
	}
	foreign := []string{"Origin", "http://evil.example", "Sec-Fetch-Site", "cross-site"}
	requireProblem(
		t,
		admin.request(t, http.MethodPost, "/api/sources/default/disable", "", foreign...),
		http.StatusForbidden,
	)
	require.Equal(t, http.StatusOK, admin.request(t, http.MethodPost, "/api/sources/default/disable", "").code)
}

// The page's test desk posts to where the page comes from. What it sends is a webhook like any other.
func TestDeskSendsWebhooks(t *testing.T) {
	t.Parallel()
	const token = "a-token-of-sixteen-or-more"
	_, admin := startApart(t, both, "ADMIN_TOKEN="+token, "DEFAULT_SOURCE=open")
	bearer := []string{"Authorization", "Bearer " + token, "Content-Type", "application/json"}
	id := newID("desk")
	require.Equal(t, "accepted", admin.request(t, http.MethodPost, "/webhook", webhook(id, "{}"), bearer...).status())
	requireProblem(t, admin.request(t, http.MethodPost, "/webhook", webhook(id, "{}")), http.StatusUnauthorized)
	r := admin.request(t, http.MethodPost, "/webhook/default", `{"token":1}`, bearer...)
	require.Equal(t, http.StatusUnprocessableEntity, r.code)
	await(t, admin.db, 1, "select count(*) from spine.rejected_requests")
	require.Zero(t, value[int](t, admin.db,
		"select count(*) from spine.rejected_requests where headers::text like '%'||$1||'%'", token))
}

// A worker serves health to everyone, and /metrics by the rules of the administration.
func TestMetricsOfAWorker(t *testing.T) {
	t.Parallel()
	const token, reader = "a-token-of-sixteen-or-more", "a-token-that-only-reads"
	local, _ := startApart(t, service.Roles{Worker: true})
	require.Equal(t, http.StatusOK, local.from(t, "localhost", "/metrics"))
	require.Equal(t, http.StatusForbidden, local.from(t, "evil.example", "/metrics"))
	require.Equal(t, http.StatusNotFound, local.from(t, "localhost", "/api/events"))

	elsewhere := unusedAddress(t)
	reached, _ := startApart(t, service.Roles{Worker: true}, "LISTEN=:0", "METRICS_LISTEN="+elsewhere)
	require.Equal(t, http.StatusOK, reached.from(t, "spine.example.com", "/readyz"))
	require.Equal(t, http.StatusForbidden, reached.from(t, "localhost", "/metrics"), "others reach it too")
	metrics := newTarget(t, "http://"+elsewhere, reached.db.Config().ConnString())
	require.Equal(t, http.StatusOK, metrics.from(t, "prometheus.example.com", "/metrics"))
	require.Equal(t, http.StatusNotFound, metrics.from(t, "prometheus.example.com", "/api/events"))
	require.Equal(t, http.StatusNotFound, metrics.from(t, "prometheus.example.com", "/readyz"))

	guarded, _ := startApart(
		t,
		service.Roles{Worker: true},
		"LISTEN=:0",
		"ADMIN_TOKEN="+token,
		"ADMIN_READ_TOKEN="+reader,
	)
	require.Equal(t, http.StatusUnauthorized, guarded.from(t, "localhost", "/metrics"))
	require.Equal(t, http.StatusOK, guarded.from(t, "spine.example.com", "/metrics", "Authorization: Bearer "+reader))
	require.Equal(t, http.StatusOK, guarded.from(t, "spine.example.com", "/readyz"))
}

// A5: a token that is empty or short stops the start with a reason, and so does an administration that others reach
// without one.
func TestAdministrationThatWouldBeOpenDoesNotStart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		environment []string
		want        string
	}{
		{[]string{"ADMIN_TOKEN="}, "spine: ADMIN_TOKEN: must not be empty"},
		{[]string{"ADMIN_TOKEN=x"}, "spine: ADMIN_TOKEN: must have 16 characters or more"},
		{[]string{"ADMIN_TOKEN=a-token-of-sixteen-or-more,y"}, "spine: ADMIN_TOKEN: must have 16 characters or more"},
		{[]string{"ADMIN_LISTEN=:8003"}, "spine: ADMIN_LISTEN: others than this machine reach"},
		{[]string{"ADMIN_LISTEN=127.0.0.1:8000"}, "spine: ADMIN_LISTEN: must not be the address of LISTEN"},
		{[]string{"ADMIN_LISTEN=same"}, "spine: ADMIN_LISTEN: must not be the address of LISTEN"},
	} {
		for _, command := range []string{"serve", "api"} {
			environment := append(
				[]string{"DATABASE_URL=postgres://db.invalid/x", "DESTINATION_URL=none"},
				c.environment...)
			code, _, stderr := spine(t, environment, command)
			require.Equal(t, 2, code, stderr)
			require.Contains(t, stderr, c.want)
			require.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
		}
	}
}

// Several tokens hold while one replaces another.
func TestTokensRotate(t *testing.T) {
	t.Parallel()
	public, admin := startApart(t, service.Roles{API: true},
		"ADMIN_LISTEN=same", "ADMIN_TOKEN=the-old-token-of-ours, the-new-token-of-ours")
	require.Equal(t, public.url, admin.url)
	for token, want := range map[string]int{
		"the-old-token-of-ours": 200, "the-new-token-of-ours": 200, "another-token-of-ours": 401,
		"the-old-token-of-ours, the-new-token-of-ours": 401,
	} {
		require.Equal(t, want, admin.from(t, "spine.example.com", "/api/events", "Authorization: Bearer "+token), token)
		require.Equal(t, want, admin.from(t, "spine.example.com", "/metrics", "Authorization: Bearer "+token), token)
	}
}

// A6: wrong tokens meet the brake of rejected webhooks, a counter, and sums in the audit log.
func TestWrongTokensAreSlowedCountedAndAudited(t *testing.T) {
	t.Parallel()
	const senders, each, token = 64, 40, "a-token-of-sixteen-or-more"
	_, admin := startApart(t, service.Roles{API: true}, "ADMIN_TOKEN="+token)
	began := time.Now()
	var all sync.WaitGroup
	for range senders {
		all.Go(func() {
			for range each {
				r, err := admin.do(t.Context(), http.MethodGet, "/api/events", nil, "Authorization", "Bearer guess")
				if assert.NoError(t, err) {
					assert.Equal(t, http.StatusUnauthorized, r.code)
				}
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	// 500 at once, then 1,000 a second.
	require.Greater(t, took, 1900*time.Millisecond)

	r := admin.request(t, http.MethodGet, "/metrics", "", "Authorization", "Bearer "+token)
	require.Contains(
		t,
		string(r.body),
		fmt.Sprintf("spine_admin_rejected_total{cause=\"admin_token_wrong\"} %d\n", senders*each),
	)
	require.Contains(t, string(r.body), "spine_admin_rejected_total{cause=\"admin_token_missing\"} 0\n")
	const rows = ` from spine.audit_log where action = 'request_rejected' and details->>'cause' = 'admin_token_wrong'`
	await(t, admin.db, int64(senders*each), "select coalesce(sum((details->>'count')::bigint), 0)::bigint"+rows)
	require.LessOrEqual(t, value[int](t, admin.db, "select count(*)"+rows), 2+int(took/(10*time.Second)))
	require.Equal(t, "failure", value[string](t, admin.db, "select min(success::text)"+rows))
}

// A11: behind a trusted proxy the audit log names the client, and elsewhere nobody can name another.
func TestAuditNamesTheClient(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ trusted, want string }{
		"a trusted proxy": {"127.0.0.0/8,::1", `203.0.113.7 as "ann"`},
		"no proxy":        {"", `127.0.0.1 as "ann"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const token = "a-token-of-sixteen-or-more"
			public, _ := startApart(t, service.Roles{API: true},
				"ADMIN_LISTEN=same", "ADMIN_TOKEN="+token, "TRUSTED_PROXIES="+c.trusted)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, public.url+"/api/sources/x",
				strings.NewReader(`{"preset":"none"}`))
			require.NoError(t, err)
			req.SetBasicAuth("ann", token)
			req.Header.Set("X-Forwarded-For", "198.51.100.1, 203.0.113.7")
			resp, err := public.http.Do(req)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, http.StatusOK, resp.StatusCode)
			require.Equal(t, c.want, value[string](t, public.db,
				"select details->>'caller' from spine.audit_log where action = 'source_added' and source = 'x'"))

			// A10: a token, or nearly one, in the place of the name is not shown.
			for i, user := range []string{
				token + "x", "x" + token, token[:len(token)-1], strings.ToUpper(token),
				base64.StdEncoding.EncodeToString([]byte("u:" + token)), hex.EncodeToString([]byte(token)),
			} {
				source := fmt.Sprintf("y%d", i)
				req := req.Clone(t.Context())
				req.URL.Path, req.Body = "/api/sources/"+source, io.NopCloser(strings.NewReader(`{"preset":"none"}`))
				req.SetBasicAuth(user, token)
				resp, err := public.http.Do(req)
				require.NoError(t, err)
				require.NoError(t, resp.Body.Close())
				require.Equal(t, http.StatusOK, resp.StatusCode)
				require.Equal(t, strings.Replace(c.want, `"ann"`, `"[secret]"`, 1), value[string](
					t,
					public.db,
					"select details->>'caller' from spine.audit_log where action = 'source_added' and source = $1",
					source,
				))
			}
		})
	}
}

// A15: strangers cannot have Spine deliver what they made up, unless somebody has chosen that.
func TestDefaultSourceIsClosed(t *testing.T) {
	t.Parallel()
	public, admin := startApart(t, both)
	for _, path := range []string{"/webhook", "/webhook/default"} {
		r := public.request(t, http.MethodPost, path, webhook("invoice", "{}"), "Content-Type", "application/json")
		require.Contains(t, []int{http.StatusNotFound, http.StatusServiceUnavailable}, r.code)
		require.Contains(t, requireProblem(t, r, r.code).Detail, "DEFAULT_SOURCE=open")
		require.Equal(t, http.StatusServiceUnavailable, public.request(t, http.MethodHead, path, "").code)
	}
	require.Zero(t, value[int](t, public.db, "select count(*) from spine.events"))
	require.Contains(t, string(admin.request(t, http.MethodGet, "/api/sources/default", "").body), `"closed"`)
	require.InDelta(t, 1, admin.metric(t, `spine_sources{state="closed"}`), 0)
	require.Equal(t, http.StatusNotFound, public.request(t, http.MethodHead, "/webhook/nobody", "").code)

	open, _ := startApart(t, both, "DEFAULT_SOURCE=open")
	require.Equal(t, http.StatusOK, open.request(t, http.MethodHead, "/webhook", "").code)
	open.accept(t, newID("open"), "{}")
}

// F11, F14: counters begin at 0, gauges tell of a pause, of depth and of broken sources, and a removed source is gone.
func TestMetricsTellWhatAnOperatorAsks(t *testing.T) {
	t.Parallel()
	s := startService(t, both, databases.New(t), "DESTINATION_URL=http://127.0.0.1:9/")
	for _, series := range []string{
		`spine_delivery_attempts_total{outcome="dead"}`,
		`spine_ingest_events_total{outcome="conflict",source="default"}`,
		`spine_ingest_rejected_total{cause="signature_wrong",status="401"}`,
		`spine_worker_wakes_total{cause="reconnect"}`,
		`spine_stream_rows_total{as="summary"}`,
		`spine_queue_paused{destination="default"}`,
		`spine_queue_events{status="dead"}`,
		`spine_sources{state="broken"}`,
	} {
		// A scrape leaves out the series of the queue while the database is too slow to count it.
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			_, err := s.tryMetric(t.Context(), series)
			require.NoError(c, err, series)
		}, patience, 50*time.Millisecond)
	}

	execute(t, s.db, "select spine.pause()")
	s.accept(t, newID("paused"), "{}")
	execute(
		t,
		s.db,
		`select spine.put_source('gone', '{"preset": "github", "secrets": ["env:NOBODY_WEBHOOK_SECRET"]}')`,
	)
	execute(t, s.db, "select spine.ingest('a', 'a', '{}', _source => 'gone')")
	becomes := func(series string, want float64) {
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			got, err := s.tryMetric(t.Context(), series)
			require.NoError(c, err)
			require.InDelta(c, want, got, 0)
		}, patience, 50*time.Millisecond)
	}
	becomes(`spine_queue_paused{destination="default"}`, 1)
	becomes(`spine_queue_events{status="pending"}`, 2)
	becomes(`spine_sources{state="broken"}`, 1)
	code, stdout, stderr := spine(t, []string{"DATABASE_URL=" + s.db.Config().ConnString()}, "status")
	require.Zero(t, code, stderr)
	require.Regexp(t, `\nbroken +source gone +at \S+: secrets\[0\] `, stdout)
	becomes(`spine_ingest_events_total{outcome="accepted",source="gone"}`, 0)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		_, err := s.tryMetric(t.Context(), `spine_source_last_arrival_timestamp_seconds{source="gone"}`)
		require.NoError(c, err)
	}, patience, 50*time.Millisecond)

	execute(t, s.db, "select spine.remove_source('gone')")
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NotContains(c, string(s.request(t, http.MethodGet, "/metrics", "").body), `source="gone"`)
	}, patience, 50*time.Millisecond)
	becomes(`spine_sources{state="broken"}`, 0)
	execute(t, s.db, "select spine.resume()")
	becomes(`spine_queue_paused{destination="default"}`, 0)
}

// An address of the administration that is taken never stops receiving. It is served when the address is free.
func TestAdminAddressThatIsTaken(t *testing.T) {
	t.Parallel()
	taken, err := observe.Listen(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	address := taken.Addr().String()
	p := startProcess(t, quiet(
		"DATABASE_URL="+databases.New(t), "DESTINATION_URL=none", "ADMIN_AUTH=", "ADMIN_LISTEN="+address), "serve")
	s := &target{url: p.ready(t), http: newClient(t)}
	s.accept(t, newID("received"), "{}")
	p.says(t, "that the address is taken", func(out string) string {
		for line := range strings.Lines(out) {
			if strings.Contains(line, "another process has this address") && strings.Contains(line, address) &&
				strings.Contains(line, `"level":"warn"`) {
				return line
			}
		}
		return ""
	})
	require.NoError(t, taken.Close())
	admin := &target{url: "http://" + address, http: newClient(t)}
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		r, err := admin.do(t.Context(), http.MethodGet, "/api/events", nil)
		require.NoError(c, err)
		require.Equal(c, http.StatusOK, r.code)
	}, patience, 50*time.Millisecond)
}

// said are the lines of a process with a message.
func (p *process) said(t *testing.T, message string) (lines []map[string]any) {
	t.Helper()
	for line := range strings.Lines(p.output()) {
		var entry map[string]any
		if json.Unmarshal([]byte(line), &entry) == nil && entry["message"] == message {
			lines = append(lines, entry)
		}
	}
	return lines
}

// G6, G8: the start says on one line what is on and what is misspelt, and shows no secret. The stop says what is in
// hand.
func TestProcessSaysWhatItDoes(t *testing.T) {
	t.Parallel()
	d := newDestination(t)
	p := startProcess(t, quiet(
		"DATABASE_URL="+databases.New(t),
		"DESTINATION_URL="+d.url+"/hooks/sesame?key=sesame",
		"DESTINATION_SECRET=whsec_"+strings.Repeat(
			"c2VzYW1l",
			4,
		),
		"RETENTION=30d",
		"ADMIN_LISTEN=localhost:0",
		"ADMIN_AUTH=",
		"DESTINATION_SECRT=sesame",
		"RETENTON=30d",
	), "serve")
	s := &target{url: p.ready(t), http: newClient(t)}
	id := newID("held")
	s.accept(t, id, do("hold"))
	d.await(t, id, 1)

	start := p.said(t, "starting")
	require.Len(t, start, 1)
	for member, want := range map[string]any{
		"destination": strings.TrimPrefix(d.url, "http://"), "signed": true, "retention": "720h0m0s",
		"admin_auth": "this machine only", "default_source": "open: anyone may send while it has no secret",
	} {
		require.Equal(t, want, start[0][member], member)
	}
	require.Regexp(t, `^http://(127\.0\.0\.1|\[::1\]):\d+$`, start[0]["admin"])
	warned := p.said(t, "these variables look like settings but are none: they have no effect")
	require.Len(t, warned, 1)
	require.Equal(t, []any{"DESTINATION_SECRT (DESTINATION_SECRET?)", "RETENTON (RETENTION?)"}, warned[0]["variables"])
	require.NotContains(t, p.output(), "sesame")
	require.NotContains(t, p.output(), "c2VzYW1l")

	p.signal(t, syscall.SIGTERM)
	p.says(t, "that it stops", func(out string) string {
		if strings.Contains(out, `"stopping: 1 delivery in hand"`) {
			return out
		}
		return ""
	})
	require.Empty(t, p.said(t, "stopped"))
	d.release()
	require.Zero(t, p.awaitExit(t))
	require.Len(t, p.said(t, "stopped"), 1)
	require.Contains(
		t,
		strings.TrimSpace(p.output())[strings.LastIndex(strings.TrimSpace(p.output()), "\n")+1:],
		"stopped",
	)
}

// ADMIN_AUTH=none is said loudly, and so is what the source default does.
func TestOpenAdministrationIsSaidLoudly(t *testing.T) {
	t.Parallel()
	p := startProcess(
		t,
		quiet("DATABASE_URL="+databases.New(t), "ADMIN_LISTEN=same", "ADMIN_AUTH=none", "DEFAULT_SOURCE="),
		"api",
	)
	p.ready(t)
	loud := p.said(t, "ADMIN_AUTH=none: everyone who reaches this address may read and change everything")
	require.Len(t, loud, 1)
	require.Equal(t, "warn", loud[0]["level"])
	require.Equal(t, "closed until it has a secret", p.said(t, "starting")[0]["default_source"])
	p.signal(t, syscall.SIGTERM)
	require.Zero(t, p.awaitExit(t))
	require.Len(t, p.said(t, "stopping"), 1)
	require.Len(t, p.said(t, "stopped"), 1)
}

// G9: while the database is away, all parts together say one line a second, on one line, with the last cause first.
func TestOutageOfTheDatabaseIsQuiet(t *testing.T) {
	t.Parallel()
	server := postgrestest.Server(t)
	p := startProcess(
		t,
		quiet("DATABASE_URL="+server.URL(), "DESTINATION_URL=http://127.0.0.1:9/", "LEASE_DURATION=2s"),
		"serve",
	)
	s := &target{url: p.ready(t), http: newClient(t)}
	s.accept(t, newID("before"), "{}")
	began, before := time.Now(), len(p.output())
	server.Kill()
	for time.Since(began) < 6*time.Second { // what is sent meanwhile makes parts fail
		_, err := s.do(t.Context(), http.MethodPost, "/webhook", strings.NewReader(webhook(newID("away"), "{}")),
			"Content-Type", "application/json")
		require.NoError(t, err)
		_, err = s.do(t.Context(), http.MethodGet, "/api/events", nil)
		require.NoError(t, err)
	}
	took := time.Since(began)
	said := p.output()[before:]
	var lines []string
	for line := range strings.Lines(said) {
		var entry struct{ Level, Error, Message string }
		require.NoError(t, json.Unmarshal([]byte(line), &entry), line)
		if entry.Level == "info" && entry.Message == "delivery failed, to be tried again" {
			continue // the destination is away too
		}
		lines = append(lines, line)
		require.NotContains(t, entry.Error, "\n")
		require.NotRegexp(t, `^(failed to connect|\w+: )`, entry.Error, "it begins with the cause")
	}
	require.NotEmpty(t, lines)
	require.LessOrEqual(t, len(lines), int(took/time.Second)+2, said)
	require.NoError(t, server.Restart(t.Context()))
	s.awaitReady(t)
}

package systemtest

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/secret"
	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/source"
)

// A1, A2: a source that names what it may not, or whose rules read a credential, is rejected by the API. Put in place
// by hand in psql, it is broken, takes nothing and says which setting would allow it.
func TestSourcesReachNoForeignSecret(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "good"), []byte("a-good-secret"), 0o600))
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "linked")))
	s := startService(t, service.Roles{API: true}, databases.New(t), "SECRET_DIR="+dir)
	const token = `"verify":[{"scheme":"token","header":"X-Tok"}]`
	for name, c := range map[string]struct{ settings, says string }{
		"own":   {`{"preset":"token","secrets":["env:DATABASE_URL"],` + token + `}`, "it is a setting of Spine itself"},
		"libpq": {`{"preset":"token","secrets":["env:PGPASSWORD"],` + token + `}`, "it is a setting of Spine itself"},
		"destination": {
			`{"preset":"token","secrets":["env:DESTINATION_SECRET"],` + token + `}`, "it is a setting of Spine itself",
		},
		"stranger": {`{"preset":"token","secrets":["env:PATH"],` + token + `}`, "SECRET_ENV allows only"},
		"file":     {`{"preset":"bearer","secrets":["file:/etc/shadow"]}`, "SECRET_DIR allows only"},
		"process":  {`{"preset":"bearer","secrets":["file:/proc/self/environ"]}`, "SECRET_DIR allows only"},
		"below":    {`{"preset":"bearer","secrets":["file:` + dir + `/a/b"]}`, "SECRET_DIR allows only"},
		"word": {
			`{"preset":"meta","secrets":["file:good"],"verify_token":"env:DATABASE_URL"}`, "it is a setting of Spine itself",
		},
		"id":    {`{"preset":"token","secrets":["file:good"],` + token + `,"id":["{header:X-Tok}"]}`, "names {header:X-Tok}"},
		"type":  {`{"preset":"bearer","secrets":["file:good"],"type":["{header:Authorization}"]}`, "names {header:Auth"},
		"query": {`{"preset":"bearer","secrets":["file:good"],"id":["{query:token}"]}`, "names {query:token}"},
		"cloud": {
			`{"preset":"token","secrets":["file:good"],"format":"cloudevents","verify":[{"header":"Ce-Id"}]}`, "Ce-Id must not",
		},
	} {
		r := s.request(t, http.MethodPut, "/api/sources/"+name, c.settings)
		require.Equal(t, http.StatusUnprocessableEntity, r.code, "%s: %s", name, r.body)
		require.Contains(t, string(r.body), c.says, name)
		execute(t, s.db, "select spine.put_source($1, $2)", name, c.settings)
		s.awaitSource(t, name)
		var row struct {
			State    string
			Problems []string
		}
		require.NoError(t, json.Unmarshal(s.request(t, http.MethodGet, "/api/sources/"+name, "").body, &row))
		require.Contains(t, strings.Join(row.Problems, " "), c.says, name)
		if name == "word" { // the good secret serves
			require.Equal(t, "verified", row.State)
			continue
		}
		require.Equal(t, "broken", row.State, name)
		require.Equal(
			t,
			http.StatusConflict,
			s.request(t, http.MethodPost, "/api/sources/"+name+"/sample", "").code,
			name,
		)
		require.Equal(
			t,
			http.StatusServiceUnavailable,
			s.request(t, http.MethodPost, "/webhook/"+name, "{}").code,
			name,
		)
	}
	// What only reading tells is told in the state.
	r := s.request(t, http.MethodPut, "/api/sources/linked", `{"preset":"bearer","secrets":["file:linked"]}`)
	require.Equal(t, http.StatusOK, r.code, "%s", r.body)
	s.awaitSource(t, "linked")
	require.Contains(t, string(s.request(t, http.MethodGet, "/api/sources/linked", "").body), "leads out of SECRET_DIR")
	r = s.request(t, http.MethodPost, "/api/sources/word/rotate", `{"secret":"env:DATABASE_URL"}`)
	require.Equal(t, http.StatusUnprocessableEntity, r.code, "%s", r.body)
	require.Contains(t, string(r.body), "it is a setting of Spine itself")
	require.Zero(t, value[int](t, s.db, "select count(*) from spine.events"))
}

// repeats is a destination that answers the first attempts at an event with what it was sent. The others go on to
// another address.
func repeats(t *testing.T, to string) (address string) {
	t.Helper()
	backend, err := url.Parse(to)
	require.NoError(t, err)
	onward := httputil.NewSingleHostReverseProxy(backend)
	var mu sync.Mutex
	attempts := map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		attempts[r.Header.Get("Webhook-Id")]++
		attempt := attempts[r.Header.Get("Webhook-Id")]
		mu.Unlock()
		_, password, _ := r.BasicAuth()
		sent := fmt.Sprintf("%s %s %q", r.Header.Get("Authorization"), password, r.RequestURI)
		switch attempt {
		case 1:
			http.Error(w, sent, http.StatusInternalServerError)
		case 2:
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = io.WriteString(conn, "HTTX "+sent+"\r\n\r\n")
				_ = conn.Close()
			}
		default:
			r.Header.Del("Authorization")
			r.URL.Path, r.URL.RawQuery = "/third_party/mock", ""
			onward.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// Issue 16, Build 1: no eight bytes of any secret are in any column, log line, metric, answer or delivery, plain or
// encoded, whatever senders send where.
func TestEveryByteOfEverySecret(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	dir := t.TempDir()
	d := newDestination(t)
	random := func(n int) string {
		b := make([]byte, n)
		_, _ = rand.Read(b) // it never fails
		return base64.RawURLEncoding.EncodeToString(b)
	}
	destinationKey := make([]byte, 32)
	_, _ = rand.Read(destinationKey)
	signing := "whsec_" + base64.StdEncoding.EncodeToString(destinationKey)
	password, token, key := random(30), random(30), random(30)
	set, err := readSettings(
		"DATABASE_URL="+database,
		"LOG_LEVEL=trace",
		"SECRET_DIR="+dir,
		"DESTINATION_URL=http://ops:"+password+"@"+strings.TrimPrefix(repeats(t, d.url), "http://")+
			"/third_party/mock/"+token+"?key="+key,
		"DESTINATION_SECRET="+signing,
		"INITIAL_RETRY_DELAY=1ms",
	)
	require.NoError(t, err)
	var log lockedBuffer
	p, err := service.New(t.Context(), &set, both, "test", set.Log.Logger(&log))
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	s := newTarget(t, p.URL(), database)
	s.awaitReady(t)

	secrets := map[string]string{
		"DESTINATION_SECRET": signing, "the password": password, "the path": token, "the query": key,
	}
	for name, c := range map[string]struct{ settings, form string }{
		"hmac": {`"preset":"hmac","verify":[{"header":"X-Sig"}]`, "%s"},
		"token": {
			`"preset":"token","verify":[{"header":"X-Tok"}],"id":["{header:X-Id}"],"type":["{header:X-Type}"]`, "%s",
		},
		"bearer":      {`"preset":"bearer","id":["{header:X-Id}"]`, "%s"},
		"basic":       {`"preset":"basic","id":["{query:id}"]`, "user:%s"},
		"cloudevents": {`"preset":"cloudevents"`, "%s"},
		"meta":        {`"preset":"meta","verify_token":"file:meta-word"`, "%s"},
		"twilio":      {`"preset":"twilio","url":"https://hooks.example.com/webhook/twilio"`, "%s"},
		"standard":    {`"preset":"standard-webhooks"`, "whsec_%s"},
	} {
		text := fmt.Sprintf(c.form, random(30))
		if name == "standard" {
			text = "whsec_" + base64.StdEncoding.EncodeToString([]byte(random(24)))
		}
		bare := bareSecret(text)
		secrets[name] = text
		for file, content := range map[string]string{name: text, name + "-word": random(30)} {
			secrets[file] = content
			require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600))
		}
		settings := `{` + c.settings + `,"secrets":["file:` + name + `"]}`
		execute(t, s.db, "select spine.put_source($1, $2)", name, settings)
		s.awaitSource(t, name)
		parsed, err := source.ParseConfig([]byte(settings))
		require.NoError(t, err)
		sender, err := source.Compile(name, parsed, func(ref string) (secret.Value, error) {
			return secret.New(secrets[strings.TrimPrefix(ref, "file:")]), nil
		})
		require.NoError(t, err)
		sample := func() *event.Request {
			r, err := sender.Sample(time.Now())
			require.NoError(t, err)
			return r
		}
		require.Equal(t, "accepted", s.deliver(t, name, sample()).status(), name)
		require.Equal(t, http.StatusOK, s.request(t, http.MethodPost, "/api/sources/"+name+"/sample", "").code)
		// A sender that sends its secret everywhere, right and wrong.
		for i := range 3 {
			r := sample()
			for _, header := range []string{"X-Id", "X-Type", "X-Request-Id", "Cookie", "X-Api-Key", "X-Auth", "User-Agent"} {
				r.Header.Set(header, text)
			}
			r.Header.Set("Referer", "https://a.example/?sig="+text)
			r.Header.Set("X-Other", base64.StdEncoding.EncodeToString([]byte(text)))
			r.Header.Set("X-Hex", hex.EncodeToString([]byte(text)))
			r.Header.Set("X-Of-Spine", "is it "+signing+"?")
			// A10: in odd places, too.
			user := base64.StdEncoding.EncodeToString([]byte("u:" + bare))
			r.Header["X-Odd"] = []string{
				user, "//u:" + bare + "@h", "token=" + text, "bearer:" + text, `{"access_token":"` + text + `"}`,
				"a;jsessionid=" + text, "https://h/?a=" + url.QueryEscape(url.QueryEscape(text)),
			}
			if name != "standard" { // its secret is no name
				r.Header.Set(bare, "1")
			}
			if i > 0 {
				r.Wire = append(r.Wire[:len(r.Wire):len(r.Wire)], ' ')
			}
			if i > 1 {
				r.Header.Set(parsedHeader(t, parsed), text+"-wrong")
			}
			if name != "twilio" { // it signs the query
				r.URL.RawQuery = "id=" + text + "&code=" + text + "&x=" + text + "&" + text + "=&" + user + "&z=" +
					url.QueryEscape(signing)
			}
			s.deliver(t, name, r)
		}
		if name != "standard" {
			s.request(t, bare, "/webhook/"+name, "{}") // a method may have any name
		}
		s.request(t, http.MethodPut, "/webhook/"+name+"?"+text, "{}")
		s.request(t, http.MethodPut, "/webhook/"+name+"?token="+text, "{}", "Authorization", "Bearer "+text)
		s.request(t, http.MethodGet,
			"/webhook/"+name+"?hub.mode=subscribe&hub.challenge=1&hub.verify_token="+secrets[name+"-word"], "")
		s.request(t, http.MethodGet, "/api/events?x="+text, "", "Authorization", "Bearer "+text)
	}
	await(t, s.db, 0, "select count(*) from spine.processing_state where status <> 'completed'")
	// They are kept a little later, and replayed then.
	await(t, s.db, true, "select count(*) > 0 from spine.rejected_requests")
	execute(t, s.db, "select spine.replay_rejected(null::text)")
	await(t, s.db, 0, "select count(*) from spine.rejected_requests where state = 'requested'")

	shown := map[string]string{}
	for _, table := range rows(t, s, `select c.oid::regclass::text from pg_class c
		where c.relnamespace = 'spine'::regnamespace and c.relkind in ('r', 'p', 'v')`) {
		shown[table] = strings.Join(rows(t, s, "select t::text from "+table+" t"), "\n")
	}
	for _, path := range []string{
		"/api/sources", "/api/rejected?limit=1000", "/api/audit?limit=1000", "/api/events?limit=1000", "/api/processing",
		"/api/conflicts", "/api/presets", "/metrics", "/api/overview",
	} {
		r := s.request(t, http.MethodGet, path, "")
		require.Equal(t, http.StatusOK, r.code, path)
		shown[path] = string(r.body)
	}
	for id := range value[int64](t, s.db, "select max(id) from spine.rejected_requests") {
		path := fmt.Sprintf("/api/rejected/%d", id+1)
		shown[path] = string(s.request(t, http.MethodGet, path, "").body)
	}
	stop()
	require.NoError(t, <-ended)
	shown["the log"] = log.String() + fmt.Sprintf("%+v %#v %v", set, set, &set)
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, all := range d.got {
		for _, got := range all {
			shown["a delivery"] += fmt.Sprintf("%s %v %s\n", id, got.header, got.body)
		}
	}
	require.Contains(t, shown["spine.events"]+shown["events"], "application/json")
	require.Contains(t, shown["a delivery"], "Webhook-Signature")
	require.NotEmpty(t, log.String())
	lower := map[string]string{}
	for where, all := range shown {
		lower[where] = strings.ToLower(all)
	}
	const window = 8
	for name, text := range secrets {
		bare := bareSecret(text)
		for _, form := range []string{
			bare,
			hex.EncodeToString([]byte(bare)),
			base64.RawStdEncoding.EncodeToString([]byte(text)),
			base64.RawStdEncoding.EncodeToString([]byte("u:" + bare))[3:],
			strings.ToLower(bare), // as a part of a header's name
		} {
			long := window
			if form != bare {
				long = 2 * window // as many bytes of it, or some more
			}
			for i := range len(form) - long + 1 {
				part := form[i : i+long]
				for where, all := range shown {
					if form == strings.ToLower(bare) {
						all = lower[where]
					}
					if strings.Contains(all, part) {
						at := strings.Index(all, part)
						t.Fatalf("%s of the secret %s is in %s: …%s…", part, name, where,
							all[max(0, at-200):min(len(all), at+len(part)+100)])
					}
				}
			}
		}
	}
}

// bareSecret is a secret without what stands before it in some schemes.
func bareSecret(text string) string {
	return strings.TrimPrefix(strings.TrimPrefix(text, "whsec_"), "user:")
}

// parsedHeader is the header that proves a source's requests.
func parsedHeader(t *testing.T, c source.Config) string {
	t.Helper()
	resolved, err := c.Resolve()
	require.NoError(t, err)
	return resolved.Verify[0].Header[0]
}

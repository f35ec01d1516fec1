package api_test

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/api"
	"github.com/webhookspine/spine/internal/secret"
)

func tokens(texts ...string) (tokens []secret.Value) {
	for _, text := range texts {
		tokens = append(tokens, secret.New(text))
	}
	return tokens
}

func TestGuard(t *testing.T) {
	const token = "correct horse"
	withToken := api.GuardConfig{Tokens: tokens("an older one, still valid", token)}
	here := api.GuardConfig{Local: true}
	bearer := func(value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", value) }
	}
	basic := func(user, password string) func(*http.Request) {
		return func(r *http.Request) { r.SetBasicAuth(user, password) }
	}
	from := func(peer, host string) func(*http.Request) {
		return func(r *http.Request) { r.RemoteAddr, r.Host = peer, host }
	}
	page := func(site, origin string) func(*http.Request) {
		return func(r *http.Request) {
			from("127.0.0.1:4711", "localhost:8000")(r)
			r.Method = http.MethodPost
			r.Header.Set("Origin", origin)
			if site != "" {
				r.Header.Set("Sec-Fetch-Site", site)
			}
		}
	}
	through := func(name string) func(*http.Request) {
		return func(r *http.Request) {
			from("127.0.0.1:4711", "localhost:8000")(r)
			r.Header.Set(name, "anything")
		}
	}
	for name, c := range map[string]struct {
		config  api.GuardConfig
		request func(*http.Request)
		want    int
	}{
		"no credentials":            {withToken, func(*http.Request) {}, 401},
		"no credentials, but local": {withToken, from("127.0.0.1:4711", "localhost"), 401},
		"wrong bearer":              {withToken, bearer("Bearer wrong"), 401},
		"empty bearer":              {withToken, bearer("Bearer "), 401},
		"a beginning of the token":  {withToken, bearer("Bearer correct"), 401},
		"the token and more":        {withToken, bearer("Bearer " + token + "s"), 401},
		"the token alone":           {withToken, bearer(token), 401},
		"another scheme":            {withToken, bearer("Digest " + token), 401},
		"wrong Basic password":      {withToken, basic("admin", "wrong"), 401},
		"the token as Basic user":   {withToken, basic(token, ""), 401},
		"broken Basic":              {withToken, bearer("Basic !!!"), 401},
		"two Authorization headers": {
			withToken,
			func(r *http.Request) { r.Header["Authorization"] = []string{"Bearer wrong", "Bearer " + token} },
			401,
		},
		"the token wins over being open": {api.GuardConfig{Tokens: tokens(token), Open: true}, func(*http.Request) {}, 401},
		"bearer":                         {withToken, bearer("Bearer " + token), 200},
		"bearer, lower case":             {withToken, bearer("bearer " + token), 200},
		"Basic":                          {withToken, basic("admin", token), 200},
		"Basic, no user":                 {withToken, basic("", token), 200},
		"a proxy is fine with the token": {
			withToken,
			func(r *http.Request) { through("X-Forwarded-For")(r); basic("", token)(r) },
			200,
		},
		"open to strangers": {
			api.GuardConfig{Open: true},
			from("203.0.113.9:4711", "spine.example.com"),
			200,
		},
		"open through a proxy":              {api.GuardConfig{Open: true}, through("X-Forwarded-For"), 200},
		"local by name":                     {here, from("127.0.0.1:4711", "localhost:8000"), 200},
		"local by name, no port":            {here, from("127.0.0.1:4711", "LocalHost"), 200},
		"local by address":                  {here, from("127.1.2.3:4711", "127.0.0.1:8000"), 200},
		"local by another loopback address": {here, from("127.0.0.1:4711", "127.8.9.10"), 200},
		"local by IPv6":                     {here, from("[::1]:4711", "[::1]:8000"), 200},
		"local by IPv6, no port":            {here, from("[::1]:4711", "[::1]"), 200},
		"local by mapped IPv4":              {here, from("[::ffff:127.0.0.1]:4711", "localhost"), 200},
		"a stranger":                        {here, from("203.0.113.9:4711", "localhost"), 403},
		"a neighbour":                       {here, from("192.168.0.2:4711", "127.0.0.1"), 403},
		"no peer address":                   {here, from("", "localhost"), 403},
		"a socket in the file system":       {here, from("@", "localhost"), 403},
		"DNS rebinding": {
			here,
			from("127.0.0.1:4711", "rebind.example.com:8000"),
			403,
		},
		"a name that begins like localhost": {here, from("127.0.0.1:4711", "localhost.example.com"), 403},
		"a name that begins like loopback":  {here, from("127.0.0.1:4711", "127.0.0.1.example.com"), 403},
		"a port that is none":               {here, from("127.0.0.1:4711", "localhost:evil.example"), 403},
		"a port that is none, by address":   {here, from("127.0.0.1:4711", "127.0.0.1:evil.example"), 403},
		"half a bracket":                    {here, from("127.0.0.1:4711", "[127.0.0.1"), 403},
		"every interface is no loopback":    {here, from("127.0.0.1:4711", "0.0.0.0:8000"), 403},
		"no Host":                           {here, from("127.0.0.1:4711", ""), 403},
		"a page's own request":              {here, page("same-origin", "http://localhost:8000"), 200},
		"a page of another origin":          {here, page("cross-site", "http://evil.example"), 403},
		"a sandboxed page":                  {here, page("", "null"), 403},
		"a page of another port":            {here, page("", "http://localhost:3000"), 403},
		"nothing is set, from this machine": {api.GuardConfig{}, from("127.0.0.1:4711", "localhost"), 403},
		"another token of a rotation":       {withToken, bearer("Bearer an older one, still valid"), 200},
		"both tokens at once":               {withToken, bearer("Bearer an older one, still valid," + token), 401},
		// A3: a proxy need not leave a trace, so traces count for nothing.
		"through a proxy that leaves a trace": {here, through("X-Forwarded-For"), 200},
	} {
		t.Run(name, func(t *testing.T) {
			reached := false
			h := api.Guard(
				c.config,
				zerolog.Nop(),
			)(
				http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }),
			)
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/events", nil)
			c.request(r)
			w := httptest.NewRecorder()

			h.ServeHTTP(w, r)

			require.Equal(t, c.want, w.Code)
			require.Equal(t, c.want == http.StatusOK, reached)
			require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
			require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
			a := answer{w.Code, w.Header(), w.Body.Bytes()}
			switch c.want {
			case http.StatusUnauthorized:
				requireProblem(t, a, c.want, "admin token")
				require.Equal(
					t,
					[]string{`Basic realm="spine", charset="UTF-8"`, `Bearer realm="spine"`},
					w.Header().Values("WWW-Authenticate"),
				)
				require.NotContains(t, w.Body.String(), token)
			case http.StatusForbidden:
				if r.Method == http.MethodPost {
					requireProblem(t, a, c.want, "A page of another origin")
				} else {
					requireProblem(t, a, c.want, "Set ADMIN_TOKEN")
				}
			}
		})
	}
}

// A6, A11: a rejection is told with the client's address before it is answered, and a request that passes is not.
func TestGuardTellsOfRejections(t *testing.T) {
	type told struct {
		cause  string
		status int
	}
	var all []told
	var log bytes.Buffer
	h := api.Guard(api.GuardConfig{
		Tokens: tokens("sesame"), ReadTokens: tokens("barley"),
		Client:   func(*http.Request) string { return "203.0.113.9" },
		Rejected: func(_ context.Context, cause string, status int) { all = append(all, told{cause, status}) },
	}, zerolog.New(&log))(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for _, c := range []struct{ method, authorization string }{
		{http.MethodGet, ""},
		{http.MethodGet, "Bearer guess"},
		{http.MethodPut, "Bearer barley"},
		{http.MethodGet, "Bearer barley"},
		{http.MethodPut, "Bearer sesame"},
	} {
		r := httptest.NewRequestWithContext(t.Context(), c.method, "/api/events", nil)
		if c.authorization != "" {
			r.Header.Set("Authorization", c.authorization)
		}
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	require.Equal(t, []told{
		{"admin_token_missing", 401}, {"admin_token_wrong", 401}, {"admin_read_token", 403},
	}, all)
	for _, one := range all {
		require.Contains(t, api.RejectionCauses(), one.cause)
	}
	require.Contains(t, log.String(), `"remote":"203.0.113.9"`)
	require.NotContains(t, log.String(), "guess")
}

// A page may have its own name lead to this machine, and then is of the same
// origin as Spine is under that name.
func TestAnOpenGuardAndNames(t *testing.T) {
	for name, c := range map[string]struct {
		guard        api.GuardConfig
		method, host string
		header       string
		want         int
	}{
		"rebound":           {api.GuardConfig{Open: true}, http.MethodPost, "evil.example:8080", "Origin", 403},
		"rebound, with TLS": {api.GuardConfig{Open: true}, http.MethodDelete, "evil.example", "Sec-Fetch-Site", 403},
		"almost localhost": {
			api.GuardConfig{Open: true},
			http.MethodPost,
			"localhost.evil.example:8080",
			"Origin",
			403,
		},
		"no name":    {api.GuardConfig{Open: true}, http.MethodPost, "", "Origin", 403},
		"localhost":  {api.GuardConfig{Open: true}, http.MethodPost, "localhost:8080", "Origin", 200},
		"an address": {api.GuardConfig{Open: true}, http.MethodPost, "192.0.2.7:8080", "Origin", 200},
		"an address of IPv6": {
			api.GuardConfig{Open: true},
			http.MethodPost,
			"[2001:db8::7]:8080",
			"Origin",
			200,
		},
		"an address without a port": {api.GuardConfig{Open: true}, http.MethodPost, "[2001:db8::7]", "Origin", 200},
		// A3, of its kind: what a page under its own name reads here, it can send away.
		"reading": {
			api.GuardConfig{Open: true},
			http.MethodGet,
			"spine.example",
			"Sec-Fetch-Site",
			403,
		},
		"reading, without TLS": {api.GuardConfig{Open: true}, http.MethodGet, "evil.example:8080", "User-Agent", 403},
		"reading, an address":  {api.GuardConfig{Open: true}, http.MethodGet, "192.0.2.7:8080", "User-Agent", 200},
		"reading, a listed name": {
			api.GuardConfig{Open: true, Names: []string{"spine.example"}},
			http.MethodGet,
			"Spine.example:8080",
			"User-Agent",
			200,
		},
		"changing, a listed name": {
			api.GuardConfig{Open: true, Names: []string{"spine.example"}},
			http.MethodPost,
			"spine.example",
			"Origin",
			200,
		},
		"reading, no browser": {api.GuardConfig{Open: true}, http.MethodGet, "spine:8080", "", 200},
		"no browser":          {api.GuardConfig{Open: true}, http.MethodPost, "spine:8080", "", 200},
		"a token, which no page has": {
			api.GuardConfig{Tokens: tokens("sesame")},
			http.MethodPost,
			"spine.example",
			"Origin",
			200,
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := api.Guard(c.guard, zerolog.Nop())(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			r := httptest.NewRequestWithContext(t.Context(), c.method, "/api/events/a/replay", nil)
			r.Host = c.host
			r.SetBasicAuth("", "sesame")
			switch c.header {
			case "Origin":
				r.Header.Set("Origin", "http://"+c.host)
			case "User-Agent":
				r.Header.Set("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
			case "Sec-Fetch-Site":
				r.Header.Set("Sec-Fetch-Site", "same-origin")
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			require.Equal(t, c.want, w.Code)
			if c.want == http.StatusForbidden {
				requireProblem(t, answer{w.Code, w.Header(), w.Body.Bytes()}, c.want, "Set ADMIN_TOKEN")
			}
		})
	}
}

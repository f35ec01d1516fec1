package deliver

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/secret"
)

// patience is a timeout that no test is meant to reach.
const patience = 2 * time.Minute

var job = event.Job{
	Event: 7, Destination: event.DefaultDestination, Lease: 9, Attempt: 2,
	Source: event.DefaultSource, ID: "test-001", Type: "user.created",
	OccurredAt: time.Date(2024, 1, 30, 13, 0, 0, 0, time.FixedZone("", 3600)),
	Payload:    []byte(`{"user_id":123}`),
}

func serve(tb testing.TB, handler http.HandlerFunc) *httptest.Server {
	tb.Helper()
	server := httptest.NewServer(handler)
	tb.Cleanup(server.Close)
	return server
}

func client(tb testing.TB, cfg Config) *Client {
	tb.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = patience
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = 1
	}
	c, err := New(cfg)
	require.NoError(tb, err)
	tb.Cleanup(c.Close)
	return c
}

// rawServer answers each connection with the given bytes, once a request's
// header has begun to arrive, and closes it.
func rawServer(t *testing.T, answer string) (address string) {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 64<<10))
			_, _ = io.WriteString(conn, answer)
			_ = conn.Close()
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		wg.Wait()
	})
	return listener.Addr().String()
}

func TestNewRejects(t *testing.T) {
	valid := Config{URL: "http://127.0.0.1/", Timeout: time.Second, Concurrency: 1}
	for _, tc := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.URL = "" }, "URL: must begin with http:// or https://"},
		{func(c *Config) { c.URL = "none" }, "URL: must begin with http:// or https://"},
		{func(c *Config) { c.URL = "ftp://user:hunter2@host/" }, "URL: must begin with http:// or https://"},
		{func(c *Config) { c.URL = "hunter2:8080/path" }, "URL: must begin with http:// or https://"},
		{func(c *Config) { c.URL = "http:///path" }, "URL: has no host"},
		{func(c *Config) { c.URL = "http://:80/path" }, "URL: has no host"},
		{func(c *Config) { c.URL = "http:host" }, "URL: has no host"},
		{
			func(c *Config) { c.URL = "http://user:hunter2/@host:port" },
			"URL: cannot be parsed, want http://host[:port]/path or https://…",
		},
		{
			func(c *Config) { c.URL = "http://host/\x7f?hunter2" },
			"URL: cannot be parsed, want http://host[:port]/path or https://…",
		},
		{
			func(c *Config) { c.Proxy = &url.URL{Scheme: "ftp", Host: "hunter2"} },
			"Proxy: must be http://, https:// or socks5:// with a host",
		},
		{func(c *Config) { c.Secret = secret.New("hunter2") }, `Secret: must be base64, with or without the prefix "whsec_"`},
		{
			func(c *Config) { c.Secret = secret.New("whsec_aHVudGVyMg==") },
			"Secret: must be base64 of 24 to 64 bytes, found 7",
		},
		{func(c *Config) { c.Timeout = 0 }, "Timeout: must be more than 0, found 0s"},
		{func(c *Config) { c.Concurrency = 0 }, "Concurrency: must be at least 1, found 0"},
	} {
		cfg := valid
		tc.change(&cfg)
		_, err := New(cfg)
		require.EqualError(t, err, tc.want)
		var bad *ConfigError
		require.ErrorAs(t, err, &bad)
	}
	_, err := New(valid)
	require.NoError(t, err)
}

func TestClasses(t *testing.T) {
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		status, err := strconv.Atoi(r.Header.Get("Webhook-Id"))
		if err != nil {
			panic(err)
		}
		w.Header().Set("Retry-After", "7")
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
	})
	c := client(t, Config{URL: server.URL})

	giveUp := map[int]bool{400: true, 405: true, 410: true, 413: true, 414: true, 415: true, 422: true, 501: true}
	for status := 200; status <= 599; status++ {
		j := job
		j.ID = strconv.Itoa(status)
		want := event.Result{Class: event.TryAgain, Status: status, RetryAfter: 7 * time.Second}
		switch {
		case status < 300:
			want.Class, want.RetryAfter = event.Done, 0
		case status < 400, giveUp[status]:
			want.Class, want.RetryAfter = event.GiveUp, 0
		}
		if status >= 300 {
			want.Error = strings.TrimSpace(fmt.Sprintf("HTTP %d %s", status, http.StatusText(status)))
		}
		got := c.Deliver(t.Context(), j)
		require.Positive(t, got.Duration)
		got.Duration = 0
		require.Equal(t, want, got)
	}
}

func TestSwitchingProtocolsIsNoAnswer(t *testing.T) {
	address := rawServer(t, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nnoise")
	got := client(t, Config{URL: "http://" + address}).Deliver(t.Context(), job)
	require.Equal(t, event.TryAgain, got.Class)
	require.Equal(t, 101, got.Status)
	require.Empty(t, got.Answer)
	require.Equal(t, "HTTP 101 Switching Protocols", got.Error)
}

func TestInterimAnswersArePassedOver(t *testing.T) {
	address := rawServer(t, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
	got := client(t, Config{URL: "http://" + address}).Deliver(t.Context(), job)
	require.Equal(t, event.Done, got.Class)
	require.Equal(t, 204, got.Status)
	require.Empty(t, got.Error)
}

func TestNoAnswer(t *testing.T) {
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()

	for name, tc := range map[string]struct{ address, want string }{
		"nothing listens": {closed.Listener.Addr().String(), "connection refused"},
		"cut at once":     {rawServer(t, ""), "connection closed without an answer"},
		"cut in the status": {
			rawServer(t, "HTTP/1.1 20"), "connection closed without an answer",
		},
		"cut after an interim answer": {
			rawServer(t, "HTTP/1.1 100 Continue\r\n\r\n"), "connection closed without an answer",
		},
		"not HTTP":    {rawServer(t, "hello\x1b[0m\r\n"), `malformed HTTP response "hello\x1b[0m"`},
		"no status":   {rawServer(t, "HTTP/1.1 OK\r\n\r\n"), `malformed HTTP response "HTTP/1.1 OK"`},
		"four digits": {rawServer(t, "HTTP/1.1 2000 OK\r\n\r\n"), `malformed HTTP response "HTTP/1.1 2000 OK"`},
		"endless line ends": {
			rawServer(t, strings.Repeat("\r\n", 50_000)), "the answer's header is larger than 65536 bytes",
		},
		"only interim answers": {
			rawServer(t, strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 9)), "too many interim answers",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := client(t, Config{URL: "http://user:hunter2@" + tc.address + "/path?token=hunter3"})
			got := c.Deliver(t.Context(), job)
			require.Positive(t, got.Duration)
			got.Duration = 0
			class := event.TryAgain
			if name == "nothing listens" {
				class = event.Unreached
			}
			require.Equal(t, event.Result{Class: class, Error: tc.want}, got)
		})
	}
}

func TestErrorStaysOneBoundedLine(t *testing.T) {
	got := client(
		t, Config{URL: "http://" + rawServer(t, strings.Repeat("\u0085é", 1000)+"\r\n")},
	).Deliver(t.Context(), job)
	require.Equal(t, event.TryAgain, got.Class)
	require.Less(t, len(got.Error), maxError+8)

	require.Equal(t, "a  b c", oneLine("a\r\nb\x00c"))
	require.Equal(t, strings.Repeat("é", maxError/2)+"…", oneLine(strings.Repeat("é", maxError)))
	require.Equal(t, "x"+strings.Repeat("é", (maxError-1)/2)+"…", oneLine("x"+strings.Repeat("é", maxError)))
	require.Equal(t, "\uFFFD", oneLine("\xff"))
}

func TestHangingDestinationTimesOut(t *testing.T) {
	server := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then does the server notice the hang-up
		<-r.Context().Done()
	})
	got := client(t, Config{URL: server.URL, Timeout: 50 * time.Millisecond}).Deliver(t.Context(), job)
	require.Equal(t, event.TryAgain, got.Class)
	require.Zero(t, got.Status)
	require.Equal(t, "timeout after 50ms", got.Error)
	require.GreaterOrEqual(t, got.Duration, 50*time.Millisecond)
	require.Less(t, got.Duration, patience)
}

// drip answers with a status and then sends one byte after another, for ever.
func drip(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-r.Context().Done():
				return
			case <-tick.C:
				_, _ = io.WriteString(w, "x")
				_ = http.NewResponseController(w).Flush()
			}
		}
	}
}

func TestDrippingAnswerCountsByItsStatus(t *testing.T) {
	for status, class := range map[int]event.Class{200: event.Done, 410: event.GiveUp, 503: event.TryAgain} {
		server := serve(t, drip(status))
		got := client(t, Config{URL: server.URL, Timeout: 2 * time.Second}).Deliver(t.Context(), job)
		require.Equal(t, class, got.Class)
		require.Equal(t, status, got.Status)
		require.Less(t, got.Duration, patience)
		require.Empty(t, strings.Trim(got.Answer, "x"))
	}
}

func TestBrokenAnswerCountsByItsStatus(t *testing.T) {
	for status, class := range map[int]event.Class{200: event.Done, 422: event.GiveUp, 500: event.TryAgain} {
		server := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
		got := client(t, Config{URL: server.URL}).Deliver(t.Context(), job)
		require.Equal(t, class, got.Class)
		require.Equal(t, status, got.Status)
		require.Equal(t, "half", got.Answer)
	}
}

func TestGiantAnswerIsNotRead(t *testing.T) {
	sent := make(chan int, 1)
	server := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		total := 0
		for chunk := bytes.Repeat([]byte("y"), 32<<10); ; {
			n, err := w.Write(chunk)
			total += n
			if err != nil {
				sent <- total
				return
			}
		}
	})
	got := client(t, Config{URL: server.URL}).Deliver(t.Context(), job)
	require.Equal(t, event.Done, got.Class)
	require.Equal(t, strings.Repeat("y", maxAnswer), got.Answer)
	require.Less(t, <-sent, 64<<20, "the connection must be closed on what remains")
}

func TestRedirectIsNotFollowed(t *testing.T) {
	for _, location := range []string{"/elsewhere", "http://127.0.0.1:1/", "::not a URL", ""} {
		var requests atomic.Int32
		server := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			requests.Add(1)
			w.Header().Set("Location", location)
			w.WriteHeader(http.StatusTemporaryRedirect)
		})
		got := client(t, Config{URL: server.URL}).Deliver(t.Context(), job)
		require.Equal(t, event.GiveUp, got.Class)
		require.Equal(t, "HTTP 307 Temporary Redirect", got.Error)
		require.EqualValues(t, 1, requests.Load())
	}
}

func TestCancelledByCaller(t *testing.T) {
	entered := make(chan struct{})
	server := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		close(entered)
		<-r.Context().Done()
	})
	c := client(t, Config{URL: server.URL})
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-entered
		cancel(errors.New("lease lost"))
	}()
	got := c.Deliver(ctx, job)
	require.Equal(t, event.TryAgain, got.Class)
	require.Zero(t, got.Status)
	require.Equal(t, "cancelled: lease lost", got.Error)

	got = c.Deliver(ctx, job)
	require.Equal(t, "cancelled: lease lost", got.Error, "a call that is too late must not be made")
	require.Equal(t, event.Unreached, got.Class)
}

// request is what a server saw of one.
type request struct {
	*http.Request
	body []byte
}

// capture delivers one job and returns the request that arrived.
func capture(t *testing.T, cfg Config, job event.Job) request {
	t.Helper()
	var got request
	server := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(err)
		}
		got = request{r, body}
	})
	u, err := url.Parse(server.URL)
	require.NoError(t, err)
	cfg.URL = strings.Replace(cfg.URL, "HOST", u.Host, 1)
	if cfg.URL == "" {
		cfg.URL = server.URL
	}
	result := client(t, cfg).Deliver(t.Context(), job)
	require.Equal(t, event.Done, result.Class, result.Error)
	return got
}

func TestRequest(t *testing.T) {
	now := time.Unix(1614265330, 999_999_999)
	got := capture(t, Config{
		URL:       "http://user:p%40ss@HOST/hooks/a%2Fb?x=1&y=%20#fragment",
		Secret:    secret.New(vectorSecret),
		UserAgent: "spine/test",
		Now:       func() time.Time { return now },
	}, job)

	require.Equal(t, http.MethodPost, got.Method)
	require.Equal(t, "/hooks/a%2Fb?x=1&y=%20", got.RequestURI)
	user, password, _ := got.BasicAuth()
	require.Equal(t, "user:p@ss", user+":"+password)
	require.EqualValues(t, len(got.body), got.ContentLength)
	want := `{"event_id":"test-001","source":"default","event_type":"user.created",` +
		`"occurred_at":"2024-01-30T12:00:00Z","attempt":2,"payload":{"user_id":123}}`
	require.Equal(t, want, string(got.body))

	key, err := parseSecret(vectorSecret)
	require.NoError(t, err)
	got.Header.Del("Authorization")
	require.Equal(t, http.Header{
		"Content-Type":      {"application/json"},
		"Content-Length":    {strconv.Itoa(len(got.body))},
		"User-Agent":        {"spine/test"},
		"Webhook-Id":        {"test-001"},
		"Webhook-Timestamp": {"1614265330"},
		"Webhook-Signature": {sign(key, "test-001", "1614265330", got.body)},
	}, got.Header)
}

func TestRequestWithoutSecretIsNotSigned(t *testing.T) {
	got := capture(t, Config{}, job)
	require.NotContains(t, got.Header, "Webhook-Signature")
	require.NotContains(t, got.Header, "Authorization")
	require.NotContains(t, got.Header, "User-Agent")
	require.Contains(t, got.Header, "Webhook-Timestamp")
}

func TestSignatureIsOverTheHeaderValue(t *testing.T) {
	j := job
	j.Source, j.ID = "github", "Zoë 1%"
	got := capture(t, Config{Secret: secret.New(vectorSecret)}, j)
	require.Equal(t, "github/Zo%C3%AB%201%25", got.Header.Get("Webhook-Id"))
	key, err := parseSecret(vectorSecret)
	require.NoError(t, err)
	require.Equal(
		t,
		sign(key, "github/Zo%C3%AB%201%25", got.Header.Get("Webhook-Timestamp"), got.body),
		got.Header.Get("Webhook-Signature"),
	)
}

func TestBodyKeepsStringsAndTimes(t *testing.T) {
	j := job
	j.ID, j.Type, j.Source = "q\"\\/é😀", "line\nbreak\u2028", "git-hub"
	j.OccurredAt = time.Date(9999, 12, 31, 23, 59, 59, 123456789, time.UTC)
	var got map[string]any
	body := appendBody(nil, j)
	require.NoError(t, json.Unmarshal(body, &got))
	require.Equal(t, map[string]any{
		"event_id": j.ID, "source": j.Source, "event_type": j.Type, "attempt": 2.0,
		"occurred_at": "9999-12-31T23:59:59.123456Z",
		"payload":     map[string]any{"user_id": 123.0},
	}, got)
}

func TestPayloadArrivesByteForByte(t *testing.T) {
	for _, payload := range []string{
		`{"b":1.0,"a":1E2}`,
		`{"a":12345678901234567890123456789,"b":-0,"c":1.10,"d":1e-1000}`,
		"{ \"z\" : [ ] ,\r\n\t\"a\":{ } }",
		`{"\u0061":"\u00e9\/<>&\u2028"}`,
		"{\"a\":\"\u2028<>&\"}",
	} {
		j := job
		j.Payload = []byte(payload)
		got := capture(t, Config{}, j)
		require.True(t, bytes.HasSuffix(got.body, []byte(`,"payload":`+payload+"}")), "%s", got.body)
		require.True(t, json.Valid(got.body))
	}
}

func TestUnqueryablePayloadArrivesAsBase64Too(t *testing.T) {
	for _, payload := range []string{`{"a":"\u0000","a":"\ud800"}`, "{\"a\":\"\xff\xfe\"}", "not JSON at all"} {
		j := job
		j.Payload, j.Unqueryable = []byte(payload), true
		got := capture(t, Config{}, j)
		var body struct {
			Payload json.RawMessage `json:"payload"`
			Base64  string          `json:"payload_base64"`
		}
		require.NoError(t, json.Unmarshal(got.body, &body))
		require.Equal(t, "null", string(body.Payload))
		decoded, err := base64.StdEncoding.DecodeString(body.Base64)
		require.NoError(t, err)
		require.Equal(t, payload, string(decoded))
	}
}

func TestAnswerIsValidText(t *testing.T) {
	long := strings.Repeat("x", maxAnswer)
	for name, tc := range map[string]struct{ body, want string }{
		"empty":                   {"", ""},
		"text":                    {"thank you", "thank you"},
		"G10: a line end":         {"thank you\n", "thank you"},
		"G10: white space":        {" thank\r\nyou \t\r\n\u00a0\n", " thank\r\nyou"},
		"G10: nothing else":       {"\r\n", ""},
		"G10: cut after a space":  {long[1:] + " y", long[1:]},
		"NUL":                     {"a\x00b", "a\uFFFDb"},
		"invalid UTF-8":           {"a\xffb", "a\uFFFDb"},
		"incomplete at the end":   {"a\xf0\x9f", "a\uFFFD"},
		"just full":               {long, long},
		"longer":                  {long + "y", long},
		"rune across the end":     {long[1:] + "é", long[1:]},
		"rune up to the end":      {long[2:] + "éy", long[2:] + "é"},
		"long rune across":        {long[3:] + "😀", long[3:]},
		"continuation at the end": {long[4:] + "\x80\x80\x80\x80\x80", long[4:] + "\uFFFD"},
		"longer than the drain":   {strings.Repeat("x", maxAnswer+2*maxDrain), long},
	} {
		t.Run(name, func(t *testing.T) {
			got, ended := readAnswer(strings.NewReader(tc.body), nil)
			require.Equal(t, len(tc.body) < maxAnswer+maxDrain, ended)
			require.Equal(t, tc.want, got)
		})
	}
	rapid.Check(t, func(t *rapid.T) {
		body := rapid.SliceOfN(rapid.Byte(), 0, 2*maxAnswer).Draw(t, "body")
		codings := rapid.SliceOfN(rapid.SampledFrom([]string{"gzip", "deflate", "br"}), 0, 2).Draw(t, "codings")
		got, _ := readAnswer(bytes.NewReader(body), codings)
		require.True(t, utf8.ValidString(got))
		require.NotContains(t, got, "\x00")
	})
}

func TestCompressedAnswerIsNotInflated(t *testing.T) {
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "" {
			panic("compression was asked for")
		}
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = io.WriteString(w, "as sent")
	})
	require.Equal(t, "as sent", client(t, Config{URL: server.URL}).Deliver(t.Context(), job).Answer)
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2024, 1, 30, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	for _, tc := range []struct {
		value, date string
		want        time.Duration
	}{
		{"", "", 0},
		{"0", "", 0},
		{"120", "", 2 * time.Minute},
		{"3600", "", time.Hour},
		{"3601", "", time.Hour},
		{"99999999999999999999", "", time.Hour},
		{"-1", "", 0},
		{"-99999999999999999999", "", 0},
		{"1.5", "", 0},
		{"soon", "", 0},
		{"120s", "", 0},
		{at(90 * time.Second), "", 90 * time.Second},
		{at(-90 * time.Second), "", 0},
		{at(48 * time.Hour), "", time.Hour},
		{"Tue, 30 Jan 2024 12:00", "", 0},
		{now.Add(time.Minute).Format(time.ANSIC), "", time.Minute},
		{now.Add(time.Minute).Format("Monday, 02-Jan-06 15:04:05 GMT"), "", time.Minute},
		{at(90 * time.Second), at(60 * time.Second), 30 * time.Second},
		{at(-600 * time.Second), at(-630 * time.Second), 30 * time.Second},
		{at(90 * time.Second), "yesterday", 90 * time.Second},
		{"120", at(60 * time.Second), 2 * time.Minute},
	} {
		require.Equal(t, tc.want, retryAfter(tc.value, tc.date, now), "%q, Date %q", tc.value, tc.date)
	}
}

// countConnections counts the connections that a server has accepted.
func countConnections(tb testing.TB, handler http.HandlerFunc) (*httptest.Server, *atomic.Int64) {
	tb.Helper()
	var opened atomic.Int64
	server := httptest.NewUnstartedServer(handler)
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	server.Start()
	tb.Cleanup(server.Close)
	return server, &opened
}

func TestConnectionIsUsedAgain(t *testing.T) {
	for name, answer := range map[string]string{
		"empty": "", "small": "ok", "just full": strings.Repeat("x", maxAnswer),
		"drained": strings.Repeat("x", maxAnswer+maxDrain/2),
	} {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int32
			server, opened := countConnections(t, func(w http.ResponseWriter, _ *http.Request) {
				if requests.Add(1)%2 == 0 {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
				_, _ = io.WriteString(w, answer)
			})
			c := client(t, Config{URL: server.URL, Concurrency: 8})
			for range 25 {
				require.Equal(t, 200, c.Deliver(t.Context(), job).Status)
				require.Equal(t, 503, c.Deliver(t.Context(), job).Status)
			}
			require.EqualValues(t, 1, opened.Load())
		})
	}
}

func TestConcurrencyBoundsConnections(t *testing.T) {
	const concurrency = 4
	server, opened := countConnections(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	})
	c := client(t, Config{URL: server.URL, Concurrency: concurrency})
	var wg sync.WaitGroup
	for range 4 * concurrency {
		wg.Go(func() {
			for range 20 {
				if got := c.Deliver(t.Context(), job); got.Class != event.Done {
					t.Errorf("not delivered: %+v", got)
				}
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, opened.Load(), int64(concurrency))
}

// A request that meets the end of an idle connection is sent again at once.
func TestClosedConnectionIsReplaced(t *testing.T) {
	server, opened := countConnections(t, func(http.ResponseWriter, *http.Request) {})
	c := client(t, Config{URL: server.URL})
	for range 20 {
		require.Equal(t, event.Done, c.Deliver(t.Context(), job).Class)
		server.CloseClientConnections()
	}
	require.EqualValues(t, 20, opened.Load())
}

func BenchmarkDeliver(b *testing.B) {
	for _, concurrency := range []int{1, 16} {
		b.Run(fmt.Sprintf("concurrency=%d", concurrency), func(b *testing.B) {
			server := serve(b, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(w, `{"ok":true}`)
			})
			c := client(b, Config{URL: server.URL, Secret: secret.New(vectorSecret), Concurrency: concurrency})
			j := job
			j.Payload = []byte(`{"text":"` + strings.Repeat("x", 1000) + `"}`)
			b.ReportAllocs()
			var next atomic.Int64
			var wg sync.WaitGroup
			for range concurrency {
				wg.Go(func() {
					for next.Add(1) <= int64(b.N) {
						if got := c.Deliver(b.Context(), j); got.Class != event.Done {
							b.Errorf("not delivered: %+v", got)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

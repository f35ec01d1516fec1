package deliver

import (
	"bufio"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/webhookspine/spine/internal/event"
)

// scripted is a server that answers each request on a connection with what script says for its number there, the first
// being 0. It closes the connection where script says so, else keeps it.
func scripted(t *testing.T, script func(conn, request int) (answer string, closes bool)) (url string) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for n := 0; ; n++ {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			go func() {
				defer stop()
				defer func() { _ = conn.Close() }()
				reader := bufio.NewReader(conn)
				for request := 0; ; request++ {
					r, err := http.ReadRequest(reader)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, r.Body)
					answer, closes := script(n, request)
					if _, err := io.WriteString(conn, answer); err != nil || closes {
						return
					}
				}
			}()
		}
	}()
	t.Cleanup(func() {
		cancel()
		_ = listener.Close()
		<-ended
	})
	return "http://" + listener.Addr().String()
}

// D1: the status line decides, whatever comes after it, and whether or not the connection is closed then.
func TestStatusLineDecides(t *testing.T) {
	for name, tc := range map[string]struct{ answer, want string }{
		"a line without a colon": {
			"HTTP/1.1 200 OK\r\nthis is no header\r\nContent-Length: 2\r\n\r\nok", "ok",
		},
		"Transfer-Encoding: identity": {
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok", "ok",
		},
		"identity without a length": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nok", "ok"},
		"two lengths":               {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 2\r\n\r\nok", "ok"},
		"two lengths in a line":     {"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok", "ok"},
		"one length twice":          {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", "ok"},
		"a length that is none":     {"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok", "ok"},
		"a negative length":         {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok", "ok"},
		"a length that overflows":   {"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok", "ok"},
		"a length before chunks": {
			"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
			"ok",
		},
		"chunked twice": {
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
			"ok",
		},
		"an unknown coding":           {"HTTP/1.1 200 OK\r\nTransfer-Encoding: rot13\r\n\r\nbx", "(compressed: rot13)"},
		"malformed chunks":            {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nok, no chunk", ""},
		"a space before the colon":    {"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok", "ok"},
		"a folded line":               {"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok", "ok"},
		"an empty name":               {"HTTP/1.1 200 OK\r\n: a\r\nContent-Length: 2\r\n\r\nok", "ok"},
		"bytes that no name may have": {"HTTP/1.1 200 OK\r\n\x00\xff(: \x01\r\nContent-Length: 2\r\n\r\nok", "ok"},
		"bare line ends":              {"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "ok"},
		"line ends before it":         {"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "ok"},
		"no reason":                   {"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", "ok"},
		"two spaces":                  {"HTTP/1.1  200  OK\r\nContent-Length: 2\r\n\r\nok", "ok"},
		"lower case":                  {"http/1.1 200 ok\r\ncontent-length: 2\r\n\r\nok", "ok"},
		"a reason without a space":    {"HTTP/1.1 200OK\r\nContent-Length: 2\r\n\r\nok", "ok"},
		"another version":             {"HTTP/2 200\r\nContent-Length: 2\r\n\r\nok", "ok"},
		"a long reason": {
			"HTTP/1.1 200 " + strings.Repeat("x", 10_000) + "\r\nContent-Length: 2\r\n\r\nok",
			"ok",
		},
		"a long header": {
			"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 10_000) + "\r\nContent-Length: 2\r\n\r\nok", "ok",
		},
		"no end of the header":    {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 100_000), ""},
		"nothing after the line":  {"HTTP/1.1 200 OK\r\n", ""},
		"no end of the line":      {"HTTP/1.1 200 OK", ""},
		"no end of the code":      {"HTTP/1.1 200", ""},
		"a header that is cut":    {"HTTP/1.1 200 OK\r\nContent-Le", ""},
		"a body without a header": {"HTTP/1.1 200 OK\r\n\r\nok", "ok"},
		"after a malformed interim answer": {
			"HTTP/1.1 103 Early\r\nno header\r\n\r\nHTTP/1.1 204 None\r\n\r\n", "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // some wait for what never comes
			for _, closes := range []bool{true, false} {
				url := scripted(t, func(int, int) (string, bool) { return tc.answer, closes })
				c := client(t, Config{URL: url, Timeout: 3 * time.Second})
				got := c.Deliver(t.Context(), job)
				require.Equal(t, event.Done, got.Class, got.Error)
				require.Equal(t, tc.want, got.Answer)
			}
		})
	}
}

// The same of answers that are no success: they keep their class and their Retry-After.
func TestMalformedFailureKeepsItsMeaning(t *testing.T) {
	url := scripted(t, func(int, int) (string, bool) {
		return "HTTP/1.1 503 Busy\r\nno header\r\n" +
			"Retry-After: 7\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbusy", false
	})
	got := client(t, Config{URL: url}).Deliver(t.Context(), job)
	got.Duration = 0
	require.Equal(t, event.Result{
		Class: event.TryAgain, Status: 503, Answer: "busy", Error: "HTTP 503 Service Unavailable",
		RetryAfter: 7 * time.Second,
	}, got)
}

// D1: an answer that does not end on a connection that stays open does not hold the delivery up until its timeout.
func TestEndlessAnswerIsNotAwaited(t *testing.T) {
	for name, tc := range map[string]struct{ answer, want string }{
		"identity":              {"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nok", "ok"},
		"no length":             {"HTTP/1.1 200 OK\r\n\r\nok", "ok"},
		"a length above":        {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", "ok"},
		"chunks without an end": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "ok"},
		"no end of a trailer":   {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", "ok"},
		"no end of the header":  {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", ""},
		"only a status line":    {"HTTP/1.1 200 OK\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := scripted(t, func(int, int) (string, bool) { return tc.answer, false })
			got := client(t, Config{URL: url}).Deliver(t.Context(), job)
			require.Equal(t, event.Done, got.Class)
			require.Equal(t, tc.want, got.Answer)
			require.Less(t, got.Duration, patience/2)
		})
	}
}

// Whatever follows a status line, the status counts.
func TestAnyHeaderAfterAStatus(t *testing.T) {
	var answer atomic.Value
	url := scripted(t, func(int, int) (string, bool) { return answer.Load().(string), true })
	c := client(t, Config{URL: url, Timeout: 10 * time.Second})
	rapid.Check(t, func(t *rapid.T) {
		lines := rapid.SliceOfN(rapid.OneOf(
			rapid.StringMatching(`[ -~]{0,40}`),
			rapid.SampledFrom([]string{
				"Content-Length: 3",
				"Content-Length: x",
				"Transfer-Encoding: chunked",
				"Transfer-Encoding: gzip, chunked",
				"Content-Encoding: gzip",
				"Connection: keep-alive",
				"Connection: close",
				"\r",
				" folded",
				":",
			}),
		), 0, 6).Draw(t, "lines")
		status := rapid.IntRange(200, 599).Draw(t, "status")
		answer.Store("HTTP/1.1 " + strconv.Itoa(status) + "\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\nsome body")
		got := c.Deliver(context.Background(), job)
		if got.Status != status || got.Class != classify(status) {
			t.Fatalf("%+v", got)
		}
	})
}

// Answers follow each other on a connection exactly where each has ended.
func TestAnswersInARow(t *testing.T) {
	answers := []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n0",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n1;a=b\r\n2\r\n0\r\nX: y\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\n3",
		"HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n",
		"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n5",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n6",
	}
	var other atomic.Bool
	url := scripted(t, func(conn, request int) (string, bool) {
		if conn > 0 {
			other.Store(true)
		}
		return answers[request], false
	})
	c := client(t, Config{URL: url})
	for i := range answers {
		got := c.Deliver(t.Context(), job)
		require.Equal(t, event.Done, got.Class, got.Error)
		if i != 4 {
			require.Equal(t, strconv.Itoa(i), got.Answer)
		}
	}
	require.False(t, other.Load(), "one connection")
	require.Empty(t, c.transport.idle, "the last answer closes the connection")
}

func zipped(text string, writer func(io.Writer) io.WriteCloser) string {
	var b bytes.Buffer
	w := writer(&b)
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return b.String()
}

func gzipWriter(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }
func zlibWriter(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) }
func flateWriter(w io.Writer) io.WriteCloser {
	f, _ := flate.NewWriter(w, flate.DefaultCompression)
	return f
}

// D5: a compressed answer is read within the limit of what is kept, or is said to be compressed.
func TestCompressedAnswer(t *testing.T) {
	long := strings.Repeat("é", 4<<20) // a bomb: 8 MB from 8 kB
	for name, tc := range map[string]struct{ header, body, want string }{
		"gzip":              {"Content-Encoding: gzip", zipped("thank you\n", gzipWriter), "thank you"},
		"x-gzip":            {"Content-Encoding: X-GZIP", zipped("thank you", gzipWriter), "thank you"},
		"zlib":              {"Content-Encoding: deflate", zipped("thank you", zlibWriter), "thank you"},
		"deflate":           {"Content-Encoding: deflate", zipped("thank you", flateWriter), "thank you"},
		"nothing":           {"Content-Encoding: gzip", zipped("", gzipWriter), ""},
		"empty":             {"Content-Encoding: gzip", "", ""},
		"identity":          {"Content-Encoding: identity", "thank you", "thank you"},
		"as a transfer":     {"Transfer-Encoding: gzip", zipped("thank you", gzipWriter), "thank you"},
		"without a header":  {"X: y", zipped("thank you", gzipWriter), "thank you"},
		"more than is kept": {"Content-Encoding: gzip", zipped(long, gzipWriter), long[:maxAnswer]},
		"cut": {
			"Content-Encoding: gzip",
			zipped("thank you "+strings.Repeat("x", 99), gzipWriter)[:12],
			"t",
		},
		"in truth text":    {"Content-Encoding: gzip", "thank you", "thank you"},
		"in truth neither": {"Content-Encoding: gzip", "\x00\x01\x02\xff", "(compressed: gzip)"},
		"br":               {"Content-Encoding: br", "\x0b\x02\x80hello\x03", "(compressed: br)"},
		"zstd":             {"Content-Encoding: zstd", "\x28\xb5\x2f\xfd", "(compressed: zstd)"},
		"twice": {
			"Content-Encoding: gzip, gzip",
			zipped(zipped("a", gzipWriter), gzipWriter),
			"(compressed: gzip, gzip)",
		},
		"no text inside": {"Content-Encoding: gzip", zipped("a\x00\xff", gzipWriter), "a\uFFFD\uFFFD"},
		"one after another": {
			"Content-Encoding: gzip",
			zipped("thank ", gzipWriter) + zipped("you", gzipWriter),
			"thank you",
		},
		"a coding of bytes": {"Content-Encoding: a\x01\xff", "a", "(compressed: a \uFFFD)"},
	} {
		t.Run(name, func(t *testing.T) {
			length := "\r\nContent-Length: " + strconv.Itoa(len(tc.body))
			url := scripted(t, func(int, int) (string, bool) {
				return "HTTP/1.1 200 OK\r\n" + tc.header + length + "\r\n\r\n" + tc.body, false
			})
			c := client(t, Config{URL: url})
			got := c.Deliver(t.Context(), job)
			require.Equal(t, event.Done, got.Class, got.Error)
			require.Equal(t, tc.want, got.Answer)
			if !strings.HasPrefix(tc.header, "Transfer") {
				require.Len(t, c.transport.idle, 1, "the connection can be used again")
			}
		})
	}
}

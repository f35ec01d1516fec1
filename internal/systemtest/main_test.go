package systemtest

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/webhookspine/spine/internal/command"
)

func TestMain(m *testing.M) {
	// Tests mostly wait for delays and leases to pass, and can do so together. The flag is read later and still wins.
	if err := flag.Set("test.parallel", "12"); err != nil {
		panic(err)
	}
	testscript.Main(leakChecked{databases.Main(m)}, map[string]func(){"spine": spineMain, "flood": flood})
}

// spineMain is this test binary under the name of spine.
func spineMain() { os.Exit(command.Main(context.Background(), "")) }

// leakChecked is goleak.VerifyTestMain for testscript.
type leakChecked struct{ m testscript.TestingM }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if err := os.RemoveAll(secretFolder()); err != nil {
		fmt.Fprintln(os.Stderr, "removing the folder of secrets:", err)
	}
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, "goleak:", err)
		return 1
	}
	return code
}

// TestScripts runs the real binary as testdata/*.txtar say. $SERVER stands in for a running Spine and answers as the
// event's type asks. $SICK stands in for one that is not ready.
func TestScripts(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(standIn))
	t.Cleanup(server.Close)
	sick := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, `{"checks":{"database":"failed"},"status":"not ready"}`)
	}))
	t.Cleanup(sick.Close)

	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("SERVER", server.URL)
			env.Setenv("SERVER_ADDRESS", strings.TrimPrefix(server.URL, "http://"))
			env.Setenv("SICK", sick.URL)
			return nil
		},
	})
}

func standIn(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet && r.URL.Path == "/readyz" {
		fmt.Fprintln(w, `{"checks":{"database":"ok"},"status":"ready"}`)
		return
	}
	var e struct {
		ID         string          `json:"event_id"`
		Type       string          `json:"event_type"`
		OccurredAt string          `json:"occurred_at"`
		Payload    json.RawMessage `json:"payload"`
	}
	err := json.NewDecoder(r.Body).Decode(&e)
	if err != nil || r.URL.Path != "/webhook" || r.Method != http.MethodPost {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	switch e.Type {
	case "refuse":
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusUnprocessableEntity)
		fmt.Fprintln(
			w,
			`{"title":"Unprocessable Entity","detail":"The body is JSON, but not a valid event: see errors.",`+
				`"errors":[{"field":"event_id","detail":"is too long\u001b[2J"},{"detail":"must be an object"}]}`,
		)
	case "away":
		w.WriteHeader(http.StatusServiceUnavailable)
	case "stranger":
		fmt.Fprintln(w, "<html>\x1b[2J")
	case "hostile":
		fmt.Fprintf(w, `{"status":"accepted","event_id":%q}`+"\n", "\u009b31m\u202e")
	default: // echo, so that a script sees what was sent
		fmt.Fprintf(w, `{"status":"accepted","message":"%s %d %s","event_id":%q}`+"\n",
			strings.ReplaceAll(string(e.Payload), `"`, `'`), len(e.OccurredAt), e.Type, e.ID)
	}
}

// spine runs one command line in this process.
func spine(t *testing.T, environment []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = command.Run(t.Context(), args, environment, strings.NewReader(""), &out, &err, "")
	return code, out.String(), err.String()
}

func TestExitCodes(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want int
	}{
		{[]string{"no-such-command"}, 2},
		{[]string{"version", "--no-such-flag"}, 2},
		{[]string{"version", "argument"}, 2},
		{[]string{"send"}, 2},
		{[]string{"send", "--type", "a", "--payload", "{"}, 2},
		{[]string{"bench", "ingest", "--rate", "many"}, 2},
		{[]string{"send", "--type", "a", "--url", "http://[::1"}, 2},
		{[]string{"mock-api", "--mock-api-cut", "sideways"}, 2},
		{[]string{"send", "--type", "a", "--file", "/no/such/file"}, 1},
		{[]string{"help", "frob"}, 2},
		{[]string{"help", "bench", "frob"}, 2},
		{[]string{"bench", "frob"}, 2},
		{[]string{"health", "--url", "http://[::1"}, 2},
		{[]string{"health", "--listen", "127.0.0.1:1"}, 1},
		{[]string{"bench", "ingest", "--url", "ftp://a"}, 1},
		{[]string{"bench", "soak", "--sink", "127.0.0.1:0", "--rate", "0"}, 1},
		{[]string{"version"}, 0},
		{[]string{"--version"}, 0},
		{[]string{"help"}, 0},
		{[]string{"help", "bench", "sink"}, 0},
		{[]string{"bench"}, 0},
	} {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			code, stdout, stderr := spine(t, nil, tc.args...)
			require.Equal(t, tc.want, code, stderr)
			if tc.want == 0 {
				require.NotEmpty(t, stdout)
				require.Empty(t, stderr)
			} else {
				require.Empty(t, stdout)
				require.Regexp(t, "^spine: [^\n]+\n$", stderr, "one line")
			}
		})
	}
}

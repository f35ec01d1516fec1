package systemtest

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// devProcess is spine dev at work.
type devProcess struct {
	*process
	spine      *target
	folder     string // of its database
	postmaster int    // process id of its database
}

func startDev(t *testing.T, args ...string) devProcess {
	t.Helper()
	return startDevIn(t, nil, args...)
}

// startDevIn is startDev with more of an environment.
func startDevIn(t *testing.T, environment []string, args ...string) devProcess {
	t.Helper()
	p := startProcess(
		t,
		append([]string{
			"POSTGRES_BIN=" + os.Getenv("POSTGRES_BIN"),
			"LISTEN=127.0.0.1:0",
			"MOCK_LISTEN=127.0.0.1:0",
			"MOCK_API_FAILURE_RATE=0",
			// As dev has them by itself.
			"ADMIN_LISTEN=",
			"ADMIN_AUTH=",
			"DEFAULT_SOURCE=",
		}, environment...),
		append([]string{"dev"}, args...)...)
	told := func(what, pattern string) string {
		return p.says(t, what, func(out string) string {
			if found := regexp.MustCompile(pattern).FindStringSubmatch(out); found != nil {
				return found[1]
			}
			return ""
		})
	}
	d := devProcess{
		process: p,
		spine: newTarget(
			t,
			told("where to post", `POST (http://\S+)/webhook`),
			told("the database", `psql '(postgres://[^']+)'`),
		),
	}
	d.spine.mock = told("the mock API", `(http://\S+)/stats`)
	require.NoError(t, json.Unmarshal([]byte(told("the folder", `"dir":("[^"]+")`)), &d.folder))
	pid, err := os.ReadFile(filepath.Join(d.folder, "data", "postmaster.pid"))
	require.NoError(t, err)
	d.postmaster, err = strconv.Atoi(strings.Fields(string(pid))[0])
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(d.postmaster, 0))
	d.spine.awaitReady(t)
	return d
}

// requireOpenHere checks that dev serves the administration where it receives, to this machine alone.
func (d devProcess) requireOpenHere(t *testing.T) {
	t.Helper()
	for _, path := range []string{"/api/events", "/dashboard", "/metrics"} {
		require.Equal(t, http.StatusOK, d.spine.from(t, "localhost:8000", path), path)
		require.Equal(t, http.StatusForbidden, d.spine.from(t, "evil.example:8000", path), "%s: DNS rebinding", path)
	}
}

// deliver posts an event and waits until the mock API has it.
func (d devProcess) deliver(t *testing.T) string {
	t.Helper()
	id := newID("dev")
	d.spine.accept(t, id, `{"user_id":123}`)
	d.spine.awaitStatus(t, id, "completed")
	require.Equal(t, []int{200}, d.spine.answers(t, id))
	return id
}

// interrupt stops it as Ctrl-C does; nothing of it is left.
func (d devProcess) interrupt(t *testing.T) {
	t.Helper()
	d.signal(t, syscall.SIGINT)
	require.Zero(t, d.awaitExit(t))
	require.ErrorIs(t, syscall.Kill(d.postmaster, 0), syscall.ESRCH, "PostgreSQL is gone")
	_, err := d.spine.do(t.Context(), http.MethodGet, "/healthz", nil)
	require.Error(t, err)
}

func TestDevKeepsItsData(t *testing.T) {
	t.Parallel()
	// Where root runs the tests, the user who runs PostgreSQL must get there.
	parent, err := os.MkdirTemp(memoryFolder(), "spine-dev-test-")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(parent)) })
	require.NoError(t, os.Chmod(parent, 0o755)) //nolint:gosec // as said
	dir := filepath.Join(parent, "spine")

	d := startDev(t, "--dir", dir)
	require.Equal(t, dir, d.folder)
	d.requireOpenHere(t)
	id := d.deliver(t)
	// The statements of the contract work as they stand.
	require.Equal(t, "default", value[string](t, d.spine.db, "SELECT source FROM events WHERE event_id = $1", id))
	require.Regexp(t, `"version":\d+,.*"the schema is up to date: \d+ migrations applied"`, d.output())
	d.interrupt(t)
	// G8: the last line says what becomes of the data.
	require.Regexp(t, `"dir":"`+dir+`",.*"PostgreSQL stopped; the data stays, [^"]*"}\n$`, d.output())

	d = startDev(t, "--dir", dir)
	require.Equal(t, "deduplicated", d.spine.post(t, webhook(id, `{"user_id":123}`)).status())
	require.Equal(
		t,
		"completed",
		value[string](t, d.spine.db, "SELECT status FROM processing_state WHERE event_id = $1", id),
	)
	d.deliver(t)

	// Killed, it leaves a database that the next start has to recover.
	d.signal(t, syscall.SIGKILL)
	<-d.exited
	require.Eventually(t, func() bool { return errors.Is(syscall.Kill(d.postmaster, 0), syscall.ESRCH) },
		patience, 10*time.Millisecond)
	// The terminal may still have the address that README lets one export.
	d = startDevIn(t, []string{"DATABASE_URL=" + d.spine.db.Config().ConnString()}, "--dir", dir)
	require.Equal(t, "deduplicated", d.spine.post(t, webhook(id, `{"user_id":123}`)).status())
	d.interrupt(t)
}

// TestDevKeepsNothing is also stopped while a delivery is under way that would
// take for ever.
func TestDevKeepsNothing(t *testing.T) {
	t.Parallel()
	held := newDestination(t)
	t.Cleanup(held.release)
	d := startDev(t, "--ephemeral", "--destination-url", held.url)
	id := newID("held")
	d.spine.accept(t, id, do("hold"))
	held.await(t, id, 1)
	d.interrupt(t)
	require.NoDirExists(t, d.folder)
	require.Regexp(t, `"PostgreSQL stopped, and its data is removed, as --ephemeral asks"}\n$`, d.output())
}

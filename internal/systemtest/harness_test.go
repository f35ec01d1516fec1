package systemtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/mockapi"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/store"
)

// patience limits waits that take milliseconds on an idle machine. It ends only a wait for something that never
// comes.
const patience = 3 * time.Minute

var databases = postgrestest.Databases{Migrate: func(ctx context.Context, url string) error {
	_, err := store.Migrate(ctx, url, nil)
	return err
}}

// target is a Spine under test with its database, wherever it runs.
type target struct {
	url  string
	mock string // base address of its mock API; empty where it has another destination
	db   *pgxpool.Pool
	http *http.Client

	patient bool // a request that is answered 503 is sent again, as senders do

	// Requests that may be sent again, and those of them that were answered 503 at first.
	sent, unavailable atomic.Int64
}

// newTarget knows the Spine at base by its database.
func newTarget(t *testing.T, base, database string) *target {
	t.Helper()
	return &target{url: strings.TrimRight(base, "/"), db: open(t, database, nil), http: newClient(t)}
}

// open makes a pool that is closed with the test.
func open(t *testing.T, database string, parameters map[string]string) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(database)
	require.NoError(t, err)
	config.MaxConns = 4
	for name, value := range parameters {
		config.ConnConfig.RuntimeParams[name] = value
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func newClient(t testing.TB) *http.Client {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport: transport, Timeout: patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// startService runs Spine in this process until the test ends, with settings such as "MAX_RETRY_ATTEMPTS=3". At the
// end it verifies the database.
func startService(t *testing.T, r service.Roles, database string, environment ...string) *target {
	t.Helper()
	t.Cleanup(func() { verified(t, database) })
	return newTarget(t, runService(t, r, database, environment...), database)
}

// runService is startService without the verification at the end. It returns the URL of the service.
func runService(t testing.TB, r service.Roles, database string, environment ...string) (base string) {
	t.Helper()
	return runServiceSaying(t, t.Output(), r, database, environment...)
}

// runServiceSaying is runService with a log of its own.
func runServiceSaying(
	t testing.TB, log io.Writer, r service.Roles, database string, environment ...string,
) (base string) {
	t.Helper()
	set, err := readSettings(append([]string{"DATABASE_URL=" + database, "LOG_LEVEL=warn"}, environment...)...)
	require.NoError(t, err)
	p, err := service.New(t.Context(), &set, r, "test", set.Log.Logger(log))
	require.NoError(t, err)
	// It runs until its cleanup: what was started after it ends first.
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		assert.NoError(t, <-ended)
	})
	s := &target{url: p.URL(), http: newClient(t)}
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		if len(ended) == 0 { // else its cleanup says why
			s.requireReady(t, c)
		}
	}, patience, 10*time.Millisecond)
	return p.URL()
}

// fewConnections suffices for a test. Each connection plans every statement anew, which takes most of the processor's
// time where a service lives for a second.
const fewConnections = "DB_MAX_CONNS=4"

// wholeRun leaves a test out of a short run. It takes seconds of a processor, and nearby tests hold most of the same.
// make proof runs it.
func wholeRun(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("in a whole run only: make proof, or make test RUN=" + t.Name())
	}
}

// openly are settings with which a test reaches everything at one address, and sends without a secret.
var openly = []string{"ADMIN_LISTEN=same", "ADMIN_AUTH=none", "DEFAULT_SOURCE=open"}

// secretFolder has the secrets of all tests. TestMain removes it.
var secretFolder = sync.OnceValue(func() string {
	folder, err := os.MkdirTemp("", "spine-secrets")
	if err != nil {
		panic(err)
	}
	return folder
})

// readSettings reads settings as a process does. The process listens on a free port, and has the settings openly.
func readSettings(environment ...string) (s service.Settings, err error) {
	texts := map[string]string{}
	basic := []string{"LISTEN=127.0.0.1:0", fewConnections, "SECRET_DIR=" + secretFolder()}
	for _, variable := range slices.Concat(basic, openly, environment) {
		name, text, _ := strings.Cut(variable, "=")
		texts[name] = text
		if name == "ADMIN_TOKEN" {
			delete(texts, "ADMIN_AUTH")
		}
	}
	for _, group := range service.Groups(&s) {
		err = errors.Join(err, service.Read(group, texts))
	}
	return s, err
}

// verified checks Spine's promises in the database that a test leaves behind, if it is still there.
func verified(t *testing.T, database string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, database)
	if err != nil || t.Failed() {
		return
	}
	defer func() { _ = conn.Close(ctx) }()
	found, err := conn.Query(
		ctx,
		"select invariant, examples::text from spine.verify(now() - interval '1 day') where violations > 0",
	)
	if assert.NoError(t, err) {
		broken, err := pgx.CollectRows(found, pgx.RowToStructByPos[struct{ Invariant, Examples string }])
		assert.NoError(t, err)
		assert.Empty(t, broken)
	}
}

// awaitReady waits until /readyz answers 200.
func (s *target) awaitReady(t testing.TB) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) { s.requireReady(t, c) }, patience, 10*time.Millisecond)
}

func (s *target) requireReady(t testing.TB, c *assert.CollectT) {
	r, err := s.do(t.Context(), http.MethodGet, "/readyz", nil)
	require.NoError(c, err)
	require.Equal(c, http.StatusOK, r.code, "%s", r.body)
}

var both = service.Roles{API: true, Worker: true}

// startMock runs the mock API in this process.
func startMock(t *testing.T, failureRate float64) string {
	t.Helper()
	mock, err := mockapi.New(mockapi.Config{Behaviour: mockapi.Behaviour{FailureRate: failureRate}})
	require.NoError(t, err)
	server := httptest.NewServer(mock)
	t.Cleanup(server.Close)
	return server.URL
}

// reply is an HTTP answer, read to its end.
type reply struct {
	code   int
	header http.Header
	body   []byte
}

// status is the member of that name, in receipts.
func (r reply) status() string {
	var receipt struct{ Status string }
	if json.Unmarshal(r.body, &receipt) != nil || r.code != http.StatusOK {
		return fmt.Sprintf("%d %s", r.code, r.body)
	}
	return receipt.Status
}

// do sends a request. header is pairs of name and value; a name given twice is
// sent twice.
func (s *target) do(ctx context.Context, method, path string, body io.Reader, header ...string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, body)
	if err != nil {
		return reply{}, err
	}
	for pair := range slices.Chunk(header, 2) {
		req.Header.Add(pair[0], pair[1])
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, text}, err
}

// request is do for a request that must be answered.
func (s *target) request(t *testing.T, method, path, body string, header ...string) reply {
	t.Helper()
	ask := func() (reply, error) { return s.do(t.Context(), method, path, strings.NewReader(body), header...) }
	if s.patient {
		patiently := ask
		ask = func() (reply, error) { return s.again(patiently) }
	}
	r, err := ask()
	require.NoError(t, err)
	return r
}

// again sends a request again while the answer is 503, as senders do.
func (s *target) again(ask func() (reply, error)) (r reply, err error) {
	s.sent.Add(1)
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		first := r.code == 0
		r, err = ask()
		if err != nil || r.code != http.StatusServiceUnavailable || time.Since(began) > patience {
			return r, err
		}
		if first {
			s.unavailable.Add(1)
		}
	}
}

func (s *target) post(t *testing.T, body string) reply {
	t.Helper()
	return s.request(t, http.MethodPost, "/webhook", body, "Content-Type", "application/json")
}

// accept posts an event that must be new.
func (s *target) accept(t *testing.T, id, payload string) {
	t.Helper()
	r, err := s.send(t.Context(), webhook(id, payload))
	require.NoError(t, err)
	require.Equal(t, "accepted", r.status())
}

// send posts an event as senders do: a busy machine may not store it within seconds.
func (s *target) send(ctx context.Context, body string) (reply, error) {
	return s.again(func() (reply, error) {
		return s.do(ctx, http.MethodPost, "/webhook", strings.NewReader(body), "Content-Type", "application/json")
	})
}

// stream follows the live stream from now on. It returns the rows of the audit log, each as JSON, until the stream
// ends.
func (s *target) stream(t *testing.T) <-chan string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/api/stream", nil)
	require.NoError(t, err)
	answer, err := (&http.Client{Transport: s.http.Transport}).Do(r)
	require.NoError(t, err)
	t.Cleanup(func() { _ = answer.Body.Close() })
	lines := bufio.NewReader(answer.Body)
	for line := ""; !strings.HasPrefix(line, "event: cursor"); {
		line, err = lines.ReadString('\n')
		require.NoError(t, err)
	}
	streamed := make(chan string, 1000)
	go func() {
		defer close(streamed)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			var rows []json.RawMessage
			if data, ok := strings.CutPrefix(line, "data: "); ok && json.Unmarshal([]byte(data), &rows) == nil {
				for _, row := range rows {
					streamed <- string(row)
				}
			}
		}
	}()
	return streamed
}

// newID returns an event id that no other test and no other run has.
func newID(name string) string { return name + "-" + uuid.NewString() }

// webhook is the body of a request.
func webhook(id, payload string) string {
	quoted, err := json.Marshal(id)
	if err != nil {
		panic(err) // a string is always fine
	}
	return fmt.Sprintf(
		`{"event_id":%s,"event_type":"user.created","occurred_at":"2024-01-30T12:00:00Z","payload":%s}`,
		quoted,
		payload,
	)
}

// value reads one value from the database.
func value[T any](t *testing.T, db *pgxpool.Pool, query string, args ...any) T {
	t.Helper()
	var v T
	require.NoError(t, db.QueryRow(t.Context(), query, args...).Scan(&v), query)
	return v
}

func execute(t *testing.T, db *pgxpool.Pool, statement string, args ...any) {
	t.Helper()
	_, err := db.Exec(t.Context(), statement, args...)
	require.NoError(t, err, statement)
}

// await waits until a query's one value is as wanted.
func await[T any](t *testing.T, db *pgxpool.Pool, want T, query string, args ...any) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var got T
		require.NoError(c, db.QueryRow(t.Context(), query, args...).Scan(&got), query)
		require.Equal(c, want, got, query)
	}, patience, 10*time.Millisecond)
}

// awaitStatus waits until an event has come to a status.
func (s *target) awaitStatus(t *testing.T, id, status string) {
	t.Helper()
	await(t, s.db, status, "select status from spine.processing_state where event_id = $1", id)
}

// step is a row of an event's trail.
type step struct {
	Timestamp time.Time
	Action    string
	Success   string
	Details   map[string]any
}

func (s *target) trail(t *testing.T, id string) []step {
	t.Helper()
	rows, err := s.db.Query(t.Context(), "select timestamp, action, success, details from spine.trace($1)", id)
	require.NoError(t, err)
	steps, err := pgx.CollectRows(rows, pgx.RowToStructByPos[step])
	require.NoError(t, err)
	return steps
}

// actions are a trail's actions in their order.
func (s *target) actions(t *testing.T, id string) []string {
	t.Helper()
	var actions []string
	for _, step := range s.trail(t, id) {
		actions = append(actions, step.Action)
	}
	return actions
}

// metric reads a metric: one of its series if name has labels, else their sum.
func (s *target) metric(t *testing.T, name string) float64 {
	t.Helper()
	value, err := s.tryMetric(t.Context(), name)
	require.NoError(t, err)
	return value
}

// tryMetric is metric, but may fail.
func (s *target) tryMetric(ctx context.Context, name string) (sum float64, err error) {
	r, err := s.do(ctx, http.MethodGet, "/metrics", nil, adminHeader()...)
	if err != nil {
		return 0, err
	}
	found := false
	for line := range strings.Lines(string(r.body)) {
		series, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		if got, _, _ := strings.Cut(series, "{"); got == name || series == name {
			n, err := strconv.ParseFloat(number, 64)
			if err != nil {
				return 0, err
			}
			sum, found = sum+n, true
		}
	}
	if !found {
		return 0, fmt.Errorf("%d, and there is no metric %s", r.code, name)
	}
	return sum, nil
}

// delivery is a request that a destination received.
type delivery struct {
	at     time.Time
	header http.Header
	body   []byte
}

// destination is a third party that does what an event's payload asks of it. The member "do" lists what to do with
// the first attempts. Each is a query of the mock API ("status=503&retry_after=2"), or "hold". "hold" waits for
// release and then succeeds. After the list everything succeeds. It remembers its deliveries.
type destination struct {
	url    string
	mock   *mockapi.Server
	server *httptest.Server

	mu      sync.Mutex
	got     map[string][]delivery // by webhook-id
	changed chan struct{}         // closed at every arrival, and made anew
	gate    chan struct{}         // closed by release, and made anew
}

func newDestination(t *testing.T) *destination {
	t.Helper()
	mock, err := mockapi.New(mockapi.Config{})
	require.NoError(t, err)
	d := &destination{mock: mock, got: map[string][]delivery{}, changed: make(chan struct{}), gate: make(chan struct{})}
	d.server = httptest.NewServer(d)
	t.Cleanup(d.server.Close)
	d.url = d.server.URL
	return d
}

func (d *destination) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	at := time.Now()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // cut by the sender
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	id := r.Header.Get("webhook-id")
	d.mu.Lock()
	d.got[id] = append(d.got[id], delivery{at, r.Header.Clone(), body})
	attempt := len(d.got[id])
	close(d.changed)
	d.changed = make(chan struct{})
	gate := d.gate
	d.mu.Unlock()

	var sent struct{ Payload struct{ Do []string } }
	_ = json.Unmarshal(body, &sent) // other payloads ask for nothing
	if todo := sent.Payload.Do; attempt <= len(todo) {
		if todo[attempt-1] == "hold" {
			select {
			case <-gate:
			case <-r.Context().Done():
				return
			}
		} else {
			r.URL.RawQuery = todo[attempt-1]
		}
	}
	d.mock.ServeHTTP(w, r)
}

// release lets every delivery go on that is held now.
func (d *destination) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.gate)
	d.gate = make(chan struct{})
}

// await waits until n deliveries of an event have arrived and returns all.
func (d *destination) await(t *testing.T, id string, n int) []delivery {
	t.Helper()
	limit := time.After(patience)
	for {
		d.mu.Lock()
		got, changed := d.got[id], d.changed
		d.mu.Unlock()
		if len(got) >= n {
			return got
		}
		select {
		case <-changed:
		case <-limit:
			require.FailNow(t, "deliveries are missing", "%s: %d of %d", id, len(got), n)
		}
	}
}

// count is how many deliveries of an event have arrived.
func (d *destination) count(id string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.got[id])
}

// startWithDestination is Spine with a destination that does what payloads ask.
func startWithDestination(t *testing.T, environment ...string) (*target, *destination) {
	t.Helper()
	d := newDestination(t)
	s := startService(t, both, databases.New(t), append([]string{"MOCK_API_URL=" + d.url}, environment...)...)
	t.Cleanup(d.release) // before the service stops, which would wait
	return s, d
}

// process is the real binary at work.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed after the end; code is set then
	code   int

	address string // where it serves, once it is ready

	mu      sync.Mutex
	out     bytes.Buffer // standard output and the log
	changed chan struct{}
}

// startProcess runs spine with settings and arguments, and ends it with the
// test. It inherits nothing from the environment that could be a setting. It
// has the settings openly, unless environment says otherwise.
func startProcess(t *testing.T, environment []string, args ...string) *process {
	t.Helper()
	path, err := exec.LookPath("spine")
	require.NoError(t, err)
	return startBinary(t, path, environment, args...)
}

// startBinary is startProcess with another spine than the one under test.
func startBinary(t *testing.T, path string, environment []string, args ...string) *process {
	t.Helper()
	p := &process{exited: make(chan struct{}), changed: make(chan struct{})}
	//nolint:gosec // made by this test, or it itself under the name of spine
	p.cmd = exec.CommandContext(
		context.WithoutCancel(t.Context()),
		path,
		args...)
	p.cmd.Env = append(
		[]string{
			"PATH=" + os.Getenv("PATH"),
			"HOME=" + os.Getenv("HOME"),
			"TMPDIR=" + os.Getenv("TMPDIR"),
			"SECRET_DIR=" + secretFolder(),
			"LOG_FORMAT=json",
		},
		slices.Concat(openly, environment)...)
	p.cmd.Dir = t.TempDir()
	read, write, err := os.Pipe()
	require.NoError(t, err)
	p.cmd.Stdout, p.cmd.Stderr = write, write
	require.NoError(t, p.cmd.Start())
	require.NoError(t, write.Close())
	go p.follow(read)

	t.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGCONT) // may have ended, as below
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.exited:
		case <-time.After(patience):
			_ = p.cmd.Process.Kill()
			<-p.exited
			t.Errorf("spine %s did not stop", strings.Join(args, " "))
		}
		if t.Failed() {
			t.Logf("spine %s said:\n%s", strings.Join(args, " "), p.output())
		}
		assert.NotContains(t, p.output(), "DATA RACE")
	})
	return p
}

// follow gathers what the process says, until its end.
func (p *process) follow(read io.ReadCloser) {
	defer func() { _ = read.Close() }()
	lines := bufio.NewReader(read)
	for {
		line, err := lines.ReadString('\n')
		p.mu.Lock()
		p.out.WriteString(line)
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
		if err != nil {
			break
		}
	}
	var exit *exec.ExitError
	if err := p.cmd.Wait(); errors.As(err, &exit) {
		p.code = exit.ExitCode()
	}
	close(p.exited)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// says waits until the process has said what find finds, and returns that.
func (p *process) says(t *testing.T, what string, find func(output string) string) string {
	t.Helper()
	limit := time.After(patience)
	for {
		p.mu.Lock()
		out, changed := p.out.String(), p.changed
		p.mu.Unlock()
		if found := find(out); found != "" {
			return found
		}
		select {
		case <-changed:
		case <-p.exited:
			require.FailNow(t, "spine has ended", "waiting for %s; it said:\n%s", what, p.output())
		case <-limit:
			require.FailNow(t, "spine does not say what it should", "waiting for %s", what)
		}
	}
}

// url is where the process serves HTTP.
func (p *process) url(t *testing.T) string {
	t.Helper()
	return p.says(t, "its address", func(out string) string {
		for line := range strings.Lines(out) {
			var entry struct{ Message, URL string }
			if json.Unmarshal([]byte(line), &entry) == nil && entry.Message == "serving" {
				return entry.URL
			}
		}
		return ""
	})
}

// ready waits until the process can do its work, and returns its address.
func (p *process) ready(t *testing.T) string {
	t.Helper()
	p.address = p.url(t)
	(&target{url: p.address, http: newClient(t)}).awaitReady(t)
	return p.address
}

// signal sends a signal to this process and no other.
func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(s))
}

// peakMemory is the most memory that the process ever had, in bytes. It is 0 if this is not Linux.
func (p *process) peakMemory(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), "status"))
	if runtime.GOOS != "linux" {
		return 0
	}
	require.NoError(t, err)
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	var kB int64
	_, err = fmt.Sscan(after, &kB)
	require.NoError(t, err)
	return kB << 10
}

// awaitExit waits for the process to end by itself and returns its exit code.
func (p *process) awaitExit(t *testing.T) int {
	t.Helper()
	select {
	case <-p.exited:
	case <-time.After(patience):
		require.FailNow(t, "spine does not end", "within %s; it said:\n%s", patience, p.output())
	}
	return p.code
}

// memoryFolder is a folder that every user may enter, in memory if possible: on a busy disk an fsync takes seconds.
func memoryFolder() string {
	const memory = "/dev/shm"
	if _, err := os.Stat(memory); err != nil {
		return "/var/tmp"
	}
	return memory
}

// as returns address with a parameter of the connection set, such as search_path.
func as(t *testing.T, address, parameter, value string) string {
	t.Helper()
	u, err := url.Parse(address)
	require.NoError(t, err)
	query := u.Query()
	query.Set(parameter, value)
	u.RawQuery = query.Encode()
	return u.String()
}

package systemtest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/postgres"
	"github.com/webhookspine/spine/internal/postgres/pgproxy"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/service"
)

// Faults on purpose: real processes under load, on a real PostgreSQL behind a proxy that can break. Everything that
// may fail does. `make faults` runs it.

// fault is one thing that was done to the system, and when.
type fault struct {
	kind, detail string
	start, end   time.Time
	normal       time.Duration // from when it was over to the first acknowledgement; 0 where none came
}

// Settings of the processes under test.
const (
	faultLease    = 3 * time.Second
	faultDelivery = time.Second // limit on an attempt
	faultBudget   = 12          // attempts
)

// snapshotHeld is a fault beside all others. It keeps dead rows from being removed, for minutes in a long run.
const snapshotHeld = "a snapshot is held open for a third of the run"

// harmless faults lose no result of a delivery that arrived.
var harmless = []string{
	snapshotHeld,
	"a snapshot is held open",
	queueFull,
	warned,
	"an API is killed",
	"an API stands still",
	wakeUpOff,
	keptAway,
	sessionsEnded,
}

// explains reports whether a fault may have lost the result of the first delivery, and so caused the other. The fault
// may be long over while the lease still runs.
func (f fault) explains(first, again time.Time) bool {
	return !slices.Contains(harmless, f.kind) && !strings.HasPrefix(f.kind, misdone) && f.start.Before(again) &&
		f.end.After(first.Add(-time.Second))
}

// silences reports whether an API may leave a request unanswered during a fault.
func (f fault) silences(request silence) bool {
	return (strings.Contains(f.kind, "API") || f.kind == replaced) && f.start.Before(request.to) &&
		f.end.After(request.from)
}

// misdone begins the names of the destination's misdeeds.
const misdone = "the destination answers with: "

// replaced is a rolling deploy.
const replaced = "all processes are replaced, one by one"

// cluster is Spine as it is deployed: two processes of each kind, which reach PostgreSQL by a proxy.
type cluster struct {
	t        *testing.T
	server   *postgres.Server        // the primary, where there are several
	proxy    *pgproxy.Proxy          // nil where they reach it without one
	direct   *pgproxy.Proxy          // the way of DIRECT_DATABASE_URL; nil where there is none
	pooler   *postgrestest.PgBouncer // behind the proxy; nil where there is none
	deaf     bool                    // notifications cannot arrive
	disk     string                  // folder of the small disk that the server has for itself; empty where there is none
	binary   string                  // path of what runs; empty for the one under test
	settings []string

	mu        sync.Mutex
	processes map[string][]*process // by command
	urls      []string              // of the APIs
}

// newCluster is a cluster whose processes are not started yet. They reach PostgreSQL at database.
func newCluster(t *testing.T, server *postgres.Server, database, destination string) *cluster {
	t.Helper()
	return &cluster{
		t:      t,
		server: server,
		settings: quiet("DATABASE_URL="+database, "DESTINATION_URL="+destination, "LEASE_DURATION="+faultLease.String(),
			"DELIVERY_TIMEOUT="+faultDelivery.String(), "INITIAL_RETRY_DELAY=100ms", "MAX_RETRY_DELAY=1s",
			"MAX_RETRY_ATTEMPTS="+strconv.Itoa(faultBudget), "SHUTDOWN_TIMEOUT=5s"),
		processes: map[string][]*process{
			"api":    make([]*process, 2),
			"worker": make([]*process, 2),
		},
		urls: make([]string, 2),
	}
}

// newProxiedCluster puts a proxy between the processes and a server of their own.
func newProxiedCluster(t *testing.T, server *postgres.Server, destination string) *cluster {
	t.Helper()
	proxy := newProxy(t, server.URL())
	c := newCluster(t, server, proxy.URL(), destination)
	c.proxy = proxy
	return c
}

func newProxy(t *testing.T, upstream string) *pgproxy.Proxy {
	t.Helper()
	proxy, err := pgproxy.New(upstream)
	require.NoError(t, err)
	t.Cleanup(func() { _ = proxy.Close() })
	return proxy
}

// ways are the proxies by which the processes reach PostgreSQL.
func (c *cluster) ways() []*pgproxy.Proxy {
	if c.direct == nil {
		return []*pgproxy.Proxy{c.proxy}
	}
	return []*pgproxy.Proxy{c.proxy, c.direct}
}

// onWays calls a method of each.
func (c *cluster) onWays(do func(*pgproxy.Proxy)) {
	for _, way := range c.ways() {
		do(way)
	}
}

// commands are the kinds of processes, in the order in which they start.
var commands = []string{"api", "worker"}

func (c *cluster) startAll() {
	c.t.Helper()
	for _, command := range commands {
		for i := range 2 {
			c.start(command, i)
		}
	}
}

// replace puts a new process in the place of another, which then stops gently.
func (c *cluster) replace(command string, i int) {
	c.t.Helper()
	old := c.process(command, i)
	c.start(command, i)
	old.signal(c.t, syscall.SIGTERM)
	require.Zero(c.t, old.awaitExit(c.t))
}

// start puts a new process in a place, and waits until it is ready.
func (c *cluster) start(command string, i int) {
	c.t.Helper()
	var p *process
	if c.binary == "" {
		p = startProcess(c.t, c.settings, command)
	} else {
		p = startBinary(c.t, c.binary, c.settings, command)
	}
	url := p.ready(c.t)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.processes[command][i] = p
	if command == "api" {
		c.urls[i] = url
	}
}

func (c *cluster) process(command string, i int) *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.processes[command][i]
}

// api is the address of one of the APIs.
func (c *cluster) api() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.urls[rand.IntN(len(c.urls))] //nolint:gosec // any will do
}

// psql runs statements on PostgreSQL itself, past the proxy.
func (c *cluster) psql(statements ...string) {
	c.t.Helper()
	c.insist(c.server.URL(), statements)
}

// superuser is psql as the superuser.
func (c *cluster) superuser(statements ...string) {
	c.t.Helper()
	c.insist(c.server.SuperuserURL(), statements)
}

// insist runs statements, each again while the server is away.
func (c *cluster) insist(url string, statements []string) {
	c.t.Helper()
	for _, statement := range statements {
		var err error
		for began := time.Now(); time.Since(began) < patience; time.Sleep(20 * time.Millisecond) {
			if err = c.tryAt(url, statement); err == nil || !service.IsUnreachable(err) {
				break
			}
		}
		require.NoError(c.t, err, statement)
	}
}

func (c *cluster) try(statement string) error { return c.tryAt(c.server.URL(), statement) }

func (c *cluster) tryAt(url, statement string) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return err
	}
	config.RuntimeParams["synchronous_commit"] = "on" // what a fault undoes stays undone, whoever is killed next
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, statement)
	return err
}

// awaitServer waits until PostgreSQL answers again.
func (c *cluster) awaitServer() {
	c.t.Helper()
	require.EventuallyWithT(c.t, func(collect *assert.CollectT) {
		require.NoError(collect, c.try("select 1"))
	}, patience, 20*time.Millisecond)
}

// between returns a duration of that range.
func between(random *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(random.Int64N(int64(most-least)))
}

// nemesis is all that is done to a cluster, by name. Each returns when it is undone.
var nemesis = map[string]func(c *cluster, random *rand.Rand) (detail string){
	"an API is killed":   func(c *cluster, random *rand.Rand) string { return c.kill("api", random) },
	"a worker is killed": func(c *cluster, random *rand.Rand) string { return c.kill("worker", random) },
	"an API stands still": func(c *cluster, random *rand.Rand) string {
		return c.freeze("api", random.IntN(2), between(random, 200*time.Millisecond, 2*time.Second))
	},
	"a worker stands still for longer than its lease": func(c *cluster, random *rand.Rand) string {
		return c.freeze(
			"worker",
			random.IntN(2),
			between(random, faultLease+500*time.Millisecond, faultLease+2*time.Second),
		)
	},
	replaced: func(c *cluster, _ *rand.Rand) string {
		for _, command := range commands {
			for i := range 2 {
				c.replace(command, i)
			}
		}
		return ""
	},
	"a backend of PostgreSQL is killed, and all others with it": func(c *cluster, _ *rand.Rand) string {
		ctx := c.t.Context()
		conn, err := pgx.Connect(ctx, c.server.URL())
		require.NoError(c.t, err)
		defer func() { _ = conn.Close(ctx) }()
		for killed := false; !killed; time.Sleep(10 * time.Millisecond) {
			var pid int
			err := conn.QueryRow(ctx,
				`select pid from pg_stat_activity
				where application_name like 'spine%' and pid <> pg_backend_pid()
				order by random() limit 1`).Scan(&pid)
			killed = err == nil && syscall.Kill(pid, syscall.SIGKILL) == nil // it may have been about to end
		}
		require.Eventually(
			c.t,
			func() bool { return conn.Ping(ctx) != nil },
			patience,
			10*time.Millisecond,
			"all sessions are ended with it",
		)
		c.awaitServer()
		return ""
	},
	postgresKilled: func(c *cluster, random *rand.Rand) string {
		down := between(random, 0, 2*time.Second)
		c.server.Kill()
		time.Sleep(down)
		require.NoError(c.t, c.server.Restart(c.t.Context()))
		return "started again after " + down.String()
	},
	"PostgreSQL is restarted": func(c *cluster, _ *rand.Rand) string {
		require.NoError(c.t, c.server.Restart(c.t.Context()))
		return ""
	},
	"all connections are cut": func(c *cluster, _ *rand.Rand) string {
		n := 0
		c.onWays(func(way *pgproxy.Proxy) { n += way.Cut() })
		return strconv.Itoa(n)
	},
	"connections are cut, one by one": func(c *cluster, random *rand.Rand) string {
		n := 1 + random.IntN(10)
		for range n {
			c.ways()[random.IntN(len(c.ways()))].CutOne()
			time.Sleep(between(random, time.Millisecond, 100*time.Millisecond))
		}
		return strconv.Itoa(n)
	},
	"connections are half-open": func(c *cluster, random *rand.Rand) string {
		lasts := between(random, 500*time.Millisecond, 3*time.Second)
		c.onWays((*pgproxy.Proxy).Stall)
		time.Sleep(lasts)
		c.onWays((*pgproxy.Proxy).Resume)
		return lasts.String()
	},
	"connections are half-open, and then cut": func(c *cluster, random *rand.Rand) string {
		c.onWays((*pgproxy.Proxy).Stall)
		time.Sleep(between(random, 500*time.Millisecond, 3*time.Second))
		c.onWays(func(way *pgproxy.Proxy) { way.Cut() })
		c.onWays((*pgproxy.Proxy).Resume)
		return ""
	},
	"connections are slow": func(c *cluster, random *rand.Rand) string {
		delay := between(random, 5*time.Millisecond, 100*time.Millisecond)
		c.onWays(func(way *pgproxy.Proxy) { way.Delay(delay) })
		time.Sleep(2 * time.Second)
		c.onWays(func(way *pgproxy.Proxy) { way.Delay(0) })
		return delay.String()
	},
	"connections are refused": func(c *cluster, random *rand.Rand) string {
		c.onWays((*pgproxy.Proxy).Refuse)
		time.Sleep(between(random, 200*time.Millisecond, 2*time.Second))
		c.onWays((*pgproxy.Proxy).Resume)
		return ""
	},
	"answers are lost": func(c *cluster, random *rand.Rand) string {
		return c.meet(random, pgproxy.DropAnswer, 2*time.Second)
	},
	"statements are cut off half-way": func(c *cluster, random *rand.Rand) string {
		return c.meet(random, []pgproxy.Action{pgproxy.CutBefore, pgproxy.CutAfter}[random.IntN(2)], time.Second)
	},
	sessionsEnded: func(c *cluster, _ *rand.Rand) string {
		c.psql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'spine listener'")
		return ""
	},
	keptAway: func(c *cluster, random *rand.Rand) string {
		lasts := between(random, time.Second, 3*time.Second)
		way := cmp.Or(c.direct, c.proxy)
		way.OnMessage(func(m pgproxy.Message) pgproxy.Action {
			if m.FromClient && strings.HasPrefix(strings.ToLower(m.SQL), "listen ") {
				return pgproxy.CutBefore
			}
			return pgproxy.Pass
		})
		c.psql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'spine listener'")
		time.Sleep(lasts)
		way.Forget()
		return lasts.String()
	},
	"every session is ended": func(c *cluster, _ *rand.Rand) string {
		c.psql(
			`select pg_terminate_backend(pid) from pg_stat_activity
			where application_name like 'spine%' and pid <> pg_backend_pid()`,
		)
		return ""
	},
	wakeUpOff: func(c *cluster, random *rand.Rand) string {
		c.psql("alter table spine.processing_state disable trigger processing_state_inserted")
		time.Sleep(between(random, time.Second, 3*time.Second))
		c.psql("alter table spine.processing_state enable trigger processing_state_inserted")
		return ""
	},
	"the audit log is locked": func(c *cluster, random *rand.Rand) string {
		lasts := between(random, 200*time.Millisecond, 2*time.Second)
		c.psql(
			fmt.Sprintf(
				"begin; lock table spine.audit_trail in exclusive mode; select pg_sleep(%f); commit",
				lasts.Seconds(),
			),
		)
		return lasts.String()
	},
	queueFull:    (*cluster).fillNotifyQueue,
	warned:       (*cluster).warn,
	readOnly:     (*cluster).readOnly,
	demoted:      (*cluster).demote,
	shortOfTime:  (*cluster).limitStatements,
	latin:        (*cluster).changeEncoding,
	poolerKilled: (*cluster).killPooler,
	diskFull: func(c *cluster, random *rand.Rand) string {
		lasts := between(random, time.Second, 3*time.Second)
		filled := c.fillDisk()
		time.Sleep(lasts)
		require.NoError(c.t, os.Remove(filled))
		for c.try("select 1") != nil {
			select {
			case <-c.server.Exited(): // it could not even recover
				require.NoError(c.t, c.server.Restart(c.t.Context()))
			case <-time.After(20 * time.Millisecond):
			}
		}
		return lasts.String()
	},
}

// diskFull needs a disk that may be filled.
const diskFull = "the disk of PostgreSQL is full"

// smallDisk makes a small file system for a server and returns its folder, or "" if this user may not mount one.
func smallDisk(t *testing.T, bytes int64) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "spine-disk-")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.Remove(dir)) })
	//nolint:gosec // a test's own folder
	if out, err := exec.CommandContext(
		t.Context(),
		"mount",
		"-t",
		"tmpfs",
		"-o",
		fmt.Sprintf("size=%d,mode=755", bytes),
		"tmpfs",
		dir,
	).CombinedOutput(); err != nil {
		t.Logf("*** No disk is filled: a file system for that cannot be mounted: %s ***", out)
		return ""
	}
	t.Cleanup(func() {
		//nolint:gosec // as above
		out, err := exec.CommandContext(
			context.WithoutCancel(t.Context()),
			"umount",
			"--lazy",
			dir,
		).CombinedOutput()
		assert.NoError(t, err, "%s", out)
	})
	return dir
}

// fillDisk fills the disk and returns the file that did it.
func (c *cluster) fillDisk() (path string) {
	c.t.Helper()
	path = filepath.Join(c.disk, "filled")
	file, err := os.Create(path) //nolint:gosec // a test's own folder
	require.NoError(c.t, err)
	defer func() { _ = file.Close() }()
	for size := 1 << 20; size > 0; size /= 16 {
		for err == nil {
			_, err = file.Write(make([]byte, size))
		}
		require.ErrorIs(c.t, err, syscall.ENOSPC)
		err = nil
	}
	return path
}

// holdSnapshot keeps a snapshot open until a time, and opens another if it is ended.
func (c *cluster) holdSnapshot(ctx context.Context, until time.Time) (times int) {
	for ; time.Now().Before(until) && ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		ctx, cancel := context.WithDeadline(ctx, until)
		if conn, err := pgx.Connect(ctx, c.server.URL()); err == nil {
			times++
			_, _ = conn.Exec(
				ctx,
				"begin isolation level repeatable read; select count(*) from spine.events; select pg_sleep(3600)",
			)
			_ = conn.Close(context.WithoutCancel(ctx))
		}
		cancel()
	}
	return times
}

func (c *cluster) kill(command string, random *rand.Rand) string {
	i := random.IntN(2)
	p := c.process(command, i)
	p.signal(c.t, syscall.SIGKILL)
	<-p.exited
	time.Sleep(between(random, 0, time.Second))
	c.start(command, i)
	return ""
}

// meet breaks some statements of one kind on their way.
func (c *cluster) meet(random *rand.Rand, how pgproxy.Action, d time.Duration) string {
	what := []string{"spine.ingest_events", "spine.claim", "spine.settle", "spine."}[random.IntN(4)]
	left := 1 + random.IntN(5)
	c.proxy.OnMessage(func(m pgproxy.Message) pgproxy.Action { // called one at a time
		if left > 0 && m.FromClient && m.Type == 'E' && strings.Contains(m.SQL, what) {
			left--
			return how
		}
		return pgproxy.Pass
	})
	time.Sleep(d)
	c.proxy.Forget()
	return what
}

func (c *cluster) freeze(command string, i int, d time.Duration) string {
	p := c.process(command, i)
	p.signal(c.t, syscall.SIGSTOP)
	time.Sleep(d)
	p.signal(c.t, syscall.SIGCONT)
	return d.String()
}

// chronicle is the list of faults.
type chronicle struct {
	mu   sync.Mutex
	done []fault
}

func (h *chronicle) note(kind string, do func() string) {
	f := fault{kind: kind, start: time.Now()}
	f.detail = do()
	f.end = time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done = append(h.done, f)
}

// deck deals the names in random order. Each comes once before any comes again.
func deck(names []string, random *rand.Rand) func() string {
	names = slices.Sorted(slices.Values(names))
	var left []string
	return func() string {
		if len(left) == 0 {
			left = slices.Clone(names)
			random.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
		}
		name := left[0]
		left = left[1:]
		return name
	}
}

// trialRun is a run of faults.
type trialRun struct {
	pooler   string // mode of the PgBouncer between the processes and PostgreSQL; empty for none
	seed     uint64
	duration time.Duration
	senders  uint64        // 25 requests a second each, at most
	patience time.Duration // for the deliveries that are left at the end
	kinds    []string      // of the nemesis; nil for all, and misdeeds of the destination
	last     string        // one of the nemesis that outlasts the load; empty for none
	misdeed  string        // of the destination in any case

	// These break Spine beforehand.
	changes    []sourceChange
	rewrites   []functionChange
	statements []string
}

// aftermath is the outcome of a run.
type aftermath struct {
	run         trialRun
	done        []fault
	acked       int64
	refused     map[string]int
	events      int
	deliveries  int
	repeated    int           // of these
	quiet       time.Duration // from the last fault's end until all was delivered or dead
	differences []string
}

func (run trialRun) do(t *testing.T) aftermath {
	t.Helper()
	source := func(stream uint64) *rand.Rand { return repeatable(run.seed, stream) }
	s := &senders{run: fmt.Sprintf("f%d", run.seed), http: newClient(t), kinds: map[string]int{}}
	d := newRecord(t, s, source(1))
	disk := ""
	switch {
	case run.kinds != nil:
	case run.duration > 30*time.Minute:
		t.Log("*** No disk is filled: it is made of memory, and there is not enough for so long a run ***")
	default:
		disk = smallDisk(t, 800<<20+int64(run.duration.Seconds())<<21)
	}
	c := run.cluster(t, postgrestest.ServerIn(t, disk), d.url)
	c.disk = disk
	kinds := run.usable(c)
	if run.changes != nil {
		c.binary = rebuild(t, run.changes...)
	}
	c.startAll()
	s.api = c.api
	c.rewrite(run.rewrites...)
	c.psql(run.statements...)
	d.misbehave(run.misdeed, 1)

	load, stopLoad := context.WithCancel(t.Context())
	var background sync.WaitGroup
	t.Cleanup(func() { // before the cluster goes, also where a fault has failed
		stopLoad()
		background.Wait()
	})
	for i := range run.senders {
		background.Go(func() { s.send(load, source(100+i), 40*time.Millisecond) })
	}
	var history chronicle
	until := time.Now().Add(run.duration)
	misdeedsDone := make(chan struct{})
	background.Go(func() {
		defer close(misdeedsDone)
		random := source(2)
		next := deck(misdeeds, random)
		for run.kinds == nil && time.Now().Before(until) && load.Err() == nil {
			time.Sleep(between(random, 200*time.Millisecond, time.Second))
			how, share := next(), []float64{0.05, 0.3, 1}[random.IntN(3)]
			history.note(misdone+how, func() string {
				d.misbehave(how, share)
				time.Sleep(between(random, 500*time.Millisecond, 3*time.Second))
				d.misbehave("", 0)
				return fmt.Sprintf("%.0f %%", 100*share)
			})
		}
	})
	if run.kinds == nil {
		background.Go(func() {
			select {
			case <-time.After(run.duration / 3):
				history.note(
					snapshotHeld,
					func() string { return fmt.Sprintf("%d times", c.holdSnapshot(load, until.Add(-run.duration/3))) },
				)
			case <-load.Done():
			}
		})
	}
	random := source(3)
	next := deck(kinds, random)
	for time.Now().Before(until) {
		time.Sleep(between(random, 200*time.Millisecond, time.Second))
		if len(kinds) == 0 {
			continue
		}
		kind := next()
		history.note(kind, func() string { return nemesis[kind](c, random) })
	}
	<-misdeedsDone
	ended := time.Now()
	if run.last == "" {
		time.Sleep(3 * time.Second) // it goes on
	} else {
		background.Go(func() { history.note(run.last, func() string { return nemesis[run.last](c, random) }) })
		time.Sleep(700 * time.Millisecond)
	}
	stopLoad()
	background.Wait()

	db, err := pgx.Connect(t.Context(), c.server.URL())
	require.NoError(t, err)
	defer func() { _ = db.Close(context.WithoutCancel(t.Context())) }()
	awaitRest(t, db, run.patience)
	o := aftermath{
		run:     run,
		done:    append(history.done, c.poolerEnds()...),
		acked:   s.acked.Load(),
		refused: s.kinds,
		events:  len(s.events),
		quiet:   time.Since(ended),
	}
	for i, f := range o.done {
		t.Logf("%s %s: %s, for %.1f s", f.start.Format(time.TimeOnly), f.kind, f.detail, f.end.Sub(f.start).Seconds())
		if at, ok := s.firstAck(f.end); ok {
			o.done[i].normal = max(at.Sub(overAt(o.done, f)), time.Nanosecond)
		}
	}
	d.mu.Lock()
	for _, arrived := range d.arrived {
		o.deliveries += len(arrived)
		o.repeated += len(arrived) - 1
	}
	d.mu.Unlock()
	o.differences = check(t, db, s, d, o.done, faultBudget)
	for _, f := range o.done {
		if f.end.Before(ended) && (f.normal == 0 || f.normal > normalWithin) {
			o.differences = append(
				o.differences,
				fmt.Sprintf(
					"after %q at %s nothing was acknowledged for %s",
					f.kind,
					f.end.Format(time.TimeOnly),
					normalWithin,
				),
			)
		}
	}
	o.differences = append(o.differences, s.interrupted(o.done)...)
	problems := c.unwell(s.http)
	for began := time.Now(); len(problems) > 0 && time.Since(began) < normalWithin; problems = c.unwell(s.http) {
		time.Sleep(50 * time.Millisecond)
	}
	o.differences = append(o.differences, problems...)
	return o
}

// normalWithin is how soon after a fault the next acknowledgement must come, whatever else has begun meanwhile.
const normalWithin = 15 * time.Second

// overAt is when a fault is over, and with it the faults under way at its end. A destination's misdeed may end while
// PostgreSQL recovers from a kill. That recovery alone may take longer than normalWithin.
func overAt(done []fault, f fault) time.Time {
	at := f.end
	for _, other := range done {
		if !strings.HasPrefix(other.kind, misdone) && other.kind != snapshotHeld &&
			!other.start.After(f.end) && other.end.After(at) {
			at = other.end
		}
	}
	return at
}

func TestAFaultIsOverWithWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	began := time.Now()
	lasting := func(kind string, from, to int) fault {
		return fault{kind: kind, start: began.Add(time.Duration(from)), end: began.Add(time.Duration(to))}
	}
	done := []fault{
		lasting(misdone+"500", 0, 10), lasting("PostgreSQL is killed", 5, 30), lasting("an API is killed", 31, 40),
		lasting(misdone+"410", 8, 50), lasting(snapshotHeld, 0, 1000),
	}
	require.Equal(t, done[1].end, overAt(done, done[0]))
	require.Equal(t, done[1].end, overAt(done, done[1]))
	require.Equal(t, done[3].end, overAt(done, done[3]))
}

// unwell says which processes do not work as they should.
func (c *cluster) unwell(client *http.Client) (problems []string) {
	for _, command := range commands {
		for i := range 2 {
			p := c.process(command, i)
			up, err := (&target{url: p.address, http: client}).tryMetric(c.t.Context(), "spine_listener_up")
			switch {
			case err != nil:
				problems = append(problems, fmt.Sprintf("%s %d does not answer: %s", command, i, err))
			case up != 1 && !c.deaf:
				problems = append(problems, fmt.Sprintf("%s %d does not hear notifications", command, i))
			case strings.Contains(p.output(), "panic:"):
				problems = append(problems, fmt.Sprintf("%s %d has panicked", command, i))
			}
		}
	}
	return problems
}

// awaitRest waits until every event is delivered or dead, but not for long. check finds those that are neither by
// then.
func awaitRest(t *testing.T, db *pgx.Conn, patience time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var left bool
		require.NoError(
			t,
			db.QueryRow(t.Context(),
				`select exists (
					select from spine.processing_state where status in ('pending', 'failed', 'processing'))`).Scan(&left),
		)
		if !left {
			return
		}
	}
}

// repeatable are random numbers, the same for each seed and stream.
func repeatable(seed, stream uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, stream)) //nolint:gosec // is to be repeatable
}

// report is a page that says what was done, what was promised, and what was seen.
func (o aftermath) report() string {
	var b strings.Builder
	fmt.Fprintf(
		&b,
		"Seed %d, %s: %d faults of %d kinds, %d acknowledged, %d not (%v), "+
			"%d events, %d deliveries of which %d were not the first. ",
		o.run.seed,
		o.run.duration,
		len(o.done),
		len(o.kinds()),
		o.acked,
		func() (n int) {
			for _, k := range o.refused {
				n += k
			}
			return n
		}(),
		o.refused,
		o.events,
		o.deliveries,
		o.repeated,
	)
	fmt.Fprintf(
		&b,
		"All was delivered or dead %.1f s after the last fault. %d differences.\n\n",
		o.quiet.Seconds(),
		len(o.differences),
	)
	fmt.Fprintf(&b, "| what was done | times | longest until the next acknowledgement |\n|---|---|---|\n")
	kinds := o.kinds()
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		var most time.Duration
		for _, f := range kinds[kind] {
			most = max(most, f.normal)
		}
		fmt.Fprintf(&b, "| %s | %d | %.2f s |\n", kind, len(kinds[kind]), most.Seconds())
	}
	for i, difference := range o.differences {
		if i == 30 {
			fmt.Fprintf(&b, "- and %d more\n", len(o.differences)-i)
			break
		}
		fmt.Fprintf(&b, "- %s\n", difference)
	}
	return b.String()
}

func (o aftermath) kinds() map[string][]fault {
	kinds := map[string][]fault{}
	for _, f := range o.done {
		kinds[f.kind] = append(kinds[f.kind], f)
	}
	return kinds
}

// TestFaults runs for SPINE_FAULTS_TIME with SPINE_FAULTS_SEED, or one of its own. SPINE_FAULTS_POOLER is the mode of a
// pooler between. SPINE_FAULTS_KINDS is a pattern: the run then has the kinds of the nemesis that match it, and no
// misdeeds.
func TestFaults(t *testing.T) {
	duration, err := time.ParseDuration(os.Getenv("SPINE_FAULTS_TIME"))
	if err != nil {
		t.Skip("make faults runs it: it wants SPINE_FAULTS_TIME, such as 90s")
	}
	seed, err := strconv.ParseUint(os.Getenv("SPINE_FAULTS_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64N(1_000_000) //nolint:gosec // any will do
	}
	pooler := os.Getenv("SPINE_FAULTS_POOLER")
	require.Contains(t, []string{"", "session", "transaction"}, pooler, "SPINE_FAULTS_POOLER")
	t.Logf("seed %d", seed)
	run := trialRun{seed: seed, duration: duration, senders: 32, patience: patience, pooler: pooler}
	if pattern := os.Getenv("SPINE_FAULTS_KINDS"); pattern != "" {
		kinds, err := regexp.Compile(pattern)
		require.NoError(t, err, "SPINE_FAULTS_KINDS")
		for kind := range nemesis {
			if kinds.MatchString(kind) {
				run.kinds = append(run.kinds, kind)
			}
		}
		require.NotEmpty(t, run.kinds, "SPINE_FAULTS_KINDS fits no kind")
	}
	o := run.do(t)
	t.Log("\n" + o.report())
	require.Empty(t, o.differences)
	require.Positive(t, o.acked)
}

package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
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
)

// Faults on purpose: real processes on a real PostgreSQL behind a proxy that can
// break, under load, while everything fails that may. `make faults` runs it.

// fault is what was done to the system, and when.
type fault struct {
	kind, detail string
	start, end   time.Time
	normal       time.Duration // from its end to the first acknowledgement
}

// Settings of the processes under test.
const (
	faultLease    = 3 * time.Second
	faultDelivery = time.Second // limit on an attempt
	faultBudget   = 12          // attempts
)

// explains is true of a fault that may have lost the result of a delivery which
// arrived at first, so that there was another: while a lease runs the first fault
// may long be over.
func (f fault) explains(first, again time.Time) bool {
	return f.start.Before(again) && f.end.After(first.Add(-time.Second))
}

// cluster is Spine as it is deployed: two processes of each kind, and PostgreSQL,
// which they reach by a proxy.
type cluster struct {
	t        *testing.T
	server   *postgres.Server
	proxy    *pgproxy.Proxy
	settings []string

	mu        sync.Mutex
	processes map[string][]*process // by command
	urls      []string              // of the APIs
}

func startCluster(t *testing.T, destination string) *cluster {
	t.Helper()
	c := &cluster{t: t, server: postgrestest.Server(t), processes: map[string][]*process{}}
	var err error
	c.proxy, err = pgproxy.New(c.server.URL())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.proxy.Close() })
	c.settings = quiet("DATABASE_URL="+c.proxy.URL(), "DESTINATION_URL="+destination, "LEASE_DURATION="+faultLease.String(),
		"DELIVERY_TIMEOUT="+faultDelivery.String(), "INITIAL_RETRY_DELAY=100ms", "MAX_RETRY_DELAY=1s",
		"MAX_RETRY_ATTEMPTS="+strconv.Itoa(faultBudget), "SHUTDOWN_TIMEOUT=5s")
	c.urls = make([]string, 2)
	for _, command := range []string{"api", "worker"} {
		c.processes[command] = make([]*process, 2)
		for i := range 2 {
			c.start(command, i)
		}
	}
	return c
}

// start puts a new process in a place, and waits until it is ready.
func (c *cluster) start(command string, i int) {
	c.t.Helper()
	p := startProcess(c.t, c.settings, command)
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
	for _, statement := range statements {
		require.NoError(c.t, c.try(statement), statement)
	}
}

func (c *cluster) try(statement string) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.server.URL())
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

// nemesis is what is done to a cluster, by name. Each returns when it is undone.
var nemesis = map[string]func(c *cluster, random *rand.Rand) (detail string){
	"an API is killed":   func(c *cluster, random *rand.Rand) string { return c.kill("api", random) },
	"a worker is killed": func(c *cluster, random *rand.Rand) string { return c.kill("worker", random) },
	"an API stands still": func(c *cluster, random *rand.Rand) string {
		return c.freeze("api", random.IntN(2), between(random, 200*time.Millisecond, 2*time.Second))
	},
	"a worker stands still for longer than its lease": func(c *cluster, random *rand.Rand) string {
		return c.freeze("worker", random.IntN(2), between(random, faultLease+500*time.Millisecond, faultLease+2*time.Second))
	},
	"all processes are replaced, one by one": func(c *cluster, _ *rand.Rand) string {
		for _, command := range []string{"api", "worker"} {
			for i := range 2 {
				old := c.process(command, i)
				c.start(command, i)
				old.signal(c.t, syscall.SIGTERM)
				require.Zero(c.t, old.awaitExit(c.t, patience))
			}
		}
		return ""
	},
	"a backend of PostgreSQL is killed, and all others with it": func(c *cluster, _ *rand.Rand) string {
		ctx := c.t.Context()
		conn, err := pgx.Connect(ctx, c.server.URL())
		require.NoError(c.t, err)
		defer func() { _ = conn.Close(ctx) }()
		var pid int
		require.NoError(c.t, conn.QueryRow(ctx, "select pid from pg_stat_activity where application_name like 'spine%' and pid <> pg_backend_pid() order by random() limit 1").Scan(&pid))
		require.NoError(c.t, syscall.Kill(pid, syscall.SIGKILL))
		time.Sleep(50 * time.Millisecond)
		c.awaitServer()
		return ""
	},
	"PostgreSQL is killed": func(c *cluster, random *rand.Rand) string {
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
	"all connections are cut": func(c *cluster, _ *rand.Rand) string { return fmt.Sprint(c.proxy.Cut()) },
	"connections are cut, one by one": func(c *cluster, random *rand.Rand) string {
		n := 1 + random.IntN(10)
		for range n {
			c.proxy.CutOne()
			time.Sleep(between(random, time.Millisecond, 100*time.Millisecond))
		}
		return strconv.Itoa(n)
	},
	"connections are half-open": func(c *cluster, random *rand.Rand) string {
		lasts := between(random, 500*time.Millisecond, 3*time.Second)
		c.proxy.Stall()
		time.Sleep(lasts)
		c.proxy.Resume()
		return lasts.String()
	},
	"connections are half-open, and then cut": func(c *cluster, random *rand.Rand) string {
		c.proxy.Stall()
		time.Sleep(between(random, 500*time.Millisecond, 3*time.Second))
		c.proxy.Cut()
		c.proxy.Resume()
		return ""
	},
	"connections are slow": func(c *cluster, random *rand.Rand) string {
		delay := between(random, 5*time.Millisecond, 100*time.Millisecond)
		c.proxy.Delay(delay)
		time.Sleep(2 * time.Second)
		c.proxy.Delay(0)
		return delay.String()
	},
	"connections are refused": func(c *cluster, random *rand.Rand) string {
		c.proxy.Refuse()
		time.Sleep(between(random, 200*time.Millisecond, 2*time.Second))
		c.proxy.Resume()
		return ""
	},
	"answers are lost": func(c *cluster, random *rand.Rand) string {
		return c.meet(random, pgproxy.DropAnswer, 2*time.Second)
	},
	"statements are cut off half-way": func(c *cluster, random *rand.Rand) string {
		return c.meet(random, []pgproxy.Action{pgproxy.CutBefore, pgproxy.CutAfter}[random.IntN(2)], time.Second)
	},
	"the listeners' sessions are ended": func(c *cluster, _ *rand.Rand) string {
		c.psql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'spine listener'")
		return ""
	},
	"every session is ended": func(c *cluster, _ *rand.Rand) string {
		c.psql("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'spine%' and pid <> pg_backend_pid()")
		return ""
	},
	"the wake-up trigger is off": func(c *cluster, random *rand.Rand) string {
		c.psql("alter table spine.processing_state disable trigger processing_state_inserted")
		time.Sleep(between(random, time.Second, 3*time.Second))
		c.psql("alter table spine.processing_state enable trigger processing_state_inserted")
		return ""
	},
	"the audit log is locked": func(c *cluster, random *rand.Rand) string {
		lasts := between(random, 200*time.Millisecond, 2*time.Second)
		c.psql(fmt.Sprintf("begin; lock table spine.audit_trail in exclusive mode; select pg_sleep(%f); commit", lasts.Seconds()))
		return lasts.String()
	},
	"a snapshot is held open": func(c *cluster, random *rand.Rand) string {
		lasts := between(random, 2*time.Second, 4*time.Second)
		c.psql(fmt.Sprintf("begin isolation level repeatable read; select count(*) from spine.events; select pg_sleep(%f); commit", lasts.Seconds()))
		return lasts.String()
	},
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

// meet has some statements of one kind come to grief on their way.
func (c *cluster) meet(random *rand.Rand, how pgproxy.Action, d time.Duration) string {
	what := []string{"spine.ingest_events", "spine.claim_batch", "spine.settle", "spine."}[random.IntN(4)]
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

// deck deals the names in random order, each once before any comes again.
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
	seed     uint64
	duration time.Duration
	senders  uint64                         // 25 requests a second each, at most
	patience time.Duration                  // for what is left to be delivered at the end
	kinds    []string                       // of the nemesis; nil for all, and misdeeds of the destination
	misdeed  string                         // of the destination in any case
	sabotage func(t *testing.T, c *cluster) // breaks Spine beforehand
}

// aftermath is what came of it.
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
	source := func(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(run.seed, stream)) } //nolint:gosec // is to be repeatable
	s := &senders{run: fmt.Sprintf("f%d", run.seed), http: newClient(t), kinds: map[string]int{}}
	d := newRecord(t, s, source(1))
	c := startCluster(t, d.url)
	s.api = c.api
	if run.sabotage != nil {
		run.sabotage(t, c)
	}
	d.misbehave(run.misdeed, 1)

	load, stopLoad := context.WithCancel(t.Context())
	defer stopLoad()
	var background sync.WaitGroup
	for i := range run.senders {
		background.Go(func() { s.send(load, source(100+i), 40*time.Millisecond) })
	}
	var history chronicle
	until := time.Now().Add(run.duration)
	misdeedsDone := make(chan struct{})
	go func() {
		defer close(misdeedsDone)
		random := source(2)
		next := deck(misdeeds, random)
		for run.kinds == nil && time.Now().Before(until) {
			time.Sleep(between(random, 200*time.Millisecond, time.Second))
			how, share := next(), []float64{0.05, 0.3, 1}[random.IntN(3)]
			history.note("the destination answers with: "+how, func() string {
				d.misbehave(how, share)
				time.Sleep(between(random, 500*time.Millisecond, 3*time.Second))
				d.misbehave("", 0)
				return fmt.Sprintf("%.0f %%", 100*share)
			})
		}
	}()
	random := source(3)
	kinds := run.kinds
	if kinds == nil {
		kinds = slices.Collect(maps.Keys(nemesis))
	}
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
	time.Sleep(3 * time.Second) // it goes on
	stopLoad()
	background.Wait()

	db, err := pgx.Connect(t.Context(), c.server.URL())
	require.NoError(t, err)
	defer func() { _ = db.Close(context.WithoutCancel(t.Context())) }()
	for deadline := time.Now().Add(run.patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var left bool
		require.NoError(t, db.QueryRow(t.Context(), "select exists (select from spine.processing_state where status in ('pending', 'failed', 'processing'))").Scan(&left))
		if !left {
			break
		}
	}
	o := aftermath{run: run, done: history.done, acked: s.acked.Load(), refused: s.kinds, events: len(s.events), quiet: time.Since(ended)}
	for i, f := range o.done {
		t.Logf("%s %s: %s, for %.1f s", f.start.Format(time.TimeOnly), f.kind, f.detail, f.end.Sub(f.start).Seconds())
		if at, ok := s.firstAck(o.done[i].end); ok {
			o.done[i].normal = at.Sub(o.done[i].end)
		}
	}
	for _, arrived := range d.arrived {
		o.deliveries += len(arrived)
		o.repeated += len(arrived) - 1
	}
	o.differences = check(t, db, s, d, o.done, faultBudget)
	return o
}

// report is a page that says what was done to it, what was promised, and what was
// seen.
func (o aftermath) report() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Seed %d, %s: %d faults of %d kinds, %d acknowledged, %d not (%v), %d events, %d deliveries of which %d were not the first. ",
		o.run.seed, o.run.duration, len(o.done), len(o.kinds()), o.acked, func() (n int) {
			for _, k := range o.refused {
				n += k
			}
			return n
		}(), o.refused, o.events, o.deliveries, o.repeated)
	fmt.Fprintf(&b, "All was delivered or dead %.1f s after the last fault. %d differences.\n\n", o.quiet.Seconds(), len(o.differences))
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

// TestFaults runs for SPINE_FAULTS_TIME with SPINE_FAULTS_SEED, or one of its own.
func TestFaults(t *testing.T) {
	duration, err := time.ParseDuration(os.Getenv("SPINE_FAULTS_TIME"))
	if err != nil {
		t.Skip("make faults runs it: it wants SPINE_FAULTS_TIME, such as 90s")
	}
	seed, err := strconv.ParseUint(os.Getenv("SPINE_FAULTS_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64N(1_000_000) //nolint:gosec // any will do
	}
	t.Logf("seed %d", seed)
	o := trialRun{seed: seed, duration: duration, senders: 32, patience: patience}.do(t)
	t.Log("\n" + o.report())
	require.Empty(t, o.differences)
	require.Positive(t, o.acked)
}

// rewrite changes the text of one of Spine's functions in the database.
func rewrite(t *testing.T, c *cluster, function, from, to string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.server.URL())
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	var text string
	require.NoError(t, conn.QueryRow(t.Context(), "select pg_get_functiondef(p.oid) from pg_proc p where p.pronamespace = 'spine'::regnamespace and p.proname = $1", function).Scan(&text))
	require.Contains(t, text, from)
	_, err = conn.Exec(t.Context(), strings.ReplaceAll(text, from, to))
	require.NoError(t, err)
}

// TestSabotageIsFound breaks Spine's promises on purpose, each in a run of its own:
// a checker that says nothing of it would prove nothing.
func TestSabotageIsFound(t *testing.T) {
	if os.Getenv("SPINE_FAULTS_TIME") == "" {
		t.Skip("make faults runs it: it wants SPINE_FAULTS_TIME, such as 90s")
	}
	for name, c := range map[string]struct {
		run   trialRun
		finds []string // in differences
	}{
		"acknowledged and not stored": {trialRun{kinds: []string{}, sabotage: func(t *testing.T, c *cluster) {
			rewrite(t, c, "ingest_events", "return _outcome;", `if random() < 0.01 then
				delete from processing_state p where p.event_id = _event_id[1];
				delete from audit_trail a where a.event_id = _event_id[1];
				delete from events e where e.event_id = _event_id[1];
			end if; return _outcome;`)
		}}, []string{"was acknowledged, and is lost"}},
		"stored with other bytes": {trialRun{kinds: []string{}, sabotage: func(t *testing.T, c *cluster) {
			rewrite(t, c, "ingest_events", "return _outcome;", `if random() < 0.01 then
				update events e set payload = e.payload::jsonb::json where e.event_id = _event_id[1];
			end if; return _outcome;`)
		}}, []string{"is stored with bytes that nobody sent"}},
		"results of lost leases count": {trialRun{kinds: []string{}, misdeed: "late", sabotage: func(t *testing.T, c *cluster) {
			rewrite(t, c, "claim_batch", "_now + _lease", "_now + interval '50 ms'") // or a worker would have given up by itself
			rewrite(t, c, "settle", "p.lease_token = i.lease", "true")
		}}, []string{"leases that ended more than once", "lease_spent_once"}},
		"a lease is shorter than the delivery": {trialRun{kinds: []string{}, misdeed: "late", sabotage: func(t *testing.T, c *cluster) {
			rewrite(t, c, "claim_batch", "_now + _lease", "_now + interval '50 ms'")
		}}, []string{"and no fault explains it"}},
		"failures count as successes": {trialRun{kinds: []string{}, misdeed: "500", sabotage: func(t *testing.T, c *cluster) {
			rewrite(t, c, "settle", "status = i.outcome", "status = 'completed'")
		}}, []string{"which did not arrive"}},
		"neither wake-up nor sweep finds some": {trialRun{kinds: []string{}, sabotage: func(t *testing.T, c *cluster) {
			c.psql(`create function spine.sabotage() returns trigger language plpgsql as 'begin if random() < 0.01 then new.next_attempt_at := null; end if; return new; end'`,
				"create trigger sabotage before insert on spine.processing_state for each row execute function spine.sabotage()")
		}}, []string{"is pending, and nothing goes on", "row_claimable"}},
		"attempts beyond the budget": {trialRun{kinds: []string{}, misdeed: "500", sabotage: func(t *testing.T, c *cluster) {
			rewrite(t, c, "settle", "status = i.outcome", "status = case when i.outcome = 'dead' then 'failed' else i.outcome end")
			rewrite(t, c, "settle", "case when i.outcome = 'failed' then _now + i.delay end", "_now + coalesce(i.delay, '10 ms')")
		}}, []string{"of 12 at most"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run := c.run
			run.seed, run.duration, run.senders, run.patience = 1, 6*time.Second, 12, 5*time.Second
			o := run.do(t)
			all := strings.Join(o.differences, "\n")
			require.NotEmpty(t, all)
			for _, what := range c.finds {
				assert.Contains(t, all, what)
			}
		})
	}
}

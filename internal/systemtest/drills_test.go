package systemtest

import (
	"context"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/postgres/postgrestest"
)

// Drills go through what an operator goes through: recovery, an upgrade, overload. `make drills` runs them. Their
// limits are what the documents promise.

// drills is how often each drill is repeated.
func drills(t *testing.T) int {
	t.Helper()
	times, err := strconv.Atoi(os.Getenv("SPINE_DRILLS"))
	if err != nil {
		t.Skip("make drills runs it: it wants SPINE_DRILLS, such as 20")
	}
	return times
}

// drill is a cluster with senders and a destination.
type drill struct {
	t       *testing.T
	cluster *cluster
	senders *senders
	record  *record
	history chronicle
}

func newDrill(t *testing.T, name string) *drill {
	t.Helper()
	return newDrillOn(
		t,
		name,
		func(destination string) *cluster { return newProxiedCluster(t, postgrestest.Server(t), destination) },
	)
}

// newDrillOn is newDrill on another cluster.
func newDrillOn(t *testing.T, name string, cluster func(destination string) *cluster) *drill {
	t.Helper()
	s := &senders{run: name, http: newClient(t), kinds: map[string]int{}}
	s.http.Transport.(*http.Transport).MaxIdleConnsPerHost = 4096
	d := &drill{t: t, senders: s, record: newRecord(t, s, repeatable(1, 1))}
	d.cluster = cluster(d.record.url)
	s.api = d.cluster.api
	return d
}

// flows waits until events are acknowledged and all processes work.
func (d *drill) flows() {
	d.t.Helper()
	from := d.senders.acked.Load()
	require.Eventually(
		d.t,
		func() bool { return d.senders.acked.Load() >= from+50 && len(d.cluster.unwell(d.senders.http)) == 0 },
		patience,
		5*time.Millisecond,
	)
}

// load sends at some 25 requests a second for each sender, until stop is called.
func (d *drill) load(senders uint64) (stop func()) {
	load, cancel := context.WithCancel(d.t.Context())
	var background sync.WaitGroup
	for i := range senders {
		background.Go(func() { d.senders.send(load, repeatable(1, 100+i), 40*time.Millisecond) })
	}
	stop = sync.OnceFunc(func() {
		cancel()
		background.Wait()
	})
	d.t.Cleanup(stop)
	return stop
}

func (d *drill) database() *pgx.Conn {
	d.t.Helper()
	db, err := pgx.Connect(d.t.Context(), d.cluster.server.URL())
	require.NoError(d.t, err)
	d.t.Cleanup(func() { _ = db.Close(context.WithoutCancel(d.t.Context())) })
	return db
}

// keeps requires that there are no differences.
func (d *drill) keeps() {
	d.t.Helper()
	require.Empty(d.t, d.differences())
}

// differences are those between promises and what is stored, once all is at rest.
func (d *drill) differences() []string {
	d.t.Helper()
	db := d.database()
	awaitRest(d.t, db, patience)
	return check(d.t, db, d.senders, d.record, d.history.done, faultBudget)
}

// TestDrillWorkerDies kills a worker. Others have claimed its events within the lease and one second.
func TestDrillWorkerDies(t *testing.T) {
	for n := range min(drills(t), 3) {
		t.Run(strconv.Itoa(n), workerDies)
	}
}

func workerDies(t *testing.T) {
	d := newDrill(t, "dies")
	d.cluster.settings = append(d.cluster.settings, "DELIVERY_TIMEOUT=30s")
	d.cluster.start("api", 0)
	d.cluster.start("api", 1)
	d.cluster.start("worker", 0)
	d.record.misbehave("hang", 1)
	const events = 40
	for range events {
		d.senders.post(t.Context(), d.senders.next(), 0)
	}
	db := d.database()
	awaitAttempts := func(attempt int) {
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			var n int
			require.NoError(c, db.QueryRow(t.Context(),
				`select count(*) from spine.audit_log
				where action = 'processing_attempt_started' and (details ->> 'attempt')::int = $1`,
				attempt).Scan(&n))
			require.Equal(c, events, n)
		}, patience, 10*time.Millisecond)
	}
	awaitAttempts(1)
	d.cluster.start("worker", 1)
	time.Sleep(faultLease) // leases have been renewed
	d.record.misbehave("", 0)
	d.history.note("a worker is killed", func() string {
		p := d.cluster.process("worker", 0)
		p.signal(t, syscall.SIGKILL)
		<-p.exited
		awaitAttempts(2)
		return ""
	})
	var other time.Time
	require.NoError(
		t,
		db.QueryRow(t.Context(), "select max(timestamp) from spine.audit_log where action = 'processing_attempt_started'").
			Scan(&other),
	)
	took := other.Sub(d.history.done[0].start)
	t.Logf("in other hands %.2f s after a worker's death, with leases of %s", took.Seconds(), faultLease)
	require.Less(t, took, faultLease+time.Second)
	d.keeps()
}

// TestDrillPostgresComesBack restarts PostgreSQL. Spine answers 200 within two seconds and hears notifications within
// three, however long the database was away.
func TestDrillPostgresComesBack(t *testing.T) {
	times := drills(t)
	d := newDrill(t, "back")
	d.cluster.startAll()
	stop := d.load(8)
	for n := range times {
		d.flows()
		away := []time.Duration{0, 3 * time.Second, 12 * time.Second}[n%3]
		d.history.note("PostgreSQL is away", func() string {
			d.cluster.server.Kill()
			time.Sleep(away)
			require.NoError(t, d.cluster.server.Restart(t.Context()))
			back := time.Now()
			require.Eventually(
				t,
				func() bool { return len(d.cluster.unwell(d.senders.http)) == 0 },
				patience,
				5*time.Millisecond,
			)
			heard := time.Since(back)
			d.flows()
			at, _ := d.senders.firstAck(back)
			t.Logf(
				"away for %s: acknowledged %.2f s after it was back, all listeners %.2f s after",
				away,
				at.Sub(back).Seconds(),
				heard.Seconds(),
			)
			require.Less(t, at.Sub(back), 2*time.Second)
			require.Less(t, heard, 3*time.Second)
			return away.String()
		})
	}
	stop()
	d.keeps()
}

// tomorrow is the schema of a release after this one.
var tomorrow = sourceChange{file: "sql/migrations/9000_tomorrow.sql", to: `-- +goose Up
set local lock_timeout = '2s';
alter table spine.events add column tomorrow text;
alter table spine.processing_state add column tomorrow integer not null default 7;
alter table spine.audit_trail add column tomorrow text;
alter table spine.rejected_requests add column tomorrow text;
alter table spine.sources add column tomorrow text;
create index events_tomorrow on spine.events (tomorrow) where tomorrow is not null;
`}

// TestDrillUpgrade replaces each process by one of the next release, under load, while somebody's transaction delays
// the migration. No client notices.
func TestDrillUpgrade(t *testing.T) {
	drills(t)
	next := rebuild(
		t,
		tomorrow,
		sourceChange{file: "sql/functions/retention.sql", from: "-- Retention: ", to: "-- Retention, tomorrow: "},
	)
	d := newDrill(t, "upgrade")
	d.cluster.settings = append(
		d.cluster.settings,
		"SHUTDOWN_DELAY=500ms",
	) // as behind a load balancer, that hears of it
	d.cluster.startAll()
	stop := d.load(16)
	time.Sleep(2 * time.Second)
	db := d.database()
	version := func() (v int) {
		assert.NoError(t, db.QueryRow(t.Context(), "select max(version_id) from spine.schema_version").Scan(&v))
		return v
	}
	require.Less(t, version(), 9000)
	from := d.senders.answered()

	const held = 5 * time.Second
	var old string // binary
	d.history.note("an upgrade", func() string {
		reader := d.database()
		run := func(statement string) {
			_, err := reader.Exec(t.Context(), statement)
			assert.NoError(t, err)
		}
		run("begin")
		run("select from spine.events limit 1")
		var migrated int // while it was held up
		letGo := make(chan struct{})
		time.AfterFunc(held, func() {
			defer close(letGo)
			migrated = version()
			run("commit")
		})
		defer func() {
			<-letGo
			require.Less(t, migrated, 9000, "the migration had to wait")
		}()
		old, d.cluster.binary = d.cluster.binary, next
		for _, command := range commands {
			for i := range 2 {
				d.cluster.replace(command, i)
				time.Sleep(time.Second)
			}
		}
		return ""
	})
	took := d.history.done[0].end.Sub(d.history.done[0].start)
	require.Equal(t, 9000, version())
	// G7: a process of the release before may start anew, and leaves the schema as it is.
	d.cluster.binary = old
	for _, command := range commands {
		d.cluster.replace(command, 0)
	}
	require.Equal(t, 9000, version())
	time.Sleep(2 * time.Second)
	stop()
	t.Logf("replaced in %.1f s; the slowest acknowledgement took %.2f s; %d acknowledged, %d not", took.Seconds(),
		d.senders.slowest(from, 1).Seconds(), d.senders.acked.Load(), d.senders.refused.Load())
	require.Zero(t, d.senders.refused.Load(), d.senders.kinds)
	require.Less(t, d.senders.slowest(from, 1), 3500*time.Millisecond, "lock_timeout is two seconds")
	d.keeps()
}

// TestDrillOverload offers five times what Spine can store, for a minute or for three seconds a drill. Spine stores
// what it accepts, and tells the others to come again.
func TestDrillOverload(t *testing.T) {
	lasts := min(time.Minute, time.Duration(drills(t))*3*time.Second)
	d := newDrill(t, "overload")
	d.cluster.startAll()
	// A slow database, so that the load fits beside it.
	d.cluster.rewrite(functionChange{
		"ingest_events", "return _outcome;", "perform pg_sleep(0.01 * cardinality(_event_id)); return _outcome;",
	})
	offer := func(rate float64, lasts time.Duration) {
		load, stop := context.WithTimeout(t.Context(), lasts)
		defer stop()
		d.senders.sendAt(load, rate)
	}
	offer(600, 6*time.Second) // more than goes through: it finds out how much fits into a transaction
	from := d.senders.acked.Load()
	began := time.Now()
	offer(600, 6*time.Second)
	sustainable := float64(d.senders.acked.Load()-from) / time.Since(began).Seconds()
	clear(d.senders.kinds)
	for _, p := range d.cluster.processes["api"] {
		t.Logf("%.0f MB before", float64(p.peakMemory(t))/1e6)
	}

	before := d.senders.answered()
	offer(5*sustainable, lasts)
	taken := d.senders.answered() - before
	t.Logf(
		"%.0f/s can be stored, %.0f/s were offered for %s: %d acknowledged (p50 %.2f s, p99 %.2f s), the others %v",
		sustainable,
		5*sustainable,
		lasts,
		taken,
		d.senders.slowest(before, 0.5).Seconds(),
		d.senders.slowest(before, 0.99).Seconds(),
		d.senders.kinds,
	)
	for _, p := range d.cluster.processes["api"] {
		t.Logf("%.0f MB at most", float64(p.peakMemory(t))/1e6)
		require.Less(t, p.peakMemory(t), int64(600<<20))
	}
	require.Len(t, d.senders.kinds, 1, "503, each with Retry-After")
	require.Contains(t, d.senders.kinds, "503")
	require.Greater(t, float64(taken), 0.6*sustainable*lasts.Seconds(), "it goes on at its rate")
	require.Less(t, d.senders.slowest(before, 0.99), 5*time.Second)

	// As soon as the overload is over, all is as before.
	over := time.Now()
	require.Eventually(t, func() bool {
		from := d.senders.answered()
		d.senders.post(t.Context(), d.senders.next(), 0)
		return d.senders.answered() > from && d.senders.slowest(from, 1) < 500*time.Millisecond
	}, patience, 10*time.Millisecond)
	t.Logf("as before %.2f s after it was over", time.Since(over).Seconds())
	require.Less(t, time.Since(over), 5*time.Second)
	d.keeps()
}

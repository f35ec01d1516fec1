package systemtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/service"
)

// quiet adds the settings of a process that listens on a free port and logs no debug lines.
func quiet(environment ...string) []string {
	return append([]string{"LISTEN=127.0.0.1:0", "LOG_LEVEL=info", fewConnections}, environment...)
}

// acceptMany posts events with a payload, several at once, and returns their ids.
func (s *target) acceptMany(t *testing.T, n int, payload string) []string {
	t.Helper()
	ids := make([]string, n)
	for i := range ids {
		ids[i] = newID("many")
	}
	var next atomic.Int64
	var senders sync.WaitGroup
	for range 32 {
		senders.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				r, err := s.send(t.Context(), webhook(ids[i], payload))
				if err != nil {
					t.Error(err)
					return
				}
				assert.Equal(t, "accepted", r.status())
			}
		})
	}
	senders.Wait()
	return ids
}

func TestTwoWorkers(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	d := newDestination(t)
	settings := quiet("DATABASE_URL="+database, "MOCK_API_URL="+d.url, "DELIVERY_CONCURRENCY=16")
	api := startProcess(t, settings, "api")
	workers := []*process{startProcess(t, settings, "worker"), startProcess(t, settings, "worker")}
	for _, w := range workers {
		w.ready(t)
	}
	s := newTarget(t, api.ready(t), database)

	const n = 1000
	ids := s.acceptMany(t, n, `{"user_id":123}`)
	await(t, s.db, n, "select count(*) from spine.processing_state where status = 'completed' and attempt_count = 1")
	require.Equal(
		t,
		n,
		value[int](t, s.db, "select count(*) from spine.audit_log where action = 'processing_succeeded'"),
	)
	require.Equal(
		t,
		n,
		value[int](
			t,
			s.db,
			"select count(distinct event_id) from spine.audit_log where action = 'processing_succeeded'",
		),
	)
	require.Zero(
		t,
		value[int](
			t,
			s.db,
			`select count(*) from spine.audit_log
			where action in ('lease_lost', 'lease_expired', 'lease_returned', 'processing_attempt_failed')`,
		),
	)
	require.Equal(
		t,
		2,
		value[int](t, s.db, "select count(distinct worker) from spine.processing_state"),
		"both had their share",
	)
	for _, id := range ids {
		require.Equal(t, 1, d.count(id))
	}
}

// TestWorkerKilled kills a worker in mid-delivery. Another worker delivers its events.
func TestWorkerKilled(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	d := newDestination(t)
	settings := quiet("DATABASE_URL="+database, "MOCK_API_URL="+d.url, "LEASE_DURATION=4s", "INITIAL_RETRY_DELAY=100ms")
	s := startService(t, service.Roles{API: true}, database)
	first := startProcess(t, settings, "worker")
	first.ready(t)

	ids := s.acceptMany(t, 5, do("hold"))
	for _, id := range ids {
		d.await(t, id, 1)
	}
	first.signal(t, syscall.SIGKILL)
	<-first.exited
	startProcess(t, settings, "worker").ready(t)
	for _, id := range ids {
		s.awaitStatus(t, id, "completed")
		require.Equal(t, []string{
			"event_received", "event_inserted", "processing_attempt_started", "lease_expired", "retry_scheduled",
			"processing_attempt_started", "processing_succeeded",
		}, s.actions(t, id))
		require.Equal(t, 2, d.count(id), "the destination gets it again")
		require.Equal(
			t,
			2,
			value[int](t, s.db, "select attempt_count from spine.processing_state where event_id = $1", id),
			"the lease spent its attempt",
		)
		trail := s.trail(t, id)
		require.GreaterOrEqual(
			t,
			trail[3].Timestamp.Sub(trail[2].Timestamp),
			4*time.Second,
			"not before the lease ended",
		)
	}
}

// TestPoisonEvent kills every worker that delivers an event. In the end the event is dead.
func TestPoisonEvent(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	d := newDestination(t)
	settings := quiet(
		"DATABASE_URL="+database,
		"MOCK_API_URL="+d.url,
		"LEASE_DURATION=3s",
		"INITIAL_RETRY_DELAY=10ms",
		"MAX_RETRY_ATTEMPTS=2",
	)
	s := startService(t, service.Roles{API: true}, database)
	id := newID("poison")
	s.accept(t, id, do("hold", "hold", "hold"))
	for n := range 2 {
		w := startProcess(t, settings, "worker")
		d.await(t, id, n+1)
		w.signal(t, syscall.SIGKILL)
		<-w.exited
	}
	startProcess(t, settings, "worker").ready(t)
	s.awaitStatus(t, id, "dead")
	require.Equal(t, []string{
		"event_received", "event_inserted", "processing_attempt_started", "lease_expired", "retry_scheduled",
		"processing_attempt_started", "lease_expired", "processing_failed_permanently",
	}, s.actions(t, id))
	require.Equal(t, 2, d.count(id))
}

// TestLateResult stops a worker in mid-delivery until its lease has ended and another worker has delivered. The
// result of the first worker then changes nothing.
func TestLateResult(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	d := newDestination(t)
	settings := quiet("DATABASE_URL="+database, "MOCK_API_URL="+d.url, "LEASE_DURATION=4s", "INITIAL_RETRY_DELAY=10ms")
	s := startService(t, service.Roles{API: true}, database)
	slow := startProcess(t, settings, "worker")
	slow.ready(t)
	id := newID("late")
	s.accept(t, id, do("hold"))
	d.await(t, id, 1)
	slow.signal(t, syscall.SIGSTOP)

	other := startProcess(t, settings, "worker")
	s.awaitStatus(t, id, "completed")
	settled := value[time.Time](t, s.db, "select completed_at from spine.processing_state where event_id = $1", id)
	d.release() // the answer waits in the socket
	slow.signal(t, syscall.SIGCONT)
	await(t, s.db, 1, "select count(*) from spine.audit_log where event_id = $1 and action = 'lease_lost'", id)
	require.Equal(t, []string{
		"event_received", "event_inserted", "processing_attempt_started", "lease_expired", "retry_scheduled",
		"processing_attempt_started", "processing_succeeded", "lease_lost",
	}, s.actions(t, id))
	require.Equal(
		t,
		settled,
		value[time.Time](
			t,
			s.db,
			"select completed_at from spine.processing_state where event_id = $1 and status = 'completed'",
			id,
		),
	)
	require.Equal(t, 2, d.count(id))
	const lost = "spine_worker_leases_lost_total"
	first := &target{url: slow.url(t), http: s.http}
	require.Eventually(t, func() bool { return first.metric(t, lost) == 1 }, patience, 10*time.Millisecond)
	require.InDelta(t, 0, (&target{url: other.url(t), http: s.http}).metric(t, lost), 0)
}

// TestLongDelivery outlasts its lease several times. The worker renews it.
func TestLongDelivery(t *testing.T) {
	t.Parallel()
	s, d := startWithDestination(t, "LEASE_DURATION=3s")
	id := newID("long")
	s.accept(t, id, do("delay=7s"))
	s.awaitStatus(t, id, "completed")
	require.Equal(t, attempts(0, "completed"), s.actions(t, id))
	require.Equal(t, 1, d.count(id))
}

// TestGracefulStop tells a worker to stop while it delivers.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	d := newDestination(t)
	settings := quiet("DATABASE_URL="+database, "MOCK_API_URL="+d.url, "DELIVERY_CONCURRENCY=4")
	s := startService(t, service.Roles{API: true}, database)
	worker := startProcess(t, settings, "worker")
	worker.ready(t)
	ids := s.acceptMany(t, 20, do("hold"))
	// As many as may be are in hand; the others wait.
	await(t, s.db, 4, "select count(*) from spine.processing_state where status = 'processing'")
	require.Eventually(t, func() bool {
		return len(slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return d.count(id) == 0 })) == 4
	}, patience, 10*time.Millisecond)

	worker.signal(t, syscall.SIGTERM)
	stopping := &target{url: worker.url(t), http: s.http}
	require.Eventually(t, func() bool { // it has heard the signal
		r, err := stopping.do(t.Context(), http.MethodGet, "/readyz", nil)
		return err != nil || r.code == http.StatusServiceUnavailable
	}, patience, 10*time.Millisecond)
	d.release()
	require.Zero(t, worker.awaitExit(t))
	require.Equal(
		t,
		4,
		value[int](
			t,
			s.db,
			"select count(*) from spine.processing_state where status = 'completed' and attempt_count = 1",
		),
	)
	require.Equal(
		t,
		16,
		value[int](
			t,
			s.db,
			"select count(*) from spine.processing_state where status = 'pending' and attempt_count = 0",
		),
		"no lease is left, no attempt spent",
	)
	require.Zero(
		t,
		value[int](
			t,
			s.db,
			"select count(*) from spine.audit_log where action in ('lease_expired', 'lease_lost', 'processing_attempt_failed')",
		),
	)
}

// TestStopThatCannotWait holds that a stop takes no longer than SHUTDOWN_TIMEOUT, whatever is in hand.
func TestStopThatCannotWait(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	d := newDestination(t)
	s := startService(t, service.Roles{API: true}, database)
	worker := startProcess(
		t,
		quiet("DATABASE_URL="+database, "MOCK_API_URL="+d.url, "SHUTDOWN_TIMEOUT=200ms"),
		"worker",
	)
	id := newID("held")
	s.accept(t, id, do("hold"))
	d.await(t, id, 1)
	worker.signal(t, syscall.SIGTERM)
	require.Zero(t, worker.awaitExit(t))
	require.Equal(
		t,
		"failed",
		value[string](t, s.db, "select status from spine.processing_state where event_id = $1", id),
		"its attempt is settled",
	)
	require.Contains(
		t,
		value[string](t, s.db, "select error_message from spine.processing_state where event_id = $1", id),
		"stopped",
	)
}

// TestPostgresRestarted starts Spine before its database is there, and then
// restarts the database under load.
func TestPostgresRestarted(t *testing.T) {
	wholeRun(t)
	t.Parallel()
	server := postgrestest.Server(t)
	server.Kill()
	d := newDestination(t)
	p := startProcess(
		t,
		quiet("DATABASE_URL="+server.URL(), "MOCK_API_URL="+d.url, "INITIAL_RETRY_DELAY=10ms", "LEASE_DURATION=2s"),
		"serve",
	)
	p.says(t, "that it waits for the database", func(out string) string {
		if strings.Contains(out, "the database cannot be reached") {
			return out
		}
		return ""
	})
	require.NoError(t, server.Restart(t.Context()))
	s := newTarget(t, p.ready(t), server.URL())

	var mu sync.Mutex
	acknowledged := map[string]bool{}
	refused := 0
	load, stop := context.WithCancel(t.Context())
	defer stop()
	var senders sync.WaitGroup
	for range 8 {
		senders.Go(func() {
			for load.Err() == nil {
				id := newID("restart")
				r, err := s.do(
					context.WithoutCancel(load),
					http.MethodPost,
					"/webhook",
					strings.NewReader(webhook(id, `{}`)),
				)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				switch r.code {
				case http.StatusOK:
					// After a lost answer to COMMIT a new event may be answered as deduplicated.
					assert.Contains(t, []string{"accepted", "deduplicated"}, r.status())
					acknowledged[id] = true
				default:
					refused++
					assert.Equal(t, http.StatusServiceUnavailable, r.code, "%s", r.body)
					assert.NotEmpty(t, r.header.Get("Retry-After"))
				}
				mu.Unlock()
			}
		})
	}
	enough := func(more int) {
		mu.Lock()
		from := len(acknowledged)
		mu.Unlock()
		require.Eventually(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(acknowledged) >= from+more
		}, patience, 10*time.Millisecond)
	}
	enough(50)
	require.NoError(t, server.Restart(t.Context())) // too quick for anyone to be refused
	enough(50)
	server.Kill()
	require.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return refused >= 8
	}, patience, 10*time.Millisecond)
	require.NoError(t, server.Restart(t.Context()))
	enough(50)
	s.awaitReady(t)
	require.Eventually(t, func() bool { return s.metric(t, "spine_listener_up") == 1 }, patience, 10*time.Millisecond)
	stop()
	senders.Wait()

	for id := range acknowledged {
		s.awaitStatus(t, id, "completed")
		require.NotZero(t, d.count(id))
	}
	await(t, s.db, 0, "select count(*) from spine.processing_state where status <> 'completed'")
	require.Zero(t, value[int](t, s.db, `select count(*) from (
		select from spine.audit_log where action = 'processing_succeeded' group by event having count(*) > 1) twice`))
}

// TestListenerTerminated ends the listener's session and stores events before it is back. The claim at the reconnect
// finds them, not the sweep. The test runs alone: on a busy machine a sweep is sometimes quicker.
func TestListenerTerminated(t *testing.T) {
	database := databases.New(t)
	d := newDestination(t)
	way := newPassage(t, database)
	worker := startProcess(
		t,
		quiet("DATABASE_URL="+database, "DIRECT_DATABASE_URL="+way.url, "MOCK_API_URL="+d.url),
		"worker",
	)
	s := newTarget(t, worker.ready(t), database)

	const times = 5
	for n := range times {
		require.InDelta(t, n+1, s.metric(t, "spine_listener_connections_total"), 0)
		id := newID("meanwhile")
		way.hold()
		require.Equal(
			t,
			1,
			value[int](t, s.db, `select count(*) filter (where pg_terminate_backend(pid, 5000)) from pg_stat_activity
			where datname = current_database() and application_name = 'spine listener'`),
		)
		require.Equal(t, "accepted", value[string](t, s.db, "select spine.ingest($1, 'a', '{}')", id))
		way.release()
		s.awaitStatus(t, id, "completed")
		require.Eventually(t, func() bool {
			return s.metric(t, "spine_listener_connections_total") == float64(n+2) &&
				s.metric(t, "spine_listener_up") == 1
		}, patience, 10*time.Millisecond)
		require.InDelta(t, n+2, s.metric(t, `spine_worker_wakes_total{cause="reconnect"}`), 0)
	}
	require.Less(t, s.metric(t, "spine_worker_swept_total"), float64(times), "the sweep does not find all")
}

// passage is a way to a database that can be held. New connections then wait; those that exist go on.
type passage struct {
	url  string
	gate sync.RWMutex
}

func newPassage(t *testing.T, database string) *passage {
	t.Helper()
	u, err := url.Parse(database)
	require.NoError(t, err)
	there := u.Host
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	u.Host = listener.Addr().String()
	p := &passage{url: u.String()}

	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() { p.forward(ctx, from, there) })
		}
	})
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, listener.Close())
		running.Wait()
	})
	return p
}

// forward copies both ways until either side or ctx ends.
func (p *passage) forward(ctx context.Context, from net.Conn, there string) {
	defer func() { _ = from.Close() }()
	p.gate.RLock()
	to, err := (&net.Dialer{}).DialContext(ctx, "tcp", there)
	p.gate.RUnlock()
	if err != nil {
		return
	}
	defer func() { _ = to.Close() }()
	defer context.AfterFunc(ctx, func() { _ = from.Close() })()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(from, to)
		_ = from.Close()
	})
	_, _ = io.Copy(to, from)
	_ = to.Close()
	back.Wait()
}

func (p *passage) hold()    { p.gate.Lock() }
func (p *passage) release() { p.gate.Unlock() }

// TestMigratingTogether starts two processes on an empty database at once.
func TestMigratingTogether(t *testing.T) {
	t.Parallel()
	database := databases.Empty(t)
	d := newDestination(t)
	settings := quiet("DATABASE_URL="+database, "MOCK_API_URL="+d.url)
	one, two := startProcess(t, settings, "serve"), startProcess(t, settings, "serve")
	for _, p := range []*process{one, two} {
		s := newTarget(t, p.ready(t), database)
		id := newID("migrated")
		s.accept(t, id, `{}`)
		s.awaitStatus(t, id, "completed")
	}
	for _, p := range []*process{one, two} {
		p.signal(t, syscall.SIGTERM)
		require.Zero(t, p.awaitExit(t))
	}
}

// shiftClock makes the database's clock differ from this machine's, as far as Spine can see.
const shiftClock = `do $$
declare
	_clock constant text := '\m(clock_timestamp|now|statement_timestamp|transaction_timestamp)\(\)';
	_shifted constant text := '(clock_timestamp() + interval ''%s'')';
	_f record;
begin
	for _f in select pg_get_functiondef(p.oid) as text from pg_proc p where p.pronamespace = 'spine'::regnamespace loop
		execute regexp_replace(_f.text, _clock, _shifted, 'g');
	end loop;
	for _f in
		select a.attrelid::regclass as of, a.attname as name, pg_get_expr(d.adbin, d.adrelid) as value
		from pg_attrdef d
		join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
		join pg_class c on c.oid = d.adrelid
		where c.relnamespace = 'spine'::regnamespace and pg_get_expr(d.adbin, d.adrelid) ~ _clock
	loop
		execute format(
			'alter table %%s alter column %%I set default %%s',
			_f.of, _f.name, regexp_replace(_f.value, _clock, _shifted, 'g'));
	end loop;
end $$`

// TestClocksThatDiffer holds that leases, retries and due times go by the database's clock alone. A process whose
// clock is an hour off does the same as any other.
func TestClocksThatDiffer(t *testing.T) {
	wholeRun(t)
	t.Parallel()
	for _, by := range []string{"1 hour", "-1 hour"} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			database := databases.New(t)
			d := newDestination(t)
			settings := quiet(
				"DATABASE_URL="+database,
				"MOCK_API_URL="+d.url,
				"LEASE_DURATION=4s",
				"INITIAL_RETRY_DELAY=100ms",
			)
			execute(t, open(t, database, nil), fmt.Sprintf(shiftClock, by))
			s := startService(t, service.Roles{API: true}, database)
			first := startProcess(t, settings, "worker")
			first.ready(t)
			plain := s.acceptMany(t, 20, `{}`)
			for _, at := range []string{
				"created_at from spine.events",
				"timestamp from spine.audit_log",
				"updated_at from spine.processing_state",
			} {
				require.InDelta(
					t,
					map[string]float64{"1 hour": 3600, "-1 hour": -3600}[by],
					value[float64](
						t,
						s.db,
						"select extract(epoch from max(x) - now()) from (select "+at+") as a(x)",
					),
					60,
					"it is shifted",
				)
			}
			again, long := newID("again"), newID("long")
			s.accept(t, again, do("status=503", "status=503"))
			s.accept(t, long, do("delay=9s"))
			for _, id := range plain {
				s.awaitStatus(t, id, "completed")
				require.Equal(t, attempts(0, "completed"), s.actions(t, id))
			}
			s.awaitStatus(t, again, "completed")
			got := d.await(t, again, 3)
			require.Less(
				t,
				got[2].at.Sub(got[0].at),
				patience,
				"its retries were due in 100 and 200 ms, and not in an hour",
			)
			s.awaitStatus(t, long, "completed")
			require.Equal(t, attempts(0, "completed"), s.actions(t, long), "its lease was renewed")

			held := newID("held")
			s.accept(t, held, do("hold"))
			d.await(t, held, 1)
			first.signal(t, syscall.SIGKILL)
			<-first.exited
			startProcess(t, settings, "worker").ready(t)
			s.awaitStatus(t, held, "completed")
			trail := s.trail(t, held)
			require.Equal(t, "lease_expired", trail[3].Action)
			require.GreaterOrEqual(
				t,
				trail[3].Timestamp.Sub(trail[2].Timestamp),
				4*time.Second,
				"not before the lease ended",
			)
		})
	}
}

// TestDestinationThatHangs takes every slot of a worker. It delays no ingest and keeps no connection of the database.
func TestDestinationThatHangs(t *testing.T) {
	t.Parallel()
	s, d := startWithDestination(t, "DELIVERY_CONCURRENCY=64", "DB_MAX_CONNS=2", "DELIVERY_TIMEOUT=1m")
	s.acceptMany(t, 200, do("hold"))
	await(t, s.db, 64, "select count(*) from spine.processing_state where status = 'processing'")
	s.acceptMany(t, 200, do("hold"))
	await(
		t,
		s.db,
		0,
		`select count(*) from pg_stat_activity where datname = current_database() and application_name like 'spine%'
		and state <> 'idle' and clock_timestamp() - state_change > interval '100 ms'`,
	)
	require.Eventually(t, func() bool {
		d.release()
		return value[int](t, s.db, "select count(*) from spine.processing_state where status = 'completed'") == 400
	}, patience, 50*time.Millisecond)
}

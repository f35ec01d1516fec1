package systemtest

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/postgres"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
)

// Faults that a database administrator makes: settings, strangers and poolers. Issue 17 has them from
// reference/faults.md, section E.

// Names of faults that tests speak of, or that not every cluster can have.
const (
	queueFull      = "the queue of notifications is full"      // E14
	warned         = "a trigger warns at each commit"          // E12
	readOnly       = "all sessions become read-only, and stay" // E8
	demoted        = "PostgreSQL is a standby for a while"     // E8
	shortOfTime    = "the role's statements have 300 ms"       // E7
	latin          = "the role's encoding is LATIN1"           // E1
	poolerKilled   = "the pooler is killed, and started again"
	poolerEnded    = "the pooler ended by itself"
	postgresKilled = "PostgreSQL is killed"
	sessionsEnded  = "the listeners' sessions are ended"
	keptAway       = "the listeners are kept away"
	wakeUpOff      = "the wake-up trigger is off"
)

// uninterrupting faults take no acknowledgement from anybody once they are in force.
var uninterrupting = []string{queueFull, warned, readOnly, latin}

// inForce is how long at least the faults of uninterrupting last, once they are in force.
const inForce = 4 * time.Second

// interrupted names the faults during which nothing was acknowledged, although they are no reason. The last three
// seconds count, since sessions may be ended as a fault begins.
func (s *senders) interrupted(done []fault) (differences []string) {
	for _, f := range done {
		if !slices.Contains(uninterrupting, f.kind) {
			continue
		}
		if at, ok := s.firstAck(f.end.Add(-3 * time.Second)); !ok || at.After(f.end) {
			differences = append(differences, fmt.Sprintf(
				"while %s, until %s, nothing was acknowledged", f.kind, f.end.Format(time.TimeOnly)))
		}
	}
	return differences
}

// poolerSize is how many connections a pooler has: fewer than the processes, but where each of them needs its own.
var poolerSize = map[string]int{"transaction": 8, "session": 60}

// cluster makes the cluster of a run.
func (run trialRun) cluster(t *testing.T, server *postgres.Server, destination string) *cluster {
	t.Helper()
	if run.pooler == "" {
		return newProxiedCluster(t, server, destination)
	}
	direct := repeatable(run.seed, 4).IntN(2) == 0
	t.Logf("behind a PgBouncer with pool_mode = %s; with DIRECT_DATABASE_URL: %t", run.pooler, direct)
	return newPooledCluster(t, server, destination, run.pooler, direct)
}

// newPooledCluster puts a proxy and a PgBouncer between the processes and a server of their own. LISTEN goes by another
// proxy to the server itself if direct is set.
//
// Commits do not wait for the disk unless Spine says so, and what does not wait is written as late as possible. E10:
// an acknowledged event is then lost with the server if the transaction that stored it did not say so.
func newPooledCluster(t *testing.T, server *postgres.Server, destination, mode string, direct bool) *cluster {
	t.Helper()
	pooler := postgrestest.StartPgBouncer(t, server.URL(), mode, poolerSize[mode])
	proxy := newProxy(t, pooler.URL())
	c := newCluster(t, server, proxy.URL(), destination)
	c.proxy, c.pooler = proxy, pooler
	c.deaf = mode == "transaction" && !direct
	if direct {
		c.direct = newProxy(t, server.URL())
		c.settings = append(c.settings, "DIRECT_DATABASE_URL="+c.direct.URL())
	}
	c.superuser(
		"alter system set wal_writer_delay = '10s'",
		"alter system set wal_writer_flush_after = '1GB'",
		"select pg_reload_conf()",
		"alter database "+postgres.Database+" set synchronous_commit = off",
	)
	return c
}

// usable are the faults of the run that this cluster can have. Those that it cannot have are logged. Where a trial
// names one of them, the test is skipped.
func (run trialRun) usable(c *cluster) []string {
	c.t.Helper()
	missing := map[string]string{}
	if c.disk == "" {
		missing[diskFull] = "the server has no small disk of its own"
	}
	if c.pooler == nil {
		missing[poolerKilled] = "there is no pooler"
	}
	if c.deaf {
		missing[keptAway] = "no process listens behind a transaction pooler without DIRECT_DATABASE_URL"
		missing[sessionsEnded] = missing[keptAway]
	}
	if (run.kinds == nil || slices.Contains(run.kinds, queueFull)) && !c.limitNotifyQueue() {
		missing[queueFull] = "before PostgreSQL 17 the queue has 8 GB"
	}
	for _, kind := range run.kinds {
		if why, ok := missing[kind]; ok {
			c.t.Skipf("%s: %s", kind, why)
		}
	}
	if run.kinds != nil {
		return run.kinds
	}
	for _, kind := range slices.Sorted(maps.Keys(missing)) {
		c.t.Logf("*** Left out: %s; %s ***", kind, missing[kind])
	}
	return slices.DeleteFunc(slices.Sorted(maps.Keys(nemesis)), func(kind string) bool { return missing[kind] != "" })
}

// limitNotifyQueue makes the queue of notifications as small as it can be. It reports whether this server can.
func (c *cluster) limitNotifyQueue() bool {
	c.t.Helper()
	conn, err := pgx.Connect(c.t.Context(), c.server.SuperuserURL())
	require.NoError(c.t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(c.t.Context())) }()
	var can bool
	require.NoError(c.t, conn.QueryRow(c.t.Context(),
		"select current_setting('max_notify_queue_pages', true) is not null").Scan(&can))
	if can {
		c.superuser("alter system set max_notify_queue_pages = 64")
		require.NoError(c.t, c.server.Restart(c.t.Context()))
	}
	return can
}

// fillNotifyQueue is a stranger in another database who listens, begins a transaction and goes to lunch.
func (c *cluster) fillNotifyQueue(random *rand.Rand) string {
	ctx := c.t.Context()
	connect := func() *pgx.Conn {
		conn, err := pgx.Connect(ctx, c.server.SuperuserURL())
		require.NoError(c.t, err)
		return conn
	}
	holder, filler := connect(), connect()
	defer func() {
		_ = filler.Close(context.WithoutCancel(ctx))
		_ = holder.Close(context.WithoutCancel(ctx))
	}()
	for _, statement := range []string{"listen lunch", "begin", "select 1"} {
		_, err := holder.Exec(ctx, statement)
		require.NoError(c.t, err)
	}
	var err error
	for err == nil {
		_, err = filler.Exec(ctx, "select pg_notify('lunch', repeat('a', 7000) || n) from generate_series(1, 20) n")
	}
	require.ErrorContains(c.t, err, "NOTIFY queue")
	return c.last(random)
}

// last waits while a fault is in force, and says for how long.
func (c *cluster) last(random *rand.Rand) string {
	lasts := between(random, inForce, inForce+2*time.Second)
	time.Sleep(lasts)
	return lasts.String()
}

// warn makes each commit of an event end with a WARNING that says nothing of the commit. The trigger stays: DROP would
// wait for everybody who holds a snapshot.
func (c *cluster) warn(random *rand.Rand) string {
	c.psql(`do $do$ begin
		if to_regprocedure('public.warn()') is null then
			create function public.warn() returns trigger language plpgsql as 'begin
				raise warning ''canceling nothing'';
				return null;
			end';
			create constraint trigger warned after insert or update on spine.events
				deferrable initially deferred for each row execute function public.warn();
		else
			alter table spine.events enable trigger warned;
		end if;
	end $do$`)
	defer c.psql("alter table spine.events disable trigger warned")
	return c.last(random)
}

// readOnly makes every transaction of every session read-only that does not say what it needs, without ending one
// session. Postgres answers 25006 as it does on a standby. A single server gives no other way to do that: the sessions
// of a server that becomes a standby end with it, see demote.
func (c *cluster) readOnly(random *rand.Rand) string {
	c.superuser("alter system set default_transaction_read_only = on", "select pg_reload_conf()")
	defer c.superuser("alter system reset default_transaction_read_only", "select pg_reload_conf()")
	return c.last(random)
}

// demote makes the server a hot standby, which answers every writing transaction with 25006, and then promotes it. A
// pooler keeps the sessions of its clients meanwhile. That is a failover to a standby behind one address: E8.
// Without a pooler the processes connect to the standby, and keep these sessions when it becomes a primary.
func (c *cluster) demote(random *rand.Rand) string {
	data := filepath.Join(c.server.Dir(), "data")
	owner, err := os.Stat(data)
	require.NoError(c.t, err)
	signal := filepath.Join(data, "standby.signal")
	require.NoError(c.t, os.WriteFile(signal, nil, 0o600))
	if stat, ok := owner.Sys().(*syscall.Stat_t); ok {
		require.NoError(c.t, os.Lchown(signal, int(stat.Uid), int(stat.Gid)))
	}
	require.NoError(c.t, c.server.Restart(c.t.Context()))
	lasts := between(random, time.Second, 3*time.Second)
	time.Sleep(lasts)
	c.superuser("select pg_promote()")
	return lasts.String()
}

// limitStatements ends each statement of the role after 300 ms, with 57014.
func (c *cluster) limitStatements(random *rand.Rand) string {
	return c.alterRole("statement_timeout = '300ms'", random)
}

// changeEncoding makes Postgres take text for LATIN1 where a session does not say what it sends.
func (c *cluster) changeEncoding(random *rand.Rand) string {
	return c.alterRole("client_encoding = 'latin1'", random)
}

// alterRole gives Spine's role another default for a while. Sessions are ended at both ends, so that all have it, and
// later none.
func (c *cluster) alterRole(setting string, random *rand.Rand) string {
	const endSessions = "select pg_terminate_backend(pid) from pg_stat_activity where usename = '" + postgres.Role + "'"
	name, _, _ := strings.Cut(setting, " ")
	c.superuser("alter role "+postgres.Role+" set "+setting, endSessions)
	defer c.superuser("alter role "+postgres.Role+" reset "+name, endSessions)
	return c.last(random)
}

// killPooler ends every connection that a process has, and leaves those of the server to find out by themselves.
func (c *cluster) killPooler(random *rand.Rand) string {
	down := between(random, 0, 2*time.Second)
	c.pooler.Kill()
	time.Sleep(down)
	c.pooler.Start(c.t)
	return "started again after " + down.String()
}

// poolerEnds are the faults that are the pooler's own.
func (c *cluster) poolerEnds() (done []fault) {
	if c.pooler == nil {
		return nil
	}
	for _, at := range c.pooler.Ends() {
		done = append(
			done,
			fault{kind: poolerEnded, start: at, end: at.Add(time.Second)},
		) // it is started again meanwhile
	}
	return done
}

package pgproxy_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/webhookspine/spine/internal/postgres/pgproxy"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
)

var databases = postgrestest.Databases{Migrate: func(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "create table kept (n int)")
	return errors.Join(err, conn.Close(ctx))
}}

func TestMain(m *testing.M) { goleak.VerifyTestMain(databases.Main(m)) }

const (
	insert = "insert into kept values ($1)"
	// short is how long tests wait for what must not happen, limit for what must.
	short = 50 * time.Millisecond
	limit = 2 * time.Minute
)

// fixture is a proxy, a pool that uses it, and one that goes past it.
type fixture struct {
	*pgproxy.Proxy
	t              *testing.T
	pool, directly *pgxpool.Pool
}

func start(t *testing.T) *fixture {
	t.Helper()
	directly := databases.Pool(t)
	proxy, err := pgproxy.New(directly.Config().ConnString())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, proxy.Close()) })
	pool, err := pgxpool.New(t.Context(), proxy.URL())
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, proxy.Close()) // or the pool would wait for what stalls
		pool.Close()
	})
	return &fixture{Proxy: proxy, t: t, pool: pool, directly: directly}
}

func (f *fixture) insert(wait time.Duration) error {
	ctx, cancel := context.WithTimeout(f.t.Context(), wait)
	defer cancel()
	_, err := f.pool.Exec(ctx, insert, 1)
	return err
}

func (f *fixture) kept() (n int) {
	f.t.Helper()
	require.NoError(f.t, f.directly.QueryRow(f.t.Context(), "select count(*) from kept").Scan(&n))
	return n
}

// once adds a rule that takes the action at the first client message of the given type whose
// statement is sql.
func (f *fixture) once(action pgproxy.Action, kind byte, sql string) {
	taken := false
	f.OnMessage(func(m pgproxy.Message) pgproxy.Action {
		if taken || !m.FromClient || m.Type != kind || m.SQL != sql {
			return pgproxy.Pass
		}
		taken = true
		return action
	})
}

func TestPasses(t *testing.T) {
	t.Parallel()
	f := start(t)
	require.NoError(t, f.insert(limit))
	batch := &pgx.Batch{}
	for n := range 100 {
		batch.Queue(insert, n)
	}
	batch.Queue("select repeat('x', 3000000), $1::text", strings.Repeat("y", 1_000_000))
	results := f.pool.SendBatch(t.Context(), batch)
	for range 100 {
		_, err := results.Exec()
		require.NoError(t, err)
	}
	var x, y string
	require.NoError(t, results.QueryRow().Scan(&x, &y))
	require.NoError(t, results.Close())
	require.Len(t, x, 3_000_000)
	require.Len(t, y, 1_000_000)
	copied, err := f.pool.CopyFrom(
		t.Context(),
		pgx.Identifier{"kept"},
		[]string{"n"},
		pgx.CopyFromRows([][]any{{1}, {2}}),
	)
	require.NoError(t, err)
	require.EqualValues(t, 2, copied)
	require.Equal(t, 103, f.kept())

	require.Equal(t, 1, f.Connections())
	f.pool.Close()
	require.Eventually(t, func() bool { return f.Connections() == 0 }, limit, time.Millisecond)
	require.NoError(t, f.Close())
	require.NoError(t, f.Close())
}

func TestNotificationsAndCancelling(t *testing.T) {
	t.Parallel()
	f := start(t)
	conn, err := pgx.Connect(t.Context(), f.URL())
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	_, err = conn.Exec(t.Context(), "listen news")
	require.NoError(t, err)
	_, err = f.directly.Exec(t.Context(), "notify news, 'here'")
	require.NoError(t, err)
	said, err := conn.WaitForNotification(t.Context())
	require.NoError(t, err)
	require.Equal(t, "here", said.Payload)

	const sleep = "select pg_sleep(60)"
	cancels := make(chan struct{})
	f.OnMessage(func(m pgproxy.Message) pgproxy.Action {
		if m.FromClient && m.Type == pgproxy.CancelRequest {
			close(cancels)
		}
		return pgproxy.Pass
	})
	done := make(chan error)
	go func() {
		_, err := conn.PgConn().Exec(t.Context(), sleep).ReadAll()
		done <- err
	}()
	require.Eventually(t, func() bool { return f.running(sleep) == 1 }, limit, time.Millisecond)
	require.NoError(t, conn.PgConn().CancelRequest(t.Context()))
	<-cancels
	require.Equal(t, "57014", code(t, <-done))
}

// running returns how many sessions run the statement.
func (f *fixture) running(sql string) (n int) {
	const query = "select count(*) from pg_stat_activity where state = 'active' and query = $1"
	_ = f.directly.QueryRow(f.t.Context(), query, sql).Scan(&n)
	return n
}

func code(t *testing.T, err error) string {
	t.Helper()
	var pgErr *pgconn.PgError
	require.ErrorAs(t, err, &pgErr)
	return pgErr.Code
}

func TestCut(t *testing.T) {
	t.Parallel()
	f := start(t)
	require.False(t, f.CutOne())
	var conns []*pgxpool.Conn
	for range 3 {
		conn, err := f.pool.Acquire(t.Context())
		require.NoError(t, err)
		conns = append(conns, conn)
	}
	alive := func() (n int) {
		for _, conn := range conns {
			if conn.Ping(t.Context()) == nil {
				n++
			}
		}
		return n
	}
	require.Equal(t, 3, alive())
	require.True(t, f.CutOne())
	require.Equal(t, 2, alive())
	// There may be one more for a moment: pgx cancels what ran on a connection that broke.
	require.GreaterOrEqual(t, f.Cut(), 2)
	require.Zero(t, alive())
	for _, conn := range conns {
		conn.Release()
	}
	require.NoError(t, f.insert(limit))
}

func TestStall(t *testing.T) {
	t.Parallel()
	f := start(t)
	require.NoError(t, f.insert(limit))
	f.Stall()
	f.Stall()
	require.ErrorIs(t, f.insert(short), context.DeadlineExceeded)
	require.ErrorIs(t, f.insert(short), context.DeadlineExceeded, "a new connection")
	require.Equal(t, 1, f.kept())
	require.NotZero(t, f.Connections())
	done := make(chan error)
	go func() { done <- f.insert(limit) }()
	select {
	case err := <-done:
		require.Fail(t, "passed a stall", "%v", err)
	case <-time.After(short):
	}
	f.Resume()
	require.NoError(t, <-done)
	require.NoError(t, f.insert(limit))
}

func TestDelay(t *testing.T) {
	t.Parallel()
	f := start(t)
	require.NoError(t, f.insert(limit))
	f.Delay(short)
	began := time.Now()
	require.NoError(t, f.insert(limit))
	require.GreaterOrEqual(t, time.Since(began), short)
	f.Delay(0)
	f.Delay(time.Hour)
	require.ErrorIs(t, f.insert(short), context.DeadlineExceeded)
	require.Positive(t, f.Cut(), "what is delayed can be cut")
}

func TestRefuse(t *testing.T) {
	t.Parallel()
	f := start(t)
	require.NoError(t, f.insert(limit))
	f.Refuse()
	require.Error(t, f.insert(limit))
	require.Error(t, f.insert(limit))
	f.Resume()
	require.NoError(t, f.insert(limit))
	require.Equal(t, 2, f.kept())
}

func TestServerGone(t *testing.T) {
	t.Parallel()
	proxy, err := pgproxy.New("postgres://someone@127.0.0.1:1/none")
	require.NoError(t, err)
	_, err = pgx.Connect(t.Context(), proxy.URL())
	require.Error(t, err)
	require.NoError(t, proxy.Close())
	_, err = pgproxy.New("host=127.0.0.1")
	require.ErrorContains(t, err, "URL")
	_, err = pgproxy.New("postgres://127.0.0.1:none/")
	require.Error(t, err)
}

func TestURL(t *testing.T) {
	t.Parallel()
	const upstream = "postgres://someone:secret@/base?host=/run/postgresql&port=6000&application_name=a&sslmode=prefer"
	proxy, err := pgproxy.New(upstream)
	require.NoError(t, err)
	defer func() { require.NoError(t, proxy.Close()) }()
	config, err := pgconn.ParseConfig(proxy.URL())
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1", config.Host)
	require.NotEqualValues(t, 6000, config.Port)
	require.Equal(t, []string{"someone", "secret", "base", "a"},
		[]string{config.User, config.Password, config.Database, config.RuntimeParams["application_name"]})
	require.Nil(t, config.TLSConfig)
}

// TestActions takes every action at each message of a prepared statement, and of one that was not
// prepared.
func TestActions(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		action pgproxy.Action
		kind   byte
		kept   int
	}{
		"before preparing":           {pgproxy.CutBefore, 'P', 0},
		"after preparing":            {pgproxy.CutAfter, 'P', 0},
		"preparing without answer":   {pgproxy.DropAnswer, 'P', 0},
		"before binding":             {pgproxy.CutBefore, 'B', 0},
		"before executing":           {pgproxy.CutBefore, 'E', 0},
		"after executing":            {pgproxy.CutAfter, 'E', 0}, // it commits at Sync only
		"executed without answer":    {pgproxy.DropAnswer, 'E', 1},
		"synchronised without":       {pgproxy.DropAnswer, 'S', 1},
		"bound without answer":       {pgproxy.DropAnswer, 'B', 1},
		"stalled before binding":     {pgproxy.StallHere, 'B', 0},
		"stalled before the sync":    {pgproxy.StallHere, 'S', 0},
		"stalled before preparation": {pgproxy.StallHere, 'P', 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t)
			prepared := test.kind != 'P'
			if prepared {
				require.NoError(t, f.insert(limit))
				test.kept++
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			f.OnMessage(func(m pgproxy.Message) pgproxy.Action {
				if test.action == pgproxy.StallHere && m.FromClient && m.Type == test.kind && m.SQL == insert {
					cancel() // nothing else ends the wait
				}
				return pgproxy.Pass
			})
			f.once(test.action, test.kind, insert)
			_, err := f.pool.Exec(ctx, insert, 1)
			require.Error(t, err)
			require.NotErrorIs(t, err, context.DeadlineExceeded, "was cut, did not hang")
			require.Equal(t, test.kept, f.kept())
			require.NoError(t, f.insert(limit), "another connection")
			require.Equal(t, test.kept+1, f.kept())
		})
	}
}

func TestCutAfterSync(t *testing.T) {
	t.Parallel()
	f := start(t)
	require.NoError(t, f.insert(limit))
	lock, err := f.directly.Begin(t.Context())
	require.NoError(t, err)
	_, err = lock.Exec(t.Context(), "lock table kept")
	require.NoError(t, err)
	f.once(pgproxy.CutAfter, 'S', insert)
	f.OnMessage(func(m pgproxy.Message) pgproxy.Action {
		if m.Type == pgproxy.CancelRequest {
			return pgproxy.CutBefore // pgx sends one when the connection breaks
		}
		return pgproxy.Pass
	})
	require.Error(t, f.insert(limit))
	require.Eventually(t, func() bool { return f.running(insert) == 1 }, limit, time.Millisecond, "it waits")
	require.NoError(t, lock.Commit(t.Context()))
	require.Eventually(t, func() bool { return f.kept() == 2 }, limit, time.Millisecond,
		"it is executed although no one hears of it")
}

func TestStallHereAndResume(t *testing.T) {
	t.Parallel()
	f := start(t)
	require.NoError(t, f.insert(limit))
	stalled := make(chan struct{})
	f.OnMessage(func(m pgproxy.Message) pgproxy.Action {
		if m.Type == 'C' && m.Tag == "INSERT 0 1" {
			close(stalled)
			return pgproxy.StallHere
		}
		return pgproxy.Pass
	})
	done := make(chan error)
	go func() { done <- f.insert(limit) }()
	<-stalled
	f.Forget()
	require.NoError(t, f.insert(limit), "another connection")
	select {
	case err := <-done:
		require.Fail(t, "passed a stall", "%v", err)
	case <-time.After(short):
	}
	f.Resume()
	require.NoError(t, <-done)
}

// TestAnswers drops a server's messages by the statement that they answer.
func TestAnswers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		action pgproxy.Action
		kind   byte
		fails  bool
	}{
		"cut before the tag":        {pgproxy.CutBefore, 'C', true},
		"from the tag on":           {pgproxy.DropAnswer, 'C', true},
		"from the binding on":       {pgproxy.DropAnswer, '2', true},
		"the last message":          {pgproxy.DropAnswer, 'Z', true},
		"cut after all was said":    {pgproxy.CutAfter, 'Z', false},
		"cut after the tag arrived": {pgproxy.CutAfter, 'C', true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t)
			require.NoError(t, f.insert(limit))
			f.OnMessage(func(m pgproxy.Message) pgproxy.Action {
				if m.FromClient || m.Type != test.kind || m.SQL != insert {
					return pgproxy.Pass
				}
				return test.action
			})
			conn, err := f.pool.Acquire(t.Context())
			require.NoError(t, err)
			_, err = conn.Exec(t.Context(), "select 1")
			require.NoError(t, err, "another statement")
			_, err = conn.Exec(t.Context(), insert, 1)
			if test.fails {
				require.Error(t, err)
			} else {
				require.NoError(t, err)
			}
			require.Error(t, conn.Ping(t.Context()))
			conn.Release()
			if test.action == pgproxy.DropAnswer {
				require.Equal(t, 2, f.kept())
			}
		})
	}
}

// TestStatements checks what rules see of a pipeline with an error in it. It also checks that one
// rule's answer does not keep the others from being asked.
func TestStatements(t *testing.T) {
	t.Parallel()
	f := start(t)
	conn, err := pgx.Connect(t.Context(), f.URL())
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	var mutex sync.Mutex
	var seen []string
	f.OnMessage(func(m pgproxy.Message) pgproxy.Action {
		mutex.Lock()
		defer mutex.Unlock()
		from := "<"
		if m.FromClient {
			from = ">"
		}
		if strings.ContainsRune("EQSCZ", rune(m.Type)) {
			seen = append(seen, strings.TrimSpace(from+string(m.Type)+" "+m.SQL+" "+m.Tag))
		}
		return pgproxy.Pass
	})
	of := func(run func()) []string {
		run()
		mutex.Lock()
		defer mutex.Unlock()
		was := seen
		seen = nil
		return was
	}
	_, err = conn.Prepare(t.Context(), "one", "select 1")
	require.NoError(t, err)
	_, err = conn.Prepare(t.Context(), "bad", "select 1 / $1::int")
	require.NoError(t, err)
	of(func() {})

	require.Equal(t, []string{
		">E select 1", ">E select 1 / $1::int", ">E select 1", ">S select 1",
		"<C select 1 SELECT 1", "<E select 1 / $1::int", "<Z select 1",
	}, of(func() {
		pipe := conn.PgConn().StartPipeline(t.Context())
		pipe.SendQueryPrepared("one", nil, nil, nil)
		pipe.SendQueryPrepared("bad", [][]byte{[]byte("0")}, nil, nil)
		pipe.SendQueryPrepared("one", nil, nil, nil)
		require.NoError(t, pipe.Sync())
		require.Error(t, pipe.Close())
	}))
	require.Equal(t, []string{
		">Q select 2; select 3",
		"<C select 2; select 3 SELECT 1",
		"<C select 2; select 3 SELECT 1",
		"<Z select 2; select 3",
	},
		of(func() {
			_, err := conn.PgConn().Exec(t.Context(), "select 2; select 3").ReadAll()
			require.NoError(t, err)
		}))
	f.once(pgproxy.CutBefore, 'Q', "select 4")
	f.once(pgproxy.Pass, 'Q', "select 4")
	require.Equal(t, []string{">Q select 4"}, of(func() {
		_, err := conn.PgConn().Exec(t.Context(), "select 4").ReadAll()
		require.Error(t, err)
	}))
}

// TestSpeed logs what the proxy costs. Its rate is well above what tests need.
func TestSpeed(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.OnMessage(func(pgproxy.Message) pgproxy.Action { return pgproxy.Pass })
	conn, err := f.pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	const statements = 5000
	began := time.Now()
	batch := &pgx.Batch{}
	for range statements {
		batch.Queue("select 1")
	}
	require.NoError(t, conn.SendBatch(t.Context(), batch).Close())
	took := time.Since(began)
	// Bind, Describe, Execute, and four answers.
	t.Logf("%.0f messages a second", statements*7/took.Seconds())
}

package postgrestest

import (
	"context"
	"errors"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/webhookspine/spine/internal/postgres"
)

var databases = Databases{Migrate: migrate}

func migrate(ctx context.Context, url string) error {
	return execute(ctx, url, "create table public.migrated as select 1 as n")
}

func execute(ctx context.Context, address, statement string) error {
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	_, err = conn.Exec(ctx, statement)
	return err
}

func TestMain(m *testing.M) {
	// These tests use the private server, unless a test says otherwise.
	if err := os.Unsetenv(externalVariable); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(databases.Main(m))
}

// stub is a testing.TB that records what it is told. end runs its cleanups.
type stub struct {
	testing.TB
	failed   bool
	said     []string
	cleanups []func()
}

func (s *stub) Helper()           {}
func (s *stub) Failed() bool      { return s.failed }
func (s *stub) Cleanup(f func())  { s.cleanups = append(s.cleanups, f) }
func (s *stub) Log(args ...any)   { s.said = append(s.said, args[0].(string)) }
func (s *stub) Fatal(args ...any) { panic(args[0]) }

func (s *stub) end() {
	for _, f := range s.cleanups {
		f()
	}
}

// tests is a Runner, so that a test can call Main.
type tests func()

func (f tests) Run() int {
	f()
	return 0
}

func query[T any](t *testing.T, address, statement string) T {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	var value T
	require.NoError(t, conn.QueryRow(t.Context(), statement).Scan(&value))
	return value
}

func exists(t *testing.T, d *Databases, address string) bool {
	t.Helper()
	parsed, err := url.Parse(address)
	require.NoError(t, err)
	name := strings.TrimPrefix(parsed.Path, "/")
	return query[bool](
		t,
		d.admin.Config().ConnString(),
		"select exists (select from pg_database where datname = '"+name+"')",
	)
}

func TestEachTestHasItsOwn(t *testing.T) {
	t.Parallel()
	databases.New(t) // the first one waits for the server
	began := time.Now()
	one := databases.Pool(t)
	two := databases.Pool(t)
	t.Logf("a database and a pool took %v", time.Since(began)/2)

	_, err := one.Exec(t.Context(), "update migrated set n = 2")
	require.NoError(t, err)
	require.Equal(t, 2, query[int](t, one.Config().ConnString(), "select n from public.migrated"))
	require.Equal(t, 1, query[int](t, two.Config().ConnString(), "select n from public.migrated"))
	require.Equal(t, "spine f", query[string](t, databases.New(t),
		`select format('%s %s', datdba::regrole, rolsuper) from pg_database, pg_roles
		where datname = current_database() and rolname = current_user`))
}

func TestEmpty(t *testing.T) {
	t.Parallel()
	require.True(t, query[bool](t, databases.Empty(t), "select to_regclass('migrated') is null"))
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	seen := sync.Map{}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			_, twice := seen.LoadOrStore(databases.New(t), true)
			if twice {
				t.Error("a database was given twice")
			}
		})
	}
	all.Wait()
}

func TestDroppedUnlessFailed(t *testing.T) {
	t.Parallel()
	good, bad := &stub{TB: t}, &stub{TB: t}
	of := map[*stub]string{good: databases.New(good), bad: databases.New(bad)}
	conn, err := pgx.Connect(t.Context(), of[good]) // left open
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	bad.failed = true
	good.end()
	bad.end()
	require.False(t, exists(t, &databases, of[good]))
	require.Empty(t, good.said)
	require.True(t, exists(t, &databases, of[bad]))
	require.Len(t, bad.said, 1)
	require.Contains(t, bad.said[0], "spine_test_")
	require.Contains(t, bad.said[0], "SPINE_TEST_DATABASE_URL")
}

func TestServerOfItsOwn(t *testing.T) {
	t.Parallel()
	s := Server(t)
	require.NoError(t, migrate(t.Context(), s.URL()))
	s.Kill()
	require.NoError(t, s.Restart(t.Context()))
	require.Equal(t, 1, query[int](t, s.URL(), "select n from public.migrated"))
}

// What a test kills stays down until the test starts it. What ends by itself is started again.
func TestPgBouncerEndsAndBegins(t *testing.T) {
	t.Parallel()
	if findPgBouncer() == "" {
		t.Skip("there is no pgbouncer on this machine")
	}
	p := StartPgBouncer(t, databases.New(t), "transaction", 1)
	require.Equal(t, 1, query[int](t, p.URL(), "select n from public.migrated"))

	require.NoError(t, syscall.Kill(p.pid, syscall.SIGKILL))
	require.Eventually(t, func() bool { return len(p.Ends()) == 1 }, 10*time.Second, 10*time.Millisecond)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, execute(t.Context(), p.URL(), "select 1"))
	}, 10*time.Second, 10*time.Millisecond)

	p.Kill()
	require.Error(t, execute(t.Context(), p.URL(), "select 1"))
	p.Start(t)
	require.Equal(t, 1, query[int](t, p.URL(), "select n from public.migrated"))
	require.Len(t, p.Ends(), 1)
}

func TestFailuresFailEveryTest(t *testing.T) {
	t.Parallel()
	d := Databases{Migrate: migrate}
	require.PanicsWithError(t, "TestMain must run the tests with Databases.Main, which stops the server after them",
		func() { d.New(&stub{TB: t}) })

	calls := 0
	d.Migrate = func(context.Context, string) error {
		calls++
		return errors.New("no such migration")
	}
	require.Zero(t, d.Main(tests(func() {
		for range 2 {
			require.PanicsWithError(t, "migrating the template of the tests' databases: no such migration",
				func() { d.New(&stub{TB: t}) })
		}
	})).Run())
	require.Equal(t, 1, calls)
	<-d.server.Exited()
}

func TestNoServer(t *testing.T) {
	t.Setenv(externalVariable, "")
	t.Setenv(binariesVariable, "/nowhere")
	d := Databases{Migrate: migrate}
	d.Main(tests(func() {
		require.Panics(t, func() { d.New(&stub{TB: t}) })
	})).Run()
	require.ErrorContains(t, d.err, "POSTGRES_BIN=/nowhere cannot be used")
	require.Panics(t, func() { Server(&stub{TB: t}) })
}

// external sets SPINE_TEST_DATABASE_URL to a role with the given attributes.
func external(t *testing.T, s *postgres.Server, attributes string) {
	t.Helper()
	require.NoError(t, execute(t.Context(), s.SuperuserURL(), "create role tester login password 'secret' "+attributes))
	address, err := url.Parse(s.SuperuserURL())
	require.NoError(t, err)
	address.User = url.UserPassword("tester", "secret")
	t.Setenv(externalVariable, address.String())
	t.Setenv("DATABASE_URL", "postgres://nobody@127.0.0.1:1/never")
}

func TestSharedServer(t *testing.T) {
	s := Server(t)
	external(t, s, "createdb")
	old := namePrefix + "1000000000_abc_1"
	require.NoError(t, execute(t.Context(), s.SuperuserURL(), "create database "+old+" owner tester"))
	require.NoError(t, execute(t.Context(), s.SuperuserURL(), "create database spine_test_not_ours"))

	// Two test binaries at the same time.
	one, two := Databases{Migrate: migrate}, Databases{Migrate: migrate}
	failed := &stub{TB: t, failed: true}
	one.Main(tests(func() {
		two.Main(tests(func() {
			first, second, third := &stub{TB: t}, &stub{TB: t}, failed
			require.Equal(t, 1, query[int](t, one.New(first), "select n from public.migrated"))
			require.Equal(t, "tester", query[string](t, two.New(second), "select current_user::text from migrated"))
			two.New(third)
			first.end()
			second.end()
			third.end()
		})).Run()
	})).Run()
	require.Nil(t, one.server)
	require.Len(t, failed.said, 1)
	require.NotContains(t, failed.said[0], "secret")

	kept := query[[]string](t, s.SuperuserURL(),
		"select array_agg(datname::text order by datname) from pg_database where datname like 'spine_test%'")
	require.Len(t, kept, 2, "no template, no database of a test that passed, none of long ago")
	require.Contains(t, failed.said[0], kept[0])
	require.Equal(t, "spine_test_not_ours", kept[1])
}

func TestSharedServerWithTooMuchPower(t *testing.T) {
	external(t, Server(t), "superuser")
	d := Databases{Migrate: migrate}
	d.Main(tests(func() {
		require.Panics(t, func() { d.New(&stub{TB: t}) })
	})).Run()
	require.ErrorContains(t, d.err, "be no superuser")
}

package postgres

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

func TestServer(t *testing.T) {
	t.Parallel()
	s := startAlone(t, Options{Dir: reachableFolder(t)})

	// As handed to an application: the owner of a database, and no more.
	const about = `
		select format('%s %s %s %s %s %s %s', current_user, current_database(), d.datdba::regrole,
			rolsuper, rolcreatedb, rolcreaterole,
			pg_encoding_to_char(encoding))
		from pg_roles, pg_database d
		where rolname = current_user and datname = current_database()`
	require.Equal(t, "spine spine spine f f f UTF8", query[string](t, s.URL(), about))
	require.Equal(t, "spine", query[string](t, s.URL(), "show search_path"))
	require.Equal(t, "postgres", query[string](t, s.SuperuserURL(),
		"select current_user::text from pg_roles where rolsuper and rolname = current_user"))

	// Durable, and for this machine's loopback only.
	for setting, value := range map[string]string{
		"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on",
		"listen_addresses": "127.0.0.1", "unix_socket_directories": "",
	} {
		require.Equal(t, value, query[string](t, s.SuperuserURL(), "show "+setting), setting)
	}

	// Nobody gets in without the password.
	stranger, err := url.Parse(s.SuperuserURL())
	require.NoError(t, err)
	stranger.User = url.UserPassword("postgres", "guess")
	_, err = pgx.Connect(t.Context(), stranger.String())
	var refused *pgconn.PgError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "28P01", refused.Code)

	// A terminal's Ctrl-C is sent to our process group.
	group, err := syscall.Getpgid(s.process.Pid)
	require.NoError(t, err)
	require.NotEqual(t, syscall.Getpgrp(), group)

	require.NotZero(t, ownerID(t, filepath.Join(s.Dir(), "data/PG_VERSION")), "PostgreSQL never runs as root")
	require.Equal(t, fs.FileMode(0o600), permissions(t, filepath.Join(s.Dir(), "data/spine.json")))
	require.Equal(t, fs.FileMode(0o600), permissions(t, filepath.Join(s.Dir(), "postgres.log")))
}

func ownerID(t *testing.T, path string) uint32 {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	return ownerOf(info).Uid
}

func permissions(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	return info.Mode().Perm()
}

func TestStopAndStartAgain(t *testing.T) {
	t.Parallel()
	// A Unix socket could not be made this deep: 107 bytes is their limit.
	dir := filepath.Join(reachableFolder(t), strings.Repeat("deep/", 30))
	first := start(t, Options{Dir: dir})
	execute(t, first.URL(), "create table public.kept as select 7 as n")
	// A7: an earlier version had public on the path.
	execute(t, first.URL(), "alter database "+Database+" set search_path = spine, public")
	pid := first.process.Pid
	require.NoError(t, first.Stop(t.Context()))
	require.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH)
	require.NoError(t, first.Stop(t.Context()), "a second Stop does nothing")

	second := start(t, Options{Dir: dir})
	require.Equal(t, first.URL(), second.URL(), "port and password stay")
	require.Equal(t, 7, query[int](t, second.URL(), "select n from public.kept"))
	require.Equal(t, "spine", query[string](t, second.URL(), "show search_path"))
	execute(t, second.URL(), "alter database "+Database+" set search_path = spine, elsewhere")
	require.NoError(t, second.Stop(t.Context()))

	// The port is remembered, but not insisted on.
	taken, err := listen(t.Context(), first.Port())
	require.NoError(t, err)
	defer func() { require.NoError(t, taken.Close()) }()
	third := start(t, Options{Dir: dir})
	require.NotEqual(t, first.Port(), third.Port())
	require.Equal(t, 7, query[int](t, third.URL(), "select n from public.kept"))
	require.Equal(t, "spine, elsewhere", query[string](t, third.URL(), "show search_path"), "somebody's own stays")
}

func TestStopWaitsForNobodyWhenTimeIsUp(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Dir: reachableFolder(t)})
	conn, err := pgx.Connect(t.Context(), s.URL())
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	_, err = conn.Exec(t.Context(), "begin; create table public.half (n int)")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, s.Stop(ctx))
	<-s.Exited()
}

func TestPortThatIsAskedFor(t *testing.T) {
	t.Parallel()
	dir := reachableFolder(t)
	taken, err := listen(t.Context(), 0)
	require.NoError(t, err)
	port := taken.Addr().(*net.TCPAddr).Port
	_, err = Start(t.Context(), Options{Dir: dir, From: model(t), Port: port, BinDir: os.Getenv("POSTGRES_BIN")})
	require.ErrorIs(t, err, errPortTaken)
	require.ErrorContains(t, err, strconv.Itoa(port))

	require.NoError(t, taken.Close())
	require.Equal(t, port, start(t, Options{Dir: dir, Port: port}).Port())
}

func TestFailedStartShowsTheLog(t *testing.T) {
	t.Parallel()
	dir := reachableFolder(t)
	_, err := Start(t.Context(), Options{
		Dir: dir, BinDir: os.Getenv("POSTGRES_BIN"), Settings: map[string]string{"no_such_setting": "1"},
	})
	require.ErrorContains(t, err, `unrecognized configuration parameter "no_such_setting"`)
	require.ErrorContains(t, err, filepath.Join(dir, "postgres.log"))

	// It leaves the folder usable.
	s := start(t, Options{Dir: dir, Settings: map[string]string{"work_mem": "5MB"}})
	require.Equal(t, "5MB", query[string](t, s.URL(), "show work_mem"))
}

func TestKillLosesNothing(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Dir: reachableFolder(t)})
	execute(t, s.URL(), "create table public.kept as select 1 as n")
	address := s.URL()
	for range 3 { // with no pause: what the dead server held is still being freed
		s.Kill()
		<-s.Exited()
		require.NoError(t, s.Restart(t.Context()))
		require.Equal(t, address, s.URL())
		execute(t, s.URL(), "update public.kept set n = n + 1")
	}
	require.NoError(t, s.Restart(t.Context()), "of a running server")
	require.Equal(t, 4, query[int](t, s.URL(), "select n from public.kept"))
}

func TestSessionThatOutlivesTheServer(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Dir: reachableFolder(t)})
	config, err := pgx.ParseConfig(s.URL())
	require.NoError(t, err)
	busy, ended := make(chan struct{}), make(chan struct{})
	config.OnNotice = func(*pgconn.PgConn, *pgconn.Notice) { close(busy) }
	conn, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	go func() {
		defer close(ended)
		_, _ = conn.Exec(t.Context(), `do $$ begin
			raise notice 'busy';
			while clock_timestamp() < statement_timestamp() + interval '1 s' loop end loop;
		end $$`) // it may be answered even now that the server is dead
	}()
	<-busy
	s.Kill()
	require.NoError(t, s.Restart(t.Context()))
	<-ended
	require.Equal(t, 1, query[int](t, s.URL(), "select 1"))
}

func TestFolderInUse(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Dir: reachableFolder(t)})
	_, err := Start(t.Context(), Options{Dir: s.Dir()})
	require.True(t, isLocked(err), err)
	require.ErrorContains(t, err, strconv.Itoa(os.Getpid()))
	require.ErrorContains(t, err, s.Dir())
	require.Equal(t, 1, query[int](t, s.URL(), "select 1"), "the first one runs on")
}

func TestServerLeftRunning(t *testing.T) {
	t.Parallel()
	dir := reachableFolder(t)
	left, err := Start(t.Context(), Options{Dir: dir, From: model(t), BinDir: os.Getenv("POSTGRES_BIN")})
	require.NoError(t, err)
	execute(t, left.URL(), "create table public.kept as select 7 as n")
	unlock(left.home.lock) // as our death would

	s := start(t, Options{Dir: dir})
	<-left.Exited()
	require.Equal(t, left.URL(), s.URL())
	require.Equal(t, 7, query[int](t, s.URL(), "select n from public.kept"))
}

func TestOurProcessKilled(t *testing.T) {
	t.Parallel()
	dir := reachableFolder(t)
	helper, said := startHelper(t, dir)
	require.Equal(t, dir, <-said)
	before := readFile(t, filepath.Join(dir, "data/postmaster.pid"))
	crash(helper)

	s := start(t, Options{Dir: dir})
	require.Equal(t, "by the helper", query[string](t, s.URL(), "select who from public.kept"))
	pid, _, _ := strings.Cut(before, "\n")
	old, err := strconv.Atoi(pid)
	require.NoError(t, err)
	require.False(t, runsServer(t.Context(), old, s.home.data()))
}

func TestKilledInTheMiddleOfInitdb(t *testing.T) {
	t.Parallel()
	dir := reachableFolder(t)
	real, err := Find(t.Context(), FindOptions{BinDir: os.Getenv("POSTGRES_BIN")})
	require.NoError(t, err)
	// An initdb that takes as long as we need to hit it.
	slow := fakeServer(t, filepath.Join(dir, "slow"), real.Version)
	script(t, filepath.Join(slow, "initdb"),
		"'; mkdir \"${1#--pgdata=}\"; echo half > \"${1#--pgdata=}/PG_VERSION\"; exec sleep 60 #")
	helper, _ := startHelper(t, dir, "POSTGRES_BIN="+slow, helperModel+"=") // which makes its own
	require.Eventually(t, func() bool {
		begun, _ := filepath.Glob(filepath.Join(dir, "init-*/data/PG_VERSION"))
		return len(begun) > 0
	}, time.Minute, time.Millisecond)
	crash(helper)
	require.NoDirExists(t, filepath.Join(dir, "data"))

	s := start(t, Options{Dir: dir})
	require.Equal(t, 1, query[int](t, s.URL(), "select 1"))
	left, err := filepath.Glob(filepath.Join(dir, "init-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestStalePidFiles(t *testing.T) {
	t.Parallel()
	dir := reachableFolder(t)
	s := start(t, Options{Dir: dir})
	execute(t, s.URL(), "create table public.kept as select 7 as n")
	path := filepath.Join(dir, "data/postmaster.pid")
	pidFile := readFile(t, path)
	gone, _, _ := strings.Cut(pidFile, "\n")
	require.NoError(t, s.Stop(t.Context()))

	for name, content := range map[string]string{
		"the process is dead":               pidFile,
		"its number is another program's":   strings.Replace(pidFile, gone, strconv.Itoa(os.Getpid()), 1),
		"its number is one of another user": strings.Replace(pidFile, gone, "1", 1),
		"cut short":                         "",
	} {
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		user, err := serverUser(filepath.Join(dir, "data"))
		require.NoError(t, err)
		if user != nil {
			require.NoError(t, os.Chown(path, int(user.Uid), int(user.Gid)))
		}
		s, err := Start(t.Context(), Options{Dir: dir, From: model(t), BinDir: os.Getenv("POSTGRES_BIN")})
		require.NoError(t, err, name)
		require.Equal(t, 7, query[int](t, s.URL(), "select n from public.kept"), name)
		require.NoError(t, s.Stop(t.Context()))
	}
}

func TestDataOfAnotherVersion(t *testing.T) {
	t.Parallel()
	dir := reachableFolder(t)
	s := start(t, Options{Dir: dir})
	major := s.Binaries().Major
	require.NoError(t, s.Stop(t.Context()))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "data/PG_VERSION"), []byte("14\n"), 0o600))

	_, err := Start(t.Context(), Options{Dir: dir, BinDir: s.Binaries().Dir})
	require.ErrorContains(t, err, "PostgreSQL 14 made the data")
	require.ErrorContains(t, err, fmt.Sprintf("PostgreSQL %s, not 14", s.Binaries().Version))
	require.ErrorContains(t, err, dir)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "data/PG_VERSION"), fmt.Appendln(nil, major), 0o600))
	start(t, Options{Dir: dir})
}

func TestClusterOfSomebodyElse(t *testing.T) {
	t.Parallel()
	dir := reachableFolder(t)
	s := start(t, Options{Dir: dir})
	require.NoError(t, s.Stop(t.Context()))
	require.NoError(t, os.Remove(filepath.Join(dir, "data/spine.json")))
	_, err := Start(t.Context(), Options{Dir: dir, BinDir: s.Binaries().Dir})
	require.ErrorContains(t, err, "spine did not make")
}

func TestFolderBelowAPrivateOne(t *testing.T) {
	t.Parallel()
	private := reachableFolder(t)
	require.NoError(t, os.Chmod(private, 0o700)) //nolint:gosec // as /root has it
	dir := filepath.Join(private, ".spine")
	s := start(t, Options{Dir: dir})
	execute(t, s.URL(), "create table public.kept as select 7 as n")
	where := s.Dir()
	if os.Geteuid() == 0 {
		require.Equal(t, rootHomes, filepath.Dir(where))
		t.Cleanup(func() { require.NoError(t, os.RemoveAll(where)) })
	} else {
		require.Equal(t, dir, where)
	}
	require.NoError(t, s.Stop(t.Context()))

	s = start(t, Options{Dir: dir})
	require.Equal(t, where, s.Dir())
	require.Equal(t, 7, query[int](t, s.URL(), "select n from public.kept"))
	require.NoError(t, s.Stop(t.Context()))
}

func TestThrowAwayFolders(t *testing.T) {
	t.Parallel()
	parent := reachableFolder(t)
	folders := func() []string {
		all, err := filepath.Glob(filepath.Join(parent, "*"))
		require.NoError(t, err)
		return all
	}
	s := start(t, Options{TempDir: parent})
	require.Equal(t, []string{s.Dir()}, folders())
	s.Kill() // whose children may still be writing
	require.NoError(t, s.Stop(t.Context()))
	require.Empty(t, folders())

	// A later process removes what a killed one left behind, but not at once, because another process
	// may be about to lock a young folder.
	helper, said := startHelper(t, "", "TMPDIR="+parent)
	left := <-said
	alive := start(t, Options{TempDir: parent})
	crash(helper)
	long := time.Now().Add(-2 * time.Minute)
	require.NoError(t, os.Chtimes(alive.Dir(), long, long))
	require.DirExists(t, left)
	require.NoError(t, os.Chtimes(left, long, long))
	third := start(t, Options{TempDir: parent})
	require.ElementsMatch(t, []string{alive.Dir(), third.Dir()}, folders())
	require.Equal(t, 1, query[int](t, alive.URL(), "select 1"))
}

func TestEnvironmentOfOtherServers(t *testing.T) {
	for name, value := range map[string]string{
		"PGDATA": "/nowhere", "PGPORT": "1", "PGHOST": "/nowhere",
		"PGUSER": "nobody", "PGDATABASE": "none", "PGPASSWORD": "wrong",
		"LC_ALL": "xx_XX.UTF-8",
	} {
		t.Setenv(name, value)
	}
	s := start(t, Options{Dir: reachableFolder(t)})
	require.Equal(t, "spine", query[string](t, s.URL(), "select current_user::text"))
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path) //nolint:gosec // below the test's own folder
	require.NoError(t, err)
	return string(content)
}

package postgres

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// helperVariable turns the test binary into a program that starts a server in
// the folder it names, writes a row, says so and waits to be killed.
const helperVariable = "SPINE_POSTGRES_TEST_HELPER"

// helperModel is the folder of the cluster that a helper starts with a copy of.
const helperModel = "SPINE_POSTGRES_TEST_MODEL"

func TestMain(m *testing.M) {
	if dir, ok := os.LookupEnv(helperVariable); ok {
		if err := help(context.Background(), dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(cluster.dir) // nothing, where no test has needed it
		os.Exit(code)
	}))
}

func help(ctx context.Context, dir string) error {
	s, err := Start(ctx, Options{
		Dir: dir, From: os.Getenv(helperModel), TempDir: os.Getenv("TMPDIR"), BinDir: os.Getenv("POSTGRES_BIN"),
	})
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, s.URL())
	if err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "create table public.kept as select 'by the helper' as who"); err != nil {
		return err
	}
	fmt.Println(s.Dir())
	select {}
}

// startHelper starts a helper and returns it with a channel of the one line it
// says when its row is committed.
func startHelper(t *testing.T, dir string, env ...string) (*exec.Cmd, <-chan string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // the test binary itself
	cmd.Env = append(append(os.Environ(), helperVariable+"="+dir, helperModel+"="+model(t)), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	said := make(chan string, 1)
	go func() {
		defer close(said)
		if lines := bufio.NewScanner(out); lines.Scan() {
			said <- lines.Text()
		}
	}()
	t.Cleanup(func() { crash(cmd) })
	return cmd, said
}

func crash(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// reachableFolder makes a folder that the server's user can reach, unlike t.TempDir.
func reachableFolder(t *testing.T) string {
	t.Helper()
	dir, err := makeReachableFolder()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// makeReachableFolder makes it in memory if possible: on a busy disk an fsync takes seconds.
func makeReachableFolder() (string, error) {
	parent := "/dev/shm"
	if _, err := os.Stat(parent); err != nil {
		parent = "/var/tmp"
	}
	dir, err := os.MkdirTemp(parent, "spine-test-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755) //nolint:gosec // that is the purpose
}

// cluster is a stopped cluster. It is made once, since initdb takes seconds on a busy machine.
var cluster struct {
	once sync.Once
	dir  string
	err  error
}

// model is the folder of the cluster, which most tests start with a copy of.
func model(t *testing.T) string {
	t.Helper()
	cluster.once.Do(func() { cluster.dir, cluster.err = makeCluster(context.WithoutCancel(t.Context())) })
	require.NoError(t, cluster.err)
	return cluster.dir
}

func makeCluster(ctx context.Context) (dir string, err error) {
	if dir, err = makeReachableFolder(); err != nil {
		return dir, err
	}
	s, err := Start(ctx, Options{Dir: dir, BinDir: os.Getenv("POSTGRES_BIN")})
	if err != nil {
		return dir, err
	}
	return dir, s.Stop(ctx)
}

// start starts a server, on a copy of the model where it has no cluster yet, and stops it when t ends.
func start(t *testing.T, o Options) *Server {
	t.Helper()
	o.From = model(t)
	return startAlone(t, o)
}

// startAlone is start for a server that makes its own cluster.
func startAlone(t *testing.T, o Options) *Server {
	t.Helper()
	o.BinDir = os.Getenv("POSTGRES_BIN")
	s, err := Start(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop(context.WithoutCancel(t.Context()))) })
	return s
}

// query runs a statement that returns one value.
func query[T any](t *testing.T, url, statement string) T {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	var value T
	require.NoError(t, conn.QueryRow(t.Context(), statement).Scan(&value))
	return value
}

func execute(t *testing.T, url, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	_, err = conn.Exec(t.Context(), statement)
	require.NoError(t, err)
}

package postgrestest

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Pooler starts a PgBouncer in front of the server of a URL, and returns the URL of the same database behind it. It
// has three connections to the server for each database and role, and 20 in session mode. A test is skipped where there
// is no PgBouncer; .ci/run installs one.
func Pooler(t testing.TB, target, mode string) string {
	t.Helper()
	if findPgBouncer() == "" {
		t.Skip("there is no pgbouncer on this machine")
	}
	size := 3
	if mode == "session" { // each connection needs one
		size = 20
	}
	return StartPgBouncer(t, target, mode, size).URL()
}

// PgBouncer is a pooler in front of a server. Start and Kill must not be called concurrently.
type PgBouncer struct {
	url, address string
	path         string
	args         []string
	log          *os.File
	kill         func()

	mu   sync.Mutex
	pid  int         // of the last process
	ends []time.Time // of processes that ended by themselves
}

// findPgBouncer returns the path of the program, or "" if this machine has none.
func findPgBouncer() string {
	const debian = "/usr/sbin/pgbouncer" // which is not on every user's path
	if found, err := exec.LookPath("pgbouncer"); err == nil {
		return found
	} else if _, err := os.Stat(debian); err != nil {
		return ""
	}
	return debian
}

// StartPgBouncer starts a PgBouncer in front of the server of target, a URL. It stops it when t ends. mode is the
// pool_mode, such as transaction. size is the default_pool_size. The test fails where there is no PgBouncer.
func StartPgBouncer(t testing.TB, target, mode string, size int) *PgBouncer {
	t.Helper()
	path := findPgBouncer()
	require.NotEmpty(t, path, "this needs PgBouncer: apt-get install pgbouncer")
	u, err := url.Parse(target)
	require.NoError(t, err)
	password, _ := u.User.Password()
	free, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a moment
	require.NoError(t, err)
	address := free.Addr().String()
	require.NoError(t, free.Close())
	host, port, err := net.SplitHostPort(address)
	require.NoError(t, err)

	dir, err := os.MkdirTemp(tempDir(), "pooler")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	config := filepath.Join(dir, "pgbouncer.ini")
	text := fmt.Sprintf(`[databases]
* = host=%s port=%s user=%s password=%s
[pgbouncer]
listen_addr = %s
listen_port = %s
unix_socket_dir =
auth_type = any
pool_mode = %s
default_pool_size = %d
server_tls_sslmode = disable
server_login_retry = 1
`, u.Hostname(), u.Port(), u.User.Username(), password, host, port, mode, size)
	require.NoError(t, os.Chmod(dir, 0o755))                      //nolint:gosec // of this test, read by another user
	require.NoError(t, os.WriteFile(config, []byte(text), 0o644)) //nolint:gosec // the same

	p := &PgBouncer{address: address, path: path, args: []string{config}}
	log, err := os.Create(filepath.Join(dir, "log")) //nolint:gosec // of this test
	require.NoError(t, err)
	t.Cleanup(func() {
		if said, err := os.ReadFile(log.Name()); err == nil && (t.Failed() || len(p.Ends()) > 0) {
			t.Logf(
				"pgbouncer ended by itself %d times, and said at last:\n%s",
				len(p.Ends()),
				said[max(0, len(said)-logTail):],
			)
		}
		_ = log.Close()
	})
	p.log = log
	if os.Geteuid() == 0 { // which it refuses to run as
		p.args = append([]string{"--user=nobody"}, p.args...)
	}
	u.Host = address
	p.url = u.String()
	p.Start(t)
	t.Cleanup(func() { p.Kill() })
	return p
}

// logTail is how many bytes of its log a failed test shows.
const logTail = 4 << 10

// URL is that of the database, behind the pooler.
func (p *PgBouncer) URL() string { return p.url }

// Kill ends the pooler at once, and with it all connections through it. It returns when the pooler is gone.
func (p *PgBouncer) Kill() { p.kill() }

// Ends are the times at which the pooler ended by itself. Before version 1.21 it does so now and then where clients
// cancel statements (its issues 822 and 904).
func (p *PgBouncer) Ends() []time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.ends)
}

// Start starts the pooler again after Kill, at the same address. It returns when the pooler accepts connections.
func (p *PgBouncer) Start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	command, err := p.launch(ctx)
	if err != nil {
		cancel()
	}
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.supervise(ctx, command)
	}()
	p.kill = func() {
		cancel()
		<-ended
	}
	require.Eventually(t, func() bool {
		conn, err := net.DialTimeout("tcp", p.address, time.Second) //nolint:noctx // a moment
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}, 10*time.Second, 10*time.Millisecond, "pgbouncer does not begin at %s", p.address)
}

// launch starts a process that is killed when ctx ends.
func (p *PgBouncer) launch(ctx context.Context) (*exec.Cmd, error) {
	command := exec.CommandContext(ctx, p.path, p.args...) //nolint:gosec // that of this machine
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Stderr = p.log
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("starting pgbouncer: %w", err)
	}
	p.mu.Lock()
	p.pid = command.Process.Pid
	p.mu.Unlock()
	return command, nil
}

// supervise starts the pooler again where it ends by itself, as a service manager does, until ctx ends.
func (p *PgBouncer) supervise(ctx context.Context, command *exec.Cmd) {
	for {
		if command != nil {
			_ = command.Wait() // the log has the reason
		}
		if ctx.Err() != nil {
			return
		}
		p.mu.Lock()
		p.ends = append(p.ends, time.Now())
		p.mu.Unlock()
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return
		}
		command, _ = p.launch(ctx) // nil where that failed: it is tried again
	}
}

package postgrestest

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
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

// PgBouncer is a pooler in front of a server. Its methods must not be called concurrently, except URL.
type PgBouncer struct {
	url, address string
	path         string
	args         []string
	command      *exec.Cmd
	ended        chan struct{} // closed once the process is gone
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

// StartPgBouncer starts a PgBouncer in front of the server of a URL, and stops it when t ends. mode is session,
// transaction or statement. size is how many connections to the server it has for each database and role. The test
// fails where there is no PgBouncer.
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
	if os.Geteuid() == 0 { // which it refuses to run as
		p.args = append([]string{"--user=nobody"}, p.args...)
	}
	u.Host = address
	p.url = u.String()
	p.Start(t)
	t.Cleanup(p.Kill)
	return p
}

// URL is that of the database, behind the pooler.
func (p *PgBouncer) URL() string { return p.url }

// Kill ends the pooler at once, and with it all connections through it. It returns when the pooler is gone.
func (p *PgBouncer) Kill() {
	_ = p.command.Process.Kill() // it fails only if the process is gone
	<-p.ended
}

// Start starts the pooler again after Kill, at the same address. It returns when the pooler accepts connections.
func (p *PgBouncer) Start(t testing.TB) {
	t.Helper()
	command := exec.CommandContext(t.Context(), p.path, p.args...) //nolint:gosec // that of this machine
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	require.NoError(t, command.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = command.Wait() // it is killed
	}()
	p.command, p.ended = command, ended
	require.Eventually(t, func() bool {
		conn, err := net.DialTimeout("tcp", p.address, time.Second) //nolint:noctx // a moment
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}, 10*time.Second, 10*time.Millisecond, "pgbouncer does not begin at %s", p.address)
}

package systemtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// console is a pseudo-terminal with a person at one end and a process at the
// other.
type console struct {
	person *os.File
	side   *os.File // the process's
	output *complaints
	ended  chan error
}

// onTerminal runs the real binary on a terminal of its own.
func onTerminal(t *testing.T, columns, rows uint16, environment []string, args ...string) (*console, *exec.Cmd) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = person.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetWinsize(int(person.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}))
	side, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = side.Close() })

	path, err := exec.LookPath("spine")
	require.NoError(t, err)
	//nolint:gosec // this test binary, under the name of spine
	cmd := exec.CommandContext(
		context.WithoutCancel(t.Context()),
		path,
		args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TERM=xterm"}, environment...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = side, side, side
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(t, cmd.Start())
	end := &console{person: person, side: side, output: &complaints{}, ended: make(chan error, 1)}
	go func() {
		text := make([]byte, 4096)
		for {
			n, err := person.Read(text)
			_, _ = end.output.Write(text[:n])
			if err != nil {
				return
			}
		}
	}()
	go func() { end.ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return end, cmd
}

func (e *console) awaitText(t *testing.T, want string) {
	t.Helper()
	require.Eventually(
		t,
		func() bool { return strings.Contains(e.output.String(), want) },
		patience,
		10*time.Millisecond,
		"%q",
		want,
	)
}

func (e *console) settings(t *testing.T) unix.Termios {
	t.Helper()
	settings, err := unix.IoctlGetTermios(int(e.side.Fd()), unix.TCGETS)
	require.NoError(t, err)
	return *settings
}

func TestWatchGivesTheTerminalBack(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	ingested(t, open(t, database, nil), "default", "a")
	for name, end := range map[string]func(e *console, cmd *exec.Cmd) error{
		"q":       func(e *console, _ *exec.Cmd) error { _, err := e.person.WriteString("q"); return err },
		"Ctrl-C":  func(e *console, _ *exec.Cmd) error { _, err := e.person.WriteString("\x03"); return err },
		"SIGTERM": func(_ *console, cmd *exec.Cmd) error { return cmd.Process.Signal(syscall.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, cmd := onTerminal(t, 100, 30, []string{"DATABASE_URL=" + database}, "status", "--watch")
			e.awaitText(t, "last arrival")
			require.Zero(t, e.settings(t).Lflag&unix.ICANON, "keys are read as they are typed")
			require.NoError(t, end(e, cmd))
			require.NoError(t, <-e.ended)
			require.NotZero(t, e.settings(t).Lflag&unix.ICANON)
			e.awaitText(t, "\x1b[?25h\x1b[?1049l")
			require.Contains(t, e.output.String(), "\x1b[?1049h")
		})
	}
}

func TestTailAndTraceOnATerminal(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	ingested(t, open(t, database, nil), "default", "test-001", "test-001")
	e, cmd := onTerminal(t, 80, 24, []string{"DATABASE_URL=" + database}, "tail", "--since", "1h")
	e.awaitText(t, "\x1b[1mtest-001\x1b[0m known already, with this payload\r\n")
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, <-e.ended)

	e, _ = onTerminal(t, 80, 24, []string{"DATABASE_URL=" + database, "NO_COLOR=1"}, "trace", "test-001")
	require.NoError(t, <-e.ended)
	e.awaitText(t, "✓ known already, with this payload\r\n")
	require.NotContains(t, e.output.String(), "\x1b")
}

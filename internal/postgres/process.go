package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

const (
	// fastLimit bounds a fast shutdown, in which the server ends sessions and writes a checkpoint,
	// unless the caller's context ends earlier.
	fastLimit = 10 * time.Second
	// immediateLimit bounds an immediate shutdown. The postmaster kills children that are still
	// there after five seconds.
	immediateLimit = 6 * time.Second
	killLimit      = 5 * time.Second

	pollInterval = 20 * time.Millisecond
)

// serverCommand prepares a program of PostgreSQL. It runs in dir, as user unless that is nil. It has a
// process group of its own, so that a terminal's Ctrl-C reaches only us: the server must outlive
// everyone who uses it.
func serverCommand(ctx context.Context, user *syscall.Credential, dir, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...) //nolint:gosec // running what was found is the purpose
	cmd.Dir = dir
	cmd.SysProcAttr = processAttributes(user)
	// PGDATA, PGPORT and the like belong to other servers. With another locale the messages would
	// be translated, and on macOS no start succeeds when none is set.
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return strings.HasPrefix(variable, "PG")
	}), "LC_ALL=C")
	return cmd
}

// A process is a postmaster that we started.
type process struct {
	*os.Process
	exited chan struct{} // closed once it is gone
}

// startProcess starts cmd. A thread of its own starts and awaits it, because Linux sends the
// parent-death signal when the thread that forked has ended.
func startProcess(cmd *exec.Cmd) (*process, error) {
	started := make(chan error, 1)
	p := &process{exited: make(chan struct{})}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.exited)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // the log has the reason
		}
	}()
	if err := <-started; err != nil {
		<-p.exited
		return nil, fmt.Errorf("starting %s: %w", cmd.Path, err)
	}
	p.Process = cmd.Process
	return p, nil
}

func (p *process) stop(ctx context.Context) error {
	return stopPostmaster(ctx, p.exited, func(signal syscall.Signal) error { return p.Signal(signal) })
}

func (p *process) kill() {
	_ = p.Kill() // it fails only if the process is gone
	<-p.exited
}

// stopPostmaster asks for a fast shutdown. When that takes too long or ctx ends, it asks for an
// immediate one, after which the next start recovers from the log. It returns when the postmaster
// is gone.
func stopPostmaster(ctx context.Context, gone <-chan struct{}, send func(syscall.Signal) error) error {
	unhurried := context.WithoutCancel(ctx)
	for _, step := range []struct {
		ctx    context.Context
		signal syscall.Signal
		limit  time.Duration
	}{
		{ctx, syscall.SIGINT, fastLimit},
		{unhurried, syscall.SIGQUIT, immediateLimit},
		{unhurried, syscall.SIGKILL, killLimit},
	} {
		_ = send(step.signal)
		limit := time.NewTimer(step.limit)
		select {
		case <-gone:
			limit.Stop()
			return nil
		case <-step.ctx.Done():
		case <-limit.C:
		}
		limit.Stop()
	}
	return errors.New("the PostgreSQL server is still running after it was killed")
}

// stopLeftover stops a server that still runs on data because the process that started it was
// killed. It leaves a postmaster.pid whose process is dead for the server to judge. It removes one
// whose number now belongs to another program, because the server would take that for a postmaster.
// The server's second guard, shared memory keyed by the folder's inode, stays up.
func stopLeftover(ctx context.Context, data string, log zerolog.Logger) error {
	path := filepath.Join(data, "postmaster.pid")
	content, err := os.ReadFile(path) //nolint:gosec // below our own folder
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading whether a server is running: %w", err)
	}
	first, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 1 { // a crash cut the file short
		pid = 0
	}
	if pid == 0 || !runsServer(ctx, pid, data) {
		if pid != 0 && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return nil
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing a stale postmaster.pid: %w", err)
		}
		return nil
	}

	log.Warn().Int("pid", pid).Str("data", data).Msg("stopping a PostgreSQL server that a killed process left running")
	gone := make(chan struct{})
	watching, stopWatching := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWatching()
	go func() {
		defer close(gone)
		for runsServer(watching, pid, data) && watching.Err() == nil {
			time.Sleep(pollInterval)
		}
	}()
	return stopPostmaster(ctx, gone, func(signal syscall.Signal) error { return syscall.Kill(pid, signal) })
}

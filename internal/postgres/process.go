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
	// fastLimit bounds a fast shutdown, in which the server ends sessions and
	// writes a checkpoint, where the caller's context has no earlier end.
	fastLimit = 10 * time.Second
	// immediateLimit bounds an immediate one: the postmaster itself kills
	// children that have not gone after five seconds.
	immediateLimit = 6 * time.Second
	killLimit      = 5 * time.Second

	pollInterval = 20 * time.Millisecond
)

// command prepares a program of PostgreSQL. It runs in dir, as user unless
// that is nil, in a process group of its own, so that a terminal's Ctrl-C is
// for us alone: the server must outlive all who use it.
func command(ctx context.Context, user *syscall.Credential, dir, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...) //nolint:gosec // running what was found is the purpose
	cmd.Dir = dir
	cmd.SysProcAttr = processAttributes(user)
	// PGDATA, PGPORT and their like belong to other servers. With another
	// locale the messages would be translated, and on macOS no start succeeds
	// when none is set.
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

// startProcess starts cmd. A thread of its own starts and awaits it, because
// Linux sends the parent-death signal when the thread that forked is gone.
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
			_ = cmd.Wait() // what went wrong is in the log
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

// stopPostmaster asks for a fast shutdown, and when that takes too long or
// ctx ends for an immediate one, after which the next start recovers from the
// log. It returns when the postmaster is gone.
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
	return errors.New("the PostgreSQL server does not go, not even when killed")
}

// stopLeftover stops a server that still runs on data since the process that
// started it was killed. A postmaster.pid whose process is dead is left for
// the server to judge. One whose number by now belongs to another program is
// removed, because the server would take that for a postmaster; its second
// guard, shared memory keyed by the folder's inode, stays up.
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
	if err != nil || pid <= 1 { // cut short by a crash
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

package postgres

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// processAttributes also makes the kernel ask a server for a fast shutdown when we die without
// having stopped it.
func processAttributes(user *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: user, Pdeathsig: syscall.SIGINT}
}

// runsServer reports whether process pid is the postmaster of data. A postmaster works in its data
// folder. A process that is dead but not yet awaited has no working folder.
func runsServer(_ context.Context, pid int, data string) bool {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil || strings.TrimSpace(string(name)) != "postgres" {
		return false
	}
	works, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return false
	}
	folder, err := os.Stat(data)
	return err == nil && os.SameFile(works, folder)
}

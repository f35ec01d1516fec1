//go:build !linux

package postgres

import (
	"context"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

func processAttributes(user *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: user}
}

// runsServer reports whether process pid is the postmaster of data. Its command line names the
// folder, see Server.launch.
func runsServer(ctx context.Context, pid int, data string) bool {
	number := strconv.Itoa(pid)
	out, err := exec.CommandContext(ctx, "ps", "-o", "command=", "-p", number).Output() //nolint:gosec // a number
	return err == nil && strings.Contains(string(out), "postgres -D "+data+" ")
}

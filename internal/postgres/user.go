package postgres

import (
	"errors"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// unprivilegedUser returns the user who runs the server when we are root.
func unprivilegedUser() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "_postgres", "nobody"} {
		account, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(account.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(account.Gid, 10, 32)
		if uidErr == nil && gidErr == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("PostgreSQL does not run as root, and this machine has neither a user postgres nor nobody")
}

// ownerOf returns the user and group of a file.
func ownerOf(info fs.FileInfo) *syscall.Credential {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		panic("a file without an owner: this is no Unix")
	}
	return &syscall.Credential{Uid: stat.Uid, Gid: stat.Gid}
}

func effectiveUser() uint32 {
	return uint32(os.Geteuid()) //nolint:gosec // user ids are 32 bits wide on every Unix
}

func descriptor(file *os.File) int {
	return int(file.Fd())
}

package postgres

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

const (
	defaultTempDir = "/var/tmp"  // exists on every Unix, and lies on a disk
	tempPrefix     = "spine-pg-" // prefix of the names of throw-away folders

	// rootHomes keeps the data of folders that the server's user cannot reach. It is not in
	// /var/tmp, because the system removes old files there.
	rootHomes = "/var/lib/spine"

	logLimit = 10 << 20 // bytes of log kept from one start to the next
)

// A home is the folder of one server. Whoever holds its lock owns everything in it.
//
//	data/         the cluster, complete; it belongs to the server's user
//	init-*        a cluster in the making, garbage if found
//	postgres.log  what the server has to say
//	lock          held for as long as the home is open; holds our process id
type home struct {
	dir       string
	ephemeral bool
	lock      *os.File
}

func (h *home) data() string    { return filepath.Join(h.dir, "data") }
func (h *home) logFile() string { return filepath.Join(h.dir, "postgres.log") }

// openHome makes the folder dir if it is missing, and takes its lock. For root the folder may lie
// in rootHomes instead.
func openHome(dir string, log zerolog.Logger) (*home, error) {
	dir, err := makeFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("making the folder of the database: %w", err)
	}
	user, err := serverUser(filepath.Join(dir, "data"))
	if err != nil {
		return nil, err
	}
	if user != nil && !reachable(dir, user) {
		wanted := dir
		sum := sha256.Sum256([]byte(wanted))
		if dir, err = makeFolder(filepath.Join(rootHomes, fmt.Sprintf("%x", sum[:6]))); err != nil {
			return nil, fmt.Errorf("making a folder of the database in place of %s, which user %d cannot reach: %w",
				wanted, user.Uid, err)
		}
		log.Warn().Str("wanted", wanted).Str("used", dir).Uint32("uid", user.Uid).
			Msg("PostgreSQL does not run as root, and its user cannot reach this folder: data is kept elsewhere")
	}
	lock, err := tryLock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return &home{dir: dir, lock: lock}, nil
}

// openEphemeralHome makes a throw-away folder in parent and takes its lock.
func openEphemeralHome(ctx context.Context, parent string, log zerolog.Logger) (*home, error) {
	removeAbandoned(ctx, parent, log)
	dir, err := os.MkdirTemp(parent, tempPrefix)
	if err != nil {
		return nil, fmt.Errorf("making a throw-away folder: %w", err)
	}
	lock, err := tryLock(filepath.Join(dir, "lock"))
	if err == nil {
		err = os.Chmod(dir, 0o755) //nolint:gosec // the server's user must pass; data itself is 0700
	}
	if err != nil {
		return nil, fmt.Errorf("setting up %s: %w", dir, err)
	}
	return &home{dir: dir, ephemeral: true, lock: lock}, nil
}

// close releases the home, and removes it if it is ephemeral.
func (h *home) close() error {
	defer unlock(h.lock)
	if !h.ephemeral {
		return nil
	}
	// The children of a killed postmaster may still write for a moment.
	var err error
	for range 100 {
		if err = os.RemoveAll(h.dir); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("removing %s: %w", h.dir, err)
}

// removeAbandoned removes the throw-away folders in parent that killed processes of our user left
// behind, and stops servers that still run there. It leaves a folder younger than a minute alone,
// because another process may be about to lock it.
func removeAbandoned(ctx context.Context, parent string, log zerolog.Logger) {
	dirs, _ := filepath.Glob(filepath.Join(parent, tempPrefix+"*"))
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || ownerOf(info).Uid != effectiveUser() ||
			time.Since(info.ModTime()) < time.Minute {
			continue
		}
		lock, err := tryLock(filepath.Join(dir, "lock"))
		if err != nil {
			continue
		}
		left := home{dir: dir, ephemeral: true, lock: lock}
		if err := stopLeftover(ctx, left.data(), log); err != nil {
			log.Warn().Err(err).Str("dir", dir).Msg("a PostgreSQL server of a killed process cannot be stopped")
			unlock(lock)
			continue
		}
		if err := left.close(); err != nil {
			log.Warn().Err(err).Msg("a throw-away folder of a killed process cannot be removed")
		}
	}
}

// makeFolder makes dir and returns its real path. The server's user must be able to pass through
// it. Secret files in it have permissions of their own.
func makeFolder(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // see above
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}

// serverUser returns the user to run the server as, because PostgreSQL rejects root. nil means
// ourselves. Root uses the owner of existing data, else the user postgres, else nobody.
func serverUser(data string) (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	if info, err := os.Stat(data); err == nil && ownerOf(info).Uid != 0 {
		return ownerOf(info), nil
	}
	return unprivilegedUser()
}

// reachable reports whether user may pass through dir and all folders above it. dir is a real path.
// Access control lists are ignored.
func reachable(dir string, user *syscall.Credential) bool {
	for {
		info, err := os.Stat(dir)
		if err != nil {
			return false
		}
		mode, owner := info.Mode().Perm(), ownerOf(info)
		switch {
		case owner.Uid == user.Uid:
			mode >>= 6
		case owner.Gid == user.Gid:
			mode >>= 3
		}
		if mode&1 == 0 {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}

// lockedError says that another process holds a lock.
type lockedError struct{ holder string }

func (e *lockedError) Error() string {
	return fmt.Sprintf("another spine (process %s) is using it", e.holder)
}

func isLocked(err error) bool {
	var locked *lockedError
	return errors.As(err, &locked)
}

// tryLock takes the lock on path, and makes the file if it is missing. The lock ends with unlock or
// with our process, however that ends.
func tryLock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600) //nolint:gosec // the caller's path
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(descriptor(file), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer func() { _ = file.Close() }()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		holder, _ := os.ReadFile(path) //nolint:gosec // the caller's path
		return nil, &lockedError{holder: strings.TrimSpace(string(holder))}
	}
	err = file.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintln(file, os.Getpid())
	}
	if err != nil {
		unlock(file)
		return nil, fmt.Errorf("writing %s: %w", path, err)
	}
	return file, nil
}

// unlock releases the lock. Closing alone is not enough, because a child between fork and exec
// holds a copy of the descriptor.
func unlock(file *os.File) {
	_ = syscall.Flock(descriptor(file), syscall.LOCK_UN)
	_ = file.Close()
}

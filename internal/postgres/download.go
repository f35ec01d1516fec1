package postgres

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

const (
	mavenCentral   = "https://repo1.maven.org/maven2"
	rootCacheDir   = "/var/cache/spine"
	newestDownload = 18
)

// download returns the binaries of an earlier download, or fetches them. Processes that want the
// same ones wait for the first to finish.
func (o FindOptions) download(ctx context.Context) (Binaries, error) {
	version, err := downloadVersion(o.Major)
	if err != nil {
		return Binaries{}, err
	}
	cache := o.CacheDir
	if cache == "" {
		if cache, err = o.defaultCacheDir(); err != nil {
			return Binaries{}, err
		}
	}
	final := filepath.Join(cache, "postgresql-"+string(version))
	if found, err := o.inspect(ctx, filepath.Join(final, "bin")); err == nil {
		return found, nil
	}

	// The library cannot be cancelled. When ctx ends first, the download goes on without us and
	// cleans up after itself.
	type outcome struct {
		found Binaries
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		found, err := o.fetch(ctx, version, cache, final)
		done <- outcome{found, err}
	}()
	select {
	case result := <-done:
		return result.found, result.err
	case <-ctx.Done():
		return Binaries{}, fmt.Errorf("downloading PostgreSQL %s: %w", version, ctx.Err())
	}
}

// fetch downloads into a folder beside final and renames that folder, so that final is either
// complete or missing.
func (o FindOptions) fetch(
	ctx context.Context, version embeddedpostgres.PostgresVersion, cache, final string,
) (Binaries, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil { //nolint:gosec // the server's user must reach it
		return Binaries{}, fmt.Errorf("making the cache for downloads: %w", err)
	}
	lock, err := waitForLock(ctx, filepath.Join(cache, "lock"))
	if err != nil {
		return Binaries{}, fmt.Errorf("waiting for another download: %w", err)
	}
	defer unlock(lock)
	if found, err := o.inspect(ctx, filepath.Join(final, "bin")); err == nil {
		return found, nil
	}

	repository := o.RepositoryURL
	if repository == "" {
		repository = mavenCentral
	}
	o.Logger.Info().Str("version", string(version)).Str("from", repository).Str("to", final).
		Msg("no PostgreSQL on this machine: downloading it, once")
	part := final + ".part"
	if err := os.RemoveAll(part); err != nil {
		return Binaries{}, fmt.Errorf("clearing away a broken download: %w", err)
	}
	defer func() { _ = os.RemoveAll(part) }()
	extracted := filepath.Join(part, "extracted")
	if err := extract(version, repository, part, extracted); err != nil {
		return Binaries{}, fmt.Errorf("downloading PostgreSQL %s from %s: %w", version, repository, err)
	}
	if o.credential != nil {
		if err := openToAll(cache, extracted); err != nil {
			return Binaries{}, fmt.Errorf("opening %s to the server's user: %w", cache, err)
		}
	}
	if err := os.RemoveAll(final); err != nil {
		return Binaries{}, fmt.Errorf("clearing away a broken download: %w", err)
	}
	if err := os.Rename(extracted, final); err != nil {
		return Binaries{}, fmt.Errorf("keeping the download: %w", err)
	}
	return o.inspect(ctx, filepath.Join(final, "bin"))
}

// extract lets the library download into part and unpack into extracted.
//
// The library can only start a server, which we do ourselves, so its Start must stop once the
// binaries are there. Start begins a new cluster by removing the old one, and os.RemoveAll rejects
// any path that ends in a dot. With such a data path Start fails right after unpacking, before it
// runs a program. It makes the runtime folder between the two, so that folder tells whether
// unpacking was complete.
func extract(version embeddedpostgres.PostgresVersion, repository, part, extracted string) error {
	runtime := filepath.Join(part, "runtime")
	err := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(version).
		BinaryRepositoryURL(repository).
		CachePath(part).
		BinariesPath(extracted).
		RuntimePath(runtime).
		DataPath(filepath.Join(part, "data") + "/.").
		Port(0).
		Logger(io.Discard)).Start()
	if _, missing := os.Stat(runtime); missing != nil {
		return err
	}
	return nil
}

// openToAll makes cache, and everything in tree, readable for everybody, whatever the umask was.
func openToAll(cache, tree string) error {
	if err := os.Chmod(cache, 0o755); err != nil { //nolint:gosec // that is the purpose
		return err
	}
	return filepath.WalkDir(tree, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm() | 0o444
		if mode&0o100 != 0 {
			mode |= 0o111
		}
		return os.Chmod(path, mode) //nolint:gosec // we have just made this tree, and nobody else can write to it
	})
}

func (o FindOptions) defaultCacheDir() (string, error) {
	if o.credential != nil {
		return rootCacheDir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding a cache folder for a download: %w", err)
	}
	return filepath.Join(dir, "spine"), nil
}

func downloadVersion(major int) (embeddedpostgres.PostgresVersion, error) {
	switch major {
	case 0, newestDownload:
		return embeddedpostgres.V18, nil
	case 17:
		return embeddedpostgres.V17, nil
	case 16:
		return embeddedpostgres.V16, nil
	case 15:
		return embeddedpostgres.V15, nil
	default:
		return "", fmt.Errorf("there is no download of PostgreSQL %d", major)
	}
}

// waitForLock takes the lock on path as soon as it is free.
func waitForLock(ctx context.Context, path string) (*os.File, error) {
	for {
		lock, err := tryLock(path)
		if err == nil || !isLocked(err) {
			return lock, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

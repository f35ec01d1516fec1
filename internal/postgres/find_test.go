package postgres

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// script writes an executable that prints text.
func script(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755)) //nolint:gosec // the server's user must reach it
	program := []byte("#!/bin/sh\necho '" + text + "'\n")
	require.NoError(t, os.WriteFile(path, program, 0o755)) //nolint:gosec // the server's user must run it
}

// fakeServer puts programs into dir that claim to be of a version.
func fakeServer(t *testing.T, dir, version string) string {
	t.Helper()
	script(t, filepath.Join(dir, "postgres"), "postgres (PostgreSQL) "+version)
	script(t, filepath.Join(dir, "initdb"), "initdb (PostgreSQL) "+version)
	return dir
}

// emptyMachine returns options for a machine that has nothing, and whose
// downloads fail.
func emptyMachine(t *testing.T) FindOptions {
	t.Helper()
	dir := reachableFolder(t)
	t.Setenv("PATH", filepath.Join(dir, "path"))
	t.Setenv("TMPDIR", dir) // for a log that the download's library leaves behind
	nothing := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(nothing.Close)
	return FindOptions{root: dir, CacheDir: filepath.Join(dir, "cache"), RepositoryURL: nothing.URL}
}

func TestFindOrder(t *testing.T) {
	o := emptyMachine(t)
	inOrder := []string{
		fakeServer(t, filepath.Join(o.root, "configured"), "15.1"),
		fakeServer(t, filepath.Join(o.root, "path"), "15.2"),
		fakeServer(t, filepath.Join(o.root, "usr/lib/postgresql/16/bin"), "16.3"),
		fakeServer(t, filepath.Join(o.root, "usr/lib/postgresql/15/bin"), "15.4"),
		fakeServer(t, filepath.Join(o.root, "usr/pgsql-18/bin"), "18beta1"),
		fakeServer(t, filepath.Join(o.root, "usr/pgsql-17/bin"), "17.6 (Fedora)"),
		fakeServer(t, filepath.Join(o.root, "usr/bin"), "15.7"),
		fakeServer(t, filepath.Join(o.root, "opt/homebrew/opt/postgresql@18/bin"), "18.8 (Homebrew)"),
		fakeServer(t, filepath.Join(o.root, "Applications/Postgres.app/Contents/Versions/17/bin"), "17.9"),
	}
	// Debian's folder 9.6 must not be taken for version 96, nor anything this old.
	fakeServer(t, filepath.Join(o.root, "usr/lib/postgresql/14/bin"), "14.2")
	fakeServer(t, filepath.Join(o.root, "usr/lib/postgresql/9.6/bin"), "9.6.24")
	script(t, filepath.Join(o.root, "path/pg_config"), inOrder[0])

	for _, dir := range inOrder {
		found, err := Find(t.Context(), o)
		require.NoError(t, err)
		require.Equal(t, dir, found.Dir)
		require.GreaterOrEqual(t, found.Major, MinMajor)
		require.True(t, strings.HasPrefix(found.Version, fmt.Sprint(found.Major)), found.Version)
		require.NoError(t, os.Remove(filepath.Join(dir, "initdb")))
	}
	_, err := Find(t.Context(), o)
	require.ErrorContains(t, err, "PostgreSQL 14.2, older than 15")
	require.ErrorContains(t, err, "PostgreSQL 9.6.24, older than 15")
}

func TestFindThroughALinkOnPath(t *testing.T) {
	o := emptyMachine(t)
	target := fakeServer(t, filepath.Join(o.root, "somewhere/bin"), "17.1")
	err := os.MkdirAll(filepath.Join(o.root, "path"), 0o755) //nolint:gosec // the server's user must reach it
	require.NoError(t, err)
	require.NoError(t, os.Symlink(filepath.Join(target, "postgres"), filepath.Join(o.root, "path/postgres")))
	found, err := Find(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, Binaries{Dir: target, Version: "17.1", Major: 17}, found)
}

func TestFindTheVersionOfTheData(t *testing.T) {
	o := emptyMachine(t)
	fakeServer(t, filepath.Join(o.root, "path"), "18.1")
	wanted := fakeServer(t, filepath.Join(o.root, "usr/lib/postgresql/16/bin"), "16.1")
	o.Major = 16
	found, err := Find(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, wanted, found.Dir)

	o.Major = 17
	_, err = Find(t.Context(), o)
	require.ErrorContains(t, err, "no server of PostgreSQL 17")
	require.ErrorContains(t, err, "PostgreSQL 18.1, not 17")
}

func TestFindNeverFallsBackFromASetting(t *testing.T) {
	o := emptyMachine(t)
	fakeServer(t, filepath.Join(o.root, "path"), "18.1")
	noInitdb := fakeServer(t, filepath.Join(o.root, "half"), "18.1")
	require.NoError(t, os.Remove(filepath.Join(noInitdb, "initdb")))
	strange := fakeServer(t, filepath.Join(o.root, "strange"), "18.1")
	script(t, filepath.Join(strange, "postgres"), "hello")

	for dir, problem := range map[string]string{
		filepath.Join(o.root, "missing"): "no program postgres",
		noInitdb:                         "no program initdb",
		strange:                          `calls itself "hello"`,
		fakeServer(t, filepath.Join(o.root, "old"), "14.9"): "older than 15",
	} {
		o.BinDir = dir
		_, err := Find(t.Context(), o)
		require.ErrorContains(t, err, "POSTGRES_BIN="+dir)
		require.ErrorContains(t, err, problem)
	}
}

func TestFindSaysAllWhenNothingWorks(t *testing.T) {
	o := emptyMachine(t)
	_, err := Find(t.Context(), o)
	require.Error(t, err)
	for _, part := range []string{
		"PostgreSQL 15 or newer", "pg_config --bindir", "PATH",
		"/usr/lib/postgresql/*/bin", "/opt/homebrew/opt", "Postgres.app",
		o.RepositoryURL, "apt-get install postgresql", "dnf install postgresql-server", "brew install postgresql",
		"POSTGRES_BIN", "DATABASE_URL",
	} {
		require.ErrorContains(t, err, part)
	}
}

// archive is the file that a repository serves: a zip file, called jar, with
// the xz-compressed tar file txz in it.
func archive(t *testing.T, txz []byte) []byte {
	t.Helper()
	var jar bytes.Buffer
	files := zip.NewWriter(&jar)
	file, err := files.Create("postgres-any.txz")
	require.NoError(t, err)
	_, err = file.Write(txz)
	require.NoError(t, err)
	require.NoError(t, files.Close())
	return jar.Bytes()
}

// serveRepository serves jar with its checksum, or with another one, and counts the
// downloads.
func serveRepository(t *testing.T, jar []byte, checksum string) (address string, downloads *atomic.Int32) {
	t.Helper()
	downloads = new(atomic.Int32)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "-18.3.0.jar"):
			downloads.Add(1)
			_, _ = w.Write(jar)
		case strings.HasSuffix(r.URL.Path, "-18.3.0.jar.sha256"):
			_, _ = w.Write([]byte(checksum))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections) // the library's client
	return server.URL, downloads
}

func sha256Of(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func TestDownload(t *testing.T) {
	o := emptyMachine(t)
	txz, err := os.ReadFile("testdata/postgres-fake.txz")
	require.NoError(t, err)
	good, cut := archive(t, txz), archive(t, txz[:len(txz)/2])

	// Failures first: each leaves nothing that a later download could trip over.
	for name, sum := range map[string]string{"downloaded checksums do not match": "00", "extract": sha256Of(cut)} {
		o.RepositoryURL, _ = serveRepository(t, cut, sum)
		_, err = Find(t.Context(), o)
		require.ErrorContains(t, err, name)
		left, err := filepath.Glob(filepath.Join(o.CacheDir, "*"))
		require.NoError(t, err)
		require.Equal(t, []string{filepath.Join(o.CacheDir, "lock")}, left)
	}
	// So does a crash in the middle of one.
	require.NoError(t, os.MkdirAll(filepath.Join(o.CacheDir, "postgresql-18.3.0.part/extracted/bin"), 0o700))
	require.NoError(t, os.MkdirAll(filepath.Join(o.CacheDir, "postgresql-18.3.0/bin"), 0o700))

	address, downloads := serveRepository(t, good, sha256Of(good))
	o.RepositoryURL = address
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			found, err := Find(t.Context(), o)
			want := Binaries{Dir: filepath.Join(o.CacheDir, "postgresql-18.3.0/bin"), Version: "18.3", Major: 18}
			if err == nil && found == want {
				return
			}
			t.Errorf("found %v, %v", found, err)
		})
	}
	all.Wait()
	require.EqualValues(t, 1, downloads.Load(), "four at the same time")
	left, err := filepath.Glob(filepath.Join(o.CacheDir, "*.part"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestDownloadCanBeCancelled(t *testing.T) {
	o := emptyMachine(t)
	asked, release := make(chan struct{}), make(chan struct{})
	hangs := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(asked)
		<-release
	}))
	defer hangs.Close()
	defer close(release)
	defer http.DefaultClient.CloseIdleConnections()
	o.RepositoryURL = hangs.URL

	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	_, err := Find(ctx, o)
	require.ErrorIs(t, err, context.Canceled)
}

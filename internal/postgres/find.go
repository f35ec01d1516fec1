package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/rs/zerolog"
)

// MinMajor is the oldest major version of PostgreSQL that Spine runs on.
const MinMajor = 15

// usualFolders are where packages put the server, by distribution.
var usualFolders = []string{
	"/usr/lib/postgresql/*/bin",                          // Debian, Ubuntu
	"/usr/pgsql-*/bin",                                   // RHEL and Fedora, packages of postgresql.org
	"/usr/bin",                                           // RHEL and Fedora, their own package
	"/opt/homebrew/opt/postgresql@*/bin",                 // Homebrew on Apple silicon
	"/usr/local/opt/postgresql@*/bin",                    // Homebrew on Intel
	"/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",    // Homebrew on Linux
	"/Applications/Postgres.app/Contents/Versions/*/bin", // Postgres.app
}

// Binaries are the programs of one PostgreSQL installation.
type Binaries struct {
	Dir     string // folder that holds postgres and initdb
	Version string // as the server writes it, for instance "15.18"
	Major   int    // for instance 15
}

// FindOptions says where Find looks for a server.
type FindOptions struct {
	// BinDir is the only folder to look in (the setting POSTGRES_BIN). Find fails if it holds no
	// usable server, and tries nothing else. Empty means to search.
	BinDir string
	// Major is the only major version to accept, for existing data. 0 accepts any from MinMajor on.
	Major int
	// RepositoryURL is the Maven repository to download from when the machine has no server. Empty
	// means Maven Central.
	RepositoryURL string
	// CacheDir keeps downloaded binaries between runs. Empty means "spine" in the user's cache
	// folder. For root it means /var/cache/spine, because the server's user cannot reach root's own
	// folders.
	CacheDir string
	// Logger gets a line about each download. The zero Logger is silent.
	Logger zerolog.Logger

	root       string              // put before usualFolders by tests
	credential *syscall.Credential // the user who will run the server, nil for ourselves
}

// Find returns the first usable server of these places: o.BinDir; the folder that pg_config names;
// PATH; the usual folders of Debian, RHEL, Homebrew and Postgres.app, newest version first; earlier
// downloads; a download.
//
// A usable server has version MinMajor or newer (and o.Major, if that is set). The user who is
// going to run it must be able to: ourselves or, for root, the unprivileged user described at
// Start.
func Find(ctx context.Context, o FindOptions) (Binaries, error) {
	if o.credential == nil {
		var err error
		if o.credential, err = serverUser(""); err != nil {
			return Binaries{}, err
		}
	}
	if o.BinDir != "" {
		found, err := o.inspect(ctx, o.BinDir)
		if err != nil {
			return Binaries{}, fmt.Errorf("POSTGRES_BIN=%s cannot be used: %w", o.BinDir, err)
		}
		return found, nil
	}

	var rejected []error
	for _, dir := range o.candidates(ctx) {
		found, err := o.inspect(ctx, dir)
		if err == nil {
			return found, nil
		}
		rejected = append(rejected, err)
	}
	found, err := o.download(ctx)
	if err == nil {
		return found, nil
	}
	if ctx.Err() != nil {
		return Binaries{}, fmt.Errorf("looking for PostgreSQL: %w", ctx.Err())
	}
	return Binaries{}, o.notFound(append(rejected, err))
}

// candidates lists the folders that may hold a server, in order, each once.
func (o FindOptions) candidates(ctx context.Context) []string {
	var dirs []string
	add := func(dir string) {
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		add(strings.TrimSpace(string(out)))
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		add(filepath.Dir(path))
		// A symbolic link may stand alone, without initdb beside it.
		if target, err := filepath.EvalSymlinks(path); err == nil {
			add(filepath.Dir(target))
		}
	}
	for _, pattern := range usualFolders {
		matches, _ := filepath.Glob(filepath.Join(o.root, pattern, "postgres"))
		slices.SortStableFunc(matches, func(a, b string) int { return cmp.Compare(folderVersion(b), folderVersion(a)) })
		for _, path := range matches {
			add(filepath.Dir(path))
		}
	}
	return dirs
}

var numbers = regexp.MustCompile(`\d+`)

// folderVersion returns the version in a path like /usr/lib/postgresql/15/bin/postgres, or 0 if
// there is none.
func folderVersion(path string) int {
	all := numbers.FindAllString(path, -1)
	if len(all) == 0 {
		return 0
	}
	version, _ := strconv.Atoi(all[len(all)-1])
	return version
}

// versionLine matches "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)". In place of the
// version it also matches "18beta1".
var versionLine = regexp.MustCompile(`^postgres \([^)]+\) ((\d+)\S*)`)

// inspect says which version dir holds, or why it cannot be used.
func (o FindOptions) inspect(ctx context.Context, dir string) (Binaries, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Binaries{}, fmt.Errorf("finding the full path of %s: %w", dir, err)
	}
	for _, name := range []string{"postgres", "initdb"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return Binaries{}, fmt.Errorf("no program %s in %s", name, dir)
		}
	}
	cmd := serverCommand(ctx, o.credential, "/", filepath.Join(dir, "postgres"), "--version")
	out, err := cmd.CombinedOutput()
	if errors.Is(err, os.ErrPermission) && o.credential != nil {
		return Binaries{}, fmt.Errorf("user %d, who is to run the server, cannot reach %s", o.credential.Uid, dir)
	}
	if err != nil {
		return Binaries{}, fmt.Errorf("running %s --version: %w: %s", cmd.Path, err, strings.TrimSpace(string(out)))
	}
	match := versionLine.FindStringSubmatch(string(out))
	if match == nil {
		return Binaries{}, fmt.Errorf("%s calls itself %q", cmd.Path, strings.TrimSpace(string(out)))
	}
	found := Binaries{Dir: dir, Version: match[1]}
	if found.Major, err = strconv.Atoi(match[2]); err != nil {
		return Binaries{}, fmt.Errorf("reading the version of %s: %w", cmd.Path, err)
	}
	if found.Major < MinMajor {
		return Binaries{}, fmt.Errorf("%s has PostgreSQL %s, older than %d", dir, found.Version, MinMajor)
	}
	if o.Major != 0 && found.Major != o.Major {
		return Binaries{}, fmt.Errorf("%s has PostgreSQL %s, not %d", dir, found.Version, o.Major)
	}
	return found, nil
}

// notFound returns the one message that tells everything: where we looked, why that failed, and
// what to do.
func (o FindOptions) notFound(reasons []error) error {
	wanted := fmt.Sprintf("PostgreSQL %d or newer", MinMajor)
	if o.Major != 0 {
		wanted = fmt.Sprintf("PostgreSQL %d", o.Major)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "no server of %s was found, and none could be downloaded.\n", wanted)
	fmt.Fprintf(&text, "Looked in: pg_config --bindir, PATH, %s.\n", strings.Join(usualFolders, ", "))
	for _, reason := range reasons {
		fmt.Fprintf(&text, "  - %v\n", reason)
	}
	text.WriteString("Install one:\n" +
		"  Debian, Ubuntu: apt-get install postgresql\n" +
		"  Fedora, RHEL:   dnf install postgresql-server\n" +
		"  macOS:          brew install postgresql@18\n" +
		"or set POSTGRES_BIN to the folder that holds postgres and initdb,\n" +
		"or DATABASE_URL to a database that is already running.")
	return errors.New(text.String())
}

// Package postgrestest gives tests a real PostgreSQL. A test binary has one private server, started
// when a test first asks for it. Each test has a database of its own, copied from a migrated
// template.
//
//	var databases = postgrestest.Databases{Migrate: migrate}
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(databases.Main(m)) }
//
//	func TestSomething(t *testing.T) {
//		t.Parallel()
//		pool := databases.Pool(t)
//		…
//	}
//
// A test fails, and is never skipped, when PostgreSQL cannot be had. POSTGRES_BIN chooses the
// server's binaries. SPINE_TEST_DATABASE_URL is the URL of a role on a running server; the role may
// create databases and is no superuser. The databases are then made there, where one can look into
// those of failed tests. DATABASE_URL is never read.
package postgrestest

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/webhookspine/spine/internal/postgres"
)

const (
	externalVariable = "SPINE_TEST_DATABASE_URL"
	binariesVariable = "POSTGRES_BIN"

	// namePrefix begins the name of every database of this package. The start time of the test
	// binary follows, in seconds since 1970.
	namePrefix = "spine_test_"
	// leftoverAge is how long databases stay on a server that is not ours.
	leftoverAge = 24 * time.Hour

	cleanupLimit = 30 * time.Second
)

// SQLSTATEs that mean that another test binary removes the same database.
const (
	invalidCatalogName = "3D000"
	objectInUse        = "55006"
)

// Databases makes databases for the tests of one binary. Tests may use it in parallel. Two values
// have two templates, and two servers.
type Databases struct {
	// Migrate fills the template. url is that of an empty database, owned by the role that it
	// connects as. It must leave no connection open. nil leaves the databases empty.
	Migrate func(ctx context.Context, url string) error

	mutex    sync.Mutex // guards all below
	main     bool       // Main is running, and will stop what was started
	prepared bool
	err      error            // why prepare failed
	server   *postgres.Server // nil on a server that is not ours
	admin    *pgxpool.Pool    // of a role that may create databases
	owner    *url.URL         // of the role that owns the databases
	prefix   string
	count    int
}

// Runner is what goleak.VerifyTestMain and os.Exit need of testing.M.
type Runner interface {
	// Run runs the tests and returns the exit code.
	Run() int
}

// Main returns a Runner that runs m and stops the server afterwards, before goleak looks for
// goroutines. TestMain must use it.
func (d *Databases) Main(m Runner) Runner { return mainRunner{d, m} }

type mainRunner struct {
	databases *Databases
	tests     Runner
}

func (r mainRunner) Run() int {
	d := r.databases
	d.mutex.Lock()
	d.main = true
	d.mutex.Unlock()
	model.Lock()
	model.mains++
	model.Unlock()
	code := r.tests.Run()
	if err := errors.Join(d.stop(context.Background()), leaveModel()); err != nil {
		fmt.Fprintln(os.Stderr, "postgrestest:", err)
		code = max(code, 1)
	}
	return code
}

// New makes a migrated database for t and returns its URL. The URL's role owns the database and is
// no superuser; no search_path is set. The database is dropped when t ends. If t failed, its log
// names the database and says how to look into it.
func (d *Databases) New(t testing.TB) string {
	t.Helper()
	if d.Migrate == nil {
		return d.create(t, "")
	}
	return d.create(t, "template")
}

// Empty is New without the migration.
func (d *Databases) Empty(t testing.TB) string {
	t.Helper()
	return d.create(t, "")
}

// Pool makes a database as New does and returns a pool on it, which is closed when t ends. The URL
// is pool.Config().ConnString().
func (d *Databases) Pool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), d.New(t))
	if err != nil {
		t.Fatalf("opening a pool on the test's database: %v", err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// Server starts a server for t alone, for tests that restart or kill it, and stops it when t ends.
// Its URL is that of an empty database with schema spine on its search_path, owned by a role that
// is no superuser.
func Server(t testing.TB) *postgres.Server {
	t.Helper()
	return ServerIn(t, "")
}

// ServerIn is Server with its data below dir, which every user must be able to enter. Empty means
// any folder.
func ServerIn(t testing.TB, dir string) *postgres.Server {
	t.Helper()
	from, err := modelDir(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	server, err := startServer(t.Context(), cmp.Or(dir, tempDir()), from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), cleanupLimit)
		defer cancel()
		if err := server.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return server
}

// model is the cluster that the servers of this binary's tests are copies of. Making a cluster takes a second of a
// processor.
var model struct {
	sync.Mutex

	dir   string // empty until a test needs it
	mains int    // calls of Run that have not ended
}

// modelDir makes the model at its first call, and returns its folder.
func modelDir(ctx context.Context) (string, error) {
	model.Lock()
	defer model.Unlock()
	if model.dir != "" {
		return model.dir, nil
	}
	dir, err := os.MkdirTemp(tempDir(), "spine-test-model-")
	if err == nil {
		err = os.Chmod(dir, 0o755) //nolint:gosec // the server's user must pass; its data is 0700
	}
	if err != nil {
		return "", fmt.Errorf("making a folder for the tests' cluster: %w", err)
	}
	s, err := postgres.Start(ctx, postgres.Options{BinDir: os.Getenv(binariesVariable), Dir: dir})
	if err == nil {
		err = s.Stop(ctx)
	}
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	model.dir = dir
	return dir, nil
}

// leaveModel removes the model after the tests of the last Main.
func leaveModel() error {
	model.Lock()
	defer model.Unlock()
	if model.mains--; model.mains > 0 || model.dir == "" {
		return nil
	}
	defer func() { model.dir = "" }()
	return os.RemoveAll(model.dir)
}

// startServer starts a throw-away server, on a copy of the cluster in from if that is not empty. Its data survives
// anything but a crash of the machine itself, after which no one wants it.
func startServer(ctx context.Context, dir, from string) (*postgres.Server, error) {
	return postgres.Start(ctx, postgres.Options{
		BinDir:  os.Getenv(binariesVariable),
		From:    from,
		TempDir: dir,
		Settings: map[string]string{
			"fsync":            "off",
			"full_page_writes": "off",
			"max_wal_size":     "256MB",
			"shared_buffers":   "64MB",
			// Plans and counts of a test must not depend on when autovacuum runs.
			"autovacuum": "off",
			// Compiling a query takes longer than running it on a few rows.
			"jit": "off",
		},
	})
}

// tempDir prefers memory where there is room for several servers. A database has 300 files, and
// ext4 takes up to a millisecond to make a file when many have just been deleted, as in tests.
// Measured: 100 to 300 ms for a database on disk, 25 ms in memory.
func tempDir() string {
	const memory, room = "/dev/shm", 4 << 30
	var stat syscall.Statfs_t
	err := syscall.Statfs(memory, &stat)
	if err != nil || stat.Bavail*uint64(stat.Bsize) < room { //nolint:gosec // a block size is positive
		return ""
	}
	return memory
}

// create makes a database. It is a copy of the one whose name ends in template, or empty if
// template is.
func (d *Databases) create(t testing.TB, template string) string {
	t.Helper()
	name, err := d.prepare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if template != "" {
		template = d.prefix + template
	}
	if err := d.createDatabase(t.Context(), name, template); err != nil {
		t.Fatalf("making a database for the test: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(d.epitaph(name))
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), cleanupLimit)
		defer cancel()
		if _, err := d.admin.Exec(ctx, "drop database if exists "+name+" with (force)"); err != nil {
			t.Errorf("dropping the test's database: %v", err)
		}
	})
	return d.url(name).String()
}

// epitaph says where to find the database of a failed test.
func (d *Databases) epitaph(name string) string {
	if d.server == nil {
		return "the test's database is kept for a day: " + d.url(name).Redacted()
	}
	return fmt.Sprintf(
		"the test's database %s ends with this test binary's private server; to look into it, run the test with %s set",
		name,
		externalVariable,
	)
}

func (d *Databases) url(database string) *url.URL {
	address := *d.owner
	address.Path = "/" + database
	return &address
}

// prepare starts the server and fills the template, at its first call, and returns a name for a new
// database.
func (d *Databases) prepare(ctx context.Context) (string, error) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if !d.main {
		return "", errors.New("TestMain must run the tests with Databases.Main, which stops the server after them")
	}
	if !d.prepared {
		d.prepared = true
		d.err = d.start(ctx)
	}
	if d.err != nil {
		return "", d.err
	}
	d.count++
	return fmt.Sprintf("%s%d", d.prefix, d.count), nil
}

func (d *Databases) start(ctx context.Context) error {
	d.prefix = fmt.Sprintf("%s%d_%s_", namePrefix, time.Now().Unix(), strings.ToLower(rand.Text()[:10]))
	admin := os.Getenv(externalVariable)
	owner := admin
	if admin == "" {
		server, err := startServer(ctx, tempDir(), "")
		if err != nil {
			return err
		}
		d.server, admin, owner = server, server.SuperuserURL(), server.URL()
	}
	var err error
	if d.owner, err = url.Parse(owner); err != nil || d.owner.User.Username() == "" {
		return fmt.Errorf("%s must be a URL that names a user", externalVariable)
	}
	// A new connection costs as much processor time as a new database.
	if d.admin, err = pgxpool.New(ctx, admin); err != nil {
		return fmt.Errorf("reading the URL of the tests' server: %w", err)
	}
	if d.server == nil {
		if err := d.adopt(ctx); err != nil {
			return fmt.Errorf("%s: %w", externalVariable, err)
		}
	}
	if d.Migrate == nil {
		return nil
	}
	template := d.prefix + "template"
	if err := d.createDatabase(ctx, template, ""); err != nil {
		return fmt.Errorf("making the template of the tests' databases: %w", err)
	}
	if err := d.Migrate(ctx, d.url(template).String()); err != nil {
		return fmt.Errorf("migrating the template of the tests' databases: %w", err)
	}
	// A database with connections cannot be copied, and autovacuum would be one.
	if _, err := d.admin.Exec(ctx, "alter database "+template+" allow_connections false"); err != nil {
		return fmt.Errorf("closing the template of the tests' databases: %w", err)
	}
	return nil
}

// createDatabase makes a database as a copy of template, or an empty one. Copying files costs a third of
// the processor time of the default strategy, which also writes each page to the WAL.
func (d *Databases) createDatabase(ctx context.Context, name, template string) error {
	owner := pgx.Identifier{d.owner.User.Username()}.Sanitize()
	_, err := d.admin.Exec(ctx, "create database "+name+" owner "+owner+
		" template "+cmp.Or(template, "template1")+" strategy file_copy")
	return err
}

// stop stops the server, or drops the template on one that is not ours.
func (d *Databases) stop(ctx context.Context) error {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.main = false
	ctx, cancel := context.WithTimeout(ctx, cleanupLimit)
	defer cancel()
	if d.admin != nil {
		defer d.admin.Close()
	}
	if d.server != nil {
		return d.server.Stop(ctx)
	}
	if !d.prepared || d.err != nil || d.Migrate == nil {
		return nil
	}
	if _, err := d.admin.Exec(ctx, "drop database if exists "+d.prefix+"template"); err != nil {
		return fmt.Errorf("dropping the template of the tests' databases: %w", err)
	}
	return nil
}

// adopt checks a server that is not ours, and drops the databases that test binaries left there
// more than leftoverAge ago.
func (d *Databases) adopt(ctx context.Context) error {
	var unfit bool
	const query = "select rolsuper or not rolcreatedb from pg_roles where rolname = current_user"
	if err := d.admin.QueryRow(ctx, query).Scan(&unfit); err != nil {
		return fmt.Errorf("looking at the role: %w", err)
	}
	if unfit {
		return errors.New("the role must be allowed to create databases and be no superuser, such as: " +
			"create role spine_test login createdb password '…'")
	}
	rows, err := d.admin.Query(ctx, `
		select datname
		from pg_database
		where datname ~ $1
		  and to_timestamp(split_part(datname, '_', 3)::bigint) < $2
		  and pg_has_role(datdba, 'usage')`, "^"+namePrefix+"[0-9]{1,12}_", time.Now().Add(-leftoverAge))
	if err != nil {
		return fmt.Errorf("looking for left-over databases: %w", err)
	}
	leftovers, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("looking for left-over databases: %w", err)
	}
	for _, name := range leftovers {
		_, err := d.admin.Exec(ctx, "drop database if exists "+pgx.Identifier{name}.Sanitize())
		var refused *pgconn.PgError
		if errors.As(err, &refused) && (refused.Code == objectInUse || refused.Code == invalidCatalogName) {
			continue
		}
		if err != nil {
			return fmt.Errorf("dropping the left-over database %s: %w", name, err)
		}
	}
	return nil
}

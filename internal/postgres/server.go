package postgres

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"
)

const (
	// Database is the name of the database that Start makes.
	Database = "spine"
	// Role is the name of the role that owns Database; it is no superuser.
	Role = "spine"

	superuser = "postgres"

	// portPatience is how long a start waits for a port that should be free. A server that has just
	// died may still hold it.
	portPatience = 2 * time.Second
	// orphanPatience is how long a start waits for the sessions of a killed server to end. They
	// notice its death only between two steps of a query.
	orphanPatience = 30 * time.Second
)

// SQLSTATEs that a starting server answers with.
const (
	cannotConnectNow   = "57P03"
	tooManyConnections = "53300"
)

// Options configure a server. The zero value means a throw-away server on any port.
type Options struct {
	// Dir is the folder for the data and the log; Start makes it if it is missing. For root, a
	// folder below /var/lib/spine replaces a Dir that the server's user cannot reach. It is always
	// the same for the same Dir; a log line and Server.Dir say which. Empty means a throw-away
	// folder, which Stop removes or, after a kill, a later Start.
	Dir string
	// From is the Dir of a server that has been stopped. A new cluster is a copy of that server's, which takes a tenth
	// of the time. Empty means that a new cluster is made.
	From string
	// TempDir is where throw-away folders are made. Empty means /var/tmp.
	TempDir string
	// Port is the port on 127.0.0.1. 0 means the port of the last start in Dir if that is free,
	// else any free one.
	Port int
	// Settings are further server settings, such as fsync. They win over ours.
	Settings map[string]string

	// BinDir, RepositoryURL and CacheDir are those of FindOptions.
	BinDir        string
	RepositoryURL string
	CacheDir      string

	// Logger gets a line about starts and repairs. The zero Logger is silent.
	Logger zerolog.Logger
}

// Server is a running private server. Its methods must not be called concurrently, except URL,
// SuperuserURL, Port, Dir and Binaries.
type Server struct {
	options  Options
	home     *home
	binaries Binaries
	user     *syscall.Credential // nil: ourselves
	state    state
	process  *process
	stopped  bool
}

// state is what Start must know of a cluster to use it again. It lies inside the data folder, so
// that no cluster exists without it.
type state struct {
	SuperuserPassword string `json:"superuser_password"`
	OwnerPassword     string `json:"owner_password"`
	Port              int    `json:"port"` // of the last start; 0 if there was none
}

// Start starts a server, and makes its cluster first if Dir has none. It returns when the server
// accepts connections and has Database and Role. The server listens on 127.0.0.1 alone, without
// Unix sockets. Both of its roles need their random passwords, so other users of the machine cannot
// connect.
//
// The server runs in a process group of its own until Stop. If our process is killed, the server
// stops too on Linux. Elsewhere it runs on until the next Start in Dir, which stops it. Start fails
// if another live process uses Dir, if another major version made its data than can be found, or
// with the last lines of the server's log. Root starts the server as the user postgres, else as
// nobody.
//
// ctx bounds only the start.
func Start(ctx context.Context, o Options) (*Server, error) {
	began := time.Now()
	var h *home
	var err error
	if o.Dir == "" {
		h, err = openEphemeralHome(ctx, cmp.Or(o.TempDir, defaultTempDir), o.Logger)
	} else {
		h, err = openHome(o.Dir, o.Logger)
	}
	if err != nil {
		return nil, fmt.Errorf("starting PostgreSQL: %w", err)
	}
	s := &Server{options: o, home: h}
	if err = s.prepare(ctx); err == nil {
		s.state.Port = cmp.Or(o.Port, s.state.Port)
		err = s.start(ctx)
	}
	if err != nil {
		if s.process != nil {
			_ = s.process.stop(ctx)
		}
		_ = h.close()
		return nil, fmt.Errorf("starting PostgreSQL: %w", err)
	}
	o.Logger.Info().Str("version", s.binaries.Version).Str("binaries", s.binaries.Dir).Str("dir", h.dir).
		Int("port", s.state.Port).Dur("took_ms", time.Since(began)).Msg("PostgreSQL started")
	return s, nil
}

// URL is a connection string for Role, which owns Database and is no superuser.
func (s *Server) URL() string { return s.url(Role, s.state.OwnerPassword, Database) }

// SuperuserURL is a connection string for the superuser and the database
// postgres.
func (s *Server) SuperuserURL() string {
	return s.url(superuser, s.state.SuperuserPassword, "postgres")
}

// Port is the port on 127.0.0.1; it stays the same until Stop.
func (s *Server) Port() int { return s.state.Port }

// Dir is the folder with the data and the log.
func (s *Server) Dir() string { return s.home.dir }

// Binaries are the programs in use.
func (s *Server) Binaries() Binaries { return s.binaries }

// Exited returns a channel that is closed when the server process is gone, for whatever reason. A
// Restart makes a new channel.
func (s *Server) Exited() <-chan struct{} { return s.process.exited }

// Stop ends all sessions, stops the server and releases the folder. When ctx ends, or after ten
// seconds, it stops the server at once, and the server recovers at its next start. Stop returns
// when the server is gone. A second Stop does nothing.
func (s *Server) Stop(ctx context.Context) error {
	if s.stopped {
		return nil
	}
	if err := s.process.stop(ctx); err != nil {
		return fmt.Errorf("stopping PostgreSQL: %w", err)
	}
	s.stopped = true
	return s.home.close()
}

// Kill ends the server as a crash would (SIGKILL) and returns when it is gone. Restart or Stop must
// follow.
func (s *Server) Kill() { s.process.kill() }

// Restart stops the server if it is running and starts it again, on the same port.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.process.stop(ctx); err != nil {
		return fmt.Errorf("restarting PostgreSQL: %w", err)
	}
	s.options.Port = s.state.Port
	if err := s.start(ctx); err != nil {
		return fmt.Errorf("restarting PostgreSQL: %w", err)
	}
	return nil
}

func (s *Server) url(role, password, database string) string {
	return (&url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(role, password),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(s.state.Port)),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}).String()
}

// prepare leaves a complete cluster on which no server is running. It also fills in the cluster's
// state and the binaries for it.
func (s *Server) prepare(ctx context.Context) error {
	data := s.home.data()
	var err error
	if s.user, err = serverUser(data); err != nil {
		return err
	}
	find := FindOptions{
		BinDir:        s.options.BinDir,
		RepositoryURL: s.options.RepositoryURL,
		CacheDir:      s.options.CacheDir,
		Logger:        s.options.Logger,
		credential:    s.user,
	}

	version, err := os.ReadFile(filepath.Join(data, "PG_VERSION")) //nolint:gosec // below our own folder
	if errors.Is(err, fs.ErrNotExist) {
		if s.binaries, err = Find(ctx, find); err != nil {
			return err
		}
		return s.initialize(ctx)
	}
	if err != nil {
		return fmt.Errorf("reading the version of the data: %w", err)
	}
	if find.Major, err = strconv.Atoi(strings.TrimSpace(string(version))); err != nil {
		return fmt.Errorf("reading the version of the data in %s: %w", data, err)
	}
	if s.binaries, err = Find(ctx, find); err != nil {
		return fmt.Errorf(
			"PostgreSQL %d made the data in %s (remove the folder to begin anew): %w",
			find.Major,
			data,
			err,
		)
	}
	if err := s.loadState(); err != nil {
		return err
	}
	return stopLeftover(ctx, data, s.options.Logger)
}

// initialize makes a cluster in a folder beside data and renames that folder. Before the rename
// there is no cluster; after it there is a complete one.
func (s *Server) initialize(ctx context.Context) error {
	leftovers, _ := filepath.Glob(filepath.Join(s.home.dir, "init-*"))
	for _, leftover := range leftovers {
		if err := os.RemoveAll(leftover); err != nil {
			return fmt.Errorf("clearing away a cluster that was not completed: %w", err)
		}
	}
	work, err := os.MkdirTemp(s.home.dir, "init-")
	if err != nil {
		return fmt.Errorf("making a folder for a new cluster: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }()

	s.state = state{SuperuserPassword: rand.Text(), OwnerPassword: rand.Text()}
	password, data := filepath.Join(work, "password"), filepath.Join(work, "data")
	if err := os.WriteFile(password, []byte(s.state.SuperuserPassword+"\n"), 0o600); err != nil {
		return fmt.Errorf("writing a password for initdb: %w", err)
	}
	if s.user != nil {
		for _, path := range []string{work, password} {
			if err := os.Lchown(path, int(s.user.Uid), int(s.user.Gid)); err != nil {
				return fmt.Errorf("giving a new cluster to the server's user: %w", err)
			}
		}
	}

	if s.options.From != "" {
		return s.copyCluster(ctx, data)
	}
	// The locale C is the same on every system and in every version of PostgreSQL.
	args := []string{
		"--pgdata=" + data, "--username=" + superuser, "--pwfile=" + password, "--auth=scram-sha-256",
		"--encoding=UTF8", "--locale=C", "--no-instructions",
	}
	if s.home.ephemeral {
		args = append(args, "--no-sync")
	}
	initdb := serverCommand(ctx, s.user, work, filepath.Join(s.binaries.Dir, "initdb"), args...)
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("running initdb: %w\n%s", err, lastLines(string(out)))
	}
	if err := s.saveState(data); err != nil {
		return err
	}
	return s.keepCluster(data)
}

// copyCluster copies the cluster of Options.From to data, with its passwords, and keeps it. The server gets a port of
// its own.
func (s *Server) copyCluster(ctx context.Context, data string) error {
	from := filepath.Join(s.options.From, "data")
	//nolint:gosec // both folders are ours
	if out, err := exec.CommandContext(ctx, "cp", "-a", from, data).CombinedOutput(); err != nil {
		return fmt.Errorf("copying a cluster: %w\n%s", err, lastLines(string(out)))
	}
	if err := s.keepCluster(data); err != nil {
		return err
	}
	err := s.loadState()
	s.state.Port = 0
	return err
}

// keepCluster gives a complete cluster its place. From here on it exists.
func (s *Server) keepCluster(data string) error {
	if err := os.Rename(data, s.home.data()); err != nil {
		return fmt.Errorf("keeping the new cluster: %w", err)
	}
	return syncFolder(s.home.dir)
}

// start launches the server, on another port or a second time where that helps.
func (s *Server) start(ctx context.Context) error {
	fixed := s.options.Port != 0
	for {
		if s.state.Port == 0 {
			port, err := freePort(ctx)
			if err != nil {
				return err
			}
			s.state.Port = port
		}
		err := s.launchPatiently(ctx)
		if err == nil {
			return s.saveState(s.home.data())
		}
		if !errors.Is(err, errPortTaken) || fixed {
			return err
		}
		s.state.Port = 0
	}
}

// launchPatiently tries again while the system still frees what a dead server held.
func (s *Server) launchPatiently(ctx context.Context) error {
	began := time.Now()
	for {
		err := checkPort(ctx, s.state.Port)
		if err == nil {
			err = s.launch(ctx)
		}
		var patience time.Duration
		switch {
		case errors.Is(err, errPortTaken):
			patience = portPatience
		case errors.Is(err, errStillInUse):
			patience = orphanPatience
		}
		if time.Since(began) >= patience {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(5 * pollInterval):
		}
	}
}

var (
	errPortTaken  = errors.New("the port is taken")
	errStillInUse = errors.New("processes of an earlier server are still there")
)

// launch starts a postmaster and returns when it accepts connections, or when it is gone.
func (s *Server) launch(ctx context.Context) error {
	log, err := openLog(s.home.logFile())
	if err != nil {
		return fmt.Errorf("opening the server's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	before, err := log.Stat()
	if err != nil {
		return fmt.Errorf("opening the server's log: %w", err)
	}

	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    strconv.Itoa(s.state.Port),
		"unix_socket_directories": "", // their paths may be too long, and TCP is enough
		"max_connections":         "200",
		"shared_buffers":          "128MB",
		"logging_collector":       "off",
		"log_destination":         "stderr",
	}
	if s.home.ephemeral {
		// What a killed server leaves of it lies in the data folder, and is removed with that.
		settings["dynamic_shared_memory_type"] = "mmap"
	}
	maps.Copy(settings, s.options.Settings)
	args := []string{"-D", s.home.data()}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	cmd := serverCommand(
		context.WithoutCancel(ctx),
		s.user,
		s.home.dir,
		filepath.Join(s.binaries.Dir, "postgres"),
		args...)
	cmd.Stdout, cmd.Stderr = log, log
	process, err := startProcess(cmd)
	if err != nil {
		return err
	}
	s.process = process

	err = s.awaitReady(ctx)
	if err == nil {
		return nil
	}
	select {
	case <-s.process.exited:
	default:
		return errors.Join(err, s.process.stop(ctx))
	}
	said, _ := os.ReadFile(s.home.logFile())
	text := string(said[min(before.Size(), int64(len(said))):])
	switch {
	case strings.Contains(text, "Address already in use"):
		err = errPortTaken
	case strings.Contains(text, "pre-existing shared memory block"),
		strings.Contains(text, "lock file \"postmaster.pid\" already exists"):
		err = errStillInUse
	}
	return fmt.Errorf("%w; the last lines of %s:\n%s", err, s.home.logFile(), lastLines(text))
}

// awaitReady waits until the server accepts connections, which may take long after a crash. It then
// completes the set-up: each step runs unless it was done before, so a crash between two of them
// does no harm.
func (s *Server) awaitReady(ctx context.Context) error {
	for {
		err := s.complete(ctx)
		if err == nil {
			return nil
		}
		pause := pollInterval
		var refused *pgconn.PgError
		final := errors.As(err, &refused) && refused.Code != cannotConnectNow && refused.Code != tooManyConnections
		if final {
			// Unless another server answered, on a port that ours is just failing to get.
			pause = portPatience
		}
		select {
		case <-s.process.exited:
			return errors.New("the server ended")
		case <-ctx.Done():
			return fmt.Errorf("waiting for the server: %w", errors.Join(ctx.Err(), err))
		case <-time.After(pause):
			if final {
				return err
			}
		}
	}
}

func (s *Server) complete(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.SuperuserURL())
	if err != nil {
		return fmt.Errorf("connecting to the new server: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, step := range []struct{ missing, make string }{
		{
			"select not exists (select from pg_roles where rolname = '" + Role + "')",
			"create role " + Role + " login nosuperuser nocreatedb nocreaterole password '" +
				s.state.OwnerPassword + "'",
		},
		{
			"select not exists (select from pg_database where datname = '" + Database + "')",
			"create database " + Database + " owner " + Role,
		},
		{
			// Without public: what others may create there would win where it fits a call better. A database of before
			// version 6 of the schema has the other path. One that somebody else has set stays.
			"select not exists (select from pg_db_role_setting join pg_database d on d.oid = setdatabase," +
				" unnest(setconfig) setting where datname = '" + Database + "' and setrole = 0" +
				" and setting like 'search_path=%' and setting <> 'search_path=spine, public')",
			"alter database " + Database + " set search_path = spine",
		},
	} {
		var missing bool
		if err := conn.QueryRow(ctx, step.missing).Scan(&missing); err != nil {
			return fmt.Errorf("looking into the new server: %w", err)
		}
		if !missing {
			continue
		}
		if _, err := conn.Exec(ctx, step.make); err != nil {
			return fmt.Errorf("setting up the new server: %w", err)
		}
	}
	return nil
}

func (s *Server) loadState() error {
	path := stateFile(s.home.data())
	content, err := os.ReadFile(path) //nolint:gosec // below our own folder
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s holds a cluster that spine did not make", s.home.data())
	}
	if err == nil {
		err = json.Unmarshal(content, &s.state)
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	return nil
}

// saveState writes the state of the cluster in data. It is on disk when saveState returns, and a
// crash leaves the old or the new one.
func (s *Server) saveState(data string) error {
	content, err := json.Marshal(s.state)
	if err != nil {
		return fmt.Errorf("encoding the cluster's state: %w", err)
	}
	path := stateFile(data)
	const flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC | syscall.O_NOFOLLOW
	file, err := os.OpenFile(path+".new", flags, 0o600) //nolint:gosec // below our own folder
	if err != nil {
		return fmt.Errorf("writing the cluster's state: %w", err)
	}
	_, err = file.Write(content)
	if err == nil && s.user != nil { // the server reads all of its folder for a standby
		err = file.Chown(int(s.user.Uid), int(s.user.Gid))
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("writing the cluster's state: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("writing the cluster's state: %w", err)
	}
	return syncFolder(data)
}

func stateFile(data string) string { return filepath.Join(data, "spine.json") }

func syncFolder(dir string) error {
	folder, err := os.Open(dir) //nolint:gosec // our own folder
	if err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	if err := errors.Join(folder.Sync(), folder.Close()); err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}

func openLog(path string) (*os.File, error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND | syscall.O_NOFOLLOW
	if info, err := os.Stat(path); err == nil && info.Size() > logLimit {
		flags |= os.O_TRUNC
	}
	return os.OpenFile(path, flags, 0o600) //nolint:gosec // below our own folder
}

// lastLines returns the end of a program's output, short enough for an error.
func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// freePort returns a port that is free now. Another process may take it before it is used.
func freePort(ctx context.Context) (int, error) {
	listener, err := listen(ctx, 0)
	if err != nil {
		return 0, fmt.Errorf("looking for a free port: %w", err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

// checkPort fails with errPortTaken if port is taken, before the server itself would.
func checkPort(ctx context.Context, port int) error {
	listener, err := listen(ctx, port)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("127.0.0.1:%d: %w", port, errPortTaken)
	}
	if err != nil {
		return fmt.Errorf("trying the port: %w", err)
	}
	return listener.Close()
}

func listen(ctx context.Context, port int) (net.Listener, error) {
	var config net.ListenConfig
	return config.Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}

package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Every connection of Spine begins here: those of the pool, that of the listener, and that of migrations. Whatever the
// URL, the role, the database or a pooler says, they agree on how text and times are written. No promise rests on any
// other setting of a session, since a transaction pooler gives each transaction another session.

// pinned are the settings with which each connection begins. They are those that a pooler keeps for each client.
var pinned = map[string]string{
	"client_encoding":             "UTF8",
	"datestyle":                   "ISO",
	"standard_conforming_strings": "on",
	"timezone":                    "UTC", // audit details and errors are shown in UTC, whatever the server's zone
}

// withoutEffect are parameters of a URL that other programs know. Spine goes on without them. The value says why.
var withoutEffect = map[string]string{
	"connection_limit":     "set DB_MAX_CONNS",
	"hostaddr":             "set host to the address",
	"schema":               "Spine's schema is spine",
	"tcp_user_timeout":     "keepalives notice a lost host sooner",
	"gssencmode":           "Spine encrypts with TLS alone",
	"gssdelegation":        "Spine has no GSSAPI",
	"keepalives":           "Spine always has keepalives",
	"load_balance_hosts":   "hosts are tried in the order in which they stand",
	"pgbouncer":            "Spine finds out by itself",
	"pool_timeout":         "Spine has a time-out of its own",
	"prepared_statements":  "Spine finds out by itself",
	"sslcompression":       "TLS has no compression any more",
	"uselibpqcompat":       "Spine follows libpq",
	"statement_cache_size": "it is statement_cache_capacity here",
}

// executionModes are the values of default_query_exec_mode that a URL may have. With the others the server guesses
// types, and reads arrays as text.
var executionModes = []string{"cache_statement", "cache_describe", "describe_exec"}

// parseURL reads the URL of a database. appName is the application_name of its connections where the URL has none.
// remarks say which parameters of the URL have no effect.
func parseURL(target, appName string) (config *pgxpool.Config, remarks []string, err error) {
	config, err = pgxpool.ParseConfig(target)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the database URL: %w", err)
	}
	parameters := config.ConnConfig.RuntimeParams
	idle, interval, count := 10*time.Second, 5*time.Second, 3
	for name, into := range map[string]func(n int){
		"keepalives_idle":     func(n int) { idle = time.Duration(n) * time.Second },
		"keepalives_interval": func(n int) { interval = time.Duration(n) * time.Second },
		"keepalives_count":    func(n int) { count = n },
	} {
		text, ok := parameters[name]
		if !ok {
			continue
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return nil, nil, fmt.Errorf("%s must be a whole number, got %q", name, text)
		}
		if n > 0 { // 0 stands for the usual value
			into(n)
		}
		delete(parameters, name)
	}
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		if why, ok := withoutEffect[name]; ok {
			remarks = append(remarks, name+" has no effect: "+why)
			delete(parameters, name)
		}
	}
	for _, name := range []string{"pool_max_conns", "pool_min_conns", "pool_min_idle_conns"} { // the pool has read them
		if named(target, name) {
			remarks = append(remarks, name+" has no effect: set DB_MAX_CONNS")
		}
	}
	mode := config.ConnConfig.DefaultQueryExecMode.String()
	if modes := strings.ReplaceAll(mode, " ", "_"); !slices.Contains(executionModes, modes) {
		return nil, nil, fmt.Errorf("default_query_exec_mode may be %s, not %s",
			strings.Join(executionModes, ", "), modes)
	}
	setMode(config.ConnConfig, config.ConnConfig.DefaultQueryExecMode)
	if name := parameters["fallback_application_name"]; name != "" {
		appName = name
		delete(parameters, "fallback_application_name")
	}
	if parameters["application_name"] == "" {
		parameters["application_name"] = appName
	}
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		if value, ok := pinned[strings.ToLower(name)]; ok {
			remarks = append(remarks, name+" has no effect: it is "+value+" for Spine")
			delete(parameters, name)
		}
	}
	maps.Copy(parameters, pinned)
	// Keepalive notices a host that vanishes without closing its sockets. The time-out notices one that does not
	// answer.
	dialer := &net.Dialer{Timeout: 3 * time.Second, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: idle, Interval: interval, Count: count,
	}}
	config.ConnConfig.DialFunc = dialer.DialContext
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = 5 * time.Second
	}
	return config, remarks, nil
}

// setMode chooses how statements run. Where the URL switches off the cache that a mode needs, it is the next mode that
// does without; pgx would reject each statement.
func setMode(config *pgx.ConnConfig, mode pgx.QueryExecMode) {
	if mode == pgx.QueryExecModeCacheStatement && config.StatementCacheCapacity == 0 {
		mode = pgx.QueryExecModeCacheDescribe
	}
	if mode == pgx.QueryExecModeCacheDescribe && config.DescriptionCacheCapacity == 0 {
		mode = pgx.QueryExecModeDescribeExec
	}
	config.DefaultQueryExecMode = mode
}

// named reports whether a URL, or a list of names and values, has a parameter.
func named(target, name string) bool {
	if u, err := url.Parse(target); err == nil && u.Scheme != "" {
		return u.Query().Has(name)
	}
	return strings.Contains(" "+target, " "+name+"=")
}

// CheckURL says what is wrong with the URL of a database, before anything connects to it.
func CheckURL(target string) error {
	_, _, err := parseURL(target, "")
	return err
}

// Remarks says which parameters of a URL have no effect, and what to do instead.
func Remarks(target string) []string {
	_, remarks, _ := parseURL(target, "")
	return remarks
}

// ErrEncoding says that the database cannot hold every text.
var ErrEncoding = errors.New("the database must be in UTF8 (createdb --encoding UTF8 --template template0)")

// ErrPooler says that a pooler gives each statement a session of its own.
var ErrPooler = errors.New(
	"the pooler in front of the database allows no transactions: set pool_mode = transaction, or session")

// session is what prepare finds out about a new connection.
type session struct {
	// pooled says that a pooler stands between: another server process works for the connection than the one to which
	// it was made.
	pooled bool
	// unusual says that transactions begin with another isolation level than READ COMMITTED, or read only.
	unusual bool
	// server tells one database of one server from all others, until the server starts again.
	server string
}

// setting is a setting of a session.
type setting struct{ name, value string }

// patient are settings for a connection whose statements may take long. They write, and see what others commit.
var patient = []setting{
	{"statement_timeout", "0"},
	{"lock_timeout", "0"},
	{"transaction_timeout", "0"},
	{"default_transaction_read_only", "off"},
	{"default_transaction_isolation", "read committed"},
}

// prepare sets up a new connection, with more settings as far as the server knows them. Behind a pooler it sets
// nothing, since that would stay behind in a session of others.
//
// No query is compiled (jit), since compiling our short queries takes longer than running them. A session whose client
// is gone without a word soon ends and releases its locks; by itself Postgres would notice after two hours.
func prepare(ctx context.Context, conn *pgx.Conn, more ...setting) (found session, err error) {
	server := conn.PgConn()
	if encoding := server.ParameterStatus("server_encoding"); encoding != "UTF8" {
		return found, fmt.Errorf("%w; this one is in %s", ErrEncoding, encoding)
	}
	if encoding := server.ParameterStatus("client_encoding"); encoding != "UTF8" {
		return found, fmt.Errorf("the connection has the encoding %s, although it asked for UTF8", encoding)
	}
	current := func(name string) string { return "pg_catalog.current_setting('" + name + "', true)" }
	settings := []string{"'settings'"}
	for _, s := range append([]setting{
		{"jit", "off"},
		{"tcp_keepalives_idle", "10"},
		{"tcp_keepalives_interval", "5"},
		{"tcp_keepalives_count", "3"},
		{"idle_in_transaction_session_timeout", "10s"},
		{"idle_session_timeout", "0"}, // a pool keeps idle connections for the next request
	}, more...) {
		suits := current(s.name) + " is not null"
		if s.name == "idle_in_transaction_session_timeout" { // a time-out that somebody has set stays
			suits = current(s.name) + " operator(pg_catalog.=) '0'"
		}
		settings = append(settings,
			"case when "+suits+" then pg_catalog.set_config('"+s.name+"', '"+s.value+"', false) end")
	}
	// The simple protocol: a pooler may know no prepared statements.
	results, err := server.Exec(ctx, fmt.Sprintf(`
		select case when pg_catalog.pg_backend_pid() operator(pg_catalog.=) %d then pg_catalog.concat(%s) end,
			%s operator(pg_catalog.=) 'read committed' and %s operator(pg_catalog.=) 'off',
			pg_catalog.concat(pg_catalog.pg_postmaster_start_time(), ' ', (select d.oid from pg_catalog.pg_database d
				where d.datname operator(pg_catalog.=) pg_catalog.current_database()))`,
		int32(server.PID()), //nolint:gosec // as the server counts it
		strings.Join(settings, ", "),
		current("default_transaction_isolation"),
		current("default_transaction_read_only"))).ReadAll()
	if err != nil {
		return found, fmt.Errorf("setting up a connection: %w", err)
	}
	row := results[0].Rows[0]
	found.pooled, found.unusual, found.server = row[0] == nil, string(row[1]) != "t", string(row[2])
	if !found.pooled {
		return found, nil
	}
	for _, statement := range []string{"begin", "commit"} {
		if _, err := server.Exec(ctx, statement).ReadAll(); err != nil {
			return found, fmt.Errorf("%w (%v)", ErrPooler, err) //nolint:errorlint // it is no outage of the database
		}
	}
	return found, nil
}

// warned is the key under which a connection remembers that a commit did not wait.
const warned = "spine.warned"

// prepares is the key under which a connection remembers whether it prepares statements.
const prepares = "spine.prepares"

// noteWarning remembers on the connection that a commit did not wait for the synchronous standby. Such a commit
// succeeds with nothing but a WARNING, and must not be acknowledged. Other warnings say nothing of the commit: those of
// a trigger, of a notify queue that fills up, or of old transactions.
func (s *Store) noteWarning(conn *pgconn.PgConn, n *pgconn.Notice) {
	switch {
	case n.SeverityUnlocalized != "WARNING":
	case n.Routine == "SyncRepWaitForLSN":
		conn.CustomData()[warned] = n.Message
	case n.Routine == "asyncQueueFillWarning": // its detail names a server process, in words of whatever language
		pid, _ := strconv.ParseInt(digits.FindString(n.Detail), 10, 32)
		s.holder.Store(pid)
	}
}

var digits = regexp.MustCompile(`\d+`)

// executor is a pool, a connection or a transaction.
type executor interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults
}

// beginner is a pool or a connection.
type beginner interface {
	executor
	BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
}

// begin begins a transaction as a session's defaults may not: see spine.make_durable() and spine.hint().
func (s *Store) begin() string {
	begin := "begin isolation level read committed"
	if s.explicit.Load() { // which a standby rejects
		begin += " read write"
	}
	begin += `; select case when pg_catalog.current_setting('synchronous_commit') operator(pg_catalog.=) 'off'
				then pg_catalog.set_config('synchronous_commit', 'on', true) end,
			case when pg_catalog.current_setting('client_min_messages') operator(pg_catalog.=) 'error'
				then pg_catalog.set_config('client_min_messages', 'warning', true) end`
	if s.hintless.Load() {
		begin += ", pg_catalog.set_config('spine.hints', 'off', true)"
	}
	return begin
}

// plainly runs plain statements: each is a transaction of its own, in one round trip. Where a session's defaults do not
// fit, and while no hints are sent, one transaction around all of them says what it needs.
func (s *Store) plainly(ctx context.Context, do func(on executor) error) error {
	return s.commit(ctx, func() error { return s.plainlyOn(ctx, s.pool, do) })
}

// call runs one plain statement, and reads its row into the variables, if there are any.
func (s *Store) call(ctx context.Context, into []any, sql string, args ...any) error {
	return s.plainly(ctx, func(on executor) error {
		if len(into) == 0 {
			_, err := on.Exec(ctx, sql, args...)
			return err
		}
		return on.QueryRow(ctx, sql, args...).Scan(into...)
	})
}

func (s *Store) plainlyOn(ctx context.Context, on beginner, do func(on executor) error) error {
	if !s.explicit.Load() && !s.hintless.Load() {
		return do(on)
	}
	return pgx.BeginTxFunc(ctx, on, pgx.TxOptions{BeginQuery: s.begin()}, func(tx pgx.Tx) error { return do(tx) })
}

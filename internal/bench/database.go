package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Names of the contract, in the database of the system under test.
const (
	schema = "spine"
	queue  = "processing_state" // has a row for each event and destination
)

// statisticsTimeout limits one reading of the statistics, so that it can be late but cannot stop a
// run.
const statisticsTimeout = 5 * time.Second

// statistics are PostgreSQL's cumulative statistics at one moment. Sessions report to them at most
// once a second, except WAL and statements.
type statistics struct {
	tables, queue tuples
	hasTables     bool
	commits       int64
	wal           int64   // bytes, of the whole server
	size          int64   // bytes, of the database
	statements    int64   // 0 where the server does not count them
	naptime       float64 // s; autovacuum_naptime
}

// tuples are estimates of the rows in tables.
type tuples struct {
	live, dead int64
	// threshold is how many dead tuples autovacuum waits for, in those tables that have any.
	threshold float64
}

// watchedDatabase is a connection that reads statistics. Each reading is one statement and one
// commit.
type watchedDatabase struct {
	conn         *pgx.Conn
	pid          int // of its backend
	user, name   string
	query        string
	noStatements error // why statements are not counted; nil if they are
}

// watchDatabase connects. The role needs no right but to connect.
func watchDatabase(ctx context.Context, url string) (*watchedDatabase, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*statisticsTimeout)
	defer cancel()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("reading the database's URL: %w", err)
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeExec // preparing would be a commit of its own
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "spine bench"
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connecting to the database: %w", err)
	}
	w := &watchedDatabase{conn: conn}
	var extension string // the schema of pg_stat_statements
	err = conn.QueryRow(ctx, `
		select pg_backend_pid(), session_user::text, current_database()::text, coalesce((
			select quote_ident(n.nspname) from pg_extension e join pg_namespace n on n.oid = e.extnamespace
			where e.extname = 'pg_stat_statements'), '')`).Scan(&w.pid, &w.user, &w.name, &extension)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("looking at the database: %w", err), w.close(ctx))
	}
	if extension == "" {
		w.noStatements = errors.New("the extension pg_stat_statements is not installed in the database")
	} else {
		w.query = statisticsQuery(extension)
		_, w.noStatements = w.read(ctx) // it may not be in shared_preload_libraries
	}
	if w.noStatements != nil {
		w.query = statisticsQuery("")
		if _, err := w.read(ctx); err != nil {
			return nil, errors.Join(err, w.close(ctx))
		}
	}
	return w, nil
}

func (w *watchedDatabase) close(ctx context.Context) error {
	if w == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statisticsTimeout)
	defer cancel()
	if err := w.conn.Close(ctx); err != nil {
		return fmt.Errorf("closing the connection to the database: %w", err)
	}
	return nil
}

// statisticsQuery reads all statistics at once. extension is the schema of pg_stat_statements, or
// empty. The text of statements is not read, because it is in a file.
func statisticsQuery(extension string) string {
	statements := "0"
	if extension != "" {
		statements = `coalesce((
			select sum(s.calls) from ` + extension + `.pg_stat_statements(false) s
			where s.toplevel and s.dbid = (select oid from pg_database where datname = current_database())), 0)`
	}
	return `
		with tables as (
			select s.relname = $2 as queue, s.n_live_tup as live, s.n_dead_tup as dead,
				coalesce(
					(select o.option_value from pg_options_to_table(c.reloptions) o
						where o.option_name = 'autovacuum_vacuum_threshold'),
					current_setting('autovacuum_vacuum_threshold'))::float8
				+ greatest(c.reltuples, 0) * coalesce(
					(select o.option_value from pg_options_to_table(c.reloptions) o
						where o.option_name = 'autovacuum_vacuum_scale_factor'),
					current_setting('autovacuum_vacuum_scale_factor'))::float8 as threshold
			from pg_stat_user_tables s join pg_class c on c.oid = s.relid
			where s.schemaname = $1
		)
		select
			count(*) > 0,
			coalesce(sum(live), 0)::bigint, coalesce(sum(dead), 0)::bigint,
			coalesce(sum(threshold) filter (where dead > 0), 0),
			coalesce(sum(live) filter (where queue), 0)::bigint, coalesce(sum(dead) filter (where queue), 0)::bigint,
			coalesce(sum(threshold) filter (where queue), 0),
			(select xact_commit from pg_stat_database where datname = current_database()),
			pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint,
			pg_database_size(current_database()),
			` + statements + `::bigint,
			extract(epoch from current_setting('autovacuum_naptime')::interval)::float8
		from tables`
}

func (w *watchedDatabase) read(ctx context.Context) (s statistics, err error) {
	ctx, cancel := context.WithTimeout(ctx, statisticsTimeout)
	defer cancel()
	err = w.conn.QueryRow(ctx, w.query, schema, queue).Scan(
		&s.hasTables,
		&s.tables.live,
		&s.tables.dead,
		&s.tables.threshold,
		&s.queue.live,
		&s.queue.dead,
		&s.queue.threshold,
		&s.commits,
		&s.wal,
		&s.size,
		&s.statements,
		&s.naptime,
	)
	if err != nil {
		return s, fmt.Errorf("reading the database's statistics: %w", err)
	}
	return s, nil
}

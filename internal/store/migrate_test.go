package store_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/postgres/pgproxy"
	"github.com/webhookspine/spine/internal/store"
	schema "github.com/webhookspine/spine/sql"
)

func TestMigrateAnEmptyDatabase(t *testing.T) {
	t.Parallel()
	d := openDatabase(t, databases.Empty(t), 1)
	require.Equal(t, "f", d.value("select rolsuper from pg_roles where rolname = current_user"))
	require.ErrorIs(t, d.CheckSchema(t.Context()), store.ErrNotMigrated)

	m, err := store.Migrate(t.Context(), d.url)
	require.NoError(t, err)
	require.Equal(t, store.Migrated{Version: m.Version, Applied: m.Applied, Functions: true, Partitions: 8}, m)
	require.NotEmpty(t, m.Applied)
	require.Equal(t, m.Version, m.Applied[len(m.Applied)-1])
	require.NoError(t, d.CheckSchema(t.Context()))
	require.Equal(t, "plpgsql", d.value("select string_agg(extname, ',') from pg_extension"), "no extensions")
	require.Empty(t, d.rows("select relname from pg_class where relnamespace = 'public'::regnamespace"), "nothing outside the schema")

	again, err := store.Migrate(t.Context(), d.url)
	require.NoError(t, err)
	require.Equal(t, store.Migrated{Version: m.Version, Applied: []int64{}}, again)
}

func TestMigrateFromManyProcessesAtOnce(t *testing.T) {
	t.Parallel()
	url := databases.Empty(t)
	done, errs := together(4, func(int) (store.Migrated, error) { return store.Migrate(t.Context(), url) })
	requireNoErrors(t, errs)
	var applied, functions, partitions int
	for _, m := range done {
		applied += len(m.Applied)
		partitions += m.Partitions
		if m.Functions {
			functions++
		}
		require.Equal(t, done[0].Version, m.Version)
	}
	require.Equal(t, []int{int(done[0].Version), 1, 8}, []int{applied, functions, partitions})
	require.NoError(t, openDatabase(t, url, 1).CheckSchema(t.Context()))
}

// An administrator may make the schema and hand it over; Spine's role then
// needs no right to create one.
func TestMigrateInASchemaMadeByAnother(t *testing.T) {
	t.Parallel()
	d := openDatabase(t, databases.Empty(t), 1)
	d.run("create schema spine")
	d.run("do $$ begin execute format('revoke create on database %I from %I, public', current_database(), current_user); end $$")
	require.Equal(t, "42501", refused(t, d.Pool(), "create schema other").Code)
	_, err := store.Migrate(t.Context(), d.url)
	require.NoError(t, err)
	require.NoError(t, d.CheckSchema(t.Context()))
}

func TestMigrateWithoutTheRight(t *testing.T) {
	t.Parallel()
	d := openDatabase(t, databases.Empty(t), 1)
	d.run("do $$ begin execute format('revoke create on database %I from %I, public', current_database(), current_user); end $$")
	_, err := store.Migrate(t.Context(), d.url)
	require.ErrorContains(t, err, "creating schema spine")
	require.ErrorContains(t, err, "42501")
}

func TestMigrateLeavesANewerSchemaAlone(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("insert into spine.schema_version (version_id, is_applied) values (9999, true)")
	d.run("update spine.schema_functions set digest = 'of a newer one'")
	_, err := store.Migrate(t.Context(), d.url)
	require.ErrorIs(t, err, store.ErrTooNew)
	require.ErrorContains(t, err, "9999")
	require.Equal(t, "of a newer one", d.value("select digest from spine.schema_functions"))
	require.ErrorIs(t, d.CheckSchema(t.Context()), store.ErrTooNew)
}

func TestMigratePutsItsFunctionsInPlace(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("create or replace function spine.id_of(_event_id text, _source text default null) returns bigint language sql as 'select 42::bigint'")
	d.run("drop view spine.stuck")
	m, err := store.Migrate(t.Context(), d.url)
	require.NoError(t, err)
	require.False(t, m.Functions, "what has the digest is taken for unchanged")
	d.run("update spine.schema_functions set digest = 'of another one'")
	m, err = store.Migrate(t.Context(), d.url)
	require.NoError(t, err)
	require.True(t, m.Functions)
	require.Equal(t, "P0002", refused(t, d.Pool(), "select spine.id_of('x')").Code)
	require.Empty(t, d.rows("select from spine.stuck"))
}

// The queue's triggers need a lock that an open transaction may hold up. It is
// waited for, and others do not wait behind it for long.
func TestMigrateWaitsForAnOpenTransaction(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	d.run("update spine.schema_functions set digest = 'of another one'")
	tx := begin(t, d.Store)
	run(t, tx, "select spine.ingest('x', 'a', '{}')")
	done := make(chan error, 1)
	go func() {
		_, err := store.Migrate(t.Context(), d.url)
		done <- err
	}()
	d.awaitBlocked("%create or replace%")
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, <-done)
}

func TestMigrateStopsWithItsContext(t *testing.T) {
	t.Parallel()
	url := databases.Empty(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := store.Migrate(ctx, url)
	require.ErrorIs(t, err, context.Canceled)
}

func TestCheckSchema(t *testing.T) {
	t.Parallel()
	for statement, want := range map[string]error{
		"select": nil,
		"insert into spine.schema_version (version_id, is_applied) values (9999, true)": store.ErrTooNew,
		"delete from spine.schema_version where version_id > 0":                         store.ErrNotMigrated,
		"delete from spine.schema_functions":                                            store.ErrNotMigrated,
		"drop table spine.schema_functions":                                             store.ErrNotMigrated,
		"drop table spine.schema_version":                                               store.ErrNotMigrated,
		"drop schema spine cascade":                                                     store.ErrNotMigrated,
	} {
		d := newDatabase(t, 1)
		d.run(statement)
		require.ErrorIs(t, d.CheckSchema(t.Context()), want, statement)
	}
}

func TestCheckSchemaOfADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	d := openDatabase(t, "postgres://nobody@127.0.0.1:1/nowhere", 1)
	err := d.CheckSchema(t.Context())
	require.Error(t, err)
	require.NotErrorIs(t, err, store.ErrNotMigrated)
	require.NotErrorIs(t, err, store.ErrTooNew)
}

func TestBadURLs(t *testing.T) {
	t.Parallel()
	_, err := store.Migrate(t.Context(), "postgres://user:secret@[")
	require.ErrorContains(t, err, "reading the database URL")
	require.NotContains(t, err.Error(), "secret")
	_, err = store.Open(t.Context(), store.Config{URL: "postgres://user:secret@[", MaxConns: 1})
	require.ErrorContains(t, err, "reading the database URL")
	require.NotContains(t, err.Error(), "secret")
	_, err = store.Connector("postgres://user:secret@[", "spine")
	require.ErrorContains(t, err, "reading the database URL")
	require.NotContains(t, err.Error(), "secret")
}

func TestConnector(t *testing.T) {
	t.Parallel()
	connect, err := store.Connector(databases.New(t), "spine listener")
	require.NoError(t, err)
	conn, err := connect(t.Context())
	require.NoError(t, err)
	require.Equal(t, "spine listener|UTC", value(t, conn, "select current_setting('application_name'), current_setting('timezone')"))
	require.NoError(t, conn.Close(t.Context()))

	connect, err = store.Connector("postgres://nobody@127.0.0.1:1/nowhere", "spine listener")
	require.NoError(t, err)
	_, err = connect(t.Context())
	require.ErrorContains(t, err, "connecting")
}

// What the first version had stored is there after the second has come, and
// what it calls goes on working: its processes are replaced one by one.
func TestMigrateWhatTheFirstVersionStored(t *testing.T) {
	t.Parallel()
	d := openDatabase(t, databases.Empty(t), 1)
	d.run("create schema spine")
	first, err := schema.Migrations.ReadFile("migrations/0001_tables.sql")
	require.NoError(t, err)
	config, err := pgx.ParseConfig(d.url)
	require.NoError(t, err)
	db := stdlib.OpenDB(*config)
	defer func() { require.NoError(t, db.Close()) }()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, fstest.MapFS{"0001_tables.sql": {Data: first}},
		goose.WithTableName("spine.schema_version"), goose.WithDisableGlobalRegistry(true))
	require.NoError(t, err)
	_, err = provider.Up(t.Context())
	require.NoError(t, err)
	functions, err := os.ReadFile("testdata/functions_1.sql")
	require.NoError(t, err)
	_, err = db.ExecContext(t.Context(), string(functions))
	require.NoError(t, err)
	d.run("insert into spine.schema_functions (digest) values ('of the first version')")
	d.run("select spine.ensure_audit_partitions()")

	const (
		ingest = `select outcome from spine.ingest($1::text[], array['a'], array[now()], array['{"a":1}'], array['default'], array[sha256('a')], array[null]::bytea[], array[null]::text[])`
		claim  = "select event, lease from spine.claim('default', 10, '30 s', 'worker', array['1 s', '2 s']::interval[], '-infinity')"
		settle = "select spine.settle(array[$1::bigint], array['default'], array[$2::bigint], array['completed'], array[null]::interval[], array[null]::text[], array['{\"status\":200}'])"
		rows   = "select timestamp, id, xid, event, event_id, source, action, success, details from spine.audit_log order by id"
	)
	deliver := func(id string) {
		require.Equal(t, "accepted", d.value(ingest, []string{id}))
		key, lease, _ := strings.Cut(d.value(claim), "|")
		require.Equal(t, "{t}", d.value(settle, key, lease))
		require.Empty(t, d.rows("select spine.next_due('default') where spine.next_due('default') is not null"))
	}
	deliver("x")
	d.run(`insert into spine.audit_log (timestamp, event, event_id, source, action, success, details) values
		('2024-01-30 12:00Z', 1, 'x', 'github', 'event_inserted', 'success', '{}'), ('infinity', 1, 'x', 'default', 'event_received', 'success', '{}'),
		(now(), 1, 'x', 'default', 'processing_attempt_failed', 'failure', '{"answer": "\\ \"quoted\" ü"}'),
		(now(), null, null, 'default', 'request_rejected', 'failure', '{"count": 3}'), (now(), null, null, null, 'claims_paused', 'success', '{}')`)
	before := d.rows(rows)
	require.Len(t, before, 9)

	m, err := store.Migrate(t.Context(), d.url)
	require.NoError(t, err)
	require.Equal(t, int64(2), m.Applied[0])
	require.True(t, m.Functions)
	require.NoError(t, d.CheckSchema(t.Context()))
	require.Equal(t, before, d.rows(rows))
	require.Equal(t, "1", d.value("select count(*) from spine.audit_trail_default"), "the infinite one")
	deliver("y")
	require.Equal(t, []string{"event_received", "event_inserted", "processing_attempt_started", "processing_succeeded"}, d.trail("y"))
	require.Equal(t, "13", d.value("select count(distinct id) from spine.audit_log"), "ids go on where they were")
}

// Numbers begin with the migration that brings them: what a large database has
// audited before is not counted, and what is in progress meanwhile is.
func TestMigrateWhatTheSecondVersionStored(t *testing.T) {
	t.Parallel()
	d := openDatabase(t, databases.Empty(t), 2)
	d.run("create schema spine")
	before := fstest.MapFS{}
	for _, name := range []string{"0001_tables.sql", "0002_compact.sql"} {
		data, err := schema.Migrations.ReadFile("migrations/" + name)
		require.NoError(t, err)
		before[name] = &fstest.MapFile{Data: data}
	}
	config, err := pgx.ParseConfig(d.url)
	require.NoError(t, err)
	db := stdlib.OpenDB(*config)
	defer func() { require.NoError(t, db.Close()) }()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, before,
		goose.WithTableName("spine.schema_version"), goose.WithDisableGlobalRegistry(true))
	require.NoError(t, err)
	_, err = provider.Up(t.Context())
	require.NoError(t, err)
	d.run("insert into spine.sources (name) values ('github'), ('silent')")
	d.run("insert into spine.events (event_id, source, event_type, occurred_at, payload, payload_hash, created_at) values ('x', 'github', 'a', now(), '{}', '', '2026-01-30 12:00Z')")
	d.run("update spine.sources set last_arrival_at = '2026-01-29 12:00Z' where name in ('default', 'github')")
	insert(t, d.Pool())
	open := begin(t, d.Store)
	run(t, open, "select pg_current_xact_id()")
	insert(t, d.Pool())

	m, err := store.Migrate(t.Context(), d.url)
	require.NoError(t, err)
	require.Equal(t, []int64{3, 4, 5}, m.Applied)
	require.Equal(t, []string{"default|2026-01-29 12:00:00+00", "github|2026-01-30 12:00:00+00"}, d.rows("select name, last_arrival_at from spine.sources where last_arrival_at is not null order by name"))
	d.rollUp()
	d.requireAccepted(0)
	insert(t, open)
	require.NoError(t, open.Commit(t.Context()))
	insert(t, d.Pool())
	d.rollUp()
	d.requireAccepted(2)
	o := d.overview()
	require.NotNil(t, o.CoveredFrom)
	require.Nil(t, o.Series.Accepted[0])
}

// A migration that was cut off between tables and functions is not taken for
// whole.
func TestMigrationThatIsHalfDone(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("delete from spine.schema_functions")
	require.ErrorIs(t, d.CheckSchema(t.Context()), store.ErrNotMigrated)
	m, err := store.Migrate(t.Context(), d.url)
	require.NoError(t, err)
	require.True(t, m.Functions)
	require.NoError(t, d.CheckSchema(t.Context()))
}

// TestMigrationCutAnywhere loses the connection after one statement after the other
// was done: migrating again ends as if nothing had happened.
func TestMigrationCutAnywhere(t *testing.T) {
	t.Parallel()
	const made = `
		select 'column', regexp_replace(a.attrelid::regclass::text, '_[0-9]{8}', ''), a.attname::text, format_type(a.atttypid, a.atttypmod) || a.attnotnull::text || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
		from pg_attribute a join pg_class c on c.oid = a.attrelid left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
		where c.relnamespace = 'spine'::regnamespace and c.relkind in ('r', 'p', 'v') and a.attnum > 0 and not a.attisdropped
		union all
		select 'index', regexp_replace(pg_get_indexdef(i.indexrelid), '_[0-9]{8}', '', 'g'), '', i.indisvalid::text
		from pg_index i join pg_class c on c.oid = i.indrelid where c.relnamespace = 'spine'::regnamespace
		union all
		select 'constraint', regexp_replace(k.conrelid::regclass::text, '_[0-9]{8}', ''), regexp_replace(k.conname, '_[0-9]{8}', ''), pg_get_constraintdef(k.oid) from pg_constraint k where k.connamespace = 'spine'::regnamespace
		union all
		select 'function', p.oid::regprocedure::text, md5(p.prosrc), '' from pg_proc p where p.pronamespace = 'spine'::regnamespace
		union all
		select 'trigger', t.tgname, regexp_replace(t.tgrelid::regclass::text, '_[0-9]{8}', ''), t.tgenabled::text from pg_trigger t where not t.tgisinternal
		union all
		select 'version', v.version_id::text, '', '' from spine.schema_version v
		union all
		select 'digest', f.digest, '', '' from spine.schema_functions f
		order by 1, 2, 3, 4`
	// migrate meets the given statement, counted from 1, and says how many there were.
	migrate := func(t *testing.T, url string, at int64, action pgproxy.Action) (statements int64, err error) {
		proxy, err := pgproxy.New(url)
		require.NoError(t, err)
		defer func() { require.NoError(t, proxy.Close()) }()
		proxy.OnMessage(func(m pgproxy.Message) pgproxy.Action {
			if !m.FromClient || m.Type != 'E' && m.Type != 'Q' {
				return pgproxy.Pass
			}
			if statements++; statements == at {
				return action
			}
			return pgproxy.Pass
		})
		_, err = store.Migrate(t.Context(), proxy.URL())
		return statements, err
	}
	whole := openDatabase(t, databases.Empty(t), 1)
	statements, err := migrate(t, whole.url, 0, pgproxy.Pass)
	require.NoError(t, err)
	require.Greater(t, statements, int64(20))
	want := whole.rows(made)
	for at := int64(5); at < statements; at++ { // the first are said again by database/sql, the last one lets go of the lock
		t.Run(fmt.Sprint("statement ", at), func(t *testing.T) {
			t.Parallel()
			d := openDatabase(t, databases.Empty(t), 1)
			_, err := migrate(t, d.url, at, pgproxy.DropAnswer)
			require.Error(t, err)
			_, err = store.Migrate(t.Context(), d.url)
			require.NoError(t, err)
			require.NoError(t, d.CheckSchema(t.Context()))
			require.Equal(t, want, d.rows(made))
		})
	}
}

// A migration that other processes may wait for says how long at most.
func TestMigrationsWaitForALimitedTime(t *testing.T) {
	t.Parallel()
	names, err := fs.Glob(schema.Migrations, "migrations/*.sql")
	require.NoError(t, err)
	for _, name := range names[1:] { // before the first nothing is there
		text, err := schema.Migrations.ReadFile(name)
		require.NoError(t, err)
		require.Regexp(t, `(?m)^(set local lock_timeout = '2s';|-- \+goose NO TRANSACTION)$`, string(text), name)
	}
}

package store_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

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

	m, err := store.Migrate(t.Context(), d.url, nil)
	require.NoError(t, err)
	require.Equal(t, store.Migrated{Version: m.Version, Applied: m.Applied, Functions: true, Partitions: 8}, m)
	require.NotEmpty(t, m.Applied)
	require.Equal(t, m.Version, m.Applied[len(m.Applied)-1])
	require.NoError(t, d.CheckSchema(t.Context()))
	require.Equal(t, "plpgsql", d.value("select string_agg(extname, ',') from pg_extension"), "no extensions")
	require.Empty(
		t,
		d.rows("select relname from pg_class where relnamespace = 'public'::regnamespace"),
		"nothing outside the schema",
	)

	again, err := store.Migrate(t.Context(), d.url, nil)
	require.NoError(t, err)
	require.Equal(t, store.Migrated{Version: m.Version, Applied: []int64{}}, again)
}

// migrationNumbers are the numbers of all migrations, ascending.
func migrationNumbers(t *testing.T) (numbers []int) {
	t.Helper()
	names, err := fs.Glob(schema.Migrations, "migrations/*.sql")
	require.NoError(t, err)
	for _, name := range names {
		var n int
		_, err := fmt.Sscanf(name, "migrations/%d_", &n)
		require.NoError(t, err)
		numbers = append(numbers, n)
	}
	return numbers
}

func TestMigrateFromManyProcessesAtOnce(t *testing.T) {
	t.Parallel()
	url := databases.Empty(t)
	done, errs := together(4, func(int) (store.Migrated, error) { return store.Migrate(t.Context(), url, nil) })
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
	require.Equal(t, []int{len(migrationNumbers(t)), 1, 8}, []int{applied, functions, partitions})
	require.NoError(t, openDatabase(t, url, 1).CheckSchema(t.Context()))
}

// An administrator may make the schema and hand it over; Spine's role then
// needs no right to create one.
func TestMigrateInASchemaMadeByAnother(t *testing.T) {
	t.Parallel()
	d := openDatabase(t, databases.Empty(t), 1)
	d.run("create schema spine")
	d.run(`do $$ begin
		execute format('revoke create on database %I from %I, public', current_database(), current_user);
	end $$`)
	require.Equal(t, "42501", statementError(t, d.Pool(), "create schema other").Code)
	_, err := store.Migrate(t.Context(), d.url, nil)
	require.NoError(t, err)
	require.NoError(t, d.CheckSchema(t.Context()))
}

func TestMigrateWithoutTheRight(t *testing.T) {
	t.Parallel()
	d := openDatabase(t, databases.Empty(t), 1)
	d.run(`do $$ begin
		execute format('revoke create on database %I from %I, public', current_database(), current_user);
	end $$`)
	_, err := store.Migrate(t.Context(), d.url, nil)
	require.ErrorContains(t, err, "creating schema spine")
	require.ErrorContains(t, err, "42501")
}

func TestMigrateLeavesANewerSchemaAlone(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	newest := slices.Max(migrationNumbers(t))
	d.run("insert into spine.schema_version (version_id, is_applied) values (9999, true)")
	for from, want := range map[string]error{
		"9999": store.ErrTooNew, "null": store.ErrTooNew, fmt.Sprint(newest + 1): store.ErrTooNew,
		fmt.Sprint(newest): store.ErrNewer, "5": store.ErrNewer,
	} {
		d.run("update spine.schema_functions set digest = 'of a newer one', compatible_from = " + from)
		checked := d.CheckSchema(t.Context())
		require.ErrorIs(t, checked, want, from)
		require.ErrorContains(t, checked, "9999")
		require.ErrorContains(t, checked, fmt.Sprint(newest))
		m, err := store.Migrate(t.Context(), d.url, nil)
		if errors.Is(want, store.ErrTooNew) {
			require.EqualError(t, err, checked.Error())
		} else {
			require.NoError(t, err)
			m.Partitions = 0 // one at midnight
			require.Equal(t, store.Migrated{Version: 9999, Applied: []int64{}, Newer: true}, m)
		}
		require.Equal(t, "of a newer one", d.value("select digest from spine.schema_functions"))
	}
}

// G7: a binary of one version back starts on the schema of the next release, and stores and delivers. A still older one
// learns both versions.
func TestOneVersionBackIsServed(t *testing.T) {
	t.Parallel()
	d := openDatabase(t, databases.Empty(t), 1)
	newest := slices.Max(migrationNumbers(t))
	_, err := store.MigrateTo(t.Context(), d.url, release(t, 9000, nil), nil)
	require.NoError(t, err)
	digest := d.value("select digest from spine.schema_functions")
	require.ErrorIs(t, d.CheckSchema(t.Context()), store.ErrNewer)
	m, err := store.Migrate(t.Context(), d.url, nil)
	require.NoError(t, err)
	require.Equal(t, int64(9000), m.Version)
	require.True(t, m.Newer)
	everything(t, d)
	require.Equal(t, digest, d.value("select digest from spine.schema_functions"))

	_, err = store.MigrateTo(t.Context(), d.url, release(t, 9001, nil), nil)
	require.NoError(t, err)
	_, err = store.Migrate(t.Context(), d.url, nil)
	require.EqualError(t, err, fmt.Sprintf("the database belongs to a newer version of Spine: its schema version is "+
		"9001 and needs a binary of version 9000 or later, this one is of version %d", newest))
	require.EqualError(t, d.CheckSchema(t.Context()), err.Error())
	_, err = store.MigrateTo(t.Context(), d.url, release(t, 9000, nil), nil)
	require.NoError(t, err, "but the release before goes on")
}

// What this release works with is the release before it.
func TestCompatibleFromIsAVersion(t *testing.T) {
	t.Parallel()
	require.Contains(t, migrationNumbers(t), schema.CompatibleFrom)
	require.Less(t, schema.CompatibleFrom, slices.Max(migrationNumbers(t)))
	require.Equal(
		t,
		fmt.Sprint(schema.CompatibleFrom),
		newDatabase(t, 1).value("select compatible_from from spine.schema_functions"),
	)
}

func TestMigratePutsItsFunctionsInPlace(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run(`
		create or replace function spine.id_of(_event_id text, _source text default null) returns bigint
		language sql as 'select 42::bigint'`)
	d.run("drop view spine.stuck")
	m, err := store.Migrate(t.Context(), d.url, nil)
	require.NoError(t, err)
	require.False(t, m.Functions, "what has the digest is taken for unchanged")
	d.run("update spine.schema_functions set digest = 'of another one'")
	m, err = store.Migrate(t.Context(), d.url, nil)
	require.NoError(t, err)
	require.True(t, m.Functions)
	require.Equal(t, "P0002", statementError(t, d.Pool(), "select spine.id_of('x')").Code)
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
	waits, done := make(chan string, 9), make(chan error, 1)
	go func() {
		_, err := store.Migrate(t.Context(), d.url, func(what string) { waits <- what })
		done <- err
	}()
	d.awaitBlocked("%create or replace%")
	require.Contains(t, <-waits, fmt.Sprintf("a lock, held by pid %d (", tx.Conn().PgConn().PID())) // E26
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, <-done)
}

// A process that migrates says for whom it waits (A8).
func TestMigrateSaysForWhomItWaits(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	tx := begin(t, d.Store)
	run(t, tx, "lock table spine.locks in share update exclusive mode")
	other := begin(t, d.Store) // at work on something else
	run(t, other, "select from spine.locks where name = 'roll_up' for update")
	waits, done := make(chan string, 1), make(chan error, 1)
	go func() {
		_, err := store.Migrate(t.Context(), d.url, func(holder string) { waits <- holder })
		done <- err
	}()
	select {
	case holder := <-waits:
		require.Contains(t, holder, fmt.Sprintf("pid %d (", tx.Conn().PgConn().PID()))
		require.Equal(t, 1, strings.Count(holder, "pid "), holder)
	case err := <-done:
		require.Fail(t, "it did not wait", "%v", err)
	}
	require.NoError(t, tx.Rollback(t.Context()))
	require.NoError(t, <-done)
}

// Who migrates keeps no transaction number: neither vacuum nor the arrivals of sources wait for the end (A8).
func TestMigratingTakesNoTransactionNumber(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 2)
	tx := begin(t, d.Store)
	run(t, tx, "lock table spine.sources in share mode")
	d.run("update spine.schema_functions set digest = 'of another one'")
	done := make(chan error, 1)
	go func() {
		_, err := store.Migrate(t.Context(), d.url, nil)
		done <- err
	}()
	d.awaitBlocked("%create or replace%")
	require.Equal(t, "t|t", d.value(`
		select backend_xid is null, backend_xmin is null
		from pg_stat_activity a join pg_locks l on l.pid = a.pid
		where l.relation = 'spine.locks'::regclass and l.mode = 'ShareUpdateExclusiveLock' and l.granted
			and a.datname = current_database() and l.database = a.datid`))
	require.NoError(t, tx.Rollback(t.Context()))
	require.NoError(t, <-done)
}

// Any role that may connect can take an advisory lock and keep it (A8). Nothing of Spine waits for one.
func TestNothingWaitsForAdvisoryLocks(t *testing.T) {
	t.Parallel()
	source := strings.Builder{}
	names, err := fs.Glob(schema.Functions, "functions/*.sql")
	require.NoError(t, err)
	for _, name := range names {
		text, err := fs.ReadFile(schema.Functions, name)
		require.NoError(t, err)
		source.Write(text)
	}
	require.Contains(t, source.String(), "take_lock('reject')")
	require.NotRegexp(t, "pg_(try_)?advisory", source.String())
	names, err = fs.Glob(schema.Migrations, "migrations/*.sql")
	require.NoError(t, err)
	require.Len(t, names, 2)
	for _, name := range names {
		text, err := fs.ReadFile(schema.Migrations, name)
		require.NoError(t, err)
		source.Write(text)
	}
	require.NotRegexp(t, `from (pg_catalog\.)?pg_settings`, source.String())

	d := newDatabase(t, 2)
	stranger := begin(t, d.Store)
	// Locks of earlier versions, of goose, and some that anybody would try.
	run(t, stranger, `select pg_advisory_lock(hashtextextended('spine.' || name, 0)) from unnest(array[
		'schema_functions', 'roll_up', 'sample_depth', 'expire_events', 'ensure_audit_partitions', 'reject',
		'keep_rejected x', 'migrate']) name`)
	run(t, stranger, "select pg_advisory_lock(4097083626), pg_advisory_lock(0), pg_advisory_lock(1)")
	run(t, stranger, "lock table pg_settings in access exclusive mode") // which everybody may change
	d.run("update spine.schema_functions set digest = 'of another one'")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := store.Migrate(ctx, d.url, func(holder string) { t.Error("it waits for", holder) })
	require.NoError(t, err)
	require.True(t, m.Functions)
	require.NoError(t, d.SampleDepth(ctx))
	_, elsewhere, err := d.RollUp(ctx)
	require.NoError(t, err)
	require.False(t, elsewhere)
}

func TestMigrateStopsWithItsContext(t *testing.T) {
	t.Parallel()
	url := databases.Empty(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := store.Migrate(ctx, url, nil)
	require.ErrorIs(t, err, context.Canceled)
}

func TestCheckSchema(t *testing.T) {
	t.Parallel()
	for statement, want := range map[string]error{
		"select": nil,
		"insert into spine.schema_version (version_id, is_applied) values (9999, true)": store.ErrNewer,
		`insert into spine.schema_version (version_id, is_applied) values (9999, true);
			update spine.schema_functions set compatible_from = 9999`: store.ErrTooNew,
		"delete from spine.schema_version where version_id > 0": store.ErrNotMigrated,
		"delete from spine.schema_functions":                    store.ErrNotMigrated,
		"drop table spine.schema_functions":                     store.ErrNotMigrated,
		"drop table spine.schema_version":                       store.ErrNotMigrated,
		"drop schema spine cascade":                             store.ErrNotMigrated,
	} {
		d := newDatabase(t, 1)
		d.run(statement)
		require.ErrorIs(t, d.CheckSchema(t.Context()), want, statement)
		migrated, err := d.IsMigrated(t.Context())
		require.Equal(t, want == nil, migrated && err == nil, statement)
	}
	d := newDatabase(t, 1)
	d.run("update spine.schema_functions set digest = 'of another version'")
	migrated, err := d.IsMigrated(t.Context())
	require.NoError(t, err)
	require.False(t, migrated, "other functions")
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
	_, err := store.Migrate(t.Context(), "postgres://user:secret@[", nil)
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
	require.Equal(
		t,
		"spine listener|UTC",
		value(t, conn, "select current_setting('application_name'), current_setting('timezone')"),
	)
	require.NoError(t, conn.Close(t.Context()))

	connect, err = store.Connector("postgres://nobody@127.0.0.1:1/nowhere", "spine listener")
	require.NoError(t, err)
	_, err = connect(t.Context())
	require.ErrorContains(t, err, "connecting")
}

// release makes a release: this one's functions, with those of more, and its
// migrations up to version.
//
// It works with the release before.
func release(t *testing.T, version int, more fstest.MapFS) store.Release {
	t.Helper()
	copied := func(files fs.FS, pattern string) fstest.MapFS {
		to := fstest.MapFS{}
		names, err := fs.Glob(files, pattern)
		require.NoError(t, err)
		for _, name := range names {
			data, err := fs.ReadFile(files, name)
			require.NoError(t, err)
			to[name] = &fstest.MapFile{Data: data}
		}
		return to
	}
	migrations, functions := copied(schema.Migrations, "migrations/*.sql"), copied(schema.Functions, "functions/*.sql")
	before := schema.CompatibleFrom
	switch {
	case version > 9000:
		before = version - 1
	case version == 9000:
		before = slices.Max(migrationNumbers(t))
	}
	for v := 9000; v <= version; v++ {
		migrations[fmt.Sprintf("migrations/%d_later.sql", v)] = &fstest.MapFile{Data: []byte("-- +goose Up\nselect;\n")}
	}
	maps.Copy(functions, more)
	return store.NewRelease(migrations, functions, int64(before))
}

const (
	newestVersion = "select max(version_id) from spine.schema_version"
	signatures    = `
		select proname || '(' || oidvectortypes(proargtypes) || ')'
		from pg_proc
		where pronamespace = 'spine'::regnamespace
		order by 1`
	// retired is a file of a release whose functions the next one no longer has.
	retired = `create or replace function spine.old(_n integer) returns integer
		language sql
		set search_path = spine, pg_temp as 'select _n';
		comment on function spine.old(integer) is 'Internal. Goes.';
		create or replace function spine.pause(_destination text, _why text, _by text) returns bigint
		language sql
		set search_path = spine, pg_temp as 'select pause(_destination)';
		comment on function spine.pause(text, text, text) is 'Goes too.';`
)

// A function that no file has any more stays for one version, whose processes
// run beside those of the version before, and goes with the next.
func TestMigrateDropsFunctionsOneVersionLater(t *testing.T) {
	t.Parallel()
	whole := newDatabase(t, 1).rows(signatures)
	d := openDatabase(t, databases.Empty(t), 1)
	migrate := func(version int, more fstest.MapFS) {
		t.Helper()
		m, err := store.MigrateTo(t.Context(), d.url, release(t, version, more), nil)
		require.NoError(t, err)
		require.Equal(t, int64(max(version, slices.Max(migrationNumbers(t)))), m.Version)
		require.True(t, m.Functions)
	}
	migrate(5, fstest.MapFS{"functions/old.sql": {Data: []byte(retired)}})
	require.Len(t, d.rows(signatures), len(whole)+2)
	d.run("create function spine.mine() returns integer language sql as 'select 1'")
	d.run("create view public.depends as select spine.old(3)")

	migrate(9000, nil)
	require.Equal(t, "7|0", d.value("select spine.old(7), spine.pause('default', 'why', 'me') - 1"))
	require.Equal(
		t,
		[]string{"Retired in version 9000. The next version drops it."},
		d.rows(`
			select distinct obj_description(oid, 'pg_proc')
			from pg_proc
			where oid in ('spine.old(integer)'::regprocedure, 'spine.pause(text, text, text)'::regprocedure)`),
	)
	m, err := store.Migrate(t.Context(), d.url, nil)
	require.NoError(t, err, "one version back is served")
	require.True(t, m.Newer)
	require.Equal(t, "7", d.value("select spine.old(7)"), "and puts no function in place")

	migrate(9001, nil)
	_, err = store.Migrate(t.Context(), d.url, nil)
	require.ErrorIs(t, err, store.ErrTooNew)
	require.ElementsMatch(t, append(whole, "mine()", "old(integer)"), d.rows(signatures), "somebody uses these")
	d.run("drop view public.depends")
	d.run("drop function spine.mine()")
	migrate(9002, nil)
	require.Equal(t, whole, d.rows(signatures))
}

// A function that comes back is one like all others.
func TestMigrateKeepsAFunctionThatComesBack(t *testing.T) {
	t.Parallel()
	d := openDatabase(t, databases.Empty(t), 1)
	old := fstest.MapFS{"functions/old.sql": {Data: []byte(retired)}}
	for _, r := range []struct {
		version int
		more    fstest.MapFS
	}{{5, old}, {9000, nil}, {9001, old}, {9002, old}} {
		_, err := store.MigrateTo(t.Context(), d.url, release(t, r.version, r.more), nil)
		require.NoError(t, err)
	}
	require.Equal(
		t,
		"Internal. Goes.",
		d.value("select obj_description('spine.old(integer)'::regprocedure, 'pg_proc')"),
	)
}

// Before the first release there were five migrations. A database that has all
// of them goes on untouched.
func TestMigrateADatabaseOfFiveMigrations(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("insert into spine.schema_version (version_id, is_applied) select n, true from generate_series(1, 4) n")
	d.run("select spine.ingest('x', 'a', '{}')")
	d.run(`create function spine.claim(
			text, integer, interval, text, interval[] default array['1 s']::interval[], timestamptz default '-infinity')
		returns integer language sql set search_path = spine, pg_temp as 'select 1'`)
	d.run("update spine.schema_functions set digest = 'of an older one'")
	const tables = `
		select c.relname, c.oid, c.relfilenode
		from pg_class c
		where c.relnamespace = 'spine'::regnamespace and c.relkind in ('r', 'p', 'i', 'I')
			and c.relname !~ '^audit_trail_[0-9]' -- a migration at midnight makes one
		order by 1`
	before := d.rows(tables)
	m, err := store.Migrate(t.Context(), d.url, nil)
	require.NoError(t, err)
	newest := int64(slices.Max(migrationNumbers(t)))
	m.Partitions = 0 // one at midnight
	require.Equal(t, store.Migrated{Version: newest, Applied: []int64{}, Functions: true}, m)
	require.NoError(t, d.CheckSchema(t.Context()))
	require.Equal(t, before, d.rows(tables))
	require.Equal(t, []string{"event_received", "event_inserted"}, d.trail("x"))
	// A call by hand has only one function to mean.
	require.Equal(t, "1", d.value("select count(*) from spine.claim('default', 10, '1 min', 'by hand')"))
}

// A database that has only some of them is told what to do, and left alone.
func TestMigrateLeavesADatabaseFromBeforeTheFirstReleaseAlone(t *testing.T) {
	t.Parallel()
	for version := 1; version <= 4; version++ {
		d := newDatabase(t, 1)
		d.run("delete from spine.schema_version where version_id > 5")
		d.run("update spine.schema_version set version_id = $1 where version_id = 5", version)
		d.run("update spine.schema_functions set digest = 'of an older one'")
		_, err := store.Migrate(t.Context(), d.url, nil)
		require.ErrorIs(t, err, store.ErrTooOld)
		require.EqualError(
			t,
			err,
			fmt.Sprintf("the database was made before the first release of Spine: migrate it to schema version 5 "+
				"with commit c7dd129, or begin with an empty database (schema version %d)", version),
		)
		require.EqualError(t, d.CheckSchema(t.Context()), err.Error())
		require.Equal(t, "of an older one", d.value("select digest from spine.schema_functions"))
	}
}

// A migration that was cut off between tables and functions is not taken for
// whole.
func TestMigrationThatIsHalfDone(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("delete from spine.schema_functions")
	require.ErrorIs(t, d.CheckSchema(t.Context()), store.ErrNotMigrated)
	m, err := store.Migrate(t.Context(), d.url, nil)
	require.NoError(t, err)
	require.True(t, m.Functions)
	require.NoError(t, d.CheckSchema(t.Context()))
}

// TestMigrationCutAnywhere loses the connection after each statement in turn:
// migrating again ends as if nothing had happened.
func TestMigrationCutAnywhere(t *testing.T) {
	t.Parallel()
	const made = `
		select 'column', regexp_replace(a.attrelid::regclass::text, '_[0-9]{8}', ''), a.attname::text,
			format_type(a.atttypid, a.atttypmod) || a.attnotnull::text || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
		from pg_attribute a
		join pg_class c on c.oid = a.attrelid
		left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
		where c.relnamespace = 'spine'::regnamespace
			and c.relkind in ('r', 'p', 'v')
			and a.attnum > 0
			and not a.attisdropped
		union all
		select 'index', regexp_replace(pg_get_indexdef(i.indexrelid), '_[0-9]{8}', '', 'g'), '', i.indisvalid::text
		from pg_index i join pg_class c on c.oid = i.indrelid where c.relnamespace = 'spine'::regnamespace
		union all
		select 'constraint', regexp_replace(k.conrelid::regclass::text, '_[0-9]{8}', ''),
			regexp_replace(k.conname, '_[0-9]{8}', ''), pg_get_constraintdef(k.oid)
		from pg_constraint k
		where k.connamespace = 'spine'::regnamespace
		union all
		select 'function', p.oid::regprocedure::text, md5(p.prosrc), ''
		from pg_proc p
		where p.pronamespace = 'spine'::regnamespace
		union all
		select 'trigger', t.tgname, regexp_replace(t.tgrelid::regclass::text, '_[0-9]{8}', ''), t.tgenabled::text
		from pg_trigger t
		where not t.tgisinternal
		union all
		select 'version', v.version_id::text, '', '' from spine.schema_version v
		union all
		select 'digest', f.digest, '', '' from spine.schema_functions f
		order by 1, 2, 3, 4`
	// migrate drops the answer to the statement that cut chooses, and returns all that there were.
	migrate := func(t *testing.T, url string, cut func(statements []string) bool) (statements []string, err error) {
		proxy, err := pgproxy.New(url)
		require.NoError(t, err)
		defer func() { require.NoError(t, proxy.Close()) }()
		proxy.OnMessage(func(m pgproxy.Message) pgproxy.Action {
			if !m.FromClient || m.Type != 'E' && m.Type != 'Q' {
				return pgproxy.Pass
			}
			if statements = append(statements, m.SQL); cut(statements) {
				return pgproxy.DropAnswer
			}
			return pgproxy.Pass
		})
		_, err = store.Migrate(t.Context(), proxy.URL(), nil)
		return statements, err
	}
	whole := openDatabase(t, databases.Empty(t), 1)
	statements, err := migrate(t, whole.url, func([]string) bool { return false })
	require.NoError(t, err)
	want := whole.rows(made)
	isComment := func(at int) bool { return strings.HasPrefix(statements[at-1], "comment on ") }

	// Each migration is one transaction: nothing of it stays, wherever it is cut.
	cut := map[int]bool{} // within a migration
	migrations := 0
	for first := 1; first < len(statements); first++ {
		if !strings.HasPrefix(statements[first-1], "set local search_path") {
			continue
		}
		migrations++
		commit := first + slices.Index(statements[first:], "commit") + 1
		for at := first; at < commit; at++ {
			cut[at] = true
		}
		t.Run(fmt.Sprint("within migration ", migrations), func(t *testing.T) {
			t.Parallel()
			d := openDatabase(t, databases.Empty(t), 1)
			const whatIs = `
				select attrelid::regclass::text || '.' || attname
				from pg_attribute
				where attnum > 0 and not attisdropped and attrelid in (
					select oid from pg_class where relnamespace = 'spine'::regnamespace and relkind in ('r', 'p')
				)
				union all
				select version_id::text from spine.schema_version
				order by 1`
			var before []string
			for at := first + 1; at < commit; at++ {
				if isComment(at) && isComment(at+1) {
					continue // all comments of a table are one place
				}
				if testing.Short() && at > first+1 && at%16 != 0 {
					continue
				}
				// Statements before this migration come once, and none of them is like one of these.
				_, err := migrate(t, d.url, func(now []string) bool { return now[len(now)-1] == statements[at-1] })
				require.Error(t, err, statements[at-1])
				if before == nil {
					before = d.rows(whatIs)
					require.NotEmpty(t, before)
				}
				require.Equal(t, before, d.rows(whatIs))
			}
			_, err := store.Migrate(t.Context(), d.url, nil)
			require.NoError(t, err)
			require.NoError(t, d.CheckSchema(t.Context()))
			require.Equal(t, want, d.rows(made))
		})
	}
	require.Len(t, migrationNumbers(t), migrations)
	require.Greater(t, len(cut), 200)
	for at := 5; at < len(statements); at++ { // the last one releases the lock
		if cut[at] {
			continue
		}
		t.Run(fmt.Sprint("statement ", at), func(t *testing.T) {
			t.Parallel()
			d := openDatabase(t, databases.Empty(t), 1)
			// How many statements there are depends on whether the pool pings what was idle.
			met, err := migrate(t, d.url, func(now []string) bool { return len(now) == at })
			if err == nil && len(met) >= at {
				require.Equal(t, "-- ping", met[at-1], "any other lost answer is an error")
			}
			_, err = store.Migrate(t.Context(), d.url, nil)
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
	for _, name := range names[1:] { // nobody waits for the first: before it nothing is there
		text, err := schema.Migrations.ReadFile(name)
		require.NoError(t, err)
		require.Regexp(t, `(?m)^(set local lock_timeout = '2s';|-- \+goose NO TRANSACTION)$`, string(text), name)
	}
}

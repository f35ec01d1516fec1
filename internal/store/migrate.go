package store

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"

	schema "github.com/webhookspine/spine/sql"
)

// versionTable is where goose notes the migrations that were applied.
const versionTable = "spine.schema_version"

// oldestVersion is the number of the first migration. Databases with a lower version were made before the first
// release.
const oldestVersion = 5

// ErrNewer says that a newer Spine migrated the database, and that this one still works with it. This one changes
// neither tables nor functions.
var ErrNewer = errors.New("the database belongs to a newer version of Spine, with which this one still works")

// ErrTooNew says that a newer Spine migrated the database, and that this one no longer works with it.
var ErrTooNew = errors.New("the database belongs to a newer version of Spine")

// ErrNotMigrated says that the database lacks Spine's schema, or a part of it.
var ErrNotMigrated = errors.New("the database is not migrated: run spine migrate")

// ErrTooOld says that the database was made before the first release, and how to go on.
var ErrTooOld = errors.New("the database was made before the first release of Spine: " +
	"migrate it to schema version 5 with commit c7dd129, or begin with an empty database")

// Migrated says what Migrate did.
type Migrated struct {
	Version    int64   `json:"version"`    // schema version now
	Applied    []int64 `json:"applied"`    // migrations applied in this call, oldest first; not nil
	Functions  bool    `json:"functions"`  // whether functions, triggers and views were put in place
	Partitions int     `json:"partitions"` // daily partitions of the audit log made ahead

	// Problem says why no partitions were made, although the schema is in place. Nothing is lost without them.
	Problem string `json:"problem,omitempty"`

	// Newer is true where a newer Spine migrated the database. Then only partitions were made. Version is the
	// database's.
	Newer bool `json:"newer,omitempty"`
}

// release is what a version of Spine brings to a database.
type release struct {
	migrations, functions fs.FS
	compatibleFrom        int64 // see schema.CompatibleFrom
}

// thisRelease is that of this binary.
var thisRelease = release{schema.Migrations, schema.Functions, schema.CompatibleFrom}

// Migrate brings the database at url up to this binary's schema. Under a lock it applies migrations, then the
// functions, and then makes the partitions of the audit log. It needs a role that owns the schema, or may create it.
// It needs no superuser and no extension. Two processes may migrate at once: one waits. While it waits for that, for
// a lock or for a synchronous standby, it calls waits, unless that is nil, with what it waits for. After a crash,
// call it again. It leaves the database of a newer version as it is: see Migrated.Newer and ErrTooNew.
func Migrate(ctx context.Context, url string, waits func(what string)) (Migrated, error) {
	return migrate(ctx, url, thisRelease, waits)
}

// migrate is Migrate for any release.
func migrate(ctx context.Context, url string, r release, waits func(what string)) (m Migrated, err error) {
	defer func() { err = explainMigrating(err) }()
	db, err := openMigrator(url)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	defer watchWaits(ctx, db, waits)()

	if err := createSchema(ctx, db); err != nil {
		return m, err
	}
	unlock, err := lockMigrations(ctx, db, waits)
	if err != nil {
		return m, err
	}
	defer unlock()
	provider, err := newProvider(db, r.migrations)
	if err != nil {
		return m, err
	}
	version, err := provider.GetDBVersion(ctx)
	if err != nil {
		return m, fmt.Errorf("reading the schema version: %w", err)
	}
	if m.Version, err = newestMigration(r.migrations); err != nil {
		return m, err
	}
	m.Applied = []int64{}
	switch {
	case version > m.Version:
		var from sql.NullInt64
		err := db.QueryRowContext(ctx, "select compatible_from from spine.schema_functions").Scan(&from)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return m, fmt.Errorf("reading which binaries the database works with: %w", err)
		}
		if err := newerSchema(version, from, m.Version); !errors.Is(err, ErrNewer) {
			return m, err
		}
		m.Version, m.Newer = version, true
	case version > 0 && version < oldestVersion:
		return m, fmt.Errorf("%w (schema version %d)", ErrTooOld, version)
	default:
		roles, err := workingRoles(ctx, db)
		if err != nil {
			return m, err
		}
		if err := applyRelease(ctx, db, provider, r, &m); err != nil {
			return m, err
		}
		if err := grantNew(ctx, db, roles); err != nil {
			return m, err
		}
	}
	err = inTransaction(ctx, db, func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, "select spine.ensure_audit_partitions()").Scan(&m.Partitions)
	})
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && ctx.Err() == nil {
		m.Partitions, m.Problem = 0, "audit partitions could not be made ("+pgErr.Error()+
			"): steps go to the default partition, and upkeep tries again every hour"
	} else if err != nil {
		return m, fmt.Errorf("making audit partitions: %w", err)
	}
	return m, nil
}

// explainMigrating adds what to do to the error of a role that lacks the right to migrate.
func explainMigrating(err error) error {
	if sqlState(err) == "42501" {
		return fmt.Errorf("this role may not migrate: let the owner of the schema run spine migrate, and set "+
			"MIGRATE=false here: %w", err)
	}
	return err
}

// newerSchema is the error for a binary of version known, on a database of a newer version that works with binaries
// from a version on. The database of a release that does not say so works with none but its own.
func newerSchema(version int64, from sql.NullInt64, known int64) error {
	if !from.Valid {
		from.Int64 = version
	}
	if known >= from.Int64 {
		return fmt.Errorf("%w (schema version %d, this binary's is %d)", ErrNewer, version, known)
	}
	return fmt.Errorf(
		"%w: its schema version is %d and needs a binary of version %d or later, this one is of version %d",
		ErrTooNew,
		version,
		from.Int64,
		known,
	)
}

// applyRelease applies migrations, and then the functions.
func applyRelease(ctx context.Context, db *sql.DB, provider *goose.Provider, r release, m *Migrated) error {
	var results []*goose.MigrationResult
	err := retryLocked(ctx, func() (err error) {
		results, err = provider.Up(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("applying migrations: %w", err)
	}
	for _, result := range results {
		m.Applied = append(m.Applied, result.Source.Version)
	}
	m.Functions, err = applyFunctions(ctx, db, r, m.Version)
	return err
}

// createSchema makes the schema and its locks where they are missing. Where they exist, the role needs no right to
// create any.
func createSchema(ctx context.Context, db *sql.DB) error {
	const create = `do $$ begin
		if to_regnamespace('spine') is null then
			create schema spine;
			comment on schema spine is 'Spine, a webhook inbox: events are stored once, queued, delivered, audited.';
		end if;
		if to_regclass('spine.locks') is null then
			create table spine.locks (name text primary key);
			comment on table spine.locks is
				'Locks between processes of Spine. Who works locks a row; strangers cannot, as they could an advisory lock.';
			comment on index spine.locks_pkey is 'Names of locks.';
			comment on column spine.locks.name is 'What the lock is for: migrate, or a task of spine.reject() and upkeep.';
		end if;
		if (select count(*) from spine.locks) < 7 then
			insert into spine.locks
			values
				('expire_events'), ('keep_rejected'), ('merge_audit_days'), ('migrate'), ('partitions'), ('reject'),
				('roll_up')
			on conflict do nothing;
		end if;
	exception when duplicate_schema or duplicate_table or unique_violation then null; -- another process was quicker
	end $$`
	err := inTransaction(ctx, db, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, create)
		return err
	})
	if err != nil {
		return fmt.Errorf("creating schema spine: %w", err)
	}
	return nil
}

// lockMigrations waits until no other process migrates, as long as ctx allows, and returns what ends the lock. It
// calls waits with who holds the lock, whenever that changes. The lock is a transaction on a connection of its own.
// It holds no snapshot and has no number, so it keeps nothing from being vacuumed. Nothing else of Spine locks
// spine.locks in this mode, which lets its rows be locked meanwhile. If the connection is lost, another process may
// begin: migrations are transactions, and one of the two fails.
func lockMigrations(ctx context.Context, db *sql.DB, waits func(what string)) (unlock func(), err error) {
	said := ""
	for {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return nil, fmt.Errorf("locking the schema: %w", err)
		}
		_, err = tx.ExecContext(ctx, "select set_config('lock_timeout', '1s', true)")
		if err == nil {
			_, err = tx.ExecContext(ctx, "lock table spine.locks in share update exclusive mode")
		}
		if err == nil {
			return func() { _ = tx.Rollback() }, nil
		}
		_ = tx.Rollback()
		if sqlState(err) != "55P03" {
			return nil, fmt.Errorf("locking the schema: %w", err)
		}
		holder, err := migrationHolder(ctx, db)
		if err != nil {
			return nil, err
		}
		if holder != said && waits != nil {
			said = holder
			waits("the lock of migrations, held by " + holder)
		}
	}
}

// migrationHolder says who holds the lock of migrations, as far as this role may know.
func migrationHolder(ctx context.Context, db *sql.DB) (string, error) {
	var holder sql.NullString
	err := inTransaction(ctx, db, func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, `
			select string_agg(`+holderOf+`, ', ')
			from pg_locks l join pg_stat_activity a on a.pid = l.pid
			where l.relation = 'spine.locks'::regclass and a.datname = current_database() and l.database = a.datid
				and l.mode in ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
					'AccessExclusiveLock')
				and l.granted`).Scan(&holder)
	})
	if err != nil {
		return "", fmt.Errorf("looking for who migrates: %w", err)
	}
	return cmp.Or(holder.String, "somebody who has ended meanwhile"), nil
}

func newProvider(db *sql.DB, files fs.FS) (*goose.Provider, error) {
	migrations, err := fs.Sub(files, "migrations")
	if err != nil {
		return nil, fmt.Errorf("reading the migrations: %w", err)
	}
	versions, err := database.NewStoreFromQuerier(versionTable, versionQueries{})
	if err != nil {
		return nil, fmt.Errorf("reading the migrations: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectCustom, db, migrations,
		goose.WithStore(versions), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return nil, fmt.Errorf("reading the migrations: %w", err)
	}
	return provider, nil
}

// applyFunctions puts functions, triggers and views in place where they differ from this binary's. It does so in one
// transaction: other processes see all or nothing.
func applyFunctions(ctx context.Context, db *sql.DB, r release, version int64) (applied bool, err error) {
	script, digest, err := functionsScript(r, version)
	if err != nil {
		return false, err
	}
	err = retryLocked(ctx, func() error {
		applied, err = applyFunctionsOnce(ctx, db, script, digest, r.compatibleFrom)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("putting functions in place: %w", err)
	}
	return applied, nil
}

// retryLocked calls do until it gets its locks, ten times at most. do waits a bounded time for them. Otherwise it could
// wait behind a long transaction and hold up inserts meanwhile.
func retryLocked(ctx context.Context, do func() error) error {
	for attempt := 1; ; attempt++ {
		err := do()
		if attempt == 10 || sqlState(err) != "55P03" && sqlState(err) != "40P01" {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Duration(attempt) * 200 * time.Millisecond):
		}
	}
}

func applyFunctionsOnce(
	ctx context.Context, db *sql.DB, script, digest string, compatibleFrom int64,
) (applied bool, err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, "select set_config('lock_timeout', '2s', true)"); err != nil {
		return false, err
	}
	var current string
	err = tx.QueryRowContext(ctx, "select digest from spine.schema_functions").Scan(&current)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, err
	}
	if current == digest {
		return false, nil
	}
	before, err := ownFunctions(ctx, tx)
	if err != nil {
		return false, err
	}
	if _, err := tx.ExecContext(ctx, script); err != nil {
		return false, err
	}
	if err := grantFunctions(ctx, tx, before); err != nil {
		return false, err
	}
	_, err = tx.ExecContext(ctx, `insert into spine.schema_functions (digest, compatible_from) values ($1, $2)
		on conflict (only_row) do update
		set digest = excluded.digest, compatible_from = excluded.compatible_from, applied_at = now()`,
		digest, compatibleFrom)
	if err != nil {
		return false, err
	}
	return true, tx.Commit()
}

// retireFunctions drops functions that no file has any more, one version later: processes of the version before may
// still call them. The version that no longer makes a function notes that in its comment. A version drops it that works
// with none but binaries of that version or later.
//
// The script has made all other functions anew, so that their rows in pg_proc are of this transaction. Functions that
// somebody else added to the schema do not set the search path as Spine's do, and stay. So does a function that
// something of the user's depends on.
const retireFunctions = `
do $$
declare
    _old record;
begin
    for _old in
        select
            p.oid::regprocedure as signature,
            substring(obj_description(p.oid, 'pg_proc') from '^Retired in version (\d+)')::bigint as retired
        from pg_proc p
        where p.pronamespace = 'spine'::regnamespace
            and p.proconfig && array['search_path=spine, pg_temp', 'search_path=pg_catalog, pg_temp']
            and p.xmin <> pg_current_xact_id()::xid
    loop
        if _old.retired is null then
            execute format('comment on function %%s is %%L', _old.signature,
                'Retired in version %[1]d. The next version drops it.');
        elsif _old.retired <= %[2]d then
            begin
                execute format('drop function %%s', _old.signature);
            exception when dependent_objects_still_exist then
                null;
            end;
        end if;
    end loop;
end $$;
`

// limitFunctions takes the right to call Spine's functions from PUBLIC. Roles that may use the schema get it instead:
// until then they had it, as members of PUBLIC. A function that has lost PUBLIC is left alone, so that an administrator
// can revoke more. Functions that run with their owner's rights get the owner of the tables, whoever migrates.
const limitFunctions = `
do $$
declare
    _function record;
    _role record;
begin
    for _function in
        select
            p.oid::regprocedure as signature,
            p.prosecdef and p.proowner <> t.relowner as foreign_definer,
            t.relowner::regrole as owner,
            exists (
                select
                from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                where a.grantee = 0
            ) as public
        from pg_proc p, pg_class t
        where t.oid = 'spine.audit_trail'::regclass
            and p.pronamespace = 'spine'::regnamespace
            and p.proconfig && array['search_path=spine, pg_temp', 'search_path=pg_catalog, pg_temp']
    loop
        if _function.foreign_definer then
            execute format('alter function %s owner to %s', _function.signature, _function.owner);
        end if;
        continue when not _function.public;
        for _role in
            select a.grantee::regrole as name
            from pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
            where n.nspname = 'spine' and a.privilege_type = 'USAGE' and a.grantee <> 0
            union
            select _function.owner
        loop
            execute format('grant execute on function %s to %s', _function.signature, _role.name);
        end loop;
        execute format('revoke execute on function %s from public', _function.signature);
    end loop;
end $$;
`

// functionsScript returns the files of functions as one script, and its digest. The script names the version. Each
// version therefore puts its functions in place and drops those that an earlier one retired.
func functionsScript(r release, version int64) (script, digest string, err error) {
	files := r.functions
	names, err := fs.Glob(files, "functions/*.sql")
	if err != nil {
		return "", "", fmt.Errorf("reading the functions: %w", err)
	}
	var b strings.Builder
	// A function may call one that a later file makes.
	b.WriteString("set local check_function_bodies = off;\n")
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return "", "", fmt.Errorf("reading the functions: %w", err)
		}
		b.Write(text)
	}
	fmt.Fprintf(&b, retireFunctions, version, r.compatibleFrom)
	b.WriteString(limitFunctions)
	sum := sha256.Sum256([]byte(b.String()))
	return b.String(), hex.EncodeToString(sum[:]), nil
}

// IsMigrated reports whether Migrate would find nothing to apply: schema and functions are those of this binary. It
// takes no lock. Where it cannot tell, such as in an empty database, it returns an error.
func (s *Store) IsMigrated(ctx context.Context) (bool, error) {
	newest, err := newestMigration(thisRelease.migrations)
	if err != nil {
		return false, err
	}
	_, wanted, err := functionsScript(thisRelease, newest)
	if err != nil {
		return false, err
	}
	var migrated bool
	err = s.one(ctx, `select (select max(version_id) from `+versionTable+`) = $1
		and exists (select from spine.schema_functions where digest = $2)`, []any{newest, wanted}, &migrated)
	if err != nil {
		return false, fmt.Errorf("reading the schema version: %w", err)
	}
	return migrated, nil
}

// CheckSchema says whether the database has the schema that this binary needs. It returns nil, ErrNewer,
// ErrNotMigrated, ErrTooOld, ErrTooNew, a *RightsError where the role may not even look, or why it could not tell.
func (s *Store) CheckSchema(ctx context.Context) error {
	var version int64
	var functions bool
	var from sql.NullInt64
	// Databases before version 6 lack the column.
	const known = `select max(version_id), exists (select from spine.schema_functions),
		(select (to_jsonb(f) ->> 'compatible_from')::bigint from spine.schema_functions f) from ` + versionTable
	err := s.one(ctx, known, nil, &version, &functions, &from)
	if sqlState(err) == "42501" {
		if err := s.CheckRights(ctx); err != nil {
			return err
		}
		err = s.one(ctx, known, nil, &version, &functions, &from) // it was granted meanwhile
	}
	switch sqlState(err) {
	case "42P01", "3F000":
		return ErrNotMigrated
	}
	if err != nil {
		return fmt.Errorf("reading the schema version: %w", err)
	}
	newest, err := newestMigration(schema.Migrations)
	switch {
	case err != nil:
		return err
	case version > 0 && version < oldestVersion:
		return fmt.Errorf("%w (schema version %d)", ErrTooOld, version)
	case version < newest:
		return fmt.Errorf("%w (schema version %d, needed is %d)", ErrNotMigrated, version, newest)
	case !functions:
		return fmt.Errorf("%w (its functions are missing)", ErrNotMigrated)
	case version > newest:
		return newerSchema(version, from, newest)
	}
	return nil
}

// sqlState is the SQLSTATE of an error of the database, and empty for any other.
func sqlState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}

// newestMigration is the number of the newest migration among files.
func newestMigration(files fs.FS) (int64, error) {
	names, err := fs.Glob(files, "migrations/*.sql")
	if err == nil && len(names) == 0 {
		err = fs.ErrNotExist
	}
	if err != nil {
		return 0, fmt.Errorf("reading the migrations: %w", err)
	}
	var version int64
	if _, err := fmt.Sscanf(names[len(names)-1], "migrations/%d_", &version); err != nil {
		return 0, fmt.Errorf("reading the migrations: %w", err)
	}
	return version, nil
}

// EnsurePartitions makes the audit log's daily partitions ahead of time and returns how many it made. It lets sequences
// that lag behind begin after the rows that are there.
func (s *Store) EnsurePartitions(ctx context.Context) (made int, err error) {
	if err := s.call(ctx, []any{&made}, "select spine.ensure_audit_partitions()"); err != nil {
		return 0, fmt.Errorf("making audit partitions: %w", err)
	}
	if err := s.call(ctx, nil, "select spine.mend_sequences()"); err != nil {
		return made, fmt.Errorf("mending sequences: %w", err)
	}
	return made, nil
}

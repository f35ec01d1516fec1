package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Grant gives roles the rights with which a process works that does not migrate, on the migrated database at url. It
// needs the role that owns the schema. The roles own nothing, and may not change tables or functions. Migrate later
// gives them the same on tables that are new then. All of the grants are one transaction. Called again, it changes
// nothing.
func Grant(ctx context.Context, url string, roles []string, waits func(what string)) (err error) {
	db, err := openMigrator(url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	unlock, err := lockMigrations(ctx, db, waits) // two grants at once could fail
	if err != nil {
		return err
	}
	defer unlock()
	return inTransaction(ctx, db, func(tx *sql.Tx) error {
		for _, role := range roles {
			if err := grantTo(ctx, tx, role); err != nil {
				return err
			}
		}
		return nil
	})
}

// grantTo gives a role the rights of a process.
func grantTo(ctx context.Context, tx *sql.Tx, role string) error {
	name := pgx.Identifier{role}.Sanitize()
	var found, super, owns, may bool
	var owner, database string
	err := tx.QueryRowContext(ctx, `
		select r.oid is not null, coalesce(r.rolsuper, false), coalesce(pg_has_role(r.oid, n.nspowner, 'member')
				or pg_has_role(r.oid, c.relowner, 'member'), false),
			pg_has_role(n.nspowner, 'usage') and pg_has_role(c.relowner, 'usage'), c.relowner::regrole::text,
			current_database()
		from pg_namespace n join pg_class c on c.relnamespace = n.oid and c.relname = 'events'
			left join pg_roles r on r.rolname = $1
		where n.nspname = 'spine'`, role).Scan(&found, &super, &owns, &may, &owner, &database)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return ErrNotMigrated
	case err != nil:
		return fmt.Errorf("looking at the role %q: %w", role, err)
	case !found:
		return fmt.Errorf("there is no role %q: make it with create role %s login password '…'", role, name)
	case !may:
		return fmt.Errorf("only the owner of the schema can grant: run this as %s", owner)
	case super:
		return fmt.Errorf("the role %q is a superuser, who may do everything already: name a role that is none", role)
	case owns:
		return fmt.Errorf("the role %q owns the schema, or is a member of its owner %s: name a role that is neither",
			role, owner)
	}
	var connects bool
	if err := tx.QueryRowContext(ctx, "select has_database_privilege($1, current_database(), 'CONNECT')", role).
		Scan(&connects); err != nil {
		return fmt.Errorf("looking at the role %q: %w", role, err)
	}
	statements := []string{"grant usage on schema spine to " + name}
	for _, table := range slices.Sorted(maps.Keys(neededRights)) {
		statements = append(statements, grantStatement(table, name))
	}
	functions, err := ownFunctions(ctx, tx)
	if err != nil {
		return err
	}
	statements = append(statements, "grant execute on function "+strings.Join(functions, ", ")+" to "+name)
	if !connects {
		statements = append(statements,
			"grant connect on database "+pgx.Identifier{database}.Sanitize()+" to "+name)
	}
	for _, statement := range statements {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("granting to the role %q: %w", role, err)
		}
	}
	return nil
}

// grantStatement grants the needed rights on a table or a view. role is quoted.
func grantStatement(table, role string) string {
	return "grant " + strings.ReplaceAll(neededRights[table], " ", ", ") + " on spine." + table + " to " + role
}

// ownFunctions are the signatures of Spine's own functions. Others may have put theirs into the schema.
func ownFunctions(ctx context.Context, tx *sql.Tx) (signatures []string, err error) {
	signatures, err = texts(ctx, tx, `
		select p.oid::regprocedure::text from pg_proc p
		where p.pronamespace = 'spine'::regnamespace
			and p.proconfig && array['search_path=spine, pg_temp', 'search_path=pg_catalog, pg_temp']
			and p.prorettype <> 'trigger'::regtype
		order by 1`)
	if err != nil {
		return nil, fmt.Errorf("reading the functions: %w", err)
	}
	return signatures, nil
}

// grantFunctions grants functions that were not there before to the roles that may use the schema. limitFunctions does
// so for those that PUBLIC could call. With other default privileges it never could.
func grantFunctions(ctx context.Context, tx *sql.Tx, before []string) error {
	functions, err := ownFunctions(ctx, tx)
	if err != nil {
		return err
	}
	functions = slices.DeleteFunc(functions, func(f string) bool { return slices.Contains(before, f) })
	if len(functions) == 0 {
		return nil
	}
	roles, err := texts(ctx, tx, `
		select distinct a.grantee::regrole::text from pg_namespace n cross join aclexplode(n.nspacl) a
		where n.nspname = 'spine' and a.privilege_type = 'USAGE' and a.grantee not in (0, n.nspowner)`)
	if err != nil {
		return err
	}
	for _, role := range roles {
		//nolint:gosec // signatures and a role, as Postgres quotes them
		statement := "grant execute on function " + strings.Join(functions, ", ") + " to " + role
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("granting new functions: %w", err)
		}
	}
	return nil
}

// workingRoles are the roles, quoted, that have been granted all that a process needs, as far as it is there.
func workingRoles(ctx context.Context, db *sql.DB) (roles []string, err error) {
	var needed []string
	for table, rights := range neededRights {
		for right := range strings.FieldsSeq(rights) {
			needed = append(needed, table+" "+right)
		}
	}
	err = inTransaction(ctx, db, func(tx *sql.Tx) (err error) {
		roles, err = texts(ctx, tx, `
			select distinct a.grantee::regrole::text
			from pg_namespace s join pg_class e on e.relnamespace = s.oid and e.relname = 'events'
				cross join aclexplode(e.relacl) a
			where s.nspname = 'spine' and a.privilege_type = 'INSERT' and a.grantee not in (0, e.relowner)
				and not exists (
					select from unnest(string_to_array($1, ',')) n
					where not has_table_privilege(a.grantee, to_regclass('spine.' || split_part(n, ' ', 1)),
						split_part(n, ' ', 2)))
			order by 1`, strings.Join(needed, ","))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("looking for the roles that work: %w", err)
	}
	return roles, nil
}

// grantNew gives roles that had all needed rights before a migration those on the tables and views that are new since.
// A role from which somebody has revoked one keeps what it has.
func grantNew(ctx context.Context, db *sql.DB, roles []string) error {
	err := inTransaction(ctx, db, func(tx *sql.Tx) error {
		for _, role := range roles {
			for _, table := range slices.Sorted(maps.Keys(neededRights)) {
				if _, err := tx.ExecContext(ctx, grantStatement(table, role)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("granting new tables to the roles that work: %w", err)
	}
	return nil
}

// texts are the rows of a query that returns one text in each.
func texts(ctx context.Context, tx *sql.Tx, query string, args ...any) (all []string, err error) {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		all = append(all, text)
	}
	return all, rows.Err()
}

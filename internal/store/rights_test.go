package store_test

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/store"
)

// No function of Spine is executable by PUBLIC, and few run with the rights of their owner (G5).
func TestWhoMayCallFunctions(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	require.Empty(t, d.rows(`
		select p.oid::regprocedure
		from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
		where p.pronamespace = 'spine'::regnamespace and a.grantee = 0`))
	require.Equal(
		t,
		[]string{
			"audit_since",
			"copy_audit_days",
			"drop_audit_partition",
			"ensure_audit_partitions",
			"last_mark",
			"mark_audit",
			"mend_sequences",
			"merge_audit_days",
			"note_database",
			"trail_shift",
		},
		d.rows("select proname from pg_proc where pronamespace = 'spine'::regnamespace and prosecdef order by 1"),
		"each needs a comment that says why it is safe",
	)
	require.Empty(
		t,
		d.rows(`select proname from pg_proc where pronamespace = 'spine'::regnamespace and prosecdef
			and prosrc !~ '^\s*(declare[^;]*;.*)?\s*begin\s+perform require_right\('`),
		"each asks first what its caller may do",
	)
	// A name without a schema might be found among the temporary tables of the caller.
	require.Empty(t, d.rows(`
		select p.proname || ': ' || m[1]
		from pg_proc p cross join lateral regexp_matches(p.prosrc, '(.{12}%(?:[0-9]+[$])?I)(?![.]%I)', 'g') m
		where p.pronamespace = 'spine'::regnamespace and m[1] !~ '(spine[.]|%I[.])%([0-9]+[$])?I$'`))
}

// strange is a server with a migrated database, and a role that owns nothing there.
type strange struct {
	owner *database
	role  *database // as the role sees it
	admin *database // as a superuser sees it
}

func newStrange(t *testing.T, role string) strange {
	t.Helper()
	server := postgrestest.Server(t)
	_, err := store.Migrate(t.Context(), server.URL(), nil)
	require.NoError(t, err)
	parse := func(text string) *url.URL {
		u, err := url.Parse(text)
		require.NoError(t, err)
		return u
	}
	owner, admin := parse(server.URL()), parse(server.SuperuserURL())
	admin.Path = owner.Path
	s := strange{owner: openDatabase(t, server.URL(), 2), admin: openDatabase(t, admin.String(), 1)}
	s.admin.run("create role " + role + " login password 'secret'")
	owner.User = url.UserPassword(s.admin.value("select rolname from pg_roles order by oid desc limit 1"), "secret")
	s.role = openDatabase(t, owner.String(), 2)
	return s
}

// G5: with the rights that CheckRights asks for, and no more, each method of Store works.
func TestARoleWithTheNeededRights(t *testing.T) {
	t.Parallel()
	s := newStrange(t, "worker")
	err := s.role.CheckRights(t.Context())
	require.EqualError(t, err, `the role "worker" lacks these rights: USAGE on the schema spine, `+
		`DELETE on the table spine.audit_trail, DELETE on the table spine.audit_trail_default, `+
		`DELETE on the table spine.conflicts, DELETE on the table spine.depth_samples, `+missingMore(t, err)+
		` more; as the owner of the schema run spine migrate --grant-to worker`)
	require.EqualError(t, s.role.CheckSchema(t.Context()), err.Error())

	require.NoError(t, store.Grant(t.Context(), s.owner.url, []string{"worker"}, nil))
	require.NoError(t, store.Grant(t.Context(), s.owner.url, []string{"worker"}, nil), "again")
	require.NoError(t, s.role.CheckSchema(t.Context()))
	require.NoError(t, s.role.CheckRights(t.Context()))
	s.owner.run("create table spine.audit_trail_20200101 partition of spine.audit_trail " +
		"for values from ('2020-01-01') to ('2020-01-02')")
	all := s.owner.rows(partitions)
	s.owner.run("drop table spine." + all[len(all)-1])
	// E15: a publication of all tables rejects deletes from tables without a replica identity.
	s.admin.run("create publication everything for all tables")
	s.owner.run("insert into spine.audit_trail (timestamp, action) values ('2020-03-01', 'event_queued')")
	s.owner.run("insert into spine.audit_trail (timestamp, action) values (current_date + 7, 'event_queued')")
	everything(t, s.role)
	require.Equal(t, "0", s.owner.value("select count(*) from spine.audit_trail_default"))
	s.owner.run("update spine.audit_trail set timestamp = timestamp where timestamp > now()")
	s.owner.run("delete from spine.audit_trail where timestamp > now()")
	require.Equal(t, all[1:], s.owner.rows(partitions), "it has dropped the oldest and made the newest")
	_, err = store.Migrate(t.Context(), s.role.url, nil)
	require.NoError(t, err, "there is nothing to do")
	s.owner.run("update spine.schema_functions set digest = 'of an older one'")
	_, err = store.Migrate(t.Context(), s.role.url, nil)
	require.ErrorContains(t, err, "let the owner of the schema run spine migrate, and set MIGRATE=false")

	// Nothing more is granted.
	for _, statement := range []string{
		"drop table spine.events", "truncate spine.audit_trail", "create table spine.more ()",
		"alter function spine.make_durable() owner to current_user", "drop function spine.make_durable()",
		"create or replace function spine.make_durable() returns void language sql as ''",
		"alter table spine.audit_trail detach partition spine.audit_trail_default",
		"update spine.schema_functions set digest = ''", "select rolpassword from pg_authid",
	} {
		require.Equal(t, "42501", statementError(t, s.role.Pool(), statement).Code, statement)
	}
	// A new table is granted by the migration that makes it. What somebody has revoked stays so.
	s.admin.run("create role shop")
	s.owner.run("grant usage on schema spine to shop")
	s.owner.run("grant insert on spine.events, spine.processing_state to shop")
	migrate := func() {
		s.owner.run("drop view spine.rates")
		s.owner.run("update spine.schema_functions set digest = 'of another one'")
		_, err = store.Migrate(t.Context(), s.owner.url, nil)
		require.NoError(t, err)
	}
	migrate()
	require.NoError(t, s.role.CheckRights(t.Context()))
	s.owner.run("revoke update on spine.locks from worker")
	_, err = store.Migrate(t.Context(), s.owner.url, nil)
	require.NoError(t, err)
	require.Equal(t, "false|false", s.owner.value(`
		select has_table_privilege('shop', 'spine.rates', 'SELECT') || '|' ||
			has_table_privilege('shop', 'spine.sources', 'SELECT')`), "a role with other work gets nothing")
	require.EqualError(t, s.role.CheckRights(t.Context()), `the role "worker" lacks these rights: `+
		`UPDATE on the table spine.locks; as the owner of the schema run spine migrate --grant-to worker`)
	troubles, err := s.owner.Troubles(t.Context())
	require.NoError(t, err)
	require.Empty(t, troubles, "that role does not work here")
	troubles, err = s.role.Troubles(t.Context())
	require.NoError(t, err)
	require.Len(t, troubles, 1)
	require.Contains(t, troubles[0].Says, "UPDATE on the table spine.locks")
	require.NoError(t, store.Grant(t.Context(), s.owner.url, []string{"worker"}, nil))

	// Each right is named where it is missing.
	for table, rights := range store.NeededRights {
		for right := range strings.FieldsSeq(rights) {
			s.owner.run("revoke " + right + " on spine." + table + " from worker")
			require.ErrorContains(t, s.role.CheckRights(t.Context()), ": "+right+" on the ")
			require.ErrorContains(t, s.role.CheckRights(t.Context()), " spine."+table+";")
			s.owner.run("grant " + right + " on spine." + table + " to worker")
		}
	}
	s.owner.run("revoke execute on function spine.claim from worker")
	require.ErrorContains(t, s.role.CheckRights(t.Context()), ": EXECUTE on the function spine.claim();")
}

// Grant rejects roles that have too much, and says what to do.
func TestGrantRejectsRoles(t *testing.T) {
	t.Parallel()
	s := newStrange(t, `"Wörker's ""own"" role"`)
	s.admin.run("create role member")
	s.admin.run("grant spine to member")
	for role, want := range map[string]string{
		"nobody":   `there is no role "nobody": make it with create role "nobody" login password '…'`,
		"public":   `there is no role "public"`,
		"postgres": `the role "postgres" is a superuser`,
		"spine":    `the role "spine" owns the schema`,
		"member":   `is a member of its owner spine`,
	} {
		require.ErrorContains(t, store.Grant(t.Context(), s.owner.url, []string{role}, nil), want)
	}
	const strange = `Wörker's "own" role`
	require.ErrorContains(t, s.role.CheckRights(t.Context()), `run spine migrate --grant-to 'Wörker'\''s "own" role'`)
	require.Error(t, store.Grant(t.Context(), s.owner.url, []string{strange, "nobody"}, nil))
	require.Error(t, s.role.CheckRights(t.Context()), "all or nothing")
	s.owner.run("revoke connect on database " + pgx.Identifier{s.owner.value("select current_database()")}.Sanitize() +
		" from public")
	require.NoError(t, store.Grant(t.Context(), s.owner.url, []string{strange}, nil))
	s.role.Pool().Reset()
	require.NoError(t, s.role.CheckRights(t.Context()))
	require.ErrorContains(t, store.Grant(t.Context(), s.role.url, []string{"member"}, nil),
		"the owner")
}

// missingMore is how many rights an error does not list.
func missingMore(t *testing.T, err error) string {
	t.Helper()
	words := strings.Fields(err.Error())
	at := slices.Index(words, "more;")
	require.Positive(t, at, err)
	return words[at-1]
}

// G5: the functions that run with their owner's rights do nothing for a role that may not do it otherwise.
func TestDefinersAskForTheCallersRights(t *testing.T) {
	t.Parallel()
	s := newStrange(t, "reader")
	s.admin.run("create role parent")
	s.admin.run("grant parent to reader")
	s.owner.run("grant usage on schema spine to reader, parent")
	s.owner.run("grant select on all tables in schema spine to reader")
	s.owner.run("grant execute on all functions in schema spine to reader, parent")
	s.owner.run("create table spine.audit_trail_20200101 partition of spine.audit_trail " +
		"for values from ('2020-01-01') to ('2020-01-02')")
	before := s.owner.rows(partitions)
	const dropDay, makeDays = "select spine.drop_audit_partition(now())", "select spine.ensure_audit_partitions(20)"
	psql := s.role.psql()
	for statement, right := range map[string]string{dropDay: "DELETE", makeDays: "INSERT"} {
		err := statementError(t, psql, statement)
		require.Equal(t, "42501", err.Code)
		require.Equal(t, `the role "reader" lacks the right `+right+" on the table spine.audit_trail", err.Message)
	}
	// What the caller puts in front does not run with the owner's rights.
	run(t, psql, `create function pg_temp.to_char(date, text) returns text language plpgsql as $$ begin
		raise exception 'a shadow ran as %', current_user; end $$`)
	run(t, psql, "create temp table audit_trail (like spine.audit_trail)")
	run(t, psql, "set search_path = pg_temp, pg_catalog")
	require.Equal(t, "42501", statementError(t, psql, dropDay).Code)

	// A role that was set counts as it does everywhere.
	s.owner.run("grant insert, delete on spine.audit_trail to parent")
	run(t, psql, "set role parent")
	require.Equal(t, "22023", statementError(t, psql, "select spine.ensure_audit_partitions(1000000)").Code)
	require.Equal(t, before, s.owner.rows(partitions))
	require.NotEqual(t, "0", value(t, psql, makeDays))
	require.Equal(t, "audit_trail_20200101", value(t, psql, dropDay))
	require.Empty(t, value(t, psql, "select spine.drop_audit_partition('infinity')"), "no day that is not over")
	require.Equal(t, "t", s.owner.value(`select bool_and(relowner = current_user::text::regrole)
		from pg_class where relnamespace = 'spine'::regnamespace`))
}

// A role that may use the schema keeps the right to call functions that it had as a member of PUBLIC, also a new one.
func TestRolesKeepTheirFunctions(t *testing.T) {
	t.Parallel()
	s := newStrange(t, "worker")
	s.owner.run("grant usage on schema spine to worker")
	s.owner.run("grant execute on function spine.id_of(text, text) to public") // as before this version
	s.owner.run("drop function spine.near_ids(text, text, integer)")           // as if the next version brought it
	s.owner.run("update spine.schema_functions set digest = 'of an older one'")
	_, err := store.Migrate(t.Context(), s.owner.url, nil)
	require.NoError(t, err)
	require.Equal(t, []string{"id_of", "near_ids"}, s.owner.rows(`select proname from pg_proc
		where pronamespace = 'spine'::regnamespace and has_function_privilege('worker', oid, 'execute') order by 1`))

	// With other default privileges PUBLIC never had a new one.
	s.owner.run("alter default privileges revoke execute on functions from public")
	s.owner.run("drop function spine.near_ids(text, text, integer)")
	s.owner.run("update spine.schema_functions set digest = 'of an older one'")
	_, err = store.Migrate(t.Context(), s.owner.url, nil)
	require.NoError(t, err)
	require.Equal(t, []string{"id_of", "near_ids"}, s.owner.rows(`select proname from pg_proc
		where pronamespace = 'spine'::regnamespace and has_function_privilege('worker', oid, 'execute') order by 1`))

	// Somebody else may migrate; what he makes belongs to the owner of the tables.
	s.owner.run("drop function spine.drop_audit_partition(timestamptz)")
	s.owner.run("update spine.schema_functions set digest = 'of an older one'")
	_, err = store.Migrate(t.Context(), s.admin.url, nil)
	require.NoError(t, err)
	require.Equal(t, "t", s.owner.value("select proowner = 'spine'::regrole from pg_proc "+
		"where oid = 'spine.drop_audit_partition(timestamptz)'::regprocedure"))
	require.Empty(t, s.owner.rows("select oid::regprocedure from pg_proc where pronamespace = 'spine'::regnamespace "+
		"and not has_function_privilege('spine', oid, 'execute')"))
}

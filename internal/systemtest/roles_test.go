package systemtest

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/store"
)

// recipe is a block of SQL in deploy/README.md, below the comment with its name.
func recipe(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(moduleRoot(t), "deploy", "README.md"))
	require.NoError(t, err)
	found := regexp.MustCompile("<!-- recipe: " + name + " -->\n\n```sql\n((?s:.*?))```").FindSubmatch(text)
	require.NotNil(t, found, name)
	return string(found[1])
}

// roleSetup is a database that was set up as "Database roles" in deploy/README.md says.
type roleSetup struct {
	server string // for a superuser
	owner  *pgxpool.Pool
	app    string // the database for the role that works
	reader string // for the role that reads
}

func setUpRoles(t *testing.T) roleSetup {
	t.Helper()
	server := postgrestest.Server(t)
	s := roleSetup{server: server.SuperuserURL()}
	admin := open(t, s.server, nil)
	for statement := range strings.SplitSeq(strings.TrimSpace(recipe(t, "roles")), ";") {
		execute(t, admin, statement) // one at a time: no database is created in a transaction
	}
	owner := s.as(t, "spine_owner")
	code, stdout, stderr := spine(t, []string{"DATABASE_URL=" + owner}, "migrate", "--grant-to", "spine_app")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, `The role "spine_app" may run everything but spine migrate, with MIGRATE=false.`)
	s.owner = open(t, owner, nil)
	execute(t, s.owner, recipe(t, "grants"))
	execute(t, s.owner, recipe(t, "connect"))
	s.app, s.reader = s.as(t, "spine_app"), s.as(t, "spine_reader")
	return s
}

// as is the database for a role of the recipe.
func (s roleSetup) as(t *testing.T, role string) string {
	t.Helper()
	u, err := url.Parse(s.server)
	require.NoError(t, err)
	u.User, u.Path = url.UserPassword(role, "change-me"), "/spine_inbox"
	return u.String()
}

const days = `
	select string_agg(c.relname, ' ' order by c.relname)
	from pg_inherits i join pg_class c on c.oid = i.inhrelid
	where i.inhparent = 'spine.audit_trail'::regclass and c.relname <> 'audit_trail_default'`

// G5: the roles of the documents do all that they are for. The role that works owns nothing, and yet it makes and drops
// partitions.
func TestRolesOfTheDocuments(t *testing.T) {
	t.Parallel()
	s := setUpRoles(t)
	// As after days without upkeep: a day's partition is missing, and another one is old.
	all := strings.Fields(value[string](t, s.owner, days))
	execute(t, s.owner, "drop table spine."+all[0])
	execute(t, s.owner, "drop table spine."+all[len(all)-1])
	execute(t, s.owner, `create table spine.audit_trail_20200101 partition of spine.audit_trail
		for values from ('2020-01-01') to ('2020-01-02')`)
	execute(t, s.owner, "insert into spine.audit_trail (timestamp, action) values ('2019-01-01', 'event_queued')")
	// E15: it rejects deletes from tables without a key or a replica identity.
	inbox, err := url.Parse(s.server)
	require.NoError(t, err)
	inbox.Path = "/spine_inbox"
	superuser := open(t, inbox.String(), nil)
	execute(t, superuser, "create publication everything for all tables")
	mock := startMock(t, 0)
	p := startProcess(t, []string{
		"DATABASE_URL=" + s.app, "MIGRATE=false", "RETENTION=1d", "LISTEN=127.0.0.1:0", "MOCK_API_URL=" + mock,
		"SECRET_DIR=" + secretFolder(),
	}, "serve")
	api := &target{url: p.ready(t), db: s.owner, http: newClient(t)}

	// It makes what is missing. The first round of retention passes over the partitions while they are made.
	app := open(t, s.app, nil)
	require.Eventually(t, func() bool {
		// It may have to wait too long for a lock.
		_, _ = app.Exec(t.Context(), "select spine.drop_audit_partition(now() - interval '1 day')")
		return value[string](t, s.owner, days) == strings.Join(all, " ")
	}, patience, 50*time.Millisecond)
	await(t, s.owner, int64(2), "select count(*) from spine.audit_log where action = 'audit_expired'")
	api.accept(t, "one", `{"user_id":1}`)
	await(t, s.owner, int64(1), "select count(*) from spine.processing_state where status = 'completed'")
	await(t, s.owner, true, "select sampled_at is not null from spine.depth_state")

	c := commandLine{t: t, env: []string{"DATABASE_URL=" + s.app, "SECRET_DIR=" + secretFolder()}}
	for _, path := range []string{"/dashboard", "/api/audit", "/api/events/one"} {
		require.Equal(t, http.StatusOK, api.request(t, http.MethodGet, path, "").code, path)
	}
	c.ok("verify")
	require.Contains(t, c.ok("trace", "one"), "delivered")
	c.ok("replay", "one")
	await(t, s.owner, int64(2), "select count(*) from spine.audit_log where action = 'processing_succeeded'")
	c.ok("pause", "--reason", "a test")
	require.Contains(t, c.ok("status"), "paused")
	c.ok("resume")
	secret := filepath.Join(secretFolder(), "roles")
	require.NoError(t, os.WriteFile(secret, []byte("0123456789abcdef"), 0o600))
	require.Contains(t, c.ok("source", "add", "roles", "--preset", "github", "--secret", "file:roles"),
		"What fails is sent again: never by itself")
	c.ok("source", "disable", "roles")
	c.ok("source", "enable", "roles")
	require.Eventually(t, func() bool { // {} has no signature; until the process knows of the change, it answers 503
		return api.request(t, http.MethodPost, "/webhook/roles", `{}`).code == http.StatusUnauthorized
	}, patience, 50*time.Millisecond)
	await(t, s.owner, true, "select exists (select from spine.rejected_requests where status = 401)")
	c.ok("rejected", "list")
	c.ok("source", "remove", "roles")
	require.NotContains(t, p.output(), "42501", "nothing was denied")
	require.NotContains(t, p.output(), `"level":"error"`)

	// E23: no standby confirms a commit. Readiness says so, and the reason stands once in the log.
	reader := commandLine{t: t, env: []string{"DATABASE_URL=" + s.reader}}
	require.NotContains(t, reader.ok("status"), "trouble")
	execute(t, superuser, "alter system set synchronous_standby_names = 'nobody'")
	execute(t, superuser, "select pg_reload_conf()")
	failed := func() bool {
		r := api.request(t, http.MethodGet, "/readyz", "")
		return r.code == http.StatusServiceUnavailable && strings.Contains(string(r.body), `"database":"failed"`)
	}
	require.Eventually(t, failed, patience, 50*time.Millisecond)
	const waits = "commits wait for a synchronous standby that does not confirm (synchronous_standby_names = 'nobody')"
	require.Contains(t, reader.ok("status"), waits)
	require.Eventually(t, func() bool {
		return strings.Contains(string(api.request(t, http.MethodGet, "/api/overview", "").body), waits)
	}, patience, 50*time.Millisecond)
	// A probe on a busy machine may end before it knows the reason. It is told by the first one that does.
	require.Eventually(t, func() bool { return failed() && strings.Contains(p.output(), waits) },
		patience, 50*time.Millisecond)
	execute(t, superuser, "alter system reset synchronous_standby_names")
	execute(t, superuser, "select pg_reload_conf()")
	p.ready(t)
	require.Equal(t, 1, strings.Count(p.output(), waits), p.output())
	require.Contains(t, p.output(), "a readiness check passes again")

	// Whoever may connect hears the channels, so nobody else may.
	execute(t, superuser, "create role stranger login password 'change-me'")
	_, err = pgx.Connect(t.Context(), s.as(t, "stranger"))
	require.ErrorContains(t, err, "permission denied for database")

	require.Contains(t, reader.ok("trace", "one"), "delivered")
	for _, words := range []string{"status", "verify", "source list", "rejected list", "conflicts list"} {
		reader.ok(strings.Fields(words)...)
	}
	for _, statement := range []string{
		"select spine.drop_audit_partition('infinity')", "select spine.ensure_audit_partitions(100)",
		"select spine.pause()", "delete from spine.events",
		"select spine.reject('{a}', '{b}', '{400}', '{1}', '{now}', '{0}', false)",
	} {
		_, err := open(t, s.reader, nil).Exec(t.Context(), statement)
		require.ErrorContains(t, err, "42501", statement)
	}
}

// G5: a role with fewer rights learns at the start which one is missing, and /readyz says that there is one.
func TestAProcessSaysWhichRightIsMissing(t *testing.T) {
	t.Parallel()
	s := setUpRoles(t)
	for name, missing := range map[string]struct{ revoke, grant, lacks string }{
		"a lock": {
			"revoke update on spine.locks from spine_app", "grant update on spine.locks to spine_app",
			"UPDATE on the table spine.locks",
		},
		"a function": {
			"revoke execute on function spine.drop_audit_partition from spine_app",
			"grant execute on function spine.drop_audit_partition to spine_app",
			"EXECUTE on the function spine.drop_audit_partition()",
		},
		"the schema": {
			"revoke usage on schema spine from spine_app", "grant usage on schema spine to spine_app",
			"USAGE on the schema spine",
		},
	} {
		execute(t, s.owner, missing.revoke)
		p := startProcess(t, []string{
			"DATABASE_URL=" + s.app, "MIGRATE=false", "LISTEN=127.0.0.1:0", "DESTINATION_URL=none",
		}, "serve")
		want := `the role \"spine_app\" lacks these rights: ` + missing.lacks + `; ` +
			`as the owner of the schema run spine migrate --grant-to spine_app`
		p.says(t, want, func(out string) string {
			for line := range strings.Lines(out) {
				if strings.Contains(line, want) && strings.Contains(line, `"level":"error"`) {
					return line
				}
			}
			return ""
		})
		api := &target{url: p.url(t), http: newClient(t)}
		r := api.request(t, http.MethodGet, "/readyz", "")
		require.Equal(t, http.StatusServiceUnavailable, r.code, name)
		require.Contains(t, string(r.body), `"rights":"failed"`, name)
		if name != "the schema" { // E18, E23: status says it too, to whoever reads
			reader := commandLine{t: t, env: []string{"DATABASE_URL=" + s.reader}}
			require.Contains(
				t,
				reader.ok("status"),
				missing.lacks+"; as the owner of the schema run spine migrate",
				name,
			)
		}
		execute(t, s.owner, missing.grant)
		p.ready(t)
	}
	_, err := store.Migrate(t.Context(), s.reader, nil)
	require.ErrorContains(t, err, "let the owner of the schema run spine migrate, and set MIGRATE=false here")
}

// G7: an old process that starts anew during an upgrade works, and leaves the schema of the next release as it is. One
// that is two releases old learns both versions.
func TestAnOldProcessStartsOnANewSchema(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	db := open(t, database, nil)
	execute(t, db, "insert into spine.schema_version (version_id, is_applied) values (9000, true)")
	execute(t, db, "update spine.schema_functions set digest = 'of the next release'")
	for _, migrate := range []string{"true", "false"} {
		p := startProcess(t, []string{
			"DATABASE_URL=" + database, "MIGRATE=" + migrate, "LISTEN=127.0.0.1:0", "MOCK_API_URL=" + startMock(t, 0),
		}, "serve")
		api := &target{url: p.ready(t), db: db, http: newClient(t)}
		api.accept(t, "migrate-"+migrate, "{}")
		await(
			t,
			db,
			"completed",
			"select status::text from spine.processing_state where event_id = $1",
			"migrate-"+migrate,
		)
		require.Contains(t, p.output(), "a newer version of Spine, with which this one still works")
	}
	env := []string{"DATABASE_URL=" + database}
	code, stdout, stderr := spine(t, env, "migrate")
	require.Zero(t, code, stderr)
	require.Equal(
		t,
		"The schema is at version 9000, newer than this binary, which still works with it: nothing to do, "+
			"0 audit partitions created.\n",
		stdout,
	)
	require.Equal(t, "of the next release", value[string](t, db, "select digest from spine.schema_functions"))

	execute(t, db, "update spine.schema_functions set compatible_from = 8000")
	for _, migrate := range []string{"true", "false"} {
		p := startProcess(t, append(env, "MIGRATE="+migrate, "LISTEN=127.0.0.1:0", "DESTINATION_URL=none"), "serve")
		require.Equal(t, 1, p.awaitExit(t))
		require.Regexp(
			t,
			`its schema version is 9000 and needs a binary of version 8000 or later, this one is of version \d+`,
			p.output(),
		)
	}
}

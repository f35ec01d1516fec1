package systemtest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/postgres"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/service"
)

// hostileSettings are settings that a role, a database or a URL may have. None may make a difference to anybody who
// sends to Spine, reads from it, or calls its functions. Settings of one line go together. A server that does not know
// a setting goes without it.
var hostileSettings = []string{
	"array_nulls=off",
	"backslash_quote=on; escape_string_warning=off; standard_conforming_strings=off",
	"bytea_output=escape",
	"client_encoding=latin1",
	"client_encoding=sql_ascii",
	"client_encoding=win1252",
	"client_min_messages=debug5",
	"client_min_messages=error",
	"datestyle=German",
	"datestyle=SQL, YMD",
	"default_transaction_deferrable=on",
	"default_transaction_isolation=repeatable read",
	"default_transaction_isolation=serializable",
	"default_transaction_read_only=on",
	"default_transaction_read_only=on; default_transaction_isolation=serializable; " +
		"default_transaction_deferrable=on",
	"enable_hashagg=off; enable_hashjoin=off; enable_mergejoin=off; enable_sort=off",
	"enable_indexonlyscan=off; enable_indexscan=off; enable_bitmapscan=off",
	"enable_nestloop=off; enable_material=off; enable_memoize=off",
	"enable_seqscan=off; enable_partition_pruning=off",
	"extra_float_digits=-15",
	"from_collapse_limit=1; join_collapse_limit=1; geqo_threshold=2",
	"idle_in_transaction_session_timeout=500ms",
	"idle_session_timeout=300ms",
	"intervalstyle=iso_8601",
	"jit=on; jit_above_cost=0; jit_inline_above_cost=0; jit_optimize_above_cost=0",
	"lc_messages=C.utf8; lc_monetary=C.utf8; lc_numeric=C.utf8; lc_time=C.utf8",
	"lock_timeout=500ms",
	"parallel_setup_cost=0; parallel_tuple_cost=0; min_parallel_table_scan_size=0; min_parallel_index_scan_size=0",
	"plan_cache_mode=force_custom_plan",
	"plan_cache_mode=force_generic_plan",
	"quote_all_identifiers=on",
	"row_security=off",
	"standard_conforming_strings=off",
	"statement_timeout=1s; transaction_timeout=2s",
	"statement_timeout=300ms",
	"synchronous_commit=off",
	"timezone=Pacific/Kiritimati",
	"transform_null_equals=on",
	"work_mem=64kB; hash_mem_multiplier=1; temp_buffers=800kB",
	"xmloption=document",
}

// spinesOwn are parameters of a URL that mean something to Spine, and nothing to psql or the server.
var spinesOwn = []string{
	"default_query_exec_mode",
	"description_cache_capacity",
	"gssencmode",
	"keepalives_idle",
	"pgbouncer",
	"pool_max_conns",
	"statement_cache_capacity",
}

// circumstance is how somebody may have set up a database, and a way to it.
type circumstance struct {
	role, database []string          // settings, as name=value
	address        map[string]string // parameters of the URL
	pooler         string            // mode of a PgBouncer in between; empty is none
	direct         bool              // DIRECT_DATABASE_URL names the database itself
	shadowed       bool              // functions, operators, types and views of others are found before Postgres's own
	statements     []string          // what a superuser runs in the database once Spine is ready
	rejected       string            // Spine does not start, and says so
	without        []string          // parts of the contract that are left out
}

// singleCircumstances have one thing each that is unusual.
func singleCircumstances() map[string]circumstance {
	all := map[string]circumstance{
		"shadows by role":     {shadowed: true, role: []string{"search_path=evil, pg_catalog"}},
		"shadows by database": {shadowed: true, database: []string{"search_path=evil, pg_catalog"}},
		"shadows by URL":      {shadowed: true, address: map[string]string{"search_path": "evil, pg_catalog"}},
		"a warning of a trigger at the commit": {statements: warnings(
			"create constraint trigger warns after insert on spine.events deferrable initially deferred")},
		"a warning of a trigger on the queue": {statements: warnings(
			"create trigger warns after insert or update on spine.processing_state")},
		"a publication of all tables": {statements: []string{"create publication everything for all tables"}},
		"replica identity full": {statements: []string{
			replicaIdentity("full"), "create publication everything for all tables",
		}},
		"replica identity nothing": {statements: []string{replicaIdentity("nothing")}},
	}
	// A role, a database and a URL can each have each setting. They take turns.
	for i, setting := range hostileSettings {
		level := []string{"role", "database", "URL"}[i%3]
		c := circumstance{}
		c.set(level, setting)
		all[setting+" by "+level] = c
	}
	// PostgreSQL 16 renamed the setting. A new process for each query takes ten times the processor. So no combination
	// has it, and the loads of the contract are left out.
	parallel := circumstance{without: []string{
		"bad neighbours",
		"idempotency",
		"lists",
		"no double processing",
		"payload conflict detection",
		"retry with eventual success",
	}}
	parallel.set("role", "force_parallel_mode=on; debug_parallel_query=on; max_parallel_workers_per_gather=1")
	all["a parallel worker for each query"] = parallel
	for name, value := range map[string]string{
		"default_query_exec_mode":    "cache_describe",
		"pool_max_conns":             "1",
		"pgbouncer":                  "true",
		"keepalives_idle":            "30",
		"gssencmode":                 "disable",
		"options":                    "-c search_path=public -c datestyle=German -c bytea_output=escape",
		"search_path":                "public",
		"statement_cache_capacity":   "0",
		"description_cache_capacity": "0",
		"application_name":           "it's \\ mine",
	} {
		all["URL with "+name] = circumstance{address: map[string]string{name: value}}
	}
	all["URL with describe_exec"] = circumstance{address: map[string]string{"default_query_exec_mode": "describe_exec"}}
	for _, mode := range []string{"exec", "simple_protocol"} {
		all["URL with "+mode] = circumstance{
			address:  map[string]string{"default_query_exec_mode": mode},
			rejected: "default_query_exec_mode may be cache_statement, cache_describe, describe_exec, not " + mode,
		}
	}
	for _, mode := range []string{"session", "transaction"} {
		all["pooler in mode "+mode] = circumstance{pooler: mode}
		all["pooler in mode "+mode+", and the database itself"] = circumstance{pooler: mode, direct: true}
	}
	all["pooler in mode statement"] = circumstance{
		pooler:   "statement",
		rejected: "the pooler in front of the database allows no transactions: set pool_mode = transaction, or session",
	}
	return all
}

// combinations are as many things at once as a random number says, the same for the same seed.
func combinations(seed uint64) map[string]circumstance {
	const several = 10
	all := map[string]circumstance{}
	for n := range several {
		random := rand.New(rand.NewPCG(seed, uint64(n))) //nolint:gosec // the same again for the same seed
		c := circumstance{}
		levels := []string{"role", "database", "URL"}
		if random.IntN(2) == 0 {
			c.pooler = []string{"session", "transaction"}[random.IntN(2)]
			c.direct = random.IntN(2) == 0
			levels = levels[:2] // a pooler rejects what it does not know
		}
		chosen := ""
		for _, i := range random.Perm(len(hostileSettings))[:4+random.IntN(8)] {
			name, _, _ := strings.Cut(hostileSettings[i], "=")
			// Each setting is there once. What makes statements slow does not go with a limit of their time.
			if strings.Contains(hostileSettings[i], "_timeout") || strings.Contains(chosen, name+"=") {
				continue
			}
			chosen += hostileSettings[i]
			level := levels[random.IntN(len(levels))]
			if strings.Contains(hostileSettings[i], "lc_messages=") {
				level = "role" // the URL of a role that is no superuser cannot set it
			}
			c.set(level, hostileSettings[i])
		}
		if c.shadowed = random.IntN(2) == 0; c.shadowed {
			c.set(levels[random.IntN(len(levels))], "search_path=evil, pg_catalog")
		}
		if random.IntN(2) == 0 {
			c.statements = append(c.statements, warnings(
				"create constraint trigger warns after insert on spine.events deferrable initially deferred")...)
		}
		all[fmt.Sprintf("combination %d of seed %d", n, seed)] = c
	}
	return all
}

// set adds settings to the role, the database or the URL.
func (c *circumstance) set(level, settings string) {
	for setting := range strings.SplitSeq(settings, "; ") {
		name, value, _ := strings.Cut(setting, "=")
		switch level {
		case "role":
			c.role = append(c.role, setting)
		case "database":
			c.database = append(c.database, setting)
		default:
			if c.address == nil {
				c.address = map[string]string{}
			}
			c.address[name] = value
		}
	}
}

// warnings are statements that make a trigger which warns and notes.
func warnings(trigger string) []string {
	return []string{
		`create function public.warn() returns trigger language plpgsql as $$ begin
			raise warning 'somebody warns';
			raise notice 'somebody notes';
			return null;
		end $$`,
		trigger + " for each row execute function public.warn()",
	}
}

// replicaIdentity gives all of Spine's tables a replica identity.
func replicaIdentity(identity string) string {
	return `do $$ declare _table regclass; begin
		for _table in select oid from pg_class where relnamespace = 'spine'::regnamespace and relkind in ('r', 'p') loop
			execute format('alter table %s replica identity ` + identity + `', _table);
		end loop;
	end $$`
}

// shadowing makes a schema with everything that Postgres has, under the same names. A statement that finds it fails.
const shadowing = `
	set search_path = pg_catalog;
	create schema evil;
	grant usage on schema evil to public;
	do $$ declare
		_row record;
		_made integer := 0;
	begin
		for _row in
			select
				p.proname,
				p.provariadic,
				p.proretset,
				format_type(p.prorettype, null) as result,
				(
					select coalesce(string_agg(
						case when p.provariadic <> 0 and a.n = p.pronargs then 'variadic ' else '' end
							|| format_type(a.type, null), ', ' order by a.n), '')
					from unnest(p.proargtypes::oid[]) with ordinality as a (type, n)
				) as arguments
			from pg_proc p
			where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind in ('f', 'a', 'w')
				and 'internal'::regtype <> all (p.proargtypes::oid[] || p.prorettype)
		loop
			begin
				execute format('create function evil.%I(%s) returns %s %s language plpgsql as %L',
					_row.proname, _row.arguments, case when _row.proretset then 'setof' end, _row.result,
					format('begin raise exception %L; end', 'a shadow ran: ' || _row.proname));
				_made := _made + 1;
			exception when others then
				begin -- plpgsql does not take every type; this function of Postgres's always fails
					execute format('create function evil.%I(%s) returns %s %s language internal as ''shell_in''',
						_row.proname, _row.arguments, case when _row.proretset then 'setof' end, _row.result);
					_made := _made + 1;
				exception when others then null;
				end;
			end;
		end loop;
		assert _made > 2000, _made;
		_made := 0;
		for _row in
			select
				o.oprname,
				p.proname,
				case when o.oprleft <> 0 then format('leftarg = %s,', format_type(o.oprleft, null)) end as leftarg,
				format_type(o.oprright, null) as rightarg
			from pg_operator o join pg_proc p on p.oid = o.oprcode
			where o.oprnamespace = 'pg_catalog'::regnamespace
		loop
			begin
				execute format('create operator evil.%s (function = evil.%I, %s rightarg = %s)',
					_row.oprname, _row.proname, _row.leftarg, _row.rightarg);
				_made := _made + 1;
			exception when others then null;
			end;
		end loop;
		assert _made > 600, _made;
		for _row in
			select c.relname
			from pg_class c
			where c.relnamespace = 'pg_catalog'::regnamespace and c.relkind in ('r', 'v')
		loop
			begin
				execute format('create view evil.%1$I as select * from pg_catalog.%1$I where 1 / 0 = 1', _row.relname);
				execute format('grant select on evil.%I to public', _row.relname);
			exception when others then null; -- of types that no view may have
			end;
		end loop;
		for _row in
			select t.typname
			from pg_type t
			where t.typnamespace = 'pg_catalog'::regnamespace and t.typtype = 'b' and t.typcategory <> 'A'
		loop
			execute format('create domain evil.%1$I as pg_catalog.%1$I check (false)', _row.typname);
		end loop;
	end $$;`

// matrix is a server with a database for each circumstance.
type matrix struct {
	server   *postgres.Server
	admin    *pgx.Conn
	settings map[string]string // that this server knows, with their usual values

	mu       sync.Mutex // guards admin and all below
	count    int
	shadowed bool // there is a database to copy that has shadows
}

// TestSettingsMatrix holds the contract under each hostile setting, and under random combinations of them. It leaves
// out bodies that never end: they take ten seconds and reach no database. Left out are also settings that a role cannot
// set for itself, such as session_replication_role.
func TestSettingsMatrix(t *testing.T) {
	share, shares := trialShare(t, "SPINE_MATRIX", "make matrix")
	seed := uint64(time.Now().UnixNano() % 1_000_000)
	if text := os.Getenv("SPINE_MATRIX_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, "SPINE_MATRIX_SEED")
	}
	t.Logf("seed %d", seed)
	all := singleCircumstances()
	maps.Copy(all, combinations(seed))

	m := &matrix{server: postgrestest.Server(t)}
	var err error
	m.admin, err = pgx.Connect(t.Context(), m.server.SuperuserURL())
	require.NoError(t, err)
	defer func() { _ = m.admin.Close(t.Context()) }()
	require.NoError(t, m.admin.QueryRow(t.Context(),
		"select json_object_agg(lower(name), current_setting(name)) from pg_settings").Scan(&m.settings))
	names := make(chan string)
	var ended sync.WaitGroup
	const together = 3 // a case waits a third of its time
	for range together {
		ended.Go(func() {
			for name := range names {
				t.Run(name, func(t *testing.T) { m.try(t, all[name]) })
			}
		})
	}
	for i, name := range slices.Sorted(maps.Keys(all)) {
		if i%shares == share-1 {
			names <- name
		}
	}
	close(names)
	ended.Wait()
}

// try starts Spine under a circumstance, and holds the contract there.
func (m *matrix) try(t *testing.T, c circumstance) {
	t.Logf("%+v", c)
	address, clean := m.prepare(t, c)
	environment := []string{
		"MIGRATE=true", fewConnections, "INITIAL_RETRY_DELAY=20ms", "MAX_RETRY_ATTEMPTS=8",
	}
	if c.direct {
		environment = append(environment, "DIRECT_DATABASE_URL="+address)
	}
	if c.pooler != "" {
		address = postgrestest.Pooler(t, address, c.pooler)
	}
	mock := startMock(t, 0.5)
	environment = append(environment, "MOCK_API_URL="+mock)
	if c.rejected != "" {
		require.ErrorContains(t, failedStart(t, append(environment, "DATABASE_URL="+address)...), c.rejected)
		return
	}
	t.Cleanup(func() { verified(t, clean) })
	s := newTarget(t, runService(t, both, address, environment...), clean)
	s.mock, s.patient = mock, true
	for _, statement := range c.statements {
		execute(t, s.db, statement)
	}
	t.Cleanup(func() {
		// A busy machine may be late now and then. A setting that spoils every second transaction is another matter.
		sent, unavailable := s.sent.Load(), s.unavailable.Load()
		t.Logf("%d of %d requests were answered 503 at first", unavailable, sent)
		assert.LessOrEqual(t, unavailable, 5+sent/20)
	})
	t.Run("by hand", func(t *testing.T) {
		t.Parallel()
		s.handsWork(t, address)
	})
	holdsContract(t, s, append(c.without, "endless bodies")...)
}

// prepare makes a database and the role that owns it. It returns the URL that Spine gets, and one of a superuser with
// the usual settings.
func (m *matrix) prepare(t *testing.T, c circumstance) (address, clean string) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	run := func(statement string) {
		t.Helper()
		_, err := m.admin.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
	m.count++
	name := fmt.Sprintf("matrix%d", m.count)
	template := "template1"
	if c.shadowed {
		template = "shadowed"
		if !m.shadowed {
			m.shadowed = true
			run("create database shadowed")
			conn, err := pgx.Connect(t.Context(), inDatabase(t, m.server.SuperuserURL(), "shadowed"))
			require.NoError(t, err)
			_, err = conn.Exec(t.Context(), shadowing)
			require.NoError(t, err)
			require.NoError(t, conn.Close(t.Context()))
		}
	}
	run("create role " + name + " login password 'secret'")
	run("create database " + name + " owner " + name + " template " + template + " strategy file_copy")

	clean = as(t, inDatabase(t, m.server.SuperuserURL(), name), "search_path", "spine")
	for _, level := range []struct {
		owner    string
		settings []string
	}{{"role " + name, c.role}, {"database " + name, c.database}} {
		for _, setting := range level.settings {
			setting, value, _ := strings.Cut(setting, "=")
			if setting == "search_path" {
				run("alter " + level.owner + " set search_path = " + value)
			} else if usual, ok := m.settings[setting]; ok {
				run("alter " + level.owner + " set " + setting + " = '" + value + "'")
				clean = as(t, clean, setting, usual)
			} else {
				t.Logf("left out, since this server does not know it: %s", setting)
			}
		}
	}
	u, err := url.Parse(inDatabase(t, m.server.SuperuserURL(), name))
	require.NoError(t, err)
	u.User = url.UserPassword(name, "secret")
	address = u.String()
	for _, parameter := range slices.Sorted(maps.Keys(c.address)) {
		hostile := func(settings string) bool { return strings.Contains(settings, parameter+"=") }
		if _, known := m.settings[parameter]; known || !slices.ContainsFunc(hostileSettings, hostile) {
			address = as(t, address, parameter, c.address[parameter])
		} else {
			t.Logf("left out, since this server does not know it: %s", parameter)
		}
	}
	return strings.ReplaceAll(address, "+", "%20"), strings.ReplaceAll(clean, "+", "%20")
}

// inDatabase is a URL of another database on the same server.
func inDatabase(t *testing.T, address, database string) string {
	t.Helper()
	u, err := url.Parse(address)
	require.NoError(t, err)
	u.Path = "/" + database
	return u.String()
}

// failedStart is the error of a Spine that does not start.
func failedStart(t *testing.T, environment ...string) error {
	t.Helper()
	set, err := readSettings(append(environment, "LOG_LEVEL=warn")...)
	if err != nil {
		return err
	}
	p, err := service.New(t.Context(), &set, both, "test", set.Log.Logger(t.Output()))
	if err != nil {
		return err
	}
	return p.Run(t.Context())
}

// handsWork calls Spine's functions as psql does, with the same settings as Spine. How long a call may take, and
// whether it is compiled, is for whoever calls to choose.
func (s *target) handsWork(t *testing.T, address string) {
	t.Helper()
	u, err := url.Parse(address)
	require.NoError(t, err)
	parameters := u.Query()
	maps.DeleteFunc(parameters, func(name string, _ []string) bool { return slices.Contains(spinesOwn, name) })
	u.RawQuery = strings.ReplaceAll(parameters.Encode(), "+", "%20")
	id := newID("hand")
	run := func(statement string) (values []string) {
		t.Helper()
		conn, err := pgconn.Connect(t.Context(), u.String())
		require.NoError(t, err)
		defer func() { assert.NoError(t, conn.Close(t.Context())) }()
		results, err := conn.Exec(t.Context(), "begin isolation level read committed read write; "+
			"set local statement_timeout = 0; set local jit = off; "+fmt.Sprintf(statement, id)+"; commit").ReadAll()
		require.NoError(t, err, statement)
		for _, row := range results[3].Rows {
			values = append(values, string(row[0]))
		}
		return values
	}
	require.Equal(t, []string{"accepted"}, run(`select spine.ingest('%s', 'by.hand', '{"a": [1.10, null]}')`))
	require.Equal(t, []string{"deduplicated"}, run(`select spine.ingest('%s', 'by.hand', '{"a":[1.10,null]}')`))
	require.Equal(t, []string{"conflict"}, run(`select spine.ingest('%s', 'by.hand', '{"a": [1.1, null]}')`))
	s.awaitDone(t, id)
	require.JSONEq(t, `{"a": [1.10, null]}`,
		value[string](t, s.db, "select payload::text from spine.events where event_id = $1", id))
	require.Equal(t, []string{id}, run("select event_id from spine.event('%s')"))
	require.Contains(t, run("select action from spine.trace('%s')"), "conflict_detected")
	run("select spine.replay('%s')")
	s.awaitDone(t, id)
	require.Contains(t, s.actions(t, id), "event_replayed")
	run("delete from spine.processing_state p where p.event operator(pg_catalog.=) spine.id_of('%s')")
	run("insert into spine.processing_state (event_id, status, attempt_count) values ('%s', 'pending', 0)")
	s.awaitDone(t, id)
}

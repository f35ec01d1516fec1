package store_test

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	schema "github.com/webhookspine/spine/sql"
)

// \d+ and \df+ read like documentation. Daily partitions share the comments of
// the table they are a part of.
func TestEverythingInTheSchemaIsDescribed(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	for kind, undescribed := range map[string]string{
		"schema": `
			select nspname from pg_namespace where nspname = 'spine' and obj_description(oid, 'pg_namespace') is null`,
		"tables and views": `select relname from pg_class
			where relnamespace = 'spine'::regnamespace
				and relkind in ('r', 'p', 'v')
				and obj_description(oid, 'pg_class') is null`,
		"indexes": `select relname from pg_class
			where relnamespace = 'spine'::regnamespace
				and relkind in ('i', 'I')
				and not relispartition
				and obj_description(oid, 'pg_class') is null`,
		"columns": `select c.relname || '.' || a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid
			where c.relnamespace = 'spine'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition
				and a.attnum > 0 and not a.attisdropped and col_description(c.oid, a.attnum) is null`,
		"functions": `
			select oid::regprocedure
			from pg_proc
			where pronamespace = 'spine'::regnamespace and obj_description(oid, 'pg_proc') is null`,
		"triggers": `select t.tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid
			where c.relnamespace = 'spine'::regnamespace
				and not t.tgisinternal
				and obj_description(t.oid, 'pg_trigger') is null`,
		"types": `
			select typname
			from pg_type
			where typnamespace = 'spine'::regnamespace and typtype = 'e' and obj_description(oid, 'pg_type') is null`,
	} {
		require.Empty(t, d.rows(undescribed), kind)
	}
	require.Greater(t, len(d.rows("select from pg_proc where pronamespace = 'spine'::regnamespace")), 20)
}

// Functions do not depend on the caller's search_path, and temporary tables
// cannot stand in for Spine's. Migrate knows Spine's own functions by it.
func TestEveryFunctionNamesItsSearchPath(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	require.Empty(t, d.rows(`select oid::regprocedure from pg_proc where pronamespace = 'spine'::regnamespace
		and not coalesce(proconfig && array['search_path=spine, pg_temp', 'search_path=pg_catalog, pg_temp'], false)`))
}

var madeFunction = regexp.MustCompile(`(?m)^create or replace function spine\.(\w+)\(`)

// functionFiles says which file of sql/functions makes each function.
func functionFiles(t *testing.T) map[string]string {
	t.Helper()
	names, err := fs.Glob(schema.Functions, "functions/*.sql")
	require.NoError(t, err)
	files := map[string]string{}
	for _, name := range names {
		text, err := fs.ReadFile(schema.Functions, name)
		require.NoError(t, err)
		for _, made := range madeFunction.FindAllStringSubmatch(string(text), -1) {
			files[made[1]] = strings.TrimPrefix(name, "functions/")
		}
	}
	return files
}

// Each function is headed by a comment that begins with its name, and says which
// index it relies on, or that it reads no table, or what a crash leaves behind.
func TestEveryFunctionIsHeadedByAComment(t *testing.T) {
	t.Parallel()
	names, err := fs.Glob(schema.Functions, "functions/*.sql")
	require.NoError(t, err)
	parameter := regexp.MustCompile(`(?m)^\s*(?:out )?(_\w+) `)
	for _, name := range names {
		text, err := fs.ReadFile(schema.Functions, name)
		require.NoError(t, err)
		for block := range strings.SplitSeq(string(text), "\n\n") {
			made := madeFunction.FindStringSubmatchIndex(block)
			if made == nil {
				continue
			}
			function, head := block[made[2]:made[3]], block[:made[0]]
			require.True(
				t,
				strings.HasPrefix(head, "-- "+function+": "),
				"%s: %s is headed by %q",
				name,
				function,
				head,
			)
			plain := strings.Join(strings.Fields(strings.ReplaceAll(head, "\n-- ", " ")), " ")
			require.Regexp(
				t,
				`[Rr]elies on|Reads (no table|only)|[Cc]rash|without the row`,
				plain,
				"%s: %s",
				name,
				function,
			)
			signature, _, _ := strings.Cut(block[made[1]:], ")\nreturns")
			signature, _, _ = strings.Cut(signature, ") returns")
			signature, _, _ = strings.Cut(signature, ")\nlanguage")
			for _, p := range parameter.FindAllStringSubmatch("\n"+strings.ReplaceAll(signature, ", ", "\n"), -1) {
				require.Contains(t, head, p[1], "%s: %s is not said to have %s", name, function, p[1])
			}
		}
	}
}

// transition is a line of the comment on processing_state.status.
type transition struct {
	from, to []string
	function string
	actions  []string
}

var transitionLine = regexp.MustCompile(`(?m)^([\w|]+) -> ([\w|]+): (\w+)\(\) writes ([\w, ]+)$`)

func (d *database) transitions() []transition {
	d.t.Helper()
	comment := d.value(`select col_description(attrelid, attnum) from pg_attribute
		where attrelid = 'spine.processing_state'::regclass and attname = 'status'`)
	var all []transition
	for _, m := range transitionLine.FindAllStringSubmatch(comment, -1) {
		all = append(
			all,
			transition{strings.Split(m[1], "|"), strings.Split(m[2], "|"), m[3], strings.Split(m[4], ", ")},
		)
	}
	return all
}

// The comment on the status has every transition that the functions make, and
// the actions that go with it: what they do is compared with what it says.
func TestEveryTransitionIsDescribed(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	described := map[string]bool{}
	for _, tr := range d.transitions() {
		require.Equal(
			t,
			"1",
			d.value(
				"select count(*) from pg_proc where pronamespace = 'spine'::regnamespace and proname = $1",
				tr.function,
			),
		)
		for _, from := range tr.from {
			for _, to := range tr.to {
				described[from+" -> "+to+": "+strings.Join(tr.actions, ", ")] = true
			}
		}
	}

	d.run("create table public.seen (xid xid8, event bigint, was text, becomes text)")
	d.run(`create function public.see() returns trigger language plpgsql as $$ begin
		insert into public.seen
		values (pg_current_xact_id(), new.event, case when tg_op = 'INSERT' then 'new' else old.status end, new.status);
		return null; end $$`)
	d.run(`
		create trigger see after insert or update on spine.processing_state for each row execute function public.see()`)
	claim := "select spine.claim('default', 1, '1 h', 'me')"
	settle := func(outcome string) string {
		return `select spine.settle(array[p.event], array['default'], array[p.lease_token], array['` + outcome + `'],
			array['0 s'::interval], array[null::text], array['{}']) from spine.processing_state p`
	}
	const (
		replay   = "select spine.replay('x')"
		giveBack = `
			select spine.give_back(array[p.event], array['default'], array[p.lease_token])
			from spine.processing_state p`
		lose  = "select spine.claim('default', 1, '0 s', 'me')"
		retry = "select spine.claim('default', 1, '1 h', 'me', array['0 s', '0 s', '0 s', '0 s', '0 s']::interval[])"
		die   = "select spine.claim('default', 1, '1 h', 'me', array[]::interval[])"
	)
	for _, statement := range []string{
		"select spine.ingest('x', 'a', '{}')",
		claim, giveBack,
		claim, settle("failed"),
		claim, settle("deferred"),
		claim, giveBack,
		lose, retry,
		lose, die,
		replay, claim, settle("dead"),
		replay, claim, settle("completed"),
		replay, claim, settle("failed"),
		replay,
	} {
		d.run(statement)
	}
	require.ElementsMatch(t, slices.Collect(maps.Keys(described)), d.rows(`
		select distinct s.was || ' -> ' || s.becomes || ': ' || (
			select string_agg(a.action, ', ' order by a.id) from spine.audit_log a
			where a.xid = s.xid and a.event = s.event and a.action <> 'event_received')
		from public.seen s where s.was <> s.becomes`))
}

// readme is where the tables, the state machine and the functions stand for a
// reader. They are made of the comments in the database.
const readme = "../../sql/README.md"

// TestReadmeOfSQL holds the parts of sql/README.md that are made to be what the
// database says. With UPDATE_SCHEMA set it writes them.
func TestReadmeOfSQL(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	text, err := os.ReadFile(readme)
	require.NoError(t, err)
	made := string(text)
	for name, part := range map[string]string{
		"tables":      d.describeRelations("rp"),
		"views":       d.describeRelations("v"),
		"states":      d.describeStates(),
		"transitions": d.describeTransitions(),
		"actions":     describeActions(t),
		"functions":   d.describeFunctions("not like"),
		"internals":   d.describeFunctions("like"),
	} {
		begin, end := "<!-- made: "+name+" -->\n", "<!-- end: "+name+" -->\n"
		before, rest, found := strings.Cut(made, begin)
		require.True(t, found, begin)
		_, after, found := strings.Cut(rest, end)
		require.True(t, found, end)
		made = before + begin + "\n" + part + "\n" + end + after
	}
	if os.Getenv("UPDATE_SCHEMA") != "" {
		require.NoError(t, os.WriteFile(readme, []byte(made), 0o644)) //nolint:gosec // a source file
		return
	}
	require.Equal(t, made, string(text), "sql/README.md is stale: run make schema")
}

// firstSentence is what a cell of a table has room for.
func firstSentence(comment string) string {
	comment, _, _ = strings.Cut(comment, "\n")
	sentence, _, more := strings.Cut(comment, ". ")
	if more {
		sentence += "."
	}
	return sentence
}

// row is a row of a Markdown table.
func row(t *testing.T, cells ...string) string {
	t.Helper()
	for i := range cells {
		cells[i] = strings.ReplaceAll(cells[i], "|", `\|`)
		require.LessOrEqual(t, utf8.RuneCountInString(cells[i]), 80, cells[i])
	}
	return "| " + strings.Join(cells, " | ") + " |\n"
}

// columns returns the rows of a query, as text.
func (d *database) columns(sql string, args ...any) [][]string {
	d.t.Helper()
	result, err := d.Pool().Query(
		d.t.Context(),
		sql,
		append([]any{pgx.QueryResultFormats{pgx.TextFormatCode}}, args...)...)
	require.NoError(d.t, err)
	all, err := pgx.CollectRows(result, func(r pgx.CollectableRow) ([]string, error) {
		var columns []string
		for _, c := range r.RawValues() {
			columns = append(columns, string(c))
		}
		return columns, nil
	})
	require.NoError(d.t, err)
	return all
}

func (d *database) describeRelations(kinds string) string {
	var b strings.Builder
	for _, relation := range d.columns(`select c.oid, c.relname, obj_description(c.oid, 'pg_class') from pg_class c
		where c.relnamespace = 'spine'::regnamespace and strpos($1, c.relkind::text) > 0 and not c.relispartition
		order by c.oid`, kinds) {
		fmt.Fprintf(&b, "\n### %s\n\n%s\n\n", relation[1], strings.ReplaceAll(relation[2], ". ", ".\n"))
		b.WriteString("| column | type | what it says |\n|---|---|---|\n")
		for _, c := range d.columns(`
			select a.attname, format_type(a.atttypid, a.atttypmod), col_description(a.attrelid, a.attnum)
			from pg_attribute a
			where a.attrelid = $1::text::oid and a.attnum > 0 and not a.attisdropped
			order by a.attnum`, relation[0]) {
			b.WriteString(
				row(
					d.t,
					"`"+c[0]+"`",
					strings.Replace(c[1], "timestamp with time zone", "timestamptz", 1),
					firstSentence(c[2]),
				),
			)
		}
		indexes := d.columns(
			`select c.relname, obj_description(c.oid, 'pg_class')
				from pg_index i join pg_class c on c.oid = i.indexrelid
				where i.indrelid = $1::text::oid order by c.oid`,
			relation[0],
		)
		if len(indexes) > 0 {
			b.WriteString("\n| index | what it serves |\n|---|---|\n")
		}
		for _, c := range indexes {
			b.WriteString(row(d.t, "`"+c[0]+"`", firstSentence(c[1])))
		}
	}
	return strings.TrimPrefix(b.String(), "\n")
}

func (d *database) describeStates() string {
	var arrows []string
	labels := map[string][]string{}
	for _, tr := range d.transitions() {
		for _, from := range tr.from {
			for _, to := range tr.to {
				arrow := strings.Replace(from, "new", "[*]", 1) + " --> " + to
				if labels[arrow] == nil {
					arrows = append(arrows, arrow)
				}
				labels[arrow] = append(labels[arrow], tr.function+"()")
			}
		}
	}
	var b strings.Builder
	b.WriteString("```mermaid\nstateDiagram-v2\n")
	for _, arrow := range arrows {
		fmt.Fprintf(&b, "    %s: %s\n", arrow, strings.Join(labels[arrow], ", "))
	}
	b.WriteString("    completed --> [*]\n```\n")
	return b.String()
}

func (d *database) describeTransitions() string {
	var b strings.Builder
	b.WriteString("| from | to | function | actions |\n|---|---|---|---|\n")
	for _, tr := range d.transitions() {
		b.WriteString(
			row(
				d.t,
				strings.Join(tr.from, ", "),
				strings.Join(tr.to, ", "),
				"`"+tr.function+"()`",
				"`"+strings.Join(tr.actions, "`, `")+"`",
			),
		)
	}
	return b.String()
}

var actionLabel = regexp.MustCompile(`(?m)^    '(\w+)',? +-- ([^:\n]+): ([^\n]+)$`)

// describeActions reads the migrations: Postgres has no comments on the labels
// of a type.
func describeActions(t *testing.T) string {
	t.Helper()
	names, err := fs.Glob(schema.Migrations, "migrations/*.sql")
	require.NoError(t, err)
	var b strings.Builder
	b.WriteString("| action | transition | what happened |\n|---|---|---|\n")
	for _, name := range names {
		text, err := fs.ReadFile(schema.Migrations, name)
		require.NoError(t, err)
		for _, m := range actionLabel.FindAllStringSubmatch(string(text), -1) {
			b.WriteString(row(t, "`"+m[1]+"`", strings.Replace(m[2], "no transition", "–", 1), m[3]))
		}
	}
	return b.String()
}

// Each label of the type of actions has a line in the migrations that says what
// it stands for.
func TestEveryActionIsDescribed(t *testing.T) {
	t.Parallel()
	table := describeActions(t)
	d := newDatabase(t, 1)
	labels := d.rows("select unnest(enum_range(null::spine.audit_action))")
	require.Greater(t, len(labels), 20)
	require.Equal(t, len(labels)+2, strings.Count(table, "\n"))
	for _, label := range labels {
		require.Contains(t, table, "| `"+label+"` |")
	}
}

func (d *database) describeFunctions(internal string) string {
	var b strings.Builder
	b.WriteString("| function | file | what it does |\n|---|---|---|\n")
	files := functionFiles(d.t)
	for _, f := range d.columns(`
		select p.proname, array_to_string((p.proargnames)[1:p.pronargs], ', '), obj_description(p.oid, 'pg_proc')
		from pg_proc p
		where p.pronamespace = 'spine'::regnamespace
			and obj_description(p.oid, 'pg_proc')` + internal + ` 'Internal.%' order by p.proname, p.pronargs`) {
		parameters := f[1]
		if names := strings.Split(parameters, ", "); len(parameters) > 50 {
			parameters = strings.Join(names[:2], ", ") + ", …"
		}
		require.NotEmpty(d.t, files[f[0]], f[0])
		b.WriteString(
			row(
				d.t,
				"`"+f[0]+"("+parameters+")`",
				"`"+files[f[0]]+"`",
				firstSentence(strings.TrimPrefix(f[2], "Internal. ")),
			),
		)
	}
	return b.String()
}

// The recipes of sql/README.md run as they stand there, on the search path that it tells. A7: they call Spine's
// functions, whatever else is in public that fits their arguments better.
func TestReadmeRecipes(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(readme)
	require.NoError(t, err)
	_, recipes, found := strings.Cut(string(text), "```sql\n")
	require.True(t, found)
	recipes, _, _ = strings.Cut(recipes, "```")
	_, path, found := strings.Cut(string(text), "`set search_path = ")
	require.True(t, found)
	path, _, _ = strings.Cut(path, "`")

	config, err := pgx.ParseConfig(databases.New(t))
	require.NoError(t, err)
	config.RuntimeParams["search_path"] = path
	conn, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(context.WithoutCancel(t.Context()))) })
	_, err = conn.Exec(t.Context(), shadowFunctions)
	require.NoError(t, err)
	var shadows int
	require.NoError(t, conn.QueryRow(
		t.Context(), "select count(*) from pg_proc where pronamespace = 'public'::regnamespace",
	).Scan(&shadows))
	require.Greater(t, shadows, 100)
	_, err = conn.Exec(t.Context(), `select ingest('test-001', 'user.created', '{"user_id": 123}')`)
	require.NoError(t, err)

	run := 0
	for line := range strings.Lines(recipes) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		_, err := conn.Exec(t.Context(), line) // as psql sends it: several statements a line, comments and all
		require.NoError(t, err, line)
		run++
	}
	require.Greater(t, run, 8)
	var status string
	require.NoError(
		t,
		conn.QueryRow(t.Context(), "select status from processing_state where event = id_of('test-001')").Scan(&status),
	)
	require.Equal(t, "dead", status)
}

// shadowFunctions makes functions in public with the names of Spine's, for each number of parameters. Each is made
// twice: with parameters of type text, which literals prefer, and with those of Spine's own types. All of them fail.
const shadowFunctions = `
	do $do$
	declare
		_types text;
	begin
		for _types in
			select distinct format('%I(%s)', p.proname, list.types)
			from pg_proc p, generate_series(p.pronargs - p.pronargdefaults, p.pronargs::integer) n, lateral (
				select coalesce(string_agg('text', ', '), '')
				from generate_series(1, n)
				union
				select coalesce(string_agg(format_type(t, null), ', ' order by i), '')
				from unnest(p.proargtypes::oid[]) with ordinality u (t, i)
				where i <= n
			) list (types)
			where p.pronamespace = 'spine'::regnamespace and p.prorettype <> 'trigger'::regtype and p.prokind = 'f'
		loop
			execute format('create function public.%s returns text language plpgsql as $f$ begin '
				'raise exception ''a hostile function ran''; end $f$', _types);
		end loop;
	end $do$`

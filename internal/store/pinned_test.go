package store_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// plain is a statement without a name that another role could stand behind: one call by its full name, with parameters
// alone, whose columns may be named.
var plain = regexp.MustCompile(`^\s*select ([a-z_,\s]+\sfrom )?(spine|pg_catalog)\.[a-z_]+\((\s*\$\d+,?)*\s*\)\s*$`)

// A7: every statement of this package is plain, or runs in a transaction that begins with pinPath.
func TestStatementsArePinned(t *testing.T) {
	t.Parallel()
	files := token.NewFileSet()
	names, err := filepath.Glob("*.go")
	require.NoError(t, err)
	constants := map[string]string{}
	var all []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(files, name, nil, 0)
		require.NoError(t, err)
		all = append(all, file)
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok {
				for i, name := range spec.Names {
					if i < len(spec.Values) {
						constants[name.Name] = literal(spec.Values[i])
					}
				}
			}
			return true
		})
	}
	calls := 0
	for _, file := range all {
		name := files.Position(file.Pos()).Filename
		// They have what runs statements. TestNobodyElsesFunctionsRun connects and migrates.
		if slices.Contains([]string{"pinned.go", "connect.go", "migrate.go"}, name) {
			continue
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			at := files.Position(call.Pos()).String()
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			on := typeName(method.X)
			assert.False(t, on == "pgx" && strings.HasPrefix(method.Sel.Name, "Begin"),
				"%s: send, read, operate and readAtOnce begin transactions", at)
			assert.False(
				t,
				on == "s.pool" &&
					slices.Contains(
						[]string{"SendBatch", "Begin", "BeginTx", "Query", "QueryRow", "Exec"},
						method.Sel.Name,
					),
				"%s: call and plainly run plain statements, send and read send batches",
				at,
			)
			runs := on == "s" && method.Sel.Name == "call" ||
				on == "on" && slices.Contains([]string{"Query", "QueryRow", "Exec"}, method.Sel.Name)
			if name == "ingest.go" { // its batch is on the hot path
				runs = runs || method.Sel.Name == "Queue"
			}
			if !runs {
				return true
			}
			for _, argument := range call.Args[:min(3, len(call.Args))] {
				sql := literal(argument)
				if id, ok := argument.(*ast.Ident); ok {
					sql = constants[id.Name]
				}
				if !strings.Contains(sql, "select") {
					continue
				}
				calls++
				assert.Regexp(t, plain, sql, at)
			}
			return true
		})
	}
	require.Greater(t, calls, 10)
}

// literal is the text of a string, of which the parts may be added up.
func literal(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		if err == nil {
			return text
		}
	case *ast.BinaryExpr:
		return literal(e.X) + literal(e.Y)
	}
	return ""
}

// typeName is a name with the package or variable in front.
func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return typeName(e.X) + "." + e.Sel.Name
	}
	return ""
}

// shadows are functions and operators in public that fit arguments better than Postgres's own, and raise an error. They
// stand for all polymorphic ones, and for some to which Postgres converts an argument.
const shadows = `
	create function public.shadow() returns void language plpgsql as $$ begin
		raise exception 'a shadow ran' using errcode = 'ZZ001';
	end $$;
	do $$ declare
		_row record;
		_type text;
		_arguments text;
		_made integer := 0;
	begin
		perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
		for _row in
			select p.proname, p.proargtypes::oid[] as types
			from pg_proc p
			where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind in ('f', 'a', 'w') and p.pronargs > 0
				and exists (select from unnest(p.proargtypes::oid[]) a where a::regtype::text like 'any%' or a = '"any"'::regtype)
		loop
			foreach _type in array array[
				'text', 'bigint', 'integer', 'boolean', 'timestamptz', 'interval', 'json', 'jsonb', 'float8', 'numeric']
			loop
				select string_agg(case
					when a in ('anyarray'::regtype, 'anycompatiblearray'::regtype) then _type || '[]'
					when a = '"any"'::regtype or a::regtype::text like 'any%' then _type
					else a::regtype::text
				end, ', ') into _arguments
				from unnest(_row.types) a;
				begin
					execute format('create function public.%I(%s) returns text language sql as
						$f$ select public.shadow()::text $f$', _row.proname, _arguments);
					_made := _made + 1;
				exception when others then null; -- it cannot be shadowed so
				end;
			end loop;
		end loop;
		assert _made > 500, _made;
		foreach _type in array array['text[]', 'bigint[]', 'integer[]'] loop
			execute format('create function public.same(%1$s, %1$s) returns boolean language sql as
				$f$ select public.shadow() is null $f$', _type);
			execute format('create operator public.= (function = public.same, leftarg = %1$s, rightarg = %1$s)', _type);
		end loop;
	end $$;
	create function public.times(interval, integer) returns interval language sql as
		$$ select public.shadow()::text::interval $$;
	create operator public.* (function = public.times, leftarg = interval, rightarg = integer);
	create function public.json_build_object(text, text) returns json language sql as
		$$ select public.shadow()::text::json $$;`

// A7: functions that any role made in public do not run with Spine's rights.
func TestNobodyElsesFunctionsRun(t *testing.T) {
	t.Parallel()
	e := openDatabase(t, databases.Empty(t), 2)
	e.run(shadows)
	require.ErrorContains(t, func() error {
		_, err := e.Pool().Exec(t.Context(), "select array_position(array['a'], 'a'::text)")
		return err
	}(), "a shadow ran", "the shadows are in the way of whoever takes no care")

	_, err := store.Migrate(t.Context(), e.url, nil)
	require.NoError(t, err)
	require.NoError(t, e.CheckSchema(t.Context()))
	migrated, err := e.IsMigrated(t.Context())
	require.NoError(t, err)
	require.True(t, migrated)
	everything(t, e)

	source, err := os.ReadFile("pinned_test.go")
	require.NoError(t, err)
	without := []string{"Close", "Pool", "Owns"} // they run no SQL
	for i, stored := 0, reflect.TypeFor[*store.Store](); i < stored.NumMethod(); i++ {
		name := stored.Method(i).Name
		if !slices.Contains(without, name) && !strings.Contains(string(source), "."+name+"(") {
			t.Errorf("Store.%s is not called here", name)
		}
	}
}

// everything calls each method of Store that runs SQL.
func everything(t *testing.T, d *database) {
	ctx := t.Context()
	no := func(err error) { t.Helper(); require.NoError(t, err) }
	_, err := d.Ingest(ctx, webhooks("e", 20))
	no(err)
	d.ingest(webhook("e-1", `{"other":[1,2]}`))
	_, err = d.PutSource(ctx, "github", []byte(githubSettings), "me")
	no(err)
	_, err = d.ApplySources(ctx, nil, false, true, "me")
	no(err)
	_, err = d.RotateSource(ctx, "github", "env:NEW_WEBHOOK_SECRET", time.Hour, "me")
	no(err)
	_, err = d.DisableSource(ctx, "github", "why", "me")
	no(err)
	_, err = d.EnableSource(ctx, "github", true, "me")
	no(err)
	_, err = d.Sources(ctx)
	no(err)
	no(d.TellSources(ctx, "p", []event.SourceReport{{Source: "github", State: "broken", Problems: []string{"why"}}}))
	reports, err := d.SourceReports(ctx, []string{"github"})
	no(err)
	require.Len(t, reports.Reports, 1)
	no(d.ForgetReceiver(ctx, "p"))

	claimed, err := d.Claim(ctx, event.Claim{
		Destination: event.DefaultDestination, Limit: 10, Lease: time.Minute, Worker: "w",
	})
	no(err)
	require.Len(t, claimed.Jobs, 10)
	_, err = d.Renew(ctx, claimed.Jobs, time.Minute)
	no(err)
	var settlements []event.Settlement
	for i, job := range claimed.Jobs[:6] {
		disposition := []event.Disposition{event.Dead, event.Completed, event.Failed, event.Deferred}[i%4]
		settlements = append(settlements, event.Settlement{Job: job, Disposition: disposition, Delay: time.Second})
	}
	_, err = d.Settle(ctx, settlements)
	no(err)
	no(d.GiveBack(ctx, claimed.Jobs[6:]))

	no(d.Reject(ctx, []event.RejectionSummary{
		{Source: "github", Cause: "signature_wrong", Status: 401, Count: 3, Since: time.Now()},
	}, true))
	no(d.KeepRejected(ctx, rejected("github", "signature_wrong", 3, 10),
		map[string]event.Budget{"github": {Rows: 10, Bytes: 1 << 20, Age: time.Hour}}, false))
	found, _, err := d.RejectedRequests(ctx, view.Page{Limit: 2}, view.RejectedFilter{})
	no(err)
	_, err = d.RejectedRequest(ctx, found[0].ID)
	no(err)
	_, err = d.RejectedCauses(ctx)
	no(err)
	no(d.ReplayRejected(ctx, found[0].ID, false, "me"))
	_, err = d.ReplayAllRejected(ctx, view.RejectedFilter{Source: "github"}, false, "me")
	no(err)
	_, err = d.TakeRequested(ctx, 10)
	no(err)
	no(d.SettleRejected(ctx, found[0].ID, false, "refused", "note", ""))

	_, err = d.NoteDatabase(ctx)
	no(err)
	_, err = d.Paused(ctx)
	no(err)
	no(d.NoteArrivals(ctx))
	no(d.CheckWritable(ctx))
	_, err = d.Troubles(ctx)
	no(err)
	_, err = d.NotifyQueue(ctx)
	no(err)
	_, err = d.ConnectedWorkers(ctx)
	no(err)
	_, _, err = d.RollUp(ctx)
	no(err)
	no(d.SampleDepth(ctx))
	_, err = d.Sample(ctx)
	no(err)
	for over := range map[time.Duration]bool{15 * time.Minute: true, 24 * time.Hour: true} {
		_, err = d.Overview(ctx, over)
		no(err)
	}
	ten := view.Page{Limit: 10}
	_, _, err = d.Attempts(ctx, ten, view.AttemptFilter{})
	no(err)
	_, _, err = d.Audit(ctx, ten, view.StepFilter{})
	no(err)
	_, _, err = d.Events(ctx, ten, view.EventFilter{})
	no(err)
	_, _, err = d.Processing(ctx, ten, view.ProcessingFilter{})
	no(err)
	_, err = d.Backlog(ctx)
	no(err)
	_, err = d.Dead(ctx, 10)
	no(err)
	_, err = d.InFlight(ctx, "e-", "", 10)
	no(err)
	_, err = d.Stuck(ctx, 10)
	no(err)
	_, err = d.Search(ctx, "e-1")
	no(err)
	_, err = d.RecentTypes(ctx)
	no(err)
	_, err = d.SourceNames(ctx)
	no(err)
	_, err = d.DestinationNames(ctx)
	no(err)
	_, err = d.Names(ctx)
	no(err)
	_, err = d.Source(ctx, "github")
	no(err)
	cursor, err := d.CurrentCursor(ctx)
	no(err)
	_, _, err = d.ReadSteps(ctx, cursor, trail.Filter{})
	no(err)
	_, _, err = d.IngestAndClaim(ctx, []event.Event{webhook("more", `{}`)}, event.Claim{
		Destination: event.DefaultDestination, Limit: 1, Lease: time.Minute, Worker: "w",
	})
	no(err)
	_, err = d.Event(ctx, "e-1", "")
	no(err)
	_, err = d.Event(ctx, "nowhere", "")
	require.ErrorContains(t, err, "nowhere")
	_, _, err = d.Conflicts(ctx, ten, view.ConflictFilter{})
	no(err)
	_, err = d.AcceptConflict(ctx, "e-1", "", "", "me")
	no(err)
	_, err = d.Pause(ctx, "", "why", "me")
	no(err)
	_, err = d.Resume(ctx, "", "me")
	no(err)
	_, err = d.CountDead(ctx, store.DeadFilter{}, 10)
	no(err)
	_, err = d.ReplayDead(ctx, store.DeadFilter{}, 0, func(int64) {})
	no(err)
	_, err = d.ReplayRows(ctx, []view.ProcessingRow{{Event: 1, Destination: event.DefaultDestination}}, "me")
	no(err)
	_, err = d.Replay(ctx, claimed.Jobs[1].ID, "", "", "me")
	no(err)
	_, err = d.Verify(ctx, time.Now().Add(-time.Hour), time.Time{}, 10)
	no(err)
	_, err = d.ExpireEvents(ctx, time.Hour, 0, 100)
	no(err)
	const ages = 4 * 365 * 24 * time.Hour
	_, err = d.DropAuditPartition(ctx, ages)
	no(err)
	_, _, err = d.MergeAuditDays(ctx, ages)
	no(err)
	_, err = d.ExpireAudit(ctx, 240*time.Hour, 100)
	no(err)
	no(d.ExpireRejected(ctx))
	_, err = d.EnsurePartitions(ctx)
	no(err)
	no(d.CheckRights(ctx))
	no(d.Notify(ctx, "spine_ready", "default"))
	no(d.RemoveSource(ctx, "github", "me"))
}

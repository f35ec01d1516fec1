package systemtest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// sourceChange is a change of Spine's own source.
type sourceChange struct {
	file     string // below the module's folder
	from, to string // from stands there once; if it is empty, the file is new and to is all of it
}

// apply is the text of the file after the change.
func (c sourceChange) apply(t *testing.T, root string) string {
	t.Helper()
	if c.from == "" {
		return c.to
	}
	original, err := os.ReadFile(filepath.Join(root, c.file)) //nolint:gosec // a file of this repository
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(original), c.from), "%s: %s", c.file, c.from)
	return strings.Replace(string(original), c.from, c.to, 1)
}

// functionChange is a change of one of Spine's functions in the database.
type functionChange struct{ function, from, to string }

// apply is the statement that makes the change.
func (c functionChange) apply(t *testing.T, conn *pgx.Conn) string {
	t.Helper()
	var text string
	require.NoError(t, conn.QueryRow(t.Context(), `select pg_get_functiondef(p.oid) from pg_proc p
		where p.pronamespace = 'spine'::regnamespace and p.proname = $1`, c.function).Scan(&text))
	require.Contains(t, text, c.from, c.function)
	return strings.ReplaceAll(text, c.from, c.to)
}

// rewrite makes changes in the cluster's database.
func (c *cluster) rewrite(changes ...functionChange) {
	c.t.Helper()
	conn, err := pgx.Connect(c.t.Context(), c.server.URL())
	require.NoError(c.t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(c.t.Context())) }()
	for _, change := range changes {
		_, err := conn.Exec(c.t.Context(), change.apply(c.t, conn))
		require.NoError(c.t, err)
	}
}

// moduleRoot is the folder of the module.
func moduleRoot(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	return root
}

// rebuild builds a spine with changes and returns its path. The changes are in that binary and nowhere else.
func rebuild(t *testing.T, changes ...sourceChange) string {
	t.Helper()
	root, dir := moduleRoot(t), t.TempDir()
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for _, change := range changes {
		path := filepath.Join(root, change.file)
		changed := filepath.Join(dir, strings.ReplaceAll(change.file, "/", "-"))
		require.NoError(t, os.WriteFile(changed, []byte(change.apply(t, root)), 0o600))
		require.NotContains(t, overlay.Replace, path)
		overlay.Replace[path] = changed
	}
	text, err := json.Marshal(overlay)
	require.NoError(t, err)
	list := filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(list, text, 0o600))
	binary := filepath.Join(dir, "spine")
	//nolint:gosec // all of it is ours
	cmd := exec.CommandContext(t.Context(), "go", "build", "-overlay", list, "-o", binary, "./cmd/spine")
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return binary
}

// sabotageTrial breaks one promise on purpose.
type sabotageTrial struct {
	run   trialRun
	finds []string // in the differences; without any, there must be no difference
}

// noSweep leaves a worker without its safety net.
func noSweep() sourceChange {
	return sourceChange{file: "internal/service/service.go", from: "sweepInterval,", to: "1000 * time.Hour,"}
}

// harmlessTrials must find nothing.
func harmlessTrials() map[string]sabotageTrial {
	return map[string]sabotageTrial{
		"nothing": {run: trialRun{kinds: []string{}}},
		"no sweep, but a claim after a reconnect": {run: trialRun{
			kinds:   []string{},
			last:    keptAway,
			changes: []sourceChange{noSweep()},
		}},
	}
}

// harmfulTrials must find what they break.
func harmfulTrials() map[string]sabotageTrial {
	const retryAnyway = "_now + coalesce(i.delay, '10 ms')"
	const retryDelay = "case when i.outcome = 'failed' then _now + i.delay end"
	const deadAsFailed = "status = case when i.outcome = 'dead' then 'failed' else i.outcome end"
	shortLease := functionChange{"claim", "_now + _lease", "_now + interval '50 ms'"}
	return map[string]sabotageTrial{
		"acknowledged and not stored": {
			run: trialRun{rewrites: []functionChange{{"ingest_events", "return _outcome;", `if random() < 0.01 then
				delete from processing_state p where p.event_id = _event_id[1];
				delete from audit_trail a where a.event_id = _event_id[1];
				delete from events e where e.event_id = _event_id[1];
			end if; return _outcome;`}}},
			finds: []string{"was acknowledged, and is lost"},
		},
		"stored with other bytes": {
			run: trialRun{rewrites: []functionChange{{"ingest_events", "return _outcome;", `if random() < 0.01 then
				update events e set payload = e.payload::jsonb::json where e.event_id = _event_id[1];
			end if; return _outcome;`}}},
			finds: []string{"is stored with bytes that nobody sent"},
		},
		"results of lost leases count": {
			run: trialRun{misdeed: "late", rewrites: []functionChange{
				shortLease, // or the worker gives up by itself
				{"settle", "p.lease_token = i.lease", "true"},
			}},
			finds: []string{"leases that ended more than once", "lease_spent_once"},
		},
		"a lease is shorter than the delivery": {
			run:   trialRun{misdeed: "late", rewrites: []functionChange{shortLease}},
			finds: []string{"and no fault explains it"},
		},
		"failures count as successes": {
			run: trialRun{misdeed: "500", rewrites: []functionChange{
				{"settle", "status = i.outcome", "status = 'completed'"},
			}},
			finds: []string{"which did not arrive"},
		},
		"neither wake-up nor sweep finds some": {
			run: trialRun{statements: []string{
				`create function spine.sabotage() returns trigger language plpgsql as 'begin
					if random() < 0.01 then new.next_attempt_at := null; end if;
					return new;
				end'`,
				`create trigger sabotage before insert on spine.processing_state
					for each row execute function spine.sabotage()`,
			}},
			finds: []string{"is pending, and nothing goes on", "row_claimable"},
		},
		"acknowledged before the commit": {
			run: trialRun{kinds: []string{"an API is killed"}, changes: []sourceChange{
				{
					file: "internal/ingest/commit.go",
					from: "	select {\n	case <-w.done:",
					to: `	receipts := make([]event.Receipt, len(events))
					for i := range receipts {
						receipts[i].Outcome = event.Accepted
					}
					if len(receipts) > 0 {
						return receipts, nil
					}
					select {
					case <-w.done:`,
				},
				{ // so that plenty waits when an API is killed, however slow the machine is
					file: "internal/store/ingest.go",
					from: "	err := s.acknowledged(ctx, func(on executor) error {\n" +
						"		return on.QueryRow(ctx, ingestSQL, ",
					to: "	time.Sleep(300 * time.Millisecond)\n" +
						"	err := s.acknowledged(ctx, func(on executor) error {\n" +
						"		return on.QueryRow(ctx, ingestSQL, ",
				},
			}},
			finds: []string{"was acknowledged, and is lost"},
		},
		// E10
		"no transaction says that its commit waits for the disk": {
			run: trialRun{
				pooler:   "transaction",
				kinds:    []string{postgresKilled},
				rewrites: []functionChange{{"make_durable", "= 'off' then", "= 'off' and false then"}},
			},
			finds: []string{"was acknowledged, and is lost"},
		},
		// E14
		"a full queue of notifications fails what notifies": {
			run: trialRun{kinds: []string{queueFull}, changes: []sourceChange{{
				file: "internal/store/connect.go",
				from: "	if s.hintless.Load() {\n",
				to:   "	if false {\n",
			}}},
			finds: []string{"while " + queueFull},
		},
		// E12
		"any warning says that the commit is lost": {
			run: trialRun{kinds: []string{warned}, changes: []sourceChange{{
				file: "internal/store/connect.go",
				from: `	case n.Routine == "SyncRepWaitForLSN":`,
				to:   `	case n.Routine != "asyncQueueFillWarning":`,
			}}},
			finds: []string{"while " + warned},
		},
		"no sweep after notifications that never were": {
			run:   trialRun{last: wakeUpOff, changes: []sourceChange{noSweep()}},
			finds: []string{"is pending, and nothing goes on"},
		},
		"neither a claim after a reconnect nor a sweep": {
			run: trialRun{last: keptAway, changes: []sourceChange{
				noSweep(),
				{file: "internal/notify/listener.go", from: "	f(Notification{Missed: true})\n"},
			}},
			finds: []string{"is pending, and nothing goes on"},
		},
		"a final failure is tried again": {
			run: trialRun{misdeed: "410", rewrites: []functionChange{
				{"settle", "status = i.outcome", deadAsFailed},
				{"settle", retryDelay, retryAnyway},
			}},
			finds: []string{"and no fault explains it"},
		},
		"some successes are tried again": {
			run: trialRun{rewrites: []functionChange{
				{
					"settle",
					"status = i.outcome",
					"status = case when random() < 0.02 then 'failed' else i.outcome end",
				},
				{"settle", retryDelay, retryAnyway},
			}},
			finds: []string{"and no fault explains it"},
		},
		"evidence is lost": {
			run: trialRun{rewrites: []functionChange{{
				"ingest_events",
				"return _outcome;",
				"delete from conflicts where random() < 0.1; return _outcome;",
			}}},
			finds: []string{"has no evidence of a conflict that was acknowledged"},
		},
		"what is known is called new": {
			run: trialRun{rewrites: []functionChange{
				{"ingest_events", "return _outcome;", "_outcome[1] := 'accepted'; return _outcome;"},
			}},
			finds: []string{"was accepted 2 times"},
		},
		"attempts beyond the budget": {
			run: trialRun{misdeed: "500", rewrites: []functionChange{
				{"settle", "status = i.outcome", deadAsFailed},
				{"settle", retryDelay, retryAnyway},
			}},
			finds: []string{"of 12 at most"},
		},
	}
}

// TestSabotageFindsItsPlaces holds the trials of TestSabotageIsFound to fit Spine as it is, without running them.
func TestSabotageFindsItsPlaces(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), databases.New(t))
	require.NoError(t, err)
	defer func() { assert.NoError(t, conn.Close(t.Context())) }()
	root := moduleRoot(t)
	trials := harmfulTrials()
	maps.Copy(trials, harmlessTrials())
	for name, trial := range trials {
		for _, change := range trial.run.changes {
			require.NotEmpty(t, change.apply(t, root), name)
		}
		for _, rewrite := range trial.run.rewrites {
			require.NotEmpty(t, rewrite.apply(t, conn), name)
		}
	}
}

// TestSabotageIsFound breaks Spine's promises on purpose, each in a run of its own. A checker that finds nothing then
// would prove nothing.
func TestSabotageIsFound(t *testing.T) {
	share, shares := trialShare(t, "SPINE_SABOTAGE", "make sabotage")
	// One after the other: they must find nothing, and so need the machine.
	for name, trial := range harmlessTrials() {
		t.Run(name, trial.do)
	}
	trials := harmfulTrials()
	for i, name := range slices.Sorted(maps.Keys(trials)) {
		if i%shares != share-1 {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			trials[name].do(t)
		})
	}
}

// trialShare reads a variable that a target of make sets: "2/3" is the second third of the trials.
func trialShare(t *testing.T, variable, target string) (share, shares int) {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		t.Skip(target + " runs it: it wants " + variable + ", such as 1/1 for all trials")
	}
	_, err := fmt.Sscanf(text, "%d/%d", &share, &shares)
	require.True(t, err == nil && 1 <= share && share <= shares, "%s=%s is no share such as 2/3", variable, text)
	return share, shares
}

// do goes through the run and compares its differences with those that it must find.
func (s sabotageTrial) do(t *testing.T) {
	run := s.run
	run.seed, run.duration, run.senders, run.patience = 1, 6*time.Second, 12, 5*time.Second
	if run.kinds == nil {
		run.kinds = []string{} // no nemesis
	}
	if len(s.finds) == 0 {
		run.patience = patience
	}
	o := run.do(t)
	all := strings.Join(o.differences, "\n")
	require.Equal(t, len(s.finds) > 0, len(all) > 0, all)
	for _, difference := range s.finds {
		assert.Contains(t, all, difference)
	}
}

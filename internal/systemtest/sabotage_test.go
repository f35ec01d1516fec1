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

// sabotage is a change of Spine's own source.
type sabotage struct {
	file     string // below the module's folder
	from, to string // from stands there once; an empty one means that the file is new, and to is all of it
}

// noSweep leaves a worker without its safety net.
var noSweep = sabotage{file: "internal/service/service.go", from: "sweepInterval,", to: "1000 * time.Hour,"}

// rebuild makes a spine with changes, which are nowhere but in it, and returns its
// path.
func rebuild(t *testing.T, changes ...sabotage) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	dir := t.TempDir()
	var overlay struct{ Replace map[string]string }
	overlay.Replace = map[string]string{}
	for _, change := range changes {
		path := filepath.Join(root, change.file)
		text := change.to
		if change.from != "" {
			original, err := os.ReadFile(path) //nolint:gosec // of this module
			require.NoError(t, err)
			require.Equal(t, 1, strings.Count(string(original), change.from), "%s: %s", change.file, change.from)
			text = strings.Replace(string(original), change.from, change.to, 1)
		}
		changed := filepath.Join(dir, strings.ReplaceAll(change.file, "/", "-"))
		require.NoError(t, os.WriteFile(changed, []byte(text), 0o600)) //nolint:gosec // in the test's folder
		require.NotContains(t, overlay.Replace, path)
		overlay.Replace[path] = changed
	}
	text, err := json.Marshal(overlay)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "overlay.json"), text, 0o600))
	binary := filepath.Join(dir, "spine")
	//nolint:gosec // all of it is ours
	cmd := exec.CommandContext(
		t.Context(),
		"go",
		"build",
		"-overlay",
		filepath.Join(dir, "overlay.json"),
		"-o",
		binary,
		"./cmd/spine",
	)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return binary
}

// rewrite changes the text of one of Spine's functions in the database.
func rewrite(t *testing.T, c *cluster, function, from, to string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.server.URL())
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	var text string
	require.NoError(
		t,
		conn.QueryRow(
			t.Context(),
			"select pg_get_functiondef(p.oid) from pg_proc p where p.pronamespace = 'spine'::regnamespace and p.proname = $1",
			function,
		).Scan(
			&text,
		),
	)
	require.Contains(t, text, from)
	_, err = conn.Exec(t.Context(), strings.ReplaceAll(text, from, to))
	require.NoError(t, err)
}

// TestSabotageIsFound breaks Spine's promises on purpose, each in a run of its own:
// a checker that says nothing of it would prove nothing.
func TestSabotageIsFound(t *testing.T) {
	share, shares := sabotageShare(t)
	type trial struct {
		run   trialRun
		finds []string // in differences; nothing at all where it is empty
	}
	// One after the other: they must find nothing, and so need the machine.
	for name, c := range map[string]trial{
		"nothing": {trialRun{kinds: []string{}}, nil},
		"no sweep, and a reconnect that looks": {trialRun{
			kinds:   []string{},
			last:    "the listeners are kept away",
			changes: []sabotage{noSweep},
		}, nil},
	} {
		t.Run(name, func(t *testing.T) { sabotaged(t, c.run, c.finds) })
	}
	trials := map[string]trial{
		"acknowledged and not stored": {trialRun{kinds: []string{}, sabotage: func(t *testing.T, c *cluster) {
			rewrite(t, c, "ingest_events", "return _outcome;", `if random() < 0.01 then
				delete from processing_state p where p.event_id = _event_id[1];
				delete from audit_trail a where a.event_id = _event_id[1];
				delete from events e where e.event_id = _event_id[1];
			end if; return _outcome;`)
		}}, []string{"was acknowledged, and is lost"}},
		"stored with other bytes": {trialRun{kinds: []string{}, sabotage: func(t *testing.T, c *cluster) {
			rewrite(t, c, "ingest_events", "return _outcome;", `if random() < 0.01 then
				update events e set payload = e.payload::jsonb::json where e.event_id = _event_id[1];
			end if; return _outcome;`)
		}}, []string{"is stored with bytes that nobody sent"}},
		"results of lost leases count": {
			trialRun{kinds: []string{}, misdeed: "late", sabotage: func(t *testing.T, c *cluster) {
				rewrite(
					t,
					c,
					"claim",
					"_now + _lease",
					"_now + interval '50 ms'",
				) // or a worker would have given up by itself
				rewrite(t, c, "settle", "p.lease_token = i.lease", "true")
			}},
			[]string{"leases that ended more than once", "lease_spent_once"},
		},
		"a lease is shorter than the delivery": {
			trialRun{kinds: []string{}, misdeed: "late", sabotage: func(t *testing.T, c *cluster) {
				rewrite(t, c, "claim", "_now + _lease", "_now + interval '50 ms'")
			}},
			[]string{"and no fault explains it"},
		},
		"failures count as successes": {
			trialRun{kinds: []string{}, misdeed: "500", sabotage: func(t *testing.T, c *cluster) {
				rewrite(t, c, "settle", "status = i.outcome", "status = 'completed'")
			}},
			[]string{"which did not arrive"},
		},
		"neither wake-up nor sweep finds some": {trialRun{kinds: []string{}, sabotage: func(t *testing.T, c *cluster) {
			c.psql(
				`create function spine.sabotage() returns trigger language plpgsql as 'begin
					if random() < 0.01 then new.next_attempt_at := null; end if;
					return new;
				end'`,
				"create trigger sabotage before insert on spine.processing_state for each row execute function spine.sabotage()",
			)
		}}, []string{"is pending, and nothing goes on", "row_claimable"}},
		"acknowledged before the commit": {trialRun{kinds: []string{"an API is killed"}, changes: []sabotage{
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
			{ // plenty waits when an API is killed, however slow the machine
				file: "internal/store/ingest.go",
				from: "	err := s.acknowledged(ctx, func(conn *pgx.Conn) error {\n		return conn.QueryRow(ctx, ingestSQL, ",
				to: "	time.Sleep(300 * time.Millisecond)\n" +
					"	err := s.acknowledged(ctx, func(conn *pgx.Conn) error {\n		return conn.QueryRow(ctx, ingestSQL, ",
			},
		}}, []string{"was acknowledged, and is lost"}},
		"no sweep after notifications that never were": {
			trialRun{kinds: []string{}, last: "the wake-up trigger is off", changes: []sabotage{noSweep}},
			[]string{"is pending, and nothing goes on"},
		},
		"no look at what is there after a reconnect, and no sweep": {
			trialRun{kinds: []string{}, last: "the listeners are kept away", changes: []sabotage{noSweep, {
				file: "internal/notify/listener.go", from: "	f(Notification{Missed: true})\n", to: "",
			}}},
			[]string{"is pending, and nothing goes on"},
		},
		"a refusal for good is tried again": {
			trialRun{kinds: []string{}, misdeed: "410", sabotage: func(t *testing.T, c *cluster) {
				rewrite(
					t,
					c,
					"settle",
					"status = i.outcome",
					"status = case when i.outcome = 'dead' then 'failed' else i.outcome end",
				)
				rewrite(
					t,
					c,
					"settle",
					"case when i.outcome = 'failed' then _now + i.delay end",
					"_now + coalesce(i.delay, '10 ms')",
				)
			}},
			[]string{"and no fault explains it"},
		},
		"some successes are tried again": {trialRun{kinds: []string{}, sabotage: func(t *testing.T, c *cluster) {
			rewrite(
				t,
				c,
				"settle",
				"status = i.outcome",
				"status = case when random() < 0.02 then 'failed' else i.outcome end",
			)
			rewrite(
				t,
				c,
				"settle",
				"case when i.outcome = 'failed' then _now + i.delay end",
				"_now + coalesce(i.delay, '10 ms')",
			)
		}}, []string{"and no fault explains it"}},
		"evidence is lost": {trialRun{kinds: []string{}, sabotage: func(t *testing.T, c *cluster) {
			rewrite(
				t,
				c,
				"ingest_events",
				"return _outcome;",
				"delete from conflicts where random() < 0.1; return _outcome;",
			)
		}}, []string{"has no evidence of a conflict that was acknowledged"}},
		"what is known is called new": {trialRun{kinds: []string{}, sabotage: func(t *testing.T, c *cluster) {
			rewrite(t, c, "ingest_events", "return _outcome;", "_outcome[1] := 'accepted'; return _outcome;")
		}}, []string{"was accepted 2 times"}},
		"attempts beyond the budget": {
			trialRun{kinds: []string{}, misdeed: "500", sabotage: func(t *testing.T, c *cluster) {
				rewrite(
					t,
					c,
					"settle",
					"status = i.outcome",
					"status = case when i.outcome = 'dead' then 'failed' else i.outcome end",
				)
				rewrite(
					t,
					c,
					"settle",
					"case when i.outcome = 'failed' then _now + i.delay end",
					"_now + coalesce(i.delay, '10 ms')",
				)
			}},
			[]string{"of 12 at most"},
		},
	}
	for i, name := range slices.Sorted(maps.Keys(trials)) {
		if i%shares != share-1 {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sabotaged(t, trials[name].run, trials[name].finds)
		})
	}
}

// sabotageShare reads SPINE_SABOTAGE: "2/3" is the second third of the trials.
func sabotageShare(t *testing.T) (share, shares int) {
	t.Helper()
	text := os.Getenv("SPINE_SABOTAGE")
	if text == "" {
		t.Skip("make sabotage runs it: it wants SPINE_SABOTAGE, such as 1/1 for all trials")
	}
	_, err := fmt.Sscanf(text, "%d/%d", &share, &shares)
	require.True(t, err == nil && 1 <= share && share <= shares, "SPINE_SABOTAGE=%s is no share such as 2/3", text)
	return share, shares
}

// sabotaged goes through a run, and wants what finds says in its differences.
func sabotaged(t *testing.T, run trialRun, finds []string) {
	run.seed, run.duration, run.senders, run.patience = 1, 6*time.Second, 12, 5*time.Second
	if len(finds) == 0 {
		run.patience = patience
	}
	o := run.do(t)
	all := strings.Join(o.differences, "\n")
	require.Equal(t, len(finds) > 0, len(all) > 0, all)
	for _, what := range finds {
		assert.Contains(t, all, what)
	}
}

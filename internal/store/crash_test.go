package store_test

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/postgres/pgproxy"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/view"
)

// writing is something that a store does to the database.
type writing struct {
	statement string            // its words, by which the proxy knows it
	prepare   func(d *database) // what must be there before
	do        func(ctx context.Context, s *store.Store) error
	state     string // a query: what it changes
	again     string // an error that a second one may end with, when the first was done after all
	begun     bool   // it is one of several statements, between BEGIN and COMMIT
}

// jobOf is a lease of the one event that there is, as its worker holds it.
func jobOf(ctx context.Context, s *store.Store) (event.Job, error) {
	j := event.Job{Destination: event.DefaultDestination}
	err := s.Pool().
		QueryRow(ctx, "select event, event_id, source, attempt_count, 1 from spine.processing_state where event_id = 'x'").
		Scan(&j.Event, &j.ID, &j.Source, &j.Attempt, &j.Lease)
	return j, err
}

var writings = func() map[string]writing {
	const queue = `
		select event_id, status, attempt_count, lease_token, next_attempt_at is null,
			next_attempt_at > now() + interval '1 min'
		from spine.processing_state
		order by event_id`
	claim := event.Claim{Destination: event.DefaultDestination, Limit: 10, Lease: time.Hour, Worker: "me"}
	stored := func(d *database) { d.ingest(webhook("x", payloadA)) }
	leased := func(d *database) { stored(d); d.run("select spine.claim('default', 1, '1 h', 'me')") }
	died := func(d *database) { stored(d); d.run("update spine.processing_state set status = 'dead'") }
	sourced := func(d *database) { d.run("select spine.put_source('github', '" + githubSettings + "')") }
	const kept = "select cause, state, trust from spine.rejected_requests"
	const partitions = `
		select inhrelid::regclass from pg_inherits where inhparent = 'spine.audit_trail'::regclass order by 1`
	requests := rejected("github", "c", 1, 10)
	keeping := func(d *database) {
		sourced(d)
		require.NoError(
			d.t,
			d.KeepRejected(
				d.t.Context(),
				requests,
				map[string]event.Budget{"github": {Rows: 1, Bytes: 1000, Age: time.Hour}},
				false,
			),
		)
	}
	idOf := func(ctx context.Context, s *store.Store) (id int64, err error) {
		return id, s.Pool().QueryRow(ctx, "select max(id) from spine.rejected_requests").Scan(&id)
	}
	return map[string]writing{
		"resume": {
			"spine.resume(",
			func(d *database) { d.run("select spine.pause()") },
			func(ctx context.Context, s *store.Store) error {
				_, err := s.Resume(ctx, event.DefaultDestination, "me")
				return err
			},
			"select name, paused_at is null from spine.destinations",
			"",
			true,
		},
		"enable a source": {
			"spine.enable_source(",
			func(d *database) { sourced(d); d.run("select spine.disable_source('github')") },
			func(ctx context.Context, s *store.Store) error {
				_, err := s.EnableSource(ctx, "github", true, "me")
				return err
			},
			"select name, disabled_at is null from spine.sources order by name",
			"",
			true,
		},
		"rotate a secret": {"spine.rotate_source(", sourced, func(ctx context.Context, s *store.Store) error {
			_, err := s.RotateSource(ctx, "github", "env:NEW", 0, "me")
			return err
		}, "select settings -> 'secrets' from spine.sources where name = 'github'", "", true},
		"ask for a rejected request": {
			"spine.replay_rejected(",
			keeping,
			func(ctx context.Context, s *store.Store) error {
				id, err := idOf(ctx, s)
				if err == nil {
					err = s.ReplayRejected(ctx, id, true, "me")
				}
				return err
			},
			kept,
			"",
			true,
		},
		"settle a rejected request": {
			"spine.settle_rejected(",
			func(d *database) { keeping(d); d.run("update spine.rejected_requests set state = 'requested'") },
			func(ctx context.Context, s *store.Store) error {
				id, err := idOf(ctx, s)
				if err == nil {
					err = s.SettleRejected(ctx, id, false, event.RejectedTakenIn, "accepted", "x")
				}
				return err
			},
			kept,
			"",
			false,
		},
		"ingest": {"spine.ingest_events(", func(*database) {}, func(ctx context.Context, s *store.Store) error {
			_, err := s.Ingest(ctx, []event.Event{webhook("x", payloadA)})
			return err
		}, "select event_id, payload from spine.events", "", false},
		"conflict": {"spine.ingest_events(", stored, func(ctx context.Context, s *store.Store) error {
			_, err := s.Ingest(ctx, []event.Event{webhook("x", payloadB)})
			return err
		}, "select event_id, payload from spine.conflicts", "", false},
		"ingest and claim": {"spine.claim(", func(*database) {}, func(ctx context.Context, s *store.Store) error {
			_, _, err := s.IngestAndClaim(ctx, []event.Event{webhook("x", payloadA)}, claim)
			return err
		}, queue, "", false},
		"claim": {"spine.claim(", stored, func(ctx context.Context, s *store.Store) error {
			_, err := s.Claim(ctx, claim)
			return err
		}, queue, "", false},
		"settle": {"spine.settle(", leased, func(ctx context.Context, s *store.Store) error {
			j, err := jobOf(ctx, s)
			if err == nil {
				_, err = s.Settle(ctx, []event.Settlement{completed(j)})
			}
			return err
		}, queue, "", false},
		"settle a failure": {"spine.settle(", leased, func(ctx context.Context, s *store.Store) error {
			j, err := jobOf(ctx, s)
			if err == nil {
				_, err = s.Settle(ctx, []event.Settlement{failed(j, time.Hour)})
			}
			return err
		}, queue, "", false},
		"settle a deferral": {"spine.settle(", leased, func(ctx context.Context, s *store.Store) error {
			j, err := jobOf(ctx, s)
			if err == nil {
				_, err = s.Settle(ctx, []event.Settlement{deferred(j, time.Hour)})
			}
			return err
		}, queue, "", false},
		"renew": {
			"spine.renew(",
			func(d *database) { stored(d); d.run("select spine.claim('default', 1, '10 s', 'me')") },
			func(ctx context.Context, s *store.Store) error {
				j, err := jobOf(ctx, s)
				if err == nil {
					_, err = s.Renew(ctx, []event.Job{j}, time.Hour)
				}
				return err
			},
			queue,
			"",
			false,
		},
		"give back": {"spine.give_back(", leased, func(ctx context.Context, s *store.Store) error {
			j, err := jobOf(ctx, s)
			if err == nil {
				err = s.GiveBack(ctx, []event.Job{j})
			}
			return err
		}, queue, "", false},
		"replay": {"spine.replay(", died, func(ctx context.Context, s *store.Store) error {
			_, err := s.Replay(ctx, "x", "", "", "me")
			return err
		}, queue, "", false},
		"replay the dead": {"spine.replay_dead(", died, func(ctx context.Context, s *store.Store) error {
			_, err := s.ReplayDead(ctx, store.DeadFilter{}, 10, func(int64) {})
			return err
		}, queue, "", false},
		"replay dead rows": {"spine.replay_rows(", died, func(ctx context.Context, s *store.Store) error {
			row := view.ProcessingRow{Destination: event.DefaultDestination}
			err := s.Pool().QueryRow(ctx, "select id from spine.events").Scan(&row.Event)
			if err == nil {
				_, err = s.ReplayRows(ctx, []view.ProcessingRow{row}, "me")
			}
			return err
		}, queue, "", true},
		"pause": {"spine.pause(", stored, func(ctx context.Context, s *store.Store) error {
			_, err := s.Pause(ctx, event.DefaultDestination, "why", "me")
			return err
		}, "select name, paused_at is null from spine.destinations", "", true},
		"accept a conflict": {
			"spine.accept_conflict(",
			func(d *database) { stored(d); d.ingest(webhook("x", payloadB)) },
			func(ctx context.Context, s *store.Store) error {
				_, err := s.AcceptConflict(ctx, "x", "", "", "me")
				return err
			},
			"select event_id, payload from spine.events order by event_id",
			"",
			true,
		},
		"reject": {"spine.reject(", func(*database) {}, func(ctx context.Context, s *store.Store) error {
			summary := event.RejectionSummary{Cause: "invalid", Status: 422, Count: 1, Since: occurredAt}
			return s.Reject(ctx, []event.RejectionSummary{summary}, true)
		}, "select action from spine.audit_log", "", false},
		"keep what is rejected": {"spine.keep_rejected(", sourced, func(ctx context.Context, s *store.Store) error {
			return s.KeepRejected(
				ctx,
				requests,
				map[string]event.Budget{"github": {Rows: 10, Bytes: 1000, Age: time.Hour}},
				true,
			)
		}, "select source, cause from spine.rejected_requests", "", false},
		"add a source": {"spine.put_source(", func(*database) {}, func(ctx context.Context, s *store.Store) error {
			_, err := s.PutSource(ctx, "github", json.RawMessage(githubSettings), "me")
			return err
		}, "select name, settings from spine.sources order by name", "", true},
		"disable a source": {"spine.disable_source(", sourced, func(ctx context.Context, s *store.Store) error {
			_, err := s.EnableSource(ctx, "github", false, "me")
			return err
		}, "select name, disabled_at is null from spine.sources order by name", "", true},
		"remove a source": {"spine.remove_source(", sourced, func(ctx context.Context, s *store.Store) error {
			return s.RemoveSource(ctx, "github", "me")
		}, "select name from spine.sources order by name", "there is no source named", true},
		"roll up": {"spine.roll_up(", stored, func(ctx context.Context, s *store.Store) error {
			_, _, err := s.RollUp(ctx)
			return err
		}, "select step, sum(accepted) from spine.rollups group by step order by step", "", false},
		"sample the depth": {"spine.sample_depth(", stored, func(ctx context.Context, s *store.Store) error {
			return s.SampleDepth(ctx)
		}, "select sampled_at is null from spine.depth_state", "", true},
		"tell of the sources": {
			"spine.tell_sources(",
			func(*database) {},
			func(ctx context.Context, s *store.Store) error {
				return s.TellSources(ctx, "p", []event.SourceReport{{Source: "default", State: "open"}})
			},
			"select process, source, state from spine.source_reports",
			"",
			false,
		},
		"forget a process": {"spine.forget_receiver(", func(d *database) {
			d.run("insert into spine.receivers values ('p')")
		}, func(ctx context.Context, s *store.Store) error {
			return s.ForgetReceiver(ctx, "p")
		}, "select process from spine.receivers", "", false},
		"note arrivals": {"spine.note_arrivals(", func(d *database) {
			stored(d)
			d.run("update spine.arrivals_watermark set event = -20000, next_event = -10000") // as if it were many
		}, func(ctx context.Context, s *store.Store) error {
			return s.NoteArrivals(ctx)
		}, "select event, next_event from spine.arrivals_watermark", "", false},
		"take a request to replay": {
			"spine.take_requested(",
			func(d *database) { keeping(d); d.run("update spine.rejected_requests set state = 'requested'") },
			func(ctx context.Context, s *store.Store) error {
				_, err := s.TakeRequested(ctx, 10)
				return err
			},
			"select state, taken_until is null from spine.rejected_requests",
			"",
			false,
		},
		"make partitions": {"spine.ensure_audit_partitions(", func(d *database) {
			d.run(`do $$ begin
				execute format('drop table spine.%I', (
					select max(c.relname)
					from pg_class c
					where c.relnamespace = 'spine'::regnamespace and c.relname ~ '^audit_trail_[0-9]+$'));
			end $$`)
		}, func(ctx context.Context, s *store.Store) error {
			_, err := s.EnsurePartitions(ctx)
			return err
		}, partitions, "", false},
		"drop a partition": {"spine.drop_audit_partition(", func(d *database) {
			d.run(`
				create table spine.audit_trail_20200101
				partition of spine.audit_trail
				for values from ('2020-01-01') to ('2020-01-02')`)
		}, func(ctx context.Context, s *store.Store) error {
			_, err := s.DropAuditPartition(ctx, time.Hour)
			return err
		}, partitions, "", false},
		"copy days": {"spine.copy_audit_days(", func(d *database) {
			d.days("2020-01-01", 3, 2)
		}, func(ctx context.Context, s *store.Store) error {
			_, _, err := s.MergeAuditDays(ctx, time.Hour)
			return err
		}, "select partition, days from spine.audit_merge", "", false},
		"merge days": {"spine.merge_audit_days(", func(d *database) {
			d.days("2020-01-01", 3, 2)
			d.run("select spine.copy_audit_days(now())")
			d.run("update spine.audit_merge set seen_at = now() - interval '1 minute'")
		}, func(ctx context.Context, s *store.Store) error {
			_, _, err := s.MergeAuditDays(ctx, time.Hour)
			return err
		}, partitions, "", false},
		"expire the audit log": {"spine.expire_audit(", func(d *database) {
			d.run("insert into spine.audit_trail (timestamp, action) values ('2020-01-01', 'claims_paused')")
		}, func(ctx context.Context, s *store.Store) error {
			_, err := s.ExpireAudit(ctx, time.Hour, 10)
			return err
		}, "select action from spine.audit_trail", "", false},
		"expire rejected requests": {
			"spine.expire_rejected(",
			func(d *database) { keeping(d); d.run("update spine.rejected_requests set at = '2020-01-01'") },
			func(ctx context.Context, s *store.Store) error {
				return s.ExpireRejected(ctx)
			},
			kept,
			"",
			false,
		},
		"expire events": {"spine.expire_events(", func(d *database) {
			stored(d)
			d.run("update spine.processing_state set status = 'completed'")
			d.run("select pg_sleep(0.01)")
		}, func(ctx context.Context, s *store.Store) error {
			_, err := s.ExpireEvents(ctx, time.Millisecond, 0, 10)
			return err
		}, "select event_id from spine.events", "", false},
	}
}()

// recomputed are writings of which nothing is lost with them: what they note is worked out again.
var recomputed = []string{"roll up", "sample the depth", "forget a process"}

// done is what a crash leaves of a statement.
type done int

const (
	no    done = iota // nothing
	yes               // all
	maybe             // one of the two
)

// crashes are what may become of a statement on its way.
var crashes = map[string]struct {
	action pgproxy.Action // of the proxy
	locked string         // where the statement is made to wait: what is done to its session then
	done   done
}{
	"it never reached the server":          {pgproxy.CutBefore, "", no},
	"it is done, and the answer is lost":   {pgproxy.DropAnswer, "", yes},
	"nothing moves any more":               {pgproxy.StallHere, "", maybe},
	"it fails on the server":               {pgproxy.Pass, "select pg_cancel_backend($1)", no},
	"its session is ended":                 {pgproxy.Pass, "select pg_terminate_backend($1)", no},
	"the connection is cut while it waits": {pgproxy.CutAfter, "select $1::int", maybe},
}

// TestCrashPoints goes through all that can become of each statement that changes
// something. The caller is told of an error, the database is as before or as
// after, and doing it again ends as if nothing had happened.
func TestCrashPoints(t *testing.T) {
	t.Parallel()
	for i, name := range slices.Sorted(maps.Keys(writings)) {
		w := writings[name]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDatabase(t, 2)
			w.prepare(d)
			before := d.rows(w.state)
			noteCommits(t, d.Pool())
			o := openDatabase(t, d.url+"&options=-csynchronous_commit%3Doff", 1)
			require.NoError(t, w.do(t.Context(), o.Store))
			if !slices.Contains(recomputed, name) {
				require.Subset(t, []string{"on"}, d.rows("select distinct setting from public.commits"),
					"E10: it is on disk, whatever the session says")
			}
			after := d.rows(w.state)
			require.NotEqual(t, before, after)
			for j, crash := range slices.Sorted(maps.Keys(crashes)) {
				if testing.Short() && (i+j)%9 != 0 {
					continue // each statement meets one of the six, each of these meets a sixth of the statements
				}
				c := crashes[crash]
				if w.begun && c.locked != "" {
					continue // its transaction has locks of its own, for which the test would wait
				}
				if w.begun && c.action == pgproxy.StallHere && name != "add a source" {
					continue // one waits for the ten seconds after which the server gives up a client
				}
				t.Run(crash, func(t *testing.T) {
					t.Parallel()
					d := newDatabase(t, 2)
					w.prepare(d)
					proxy, err := pgproxy.New(d.url)
					require.NoError(t, err)
					t.Cleanup(func() { require.NoError(t, proxy.Close()) })
					s := openDatabase(t, proxy.URL(), 2).Store
					require.NoError(t, s.CheckSchema(t.Context()))

					tables := d.psql()
					var met, over atomic.Bool
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					var conn int64    // that has sent the statement
					var begun int64   // the connection whose transaction has begun by a statement of its own
					var sent bool     // the statement, in that transaction
					kind := byte('E') // Execute; the transaction ends with Sync
					if c.action == pgproxy.CutAfter {
						kind = 'S'
					}
					proxy.OnMessage(func(m pgproxy.Message) pgproxy.Action {
						if m.FromClient && strings.HasPrefix(m.SQL, "begin") {
							begun, sent = m.Conn, false
						}
						isStatement := m.FromClient && strings.Contains(m.SQL, w.statement)
						sent = sent || isStatement && m.Conn == begun
						switch {
						case !m.FromClient:
							return pgproxy.Pass
						case !w.begun && c.action == pgproxy.DropAnswer && sent:
							// Done is what is committed.
							if m.SQL != "commit" || m.Conn != begun {
								return pgproxy.Pass
							}
						case w.begun && (c.action == pgproxy.DropAnswer || c.action == pgproxy.StallHere):
							// Its transaction has the locks by then.
							if m.SQL != "commit" {
								return pgproxy.Pass
							}
						// it has no arguments, and is one message
						case m.Type == 'Q' && isStatement:
						case m.Type == 'E' && isStatement:
							conn = m.Conn
							if m.Type != kind {
								return pgproxy.Pass
							}
						case m.Type != kind || m.Conn != conn: // Sync may come after further statements
							return pgproxy.Pass
						}
						if !met.Swap(true) && c.locked != "" {
							lockTables(t, tables)
						}
						if c.action == pgproxy.StallHere {
							cancel() // nothing else ends it
						}
						return c.action
					})
					var meeting sync.WaitGroup
					if c.locked != "" {
						meeting.Go(func() { meetWaiting(d, c.locked, &over) })
					}
					err = w.do(ctx, s)
					over.Store(true)
					meeting.Wait()
					require.True(t, met.Load(), "the statement is not sent")
					require.Error(t, err)
					if c.locked != "" {
						run(t, tables, "rollback")
					}
					proxy.Forget()
					if w.begun && c.action == pgproxy.StallHere {
						// Nobody tells the server that its client is gone: the next one waits until it finds that out.
						require.NoError(t, w.do(t.Context(), s))
						require.Equal(t, after, d.rows(w.state))
					}
					// It may go on without its client for a moment, and the proxy may stall it only now.
					require.Eventually(t, func() bool {
						proxy.Resume()
						return d.value(`
							select count(*)
							from pg_stat_activity
							where datname = current_database()
								and state <> 'idle'
								and query like '%spine.%'
								and pid <> pg_backend_pid()`) == "0"
					}, patience, 5*time.Millisecond)

					is := d.rows(w.state)
					switch c.done {
					case maybe:
						require.Contains(t, [][]string{before, after}, is)
					case yes:
						require.Equal(t, after, is)
					case no:
						require.Equal(t, before, is)
					}
					// By the connections that went through it: they are of use again.
					if err = w.do(t.Context(), s); err != nil && w.again != "" {
						require.ErrorContains(t, err, w.again)
					} else {
						require.NoError(t, err)
					}
					require.Equal(t, after, d.rows(w.state))
					require.Empty(t, d.rows(broken))
				})
			}
		})
	}
}

// lockTables makes every other session wait for what it does with a table.
func lockTables(t *testing.T, psql *pgx.Conn) {
	run(t, psql, "begin")
	run(t, psql, `do $$ declare _table regclass; begin
		for _table in
			select c.oid
			from pg_class c
			where c.relnamespace = 'spine'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
		loop
			execute format('lock table %s in access exclusive mode', _table);
		end loop;
	end $$`)
}

// meetWaiting does what act says to every session that waits for a lock.
func meetWaiting(d *database, act string, over *atomic.Bool) {
	for !over.Load() {
		for _, pid := range d.rows(`
			select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`) {
			d.run(strings.ReplaceAll(act, "$1", pid))
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// TestEveryStatementHasItsCrashPoints: a function of the database that a store
// calls is in the table above, or is here since it needs no place there.
func TestEveryStatementHasItsCrashPoints(t *testing.T) {
	t.Parallel()
	exempt := []string{
		// They only read.
		"audit_begins",
		"audit_stretches",
		"audit_since",
		"audited_beyond",
		"audited_now",
		"commits_waiting",
		"notify_jam",
		"connected_workers",
		"differences_json",
		"events_within",
		"explain",
		"first_id_since",
		"given_up",
		"id_of",
		"last_arrival",
		"oldest_ready",
		"require_source",
		"rolled_up_to",
		"trail_end",
		"trail_shift",
		"table_lockers",
		"trail_of",
		"troubles",
		"verify",
		"weigh_conflicts",
		// It only raises sequences, which no crash takes back.
		"mend_sequences",
		// Called again, it finds what it has noted. Each start tells which destinations are paused.
		"note_database",
		// It leaves nothing behind.
		"try_storing",
	}
	for _, w := range writings {
		exempt = append(exempt, strings.TrimSuffix(strings.TrimPrefix(w.statement, "spine."), "("))
	}
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	calls := regexp.MustCompile(`spine\.([a-z_]+)\(`)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file) //nolint:gosec // of this package
		require.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(strings.TrimSpace(line), "//") {
				continue
			}
			for _, call := range calls.FindAllStringSubmatch(line, -1) {
				require.True(
					t,
					slices.Contains(exempt, call[1]),
					"%s calls spine.%s: what if the connection breaks there?",
					file,
					call[1],
				)
			}
		}
	}
}

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/webhookspine/spine/internal/bench"
)

// storedDays is the number of days, up to now, over which stored events are spread.
const storedDays = 14

// storedChunk is how many events one transaction of the fill stores.
const storedChunk = 25_000

// Statements of the fill. They write what the life of an event without failures leaves behind. Of a
// thousand events one is dead or waits for a far retry. $1 is the first number, $2 the one after
// the last, $3 the time of event 0, and $4 the interval between two events.
const (
	storeEvents = `
		insert into spine.events (id, event_id, event_type, occurred_at, payload, payload_hash, created_at)
		overriding system value
		select n, 'evt_' || md5(n::text),
			(array['user.created', 'user.updated', 'order.paid', 'invoice.sent'])[1 + n % 4], at,
			payload::json, sha256(convert_to(payload, 'UTF8')), at
		from generate_series($1::bigint, $2::bigint - 1) n, lateral (
			select $3::timestamptz + $4::interval * n as at,
				format('{"padding":"%s","user_id":%s}', repeat(md5(n::text), 31), n) as payload) e`

	storeStates = `
		insert into spine.processing_state (event, event_id, status, attempt_count,
			next_attempt_at, last_attempt_at, completed_at, error_message,
			lease_token, created_at, updated_at)
		select n, 'evt_' || md5(n::text), status, case status when 'dead' then 5 else 1 end,
			case status when 'failed' then now() + interval '1 year' end, settled_at,
			case status when 'completed' then settled_at end,
			case when status <> 'completed' then 'the destination answered 500' end, 2, at, settled_at
		from generate_series($1::bigint, $2::bigint - 1) n, lateral (
			select $3::timestamptz + $4::interval * n as at,
				$3::timestamptz + $4::interval * n + interval '4 ms' as settled_at,
				case n % 2000 when 777 then 'dead' when 1777 then 'failed' else 'completed' end as status) p`

	storeReceipts = `
		insert into spine.audit_trail (timestamp, event, event_id, action)
		select $3::timestamptz + $4::interval * n, n, 'evt_' || md5(n::text), action
		from generate_series($1::bigint, $2::bigint - 1) n,
			unnest(array['event_received', 'event_inserted']::spine.audit_action[]) action`

	storeAttempts = `
		insert into spine.audit_trail (timestamp, event, event_id, action, details)
		select $3::timestamptz + $4::interval * n + step.after, n, 'evt_' || md5(n::text), step.action, step.details
		from generate_series($1::bigint, $2::bigint - 1) n, (values
			(interval '1 ms', 'processing_attempt_started'::spine.audit_action,
				'{"attempt":1,"worker":"machine-1-7f3a9c"}'::json),
			('4 ms', 'processing_succeeded', '{"attempt":1,"lease":1,"status":200,"answer":"ok","duration_ms":2.417}')
		) as step(after, action, details)`

	// One batch of a full queue, with random ids as providers make them. The load generator's ids
	// are in order, which spares their index. $1 is the batch.
	storeRandom = `
		select spine.ingest_events(
			_event_id => (select array_agg('evt_' || md5($1::int || '-' || n)) from generate_series(1, 40) n),
			_event_type => array_fill('bench.event'::text, array[40]), _occurred_at => array_fill(now(), array[40]),
			_payload => array_fill(format('{"padding":"%s"}', repeat(md5('payload'), 31)), array[40]),
			_hash => array_fill(sha256('payload'), array[40]))`

	// Does what spine.ensure_audit_partitions() does, for past days, with the settings of today's
	// partition. %d is the number of days.
	storePartitions = `
		do $$ declare
			_name text;
			_settings text := (select array_to_string(c.reloptions, ', ') from pg_class c
				where c.oid = ('spine.audit_trail_' || to_char(timezone('UTC', now()), 'YYYYMMDD'))::regclass);
		begin
			for _back in 1 .. %d loop
				_name := 'spine.audit_trail_' || to_char(timezone('UTC', now())::date - _back, 'YYYYMMDD');
				execute format(
					'create table %%s (like spine.audit_trail including defaults including constraints)', _name
				);
				execute format('alter table %%s owner to %%s', _name,
					(select relowner::regrole from pg_class where oid = 'spine.audit_trail'::regclass));
				execute format('set timezone = ''UTC''; alter table spine.audit_trail'
					' attach partition %%s for values from (%%L) to (%%L)',
					_name, timezone('UTC', now())::date - _back, timezone('UTC', now())::date - _back + 1);
				if _settings <> '' then
					execute format('alter table %%s set (%%s)', _name, _settings);
				end if;
			end loop;
		end $$`

	// PostgreSQL does not maintain indexes that are not ready, and REINDEX makes them ready. So
	// they are built in one go at the end. This takes a superuser.
	storeWithoutIndexes = `
		update pg_index i set indisready = false, indisvalid = false
		from pg_class c where c.oid = i.indrelid and c.relkind = 'r' and c.relnamespace = 'spine'::regnamespace
			and c.relname ~ '^(events|processing_state|audit_trail_\d+)$'
		returning indexrelid::regclass::text`
)

// storedLoad holds the figures of one state of the tables.
type storedLoad struct {
	ingest, drain, latency []float64 // events/s, events/s, p50 in ms
	vacuum                 []float64 // seconds that a vacuum took afterwards
}

// compareStored measures ingest, drain, latency and the reading endpoints beside many stored
// events. It also measures, in turns, on the empty tables of another database of the same server.
// Thirty gigabytes fill the machine's memory, and every writer then waits for the system to make
// room, whatever the tables hold.
func compareStored(ctx context.Context, t *trial) (err error) {
	repeats := 3
	if t.options.short {
		repeats = 1
	}
	if err := t.startAfresh(ctx, together, t.sinkURL()); err != nil {
		return err
	}
	if err := t.fill(ctx); err != nil {
		return fmt.Errorf("filling the tables: %w", err)
	}
	bare := &trial{lab: t.lab, scenario: t.scenario, system: t.system}
	done, err := bare.open(ctx, strings.ToLower(t.scenario)+"_empty")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	var empty, full storedLoad
	for range repeats {
		if err := errors.Join(bare.halt(), t.start(ctx, together, t.sinkURL())); err != nil {
			return err
		}
		if err := t.measureStored(ctx, &full); err != nil {
			return fmt.Errorf("beside stored events: %w", err)
		}
		if err := errors.Join(t.halt(), bare.startAfresh(ctx, together, bare.sinkURL())); err != nil {
			return err
		}
		if err := bare.measureStored(ctx, &empty); err != nil {
			return fmt.Errorf("on empty tables: %w", err)
		}
	}
	if err := bare.measureRandom(ctx, "on empty tables"); err != nil {
		return err
	}
	if err := t.measureRandom(ctx, "beside stored events"); err != nil {
		return err
	}
	for _, f := range []struct {
		rate, kept  row
		empty, full []float64
	}{
		{s8Ingest, s8IngestKept, empty.ingest, full.ingest},
		{s8Drain, s8DrainKept, empty.drain, full.drain},
		{s8Latency, s8LatencyKept, empty.latency, full.latency},
	} {
		t.figure(f.rate, median(f.full))
		t.figure(f.kept, median(f.full)/median(f.empty))
		t.note("%s: empty %s, beside stored events %s", f.rate.What, formatNumbers(f.empty), formatNumbers(f.full))
	}
	t.note("vacuum after each, s: empty %s, beside stored events %s",
		formatNumbers(empty.vacuum), formatNumbers(full.vacuum))
	return nil
}

// measureStored measures what S4, S3 and S1 do, from the same distance to a checkpoint. It leaves
// the queue empty and nothing for autovacuum to do. Autovacuum of either database would otherwise
// take one of two processors from some measurements and not from others.
func (t *trial) measureStored(ctx context.Context, load *storedLoad) error {
	if _, err := t.admin.Exec(ctx, "checkpoint"); err != nil {
		return fmt.Errorf("making a checkpoint: %w", err)
	}
	if _, err := t.drain(ctx, t.backlog()/20); err != nil {
		return fmt.Errorf("warming up: %w", err)
	}
	delivered, err := t.e2e(
		ctx,
		bench.Load{Connections: 64, Rate: 500, WarmUp: warmUp, Duration: 3 * t.options.duration},
	)
	if err != nil {
		return err
	}
	// Longer than others, because a stall of 0.1 s would distort a drain of less than a second.
	drained, err := t.drain(ctx, 3*t.backlog())
	if err != nil {
		return err
	}
	if err := t.start(ctx, together, storeOnly); err != nil {
		return err
	}
	ingested, err := t.closedLoop(ctx, bench.Load{Connections: 64})
	if err != nil {
		return err
	}
	load.drain = append(load.drain, drained.Delivery.PerSecond)
	load.latency = append(load.latency, delivered.Delivery.Latency.P50)
	load.ingest = append(load.ingest, ingested.AcknowledgedPerSecond)
	if err := t.deliverAll(ctx); err != nil {
		return err
	}
	began := time.Now()
	if _, err := t.pool.Exec(
		ctx,
		"vacuum (analyze) spine.events, spine.processing_state, spine.audit_trail",
	); err != nil {
		return fmt.Errorf("vacuuming: %w", err)
	}
	load.vacuum = append(load.vacuum, time.Since(began).Seconds())
	return nil
}

// measureRandom notes how quickly events with random ids are stored from a checkpoint on, by SQL
// alone, and how much WAL they write.
func (t *trial) measureRandom(ctx context.Context, state string) error {
	if err := t.halt(); err != nil {
		return err
	}
	if _, err := t.admin.Exec(ctx, "checkpoint"); err != nil {
		return fmt.Errorf("making a checkpoint: %w", err)
	}
	const written = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8"
	var before, after float64
	if err := t.pool.QueryRow(ctx, written).Scan(&before); err != nil {
		return fmt.Errorf("asking for what was written: %w", err)
	}
	batches, began := int(t.backlog()/40), time.Now()
	for i := range batches {
		if _, err := t.pool.Exec(ctx, storeRandom, i); err != nil {
			return fmt.Errorf("storing random ids: %w", err)
		}
	}
	took := time.Since(began)
	if err := t.pool.QueryRow(ctx, written).Scan(&after); err != nil {
		return fmt.Errorf("asking for what was written: %w", err)
	}
	t.note("random ids %s, spine.ingest_events() of 40 in one session after a checkpoint: %s/s, %s B of WAL an event",
		state, formatNumber(float64(40*batches)/took.Seconds()), formatNumber((after-before)/float64(40*batches)))
	return nil
}

// deliverAll delivers the events that were only stored.
func (t *trial) deliverAll(ctx context.Context) error {
	stopSink, err := t.openSink(ctx)
	if err != nil {
		return err
	}
	err = t.start(ctx, together, t.sinkURL())
	if err == nil {
		err = t.awaitFinished(ctx, time.Minute)
	}
	_, sinkErr := stopSink()
	return errors.Join(err, sinkErr)
}

// fill stores events as if they had come in over the last days, with their queue rows and steps. It
// reports how long the reading endpoints take before and after the tables are analyzed.
func (t *trial) fill(ctx context.Context) (err error) {
	began := time.Now()
	if err := t.halt(); err != nil {
		return err
	}
	filler, err := t.openFiller(ctx)
	if err != nil {
		return err
	}
	defer filler.Close()
	// None of this affects the measurements, and it ends with the fill.
	if err := t.configure(
		ctx,
		"alter system set autovacuum = off",
		"alter system set max_wal_size = '4GB'",
	); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, t.configure(context.WithoutCancel(ctx),
			"alter system reset autovacuum", "alter system reset max_wal_size"))
	}()

	const empty = "truncate spine.events, spine.processing_state, spine.conflicts, spine.audit_trail"
	if _, err := filler.Exec(ctx, empty); err != nil {
		return fmt.Errorf("emptying the tables: %w", err)
	}
	if _, err := filler.Exec(ctx, fmt.Sprintf(storePartitions, storedDays)); err != nil {
		return fmt.Errorf("making partitions: %w", err)
	}
	indexes, err := queryTexts(ctx, filler, storeWithoutIndexes)
	if err != nil {
		return fmt.Errorf("leaving the indexes out: %w", err)
	}
	if err := t.storeRows(ctx, filler); err != nil {
		return err
	}
	rows := time.Since(began)
	// Write what Spine would have noted meanwhile, and a source that is set up and not used yet. No
	// query may search for its events among those of the others.
	if err := runParallel(ctx, filler, append(withPrefix("reindex index ", indexes),
		"insert into spine.sources (name) values ('silent')",
		fmt.Sprintf("update spine.arrivals_watermark set event = %[1]d, next_event = %[1]d", t.options.stored),
		"update spine.sources set last_arrival_at = now() where name = 'default'",
		fmt.Sprintf("select setval(pg_get_serial_sequence('spine.events', 'id'), %d)", t.options.stored))); err != nil {
		return fmt.Errorf("making the indexes: %w", err)
	}
	made := time.Since(began)
	if err := t.measureReading(ctx, s8SlowestFresh, "not analyzed"); err != nil {
		return err
	}
	analyzing := time.Now()
	tables, err := queryTexts(ctx, filler, `
		select format('%I.%I', schemaname, relname) from pg_stat_user_tables
		where schemaname = 'spine' order by pg_total_relation_size(relid) desc`)
	if err != nil {
		return fmt.Errorf("listing the tables: %w", err)
	}
	if err := runParallel(ctx, filler, withPrefix("vacuum (analyze) ", tables)); err != nil {
		return fmt.Errorf("analyzing the tables: %w", err)
	}
	if _, err := t.admin.Exec(ctx, "checkpoint"); err != nil {
		return fmt.Errorf("making a checkpoint: %w", err)
	}
	size, err := t.size(ctx)
	if err != nil {
		return err
	}
	t.note("%d events stored, %.1f GB of tables and indexes: "+
		"rows in %.0f s, indexes in %.0f s, vacuum and analyze in %.0f s",
		t.options.stored, float64(size)/1e9, rows.Seconds(), (made - rows).Seconds(), time.Since(analyzing).Seconds())
	return t.measureReading(ctx, s8Slowest, "analyzed")
}

// openFiller opens sessions of a superuser, one for each core. In them no trigger fires, and no
// commit waits for the disk.
func (t *trial) openFiller(ctx context.Context) (*pgxpool.Pool, error) {
	address, err := url.Parse(t.server.SuperuserURL())
	if err != nil {
		return nil, fmt.Errorf("reading the server's URL: %w", err)
	}
	database, err := url.Parse(t.database)
	if err != nil {
		return nil, fmt.Errorf("reading the database's URL: %w", err)
	}
	address.Path = database.Path
	query := address.Query()
	query.Set("session_replication_role", "replica")
	query.Set("synchronous_commit", "off")
	query.Set("maintenance_work_mem", "1GB")
	query.Set("max_parallel_maintenance_workers", "0")
	query.Set("max_parallel_workers_per_gather", "0")
	address.RawQuery = query.Encode()
	return openPool(ctx, address.String(), int32(runtime.NumCPU())) //nolint:gosec // G115: cores
}

// storeRows stores the events with everything that belongs to them, a chunk in a transaction.
func (t *trial) storeRows(ctx context.Context, filler *pgxpool.Pool) error {
	span := storedDays * 24 * time.Hour
	first, between := time.Now().Add(-span), span/time.Duration(t.options.stored+1)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(int(filler.Config().MaxConns))
	for from := int64(1); from <= t.options.stored; from += storedChunk {
		g.Go(func() error {
			err := pgx.BeginFunc(ctx, filler, func(tx pgx.Tx) error {
				for _, statement := range []string{storeEvents, storeStates, storeReceipts, storeAttempts} {
					if _, err := tx.Exec(
						ctx,
						statement,
						from,
						min(from+storedChunk, t.options.stored+1),
						first,
						between,
					); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("storing events from %d on: %w", from, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// runParallel runs statements in as many sessions as the pool has, the first ones first.
func runParallel(ctx context.Context, pool *pgxpool.Pool, statements []string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(int(pool.Config().MaxConns))
	for _, statement := range statements {
		g.Go(func() error {
			if _, err := pool.Exec(ctx, statement); err != nil {
				return fmt.Errorf("%s: %w", statement, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func withPrefix(prefix string, names []string) []string {
	all := make([]string, len(names))
	for i, name := range names {
		all[i] = prefix + name
	}
	return all
}

func queryTexts(ctx context.Context, pool *pgxpool.Pool, query string) ([]string, error) {
	rows, err := pool.Query(ctx, query)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// reading is one question and how long its answer took, in milliseconds.
type reading struct {
	what string
	took float64
}

// measureReading times every reading endpoint, and the SQL of the command line, and reports the
// slowest.
func (t *trial) measureReading(ctx context.Context, slowest row, state string) error {
	if err := t.start(ctx, together, t.sinkURL()); err != nil {
		return err
	}
	var ids []string
	for _, n := range []int64{1, t.options.stored} {
		id, err := queryTexts(ctx, t.pool, fmt.Sprintf("select event_id from events where id = %d", n))
		if err != nil || len(id) != 1 {
			return fmt.Errorf("looking for event %d: %w", n, cmp.Or(err, pgx.ErrNoRows))
		}
		ids = append(ids, id[0])
	}
	// Filters ask for values that all rows have, that few have and that none has.
	paths := []string{
		"/dashboard",
		"/api/overview",
		"/api/overview?range=7d",
		"/api/events",
		"/api/audit",
		"/api/processing",
		"/api/attempts",
		"/api/attempts?outcome=failure",
		"/api/events?type=order.paid",
		"/api/events?type=unknown",
		"/api/events?source=default",
		"/api/events?source=silent",
		"/api/events?type=unknown&status=completed",
		"/api/audit?action=processing_succeeded",
		"/api/audit?action=conflict_detected",
		"/api/audit?source=silent",
		"/api/audit?type=unknown",
		"/api/audit?success=failure",
		"/api/processing?source=silent",
		"/api/processing?type=unknown",
		"/api/processing?type=unknown&status=dead",
	}
	week := url.QueryEscape(time.Now().Add(-7 * 24 * time.Hour).UTC().Format(time.RFC3339))
	for _, list := range []string{"events", "audit", "processing", "attempts"} {
		paths = append(paths, "/api/"+list+"?until="+week, "/api/"+list+"?source=silent&until="+week)
	}
	for _, status := range []string{"pending", "processing", "completed", "failed", "dead"} {
		paths = append(paths, "/api/processing?status="+status, "/api/events?status="+status)
	}
	paths = append(paths, "/api/events/"+ids[0], "/api/events/"+ids[1], "/api/events/unknown",
		"/api/audit?event_id="+ids[0], "/api/attempts?event_id="+ids[0],
		"/api/search?q="+ids[0], "/api/search?q=evt_7", "/api/search?q=unknown", "/metrics")
	var all []reading
	for _, path := range paths {
		took, next, err := t.timeGet(ctx, path)
		if err != nil {
			return err
		}
		all = append(all, reading{path, took})
		if next != "" {
			if took, _, err = t.timeGet(ctx, next); err != nil {
				return err
			}
			all = append(all, reading{path + " second page", took})
		}
	}
	// Spine's own sessions have it off too.
	psql, err := t.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("opening a session: %w", err)
	}
	defer psql.Release()
	if _, err := psql.Exec(ctx, "set jit = off"); err != nil {
		return fmt.Errorf("opening a session: %w", err)
	}
	for _, statement := range []string{
		"select * from trace('" + ids[0] + "')", "select * from event('" + ids[1] + "')",
		"select * from processing_state where event = id_of('" + ids[0] + "')",
		"select oldest_ready()", "select name, last_arrival(name) from sources",
		"select * from depth", "select * from dead_letters limit 5", "select * from stuck limit 5",
		"select event_id, action, success, timestamp from audit_log order by timestamp desc limit 20",
	} {
		took, err := timeWarm(func() error {
			_, err := psql.Exec(ctx, statement)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
		all = append(all, reading{statement, took})
	}
	slices.SortStableFunc(all, func(a, b reading) int { return cmp.Compare(b.took, a.took) })
	t.figure(slowest, all[0].took)
	var said []string
	for _, r := range all {
		said = append(said, fmt.Sprintf("%s %s", r.what, formatNumber(r.took)))
	}
	t.note("%s, ms: %s", state, strings.Join(said, ", "))
	return nil
}

// readingTries is how often a question is timed, after a first time.
const readingTries = 3

// timeWarm asks once, then times readingTries more, and returns the median in milliseconds.
func timeWarm(ask func() error) (ms float64, err error) {
	if err := ask(); err != nil {
		return 0, err
	}
	times := make([]float64, readingTries)
	for i := range times {
		began := time.Now()
		if err := ask(); err != nil {
			return 0, err
		}
		times[i] = milliseconds(time.Since(began))
	}
	return median(times), nil
}

// timeGet times a GET to a front. It also returns where the Link header leads.
func (t *trial) timeGet(ctx context.Context, path string) (ms float64, next string, err error) {
	ms, err = timeWarm(func() error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, t.fronts()[0]+path, nil)
		if err != nil {
			return err
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			return err
		}
		defer func() { _ = answer.Body.Close() }()
		if _, err := io.Copy(io.Discard, answer.Body); err != nil {
			return err
		}
		wanted := map[string]int{"/api/events/unknown": http.StatusNotFound}[path]
		if answer.StatusCode != cmp.Or(wanted, http.StatusOK) {
			return errors.New(answer.Status)
		}
		next, _, _ = strings.Cut(strings.TrimPrefix(answer.Header.Get("Link"), "<"), ">")
		return nil
	})
	if err != nil {
		return 0, "", fmt.Errorf("asking for %s: %w", path, err)
	}
	return ms, next, nil
}

func formatNumbers(values []float64) string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = formatNumber(v)
	}
	return strings.Join(all, ", ")
}

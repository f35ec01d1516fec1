package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/webhookspine/spine/internal/bench"
)

// scenario is one experiment.
type scenario struct {
	name    string
	about   string
	run     func(ctx context.Context, t *trial) error
	systems []string // empty means all but the limits
	// once marks a scenario that takes minutes with a slow system. All but Spine take part only in
	// the first round.
	once bool
	// single marks a scenario in which every system takes part only in the first round.
	single bool
}

func (s scenario) concerns(under system, round int) bool {
	if round > 1 && (s.single || s.once && under.name != "spine") {
		return false
	}
	if len(s.systems) == 0 {
		return under.name != "limit"
	}
	return slices.Contains(s.systems, under.name)
}

func scenarios() []scenario {
	spine := []string{"spine"}
	return []scenario{
		{name: "L", about: "limits of the machine", run: measureLimits, systems: []string{"limit"}},
		{name: "S1", about: "ingest, stored only", run: ingest},
		{name: "S2", about: "the same, nine of ten are duplicates", run: ingestDuplicates},
		{name: "S3", about: "drain a backlog", run: drain},
		{name: "S4", about: "from POST to arrival, warm", run: latency},
		{name: "S5", about: "ingest and delivery at once, sustained", run: sustain},
		{name: "S6", about: "drain while a snapshot is held open", run: drainWithSnapshot, once: true},
		{name: "S7", about: "SIGKILL in the middle of a drain", run: killDuringDrain, once: true},
		{name: "S8", about: "the same beside many stored events", run: compareStored, systems: spine, single: true},
		{name: "SM", about: "three api and three worker processes", run: compareMany, systems: spine},
		{name: "SV", about: "five dashboards open at 2,000/s", run: watchDashboards, systems: spine, single: true},
		{name: "SK", about: "a long run at 60 % of capacity", run: soakLong, systems: spine, single: true},
	}
}

// The rows of the report, in its order, with the goals for Spine.
var (
	limitHTTP    = row{Scenario: "L", What: "HTTP without a database, 64 connections", Unit: "/s"}
	limitInsert  = row{Scenario: "L", What: "1 kB rows into a bare table, 100 a statement", Unit: "/s"}
	limitCommits = row{Scenario: "L", What: "two commits, p50", Unit: "ms"}
	limitNotify  = row{Scenario: "L", What: "NOTIFY to its arrival, p50", Unit: "ms"}

	s1Rate = row{
		Scenario: "S1", What: "64 connections, acknowledged", Unit: "/s", Goal: atLeast(12_000), TimesRiver: 5,
	}
	s1P50      = row{Scenario: "S1", What: "64 connections, p50", Unit: "ms"}
	s1P99      = row{Scenario: "S1", What: "64 connections, p99", Unit: "ms", Goal: atMost(20)}
	s1Rate256  = row{Scenario: "S1", What: "256 connections, acknowledged", Unit: "/s", Goal: atLeast(17_000)}
	s1P50Of256 = row{Scenario: "S1", What: "256 connections, p50", Unit: "ms"}
	s1P99Of256 = row{Scenario: "S1", What: "256 connections, p99", Unit: "ms"}
	s1OpenP50  = row{Scenario: "S1", What: "500/s offered, p50", Unit: "ms", Goal: atMost(1.2)}
	s1OpenP99  = row{Scenario: "S1", What: "500/s offered, p99", Unit: "ms", Goal: atMost(5)}
	s1Memory   = row{Scenario: "S1", What: "memory of the process at saturation", Unit: "MB", Goal: atMost(150)}

	s2Rate = row{Scenario: "S2", What: "64 connections, acknowledged", Unit: "/s", Goal: atLeast(12_000)}
	s2P99  = row{Scenario: "S2", What: "64 connections, p99", Unit: "ms"}

	s3Rate  = row{Scenario: "S3", What: "delivered", Unit: "/s", Goal: atLeast(10_000), TimesRiver: 2.2}
	s3Bytes = row{
		Scenario: "S3", What: "growth of tables and indexes beyond the payload", Unit: "B/event", Goal: atMost(1_200),
	}

	s4SlowP50      = row{Scenario: "S4", What: "50/s, p50", Unit: "ms", Goal: atMost(2.5)}
	s4SlowP99      = row{Scenario: "S4", What: "50/s, p99", Unit: "ms", Goal: atMost(6)}
	s4FastP50      = row{Scenario: "S4", What: "500/s, p50", Unit: "ms", Goal: atMost(2.5)}
	s4FastP99      = row{Scenario: "S4", What: "500/s, p99", Unit: "ms", Goal: atMost(12)}
	s4Repeated     = row{Scenario: "S4", What: "delivered more than once", Unit: "events", Goal: atMost(0)}
	s4ApartSlowP50 = row{Scenario: "S4", What: "50/s, api and worker apart, p50", Unit: "ms", Goal: atMost(3.5)}
	s4ApartSlowP99 = row{Scenario: "S4", What: "50/s, api and worker apart, p99", Unit: "ms", Goal: atMost(7)}
	s4ApartFastP50 = row{Scenario: "S4", What: "500/s, api and worker apart, p50", Unit: "ms", Goal: atMost(3.5)}
	s4ApartFastP99 = row{Scenario: "S4", What: "500/s, api and worker apart, p99", Unit: "ms", Goal: atMost(13)}

	s5Rate = row{Scenario: "S5", What: "sustained, delivered", Unit: "/s", Goal: atLeast(5_500), TimesRiver: 4}
	s5P50  = row{Scenario: "S5", What: "at that rate, POST to arrival, p50", Unit: "ms"}
	s5P99  = row{Scenario: "S5", What: "at that rate, POST to arrival, p99", Unit: "ms"}

	s5Memory     = row{Scenario: "S5", What: "memory of the process at saturation", Unit: "MB", Goal: atMost(150)}
	s5Statements = row{Scenario: "S5", What: "at that rate, statements", Unit: "per event", Goal: atMost(0.2)}
	s5Commits    = row{Scenario: "S5", What: "at that rate, commits", Unit: "per event", Goal: atMost(0.1)}
	s5WAL        = row{Scenario: "S5", What: "at that rate, WAL", Unit: "kB/event"}

	s6First = row{Scenario: "S6", What: "first three backlogs, delivered", Unit: "/s"}
	s6Last  = row{Scenario: "S6", What: "last three backlogs, delivered", Unit: "/s"}
	s6Kept  = row{Scenario: "S6", What: "last ÷ first", Goal: atLeast(0.8)}

	s7Left     = row{Scenario: "S7", What: "undelivered 30 s after the restart", Unit: "events", Goal: atMost(0)}
	s7Unnoted  = row{Scenario: "S7", What: "arrived, and not noted as such by then", Unit: "events", Goal: atMost(0)}
	s7Repeated = row{Scenario: "S7", What: "delivered more than once", Unit: "events"}

	s8SlowestFresh = row{
		Scenario: "S8", What: "slowest page or psql question, tables not analyzed", Unit: "ms", Goal: atMost(50),
	}
	s8Slowest     = row{Scenario: "S8", What: "slowest page or psql question", Unit: "ms", Goal: atMost(50)}
	s8Ingest      = row{Scenario: "S8", What: "64 connections, acknowledged", Unit: "/s"}
	s8IngestKept  = row{Scenario: "S8", What: "acknowledged ÷ on empty tables", Goal: atLeast(0.85)}
	s8Drain       = row{Scenario: "S8", What: "delivered", Unit: "/s"}
	s8DrainKept   = row{Scenario: "S8", What: "delivered ÷ on empty tables", Goal: atLeast(0.85)}
	s8Latency     = row{Scenario: "S8", What: "500/s, p50", Unit: "ms"}
	s8LatencyKept = row{Scenario: "S8", What: "p50 ÷ on empty tables", Goal: atMost(1.15)}

	smIngest     = row{Scenario: "SM", What: "192 connections over three, acknowledged", Unit: "/s"}
	smIngestKept = row{Scenario: "SM", What: "acknowledged by three ÷ by one", Goal: atLeast(1)}
	smDrain      = row{Scenario: "SM", What: "drain by three, delivered", Unit: "/s"}
	smDrainKept  = row{Scenario: "SM", What: "delivered by three ÷ by one", Goal: atLeast(1)}

	svP99     = row{Scenario: "SV", What: "2,000/s in and out, five viewers, acknowledgement p99", Unit: "ms"}
	svP99Kept = row{Scenario: "SV", What: "p99 ÷ without viewers", Goal: atMost(1.1)}
	svSlowest = row{Scenario: "SV", What: "slowest answer to a viewer", Unit: "ms"}
	svMemory  = row{Scenario: "SV", What: "memory of the process, at most", Unit: "MB", Goal: atMost(150)}

	skMemory     = row{Scenario: "SK", What: "memory of serve at the end", Unit: "MB", Goal: atMost(150)}
	skMemoryKept = row{Scenario: "SK", What: "memory of serve, last third ÷ first", Goal: atMost(1.2)}
	skNotFlat    = row{Scenario: "SK", What: "figures that are not flat", Goal: atMost(0)}
	skDeadKept   = row{Scenario: "SK", What: "dead tuples, last third ÷ first"}
	skArriveKept = row{Scenario: "SK", What: "POST to arrival, p50, last third ÷ first"}
	skWAL        = row{Scenario: "SK", What: "WAL", Unit: "kB/event"}
	skCommits    = row{Scenario: "SK", What: "commits", Unit: "per event"}
	skStatements = row{Scenario: "SK", What: "statements", Unit: "per event"}
)

// warmUp is how long the same load runs before it is measured.
const warmUp = time.Second

// closedLoop warms up in a run of its own, so that every event of the measured one can be counted
// in the database.
func (t *trial) closedLoop(ctx context.Context, load bench.Load) (bench.Report, error) {
	warming := load
	warming.Duration = warmUp
	if _, err := t.ingest(ctx, warming); err != nil {
		return bench.Report{}, fmt.Errorf("warming up: %w", err)
	}
	load.Duration = t.options.duration
	return t.ingest(ctx, load)
}

func ingest(ctx context.Context, t *trial) error {
	if err := t.start(ctx, together, storeOnly); err != nil {
		return err
	}
	r, err := t.closedLoop(ctx, bench.Load{Connections: 64})
	if err != nil {
		return err
	}
	t.figure(s1Rate, r.AcknowledgedPerSecond)
	t.figure(s1P50, r.AcknowledgeLatency.P50)
	t.figure(s1P99, r.AcknowledgeLatency.P99)
	if r, err = t.closedLoop(ctx, bench.Load{Connections: 256}); err != nil {
		return err
	}
	t.figure(s1Rate256, r.AcknowledgedPerSecond)
	t.figure(s1P50Of256, r.AcknowledgeLatency.P50)
	t.figure(s1P99Of256, r.AcknowledgeLatency.P99)
	t.peakMemory(s1Memory)
	open := bench.Load{Connections: 64, Rate: 500, WarmUp: warmUp, Duration: t.options.duration}
	if r, err = t.ingest(ctx, open); err != nil {
		return err
	}
	t.figure(s1OpenP50, r.AcknowledgeLatency.P50)
	t.figure(s1OpenP99, r.AcknowledgeLatency.P99)
	return nil
}

func ingestDuplicates(ctx context.Context, t *trial) error {
	if err := t.start(ctx, together, storeOnly); err != nil {
		return err
	}
	r, err := t.closedLoop(ctx, bench.Load{Connections: 64, DuplicateRatio: 0.9})
	if err != nil {
		return err
	}
	t.figure(s2Rate, r.AcknowledgedPerSecond)
	t.figure(s2P99, r.AcknowledgeLatency.P99)
	return nil
}

// backlog is how many events S3 and SM drain, and S6 repeatedly.
func (t *trial) backlog() int64 {
	if t.options.short {
		return 1_000
	}
	return 20_000
}

func drain(ctx context.Context, t *trial) error {
	if err := t.start(ctx, together, t.sinkURL()); err != nil {
		return err
	}
	// Measure growth where new rows reuse the room of dead ones, as in a database that has worked
	// for more than a minute.
	for range 2 {
		if _, err := t.drain(ctx, t.backlog()); err != nil {
			return fmt.Errorf("warming up: %w", err)
		}
		if _, err := t.pool.Exec(ctx, "vacuum (skip_locked)"); err != nil {
			return fmt.Errorf("doing what autovacuum does once a minute: %w", err)
		}
	}
	before, err := t.size(ctx)
	if err != nil {
		return err
	}
	r, err := t.drain(ctx, t.backlog())
	if err != nil {
		return err
	}
	t.figure(s3Rate, r.Delivery.PerSecond)
	after, err := t.size(ctx)
	if err != nil {
		return err
	}
	var payload int64
	const query = "select octet_length(payload::text) from events order by id desc limit 1"
	if err := t.pool.QueryRow(ctx, query).Scan(&payload); err != nil {
		return fmt.Errorf("looking at a payload: %w", err)
	}
	t.figure(s3Bytes, float64(after-before)/float64(r.Accepted)-float64(payload))
	return nil
}

// size returns the size of all tables and indexes, in bytes.
func (t *trial) size(ctx context.Context) (bytes int64, err error) {
	err = t.pool.QueryRow(ctx, `
		select sum(pg_total_relation_size(c.oid))::bigint from pg_class c join pg_namespace n on n.oid = c.relnamespace
		where c.relkind = 'r' and n.nspname <> 'information_schema' and n.nspname not like 'pg\_%'`).Scan(&bytes)
	if err != nil {
		return 0, fmt.Errorf("asking for the size of the tables: %w", err)
	}
	return bytes, nil
}

func latency(ctx context.Context, t *trial) error {
	repeated, err := t.latency(ctx, together, s4SlowP50, s4SlowP99, s4FastP50, s4FastP99)
	if err != nil {
		return err
	}
	if t.system.name == "spine" {
		more, err := t.latency(ctx, apart, s4ApartSlowP50, s4ApartSlowP99, s4ApartFastP50, s4ApartFastP99)
		if err != nil {
			return err
		}
		repeated += more
	}
	t.figure(s4Repeated, float64(repeated))
	return nil
}

func (t *trial) latency(
	ctx context.Context, how layout, slowP50, slowP99, fastP50, fastP99 row,
) (repeated int64, err error) {
	if err := t.start(ctx, how, t.sinkURL()); err != nil {
		return 0, err
	}
	slow, fast, err := t.twoRates(ctx)
	if err != nil {
		return 0, err
	}
	t.figure(slowP50, slow.Delivery.Latency.P50)
	t.figure(slowP99, slow.Delivery.Latency.P99)
	t.figure(fastP50, fast.Delivery.Latency.P50)
	t.figure(fastP99, fast.Delivery.Latency.P99)
	return slow.Delivery.Repeated + fast.Delivery.Repeated, nil
}

// twoRates measures from POST to arrival at 50/s and at 500/s. The slow rate lasts twice as long,
// because it has so few events to count.
func (t *trial) twoRates(ctx context.Context) (slow, fast bench.Report, err error) {
	slow, err = t.e2e(ctx, bench.Load{Connections: 64, Rate: 50, WarmUp: 2 * warmUp, Duration: 2 * t.options.duration})
	if err != nil {
		return slow, fast, err
	}
	t.noteUnsent(slow)
	load := bench.Load{Connections: 64, Rate: 500, WarmUp: warmUp, Duration: t.options.duration}
	if fast, err = t.e2e(ctx, load); err == nil {
		t.noteUnsent(fast)
	}
	return slow, fast, err
}

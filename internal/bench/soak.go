package bench

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Soak is a long run at a constant rate. It keeps 16 bytes for each event, and little for each
// sample.
type Soak struct {
	// E2E is the load. Rate is required, and Count must be 0. A Duration of 0 means 10 min.
	E2E
	// Interval is the time from sample to sample, at most a third of Duration. 0 means 10 s, or a
	// tenth of Duration if that is less.
	Interval time.Duration
	// Processes of this machine are watched as well. The target itself is asked what it uses (GET
	// Metrics, in Prometheus' format).
	Processes []Process
	// Metrics is where the target tells its metrics. Empty means Target/metrics.
	Metrics string
	// Database, if set, is the URL of the target's database, as any role. Its statistics are
	// watched, and the server's processes if they run on this machine.
	Database string
	// Sampled, if set, is called with each sample as it is taken.
	Sampled func(Sample)
}

// Process is a process to watch. Only Linux tells what a process uses; elsewhere its figures are
// missing.
type Process struct {
	PID  int
	Name string // empty means its own name and the PID
}

func (s Soak) complete() (Soak, error) {
	if s.Duration == 0 {
		s.Duration = 10 * time.Minute
	}
	if s.Interval == 0 {
		s.Interval = min(10*time.Second, s.Duration/10)
	}
	switch {
	case s.Rate <= 0 || s.Count != 0:
		return s, errors.New("a soak has a rate and a duration, and no count")
	case s.Interval < 0 || s.Interval > s.Duration/3:
		return s, fmt.Errorf("interval must be at most a third of the duration %v, not %v", s.Duration, s.Interval)
	}
	return s, nil
}

// RunSoak is RunE2E with samples. It samples the target and what it uses, from the end of the
// warm-up to the end of the sending, and compares the first samples with the last. The report says
// what could not be watched. It is an error if a process does not exist, or the database cannot be
// read, when the run begins; other errors are those of RunE2E.
func RunSoak(ctx context.Context, ln net.Listener, soak Soak) (report SoakReport, err error) {
	defer func() { _ = ln.Close() }()
	if soak, err = soak.complete(); err != nil {
		return report, err
	}
	s := &sampler{soak: soak}
	defer func() { err = errors.Join(err, s.database.close(ctx)) }()
	if err := s.watch(ctx); err != nil {
		return report, err
	}
	report.Report, err = runE2E(ctx, ln, soak.E2E, "soak", s.run)
	if report.Scenario != "" {
		s.report(&report)
	}
	return report, err
}

// sampler takes the samples of a run.
type sampler struct {
	soak     Soak
	watched  []*watched
	database *watchedDatabase // nil if not watched, or no longer
	remarks  []string

	countsStatements bool

	before  reading // the next sample counts from it
	samples []Sample

	stats struct {
		first, last statistics
		events      int64 // acknowledged between them
		looks       int64 // our own readings between them
	}
}

// watched is a process.
type watched struct {
	name string
	read func(ctx context.Context) (usage, error)
	was  usage
	at   time.Time // time of was; zero if not yet read
}

// reading holds the counters of a run at one moment.
type reading struct {
	at                  time.Time
	acknowledged        int64
	failed              int64
	arrivals            arrivals
	acknowledge, arrive *counts
	statistics          statistics
}

// watch opens everything that is to be watched.
func (s *sampler) watch(ctx context.Context) (err error) {
	metrics := cmp.Or(s.soak.Metrics, strings.TrimSuffix(s.soak.Target, "/")+"/metrics")
	s.add("target", func(ctx context.Context) (usage, error) { return readMetrics(ctx, metrics) })
	for _, p := range s.soak.Processes {
		name, read, err := proc.usageOf(p.PID)
		switch {
		case errors.Is(err, errNoProc):
			s.leaveOut("process %d: %v", p.PID, err)
			continue
		case err != nil:
			return fmt.Errorf("watching process %d: %w", p.PID, err)
		case p.Name != "":
			name = p.Name
		default:
			name = fmt.Sprintf("%s %d", name, p.PID)
		}
		s.add(name, func(context.Context) (usage, error) { return read() })
	}
	if s.soak.Database == "" {
		return nil
	}
	if s.database, err = watchDatabase(ctx, s.soak.Database); err != nil {
		return err
	}
	if s.countsStatements = s.database.noStatements == nil; !s.countsStatements {
		s.leaveOut("statements: %v", s.database.noStatements)
	}
	read, err := proc.usageOfServer(s.database.pid, s.database.user, s.database.name)
	if err != nil {
		s.leaveOut("PostgreSQL's processes: %v", err)
		return nil
	}
	s.add("PostgreSQL", func(context.Context) (usage, error) { return read() })
	return nil
}

func (s *sampler) add(name string, read func(ctx context.Context) (usage, error)) {
	s.watched = append(s.watched, &watched{name: name, read: read})
}

func (s *sampler) leaveOut(format string, values ...any) {
	s.remarks = append(s.remarks, "left out: "+fmt.Sprintf(format, values...))
}

// run takes samples from the end of the warm-up on, at the end of every whole interval, until ctx
// is done. If one sample takes longer than the interval, the next covers more than one.
func (s *sampler) run(ctx context.Context, g *generator) {
	start := g.start.Add(g.load.WarmUp)
	last := int(g.load.Duration / s.soak.Interval)
	for n := 0; n <= last; n = max(n+1, min(last, int(time.Since(start)/s.soak.Interval))) {
		if !pause(ctx, time.Until(start.Add(time.Duration(n)*s.soak.Interval))) {
			return
		}
		sample := s.take(ctx, g)
		if ctx.Err() != nil {
			return // an interrupted reading is no sample
		}
		if n == 0 {
			continue
		}
		s.samples = append(s.samples, sample)
		if s.soak.Sampled != nil {
			s.soak.Sampled(sample)
		}
	}
}

// take takes a sample. The first one only serves as the start of the next.
func (s *sampler) take(ctx context.Context, g *generator) Sample {
	now := reading{
		at: time.Now(), acknowledged: g.acknowledged(), failed: g.failed(), arrivals: g.ledger.soFar(),
		acknowledge: g.latency.counts(), arrive: g.ledger.latency.counts(),
	}
	sample := Sample{Seconds: now.at.Sub(g.start.Add(g.load.WarmUp)).Seconds(), Backlog: now.arrivals.missing}
	before, first := s.before, s.before.at.IsZero()
	if !first {
		span := now.at.Sub(before.at)
		sample.AcknowledgedPerSecond = perSecond(now.acknowledged-before.acknowledged, span)
		sample.DeliveredPerSecond = perSecond(now.arrivals.delivered-before.arrivals.delivered, span)
		sample.Errors = now.failed - before.failed
		sample.Acknowledge = quantilesOf(now.acknowledge.minus(before.acknowledge))
		sample.Arrive = quantilesOf(now.arrive.minus(before.arrive))
	}
	s.watched = slices.DeleteFunc(s.watched, func(w *watched) bool {
		use, err := w.use(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			s.leaveOut("%s from %.0f s on: %v", w.name, sample.Seconds, err)
		case err == nil && !first:
			sample.Processes = append(sample.Processes, use)
		}
		return err != nil
	})
	if s.database != nil {
		var err error
		if now.statistics, err = s.database.read(ctx); err == nil {
			sample.Database = s.compare(now)
		} else {
			if ctx.Err() == nil {
				s.leaveOut("the database from %.0f s on: %v", sample.Seconds, err)
			}
			_ = s.database.close(ctx) // it has failed already
			s.database = nil
		}
	}
	s.before = now
	return sample
}

// use reads what the process uses now, and what it has used since the last call.
func (w *watched) use(ctx context.Context) (ProcessUse, error) {
	now, err := w.read(ctx)
	if err != nil {
		return ProcessUse{}, err
	}
	at := time.Now()
	u := ProcessUse{Name: w.name, MemoryMB: megabytes(now.memory)}
	if !w.at.IsZero() {
		u.CPU = max(0, now.cpu-w.was.cpu).Seconds() / at.Sub(w.at).Seconds() // the counter is lower after a restart
	}
	w.was, w.at = now, at
	return u, nil
}

// compare counts what the database did since the last reading.
func (s *sampler) compare(now reading) *DatabaseSample {
	is, was := now.statistics, s.before.statistics
	if s.before.at.IsZero() {
		s.stats.first, s.stats.last = is, is
		return nil
	}
	events := now.acknowledged - s.before.acknowledged
	s.stats.last = is
	s.stats.events += events
	s.stats.looks++
	return &DatabaseSample{
		LiveTuples: is.tables.live, DeadTuples: is.tables.dead,
		QueueLiveTuples: is.queue.live, QueueDeadTuples: is.queue.dead,
		PerEvent: perEventOf(was, is, 1, events),
	}
}

// perEventOf subtracts our own readings, each of them one statement and one commit.
func perEventOf(was, is statistics, looks, events int64) PerEvent {
	each := func(n int64) float64 { return float64(max(0, n)) / float64(max(1, events)) }
	p := PerEvent{WALBytes: each(is.wal - was.wal), Commits: each(is.commits - was.commits - looks)}
	if is.statements > was.statements { // else they are not counted, or ours would be
		statements := each(is.statements - was.statements - looks)
		p.Statements = &statements
	}
	return p
}

// report adds the samples to r.
func (s *sampler) report(r *SoakReport) {
	r.IntervalSeconds = s.soak.Interval.Seconds()
	r.Samples = s.samples
	if s.stats.looks > 0 {
		first, last := s.stats.first, s.stats.last
		r.Database = &DatabaseUse{
			PerEvent:  perEventOf(first, last, s.stats.looks, s.stats.events),
			SizeBegin: first.size, SizeEnd: last.size,
			GrowthBytes: float64(last.size-first.size) / float64(max(1, s.stats.events)),
		}
		if r.Database.Statements == nil && s.countsStatements {
			s.leaveOut("statements: pg_stat_statements.track is none")
		}
		switch {
		case !last.hasTables:
			s.leaveOut("tuples: the database has no tables in schema %s", schema)
		case s.soak.Duration.Seconds()/3 < last.naptime:
			s.remarks = append(s.remarks, fmt.Sprintf(
				"dead tuples grow in so short a run: autovacuum runs every %g s, and a third must be longer",
				last.naptime,
			))
		}
	}
	r.Trends = trendsOf(s.samples, s.stats.last)
	r.Remarks = s.remarks
}

// readMetrics asks a process what it uses, by the names that Prometheus' client libraries use.
func readMetrics(ctx context.Context, url string) (u usage, err error) {
	ctx, cancel := context.WithTimeout(ctx, statisticsTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return u, fmt.Errorf("asking for metrics: %w", err)
	}
	request.Close = true // no connection rests until the next sample
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return u, fmt.Errorf("asking for metrics: %w", err)
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		return u, fmt.Errorf("asking for metrics: GET %s was answered with %s", url, answer.Status)
	}
	return parseMetrics(answer.Body)
}

func parseMetrics(r io.Reader) (u usage, err error) {
	const cpu, memory = "process_cpu_seconds_total", "process_resident_memory_bytes"
	found := map[string]float64{}
	lines := bufio.NewScanner(io.LimitReader(r, 16<<20))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if name == cpu || name == memory {
			if found[name], err = strconv.ParseFloat(value, 64); err != nil {
				return u, fmt.Errorf("reading metrics: %w", err)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return u, fmt.Errorf("reading metrics: %w", err)
	}
	if len(found) < 2 {
		return u, fmt.Errorf("the metrics have no %s or no %s", cpu, memory)
	}
	return usage{time.Duration(found[cpu] * float64(time.Second)), int64(found[memory])}, nil
}

func megabytes(bytes int64) float64 { return float64(bytes) / 1e6 }

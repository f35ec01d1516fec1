package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/webhookspine/spine/internal/bench"
	"github.com/webhookspine/spine/internal/postgres"
)

func systemsUnderTest() []system {
	return []system{spineSystem(), riverSystem(), plainSystem(), limitSystem()}
}

// lab holds what a comparison needs.
type lab struct {
	options   options
	server    *postgres.Server
	admin     *pgx.Conn // superuser
	self      string    // this program
	dir       string    // for logs
	progress  io.Writer
	results   results
	sustained map[string]float64 // by system: the last rate of S5, in events a second

	statements bool // the server has pg_stat_statements
}

// compare runs every scenario with every system in every round, and writes the report. A failure is
// part of the report, and is also returned as an error.
func compare(ctx context.Context, o options, stdout, progress io.Writer) (err error) {
	began := time.Now()
	l, closeLab, err := openLab(ctx, o, progress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeLab()) }()
	if err := l.describe(ctx); err != nil {
		return err
	}

	l.everything(ctx)
	l.results.Seconds = time.Since(began).Seconds()
	if err := l.results.write(stdout, o.short); err != nil {
		return err
	}
	if o.json != "" {
		if err := l.results.writeJSON(o.json); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return errors.New("interrupted: the figures are those until then")
	}
	if n := len(l.results.Failures); n > 0 {
		return fmt.Errorf("%d scenarios failed", n)
	}
	return nil
}

// openLab starts a private server. The returned function stops it and removes what the lab has made.
func openLab(ctx context.Context, o options, progress io.Writer) (_ *lab, _ func() error, err error) {
	for flag, binary := range map[string]string{"-spine": o.spine, "-base": o.base} {
		if _, err := os.Stat(binary); err != nil && binary != "" && slices.Contains(o.systems, "spine") {
			return nil, nil, fmt.Errorf("%s: %w", flag, err)
		}
	}
	l := &lab{options: o, progress: progress, sustained: map[string]float64{}}
	var steps []func() error // of closing, last one first
	closeLab := func() error {
		var all error
		for _, step := range slices.Backward(steps) {
			all = errors.Join(all, step())
		}
		return all
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeLab())
		}
	}()
	if l.self, err = os.Executable(); err != nil {
		return nil, nil, fmt.Errorf("finding this program: %w", err)
	}
	if l.dir, err = os.MkdirTemp("", "spine-peers-"); err != nil {
		return nil, nil, fmt.Errorf("making a folder for logs: %w", err)
	}
	steps = append(steps, func() error { return os.RemoveAll(l.dir) })
	if l.server, err = postgres.Start(ctx, postgres.Options{BinDir: os.Getenv("POSTGRES_BIN")}); err != nil {
		return nil, nil, err
	}
	stopping := context.WithoutCancel(ctx)
	steps = append(steps, func() error { return l.server.Stop(stopping) })
	if err := l.loadStatements(ctx); err != nil {
		return nil, nil, err
	}
	if l.admin, err = pgx.Connect(ctx, l.server.SuperuserURL()); err != nil {
		return nil, nil, fmt.Errorf("connecting to the server: %w", err)
	}
	steps = append(steps, func() error { return l.admin.Close(stopping) })
	return l, closeLab, l.ageWAL(ctx)
}

// ageWAL puts the server's write-ahead log into the state of a server that has worked for a while:
// a gigabyte of segments to reuse, as many as checkpoints leave by default. A new server fills each
// new segment with zeros and waits for the disk meanwhile, which slows down those most who write
// most.
func (l *lab) ageWAL(ctx context.Context) error {
	if err := l.configure(ctx, "alter system set min_wal_size = '1GB'"); err != nil {
		return err
	}
	const segments = 1 << 30 / (16 << 20)
	for range segments {
		if _, err := l.admin.Exec(ctx, "select pg_logical_emit_message(false, '', ''), pg_switch_wal()"); err != nil {
			return fmt.Errorf("writing WAL: %w", err)
		}
	}
	for range 2 { // the first checkpoint may still need the segments
		if _, err := l.admin.Exec(ctx, "checkpoint"); err != nil {
			return fmt.Errorf("making a checkpoint: %w", err)
		}
	}
	return nil
}

// everything runs all rounds. The systems take turns within each scenario, so that whatever slows
// the machine down affects them alike.
func (l *lab) everything(ctx context.Context) {
	for round := 1; round <= l.options.rounds; round++ {
		for _, scenario := range scenarios() {
			if !slices.Contains(l.options.only, scenario.name) {
				continue
			}
			for _, system := range systemsUnderTest() {
				if !slices.Contains(l.options.systems, system.name) || !scenario.concerns(system, round) {
					continue
				}
				began := time.Now()
				t := &trial{lab: l, scenario: scenario.name, system: system}
				err := t.run(ctx, round, scenario)
				if ctx.Err() != nil {
					return // an interrupted scenario is no failure
				}
				said := strings.Join(t.said, ", ")
				if err != nil {
					l.results.Failures = append(l.results.Failures,
						fmt.Sprintf("round %d, %s, %s: %v", round, scenario.name, system.name, err))
					said = "FAILED: " + err.Error()
				}
				_, _ = fmt.Fprintf(l.progress, "%d/%d %-3s %-5s %4.0f s  %s\n",
					round, l.options.rounds, scenario.name, system.name, time.Since(began).Seconds(), said)
			}
		}
	}
}

// trial is one scenario with one system in one round.
type trial struct {
	*lab
	*deployment // as started last
	scenario    string
	system      system
	database    string        // URL of a database of its own
	pool        *pgxpool.Pool // for queries of our own
	sink        string        // address of the sink
	said        []string      // figures, for the progress
	drainOpened func()        // called as the sink of a drain begins to answer; may be nil
}

// run makes a database, runs the scenario on it, and drops it.
func (t *trial) run(ctx context.Context, round int, s scenario) (err error) {
	name := strings.ToLower(fmt.Sprintf("round%d_%s_%s", round, s.name, t.system.name))
	done, err := t.open(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	return s.run(ctx, t)
}

// open makes a database and a free address for the sink. The returned function stops what was
// started and drops the database.
func (t *trial) open(ctx context.Context, name string) (done func() error, err error) {
	address, err := url.Parse(t.server.URL())
	if err != nil {
		return nil, fmt.Errorf("reading the server's URL: %w", err)
	}
	address.Path = "/" + name
	t.database = address.String()
	if t.sink, err = freeAddress(ctx); err != nil {
		return nil, err
	}
	for _, statement := range []string{
		"create database " + name + " owner " + postgres.Role,
		"alter database " + name + " set search_path = spine, public", // where Spine has its tables
		"checkpoint", // every scenario begins with the same distance to the next one
	} {
		if _, err := t.admin.Exec(ctx, statement); err != nil {
			return nil, fmt.Errorf("making a database: %w", err)
		}
	}
	if t.pool, err = openPool(ctx, t.database, 2); err != nil {
		return nil, err
	}
	return func() error {
		err := t.halt()
		t.pool.Close()
		if _, dropErr := t.admin.Exec(
			context.WithoutCancel(ctx),
			"drop database "+name+" with (force)",
		); dropErr != nil {
			err = errors.Join(err, fmt.Errorf("dropping a database: %w", dropErr))
		}
		return err
	}, nil
}

// start starts the system. destination is the sink's URL, or storeOnly.
func (t *trial) start(ctx context.Context, how layout, destination string) error {
	if err := t.halt(); err != nil {
		return err
	}
	d, err := t.deploy(ctx, t.system, how, t.database, destination)
	if err != nil {
		return err
	}
	t.deployment = d
	return nil
}

// halt stops what was started. It fails if a process has ended by itself.
func (t *trial) halt() error {
	if t.deployment == nil {
		return nil
	}
	d := t.deployment
	t.deployment = nil
	return d.stop()
}

// sinkURL is the destination of a system that delivers.
func (t *trial) sinkURL() string { return "http://" + t.sink + "/" }

func (t *trial) listen(ctx context.Context) (net.Listener, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", t.sink)
	if err != nil {
		return nil, fmt.Errorf("opening the sink: %w", err)
	}
	return ln, nil
}

// openSink takes deliveries, outside of any measured run, until the returned function is called.
// That returns what came.
func (t *trial) openSink(ctx context.Context) (stop func() (bench.SinkReport, error), err error) {
	ln, err := t.listen(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var report bench.SinkReport
	ended := make(chan error, 1)
	go func() {
		var err error
		report, err = bench.RunSink(ctx, ln, bench.SinkOptions{})
		ended <- err
	}()
	return func() (bench.SinkReport, error) {
		cancel()
		err := <-ended
		return report, err
	}, nil
}

// figure reports a measured value.
func (t *trial) figure(r row, value float64) {
	t.results.add(r, t.system.name, value)
	t.said = append(t.said, fmt.Sprintf("%s %s", r.What, formatNumber(value)))
}

// note reports a remark beside the figures.
func (t *trial) note(format string, values ...any) {
	t.results.note(t.scenario+" "+t.system.name, fmt.Sprintf(format, values...))
}

// bodySize is the size of every request's body, in bytes.
const bodySize = 1024

// ingest puts load on a front and checks that every acknowledged event is stored. A closed loop
// must have no warm-up, because verify could not tell its events apart.
func (t *trial) ingest(ctx context.Context, load bench.Load) (bench.Report, error) {
	if load.Target == "" {
		load.Target = t.fronts()[0]
	}
	load.BodySize = bodySize
	report, err := bench.RunIngest(ctx, load)
	if err != nil {
		return report, err
	}
	t.noteUnsent(report)
	return report, t.verify(ctx, report)
}

// noteUnsent notes when a system was too slow for the offered rate. Events that were not sent are
// in no percentile.
func (t *trial) noteUnsent(r bench.Report) {
	if r.Unsent > 0 {
		t.note("%s/s offered: %d events were due and not sent, no connection was free",
			formatNumber(r.OfferedPerSecond), r.Unsent)
	}
}

// e2e is ingest with delivery to the sink.
func (t *trial) e2e(ctx context.Context, load bench.Load) (bench.Report, error) {
	ln, err := t.listen(ctx)
	if err != nil {
		return bench.Report{}, err
	}
	load.Target, load.BodySize = t.fronts()[0], bodySize
	report, err := bench.RunE2E(ctx, ln, bench.E2E{Load: load})
	if err != nil {
		return report, err
	}
	return report, t.verify(ctx, report)
}

// watchedE2E is e2e that also watches what the system's processes and the database use. Statements
// are counted as long as it runs.
func (t *trial) watchedE2E(ctx context.Context, soak bench.Soak) (report bench.SoakReport, err error) {
	ln, err := t.listen(ctx)
	if err != nil {
		return report, err
	}
	if err := t.countStatements(ctx, true); err != nil {
		return report, errors.Join(err, ln.Close())
	}
	defer func() { err = errors.Join(err, t.countStatements(context.WithoutCancel(ctx), false)) }()
	soak.Target, soak.BodySize, soak.Database = t.fronts()[0], bodySize, t.database
	for _, p := range t.processes {
		soak.Processes = append(soak.Processes, bench.Process{PID: p.command.Process.Pid, Name: p.name})
	}
	if report, err = bench.RunSoak(ctx, ln, soak); err != nil {
		return report, err
	}
	return report, t.verify(ctx, report.Report)
}

// drain builds a backlog of count events while the sink holds back its answers. It measures from
// the moment that the sink begins to answer.
func (t *trial) drain(ctx context.Context, count int64) (bench.Report, error) {
	ln, err := t.listen(ctx)
	if err != nil {
		return bench.Report{}, err
	}
	report, err := bench.RunDrain(ctx, ln, bench.Drain{Opened: t.drainOpened, Load: bench.Load{
		Target: t.fronts()[0], BodySize: bodySize, Connections: 64, Count: count,
	}})
	if err != nil {
		return report, err
	}
	return report, t.verify(ctx, report)
}

// settlePatience is how long a system may take to record its last deliveries.
const settlePatience = 10 * time.Second

// verify checks durability. Every acknowledged event of the run is in the database, and nothing
// else of it. If events were to be delivered, all of them arrived, and the system has recorded
// that.
func (t *trial) verify(ctx context.Context, r bench.Report) error {
	if len(r.Errors) > 0 {
		return fmt.Errorf("some requests failed: %v", r.Errors)
	}
	want := r.Accepted + int64(math.Ceil(r.WarmUpSeconds*r.OfferedPerSecond))
	// The character after "-" ends the range of the run's ids.
	var stored int64
	const query = "select count(*) from events where event_id >= $1 || '-' and event_id < $1 || '.'"
	if err := t.pool.QueryRow(ctx, query, r.RunID).Scan(&stored); err != nil {
		return fmt.Errorf("counting what is stored: %w", err)
	}
	if stored != want {
		return fmt.Errorf("NOT DURABLE: %d events were accepted and %d are stored", want, stored)
	}
	d := r.Delivery
	if d == nil {
		return nil
	}
	if d.Lost > 0 || d.Delivered != r.Accepted {
		return fmt.Errorf("LOST: %d events were accepted, %d arrived", r.Accepted, d.Delivered)
	}
	// The last arrival ends a run, which may cut off its answer. The system then delivers that
	// event once more.
	stopSink, err := t.openSink(ctx)
	if err != nil {
		return err
	}
	err = t.awaitFinished(ctx, settlePatience)
	_, sinkErr := stopSink()
	return errors.Join(err, sinkErr)
}

// awaitFinished waits until the system has recorded that everything is delivered. It fails after
// patience.
func (t *trial) awaitFinished(ctx context.Context, patience time.Duration) error {
	limit, done := context.WithTimeout(ctx, patience)
	defer done()
	for {
		unfinished, err := t.unfinished(ctx)
		if err != nil || unfinished == 0 {
			return err
		}
		select {
		case <-limit.Done():
			return fmt.Errorf("%d events were delivered and not recorded as delivered after %v", unfinished, patience)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (t *trial) unfinished(ctx context.Context) (n int64, err error) {
	if err := t.pool.QueryRow(ctx, t.system.unfinished).Scan(&n); err != nil {
		return 0, fmt.Errorf("counting what is not finished: %w", err)
	}
	return n, nil
}

// configure changes settings of the whole server.
func (l *lab) configure(ctx context.Context, statements ...string) error {
	for _, s := range append(statements, "select pg_reload_conf()") {
		if _, err := l.admin.Exec(ctx, s); err != nil {
			return fmt.Errorf("configuring the server: %w", err)
		}
	}
	return nil
}

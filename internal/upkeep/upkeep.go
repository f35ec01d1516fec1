// Package upkeep does what nobody waits for: it makes the audit log's
// partitions ahead of time, notes the sources' last arrivals, counts what
// happened and what waits, samples the gauges that only the database knows, and
// lets go what is older than the retention. Any number of processes may do it
// at once.
package upkeep

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
)

// Store is what upkeep does its work with.
type Store interface {
	// EnsurePartitions makes the audit log's partitions for the days ahead.
	EnsurePartitions(ctx context.Context) (made int, err error)
	// NoteArrivals notes when each source last sent something, for Sample.
	NoteArrivals(ctx context.Context) error
	// Sample reads what the gauges show. It is cheap on large tables.
	Sample(ctx context.Context) (event.Sample, error)

	// RollUp counts what the audit log has got since the last call of any
	// process, a bounded number of rows, and returns how far behind that leaves
	// the numbers: 0 when all is counted. It does nothing while another process is
	// at it, elsewhere.
	RollUp(ctx context.Context) (lag time.Duration, elsewhere bool, err error)
	// SampleDepth counts what waits in the queue. On a long queue it takes its
	// time.
	SampleDepth(ctx context.Context) error
	// ExpireRejected deletes rejected requests that are older than their sources
	// have them kept.
	ExpireRejected(ctx context.Context) error

	// What follows is retention. Each call is one short transaction, of which age
	// says how old must be what goes. It passes over what is locked.

	// ExpireEvents deletes old events that are done with: of the first limit
	// events after the one with the id after.
	ExpireEvents(ctx context.Context, age time.Duration, after int64, limit int) (event.Expired, error)
	// DropAuditPartition drops the oldest partition of the audit log, if it is
	// old, and returns its name; empty where none is. It holds up ingests for a
	// moment, and is an error where that would be longer.
	DropAuditPartition(ctx context.Context, age time.Duration) (name string, err error)
	// ExpireAudit deletes up to limit old rows of the audit log that are in no
	// partition that is ever dropped.
	ExpireAudit(ctx context.Context, age time.Duration, limit int) (deleted int, err error)
}

// Config says what upkeep does.
type Config struct {
	Retention time.Duration // how long what is done with is kept, by its last change; 0 keeps everything
}

// Intervals between two rounds.
const (
	partitionInterval = time.Hour
	sampleInterval    = 5 * time.Second // longer where a sample takes longer than a twentieth of it
	rollUpInterval    = time.Second     // shorter while there is a backlog that no other process works off
	depthInterval     = time.Second     // longer where a sample takes longer than a twentieth of it
	patience          = 10 * time.Second

	// A transaction is rolled up as a whole: of ten million events that one replays
	// by hand, all rows are read in one turn.
	rollUpPatience = 5 * time.Minute
	depthPatience  = time.Minute // ten million rows that wait take some ten seconds

	// A failure that lasts is worth a warning: the third in a row, and then each
	// sixtieth, about one a minute.
	lasting       = 3
	stillReported = 60
)

// Upkeep does the rounds. Make one with New, then Run it.
type Upkeep struct {
	config Config
	store  Store
	log    zerolog.Logger

	oldestReady       prometheus.Gauge
	lastArrival       *prometheus.GaugeVec
	rollupLag         prometheus.Gauge
	eventsDeleted     prometheus.Counter
	partitionsDropped prometheus.Counter
	failures          prometheus.Counter

	// unhurried holds whoever makes one of the calls that may take long and that
	// nobody waits for: rolling up, and counting what waits. The pool is that of
	// ingest, and of its connections they take one at a time.
	unhurried chan struct{}

	rollUpFailed int           // times in a row
	rolledUp     time.Time     // when RollUp last succeeded
	lag          time.Duration // that it then returned
	depthFailed  int           // times in a row
}

// New returns an Upkeep with its metrics registered with reg.
func New(config Config, store Store, log zerolog.Logger, reg prometheus.Registerer) *Upkeep {
	u := &Upkeep{
		config: config, store: store, log: log, unhurried: make(chan struct{}, 1), rolledUp: time.Now(),
		oldestReady: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "spine_queue_oldest_ready_seconds", Help: "For how long the oldest claimable event has been due; 0 when none is.",
		}),
		lastArrival: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "spine_source_last_arrival_timestamp_seconds", Help: "When a source last sent a new event, in Unix seconds; absent when it never did.",
		}, []string{"source"}),
		rollupLag: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "spine_rollup_lag_seconds", Help: "How far the numbers over time lag behind the audit log; 0 when they have all of it. While that cannot be asked it rises.",
		}),
		eventsDeleted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_retention_events_deleted_total", Help: "Events that this process deleted since they were done with and older than RETENTION.",
		}),
		partitionsDropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_retention_partitions_dropped_total", Help: "Daily partitions of the audit log that this process dropped since they were older than RETENTION.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_upkeep_errors_total", Help: "Rounds of upkeep that failed and are tried again.",
		}),
	}
	reg.MustRegister(u.oldestReady, u.lastArrival, u.rollupLag, u.eventsDeleted, u.partitionsDropped, u.failures)
	return u
}

// Run does its rounds until ctx ends. Failures are counted and tried again in
// the next round: the default partition takes what no other does.
func (u *Upkeep) Run(ctx context.Context) error {
	// What may take long is no reason to miss the others.
	var others sync.WaitGroup
	defer others.Wait()
	if u.config.Retention > 0 {
		others.Go(func() { u.retain(ctx) })
	}
	others.Go(func() { repeat(ctx, u.rollUp) })
	others.Go(func() { repeat(ctx, u.sampleDepth) })
	partitions, samples := time.NewTicker(partitionInterval), time.NewTimer(sampleInterval)
	defer partitions.Stop()
	defer samples.Stop()
	u.partitions(ctx)
	u.noteArrivals(ctx)
	u.sample(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-partitions.C:
			u.partitions(ctx)
			u.expireRejected(ctx)
		case <-samples.C:
			began := time.Now()
			u.noteArrivals(ctx)
			u.sample(ctx)
			samples.Reset(max(sampleInterval, 20*time.Since(began)))
		}
	}
}

// repeat does something until ctx ends, and between two times rests for as long
// as it says.
func repeat(ctx context.Context, do func(context.Context) (rest time.Duration)) {
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
			next.Reset(do(ctx))
		}
	}
}

// rollUp takes one turn. A backlog is worked off in half of one connection's
// time, by one process: whoever finds another at it leaves it to that one.
func (u *Upkeep) rollUp(ctx context.Context) (rest time.Duration) {
	if !u.acquire(ctx) {
		return rollUpInterval
	}
	defer u.release()
	ctx, cancel := context.WithTimeout(ctx, rollUpPatience)
	defer cancel()
	began := time.Now()
	lag, elsewhere, err := u.store.RollUp(ctx)
	if err != nil {
		u.rollUpFailed++
		u.failed(err, u.rollUpFailed, "rolling up")
		u.rollupLag.Set((u.lag + time.Since(u.rolledUp)).Seconds())
		return max(rollUpInterval, time.Since(began))
	}
	u.rollUpFailed, u.rolledUp, u.lag = 0, time.Now(), lag
	u.rollupLag.Set(lag.Seconds())
	if lag > rollUpInterval && !elsewhere {
		return max(minRest, time.Since(began))
	}
	return rollUpInterval
}

func (u *Upkeep) sampleDepth(ctx context.Context) (rest time.Duration) {
	if !u.acquire(ctx) {
		return depthInterval
	}
	defer u.release()
	ctx, cancel := context.WithTimeout(ctx, depthPatience)
	defer cancel()
	began := time.Now()
	if err := u.store.SampleDepth(ctx); err != nil {
		u.depthFailed++
		u.failed(err, u.depthFailed, "sampling the depth")
	} else {
		u.depthFailed = 0
	}
	return max(depthInterval, 20*time.Since(began))
}

// acquire waits for its turn among the unhurried, and reports whether it came
// before ctx ended.
func (u *Upkeep) acquire(ctx context.Context) bool {
	select {
	case u.unhurried <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (u *Upkeep) release() { <-u.unhurried }

// failed counts and logs a failure of something that goes on every second: times
// is how often in a row.
func (u *Upkeep) failed(err error, times int, doing string) {
	u.failures.Inc()
	level := zerolog.DebugLevel
	if times == lasting || times%stillReported == 0 {
		level = zerolog.WarnLevel
	}
	u.log.WithLevel(level).Err(err).Int("times", times).Msg(doing + " failed, trying again later")
}

func (u *Upkeep) partitions(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	made, err := u.store.EnsurePartitions(ctx)
	switch {
	case err != nil:
		u.failures.Inc()
		u.log.Warn().Err(err).Msg("making audit partitions failed, trying again later")
	case made > 0:
		u.log.Info().Int("made", made).Msg("audit partitions made ahead")
	}
}

func (u *Upkeep) expireRejected(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := u.store.ExpireRejected(ctx); err != nil {
		u.failures.Inc()
		u.log.Warn().Err(err).Msg("deleting old rejected requests failed, trying again later")
	}
}

func (u *Upkeep) noteArrivals(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := u.store.NoteArrivals(ctx); err != nil {
		u.failures.Inc()
		u.log.Debug().Err(err).Msg("noting arrivals failed, trying again later")
	}
}

func (u *Upkeep) sample(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	sample, err := u.store.Sample(ctx)
	if err != nil {
		u.failures.Inc()
		u.log.Debug().Err(err).Msg("sampling the gauges failed, trying again later")
		return
	}
	u.oldestReady.Set(sample.OldestReady.Seconds())
	for source, at := range sample.LastArrivals {
		u.lastArrival.WithLabelValues(source).Set(float64(at.UnixMilli()) / 1000)
	}
}

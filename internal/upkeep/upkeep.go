// Package upkeep does the periodic work that no sender waits for. It makes the audit log's partitions ahead of time,
// and merges old ones. It notes the sources' last arrivals. It rolls up the audit log, and samples the queue's depth
// and the gauges. It deletes data that is older than the retention, and rejected requests that have become too old.
//
// It promises that any number of processes may do this at once, and that a failed task ends no other. A task delays
// others at most by its time limit, and RollUp and SampleDepth take turns. The package must not know SQL: each task is
// one call of Store.
package upkeep

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
)

// Store does the work of each task. It is safe for concurrent use.
type Store interface {
	// EnsurePartitions makes the audit log's partitions for the days ahead.
	EnsurePartitions(ctx context.Context) (made int, err error)
	// NoteArrivals notes when each source last sent a new event, for Sample.
	NoteArrivals(ctx context.Context) error
	// Sample reads the values of the gauges. It is cheap on large tables.
	Sample(ctx context.Context) (event.Sample, error)
	// NotifyQueue tells how full Postgres's queue of notifications is, and frees what every session has read.
	NotifyQueue(ctx context.Context) (event.NotifyQueue, error)

	// RollUp counts a bounded number of new steps of the audit log. It returns how far the numbers then lag behind: 0
	// when every step is counted. While another process counts it counts nothing, and elsewhere is true.
	RollUp(ctx context.Context) (lag time.Duration, elsewhere bool, err error)
	// SampleDepth counts the events in the queue. On a long queue that takes seconds: see depthPatience.
	SampleDepth(ctx context.Context) error
	// ExpireRejected deletes rejected requests that are older than their source's budget allows.
	ExpireRejected(ctx context.Context) error

	// MergeAuditDays puts a copy of old days of the audit log in their place. Then it copies the next days, of one month
	// that ended before age. It returns the names of both; empty where there is none. Between two calls with a copy there
	// must be a minute. A call copies up to four gigabytes, and holds up ingests for a moment. It returns an error where
	// somebody reads the log all the time.
	MergeAuditDays(ctx context.Context, age time.Duration) (merged, copied string, err error)

	// The calls below are retention. Each is one short transaction that skips locked rows. age is how old a row must
	// be.

	// ExpireEvents looks at the first limit old events after the one with the id after, and deletes those that are done
	// with.
	ExpireEvents(ctx context.Context, age time.Duration, after int64, limit int) (event.Expired, error)
	// DropAuditPartition drops the oldest partition of the audit log, if it is old, and returns its name; empty where
	// none is. It holds up ingests for a moment. It returns an error instead of waiting longer for a lock.
	DropAuditPartition(ctx context.Context, age time.Duration) (name string, err error)
	// ExpireAudit deletes up to limit old rows of the default partition of the audit log, which is never dropped.
	ExpireAudit(ctx context.Context, age time.Duration, limit int) (deleted int, err error)
}

// Config configures upkeep.
type Config struct {
	// Retention is how long finished events are kept from their last change, and rows of the audit log. 0 keeps all.
	Retention time.Duration
	// Troubles says what hinders Spine as a whole. It must answer although all connections of Store wait.
	Troubles func(ctx context.Context) ([]event.Trouble, error)
}

// Intervals between two rounds, and time limits of single calls.
const (
	partitionInterval = time.Hour
	sampleInterval    = 5 * time.Second // longer where a sample takes more than a twentieth of it
	rollUpInterval    = time.Second     // shorter while there is a backlog that no other process works off
	depthInterval     = time.Second     // longer where a sample takes more than a twentieth of it
	patience          = 10 * time.Second

	// RollUp reads all rows of one transaction in one call, such as those of ten million events replayed by hand.
	rollUpPatience = 5 * time.Minute
	depthPatience  = time.Minute // ten million events in the queue take about ten seconds

	// Failures in a row of tasks that run every second: the third is logged as a warning, and then every sixtieth,
	// about one a minute.
	firstWarning = 3
	nextWarning  = 60
)

// Upkeep does the rounds. Make one with New, then Run it.
type Upkeep struct {
	config Config
	store  Store
	log    zerolog.Logger

	oldestReady       prometheus.Gauge
	depth             gauges // by status
	paused            gauges // by destination
	lastArrival       gauges // by source
	notifyQueue       prometheus.Gauge
	hintless          bool                            // as last seen
	troubles          atomic.Pointer[[]event.Trouble] // as last seen
	partitionsFailed  bool                            // as last seen
	rollupLag         prometheus.Gauge
	eventsDeleted     prometheus.Counter
	partitionsDropped prometheus.Counter
	failures          prometheus.Counter

	// unhurried holds one value while RollUp or SampleDepth runs. Both may take long and no one waits for them. They
	// use the pool of ingest, and together they must not take more than one of its connections.
	unhurried chan struct{}

	rollUpFailed int           // times in a row
	rolledUp     time.Time     // when RollUp last succeeded
	lag          time.Duration // its result then
	depthFailed  int           // times in a row
}

// New returns an Upkeep with its metrics registered with reg.
func New(config Config, store Store, log zerolog.Logger, reg prometheus.Registerer) *Upkeep {
	u := &Upkeep{
		config:    config,
		store:     store,
		log:       log,
		unhurried: make(chan struct{}, 1),
		rolledUp:  time.Now(),
		oldestReady: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "spine_queue_oldest_ready_seconds",
			Help: "For how long the oldest event has been due, also while claims are paused; 0 when none is.",
		}),
		depth: newGauges(
			"spine_queue_events",
			"Events in the queue by status, as last counted; completed ones are not "+
				"counted.",
			"status",
		),
		paused: newGauges("spine_queue_paused", "1 while claims for a destination are paused, else 0.", "destination"),
		lastArrival: newGauges("spine_source_last_arrival_timestamp_seconds",
			"When a source last sent a new event, in Unix seconds; absent when it never did.", "source"),
		notifyQueue: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "spine_notify_queue_usage",
			Help: "How full Postgres's queue of notifications is, 0 to 1. From 0.5 on Spine sends none, and polls.",
		}),
		rollupLag: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "spine_rollup_lag_seconds",
			Help: "How far the numbers over time lag behind the audit log; 0 when they have all of it. " +
				"It rises while rolling up fails.",
		}),
		eventsDeleted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_retention_events_deleted_total",
			Help: "Finished events older than RETENTION that this process deleted.",
		}),
		partitionsDropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_retention_partitions_dropped_total",
			Help: "Partitions of the audit log older than RETENTION that this process dropped.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_upkeep_errors_total", Help: "Calls of upkeep that failed and are tried again.",
		}),
	}
	reg.MustRegister(
		u.oldestReady,
		u.depth.vec,
		u.paused.vec,
		u.lastArrival.vec,
		u.notifyQueue,
		u.rollupLag,
		u.eventsDeleted,
		u.partitionsDropped,
		u.failures,
	)
	return u
}

// gauges are the values of one metric by one label.
type gauges struct {
	vec   *prometheus.GaugeVec
	shown map[string]bool // values of the label that the metric has
}

func newGauges(name, help, label string) gauges {
	return gauges{
		vec:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{label}),
		shown: map[string]bool{},
	}
}

// set shows these values and no others: what was removed leaves the metric.
func (g gauges) set(values map[string]float64) {
	for label, value := range values {
		g.vec.WithLabelValues(label).Set(value)
		g.shown[label] = true
	}
	for label := range g.shown {
		if _, stays := values[label]; !stays {
			g.vec.DeleteLabelValues(label)
			delete(g.shown, label)
		}
	}
}

// Run does its rounds until ctx ends. A failed task is counted and tried again in the next round. Even without new
// partitions no row is lost: the default partition takes it.
func (u *Upkeep) Run(ctx context.Context) error {
	// Tasks that may take long have loops of their own. They do not delay the quick tasks, which share one loop.
	var others sync.WaitGroup
	defer others.Wait()
	if u.config.Retention > 0 {
		others.Go(func() { u.retain(ctx) })
	}
	if u.config.Retention == 0 || u.config.Retention > mergeRetention {
		others.Go(func() { u.mergeMonths(ctx) })
	}
	others.Go(func() { repeat(ctx, u.rollUp) })
	others.Go(func() { repeat(ctx, u.sampleDepth) })
	partitions, samples := time.NewTicker(partitionInterval), time.NewTimer(sampleInterval)
	defer partitions.Stop()
	defer samples.Stop()
	u.partitions(ctx)
	u.watchNotifyQueue(ctx)
	u.watchTroubles(ctx)
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
			u.watchTroubles(ctx)
			u.watchNotifyQueue(ctx)
			u.noteArrivals(ctx)
			u.sample(ctx)
			samples.Reset(max(sampleInterval, 20*time.Since(began)))
		}
	}
}

// repeat calls do until ctx ends. Between two calls it rests as long as do says.
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

// rollUp makes one call of RollUp. One process works off a backlog, in at most half of one connection's time. A process
// that finds another at work rests for the whole interval.
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
		u.noteFailure(err, u.rollUpFailed, "rolling up")
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
		u.noteFailure(err, u.depthFailed, "sampling the depth")
	} else {
		u.depthFailed = 0
	}
	return max(depthInterval, 20*time.Since(began))
}

// acquire waits until no other unhurried call runs, and reports whether that came before the end of ctx.
func (u *Upkeep) acquire(ctx context.Context) bool {
	select {
	case u.unhurried <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (u *Upkeep) release() { <-u.unhurried }

// noteFailure counts and logs a failure of a task that runs every second. times is how often it has failed in a row.
func (u *Upkeep) noteFailure(err error, times int, doing string) {
	u.failures.Inc()
	level := zerolog.DebugLevel
	if times == firstWarning || times%nextWarning == 0 {
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
		level := zerolog.WarnLevel
		if u.partitionsFailed { // it is told once
			level = zerolog.DebugLevel
		}
		u.log.WithLevel(level).Err(err).Msg("making audit partitions failed, trying again every hour; " +
			"steps of days without one go to the default partition")
	case made > 0:
		u.log.Info().Int("made", made).Msg("audit partitions made ahead")
	case u.partitionsFailed:
		u.log.Info().Msg("the audit partitions are in place again")
	}
	u.partitionsFailed = err != nil
}

// Troubles are what hindered Spine as a whole at the last look, a few seconds ago. They must not be changed.
func (u *Upkeep) Troubles() []event.Trouble {
	if seen := u.troubles.Load(); seen != nil {
		return *seen
	}
	return nil
}

// watchTroubles looks for what hinders Spine as a whole. It logs a clock that was set back when that begins and when it
// is over. The others are told by readiness and by partitions.
func (u *Upkeep) watchTroubles(ctx context.Context) {
	if u.config.Troubles == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	troubles, err := u.config.Troubles(ctx)
	if err != nil {
		u.failures.Inc()
		u.log.Debug().Err(err).Msg("looking for troubles failed, trying again later")
		return
	}
	isClock := func(t event.Trouble) bool { return t.Topic == "clock" }
	before, now := slices.ContainsFunc(u.Troubles(), isClock), slices.IndexFunc(troubles, isClock)
	switch {
	case now >= 0 && !before:
		u.log.Warn().Msg(troubles[now].Says)
	case now < 0 && before:
		u.log.Info().Msg("the database's clock is past the time from which it was set back")
	}
	u.troubles.Store(&troubles)
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

func (u *Upkeep) watchNotifyQueue(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	queue, err := u.store.NotifyQueue(ctx)
	if err != nil {
		u.failures.Inc()
		u.log.Debug().Err(err).Msg("looking at the queue of notifications failed, trying again later")
		return
	}
	u.notifyQueue.Set(queue.Usage)
	switch {
	case queue.Jammed && !u.hintless:
		u.log.Warn().Str("held_up_by", queue.Holders).
			Msg("commits that notify are held up, in all databases of the cluster: Spine sends no notifications, and polls")
	case queue.Hintless && !u.hintless:
		u.log.Warn().Str("held_back_by", queue.Holders).
			Msgf("Postgres's queue of notifications is %.0f %% full: Spine sends none, and polls", queue.Usage*100)
	case !queue.Hintless && u.hintless:
		u.log.Info().Msg("Spine sends notifications again: nobody holds them up, and their queue has room")
	}
	u.hintless = queue.Hintless
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
	arrivals, paused, depth := map[string]float64{}, map[string]float64{}, map[string]float64{}
	for source, at := range sample.LastArrivals {
		arrivals[source] = float64(at.UnixMilli()) / 1000
	}
	for destination, isPaused := range sample.Paused {
		paused[destination] = 0
		if isPaused {
			paused[destination] = 1
		}
	}
	for status, count := range sample.Depth {
		depth[status] = float64(count)
	}
	u.lastArrival.set(arrivals)
	u.paused.set(paused)
	u.depth.set(depth)
}

package ingest

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/webhookspine/spine/internal/event"
)

// Metrics are the counters and timings of this stage.
type Metrics struct {
	outcomes    *prometheus.CounterVec
	rejections  *prometheus.CounterVec
	batchRows   prometheus.Histogram
	flushTime   prometheus.Histogram
	queueWait   prometheus.Histogram
	flushErrors prometheus.Counter
	unkept      prometheus.Counter
}

// NewMetrics returns Metrics registered with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "spine_ingest_events_total",
			Help: "Events committed, by source and outcome (accepted, deduplicated, conflict).",
		}, []string{"source", "outcome"}),
		rejections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "spine_ingest_rejected_total", Help: "Requests rejected, by cause and HTTP status.",
		}, []string{"cause", "status"}),
		batchRows: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "spine_ingest_batch_events", Help: "Events in one transaction.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 10),
		}),
		flushTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "spine_ingest_flush_seconds", Help: "Time of one ingest transaction, commit included.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		queueWait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "spine_ingest_queue_wait_seconds",
			Help:    "How long the oldest event of a batch had waited for its transaction.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
		}),
		flushErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_ingest_flush_errors_total",
			Help: "Ingest transactions that failed and were tried again or given up.",
		}),
		unkept: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_rejected_unkept_total",
			Help: "Rejected requests that are not kept, since there were too many of them.",
		}),
	}
	reg.MustRegister(m.outcomes, m.rejections, m.batchRows, m.flushTime, m.queueWait, m.flushErrors, m.unkept)
	return m
}

// count counts a batch by source and outcome. It adds runs of equal ones at once, since mostly all are equal.
func (m *Metrics) count(events []event.Event, receipts []event.Receipt) {
	for i, n := 0, 0; i < len(events); i++ {
		n++
		if next := i + 1; next == len(events) || events[next].Source != events[i].Source ||
			receipts[next].Outcome != receipts[i].Outcome {
			m.outcomes.WithLabelValues(events[i].Source, string(receipts[i].Outcome)).Add(float64(n))
			n = 0
		}
	}
}

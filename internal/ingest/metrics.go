package ingest

import (
	"net/http"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/webhookspine/spine/internal/event"
)

// Metrics are the counters and timings of this stage.
type Metrics struct {
	sources     sync.Map // by name, of *sourceCounters: those of outcomes
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
	// A counter that appears with its first value has no rate for that value.
	for status, causes := range rejectionCauses {
		for _, cause := range causes {
			m.rejections.WithLabelValues(cause, strconv.Itoa(status))
		}
	}
	return m
}

// rejectionCauses are the causes of rejections by the status of their answers.
var rejectionCauses = map[int][]string{
	http.StatusBadRequest: {"not_json", "cut_short", "repeated_header"},
	http.StatusUnauthorized: {
		"signature_missing", "signature_wrong", "timestamp_bad", "timestamp_stale",
		"credentials_missing", "credentials_wrong",
	},
	http.StatusForbidden:             {causeVerifyToken},
	http.StatusNotFound:              {"no_such_source"},
	http.StatusMethodNotAllowed:      {"method"},
	http.StatusRequestTimeout:        {"too_slow"},
	http.StatusRequestEntityTooLarge: {"too_large"},
	http.StatusUnsupportedMediaType:  {"content_type", "content_encoding"},
	http.StatusUnprocessableEntity:   {"invalid_event"},
	http.StatusTooManyRequests:       {"address_rate", "source_rate"},
	http.StatusServiceUnavailable: {
		"unavailable", "intake_full", "bytes_in_flight", "source_disabled", "source_broken", "source_closed",
	},
}

// sourceCounters count the events of one source by outcome.
type sourceCounters struct{ accepted, deduplicated, conflict prometheus.Counter }

func (m *Metrics) countersOf(source string) *sourceCounters {
	if known, ok := m.sources.Load(source); ok {
		return known.(*sourceCounters) //nolint:forcetypeassert // it holds nothing else
	}
	made := &sourceCounters{
		accepted:     m.outcomes.WithLabelValues(source, string(event.Accepted)),
		deduplicated: m.outcomes.WithLabelValues(source, string(event.Deduplicated)),
		conflict:     m.outcomes.WithLabelValues(source, string(event.Conflict)),
	}
	m.sources.Store(source, made) // whoever makes it gets the same counters
	return made
}

// KnowSources makes the counters of sources that exist begin at 0, and forgets those of sources that are gone.
func (m *Metrics) KnowSources(names []string) {
	exists := make(map[string]bool, len(names))
	for _, name := range names {
		m.countersOf(name)
		exists[name] = true
	}
	m.sources.Range(func(known, _ any) bool {
		name := known.(string) //nolint:forcetypeassert // it holds nothing else
		if !exists[name] {
			m.sources.Delete(name)
			m.outcomes.DeletePartialMatch(prometheus.Labels{"source": name})
		}
		return true
	})
}

// count counts a batch by source and outcome. It adds runs of equal ones at once, since mostly all are equal.
func (m *Metrics) count(events []event.Event, receipts []event.Receipt) {
	for i, n := 0, 0; i < len(events); i++ {
		n++
		//nolint:gosec // next is an index where it is not the length
		if next := i + 1; next == len(events) || events[next].Source != events[i].Source ||
			receipts[next].Outcome != receipts[i].Outcome {
			of := m.countersOf(events[i].Source)
			switch receipts[i].Outcome {
			case event.Accepted:
				of.accepted.Add(float64(n))
			case event.Deduplicated:
				of.deduplicated.Add(float64(n))
			case event.Conflict:
				of.conflict.Add(float64(n))
			}
			n = 0
		}
	}
}

package worker

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/webhookspine/spine/internal/event"
)

// Metrics are what workers count and time.
type Metrics struct {
	wakes       *prometheus.CounterVec
	claimed     prometheus.Counter
	swept       prometheus.Counter
	expired     prometheus.Counter
	lost        prometheus.Counter
	attempts    *prometheus.CounterVec
	duration    prometheus.Histogram
	waited      prometheus.Histogram
	settleRows  prometheus.Histogram
	settleTime  prometheus.Histogram
	queueErrors prometheus.Counter
	inHand      prometheus.Gauge
}

// NewMetrics returns metrics registered with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		wakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "spine_worker_wakes_total", Help: "Claims, by what woke the worker.",
		}, []string{"cause"}),
		claimed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_worker_claimed_total", Help: "Events claimed.",
		}),
		swept: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_worker_swept_total",
			Help: "Due events that only a sweep found: a wake-up was lost, or they were committed late, or set " +
				"to the far past by hand. Normally 0.",
		}),
		expired: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_worker_leases_expired_total",
			Help: "Leases of any worker that had run out and were taken back here.",
		}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_worker_leases_lost_total",
			Help: "Results of this worker that did not count, because it had lost the lease.",
		}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "spine_delivery_attempts_total", Help: "Delivery attempts settled, by what became of the event.",
		}, []string{"outcome"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "spine_delivery_seconds", Help: "Time of one delivery attempt.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}),
		waited: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "spine_delivery_wait_seconds", Help: "From the moment an event fell due to its claim.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 18),
		}),
		settleRows: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "spine_settle_batch_attempts", Help: "Attempts settled in one transaction.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 10),
		}),
		settleTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "spine_settle_seconds", Help: "Time of one settling transaction, commit included.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		queueErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spine_worker_queue_errors_total",
			Help: "Claims, renewals and settles that failed and were tried again.",
		}),
		inHand: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "spine_worker_in_hand", Help: "Events claimed by this worker and not settled yet.",
		}),
	}
	reg.MustRegister(
		m.wakes,
		m.claimed,
		m.swept,
		m.expired,
		m.lost,
		m.attempts,
		m.duration,
		m.waited,
		m.settleRows,
		m.settleTime,
		m.queueErrors,
		m.inHand,
	)
	// A counter that appears with its first value has no rate for that value.
	for _, outcome := range []event.Disposition{event.Completed, event.Failed, event.Deferred, event.Dead} {
		m.attempts.WithLabelValues(string(outcome))
	}
	for _, cause := range causes {
		m.wakes.WithLabelValues(string(cause))
	}
	return m
}

package observe

import (
	"context"
	"net/http"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/respond"
)

// checkTimeout limits all checks of one GET /readyz together. It is below the usual limit of a probe (3 s for Docker's
// and for that of spine health), so that the answer still names the check that was too slow.
const checkTimeout = 2 * time.Second

// NewMetrics returns a registry with the metrics of the Go runtime and the process. Each stage registers its own.
func NewMetrics() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return r
}

// Check is one condition without which the process cannot do its work. Probe must return when its context ends and be
// safe for concurrent use.
type Check struct {
	Name  string
	Probe func(context.Context) error
}

// MetricsHandler answers with what metrics gathers, as Prometheus reads it.
func MetricsHandler(metrics prometheus.Gatherer) http.Handler {
	return promhttp.HandlerFor(metrics, promhttp.HandlerOpts{})
}

// Health answers GET / (who is this), /healthz (is the process up) and /readyz (can it do its work). These paths are
// open to everyone, so /readyz names the checks that fail but not why. The log has each reason once while a check
// fails, and says when it passes again.
type Health struct {
	log      zerolog.Logger
	checks   []Check
	routes   *mux.Router
	draining atomic.Bool

	turn   chan struct{} // of one probe at a time
	latest probeResult   // of whoever has the turn

	mu      sync.Mutex
	failing map[string][]string // reasons that were told, by the name of a check that failed at the last probe
}

// probeResult is how all checks ended.
type probeResult struct {
	began  time.Time
	ends   map[string]string
	failed bool
}

// freshness is how long a result answers others too. Anyone may ask /readyz, and each probe takes a connection to the
// database that the intake needs.
const freshness = time.Second

// NewHealth makes a Health that is ready while all checks pass.
func NewHealth(log zerolog.Logger, checks ...Check) *Health {
	h := &Health{
		log:     log,
		checks:  checks,
		routes:  mux.NewRouter(),
		failing: map[string][]string{},
		turn:    make(chan struct{}, 1),
	}
	for path, handler := range map[string]http.HandlerFunc{"/": h.about, "/healthz": h.live, "/readyz": h.ready} {
		h.routes.Path(path).Methods(http.MethodGet, http.MethodHead).Handler(handler)
	}
	h.routes.MethodNotAllowedHandler = respond.MethodNotAllowed(h.routes)
	return h
}

// Around answers Health's own paths and hands every other request to next. A nil next answers 404.
func (h *Health) Around(next http.Handler) http.Handler {
	if next == nil {
		next = respond.NotFound()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/", "/healthz", "/readyz":
			h.routes.ServeHTTP(w, r)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// Drain makes /readyz answer 503 from now on, so that load balancers send new requests elsewhere while the last ones
// are still served.
func (h *Health) Drain() { h.draining.Store(true) }

func (h *Health) about(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{
		"service": "spine", "status": "healthy", "timestamp": time.Now().UTC().Format(time.RFC3339Nano),
	})
}

func (h *Health) live(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{"status": "alive"})
}

func (h *Health) ready(w http.ResponseWriter, r *http.Request) {
	if h.draining.Load() {
		writeJSON(w, http.StatusServiceUnavailable, map[string]any{"status": "draining"})
		return
	}
	checks, failed, ok := h.recentChecks(r.Context())
	if !ok {
		return // nobody waits for the answer any more
	}
	status, code := "ready", http.StatusOK
	if failed {
		status, code = "not ready", http.StatusServiceUnavailable
	}
	writeJSON(w, code, map[string]any{"status": status, "checks": checks})
}

// recentChecks returns how the checks ended, by a probe that began when the request came or less than a second before.
// One probe runs at a time, however many ask. It is not ok where ctx ends first.
func (h *Health) recentChecks(ctx context.Context) (ends map[string]string, failed, ok bool) {
	came := time.Now()
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return nil, false, false
	}
	if h.latest.ends == nil || came.Sub(h.latest.began) >= freshness {
		began := time.Now()
		// Others wait for this result, so it does not end with the request that it began with.
		ends, failed := h.probeChecks(context.WithoutCancel(ctx))
		h.latest = probeResult{began, ends, failed}
	}
	return h.latest.ends, h.latest.failed, true
}

// probeChecks probes all checks at once. It returns ok or failed for each, by name.
func (h *Health) probeChecks(ctx context.Context) (ends map[string]string, failed bool) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	errs := make([]error, len(h.checks))
	var wg sync.WaitGroup
	for i, c := range h.checks {
		wg.Go(func() { errs[i] = c.Probe(ctx) })
	}
	wg.Wait()

	ends = make(map[string]string, len(h.checks))
	for i, c := range h.checks {
		ends[c.Name] = "ok"
		if errs[i] != nil {
			failed = true
			ends[c.Name] = "failed"
		}
		h.noteChange(c.Name, errs[i])
	}
	return ends, failed
}

// mostReasons is how many reasons of one failing check are told.
const mostReasons = 5

// noteChange logs a check that ended otherwise than before. Probes come every few seconds, and most would log the same.
// Reasons that differ in numbers alone, such as ports, are one.
func (h *Health) noteChange(check string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	told, failed := h.failing[check]
	if err == nil {
		if failed {
			h.log.Info().Str("check", check).Msg("a readiness check passes again")
		}
		delete(h.failing, check)
		return
	}
	reason := numbers.ReplaceAllString(err.Error(), "0")
	if len(told) < mostReasons && !slices.Contains(told, reason) {
		h.log.Warn().Err(err).Str("check", check).Msg("a readiness check fails")
		h.failing[check] = append(told, reason)
	}
}

var numbers = regexp.MustCompile(`\d+`)

func writeJSON(w http.ResponseWriter, status int, body map[string]any) {
	_ = respond.JSON(w, status, body) // strings always encode
}

package service

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/webhookspine/spine/internal/api"
	"github.com/webhookspine/spine/internal/ingest"
	"github.com/webhookspine/spine/internal/observe"
	"github.com/webhookspine/spine/internal/respond"
)

// administration is /api, /dashboard and /metrics: where they are served, and to whom. Without a token they are open
// only on a listener of their own that nothing but this machine reaches. Whether a proxy has sent a request cannot be
// told from the request.
type administration struct {
	address string // of its own listener; empty where it shares the one of LISTEN
	access  access
}

// access says who may use the administration.
type access int

const (
	byToken access = iota
	byEveryone
	byThisMachine
	byNobody
)

// String is the access in words, for the log.
func (a access) String() string {
	switch a {
	case byToken:
		return "a token"
	case byEveryone:
		return "none: everyone who reaches it may read and operate"
	case byThisMachine:
		return "this machine only"
	case byNobody:
	}
	return "closed until ADMIN_TOKEN is set, or ADMIN_AUTH=none"
}

// authLocal is set by ServeAdminLocally alone: no text of a setting reads as it.
const authLocal AdminAuth = "local"

// ServeAdminLocally lets this machine use the administration at the address of LISTEN without a token, where that
// address is loopback. It is for spine dev, in front of which stands no proxy. Elsewhere the administration moves to
// its usual address, unless the settings say more about it.
func (s *Settings) ServeAdminLocally() {
	if len(s.Admin.Tokens) > 0 || s.Admin.Auth != "" || s.AdminListen.Address != sameAddress {
		return
	}
	if isLoopback(string(s.Listen.Address)) {
		s.Admin.Auth = authLocal
		return
	}
	for _, f := range Fields(&s.AdminListen) {
		s.AdminListen.Address = AdminAddress(f.Default)
	}
}

// administrationOf decides by the settings where the administration of a process is served. That of a worker is
// /metrics alone, at its own address: it has nothing else there that strangers need.
func administrationOf(s *Settings, r Roles) (administration, error) {
	var a administration
	switch {
	case len(s.Admin.Tokens) > 0:
		a.access = byToken
	case s.Admin.Auth == "none":
		a.access = byEveryone
	default:
		a.access = byThisMachine
	}
	listen := string(s.Listen.Address)
	own := string(s.AdminListen.Address)
	shares := !r.API || own == "" || own == sameAddress || overlap(own, listen)
	if !shares {
		a.address = own
	}
	switch {
	case a.access != byThisMachine:
	case !r.API && !isLoopback(listen):
		a.access = byNobody
	case !r.API, s.Admin.Auth == authLocal:
	case shares:
		return a, settingError("ADMIN_LISTEN: must not be the address of LISTEN without ADMIN_TOKEN " +
			"(or ADMIN_AUTH=none, which lets everyone who reaches it read and operate)")
	case !isLoopback(own):
		return a, settingError("ADMIN_LISTEN: others than this machine reach %q, so ADMIN_TOKEN must be set "+
			"(or ADMIN_AUTH=none, which lets everyone who reaches it read and operate)", own)
	}
	metrics := string(s.Metrics.Address)
	if metrics != "" && (overlap(metrics, listen) || a.address != "" && overlap(metrics, a.address)) {
		return a, settingError("METRICS_LISTEN: must be another address than those of LISTEN and ADMIN_LISTEN, got %q",
			metrics)
	}
	return a, nil
}

// isLoopback reports whether nothing but this machine reaches HOST:PORT.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback()
}

// overlap reports whether two addresses are one, or one of them has the other among its interfaces.
func overlap(a, b string) bool {
	if a == b {
		return true
	}
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	plain := func(host string) string {
		ip, err := netip.ParseAddr(host)
		switch {
		case host == "" || err == nil && ip.IsUnspecified():
			return "" // every interface
		case strings.EqualFold(host, "localhost"):
			return "127.0.0.1"
		}
		return strings.ToLower(host)
	}
	hostA, hostB = plain(hostA), plain(hostB)
	return hostA == "" || hostB == "" || hostA == hostB
}

// guard lets those pass who may use the administration. What it rejects meets the brake of rejected webhooks, a
// counter, and a summary in the audit log.
func (s *Service) guard() mux.MiddlewareFunc {
	rejected := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "spine_admin_rejected_total", Help: "Requests to the administration that were rejected, by cause.",
	}, []string{"cause"})
	s.metrics.MustRegister(rejected)
	for _, cause := range api.RejectionCauses() {
		rejected.WithLabelValues(cause) // so that it begins at 0
	}
	config := api.GuardConfig{
		Open:  s.admin.access == byEveryone,
		Names: s.settings.Admin.Names,
		Local: s.admin.access == byThisMachine,
		Client: func(r *http.Request) string {
			return ingest.ClientAddress(r, s.settings.Intake.TrustedProxies)
		},
		Rejected: func(ctx context.Context, cause string, status int) {
			rejected.WithLabelValues(cause).Inc()
			s.rejections.Add("", cause, status)
			s.brake.Wait(ctx)
		},
	}
	if s.admin.access == byToken {
		config.Tokens, config.ReadTokens = s.settings.Admin.Tokens, s.settings.Admin.ReadTokens
	}
	return api.Guard(config, s.log)
}

// newRouter returns a router whose paths may hold any character.
func newRouter() *mux.Router { return mux.NewRouter().SkipClean(true).UseEncodedPath() }

// finish makes a router answer what none of its routes does. elsewhere says that it has none of the administration.
// Such requests meet the brake, too.
func (s *Service) finish(router *mux.Router, elsewhere bool) {
	router.NotFoundHandler = respond.NotFound()
	if elsewhere {
		router.NotFoundHandler = notHere(router.NotFoundHandler)
	}
	router.NotFoundHandler = s.braked(router.NotFoundHandler)
	router.MethodNotAllowedHandler = s.braked(respond.MethodNotAllowed(router))
}

func (s *Service) braked(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.brake.Wait(r.Context())
		next.ServeHTTP(w, r)
	})
}

// notHere says of the administration's paths that they are served elsewhere. It does not say where: strangers ask too.
func notHere(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, path := range []string{"/api", "/dashboard", "/metrics"} {
			if r.URL.Path == path || strings.HasPrefix(r.URL.Path, path+"/") {
				respond.Reject(w, respond.Problem{
					Status: http.StatusNotFound,
					Detail: "The administration is not served at this address: the setting ADMIN_LISTEN says where.",
				})
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// withoutToken keeps an operator's token from what a request to the administration is handed on to.
func withoutToken(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = r.Clone(r.Context())
		r.Header.Del("Authorization")
		next.ServeHTTP(w, r)
	})
}

// metricsHandler answers with the metrics of this process. It first brings those up to date that follow the sources.
func (s *Service) metricsHandler() http.Handler {
	all := observe.MetricsHandler(s.metrics)
	if s.sources == nil {
		return all
	}
	states := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "spine_sources",
		Help: "Sources by their state in this process: open, verified, closed, disabled or broken.",
	}, []string{"state"})
	s.metrics.MustRegister(states)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if count, names, ok := s.sources.States(); ok {
			for state, n := range count {
				states.WithLabelValues(state).Set(float64(n))
			}
			s.intakeMetrics.KnowSources(names)
		}
		all.ServeHTTP(w, r)
	})
}

// sideRetry is the time between two tries to serve at an address that is taken.
const sideRetry = 3 * time.Second

// side is a server beside the one that receives. It never stops receiving: where its address is taken, it tries again.
type side struct {
	setting  string // that has its address
	address  string
	server   observe.Server
	listener net.Listener // nil while the address is taken
	err      error        // of the last try
}

// sidePart is which part of the memory for connections a listener of its own may take beside that of webhooks.
const sidePart = 8

// newSide tries to bind address.
func (s *Service) newSide(ctx context.Context, setting, name, address string, handler http.Handler) *side {
	x := &side{setting: setting, address: address, server: observe.Server{
		Handler: handler, Log: s.log, Name: name, Delay: s.settings.Stop.Delay, Timeout: s.settings.Stop.Timeout,
		IdleTimeout: s.settings.Server.IdleTimeout,
		Memory:      s.memory.connections / sidePart,
	}}
	x.listener, x.err = observe.Listen(ctx, address)
	return x
}

// run serves until ctx ends, and drains.
func (x *side) run(ctx context.Context) {
	for told := false; ; told = true {
		if x.listener == nil && told {
			x.listener, x.err = observe.Listen(ctx, x.address)
		}
		if x.listener != nil {
			x.server.Listener, x.listener = x.listener, nil
			if x.err = x.server.Run(ctx); x.err == nil {
				return
			}
			told = false
		}
		if !told {
			problem := "cannot be served at this address, trying again every few seconds"
			if errors.Is(x.err, syscall.EADDRINUSE) {
				problem = "not served: another process has this address; trying again every few seconds"
			}
			x.server.Log.Warn().Err(x.err).Str("setting", x.setting).Str("address", x.address).
				Msg(x.server.Name + " " + problem)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(sideRetry):
		}
	}
}

// url is where this machine reaches what a side serves, now or when its address is free.
func (x *side) url() string {
	if x.listener != nil {
		return observe.URL(x.listener)
	}
	return "http://" + x.address
}

// AdminURL is where this machine reaches the administration, now or when its address is free.
func (s *Service) AdminURL() string { return s.adminURL }

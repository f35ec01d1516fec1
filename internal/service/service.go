// Package service is Spine as one process runs it. It knows all stages and wires them: HTTP in, storing, waking,
// claiming and delivering, upkeep, and reading. Stages never know each other.
//
// Subcommands and system tests drive the same type, Service. New promises not to touch the database. Run works until
// its context ends, and returns when all work in hand is settled. Settings are data with the tags that describe them;
// Read checks them, and an error of theirs is a SettingError.
//
// This package knows no command line and prints nothing. It uses package terminal for one thing: to put an error on one
// line of the log.
package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/webhookspine/spine/internal/api"
	"github.com/webhookspine/spine/internal/dashboard"
	"github.com/webhookspine/spine/internal/deliver"
	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/ingest"
	"github.com/webhookspine/spine/internal/notify"
	"github.com/webhookspine/spine/internal/observe"
	"github.com/webhookspine/spine/internal/respond"
	"github.com/webhookspine/spine/internal/secret"
	"github.com/webhookspine/spine/internal/source"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/upkeep"
	"github.com/webhookspine/spine/internal/worker"
)

// Roles says which parts of Spine a process runs.
type Roles struct {
	API    bool // receive webhooks, answer reads
	Worker bool // deliver
}

// Intervals and limits that no setting changes.
const (
	// sweepInterval keeps the promise that a due event is claimed within one second although its wake-up was lost. Only
	// while a sweep is expensive it comes less often (worker, scanInterval).
	sweepInterval = 500 * time.Millisecond
	// watermarkMargin costs a claim a walk over 5,000 dead entries, at 20,000 events/s and while a snapshot is held.
	watermarkMargin  = 250 * time.Millisecond
	activityInterval = 200 * time.Millisecond
	bodyTimeout      = 10 * time.Second // to read the body of a webhook
	readTimeout      = 5 * time.Second  // for any other request to the API
)

// Service is Spine as one process runs it: the API, the worker, or both, on one database.
type Service struct {
	settings *Settings
	roles    Roles
	version  string // of this binary
	log      zerolog.Logger
	listener net.Listener
	store    *store.Store
	reads    *store.Store // has connections of its own, so that slow reads delay no work; nil without the API
	metrics  *prometheus.Registry
	checks   []observe.Check
	server   observe.Server
	admin    administration
	secrets  *secret.Resolver
	adminURL string
	sides    []*side
	brake    *ingest.Brake
	memory   memoryPlan

	name          string            // of this process, in the audit log and in what it tells of sources
	destination   string            // address of deliveries; empty where there are none
	sources       *source.Registry  // nil without the API
	committer     *ingest.Committer // nil without the API
	intakeMetrics *ingest.Metrics   // nil without the API
	handler       *ingest.Handler   // nil without the API
	rejections    *ingest.Rejections
	keeper        *ingest.Keeper   // nil without the API
	replayer      *ingest.Replayer // nil without the API
	worker        *worker.Worker   // nil without the worker, or if events are only stored
	stream        *api.Stream      // nil without the API
	notifications *notify.Listener // nil without a worker and a stream
	activity      *notify.Activity
	upkeep        *upkeep.Upkeep

	ready chan struct{}
}

// New binds the address and wires the parts, which Run starts. It does not touch the database. version is that of this
// binary, for deliveries to name.
func New(
	ctx context.Context, settings *Settings, roles Roles, version string, log zerolog.Logger,
) (_ *Service, err error) {
	destination := ""
	if roles.Worker {
		if destination, err = settings.Destination.resolve(); err != nil {
			return nil, err
		}
	}
	admin, err := administrationOf(settings, roles)
	if err != nil {
		return nil, err
	}
	s := &Service{
		settings:    settings,
		roles:       roles,
		version:     version,
		log:         log,
		admin:       admin,
		name:        processName(),
		destination: destination,
		secrets: settings.Secrets.Resolver(
			os.LookupEnv,
		),
		memory:  planMemory(settings, roles, givenMemory(os.DirFS("/"))),
		metrics: observe.NewMetrics(),
		brake:   ingest.NewBrake(),
		ready:   make(chan struct{}),
	}
	defer func() {
		if err != nil {
			s.closeStores()
		}
	}()
	reading := 0 // connections
	if roles.API {
		reading = readingConns(settings.Pool.MaxConns)
	}
	if err := s.openStores(ctx, reading); err != nil {
		return nil, err
	}
	s.checks = []observe.Check{
		{Name: "database", Probe: s.checkDatabase},
		{Name: "schema", Probe: s.checkSchema},
		{Name: "rights", Probe: s.checkRights},
	}
	s.rejections = ingest.NewRejections(s.store, time.Now, log)
	s.activity = notify.NewActivity(s.store, activityInterval, log)
	s.upkeep = upkeep.New(upkeep.Config{
		Retention: settings.Upkeep.Retention,
		Troubles:  cmp.Or(s.reads, s.store).Troubles,
	}, s.store, log, s.metrics)

	if destination != "" {
		if err := s.addWorker(destination, version); err != nil {
			return nil, err
		}
	}
	if roles.API {
		s.stream = api.NewStream(s.reads, streamConfig(reading), log, s.metrics)
	}
	if s.worker != nil || s.stream != nil {
		if err := s.addNotifications(); err != nil {
			return nil, err
		}
	}
	if roles.API {
		s.addIntake()
	}
	if err := s.addServers(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// addWorker makes the worker that delivers to destination.
func (s *Service) addWorker(destination, version string) error {
	settings := s.settings
	proxy, err := settings.Destination.proxy(destination)
	if err != nil {
		return err
	}
	client, err := deliver.New(deliver.Config{
		URL:         destination,
		Proxy:       proxy,
		Secret:      settings.Destination.Secret,
		Timeout:     settings.Destination.Timeout,
		Concurrency: settings.Worker.Concurrency,
		UserAgent:   "spine/" + version,
	})
	if err != nil {
		return SettingError{deliverySetting(err)}
	}
	config := worker.Config{
		Destination: event.DefaultDestination,
		Name:        s.name,
		Concurrency: settings.Worker.Concurrency,
		Lease:       settings.Worker.Lease,
		Sweep:       sweepInterval,
		Hears:       func() bool { return s.notifications.Hears() },
		Margin:      watermarkMargin,
		StopTimeout: settings.Stop.Timeout,
		Policy: worker.Policy{
			MaxAttempts:    settings.Retry.MaxAttempts,
			InitialDelay:   settings.Retry.InitialDelay,
			MaxDelay:       settings.Retry.MaxDelay,
			CountUnreached: settings.Retry.CountUnreached,
		},
	}
	s.worker = worker.New(config, s.store, client, s.activity, s.log, worker.NewMetrics(s.metrics))
	return nil
}

// addNotifications makes the listener that wakes the worker, the stream and the registry of sources.
func (s *Service) addNotifications() error {
	connect, err := store.Connector(s.settings.DirectURL(), "spine listener")
	if err != nil {
		return err
	}
	s.notifications = notify.NewListener(notify.DefaultListenerConfig(connect), s.store, s.log, s.metrics)
	s.notifications.Handle(notify.ReadyChannel, s.heardReady)
	if s.stream != nil {
		s.notifications.Handle(notify.ActivityChannel, func(notify.Notification) { s.stream.Ring() })
		s.notifications.Handle(notify.SourcesChannel, func(notify.Notification) {
			s.sources.Reload()
			s.replayer.Ring()
		})
	}
	if s.worker != nil {
		s.checks = append(s.checks, observe.Check{Name: "listener", Probe: s.notifications.Check})
	}
	return nil
}

// addIntake makes what receives webhooks.
func (s *Service) addIntake() {
	settings := s.settings
	config := ingest.DefaultCommitterConfig()
	config.Committed = s.noteCommitted
	s.intakeMetrics = ingest.NewMetrics(s.metrics)
	var events ingest.Store = s.store
	if s.worker != nil {
		log := s.log.Sample(&zerolog.BurstSampler{Burst: 10, Period: time.Second})
		events = intake{store: s.store, worker: s.worker, log: log}
	}
	s.committer = ingest.NewCommitter(events, config, s.log, s.intakeMetrics)
	s.keeper = ingest.NewKeeper(s.store, s.log, s.intakeMetrics)
	s.sources = source.NewRegistry(s.store, s.secrets, s.log)
	for _, own := range settings.ownSecrets() {
		s.sources.Hide(own)
	}
	if settings.Intake.DefaultSource != "open" {
		s.sources.CloseDefault()
	}
	s.checks = append(s.checks, observe.Check{Name: "sources", Probe: s.checkSources})
	s.handler = ingest.NewHandler(ingest.HandlerConfig{
		MaxBody:     settings.Intake.MaxBodyBytes,
		ReadTimeout: bodyTimeout,
		InFlight:    s.inFlightBytes(),
		Trusted:     settings.Intake.TrustedProxies,
		Address:     ingest.Rate{PerSecond: settings.Intake.AddressRate, Burst: settings.Intake.AddressBurst},
		Brake:       s.brake,
	}, intakeSources{s.sources}, s.committer, s.rejections, s.keeper, s.log, s.intakeMetrics)
	s.replayer = ingest.NewReplayer(s.store, s.handler, s.log)
}

// addServers binds the addresses and makes the servers that answer there. Only that of LISTEN must be free.
func (s *Service) addServers(ctx context.Context) (err error) {
	public := newRouter()
	admin := public
	if s.admin.address != "" {
		admin = newRouter()
	}
	metrics := s.metricsHandler()
	if err := s.addAdministration(admin, metrics); err != nil {
		return err
	}
	if s.listener, err = observe.Listen(ctx, string(s.settings.Listen.Address)); err != nil {
		return err
	}
	health := observe.NewHealth(s.log, s.checks...)
	s.finish(public, admin != public)
	handler := http.Handler(public)
	if s.handler != nil {
		handler = s.handler.Around(public)
	}
	s.server = observe.Server{
		Listener: s.listener, Handler: health.Around(handler), Health: health, Log: s.log,
		Delay: s.settings.Stop.Delay, Timeout: s.settings.Stop.Timeout, IdleTimeout: s.settings.Server.IdleTimeout,
		Memory: s.memory.connections,
	}
	s.adminURL = s.URL()
	if admin != public {
		s.finish(admin, false)
		own := s.newSide(ctx, "ADMIN_LISTEN", "the administration", s.admin.address, health.Around(admin))
		s.adminURL = own.url()
		s.sides = append(s.sides, own)
	}
	if address := string(s.settings.Metrics.Address); address != "" {
		router := newRouter()
		router.Path("/metrics").Methods(http.MethodGet, http.MethodHead).Handler(metrics)
		s.finish(router, false)
		s.sides = append(s.sides, s.newSide(ctx, "METRICS_LISTEN", "metrics", address, router))
	}
	return nil
}

// addAdministration adds what only the operator may see.
func (s *Service) addAdministration(router *mux.Router, metrics http.Handler) error {
	guarded := router.NewRoute().Subrouter()
	guarded.Use(s.guard())
	guarded.Path("/metrics").Methods(http.MethodGet, http.MethodHead).Handler(metrics)
	if s.handler == nil {
		return nil
	}
	page, err := dashboard.New()
	if err != nil {
		return err
	}
	ops := operator{s.store, s.worker, s.secrets}
	api.NewHandler(reader{s.reads, s.upkeep}, ops, readTimeout, s.log).Register(guarded)
	api.NewSourceHandler(s.reads, ops, sourceProcess{s.sources, s.handler, s.secrets}, readTimeout, s.log).
		Register(guarded)
	s.stream.Register(guarded)
	page.Register(guarded)
	if s.admin.address != "" { // the page's test desk sends webhooks to where it comes from
		sent := guarded.NewRoute().Subrouter()
		if s.admin.access == byToken {
			sent.Use(withoutToken)
		}
		sent.PathPrefix("/webhook").Handler(s.handler.Around(respond.NotFound()))
	}
	return nil
}

// deliverySetting names the setting that a *deliver.ConfigError is about.
func deliverySetting(err error) error {
	bad, ok := errors.AsType[*deliver.ConfigError](err)
	if !ok {
		return err
	}
	setting := map[string]string{
		"URL":         "DESTINATION_URL",
		"Proxy":       "HTTPS_PROXY, HTTP_PROXY",
		"Secret":      "DESTINATION_SECRET",
		"Timeout":     "DELIVERY_TIMEOUT",
		"Concurrency": "DELIVERY_CONCURRENCY",
	}[bad.Field]
	return fmt.Errorf("%s: %s", setting, bad.Detail)
}

// processName makes a name for this process.
func processName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "spine"
	}
	return host[:min(len(host), 40)] + "-" + uuid.NewString()[:4]
}

// URL is where to reach the service from this machine.
func (s *Service) URL() string { return observe.URL(s.listener) }

// Ready is closed when the schema is in place, every part runs, and the sources are known.
func (s *Service) Ready() <-chan struct{} { return s.ready }

func (s *Service) sayReady(ctx context.Context) {
	if s.sources != nil {
		select {
		case <-s.sources.Known():
		case <-ctx.Done():
			return
		}
	}
	close(s.ready)
}

// Run brings the schema up to date and works until ctx ends. Then it drains: it receives no more, claims no more,
// finishes and settles what is in hand, and closes the pool. It answers requests from the start, with 503 while the
// database is away.
func (s *Service) Run(ctx context.Context) error {
	defer s.closeStores()
	s.sayStart()
	told := ctx
	// Parts that serve others stop after them: background outlives front.
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	front, ctx := errgroup.WithContext(ctx)
	var back errgroup.Group
	back.Go(func() error { return s.activity.Run(background) })
	back.Go(func() error { return s.rejections.Run(background) })
	back.Go(func() error { return s.memory.keep(background, s.log) })
	if s.committer != nil {
		back.Go(func() error { return s.committer.Run(background) })
		back.Go(func() error { return s.keeper.Run(background) })
	}
	front.Go(func() error {
		<-ctx.Done()
		if told.Err() != nil {
			s.sayStopping()
		}
		return nil
	})
	front.Go(func() error { return s.server.Run(ctx) })
	for _, x := range s.sides {
		front.Go(func() error {
			x.run(ctx)
			return nil
		})
	}
	if s.stream != nil {
		front.Go(func() error { return s.stream.Run(ctx) })
	}
	front.Go(func() error {
		if err := s.awaitSchema(ctx); err != nil {
			if ctx.Err() != nil {
				return nil // told to stop before there was anything to do
			}
			return fmt.Errorf("starting: %w", err)
		}
		back.Go(func() error { return s.upkeep.Run(background) })
		if s.sources != nil {
			back.Go(func() error { return s.sources.Run(background) })
			back.Go(func() error { return s.sources.Tell(background, s.store, s.name) })
			front.Go(func() error { return s.replayer.Run(ctx) })
		}
		if s.notifications != nil {
			back.Go(func() error { return s.notifications.Run(background) })
		}
		front.Go(func() error { s.sayReady(ctx); return nil })
		if s.worker == nil {
			return nil
		}
		return s.worker.Run(ctx)
	})
	err := front.Wait()
	stopBackground()
	if err = errors.Join(err, back.Wait()); err == nil {
		s.log.Info().Msg("stopped")
	}
	return err
}

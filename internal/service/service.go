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
	log      zerolog.Logger
	listener net.Listener
	store    *store.Store
	reads    *store.Store // has connections of its own, so that slow reads delay no work; nil without the API
	metrics  *prometheus.Registry
	checks   []observe.Check
	server   observe.Server
	memory   memoryPlan

	sources       *source.Registry   // nil without the API
	committer     *ingest.Committer  // nil without the API
	rejections    *ingest.Rejections // nil without the API
	keeper        *ingest.Keeper     // nil without the API
	replayer      *ingest.Replayer   // nil without the API
	worker        *worker.Worker     // nil without the worker, or if events are only stored
	stream        *api.Stream        // nil without the API
	notifications *notify.Listener   // nil without a worker and a stream
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
	s := &Service{settings: settings, log: log, metrics: observe.NewMetrics(), ready: make(chan struct{})}
	s.memory = planMemory(settings, roles, groupMemory(os.DirFS("/")))
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
	}
	s.activity = notify.NewActivity(s.store, activityInterval, log)
	s.upkeep = upkeep.New(upkeep.Config{Retention: settings.Upkeep.Retention}, s.store, log, s.metrics)

	if roles.Worker && destination == "" {
		log.Info().Msg("DESTINATION_URL is none: events are stored and stay pending")
	} else if roles.Worker {
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
	router := mux.NewRouter().SkipClean(true).UseEncodedPath()
	if roles.API {
		if err := s.addAPI(router); err != nil {
			return nil, err
		}
	}
	router.NotFoundHandler = respond.NotFound()
	router.MethodNotAllowedHandler = respond.MethodNotAllowed(router)
	if err := s.addServer(ctx, router); err != nil {
		return nil, err
	}
	return s, nil
}

// addWorker makes the worker that delivers to destination.
func (s *Service) addWorker(destination, version string) error {
	settings := s.settings
	client, err := deliver.New(deliver.Config{
		URL:         destination,
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
		Name:        workerName(),
		Concurrency: settings.Worker.Concurrency,
		Lease:       settings.Worker.Lease,
		Sweep:       sweepInterval,
		Hears:       func() bool { return s.notifications.Hears() },
		Margin:      watermarkMargin,
		StopTimeout: settings.Stop.Timeout,
		Policy: worker.Policy{
			MaxAttempts:  settings.Retry.MaxAttempts,
			InitialDelay: settings.Retry.InitialDelay,
			MaxDelay:     settings.Retry.MaxDelay,
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

// addAPI makes the intake, the API and the page, and adds their routes.
func (s *Service) addAPI(router *mux.Router) error {
	settings := s.settings
	config := ingest.DefaultCommitterConfig()
	config.Committed = s.noteCommitted
	metrics := ingest.NewMetrics(s.metrics)
	var events ingest.Store = s.store
	if s.worker != nil {
		log := s.log.Sample(&zerolog.BurstSampler{Burst: 10, Period: time.Second})
		events = intake{store: s.store, worker: s.worker, log: log}
	}
	s.committer = ingest.NewCommitter(events, config, s.log, metrics)
	s.rejections = ingest.NewRejections(s.store, time.Now, s.log)
	s.keeper = ingest.NewKeeper(s.store, s.log, metrics)
	s.sources = source.NewRegistry(s.store, source.ResolveSecret, s.log)
	s.checks = append(s.checks, observe.Check{Name: "sources", Probe: s.checkSources})
	handler := ingest.NewHandler(ingest.HandlerConfig{
		MaxBody:     settings.Intake.MaxBodyBytes,
		ReadTimeout: bodyTimeout,
		InFlight:    s.inFlightBytes(),
		Trusted:     settings.Intake.TrustedProxies,
		Address:     ingest.Rate{PerSecond: settings.Intake.AddressRate, Burst: settings.Intake.AddressBurst},
	}, intakeSources{s.sources}, s.committer, s.rejections, s.keeper, s.log, metrics)
	handler.Register(router)
	s.replayer = ingest.NewReplayer(s.store, handler, s.log)

	page, err := dashboard.New()
	if err != nil {
		return err
	}
	admin := settings.Admin
	guard := api.GuardConfig{Token: admin.Token, ReadToken: admin.Read, Open: admin.Auth == "none"}
	guarded := router.NewRoute().Subrouter()
	guarded.Use(api.Guard(guard, s.log), api.SameOrigin(s.log))
	ops := operator{s.store, s.worker}
	api.NewHandler(s.reads, ops, readTimeout, s.log).Register(guarded)
	api.NewSourceHandler(s.reads, ops, sourceProcess{s.sources, handler}, readTimeout, s.log).Register(guarded)
	s.stream.Register(guarded)
	page.Register(guarded)
	return nil
}

// addServer binds the address and makes the server that answers there.
func (s *Service) addServer(ctx context.Context, router http.Handler) (err error) {
	if s.listener, err = observe.Listen(ctx, string(s.settings.Listen.Address)); err != nil {
		return err
	}
	health := observe.NewHealth(s.log, s.metrics, s.checks...)
	s.server = observe.Server{
		Listener: s.listener, Handler: health.Around(router), Health: health, Log: s.log,
		Delay: s.settings.Stop.Delay, Timeout: s.settings.Stop.Timeout,
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
		"Secret":      "DESTINATION_SECRET",
		"Timeout":     "DELIVERY_TIMEOUT",
		"Concurrency": "DELIVERY_CONCURRENCY",
	}[bad.Field]
	return fmt.Errorf("%s: %s", setting, bad.Detail)
}

// workerName names this process in the audit log.
func workerName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "worker"
	}
	return host[:min(len(host), 40)] + "-" + uuid.NewString()[:4]
}

// URL is where to reach the service from this machine.
func (s *Service) URL() string { return observe.URL(s.listener) }

// Ready is closed when the schema is in place and every part runs.
func (s *Service) Ready() <-chan struct{} { return s.ready }

// Run brings the schema up to date and works until ctx ends. Then it drains: it receives no more, claims no more,
// finishes and settles what is in hand, and closes the pool. It answers requests from the start, with 503 while the
// database is away.
func (s *Service) Run(ctx context.Context) error {
	defer s.closeStores()
	// Parts that serve others stop after them: background outlives front.
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	front, ctx := errgroup.WithContext(ctx)
	var back errgroup.Group
	back.Go(func() error { return s.activity.Run(background) })
	back.Go(func() error { return s.memory.keep(background, s.log) })
	if s.committer != nil {
		back.Go(func() error { return s.committer.Run(background) })
		back.Go(func() error { return s.rejections.Run(background) })
		back.Go(func() error { return s.keeper.Run(background) })
	}
	front.Go(func() error { return s.server.Run(ctx) })
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
			front.Go(func() error { return s.replayer.Run(ctx) })
		}
		if s.notifications != nil {
			back.Go(func() error { return s.notifications.Run(background) })
		}
		close(s.ready)
		if s.worker == nil {
			return nil
		}
		return s.worker.Run(ctx)
	})
	err := front.Wait()
	stopBackground()
	return errors.Join(err, back.Wait())
}

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
	"github.com/jackc/pgx/v5/pgconn"
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
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/upkeep"
	"github.com/webhookspine/spine/internal/worker"
)

// Roles says which parts of Spine a process runs.
type Roles struct {
	API    bool // take webhooks in, answer reads
	Worker bool // deliver
}

// Intervals of the worker and of the summaries. The sweep keeps the promise that a due event is claimed within one
// second although its wake-up was lost. Only while a sweep is expensive it comes less often (worker, scanInterval).
const (
	sweepInterval = 500 * time.Millisecond
	// at 20,000 events/s a claim walks 5,000 dead entries while a snapshot is held
	watermarkMargin  = 250 * time.Millisecond
	activityInterval = 200 * time.Millisecond
	bodyTimeout      = 10 * time.Second
	readTimeout      = 5 * time.Second // of one request to the API that is not a webhook
)

// Service is Spine as one process runs it: the API, the worker, or both, on
// one database. Commands and end-to-end tests drive this same type.
type Service struct {
	settings *Settings
	log      zerolog.Logger
	listener net.Listener
	store    *store.Store
	reads    *store.Store // connections of their own: slow queries do not hold up the work; nil without the API
	server   observe.Server

	sources       *source.Registry   // nil without the API
	committer     *ingest.Committer  // nil without the API
	rejections    *ingest.Rejections // nil without the API
	keeper        *ingest.Keeper     // nil without the API
	replayer      *ingest.Replayer   // nil without the API
	worker        *worker.Worker     // nil without the worker, or where events are only stored
	stream        *api.Stream        // nil without the API
	notifications *notify.Listener   // nil where nobody waits for anything
	activity      *notify.Activity
	upkeep        *upkeep.Upkeep

	ready chan struct{}
}

// New binds the address and wires the parts; Run starts them. It does
// not touch the database.
func New(ctx context.Context, s *Settings, r Roles, version string, log zerolog.Logger) (_ *Service, err error) {
	destination := ""
	if r.Worker {
		if destination, err = s.Destination.resolve(); err != nil {
			return nil, err
		}
	}
	p := &Service{settings: s, log: log, ready: make(chan struct{})}
	defer func() {
		if err != nil {
			p.closeStores()
		}
	}()
	conns, reading := s.Pool.MaxConns, 0
	if r.API {
		reading = readingConns(conns)
		conns = max(1, conns-reading)
		if p.reads, err = openStore(ctx, s, reading, "spine reads"); err != nil {
			return nil, err
		}
	}
	if p.store, err = openStore(ctx, s, conns, "spine"); err != nil {
		return nil, err
	}

	metrics := observe.NewMetrics()
	checks := []observe.Check{{Name: "database", Probe: p.checkDatabase}, {Name: "schema", Probe: p.checkSchema}}
	p.activity = notify.NewActivity(p.store, activityInterval, log)
	p.upkeep = upkeep.New(upkeep.Config{Retention: s.Upkeep.Retention}, p.store, log, metrics)

	if r.Worker && destination == "" {
		log.Info().Msg("DESTINATION_URL is none: events are stored and stay pending")
	} else if r.Worker {
		client, err := deliver.New(deliver.Config{
			URL: destination, Secret: s.Destination.Secret, Timeout: s.Destination.Timeout,
			Concurrency: s.Worker.Concurrency, UserAgent: "spine/" + version,
		})
		if err != nil {
			return nil, SettingError{deliverySetting(err)}
		}
		p.worker = worker.New(worker.Config{
			Destination: event.DefaultDestination,
			Name:        workerName(),
			Concurrency: s.Worker.Concurrency,
			Lease:       s.Worker.Lease,
			Sweep:       sweepInterval,
			Hears:       func() bool { return p.notifications.Hears() },
			Margin:      watermarkMargin,
			StopTimeout: s.Stop.Timeout,
			Policy: worker.Policy{
				MaxAttempts:  s.Retry.MaxAttempts,
				InitialDelay: s.Retry.InitialDelay,
				MaxDelay:     s.Retry.MaxDelay,
			},
		}, p.store, client, p.activity, log, worker.NewMetrics(metrics))
	}
	if r.API {
		p.stream = api.NewStream(p.reads, streamConfig(reading), log, metrics)
	}
	if p.worker != nil || p.stream != nil {
		connect, err := store.Connector(s.DirectURL(), "spine listener")
		if err != nil {
			return nil, err
		}
		p.notifications = notify.NewListener(notify.DefaultListenerConfig(connect), p.store, log, metrics)
		p.notifications.Handle(notify.ReadyChannel, p.heardReady)
		if p.stream != nil {
			p.notifications.Handle(notify.ActivityChannel, func(notify.Notification) { p.stream.Ring() })
			p.notifications.Handle(notify.SourcesChannel, func(notify.Notification) {
				p.sources.Reload()
				p.replayer.Ring()
			})
		}
	}
	if p.worker != nil {
		checks = append(checks, observe.Check{Name: "listener", Probe: p.notifications.Check})
	}

	router := mux.NewRouter().SkipClean(true).UseEncodedPath()
	if r.API {
		config := ingest.DefaultCommitterConfig()
		config.Committed = p.committed
		m := ingest.NewMetrics(metrics)
		var events ingest.Store = p.store
		if p.worker != nil {
			events = intake{store: p.store, worker: p.worker, log: log}
		}
		p.committer = ingest.NewCommitter(events, config, log, m)
		p.rejections = ingest.NewRejections(p.store, time.Now, log)
		p.keeper = ingest.NewKeeper(p.store, log, m)
		p.sources = source.NewRegistry(p.store, source.ResolveSecret, log)
		checks = append(checks, observe.Check{Name: "sources", Probe: p.checkSources})
		handler := ingest.NewHandler(ingest.HandlerConfig{
			MaxBody:     s.Intake.MaxBodyBytes,
			ReadTimeout: bodyTimeout,
			InFlight:    s.Intake.MaxInFlightBytes,
			Trusted:     s.Intake.TrustedProxies,
			Address:     ingest.Rate{PerSecond: s.Intake.AddressRate, Burst: s.Intake.AddressBurst},
		}, sourcesOf{p.sources}, p.committer, p.rejections, p.keeper, log, m)
		handler.Register(router)
		p.replayer = ingest.NewReplayer(p.store, handler, log)

		page, err := dashboard.New()
		if err != nil {
			return nil, err
		}
		guarded := router.NewRoute().Subrouter()
		guarded.Use(
			api.Guard(
				api.GuardConfig{Token: s.Admin.Token, ReadToken: s.Admin.Read, Open: s.Admin.Auth == "none"},
				log,
			),
		)
		guarded.Use(api.SameOrigin(log))
		api.NewHandler(p.reads, operator{p.store, p.worker}, readTimeout, log).Register(guarded)
		api.NewSourceHandler(
			p.reads,
			operator{p.store, p.worker},
			sourceProcess{p.sources, handler},
			readTimeout,
			log,
		).Register(
			guarded,
		)
		p.stream.Register(guarded)
		page.Register(guarded)
	}
	router.NotFoundHandler = respond.NotFound()
	router.MethodNotAllowedHandler = respond.MethodNotAllowed(router)

	if p.listener, err = observe.Listen(ctx, string(s.Listen.Address)); err != nil {
		return nil, err
	}
	health := observe.NewHealth(log, metrics, checks...)
	p.server = observe.Server{
		Listener: p.listener, Handler: health.Around(http.Handler(router)), Health: health, Log: log,
		Delay: s.Stop.Delay, Timeout: s.Stop.Timeout,
	}
	return p, nil
}

// deliverySetting names the setting that a *deliver.ConfigError is about.
func deliverySetting(err error) error {
	bad, ok := errors.AsType[*deliver.ConfigError](err)
	if !ok {
		return err
	}
	setting := map[string]string{
		"URL": "DESTINATION_URL", "Secret": "DESTINATION_SECRET",
		"Timeout": "DELIVERY_TIMEOUT", "Concurrency": "DELIVERY_CONCURRENCY",
	}[bad.Field]
	return fmt.Errorf("%s: %s", setting, bad.Detail)
}

// readingConns returns how many of conns connections are for reading: a
// quarter, and two where that leaves as many for the work, so that one of them
// is free while the other reads what a viewer of the stream has missed.
func readingConns(conns int) int {
	if conns < 4 {
		return 1
	}
	return max(2, conns/4)
}

// streamConfig says what the stream spends where reading connections are for
// reading. However many viewers come back, one is left to the lists and to the
// hub, if there are two.
func streamConfig(reading int) api.StreamConfig {
	config := api.DefaultStreamConfig()
	config.CatchUps = max(1, min(config.CatchUps, reading-1))
	return config
}

// openStore makes a pool of conns connections.
func openStore(ctx context.Context, s *Settings, conns int, name string) (*store.Store, error) {
	return store.Open(
		ctx,
		store.Config{URL: string(s.Database.URL), MaxConns: int32(conns), AppName: name},
	) //nolint:gosec // at most 1000
}

func (p *Service) closeStores() {
	for _, s := range []*store.Store{p.store, p.reads} {
		if s != nil {
			s.Close()
		}
	}
}

// workerName names this process in the audit log.
func workerName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "worker"
	}
	return host[:min(len(host), 40)] + "-" + uuid.NewString()[:4]
}

// heardReady is told of every notification that work has arrived.
func (p *Service) heardReady(n notify.Notification) {
	if p.stream != nil {
		p.stream.Ring()
	}
	if p.worker == nil {
		return
	}
	if since, ok := n.Due(); ok {
		p.worker.Due(since)
	}
	switch {
	case n.Missed:
		p.worker.Wake(worker.Reconnected)
	case p.committer != nil && p.store.Owns(n.PID): // intake and operator have seen to it already
	default:
		p.worker.Wake(worker.Notified)
	}
}

// committed is told of every batch that was stored.
func (p *Service) committed(events []event.Event, receipts []event.Receipt) {
	for i := range events {
		p.activity.Add(trail.EventReceived, events[i].ID)
		switch receipts[i].Outcome {
		case event.Accepted:
			p.activity.Add(trail.EventInserted, events[i].ID)
		case event.Deduplicated:
			p.activity.Add(trail.EventDeduped, events[i].ID)
		case event.Conflict:
			p.activity.Add(trail.ConflictDetected, events[i].ID)
		}
	}
}

// checkSources is content once the sources have been read.
func (p *Service) checkSources(context.Context) error {
	if _, err := p.sources.Lookup(event.DefaultSource); errors.Is(err, event.ErrSourcesUnknown) {
		return err
	}
	return nil
}

func (p *Service) checkDatabase(ctx context.Context) error { return p.store.Pool().Ping(ctx) }

// checkSchema is content with a schema that is newer than this binary: during
// an upgrade old processes go on until they are replaced.
func (p *Service) checkSchema(ctx context.Context) error {
	if err := p.store.CheckSchema(ctx); !errors.Is(err, store.ErrTooNew) {
		return err
	}
	return nil
}

// URL is where the service is reached from this machine.
func (p *Service) URL() string { return observe.URL(p.listener) }

// Ready is closed when the schema is in place and every part runs.
func (p *Service) Ready() <-chan struct{} { return p.ready }

// Run brings the schema up to date, works until ctx ends, and then drains: it
// stops taking in, stops claiming, finishes what is in hand, settles it, and
// closes the pool. Requests are answered from the start, with 503 while the
// database is away.
func (p *Service) Run(ctx context.Context) error {
	defer p.closeStores()
	// What serves the others stops after them: background outlives front.
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	front, ctx := errgroup.WithContext(ctx)
	var back errgroup.Group
	back.Go(func() error { return p.activity.Run(background) })
	if p.committer != nil {
		back.Go(func() error { return p.committer.Run(background) })
		back.Go(func() error { return p.rejections.Run(background) })
		back.Go(func() error { return p.keeper.Run(background) })
	}
	front.Go(func() error { return p.server.Run(ctx) })
	if p.stream != nil {
		front.Go(func() error { return p.stream.Run(ctx) })
	}
	front.Go(func() error {
		if err := p.awaitSchema(ctx); err != nil {
			if ctx.Err() != nil {
				return nil // told to stop before there was anything to do
			}
			return fmt.Errorf("starting: %w", err)
		}
		back.Go(func() error { return p.upkeep.Run(background) })
		if p.sources != nil {
			back.Go(func() error { return p.sources.Run(background) })
			front.Go(func() error { return p.replayer.Run(ctx) })
		}
		if p.notifications != nil {
			back.Go(func() error { return p.notifications.Run(background) })
		}
		close(p.ready)
		if p.worker == nil {
			return nil
		}
		return p.worker.Run(ctx)
	})
	err := front.Wait()
	stopBackground()
	return errors.Join(err, back.Wait())
}

// Pauses between two attempts to reach a database that is away, and how many
// of them one log line stands for.
const (
	awayPause = time.Second
	awayQuiet = 15
)

// awaitSchema migrates, or checks that somebody else has. While the database
// is away it waits: in a new deployment it may come up last.
func (p *Service) awaitSchema(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		err := p.ensureSchema(ctx)
		if err == nil || !Unreachable(err) {
			return err
		}
		if attempt%awayQuiet == 0 {
			p.log.Warn().Str(
				"error",
				terminal.OneLine(err.Error()),
			).Msg(
				"the database cannot be reached, trying again every second",
			)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(awayPause):
		}
	}
}

func (p *Service) ensureSchema(ctx context.Context) error {
	if !p.settings.Schema.Migrate {
		return p.store.CheckSchema(ctx)
	}
	m, err := store.Migrate(ctx, p.settings.DirectURL())
	if err != nil {
		return err
	}
	logMigrated(p.log, m)
	return nil
}

func logMigrated(log zerolog.Logger, m store.Migrated) {
	log.Info().Int64(
		"version",
		m.Version,
	).Ints64(
		"applied",
		m.Applied,
	).Bool(
		"functions",
		m.Functions,
	).Int(
		"partitions",
		m.Partitions,
	).Msg(
		"the schema is up to date",
	)
}

// Unreachable reports whether an error says that the database cannot be reached now,
// rather than that it refuses us.
func Unreachable(err error) bool {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.Code[:2] {
		case "57", "08", "53": // shutting down or starting up, connection exceptions, too many connections
			return true
		}
		return false
	}
	var connectErr *pgconn.ConnectError
	return errors.As(err, &connectErr)
}

package service

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/api"
	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
)

// openStores makes the pools: one for the work and, if reading is not 0, one of so many connections for reads.
func (s *Service) openStores(ctx context.Context, reading int) (err error) {
	working := s.settings.Pool.MaxConns
	if reading > 0 {
		working = max(1, working-reading)
		if s.reads, err = openStore(ctx, s.settings, reading, "spine reads", readTimeout, s.log); err != nil {
			return err
		}
	}
	name := "spine api" // spine.explain() tells by these names whether a worker is connected
	if s.destination != "" {
		name = "spine"
	}
	s.store, err = openStore(ctx, s.settings, working, name, 0, s.log)
	return err
}

// openStore makes a pool of conns connections. timeout limits each statement that reads for an operator; 0 is no limit.
func openStore(
	ctx context.Context, settings *Settings, conns int, name string, timeout time.Duration, log zerolog.Logger,
) (*store.Store, error) {
	config := store.Config{
		URL: string(settings.Database.URL), AppName: name, ReadTimeout: timeout,
		Moved: func(found string) { log.Error().Msg(found) },
	}
	config.MaxConns = int32(conns) //nolint:gosec // at most 1000
	return store.Open(ctx, config)
}

func (s *Service) closeStores() {
	for _, pool := range []*store.Store{s.store, s.reads} {
		if pool != nil {
			pool.Close()
		}
	}
}

// readingConns is how many of conns connections are for reads: a quarter, but two if that leaves as many for the work.
// With two, one is free while the other reads what a viewer of the stream has missed.
func readingConns(conns int) int {
	if conns < 4 {
		return 1
	}
	return max(2, conns/4)
}

// streamConfig limits the stream where so many connections are for reads. However many viewers come back, one of two
// connections is left to the lists and to the hub.
func streamConfig(reading int) api.StreamConfig {
	config := api.DefaultStreamConfig()
	config.CatchUps = max(1, min(config.CatchUps, reading-1))
	return config
}

func (s *Service) checkDatabase(ctx context.Context) error { return s.store.CheckWritable(ctx) }

// checkSchema accepts a schema that is newer than this binary. During an upgrade old processes go on until they are
// replaced.
func (s *Service) checkSchema(ctx context.Context) error {
	if err := s.store.CheckSchema(ctx); !errors.Is(err, store.ErrTooNew) && !errors.Is(err, store.ErrNewer) {
		return err
	}
	return nil
}

// checkRights asks the database and not the settings: a right may be missing after an upgrade by the schema's owner.
func (s *Service) checkRights(ctx context.Context) error { return s.store.CheckRights(ctx) }

// CheckDirect rejects a DIRECT_DATABASE_URL of another database than DATABASE_URL, before anything is written there.
// Where one of them cannot be reached, others say so.
func (s *Settings) CheckDirect(ctx context.Context) error {
	if s.Direct.URL == "" || s.Database.URL == "" || s.Direct.URL == s.Database.URL {
		return nil
	}
	err := store.CheckDirect(ctx, string(s.Database.URL), string(s.Direct.URL))
	if errors.Is(err, store.ErrOtherDatabase) {
		return settingError("DIRECT_DATABASE_URL: %w", err)
	}
	return nil
}

const (
	// outagePause is the wait between two attempts to reach a database that is away.
	outagePause = time.Second
	// outageAttempts is how many attempts share one log line.
	outageAttempts = 15
)

// awaitSchema migrates, or checks that somebody else has. It waits for a database that is away, because in a new
// deployment the database may come up last. It also waits for rights without which nothing can be read, and for locks
// that keep it from noting which database this is.
func (s *Service) awaitSchema(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		err := s.ensureSchema(ctx)
		if err == nil {
			err = s.noteDatabase(ctx)
		}
		lacks, lacking := errors.AsType[*store.RightsError](err)
		locked := errors.Is(err, event.ErrLocked)
		if err == nil || !lacking && !locked && !IsUnreachable(err) {
			return err
		}
		switch {
		case attempt%outageAttempts != 0:
		case locked:
			s.log.Warn().Str("error", terminal.OneLine(err.Error())).
				Msg("somebody holds a lock on the audit log, trying again every second")
		case lacking:
			s.log.Error().Msg(lacks.Error() + "; trying again every second")
		default:
			s.log.Warn().Str("error", terminal.OneLine(err.Error())).
				Msg("the database cannot be reached, trying again every second")
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(outagePause):
		}
	}
}

func (s *Service) ensureSchema(ctx context.Context) error {
	if err := s.settings.CheckDirect(ctx); err != nil {
		return err
	}
	if !s.settings.Schema.Migrate {
		err := s.store.CheckSchema(ctx)
		if errors.Is(err, store.ErrNewer) {
			s.log.Warn().Msg(err.Error())
			err = nil
		}
		if err == nil {
			s.sayRights(ctx)
		}
		return err
	}
	// Most starts find what they need. These take no lock, and upkeep makes the partitions.
	if done, err := s.store.IsMigrated(ctx); err == nil && done {
		s.log.Info().Msg("the schema is up to date")
		s.sayRights(ctx)
		return nil
	}
	migrated, err := store.Migrate(ctx, s.settings.DirectURL(), func(what string) {
		s.log.Warn().Msg("migrating: waiting for " + terminal.OneLine(what))
	})
	if err != nil {
		return err
	}
	logMigrated(s.log, migrated)
	s.sayRights(ctx)
	return nil
}

// noteDatabase lets each pool find out whether this is the database that was noted, before anything is claimed or read.
// It then says what is paused, since nothing is delivered there however well the process works.
func (s *Service) noteDatabase(ctx context.Context) error {
	for _, pool := range []*store.Store{s.store, s.reads} {
		if pool == nil {
			continue
		}
		found, err := pool.NoteDatabase(ctx)
		if errors.Is(err, store.ErrMayNotNote) {
			s.log.Error().Msg(err.Error())
			return nil // sayRights has said which right is missing
		}
		if err != nil {
			return err
		}
		if found != "" {
			s.log.Error().Msg(found)
		}
	}
	paused, err := s.store.Paused(ctx)
	if err != nil {
		return err
	}
	for _, p := range paused {
		s.log.Warn().Str("destination", p.Destination).Str("since", p.PausedAt.String()).
			Str("by", terminal.OneLine(valueOf(p.PausedBy))).Str("reason", terminal.OneLine(valueOf(p.Reason))).
			Msg("claims are paused until spine resume")
	}
	return nil
}

// valueOf is the text, or empty where there is none.
func valueOf(text *string) string {
	if text == nil {
		return ""
	}
	return *text
}

// sayRights tells at the start which rights are missing. The process works without them as far as it can; /readyz says
// that it is not ready.
func (s *Service) sayRights(ctx context.Context) {
	if lacks, lacking := errors.AsType[*store.RightsError](s.store.CheckRights(ctx)); lacking {
		s.log.Error().Msg(lacks.Error())
	}
}

func logMigrated(log zerolog.Logger, m store.Migrated) {
	if m.Newer {
		log.Warn().Int64("version", m.Version).
			Msg("the schema belongs to a newer version of Spine, with which this one still works")
		return
	}
	done := "the schema is up to date"
	if n := len(m.Applied); n > 0 {
		done += ": " + terminal.Plural(int64(n), "migration") + " applied"
	}
	log.Info().Int64("version", m.Version).Msg(done)
	if m.Problem != "" {
		log.Warn().Msg(m.Problem)
	}
}

// IsUnreachable reports whether an error says that the database cannot be reached now. It does not if the database
// rejects us.
func IsUnreachable(err error) bool {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		// Shutting down or starting up, connection exceptions, too many connections. A statement that was cancelled
		// (57014) tells of a time-out of the role or the database.
		return pgErr.Code != "57014" && slices.Contains([]string{"57", "08", "53"}, pgErr.Code[:2])
	}
	_, ok := errors.AsType[*pgconn.ConnectError](err)
	return ok
}

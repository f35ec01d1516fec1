package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/webhookspine/spine/internal/observe"
	"github.com/webhookspine/spine/internal/postgres"
	"github.com/webhookspine/spine/internal/service"
)

// postgresStopTimeout is how long the private Postgres may take to stop before it is told more firmly.
const postgresStopTimeout = 2 * time.Second

func devCommand(env environ, b build) *cobra.Command {
	var s service.Settings
	var dir string
	var ephemeral bool
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run all of Spine on this machine: Postgres, API, worker and a mock destination",
		Long: `Dev starts a private PostgreSQL, brings its schema up to date, and runs the API,
the worker and a mock destination that fails half of all deliveries on purpose.
You need not install or configure anything. Dev keeps its data in .spine, and reads
the secrets of sources from files in .spine/secrets. Ctrl-C stops everything; the data
stays for the next start, unless you ask for --ephemeral. If DATABASE_URL is set, dev
uses that database instead.`,
		Example: `  spine dev
  spine dev --ephemeral                                  # keep nothing
  spine dev --destination-url http://127.0.0.1:3000/hooks # deliver to your own program
  spine dev --mock-api-failure-rate 0`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ephemeral {
				dir = ""
			}
			log := s.Log.Logger(cmd.ErrOrStderr())
			env.warnMisspelt(log)
			s.ServeAdminLocally()
			makeSecretFolder(string(s.Secrets.Dir), dir, log)
			return runDev(cmd.Context(), &s, b, dir, cmd.OutOrStdout(), log)
		},
	}
	env.bind(cmd, needs{
		groups: []any{
			&s.Listen, &s.Server, &s.Dev, &s.Mock, &s.Database, &s.Direct, &s.Pool, &s.Schema, &s.Upkeep,
			&s.Destination, &s.Retry, &s.Worker, &s.Intake, &s.Secrets, &s.AdminListen, &s.Admin, &s.Metrics, &s.Stop,
			&s.Log,
		},
		defaults: map[string]string{
			"LISTEN":           "127.0.0.1:8000",
			"ADMIN_LISTEN":     "same",
			"DEFAULT_SOURCE":   "open",
			"SECRET_DIR":       filepath.Join(".spine", "secrets"),
			"SHUTDOWN_TIMEOUT": "1s",
		},
	})
	cmd.Flags().StringVar(&dir, "dir", ".spine", "`FOLDER` in which the private Postgres keeps its data")
	cmd.Flags().BoolVar(&ephemeral, "ephemeral", false, "keep the data in a folder that is removed at the end")
	completeFolders(cmd, "dir")
	completeFolders(cmd, "postgres-bin")
	return cmd
}

// makeSecretFolder makes the folder for secrets where it lies in the folder of dev's data. A clone of the repository
// has it already.
func makeSecretFolder(secrets, dir string, log zerolog.Logger) {
	if dir == "" || filepath.Dir(filepath.Clean(secrets)) != filepath.Clean(dir) {
		return
	}
	err := os.MkdirAll(dir, 0o755) //nolint:gosec // the server's user must pass; data itself is 0700
	if err == nil {
		err = os.MkdirAll(secrets, 0o700)
	}
	if err != nil {
		log.Warn().Err(err).Msg("the folder for secrets cannot be made")
	}
}

// isPrivateAndAway reports whether a URL is one that dev has printed, for a terminal that outlived it, and nothing
// answers there.
func isPrivateAndAway(ctx context.Context, databaseURL string) bool {
	u, err := url.Parse(databaseURL)
	if err != nil || u.Hostname() != "127.0.0.1" || u.User.Username() != postgres.Role ||
		u.Path != "/"+postgres.Database {
		return false
	}
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", u.Host)
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// runDev runs everything on this machine until ctx ends. The database starts first and stops last, so that it outlives
// the processes that use it.
func runDev(
	ctx context.Context, s *service.Settings, b build, dir string, stdout io.Writer, log zerolog.Logger,
) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	if isPrivateAndAway(ctx, string(s.Database.URL)) {
		log.Info().Msg("DATABASE_URL names a private PostgreSQL that does not run: starting that of this folder")
		s.Database.URL, s.Direct.URL = "", ""
	}
	if s.Database.URL == "" {
		server, err := postgres.Start(ctx, postgres.Options{Dir: dir, BinDir: s.Dev.PostgresBin, Logger: log})
		if err != nil {
			return err
		}
		defer func() {
			stopping, done := context.WithTimeout(context.WithoutCancel(ctx), postgresStopTimeout)
			defer done()
			stopped := server.Stop(stopping)
			if err = errors.Join(err, stopped); stopped == nil {
				sayData(log, dir)
			}
		}()
		go func() {
			select {
			case <-server.Exited():
				cancel(errors.New("the private PostgreSQL has stopped"))
			case <-ctx.Done():
			}
		}()
		s.Database.URL = service.PostgresURL(server.URL())
	} else {
		log.Info().Msg("DATABASE_URL is set: using that database and no private PostgreSQL")
		defer func() { log.Info().Msg("the data stays in the database that DATABASE_URL names") }()
	}

	mock, err := service.NewMockAPI(ctx, s.Dev.MockListen, s.Mock, s.Stop, log)
	if err != nil {
		return err
	}
	if s.Destination.MockURL == "" {
		s.Destination.MockURL = service.HTTPURL(observe.URL(mock.Listener))
	}
	p, err := service.New(ctx, s, service.Roles{API: true, Worker: true}, b.Version, log)
	if err != nil {
		_ = mock.Listener.Close() // nothing was served on it
		return err
	}
	g, running := errgroup.WithContext(ctx)
	// The destination goes on until the worker has drained.
	mocking, stopMock := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { return mock.Run(mocking) })
	g.Go(func() error {
		defer stopMock()
		return p.Run(running)
	})
	select {
	case <-p.Ready():
		printGreeting(stdout, greeting{
			api: p.URL(), admin: p.AdminURL(), mock: observe.URL(mock.Listener),
			database: string(s.Database.URL), secrets: string(s.Secrets.Dir),
		})
	case <-running.Done():
	}
	err = g.Wait()
	if cause := context.Cause(ctx); err == nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return err
}

// sayData says at the end what becomes of the data of a private Postgres. dir is empty where that was ephemeral.
func sayData(log zerolog.Logger, dir string) {
	if dir == "" {
		log.Info().Msg("PostgreSQL stopped, and its data is removed, as --ephemeral asks")
		return
	}
	log.Info().
		Str("dir", dir).
		Msg("PostgreSQL stopped; the data stays, and the next start in this folder goes on with it")
}

// greeting is what a user of dev needs to know: addresses, and the folder of secrets.
type greeting struct{ api, admin, mock, database, secrets string }

// printGreeting says where everything is, and what to try. The webhook is that of README, so that whoever pastes both
// sees a duplicate and no conflict.
func printGreeting(w io.Writer, g greeting) {
	if absolute, err := filepath.Abs(g.secrets); err == nil {
		g.secrets = absolute // whoever pastes it may stand elsewhere
	}
	_, _ = fmt.Fprintf(w, `
Spine is running. Ctrl-C stops it.

  webhooks    POST %[1]s/webhook
  dashboard   %[5]s/dashboard
  mock API    %[2]s/stats
  database    psql %[3]s

Try:

  curl %[1]s/webhook -H 'content-type: application/json' -d '{"event_id":"test-001","event_type":"user.created",`+
		`"occurred_at":"2024-01-30T12:00:00Z","payload":{"user_id":123,"mock_api":["status=503","failure_rate=0"]}}'
  curl %[5]s/api/events/test-001
  export DATABASE_URL=%[3]s SECRET_DIR=%[6]s
  %[4]s trace test-001
  %[4]s tail

`, g.api, g.mock, singleQuoted(g.database), os.Args[0], g.admin, singleQuoted(g.secrets)) // nobody may be reading
}

// singleQuoted quotes a text for a shell.
func singleQuoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

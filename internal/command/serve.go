package command

import (
	"context"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/service"
)

func serveCommand(env environ, b build) *cobra.Command {
	var s service.Settings
	return serviceCommand(env, b, &s, service.Roles{API: true, Worker: true}, &cobra.Command{
		Use:   "serve",
		Short: "Receive webhooks and deliver them: api and worker in one process",
		Example: `  DATABASE_URL=postgres://spine@db/spine DESTINATION_URL=https://app.example.com/hooks spine serve
  spine serve --destination-url none    # only store`,
	}, needs{
		groups: []any{
			&s.Database, &s.Direct, &s.Pool, &s.Schema, &s.Upkeep, &s.Listen, &s.Server, &s.AdminListen, &s.Admin,
			&s.Metrics, &s.Intake, &s.Secrets, &s.Destination, &s.Retry, &s.Worker, &s.Stop, &s.Log,
		},
	})
}

// serviceCommand completes a command that runs a service.
func serviceCommand(
	env environ,
	b build,
	s *service.Settings,
	r service.Roles,
	cmd *cobra.Command,
	n needs,
) *cobra.Command {
	n.required = []string{"DATABASE_URL"}
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log := s.Log.Logger(cmd.ErrOrStderr())
		env.warnMisspelt(log)
		return runService(cmd.Context(), s, r, b, log)
	}
	env.bind(cmd, n)
	return cmd
}

// runService runs the parts of Spine that a command is for, until ctx ends.
func runService(ctx context.Context, s *service.Settings, r service.Roles, b build, log zerolog.Logger) error {
	p, err := service.New(ctx, s, r, b.Version, log)
	if err != nil {
		return err
	}
	return p.Run(ctx)
}

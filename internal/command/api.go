package command

import (
	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/service"
)

func apiCommand(env environ, b build) *cobra.Command {
	var s service.Settings
	return serviceCommand(env, b, &s, service.Roles{API: true}, &cobra.Command{
		Use:     "api",
		Short:   "Receive webhooks and answer reads; run any number of processes",
		Example: `  DATABASE_URL=postgres://spine@db/spine spine api --listen :8000`,
	}, needs{
		groups: []any{
			&s.Database,
			&s.Direct,
			&s.Pool,
			&s.Schema,
			&s.Upkeep,
			&s.Listen,
			&s.Server,
			&s.AdminListen,
			&s.Admin,
			&s.Metrics,
			&s.Intake,
			&s.Secrets,
			&s.Stop,
			&s.Log,
		},
	})
}

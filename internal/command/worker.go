package command

import (
	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/service"
)

func workerCommand(env environ, b build) *cobra.Command {
	var s service.Settings
	return serviceCommand(env, b, &s, service.Roles{Worker: true}, &cobra.Command{
		Use:     "worker",
		Short:   "Deliver stored events; run any number of processes",
		Example: `  DATABASE_URL=postgres://spine@db/spine DESTINATION_URL=https://app.example.com/hooks spine worker`,
	}, needs{
		groups: []any{
			&s.Database,
			&s.Direct,
			&s.Pool,
			&s.Schema,
			&s.Upkeep,
			&s.Listen,
			&s.Server,
			&s.Admin,
			&s.Metrics,
			&s.Destination,
			&s.Retry,
			&s.Worker,
			&s.Stop,
			&s.Log,
		},
		defaults: map[string]string{"LISTEN": ":8002"},
	})
}

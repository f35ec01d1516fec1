package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/store"
)

func serveCommand(env environ) *cobra.Command {
	var s settings
	return serviceCommand(env, &s, roles{api: true, worker: true}, &cobra.Command{
		Use:   "serve",
		Short: "Take webhooks in and deliver them: api and worker in one process",
		Example: `  DATABASE_URL=postgres://spine@db/spine DESTINATION_URL=https://app.example.com/hooks spine serve
  spine serve --destination-url none    # only store`,
	}, needs{
		groups: []any{
			&s.Database, &s.Listen, &s.Intake, &s.Admin, &s.Destination, &s.Retry, &s.Worker, &s.Stop, &s.Log,
		},
		defaults: map[string]string{"LISTEN": ":8000"},
	})
}

func apiCommand(env environ) *cobra.Command {
	var s settings
	return serviceCommand(env, &s, roles{api: true}, &cobra.Command{
		Use:     "api",
		Short:   "Take webhooks in and answer reads, any number of processes",
		Example: `  DATABASE_URL=postgres://spine@db/spine spine api --listen :8000`,
	}, needs{
		groups:   []any{&s.Database, &s.Listen, &s.Intake, &s.Admin, &s.Stop, &s.Log},
		defaults: map[string]string{"LISTEN": ":8000"},
	})
}

func workerCommand(env environ) *cobra.Command {
	var s settings
	return serviceCommand(env, &s, roles{worker: true}, &cobra.Command{
		Use:     "worker",
		Short:   "Deliver what was taken in, any number of processes",
		Example: `  DATABASE_URL=postgres://spine@db/spine DESTINATION_URL=https://app.example.com/hooks spine worker`,
	}, needs{
		groups:   []any{&s.Database, &s.Listen, &s.Destination, &s.Retry, &s.Worker, &s.Stop, &s.Log},
		defaults: map[string]string{"LISTEN": ":8002"},
	})
}

// serviceCommand completes a command that runs a service.
func serviceCommand(env environ, s *settings, r roles, cmd *cobra.Command, n needs) *cobra.Command {
	n.required = []string{"DATABASE_URL"}
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return serve(cmd.Context(), s, r, s.Log.logger(cmd.ErrOrStderr()))
	}
	env.bind(cmd, n)
	return cmd
}

func migrateCommand(env environ) *cobra.Command {
	var s settings
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the database up to this version's schema",
		Long: `Migrate makes or updates the schema named spine. It needs a role that may create
it or that owns it: no superuser, no extension. Running processes go on
meanwhile, and two migrations at once are fine. The other commands migrate as
they start, unless MIGRATE is false.`,
		Example: `  DATABASE_URL=postgres://spine@db/spine spine migrate`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := store.Migrate(cmd.Context(), s.Database.direct())
			if err != nil {
				return fmt.Errorf("migrating: %w", err)
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(m)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "The schema is at version %d: %d migrations applied, functions %s, %d audit partitions made.\n",
				m.Version, len(m.Applied), map[bool]string{true: "put in place", false: "as they were"}[m.Functions], m.Partitions)
			return err
		},
	}
	env.bind(cmd, needs{groups: []any{&s.Database}, required: []string{"DATABASE_URL"}})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

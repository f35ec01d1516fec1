package command

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
)

func migrateCommand(env environ) *cobra.Command {
	var s service.Settings
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the database up to this version's schema",
		Long: `Migrate makes or updates the schema named spine. It needs a role that may create
it or that owns it: no superuser, no extension. Running processes go on
meanwhile, and two migrations at once are fine. Processes that serve migrate as
they start, unless MIGRATE is false.`,
		Example: `  DATABASE_URL=postgres://spine@db/spine spine migrate`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := store.Migrate(cmd.Context(), s.DirectURL())
			if err != nil {
				return fmt.Errorf("migrating: %w", err)
			}
			if asJSON {
				return terminal.WriteJSON(cmd.OutOrStdout(), m)
			}
			functions := "as they were"
			if m.Functions {
				functions = "put in place"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "The schema is at version %d: %s applied, functions %s, %s made.\n",
				m.Version, terminal.Plural(int64(len(m.Applied)), "migration"), functions, terminal.Plural(int64(m.Partitions), "audit partition"))
			return err
		},
	}
	env.bind(cmd, needs{groups: []any{&s.Database, &s.Direct}, required: []string{"DATABASE_URL"}})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

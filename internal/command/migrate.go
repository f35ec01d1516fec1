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
		Short: "Bring the schema in the database up to date",
		Long: `Migrate creates or updates the schema spine. Its role must own the schema or be
allowed to create it; it needs no superuser and no extension. Running processes go
on meanwhile, and several migrations may run at once. serve, api, worker and dev
migrate as they start, unless MIGRATE is false.`,
		Example: `  DATABASE_URL=postgres://spine@db/spine spine migrate`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := store.Migrate(cmd.Context(), s.DirectURL(), func(holder string) {
				cmd.PrintErrf("waiting for the lock of migrations, held by %s\n", holder)
			})
			if err != nil {
				return fmt.Errorf("migrating: %w", err)
			}
			if asJSON {
				return terminal.WriteJSON(cmd.OutOrStdout(), m)
			}
			if m.Newer {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "The schema is at version %d, newer than this binary, "+
					"which still works with it: nothing to do, %s created.\n", m.Version,
					terminal.Plural(int64(m.Partitions), "audit partition"))
				return err
			}
			functions := "unchanged"
			if m.Functions {
				functions = "updated"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(),
				"The schema is at version %d: %s applied, functions %s, %s created.\n", m.Version,
				terminal.Plural(int64(len(m.Applied)), "migration"), functions,
				terminal.Plural(int64(m.Partitions), "audit partition"))
			return err
		},
	}
	env.bind(cmd, needs{groups: []any{&s.Database, &s.Direct}, required: []string{"DATABASE_URL"}})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

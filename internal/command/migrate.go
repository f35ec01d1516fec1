package command

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
)

func migrateCommand(env environ) *cobra.Command {
	var s service.Settings
	var asJSON bool
	var roles []string
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the schema in the database up to date",
		Long: `Migrate creates or updates the schema spine. Its role must own the schema or be
allowed to create it; it needs no superuser and no extension. Running processes go
on meanwhile, and several migrations may run at once. serve, api, worker and dev
migrate as they start, unless MIGRATE is false.

With --grant-to it gives a role that owns nothing all rights with which the other
commands work, and no more. They then run as that role with MIGRATE=false. Later
migrations give it the rights on new tables and functions by themselves.`,
		Example: `  DATABASE_URL=postgres://spine@db/spine spine migrate
  DATABASE_URL=postgres://spine_owner@db/spine spine migrate --grant-to spine_app`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.CheckDirect(cmd.Context()); err != nil {
				return err
			}
			waits := func(what string) { cmd.PrintErrf("waiting for %s\n", terminal.OneLine(what)) }
			m, err := store.Migrate(cmd.Context(), s.DirectURL(), waits)
			if err != nil {
				return fmt.Errorf("migrating: %w", err)
			}
			if len(roles) > 0 {
				if err := store.Grant(cmd.Context(), s.DirectURL(), roles, waits); err != nil {
					return fmt.Errorf("granting, after the schema was migrated: %w", err)
				}
			}
			if m.Problem != "" {
				cmd.PrintErrf("warning: %s\n", terminal.OneLine(m.Problem))
			}
			if asJSON {
				return terminal.WriteJSON(cmd.OutOrStdout(), m)
			}
			sentences := migratedSentence(m) + "\n"
			for _, role := range roles {
				sentences += fmt.Sprintf("The role %s may run everything but spine migrate, with MIGRATE=false.\n",
					terminal.Printable(strconv.Quote(role)))
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), sentences)
			return err
		},
	}
	env.bind(cmd, needs{groups: []any{&s.Database, &s.Direct}, required: []string{"DATABASE_URL"}})
	cmd.Flags().StringArrayVar(&roles, "grant-to", nil,
		"grant `ROLE` what the other commands need; may be given several times")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// migratedSentence says what a migration did.
func migratedSentence(m store.Migrated) string {
	partitions := terminal.Plural(int64(m.Partitions), "audit partition")
	if m.Newer {
		return fmt.Sprintf("The schema is at version %d, newer than this binary, which still works with it: "+
			"nothing to do, %s created.", m.Version, partitions)
	}
	functions := "unchanged"
	if m.Functions {
		functions = "updated"
	}
	return fmt.Sprintf("The schema is at version %d: %s applied, functions %s, %s created.", m.Version,
		terminal.Plural(int64(len(m.Applied)), "migration"), functions, partitions)
}

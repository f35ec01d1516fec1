package command

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
)

func pauseCommand(env environ) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "pause",
		Short: "Stop deliveries; Spine goes on storing events",
		Long: `Pause stops every worker from claiming events, for all destinations or for one,
until spine resume. Deliveries that have begun are finished. Whoever asks later why
an event waits is told who paused, when, and the reason.`,
		Example: `  spine pause
  spine pause --destination default --reason "deploying billing, back at 15:00"`,
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`WHY`, for those who ask later: spine trace and status tell it")
	return claimsCommand(env, "paused", func(ctx context.Context, s *store.Store, destination string) (int64, error) {
		return s.Pause(ctx, destination, reason, auditCaller(cmd))
	}, cmd)
}

// claimsCommand completes a command that pauses or resumes claims, and prints for how many destinations it did so. done
// is the word for that.
func claimsCommand(
	env environ,
	done string,
	change func(ctx context.Context, s *store.Store, destination string) (int64, error),
	cmd *cobra.Command,
) *cobra.Command {
	var destination string
	var asJSON bool
	database := bindDatabase(env, cmd, func(cmd *cobra.Command, s *store.Store, _ []string) error {
		n, err := change(cmd.Context(), s, destination)
		if err != nil {
			return err
		}
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), map[string]int64{done: n})
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", terminal.Plural(n, "destination"), done)
		return err
	})
	cmd.Flags().StringVar(&destination, "destination", "", "only this `DESTINATION` (default all)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	completeFlag(cmd, "destination", destinationNames(database))
	return cmd
}

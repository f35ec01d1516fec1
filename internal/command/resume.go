package command

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/store"
)

func resumeCommand(env environ) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "resume",
		Short:   "Go on with deliveries after a pause",
		Example: "  spine resume",
	}
	return claimsCommand(env, "resumed", func(ctx context.Context, s *store.Store, destination string) (int64, error) {
		// In a copy where no process has started yet, the first one would pause again.
		if err := noteDatabase(ctx, cmd, s); err != nil {
			return 0, err
		}
		return s.Resume(ctx, destination, auditCaller(cmd))
	}, cmd)
}

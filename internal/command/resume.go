package command

import (
	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/store"
)

func resumeCommand(env environ) *cobra.Command {
	return claimsCommand(env, "resumed", (*store.Store).Resume, &cobra.Command{
		Use:     "resume",
		Short:   "Go on with deliveries after a pause",
		Example: "  spine resume",
	})
}

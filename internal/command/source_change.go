package command

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/view"
)

func sourceEnableCommand(env environ, verb string) *cobra.Command {
	var reason string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     verb + " NAME",
		Short:   "Reject what a source sends from now on; events that it sent before are still delivered",
		Example: "  spine source disable github --reason 'moved to the other cluster'",
	}
	if verb == "enable" {
		cmd.Short, cmd.Example = "Receive from a source again", "  spine source enable github"
	} else {
		cmd.Flags().StringVar(&reason, "reason", "", "`WHY`, for those who ask later: spine trace tells it")
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object: the source")
	return onSource(env, cmd, func(cmd *cobra.Command, s *store.Store, name string) error {
		var changed bool
		var err error
		if verb == "enable" {
			changed, err = s.EnableSource(cmd.Context(), name, true, auditCaller(cmd))
		} else {
			changed, err = s.DisableSource(cmd.Context(), name, reason, auditCaller(cmd))
		}
		if err != nil {
			return err
		}
		if asJSON {
			return writeSource(cmd, s, name)
		}
		note := ""
		if !changed {
			note = " already"
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %sd%s\n", name, verb, note)
		return err
	})
}

// writeSource prints a source as JSON.
func writeSource(cmd *cobra.Command, s *store.Store, name string) error {
	settings, err := s.Source(cmd.Context(), name)
	if err != nil {
		return err
	}
	return terminal.WriteJSON(cmd.OutOrStdout(), settings)
}

func sourceRotateCommand(env environ) *cobra.Command {
	var secret string
	var asJSON bool
	var allowed service.SecretSettings
	keep := durationFlag{Duration: 24 * time.Hour}
	cmd := &cobra.Command{
		Use: "rotate NAME", Short: "Give a source a new secret; the old one stays valid for a while",
		Long: `Rotate gives a source a new secret. The old secrets stay valid for as long as
--keep says. Enter the new one at the provider within that time, and no request is
rejected. Rotate waits for up to 3 s and prints what the servers make of it.`,
		Example: `  spine source rotate github --secret env:GITHUB_2_WEBHOOK_SECRET
  spine source rotate github --secret file:github-2 --keep 1h
  spine source rotate github --secret file:github-3 --keep 0   # the old one has leaked: at once`,
	}
	cmd.Flags().StringVar(&secret, "secret", "",
		"`REFERENCE` to the new secret: env:NAME or file:NAME (required)")
	cmd.Flags().Var(&keep, "keep", "how long the old secrets stay valid")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object: the source")
	if err := cmd.MarkFlagRequired("secret"); err != nil {
		panic(err) // the flag is defined above
	}
	return onSource(env, cmd, func(cmd *cobra.Command, s *store.Store, name string) error {
		if err := checkReference("--secret", secret, allowed.Resolver(env.lookup)); err != nil {
			return err
		}
		settings, err := s.RotateSource(cmd.Context(), name, secret, keep.Duration, auditCaller(cmd))
		if err != nil {
			return err
		}
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), settings)
		}
		return describeSource(cmd.OutOrStdout(), settings, awaitServers(cmd, s, settings),
			allowed.Resolver(env.lookup))
	}, &allowed)
}

func sourceRemoveCommand(env environ) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "remove NAME", Short: "Remove a source and its rejected requests; its events stay",
		Example: "  spine source remove github",
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return onSource(env, cmd, func(cmd *cobra.Command, s *store.Store, name string) error {
		if err := s.RemoveSource(cmd.Context(), name, auditCaller(cmd)); err != nil {
			return err
		}
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), view.SourceChange{Source: name, Change: "removed"})
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s removed\n", name)
		return err
	})
}

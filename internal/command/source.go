package command

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/source"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
)

func sourceCommand(env environ) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "source",
		Short: "Say who may send: providers, their signatures and secrets",
		Long: `Source lists, adds and changes who may send. POST /webhook/NAME takes what the
source NAME sends, verified as its settings say, and POST /webhook what the
source default does. A preset knows how a provider signs and where it puts ids
and types (spine source presets); settings change that. Changes reach every
running process at once, and each is audited.

Secrets are never stored: a source names them as env:NAME, a variable of the
processes that take webhooks in, or file:/absolute/path, which is read again
when it changes.`,
		Example: `  spine source add github --preset github --secret env:GITHUB_SECRET
  spine source test github                  # with a signed sample, here
  spine send --source github --sign         # the same to a running server
  spine source rotate github --secret file:/run/secrets/github-2 --keep 1h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		sourceListCommand(env), sourceShowCommand(env), sourcePutCommand(env, "add"), sourcePutCommand(env, "set"),
		sourceEnableCommand(env, "disable"), sourceEnableCommand(env, "enable"), sourceRotateCommand(env), sourceRemoveCommand(env),
		sourceTestCommand(env), sourcePresetsCommand(),
	)
	return cmd
}

func sourceListCommand(env environ) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{Use: "list", Short: "List the sources", Example: "  spine source list\n  spine source list --json | jq -r '.[].source'"}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON array")
	return onDatabase(env, cmd, false, func(cmd *cobra.Command, s *store.Store, _ string) error {
		all, err := s.Sources(cmd.Context())
		if err != nil {
			return err
		}
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), all)
		}
		causes, err := s.RejectedCauses(cmd.Context())
		if err != nil {
			return err
		}
		w := terminal.Table(cmd.OutOrStdout())
		fmt.Fprintln(w, "SOURCE\tPRESET\tSTATE\tLAST EVENT\tREJECTED (24H)")
		for _, one := range all {
			c, err := source.ParseConfig(one.Settings)
			last := "never"
			if one.LastArrival != nil {
				last = one.LastArrival.String()
			}
			rejected := int64(0)
			for _, n := range causes[one.Source] {
				rejected += n
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\n", one.Source, terminal.Printable(c.Preset), sourceState(one, c, err), last, rejected)
		}
		return w.Flush()
	})
}

// sourceState is how a source is as far as its settings say. Whether its secrets can be read
// only the processes know that take webhooks in.
func sourceState(one event.SourceSettings, c source.Config, err error) string {
	if one.DisabledAt != nil {
		return "disabled"
	}
	if err == nil {
		c, err = c.Resolve()
	}
	switch {
	case err != nil:
		return "broken"
	case slices.ContainsFunc(c.Verify, func(m source.Method) bool { return m.Scheme == "none" }):
		return "open"
	}
	return "verified"
}

func sourceShowCommand(env environ) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show a source: its settings, and what to enter at the provider",
		Example: "  spine source show github",
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return onDatabase(env, cmd, true, func(cmd *cobra.Command, s *store.Store, name string) error {
		one, err := s.Source(cmd.Context(), name)
		if err != nil {
			return err
		}
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), one)
		}
		return describeSource(cmd.OutOrStdout(), one)
	})
}

// describeSource prints what is known of a source.
func describeSource(out io.Writer, one event.SourceSettings) error {
	c, err := source.ParseConfig(one.Settings)
	var b strings.Builder
	fmt.Fprintf(&b, "source    %s\nstate     %s\n", one.Source, sourceState(one, c, err))
	if one.DisabledAt != nil {
		fmt.Fprintf(&b, "disabled  %s\n", one.DisabledAt)
	}
	last := "never"
	if one.LastArrival != nil {
		last = one.LastArrival.String()
	}
	fmt.Fprintf(&b, "last      %s\nchanged   %s", last, one.UpdatedAt)
	if one.UpdatedBy != nil {
		fmt.Fprintf(&b, " by %s", terminal.Printable(*one.UpdatedBy))
	}
	var pretty bytes.Buffer
	if json.Indent(&pretty, one.Settings, "          ", "  ") == nil {
		fmt.Fprintf(&b, "\nsettings  %s\n", terminal.PrintableLines(pretty.String()))
	}
	if err == nil {
		if _, err = c.Resolve(); err == nil {
			if preset, ok := source.PresetOf(c.Preset); ok {
				b.WriteString("\n")
				for i, step := range preset.StepsFor(one.Source, c) {
					fmt.Fprintf(&b, "%d. %s\n", i+1, terminal.Printable(step))
				}
			}
		}
	}
	if err != nil {
		fmt.Fprintf(&b, "\nIt cannot be used: %s\n", terminal.OneLine(err.Error()))
	}
	_, err = io.WriteString(out, b.String())
	return err
}

func sourcePresetsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "presets", Short: "List the presets: providers whose requests are known", Args: cobra.NoArgs,
		Example: "  spine source presets\n  spine source presets --json | jq '.[] | select(.name == \"stripe\")'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []source.Preset
			for _, name := range source.Presets() {
				preset, _ := source.PresetOf(name)
				all = append(all, preset)
			}
			if asJSON {
				return terminal.WriteJSON(cmd.OutOrStdout(), all)
			}
			w := terminal.Table(cmd.OutOrStdout())
			for _, p := range all {
				fmt.Fprintf(w, "%s\t%s\n", p.Name, p.Title)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON array, with settings and steps")
	return cmd
}

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
		Short: "Say who may send: sources, their signatures and secrets",
		Long: `Source lists, adds and changes the sources: who may send, and how their requests
are verified. POST /webhook/NAME receives what the source NAME sends, and POST
/webhook what the source default sends. A preset knows how a provider signs, and
where it puts ids and types: see spine source presets. Settings change that. Each
change is audited and reaches every running process at once.

Spine stores no secret. A source names its secrets: env:NAME is a variable of the
processes that receive webhooks; file:NAME is a file, which they read again when it
changes. SECRET_ENV says which variables may be named, and SECRET_DIR in which
folder the files are.`,
		Example: `  spine source add github --preset github --secret env:GITHUB_WEBHOOK_SECRET
  spine source test github                  # try a signed sample in this process
  spine send --source github --sign         # send it to a running server
  spine source rotate github --secret file:github-2 --keep 1h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		sourceListCommand(env),
		sourceShowCommand(env),
		sourceSetCommand(env, "add"),
		sourceSetCommand(env, "set"),
		sourceEnableCommand(env, "disable"),
		sourceEnableCommand(env, "enable"),
		sourceRotateCommand(env),
		sourceRemoveCommand(env),
		sourceTestCommand(env),
		sourcePresetsCommand(),
	)
	return cmd
}

func sourceListCommand(env environ) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List the sources",
		Example: "  spine source list\n  spine source list --json | jq -r '.[].source'",
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON array")
	return onDatabase(env, cmd, func(cmd *cobra.Command, s *store.Store, _ []string) error {
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
		table := terminal.Table(cmd.OutOrStdout())
		fmt.Fprintln(table, "SOURCE\tPRESET\tSTATE\tLAST EVENT\tREJECTED (24H)")
		for _, settings := range all {
			c, err := source.ParseConfig(settings.Settings)
			rejected := int64(0)
			for _, count := range causes[settings.Source] {
				rejected += count
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\n", settings.Source, terminal.Printable(c.Preset),
				sourceState(settings, c, err), lastArrival(settings), rejected)
		}
		return table.Flush()
	})
}

// lastArrival is when a source last sent an event.
func lastArrival(settings event.SourceSettings) string {
	if settings.LastArrival == nil {
		return "never"
	}
	return settings.LastArrival.String()
}

// sourceState is the state of a source as its settings tell it. c and err are what ParseConfig made of them. Only the
// processes that receive webhooks know whether its secrets can be read: GET /api/sources and the page tell it.
func sourceState(settings event.SourceSettings, c source.Config, err error) string {
	if settings.DisabledAt != nil {
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
	return "not known here"
}

func sourceShowCommand(env environ) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show a source: its settings, and what to enter at the provider",
		Example: "  spine source show github",
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return onSource(env, cmd, func(cmd *cobra.Command, s *store.Store, name string) error {
		settings, err := s.Source(cmd.Context(), name)
		if err != nil {
			return err
		}
		return printSource(cmd, settings, asJSON)
	})
}

// printSource prints a source, as JSON or for a person.
func printSource(cmd *cobra.Command, settings event.SourceSettings, asJSON bool) error {
	if asJSON {
		return terminal.WriteJSON(cmd.OutOrStdout(), settings)
	}
	return describeSource(cmd.OutOrStdout(), settings)
}

// describeSource prints a source's state, its settings, and what to enter at the provider.
func describeSource(out io.Writer, settings event.SourceSettings) error {
	c, err := source.ParseConfig(settings.Settings)
	var b strings.Builder
	fmt.Fprintf(&b, "source    %s\nstate     %s\n", settings.Source, sourceState(settings, c, err))
	if settings.DisabledAt != nil {
		fmt.Fprintf(&b, "disabled  %s\n", settings.DisabledAt)
	}
	fmt.Fprintf(&b, "last      %s\nchanged   %s", lastArrival(settings), settings.UpdatedAt)
	if settings.UpdatedBy != nil {
		fmt.Fprintf(&b, " by %s", terminal.Printable(*settings.UpdatedBy))
	}
	var pretty bytes.Buffer
	if json.Indent(&pretty, settings.Settings, "          ", "  ") == nil {
		fmt.Fprintf(&b, "\nsettings  %s\n", terminal.PrintableLines(pretty.String()))
	}
	if err == nil {
		if _, err = c.Resolve(); err == nil {
			if preset, ok := source.PresetOf(c.Preset); ok {
				b.WriteString("\n")
				for i, step := range preset.StepsFor(settings.Source, c) {
					fmt.Fprintf(&b, "%d. %s\n", i+1, terminal.Printable(step))
				}
			}
		}
	}
	if err != nil {
		fmt.Fprintf(&b, "\nThe source cannot be used: %s\n", terminal.OneLine(err.Error()))
	}
	_, err = io.WriteString(out, b.String())
	return err
}

func sourcePresetsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "presets", Short: "List the presets: the providers that Spine knows", Args: cobra.NoArgs,
		Example: "  spine source presets\n  spine source presets --json | jq '.[] | select(.name == \"stripe\")'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all := source.AllPresets()
			if asJSON {
				return terminal.WriteJSON(cmd.OutOrStdout(), all)
			}
			table := terminal.Table(cmd.OutOrStdout())
			fmt.Fprintln(table, "PRESET\tWHOSE\tWHAT FAILS IS SENT AGAIN")
			for _, preset := range all {
				fmt.Fprintf(table, "%s\t%s\t%s\n", preset.Name, preset.Title, preset.Retries)
			}
			return table.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON array, with settings and steps")
	return cmd
}

package command

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/service"
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
folder the files are.

So only the servers know whether a source can be used, and they tell it: list and
show say what they have told. After a change, add, set, rotate and apply wait for it
for up to 3 s, but not with --json.`,
		Example: `  spine source add github --preset github --secret file:github
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
		views := readServers(cmd, s, nil)
		var problems strings.Builder
		table := terminal.Table(cmd.OutOrStdout())
		fmt.Fprintln(table, "SOURCE\tPRESET\tSTATE\tLAST EVENT\tREJECTED (24H)")
		for _, settings := range all {
			c, err := source.ParseConfig(settings.Settings)
			rejected := int64(0)
			for _, count := range causes[settings.Source] {
				rejected += count
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\n", settings.Source, terminal.Printable(c.Preset),
				sourceState(settings, c, err, views), lastArrival(settings), rejected)
			for _, g := range views.groups(settings) {
				if settings.DisabledAt == nil && len(g.problems) > 0 {
					fmt.Fprintf(
						&problems,
						"%s is %s at %s: %s\n",
						settings.Source,
						g.state,
						terminal.Printable(
							strings.Join(g.processes, ", "),
						),
						terminal.Printable(strings.Join(g.problems, "; ")),
					)
				}
			}
		}
		if err := table.Flush(); err != nil || problems.Len() == 0 {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "\n%s", problems.String())
		return err
	})
}

// lastArrival is when a source last sent an event.
func lastArrival(settings event.SourceSettings) string {
	if settings.LastArrival == nil {
		return "never"
	}
	return settings.LastArrival.String()
}

// sourceState is the state of a source in a few words: what the servers make of it, or else what its settings tell. c
// and err are what ParseConfig made of them.
func sourceState(settings event.SourceSettings, c source.Config, err error, views serverViews) string {
	state := settledState(settings, c, err)
	switch {
	case state == "disabled":
		return state
	case views.known(settings):
		return views.cell(settings)
	case state != "":
		return state
	}
	return "not known here"
}

// settledState is the state of a source, where its settings alone decide it. It is empty where only the servers know
// it: whether secrets can be read, and whether the source default is closed.
func settledState(settings event.SourceSettings, c source.Config, err error) string {
	if settings.DisabledAt != nil {
		return "disabled"
	}
	if err == nil {
		c, err = c.Resolve()
	}
	switch {
	case err != nil:
		return "broken"
	case settings.Source == event.DefaultSource:
	case slices.ContainsFunc(c.Verify, func(m source.Method) bool { return m.Scheme == "none" }):
		return "open"
	}
	return ""
}

func sourceShowCommand(env environ) *cobra.Command {
	var asJSON bool
	var allowed service.SecretSettings
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
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), settings)
		}
		return describeSource(cmd.OutOrStdout(), settings, readServers(cmd, s, []string{name}),
			allowed.Resolver(env.lookup))
	}, &allowed)
}

// describeSource prints a source's state, its settings, and what to enter at the provider. secrets are those of this
// command's own environment.
func describeSource(
	out io.Writer, settings event.SourceSettings, views serverViews, secrets source.Secrets,
) error {
	c, err := source.ParseConfig(settings.Settings)
	var b strings.Builder
	states := views.lines(settings)
	state := settledState(settings, c, err)
	if state == "disabled" || state != "" && !views.known(settings) && views.waited == 0 {
		states = []string{state}
	}
	fmt.Fprintf(&b, "source    %s\nstate     %s\n", settings.Source, strings.Join(states, "\n          "))
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
	if views.isBroken(settings) {
		stored := ""
		if views.waited > 0 {
			stored = storedAnyway
		}
		fmt.Fprintf(&b, "\n%s%s\n", stored, whatToDo(settings))
	}
	if err == nil {
		if _, err = c.Resolve(); err == nil {
			if preset, ok := source.PresetOf(c.Preset); ok {
				b.WriteString("\n")
				for i, step := range preset.StepsFor(settings.Source, c, howToSee(secrets)) {
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

// howToSee returns a function that says how a person sees the secret that a reference names. It prints no secret. It
// is empty of variables: whoever has set one knows where.
func howToSee(secrets source.Secrets) func(ref string) string {
	return func(ref string) string {
		name, ok := secrets.File(ref)
		if !ok {
			return ""
		}
		if _, err := os.Stat(name); err != nil || !hasCat() {
			return "to see it, print the file " + filepath.Base(name) + " of the server's SECRET_DIR"
		}
		if here, err := os.Getwd(); err == nil {
			if beneath, err := filepath.Rel(here, name); err == nil && filepath.IsLocal(beneath) {
				name = beneath
			}
		}
		return "to see it: cat " + shellQuote(name)
	}
}

// hasCat reports whether this is a place where people look at files, and no container that has Spine alone.
func hasCat() bool {
	_, err := exec.LookPath("cat")
	return err == nil
}

// shellQuote quotes a word for a shell, where that needs it.
func shellQuote(word string) string {
	if !strings.ContainsFunc(word, func(r rune) bool {
		return !strings.ContainsRune("/.-_", r) && (r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r))
	}) {
		return word
	}
	return singleQuoted(word)
}

// folderHint says what to set where a command cannot read the file of a secret because nobody has told it the folder.
func folderHint(env environ, c source.Config) string {
	if _, set := env.lookup("SECRET_DIR"); set || !slices.ContainsFunc(secretRefs(c), func(ref string) bool {
		return strings.HasPrefix(ref, "file:")
	}) {
		return ""
	}
	return "; SECRET_DIR is not set here: set it to the server's folder of secrets, .spine/secrets after make run"
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

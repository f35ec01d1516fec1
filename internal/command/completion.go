package command

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
)

// Limits of what a shell waits for while somebody types.
const (
	completionTimeout = 2 * time.Second
	completionMost    = 50
)

// addCompletion adds the completion command to root, whose output must be set. Only flags that ask for files are
// completed by files.
func addCompletion(root *cobra.Command) {
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() != "completion" {
			continue
		}
		cmd.Short = "Make the shell complete commands, flags, and ids of events"
		cmd.Long = `Completion prints a script for a shell, which then completes the command line of
spine: commands and flags, and with DATABASE_URL or --database-url also sources,
types, destinations, and the ids of events that are not completed (for trace,
replay and tail --event).

An id is not offered if it has characters that a shell would take apart. If the
database does not answer within two seconds, nothing is offered.`
		cmd.Example = `  source <(spine completion bash)                                  # in ~/.bashrc
  source <(spine completion zsh)                                   # in ~/.zshrc, after compinit
  spine completion fish > ~/.config/fish/completions/spine.fish
  spine completion powershell | Out-String | Invoke-Expression     # in $PROFILE`
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
}

// completeFlag completes the values of a flag by f.
func completeFlag(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // there is no such flag
	}
}

// completeFiles completes the values of a flag by the names of files.
func completeFiles(cmd *cobra.Command, flag string) {
	completeFlag(cmd, flag, func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveDefault
	})
}

// completeFolders completes the values of a flag by the names of folders.
func completeFolders(cmd *cobra.Command, flag string) {
	completeFlag(cmd, flag, func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveFilterDirs
	})
}

// fixedValues completes by those of values that begin with what was typed.
func fixedValues(values []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return withPrefix(prefix, values), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

func withPrefix(prefix string, values []string) []cobra.Completion {
	return slices.DeleteFunc(slices.Clone(values), func(value string) bool { return !strings.HasPrefix(value, prefix) })
}

// completionList finds completions in the database.
type completionList func(
	ctx context.Context, s *store.Store, cmd *cobra.Command, prefix string,
) ([]cobra.Completion, error)

// fromDatabase completes by what list finds in the database that the command would use. It says nothing of errors: the
// command itself will.
func fromDatabase(database *service.DatabaseSettings, list completionList) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		const directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		if cmd.PreRunE(cmd, nil) != nil { // reads the settings, as before RunE
			return nil, directive
		}
		s, err := openDatabase(ctx, *database)
		if err != nil {
			return nil, directive
		}
		defer s.Close()
		found, err := list(ctx, s, cmd, prefix)
		if err != nil {
			return nil, directive
		}
		return slices.DeleteFunc(found, func(c cobra.Completion) bool {
			value, _, _ := strings.Cut(c, "\t")
			return !isShellWord(value)
		}), directive
	}
}

// inFlightIDs completes by the ids of events that are not completed, newest first. The flag --source limits them to one
// source.
func inFlightIDs(database *service.DatabaseSettings) cobra.CompletionFunc {
	return fromDatabase(
		database,
		func(ctx context.Context, s *store.Store, cmd *cobra.Command, prefix string) ([]cobra.Completion, error) {
			from := ""
			if flag := cmd.Flags().Lookup("source"); flag != nil && flag.Value.Type() == "string" {
				from = flag.Value.String()
			}
			rows, err := s.InFlight(ctx, prefix, from, completionMost)
			if err != nil {
				return nil, err
			}
			var found []cobra.Completion
			seen := make(map[string]bool)
			for _, r := range rows {
				if !seen[r.EventID] {
					seen[r.EventID] = true
					state := terminal.Printable(r.Status) + ", " + terminal.Plural(int64(r.AttemptCount), "attempt")
					found = append(found, cobra.CompletionWithDesc(r.EventID, state))
				}
			}
			return found, nil
		},
	)
}

// onlyFirstArgument completes only the first argument.
func onlyFirstArgument(f cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(cmd, args, prefix)
	}
}

func sourceNames(database *service.DatabaseSettings) cobra.CompletionFunc {
	return namesInDatabase(database, (*store.Store).SourceNames)
}

func destinationNames(database *service.DatabaseSettings) cobra.CompletionFunc {
	return namesInDatabase(database, (*store.Store).DestinationNames)
}

func typeNames(database *service.DatabaseSettings) cobra.CompletionFunc {
	return namesInDatabase(database, (*store.Store).RecentTypes)
}

// namesInDatabase completes by those of names that begin with what was typed.
func namesInDatabase(
	database *service.DatabaseSettings, names func(s *store.Store, ctx context.Context) ([]string, error),
) cobra.CompletionFunc {
	return fromDatabase(
		database,
		func(ctx context.Context, s *store.Store, _ *cobra.Command, prefix string) ([]cobra.Completion, error) {
			all, err := names(s, ctx)
			if err != nil {
				return nil, err
			}
			all = withPrefix(prefix, all)
			return all[:min(len(all), completionMost)], nil
		},
	)
}

// isShellWord reports whether a shell takes s for one word without quotes. Shells differ in how they quote, and senders
// choose their ids, so other ids are left for a person to type. The script for bash handles colons, which break words
// there.
func isShellWord(s string) bool {
	const safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+"
	return s != "" && s[0] != '-' && strings.Trim(s, safe) == ""
}

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

// A shell waits for its completions: not longer than completionTimeout, and for
// no more than completionMost of them.
const (
	completionTimeout = 2 * time.Second
	completionMost    = 50
)

// addCompletion adds the completion command to root, whose output must be set.
// Files are offered only to flags that ask for them.
func addCompletion(root *cobra.Command) {
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() != "completion" {
			continue
		}
		cmd.Short = "Have the shell complete commands, flags, and ids of events"
		cmd.Long = `Completion prints a script for a shell, which then completes the command line of
spine: commands and flags, and from the database that DATABASE_URL or
--database-url names the ids of events that are not completed (for trace, replay
and tail --event), sources, types and destinations. An id with characters that a
shell would take apart is not offered. Where the database cannot be asked within
two seconds, nothing is.`
		cmd.Example = `  source <(spine completion bash)                                  # in ~/.bashrc
  source <(spine completion zsh)                                   # in ~/.zshrc, after compinit
  spine completion fish > ~/.config/fish/completions/spine.fish
  spine completion powershell | Out-String | Invoke-Expression     # in $PROFILE`
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
}

// completeFlag has the values of a flag completed by f.
func completeFlag(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // there is no such flag
	}
}

// completeFiles has the values of a flag completed by the names of files.
func completeFiles(cmd *cobra.Command, flag string) {
	completeFlag(cmd, flag, func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveDefault
	})
}

// completeFolders has the values of a flag completed by the names of folders.
func completeFolders(cmd *cobra.Command, flag string) {
	completeFlag(cmd, flag, func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveFilterDirs
	})
}

// fixedValues completes by those of values that begin as what was typed.
func fixedValues(values []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return withPrefix(begun, values), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

func withPrefix(begun string, values []string) []cobra.Completion {
	return slices.DeleteFunc(slices.Clone(values), func(value string) bool { return !strings.HasPrefix(value, begun) })
}

// fromDatabase completes by what list finds in the database that the command is told
// of. Where that cannot be had at once it says nothing: what is amiss is told by
// the command itself.
func fromDatabase(database *service.DatabaseSettings, list func(ctx context.Context, s *store.Store, cmd *cobra.Command, begun string) ([]cobra.Completion, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
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
		found, err := list(ctx, s, cmd, begun)
		if err != nil {
			return nil, directive
		}
		return slices.DeleteFunc(found, func(c cobra.Completion) bool {
			value, _, _ := strings.Cut(c, "\t")
			return !isShellWord(value)
		}), directive
	}
}

// inFlightIDs completes by the ids of events that are not completed, newest first.
// Where the flag --source is given, they are of that source.
func inFlightIDs(database *service.DatabaseSettings) cobra.CompletionFunc {
	return fromDatabase(database, func(ctx context.Context, s *store.Store, cmd *cobra.Command, begun string) (found []cobra.Completion, err error) {
		source := ""
		if flag := cmd.Flags().Lookup("source"); flag != nil && flag.Value.Type() == "string" {
			source = flag.Value.String()
		}
		rows, err := s.InFlight(ctx, begun, source, completionMost)
		if err != nil {
			return nil, err
		}
		seen := make(map[string]bool)
		for _, r := range rows {
			if !seen[r.EventID] {
				seen[r.EventID] = true
				found = append(found, cobra.CompletionWithDesc(r.EventID, terminal.Printable(r.Status)+", "+terminal.Plural(int64(r.AttemptCount), "attempt")))
			}
		}
		return found, nil
	})
}

// onlyFirstArgument completes only the first argument.
func onlyFirstArgument(f cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(cmd, args, begun)
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

// namesInDatabase completes by those of names that begin as what was typed.
func namesInDatabase(database *service.DatabaseSettings, names func(s *store.Store, ctx context.Context) ([]string, error)) cobra.CompletionFunc {
	return fromDatabase(database, func(ctx context.Context, s *store.Store, _ *cobra.Command, begun string) ([]cobra.Completion, error) {
		all, err := names(s, ctx)
		if err != nil {
			return nil, err
		}
		all = withPrefix(begun, all)
		return all[:min(len(all), completionMost)], nil
	})
}

// isShellWord reports whether a shell takes s for one word as it stands. Quoting what
// is not differs between shells, and senders choose their ids: those are left
// for a person to type. A colon breaks words in bash, for which the script of
// the completion command provides.
func isShellWord(s string) bool {
	const safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+"
	return s != "" && s[0] != '-' && strings.Trim(s, safe) == ""
}

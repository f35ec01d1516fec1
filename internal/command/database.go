package command

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/view"
)

// operatorConns are enough for one command: one works, one sends a ping.
const operatorConns = 2

// openDatabase connects for commands that look at the database or set something right
// there, and do no work of their own. It checks the schema: one that is newer
// than this binary is fine, as for processes that run during an upgrade. The
// caller closes the store.
func openDatabase(ctx context.Context, d service.DatabaseSettings) (*store.Store, error) {
	s, err := store.Open(ctx, store.Config{URL: string(d.URL), MaxConns: operatorConns, AppName: "spine operator"})
	if err != nil {
		return nil, err
	}
	if err := s.CheckSchema(ctx); err != nil && !errors.Is(err, store.ErrTooNew) {
		s.Close()
		return nil, err
	}
	return s, nil
}

// nameSource tells whoever gave an ambiguous id what to do about it.
func nameSource(err error) error {
	if ambiguous, ok := errors.AsType[*view.AmbiguousError](err); ok {
		return fmt.Errorf("the id exists in the sources %s: name one with --source", strings.Join(ambiguous.Sources, ", "))
	}
	return err
}

// onRequest is onDatabase for commands that take numbers of requests.
func onRequest(env environ, cmd *cobra.Command, run func(cmd *cobra.Command, s *store.Store, args []string) error) *cobra.Command {
	var given []string
	completed := onDatabase(env, cmd, false, func(cmd *cobra.Command, s *store.Store, _ string) error { return run(cmd, s, given) })
	completed.Args = func(_ *cobra.Command, args []string) error {
		given = args
		return nil
	}
	return completed
}

// onDatabase completes a command that works on the database. named says that its
// one argument is the name of a source; more are groups of settings that it needs
// besides.
func onDatabase(env environ, cmd *cobra.Command, named bool, run func(cmd *cobra.Command, s *store.Store, name string) error, more ...any) *cobra.Command {
	var database service.DatabaseSettings
	cmd.Args = cobra.NoArgs
	if named {
		cmd.Args = func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return misuse("give the NAME of one source")
			}
			return nil
		}
		cmd.ValidArgsFunction = onlyFirstArgument(sourceNames(&database))
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := openDatabase(cmd.Context(), database)
		if err != nil {
			return err
		}
		defer s.Close()
		return run(cmd, s, strings.Join(args, ""))
	}
	env.bind(cmd, needs{groups: append([]any{&database}, more...), required: []string{"DATABASE_URL"}})
	if flag := cmd.Flags().Lookup("source"); flag != nil {
		completeFlag(cmd, "source", sourceNames(&database))
	}
	if flag := cmd.Flags().Lookup("cause"); flag != nil {
		completeFlag(cmd, "cause", namesInDatabase(&database, rejectedCauses))
	}
	return cmd
}

// rejectedCauses are those of the requests that are kept.
func rejectedCauses(s *store.Store, ctx context.Context) ([]string, error) {
	of, err := s.RejectedCauses(ctx)
	var all []string
	for _, causes := range of {
		all = slices.AppendSeq(all, maps.Keys(causes))
	}
	slices.Sort(all)
	return slices.Compact(all), err
}

// auditCaller is who a command acts as, in the audit log.
func auditCaller(cmd *cobra.Command) string { return cmd.CommandPath() }

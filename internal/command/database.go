package command

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/view"
)

// operatorConns are enough for one command: one works, one sends a ping.
const operatorConns = 2

// operatorTimeout limits each statement by which a command reads.
const operatorTimeout = 30 * time.Second

// openDatabase connects for a command that reads or changes something in the database and does no work of its own. It
// checks the schema. One that is newer than this binary is fine, as for processes that run during an upgrade. The
// caller closes the store.
func openDatabase(ctx context.Context, d service.DatabaseSettings) (*store.Store, error) {
	s, err := store.Open(ctx, store.Config{
		URL: string(d.URL), MaxConns: operatorConns, AppName: "spine operator", ReadTimeout: operatorTimeout,
	})
	if err != nil {
		return nil, err
	}
	if err := s.CheckSchema(ctx); err != nil && !isNewer(err) {
		s.Close()
		return nil, err
	}
	return s, nil
}

// isNewer says whether a check of the schema found that of a newer Spine.
func isNewer(err error) bool {
	return errors.Is(err, store.ErrNewer) || errors.Is(err, store.ErrTooNew)
}

// databaseRun is what a command does on the database.
type databaseRun func(cmd *cobra.Command, s *store.Store, args []string) error

// onDatabase completes a command that works on the database. It takes no arguments unless cmd.Args says so.
func onDatabase(env environ, cmd *cobra.Command, run databaseRun) *cobra.Command {
	bindDatabase(env, cmd, run)
	return cmd
}

// onSource is onDatabase for a command whose one argument is the name of a source. more are groups of settings that it
// needs besides.
func onSource(
	env environ, cmd *cobra.Command, run func(cmd *cobra.Command, s *store.Store, name string) error, more ...any,
) *cobra.Command {
	cmd.Args = oneArgument("give the NAME of one source")
	database := bindDatabase(env, cmd, func(cmd *cobra.Command, s *store.Store, args []string) error {
		return run(cmd, s, args[0])
	}, more...)
	cmd.ValidArgsFunction = onlyFirstArgument(sourceNames(database))
	return cmd
}

// bindDatabase makes cmd open the database and then run. It returns the settings by which cmd will know the database.
// more are groups of settings that cmd needs besides.
func bindDatabase(env environ, cmd *cobra.Command, run databaseRun, more ...any) *service.DatabaseSettings {
	database := &service.DatabaseSettings{}
	if cmd.Args == nil {
		cmd.Args = cobra.NoArgs
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := openDatabase(cmd.Context(), *database)
		if err != nil {
			return err
		}
		defer s.Close()
		return run(cmd, s, args)
	}
	env.bind(cmd, needs{groups: append([]any{database}, more...), required: []string{"DATABASE_URL"}})
	if cmd.Flags().Lookup("source") != nil {
		completeFlag(cmd, "source", sourceNames(database))
	}
	if cmd.Flags().Lookup("cause") != nil {
		completeFlag(cmd, "cause", namesInDatabase(database, rejectedCauses))
	}
	return database
}

// oneArgument says hint to whoever gives no argument or several.
func oneArgument(hint string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return misuse("%s", hint)
		}
		return nil
	}
}

// rejectedCauses are the causes of the rejected requests that are kept.
func rejectedCauses(s *store.Store, ctx context.Context) ([]string, error) {
	bySource, err := s.RejectedCauses(ctx)
	var all []string
	for _, causes := range bySource {
		all = slices.AppendSeq(all, maps.Keys(causes))
	}
	slices.Sort(all)
	return slices.Compact(all), err
}

// noteDatabase tells on the standard error where the database is another one than was noted. A role that only reads may
// not note it.
func noteDatabase(ctx context.Context, cmd *cobra.Command, s *store.Store) error {
	found, err := s.NoteDatabase(ctx)
	if found != "" {
		cmd.PrintErrf("spine: %s\n", found)
	}
	if errors.Is(err, store.ErrMayNotNote) {
		return nil
	}
	return err
}

// auditCaller is who a command acts as, in the audit log.
func auditCaller(cmd *cobra.Command) string { return cmd.CommandPath() }

// nameSource tells whoever gave an ambiguous id what to do about it.
func nameSource(err error) error {
	if ambiguous, ok := errors.AsType[*view.AmbiguousError](err); ok {
		return fmt.Errorf("the id exists in the sources %s: name one with --source",
			strings.Join(ambiguous.Sources, ", "))
	}
	return err
}

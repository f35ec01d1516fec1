package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
)

// countMost is how far the question before a replay counts dead letters.
const countMost = 100_000

func replayCommand(env environ) *cobra.Command {
	var database service.DatabaseSettings
	var r replayRun
	var since, until timeFlag
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "replay (ID | --dead)",
		Short: "Deliver an event again, or all dead letters",
		Long: `Replay queues events anew, with their full number of attempts, and prints how many.
With an ID it queues that event, even if it was delivered before. It leaves an
event alone that is pending or processing. With --dead it queues all dead letters,
oldest first, or those that the flags choose. On a terminal it asks first; a script
gives --yes.`,
		Example: `  spine replay test-001
  spine replay 72d3162e --source github --destination default
  spine replay --dead --since 2h
  spine replay --dead --since 2024-01-30T12:00:00Z --until 2024-01-30T13:00:00Z --type order.paid --yes
  spine replay --dead --limit 10      # try a few first`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == r.dead {
				return misuse("give either the ID of an event or --dead")
			}
			for _, name := range []string{"since", "until", "type", "limit", "yes"} {
				if !r.dead && cmd.Flags().Changed(name) {
					return misuse("--%s goes with --dead", name)
				}
			}
			if cmd.Flags().Changed("limit") && r.limit < 1 {
				return misuse("--limit must be at least 1")
			}
			s, err := openDatabase(cmd.Context(), database)
			if err != nil {
				return err
			}
			defer s.Close()
			r.filter.Since, r.filter.Until = since.Time, until.Time
			r.stdin, r.stderr = cmd.InOrStdin(), cmd.ErrOrStderr()
			n, err := r.run(cmd.Context(), s, args)
			if err != nil {
				return err
			}
			if asJSON {
				return terminal.WriteJSON(cmd.OutOrStdout(), struct {
					Replayed int64 `json:"replayed"`
				}{n})
			}
			note := ""
			if n == 0 && !r.dead {
				note = ": it is pending or processing already"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d replayed%s\n", n, note)
			return err
		},
	}
	env.bind(cmd, needs{groups: []any{&database}, required: []string{"DATABASE_URL"}})
	flags := cmd.Flags()
	flags.StringVar(&r.filter.Source, "source", "", "only events of this `SOURCE`")
	flags.StringVar(&r.filter.Destination, "destination", "", "only to this `DESTINATION`")
	flags.BoolVar(&r.dead, "dead", false, "all dead letters")
	flags.Var(&since, "since", "only those that died at this `TIME` or later: ago, as 2h or 7d, or RFC 3339")
	flags.Var(&until, "until", "only those that died before this `TIME`")
	flags.StringVar(&r.filter.EventType, "type", "", "only events of this `TYPE`")
	flags.Int64Var(&r.limit, "limit", 0, "at most this `NUMBER` (default all)")
	flags.BoolVar(&r.yes, "yes", false, "do not ask")
	flags.BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.ValidArgsFunction = onlyFirstArgument(inFlightIDs(&database))
	completeFlag(cmd, "source", sourceNames(&database))
	completeFlag(cmd, "destination", destinationNames(&database))
	completeFlag(cmd, "type", typeNames(&database))
	return cmd
}

// replayRun is one call of the command.
type replayRun struct {
	dead   bool
	filter store.DeadFilter
	limit  int64 // 0 for all
	yes    bool
	stdin  io.Reader
	stderr io.Writer
}

// run queues the deliveries that are asked for and returns how many they were.
func (r *replayRun) run(ctx context.Context, s *store.Store, args []string) (int64, error) {
	if !r.dead {
		n, err := s.Replay(ctx, args[0], r.filter.Source, r.filter.Destination, "spine replay")
		return n, nameSource(err)
	}
	if !r.yes {
		if err := r.confirm(ctx, s); err != nil {
			return 0, err
		}
	}
	start, shown := time.Now(), false
	n, err := s.ReplayDead(ctx, r.filter, r.limit, func(n int64) {
		if terminal.IsTerminal(r.stderr) {
			fmt.Fprintf(r.stderr, "\r%d replayed, %.0f/s ", n, float64(n)/time.Since(start).Seconds())
			shown = true
		}
	})
	if shown {
		fmt.Fprintln(r.stderr)
	}
	if err != nil && n > 0 {
		err = fmt.Errorf("after %d were replayed: %w", n, err)
	}
	return n, err
}

// confirm asks the person at the terminal.
func (r *replayRun) confirm(ctx context.Context, s *store.Store) error {
	keyboard, ok := r.stdin.(*os.File)
	if !ok || !terminal.IsTerminal(keyboard) {
		return misuse("there is no terminal to ask on: give --yes")
	}
	n, err := s.CountDead(ctx, r.filter, countMost+1)
	if err != nil {
		return err
	}
	if r.limit > 0 {
		n = min(n, r.limit)
	}
	many := terminal.Plural(n, "dead letter")
	if n > countMost {
		many = fmt.Sprintf("more than %d dead letters", countMost)
	}
	fmt.Fprintf(r.stderr, "Deliver %s again? [y/N] ", many)
	answers := make(chan string, 1)
	go func() {
		answer, _ := bufio.NewReader(keyboard).ReadString('\n') // anything but a yes is a no
		answers <- strings.ToLower(strings.TrimSpace(answer))
	}()
	select {
	case answer := <-answers:
		if answer == "y" || answer == "yes" {
			return nil
		}
	case <-ctx.Done():
	}
	return errors.New("nothing was replayed")
}

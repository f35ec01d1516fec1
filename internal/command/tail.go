package command

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/trail"
)

// askInterval is how often tail asks whether it is done while the audit log says nothing.
const askInterval = 5 * time.Second

func tailCommand(env environ) *cobra.Command {
	var settings service.Settings
	var filter trail.Filter
	var actionNames []string
	var since timeFlag
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Follow everything that happens, live",
		Long: `Tail prints each step of each event as it is committed: received, stored,
attempted, failed, delivered. It misses nothing and repeats nothing, even if the
database goes away and comes back. If the database is put back to an earlier
state, tail says so and goes on from then. Ctrl-C ends it. The standard error says
first what is followed, so that silence means that nothing happens.

On a terminal it prints sentences. In a pipe it prints a line a step, with its
action and details, or with --json an object a line.

The flags choose steps. A flag that is given several times asks for any of its
values; several flags ask for steps that fit all of them. --event and --type know
only events that are still stored. --status chooses the steps that bring an event
into a status:

  pending     event_inserted, event_queued, event_replayed, lease_returned (unstarted)
  processing  processing_attempt_started
  completed   processing_succeeded
  failed      retry_scheduled, lease_returned (after earlier attempts)
  dead        processing_failed_permanently
  any         status_changed, by hand, to that status`,
		Example: `  spine tail
  spine tail --since 10m                       # first the last 10 minutes, then on
  spine tail --since 7d --event test-001 --event test-002
  spine tail --status failed --status dead --type order.paid
  spine tail --action processing_attempt_failed --action conflict_detected --source github
  spine tail --json | jq -r 'select(.success == "failure") | .event_id'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, action := range actionNames {
				if !slices.Contains(actions(), action) {
					return misuse("--action: there is no %q, known are %s", action, strings.Join(actions(), ", "))
				}
				filter.Actions = append(filter.Actions, trail.Action(action))
			}
			for _, status := range filter.Statuses {
				if !event.ValidStatus(status) {
					return misuse("--status: there is no %q, known are %s", status,
						strings.Join(event.Statuses(), ", "))
				}
			}
			s, err := openDatabase(cmd.Context(), settings.Database)
			if err != nil {
				return err
			}
			defer s.Close()
			if err := noteDatabase(cmd.Context(), cmd, s); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			t := tail{store: s, filter: filter, print: printSteps(out), stderr: cmd.ErrOrStderr()}
			switch {
			case asJSON:
				t.print = printStepsAsJSON(out)
			case terminal.IsTerminal(out):
				t.print = printSentences(out, func() int { return terminal.Width(out) }, terminal.ColoursFor(out, env))
			}
			if since.IsZero() {
				if t.cursor, err = s.CurrentCursor(cmd.Context()); err != nil {
					return err
				}
			} else {
				t.cursor = trail.CursorSince(since.Time)
			}
			cmd.PrintErrf("spine: following %s; Ctrl-C ends it\n", followed(cmd, since.Time))
			return t.run(cmd.Context(), settings.DirectURL())
		},
	}
	env.bind(cmd, needs{groups: []any{&settings.Database, &settings.Direct}, required: []string{"DATABASE_URL"}})
	flags := cmd.Flags()
	flags.StringArrayVar(&filter.EventIDs, "event", nil,
		"only the event with this `ID`; may be given several times, as the flags below")
	flags.StringSliceVar(&filter.Sources, "source", nil, "only events of this `SOURCE`")
	flags.StringArrayVar(&filter.Types, "type", nil, "only events of this `TYPE`, such as user.created")
	flags.StringSliceVar(&filter.Statuses, "status", nil,
		"only steps that bring an event into this `STATUS`: "+strings.Join(event.Statuses(), ", "))
	flags.StringSliceVar(&actionNames, "action", nil, "only steps with this `ACTION`, such as retry_scheduled")
	flags.Var(&since, "since", "begin with the steps since this `TIME`: ago, as 10m or 7d, or RFC 3339")
	flags.BoolVar(&asJSON, "json", false, "print a JSON object a line")
	completeFlag(cmd, "event", inFlightIDs(&settings.Database))
	completeFlag(cmd, "source", sourceNames(&settings.Database))
	completeFlag(cmd, "type", typeNames(&settings.Database))
	completeFlag(cmd, "status", fixedValues(event.Statuses()))
	completeFlag(cmd, "action", fixedValues(actions()))
	return cmd
}

// followed says which steps a tail follows, by the flags that were given.
func followed(cmd *cobra.Command, since time.Time) string {
	var chosen []string
	for _, name := range []string{"event", "source", "type", "status", "action"} {
		if cmd.Flags().Changed(name) {
			chosen = append(chosen, "--"+name)
		}
	}
	what, from := "every step of every event", "from now on"
	if len(chosen) > 0 {
		what = "the steps that fit " + strings.Join(chosen, ", ")
	}
	if !since.IsZero() {
		from = "since " + since.UTC().Format(time.RFC3339)
	}
	return what + ", " + from
}

// actions are the names of all actions.
func actions() []string {
	names := make([]string, len(trail.Actions()))
	for i, action := range trail.Actions() {
		names[i] = string(action)
	}
	return names
}

// tail follows the audit log and prints its steps.
type tail struct {
	store  *store.Store
	cursor trail.Cursor // where to begin
	filter trail.Filter
	print  func([]trail.Step) error
	// done, if set, is asked at first, after each page that was printed, and every askInterval. Once it says so, tail
	// prints what was committed before that answer, and ends. Its error is one of the database.
	done func(ctx context.Context) (bool, error)
	// putBack, if set, is called when the database was put back to an earlier state. From then on it gives out the
	// ids of steps again.
	putBack func()
	stderr  io.Writer

	away bool // whether the database is away
}

// run prints until ctx ends, done says so, or printing fails. It listens at the database of the URL direct. While it
// cannot listen, it polls.
func (t *tail) run(ctx context.Context, direct string) error {
	ctx, cancel := context.WithCancel(ctx)
	ring, wait, err := service.ListenForSteps(ctx, t.store, direct, "spine tail")
	if err != nil {
		cancel()
		return err
	}
	defer wait()
	defer cancel()

	follower := trail.Follower{Reader: t.store, Filter: t.filter, From: &t.cursor, Bell: ring}
	ask, done := t.done != nil, false // whether done may say something new, and what it said last
	var asked time.Time
	for page, err := range follower.Follow(ctx) {
		if err != nil {
			t.sayAway(err)
			continue
		}
		if page.Restarted {
			t.sayPutBack()
			ask, done = t.done != nil, false
		}
		if len(page.Steps) > 0 {
			t.sayBack()
			if err := t.print(page.Steps); err != nil && ctx.Err() == nil {
				return fmt.Errorf("printing: %w", err)
			}
			ask = t.done != nil
		}
		if !page.After.Settled() {
			continue
		}
		if done {
			return nil
		}
		if ask || t.done != nil && time.Since(asked) >= askInterval {
			done, err = t.done(ctx)
			ask, asked = err != nil, time.Now()
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			t.sayAway(err)
			continue
		case done:
			ring.Ring() // to read what was committed before this answer without waiting for the poll
		}
		t.sayBack()
	}
	return nil
}

func (t *tail) sayAway(err error) {
	if !t.away {
		fmt.Fprintf(t.stderr, "spine: the database is away, trying again: %s\n", terminal.OneLine(err.Error()))
	}
	t.away = true
}

func (t *tail) sayBack() {
	if t.away {
		fmt.Fprintln(t.stderr, "spine: the database is back, nothing was missed")
	}
	t.away = false
}

// sayPutBack says that the log was restarted: somebody restored the database, or a standby that is behind took its
// place.
func (t *tail) sayPutBack() {
	t.away = false
	if t.putBack != nil {
		t.putBack()
	}
	fmt.Fprintln(t.stderr, "spine: the database was put back to an earlier state, going on from now")
}

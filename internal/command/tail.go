package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/notify"
	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/trail"
)

// Intervals of tail. The doorbell is heard at once; the gap bounds how often
// the log is read however often it rings.
const (
	tailPoll     = time.Second
	tailGap      = 50 * time.Millisecond
	tailMaxRetry = 2 * time.Second
	tailAsk      = 5 * time.Second // whether it is done, where the log says nothing
)

func tailCommand(env environ) *cobra.Command {
	var set service.Settings
	var filter trail.Filter
	var onlyActions []string
	var since moment
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Follow everything that happens, live",
		Long: `Tail prints each step of each event as it is committed: received, stored,
attempted, failed, delivered. It misses nothing and repeats nothing, also where
the database goes away and comes back meanwhile. Where the database is put back
to an earlier state, it says so and goes on from then. Ctrl-C ends it.

A person reads sentences; a pipe gets a line a step with its action and details,
and with --json an object a line.

The flags narrow it down. One given several times asks for any of its values,
several flags for what fits all of them. --event and --type go by the events that
are still stored. --status chooses the steps that bring an event into a status:

  pending     event_inserted, event_queued, event_replayed, lease_returned (unstarted)
  processing  processing_attempt_started
  completed   processing_succeeded
  failed      retry_scheduled, lease_returned (after earlier attempts)
  dead        processing_failed_permanently
  any         status_changed, by hand, where it is changed to that status`,
		Example: `  spine tail
  spine tail --since 10m                       # first what happened since, then on
  spine tail --since 7d --event test-001 --event test-002
  spine tail --status failed --status dead --type order.paid
  spine tail --action processing_attempt_failed --action conflict_detected --source github
  spine tail --json | jq -r 'select(.success == "failure") | .event_id'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, action := range onlyActions {
				if !slices.Contains(actions(), action) {
					return misuse("--action: there is no %q, known are %s", action, strings.Join(actions(), ", "))
				}
				filter.Actions = append(filter.Actions, trail.Action(action))
			}
			for _, status := range filter.Statuses {
				if !event.ValidStatus(status) {
					return misuse("--status: there is no %q, known are %s", status, strings.Join(statuses(), ", "))
				}
			}
			s, err := openDatabase(cmd.Context(), set.Database)
			if err != nil {
				return err
			}
			defer s.Close()
			out := cmd.OutOrStdout()
			t := tail{store: s, filter: filter, print: printRows(out), stderr: cmd.ErrOrStderr()}
			switch {
			case asJSON:
				t.print = printJSONRows(out)
			case terminal.IsTerminal(out):
				t.print = tellRows(out, func() int { return terminal.Width(out) }, terminal.ColoursFor(out, env))
			}
			if since.IsZero() {
				if t.cursor, err = s.CurrentCursor(cmd.Context()); err != nil {
					return err
				}
			} else {
				t.cursor = trail.CursorSince(since.Time)
			}
			return t.run(cmd.Context(), set.DirectURL())
		},
	}
	env.bind(cmd, needs{groups: []any{&set.Database, &set.Direct}, required: []string{"DATABASE_URL"}})
	flags := cmd.Flags()
	flags.StringArrayVar(&filter.EventIDs, "event", nil, "only the event of this `ID`; may be given several times, as those below")
	flags.StringSliceVar(&filter.Sources, "source", nil, "only events of this `SOURCE`")
	flags.StringArrayVar(&filter.Types, "type", nil, "only events of this `TYPE`, such as user.created")
	flags.StringSliceVar(&filter.Statuses, "status", nil, "only steps that bring an event into this `STATUS`: "+strings.Join(statuses(), ", "))
	flags.StringSliceVar(&onlyActions, "action", nil, "only this `ACTION`, such as retry_scheduled")
	flags.Var(&since, "since", "begin with what happened since this `TIME`: ago, as 10m or 7d, or RFC 3339")
	flags.BoolVar(&asJSON, "json", false, "print a JSON object a line")
	complete(cmd, "event", inFlight(&set.Database))
	complete(cmd, "source", sources(&set.Database))
	complete(cmd, "type", types(&set.Database))
	complete(cmd, "status", fixed(statuses()))
	complete(cmd, "action", fixed(actions()))
	return cmd
}

// statuses are those that an event has on its way to a destination, in the
// order in which it may come to them.
func statuses() []string { return []string{"pending", "processing", "completed", "failed", "dead"} }

// actions are the names of all actions.
func actions() []string {
	names := make([]string, len(trail.Actions()))
	for i, action := range trail.Actions() {
		names[i] = string(action)
	}
	return names
}

// tail follows the audit log. What it has printed is in its cursor alone,
// which no connection takes with it.
type tail struct {
	store  *store.Store
	cursor trail.Cursor
	filter trail.Filter
	print  func([]trail.Step) error
	// done, where there is one, is asked at first, whenever rows were printed, and
	// each tailAsk. Where it says so tail ends, once it has printed what was
	// committed before that answer. Its error is one of the database.
	done func(ctx context.Context) (bool, error)
	// putBack, where there is one, is called where the database was put back: from
	// then on it gives the ids of rows out again.
	putBack func()
	stderr  io.Writer
}

// run prints until ctx ends, done says so, or nobody takes what it prints. It
// listens at the database of the URL direct; without that it polls.
func (t *tail) run(ctx context.Context, direct string) error {
	connect, err := store.Connector(direct, "spine tail")
	if err != nil {
		return err
	}
	bell := make(chan struct{}, 1) // something has happened; the log itself says what
	ring := func(notify.Notification) {
		select {
		case bell <- struct{}{}:
		default:
		}
	}
	listener := notify.NewListener(notify.DefaultListenerConfig(connect), t.store, zerolog.Nop(), prometheus.NewRegistry())
	listener.Handle(notify.ActivityChannel, ring)
	listener.Handle(notify.ReadyChannel, ring)
	ctx, cancel := context.WithCancel(ctx)
	var listening sync.WaitGroup
	listening.Go(func() { _ = listener.Run(ctx) }) // without it, polling goes on
	defer listening.Wait()
	defer cancel()

	var outage time.Duration // how long to wait before the next attempt; 0 while the database is there
	back := func() {
		if outage > 0 {
			fmt.Fprintln(t.stderr, "spine: the database is back, nothing was missed")
			outage = 0
		}
	}
	ask, done := t.done != nil, false // whether done may say something else, and what it said
	var asked time.Time
	for {
		var unprinted error
		t.cursor, err = t.store.Follow(ctx, t.cursor, t.filter, func(rows []trail.Step) error {
			back()
			ask = t.done != nil
			unprinted = t.print(rows)
			return unprinted
		})
		if errors.Is(err, trail.ErrCursorAhead) {
			if err = t.beginAnew(ctx); err == nil {
				outage, ask, done = 0, t.done != nil, false
			}
		}
		if done && err == nil {
			return nil
		}
		if ask = ask || t.done != nil && time.Since(asked) >= tailAsk; err == nil && ask {
			done, err = t.done(ctx)
			ask, asked = err != nil, time.Now()
		}
		wait := tailGap
		switch {
		case ctx.Err() != nil:
			return nil
		case unprinted != nil:
			return fmt.Errorf("printing: %w", unprinted)
		case err != nil:
			if outage == 0 {
				fmt.Fprintf(t.stderr, "spine: the database is away, trying again: %s\n", terminal.OneLine(err.Error()))
			}
			outage = min(max(2*outage, tailGap), tailMaxRetry)
			wait = outage
		default:
			back()
		}
		if done && err == nil {
			continue
		}
		if !pause(ctx, nil, wait) {
			return nil
		}
		if outage == 0 && !pause(ctx, bell, tailPoll) {
			return nil
		}
	}
}

// beginAnew goes to the end of the log of a database that was put back: it was
// restored, or its place was taken by a standby that is behind. Its transactions
// have the numbers of others that the cursor has seen, and would be passed over.
func (t *tail) beginAnew(ctx context.Context) error {
	cursor, err := t.store.CurrentCursor(ctx)
	if err != nil {
		return err
	}
	t.cursor = cursor
	if t.putBack != nil {
		t.putBack()
	}
	fmt.Fprintln(t.stderr, "spine: the database was put back to an earlier state, going on from now")
	return nil
}

// pause waits for a ring or d, and reports false where ctx ends first.
func pause(ctx context.Context, bell <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-bell:
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	return true
}

// printRows returns a function that writes audit rows for a pipe, a line each:
// time, event, action, details.
func printRows(w io.Writer) func([]trail.Step) error {
	out := bufio.NewWriter(w)
	return func(rows []trail.Step) error {
		for i := range rows {
			r := &rows[i]
			line := clock(r.Timestamp) + " " + eventName(r) + " " + terminal.Word(string(r.Action)) + " " + readDetails(r.Details).pairs()
			fmt.Fprintln(out, strings.TrimRight(line, " "))
		}
		return out.Flush()
	}
}

// longestName is how far the column of events grows: to a UUID.
const longestName = 36

// narrowest is the room below which a sentence goes on under its event rather
// than under its own beginning.
const narrowest = 40

// tellRows returns a function that tells a person of audit rows, in sentences
// that are aligned and wrapped on a terminal as wide as width says. Days are
// named where they begin.
func tellRows(w io.Writer, width func() int, on terminal.Colours) func([]trail.Step) error {
	out := bufio.NewWriter(w)
	const left = len("15:04:05.000 ✓ ") - len("✓") + 1
	names, day := 0, "" // names is as wide as what was seen
	return func(rows []trail.Step) error {
		for i := range rows {
			names = max(names, min(terminal.Cells(eventName(&rows[i])), longestName))
		}
		for i := range rows {
			r := &rows[i]
			moment := clock(r.Timestamp)
			if date, rest, ok := strings.Cut(strings.TrimSuffix(moment, "Z"), "T"); ok {
				if moment = rest; date != day {
					day = date
					fmt.Fprintln(out, on.Paint(terminal.Dim, day+" UTC"))
				}
			}
			name := terminal.Pad(eventName(r), names)
			begin := left + terminal.Cells(name) + 1
			indent := begin
			if width()-begin < narrowest {
				indent = left + 2
			}
			told := terminal.Wrap(sentence(r.Action, readDetails(r.Details), false), width()-begin, width()-indent)
			fmt.Fprintf(out, "%s %s %s %s\n", on.Paint(terminal.Dim, terminal.Pad(moment, len("15:04:05.000"))),
				on.Paint(outcome(r.Success), mark(r.Success)), on.Paint(terminal.Bold, name), on.Paint(alarm(r.Success), told[0]))
			for _, more := range told[1:] {
				fmt.Fprintf(out, "%*s%s\n", indent, "", on.Paint(alarm(r.Success), more))
			}
		}
		return out.Flush()
	}
}

// printJSONRows returns a function that writes audit rows as JSON, one a line.
func printJSONRows(w io.Writer) func([]trail.Step) error {
	out := bufio.NewWriter(w)
	return func(rows []trail.Step) error {
		for i := range rows {
			if err := terminal.WriteJSON(out, &rows[i]); err != nil {
				return err
			}
		}
		return out.Flush()
	}
}

package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

func traceCommand(env environ) *cobra.Command {
	var set service.Settings
	var source string
	var asJSON, follow bool
	cmd := &cobra.Command{
		Use:   "trace ID",
		Short: "Draw one event's life, step by step",
		Long: `Trace prints what is known of one event as a timeline that begins with its first
step: when it was stored, duplicates and conflicts, each attempt to deliver it
and what the destination answered; then where it stands and what comes next. It
exits with 1 where the id was never stored, and says when its source last sent
something.

With --follow it goes on until the event is delivered or dead with every
destination, and exits with 1 where it is dead with one, or where it is ended
before; --json then prints the object at the end.`,
		Example: `  spine trace test-001
  spine trace 72d3162e-cc78-11e3-81ab-4c9367dc0958 --source github
  spine trace test-001 --follow && echo delivered
  spine trace test-001 --json | jq '.timeline[] | select(.success == "failure")'`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return misuse("give the ID of one event, as in: spine trace test-001")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := openDatabase(cmd.Context(), set.Database)
			if err != nil {
				return err
			}
			defer s.Close()
			out := cmd.OutOrStdout()
			t := traceRun{store: s, eventID: args[0], source: source, out: out, stderr: cmd.ErrOrStderr(), json: asJSON, now: time.Now}
			t.life.on = terminal.ColoursFor(out, env)
			if terminal.IsTerminal(out) {
				t.life.width = func() int { return terminal.Width(out) }
			}
			if follow {
				return t.follow(cmd.Context(), set.DirectURL())
			}
			h, err := s.Event(cmd.Context(), args[0], source)
			if _, never := errors.AsType[*view.NotStoredError](err); never {
				return t.withRejected(cmd.Context(), err)
			}
			if err != nil {
				return nameSource(err)
			}
			return t.show(cmd.Context(), h)
		},
	}
	env.bind(cmd, needs{groups: []any{&set.Database, &set.Direct}, required: []string{"DATABASE_URL"}})
	cmd.Flags().StringVar(&source, "source", "", "the `SOURCE` that sent it, where several have an event of this id")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on until it is delivered or dead")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.ValidArgsFunction = onlyFirstArgument(inFlightIDs(&set.Database))
	completeFlag(cmd, "source", sourceNames(&set.Database))
	return cmd
}

// traceRun is one call of the command.
type traceRun struct {
	store           *store.Store
	eventID, source string
	out, stderr     io.Writer
	json            bool
	now             func() time.Time
	life            timeline
}

// show prints all that is known of an event.
func (t *traceRun) show(ctx context.Context, h view.History) error {
	if t.json {
		return terminal.WriteJSON(t.out, h)
	}
	paused, err := t.store.Paused(ctx)
	if err != nil {
		return err
	}
	_, err = io.WriteString(t.out, t.life.draw(h, t.now())+"\n"+currentStates(h, paused, t.now()))
	return err
}

// maxRejectedMatches is how many rejected requests are shown of an event that was never
// stored.
const maxRejectedMatches = 5

// withRejected adds to the error of an event that was never stored which requests
// that were refused may have been it.
func (t *traceRun) withRejected(ctx context.Context, never error) error {
	rows, err := t.store.RejectedLike(ctx, t.eventID, t.source, maxRejectedMatches)
	if err != nil || len(rows) == 0 {
		return never // that is what was asked
	}
	lines := make([]string, len(rows))
	for i, r := range rows {
		lines[i] = fmt.Sprintf("%d from %s at %s (%d %s, %s)", r.ID, r.Source, r.At, r.Status, r.Cause, r.State)
	}
	return fmt.Errorf("%w It stands in requests that were rejected: %s. See spine rejected show %d, and spine rejected replay", never, strings.Join(lines, "; "), rows[0].ID)
}

// follow prints what is known of an event, then its further steps as they
// happen, and at the end where it stands.
func (t *traceRun) follow(ctx context.Context, direct string) error {
	// The cursor is taken before the history: what is committed between them is
	// in both, and left out the second time.
	cursor, err := t.store.CurrentCursor(ctx)
	if err != nil {
		return err
	}
	h, err := t.store.Event(ctx, t.eventID, t.source)
	if _, never := errors.AsType[*view.NotStoredError](err); never {
		return t.withRejected(ctx, err)
	}
	if err != nil {
		return nameSource(err)
	}
	shown := make(map[int64]bool)
	for i := range h.Timeline {
		shown[h.Timeline[i].ID] = true
	}
	if !t.json && !isFinished(h) {
		if err := t.show(ctx, h); err != nil {
			return err
		}
		if _, err := io.WriteString(t.out, "\n"); err != nil {
			return err
		}
	}
	begun := !t.json && !isFinished(h)
	gone := false
	follower := tail{
		store: t.store, cursor: cursor, stderr: t.stderr, filter: trail.Filter{EventIDs: []string{h.EventID}, Sources: []string{h.Source}},
		print: func(rows []trail.Step) error {
			for i := range rows {
				if !begun || shown[rows[i].ID] {
					continue
				}
				if _, err := io.WriteString(t.out, t.life.step(&rows[i])); err != nil {
					return err
				}
			}
			return nil
		},
		done: func(ctx context.Context) (bool, error) {
			now, err := t.store.Event(ctx, h.EventID, h.Source)
			if _, gone = errors.AsType[*view.NotStoredError](err); gone {
				return true, nil
			}
			if err == nil {
				h = now
			}
			return isFinished(h), err
		},
		putBack: func() { clear(shown) },
	}
	if err := follower.run(ctx, direct); err != nil {
		return err
	}
	switch {
	case ctx.Err() != nil:
		return errors.New("ended before the event was delivered or dead")
	case gone:
		return errors.New("the event is no longer stored")
	case begun:
		_, err = io.WriteString(t.out, "\n"+currentStates(h, nil, t.now()))
	default:
		err = t.show(ctx, h)
	}
	for i := range h.Processing {
		if p := &h.Processing[i]; p.Status == event.StatusDead && err == nil {
			err = fmt.Errorf("the event is dead%s", destinationSuffix(p.Destination))
		}
	}
	return err
}

// isFinished reports whether nothing more will happen to an event by itself.
func isFinished(h view.History) bool {
	for i := range h.Processing {
		if status := h.Processing[i].Status; status != event.StatusCompleted && status != event.StatusDead {
			return false
		}
	}
	return true
}

// timeline draws an event's steps. It remembers what the next step follows on.
type timeline struct {
	on    terminal.Colours
	width func() int // of the terminal; nil where lines are not wrapped
	first event.Timestamp
	open  string // the attempt that the step before belongs to
}

// draw draws an event's description and its timeline.
func (l *timeline) draw(h view.History, now time.Time) string {
	var b strings.Builder
	field := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%s %s\n", l.on.Paint(terminal.Dim, fmt.Sprintf("%-9s", name)), fmt.Sprintf(format, args...))
	}
	field("event", "%s", l.on.Paint(terminal.Bold, terminal.Printable(h.EventID)))
	field("type", "%s", terminal.Printable(h.EventType))
	field("source", "%s", terminal.Printable(h.Source))
	field("stored", "%s (%s)", exactTime(h.CreatedAt), relativeTime(h.CreatedAt, now))
	if h.SeenCount > 1 {
		field("received", "%d times", h.SeenCount)
	}
	if len(h.Conflicts) > 0 {
		field("conflicts", "%s kept", terminal.Plural(int64(len(h.Conflicts)), "other payload"))
	}
	if h.Unqueryable != "" {
		field("payload", "kept as bytes: %s", terminal.Printable(h.Unqueryable))
	}
	for i := range h.Processing {
		p := &h.Processing[i]
		field("status", "%s, %s%s", l.on.Paint(statusColour(p.Status), terminal.Printable(p.Status)), terminal.Plural(int64(p.AttemptCount), "attempt"), destinationSuffix(p.Destination))
	}
	if len(h.Processing) == 0 {
		field("status", "stored, queued for no destination")
	}

	b.WriteString("\n")
	l.first, l.open = h.CreatedAt, ""
	switch {
	case h.TimelineTruncated:
		fmt.Fprintf(&b, "%10s  earlier steps are left out\n", "…")
	case len(h.Timeline) > 0:
		l.first = h.Timeline[0].Timestamp
	}
	for i := range h.Timeline {
		b.WriteString(l.step(&h.Timeline[i]))
	}
	return b.String()
}

// step draws one step, on a line of its own. Those of an attempt are indented
// below its start.
func (l *timeline) step(r *trail.Step) string {
	d := readDetails(r.Details)
	attempt := ""
	if d["attempt"] != nil {
		attempt = d.text("attempt") + " " + cmp.Or(d.text("destination"), event.DefaultDestination)
	}
	within := attempt != "" && attempt == l.open && r.Action != trail.ProcessingAttemptStarted
	l.open = attempt
	text, indent := stepSentence(r.Action, d, within), ""
	if within {
		indent = "  "
	}
	const left = len("  +1.234 s  ✓ ") - len("✓") + 1
	lines := []string{text}
	if l.width != nil {
		room := l.width() - left - len(indent)
		lines = terminal.Wrap(text, room, room-2)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s %s%s\n", l.on.Paint(terminal.Dim, fmt.Sprintf("%10s", stepOffset(l.first, r.Timestamp))), l.on.Paint(successColour(r.Success), successMark(r.Success)), indent,
		l.on.Paint(failureColour(r.Success), lines[0]))
	for _, more := range lines[1:] {
		fmt.Fprintf(&b, "%*s%s\n", left+len(indent)+2, "", l.on.Paint(failureColour(r.Success), more))
	}
	return b.String()
}

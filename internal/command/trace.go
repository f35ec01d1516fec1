package command

import (
	"context"
	"encoding/json"
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
	var settings service.Settings
	var from string
	var asJSON, follow bool
	cmd := &cobra.Command{
		Use:   "trace ID",
		Short: "Show one event's trail, step by step",
		Long: `Trace prints the trail of one event as a timeline that begins with its first step:
when it was stored, its duplicates and conflicts, each attempt to deliver it, and
what the destination answered. Then it says where the event stands and every cause
for which it waits: who paused or locked it, until when it is delayed and why. It
says what other payloads under the id differ in. If the id is not stored, it names
stored ids that are like it and rejected requests that may have been it, says when
the source last sent something, and exits with 1. The first part of an id suffices
where it has several, as GitHub's have. psql says the same:
select says from spine.explain('ID').

With --follow it goes on until every destination has the event, or it is dead
there. It exits with 1 if it is dead at one, or if you end trace before. --json
then prints the object at the end.`,
		Example: `  spine trace test-001
  spine trace 72d3162e-cc78-11e3-81ab-4c9367dc0958 --source github
  spine trace test-001 --follow && echo delivered
  spine trace test-001 --json | jq '.timeline[] | select(.success == "failure")'`,
		Args: oneArgument("give the ID of one event, as in: spine trace test-001"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := openDatabase(cmd.Context(), settings.Database)
			if err != nil {
				return err
			}
			defer s.Close()
			out := cmd.OutOrStdout()
			t := traceRun{
				store: s, eventID: args[0], source: from,
				out: out, stderr: cmd.ErrOrStderr(), json: asJSON, now: time.Now,
				timeline: timeline{colours: terminal.ColoursFor(out, env)},
			}
			if terminal.IsTerminal(out) {
				t.timeline.width = func() int { return terminal.Width(out) }
			}
			if follow {
				return t.follow(cmd.Context(), settings.DirectURL())
			}
			history, err := t.read(cmd.Context())
			if err != nil {
				return err
			}
			return t.show(&history)
		},
	}
	env.bind(cmd, needs{groups: []any{&settings.Database, &settings.Direct}, required: []string{"DATABASE_URL"}})
	cmd.Flags().StringVar(&from, "source", "", "`SOURCE` that sent the event, if several have an event with this id")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on until the event is delivered or dead")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.ValidArgsFunction = onlyFirstArgument(inFlightIDs(&settings.Database))
	completeFlag(cmd, "source", sourceNames(&settings.Database))
	return cmd
}

// traceRun is one call of the command.
type traceRun struct {
	store           *store.Store
	eventID, source string
	out, stderr     io.Writer
	json            bool
	now             func() time.Time
	timeline        timeline
}

// read reads all that is known of the event. The error of an event that is not stored says what may have become of it.
func (t *traceRun) read(ctx context.Context) (view.History, error) {
	history, err := t.store.Event(ctx, t.eventID, t.source)
	if whole, source, found := theWholeID(err, t.eventID); found {
		fmt.Fprintf(t.stderr, "spine: this is %s of source %s, the one event whose id begins with %s/\n",
			terminal.Printable(whole), terminal.Printable(source), terminal.Printable(t.eventID))
		history, err = t.store.Event(ctx, whole, source)
	}
	return history, nameSource(err)
}

// theWholeID completes an id that is not stored. found is false unless exactly one stored id begins with it. A
// provider may show only the first part, as GitHub does: Spine puts the hook's number after it.
func theWholeID(err error, eventID string) (whole, source string, found bool) {
	missing, ok := errors.AsType[*view.NotStoredError](err)
	if !ok {
		return "", "", false
	}
	near := 0
	for _, sentence := range missing.Explanation {
		var facts struct {
			Kind, Source string
			EventID      string `json:"event_id"`
		}
		if sentence.Topic != "near" || json.Unmarshal(sentence.Facts, &facts) != nil || facts.Kind == "" {
			continue // it says how far such an event is
		}
		near++
		if strings.HasPrefix(facts.EventID, eventID+"/") {
			whole, source = facts.EventID, facts.Source
		}
	}
	return whole, source, near == 1 && whole != ""
}

// show prints all that is known of the event.
func (t *traceRun) show(h *view.History) error {
	if t.json {
		return terminal.WriteJSON(t.out, h)
	}
	_, err := io.WriteString(t.out, t.timeline.draw(*h, t.now())+"\n"+currentStates(h))
	return err
}

// follow prints all that is known of the event, then its further steps as they happen, and at the end where it stands.
func (t *traceRun) follow(ctx context.Context, direct string) error {
	// The cursor is read before the history. A step that is committed in between is in both, and not printed again.
	cursor, err := t.store.CurrentCursor(ctx)
	if err != nil {
		return err
	}
	h, err := t.read(ctx)
	if err != nil {
		return err
	}
	printed := make(map[int64]bool)
	for i := range h.Timeline {
		printed[h.Timeline[i].ID] = true
	}
	begun := !t.json && !isFinished(h)
	if begun {
		if err := t.show(&h); err != nil {
			return err
		}
		if _, err := io.WriteString(t.out, "\n"); err != nil {
			return err
		}
	}
	gone := false
	follower := tail{
		store: t.store, cursor: cursor, stderr: t.stderr,
		filter: trail.Filter{EventIDs: []string{h.EventID}, Sources: []string{h.Source}},
		print: func(steps []trail.Step) error {
			for i := range steps {
				if !begun || printed[steps[i].ID] {
					continue
				}
				if _, err := io.WriteString(t.out, t.timeline.step(&steps[i])); err != nil {
					return err
				}
			}
			return nil
		},
		done: func(ctx context.Context) (bool, error) {
			current, err := t.store.Event(ctx, h.EventID, h.Source)
			if _, gone = errors.AsType[*view.NotStoredError](err); gone {
				return true, nil
			}
			if err == nil {
				h = current
			}
			return isFinished(h), err
		},
		putBack: func() { clear(printed) },
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
		_, err = io.WriteString(t.out, "\n"+currentStates(&h))
	default:
		err = t.show(&h)
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

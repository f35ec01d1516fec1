package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/notify"
	"github.com/webhookspine/spine/internal/observe"
	"github.com/webhookspine/spine/internal/store"
)

// Intervals of tail. The doorbell is heard at once; the gap bounds how often
// the log is read however often it rings.
const (
	tailPoll     = time.Second
	tailGap      = 50 * time.Millisecond
	tailMaxRetry = 2 * time.Second
)

func tailCommand(env environ) *cobra.Command {
	var set settings
	var filter event.FollowFilter
	var since moment
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Follow everything that happens, live",
		Long: `Tail prints each step of each event as it is committed: received, stored,
attempted, failed, delivered. It misses nothing and repeats nothing, also where
the database goes away and comes back meanwhile. Ctrl-C ends it.`,
		Example: `  spine tail
  spine tail --since 10m                       # first what happened since, then on
  spine tail --since 2024-01-30T12:00:00Z --event test-001
  spine tail --action processing_attempt_failed --action conflict_detected
  spine tail --json | jq -r 'select(.success == "failure") | .event_id'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, action := range filter.Actions {
				if !slices.Contains(actions(), action) {
					return misuse("--action: there is no %q, known are %s", action, strings.Join(actions(), ", "))
				}
			}
			s, err := set.Database.open(cmd.Context())
			if err != nil {
				return err
			}
			defer s.Close()
			t := tail{store: s, filter: filter, bell: make(chan struct{}, 1), stderr: cmd.ErrOrStderr()}
			out := cmd.OutOrStdout()
			t.print = printRows(out, observe.IsTerminal(out), coloursFor(out, env))
			if asJSON {
				t.print = printJSONRows(out)
			}
			if since.IsZero() {
				if t.cursor, err = s.CurrentCursor(cmd.Context()); err != nil {
					return err
				}
			} else {
				t.cursor = event.CursorSince(since.Time)
			}
			connect, err := store.Connector(set.directURL(), "spine tail")
			if err != nil {
				return err
			}
			listener := notify.NewListener(notify.DefaultListenerConfig(connect), s, zerolog.Nop(), prometheus.NewRegistry())
			listener.Handle(notify.ActivityChannel, t.ring)
			listener.Handle(notify.ReadyChannel, t.ring)
			return t.run(cmd.Context(), listener)
		},
	}
	env.bind(cmd, needs{groups: []any{&set.Database, &set.Direct}, required: []string{"DATABASE_URL"}})
	flags := cmd.Flags()
	flags.StringVar(&filter.EventID, "event", "", "only the event of this `ID`")
	flags.StringVar(&filter.Source, "source", "", "only events of this `SOURCE`")
	flags.StringSliceVar(&filter.Actions, "action", nil, "only this `ACTION`, such as retry_scheduled; may be given several times")
	flags.Var(&since, "since", "begin with what happened since this `TIME`: ago, as 10m or 7d, or RFC 3339")
	flags.BoolVar(&asJSON, "json", false, "print a JSON object a line")
	return cmd
}

// actions are those that a row of the audit log may have, as the comment on
// its column has them.
func actions() []string {
	return []string{
		"event_received", "event_inserted", "event_deduped", "conflict_detected", "event_queued", "processing_attempt_started",
		"processing_attempt_failed", "retry_scheduled", "processing_succeeded", "processing_failed_permanently", "lease_expired",
		"lease_returned", "lease_lost", "status_changed", "event_replayed", "request_rejected", "claims_paused", "claims_resumed",
		"events_expired", "audit_expired",
	}
}

// tail follows the audit log. What it has printed is in its cursor alone,
// which no connection takes with it.
type tail struct {
	store  *store.Store
	cursor event.AuditCursor
	filter event.FollowFilter
	print  func([]event.AuditRow) error
	bell   chan struct{} // of capacity 1: something has happened
	stderr io.Writer
}

// ring is told that something has happened; the log itself says what.
func (t *tail) ring(notify.Notification) {
	select {
	case t.bell <- struct{}{}:
	default:
	}
}

// run prints until ctx ends or nobody takes what it prints.
func (t *tail) run(ctx context.Context, listener *notify.Listener) error {
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
	for {
		var unprinted error
		var err error
		t.cursor, err = t.store.Follow(ctx, t.cursor, t.filter, func(rows []event.AuditRow) error {
			back()
			unprinted = t.print(rows)
			return unprinted
		})
		wait := tailGap
		switch {
		case ctx.Err() != nil:
			return nil
		case unprinted != nil:
			return fmt.Errorf("printing: %w", unprinted)
		case err != nil:
			if outage == 0 {
				fmt.Fprintf(t.stderr, "spine: the database is away, trying again: %s\n", oneLine(err.Error()))
			}
			outage = min(max(2*outage, tailGap), tailMaxRetry)
			wait = outage
		default:
			back()
		}
		if !pause(ctx, nil, wait) {
			return nil
		}
		if outage == 0 && !pause(ctx, t.bell, tailPoll) {
			return nil
		}
	}
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

// longestColumn is how far a column grows: to a UUID, and nearly all actions.
const longestColumn = 36

// printRows returns a function that writes audit rows, a line each, with its
// columns aligned for a person.
func printRows(w io.Writer, aligned bool, on colours) func([]event.AuditRow) error {
	out := bufio.NewWriter(w)
	idWidth, actionWidth := 0, 0 // as wide as what was seen
	return func(rows []event.AuditRow) error {
		for i := range rows {
			if aligned {
				idWidth = max(idWidth, min(utf8.RuneCountInString(eventName(&rows[i])), longestColumn))
				actionWidth = max(actionWidth, min(utf8.RuneCountInString(word(rows[i].Action)), longestColumn))
			}
		}
		for i := range rows {
			r := &rows[i]
			id, action := fmt.Sprintf("%-*s", idWidth, eventName(r)), fmt.Sprintf("%-*s", actionWidth, word(r.Action))
			line := on.paint(dim, clock(r.Timestamp)) + " " + on.paint(bold, id) + " " + on.paint(outcome(r.Success), action) + " " + readDetails(r.Details).pairs()
			fmt.Fprintln(out, strings.TrimRight(line, " "))
		}
		return out.Flush()
	}
}

// printJSONRows returns a function that writes audit rows as JSON, one a line.
func printJSONRows(w io.Writer) func([]event.AuditRow) error {
	out := bufio.NewWriter(w)
	return func(rows []event.AuditRow) error {
		for i := range rows {
			if err := writeJSON(out, &rows[i]); err != nil {
				return err
			}
		}
		return out.Flush()
	}
}

// eventName is what a row is about: event_id, or source/event_id for other
// sources than the default; - for no event.
func eventName(r *event.AuditRow) string {
	name := "-"
	if r.EventID != nil {
		name = word(*r.EventID)
	}
	if r.Source != nil && *r.Source != event.DefaultSource {
		name = word(*r.Source) + "/" + name
	}
	return name
}

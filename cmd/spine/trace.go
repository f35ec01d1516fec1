package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
)

func traceCommand(env environ) *cobra.Command {
	var database databaseSettings
	var source string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "trace ID",
		Short: "Draw one event's life, step by step",
		Long: `Trace prints what is known of one event: when it was stored, each attempt to
deliver it and what the destination answered, and what comes next. It exits with
1 where the id was never stored, and says when its source last sent something.`,
		Example: `  spine trace test-001
  spine trace 72d3162e-cc78-11e3-81ab-4c9367dc0958 --source github
  spine trace test-001 --json | jq '.timeline[] | select(.success == "failure")'`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return misuse("give the ID of one event, as in: spine trace test-001")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := database.open(cmd.Context())
			if err != nil {
				return err
			}
			defer s.Close()
			h, err := s.Event(cmd.Context(), args[0], source)
			if err != nil {
				return nameSource(err)
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return writeJSON(out, h)
			}
			paused, err := s.Paused(cmd.Context())
			if err != nil {
				return err
			}
			_, err = io.WriteString(out, drawLife(h, paused, coloursFor(out, env), time.Now()))
			return err
		},
	}
	env.bind(cmd, needs{groups: []any{&database}, required: []string{"DATABASE_URL"}})
	cmd.Flags().StringVar(&source, "source", "", "the `SOURCE` that sent it, where several have an event of this id")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// drawLife draws an event's timeline between its description and what comes
// next.
func drawLife(h event.History, paused []store.PauseRow, on colours, now time.Time) string {
	var b strings.Builder
	field := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%s %s\n", on.paint(dim, fmt.Sprintf("%-9s", name)), fmt.Sprintf(format, args...))
	}
	field("event", "%s", on.paint(bold, printable(h.EventID)))
	field("type", "%s", printable(h.EventType))
	field("source", "%s", printable(h.Source))
	field("stored", "%s (%s)", clock(h.CreatedAt), fromNow(h.CreatedAt, now))
	if h.SeenCount > 1 {
		field("received", "%d times", h.SeenCount)
	}
	if len(h.Conflicts) > 0 {
		field("conflicts", "%s kept", counted(int64(len(h.Conflicts)), "other payload"))
	}
	if h.Unqueryable != "" {
		field("payload", "kept as bytes: %s", printable(h.Unqueryable))
	}
	for i := range h.Processing {
		p := &h.Processing[i]
		field("status", "%s, %s%s", on.paint(statusColour(p.Status), printable(p.Status)), counted(int64(p.AttemptCount), "attempt"), at(p.Destination))
	}
	if len(h.Processing) == 0 {
		field("status", "stored, queued for no destination")
	}

	b.WriteString("\n")
	first := h.CreatedAt
	switch {
	case h.TimelineTruncated:
		fmt.Fprintf(&b, "%9s earlier steps are left out\n", "…")
	case len(h.Timeline) > 0:
		first = h.Timeline[0].Timestamp
	}
	for i := range h.Timeline {
		r := &h.Timeline[i]
		fmt.Fprintf(&b, "%s  %s %s\n", on.paint(dim, fmt.Sprintf("%9s", offset(first, r.Timestamp))),
			on.paint(outcome(r.Success), mark(r.Success)), sentence(r.Action, readDetails(r.Details)))
	}

	b.WriteString("\n")
	for i := range h.Processing {
		fmt.Fprintln(&b, currentState(&h.Processing[i], paused, now))
	}
	return b.String()
}

// at names a destination unless it is the one that everything goes to.
func at(destination string) string {
	if destination == "" || destination == event.DefaultDestination {
		return ""
	}
	return " at " + word(destination)
}

func statusColour(status string) string {
	switch status {
	case "completed":
		return green
	case "failed", "dead":
		return red
	default:
		return yellow
	}
}

// mark stands before a step, so that its success is seen without colour too.
func mark(success string) string {
	switch success {
	case "success":
		return "✓"
	case "failure":
		return "✗"
	default:
		return "·"
	}
}

// offset is how long after first a step was made.
func offset(first, t event.Timestamp) string {
	if first.Infinity != 0 || t.Infinity != 0 {
		return t.String()
	}
	d := t.Time.Sub(first.Time)
	if d.Abs() < time.Minute {
		return fmt.Sprintf("%+.3fs", d.Seconds())
	}
	return "+" + span(d)
}

// sentence puts a step in words.
func sentence(action string, d auditDetails) string {
	text := func(name string) string { return printable(d.text(name)) }
	attempt := "attempt " + text("attempt")
	where := at(d.text("destination"))
	by := ""
	if d["by"] != nil {
		by = " by " + text("by")
	}
	switch action {
	case "event_received":
		return "received"
	case "event_inserted":
		return "stored and queued"
	case "event_deduped":
		return "known already, with this payload"
	case "conflict_detected":
		kept := map[string]string{"kept": "kept as evidence", "known": "as kept before", "full": "not kept, there are ten"}[d.text("evidence")]
		return strings.TrimSuffix("known already, with another payload: "+kept, ": ")
	case "event_queued":
		return "queued by hand" + by + " as " + text("status") + where
	case "processing_attempt_started":
		return attempt + " started by " + text("worker") + where
	case "processing_attempt_failed":
		return attempt + " failed" + answer(d) + where
	case "processing_succeeded":
		return attempt + " delivered" + answer(d) + where
	case "retry_scheduled":
		return "next attempt in " + printable(d.span("delay_ms")) + where
	case "processing_failed_permanently":
		return "given up after " + attempt + ": " + text("error") + where
	case "lease_expired":
		return attempt + ": the lease of " + text("worker") + " ran out" + where
	case "lease_returned":
		return attempt + " was not started, " + text("worker") + " gave it back" + where
	case "lease_lost":
		return "a late result (" + text("outcome") + ") changed nothing, its lease was lost" + where
	case "status_changed":
		return "status changed by hand from " + text("from") + " to " + text("to") + by + where
	case "event_replayed":
		return "replayed" + by + ", was " + text("from") + where
	}
	return strings.TrimSpace(word(action) + " " + d.pairs())
}

// answer is what a destination said to an attempt, after how long.
func answer(d auditDetails) string {
	var b strings.Builder
	if d["duration_ms"] != nil {
		b.WriteString(" after " + printable(d.span("duration_ms")))
	}
	switch {
	case d["error"] != nil:
		b.WriteString(": " + printable(d.text("error")))
	case d["status"] != nil:
		b.WriteString(": HTTP " + printable(d.text("status")))
	}
	if said := strings.TrimSpace(d.text("answer")); said != "" {
		b.WriteString(", answer " + printable(cut(said)))
	}
	return b.String()
}

// currentState says where an event stands with a destination and what comes
// next.
func currentState(p *event.ProcessingRow, paused []store.PauseRow, now time.Time) string {
	where := at(p.Destination)
	next := "at no set time"
	if p.NextAttemptAt != nil {
		next = clock(*p.NextAttemptAt) + " (" + fromNow(*p.NextAttemptAt, now) + ")"
	}
	why := ""
	if p.ErrorMessage != nil {
		why = ": " + printable(cut(*p.ErrorMessage))
	}
	switch p.Status {
	case "completed":
		done := "completed" + where
		if p.CompletedAt != nil {
			done += " " + clock(*p.CompletedAt)
		}
		return done + ", nothing more to do"
	case "dead":
		return "dead" + where + ", not tried again by itself (spine replay)" + why
	case "processing":
		worker := "a worker"
		if p.Worker != nil {
			worker = printable(*p.Worker)
		}
		return fmt.Sprintf("attempt %d%s is in the hands of %s, whose lease ends %s", p.AttemptCount, where, worker, next)
	default:
		held := ""
		for _, row := range paused {
			if row.Destination == p.Destination {
				held = "; claims are paused since " + clock(row.PausedAt) + ": spine resume"
			}
		}
		return fmt.Sprintf("attempt %d%s is due %s%s%s", p.AttemptCount+1, where, next, why, held)
	}
}

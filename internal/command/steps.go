package command

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// eventName is what a row is about: event_id, or source/event_id for other
// sources than the default; - for no event.
func eventName(r *trail.Step) string {
	name := "-"
	if r.EventID != nil {
		name = terminal.Word(*r.EventID)
	}
	if r.Source != nil && *r.Source != event.DefaultSource {
		name = terminal.Word(*r.Source) + "/" + name
	}
	return name
}

// successColour is the colour of an audit row's success.
func successColour(success string) terminal.Colour {
	switch success {
	case "success":
		return terminal.Green
	case "failure":
		return terminal.Red
	default:
		return terminal.Yellow
	}
}

// failureColour is the colour of what is said of an audit row: only failures stand out.
func failureColour(success string) terminal.Colour {
	if success == "failure" {
		return terminal.Red
	}
	return terminal.Plain
}

// auditDetails are an audit row's details.
type auditDetails map[string]json.RawMessage

func readDetails(text json.RawMessage) auditDetails {
	var d auditDetails
	if json.Unmarshal(text, &d) != nil {
		return auditDetails{"details": text} // a hand wrote something else than an object
	}
	return d
}

// text is a member as a string: the string that it is, or else its JSON text.
func (d auditDetails) text(name string) string {
	var s string
	if json.Unmarshal(d[name], &s) == nil {
		return s
	}
	return string(d[name])
}

// duration is a member that counts milliseconds.
func (d auditDetails) duration(name string) string {
	ms, err := strconv.ParseFloat(string(d[name]), 64)
	if err != nil {
		return d.text(name)
	}
	return terminal.ShortDuration(time.Duration(ms * float64(time.Millisecond)))
}

// pairs shows the members as name=value, those first that a reader looks for.
// Some say nothing new to most readers; --json has them.
func (d auditDetails) pairs() string {
	first := []string{"attempt", "status", "duration_ms", "error", "answer", "delay_ms"}
	rank := func(name string) int {
		if i := slices.Index(first, name); i >= 0 {
			return i
		}
		return len(first)
	}
	names := slices.SortedFunc(maps.Keys(d), func(a, b string) int { return cmp.Or(rank(a)-rank(b), cmp.Compare(a, b)) })
	var shown []string
	for _, name := range names {
		value := d.text(name)
		if name == "lease" || name == "next_attempt_at" || name == "destination" && value == event.DefaultDestination {
			continue
		}
		if short, ok := strings.CutSuffix(name, "_ms"); ok {
			name, value = short, d.duration(name)
		}
		shown = append(shown, terminal.Word(name)+"="+terminal.Word(terminal.Shorten(value)))
	}
	return strings.Join(shown, " ")
}

// destinationSuffix names a destination unless it is the one that everything goes to.
func destinationSuffix(destination string) string {
	if destination == "" || destination == event.DefaultDestination {
		return ""
	}
	return " at " + terminal.Word(destination)
}

func statusColour(status string) terminal.Colour {
	switch status {
	case "completed":
		return terminal.Green
	case "failed", "dead":
		return terminal.Red
	default:
		return terminal.Yellow
	}
}

// successMark stands before a step, so that its success is seen without colour too.
func successMark(success string) string {
	switch success {
	case trail.Success:
		return "✓"
	case trail.Failure:
		return "✗"
	default:
		return "·"
	}
}

// stepSentence puts a step in words. The attempt that it belongs to is not named
// where it stands within what is told of that.
func stepSentence(action trail.Action, d auditDetails, within bool) string {
	text := func(name string) string { return terminal.Printable(d.text(name)) }
	attempt, after, colon := "attempt "+text("attempt")+" ", " after attempt "+text("attempt"), ": "
	if within {
		attempt, after, colon = "", "", ""
	}
	where := destinationSuffix(d.text("destination"))
	by := ""
	if d["by"] != nil {
		by = " by " + text("by")
		if d.text("caller") != "" {
			by += " (" + terminal.Printable(terminal.Shorten(d.text("caller"))) + ")"
		}
	}
	switch action {
	case trail.EventReceived:
		return "received"
	case trail.EventInserted:
		return "stored and queued"
	case trail.EventDeduped:
		return "known already, with this payload"
	case trail.ConflictDetected:
		kept := map[string]string{"kept": "kept as evidence", "known": "as kept before", "full": "not kept, there are ten"}[d.text("evidence")]
		return strings.TrimSuffix("known already, with another payload: "+kept, ": ")
	case trail.EventQueued:
		return "queued by hand" + by + " as " + text("status") + where
	case trail.ProcessingAttemptStarted:
		return attempt + "started by " + text("worker") + where
	case trail.ProcessingAttemptFailed:
		return attempt + "failed" + attemptAnswer(d) + where
	case trail.ProcessingSucceeded:
		return attempt + "delivered" + attemptAnswer(d) + where
	case trail.RetryScheduled:
		return "next attempt in " + terminal.Printable(d.duration("delay_ms")) + where
	case trail.ProcessingFailedPermanently:
		return "given up" + after + ": " + text("error") + where
	case trail.LeaseExpired:
		return strings.TrimSpace(attempt) + colon + "the lease of " + text("worker") + " ran out" + where
	case trail.LeaseReturned:
		return attempt + "was not started, " + text("worker") + " gave it back" + where
	case trail.ConflictAccepted:
		return "another payload accepted" + by + " as " + text("accepted_as")
	case trail.SourceEnabled, trail.SourceDisabled, trail.SourceRemoved:
		return strings.ReplaceAll(string(action), "_", " ") + by
	case trail.RequestReplayed:
		trusted := ""
		if d["trust"] != nil {
			trusted = ", without being verified"
		}
		return "rejected request " + text("request") + " (" + text("cause") + ") to be looked at again" + by + trusted
	case trail.LeaseLost:
		return "a late result (" + text("outcome") + ") changed nothing, its lease was lost" + where
	case trail.StatusChanged:
		return "status changed by hand from " + text("from") + " to " + text("to") + by + where
	case trail.EventReplayed:
		return "replayed" + by + ", was " + text("from") + where
	}
	return strings.TrimSpace(terminal.Word(string(action)) + " " + d.pairs())
}

// attemptAnswer is what a destination said to an attempt, after how long.
func attemptAnswer(d auditDetails) string {
	var b strings.Builder
	if d["duration_ms"] != nil {
		b.WriteString(" after " + terminal.Printable(d.duration("duration_ms")))
	}
	switch {
	case d["error"] != nil:
		b.WriteString(": " + terminal.Printable(d.text("error")))
	case d["status"] != nil:
		b.WriteString(": HTTP " + terminal.Printable(d.text("status")))
	}
	if said := strings.TrimSpace(d.text("answer")); said != "" {
		b.WriteString(", answer " + terminal.Printable(terminal.Shorten(said)))
	}
	return b.String()
}

// currentStates says where an event stands, in a line for each destination.
func currentStates(h view.History, paused []view.PauseRow, now time.Time) string {
	var b strings.Builder
	for i := range h.Processing {
		fmt.Fprintln(&b, currentState(&h.Processing[i], paused, now))
	}
	return b.String()
}

// currentState says where an event stands with a destination and what comes
// next.
func currentState(p *view.ProcessingRow, paused []view.PauseRow, now time.Time) string {
	where := destinationSuffix(p.Destination)
	next := "at no set time"
	if p.NextAttemptAt != nil {
		next = exactTime(*p.NextAttemptAt) + " (" + relativeTime(*p.NextAttemptAt, now) + ")"
	}
	why := ""
	if p.ErrorMessage != nil {
		why = ": " + terminal.Printable(terminal.Shorten(*p.ErrorMessage))
	}
	switch p.Status {
	case "completed":
		done := "completed" + where
		if p.CompletedAt != nil {
			done += " " + exactTime(*p.CompletedAt)
			if took := p.CompletedAt.Time.Sub(p.CreatedAt.Time); p.CompletedAt.Infinity == 0 && p.CreatedAt.Infinity == 0 && took >= 0 {
				done += ", " + terminal.ShortDuration(took) + " after it was queued"
			}
		}
		return done + ", nothing more to do"
	case "dead":
		return "dead" + where + ", not tried again by itself (spine replay)" + why
	case "processing":
		worker := "a worker"
		if p.Worker != nil {
			worker = terminal.Printable(*p.Worker)
		}
		return fmt.Sprintf("attempt %d%s is in the hands of %s, whose lease ends %s", p.AttemptCount, where, worker, next)
	default:
		held := ""
		for _, row := range paused {
			if row.Destination == p.Destination {
				held = "; claims are paused since " + exactTime(row.PausedAt) + ": spine resume"
			}
		}
		return fmt.Sprintf("attempt %d%s is due %s%s%s", p.AttemptCount+1, where, next, why, held)
	}
}

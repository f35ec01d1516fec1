package command

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/trail"
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

// outcome is the colour of an audit row's success.
func outcome(success string) string {
	switch success {
	case "success":
		return terminal.Green
	case "failure":
		return terminal.Red
	default:
		return terminal.Yellow
	}
}

// alarm is the colour of what is said of an audit row: only failures stand out.
func alarm(success string) string {
	if success == "failure" {
		return terminal.Red
	}
	return ""
}

const clockLayout = "2006-01-02T15:04:05.000Z"

// clock shows a moment to the millisecond, in UTC.
func clock(t event.Timestamp) string {
	if t.Infinity != 0 {
		return t.String()
	}
	return t.Time.UTC().Format(clockLayout)
}

// fromNow shows how far a moment is from now: "in 3s", "3s ago".
func fromNow(t event.Timestamp, now time.Time) string {
	switch {
	case t.Infinity > 0:
		return "never"
	case t.Infinity < 0:
		return "always"
	case t.Time.After(now):
		return "in " + terminal.Duration(t.Time.Sub(now))
	default:
		return terminal.Duration(now.Sub(t.Time)) + " ago"
	}
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

// span is a member that counts milliseconds.
func (d auditDetails) span(name string) string {
	ms, err := strconv.ParseFloat(string(d[name]), 64)
	if err != nil {
		return d.text(name)
	}
	return terminal.Duration(time.Duration(ms * float64(time.Millisecond)))
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
			name, value = short, d.span(name)
		}
		shown = append(shown, terminal.Word(name)+"="+terminal.Word(terminal.Shorten(value)))
	}
	return strings.Join(shown, " ")
}

// at names a destination unless it is the one that everything goes to.
func at(destination string) string {
	if destination == "" || destination == event.DefaultDestination {
		return ""
	}
	return " at " + terminal.Word(destination)
}

func statusColour(status string) string {
	switch status {
	case "completed":
		return terminal.Green
	case "failed", "dead":
		return terminal.Red
	default:
		return terminal.Yellow
	}
}

// mark stands before a step, so that its success is seen without colour too.
func mark(success string) string {
	switch success {
	case trail.Success:
		return "✓"
	case trail.Failure:
		return "✗"
	default:
		return "·"
	}
}

// sentence puts a step in words. The attempt that it belongs to is not named
// where it stands within what is told of that.
func sentence(action trail.Action, d auditDetails, within bool) string {
	text := func(name string) string { return terminal.Printable(d.text(name)) }
	attempt, after, colon := "attempt "+text("attempt")+" ", " after attempt "+text("attempt"), ": "
	if within {
		attempt, after, colon = "", "", ""
	}
	where := at(d.text("destination"))
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
		return attempt + "failed" + answer(d) + where
	case trail.ProcessingSucceeded:
		return attempt + "delivered" + answer(d) + where
	case trail.RetryScheduled:
		return "next attempt in " + terminal.Printable(d.span("delay_ms")) + where
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

// answer is what a destination said to an attempt, after how long.
func answer(d auditDetails) string {
	var b strings.Builder
	if d["duration_ms"] != nil {
		b.WriteString(" after " + terminal.Printable(d.span("duration_ms")))
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

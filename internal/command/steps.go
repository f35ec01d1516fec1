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

// eventName is the event that a step is about: event_id, or source/event_id if the source is not the default. It is -
// if there is no event.
func eventName(s *trail.Step) string {
	name := "-"
	if s.EventID != nil {
		name = terminal.Word(*s.EventID)
	}
	if s.Source != nil && *s.Source != event.DefaultSource {
		name = terminal.Word(*s.Source) + "/" + name
	}
	return name
}

// stepTone is how a step reads: trail.Success for good news, trail.Failure for bad news, and trail.Pending for all that
// is neither. The audit log's column success is another thing: a pause succeeds too, and is no good news.
func stepTone(s *trail.Step, d stepDetails) string {
	switch s.Action { //nolint:exhaustive // the others are no news of one kind
	case trail.EventReceived, trail.EventInserted, trail.EventDeduped, trail.ProcessingSucceeded, trail.ClaimsResumed,
		trail.SourceEnabled, trail.ConflictAccepted:
		return trail.Success
	case trail.LeaseExpired, trail.LeaseLost:
		return trail.Failure
	case trail.StatusChanged:
		switch d.text("to") {
		case event.StatusCompleted:
			return trail.Success
		case event.StatusDead:
			return trail.Failure
		}
	}
	if s.Success == trail.Failure {
		return trail.Failure
	}
	return trail.Pending
}

// toneColour is the colour of a step's mark.
func toneColour(tone string) terminal.Colour {
	switch tone {
	case trail.Success:
		return terminal.Green
	case trail.Failure:
		return terminal.Red
	default:
		return terminal.Yellow
	}
}

// failureColour is the colour of a step's sentence: only bad news stands out.
func failureColour(tone string) terminal.Colour {
	if tone == trail.Failure {
		return terminal.Red
	}
	return terminal.Plain
}

// stepDetails are the members of a step's details.
type stepDetails map[string]json.RawMessage

// readDetails reads the details of a step. They are an object, unless somebody wrote the row by hand.
func readDetails(text json.RawMessage) stepDetails {
	var d stepDetails
	if json.Unmarshal(text, &d) != nil {
		return stepDetails{"details": text}
	}
	return d
}

// text is a member as a string: its own text if it is a string, else its JSON.
func (d stepDetails) text(name string) string {
	var s string
	if json.Unmarshal(d[name], &s) == nil {
		return s
	}
	return string(d[name])
}

// duration is a member that counts milliseconds.
func (d stepDetails) duration(name string) string {
	ms, err := strconv.ParseFloat(string(d[name]), 64)
	if err != nil {
		return d.text(name)
	}
	return terminal.ShortDuration(time.Duration(ms * float64(time.Millisecond)))
}

// pairs shows the members as name=value. The ones that readers look for come first. It leaves out what tells most
// readers nothing new, such as the usual destination of an event's step; --json has it.
func (d stepDetails) pairs(ofEvent bool) string {
	foremost := []string{"attempt", "status", "duration_ms", "error", "answer", "delay_ms"}
	rank := func(name string) int {
		if i := slices.Index(foremost, name); i >= 0 {
			return i
		}
		return len(foremost)
	}
	names := slices.SortedFunc(maps.Keys(d),
		func(a, b string) int { return cmp.Or(rank(a)-rank(b), cmp.Compare(a, b)) })
	var pairs []string
	for _, name := range names {
		value := d.text(name)
		usual := ofEvent && name == "destination" && value == event.DefaultDestination
		if usual || name == "lease" || name == "next_attempt_at" {
			continue
		}
		if short, ok := strings.CutSuffix(name, "_ms"); ok {
			name, value = short, d.duration(name)
		}
		pairs = append(pairs, terminal.Word(name)+"="+terminal.Word(terminal.Shorten(value)))
	}
	return strings.Join(pairs, " ")
}

// destinationSuffix names a destination, unless it is the default.
func destinationSuffix(destination string) string {
	if destination == "" || destination == event.DefaultDestination {
		return ""
	}
	return " at " + terminal.Word(destination)
}

// statusColour is the colour of a status.
func statusColour(status string) terminal.Colour {
	switch status {
	case event.StatusCompleted:
		return terminal.Green
	case event.StatusFailed, event.StatusDead:
		return terminal.Red
	default:
		return terminal.Yellow
	}
}

// toneMark stands before a step, so that one sees its tone without colours too: a tick for good news alone.
func toneMark(tone string) string {
	switch tone {
	case trail.Success:
		return "✓"
	case trail.Failure:
		return "✗"
	default:
		return "·"
	}
}

// stepSentence puts a step in words. within says that it stands below the start of its attempt, which it then does not
// name.
func stepSentence(action trail.Action, d stepDetails, within bool) string {
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
	// count is how many of something the step sums up. more adds a member, if there is one.
	count := func(noun string) string {
		if n, err := strconv.ParseInt(string(d["count"]), 10, 64); err == nil {
			return terminal.Plural(n, noun)
		}
		return noun + "s"
	}
	more := func(before, name string) string {
		if d[name] == nil {
			return ""
		}
		return before + terminal.Printable(terminal.Shorten(d.text(name)))
	}
	because := ""
	if reason := d.text("reason"); reason != "" {
		because = ", because: " + terminal.Printable(terminal.Shorten(reason))
	}
	switch action {
	case trail.EventReceived:
		return "received"
	case trail.EventInserted:
		return "stored and queued"
	case trail.EventDeduped:
		return "known already, with this payload"
	case trail.ConflictDetected:
		evidence := map[string]string{
			"kept": "kept as evidence", "known": "as kept before", "full": "not kept, there are ten",
		}[d.text("evidence")]
		return strings.TrimSuffix("known already, with another payload: "+evidence, ": ")
	case trail.EventQueued:
		return "queued by hand" + by + " as " + text("status") + where + because
	case trail.ProcessingAttemptStarted:
		return attempt + "started by " + text("worker") + where
	case trail.ProcessingAttemptFailed:
		return attempt + "failed" + attemptAnswer(d) + where
	case trail.ProcessingSucceeded:
		return attempt + "delivered" + attemptAnswer(d) + where
	case trail.RetryScheduled:
		return "next attempt in " + terminal.Printable(d.duration("delay_ms")) + delayReason(d) + where
	case trail.DeliveryDeferred:
		return attempt + "not counted, the destination was not reached" + attemptAnswer(d) +
			"; next attempt in " + terminal.Printable(d.duration("delay_ms")) + where
	case trail.ProcessingFailedPermanently:
		return "given up" + after + ": " + text("error") + where
	case trail.LeaseExpired:
		return strings.TrimSpace(attempt) + colon + "the lease of " + text("worker") + " ran out" + where
	case trail.LeaseReturned:
		return attempt + "was not started, " + text("worker") + " gave it back" + where
	case trail.ConflictAccepted:
		return "another payload accepted" + by + " as " + text("accepted_as")
	case trail.SourceAdded, trail.SourceChanged:
		return strings.ReplaceAll(string(action), "_", " ") + by + more(": ", "changes")
	case trail.SourceEnabled, trail.SourceDisabled, trail.SourceRemoved:
		return strings.ReplaceAll(string(action), "_", " ") + by + because
	case trail.ClaimsPaused, trail.ClaimsResumed:
		return strings.ReplaceAll(string(action), "_", " ") + more(" for ", "destination") + by + because
	case trail.RequestRejected:
		return count("request") + " rejected" + more(": HTTP ", "status") + more(", ", "cause") +
			more(", since ", "since")
	case trail.EventsExpired:
		return count("old event") + " deleted" + more(", stored ", "oldest") + more(" to ", "newest") +
			more(", unchanged since ", "before")
	case trail.AuditExpired:
		return count("old step") + " deleted" + more(" from ", "partition") + more(", before ", "before")
	case trail.RequestReplayed:
		unverified := ""
		if d["trust"] != nil {
			unverified = ", without being verified"
		}
		return "rejected request " + text("request") + " (" + text("cause") + ") to be replayed" + by + unverified
	case trail.LeaseLost:
		return "a late result (" + text("outcome") + ") changed nothing, its lease was lost" + where
	case trail.StatusChanged:
		return "status changed by hand from " + text("from") + " to " + text("to") + by + where + because
	case trail.EventReplayed:
		return "replayed" + by + ", was " + text("from") + where
	default: // an action of a newer version
		return strings.TrimSpace(terminal.Word(string(action)) + " " + d.pairs(true))
	}
}

// delayReason says why the next attempt waits as long as it does. Steps of older versions do not know.
func delayReason(d stepDetails) string {
	switch d.text("reason") {
	case "Retry-After":
		return ", as the destination asked (Retry-After)"
	case "policy":
		return ", by the retry policy"
	}
	return ""
}

// attemptAnswer is what a destination answered to an attempt, and after how long.
func attemptAnswer(d stepDetails) string {
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
	if answer := strings.TrimSpace(d.text("answer")); answer != "" {
		b.WriteString(", answer " + terminal.Printable(terminal.Shorten(answer)))
	}
	return b.String()
}

// currentStates says where an event stands, and every cause for which it waits. These are the sentences of
// spine.explain() that do not stand above the timeline.
func currentStates(h *view.History) string {
	var b strings.Builder
	for _, s := range h.Explanation {
		switch s.Topic {
		case "stored", "attempts":
			continue
		case "standing", "conflict", "disabled":
		default:
			b.WriteString("  ")
		}
		fmt.Fprintln(&b, terminal.Printable(s.Says))
	}
	return b.String()
}

// attemptsSaid is how many attempts an event had at a destination, since its replay and in all.
func attemptsSaid(h *view.History, p *view.ProcessingRow) string {
	for _, s := range h.Explanation {
		if s.Topic == "attempts" && s.Destination != nil && *s.Destination == p.Destination {
			return terminal.Printable(s.Says)
		}
	}
	return terminal.Plural(int64(p.AttemptCount), "attempt")
}

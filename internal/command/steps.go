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

// successColour is the colour of a step's mark.
func successColour(success string) terminal.Colour {
	switch success {
	case trail.Success:
		return terminal.Green
	case trail.Failure:
		return terminal.Red
	default:
		return terminal.Yellow
	}
}

// failureColour is the colour of a step's sentence: only failures stand out.
func failureColour(success string) terminal.Colour {
	if success == trail.Failure {
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
// readers nothing new; --json has it.
func (d stepDetails) pairs() string {
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
		if name == "lease" || name == "next_attempt_at" || name == "destination" && value == event.DefaultDestination {
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

// stepOutcome is what the mark of a step says. The audit log calls everything a success that is no failure; here only
// good news is one.
func stepOutcome(s *trail.Step) string {
	if s.Action == trail.DeliveryDeferred {
		return trail.Pending
	}
	return s.Success
}

// successMark stands before a step, so that one sees its success without colours too.
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
		return "queued by hand" + by + " as " + text("status") + where
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
	case trail.SourceEnabled, trail.SourceDisabled, trail.SourceRemoved:
		return strings.ReplaceAll(string(action), "_", " ") + by
	case trail.RequestReplayed:
		unverified := ""
		if d["trust"] != nil {
			unverified = ", without being verified"
		}
		return "rejected request " + text("request") + " (" + text("cause") + ") to be replayed" + by + unverified
	case trail.LeaseLost:
		return "a late result (" + text("outcome") + ") changed nothing, its lease was lost" + where
	case trail.StatusChanged:
		return "status changed by hand from " + text("from") + " to " + text("to") + by + where
	case trail.EventReplayed:
		return "replayed" + by + ", was " + text("from") + where
	case trail.RequestRejected:
		return count("request") + " rejected" + more(": HTTP ", "status") + more(", ", "cause") +
			more(", since ", "since")
	case trail.ClaimsPaused, trail.ClaimsResumed:
		return strings.ReplaceAll(string(action), "_", " ") + more(" for ", "destination") + by
	case trail.EventsExpired:
		return count("old event") + " deleted" + more(", stored ", "oldest") + more(" to ", "newest") +
			more(", unchanged since ", "before")
	case trail.AuditExpired:
		return count("old step") + " deleted" + more(" from ", "partition") + more(", before ", "before")
	case trail.SourceAdded, trail.SourceChanged:
		return strings.ReplaceAll(string(action), "_", " ") + by + more(": ", "changes")
	default: // an action of a newer version
		return strings.TrimSpace(terminal.Word(string(action)) + " " + d.pairs())
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

// currentStates says where an event stands, in one line for each destination.
func currentStates(h view.History, paused []view.PauseRow, now time.Time) string {
	var b strings.Builder
	for i := range h.Processing {
		fmt.Fprintln(&b, currentState(&h.Processing[i], paused, now))
	}
	return b.String()
}

// currentState says where an event stands with a destination, and what comes next.
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
	case event.StatusCompleted:
		text := "completed" + where
		if p.CompletedAt != nil {
			text += " " + exactTime(*p.CompletedAt)
			took := p.CompletedAt.Time.Sub(p.CreatedAt.Time)
			if p.CompletedAt.Infinity == 0 && p.CreatedAt.Infinity == 0 && took >= 0 {
				text += ", " + terminal.ShortDuration(took) + " after it was queued"
			}
		}
		return text + ", nothing more to do"
	case event.StatusDead:
		return "dead" + where + ", not tried again by itself (spine replay)" + why
	case event.StatusProcessing:
		worker := "a worker"
		if p.Worker != nil {
			worker = terminal.Printable(*p.Worker)
		}
		return fmt.Sprintf("attempt %d%s is in the hands of %s, whose lease ends %s", p.AttemptCount, where, worker,
			next)
	default:
		pause := ""
		for _, row := range paused {
			if row.Destination == p.Destination {
				pause = "; claims are paused since " + exactTime(row.PausedAt) + ": spine resume"
			}
		}
		return fmt.Sprintf("attempt %d%s is due %s%s%s", p.AttemptCount+1, where, next, why, pause)
	}
}

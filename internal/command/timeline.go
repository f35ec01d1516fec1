package command

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// timeline draws an event's steps. It remembers the step before, because a step of the same attempt is indented.
type timeline struct {
	colours terminal.Colours
	width   func() int // of the terminal; nil if lines are not wrapped
	first   event.Timestamp
	attempt string // the attempt and destination of the step before; empty if it had none
}

// draw is the description of an event and its timeline.
func (l *timeline) draw(h view.History, now time.Time) string {
	var b strings.Builder
	field := func(name, format string, args ...any) {
		label := l.colours.Paint(terminal.Dim, fmt.Sprintf("%-9s", name))
		fmt.Fprintf(&b, "%s %s\n", label, fmt.Sprintf(format, args...))
	}
	field("event", "%s", l.colours.Paint(terminal.Bold, terminal.Printable(h.EventID)))
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
		status := l.colours.Paint(statusColour(p.Status), terminal.Printable(p.Status))
		attempts := attemptsSaid(&h, p)
		field("status", "%s, %s%s", status, attempts, destinationSuffix(p.Destination))
	}
	if len(h.Processing) == 0 {
		field("status", "stored, queued for no destination")
	}

	b.WriteString("\n")
	l.first, l.attempt = h.CreatedAt, ""
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

// step draws one step. It begins on a line of its own, indented below the start of its attempt.
func (l *timeline) step(s *trail.Step) string {
	const sentenceColumn = len("  +1.234 s  x ") // after the mark
	details := readDetails(s.Details)
	attempt := ""
	if details["attempt"] != nil {
		attempt = details.text("attempt") + " " + cmp.Or(details.text("destination"), event.DefaultDestination)
	}
	within := attempt != "" && attempt == l.attempt && s.Action != trail.ProcessingAttemptStarted
	l.attempt = attempt
	indent := ""
	if within {
		indent = "  "
	}
	sentence := stepSentence(s.Action, details, within)
	lines := []string{sentence}
	if l.width != nil {
		room := l.width() - sentenceColumn - len(indent)
		lines = terminal.Wrap(sentence, room, room-2)
	}
	tone := stepTone(s, details)
	colour := failureColour(tone)
	var b strings.Builder
	fmt.Fprintf(
		&b,
		"%s  %s %s%s\n",
		l.colours.Paint(terminal.Dim, fmt.Sprintf("%10s", stepOffset(l.first, s.Timestamp))),
		l.colours.Paint(toneColour(tone), toneMark(tone)), indent, l.colours.Paint(colour, lines[0]))
	for _, line := range lines[1:] {
		fmt.Fprintf(&b, "%*s%s\n", sentenceColumn+len(indent)+2, "", l.colours.Paint(colour, line))
	}
	return b.String()
}

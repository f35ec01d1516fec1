package command

import (
	"fmt"
	"time"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/terminal"
)

const exactLayout = "2006-01-02T15:04:05.000Z"

// exactTime is a time to the millisecond, in UTC.
func exactTime(t event.Timestamp) string {
	if t.Infinity != 0 {
		return t.String()
	}
	return t.Time.UTC().Format(exactLayout)
}

// relativeTime is how far a time is from now: "in 3s", "3s ago".
func relativeTime(t event.Timestamp, now time.Time) string {
	switch {
	case t.Infinity > 0:
		return "never"
	case t.Infinity < 0:
		return "always"
	case t.Time.After(now):
		return "in " + terminal.ShortDuration(t.Time.Sub(now))
	default:
		return terminal.ShortDuration(now.Sub(t.Time)) + " ago"
	}
}

// steadyTime is relativeTime without the digits that would only flicker on a screen.
func steadyTime(t event.Timestamp, now time.Time) string {
	if t.Infinity == 0 {
		digits := 100 * time.Millisecond
		if d := now.Sub(t.Time).Abs(); d >= 10*time.Second {
			digits = time.Second
		}
		t.Time, now = t.Time.Truncate(digits), now.Truncate(digits)
	}
	return relativeTime(t, now)
}

// stepOffset is how long after the first step an event took another: "+13 ms".
func stepOffset(first, t event.Timestamp) string {
	if first.Infinity != 0 || t.Infinity != 0 {
		return t.String()
	}
	switch d := t.Time.Sub(first.Time); {
	case d != 0 && d.Abs() < time.Millisecond:
		return fmt.Sprintf("%+.1f ms", d.Seconds()*1000)
	case d.Abs() < time.Second:
		return fmt.Sprintf("%+d ms", d.Milliseconds())
	case d.Abs() < time.Minute:
		return fmt.Sprintf("%+.3f s", d.Seconds())
	case d < 0:
		return terminal.ShortDuration(d)
	default:
		return "+" + terminal.ShortDuration(d)
	}
}

// secondsToDuration is a duration that JSON or SQL gives in seconds.
func secondsToDuration(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

package command

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/terminal"
)

// Widths of the table of rates.
const (
	rateTitle  = 12
	rateColumn = 8
	sparkLeast = 8 // a shorter sparkline shows nothing
)

// rateLines is the table of rates and latency, with sparklines if they have room. In brief it has only the vital rates.
func (o *overview) rateLines(room int, brief bool) []terminal.Line {
	columns := []string{"now", "1 min", "5 min", "15 min"}
	for room > 0 && len(columns) > 1 && rateTitle+rateColumn*len(columns) > room {
		columns = columns[:len(columns)-1]
	}
	spark := room - rateTitle - rateColumn*len(columns) - 3
	head := terminal.Pad("PER SECOND", rateTitle)
	for _, c := range columns {
		head += fmt.Sprintf("%*s", rateColumn, c)
	}
	if spark >= sparkLeast {
		head += "   " + terminal.Fit("THE LAST 15 MINUTES", spark)
	}
	lines := []terminal.Line{terminal.ColouredLine(terminal.Dim, head)}
	for _, f := range flows() {
		if brief && !f.vital {
			continue
		}
		r := o.Rates[f.name]
		colour := terminal.Plain
		if f.bad && r.Now != nil && *r.Now > 0 {
			colour = terminal.Red
		}
		title := f.title
		if brief {
			title = strings.TrimSpace(title)
		}
		text := terminal.Pad(title, rateTitle)
		for i, value := range []*float64{r.Now, r.M1, r.M5, r.M15} {
			if i < len(columns) {
				text += fmt.Sprintf("%*s", rateColumn, rateText(value))
			}
		}
		l := terminal.ColouredLine(colour, text)
		if spark >= sparkLeast {
			l = l.And(cmp.Or(colour, terminal.Green),
				"   "+terminal.Sparkline(finishedSteps(f.series(&o.series)), spark))
		}
		lines = append(lines, l)
	}
	known := o.Rates["delivered"].Now != nil
	text := terminal.Pad("latency", rateTitle)
	for _, p := range []struct {
		name string
		ms   *float64
	}{{"p50", o.Latency.P50}, {"p95", o.Latency.P95}, {"p99", o.Latency.P99}, {"worst p99", o.Latency.Max}} {
		text += " " + p.name + " " + terminal.Pad(latencyText(p.ms, known), 7)
	}
	l := terminal.PlainLine(text)
	if rest := room - terminal.Cells(text) - 1; rest >= sparkLeast {
		l = l.And(terminal.Green, " "+terminal.Sparkline(finishedSteps(o.series.LatencyP95), min(rest, spark)))
	}
	return append(lines, l)
}

// staleAfter is the age from which on a count of the queue is shown with its age.
const staleAfter = 15 * time.Second

// leastDepth is how many lines the table of the backlog gets, if it needs them, before the dead letters get any.
const leastDepth = 4

// depthLines is the table of the backlog, by destination and status, in at most so many lines.
func (o *overview) depthLines(now time.Time, most int) []terminal.Line {
	if o.Backlog == nil {
		return []terminal.Line{terminal.PlainLine("What waits is not known yet: no process of Spine has counted it.")}
	}
	head := fmt.Sprintf("%-16s%9s%12s%9s%9s  %s", "DESTINATION", "PENDING", "PROCESSING", "FAILED", "DEAD",
		"OLDEST QUEUED")
	if o.DepthAt != nil && o.DepthAt.Infinity == 0 && now.Sub(o.DepthAt.Time) > staleAfter {
		head += " (counted " + steadyTime(*o.DepthAt, now) + ")"
	}
	if len(o.Backlog) == 0 {
		return []terminal.Line{
			terminal.ColouredLine(terminal.Dim, head), terminal.PlainLine("nothing waits and nothing is dead"),
		}
	}
	oldest := make(map[string]event.Timestamp)
	var names []string
	for _, r := range o.Backlog {
		if !slices.Contains(names, r.Destination) {
			names = append(names, r.Destination)
		}
		t, ok := oldest[r.Destination]
		if r.Status != event.StatusDead && (!ok || r.OldestCreatedAt.UnixMicro() < t.UnixMicro()) {
			oldest[r.Destination] = r.OldestCreatedAt
		}
	}
	lines := []terminal.Line{terminal.ColouredLine(terminal.Dim, head)}
	for i, name := range names {
		if len(lines) == most-1 && i < len(names)-1 {
			more := fmt.Sprintf("… and %d more destinations", len(names)-i)
			return append(lines, terminal.ColouredLine(terminal.Dim, more))
		}
		l := terminal.PlainLine(terminal.Pad(terminal.Fit(terminal.Printable(name), 15), 16))
		for j, status := range event.UnfinishedStatuses() {
			n := o.count(name, status)
			colour := terminal.Plain
			if n > 0 && (status == event.StatusFailed || status == event.StatusDead) {
				colour = statusColour(status)
			}
			l = l.And(colour, fmt.Sprintf("%*s", []int{9, 12, 9, 9}[j], strconv.FormatInt(n, 10)))
		}
		since := "-"
		if t, ok := oldest[name]; ok {
			since = steadyTime(t, now)
		}
		lines = append(lines, l.And(terminal.Plain, "  "+since))
	}
	return lines
}

// noticeLines says in few lines what a person should know.
func (o *overview) noticeLines(now time.Time) (lines []terminal.Line) {
	field := func(colour terminal.Colour, name, text string) {
		lines = append(lines, terminal.ColouredLine(colour, terminal.Pad(name, 16)).And(terminal.Plain, text))
	}
	for _, t := range o.Troubles {
		field(terminal.Red, "trouble", terminal.Printable(t.Says))
	}
	switch {
	case o.OldestReady == nil:
		field(terminal.Plain, "oldest waiting", unknownFigure)
	case *o.OldestReady == 0:
		field(terminal.Plain, "oldest waiting", "nothing is due")
	default:
		colour := terminal.Plain
		if *o.OldestReady >= 10 {
			colour = terminal.Yellow
		}
		field(colour, "oldest waiting", "due for "+terminal.ShortDuration(secondsToDuration(*o.OldestReady)))
	}
	if o.Worker != "" {
		field(terminal.Plain, "worker", o.Worker)
	}
	for _, p := range o.Paused {
		field(terminal.Yellow, "paused", terminal.Printable(p.Destination)+" "+pausedSince(p))
	}
	if len(o.Stuck) > 0 {
		s := o.Stuck[0]
		more := ""
		if n := len(o.Stuck); n == statusRows {
			more = fmt.Sprintf(" (first of %d or more)", n)
		} else if n > 1 {
			more = fmt.Sprintf(" (first of %d)", n)
		}
		name := terminal.Printable(s.EventID) + destinationSuffix(s.Destination)
		field(terminal.Red, "stuck", name+", due "+steadyTime(s.DueAt, now)+": "+terminal.Printable(s.Reason)+more)
	}
	var arrivals []string
	names := slices.Collect(maps.Keys(o.LastArrival))
	slices.SortFunc(names, func(a, b string) int { return o.LastArrival[b].Compare(o.LastArrival[a]) })
	for _, name := range names {
		last := event.Timestamp{Time: o.LastArrival[name]}
		arrivals = append(arrivals, terminal.Printable(name)+" "+steadyTime(last, now))
	}
	if len(arrivals) == 0 {
		arrivals = []string{"nothing has arrived yet"}
	}
	field(terminal.Plain, "last arrival", strings.Join(arrivals, ", "))
	return lines
}

// deadLines lists the last dead letters.
func (o *overview) deadLines(now time.Time) []terminal.Line {
	if len(o.DeadLetters) == 0 {
		return nil
	}
	width := 16
	names := make([]string, len(o.DeadLetters))
	for i, r := range o.DeadLetters {
		names[i] = terminal.Printable(r.EventID) + destinationSuffix(r.Destination)
		width = max(width, min(terminal.Cells(names[i]), longestName)+1)
	}
	head := terminal.Pad("LAST DIED", width) + " " + terminal.Pad("WHEN", 12) + "WHY"
	lines := []terminal.Line{terminal.ColouredLine(terminal.Dim, head)}
	for i, r := range o.DeadLetters {
		name := terminal.Pad(terminal.Fit(names[i], width-1), width)
		line := terminal.PlainLine(name + " " + terminal.Pad(steadyTime(r.UpdatedAt, now), 12))
		lines = append(lines, line.And(terminal.Red, whyDead(r)))
	}
	return lines
}

// frame is one picture of status --watch.
type frame struct {
	overview *overview // nil before the first reading succeeded
	readAt   time.Time // when that was
	away     time.Time // since when readings have failed; zero while they succeed
	failure  string    // why they fail
	interval time.Duration
}

// lowScreen is the number of rows below which a frame is brief.
const lowScreen = 20

// lines draws a frame of so many columns and rows. now is by the clock of this machine.
func (f *frame) lines(columns, rows int, now time.Time) []terminal.Line {
	const clock = "15:04:05 UTC"
	left := "spine status  " + now.UTC().Format(time.DateOnly+" "+clock)
	right := "every " + f.interval.String() + ", q ends it"
	if room := columns - terminal.Cells(left); room >= 2+terminal.Cells(right) {
		left += fmt.Sprintf("%*s", room, right)
	}
	lines := []terminal.Line{terminal.ColouredLine(terminal.Bold, left)}
	if f.away.IsZero() {
		lines = append(lines, nil)
	} else {
		outage := "the database is away since " + f.away.UTC().Format(clock) + ", trying again: " + f.failure
		lines = append(lines, terminal.ColouredLine(terminal.Red, outage))
	}
	if f.overview == nil {
		if f.away.IsZero() {
			lines = append(lines, terminal.PlainLine("reading …"))
		}
		return lines[:min(len(lines), max(0, rows))]
	}
	if !f.away.IsZero() {
		lines = append(lines, terminal.ColouredLine(terminal.Yellow, "as it was at "+f.readAt.UTC().Format(clock)))
	}
	o := f.overview
	// Ages go by the database's clock, which may differ from this machine's: its time at the reading, and the time that
	// has passed since.
	then := now
	if o.At.Infinity == 0 && !o.At.Time.IsZero() {
		then = o.At.Time.Add(max(0, now.Sub(f.readAt)))
	}
	low := rows < lowScreen
	lines = append(lines, o.rateLines(columns, low)...)
	notices, dead := o.noticeLines(then), o.deadLines(then)
	if !low {
		lines = append(lines, nil)
	}
	depth := max(leastDepth, rows-len(lines)-len(notices)-min(len(dead), 3))
	lines = append(lines, o.depthLines(then, depth)...)
	lines = append(lines, notices...)
	if !low && len(dead) > 0 && len(lines)+4 <= rows {
		lines = append(lines, nil)
	}
	if room := rows - len(lines); len(dead) > 0 && room >= 2 {
		lines = append(lines, dead[:min(len(dead), room)]...)
	}
	if len(lines) > rows && rows > 0 {
		hidden := len(lines) - rows + 1
		more := fmt.Sprintf("… %d more lines: the window is too low for them", hidden)
		lines = append(lines[:rows-1], terminal.ColouredLine(terminal.Dim, more))
	}
	return lines
}

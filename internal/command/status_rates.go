package command

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/view"
)

// flowRange is the span of the rates that status shows.
const flowRange = 15 * time.Minute

// flow is one kind of what comes in and goes out.
type flow struct {
	name   string // in JSON
	title  string // for a person; indented if it is part of the line above
	series func(s *view.Series) []*int64
	bad    bool // it should be 0
	vital  bool // a small screen shows it too
}

// flows are all kinds, in the order in which status shows them.
func flows() []flow {
	return []flow{
		{"received", "received", func(s *view.Series) []*int64 { return s.Received }, false, true},
		{"accepted", "  accepted", func(s *view.Series) []*int64 { return s.Accepted }, false, false},
		{"deduplicated", "  duplicates", func(s *view.Series) []*int64 { return s.Deduplicated }, false, false},
		{"conflicts", "  conflicts", func(s *view.Series) []*int64 { return s.Conflicts }, true, false},
		{"rejected", "rejected", func(s *view.Series) []*int64 { return s.Rejected }, true, false},
		{"attempts", "attempts", func(s *view.Series) []*int64 { return s.Attempts }, false, false},
		{"attempts_failed", "  failed", func(s *view.Series) []*int64 { return s.AttemptsFailed }, true, true},
		{"delivered", "delivered", func(s *view.Series) []*int64 { return s.Delivered }, false, true},
		{"died", "died", func(s *view.Series) []*int64 { return s.Died }, true, true},
	}
}

// flowRate is how often something happened a second: in about the last ten seconds, and on average over the minutes
// before now. Null is not known.
type flowRate struct {
	Now *float64 `json:"now"`
	M1  *float64 `json:"1m"`
	M5  *float64 `json:"5m"`
	M15 *float64 `json:"15m"`
}

// latency is how long events took from stored to delivered, in milliseconds.
type latency struct {
	// These three are of the last step in which something was delivered. They are null if nothing was, or if that is
	// not known.
	P50 *float64 `json:"p50"`
	P95 *float64 `json:"p95"`
	P99 *float64 `json:"p99"`
	Max *float64 `json:"p99_most"` // the largest p99 of a step within the last 15 minutes
}

// ratesOf reads rates off an overview.
func ratesOf(o *view.Overview) map[string]flowRate {
	rates := make(map[string]flowRate)
	for _, f := range flows() {
		series := f.series(&o.Series)
		over := func(steps int) *float64 { return averageRate(o, series, steps) }
		step := max(1, o.StepSeconds)
		rates[f.name] = flowRate{Now: over(1), M1: over(60 / step), M5: over(300 / step), M15: over(900/step - 1)}
	}
	return rates
}

// rollupLag is how many steps the rollups may be late before their last figure is no longer that of now.
const rollupLag = 2

// averageRate is the average over a number of whole steps and the step under way. It is nil if one of the whole steps
// is not known.
func averageRate(o *view.Overview, series []*int64, steps int) *float64 {
	last := len(series) - 1
	for late := 0; late < rollupLag && last >= 0 && series[last] == nil; late++ {
		last--
	}
	if last < steps || last >= len(o.Series.At) || series[last] == nil {
		return nil
	}
	// The last step has been counted only as far as the rollups cover it.
	covered := float64(o.StepSeconds)
	if o.CoveredTo != nil && o.CoveredTo.Infinity == 0 {
		covered = min(covered, float64(o.CoveredTo.Time.UnixMilli())/1000-float64(o.Series.At[last]))
	}
	sum, seconds := float64(*series[last]), max(0, covered)
	for i := last - steps; i < last; i++ {
		if series[i] == nil {
			return nil
		}
		sum += float64(*series[i])
		seconds += float64(o.StepSeconds)
	}
	if seconds <= 0 {
		return nil
	}
	average := sum / seconds
	return &average
}

// latencyNow is how long a latency counts as that of now, if nothing was delivered since.
const latencyNow = time.Minute

// latencyOf reads the latency off an overview.
func latencyOf(o *view.Overview) (l latency) {
	s := &o.Series
	for i, p99 := range s.LatencyP99 {
		if p99 == nil {
			continue
		}
		if l.Max == nil || *p99 > *l.Max {
			l.Max = p99
		}
		recent := i < len(s.At) && o.At.Time.Sub(time.Unix(s.At[i], 0)) <= latencyNow
		if recent && i < len(s.LatencyP50) && i < len(s.LatencyP95) {
			l.P50, l.P95, l.P99 = s.LatencyP50[i], s.LatencyP95[i], p99
		}
	}
	return l
}

// unknownFigure stands for a number that is not known.
const unknownFigure = "?"

// rateText is a rate with the digits that matter.
func rateText(r *float64) string {
	switch {
	case r == nil:
		return unknownFigure
	case *r == 0:
		return "0"
	case *r < 0.05:
		return "<0.1"
	case *r < 9.95:
		return strconv.FormatFloat(*r, 'f', 1, 64)
	case *r < 99_999.5:
		return strconv.FormatFloat(*r, 'f', 0, 64)
	default:
		return strconv.FormatFloat(*r/1000, 'f', 0, 64) + "k"
	}
}

// latencyText is a latency. There is none if nothing was delivered, or if that is not known.
func latencyText(ms *float64, known bool) string {
	switch {
	case ms != nil:
		return terminal.ShortDuration(time.Duration(*ms * float64(time.Millisecond)))
	case known:
		return "-"
	default:
		return unknownFigure
	}
}

// finishedSteps are the steps that are over.
func finishedSteps[N any](series []*N) []*N { return series[:max(0, len(series)-1)] }

// figures are rates and latency on one line, as name=value.
func (o *overview) figures() string {
	var b strings.Builder
	for _, f := range flows() {
		fmt.Fprintf(&b, "%s=%s ", f.name, rateText(o.Rates[f.name].Now))
	}
	known := o.Rates["delivered"].Now != nil
	for _, status := range event.UnfinishedStatuses() {
		count := unknownFigure
		if o.Backlog != nil {
			count = strconv.FormatInt(o.count("", status), 10)
		}
		fmt.Fprintf(&b, "%s=%s ", status, count)
	}
	oldest := unknownFigure
	if o.OldestReady != nil {
		oldest = terminal.ShortDuration(secondsToDuration(*o.OldestReady))
	}
	fmt.Fprintf(&b, "oldest_ready=%s p50=%s p95=%s p99=%s", oldest,
		latencyText(o.Latency.P50, known), latencyText(o.Latency.P95, known), latencyText(o.Latency.P99, known))
	return b.String()
}

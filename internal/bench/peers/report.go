package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
)

// row is one figure of the report, measured with several systems.
type row struct {
	Scenario   string
	What       string
	Unit       string  // may be empty
	Goal       goal    `json:"-"` // for Spine; may be the zero value
	TimesRiver float64 // goal for Spine's value ÷ River's, at least; 0 means none
}

// goal bounds a value from one side.
type goal struct {
	sign  string
	value float64
}

func atLeast(v float64) goal { return goal{"≥", v} }
func atMost(v float64) goal  { return goal{"≤", v} }

func (g goal) met(v float64) bool {
	if g.sign == "≤" {
		return v <= g.value
	}
	return v >= g.value
}

// results holds everything that was measured.
type results struct {
	Machine  []string // describes the machine, in lines
	Systems  []string
	Settings []string
	Figures  []figure // in the order in which they were first measured
	Notes    []note
	Failures []string
	Seconds  float64
}

// figure is a row with its values.
type figure struct {
	row
	Values map[string][]float64 // by system, one a round
}

// note holds the remarks of a scenario beside its figures.
type note struct {
	About string
	Lines []string
}

func (r *results) add(what row, system string, value float64) {
	i := slices.IndexFunc(r.Figures, func(f figure) bool { return f.row == what })
	if i < 0 {
		i = len(r.Figures)
		r.Figures = append(r.Figures, figure{what, map[string][]float64{}})
	}
	r.Figures[i].Values[system] = append(r.Figures[i].Values[system], value)
}

func (r *results) note(about, line string) {
	i := slices.IndexFunc(r.Notes, func(n note) bool { return n.About == about })
	if i < 0 {
		i = len(r.Notes)
		r.Notes = append(r.Notes, note{About: about})
	}
	r.Notes[i].Lines = append(r.Notes[i].Lines, line)
}

// write writes the report: the medians beside each other, their ranges, and everything that a
// reader needs to judge them.
func (r *results) write(w io.Writer, short bool) error {
	p := &printer{w: w}
	if short {
		p.line("SHORT RUN: the counts are too small to measure anything by; goals are left out.\n")
	}
	p.line("Medians. The last columns are Spine ÷ River and the goals, for Spine alone and as a multiple of River.\n")
	p.table(r.medians(short))
	p.line("\nRanges over the rounds, least to largest.\n")
	p.table(r.ranges())
	for _, n := range r.Notes {
		p.line("")
		for _, line := range n.Lines {
			p.line("- %s: %s", n.About, line)
		}
	}
	p.line("")
	for _, line := range append(slices.Clone(r.Machine), r.Settings...) {
		p.line("- %s", line)
	}
	p.line("- the run took %.0f minutes", math.Ceil(r.Seconds/60))
	for _, failure := range r.Failures {
		p.line("\nFAILED: %s", failure)
	}
	return p.err
}

func (r *results) medians(short bool) [][]string {
	cells := [][]string{append(append([]string{"", ""}, r.Systems...), "÷ River", "goal")}
	for _, f := range r.Figures {
		line := []string{f.Scenario, strings.TrimSuffix(f.What+", "+f.Unit, ", ")}
		for _, system := range r.Systems {
			cell := ""
			if values := f.Values[system]; len(values) > 0 {
				cell = formatNumber(median(values))
			}
			line = append(line, cell)
		}
		ratio, verdict := f.judge()
		if short {
			verdict = ""
		}
		cells = append(cells, append(line, ratio, verdict))
	}
	return cells
}

// judge compares Spine's median with River's and with the goals.
func (f figure) judge() (ratio, verdict string) {
	spine, river := f.Values["spine"], f.Values["river"]
	if len(spine) == 0 {
		return "", ""
	}
	var verdicts []string
	add := func(goal string, met bool) {
		verdicts = append(verdicts, goal+" "+map[bool]string{true: "yes", false: "NO"}[met])
	}
	if f.Goal != (goal{}) {
		add(f.Goal.sign+" "+formatNumber(f.Goal.value), f.Goal.met(median(spine)))
	}
	if len(river) > 0 && median(river) != 0 {
		times := median(spine) / median(river)
		ratio = formatNumber(times)
		if f.TimesRiver > 0 {
			add("≥ "+formatNumber(f.TimesRiver)+" × River", times >= f.TimesRiver)
		}
	}
	return ratio, strings.Join(verdicts, ", ")
}

func (r *results) ranges() [][]string {
	cells := [][]string{append([]string{"", ""}, r.Systems...)}
	for _, f := range r.Figures {
		line := []string{f.Scenario, f.What}
		for _, system := range r.Systems {
			cell := ""
			switch values := f.Values[system]; len(values) {
			case 0:
			case 1:
				cell = formatNumber(values[0]) + " (once)"
			default:
				cell = formatNumber(slices.Min(values)) + " – " + formatNumber(slices.Max(values))
			}
			line = append(line, cell)
		}
		cells = append(cells, line)
	}
	return cells
}

// formatNumber writes a value with as many digits as it deserves. It separates thousands.
func formatNumber(v float64) string {
	switch {
	case v == math.Trunc(v) && math.Abs(v) < 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case math.Abs(v) < 10:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case math.Abs(v) < 100:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	digits := strconv.FormatFloat(math.Abs(v), 'f', 0, 64)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	if v < 0 {
		return "-" + digits
	}
	return digits
}

// printer writes lines and keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, values ...any) {
	if _, err := fmt.Fprintf(p.w, format+"\n", values...); p.err == nil && err != nil {
		p.err = fmt.Errorf("writing the report: %w", err)
	}
}

// table writes cells as Markdown, aligned so that it reads well as text too. The first line is the
// head.
func (p *printer) table(cells [][]string) {
	widths := make([]int, len(cells[0]))
	for _, line := range cells {
		for i, cell := range line {
			widths[i] = max(widths[i], len([]rune(cell)), 3)
		}
	}
	for n, line := range cells {
		text, rule := "|", "|"
		for i, cell := range line {
			text += fmt.Sprintf(" %-*s |", widths[i], cell)
			rule += strings.Repeat("-", widths[i]+2) + "|"
		}
		p.line("%s", text)
		if n == 0 {
			p.line("%s", rule)
		}
	}
}

func (r *results) writeJSON(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the figures: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil { //nolint:gosec // no secret
		return fmt.Errorf("writing the figures: %w", err)
	}
	return nil
}

// describe records the machine, the server and the settings of the systems.
func (l *lab) describe(ctx context.Context) error {
	r := &l.results
	r.Systems = l.options.systems
	fsync, err := measureFsync(l.server.Dir())
	if err != nil {
		return err
	}
	r.Machine = []string{
		fmt.Sprintf("%d cores for systems, PostgreSQL, load generator and sink together; %s/%s, %s",
			runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version()),
		fmt.Sprintf("PostgreSQL %s, a fresh database for each scenario; 8 kB written and synced in %.2f ms (median)",
			l.server.Binaries().Version, fsync),
		fmt.Sprintf("events of %d bytes, deliveries over HTTP with a time-out of %v; "+
			"most loads last %v after %v of warm-up, drains have a number of events; %d rounds",
			bodySize, deliveryTimeout, l.options.duration, warmUp, l.options.rounds),
	}
	for _, s := range scenarios() {
		if slices.Contains(l.options.only, s.name) {
			r.Machine = append(r.Machine, s.name+": "+s.about)
		}
	}
	var changed string
	err = l.admin.QueryRow(ctx, `
		select string_agg(name || '=' || current_setting(name), ', ' order by name)
		from pg_settings
		where source = 'command line' and name not in ('port', 'listen_addresses', 'unix_socket_directories')
			or sourcefile like '%/postgresql.auto.conf'`).Scan(&changed)
	if err != nil {
		return fmt.Errorf("asking for the server's settings: %w", err)
	}
	r.Settings = []string{
		"PostgreSQL's settings that are not its defaults: " + changed + "; 1 GB of WAL segments to reuse",
	}
	for _, s := range systemsUnderTest() {
		if slices.Contains(r.Systems, s.name) {
			name := strings.TrimSpace(s.name + " " + moduleVersion(s.module))
			r.Settings = append(r.Settings, name+": "+s.settings)
		}
	}
	return nil
}

// moduleVersion returns the version of a module in this program.
func moduleVersion(module string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok || module == "" {
		return ""
	}
	for _, m := range info.Deps {
		if m.Path == module {
			return cmp.Or(m.Version, "unknown")
		}
	}
	return ""
}

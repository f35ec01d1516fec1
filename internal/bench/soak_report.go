package bench

import (
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"
)

// SoakReport holds the results of a long run, and whether its figures stayed flat.
type SoakReport struct {
	Report
	IntervalSeconds float64      `json:"interval_seconds"`
	Samples         []Sample     `json:"samples"`
	Trends          []Trend      `json:"trends"`
	Database        *DatabaseUse `json:"database,omitempty"`
	Remarks         []string     `json:"remarks,omitempty"` // what was not watched, and why
}

// Sample is one interval of a soak.
type Sample struct {
	Seconds               float64         `json:"seconds"` // from the end of the warm-up to the end of the interval
	AcknowledgedPerSecond float64         `json:"acknowledged_per_second"`
	DeliveredPerSecond    float64         `json:"delivered_per_second"`
	Backlog               int64           `json:"backlog"` // acknowledged, not arrived, at the end of the interval
	Errors                int64           `json:"errors"`
	Acknowledge           Quantiles       `json:"acknowledge_latency"` // as in Report
	Arrive                Quantiles       `json:"arrive_latency"`      // as in Delivery
	Processes             []ProcessUse    `json:"processes,omitempty"`
	Database              *DatabaseSample `json:"database,omitempty"`
}

// Quantiles are those of one interval, as in Latency.
type Quantiles struct {
	Count uint64  `json:"count"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
}

func quantilesOf(c *counts) Quantiles {
	return Quantiles{Count: c.total(), P50: milliseconds(c.quantile(0.5)), P99: milliseconds(c.quantile(0.99))}
}

// ProcessUse is what a process used in an interval.
type ProcessUse struct {
	// Name is "target" for the process that answers GET /metrics, "PostgreSQL" for all processes of
	// that server, or the name of a Process.
	Name string `json:"name"`
	// CPU is processor seconds a second: 1 is all of one core.
	CPU float64 `json:"cpu"`
	// MemoryMB is the resident memory at the end of the interval, in units of 10⁶ bytes.
	// PostgreSQL's excludes its shared memory.
	MemoryMB float64 `json:"memory_mb"`
}

// DatabaseSample holds the statistics of the database at the end of an interval. Tuples are
// estimates. Sessions report commits and tuples at most once a second, so these figures are rough
// for intervals of a few seconds.
type DatabaseSample struct {
	LiveTuples      int64 `json:"live_tuples"` // of all tables of the schema spine
	DeadTuples      int64 `json:"dead_tuples"`
	QueueLiveTuples int64 `json:"queue_live_tuples"` // of processing_state
	QueueDeadTuples int64 `json:"queue_dead_tuples"`
	PerEvent
}

// PerEvent is what an acknowledged event cost the database. It excludes our own readings, and
// includes everyone else who used the database meanwhile.
type PerEvent struct {
	WALBytes   float64  `json:"wal_bytes_per_event"` // of the whole server
	Commits    float64  `json:"commits_per_event"`
	Statements *float64 `json:"statements_per_event,omitempty"` // sent by clients; nil without pg_stat_statements
}

// DatabaseUse is what the database did from the first reading to the last.
type DatabaseUse struct {
	PerEvent
	SizeBegin   int64   `json:"size_begin_bytes"`
	SizeEnd     int64   `json:"size_end_bytes"`
	GrowthBytes float64 `json:"growth_bytes_per_event"`
}

// What a Trend compares.
const (
	TrendMemory      = "memory"           // of a process, MB
	TrendDeadTuples  = "dead tuples"      // of the tables
	TrendAcknowledge = "acknowledged p99" // ms
	TrendArrive      = "arrived p50"      // ms
)

// AllTables is the subject of a Trend of dead tuples, beside processing_state.
const AllTables = "all tables"

// Trend compares the first third of the samples with the last, by the median of each.
type Trend struct {
	What  string  `json:"what"`
	Of    string  `json:"of,omitempty"` // the process, or the tables
	First float64 `json:"first"`
	Last  float64 `json:"last"`
	Ratio float64 `json:"ratio"` // Last ÷ First; 0 where First is 0
	// Tolerance is a growth that counts as none: 1 ms, 4 MB, or the number of dead tuples that
	// autovacuum waits for.
	Tolerance float64 `json:"tolerance"`
	// Flat says that Last is at most 1.2 × First, or at most Tolerance above it.
	Flat bool `json:"flat"`
}

const (
	flatRatio       = 1.2
	latencyMsNoise  = 1
	memoryMBNoise   = 4
	fewestForTrends = 3
)

// Trend finds a trend. of may be empty if there is only one of its kind.
func (r SoakReport) Trend(what, of string) (Trend, bool) {
	i := slices.IndexFunc(r.Trends, func(t Trend) bool { return t.What == what && t.Of == of })
	if i < 0 {
		return Trend{}, false
	}
	return r.Trends[i], true
}

// trendsOf compares the samples. last holds the statistics at the end.
func trendsOf(samples []Sample, last statistics) []Trend {
	var all []Trend
	add := func(what, of string, tolerance float64, value func(Sample) (float64, bool)) {
		if t, ok := trendOf(samples, value); ok {
			t.What, t.Of, t.Tolerance = what, of, tolerance
			t.Flat = t.Last <= flatRatio*t.First || t.Last-t.First <= tolerance
			all = append(all, t)
		}
	}
	add(TrendAcknowledge, "", latencyMsNoise, func(s Sample) (float64, bool) {
		return s.Acknowledge.P99, s.Acknowledge.Count > 0
	})
	add(TrendArrive, "", latencyMsNoise, func(s Sample) (float64, bool) { return s.Arrive.P50, s.Arrive.Count > 0 })
	for _, name := range processNames(samples) {
		add(TrendMemory, name, memoryMBNoise, func(s Sample) (float64, bool) {
			u, ok := s.Process(name)
			return u.MemoryMB, ok
		})
	}
	if last.hasTables {
		add(TrendDeadTuples, AllTables, last.tables.threshold, func(s Sample) (float64, bool) {
			return float64(s.database().DeadTuples), s.Database != nil
		})
		add(TrendDeadTuples, queue, last.queue.threshold, func(s Sample) (float64, bool) {
			return float64(s.database().QueueDeadTuples), s.Database != nil
		})
	}
	return all
}

// trendOf compares one value. ok is false if a third has no values.
func trendOf(samples []Sample, value func(Sample) (float64, bool)) (t Trend, ok bool) {
	third := len(samples) / fewestForTrends
	middle := func(samples []Sample) (float64, bool) {
		var values []float64
		for _, s := range samples {
			if v, ok := value(s); ok {
				values = append(values, v)
			}
		}
		return median(values), len(values) > 0
	}
	first, hasFirst := middle(samples[:third])
	last, hasLast := middle(samples[len(samples)-third:])
	if !hasFirst || !hasLast {
		return t, false
	}
	t = Trend{First: first, Last: last}
	if first > 0 {
		t.Ratio = last / first
	}
	return t, true
}

// median returns 0 if there are no values.
func median(values []float64) float64 {
	slices.Sort(values)
	switch n := len(values); {
	case n == 0:
		return 0
	case n%2 == 0:
		return (values[n/2-1] + values[n/2]) / 2
	default:
		return values[n/2]
	}
}

// processNames returns the names in all samples, in order of appearance.
func processNames(samples []Sample) []string {
	var names []string
	for _, s := range samples {
		for _, u := range s.Processes {
			if !slices.Contains(names, u.Name) {
				names = append(names, u.Name)
			}
		}
	}
	return names
}

// Process returns what a process used in the interval.
func (s Sample) Process(name string) (ProcessUse, bool) {
	i := slices.IndexFunc(s.Processes, func(u ProcessUse) bool { return u.Name == name })
	if i < 0 {
		return ProcessUse{}, false
	}
	return s.Processes[i], true
}

func (s Sample) database() DatabaseSample {
	if s.Database == nil {
		return DatabaseSample{}
	}
	return *s.Database
}

// samplesShown limits the lines of samples in a table. JSON has all samples.
const samplesShown = 20

// WriteTable writes the report for people.
func (r SoakReport) WriteTable(w io.Writer) error {
	if err := r.Report.WriteTable(w); err != nil {
		return err
	}
	t := &table{w: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	r.writeSamples(t)
	r.writeTotals(t)
	if len(r.Trends) > 0 {
		t.line("")
		t.line("first and last third\tfirst\tlast\tratio\tflat")
		for _, trend := range r.Trends {
			ratio := ""
			if trend.Ratio > 0 {
				ratio = fmt.Sprintf("%.2f", trend.Ratio)
			}
			t.line("%s\t%s\t%s\t%s\t%s",
				trend.title(), trend.value(trend.First), trend.value(trend.Last), ratio, yesOrNo(trend.Flat))
		}
		t.flush()
		t.line("flat: the median of the last third is at most %g × that of the first, or at most %d ms, %d MB",
			flatRatio, latencyMsNoise, memoryMBNoise)
		if r.Database != nil {
			t.line("or as many dead tuples above it as autovacuum waits for")
		}
	}
	if len(r.Remarks) > 0 {
		t.line("")
	}
	for _, remark := range r.Remarks {
		t.line("%s", remark)
	}
	t.flush()
	return t.err
}

func (r SoakReport) writeSamples(t *table) {
	if len(r.Samples) == 0 {
		return
	}
	names := processNames(r.Samples)
	t.line("")
	head := "at, s\tacknowledged/s\tdelivered/s\tbacklog\terrors\tacknowledged p50\tp99, ms\tarrived p50\tp99, ms"
	for _, name := range names {
		head += "\t" + name + " CPU\tMB"
	}
	if r.Database != nil {
		head += "\tdead tuples\tWAL, B/event"
	}
	t.line("%s", head)
	digits := 0 // digits of the seconds after the point
	if r.IntervalSeconds < 1 {
		digits = 1
	}
	step := (len(r.Samples) + samplesShown - 1) / samplesShown
	for i := step - 1; i < len(r.Samples); i += step {
		s := r.Samples[i]
		line := fmt.Sprintf("%.*f\t%.0f\t%.0f\t%d\t%d\t%.2f\t%.2f\t%.2f\t%.2f",
			digits, s.Seconds, s.AcknowledgedPerSecond, s.DeliveredPerSecond,
			s.Backlog, s.Errors, s.Acknowledge.P50, s.Acknowledge.P99, s.Arrive.P50, s.Arrive.P99)
		for _, name := range names {
			if u, ok := s.Process(name); ok {
				line += fmt.Sprintf("\t%.2f\t%.1f", u.CPU, u.MemoryMB)
			} else {
				line += "\t\t"
			}
		}
		if d := s.Database; d != nil {
			line += fmt.Sprintf("\t%d\t%.0f", d.DeadTuples, d.WALBytes)
		}
		t.line("%s", line)
	}
	t.flush()
}

func (r SoakReport) writeTotals(t *table) {
	names := processNames(r.Samples)
	if len(names) > 0 {
		t.line("")
		t.line("process\tcores, mean\tMB at the end\tmost")
	}
	for _, name := range names {
		var cpu, most, end, n float64
		for _, s := range r.Samples {
			if u, ok := s.Process(name); ok {
				cpu, most, end, n = cpu+u.CPU, math.Max(most, u.MemoryMB), u.MemoryMB, n+1
			}
		}
		t.line("%s\t%.2f\t%.1f\t%.1f", name, cpu/n, end, most)
	}
	t.flush()
	if d := r.Database; d != nil {
		t.line("")
		t.line("database, for each event")
		t.line("  WAL, bytes\t%.0f", d.WALBytes)
		t.line(
			"  growth, bytes\t%.0f\tfrom %.1f to %.1f MB",
			d.GrowthBytes,
			megabytes(d.SizeBegin),
			megabytes(d.SizeEnd),
		)
		t.line("  commits\t%.3f", d.Commits)
		if d.Statements != nil {
			t.line("  statements\t%.3f", *d.Statements)
		}
		t.flush()
	}
}

// String describes the trend in one line.
func (t Trend) String() string {
	flat := "not flat"
	if t.Flat {
		flat = "flat"
	}
	return fmt.Sprintf("%s: %s → %s, %s", t.title(), t.value(t.First), t.value(t.Last), flat)
}

// title names a trend with its unit.
func (t Trend) title() string {
	switch t.What {
	case TrendMemory:
		return "memory of " + t.Of + ", MB"
	case TrendDeadTuples:
		return "dead tuples of " + t.Of
	}
	return t.What + ", ms"
}

func (t Trend) value(v float64) string {
	switch t.What {
	case TrendMemory:
		return fmt.Sprintf("%.1f", v)
	case TrendDeadTuples:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func yesOrNo(b bool) string {
	if b {
		return "yes"
	}
	return "NO"
}

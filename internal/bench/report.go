package bench

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"
)

// Report holds the results of a run. Unless it says otherwise, every figure excludes the warm-up.
type Report struct {
	Scenario string `json:"scenario"` // ingest, e2e, drain or soak
	Target   string `json:"target"`
	RunID    string `json:"run_id"` // begins every event id of the run, followed by "-" and ten digits

	Connections      int     `json:"connections"`
	OfferedPerSecond float64 `json:"offered_per_second"` // open loop; 0: closed loop
	BodyBytes        int     `json:"body_bytes"`
	DuplicateRatio   float64 `json:"duplicate_ratio"`
	ConflictRatio    float64 `json:"conflict_ratio"`
	WarmUpSeconds    float64 `json:"warm_up_seconds"`
	Interrupted      bool    `json:"interrupted"`

	Sent           int64 `json:"sent"`
	SentFresh      int64 `json:"sent_fresh"`      // events never sent before
	SentDuplicates int64 `json:"sent_duplicates"` // acknowledged before, same payload
	SentConflicts  int64 `json:"sent_conflicts"`  // acknowledged before, other payload

	Acknowledged int64            `json:"acknowledged"` // the sum of the next three
	Accepted     int64            `json:"accepted"`
	Deduplicated int64            `json:"deduplicated"`
	Conflicts    int64            `json:"conflicts"`
	Errors       map[string]int64 `json:"errors"`     // all other answers, by kind
	Unanswered   int64            `json:"unanswered"` // under way when the run was interrupted
	Unsent       int64            `json:"unsent"`     // open loop: due, but no connection was free until the end

	Seconds               float64 `json:"seconds"` // from the end of the warm-up to the last acknowledgement
	AcknowledgedPerSecond float64 `json:"acknowledged_per_second"`
	// AcknowledgeLatency runs from the moment a request was due (open loop) or sent (closed loop)
	// to its acknowledgement.
	AcknowledgeLatency Latency `json:"acknowledge_latency"`
	// SendLag is how late requests left (open loop), because the generator was imprecise or all
	// connections were busy. It is part of the latencies.
	SendLag *Latency `json:"send_lag,omitempty"`

	Delivery *Delivery `json:"delivery,omitempty"` // nil for an ingest
}

// Delivery says which of a run's events arrived.
type Delivery struct {
	Delivered      int64 `json:"delivered"`      // acknowledged events that arrived
	Lost           int64 `json:"lost"`           // acknowledged events that did not, by the end of the run
	Repeated       int64 `json:"repeated"`       // events that arrived more than once
	Repeats        int64 `json:"repeats"`        // arrivals beyond an event's first
	Unacknowledged int64 `json:"unacknowledged"` // events that arrived although their POST failed
	Foreign        int64 `json:"foreign"`        // arrivals of other runs
	// PerSecond counts deliveries from the end of the warm-up to the last first arrival. For a drain it
	// counts from the opening, without the deliveries that were under way then.
	PerSecond float64 `json:"per_second"`
	// Latency runs from the moment the POST was due or sent to the first arrival. For a drain it runs
	// from the opening.
	Latency Latency `json:"latency"`
}

// Latency is a distribution in milliseconds. Quantiles are by nearest rank and at most 0.4 % off.
// Max and Mean are exact.
type Latency struct {
	Count uint64  `json:"count"`
	P50   float64 `json:"p50_ms"`
	P90   float64 `json:"p90_ms"`
	P99   float64 `json:"p99_ms"`
	P999  float64 `json:"p999_ms"`
	Max   float64 `json:"max_ms"`
	Mean  float64 `json:"mean_ms"`
}

// SinkReport says what a sink has received.
type SinkReport struct {
	Deliveries    int64     `json:"deliveries"`
	WithoutID     int64     `json:"without_id"`
	DistinctIDs   int64     `json:"distinct_ids"`
	RepeatedIDs   int64     `json:"repeated_ids"`    // ids that came more than once
	MaxIDs        int       `json:"max_ids"`         // how many ids the sink tells apart
	MaxIDsReached bool      `json:"max_ids_reached"` // more came; the two figures above exclude them
	First         time.Time `json:"first,omitzero"`
	Last          time.Time `json:"last,omitzero"`
	PerSecond     float64   `json:"per_second"` // from the first to the last delivery
}

func perSecond(n int64, d time.Duration) float64 {
	if n <= 0 || d <= 0 {
		return 0
	}
	return float64(n) / d.Seconds()
}

func (g *generator) report(scenario string, interrupted bool) Report {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := Report{
		Scenario:         scenario,
		Target:           g.load.Target,
		RunID:            g.load.RunID,
		Connections:      g.load.Connections,
		OfferedPerSecond: g.load.Rate,
		BodyBytes:        g.load.BodySize,
		DuplicateRatio:   g.load.DuplicateRatio,
		ConflictRatio:    g.load.ConflictRatio,
		WarmUpSeconds:    g.load.WarmUp.Seconds(),
		Interrupted:      interrupted,

		SentFresh:      g.sent[fresh].Load(),
		SentDuplicates: g.sent[duplicate].Load(),
		SentConflicts:  g.sent[conflict].Load(),

		Acknowledged: g.acknowledged(),
		Accepted:     g.accepted.Load(),
		Deduplicated: g.deduplicated.Load(),
		Conflicts:    g.conflicts.Load(),
		Errors:       maps.Clone(g.errors),
		Unanswered:   g.unanswered.Load(),
		Unsent:       g.unsent.Load(),

		AcknowledgeLatency: g.latency.latency(),
	}
	r.Sent = r.SentFresh + r.SentDuplicates + r.SentConflicts
	measured := max(0, time.Duration(g.lastAnswer.Load())-g.load.WarmUp)
	r.Seconds = measured.Seconds()
	r.AcknowledgedPerSecond = perSecond(r.Acknowledged, measured)
	if g.load.Rate > 0 {
		lag := g.lag.latency()
		r.SendLag = &lag
	}
	return r
}

// WriteTable writes the report for people.
func (r Report) WriteTable(w io.Writer) error {
	loop := "closed loop"
	if r.OfferedPerSecond > 0 {
		loop = fmt.Sprintf("%g/s offered", r.OfferedPerSecond)
	}
	t := &table{w: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.line("%s of %s: %s, %d connections, %d-byte bodies, run %s",
		r.Scenario, r.Target, loop, r.Connections, r.BodyBytes, r.RunID)
	if r.Interrupted {
		t.line("interrupted: the figures are those until then")
	}
	t.line("")
	t.line("sent\t%d\tin %.1f s after %.1f s of warm-up", r.Sent, r.Seconds, r.WarmUpSeconds)
	if r.SentDuplicates+r.SentConflicts > 0 {
		t.line("  new\t%d", r.SentFresh)
		t.line("  duplicates\t%d", r.SentDuplicates)
		t.line("  conflicts\t%d", r.SentConflicts)
	}
	t.line("acknowledged\t%d\t%.0f/s", r.Acknowledged, r.AcknowledgedPerSecond)
	t.line("  accepted\t%d", r.Accepted)
	t.line("  deduplicated\t%d", r.Deduplicated)
	t.line("  conflict\t%d", r.Conflicts)
	for _, kind := range slices.Sorted(maps.Keys(r.Errors)) {
		t.line("error: %s\t%d", kind, r.Errors[kind])
	}
	t.some("unanswered", r.Unanswered, "under way at the interruption")
	t.some("unsent", r.Unsent, "due, but no connection was free")
	if d := r.Delivery; d != nil {
		t.line("delivered\t%d\t%.0f/s", d.Delivered, d.PerSecond)
		t.line("  lost\t%d", d.Lost)
		t.line("  repeated\t%d", d.Repeated)
		t.some("  unacknowledged", d.Unacknowledged, "arrived although their POST failed")
		t.some("  foreign", d.Foreign, "arrivals that are not of this run")
	}
	t.flush()

	t.line("")
	t.line("latency, ms\tp50\tp90\tp99\tp99.9\tmax\tmean")
	t.latency("acknowledged", r.AcknowledgeLatency)
	if r.Delivery != nil {
		t.latency("arrived", r.Delivery.Latency)
	}
	if r.SendLag != nil {
		t.latency("sent late by", *r.SendLag)
	}
	t.flush()
	return t.err
}

// WriteTable writes the report for people.
func (r SinkReport) WriteTable(w io.Writer) error {
	t := &table{w: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.line("deliveries\t%d\t%.0f/s", r.Deliveries, r.PerSecond)
	t.line("  ids\t%d", r.DistinctIDs)
	t.line("  repeated\t%d", r.RepeatedIDs)
	if r.WithoutID > 0 {
		t.line("  without id\t%d", r.WithoutID)
	}
	if r.MaxIDsReached {
		t.line("only the first %d ids were told apart", r.MaxIDs)
	}
	t.flush()
	return t.err
}

// table writes lines of aligned columns and keeps the first error.
type table struct {
	w   *tabwriter.Writer
	err error
}

func (t *table) line(format string, values ...any) {
	if _, err := fmt.Fprintf(t.w, format+"\n", values...); t.err == nil && err != nil {
		t.err = fmt.Errorf("writing the report: %w", err)
	}
}

// some writes a line if n is not 0.
func (t *table) some(name string, n int64, remark string) {
	if n > 0 {
		t.line("%s\t%d\t%s", name, n, remark)
	}
}

func (t *table) latency(name string, l Latency) {
	t.line("%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f", name, l.P50, l.P90, l.P99, l.P999, l.Max, l.Mean)
}

// flush ends the columns. The next lines get their own.
func (t *table) flush() {
	if err := t.w.Flush(); t.err == nil && err != nil {
		t.err = fmt.Errorf("writing the report: %w", err)
	}
}

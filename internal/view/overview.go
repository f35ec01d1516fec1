package view

import "github.com/webhookspine/spine/internal/event"

// Overview is the state of the queue and the numbers over time, as of one moment.
type Overview struct {
	At           event.Timestamp `json:"at"` // by the database's clock, as all times here
	RangeSeconds int             `json:"range_seconds"`
	StepSeconds  int             `json:"step_seconds"`
	// CoveredFrom and CoveredTo are the ends of the time that the series know. Outside of it their elements are null
	// and never 0.
	CoveredFrom *event.Timestamp `json:"covered_from"`
	CoveredTo   *event.Timestamp `json:"covered_to"`
	Depth       Depth            `json:"depth"`
	// OldestReady is how long the oldest row had been due at Depth.At, those of paused destinations included. It is 0
	// when no row is due, and null where Depth.At is null.
	OldestReady *float64        `json:"oldest_ready_seconds"`
	Paused      []PauseRow      `json:"paused"`   // by destination
	Sources     []SourceArrival `json:"sources"`  // by name
	Troubles    []event.Trouble `json:"troubles"` // what hinders Spine as a whole; empty or null in general
	Series      Series          `json:"series"`
}

// Depth counts what the queue holds that is not completed.
type Depth struct {
	At   *event.Timestamp `json:"at"`   // of the depth sample; null where there is none yet
	Rows []DepthRow       `json:"rows"` // by destination and status, those above 0
}

// DepthRow counts what the queue holds in one status for one destination.
type DepthRow struct {
	Destination     string           `json:"destination"`
	Status          string           `json:"status"` // pending, processing, failed or dead
	Count           int64            `json:"count"`
	OldestCreatedAt event.Timestamp  `json:"oldest_created_at"`
	NextAttemptAt   *event.Timestamp `json:"next_attempt_at"`
}

// PauseRow says that the claims of a destination are paused.
type PauseRow struct {
	Destination string          `json:"destination"`
	PausedAt    event.Timestamp `json:"paused_at"`
	PausedBy    *string         `json:"paused_by"` // database role, and on whose behalf
	Reason      *string         `json:"reason"`    // as far as somebody gave one
}

// SourceArrival says when a source last sent a new event, and what keeps it from sending.
type SourceArrival struct {
	Source        string           `json:"source"`
	LastArrivalAt *event.Timestamp `json:"last_arrival_at"` // null when it never did
	// State is disabled, or broken where a process that receives webhooks cannot use the source, or null.
	State *string `json:"state"`
}

// Series are numbers over time, with an element for each time step. The last time step is still under way. Null means
// unknown, and 0 means none.
type Series struct {
	At []int64 `json:"at"` // beginning of each time step in Unix seconds, ascending

	// Counts of what happened in the time step.
	Received       []*int64 `json:"received"` // accepted, deduplicated and conflicts
	Accepted       []*int64 `json:"accepted"`
	Deduplicated   []*int64 `json:"deduplicated"`
	Conflicts      []*int64 `json:"conflicts"`
	Rejected       []*int64 `json:"rejected"`
	Attempts       []*int64 `json:"attempts"`
	AttemptsFailed []*int64 `json:"attempts_failed"` // with those whose lease expired, and deferred ones
	Delivered      []*int64 `json:"delivered"`
	Died           []*int64 `json:"died"`

	// From stored to delivered in milliseconds, to within a tenth. Retries are included, replays are not. Null also
	// where nothing was delivered.
	LatencyP50 []*float64 `json:"latency_p50_ms"`
	LatencyP95 []*float64 `json:"latency_p95_ms"`
	LatencyP99 []*float64 `json:"latency_p99_ms"`

	// The last depth sample in the time step or, where a sample takes long, up to a minute before it.
	Pending     []*int64   `json:"pending"`
	Processing  []*int64   `json:"processing"`
	Failed      []*int64   `json:"failed"`
	Dead        []*int64   `json:"dead"`
	OldestReady []*float64 `json:"oldest_ready_seconds"`
}

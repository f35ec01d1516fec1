package view

import (
	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
)

// StepFilter narrows the list of steps, which is the audit log. Empty fields do not.
type StepFilter struct {
	EventID, Source, Type string
	Action                trail.Action
	Success               string // success, failure or pending
	Span                         // when the step was made
}

// AttemptFilter narrows the list of attempts. Empty fields do not.
type AttemptFilter struct {
	EventID, Source, Type string
	Outcome               string // success or failure
	Span                         // when it ended
}

// AttemptRow is an attempt to deliver an event that came to an end. A field is null where the audit log does not tell
// it.
type AttemptRow struct {
	Timestamp   event.Timestamp `json:"timestamp"` // when it ended
	ID          int64           `json:"id"`        // trail.Step.ID
	EventID     string          `json:"event_id"`
	Source      string          `json:"source"`
	Destination string          `json:"destination"`
	Attempt     *int64          `json:"attempt"` // 1 for the first since the event was stored or replayed
	Outcome     string          `json:"outcome"` // success or failure
	Status      *int64          `json:"status"`  // HTTP status; null when there was no answer
	DurationMS  *float64        `json:"duration_ms"`
	Error       *string         `json:"error"`
	Answer      *string         `json:"answer"` // the first bytes of the answer's body
}

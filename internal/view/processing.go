package view

import "github.com/webhookspine/spine/internal/event"

// ProcessingFilter narrows the list of processing rows. Empty fields do not.
type ProcessingFilter struct {
	EventID, Source, Type string
	Destination, Status   string
	Span                  // when the event was stored, by which the list is in order
}

// ProcessingRow is where an event stands on its way to one destination.
type ProcessingRow struct {
	Event         int64            `json:"event"` // StoredEvent.ID
	EventID       string           `json:"event_id"`
	Source        string           `json:"source"`
	Destination   string           `json:"destination"`
	Status        string           `json:"status"`
	AttemptCount  int              `json:"attempt_count"`
	NextAttemptAt *event.Timestamp `json:"next_attempt_at"`
	LastAttemptAt *event.Timestamp `json:"last_attempt_at"`
	CompletedAt   *event.Timestamp `json:"completed_at"`
	ErrorMessage  *string          `json:"error_message"`
	Worker        *string          `json:"worker"` // that claimed it last
	CreatedAt     event.Timestamp  `json:"created_at"`
	UpdatedAt     event.Timestamp  `json:"updated_at"`
}

// BacklogRow counts what the queue holds in one status for one destination.
type BacklogRow struct {
	Destination     string           `json:"destination"`
	Status          string           `json:"status"` // never completed, which is not counted
	Count           int64            `json:"count"`
	NextAttemptAt   *event.Timestamp `json:"next_attempt_at"`
	OldestCreatedAt event.Timestamp  `json:"oldest_created_at"`
	PausedAt        *event.Timestamp `json:"paused_at"` // since when claims are paused
}

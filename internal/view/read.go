// Package view holds what reading answers: events, attempts, lists, totals and what breaks a promise, as psql, the API,
// the page and the terminal show them. It knows package event and package trail, and nothing else of Spine.
package view

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
)

// Page says which part of a list is wanted.
type Page struct {
	Limit  int    // rows at most, 1 or more
	Cursor string // what the page before gave as next; empty for the newest rows
}

// Next says how a list goes on after a page.
type Next struct {
	Cursor string // of the next page; empty at the list's end
	// LookedBackTo is the time of the last row that was looked at, where a page
	// ends because it had looked at many and not because it was full. Else nil.
	LookedBackTo *event.Timestamp
}

// Span is a stretch of time. A zero end is open.
type Span struct {
	Since time.Time // inclusive
	Until time.Time // exclusive
}

// Open reports whether s is all of time.
func (s Span) Open() bool { return s.Since.IsZero() && s.Until.IsZero() }

// ErrBadCursor says that a Page's cursor was not given by the list it is used on.
var ErrBadCursor = errors.New("the cursor is not one of this list")

// Filter narrows the list of events. Empty fields do not.
type Filter struct {
	Type, Source string
	Status       string // on the way to any destination
	Span                // when it was stored
}

// AuditFilter narrows the list of audit rows. Empty fields do not.
type AuditFilter struct {
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

// ProcessingFilter narrows the list of processing rows. Empty fields do not.
type ProcessingFilter struct {
	EventID, Source, Type string
	Destination, Status   string
	Span                  // when the event was stored, by which the list is in order
}

// Content is a payload as it is kept: as JSON, as bytes where Postgres cannot
// query it, or as both, where the JSON is what a form says.
type Content struct {
	Payload     json.RawMessage `json:"payload"` // exact text; null where Unqueryable is set
	Unqueryable string          `json:"unqueryable,omitempty"`
	RawBody     []byte          `json:"payload_base64,omitempty"` // exact bytes, where Payload is not the exact text
}

// Stored is an event as the database keeps it.
type Stored struct {
	ID         int64           `json:"id"` // ascending; events.id
	EventID    string          `json:"event_id"`
	Source     string          `json:"source"`
	EventType  string          `json:"event_type"`
	OccurredAt event.Timestamp `json:"occurred_at"`
	CreatedAt  event.Timestamp `json:"created_at"`
	// Status is how far the event has come, by the destination that needs
	// attention most: dead, failed, processing, pending or completed. Null
	// where it is queued for none.
	Status      *string `json:"status"`
	SeenCount   int64   `json:"seen_count"`
	PayloadHash string  `json:"payload_hash"` // hex
	Content
}

// ProcessingRow is where an event stands on its way to one destination.
type ProcessingRow struct {
	Event         int64            `json:"event"` // Stored.ID
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

// AttemptRow is an attempt to deliver an event that came to an end. What the
// audit log does not say of it is null.
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

// Found is an event that a search has found.
type Found struct {
	EventID   string          `json:"event_id"`
	Source    string          `json:"source"`
	EventType string          `json:"event_type"`
	CreatedAt event.Timestamp `json:"created_at"`
	Status    *string         `json:"status"` // Stored.Status
}

// ConflictRow is another payload that came under a known event_id.
type ConflictRow struct {
	PayloadHash string          `json:"payload_hash"` // hex
	EventType   string          `json:"event_type"`
	OccurredAt  event.Timestamp `json:"occurred_at"`
	CreatedAt   event.Timestamp `json:"created_at"` // when it first came
	SeenCount   int64           `json:"seen_count"`
	Content
}

// History is all that is known of one event, as of one moment.
type History struct {
	Stored
	Processing []ProcessingRow `json:"processing"` // by destination
	Timeline   []trail.Step    `json:"timeline"`   // in the order it happened
	// TimelineTruncated says that the timeline has only the newest steps,
	// because there are very many.
	TimelineTruncated bool          `json:"timeline_truncated,omitempty"`
	Conflicts         []ConflictRow `json:"conflicts"` // in the order they came
	Origin
}

// Origin is what is known of an event that did not come in an envelope.
type Origin struct {
	Headers    json.RawMessage `json:"headers"`      // of the request: an object of names and lists of values, secrets left out; null for an envelope
	IDDerived  bool            `json:"id_derived"`   // the sender gave no id: it was made from the body
	SameBodyAs *string         `json:"same_body_as"` // event_id of an earlier event with the same payload, where ids are not signed
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

// NotStoredError says that an event was never stored.
type NotStoredError struct {
	Detail string // a sentence with the last arrival of the source, safe to show
}

func (e *NotStoredError) Error() string { return e.Detail }

// AmbiguousError says that an event_id exists in several sources, of which one
// must be named.
type AmbiguousError struct {
	Detail  string   // a sentence, safe to show
	Sources []string // at least two
}

func (e *AmbiguousError) Error() string { return e.Detail }

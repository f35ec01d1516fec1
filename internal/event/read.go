package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
)

// Timestamp is a moment as the database holds it, which may lie infinitely far
// away: an operator may put an event off until infinity. In JSON it is an RFC
// 3339 time in UTC, "infinity" or "-infinity".
type Timestamp struct {
	Time     time.Time // UTC; meaningless where Infinity is not 0
	Infinity int       // -1, 0 or 1
}

// Scan reads what a database driver made of a timestamptz (database/sql.Scanner).
func (t *Timestamp) Scan(value any) error {
	switch v := value.(type) {
	case time.Time:
		*t = Timestamp{Time: v.UTC()}
		return nil
	case string:
		switch v {
		case "infinity":
			*t = Timestamp{Infinity: 1}
			return nil
		case "-infinity":
			*t = Timestamp{Infinity: -1}
			return nil
		}
	}
	return fmt.Errorf("%v is no timestamp", value)
}

// String is the form that JSON has it in.
func (t Timestamp) String() string {
	switch {
	case t.Infinity > 0:
		return "infinity"
	case t.Infinity < 0:
		return "-infinity"
	}
	return t.Time.Format(time.RFC3339Nano)
}

// MarshalJSON never fails, also not where time.Time would: beyond the year 9999.
func (t Timestamp) MarshalJSON() ([]byte, error) { return []byte(`"` + t.String() + `"`), nil }

// UnixMicro counts microseconds since 1970, the database's resolution.
// Infinities are the ends of int64, which finite times reach in the year 294247.
func (t Timestamp) UnixMicro() int64 {
	switch {
	case t.Infinity > 0:
		return math.MaxInt64
	case t.Infinity < 0:
		return math.MinInt64
	}
	return t.Time.UnixMicro()
}

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
	LookedBackTo *Timestamp
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

// ValidStatus reports whether s is a status of spine.processing_state.
func ValidStatus(s string) bool {
	switch s {
	case "pending", "processing", "completed", "failed", "dead":
		return true
	}
	return false
}

// Filter narrows the list of events. Empty fields do not.
type Filter struct {
	Type, Source string
	Status       string // on the way to any destination
	Span                // when it was stored
}

// AuditFilter narrows the list of audit rows. Empty fields do not.
type AuditFilter struct {
	EventID, Source, Type string
	Action                string
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
	ID         int64     `json:"id"` // ascending; events.id
	EventID    string    `json:"event_id"`
	Source     string    `json:"source"`
	EventType  string    `json:"event_type"`
	OccurredAt Timestamp `json:"occurred_at"`
	CreatedAt  Timestamp `json:"created_at"`
	// Status is how far the event has come, by the destination that needs
	// attention most: dead, failed, processing, pending or completed. Null
	// where it is queued for none.
	Status      *string `json:"status"`
	SeenCount   int64   `json:"seen_count"`
	PayloadHash string  `json:"payload_hash"` // hex
	Content
}

// AuditRow is one step of an event, or something else worth recording, which
// then has no event_id.
type AuditRow struct {
	Timestamp Timestamp       `json:"timestamp"`
	ID        int64           `json:"id"`
	EventID   *string         `json:"event_id"`
	Source    *string         `json:"source"`
	Action    string          `json:"action"`
	Success   string          `json:"success"` // success, failure or pending
	Details   json.RawMessage `json:"details"` // an object
}

// ProcessingRow is where an event stands on its way to one destination.
type ProcessingRow struct {
	Event         int64      `json:"event"` // Stored.ID
	EventID       string     `json:"event_id"`
	Source        string     `json:"source"`
	Destination   string     `json:"destination"`
	Status        string     `json:"status"`
	AttemptCount  int        `json:"attempt_count"`
	NextAttemptAt *Timestamp `json:"next_attempt_at"`
	LastAttemptAt *Timestamp `json:"last_attempt_at"`
	CompletedAt   *Timestamp `json:"completed_at"`
	ErrorMessage  *string    `json:"error_message"`
	Worker        *string    `json:"worker"` // that claimed it last
	CreatedAt     Timestamp  `json:"created_at"`
	UpdatedAt     Timestamp  `json:"updated_at"`
}

// AttemptRow is an attempt to deliver an event that came to an end. What the
// audit log does not say of it is null.
type AttemptRow struct {
	Timestamp   Timestamp `json:"timestamp"` // when it ended
	ID          int64     `json:"id"`        // AuditRow.ID
	EventID     string    `json:"event_id"`
	Source      string    `json:"source"`
	Destination string    `json:"destination"`
	Attempt     *int64    `json:"attempt"` // 1 for the first since the event was stored or replayed
	Outcome     string    `json:"outcome"` // success or failure
	Status      *int64    `json:"status"`  // HTTP status; null when there was no answer
	DurationMS  *float64  `json:"duration_ms"`
	Error       *string   `json:"error"`
	Answer      *string   `json:"answer"` // the first bytes of the answer's body
}

// Found is an event that a search has found.
type Found struct {
	EventID   string    `json:"event_id"`
	Source    string    `json:"source"`
	EventType string    `json:"event_type"`
	CreatedAt Timestamp `json:"created_at"`
	Status    *string   `json:"status"` // Stored.Status
}

// ConflictRow is another payload that came under a known event_id.
type ConflictRow struct {
	PayloadHash string    `json:"payload_hash"` // hex
	EventType   string    `json:"event_type"`
	OccurredAt  Timestamp `json:"occurred_at"`
	CreatedAt   Timestamp `json:"created_at"` // when it first came
	SeenCount   int64     `json:"seen_count"`
	Content
}

// History is all that is known of one event, as of one moment.
type History struct {
	Stored
	Processing []ProcessingRow `json:"processing"` // by destination
	Timeline   []AuditRow      `json:"timeline"`   // in the order it happened
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
	Destination     string     `json:"destination"`
	Status          string     `json:"status"` // never completed, which is not counted
	Count           int64      `json:"count"`
	NextAttemptAt   *Timestamp `json:"next_attempt_at"`
	OldestCreatedAt Timestamp  `json:"oldest_created_at"`
	PausedAt        *Timestamp `json:"paused_at"` // since when claims are paused
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

package view

import (
	"encoding/json"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
)

// EventFilter narrows the list of events. Empty fields do not.
type EventFilter struct {
	Type, Source string
	Status       string // StoredEvent.Status
	Span                // when it was stored
}

// StoredEvent is an event as the database keeps it.
type StoredEvent struct {
	ID         int64           `json:"id"` // ascending; events.id
	EventID    string          `json:"event_id"`
	Source     string          `json:"source"`
	EventType  string          `json:"event_type"`
	OccurredAt event.Timestamp `json:"occurred_at"`
	CreatedAt  event.Timestamp `json:"created_at"`
	// Status is how far the event has come with the destination that needs attention most: dead, failed, processing,
	// pending or completed. It is null where the event is queued for no destination.
	Status      *string `json:"status"`
	SeenCount   int64   `json:"seen_count"`
	PayloadHash string  `json:"payload_hash"` // hex
	Content
}

// Content is a payload as it is kept: as JSON, or as bytes where Postgres cannot query it. A form is kept as both: as
// bytes, and as JSON that says the same.
type Content struct {
	Payload     json.RawMessage `json:"payload"` // exact text; null where Unqueryable is set
	Unqueryable string          `json:"unqueryable,omitempty"`
	RawBody     []byte          `json:"payload_base64,omitempty"` // exact bytes, where Payload is not the exact text
}

// SearchHit is an event that a search has found.
type SearchHit struct {
	EventID   string          `json:"event_id"`
	Source    string          `json:"source"`
	EventType string          `json:"event_type"`
	CreatedAt event.Timestamp `json:"created_at"`
	Status    *string         `json:"status"` // StoredEvent.Status
}

// History is all that is known of one event, as of one moment.
type History struct {
	StoredEvent
	Processing []ProcessingRow `json:"processing"` // by destination
	Timeline   []trail.Step    `json:"timeline"`   // the event's trail, in the order in which it happened
	// TimelineTruncated says that Timeline has only the newest steps, because there are very many.
	TimelineTruncated bool           `json:"timeline_truncated,omitempty"`
	Conflicts         []OtherPayload `json:"conflicts"` // in the order in which they came
	// Explanation is what an operator must know: where the event stands, and each cause for which it waits.
	Explanation []Sentence `json:"explanation"`
	Origin
}

// Origin is what is known of an event that did not come in an envelope.
type Origin struct {
	// Headers of the request are an object of names and lists of values, without secrets; null for an envelope.
	Headers    json.RawMessage `json:"headers"`
	IDDerived  bool            `json:"id_derived"`   // the sender gave no id: it was made from the body
	SameBodyAs *string         `json:"same_body_as"` // where ids are not signed: an earlier event with the same payload
}

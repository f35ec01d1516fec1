package view

import (
	"encoding/json"

	"github.com/webhookspine/spine/internal/event"
)

// ConflictFilter narrows the list of conflicts. Empty fields do not.
type ConflictFilter struct {
	EventID, Source string
	Span            // when the other payload first came
}

// ConflictRow is an event and another payload that came under its id.
type ConflictRow struct {
	EventID     string          `json:"event_id"`
	Source      string          `json:"source"`
	StoredAt    event.Timestamp `json:"stored_at"`   // when the event came
	First       Content         `json:"first"`       // what stays
	Differences []Difference    `json:"differences"` // null where they are not compared
	// NotCompared says why they are not compared. It is empty where they are.
	NotCompared string `json:"not_compared,omitempty"`
	// PayloadsOmitted says that both payloads are null here because they or the page would be too large. The list of one
	// event has them.
	PayloadsOmitted bool `json:"payloads_omitted,omitempty"`
	OtherPayload
}

// Why two payloads are not compared.
const (
	ComparesBytes    = "one of the two is kept as bytes"
	ComparesTooLarge = "too large to compare"
	// ComparesPageFull says that a shorter list, such as that of one event, compares them.
	ComparesPageFull = "the page is full"
)

// OtherPayload is another payload that came under a known event_id.
type OtherPayload struct {
	PayloadHash string          `json:"payload_hash"` // hex
	EventType   string          `json:"event_type"`
	OccurredAt  event.Timestamp `json:"occurred_at"`
	CreatedAt   event.Timestamp `json:"created_at"` // when it first came
	SeenCount   int64           `json:"seen_count"`
	AcceptedAs  *string         `json:"accepted_as"` // id of the event that was made of it; null if none was
	Content
}

// Difference is a place at which two payloads differ.
type Difference struct {
	Path string          `json:"path"`          // JSON pointer (RFC 6901)
	Was  json.RawMessage `json:"was,omitempty"` // in the first; left out where it was not there
	Is   json.RawMessage `json:"is,omitempty"`  // in the other; left out where it is not there
}

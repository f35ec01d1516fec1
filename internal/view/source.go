package view

import (
	"encoding/json"

	"github.com/webhookspine/spine/internal/event"
)

// SourceChange is what putting a source, or applying a file of them, comes to.
type SourceChange struct {
	Source string          `json:"source"`
	Change string          `json:"change"` // added, changed, unchanged, or removed
	From   json.RawMessage `json:"from"`   // settings before; null where it was added
	To     json.RawMessage `json:"to"`     // settings after; null where it was removed
}

// RejectedFilter narrows the list of requests that were kept. Empty fields do
// not.
type RejectedFilter struct {
	Source, Cause, State string
	Span                 // when it came
}

// ConflictFilter narrows the list of conflicts. Empty fields do not.
type ConflictFilter struct {
	EventID, Source string
	Span            // when the other payload first came
}

// ConflictingRow is an event and another payload that came under its id.
type ConflictingRow struct {
	EventID     string          `json:"event_id"`
	Source      string          `json:"source"`
	StoredAt    event.Timestamp `json:"stored_at"`   // when the event came
	First       Content         `json:"first"`       // what stays
	AcceptedAs  *string         `json:"accepted_as"` // id of the event that was made of the other payload; null if none was
	Differences []Difference    `json:"differences"` // null where one of the two cannot be queried
	ConflictRow
}

// Difference is a place at which two payloads differ.
type Difference struct {
	Path string          `json:"path"` // JSON pointer (RFC 6901)
	Was  json.RawMessage `json:"was"`  // in the first; null also where it was not there
	Is   json.RawMessage `json:"is"`   // in the other
}

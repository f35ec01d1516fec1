package view

import "encoding/json"

// SourceChange is what becomes of a source when it is put, or when a file of sources is applied.
type SourceChange struct {
	Source string          `json:"source"`
	Change string          `json:"change"` // added, changed, unchanged, or removed
	From   json.RawMessage `json:"from"`   // settings before; null where it was added
	To     json.RawMessage `json:"to"`     // settings after; null where it was removed
}

// RejectedFilter narrows the list of rejected requests that are kept. Empty fields do not.
type RejectedFilter struct {
	Source, Cause, State string
	Span                 // when it came
}

package view

import "encoding/json"

// Sentence is one of the things that an operator must know of an event, as spine.explain() has it. The command line,
// the API and the page show the same sentences.
type Sentence struct {
	// Topic is what the sentence is about. Of an event that is not stored: not_stored, near, rejected, disabled,
	// arrivals. Of an id that several sources have: ambiguous. Of a stored one: stored, disabled, attempts, standing,
	// by_hand, paused, locked, table_locked, unclaimed, delayed, conflict.
	Topic       string          `json:"topic"`
	Destination *string         `json:"destination"` // null where it is about no single one
	Says        string          `json:"says"`        // it has text from outside
	Facts       json.RawMessage `json:"facts"`       // an object
}

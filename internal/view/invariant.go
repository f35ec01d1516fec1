package view

// Invariant is a promise, and which of the checked events break it.
type Invariant struct {
	Name       string      `json:"invariant"` // a short word
	Meaning    string      `json:"meaning"`   // the promise, a sentence
	Checked    int64       `json:"checked"`   // events
	Violations int64       `json:"violations"`
	Examples   []Violation `json:"examples"` // some of them
}

// Violation says what breaks a promise.
type Violation struct {
	EventID string `json:"event_id"`
	Source  string `json:"source"`
	Detail  string `json:"detail"`
}

package view

// Invariant is a promise, and what of the events looked at breaks it.
type Invariant struct {
	Name       string      `json:"invariant"` // a short word
	Meaning    string      `json:"meaning"`   // the promise, a sentence
	Checked    int64       `json:"checked"`   // events that were looked at
	Violations int64       `json:"violations"`
	Examples   []Violation `json:"examples"` // some of them
}

// Violation is what breaks a promise.
type Violation struct {
	EventID string `json:"event_id"`
	Source  string `json:"source"`
	Detail  string `json:"detail"`
}

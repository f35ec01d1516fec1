package event

import (
	"encoding/json"
	"time"
)

// SourceSettings is a source as it is stored.
type SourceSettings struct {
	Name      string          `json:"source"`
	Settings  json.RawMessage `json:"settings"`    // a JSON object; what it may hold is for package source to say
	Disabled  *Timestamp      `json:"disabled_at"` // since when nothing is taken from it; nil while it is
	CreatedAt Timestamp       `json:"created_at"`
	UpdatedAt Timestamp       `json:"updated_at"`
	UpdatedBy *string         `json:"updated_by"` // database role that changed it last

	LastArrival *Timestamp `json:"last_arrival_at"` // of its last new event; nil if there was none
}

// Rejected is a request that was refused and kept.
type Rejected struct {
	ID      int64
	Source  string // slug
	At      time.Time
	Cause   string // a short word for why
	Status  int    // HTTP status that it was answered with
	Detail  string // the sentence that it was answered with
	Remote  string // address of the client
	Method  string
	Target  string // path and query, secrets left out
	Headers []byte // a JSON object of names and lists of values, secrets left out
	Body    []byte // as it came over the wire
}

// Budget is how much of what a source sends in vain is kept.
type Budget struct {
	Rows  int           // requests at most
	Bytes int64         // of their bodies and headers at most
	Age   time.Duration // for how long
}

// What became of a request that was kept.
const (
	RejectedKept      = "kept"      // nothing yet
	RejectedRequested = "requested" // it is about to be looked at again
	RejectedTakenIn   = "taken_in"  // it was looked at again and is an event now
	RejectedAgain     = "refused"   // it was looked at again, and refused
)

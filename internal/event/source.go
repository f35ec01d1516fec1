package event

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"time"
)

// Request is what somebody sent to a source.
type Request struct {
	Method string
	URL    *url.URL // path and query, as they came
	Header http.Header
	Wire   []byte    // the body as it came, which is what is signed
	Body   []byte    // the body, decompressed
	At     time.Time // when it came
}

// Answer is what a request is answered with that is no event.
type Answer struct {
	Status int
	Header map[string]string
	Body   []byte
}

// UnverifiedError says that a request does not prove where it comes from.
type UnverifiedError struct {
	Cause  string // signature_missing, signature_wrong, timestamp_bad, timestamp_stale, credentials_missing or credentials_wrong
	Detail string // a sentence, safe to show to the sender
}

func (e *UnverifiedError) Error() string { return e.Detail }

// Why a source takes nothing.
var (
	ErrNoSource       = errors.New("there is no source of this name")
	ErrSourceDisabled = errors.New("the source is disabled")
	ErrSourceBroken   = errors.New("the source's settings or secrets cannot be used")
	ErrSourcesUnknown = errors.New("the sources have not been read yet")
)

// ErrNotKept says that no such rejected request is kept.
var ErrNotKept = errors.New("no such rejected request is kept: it may have made room for newer ones")

// SourceSettings is a source as it is stored.
type SourceSettings struct {
	Source      string          `json:"source"`      // slug
	Settings    json.RawMessage `json:"settings"`    // a JSON object; what it may hold is for package source to say
	DisabledAt  *Timestamp      `json:"disabled_at"` // since when nothing is taken from it; null while something is
	CreatedAt   Timestamp       `json:"created_at"`
	UpdatedAt   Timestamp       `json:"updated_at"`
	UpdatedBy   *string         `json:"updated_by"`      // who changed it last
	LastArrival *Timestamp      `json:"last_arrival_at"` // of its last new event; null if there was none
}

// Budget is how much is kept of what a source refused.
type Budget struct {
	Rows  int           // requests at most
	Bytes int64         // of their bodies and headers at most
	Age   time.Duration // for how long
}

// RejectedRequest is a request that was refused and kept.
type RejectedRequest struct {
	ID     int64     `json:"id"` // ascending; 0 until it is stored
	Source string    `json:"source"`
	At     Timestamp `json:"at"`
	Cause  string    `json:"cause"`  // a short word for why
	Status int       `json:"status"` // HTTP status that it was answered with
	Detail string    `json:"detail"` // the sentence that it was answered with
	Remote string    `json:"remote"` // address of the client
	Method string    `json:"method"`
	Target string    `json:"target"` // path and query, secrets left out
	Size   int64     `json:"size"`   // bytes of the body, as it came

	State     string     `json:"state"` // kept, requested, taken_in or refused
	Note      *string    `json:"note"`  // why it was refused again
	EventID   *string    `json:"event_id"`
	SettledAt *Timestamp `json:"settled_at"` // when it was last looked at again

	// Only where one request is asked for.
	Headers json.RawMessage `json:"headers,omitempty"`     // an object of names and lists of values, secrets left out
	Body    []byte          `json:"body_base64,omitempty"` // as it came
	Text    *string         `json:"body,omitempty"`        // the same, where it is text and not compressed
	// Trust says that it is to be taken in without being verified.
	Trust bool `json:"trust,omitempty"`
}

// What became of a request that was kept.
const (
	RejectedKept      = "kept"      // nothing yet
	RejectedRequested = "requested" // somebody asked for it to be looked at again
	RejectedTakenIn   = "taken_in"  // it was looked at again and taken in
	RejectedAgain     = "refused"   // it was looked at again and refused
)

// NoSourceError says that there is no such source.
type NoSourceError struct {
	Detail string // a sentence that names those there are, safe to show
}

func (e *NoSourceError) Error() string { return e.Detail }

// MaxSettings bounds the text of a source's settings, in bytes.
const MaxSettings = 64 << 10

// BadSettingsError says that the settings of a source make no sense.
type BadSettingsError struct {
	Problems []Problem // at least one; Field is the path of a setting, such as verify[0].hash
}

func (e *BadSettingsError) Error() string {
	return (&InvalidError{Problems: e.Problems}).text("the settings of the source: ")
}

// SourceStatus is a source as a process sees it.
type SourceStatus struct {
	Source   string   `json:"source"`
	State    string   `json:"state"`              // open (anybody may send), verified, disabled, or broken
	Problems []string `json:"problems,omitempty"` // why it is broken, or what is wrong though it works
	Preset   string   `json:"preset"`
	Path     string   `json:"path"`            // that the provider posts to, such as /webhook/github
	Steps    []string `json:"steps,omitempty"` // what to enter at the provider
}

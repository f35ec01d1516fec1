package event

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"time"
)

// Request is a request to a source.
type Request struct {
	Method string
	URL    *url.URL // path and query, as they came
	Header http.Header
	Wire   []byte    // the body as it came over the wire; signatures are over these bytes
	Body   []byte    // the body, decompressed
	At     time.Time // when it came; signatures with a time are judged by it
}

// Answer answers a request that holds no event, such as a handshake.
type Answer struct {
	Status int
	Header map[string]string
	Body   []byte
}

// UnverifiedError says that a request does not prove that its source sent it.
type UnverifiedError struct {
	// Cause is signature_missing, signature_wrong, timestamp_bad, timestamp_stale, credentials_missing or
	// credentials_wrong.
	Cause  string
	Detail string // a sentence, safe to show to the sender
}

func (e *UnverifiedError) Error() string { return e.Detail }

// Reasons why a source accepts no requests.
var (
	ErrNoSource       = errors.New("there is no source of this name")
	ErrSourceDisabled = errors.New("the source is disabled")
	ErrSourceClosed   = errors.New("the source default is closed until it has a secret, or DEFAULT_SOURCE is open")
	ErrSourceBroken   = errors.New("the source's settings or secrets cannot be used")
	ErrSourcesUnknown = errors.New("the sources have not been read yet")
)

// ErrNotKept says that no such rejected request is kept.
var ErrNotKept = errors.New("no such rejected request is kept: it may have made room for newer ones")

// ErrBeginning says that a rejected request cannot be replayed.
var ErrBeginning = errors.New("only the beginning of this request's body is kept, so it cannot be replayed")

// SourceSettings is a source as the database has it.
type SourceSettings struct {
	Source      string          `json:"source"`      // slug
	Settings    json.RawMessage `json:"settings"`    // a JSON object; package source says what it may hold
	DisabledAt  *Timestamp      `json:"disabled_at"` // since when it is disabled; null while it is not
	CreatedAt   Timestamp       `json:"created_at"`
	UpdatedAt   Timestamp       `json:"updated_at"`
	UpdatedBy   *string         `json:"updated_by"`      // the operator of the last change
	LastArrival *Timestamp      `json:"last_arrival_at"` // of its last new event; null before the first
}

// Budget limits the rejected requests that are kept of a source.
type Budget struct {
	Rows  int           // number of requests; 0 keeps none
	Bytes int64         // of their bodies and headers
	Age   time.Duration // after which they are deleted
}

// RejectedRequest is a rejected request that was kept.
type RejectedRequest struct {
	ID     int64     `json:"id"` // ascending; 0 until it is stored
	Source string    `json:"source"`
	At     Timestamp `json:"at"`
	Cause  string    `json:"cause"`  // a short word for why
	Status int       `json:"status"` // HTTP status of its answer
	Detail string    `json:"detail"` // the sentence in its answer
	Remote string    `json:"remote"` // the client's address
	Method string    `json:"method"`
	Target string    `json:"target"` // path and query, without secrets
	Size   int64     `json:"size"`   // of the body as it is kept, in bytes
	// BodyBytes is the size of the body as it came or was announced, at least, where only its beginning is kept. Such a
	// request cannot be replayed. It is nil where the whole body is kept.
	BodyBytes *int64 `json:"body_bytes,omitempty"`
	// Verified says whether its source sent it, of one that came while the source was disabled or closed. It is nil
	// where nobody can tell: the source was broken, or takes requests from anyone.
	Verified *bool `json:"-"`

	State     string     `json:"state"` // kept, requested, taken_in or refused
	Note      *string    `json:"note"`  // the result of its last replay, such as why it was rejected again
	EventID   *string    `json:"event_id"`
	SettledAt *Timestamp `json:"settled_at"` // the end of its last replay

	// Only where a single request is read.
	Headers json.RawMessage `json:"headers,omitempty"`     // an object of names and lists of values, without secrets
	Body    []byte          `json:"body_base64,omitempty"` // as it came
	Text    *string         `json:"body,omitempty"`        // the body as text, where it is text and not compressed
	// Trust says that an operator vouches for it: its replay does not verify it.
	Trust bool `json:"trust,omitempty"`
}

// The states of a kept request.
const (
	RejectedKept      = "kept"      // no replay was requested
	RejectedRequested = "requested" // an operator requested a replay, which is not done yet
	RejectedTakenIn   = "taken_in"  // its replay was admitted
	RejectedAgain     = "refused"   // its replay was rejected
)

// NoSourceError says that no source has the name.
type NoSourceError struct {
	Detail string // a sentence that lists the sources, safe to show
}

func (e *NoSourceError) Error() string { return e.Detail }

// MaxSettings bounds the text of a source's settings, in bytes.
const MaxSettings = 64 << 10

// BadSettingsError says what is wrong with the settings of a source.
type BadSettingsError struct {
	Problems []Problem // at least one; Field is the path of a setting, such as verify[0].hash
}

func (e *BadSettingsError) Error() string {
	return listProblems("the settings of the source: ", e.Problems)
}

// SourceReport is what one process that receives webhooks makes of a source, as it tells the others. It never holds a
// secret.
type SourceReport struct {
	Process    string    `json:"-"`
	Source     string    `json:"source"`
	SettingsAt Timestamp `json:"settings_at"` // UpdatedAt of the settings that this is about
	State      string    `json:"state"`       // as in SourceStatus
	Problems   []string  `json:"problems"`    // as in SourceStatus; not nil
}

// SourceReports are the processes that are alive, sorted by name, and what they make of sources.
type SourceReports struct {
	Processes []string
	Reports   []SourceReport
}

// SourceStatus is the state of a source in one process.
type SourceStatus struct {
	Source   string   `json:"source"`
	State    string   `json:"state"`              // open (nothing is verified), verified, closed, disabled or broken
	Problems []string `json:"problems,omitempty"` // why it is broken, or warnings about one that works
	Preset   string   `json:"preset"`
	Path     string   `json:"path"`            // where the provider posts to, such as /webhook/github
	Steps    []string `json:"steps,omitempty"` // what to enter at the provider
}

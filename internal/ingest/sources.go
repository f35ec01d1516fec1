package ingest

import (
	"net/http"
	"net/url"

	"github.com/webhookspine/spine/internal/event"
)

// Sources finds sources by name. Lookup never blocks and is safe for concurrent use. Its error is event.ErrNoSource,
// event.ErrSourceDisabled, event.ErrSourceClosed or event.ErrSourcesUnknown, or wraps event.ErrSourceBroken.
type Sources interface {
	Lookup(name string) (Source, error)
	// Stray returns how to keep a request to a source that takes none now, since it is disabled or broken.
	Stray(name string) Stray
}

// Stray is how to keep a request to a source that takes none now.
type Stray struct {
	Source   Source   // verifies it; nil where nobody can tell who sent it
	Redactor Redactor // nil where nobody knows which headers hold secrets
	Kept     event.Budget
}

// Redactor keeps secrets out of what is kept of a request. It is safe for concurrent use.
type Redactor interface {
	// Redact, RedactTarget and RedactMethod return what may be kept of a request, without secrets: its headers as a
	// JSON object, its path and query, and its method.
	Redact(h http.Header) []byte
	RedactTarget(u *url.URL) string
	RedactMethod(method string) string
}

// Source verifies and reads the requests that one provider sends. It is safe for concurrent use.
type Source interface {
	// Verify checks that the source sent a request, by its Wire. The error is an *event.UnverifiedError, which the
	// sender is shown.
	Verify(r *event.Request) error
	// Handshake answers a request with which the provider checks that the address is ours. ok is false where the
	// request is not one.
	Handshake(r *event.Request) (answer event.Answer, ok bool)
	// Read makes events of a request's Body: one, or any number of a batch. Its error is an *event.SyntaxError or an
	// *event.InvalidError. The sender is shown both.
	Read(r *event.Request) (events []event.Event, batch bool, err error)

	Allowed() []string       // methods besides POST, for handshakes
	SingleHeaders() []string // that must not come twice
	InsistsOnJSON() bool     // whether other content types are rejected
	Challenge() string       // WWW-Authenticate for who is not verified; empty for none
	SignsBody() bool         // whether headers must not change what a body means: its signature covers the body
	Policy() Policy
	Redactor
}

// Policy is how a source is treated.
type Policy struct {
	RejectConflicts bool         // answer 409 to a conflict, whose evidence is kept either way
	Verified        Rate         // of verified requests
	Address         Rate         // of the requests of one client address, verified or not
	Kept            event.Budget // for rejected requests that are kept
}

// Rate limits requests. The zero value sets no limit.
type Rate struct {
	PerSecond float64 // no limit where it is 0 or less
	Burst     int     // at once; 0 means the requests of one second, rounded up
}

package ingest

import (
	"net/http"
	"net/url"

	"github.com/webhookspine/spine/internal/event"
)

// Sources knows who may send. Lookup never waits; its error is
// event.ErrNoSource, event.ErrSourceDisabled, event.ErrSourcesUnknown, or wraps
// event.ErrSourceBroken.
type Sources interface {
	Lookup(name string) (Source, error)
}

// Source verifies and reads the requests of one sender. It is used by many
// goroutines.
type Source interface {
	// Verify checks where a request comes from, by its Wire. The error is an
	// *event.UnverifiedError, which is shown to the sender.
	Verify(r *event.Request) error
	// Handshake answers a request by which the provider asks whether it may
	// send; it is not ok where the request is none.
	Handshake(r *event.Request) (answer event.Answer, ok bool)
	// Read makes events of a request, of a batch any number. Its error is an
	// *event.SyntaxError or an *event.InvalidError; both are shown to the sender.
	Read(r *event.Request) (events []event.Event, batch bool, err error)

	Allowed() []string       // methods besides POST, for handshakes
	SingleHeaders() []string // that must not come twice
	InsistsOnJSON() bool     // whether other content types are refused
	Policy() Policy

	// Redact and RedactTarget return what may be kept of a request, without
	// secrets: headers as a JSON object, path and query.
	Redact(h http.Header) []byte
	RedactTarget(u *url.URL) string
}

// Policy is how a source is treated.
type Policy struct {
	RefuseConflicts bool         // answer 409 to a conflict; its evidence is kept either way
	Verified        Rate         // of requests that were verified
	Address         Rate         // of those of one client address, verified or not
	Kept            event.Budget // of what is kept of refused requests
}

// Rate is how many requests are taken. Zero means no limit.
type Rate struct {
	PerSecond float64
	Burst     int // at once; 0 for a second's worth
}

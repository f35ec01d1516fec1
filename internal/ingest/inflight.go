package ingest

import (
	"errors"
	"io"

	"github.com/webhookspine/spine/internal/event"
)

// The bytes of all requests in flight are bounded, so that Spine's memory is. A request reserves room for its body as
// the body arrives, and gives it back with its answer.

// errInFlight says that there is no room for more bytes now.
var errInFlight = errors.New("too many bytes in flight")

// reserveStep is how many bytes a request reserves at a time.
const reserveStep = 32 << 10

// reserve reserves room for n more bytes of a request, and reports whether there was any. It is called for bytes that
// have arrived, never for bytes that a sender only announces.
func (g *gate) reserve(a *arrival, n int64) bool {
	a.bytes += n
	if a.bytes <= a.reserved {
		return true
	}
	more := (a.bytes - a.reserved + reserveStep - 1) / reserveStep * reserveStep
	if !g.inFlight.TryAcquire(more) {
		return false
	}
	a.reserved += more
	return true
}

// release gives back the room that a request has reserved, and drops its bytes.
func (g *gate) release(a *arrival) {
	g.inFlight.Release(a.reserved)
	a.reserved, a.request = 0, event.Request{}
}

// reservingReader reserves room for the bytes that it reads.
type reservingReader struct {
	io.Reader
	gate    *gate
	arrival *arrival
}

func (r *reservingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 && !r.gate.reserve(r.arrival, int64(n)) {
		return 0, errInFlight
	}
	return n, err
}

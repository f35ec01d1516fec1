// Package source knows who may send and how to read what they send: it verifies
// a request by the settings of its source, answers the handshakes of providers,
// and turns what was sent into one or several event.Event, or says why it cannot.
// It also signs requests as providers do, so that a source can be tried.
//
// It promises that nothing is taken from a request that does not prove where it
// comes from, that signatures and tokens are compared in constant time over the
// bytes as they came, and that no secret is in anything that it returns, logs or
// stores: settings hold references to secrets. A request is judged by the time
// at which it came, which it carries with it.
//
// It promises too that an event it returns can be stored as it is: the id and the
// type are valid text within their limits, the time fits Postgres and RFC 3339,
// the nesting and exponents of a payload of JSON are bounded, and where Postgres
// could not hold that payload as json the event says so. Verifying and reading
// depend on the request and the settings alone: no clock, no state, no I/O. Only
// the Registry has these, and follows the sources as they change.
//
// It must not know of servers, compression or the database. Bodies arrive here
// within the size limit, as they came and decompressed.
package source

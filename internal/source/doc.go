// Package source knows who may send and how to read what they send: it turns
// the body of a request into an event.Event, or says why it cannot.
//
// It promises that an event it returns can be stored as it is: the id and the
// type are valid text within their limits, the time fits Postgres and RFC 3339,
// the payload is a JSON object whose nesting and exponents are bounded, and
// where Postgres could not hold that payload as json the event says so. Reading
// depends on the body alone: no clock, no state, no I/O.
//
// It must not know of HTTP, compression or the database. Bodies arrive here
// decompressed and within the size limit.
package source

// Package api answers questions about what Spine holds, as JSON over HTTP:
// the lists of events, of audit rows and of the queue, and the life of one
// event. It also guards what only the operator may see.
//
// It promises that a question takes a bounded time and a bounded amount of
// memory, that payloads are shown as they were received, and that a refusal is
// a problem (RFC 9457) that says what to do. It changes nothing, and knows the
// database only through the Reader interface.
package api

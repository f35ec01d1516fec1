// Package api answers questions about what Spine holds, as JSON over HTTP: the
// lists of events, of audit rows, of attempts and of the queue, the life of one
// event, and which events have an id like this. It has events delivered again,
// and guards what only the operator may see or do.
//
// It promises that a question takes a bounded time and a bounded amount of
// memory, that payloads are shown as they were received, and that a refusal is
// a problem (RFC 9457) that says what to do. It knows the database only through
// the interfaces Reader and Operator.
package api

// Package api is what an operator reads and does over HTTP, as JSON. Handler lists events, steps, attempts and the
// queue, shows one event, and replays it. SourceHandler does the same for sources, rejected requests and conflicts.
// Stream sends the audit log as it grows. Guard lets only the operator in.
//
// It promises that each request takes a bounded time and a bounded amount of memory, and that payloads are shown as
// they were received. A rejection is a problem (RFC 9457) that says what to do.
//
// It knows the database only through interfaces: Reader, Operator, SourceReader, SourceOperator and trail.Reader.
package api

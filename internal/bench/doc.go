// Package bench puts load on a running system and reports what it took: how
// fast events are acknowledged, how long they take from POST to arrival, and
// whether any were lost or repeated on the way.
//
// It promises that it measures the system rather than itself: requests are
// assembled beforehand, latencies under a constant rate are counted from the
// moment a request was due (so that a stalled system cannot hide its stall by
// holding up the generator), and how late the generator itself was is in the
// report. It must know nothing of Spine but its front: POST /webhook with the
// envelope, answered with a JSON status. Any system with that front, which
// delivers by POSTing to a URL, can be measured. A soak also reads
// Prometheus' process metrics and PostgreSQL's statistics, those of the tables
// in schema spine, and leaves out what it does not find.
package bench

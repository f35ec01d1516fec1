// Package bench puts load on a running system and measures it: how fast it acknowledges events, how
// long they take from POST to arrival, and whether any were lost or repeated on the way.
//
// It promises to measure the system rather than itself. It assembles requests beforehand. Under a
// constant rate it counts latency from the moment a request was due, so a stalled system cannot
// hide its stall by holding up the generator. The report says how late the generator itself was.
//
// It must know nothing of Spine but its front: POST /webhook with the envelope, answered with a
// JSON status. It can measure any system that has that front and delivers by POSTing to a URL. A
// soak also reads Prometheus' process metrics, and PostgreSQL's statistics of the tables in schema
// spine; it leaves out what it does not find.
package bench

// Package ingest is the first stage: HTTP in, group commit, and the answer
// after the commit.
//
// It promises that a 2xx answer means that the event is committed, that a 4xx
// is never given for a fault of ours, and that one bad request costs its
// neighbours nothing. It holds a bounded number of events in memory and
// refuses more with 503. It knows how to store events only through the Store
// interface, and how to read a body only through a Read function.
package ingest

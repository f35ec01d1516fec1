// Package ingest is the stage that takes requests in: HTTP, the gate, group commit, and the answer after the commit.
//
// It promises that a 2xx answer means that the events are committed, that a fault of ours is never answered 4xx, and
// that one bad request costs its neighbours nothing. It holds a bounded number of events and bytes in memory and
// answers 503 beyond that.
//
// Every request passes the same gate in the same order: one from the network, a rejected one that is replayed, and a
// dry run. Only the first is charged to rate limits, only a replay can be trusted, and only a dry run stores nothing.
//
// It must not know the database, providers or settings: it stores through Store and verifies through Source.
package ingest

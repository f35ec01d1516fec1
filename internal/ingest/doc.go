// Package ingest receives requests: HTTP, the gate, group commit, and the answer after the commit.
//
// A 2xx answer promises that the events are committed. A fault of ours is never answered 4xx. One bad request costs its
// neighbours nothing. Ingest holds a bounded number of events and bytes in memory and answers 503 beyond that.
//
// Every request passes the same gate in the same order: one from the network, a rejected one that is replayed, and a
// dry run. Only the first is charged to rate limits, only a replay can be trusted, and only a dry run stores nothing.
//
// It must not know the database, providers or settings: it stores through Store and verifies through Source.
package ingest

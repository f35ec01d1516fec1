// Package ingest receives requests: HTTP, the gate, group commit, and the answer after the commit.
//
// A 2xx answer promises that the events are committed. A fault of ours is never answered 4xx. One bad request costs its
// neighbours nothing. Ingest holds a bounded number of events and bytes in memory and answers 503 beyond that.
//
// Every request passes the same gate in the same order. There are four kinds: a request from the network, a replay of a
// rejected one, a signed sample ([Handler.Admit]), and a dry run. Only the first is charged to rate limits. Only a
// replay can be trusted. A dry run never stores. A replay and a sample have the same limit on their body as a request
// from the network.
//
// It must not know the database, providers or settings: it stores through Store and verifies through Source.
package ingest

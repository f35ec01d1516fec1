// Package mockapi is a third-party API that fails on purpose. It is a destination for trying Spine
// out, and for end-to-end tests.
//
// Its statistics say exactly what it answered. Its failures are real ones on the wire: statuses,
// silence, cut connections. Its memory stays bounded however long it runs. It must not know Spine:
// it sees HTTP requests that may carry an id, and that may say how to answer them.
package mockapi

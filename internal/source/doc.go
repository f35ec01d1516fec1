// Package source knows the sources: who may send, and how to read their requests. It verifies a request by the settings
// of its source and makes events of it, or says why it cannot. It answers the handshakes of providers. It also signs
// requests as providers do, so that a source can be tried. README.md in this folder is for its users.
//
// It promises:
//   - It takes nothing from a request that does not prove where it comes from.
//   - It compares signatures and tokens in constant time, over the bytes as they came.
//   - It returns, logs and stores no secret: settings hold references to secrets, and no reader sees a header that
//     carries a credential or a signature.
//   - Headers that no signature covers do not change what a signed body means.
//   - It judges a request by the time of its arrival, which the request carries with it.
//   - An event that it returns can be stored as it is. Id and type are valid text within their limits. The time fits
//     PostgreSQL and RFC 3339. The nesting and exponents of JSON are bounded. Where PostgreSQL cannot store the
//     payload as json, the event says so.
//
// Verifying and reading depend on the request and the settings alone: they use no clock, no state and no I/O. Only the
// Registry has these, and follows the sources as they change.
//
// It must not know of servers, compression or the database. Bodies arrive here within the size limit, as they came and
// decompressed.
package source

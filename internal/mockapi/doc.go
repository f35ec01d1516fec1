// Package mockapi is the third-party API that fails on purpose: something to
// deliver to when trying Spine out, and the far side of its end-to-end tests.
//
// It promises that what it says it answered is what it answered, that its
// failures are real ones on the wire (statuses, silence, cut connections), and
// that its memory stays bounded however long it runs. It must not know Spine:
// it sees HTTP requests that may carry an id, and say how they want to be
// answered.
package mockapi

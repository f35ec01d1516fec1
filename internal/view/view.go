// Package view holds what reading answers: events, attempts, lists, totals and what breaks a promise, as psql, the API,
// the page and the terminal show them. It promises that a row has the same fields and names everywhere. It knows
// packages event and trail, and nothing else of Spine.
package view

import (
	"errors"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// Page says which part of a list is wanted.
type Page struct {
	Limit  int    // rows at most, 1 or more
	Cursor string // Next.Cursor of the page before; empty for the newest rows
}

// Next says how a list goes on after a page.
type Next struct {
	Cursor string // of the next page; empty at the list's end
	// LookedBackTo is how far back the page has scanned, where it ends because it had scanned much and not because it
	// was full. Else it is nil.
	LookedBackTo *event.Timestamp
}

// Span is a stretch of time. A zero end is open.
type Span struct {
	Since time.Time // inclusive
	Until time.Time // exclusive
}

// Open reports whether s is all of time.
func (s Span) Open() bool { return s.Since.IsZero() && s.Until.IsZero() }

// ErrBadCursor says that a Page's cursor is not one of the list on which it is used.
var ErrBadCursor = errors.New("the cursor is not one of this list")

// ErrTooSlow says that the database took longer than a read may.
var ErrTooSlow = errors.New("the database did not answer in time")

// ErrNoDestination says that a destination was named that does not exist.
var ErrNoDestination = errors.New("there is no such destination")

// Names are values that events have, for those who choose among them.
type Names struct {
	Sources      []string `json:"sources"`
	Destinations []string `json:"destinations"`
	Types        []string `json:"types"` // of the newest events
}

// NotStoredError says that an event is not stored.
type NotStoredError struct {
	Detail      string     // sentences, safe to show: near ids, rejected requests, the last arrival of the source
	Explanation []Sentence // the same one by one, where the event itself was asked for
}

func (e *NotStoredError) Error() string { return e.Detail }

// AmbiguousError says that an event_id exists in several sources, of which one must be named.
type AmbiguousError struct {
	Detail  string   // a sentence, safe to show
	Sources []string // at least two
}

func (e *AmbiguousError) Error() string { return e.Detail }

// Package event holds the nouns that flow through Spine: an Event comes in,
// the store answers with a Receipt, a worker is handed a Job and hands back a
// Result. It imports only the standard library, so that every stage can speak
// about the same things without knowing the other stages.
package event

import (
	"errors"
	"time"
)

// DefaultSource is the source that POST /webhook feeds.
const DefaultSource = "default"

// DefaultDestination is the destination that every event is queued for.
const DefaultDestination = "default"

// HashSize is the length in bytes of an event's payload hash (SHA-256).
const HashSize = 32

// Event is one webhook, read and validated, ready to be stored.
type Event struct {
	Source     string    // slug of the sender: [a-z0-9][a-z0-9_-]{0,62}
	ID         string    // 1 to 255 code points, no control characters; unique within Source
	Type       string    // 1 to 100 code points
	OccurredAt time.Time // as the sender says it

	// Payload is the JSON text of the payload, byte for byte as it was sent.
	Payload []byte
	// Unqueryable says why Postgres cannot hold Payload as json; it is empty
	// where it can. An unqueryable payload is kept and delivered as bytes.
	Unqueryable string
	// Hash is the SHA-256 of the payload's canonical form (sorted names, no
	// white space, numbers as written), or of its exact bytes where
	// Unqueryable is set.
	Hash [HashSize]byte

	// What follows is only there for what did not come in Spine's own envelope.

	// Headers are those of the request: a JSON object of names and lists of
	// values, with secrets left out.
	Headers []byte
	// Raw is the body byte for byte, where Payload is not: that of a form, whose
	// fields Payload holds.
	Raw        []byte
	IDDerived  bool // the sender gave no id: ID was made from the body
	IDUnsigned bool // whoever has seen one request could send its body under another id
}

// Outcome says what storing an Event came to. The values are the ones the
// database function spine.ingest returns and the ones a sender is shown.
type Outcome string

// The outcomes of storing an event.
const (
	Accepted     Outcome = "accepted"     // new: stored and queued
	Deduplicated Outcome = "deduplicated" // known id, same payload
	Conflict     Outcome = "conflict"     // known id, other payload: the first stays
)

// Receipt is the store's answer for one Event; it exists only after the commit.
type Receipt struct {
	Outcome Outcome
}

// Job is one claimed delivery: an event, the destination it goes to, and the
// lease under which this process may deliver it.
type Job struct {
	Event       int64     // events.id
	Destination string    // slug
	Lease       int64     // fencing token: every write about this attempt must carry it
	Attempt     int       // 1 for the first attempt since the event was stored or replayed
	DueAt       time.Time // when it had fallen due, by the database's clock

	Source      string
	ID          string // event_id
	Type        string
	OccurredAt  time.Time
	Payload     []byte // exact bytes, as received
	Unqueryable bool   // true where Payload is not held as json in the database
	Raw         []byte // the body byte for byte, where Payload is what could be read out of it; nil where Payload is the body
}

// Class sorts the end of a delivery attempt by what should happen next.
type Class int

// The classes of a Result.
const (
	Done     Class = iota // the destination took the event (any 2xx)
	TryAgain              // it may take it later
	GiveUp                // no retry can mend this answer
)

func (c Class) String() string {
	switch c {
	case Done:
		return "done"
	case TryAgain:
		return "try again"
	case GiveUp:
		return "give up"
	}
	return "unknown"
}

// Result is what one delivery attempt came to. It knows nothing of retries.
type Result struct {
	Class      Class
	Status     int           // HTTP status; 0 when there was no answer
	Answer     string        // the first bytes of the answer's body, as valid text without NUL
	Error      string        // why it is not Done, in one line; empty when Done
	RetryAfter time.Duration // what the destination asked for, 0 to 1 h; 0 when it asked for nothing
	Duration   time.Duration // from the start of the attempt to its end
}

// Disposition says what becomes of a queued event after an attempt. The
// values are the statuses the database function spine.settle takes.
type Disposition string

// The dispositions of an attempt.
const (
	Completed Disposition = "completed" // delivered
	Failed    Disposition = "failed"    // to be tried again after a delay
	Dead      Disposition = "dead"      // not to be tried again
)

// Settlement records what a delivery attempt came to and what follows from it.
type Settlement struct {
	Job         Job
	Result      Result
	Disposition Disposition
	Delay       time.Duration // until the next attempt; only where Failed
}

// LeaseState says how a write under a lease ended.
type LeaseState int

// The ends of a write under a lease.
const (
	LeaseHeld   LeaseState = iota // the write counts
	LeaseLost                     // the write changed nothing and never will
	LeaseLocked                   // somebody else has the row locked: nothing was decided, try again
)

// ErrLocked says that somebody else keeps a row of a batch locked: trying it
// again may help, and its neighbours are not at fault.
var ErrLocked = errors.New("somebody else has a row locked")

// ErrInvalidData marks an error of the store that lies in the data: trying the
// same data again cannot help, and its neighbours in a batch are not at fault.
var ErrInvalidData = errors.New("the database rejects the data")

// Claim is a worker's look at the queue: it leases what is due, oldest first,
// and takes back leases that have run out.
type Claim struct {
	Destination string        // slug: whose events
	Limit       int           // how many at most, leases that have run out included: the worker's free slots
	Lease       time.Duration // how long the leases hold
	Worker      string        // who claims, as audited
	// Delays is the retry policy for leases that have run out: element n is the
	// delay after failed attempt n+1, and there are len(Delays)+1 attempts in all.
	Delays []time.Duration
	Low    time.Time // nothing that fell due before is looked at; the zero time looks at all
}

// Claimed is what a look at the queue came to. Its times go by the database's
// clock, which is the only one the queue knows.
type Claimed struct {
	Jobs    []Job
	Expired []Job         // leases that had run out and were taken back; Attempt is the attempt they spent
	Now     time.Time     // the database's clock after the claim
	NextDue time.Duration // until the next retry or the end of a lease, where that is soon; else 0: look again within a second
}

// Rejection sums up refused requests of one kind.
type Rejection struct {
	Source string    // slug, empty where the request named none that exists
	Cause  string    // a short word for why
	Status int       // HTTP status they were answered with
	Count  int64     // how many
	Since  time.Time // when the first of them came
}

// Expired is what one batch of retention came to.
type Expired struct {
	LookedAt int   // old events
	Deleted  int   // of them; the others still wait, changed since, or were locked
	Last     int64 // events.id of the last one looked at; only with More
	More     bool  // whether there may be old events after Last
}

// Sample is a reading of the state of the queue and of the sources.
type Sample struct {
	OldestReady  time.Duration        // for how long the oldest claimable event has been due; 0 when none is
	LastArrivals map[string]time.Time // by source; a source that never sent anything is absent
}

// ValidStatus reports whether s is a status of spine.processing_state.
func ValidStatus(s string) bool {
	switch s {
	case "pending", "processing", "completed", "failed", "dead":
		return true
	}
	return false
}

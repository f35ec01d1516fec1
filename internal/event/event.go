// Package event holds the nouns that flow through Spine. An Event comes in, the store answers with a Receipt, a worker
// gets a Job, and a delivery attempt ends with a Result.
//
// It must import only the standard library, so that every stage can use the same nouns without knowing other stages.
package event

import (
	"errors"
	"fmt"
	"time"
)

// DefaultSource is the source of POST /webhook.
const DefaultSource = "default"

// DefaultDestination is the destination that every event is queued for.
const DefaultDestination = "default"

// HashSize is the length in bytes of an event's payload hash (SHA-256).
const HashSize = 32

// Event is one webhook, read and validated, ready to be stored.
type Event struct {
	Source     string    // slug: [a-z0-9][a-z0-9_-]{0,62}
	ID         string    // 1 to 255 code points, no control characters; unique within Source
	Type       string    // 1 to 100 code points
	OccurredAt time.Time // as the provider says

	// Payload is the JSON text of the payload, byte for byte as it was sent.
	Payload []byte
	// Unqueryable says why Postgres cannot hold Payload as json; it is empty where it can. An unqueryable payload is
	// kept and delivered as bytes.
	Unqueryable string
	// Hash decides whether two payloads are the same. It is the SHA-256 of the payload's canonical form (sorted names,
	// no white space, numbers as written), or of its exact bytes where Unqueryable is set.
	Hash [HashSize]byte

	// The fields below are empty for an event in Spine's own envelope.

	// Headers are the headers of the request without its secrets: a JSON object of names and lists of values.
	Headers []byte
	// Raw is the body byte for byte where Payload was made of it: that of a form, or of a CloudEvent in binary mode.
	Raw        []byte
	IDDerived  bool // the provider gave no id: ID was made from the body
	IDUnsigned bool // the signature does not cover the id: a copied request could be sent again under another id
}

// Outcome says what became of an Event in the store. The database function spine.ingest_events decides
// it and returns these values, and senders are told them.
type Outcome string

// The outcomes of storing an event.
const (
	Accepted     Outcome = "accepted"     // new: stored and queued
	Deduplicated Outcome = "deduplicated" // known id, same payload
	Conflict     Outcome = "conflict"     // known id, other payload: the first stays
)

// Receipt is the store's answer for one Event. It exists only after the commit.
type Receipt struct {
	Outcome Outcome
}

// Job is one claimed delivery: an event, its destination, and the lease under which this process may deliver it.
type Job struct {
	Event       int64     // events.id
	Destination string    // slug
	Lease       int64     // fencing token: every write about this attempt must carry it
	Attempt     int       // 1 for the first attempt since the event was stored or replayed
	DueAt       time.Time // when it fell due, by the database's clock

	Source      string
	ID          string // event_id
	Type        string
	OccurredAt  time.Time
	Payload     []byte // exact bytes, as received
	Unqueryable bool   // the database holds Payload as bytes, not as json
	Raw         []byte // the body byte for byte, where Payload was made of it; otherwise nil
}

// Class says what should happen after a delivery attempt.
type Class int

// The classes of a Result.
const (
	Done      Class = iota // the destination accepted the event (any 2xx)
	TryAgain               // it may accept the event later
	GiveUp                 // no retry can change the answer
	Unreached              // the event was not sent, since there was no connection to the destination
)

func (c Class) String() string {
	switch c {
	case Done:
		return "done"
	case TryAgain:
		return "try again"
	case GiveUp:
		return "give up"
	case Unreached:
		return "unreached"
	}
	return "unknown"
}

// Result is the end of one delivery attempt. It does not say whether there are attempts left.
type Result struct {
	Class      Class
	Status     int           // HTTP status; 0 when there was no answer
	Answer     string        // the first bytes of the answer's body, as valid text without NUL
	Error      string        // why it is not Done, in one line; empty when Done
	RetryAfter time.Duration // what the destination asked for, 0 to 1 h; 0 when it asked for nothing
	Duration   time.Duration // from the start of the attempt to its end
}

// Disposition says what becomes of a queued event after an attempt. The database function spine.settle takes these
// values.
type Disposition string

// The dispositions of a queued event.
const (
	Completed Disposition = StatusCompleted // delivered
	Failed    Disposition = StatusFailed    // tried again after a delay
	Dead      Disposition = StatusDead      // a dead letter: not tried again
	// Deferred is tried again after a delay, and the attempt is not counted. spine.settle makes the delay longer each
	// time in a row, and makes the event dead once it has waited for too long.
	Deferred Disposition = "deferred"
)

// Settlement records the end of a delivery attempt and what follows from it.
type Settlement struct {
	Job         Job
	Result      Result
	Disposition Disposition
	Delay       time.Duration // until the next attempt; only where Failed or Deferred
	Asked       bool          // the delay is what the destination asked for (Result.RetryAfter), and not the policy's
}

// LeaseState says what became of a write under a lease.
type LeaseState int

// What becomes of a write under a lease.
const (
	LeaseHeld    LeaseState = iota // the write counts
	LeaseLost                      // the write changed nothing and never will
	LeaseLocked                    // another transaction has the row locked: nothing was decided, try again
	LeaseGivenUp                   // the write counts: what was to be deferred is dead, since it was deferred for too long
)

// ErrLocked says that another transaction keeps a row of a batch locked. A further try may succeed, and the other rows
// of the batch are not at fault.
var ErrLocked = errors.New("another transaction has a row locked")

// ErrInvalidData marks an error of the store that lies in the data. The same data can never be stored, and the other
// rows of a batch are not at fault.
var ErrInvalidData = errors.New("the database rejects the data")

// ErrForeignRule marks an error that is ErrInvalidData by a rule that somebody else added to Spine's tables. The data
// may be good: it is not stored in another form.
var ErrForeignRule = fmt.Errorf("%w by a rule that is not Spine's", ErrInvalidData)

// Claim asks for work: it leases due events, oldest first, and takes back leases that have run out.
type Claim struct {
	Destination string        // slug
	Limit       int           // most events, those whose lease has run out included: the worker's free slots
	Lease       time.Duration // of each event
	Worker      string        // the worker's name in the audit log
	// Delays is the retry policy for leases that have run out: Delays[0] is the delay after the first failed attempt,
	// and there are len(Delays)+1 attempts in all.
	Delays []time.Duration
	Low    time.Time // the claim passes over events that fell due before; the zero time passes over none
}

// Claimed is the result of a Claim. Its times are those of the database's clock, which is the only clock of the queue.
type Claimed struct {
	Jobs    []Job
	Expired []Job     // taken back because their lease had run out; Attempt is the attempt that this spent
	Now     time.Time // after the claim
	// NextDue is the time until the next retry or end of a lease, where that is soon. 0 says to claim again within a
	// second.
	NextDue time.Duration
}

// RejectionSummary sums up rejected requests of one kind.
type RejectionSummary struct {
	Source string    // slug; empty where the requests named no source that exists
	Cause  string    // a short word for why
	Status int       // HTTP status of their answers
	Count  int64     // of requests
	Since  time.Time // when the first of them came
}

// Expired is the result of one batch of retention.
type Expired struct {
	LookedAt int   // old events
	Deleted  int   // of them; the others are not finished, have changed since, or were locked
	Last     int64 // events.id of the last old event; only with More
	More     bool  // whether there may be old events after Last
}

// Sample is a reading of the state of the queue and of the sources.
type Sample struct {
	Depth        map[string]int64     // events in the queue by status, as last counted
	Paused       map[string]bool      // every destination, and whether claims for it are paused
	OldestReady  time.Duration        // how long the oldest claimable event has been due; 0 when there is none
	LastArrivals map[string]time.Time // by source; a source without any event is absent
}

// NotifyQueue is the state of Postgres's queue of notifications, which all databases of a cluster share.
type NotifyQueue struct {
	Usage    float64 // how full it is, 0 to 1
	Hintless bool    // Spine sends no notifications, so that a full queue fails no commit
	Jammed   bool    // where Hintless: somebody holds up each commit that notifies, full or not
	Holders  string  // where Hintless: who may hold the queue back, or who holds commits up, in words
}

// Trouble is something that hinders Spine as a whole.
type Trouble struct {
	Topic string `json:"topic"` // read_only, standby, partitions, clock or rights
	Says  string `json:"says"`  // what it is, and what to do
}

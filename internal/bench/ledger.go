package bench

import (
	"sync"
	"time"
)

// ledger compares the events of a run with their arrivals. A nil ledger expects no arrivals.
type ledger struct {
	runID string
	gated bool // the sink answers nothing before opened

	mu      sync.Mutex
	epoch   time.Time
	pages   []*page // by event number
	events  uint64  // issued
	tally   arrivals
	done    bool          // everything was sent
	all     chan struct{} // closed once done and nothing is missing
	latency histogram
	opened  time.Time
	early   int64 // delivered of a gated run that arrived before it was opened
}

// page is as many entries as are allocated at once. Copying one growing slice would stop a long run
// for tens of milliseconds.
type page [1 << 16]entry

// entry has no pointers, so that the garbage collector skips millions of them. It takes 16 bytes.
type entry struct {
	due          time.Duration // after the epoch
	measured     bool
	acknowledged bool
	arrivals     uint32
}

// arrivals counts measured events.
type arrivals struct {
	missing        int64 // acknowledged, not arrived
	delivered      int64 // acknowledged and arrived
	unacknowledged int64 // arrived without having been acknowledged
	repeated       int64 // arrived more than once
	repeats        int64 // arrivals beyond an event's first
	foreign        int64 // arrivals of ids that are not of this run
	any            bool  // something of this run arrived, in the warm-up or later
	last           time.Time
}

func newLedger(runID string) *ledger {
	return &ledger{runID: runID, epoch: time.Now(), all: make(chan struct{})}
}

// entry returns the entry of an event. The event must be below events.
func (l *ledger) entry(event uint64) *entry {
	return &l.pages[event/uint64(len(page{}))][event%uint64(len(page{}))]
}

// issued records an event before it is sent.
func (l *ledger) issued(event uint64, due time.Time, measured bool) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = max(l.events, event+1) // connections do not always come in order
	for uint64(len(l.pages)*len(page{})) < l.events {
		l.pages = append(l.pages, new(page))
	}
	*l.entry(event) = entry{due: due.Sub(l.epoch), measured: measured}
}

// acknowledged records that the target promised to deliver the event.
func (l *ledger) acknowledged(event uint64) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entry(event)
	e.acknowledged = true
	switch {
	case !e.measured:
	case e.arrivals == 0:
		l.tally.missing++
	default: // the event arrived before its acknowledgement
		l.tally.unacknowledged--
		l.tally.delivered++
	}
}

// arrived records a delivery.
func (l *ledger) arrived(id []byte, at time.Time) {
	event, ours := eventNumber(id, l.runID)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !ours || event >= l.events {
		l.tally.foreign++
		return
	}
	l.tally.any = true
	e := l.entry(event)
	if !e.measured {
		return
	}
	e.arrivals++
	switch {
	case e.arrivals == 2:
		l.tally.repeated++
		l.tally.repeats++
		return
	case e.arrivals > 2:
		l.tally.repeats++
		return
	case e.acknowledged:
		l.tally.missing--
		l.tally.delivered++
	default:
		l.tally.unacknowledged++
	}
	if at.After(l.tally.last) { // deliveries reach the lock in any order
		l.tally.last = at
	}
	switch {
	case !l.gated:
		l.latency.record(at.Sub(l.epoch) - e.due)
	case l.opened.IsZero():
		l.early++
	default:
		l.latency.record(at.Sub(l.opened))
	}
	l.closeWhenAll()
}

// open records that the sink of a gated run answers from now on.
func (l *ledger) open(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opened = now
}

// finish records that everything was sent. It returns a channel that is closed once everything
// acknowledged has arrived.
func (l *ledger) finish() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done = true
	l.closeWhenAll()
	return l.all
}

// closeWhenAll may be called again, by arrivals that were never acknowledged.
func (l *ledger) closeWhenAll() {
	if l.done && l.tally.missing == 0 {
		select {
		case <-l.all:
		default:
			close(l.all)
		}
	}
}

// soFar returns what has arrived until now.
func (l *ledger) soFar() arrivals {
	if l == nil {
		return arrivals{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tally
}

// anything reports whether any event of this run arrived.
func (l *ledger) anything() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tally.any
}

// delivery sums up. Rates are counted from start; those of a gated run are counted from its
// opening.
func (l *ledger) delivery(start time.Time) *Delivery {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tally
	if l.gated {
		start = l.opened
	}
	return &Delivery{
		Delivered:      t.delivered,
		Lost:           t.missing,
		Repeated:       t.repeated,
		Repeats:        t.repeats,
		Unacknowledged: t.unacknowledged,
		Foreign:        t.foreign,
		PerSecond:      perSecond(t.delivered-l.early, t.last.Sub(start)),
		Latency:        l.latency.latency(),
	}
}

package ingest

import (
	"time"
)

// Sources take turns where not all that waits fits into one transaction. So a source whose events are large or many
// makes no other source wait for longer than a transaction or two. Where these take long, such a source goes apart: its
// large requests share no transaction with others, and leave one to them at any time.

// rowCost is what an event costs beside its bytes, in bytes.
const rowCost = 4 << 10

// Where sources take turns, a transaction has 1/mixedPart of the bytes. The next request then waits for a shorter one.
const mixedPart = 4

const (
	// largeCost is from which cost on a request goes apart where its source does: a body of 12 kB or four events.
	largeCost = 16 << 10
	// slowFlight is how long a transaction may take, beside what any takes, before the sources of its large requests go
	// apart.
	slowFlight = 100 * time.Millisecond
	// apartFor is how long a source goes apart, as long as other sources send.
	apartFor = 10 * time.Second
)

// source is the source of a request. All its events have the same.
func (w *waiter) source() string { return w.events[0].Source }

// cost is what a request costs its source of a transaction, in bytes.
func (w *waiter) cost() int { return w.size + rowCost*len(w.events) }

// load is what waits of one source.
type load struct {
	rows, bytes int
	cost        int       // charged so far, in bytes; a source that comes back starts at the others' level
	slowAt      time.Time // when a transaction with a large request of it last took long
}

// goesApart reports whether a request shares no transaction with other sources now.
func (w *waiter) goesApart(now time.Time) bool {
	return now.Sub(w.load.slowAt) < apartFor && w.cost() > largeCost
}

// sift returns the waiting requests that the next transaction may take, and whether they go apart. Either it returns
// large requests of one source, the one that has cost least so far. Or it returns all that do not go apart. Where both
// kinds wait, they take turns. apartLast says which had the last one.
func sift(waiting []*waiter, now time.Time, mayGoApart, apartLast bool) (some []*waiter, apart bool) {
	var next *load
	others := false
	for _, w := range waiting {
		switch {
		case !w.goesApart(now):
			others = true
		case mayGoApart && (next == nil || w.load.cost < next.cost):
			next = w.load
		}
	}
	apart = next != nil && (!others || !apartLast)
	for _, w := range waiting {
		if w.goesApart(now) == apart && (w.load == next || !apart) {
			some = append(some, w)
		}
	}
	return some, apart
}

func (l *load) add(w *waiter, times int) {
	l.rows += times * len(w.events)
	l.bytes += times * w.size
}

// fills reports whether one more request would leave other sources less than half of what may wait.
func (l *load) fills(w *waiter, c CommitterConfig) bool {
	return l.rows > 0 && (l.rows+len(w.events) > c.QueueRows/2 || l.bytes+w.size > c.QueueBytes/2)
}

// without returns the requests of all that are not in some, which has the same order.
func without(all, some []*waiter) (left []*waiter) {
	for _, w := range all {
		if len(some) > 0 && some[0] == w {
			some = some[1:]
		} else {
			left = append(left, w)
		}
	}
	return left
}

// shortest is the shortest time in the last apartFor, or in twice as long. The zero value has seen none.
type shortest struct {
	since       time.Time
	now, before time.Duration // 0 for none
}

// of adds a time and returns the shortest.
func (s *shortest) of(took time.Duration, at time.Time) time.Duration {
	took = max(took, 1)
	if at.Sub(s.since) > apartFor {
		s.since, s.before, s.now = at, s.now, took
	}
	s.now = min(s.now, took)
	if s.before == 0 {
		return s.now
	}
	return min(s.now, s.before)
}

// choose takes the next transaction from the waiting requests: as many as have rows events and so many bytes, but one
// in any case. It returns both parts in their order. Where not all fit, the next one is always the oldest of the source
// that has cost least so far. least is that cost.
func choose(waiting []*waiter, rows, bytes int) (batch, left []*waiter, least int) {
	if len(waiting) == 0 {
		return nil, nil, 0
	}
	// Mostly all fit, or are of one source.
	n, mixed := 0, false
	b := budget{rows: rows, bytes: bytes}
	for n < len(waiting) && b.take(waiting[n]) {
		n++
	}
	for _, w := range waiting[n:] {
		mixed = mixed || w.load != waiting[0].load
	}
	if !mixed {
		least = waiting[0].load.cost
		for _, w := range waiting[:n] {
			w.load.cost += w.cost()
		}
		if n == len(waiting) {
			return waiting, nil, least
		}
		return waiting[:n:n], waiting[n:], least
	}

	places := map[*load][]int{} // of each source's requests
	var sources []*load         // by their oldest request
	for i, w := range waiting {
		if places[w.load] == nil {
			sources = append(sources, w.load)
		}
		places[w.load] = append(places[w.load], i)
	}
	chosen := make([]bool, len(waiting))
	b = budget{rows: rows, bytes: bytes / mixedPart}
	for {
		var next *load
		for _, l := range sources {
			if len(places[l]) > 0 && (next == nil || l.cost < next.cost) {
				next = l
			}
		}
		if next == nil {
			break
		}
		at := places[next][0]
		if !b.take(waiting[at]) {
			places[next] = nil // smaller ones of others may still fit
			continue
		}
		least = next.cost
		chosen[at], places[next], next.cost = true, places[next][1:], next.cost+waiting[at].cost()
	}
	for i, w := range waiting {
		if chosen[i] {
			batch = append(batch, w)
		} else {
			left = append(left, w)
		}
	}
	return batch, left, least
}

// budget is what a transaction has room for.
type budget struct {
	rows, bytes int
	taken       bool
	closed      bool
}

// take takes a request into the transaction, and reports whether it has room. The first one has, however large it is.
func (b *budget) take(w *waiter) bool {
	if b.taken && (b.closed || w.alone || len(w.events) > b.rows || w.size > b.bytes) {
		return false
	}
	b.rows -= len(w.events)
	b.bytes -= w.size
	b.taken, b.closed = true, w.alone
	return true
}

package ingest

// Sources take turns where not all that waits fits into one transaction. So a source whose events are large or many
// makes no other source wait for longer than a transaction or two.

// rowCost is what an event costs beside its bytes, in bytes.
const rowCost = 4 << 10

// Where sources take turns, a transaction has 1/mixedPart of the bytes. The next request then waits for a shorter one.
const mixedPart = 4

// source is the source of a request. All its events have the same.
func (w *waiter) source() string { return w.events[0].Source }

// cost is what a request costs its source of a transaction, in bytes.
func (w *waiter) cost() int { return w.size + rowCost*len(w.events) }

// load is what waits of one source.
type load struct {
	rows, bytes int
	cost        int // charged so far, in bytes; a source that comes back starts at the others' level
}

func (l *load) add(w *waiter, times int) {
	l.rows += times * len(w.events)
	l.bytes += times * w.size
}

// fills reports whether one more request would leave other sources less than half of what may wait.
func (l *load) fills(w *waiter, c CommitterConfig) bool {
	return l.rows > 0 && (l.rows+len(w.events) > c.QueueRows/2 || l.bytes+w.size > c.QueueBytes/2)
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

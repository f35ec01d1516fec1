package ingest

// Sources take turns where not all that waits fits into one transaction. So a source whose events are large or many
// makes no other source wait for longer than a transaction or two.

// rowCost is what an event costs beside its bytes, in bytes.
const rowCost = 4 << 10

// source is the source of a request. All its events have the same.
func (w *waiter) source() string { return w.events[0].Source }

// cost is what a request costs its source of a transaction, in bytes.
func (w *waiter) cost() int { return w.size + rowCost*len(w.events) }

// load is what waits of one source.
type load struct{ rows, bytes int }

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
// that has cost least so far.
func choose(waiting []*waiter, rows, bytes int) (batch, left []*waiter) {
	if len(waiting) == 0 {
		return nil, nil
	}
	if waiting[0].alone {
		return waiting[:1:1], waiting[1:]
	}
	// Mostly all fit, or are of one source.
	n, mixed := 0, false
	b := budget{rows: rows, bytes: bytes}
	for n < len(waiting) && b.take(waiting[n]) {
		n++
	}
	for _, w := range waiting[n:] {
		mixed = mixed || w.source() != waiting[0].source()
	}
	if !mixed {
		if n == len(waiting) {
			return waiting, nil
		}
		return waiting[:n:n], waiting[n:]
	}

	type queue struct {
		requests []int // their places
		cost     int
	}
	var queues []*queue // by their oldest request
	of := map[string]*queue{}
	for i, w := range waiting {
		q := of[w.source()]
		if q == nil {
			q = &queue{}
			of[w.source()] = q
			queues = append(queues, q)
		}
		q.requests = append(q.requests, i)
	}
	chosen := make([]bool, len(waiting))
	b = budget{rows: rows, bytes: bytes}
	for {
		var next *queue
		for _, q := range queues {
			if len(q.requests) > 0 && (next == nil || q.cost < next.cost) {
				next = q
			}
		}
		if next == nil {
			break
		}
		at := next.requests[0]
		if !b.take(waiting[at]) {
			next.requests = nil // smaller ones of others may still fit
			continue
		}
		chosen[at] = true
		next.requests, next.cost = next.requests[1:], next.cost+waiting[at].cost()
	}
	for i, w := range waiting {
		if chosen[i] {
			batch = append(batch, w)
		} else {
			left = append(left, w)
		}
	}
	return batch, left
}

// budget is what a transaction has room for.
type budget struct {
	rows, bytes int
	taken       bool
}

// take takes a request into the transaction, and reports whether it has room. The first one has, however large it is.
func (b *budget) take(w *waiter) bool {
	if b.taken && (w.alone || len(w.events) > b.rows || w.size > b.bytes) {
		return false
	}
	b.rows -= len(w.events)
	b.bytes -= w.size
	b.taken = true
	return true
}

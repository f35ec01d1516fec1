package ingest

import (
	"runtime"
	"slices"
	"sync"
	"time"
)

// turnPatience is how long a request waits for its turn. After it the sender does better to send it again.
const turnPatience = 10 * time.Second

// turns lets few requests at once do what takes much memory or time: enough to keep the processors busy. Half of the
// turns are the most that one source has. Sources that wait get them one after the other, so that one request of each
// other source is all that a source waits for. It is safe for concurrent use.
type turns struct {
	mu      sync.Mutex
	free    int
	most    int                        // of one source
	taken   map[string]int             // by source
	waiting map[string][]chan struct{} // by source, the oldest request first; a turn closes its channel
	order   []string                   // of the sources that wait; who had the last turn comes last
}

func newTurns() *turns {
	processors := runtime.GOMAXPROCS(0)
	return &turns{
		free: 2 * processors, most: processors,
		taken: map[string]int{}, waiting: map[string][]chan struct{}{},
	}
}

// take waits for a turn of a source, and reports whether it came in time. The caller ends it.
func (t *turns) take(source string) (end func(), ok bool) {
	end = func() { t.end(source) }
	turn := make(chan struct{})
	t.mu.Lock()
	if len(t.waiting[source]) == 0 {
		t.order = append(t.order, source)
	}
	t.waiting[source] = append(t.waiting[source], turn)
	t.next()
	t.mu.Unlock()

	select {
	case <-turn: // mostly at once
		return end, true
	default:
	}
	patience := time.NewTimer(turnPatience)
	defer patience.Stop()
	select {
	case <-turn:
		return end, true
	case <-patience.C:
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	left := slices.Index(t.waiting[source], turn)
	if left < 0 {
		return end, true // it came just now
	}
	t.leave(source, left)
	return nil, false
}

func (t *turns) end(source string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.free++
	if t.taken[source]--; t.taken[source] == 0 {
		delete(t.taken, source)
	}
	t.next()
}

// next gives free turns to who waits. The caller holds mu.
func (t *turns) next() {
	for t.free > 0 {
		i := slices.IndexFunc(t.order, func(source string) bool { return t.taken[source] < t.most })
		if i < 0 {
			return
		}
		source := t.order[i]
		close(t.waiting[source][0])
		t.free--
		t.taken[source]++
		t.order = append(slices.Delete(t.order, i, i+1), source)
		t.leave(source, 0)
	}
}

// leave removes a request from those that wait. The caller holds mu.
func (t *turns) leave(source string, i int) {
	if t.waiting[source] = slices.Delete(t.waiting[source], i, i+1); len(t.waiting[source]) > 0 {
		return
	}
	delete(t.waiting, source)
	t.order = slices.DeleteFunc(t.order, func(other string) bool { return other == source })
}

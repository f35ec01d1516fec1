package mockapi

import (
	"hash/maphash"
	"maps"
	"slices"
	"sync"
)

// Limits of what the server remembers, unless Config says otherwise. An id costs about 40 bytes
// while it is only counted. A recent id whose answers are known costs its own length and some
// hundred bytes more.
const (
	defaultMaxIDs  = 1_000_000
	recentIDs      = 10_000
	maxRecentID    = 4096 // bytes; longer ids are only counted
	recentStatuses = 100  // answers kept for one id
)

// Stats is what the server has seen since it started or was last reset.
type Stats struct {
	Requests  int64 `json:"requests"`
	Succeeded int64 `json:"succeeded"`  // answered with a 2xx
	Failed    int64 `json:"failed"`     // answered otherwise, or not at all
	WithoutID int64 `json:"without_id"` // neither a webhook-id header nor an event_id in the body

	DistinctIDs       int64 `json:"distinct_ids"`       // ids received
	RepeatedIDs       int64 `json:"repeated_ids"`       // ids received more than once, as retries are
	DistinctSucceeded int64 `json:"distinct_succeeded"` // ids answered with a 2xx
	RepeatedSucceeded int64 `json:"repeated_succeeded"` // ids answered with a 2xx more than once

	// MaxIDs is how many ids are told apart. MaxIDsReached says that more came,
	// which the four figures above leave out.
	MaxIDs        int  `json:"max_ids"`
	MaxIDsReached bool `json:"max_ids_reached"`

	Statuses map[int]int64 `json:"statuses"` // answers by status; 0 stands for no or half an answer
}

// IDStats is what the server has seen of one id, among the 10,000 most recent.
type IDStats struct {
	ID       string `json:"id"`
	Received int64  `json:"received"`
	Statuses []int  `json:"statuses"` // the first 100 answers, oldest first; 0 stands for no or half an answer
}

// mark is what the tally remembers of an id that is only counted.
type mark uint8

const (
	repeated mark = 1 << iota
	succeeded
	succeededAgain
)

// tally counts. It tells ids apart by a seeded 64-bit hash. With a million ids, the probability
// that two of them share a hash is below 1 in 10 million.
type tally struct {
	seed maphash.Seed

	mu     sync.Mutex
	stats  Stats
	marks  map[uint64]mark
	recent map[string]*IDStats
	order  []string // the ids of recent, a ring with the oldest at next
	next   int
}

func newTally(maxIDs int) *tally {
	return &tally{
		seed:   maphash.MakeSeed(),
		stats:  Stats{MaxIDs: maxIDs, Statuses: map[int]int64{}},
		marks:  map[uint64]mark{},
		recent: map[string]*IDStats{},
	}
}

func (t *tally) received(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stats.Requests++
	if id == "" {
		t.stats.WithoutID++
		return
	}
	t.remember(id)

	key := maphash.String(t.seed, id)
	m, known := t.marks[key]
	switch {
	case !known && len(t.marks) >= t.stats.MaxIDs:
		t.stats.MaxIDsReached = true
	case !known:
		t.marks[key] = 0
		t.stats.DistinctIDs++
	case m&repeated == 0:
		t.marks[key] = m | repeated
		t.stats.RepeatedIDs++
	}
}

// remember adds id to the recent ids, in place of the oldest.
func (t *tally) remember(id string) {
	if len(id) > maxRecentID {
		return
	}
	if seen := t.recent[id]; seen != nil {
		seen.Received++
		return
	}
	if len(t.order) < recentIDs {
		t.order = append(t.order, id)
	} else {
		delete(t.recent, t.order[t.next])
		t.order[t.next] = id
		t.next = (t.next + 1) % recentIDs
	}
	t.recent[id] = &IDStats{ID: id, Received: 1, Statuses: []int{}}
}

// answered counts the answer to a request that was received before. status 0 means none.
func (t *tally) answered(id string, status int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stats.Statuses[status]++
	if seen := t.recent[id]; seen != nil && len(seen.Statuses) < recentStatuses {
		seen.Statuses = append(seen.Statuses, status)
	}
	if status < 200 || status > 299 {
		t.stats.Failed++
		return
	}
	t.stats.Succeeded++

	key := maphash.String(t.seed, id)
	m, known := t.marks[key]
	switch {
	case !known: // a request without an id, or an id beyond MaxIDs
	case m&succeeded == 0:
		t.marks[key] = m | succeeded
		t.stats.DistinctSucceeded++
	case m&succeededAgain == 0:
		t.marks[key] = m | succeededAgain
		t.stats.RepeatedSucceeded++
	}
}

func (t *tally) snapshot() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stats
	s.Statuses = maps.Clone(s.Statuses)
	return s
}

func (t *tally) of(id string) (IDStats, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	seen := t.recent[id]
	if seen == nil {
		return IDStats{}, false
	}
	s := *seen
	s.Statuses = slices.Clone(s.Statuses)
	return s, true
}

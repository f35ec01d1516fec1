package ingest

import (
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/webhookspine/spine/internal/event"
)

// The bytes of all requests in flight are bounded, so that Spine's memory is. A request reserves room for the memory
// that its body takes as the body arrives, and gives it back with its answer.

const (
	// firstBuffer is the memory that a request gets before any of its body has arrived. It is reserved only then: a
	// sender who just announces a body takes no room from others.
	firstBuffer = 4 << 10
	// smallBuffer is how far a buffer grows at once to what the sender has announced. Beyond, it doubles, so that a
	// body takes no more than twice the memory of what has arrived.
	smallBuffer = 64 << 10
	// headerCost is the memory that a header takes beside its name and value.
	headerCost = 128
	// freeBytes is how many bytes of a request no share is asked for.
	freeBytes = 2 << 10
	// smallRequest is how many bytes a request takes at most that may use the room for small ones.
	smallRequest = 8 << 10
	// smallPart is which part of the room is for small requests.
	smallPart = 8
)

// room is the memory that all requests in flight may take. A part of it is for small requests alone. So large bodies
// that do not arrive leave room for them, from however many addresses they come.
type room struct{ large, small *semaphore.Weighted }

// newRoom makes a room of so many bytes. A request of the largest size has room beside the part for small ones.
func newRoom(bytes, maxBody int64) *room {
	small := max(0, min(bytes/smallPart, bytes-2*maxBody))
	return &room{large: semaphore.NewWeighted(bytes - small), small: semaphore.NewWeighted(small)}
}

// take takes n more bytes for a request, and reports whether there were any.
func (r *room) take(a *arrival, n int64) bool {
	if r.large.TryAcquire(n) {
		a.reserved += n
		return true
	}
	if a.reserved+a.small+n > smallRequest || !r.small.TryAcquire(n) {
		return false
	}
	a.small += n
	return true
}

func (r *room) give(a *arrival) {
	r.large.Release(a.reserved)
	r.small.Release(a.small)
	a.reserved, a.small = 0, 0
}

// shares bounds what the requests of one client address hold together, and those of one source after they were
// verified. So one client whose uploads do not go on leaves room to others, and so does one sender with large bodies.
// Small requests pass it by.
type shares struct {
	most int64 // bytes of one holder
	mu   sync.Mutex
	held map[string]int64 // bytes, by address or by the name of a source, which no address is like
}

// newShares makes the shares of a room of so many bytes: half of it, or as much as one request may take.
func newShares(room, maxBody int64) *shares {
	return &shares{most: max(room/2, 2*maxBody), held: map[string]int64{}}
}

func (s *shares) take(address string, n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[address]+n > s.most {
		return false
	}
	s.held[address] += n
	return true
}

func (s *shares) give(address string, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[address] -= n; s.held[address] == 0 {
		delete(s.held, address)
	}
}

// reserve reserves room for n more bytes of memory, and reports whether there was any. Where there is none, slow
// uploads give way.
func (g *gate) reserve(a *arrival, n int64) bool {
	// A request that did not come over the network has no address and needs no share.
	if more := a.reserved + a.small + n - freeBytes - a.shared; more > 0 && a.remote != "" {
		if a.vouched && !g.shares.take(a.name, more) {
			return false
		}
		client := network(a.remote)
		for !g.shares.take(client, more) {
			if !g.uploads.giveWay(client, a.progress) {
				if a.vouched {
					g.shares.give(a.name, more)
				}
				return false
			}
		}
		a.shared += more
	}
	for !g.room.take(a, n) {
		if !g.uploads.giveWay("", a.progress) {
			return false
		}
	}
	return true
}

// vouch counts what a request holds towards its source too, which has verified it. It reports whether there was room.
func (g *gate) vouch(a *arrival) bool {
	if a.shared > 0 && !g.shares.take(a.name, a.shared) {
		return false
	}
	a.vouched = true
	return true
}

// reserveHeaders reserves room for the headers of a request, and reports whether there was any.
func (g *gate) reserveHeaders(a *arrival) bool {
	n := int64(len(a.request.URL.Path) + len(a.request.URL.RawQuery))
	for name, values := range a.request.Header {
		n += int64(len(name))
		for _, value := range values {
			n += headerCost + int64(len(value))
		}
	}
	return g.reserve(a, n)
}

// release gives back the room that a request has reserved, and drops its bytes.
func (g *gate) release(a *arrival) {
	g.room.give(a)
	if a.shared > 0 {
		g.shares.give(network(a.remote), a.shared)
		if a.vouched {
			g.shares.give(a.name, a.shared)
		}
	}
	a.shared, a.vouched, a.request = 0, false, event.Request{}
	if a.progress != nil {
		close(a.progress.freed)
		a.progress = nil
	}
}

// readAll reads body to its end, within the limit of size and of all bytes in flight. announced is its length, or -1
// where the sender has not said it. After a rejection the bytes are those that came before it.
func (g *gate) readAll(a *arrival, body io.Reader, announced int64) ([]byte, *rejection) {
	limit := g.maxBody
	if announced >= 0 {
		limit = min(limit, announced)
	}
	b := make([]byte, 0, min(limit, firstBuffer))
	reserved := int64(0) // of the capacity of b
	for {
		if int64(len(b)) == limit {
			return b, g.awaitEnd(a, body)
		}
		if len(b) == cap(b) {
			size := int64(cap(b)) * 2
			if limit <= smallBuffer && announced >= 0 {
				size = limit
			}
			size = min(size, limit)
			// The smaller buffer is not counted while it is copied: the collector takes it.
			if !g.reserve(a, size-reserved) {
				return b, tooManyBytes
			}
			reserved = size
			b = append(make([]byte, 0, size), b...)
		}
		n, err := body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case a.progress != nil:
			a.progress.arrived(n)
		case a.upload != nil && err == nil && int64(len(b)) < limit:
			g.watch(a) // a small one, of which a part is missing
		}
		if n > 0 && reserved == 0 {
			if !g.reserve(a, int64(cap(b))) {
				return b, tooManyBytes
			}
			reserved = int64(cap(b))
		}
		switch {
		case err == io.EOF:
			return b, nil
		case err != nil:
			return b, bodyRejection(err)
		}
	}
}

// awaitEnd reads the end of a body that has come up to its limit.
func (g *gate) awaitEnd(a *arrival, body io.Reader) *rejection {
	for {
		n, err := body.Read(a.more[:])
		switch {
		case n > 0:
			return g.tooLarge()
		case err == io.EOF:
			return nil
		case err != nil:
			return bodyRejection(err)
		}
	}
}

const (
	// keptBeginning is how many bytes are kept of a body that is too large.
	keptBeginning = 1 << 10
	// beginningTimeout is how long they may take to arrive.
	beginningTimeout = time.Second
)

// readBeginning reads the first bytes of a body that is too large by its announced length. A sender that waits for 100
// Continue is not asked for them.
func readBeginning(u upload) []byte {
	if u.request.Header.Get("Expect") != "" {
		return nil
	}
	_ = http.NewResponseController(u.writer).SetReadDeadline(time.Now().Add(min(u.timeout, beginningTimeout)))
	b := make([]byte, keptBeginning)
	n, _ := io.ReadFull(u.request.Body, b) // whatever came
	return b[:n]
}

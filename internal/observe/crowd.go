package observe

import (
	"cmp"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

const (
	// defaultMemory is what connections that wait for their client may take, in bytes.
	defaultMemory = 128 << 20
	// connectionMemory is what a connection takes without a request, in bytes. Half-sent headers come on top: they get
	// a quarter of the memory.
	connectionMemory = 12 << 10
	// lineMemory is what a line of them takes beside its text.
	lineMemory = 128

	// crowdPause is the time between two lines of the log about a crowd.
	crowdPause = time.Minute
)

// crowd holds down the number of connections, and the memory of half-sent headers. Of too many, each new one closes the
// one that has waited longest for its client. So does each part of a header, where headers take too much. A connection
// waits for a request, for the rest of its headers, or for the rest of its body. A stranger who opens many displaces
// his own. A webhook is here before as many others come. A complete request gets its answer.
type crowd struct {
	most     int64 // connections; a load balancer has hundreds
	mostHeld int64 // bytes of half-sent headers
	log      zerolog.Logger
	open     atomic.Int64
	held     atomic.Int64

	mu       sync.Mutex
	all      map[*headed]struct{}
	next     []waiting // to be closed, the longest waiting last
	nextHeld []waiting // of those with half-sent headers
	warned   time.Time
}

// waiting is a connection that waits for its client.
type waiting struct {
	conn  *headed
	since int64
}

// newCrowd makes a crowd for so many bytes. Its connections are half of the files that the process may have open, at
// most.
func newCrowd(memory int64, log zerolog.Logger) *crowd {
	c := &crowd{
		most: max(1, memory/4*3/connectionMemory), mostHeld: memory / 4, log: log, all: map[*headed]struct{}{},
	}
	var files syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files) == nil {
		c.most = int64(min(uint64(c.most), max(1, files.Cur/2))) //nolint:gosec // it is positive
	}
	return c
}

// note is the ConnState of the server.
func (c *crowd) note(conn net.Conn, state http.ConnState) {
	own, ok := conn.(*headed)
	if !ok {
		return
	}
	switch state {
	case http.StateNew:
		isTooMany := c.open.Add(1) > c.most
		c.mu.Lock()
		if isTooMany {
			c.makeRoom(&c.next, func(*headed) bool { return true })
		}
		c.all[own] = struct{}{}
		c.mu.Unlock()
	case http.StateClosed, http.StateHijacked:
		c.open.Add(-1)
		c.mu.Lock()
		delete(c.all, own)
		c.mu.Unlock()
		own.drop()
	case http.StateIdle:
		own.next()
	case http.StateActive:
	}
}

// hold counts n more bytes of half-sent headers.
func (c *crowd) hold(n int64) {
	if c.held.Add(n) > c.mostHeld && n > 0 {
		c.mu.Lock()
		c.makeRoom(&c.nextHeld, func(conn *headed) bool { return conn.held.Load() > 0 })
		c.mu.Unlock()
	}
}

// makeRoom closes the connection that has waited longest for its client, if one of a kind does. next are the next ones
// of that kind. The caller holds mu.
func (c *crowd) makeRoom(next *[]waiting, isOfKind func(*headed) bool) {
	if now := time.Now(); now.Sub(c.warned) > crowdPause {
		c.warned = now
		c.log.Warn().Int64("connections", c.open.Load()).Int64("bytes_of_half_sent_headers", c.held.Load()).
			Msg("too many connections: those that have waited longest for a request are closed")
	}
	for range 2 {
		for len(*next) > 0 {
			longest := (*next)[len(*next)-1]
			*next = (*next)[:len(*next)-1]
			if longest.conn.waits.CompareAndSwap(longest.since, 0) { // or it has gone on since
				longest.conn.drop() // at once, or those that come meanwhile would close more
				_ = longest.conn.Close()
				return
			}
		}
		*next = c.longest((*next)[:0], isOfKind)
	}
}

// longest appends the quarter of the connections of a kind that has waited longest, so that one look is enough for
// many.
func (c *crowd) longest(all []waiting, isOfKind func(*headed) bool) []waiting {
	for conn := range c.all {
		if since := conn.waits.Load(); since > 0 && isOfKind(conn) {
			all = append(all, waiting{conn, since})
		}
	}
	slices.SortFunc(all, func(a, b waiting) int { return cmp.Compare(b.since, a.since) })
	return slices.Delete(all, 0, len(all)*3/4)
}

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

// mostConnections is how many connections a server may have before it closes those that wait for their client. Each
// takes some 10 kB, and 16 kB more with half-sent headers. A load balancer has hundreds. Where the process may have
// fewer files open, it is half as many as these.
func mostConnections() int64 {
	const most = 8192
	var files syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files) != nil {
		return most
	}
	return int64(min(most, max(1, files.Cur/2)))
}

// crowdPause is the time between two lines of the log about a crowd.
const crowdPause = time.Minute

// crowd holds down the number of connections. Of too many, each new one closes the one that has waited longest for its
// client. A connection waits for a request, for the rest of its headers, or for the rest of its body. A stranger who
// opens many displaces his own. A webhook is here before as many others come. A complete request gets its answer.
type crowd struct {
	most int64
	log  zerolog.Logger
	open atomic.Int64

	mu     sync.Mutex
	all    map[*headed]struct{}
	next   []waiting // to be closed, the longest waiting last
	warned time.Time
}

// waiting is a connection that waits for its client.
type waiting struct {
	conn  *headed
	since int64
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
			c.makeRoom()
		}
		c.all[own] = struct{}{}
		c.mu.Unlock()
	case http.StateClosed, http.StateHijacked:
		c.open.Add(-1)
		c.mu.Lock()
		delete(c.all, own)
		c.mu.Unlock()
	case http.StateIdle:
		own.next()
	case http.StateActive:
	}
}

// makeRoom closes the connection that has waited longest for its client, if one does. The caller holds mu.
func (c *crowd) makeRoom() {
	if now := time.Now(); now.Sub(c.warned) > crowdPause {
		c.warned = now
		c.log.Warn().Int64("connections", c.open.Load()).
			Msg("too many connections: those that have waited longest for a request are closed")
	}
	for range 2 {
		for len(c.next) > 0 {
			longest := c.next[len(c.next)-1]
			c.next = c.next[:len(c.next)-1]
			if longest.conn.waits.CompareAndSwap(longest.since, 0) { // or it has gone on since
				_ = longest.conn.Close()
				return
			}
		}
		c.findNext()
	}
}

// findNext finds the quarter of the connections that has waited longest, so that one look is enough for many.
func (c *crowd) findNext() {
	for conn := range c.all {
		if since := conn.waits.Load(); since > 0 {
			c.next = append(c.next, waiting{conn, since})
		}
	}
	slices.SortFunc(c.next, func(a, b waiting) int { return cmp.Compare(b.since, a.since) })
	c.next = slices.Delete(c.next, 0, len(c.next)*3/4)
}

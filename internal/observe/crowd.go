package observe

import (
	"container/list"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/rs/zerolog"
)

// mostConnections is how many connections a server may have before it closes those without a request. Each takes some
// 10 kB, and 16 kB more with half-sent headers. A load balancer has hundreds. Where the process may have fewer files
// open, it is half as many as these.
func mostConnections() int64 {
	const most = 8192
	var files syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files) != nil {
		return most
	}
	return int64(min(most, max(1, files.Cur/2)))
}

// crowd closes connections while there are too many: all that wait for their next request, and the oldest of those that
// have brought none yet. A sender who opens many would keep their half-sent headers in memory. A webhook's headers are
// here before as many others come.
type crowd struct {
	server *http.Server
	most   int64
	log    zerolog.Logger
	open   atomic.Int64
	full   atomic.Bool // idle connections are closed

	mu sync.Mutex // held while full changes

	freshMu sync.Mutex
	fresh   list.List // of *headed, the oldest first: connections that have brought no request yet
}

// note is the ConnState of the server.
func (c *crowd) note(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		isTooMany := c.open.Add(1) > c.most
		if isTooMany && !c.full.Load() {
			c.updateKeepAlives()
		}
		c.add(conn, isTooMany)
	case http.StateClosed, http.StateHijacked:
		c.remove(conn)
		if c.open.Add(-1) <= c.most/2 && c.full.Load() {
			c.updateKeepAlives()
		}
	case http.StateIdle:
		if conn, ok := conn.(*headed); ok {
			conn.next()
		}
	case http.StateActive:
		c.remove(conn)
	}
}

// add notes a new connection. Where there are too many, it closes the oldest one that has brought no request.
func (c *crowd) add(conn net.Conn, isTooMany bool) {
	fresh, ok := conn.(*headed)
	if !ok {
		return
	}
	c.freshMu.Lock()
	defer c.freshMu.Unlock()
	if oldest := c.fresh.Front(); oldest != nil && isTooMany {
		oldest := c.fresh.Remove(oldest).(*headed) //nolint:forcetypeassert // it holds nothing else
		oldest.isFresh.Store(false)
		_ = oldest.Close()
	}
	fresh.place = c.fresh.PushBack(fresh)
	fresh.isFresh.Store(true)
}

// remove notes that a connection has brought its first request, or is closed. Later requests cost nothing here.
func (c *crowd) remove(conn net.Conn) {
	fresh, ok := conn.(*headed)
	if !ok || !fresh.isFresh.Load() {
		return
	}
	c.freshMu.Lock()
	defer c.freshMu.Unlock()
	if fresh.isFresh.Swap(false) {
		c.fresh.Remove(fresh.place)
	}
}

func (c *crowd) updateKeepAlives() {
	c.mu.Lock() // or an older one could have the last word
	defer c.mu.Unlock()
	open, full := c.open.Load(), c.full.Load()
	switch {
	case !full && open > c.most:
		c.log.Warn().Int64("connections", open).
			Msg("too many connections: those without a request are closed, until half as many are open")
		c.full.Store(true)
		c.server.SetKeepAlivesEnabled(false)
	case full && open <= c.most/2:
		c.full.Store(false)
		c.server.SetKeepAlivesEnabled(true)
	}
}

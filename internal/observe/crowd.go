package observe

import (
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/rs/zerolog"
)

// mostConnections is how many connections a server may have before it closes those that wait for a request. Each takes
// some 10 kB. A load balancer has hundreds. Where the process may have fewer files open, it is half as many as these.
func mostConnections() int64 {
	const most = 8192
	var files syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files) != nil {
		return most
	}
	return int64(min(most, max(1, files.Cur/2)))
}

// crowd closes idle connections while there are too many. A connection that has brought no request yet is closed within
// readHeaderTimeout anyway.
type crowd struct {
	server *http.Server
	most   int64
	log    zerolog.Logger
	open   atomic.Int64
	full   atomic.Bool // idle connections are closed

	mu sync.Mutex // held while full changes
}

// note is the ConnState of the server.
func (c *crowd) note(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if c.open.Add(1) > c.most && !c.full.Load() {
			c.updateKeepAlives()
		}
	case http.StateClosed, http.StateHijacked:
		if c.open.Add(-1) <= c.most/2 && c.full.Load() {
			c.updateKeepAlives()
		}
	case http.StateIdle:
		if conn, ok := conn.(*headed); ok {
			conn.next()
		}
	case http.StateActive:
	}
}

func (c *crowd) updateKeepAlives() {
	c.mu.Lock() // or an older one could have the last word
	defer c.mu.Unlock()
	open, full := c.open.Load(), c.full.Load()
	switch {
	case !full && open > c.most:
		c.log.Warn().Int64("connections", open).
			Msg("too many connections: idle ones are closed, until half as many are open")
		c.full.Store(true)
		c.server.SetKeepAlivesEnabled(false)
	case full && open <= c.most/2:
		c.full.Store(false)
		c.server.SetKeepAlivesEnabled(true)
	}
}

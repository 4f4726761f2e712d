package httpserver

import (
	"net"
	"net/http"
	"sync"
	"syscall"
)

// maxConnections bounds what clients can cost: 64 connections take about a
// megabyte, and leave descriptors for Redis and Postgres.
const maxConnections = 64

// connections closes the connection that has waited longest for a request when
// there are too many, so that clients that only hold connections keep no probe
// out. Where all have a request under way, the newest is closed.
type connections struct {
	limit int

	mu      sync.Mutex
	open    map[net.Conn]uint64 // guarded by mu; since which change it waits, 0 while a request is under way
	changes uint64              // guarded by mu
}

func newConnections() *connections {
	limit := uint64(maxConnections)
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil {
		limit = max(2, min(limit, uint64(files.Cur)/4)) //nolint:unconvert // the types differ between systems
	}
	return &connections{limit: int(limit), open: map[net.Conn]uint64{}} //nolint:gosec // at most 64
}

// changed is http.Server.ConnState.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.open[conn]; !known && state != http.StateNew {
		return // closed below, its goroutine does not know yet
	}
	switch state {
	case http.StateNew, http.StateIdle:
		c.changes++
		c.open[conn] = c.changes
	case http.StateActive:
		c.open[conn] = 0
	case http.StateHijacked, http.StateClosed: // no handler hijacks
		delete(c.open, conn)
	}
	if len(c.open) > c.limit {
		victim := c.longestWaiting(conn)
		delete(c.open, victim)
		_ = victim.Close() // the client's loss
	}
}

// longestWaiting returns newest where no connection waits. The caller holds the lock.
func (c *connections) longestWaiting(newest net.Conn) net.Conn {
	victim, least := newest, uint64(0)
	for conn, since := range c.open {
		if since != 0 && conn != newest && (least == 0 || since < least) {
			victim, least = conn, since
		}
	}
	return victim
}

package httpserver

import (
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

const (
	// maxConnections bounds what clients can cost: 64 connections take about a
	// megabyte, and leave descriptors for Redis and Postgres.
	maxConnections = 64
	// idleFor is the time to send a request in, after which a connection is the first
	// to be closed.
	idleFor = time.Second
)

// connections closes one when there are too many: the one that has waited longest for a
// request, more than idleFor, otherwise the one whose state has not changed for longest,
// as that of a client that sends no body, reads no response or watches a page. So each
// new one is served, and it takes as many that come later to close it.
type connections struct {
	limit int

	mu      sync.Mutex
	open    map[net.Conn]connection // guarded by mu
	changes uint64                  // guarded by mu
}

// connection is the state of one.
type connection struct {
	change uint64    // which one its state is of
	idle   time.Time // since when it waits for a request; zero while one is under way
}

func newConnections() *connections {
	limit := uint64(maxConnections)
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil {
		limit = max(2, min(limit, uint64(files.Cur)/4)) //nolint:unconvert // the types differ between systems
	}
	return &connections{limit: int(limit), open: map[net.Conn]connection{}} //nolint:gosec // at most 64
}

// changed is http.Server.ConnState.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.open[conn]; !known && state != http.StateNew {
		return // closed below, its goroutine does not know yet
	}
	c.changes++
	switch state {
	case http.StateNew, http.StateIdle:
		c.open[conn] = connection{c.changes, time.Now()}
	case http.StateActive:
		c.open[conn] = connection{change: c.changes}
	case http.StateHijacked, http.StateClosed: // no handler hijacks
		delete(c.open, conn)
	}
	if len(c.open) > c.limit {
		victim := c.victim()
		delete(c.open, victim)
		_ = victim.Close() // the client's loss
	}
}

// victim returns the connection to close. The caller holds the lock.
func (c *connections) victim() net.Conn {
	var oldest, waiting net.Conn
	for conn, x := range c.open {
		if oldest == nil || x.change < c.open[oldest].change {
			oldest = conn
		}
		if !x.idle.IsZero() && time.Since(x.idle) > idleFor && (waiting == nil || x.change < c.open[waiting].change) {
			waiting = conn
		}
	}
	if waiting != nil {
		return waiting
	}
	return oldest
}

package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// firstRead is how many entries are asked for while their size is unknown, and
	// after a reply that did not arrive.
	firstRead = 16
	// replyBytes is the size that replies are aimed at. One entry may be larger.
	replyBytes = 8 << 20
	// growEvery is after how many good replies one of more entries than once failed is
	// tried again; each further failure doubles it.
	growEvery   = 16
	growSeldom  = 4096
	pingTimeout = 2 * time.Second
)

// readPace is how many entries the next reply may hold. The server limits a read
// by number alone, but its time, its output buffers and the link are limited by
// bytes. So reads begin small, follow the sizes seen, and are halved after a
// reply that did not arrive although the server answers. It is safe for
// concurrent use.
type readPace struct {
	key string // that is read: its server is asked whether it answers

	mu    sync.Mutex
	limit int           // of entries
	size  int           // of an entry, in bytes; grows at once, shrinks slowly
	wall  int           // number of entries that failed; 0 for none
	took  time.Duration // what the reply that failed took
	good  int           // full replies since
	every int           // good replies that it takes to try more than the wall
	last  int           // bytes of the last round trip that succeeded
}

// buffer returns a buffer for one of several replies that are together about as large as
// those of the last round trip.
func (p *readPace) buffer(replies int) *rawReply {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &rawReply{size: min(p.last+p.last/16, replyBytes) / replies}
}

// count returns how many entries to read, at most most.
func (p *readPace) count(most int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.limit == 0 {
		p.limit, p.size = firstRead, 1
	}
	return max(1, min(most, p.limit, replyBytes/p.size))
}

// passed notes a reply. What was not limited by the number asked for shows that
// there is no more: so the next burst begins smaller, as its entries may be of
// another size.
func (p *readPace) passed(entries, bytes int, full bool, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = bytes
	if entries > 0 {
		if size := bytes / entries; size > p.size {
			p.size = size
		} else {
			p.size = max(1, p.size+(size-p.size)/8)
		}
	}
	if !full {
		p.limit = min(p.limit, max(firstRead, 4*entries))
		return
	}
	p.limit = min(4*p.limit, 1<<20)
	if p.wall == 0 {
		return
	}
	// Below the wall, entries of the size that failed may come again.
	if p.good++; p.good >= p.every && 4*took < max(p.took, time.Second) {
		p.good, p.wall = 0, 2*p.wall
		if p.wall > 1<<16 {
			p.wall = 0
		}
	}
	if p.wall > 0 {
		p.limit = max(1, min(p.limit, p.wall/2))
	}
}

// failed notes a reply to a read of this many entries that did not arrive. It
// returns how many the next one may have.
func (p *readPace) failed(entries int, took time.Duration) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wall == 0 {
		p.every = growEvery
	} else {
		p.every = min(2*p.every, growSeldom)
	}
	p.wall, p.took, p.good = max(2, entries), took, 0
	p.limit = max(1, min(firstRead, entries/2))
	return p.limit
}

// readFailure is the failure of a read of entries. A connection that broke, or a
// reply that took too long, may be the fault of the reply's size: then the next
// one is smaller.
func (p *readPace) readFailure(ctx context.Context, client redis.UniversalClient, op string, entries int, began time.Time, err error) error {
	took := time.Since(began)
	if ctx.Err() != nil || !brokenReply(err) {
		return failure(op, err)
	}
	pinged, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	answer := client.Exists(pinged, p.key).Err() // on a Cluster PING asks any node
	if _, refused := errors.AsType[redis.Error](answer); answer != nil && !refused {
		return failure(op, err) // the server is away, whatever was asked
	}
	next := p.failed(entries, took)
	return failure(op, fmt.Errorf("no reply to a read of up to %d entries within %s, although Redis answers; the next read asks for %d%s: %w",
		entries, took.Round(time.Millisecond), next, limits(ctx, client), err))
}

// brokenReply reports whether an error is that of a connection in use.
func brokenReply(err error) bool {
	if _, ok := errors.AsType[redis.Error](err); ok {
		return false
	}
	op, ok := errors.AsType[*net.OpError](err)
	return !ok || op.Op != "dial"
}

// limits names the server's limits that such a read may have hit, as far as the
// user may ask for them.
func limits(ctx context.Context, client redis.UniversalClient) string {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	var set []string
	for _, name := range []string{"client-output-buffer-limit", "maxmemory-clients"} {
		found, err := client.ConfigGet(ctx, name).Result()
		if err != nil {
			return "; check the bandwidth to Redis, and its client-output-buffer-limit and maxmemory-clients"
		}
		value, _, _ := strings.Cut(found[name], " slave")
		if value != "0" && value != "normal 0 0 0" {
			set = append(set, name+" "+value)
		}
	}
	if len(set) == 0 {
		return "; check the bandwidth to Redis: it has no limit set for the memory of clients"
	}
	return "; Redis limits " + strings.Join(set, " and ") + ": raise it, unless the bandwidth is the cause"
}

package protocol

import (
	"sync/atomic"
	"time"
)

// Spread counts the leases of one kind that an instance holds, of which each of its
// streams has one, so that one instance does not hold those of all: what it has beyond its
// share it gives up, and with its share it lets others go first. Nothing relies on it.
type Spread struct {
	streams int
	held    atomic.Int32
}

// NewSpread returns the count for so many streams.
func NewSpread(streams int) *Spread { return &Spread{streams: streams} }

// Lease returns the lease of one of the streams.
func (s *Spread) Lease() *SpreadLease { return &SpreadLease{of: s} }

// share returns how many leases are due to one of so many members, rounded up.
func (s *Spread) share(peers int) int32 { return int32((s.streams + peers) / (peers + 1)) }

const (
	yieldFor = 250 * time.Millisecond // how long one with its share lets others go first
	giveEach = time.Minute            // a lease that nobody else takes is not given up again and again
)

// SpreadLease is the lease of one stream. It is for one goroutine; nil is of one stream alone.
type SpreadLease struct {
	of   *Spread
	held bool
	gave time.Time
}

// Hold records whether the lease is held.
func (l *SpreadLease) Hold(held bool) {
	if l == nil || held == l.held {
		return
	}
	l.held = held
	if held {
		l.of.held.Add(1)
	} else {
		l.of.held.Add(-1)
	}
}

// Yield returns how long to wait before a lease is asked for that is not held, so that one of
// the other members goes first that have fewer.
func (l *SpreadLease) Yield(peers int) time.Duration {
	if l == nil || l.held || peers == 0 || l.of.held.Load() < l.of.share(peers) {
		return 0
	}
	return yieldFor
}

// GiveUp reports whether to give the lease up to one of the other members, and records that.
func (l *SpreadLease) GiveUp(now time.Time, peers int) bool {
	if l == nil || !l.held || peers == 0 || now.Sub(l.gave) < giveEach {
		return false
	}
	for {
		n := l.of.held.Load()
		if n <= l.of.share(peers) {
			return false
		}
		if l.of.held.CompareAndSwap(n, n-1) {
			l.held, l.gave = false, now
			return true
		}
	}
}

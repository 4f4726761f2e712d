package protocol

import (
	"math"
	"time"
)

// loadFloor is how many entries per second a fleet finishes at least before its load matters.
const loadFloor = 100

// LoadTracker learns how many entries per second each shard costs. It is a moving
// average that lasts over owners: a shard that moved costs its new owner the same.
type LoadTracker struct {
	memory time.Duration
	shards []shardLoad
	first  time.Time // of the observations; zero before
}

type shardLoad struct {
	owner string
	count uint64 // of the owner's last report
	at    time.Time
	rate  float64
}

// NewLoadTracker returns a tracker that knows nothing yet. memory is the time constant of
// the average, and how long work must have been seen before it counts.
func NewLoadTracker(shards int, memory time.Duration) *LoadTracker {
	return &LoadTracker{memory: memory, shards: make([]shardLoad, shards)}
}

// Observe records how many entries of each of its shards a member has finished since
// it started, as seen at a moment. waits reports whether much of a shard waits: what is
// finished of it then is what its owner can do, not what it costs, so its average does
// not fall. A member that is overloaded or stalls would look idle otherwise.
func (l *LoadTracker) Observe(now time.Time, member string, shards []int, finished []uint64, waits func(shard int, rate float64) bool) {
	if l.first.IsZero() && len(finished) > 0 {
		l.first = now
	}
	for i, shard := range shards[:min(len(shards), len(finished))] {
		if shard < 0 || shard >= len(l.shards) {
			continue
		}
		s := &l.shards[shard]
		if s.owner != member || finished[i] < s.count {
			s.owner, s.count, s.at = member, finished[i], now
			continue
		}
		passed := now.Sub(s.at).Seconds()
		if passed <= 0 {
			continue
		}
		rate := float64(finished[i]-s.count) / passed
		if rate > s.rate || !waits(shard, s.rate) {
			s.rate += (rate - s.rate) * (1 - math.Exp(-passed/l.memory.Seconds()))
		}
		s.count, s.at = finished[i], now
	}
}

// Loads returns the entries per second of each shard, or nil while they are unknown or
// too few to matter.
func (l *LoadTracker) Loads(now time.Time) []float64 {
	if l.first.IsZero() || now.Sub(l.first) < l.memory {
		return nil
	}
	loads, total := make([]float64, len(l.shards)), 0.0
	for i, s := range l.shards {
		loads[i] = s.rate
		total += s.rate
	}
	if total < loadFloor {
		return nil
	}
	return loads
}

package protocol

import (
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// ShardWork is how far the work of a shard got.
type ShardWork struct {
	QueueState
	Acked telemetry.EntryID // the highest entry acknowledged; zero where that is not known
}

// ProgressTracker tells the shards that get on from those that do not. It is fed with
// where they stand, as often as somebody looks. It is not safe for concurrent use.
//
// Work of a shard finishes in the order of its queue, so a shard that has work
// and neither another oldest entry nor a higher mark than before has not
// advanced. Whose fault that is shows in what the others do meanwhile: when
// nobody advances it is an outage, and no shard is blamed.
type ProgressTracker struct {
	stall  time.Duration
	shards map[int]*shardProgress
	polled time.Time
}

type shardProgress struct {
	ShardWork
	since    time.Time     // it stands since then
	alone    time.Duration // for which it stood while others advanced
	advanced bool          // between the last two looks
}

// NewProgressTracker returns what knows nothing yet. A shard that stands for less than
// stall is not blamed.
func NewProgressTracker(stall time.Duration) *ProgressTracker {
	return &ProgressTracker{stall: stall, shards: make(map[int]*shardProgress)}
}

// Observe takes in where the shards stand; one that has nothing to do and no mark
// may be left out.
func (h *ProgressTracker) Observe(now time.Time, found map[int]ShardWork) {
	advanced := false
	for shard, was := range h.shards {
		s := found[shard]
		was.advanced = was.Acked.Less(s.Acked) ||
			was.Pending > 0 && (s.Pending == 0 || was.Oldest.Less(s.Oldest))
		advanced = advanced || was.advanced
	}
	// A long time without a look is no proof of what others did all the while.
	gap := min(now.Sub(h.polled), h.stall/4)
	next := make(map[int]*shardProgress, len(found))
	for shard, s := range found {
		was := h.shards[shard]
		if was == nil || was.advanced || was.Pending == 0 || was.Oldest != s.Oldest {
			next[shard] = &shardProgress{ShardWork: s, since: now, advanced: was != nil && was.advanced}
			continue
		}
		was.ShardWork = s
		if advanced {
			was.alone += gap
		}
		next[shard] = was
	}
	h.shards, h.polled = next, now
}

func (s *shardProgress) isStalled(now time.Time, stall time.Duration) bool {
	return s.Pending > 0 && now.Sub(s.since) >= stall
}

// Stalled lists the shards, ascending, that have had work and not advanced for
// all the time in which others did.
func (h *ProgressTracker) Stalled() []int {
	var stalled []int
	for shard, s := range h.shards {
		if s.Pending > 0 && s.alone >= h.stall {
			stalled = append(stalled, shard)
		}
	}
	slices.Sort(stalled)
	return stalled
}

// Since is when a shard was first found where it stands.
func (h *ProgressTracker) Since(shard int) (work ShardWork, since time.Time) {
	if s := h.shards[shard]; s != nil {
		return s.ShardWork, s.since
	}
	return ShardWork{}, h.polled
}

// Progressing reports whether a shard has nothing to do, or advanced between the last
// two looks.
func (h *ProgressTracker) Progressing(shard int) bool {
	s := h.shards[shard]
	return s == nil || s.Pending == 0 || s.advanced
}

// EffectiveBacklog is how many of the entries that are dispatched and unfinished count against the
// limit on dispatching: all but those of shards that stand while others advanced.
//
// While none has been seen to advance, that proves nothing: perhaps there was
// nothing for the others to do, since dispatching pauses for the sake of the one that
// stands; perhaps nobody can. So what stands is left out up to one more limit.
// In an outage dispatching pauses at twice the limit, therefore, and without an
// outage a shard alone does not keep work from the others.
func (h *ProgressTracker) EffectiveBacklog(now time.Time, pending, limit int) int {
	blamed, unproven := 0, 0
	for _, s := range h.shards {
		switch {
		case !s.isStalled(now, h.stall):
		case s.alone > 0:
			blamed += int(s.Pending)
		default:
			unproven += int(s.Pending)
		}
	}
	return max(0, pending-blamed-min(unproven, limit))
}

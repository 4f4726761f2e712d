package protocol

import (
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// ShardWork is the progress of a shard.
type ShardWork struct {
	QueueState
	Acked telemetry.EntryID // the highest entry acknowledged; zero if unknown
}

// ProgressTracker tells progressing shards from stalled ones, from samples of
// their work. It is not safe for concurrent use.
//
// Work of a shard finishes in queue order, so a shard has advanced if its
// oldest entry changed or its acked mark rose. A shard with work that does
// neither counts as stalled only for the time in which other shards advance: if
// none does it is an outage, and no shard is blamed.
type ProgressTracker struct {
	stall  time.Duration
	shards map[int]*shardProgress
	polled time.Time
}

type shardProgress struct {
	ShardWork
	since    time.Time     // no progress since then
	alone    time.Duration // time without progress while other shards advanced
	advanced bool          // between the last two samples
}

// NewProgressTracker returns a tracker without samples. A shard is blamed after
// stall without progress.
func NewProgressTracker(stall time.Duration) *ProgressTracker {
	return &ProgressTracker{stall: stall, shards: make(map[int]*shardProgress)}
}

// Observe records a sample. Shards without work and without an acked mark may
// be left out.
func (h *ProgressTracker) Observe(now time.Time, found map[int]ShardWork) {
	advanced := false
	for shard, was := range h.shards {
		s := found[shard]
		was.advanced = was.Acked.Less(s.Acked) ||
			was.Pending > 0 && (s.Pending == 0 || was.Oldest.Less(s.Oldest))
		advanced = advanced || was.advanced
	}
	// A long gap between samples does not show that others advanced all the
	// time.
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

// Stalled returns the shards, ascending, that had work and did not advance for
// stall while other shards did.
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

// Since returns a shard's last sample, and when it was first seen in that
// state.
func (h *ProgressTracker) Since(shard int) (work ShardWork, since time.Time) {
	if s := h.shards[shard]; s != nil {
		return s.ShardWork, s.since
	}
	return ShardWork{}, h.polled
}

// Progressing reports whether a shard has no work, or advanced between the last
// two samples.
func (h *ProgressTracker) Progressing(shard int) bool {
	s := h.shards[shard]
	return s == nil || s.Pending == 0 || s.advanced
}

// EffectiveBacklog returns how many dispatched and unfinished entries count
// against the limit on dispatching: all but those of shards that are stalled
// while others advance.
//
// If no shard advances we cannot tell an outage from a starved fleet (dispatch
// may have paused because of the stalled shard). So exclude stalled entries,
// but at most limit of them: in an outage dispatch stops at 2*limit.
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

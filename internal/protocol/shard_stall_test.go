package protocol_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

func entryAt(n int) telemetry.EntryID { return telemetry.EntryID{Ms: uint64(n)} }

// lying returns a queue of n entries, the first of which is the oldest.
func lying(n int64, oldest int) protocol.ShardWork {
	return protocol.ShardWork{QueueState: protocol.QueueState{Pending: n, Oldest: entryAt(oldest)}, Acked: entryAt(oldest - 1)}
}

// done returns an idle shard, acknowledged up to an entry.
func done(upTo int) protocol.ShardWork { return protocol.ShardWork{Acked: entryAt(upTo)} }

const stall = 30 * time.Second

func TestAShardThatStallsWhileOthersAdvanceIsNamedAndNotCounted(t *testing.T) {
	h, now := protocol.NewProgressTracker(stall), time.Unix(0, 0)
	for s := 0; s <= 30; s += 2 {
		now = now.Add(2 * time.Second)
		h.Observe(now, map[int]protocol.ShardWork{1: lying(900, 5), 2: lying(50, 10+s), 3: done(s)})
		require.Equal(t, s < 30, len(h.Stalled()) == 0, "after %d s", s)
	}
	require.Equal(t, []int{1}, h.Stalled())
	require.False(t, h.Progressing(1))
	require.True(t, h.Progressing(2))
	require.Equal(t, 60, h.EffectiveBacklog(now, 960, 100), "entries since the last sample are counted")
	// It advances.
	now = now.Add(2 * time.Second)
	h.Observe(now, map[int]protocol.ShardWork{1: lying(800, 105), 2: lying(50, 99)})
	require.Empty(t, h.Stalled())
	require.True(t, h.Progressing(1))
	require.Equal(t, 850, h.EffectiveBacklog(now, 850, 100))
}

func TestNoShardIsBlamedWhileNoneAdvances(t *testing.T) {
	h, now := protocol.NewProgressTracker(stall), time.Unix(0, 0)
	h.Observe(now, map[int]protocol.ShardWork{1: lying(60, 5), 2: lying(40, 7), 3: done(1)})
	for range 100 {
		now = now.Add(2 * time.Second)
		h.Observe(now, map[int]protocol.ShardWork{1: lying(60, 5), 2: lying(40, 7), 3: done(1)})
	}
	require.Empty(t, h.Stalled())
	require.Equal(t, 0, h.EffectiveBacklog(now, 100, 100), "up to one more limit")
	require.Equal(t, 100, h.EffectiveBacklog(now, 200, 100))
	// The outage ends, and they advance one after the other.
	now = now.Add(2 * time.Second)
	h.Observe(now, map[int]protocol.ShardWork{1: lying(60, 5), 2: done(90), 3: done(1)})
	require.Empty(t, h.Stalled())
	require.False(t, h.Progressing(1))
	require.True(t, h.Progressing(2))
}

func TestAShardThatGetsNewWorkStartsOver(t *testing.T) {
	h, now := protocol.NewProgressTracker(stall), time.Unix(0, 0)
	for s := range 40 {
		now = now.Add(time.Second)
		// Entries put back by a sweep or an acquisition precede the rest of the queue.
		h.Observe(now, map[int]protocol.ShardWork{1: {QueueState: protocol.QueueState{Pending: 3, Oldest: entryAt(100 - s)}}, 2: done(s)})
	}
	require.Empty(t, h.Stalled())
}

// P9: dispatching gets ahead by at most 2*limit when no shard advances; a shard that
// is stalled while others advance is excluded, so that it never starves them.
func TestP9DispatchingPausesInAnOutageAndForNoShardAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(200, 2000).Draw(t, "limit")
		shards := rapid.IntRange(2, 8).Draw(t, "shards")
		share := rapid.IntRange(1, 95).Draw(t, "percent of entries that are the stuck shard's")
		rate := rapid.IntRange(50, 500).Draw(t, "arrivals between two looks")
		h, now := protocol.NewProgressTracker(stall), time.Unix(0, 0)
		const stuck = 0
		queue, acked := make([][]int, shards), make([]int, shards)
		next := 1
		round := func(outage bool) (dispatched int) {
			now = now.Add(2 * time.Second)
			found, pending := map[int]protocol.ShardWork{}, 0
			for s, q := range queue {
				w := protocol.ShardWork{Acked: entryAt(acked[s])}
				if len(q) > 0 {
					w.Pending, w.Oldest = int64(len(q)), entryAt(q[0])
				}
				found[s], pending = w, pending+len(q)
			}
			h.Observe(now, found)
			for ; dispatched < rate && h.EffectiveBacklog(now, pending, limit) < limit; dispatched++ {
				s := stuck
				if next%100 >= share {
					s = 1 + next%(shards-1)
				}
				queue[s] = append(queue[s], next)
				next, pending = next+1, pending+1
			}
			for s, q := range queue {
				if s != stuck && !outage && len(q) > 0 {
					acked[s], queue[s] = q[len(q)-1], nil
				}
			}
			return dispatched
		}
		for range rapid.IntRange(0, 60).Draw(t, "rounds before the outage") {
			round(false)
		}
		before := len(queue[stuck])
		for range 120 {
			round(true)
		}
		blamed := before > 0 // others advanced while it was stalled: it is not counted
		left := 0
		for s, q := range queue {
			if s != stuck || !blamed {
				left += len(q)
			}
		}
		require.LessOrEqual(t, left, 2*limit)
		require.True(t, round(true) == 0 || blamed, "an outage makes dispatching pause")
		paused := 0
		for range 100 {
			if round(false) == 0 {
				paused++
			}
		}
		require.LessOrEqual(t, paused, 2*int(stall/(2*time.Second)), "%d of one shard are stuck, the limit is %d", len(queue[stuck]), limit)
	})
}

package pipeline

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/telemetry"
)

// P5: what a look-up found is refused if its device may have been known since it began.
func TestP5ALookUpThatWasOvertakenTeachesNothing(t *testing.T) {
	t.Parallel()
	const id = "a"
	shard := telemetry.ShardOf(id, 3)
	for name, tt := range map[string]struct {
		meanwhile func(w *worker)
		want      bool
	}{
		"nothing happened":         {func(*worker) {}, true},
		"the state became invalid": {func(w *worker) { w.state.invalidate(shard) }, false},
		"it was known, and forgotten": {func(w *worker) {
			w.state.learn(id, shard, geofence.Fix{TimeUS: 9})
			w.state.drop(w.state.slots[w.state.hash(id)])
		}, false},
		"there is no room any more": {func(w *worker) { w.state.max = 0 }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := &worker{state: newState(10, 3, func() {}), metrics: newMetrics(prometheus.NewRegistry(), &table{})}
			w.cfg.Shards = 3
			l := &lookUp{devices: []string{id}, generations: []uint32{w.state.generations[shard]}, drops: w.state.drops, found: []geofence.Fix{{TimeUS: 5}}}
			tt.meanwhile(w)
			w.learnAhead(l)
			d := w.state.find(id, shard)
			require.Equal(t, tt.want, d != nil && d.watermark == 5)
		})
	}
}

// P5: what commits under an earlier grant may be acknowledged before the queue is read, so that
// a look-up which does not see it would be the last word.
func TestP5NothingIsLookedUpAheadBesideACommitOfAnEarlierGrant(t *testing.T) {
	t.Parallel()
	const id = "a"
	shard := telemetry.ShardOf(id, 3)
	w := &worker{state: newState(10, 3, func() {}), owned: map[int]ownedShard{shard: {grant: 5}}, committing: &batch{parts: []part{{shard: shard, grant: 4}}}}
	require.True(t, w.mayLookAhead(id, shard))
	w.busy = true
	require.False(t, w.mayLookAhead(id, shard))
	w.committing.parts[0].grant = 5
	require.True(t, w.mayLookAhead(id, shard))
	w.owned = nil
	require.False(t, w.mayLookAhead(id, shard))
}

// P3, P5: nothing is loaded ahead while something that arrived waits for the worker.
func TestWhatWaitsGoesBeforeWhatIsLoadedAhead(t *testing.T) {
	t.Parallel()
	w := &worker{state: newState(10, 3, func() {}), box: newMailbox(), metrics: newMetrics(prometheus.NewRegistry(), &table{}), current: &batch{}}
	w.cfg.Shards, w.pace.limit = 3, 1
	done := false
	w.wanted = []message{{kind: wanted, shard: -1, done: func() { done = true }}}
	w.inbox = []message{{kind: flushShard, shard: 1}}
	w.current.entries, w.busy = 1, true // a batch that is full waits for the one that commits
	require.NoError(t, w.advance(t.Context()))
	require.False(t, done)
	w.current.entries = 0
	require.NoError(t, w.advance(t.Context()))
	require.True(t, done)
}

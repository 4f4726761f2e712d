package pipeline

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
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

// P5: nor is what is read of the queue applied, whose devices would be looked up.
func TestP5NothingIsAppliedBesideACommitOfAnEarlierGrant(t *testing.T) {
	t.Parallel()
	const shard = 1
	w := &worker{
		state: newState(10, 3, func() {}), box: newMailbox(), attempts: NewAttempts(), fences: &fences{}, decoder: telemetry.NewDecoder(telemetry.Limits{}),
		owned: map[int]ownedShard{shard: {grant: 5}}, current: &batch{}, busy: true, committing: &batch{parts: []part{{shard: shard, grant: 4}}},
	}
	w.cfg.Shards, w.cfg.Workers, w.cfg.MaxInFlightBytes, w.pace.limit = 3, 1, 1<<20, 9
	w.inbox = []message{{kind: work, shard: shard, grant: 5, entries: []telemetry.Entry{{ID: telemetry.EntryID{Ms: 1}}}}}
	require.NoError(t, w.advance(t.Context()))
	require.Zero(t, w.current.entries)
	w.committing.parts[0].grant = 5
	require.NoError(t, w.advance(t.Context()))
	require.Equal(t, 1, w.current.entries)
}

// registry has devices, and nothing else that is asked of it.
type registry struct {
	Requests
	devices []string // sorted
}

func (r registry) Registered(_ context.Context, after string, limit int) ([]string, error) {
	from, found := slices.BinarySearch(r.devices, after)
	if found {
		from++
	}
	return r.devices[from:min(len(r.devices), from+limit)], nil
}

func TestABusyWorkerHoldsUpNoOtherThatLoadsAhead(t *testing.T) {
	t.Parallel()
	p := &Pipeline{table: newTable(Config{Shards: 2, Workers: 2, MaxInFlightRecords: 2}), log: slog.New(slog.DiscardHandler)}
	p.metrics = newMetrics(prometheus.NewRegistry(), p.table)
	all := registry{}
	for i := range 3 * wantedPage {
		all.devices = append(all.devices, fmt.Sprintf("%06d", i))
	}
	p.scheduler = &requestScheduler{requests: all}
	loading := make(chan struct{}, 1)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for n := range 2 {
		w := &worker{box: newMailbox(), ahead: newAhead(p, n, loading)}
		p.table.workers = append(p.table.workers, w)
		p.table.slots[n].owned, p.table.slots[n].worker = true, n
	}
	for n, w := range p.table.workers {
		running.Go(func() { _ = w.ahead.run(ctx) })
		w.ahead.want(n)
	}
	// The first worker takes nothing at all.
	idle := p.table.workers[1]
	got := 0
	running.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-idle.box.signal:
			}
			for _, m := range idle.box.take(nil) {
				for _, id := range m.devices {
					if telemetry.ShardOf(id, 2) == 1 {
						got++
					}
				}
				m.done()
			}
			if got == len(all.devices)-count(all.devices, 0) {
				stop()
			}
		}
	})
	running.Wait()
	require.NoError(t, t.Context().Err())
}

// count returns how many devices belong to one shard of two.
func count(devices []string, shard int) (n int) {
	for _, id := range devices {
		if telemetry.ShardOf(id, 2) == shard {
			n++
		}
	}
	return n
}

// P3, P5: nothing is loaded ahead while something that arrived waits for the worker.
func TestWhatWaitsGoesBeforeWhatIsLoadedAhead(t *testing.T) {
	t.Parallel()
	w := &worker{state: newState(10, 3, func() {}), box: newMailbox(), metrics: newMetrics(prometheus.NewRegistry(), &table{}), current: &batch{}}
	w.cfg.Shards, w.cfg.Workers, w.cfg.MaxInFlightBytes, w.pace.limit = 3, 1, 1<<20, 1
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

package pipeline

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

func TestABatchOfABacklogMayWaitLonger(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for _, tt := range []struct{ age, gathered, maxAge, want time.Duration }{
		{0, 20 * ms, 20 * ms, 0},
		{36 * ms, 20 * ms, 20 * ms, 2 * ms},
		{820 * ms, 20 * ms, 20 * ms, 100 * ms},
		{time.Hour, 20 * ms, 20 * ms, 1000 * ms},
		{time.Hour, 200 * ms, 10_000 * ms, 10_000 * ms},
		{-time.Hour, 20 * ms, 20 * ms, 0}, // the clock of Redis is ahead of ours
		{0, 500 * ms, 2000 * ms, 1500 * ms},
	} {
		require.Equal(t, tt.want, maxBatchWait(tt.age, tt.gathered, tt.maxAge), "of entries that are %s old", tt.age)
	}
}

// A batch that gathers leaves the other ones of an instance what they need to go on.
func TestABatchNeverHoldsAllThatMayBeInFlight(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ inFlight, workers, want int64 }{
		{64 << 20, 2, 8 << 20},
		{8 << 20, 2, 2 << 20},
		{8 << 20, 16, 256 << 10},
	} {
		c := Config{MaxInFlightBytes: tt.inFlight, Workers: int(tt.workers)}
		require.Equal(t, tt.want, c.batchMaxBytes())
	}
}

// What beside the worker panics ends the process, too, and is reported before.
func TestAPanicBesideAWorkerIsReported(t *testing.T) {
	t.Parallel()
	var reported any
	w := &worker{commits: make(chan *batch, 1), ackQueue: make(chan *batch, 1), panicked: func(value any) { reported = value }}
	w.commits <- nil // which nothing can be done with
	w.ackQueue <- nil
	for _, run := range []func(context.Context) error{w.ackLoop, w.commitLoop} {
		reported = nil
		require.Panics(t, func() { _ = run(t.Context()) })
		require.NotNil(t, reported)
	}
}

// P9: what waits apart holds its own bytes, which are counted, and not the whole reply that it
// came in, which is mostly of other shards.
func TestP9WhatWaitsApartPinsNoReply(t *testing.T) {
	t.Parallel()
	for name, setApart := range map[string]func(*worker, []telemetry.Entry) message{
		"of a slow shard": func(w *worker, entries []telemetry.Entry) message {
			w.slow[0] = &slowShard{limit: 1}
			w.box.put(message{kind: work, grant: 1, entries: entries})
			require.NoError(t, w.advance(t.Context()))
			return w.slow[0].queue[0]
		},
		"during a step": func(w *worker, entries []telemetry.Entry) message {
			w.steps[0] = &step{}
			w.box.put(message{kind: work, grant: 1, entries: entries})
			require.NoError(t, w.advance(t.Context()))
			return w.steps[0].aside[0]
		},
		"after a batch that was too much": func(w *worker, entries []telemetry.Entry) message {
			w.slow[0] = &slowShard{limit: 2}
			require.NoError(t, w.redo(t.Context(), &batch{smaller: true, parts: []part{{grant: 1, entries: entries}}}, false))
			return w.slow[0].queue[0]
		},
	} {
		w := &worker{
			cfg: Config{Workers: 1, MaxInFlightBytes: 1 << 20}, pace: newPace(10), owned: map[int]ownedShard{0: {grant: 1}}, slow: make(map[int]*slowShard), steps: make(map[int]*step),
			box: newMailbox(), state: newState(1, 1, func() {}), current: &batch{entries: 1}, committing: &batch{}, busy: true,
		}
		reply := make([]byte, 1<<20)
		copy(reply, "device_id1")
		text := unsafe.String(&reply[0], len(reply))
		gone := make(chan struct{})
		runtime.AddCleanup(&reply[0], func(done chan struct{}) { close(done) }, gone)
		waits := setApart(w, []telemetry.Entry{{Fields: []string{text[:9], text[9:10]}}, {ID: telemetry.EntryID{Ms: 1}}})
		testenv.Wait(t, 10*time.Second, func() error {
			runtime.GC()
			select {
			case <-gone:
				return nil
			default:
				return errors.New(name + ": the reply is still there")
			}
		})
		require.Equal(t, []telemetry.Entry{{Fields: []string{"device_id", "1"}}, {ID: telemetry.EntryID{Ms: 1}}}, waits.entries)
	}
}

// P5: the current batch may be computed on top of the state of a shard of which a batch of a slow shard
// has no more than the progress mark. Loaded anew it would lack what is not committed yet.
func TestP5ABatchOfASlowShardThatFailsLeavesTheStateOfOthers(t *testing.T) {
	t.Parallel()
	for name, taken := range map[string]bool{"it is redone": false, "its shard was taken": true} {
		w := &worker{
			pace: newPace(10), owned: map[int]ownedShard{0: {grant: 1, unmarked: telemetry.EntryID{Ms: 1}}, 1: {grant: 1}}, slow: map[int]*slowShard{0: {limit: 2}},
			state: newState(10, 2, func() {}), current: &batch{},
		}
		w.state.learn("of the slow shard", 0, geofence.Fix{TimeUS: 1})
		w.state.learn("of another", 1, geofence.Fix{TimeUS: 1})
		entries := []telemetry.Entry{{ID: telemetry.EntryID{Ms: 1}}}
		w.current.parts, w.current.entries = append(w.current.parts, part{shard: 1, grant: 1, entries: entries}), 1
		mark := protocol.Applied{Shard: 1, ID: telemetry.EntryID{Ms: 7}}
		failed := &batch{apart: true, smaller: true, parts: []part{{grant: 1, entries: entries}, {shard: 1, grant: 1}}, applied: []protocol.Applied{mark}}
		if taken {
			failed.parts = failed.parts[1:]
		}
		require.NoError(t, w.redo(t.Context(), failed, false), name)
		require.NotNil(t, w.state.find("of another", 1), name)
		require.True(t, w.current.has(1), name)
		require.Equal(t, mark.ID, w.owned[1].unmarked, name)
		if !taken {
			require.Nil(t, w.state.find("of the slow shard", 0), name)
			require.Len(t, w.slow[0].queue, 1, name)
			require.Zero(t, w.owned[0].unmarked, "it would be beyond what waits")
		}
	}
}

package pipeline

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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

package pipeline_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/pipeline"
)

// readBack counts the entries that are read from queues. The first reply with any is late,
// so that a dispatcher which does not wait for it would get on meanwhile.
type readBack struct {
	pipeline.Source
	entries *atomic.Int64
}

func (s readBack) ReadQueues(ctx context.Context, reads []protocol.QueueRead) ([]protocol.QueueReply, error) {
	replies, err := s.Source.ReadQueues(ctx, reads)
	n := 0
	for _, r := range replies {
		n += len(r.Entries)
	}
	if s.entries.Add(int64(n)) == int64(n) && n > 0 {
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return replies, err
}

// An instance without others does not dispatch what it would have to read back: before it
// owns a shard, and while it reads what was dispatched before. Several streams start at the
// same time, and read nearly all of a backlog twice otherwise.
func TestDispatchWaitsForQueuesThatAreReadBack(t *testing.T) {
	t.Parallel()
	const first, second, read = 2000, 8000, 100
	b := newBench(t)
	lot := func(from, n int) (entries [][]string) {
		for i := range n {
			entries = append(entries, at(i%200, int64(from+i/200)))
		}
		return entries
	}
	small := func(cfg *pipeline.Config, _ *pipeline.Deps) {
		cfg.ReadBatchRecords, cfg.MaxInFlightRecords, cfg.Workers, cfg.DispatchLeaseTTL = read, 32768, 2, 400*time.Millisecond
	}
	b.Publish(lot(0, first)...)
	other := b.Start("other", small, func(_ *pipeline.Config, deps *pipeline.Deps) { deps.Peers = func() int { return 1 } })
	testenv.Wait(t, 20*time.Second, func() error {
		if n := b.pending(); n != first {
			return fmt.Errorf("%d of %d are dispatched for others", n, first)
		}
		return nil
	})
	other.End()
	b.Publish(lot(first/200, second)...)

	var back atomic.Int64
	in := b.Start("one", small, func(_ *pipeline.Config, deps *pipeline.Deps) { deps.Source = readBack{deps.Source, &back} })
	var held time.Time
	testenv.Wait(t, 20*time.Second, func() error {
		if held.IsZero() && in.gauge(t, "processor_pipeline_dispatcher") == 1 {
			held = time.Now()
		}
		if since := time.Since(held); held.IsZero() || since < time.Second {
			return fmt.Errorf("it dispatches since %v", since)
		}
		return nil
	})
	require.LessOrEqual(t, b.pending(), int64(first+2*read), "dispatched to queues that nobody reads")
	b.AcquireAll(in)
	b.Settled(30*time.Second, 0)
	require.Equal(t, first+second, b.Count("select count(*) from positions"))
	t.Logf("%d of %d entries were read from queues", back.Load(), first+second)
	require.Less(t, back.Load(), int64(first+second/4))
}

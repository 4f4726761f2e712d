package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

// committedInOrder is a sink that notes what is committed, in order.
type committedInOrder struct {
	pipeline.Sink
	mu  sync.Mutex
	ids []telemetry.EntryID
}

func (s *committedInOrder) Write(ctx context.Context, b *protocol.Batch) (protocol.CommitResult, error) {
	written, err := s.Sink.Write(ctx, b)
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i := range b.Fresh {
			s.ids = append(s.ids, b.Fresh[i].ID)
		}
	}
	return written, err
}

// TestP3DispatchedEntriesOvertakeNothingOnTheQueue has an instance dispatch to a shard
// whose queue it has not read to its end.
func TestP3DispatchedEntriesOvertakeNothingOnTheQueue(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var sink committedInOrder
	in := b.Start("one", func(c *pipeline.Config, d *pipeline.Deps) {
		c.ReadBatchRecords = 10
		sink.Sink, d.Sink = d.Sink, &sink
		d.Peers = func() int { return 1 } // alone it would wait for what is to be read back
	})
	const n = 500
	entries := make([][]string, 2*n)
	for i := range entries {
		entries[i] = at(1, int64(i))
	}
	ids := b.Publish(entries[:n]...)
	testenv.Wait(t, 10*time.Second, func() error {
		if dispatched := b.pending(); dispatched < n {
			return fmt.Errorf("%d are dispatched", dispatched)
		}
		return nil
	})
	held := b.take(in, "of the owner")
	grant(t, in, held)
	ids = append(ids, b.Publish(entries[n:]...)...)
	b.Settled(20*time.Second, 0)
	sink.mu.Lock()
	defer sink.mu.Unlock()
	require.Equal(t, ids, sink.ids)
}

// TestP3AShardIsHandedOverWithNothingUnderWay stops a shard while a commit of it
// waits for Postgres.
func TestP3AShardIsHandedOverWithNothingUnderWay(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	in := b.Start("one")
	b.AcquireAll(in)
	release := b.holdCommits()
	shard := telemetry.ShardOf(fleet.DeviceID(1), shards)
	b.Publish(at(1, 1), at(1, 2))
	testenv.Wait(t, 10*time.Second, func() error {
		if in.InFlight() < 2 {
			return errors.New("not in flight yet")
		}
		return nil
	})
	for range 2 { // asking again changes nothing
		select {
		case <-in.Stop(shard):
			require.Fail(t, "handed over with work under way")
		default:
		}
	}
	release()
	select {
	case <-in.Stop(shard):
	case <-time.After(10 * time.Second):
		require.Fail(t, "not handed over")
	}
	require.NoError(t, b.rows(2))
	require.Zero(t, b.pending())
	b.Publish(at(1, 3))
	testenv.Wait(t, 10*time.Second, func() error {
		if n := b.pending(); n != 1 {
			return fmt.Errorf("%d are pending", n)
		}
		return nil
	})
	require.Zero(t, in.InFlight(), "what follows is for the next owner")
}

// TestAHandOverWaitsForNoFullerBatch: neither what is in flight of a shard that is to be
// released nor what waits for its new owner waits for others to share a batch with.
func TestAHandOverWaitsForNoFullerBatch(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	in := b.Start("one", func(c *pipeline.Config, _ *pipeline.Deps) { c.BatchMaxAge = time.Hour })
	b.AcquireAll(in)
	shard := telemetry.ShardOf(fleet.DeviceID(1), shards)
	b.Publish(at(1, 1))
	testenv.Wait(t, 10*time.Second, func() error {
		if in.InFlight() > 0 {
			return errors.New("the first is not finished")
		}
		return b.rows(1)
	})
	b.Publish(at(1, 2))
	testenv.Wait(t, 10*time.Second, func() error {
		if in.InFlight() < 1 {
			return errors.New("not in flight yet")
		}
		return nil
	})
	select {
	case <-in.Stop(shard):
	case <-time.After(10 * time.Second):
		require.Fail(t, "not handed over")
	}
	require.NoError(t, b.rows(2))
}

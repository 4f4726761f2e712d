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

// countedSource counts the queues read, and the tries for the dispatch lease.
type countedSource struct {
	pipeline.Source
	reads, tries *atomic.Int64
}

func (s countedSource) ReadQueues(ctx context.Context, reads []protocol.QueueRead) ([]protocol.QueueReply, error) {
	s.reads.Add(int64(len(reads)))
	return s.Source.ReadQueues(ctx, reads)
}

func (s countedSource) AcquireDispatchLease(ctx context.Context, before, token string, ttl time.Duration) (protocol.DispatchLease, error) {
	defer s.tries.Add(1)
	return s.Source.AcquireDispatchLease(ctx, before, token, ttl)
}

// Quiet queues are not polled: an owner that does not dispatch reads them when entries
// were dispatched, even if no notification says so.
func TestAQuietQueueIsReadOnlyWhenEntriesWereDispatched(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	dispatching := b.Start("dispatching")
	testenv.Wait(t, 10*time.Second, func() error {
		if in, err := b.ours().Info(t.Context()); err != nil || !in.GroupExists {
			return fmt.Errorf("no group yet: %w", err)
		}
		return nil
	})
	var reads, tries atomic.Int64
	owner := b.Start("owner", func(_ *pipeline.Config, d *pipeline.Deps) { d.Source = countedSource{d.Source, &reads, &tries} })
	b.AcquireAll(owner)
	for round := range int64(3) {
		b.Publish(at(1, round), at(2, round))
		b.Settled(2*time.Second, 0)
	}
	require.Equal(t, 6, b.Count("select count(*) from positions"))

	before, from := reads.Load(), tries.Load()
	testenv.Wait(t, 20*time.Second, func() error {
		if n := tries.Load() - from; n < 10 {
			return fmt.Errorf("%d tries for the lease", n)
		}
		return nil
	})
	require.LessOrEqual(t, reads.Load()-before, int64(shards), "at most one poll of all within two seconds")
	dispatching.End()
}

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
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/pipeline"
)

// heldAcks keeps acknowledgements back, as an owner does that is frozen between
// a commit and its acknowledgement.
type heldAcks struct {
	pipeline.Acker
	first   chan struct{} // closed when one is held back
	release chan struct{} // closed to let them through
	once    sync.Once

	mu   sync.Mutex
	errs []error // of what came through
}

func (h *heldAcks) Ack(ctx context.Context, acks []protocol.Ack) error {
	h.once.Do(func() { close(h.first) })
	<-h.release
	err := h.Acker.Ack(ctx, acks)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.errs = append(h.errs, err)
	return err
}

// take has an instance take every shard as coordination does, and returns how it
// holds them. Granting them is left to the caller.
func (b *bench) take(in *instance, token string) []protocol.ShardLease {
	b.TB.Helper()
	ctx := context.Background()
	_, err := b.Pool.Exec(ctx, "update processor.assignments set member = $1 where stream = $2", in.Member, b.Stream)
	require.NoError(b.TB, err)
	var held []protocol.ShardLease
	var all []int
	for s := range shards {
		taken, err := in.Shards.Acquire(ctx, s, in.Member, "")
		require.NoError(b.TB, err)
		held, all = append(held, protocol.ShardLease{Shard: s, Epoch: taken.Epoch, Token: token}), append(all, s)
	}
	_, err = b.ours().RegisterOwner(ctx, token, all)
	require.NoError(b.TB, err)
	return held
}

// ours is the group, to look at and to enter.
func (b *bench) ours() *stream.Group {
	b.TB.Helper()
	group, err := stream.NewGroup(b.Client, stream.Config{Stream: b.Stream, Group: b.Group, Shards: shards})
	require.NoError(b.TB, err)
	return group
}

// rows reports whether so many positions are stored.
func (b *bench) rows(want int) error {
	if n := b.Count("select count(*) from positions"); n != want {
		return fmt.Errorf("want %d rows, have %d", want, n)
	}
	return nil
}

func grant(t *testing.T, in *instance, held []protocol.ShardLease) {
	t.Helper()
	for _, h := range held {
		require.NoError(t, in.Grant(h))
	}
}

// P1, P4: an owner committed and froze; Postgres lost the commit; another one took
// the shards. The acknowledgement of the first comes in then. It must change
// nothing: the entry would be neither in Postgres nor on a queue.
func TestP1P4ADelayedAcknowledgementChangesNothingOnceTheShardIsAcquired(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := &heldAcks{first: make(chan struct{}), release: make(chan struct{})}
	var once sync.Once
	release := func() { once.Do(func() { close(held.release) }) }
	old := b.Start("old", func(_ *pipeline.Config, deps *pipeline.Deps) {
		held.Acker, deps.Acker = deps.Acker, held
	})
	t.Cleanup(release)
	grant(t, old, b.take(old, "of the old owner"))
	ids := b.Publish(at(1, 1), at(2, 1), at(3, 1), at(1, 2))
	<-held.first
	testenv.Wait(t, 10*time.Second, func() error { return b.rows(4) })
	pending, err := b.ours().Pending(t.Context(), 100)
	require.NoError(t, err)
	require.Equal(t, ids, pending)

	next := b.Start("next", func(*pipeline.Config, *pipeline.Deps) {})
	_, err = b.Pool.Exec(t.Context(), "delete from positions") // Postgres as it was before
	require.NoError(t, err)
	taken := b.take(next, "of the next owner")
	release()
	// The old owner hears of it, and gives its shards up.
	testenv.Wait(t, 10*time.Second, func() error {
		held.mu.Lock()
		defer held.mu.Unlock()
		if len(held.errs) == 0 {
			return errors.New("nothing came through")
		}
		var lost *protocol.Failure
		require.ErrorAs(t, held.errs[0], &lost)
		require.Equal(t, protocol.Lost, lost.Kind)
		return nil
	})
	pending, err = b.ours().Pending(t.Context(), 100)
	require.NoError(t, err)
	require.Equal(t, ids, pending, "nothing was acknowledged")
	acked, _, err := b.ours().Marks(t.Context())
	require.NoError(t, err)
	require.Empty(t, acked, "no mark was moved")

	grant(t, next, taken)
	testenv.Wait(t, 10*time.Second, func() error { return b.rows(4) })
	b.Settled(10*time.Second, 0)
	testenv.Wait(t, 10*time.Second, func() error {
		if len(old.Lost()) == 0 {
			return errors.New("the old owner does not give its shards up")
		}
		return nil
	})
}

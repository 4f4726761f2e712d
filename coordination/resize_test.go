package coordination

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
)

// pin pins the number of shards as an instance does when it starts.
func (b *bench) pin(n int) {
	b.t.Helper()
	require.NoError(b.t, store.Pin(b.t.Context(), b.pool, b.scope(), "test", time.Second, []store.Setting{{Name: "SHARDS", Value: fmt.Sprint(n)}}))
}

// resize returns a Resize as the operator's command runs it.
func (b *bench) resize(said chan<- string) *Resize {
	return &Resize{
		Store: b.shards, Stream: b.group,
		Members: func(ctx context.Context) ([]Member, error) {
			return ReadMembers(ctx, b.client, Keys{Prefix: b.group.Names().Members()})
		},
		End:        store.NewSessions(b.pool, time.Second).End,
		OnProgress: func(waiting string) { said <- waiting },
		Operator:   "test",
	}
}

func TestTheNumberOfShardsChangesOnceDrainedAndNoMemberIsLeft(t *testing.T) {
	b := newBench(t)
	b.pin(shards)
	m := b.start("first", "")
	b.await([]int{16}, m)
	device := "device-1"
	old := telemetry.ShardOf(device, shards)
	for range 5 {
		require.NoError(t, b.client.XAdd(t.Context(), xadd(b.where.Stream, device)).Err())
	}
	require.NoError(t, b.dispatch("", "dispatcher", 1000))
	// One entry is deferred.
	b.exec(`insert into processor.deferred (stream, group_name, entry_id, shard, fields, class, error, fingerprint, attempts, first_failed_at, last_failed_at, next_attempt_at, instance, version, digest)
values ($1, $2, '1-1', $3, array['device_id', $4]::bytea[], 'decode', 'x', 'x', 1, now(), now(), now() + interval '1 hour', 'i', 'v', $5)`,
		b.where.Stream, b.where.Group, old, []byte(device), (&telemetry.Entry{Fields: []string{"device_id", device}}).Digest())

	said := make(chan string, 100)
	done := make(chan error, 1)
	go func() {
		_, err := b.resize(said).Run(context.WithoutCancel(t.Context()), 24)
		done <- err
	}()
	require.Contains(t, <-said, "dispatching is paused, 5 entries are on the queues")
	require.NoError(t, b.client.XAdd(t.Context(), xadd(b.where.Stream, device)).Err())
	require.ErrorContains(t, b.dispatch("", "dispatcher", 1000), "another member dispatches")
	queue, err := b.group.ReadQueues(t.Context(), []protocol.QueueRead{{Shard: old, Count: 10}})
	require.NoError(t, err)
	require.Len(t, queue[0].Entries, 5)
	ids := make([]telemetry.EntryID, 5)
	for i, e := range queue[0].Entries {
		ids[i] = e.ID
	}
	require.NoError(t, b.group.Ack(t.Context(), []protocol.Ack{{Shard: old, Token: m.engine.token(old), IDs: ids}}))
	require.Contains(t, <-said, "stop the instances now; still there: 1")
	m.stop()
	require.NoError(t, <-done)

	list := b.list()
	require.Len(t, list, 24)
	for _, s := range list {
		require.Empty(t, s.Owner)
		require.Empty(t, s.Assigned)
		require.Equal(t, ids[4], s.Applied)
		require.Positive(t, s.Epoch, "earlier owners are fenced")
	}
	require.Equal(t, telemetry.ShardOf(device, 24), b.count("select shard from processor.deferred"))
	require.Equal(t, 1, b.count("select count(*) from processor.audit where action = 'shards.resize' and count = 24"))

	// An outdated member that resumes late neither dispatches nor keeps running.
	_, err = b.group.AcquireDispatchLease(t.Context(), "", "late", time.Minute)
	var f *protocol.Failure
	require.ErrorAs(t, err, &f)
	require.Equal(t, protocol.Misconfigured, f.Kind)
	require.ErrorContains(t, err, "SHARDS=24")
	late := b.start("late", "")
	require.ErrorContains(t, late.ended(), "SHARDS=24")
	late.forgive()
	late.stop()

	// Members with the new number continue where dispatching was paused.
	b.where.Shards = 24
	b.group, err = stream.NewGroup(b.client, b.where)
	require.NoError(t, err)
	next := b.start("next", "", func(c *Config) { c.Shards = 24 })
	b.await([]int{24}, next)
	require.NoError(t, b.dispatch("", "next", 1000))
	queues, err := b.group.Queues(t.Context())
	require.NoError(t, err)
	require.Len(t, queues, 1)
	require.Equal(t, int64(1), queues[telemetry.ShardOf(device, 24)].Pending, "what had waited, and nothing twice")

	changed, err := b.resize(said).Run(t.Context(), 24)
	require.NoError(t, err)
	require.False(t, changed)
}

func TestAnInterruptedResizeChangesNothingOrIsCompletedByTheNext(t *testing.T) {
	b := newBench(t)
	b.pin(shards)
	m := b.start("first", "")
	b.await([]int{16}, m)
	ctx, cancel := context.WithCancel(t.Context())
	said := make(chan string, 100)
	go func() {
		<-said // it waits for the instances to be stopped
		cancel()
	}()
	_, err := b.resize(said).Run(ctx, 8)
	require.ErrorContains(t, err, "nothing was changed")
	require.NoError(t, b.dispatch("", "dispatcher", 1000), "dispatching continues")
	require.NoError(t, b.group.ReleaseDispatchLease(t.Context(), "dispatcher"))
	require.Len(t, b.list(), 16)

	m.stop()
	// Killed after the change in Redis and before the one in Postgres.
	require.NoError(t, b.group.PinShards(t.Context(), 8))
	require.Error(t, b.dispatch("", "dispatcher", 1000), "no dispatcher in between")
	changed, err := b.resize(said).Run(t.Context(), 8)
	require.NoError(t, err)
	require.True(t, changed)
	require.Len(t, b.list(), 8)
	n, err := b.group.PinnedShards(t.Context())
	require.NoError(t, err)
	require.Equal(t, 8, n)
}

func TestAResizeChangesNothingWhereARequestComesOnceAllIsDone(t *testing.T) {
	b := newBench(t)
	b.pin(shards)
	resize := b.resize(make(chan string, 100))
	resize.Members = func(context.Context) ([]Member, error) { // asked last
		b.exec("insert into processor.requests (stream, group_name, kind, shard, requested_by) values ($1, $2, 'recompute', 3, 'test')", b.where.Stream, b.where.Group)
		return nil, nil
	}
	_, err := resize.Run(t.Context(), 8)
	require.ErrorContains(t, err, "nothing was changed: run it again")
	require.NoError(t, b.dispatch("", "dispatcher", 1000), "by the number that there was")
}

func TestAResizeChangesNothingWhereEntriesComeBackOnceAllIsDone(t *testing.T) {
	b := newBench(t)
	b.pin(shards)
	require.NoError(t, b.client.XAdd(t.Context(), xadd(b.where.Stream, "device-1")).Err())
	require.NoError(t, b.dispatch("", "dispatcher", 1000))
	queues, err := b.group.Queues(t.Context())
	require.NoError(t, err)
	shard := telemetry.ShardOf("device-1", shards)
	ids := []telemetry.EntryID{queues[shard].Oldest}
	require.NoError(t, b.client.XAck(t.Context(), b.where.Stream, b.where.Group, ids[0].String()).Err())
	resize := b.resize(make(chan string, 100))
	resize.Members = func(context.Context) ([]Member, error) { // asked last
		return nil, b.group.Requeue(t.Context(), map[int][]telemetry.EntryID{shard: ids})
	}
	_, err = resize.Run(t.Context(), 8)
	require.ErrorContains(t, err, "entries were put on the queues meanwhile")
	require.NoError(t, b.dispatch("", "dispatcher", 1000), "by the number that there was")
	require.Equal(t, shards, b.count("select value::int from processor.settings where name like '%/SHARDS'"))
}

// cancelling is a stream that cancels its resize with the first or the last that it changes.
type cancelling struct {
	resizeStream
	first, last func()
}

func (c cancelling) PinShards(ctx context.Context, n int) error {
	defer c.first()
	return c.resizeStream.PinShards(ctx, n)
}

func (c cancelling) ForgetMarks(ctx context.Context) error {
	defer c.last()
	return c.resizeStream.ForgetMarks(ctx)
}

func TestAResizeThatIsCancelledAsItChangesTheNumberChangesBothOrNone(t *testing.T) {
	b := newBench(t)
	b.pin(shards)
	both := func(n int) {
		t.Helper()
		pinned, err := b.group.PinnedShards(t.Context())
		require.NoError(t, err)
		require.Equal(t, n, pinned)
		require.Equal(t, n, b.count("select value::int from processor.settings where name like '%/SHARDS'"))
	}
	ctx, cancel := context.WithCancel(t.Context())
	resize := b.resize(make(chan string, 100))
	resize.Stream = cancelling{b.group, cancel, func() {}}
	_, err := resize.Run(ctx, 8)
	require.ErrorIs(t, err, context.Canceled)
	both(shards)

	ctx, cancel = context.WithCancel(t.Context())
	resize.Stream = cancelling{b.group, func() {}, cancel}
	changed, err := resize.Run(ctx, 8)
	require.NoError(t, err)
	require.True(t, changed)
	both(8)
}

func TestAResizeBeforeTheFirstStartIsRejected(t *testing.T) {
	b := newBench(t)
	_, err := b.resize(nil).Run(t.Context(), 8)
	require.ErrorContains(t, err, "no instance has ever started")
}

func TestAResizeThatLosesTheDispatchLeaseChangesNothing(t *testing.T) {
	b := newBench(t)
	b.pin(shards)
	m := b.start("first", "")
	b.await([]int{16}, m)
	said := make(chan string, 100)
	done := make(chan error, 1)
	go func() {
		_, err := b.resize(said).Run(context.WithoutCancel(t.Context()), 8)
		done <- err
	}()
	<-said
	require.NoError(t, b.group.ForceAcquireDispatchLease(t.Context(), "another", time.Minute))
	select {
	case err := <-done:
		require.ErrorIs(t, err, errDispatchLeaseLost)
	case <-time.After(10 * time.Second):
		require.Fail(t, "it continues without the dispatch lease")
	}
	require.Len(t, b.list(), 16)
}

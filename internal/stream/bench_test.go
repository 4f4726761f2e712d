package stream_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

const shards = 8

// bench is one stream with its group, on a server shared with other tests.
type bench struct {
	*stream.Group
	t      testing.TB
	client redis.UniversalClient // of the test
	cfg    stream.Config
}

func newBench(t testing.TB) *bench {
	t.Helper()
	corner := testenv.Redis(t)
	return benchOn(t, corner.Client(), stream.Config{
		URL: corner.URL, Stream: corner.Stream, Group: corner.Group, Shards: shards, Timeout: 5 * time.Second,
	})
}

func benchOn(t testing.TB, looking redis.UniversalClient, cfg stream.Config) *bench {
	t.Helper()
	client, err := stream.Connect(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	group, err := stream.NewGroup(client, cfg)
	require.NoError(t, err)
	return &bench{Group: group, t: t, client: looking, cfg: cfg}
}

// add appends one entry for each device and returns the IDs.
func (b *bench) add(devices ...string) []telemetry.EntryID {
	b.t.Helper()
	entries := make([][]string, len(devices))
	for i, d := range devices {
		entries[i] = []string{"device_id", d, "payload", fmt.Sprint(i)}
	}
	ids, err := fleet.NewPublisher(b.client, b.cfg.Stream, 0).Publish(b.t.Context(), entries)
	require.NoError(b.t, err)
	return ids
}

// deviceOf returns a device of a shard.
func deviceOf(shard, n int) string {
	for i := 0; ; i++ {
		if d := fmt.Sprintf("device-%d", i); telemetry.ShardOf(d, shards) == shard {
			if n--; n < 0 {
				return d
			}
		}
	}
}

// addTo appends n entries of one shard.
func (b *bench) addTo(shard, n int) []telemetry.EntryID {
	return b.add(slices.Repeat([]string{deviceOf(shard, 0)}, n)...)
}

// turn acquires the dispatch lease, which creates the group.
func (b *bench) turn(token string) protocol.DispatchLease {
	b.t.Helper()
	turn, err := b.AcquireDispatchLease(b.t.Context(), "", token, time.Minute)
	require.NoError(b.t, err)
	require.True(b.t, turn.Acquired)
	return turn
}

// read reads the entries after an ID.
func (b *bench) read(after telemetry.EntryID) protocol.NewEntries {
	b.t.Helper()
	return b.readUpTo(after, 10_000)
}

// readUpTo repeats a read until it has this many entries, or all.
func (b *bench) readUpTo(after telemetry.EntryID, count int) protocol.NewEntries {
	b.t.Helper()
	for {
		a, err := b.ReadNew(b.t.Context(), after, count, 10*time.Millisecond)
		require.NoError(b.t, err)
		if !a.Full || len(a.Entries) == count {
			return a
		}
	}
}

// dispatchAll dispatches everything under a token.
func (b *bench) dispatchAll(token string) {
	b.t.Helper()
	after := b.info().Delivered
	a := b.read(after)
	if len(a.Entries) == 0 {
		return
	}
	_, err := b.Dispatch(b.t.Context(), protocol.DispatchRequest{Token: token, TTL: time.Minute, After: after}, &a)
	require.NoError(b.t, err)
}

// ready returns a bench whose entries are dispatched.
func (b *bench) ready() *bench {
	b.turn("t")
	b.dispatchAll("t")
	return b
}

func (b *bench) info() stream.Info {
	b.t.Helper()
	info, err := b.Info(b.t.Context())
	require.NoError(b.t, err)
	return info
}

// queue returns the entries on a shard's queue.
func (b *bench) queue(shard int) []telemetry.EntryID {
	b.t.Helper()
	var ids []telemetry.EntryID
	for _, e := range b.entries(shard) {
		ids = append(ids, e.ID)
	}
	return ids
}

func (b *bench) entries(shard int) []telemetry.Entry {
	b.t.Helper()
	const all = 10_000
	for {
		replies, err := b.ReadQueues(b.t.Context(), []protocol.QueueRead{{Shard: shard, Count: all}})
		require.NoError(b.t, err)
		if !replies[0].Full || len(replies[0].Entries) == all {
			return replies[0].Entries
		}
	}
}

// losses returns the recorded losses, by cause.
func (b *bench) losses() map[string]int64 {
	b.t.Helper()
	list, _, _, err := b.Losses(b.t.Context(), 1000)
	require.NoError(b.t, err)
	n := make(map[string]int64)
	for _, l := range list {
		n[l.Cause] += l.Entries
	}
	return n
}

func (b *bench) del(ids ...telemetry.EntryID) {
	b.t.Helper()
	for _, id := range ids {
		require.NoError(b.t, b.client.XDel(b.t.Context(), b.cfg.Stream, id.String()).Err())
	}
}

// consumers returns the number of pending entries by consumer.
func (b *bench) consumers() map[string]int64 {
	b.t.Helper()
	list, err := b.Consumers(b.t.Context())
	require.NoError(b.t, err)
	n := make(map[string]int64)
	for _, c := range list {
		n[c.Name] = c.Pending
	}
	return n
}

// kind returns the kind and code of a failure.
func kind(t testing.TB, err error) (protocol.FailureKind, string) {
	t.Helper()
	var f *protocol.Failure
	require.ErrorAs(t, err, &f)
	return f.Kind, f.Code
}

// waitFor bounds the wait for what should happen immediately.
const waitFor = 5 * time.Second

func contextWithCancel(t testing.TB) (context.Context, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, cancel
}

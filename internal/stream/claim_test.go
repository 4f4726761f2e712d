package stream_test

import (
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

// foreign reads n entries with ">" as a foreign consumer.
func (b *bench) foreign(name string, n int) {
	b.t.Helper()
	err := b.client.XReadGroup(b.t.Context(), &redis.XReadGroupArgs{
		Group: b.cfg.Group, Consumer: name, Streams: []string{b.cfg.Stream, ">"}, Count: int64(n), Block: -1,
	}).Err()
	require.NoError(b.t, err)
}

// sweep claims page by page to the end.
func (b *bench) sweep(consumer string, minIdle time.Duration, page int) (total protocol.Claimed, pages int) {
	b.t.Helper()
	var from telemetry.EntryID
	for {
		c, err := b.Claim(b.t.Context(), consumer, minIdle, from, page)
		require.NoError(b.t, err)
		pages++
		total.Entries += c.Entries
		total.Gone += c.Gone
		from = c.Next
		if !c.More {
			return total, pages
		}
	}
}

func TestEntriesOfAForeignConsumerGoToTheQueuesOfTheirShards(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.turn("t")
	var devices []string
	for i := range 90 {
		devices = append(devices, deviceOf(i%shards, i%3))
	}
	ids := b.add(devices...)
	b.foreign("earlier", 90)
	b.del(ids[10], ids[11])
	total, pages := b.sweep("earlier", 0, 20)
	require.Equal(t, 88, total.Entries)
	require.Equal(t, 2, total.Gone)
	require.Equal(t, 5, pages)
	require.Equal(t, map[string]int64{"trimmed_pending": 2}, b.losses())
	n := 0
	for shard := range shards {
		for _, e := range b.entries(shard) {
			require.Equal(t, shard, telemetry.ShardOf(e.DeviceID(), shards))
			n++
		}
	}
	require.Equal(t, 88, n)
	require.Zero(t, b.consumers()["earlier"])
}

func TestAClaimSkipsEntriesThatAreNotIdleForLongEnough(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.turn("t")
	b.addTo(1, 10)
	b.foreign("alive", 10)
	total, _ := b.sweep("alive", time.Hour, 3)
	require.Zero(t, total.Entries)
	require.Equal(t, int64(10), b.consumers()["alive"])
	require.Empty(t, b.queue(1))
}

func TestAPageInWhichNothingIsIdleIsNotTheEnd(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.turn("t")
	ids := b.addTo(1, 9)
	b.foreign("mixed", 9)
	// The first six are made to look just delivered.
	for i, id := range ids {
		idle := "0"
		if i >= 6 {
			idle = "7200000"
		}
		require.NoError(t, b.client.Do(t.Context(), "xclaim", b.cfg.Stream, b.cfg.Group, "mixed", 0, id.String(), "idle", idle).Err())
	}
	total, pages := b.sweep("mixed", time.Hour, 3)
	require.Equal(t, 3, total.Entries)
	require.GreaterOrEqual(t, pages, 3)
	require.Equal(t, ids[6:], b.queue(1))
}

func TestEntriesReclaimedInBetweenAreNotClaimed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.turn("t")
	ids := b.addTo(1, 2)
	b.foreign("earlier", 2)
	// It moves to a shard queue between the listing and the script.
	require.NoError(t, b.client.XClaim(t.Context(), &redis.XClaimArgs{
		Stream: b.cfg.Stream, Group: b.cfg.Group, Consumer: stream.Consumer(3), Messages: []string{ids[0].String()},
	}).Err())
	total, _ := b.sweep("earlier", 0, 10)
	require.Equal(t, 1, total.Entries)
	require.Equal(t, []telemetry.EntryID{ids[0]}, b.queue(3))
	require.Equal(t, []telemetry.EntryID{ids[1]}, b.queue(1))
}

func TestAForeignConsumerIsRemovedOnlyWhenItHoldsNothingAndIsSilent(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.turn("t")
	b.addTo(1, 3)
	b.foreign("earlier", 3)
	forget := func(minIdle time.Duration) bool {
		ok, err := b.Remove(t.Context(), "earlier", minIdle)
		require.NoError(t, err)
		return ok
	}
	require.False(t, forget(0), "it holds entries")
	b.sweep("earlier", 0, 10)
	require.False(t, forget(time.Hour), "it was here a moment ago")
	require.True(t, forget(0))
	require.False(t, forget(0), "it is gone")
	require.NotContains(t, b.consumers(), "earlier")
	require.Len(t, b.queue(1), 3, "nothing of what it held is lost")
}

func TestOnlyOurShardsAreNotForeign(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.turn("t")
	for _, name := range []string{"shard-00", "shard-07", "shard-08", "shard-7", "shard-", "shard-007", "other"} {
		require.NoError(t, b.client.XGroupCreateConsumer(t.Context(), b.cfg.Stream, b.cfg.Group, name).Err())
	}
	list, err := b.Consumers(t.Context())
	require.NoError(t, err)
	ours := map[string]int{}
	for _, c := range list {
		if c.Shard >= 0 {
			ours[c.Name] = c.Shard
		}
	}
	require.Equal(t, map[string]int{"shard-00": 0, "shard-07": 7}, ours)
}

func TestWithoutAStreamThereAreNoConsumers(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	list, err := b.Consumers(t.Context())
	require.NoError(t, err)
	require.Empty(t, list)
	b.addTo(1, 1)
	_, err = b.Consumers(t.Context())
	k, _ := kind(t, err)
	require.Equal(t, protocol.Lost, k)
}

func TestP10LagIsShownOnlyWhereItIsKnown(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	backlog := func() protocol.Backlog {
		t.Helper()
		got, err := b.Backlog(t.Context())
		require.NoError(t, err)
		return got
	}
	require.Equal(t, protocol.Backlog{LagKnown: true, OldestKnown: true}, backlog(), "no stream, nothing to do")
	ids := b.addTo(1, 10)
	require.Equal(t, protocol.Backlog{Lag: 10, LagKnown: true, Oldest: ids[0], OldestKnown: true}, backlog(), "no group yet")
	b.turn("t")
	require.Equal(t, protocol.Backlog{Lag: 10, LagKnown: true, Oldest: ids[0], OldestKnown: true}, backlog())
	b.dispatchAll("t")
	require.Equal(t, protocol.Backlog{Pending: 10, LagKnown: true, Oldest: ids[0], OldestKnown: true}, backlog())
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: ids[:4]}}))
	require.Equal(t, protocol.Backlog{Pending: 6, LagKnown: true, Oldest: ids[4], OldestKnown: true}, backlog())
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: ids[4:]}}))
	require.Equal(t, protocol.Backlog{LagKnown: true, OldestKnown: true}, backlog())

	more := b.addTo(1, 6)
	require.Equal(t, protocol.Backlog{Lag: 6, LagKnown: true, Oldest: more[0], OldestKnown: true}, backlog())
	// A deletion among undispatched entries leaves the server without a lag.
	b.del(more[3])
	got := backlog()
	require.False(t, got.LagKnown, "unknown is not 0: %+v", got)
	require.Equal(t, more[0], got.Oldest)
	b.dispatchAll("t")
	require.Equal(t, protocol.Backlog{Pending: 5, LagKnown: true, Oldest: more[0], OldestKnown: true}, backlog())
}

func TestAFullServerIsDrained(t *testing.T) {
	t.Parallel()
	env := testenv.OwnServers(t, redisOnly())
	cfg := stream.Config{URL: env.Redis.URL(), Stream: "telemetry:test", Group: "g", Shards: shards, Timeout: 5 * time.Second}
	looking, err := stream.Connect(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, looking.Close()) })
	b := benchOn(t, looking, cfg)
	b.addTo(1, 50)
	b.ready()
	b.addTo(2, 50)
	b.foreign("earlier", 10)
	b.addTo(3, 50)
	require.NoError(t, b.client.ConfigSet(t.Context(), "maxmemory", "1").Err())
	_, err = fleet.NewPublisher(b.client, cfg.Stream, 0).Publish(t.Context(), [][]string{{"device_id", "d"}})
	require.ErrorContains(t, err, "OOM", "the server takes nothing new")

	turn, err := b.AcquireDispatchLease(t.Context(), "t", "u", time.Minute)
	require.NoError(t, err)
	require.True(t, turn.Moved)
	b.dispatchAll("u")
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: b.queue(1)}, {Shard: 2, IDs: b.queue(2)[:10], Gone: b.queue(2)[10:12]}}))
	require.Equal(t, map[string]int64{"trimmed_pending": 2}, b.losses())
	_, receipt, _, err := b.Losses(t.Context(), 10)
	require.NoError(t, err)
	require.NoError(t, b.Recorded(t.Context(), receipt))
	acked, delivered, err := b.Marks(t.Context())
	require.NoError(t, err)
	n, err := b.Redeliver(t.Context(), []protocol.Range{{Shard: 1, To: acked[1]}})
	require.NoError(t, err)
	require.Equal(t, 50, n)
	require.False(t, delivered.IsZero())
	b.sweep("earlier", 0, 100)
	forgotten, err := b.Remove(t.Context(), "earlier", 0)
	require.NoError(t, err)
	require.True(t, forgotten)
	require.NoError(t, b.client.XGroupDestroy(t.Context(), cfg.Stream, cfg.Group).Err())
	turn, err = b.AcquireDispatchLease(t.Context(), "u", "v", time.Minute)
	require.NoError(t, err)
	require.True(t, turn.GroupCreated)
	require.NoError(t, b.ReleaseDispatchLease(t.Context(), "v"))
	require.NoError(t, b.Notify(t.Context(), []int{1}))
}

func TestOtherStreamsOfTheSameKindAreNamed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	prefix := b.cfg.Stream + "*[:"
	for i, n := range []int{3, 0, 1} {
		name := fmt.Sprint(prefix, i)
		for range n {
			require.NoError(t, b.client.XAdd(t.Context(), xadd(name, "a", "b")).Err())
		}
	}
	require.NoError(t, b.client.Set(t.Context(), prefix+"text", "x", 0).Err())
	found, err := b.OtherStreams(t.Context(), prefix)
	require.NoError(t, err)
	require.ElementsMatch(t, []stream.OtherStream{{Name: prefix + "0", Length: 3}, {Name: prefix + "2", Length: 1}}, found)
}

// A foreign consumer that reads on from where dispatching is moves the last-delivered
// ID; the dispatcher moves it back, and comes to the entries itself. Swept ahead of
// that they would be delivered before those that lie between (SIM_SEED=33221).
func TestAClaimLeavesToTheDispatcherWhatItWillComeTo(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.turn("t")
	done := b.addTo(1, 2)
	b.dispatchAll("t")
	ids := b.addTo(1, 3)
	b.foreign("earlier", 3)
	total, _ := b.sweep("earlier", 0, 10)
	require.Zero(t, total.Entries)
	require.Equal(t, done, b.queue(1))
	turn, err := b.AcquireDispatchLease(t.Context(), "t", "t", time.Minute)
	require.NoError(t, err)
	require.True(t, turn.Acquired && turn.Moved)
	b.dispatchAll("t")
	require.Equal(t, append(done, ids...), b.queue(1))
	require.Zero(t, b.consumers()["earlier"])
}

// P2: what is deferred, and delivered again after the dispatcher was lost, is not given up before that is decided.
func TestP2UndecidedIsWhatIsPendingOrNotDeliveredYet(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.twoShards(20)
	undecided := func() []telemetry.EntryID {
		t.Helper()
		found, err := b.Undecided(t.Context(), append(slices.Clone(ids), telemetry.EntryID{Ms: 1}))
		require.NoError(t, err)
		return found
	}
	require.Equal(t, ids, undecided(), "there is no group")
	d := b.readAhead("t")
	d.next(10)
	d.next(4, 1)
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: ofShard(ids[:10], 1)}}))
	require.Equal(t, slices.Concat(ofShard(ids[:10], 2), ids[10:]), undecided())
	b.trimTo(ids[4])
	require.Equal(t, slices.Concat(ofShard(ids[:10], 2)[2:], ids[10:]), undecided(), "nobody can decide what is gone")
}

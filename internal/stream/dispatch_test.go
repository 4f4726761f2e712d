package stream_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

func TestP3ADispatchPutsEntriesOnTheQueuesOfTheirShardsInStreamOrder(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var devices []string
	for i := range 500 {
		devices = append(devices, deviceOf(i*7%shards, i%5))
	}
	ids := b.add(devices...)
	turn := b.turn("t")
	require.Equal(t, protocol.DispatchLease{Acquired: true, GroupCreated: true}, turn)
	a := b.read(turn.After)
	require.False(t, a.Full)
	require.Equal(t, ids[499], a.Last)
	dispatched, err := b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "t", TTL: time.Minute}, &a)
	require.NoError(t, err)
	require.Equal(t, protocol.DispatchResult{Pending: 500, Read: 500}, dispatched)
	n := 0
	for shard := range shards {
		found := b.entries(shard)
		n += len(found)
		require.True(t, slices.IsSortedFunc(found, func(a, b telemetry.Entry) int { return a.ID.Compare(b.ID) }))
		for _, e := range found {
			require.Equal(t, shard, telemetry.ShardOf(e.DeviceID(), shards))
		}
	}
	require.Equal(t, 500, n)
	info := b.info()
	require.Equal(t, ids[499], info.Delivered)
	require.Equal(t, stream.Count{N: 0, Known: true}, info.Lag)
}

// P4: an earlier dispatcher changes nothing, however late its dispatch arrives.
func TestADispatchUnderAnotherTokenDoesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.addTo(3, 4)
	b.turn("mine")
	a := b.read(telemetry.EntryID{})
	_, err := b.AcquireDispatchLease(t.Context(), "mine", "renewed", time.Minute)
	require.NoError(t, err)
	_, err = b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "mine", TTL: time.Minute}, &a)
	k, code := kind(t, err)
	require.Equal(t, protocol.Lost, k)
	require.Equal(t, "lease", code)
	require.Empty(t, b.queue(3))
	require.True(t, b.info().Delivered.IsZero())
	// Nor does one when the dispatch lease has expired.
	require.NoError(t, b.client.Del(t.Context(), b.Names().DispatchLease()).Err())
	_, err = b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "renewed", TTL: time.Minute}, &a)
	_, code = kind(t, err)
	require.Equal(t, "lease", code)
	require.Empty(t, b.queue(3))
}

// P3: nothing is dispatched behind what other members dispatched since.
func TestADispatchFromAnywhereButTheLastDeliveredIDDoesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.addTo(1, 3)
	b.turn("t")
	a := b.read(telemetry.EntryID{})
	b.dispatchAll("t")
	// The same dispatch arrives again, late.
	_, err := b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "t", TTL: time.Minute}, &a)
	k, code := kind(t, err)
	require.Equal(t, protocol.Lost, k)
	require.Equal(t, "moved", code)
	require.Len(t, b.queue(1), 3)
}

func TestADispatchWithoutTheGroupDoesNothingAndDoesNotCreateIt(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.addTo(1, 3)
	b.turn("t")
	a := b.read(telemetry.EntryID{})
	require.NoError(t, b.client.XGroupDestroy(t.Context(), b.cfg.Stream, b.cfg.Group).Err())
	_, err := b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "t", TTL: time.Minute}, &a)
	k, code := kind(t, err)
	require.Equal(t, protocol.Lost, k)
	require.Equal(t, "group", code)
	require.False(t, b.info().GroupExists)
	// Without the stream it is the same.
	require.NoError(t, b.client.Del(t.Context(), b.cfg.Stream).Err())
	_, err = b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "t", TTL: time.Minute}, &a)
	_, code = kind(t, err)
	require.Equal(t, "group", code)
	require.False(t, b.info().Exists)
}

func TestP6EntriesTrimmedBetweenReadAndDispatchAreRecordedAsLost(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.addTo(2, 5)
	b.turn("t")
	a := b.read(telemetry.EntryID{})
	b.del(ids[1], ids[3])
	dispatched, err := b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "t", TTL: time.Minute}, &a)
	require.NoError(t, err)
	require.Equal(t, map[telemetry.EntryID]struct{}{ids[1]: {}, ids[3]: {}}, dispatched.Gone)
	require.Equal(t, 3, dispatched.Pending)
	require.Equal(t, []telemetry.EntryID{ids[0], ids[2], ids[4]}, b.queue(2))
	require.Equal(t, map[string]int64{"trimmed_unread": 2}, b.losses())
	require.Equal(t, stream.Count{N: 0, Known: true}, b.info().Lag)
}

func TestP6EntriesTrimmedBeforeAReadAreRecordedWhenTheEndIsReached(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.turn("t")
	ids := b.addTo(2, 5)
	b.del(ids[0], ids[2])
	b.dispatchAll("t")
	require.Equal(t, map[string]int64{"trimmed_unread": 2}, b.losses())
	require.Equal(t, stream.Count{N: 0, Known: true}, b.info().Lag)
	// Once: the counts are right again.
	b.addTo(2, 3)
	b.dispatchAll("t")
	require.Equal(t, map[string]int64{"trimmed_unread": 2}, b.losses())
}

func TestEntriesTrimmedBeforeTheGroupExistedAreNoLoss(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.addTo(2, 5)
	require.NoError(t, b.client.XTrimMinID(t.Context(), b.cfg.Stream, ids[2].String()).Err())
	b.ready()
	require.Empty(t, b.losses())
	require.Len(t, b.queue(2), 3)
}

func TestALimitedReadSaysSoAndTheNextContinues(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.addTo(4, 5)
	b.turn("t")
	a, err := b.ReadNew(t.Context(), telemetry.EntryID{}, 2, time.Millisecond)
	require.NoError(t, err)
	require.True(t, a.Full)
	require.Equal(t, ids[1], a.Last)
	_, err = b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "t", TTL: time.Minute}, &a)
	require.NoError(t, err)
	require.Equal(t, stream.Count{N: 3, Known: true}, b.info().Lag)
	b.dispatchAll("t")
	require.Equal(t, ids, b.queue(4))
	a, err = b.ReadNew(t.Context(), ids[4], 2, time.Millisecond)
	require.NoError(t, err)
	require.Empty(t, a.Entries)
}

func TestADispatchLargerThanLuasStackSucceeds(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.turn("t")
	ids := b.addTo(5, 9500)
	b.dispatchAll("t")
	require.Equal(t, ids, b.queue(5))
}

func TestADispatchToMoreShardsThanFitOnLuasStackSucceeds(t *testing.T) {
	t.Parallel()
	const many = 4096
	corner := testenv.Redis(t)
	b := benchOn(t, corner.Client(), stream.Config{URL: corner.URL, Stream: corner.Stream, Group: corner.Group, Shards: many, Timeout: waitFor})
	b.turn("t")
	b.addTo(0, many)
	a := b.read(telemetry.EntryID{})
	a.Shards, a.Starts = nil, []int{0}
	for shard := range many { // as if each entry were of another one
		a.Shards, a.Starts = append(a.Shards, shard), append(a.Starts, shard+1)
	}
	_, err := b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "t", TTL: time.Minute}, &a)
	require.NoError(t, err)
	require.Equal(t, a.Last, b.info().Delivered)
	lengths, err := b.client.HGetAll(t.Context(), b.Names().Pending()).Result()
	require.NoError(t, err)
	for shard := range many {
		require.Equal(t, "1", lengths[stream.Consumer(shard)])
	}
}

// The ends of a stream may be of 30 MB each, and a dispatch is made up to 40 times a second.
func TestADispatchDoesNotReadTheEndsOfTheStream(t *testing.T) {
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{Redis: true})
	cfg := stream.Config{URL: env.Redis.URL(), Stream: "s", Group: "g", Shards: shards, Timeout: waitFor}
	opts, err := redis.ParseURL(cfg.URL)
	require.NoError(t, err)
	client := redis.NewClient(opts)
	t.Cleanup(func() { _ = client.Close() })
	b := benchOn(t, client, cfg)
	after := b.turn("t").After
	asked := func() int {
		text, err := client.Info(t.Context(), "commandstats").Result()
		require.NoError(t, err)
		return strings.Count(text, "cmdstat_xinfo|stream:") + strings.Count(text, "cmdstat_xrange:")
	}
	require.NoError(t, client.ConfigResetStat(t.Context()).Err())
	for range 3 {
		b.addTo(1, 5)
		after, _ = b.dispatch(t, after, 1000)
	}
	require.Zero(t, asked())
	require.Equal(t, stream.Count{N: 0, Known: true}, b.info().Lag)
}

func TestADispatchExtendsTheLeaseAndNotifies(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	sub := b.client.Subscribe(t.Context(), b.Names().NotifyChannel())
	defer sub.Close()
	_, err := sub.Receive(t.Context())
	require.NoError(t, err)
	b.add(deviceOf(1, 0), deviceOf(6, 0))
	_, err = b.AcquireDispatchLease(t.Context(), "", "t", 2*time.Second)
	require.NoError(t, err)
	a := b.read(telemetry.EntryID{})
	_, err = b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "t", TTL: time.Hour, Notify: true}, &a)
	require.NoError(t, err)
	left, err := b.client.PTTL(t.Context(), b.Names().DispatchLease()).Result()
	require.NoError(t, err)
	require.Greater(t, left, 50*time.Minute)
	for _, want := range []string{"group", "1 6"} { // the group was created, and then entries were dispatched
		m, err := sub.ReceiveMessage(t.Context())
		require.NoError(t, err)
		require.Equal(t, want, m.Payload)
	}
}

func TestAnEntryWithoutDeviceGoesToShardZero(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	id, err := b.client.XAdd(t.Context(), xadd(b.cfg.Stream, "payload", "x")).Result()
	require.NoError(t, err)
	b.ready()
	require.Equal(t, id, b.queue(0)[0].String())
}

func TestAKeyThatIsNoStreamIsRejectedWithARemedy(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	require.NoError(t, b.client.Set(t.Context(), b.cfg.Stream, "text", 0).Err())
	_, err := b.AcquireDispatchLease(t.Context(), "", "t", time.Minute)
	k, code := kind(t, err)
	require.Equal(t, protocol.Misconfigured, k)
	require.Equal(t, "WRONGTYPE", code)
	require.ErrorContains(t, err, "check REDIS_TELEMETRY_STREAM")
	_, err = b.ReadNew(t.Context(), telemetry.EntryID{}, 1, time.Millisecond)
	k, _ = kind(t, err)
	require.Equal(t, protocol.Misconfigured, k)
	_, err = b.ReadQueues(t.Context(), []protocol.QueueRead{{Shard: 0, Count: 1}})
	k, _ = kind(t, err)
	require.Equal(t, protocol.Misconfigured, k)
	_, err = b.Info(t.Context())
	k, _ = kind(t, err)
	require.Equal(t, protocol.Misconfigured, k)
	_, err = b.Consumers(t.Context())
	k, _ = kind(t, err)
	require.Equal(t, protocol.Misconfigured, k)
}

package stream_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

var errStill = errors.New("still the same")

// with returns a group on the same stream through a client of one protocol version.
func (b *bench) with(t *testing.T, version int) *bench {
	t.Helper()
	opts, err := redis.ParseURL(b.cfg.URL)
	require.NoError(t, err)
	opts.Protocol, opts.MaxRetries = version, -1
	client := redis.NewClient(opts)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	group, err := stream.NewGroup(client, b.cfg)
	require.NoError(t, err)
	return &bench{Group: group, t: t, client: b.client, cfg: b.cfg}
}

func TestQueuesAreReadInBothVersionsOfTheProtocol(t *testing.T) {
	for _, version := range []int{2, 3} {
		t.Run(fmt.Sprint("resp", version), func(t *testing.T) {
			t.Parallel()
			b := newBench(t).with(t, version)
			one := b.addTo(1, 3)
			two := b.addTo(2, 2)
			b.ready()
			b.del(one[1])
			replies, err := b.ReadQueues(t.Context(), []protocol.QueueRead{
				{Shard: 1, Count: 10}, {Shard: 3, Count: 10}, {Shard: 2, After: two[0], Count: 10}, {Shard: 1, Count: 1},
			})
			require.NoError(t, err)
			require.Len(t, replies, 4)
			require.Len(t, replies[0].Entries, 3)
			require.Equal(t, []string{"device_id", deviceOf(1, 0), "payload", "0"}, replies[0].Entries[0].Fields)
			require.Equal(t, one[1], replies[0].Entries[1].ID)
			require.Nil(t, replies[0].Entries[1].Fields, "trimmed while it was pending")
			require.Empty(t, replies[1].Entries)
			require.Equal(t, []telemetry.EntryID{two[1]}, []telemetry.EntryID{replies[2].Entries[0].ID})
			require.Len(t, replies[3].Entries, 1)
			require.Equal(t, one, b.queue(1), "reading changes nothing")

			ranged, err := b.ReadRange(t.Context(), one[0], 10)
			require.NoError(t, err)
			require.Len(t, ranged, 3)
		})
	}
}

func TestAQueueOfALostGroupIsAFailureThatSaysSo(t *testing.T) {
	t.Parallel()
	for _, version := range []int{2, 3} {
		b := newBench(t).with(t, version)
		b.addTo(1, 1)
		_, err := b.ReadQueues(t.Context(), []protocol.QueueRead{{Shard: 1, Count: 1}})
		k, code := kind(t, err)
		require.Equal(t, protocol.Lost, k)
		require.Equal(t, "NOGROUP", code)
	}
}

func TestAnAckMovesTheAckedIDForwardOnlyAndMayBeRepeated(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.addTo(1, 6)
	other := b.addTo(2, 1)
	b.ready()
	mark := func() telemetry.EntryID {
		acked, delivered, err := b.Marks(t.Context())
		require.NoError(t, err)
		require.Equal(t, other[0], delivered)
		return acked[1]
	}
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: ids[2:4]}}))
	require.Equal(t, ids[3], mark())
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: ids[:2]}}))
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: ids[:2]}}))
	require.Equal(t, ids[3], mark())
	require.Equal(t, ids[4:], b.queue(1))
	acked, _, err := b.Marks(t.Context())
	require.NoError(t, err)
	require.NotContains(t, acked, 2, "what is not known is not 0")
}

func TestMarksCompareAsNumbers(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.turn("t")
	add := func(id string) telemetry.EntryID {
		args := xadd(b.cfg.Stream, "device_id", deviceOf(1, 0))
		args.ID = id
		require.NoError(t, b.client.XAdd(t.Context(), args).Err())
		parsed, err := telemetry.ParseEntryID(id)
		require.NoError(t, err)
		return parsed
	}
	ids := []telemetry.EntryID{add("9-9"), add("10-2"), add("10-10"), add("18446744073709551615-3")}
	b.dispatchAll("t")
	for i := range ids {
		require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: ids[i : i+1]}}))
		acked, _, err := b.Marks(t.Context())
		require.NoError(t, err)
		require.Equal(t, ids[i], acked[1])
	}
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: ids}}))
	acked, _, err := b.Marks(t.Context())
	require.NoError(t, err)
	require.Equal(t, ids[3], acked[1])
}

func TestAcksLargerThanOneScriptAreAllSent(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	one, two := b.addTo(1, 5000), b.addTo(2, 5000)
	b.ready()
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: one}, {Shard: 2, IDs: two[:4999], Gone: two[4999:]}}))
	require.Empty(t, b.queue(1))
	require.Empty(t, b.queue(2))
	require.Equal(t, map[string]int64{"trimmed_pending": 1}, b.losses())
	acked, _, err := b.Marks(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[int]telemetry.EntryID{1: one[4999], 2: two[4998]}, acked)
}

// A batch may be of thousands of small parts, each of which moves the acked mark.
func TestAcksOfMorePartsThanFitOnLuasStackAreSent(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.addTo(2, 4500)
	b.ready()
	acks := make([]protocol.Ack, len(ids))
	for i, id := range ids {
		acks[i] = protocol.Ack{Shard: 2, IDs: []telemetry.EntryID{id}, Applied: id}
	}
	require.NoError(t, b.Ack(t.Context(), acks))
	acked, _, err := b.Marks(t.Context())
	require.NoError(t, err)
	require.Equal(t, ids[len(ids)-1], acked[2])
	require.Empty(t, b.queue(2))
	require.NoError(t, b.Ack(t.Context(), acks), "it may be repeated")
}

func TestP6GoneEntriesAreRecordedOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.addTo(1, 3)
	b.ready()
	for range 2 {
		require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, Gone: ids[:2]}}))
	}
	losses, receipt, _, err := b.Losses(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, []protocol.Loss{
		{Cause: "trimmed_pending", First: ids[0], Last: ids[0], Entries: 1, Shard: 1},
		{Cause: "trimmed_pending", First: ids[1], Last: ids[1], Entries: 1, Shard: 1},
	}, losses)
	// A receipt removes what it names and nothing that was added since.
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, Gone: ids[2:]}}))
	require.NoError(t, b.Recorded(t.Context(), receipt))
	require.NoError(t, b.Recorded(t.Context(), receipt), "another leader does the same")
	require.NoError(t, b.Recorded(t.Context(), nil))
	losses, _, _, err = b.Losses(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, losses, 1)
	require.Equal(t, ids[2], losses[0].First)
}

// P3: each on the queue of its shard, before its successors.
func TestRedeliverPutsARangeBackOnItsQueues(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var one, two []telemetry.EntryID
	for range 1100 { // more than a page
		one = append(one, b.add(deviceOf(1, 0), deviceOf(2, 0))...)
	}
	for i := 0; i < len(one); i++ {
		if i%2 == 1 {
			two = append(two, one[i])
		}
	}
	b.ready()
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 2, IDs: two}}))
	b.del(two[500])
	n, err := b.Redeliver(t.Context(), []protocol.Range{{Shard: 2, From: two[9], To: two[1089]}})
	require.NoError(t, err)
	require.Equal(t, 1079, n)
	queue := b.queue(2)
	require.Len(t, queue, 1079)
	require.Equal(t, two[10], queue[0], "what comes after")
	require.Equal(t, two[1089], queue[1078], "up to and including")
	require.Len(t, b.queue(1), 1100, "other shards are left alone")
	n, err = b.Redeliver(t.Context(), nil)
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestRedeliverWithoutAGroupReportsIt(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.addTo(1, 1)
	_, err := b.Redeliver(t.Context(), []protocol.Range{{Shard: 1, To: ids[0]}})
	k, _ := kind(t, err)
	require.Equal(t, protocol.Lost, k)
}

func TestP3EntriesReturnToTheQueuesOfTheFleetsNumberOfShardsOnly(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.addTo(1, 2*5000) // more than one XCLAIM takes
	b.ready()
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: ids}}))
	queues := map[int][]telemetry.EntryID{1: ids[:5000]}
	require.NoError(t, b.Requeue(t.Context(), nil))
	require.NoError(t, b.Requeue(t.Context(), queues))
	require.Equal(t, ids[:5000], b.queue(1))
	require.NoError(t, b.PinShards(t.Context(), shards))
	require.NoError(t, b.Requeue(t.Context(), queues), "those that are there")
	require.Len(t, b.queue(1), 5000)

	require.NoError(t, b.PinShards(t.Context(), 4*shards))
	err := b.Requeue(t.Context(), map[int][]telemetry.EntryID{1: ids[5000:]})
	k, _ := kind(t, err)
	require.Equal(t, protocol.Lost, k)
	require.ErrorContains(t, err, "the number of shards was changed")
	require.ErrorContains(t, err, "run it again")
	require.Len(t, b.queue(1), 5000)
}

func TestPublisherReturnsIDsInOrderAndTrims(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	p := fleet.NewPublisher(b.client, b.cfg.Stream, 100)
	var last telemetry.EntryID
	for range 20 {
		entries := make([][]string, 50)
		for i := range entries {
			entries[i] = []string{"device_id", "d", "payload", ""}
		}
		ids, err := p.Publish(t.Context(), entries)
		require.NoError(t, err)
		require.Len(t, ids, 50)
		for _, id := range ids {
			require.True(t, last.Less(id))
			last = id
		}
	}
	info := b.info()
	require.Equal(t, int64(1000), info.Added)
	require.Less(t, info.Length, int64(300))
	require.Equal(t, last, info.Last)
}

func TestNotificationsAreParsed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	heard, stop := b.listen()
	defer stop()
	await := func(want stream.Notification, payload func() error) {
		t.Helper()
		require.NoError(t, payload())
		require.Equal(t, want, <-heard)
	}
	await(stream.Notification{Leader: true}, func() error { return b.NotifyLeadership(t.Context()) })
	await(stream.Notification{Members: true}, func() error { return b.NotifyMembers(t.Context()) })
	await(stream.Notification{Again: []int{0, 7}}, func() error { return b.Notify(t.Context(), []int{0, 7}) })
	b.turn("t") // it creates the group
	require.Equal(t, stream.Notification{Group: true}, <-heard)
	await(stream.Notification{DispatchLease: true}, func() error { return b.ReleaseDispatchLease(t.Context(), "t") })
}

// listen returns what is published about the stream from now on, until stop is called.
func (b *bench) listen() (heard <-chan stream.Notification, stop func()) {
	b.t.Helper()
	all, done := make(chan stream.Notification, 100), make(chan struct{})
	ctx, cancel := contextWithCancel(b.t)
	go func() {
		defer close(done)
		b.Notifications(ctx, func(n stream.Notification) { all <- n })
	}()
	testenv.Wait(b.t, waitFor, func() error { // until it has subscribed
		n, err := b.client.Publish(ctx, stream.Names{Stream: b.cfg.Stream, Group: b.cfg.Group}.NotifyChannel(), "watch").Result()
		if err == nil && n == 0 {
			err = errStill
		}
		return err
	})
	require.Equal(b.t, stream.Notification{Watch: true}, <-all)
	return all, func() { cancel(); <-done }
}

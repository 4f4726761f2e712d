package stream_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

func xadd(name string, values ...any) *redis.XAddArgs {
	return &redis.XAddArgs{Stream: name, Values: values}
}

func TestTheDispatchLeaseIsHeldByOneTokenAtATime(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.turn("a")
	busy, err := b.AcquireDispatchLease(t.Context(), "", "b", time.Minute)
	require.NoError(t, err)
	require.False(t, busy.Acquired)
	require.Greater(t, busy.Left, 50*time.Second)
	busy, err = b.AcquireDispatchLease(t.Context(), "never held", "b", time.Minute)
	require.NoError(t, err)
	require.False(t, busy.Acquired)

	renewed, err := b.AcquireDispatchLease(t.Context(), "a", "a2", time.Minute)
	require.NoError(t, err)
	require.Equal(t, protocol.DispatchLease{Acquired: true}, renewed, "the group is there by now")

	// Only the holder can release it.
	require.NoError(t, b.ReleaseDispatchLease(t.Context(), "a"))
	busy, err = b.AcquireDispatchLease(t.Context(), "", "b", time.Minute)
	require.NoError(t, err)
	require.False(t, busy.Acquired)
	require.NoError(t, b.ReleaseDispatchLease(t.Context(), "a2"))
	b.turn("b")
}

func TestAnExpiredDispatchLeaseIsFree(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, err := b.AcquireDispatchLease(t.Context(), "", "a", 20*time.Millisecond)
	require.NoError(t, err)
	testenv.Wait(t, 5*time.Second, func() error {
		turn, err := b.AcquireDispatchLease(t.Context(), "", "b", time.Minute)
		if err == nil && !turn.Acquired {
			err = errStill
		}
		return err
	})
}

// P8: when the clock of a server steps back by 15 minutes, keys expire that
// much later.
func TestTheLeaseOfADeadDispatcherIsFreeInTimeWhenTheClockStepsBack(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const lease = time.Second
	_, err := b.AcquireDispatchLease(t.Context(), "", "dead", lease)
	require.NoError(t, err)
	require.NoError(t, b.client.PExpire(t.Context(), b.Names().DispatchLease(), 15*time.Minute).Err())
	turn, err := b.AcquireDispatchLease(t.Context(), "", "next", lease)
	require.NoError(t, err)
	require.False(t, turn.Acquired)
	require.LessOrEqual(t, turn.Left, lease)
	testenv.Wait(t, 5*time.Second, func() error {
		turn, err := b.AcquireDispatchLease(t.Context(), "", "next", lease)
		if err == nil && !turn.Acquired {
			err = errStill
		}
		return err
	})
}

// P4: no dispatch to the old group succeeds.
func TestALostGroupIsCreatedAtTheStartUnderANewToken(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.addTo(1, 4)
	b.ready()
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: ids[:2]}}))
	require.NoError(t, b.client.XGroupDestroy(t.Context(), b.cfg.Stream, b.cfg.Group).Err())
	turn, err := b.AcquireDispatchLease(t.Context(), "t", "u", time.Minute)
	require.NoError(t, err)
	require.Equal(t, protocol.DispatchLease{Acquired: true, GroupCreated: true}, turn)
	a := b.read(turn.After)
	_, err = b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "t", TTL: time.Minute}, &a)
	_, code := kind(t, err)
	require.Equal(t, "lease", code, "a dispatch based on the old group does not come through")
	b.dispatchAll("u")
	require.Equal(t, ids, b.queue(1), "all of it again, what is done ends as duplicates")
}

func TestTheGroupIsCreatedWhereThereIsNoStreamYet(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	require.True(t, b.turn("t").GroupCreated)
	info := b.info()
	require.True(t, info.Exists)
	require.True(t, info.GroupExists)
	require.True(t, info.Lag.Known)
	require.Zero(t, info.Lag.N)
}

// P1, P3: entries that another client skipped are dispatched, in their place.
func TestALastDeliveredIDMovedForwardIsSetBack(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.addTo(1, 2)
	b.ready()
	dispatched := b.info().Delivered
	skipped := b.addTo(1, 3)
	require.NoError(t, b.client.XGroupSetID(t.Context(), b.cfg.Stream, b.cfg.Group, skipped[2].String()).Err())
	turn, err := b.AcquireDispatchLease(t.Context(), "t", "u", time.Minute)
	require.NoError(t, err)
	require.Equal(t, protocol.DispatchLease{Acquired: true, After: dispatched, Beyond: skipped[2], Moved: true, Pending: 2}, turn)
	require.False(t, b.info().Lag.Known && b.info().Lag.N == 0, "what is not done is not shown as done")
	b.dispatchAll("u")
	require.Len(t, b.queue(1), 5, "nothing was passed by")
	require.Empty(t, b.losses())
}

func TestEntriesThatAForeignConsumerReadAreStillDispatched(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.turn("t")
	ids := b.addTo(1, 2)
	b.dispatchAll("t")
	ids = append(ids, b.addTo(1, 3)...)
	require.NoError(t, b.client.XReadGroup(t.Context(), &redis.XReadGroupArgs{
		Group: b.cfg.Group, Consumer: "other", Streams: []string{b.cfg.Stream, ">"}, Count: 2,
	}).Err())
	turn, err := b.AcquireDispatchLease(t.Context(), "t", "u", time.Minute)
	require.NoError(t, err)
	require.True(t, turn.Moved)
	pendingElsewhere := func() int {
		_, foreign, err := b.Work(t.Context())
		require.NoError(t, err)
		return foreign
	}
	require.Equal(t, 2, pendingElsewhere())
	b.dispatchAll("u")
	require.Zero(t, pendingElsewhere())
	require.Equal(t, ids, b.queue(1))
	require.Equal(t, int64(0), b.consumers()["other"])
	require.Empty(t, b.losses())
}

func TestALastDeliveredIDMovedBackHasEntriesRedelivered(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.addTo(1, 4)
	b.ready()
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: ids}}))
	require.NoError(t, b.client.XGroupSetID(t.Context(), b.cfg.Stream, b.cfg.Group, ids[1].String()).Err())
	turn, err := b.AcquireDispatchLease(t.Context(), "t", "u", time.Minute)
	require.NoError(t, err)
	require.Equal(t, protocol.DispatchLease{Acquired: true, After: ids[1]}, turn)
	b.dispatchAll("u")
	require.Equal(t, ids[2:], b.queue(1))
	require.Empty(t, b.losses())
}

func TestNothingIsSetBackOnARecreatedGroupOfARecreatedStream(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.addTo(1, 3)
	b.ready()
	require.NoError(t, b.client.Del(t.Context(), b.cfg.Stream).Err())
	fresh := b.addTo(1, 1)
	turn, err := b.AcquireDispatchLease(t.Context(), "t", "u", time.Minute)
	require.NoError(t, err)
	require.True(t, turn.GroupCreated)
	require.Equal(t, telemetry.EntryID{}, turn.After)
	b.dispatchAll("u")
	require.Equal(t, fresh, b.queue(1))
}

// A mark of an entry that is gone would have each owner put the whole backlog on its queue.
func TestAnAckedMarkAheadOfTheClockEndsWithTheStreamThatHadIt(t *testing.T) {
	t.Parallel()
	for name, repair := range map[string]func(b *bench, older string) error{
		"deleted": func(b *bench, _ string) error { return b.client.Del(t.Context(), b.cfg.Stream).Err() },
		"restored": func(b *bench, older string) error {
			return b.client.RestoreReplace(t.Context(), b.cfg.Stream, 0, older).Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.addTo(1, 1)
			b.ready()
			older := b.client.Dump(t.Context(), b.cfg.Stream).Val()
			ahead := telemetry.EntryID{Ms: 9_999_999_999_999}
			a := xadd(b.cfg.Stream, "device_id", "x")
			a.ID = ahead.String()
			require.NoError(t, b.client.XAdd(t.Context(), a).Err())
			b.dispatchAll("t")
			require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 2, IDs: []telemetry.EntryID{ahead}}}))
			require.NoError(t, repair(b, older))
			_, err := b.AcquireDispatchLease(t.Context(), "t", "u", time.Minute)
			require.NoError(t, err)
			in, err := b.RegisterOwner(t.Context(), "owner", []int{2})
			require.NoError(t, err)
			require.Equal(t, b.info().Last, in.Acked[2])
		})
	}
}

func TestAKeyOfAnotherTypeIsNotTakenForTheStream(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.turn("t")
	own := func(key string) {
		require.NoError(t, b.client.Del(t.Context(), key).Err())
		require.NoError(t, b.client.Set(t.Context(), key, "x", 0).Err())
	}
	own(b.Names().Acked())
	err := b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: []telemetry.EntryID{{Ms: 1}}}})
	require.ErrorContains(t, err, "or one that the group keeps for it, {STREAM}:GROUP:…, is of another type")
	own(b.cfg.Stream)
	_, err = b.AcquireDispatchLease(t.Context(), "t", "u", time.Minute)
	require.ErrorContains(t, err, "the key is not a stream; check REDIS_TELEMETRY_STREAM")
}

package store_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

func TestADatabaseHasManyStreamsAndEachOneGroup(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	establish := func(scope store.Scope) (bool, error) {
		return store.NewIdentity().Establish(t.Context(), b.pool, scope, "a.1", time.Minute)
	}
	for _, stream := range []string{"one", "two"} {
		created, err := establish(store.Scope{Stream: stream, Group: "g"})
		require.NoError(t, err)
		require.True(t, created, "a stream that is new need not wait for a member that knows the database")
		created, err = establish(store.Scope{Stream: stream, Group: "g"})
		require.NoError(t, err)
		require.False(t, created)
		_, err = establish(store.Scope{Stream: stream, Group: "other"})
		require.ErrorContains(t, err, "stream "+stream+" is processed by group g, and this instance is of group other")
	}
	// Rows from before the setting: the bench has shards of scope.
	_, err := establish(store.Scope{Stream: scope.Stream, Group: "other"})
	require.ErrorContains(t, err, "is processed by group "+scope.Group)
}

// A device that comes from another stream than before has moved; one that then comes
// from the first again comes from both.
func TestADeviceInTwoStreamsIsAnIncidentThatNamesBothAndOneThatMovesIsNot(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	second := store.Scope{Stream: "a-second-stream", Group: scope.Group}
	require.NoError(t, store.NewShards(b.pool, second, 10*time.Second).Ensure(t.Context(), shards))
	const device = "device-1"
	shard := telemetry.ShardOf(device, shards)
	held := b.take("a.1", shard)
	b.exec("update processor.shards set owner = 'a.1', epoch = $2 where stream = $1", second.Stream, held[0].Epoch)
	minute := 0
	comes := func(from store.Scope) {
		minute++
		batch := b.batch(held, []telemetry.Record{{DeviceID: device, TimeUS: dayOf(0).Add(time.Duration(minute) * time.Minute).UnixMicro(), StreamUS: dayOf(0).UnixMicro(), Satellites: 9, Codec: "8", Attributes: []byte("{}")}})
		batch.Devices = []string{device}
		_, err := store.NewWriter(b.pool, from, "a.1", 10*time.Second).Write(t.Context(), batch)
		require.NoError(t, err)
	}
	const incidents = "select count(*) from processor.incidents where kind = 'device_in_two_streams' and closed_at is null"
	comes(scope)
	comes(second)
	require.Equal(t, 1, b.count("select count(*) from processor.devices where device_id = $1 and stream = $2 and moved_from = $3", device, second.Stream, scope.Stream))
	require.Zero(t, b.count(incidents), "it has moved")

	// Those that it left forget it; those that it came to derive it again, a minute later.
	leader := func(of store.Scope) (*store.Leader, int64) {
		l := store.NewLeader(b.pool, of, "a.1", 10*time.Second)
		term, err := l.BeginTerm(t.Context())
		require.NoError(t, err)
		return l, term
	}
	left, leftTerm := leader(scope)
	came, cameTerm := leader(second)
	var leftSeen, cameSeen store.Moved
	pass := func() {
		for range 2 { // the same moves are not told twice
			require.NoError(t, left.Moved(t.Context(), leftTerm, shards, &leftSeen))
			require.NoError(t, came.Moved(t.Context(), cameTerm, shards, &cameSeen))
		}
	}
	requests := func(of store.Scope, kind string) int {
		return b.count("select count(*) from processor.requests where stream = $1 and kind = $2 and shard = $3", of.Stream, kind, shard)
	}
	pass()
	require.Equal(t, 1, requests(scope, protocol.RequestRehydrate))
	require.Zero(t, requests(second, protocol.RequestRecompute), "the first stream may have records of it in flight")
	b.exec("update processor.devices set moved_at = moved_at - interval '2 minutes'")
	pass()
	require.Equal(t, 1, requests(second, protocol.RequestRecompute))
	require.Equal(t, 1, requests(scope, protocol.RequestRehydrate))

	comes(scope)
	require.Equal(t, 1, b.count(incidents+" and subject = $1 and detail #>> '{devices,0}' = $2", "a-second-stream and "+scope.Stream, device))
	comes(second)
	require.Equal(t, 2, b.count(incidents), "each of the two has it")
	b.exec("update processor.devices set moved_at = moved_at - interval '2 days'")
	b.exec("update processor.incidents set opened_at = opened_at - interval '2 days'")
	pass()
	require.Zero(t, b.count(incidents), "for a day they had nothing in common")
}

// A request about a device ends with the owner that its stream has now, and one of a
// whole shard leaves out what has moved while it was under way.
func TestARequestFollowsItsDeviceToAnotherStream(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	second := store.Scope{Stream: "a-second-stream", Group: scope.Group}
	require.NoError(t, store.NewShards(b.pool, second, 10*time.Second).Ensure(t.Context(), 2*shards))
	const device = "device-1"
	held := b.take("a.1", telemetry.ShardOf(device, shards))
	b.fences = protocolFences(t)
	b.exec("insert into processor.devices (device_id, stream) values ($1, $2)", device, second.Stream)
	for _, kind := range []string{protocol.RequestRecompute, protocol.RequestErase} {
		b.exec("insert into processor.requests (stream, group_name, kind, shard, device_id, requested_by) values ($1, $2, $3, $4, $5, 'test')",
			scope.Stream, scope.Group, kind, held[0].Shard, device)
		requests := store.NewRequests(store.NewWriter(b.pool, scope, "a.1", 10*time.Second))
		list, err := requests.Waiting(t.Context(), []int{held[0].Shard})
		require.NoError(t, err)
		require.Len(t, list, 1)
		_, done, err := requests.Step(t.Context(), protocol.RequestStep{Request: list[0], Lease: held[0], Shards: shards, Rules: b.batch(nil, nil).Rules})
		require.NoError(t, err)
		require.True(t, done, "there is nothing left to do for this owner")
		require.Equal(t, 1, b.count("select count(*) from processor.requests where stream = $1 and shard = $2 and kind = $3 and state = 'waiting'",
			second.Stream, telemetry.ShardOf(device, 2*shards), kind))
	}
	require.Equal(t, 1, b.count("select count(*) from processor.devices where device_id = $1", device), "nothing was erased by another's owner")

	leader := store.NewLeader(b.pool, scope, "a.1", 10*time.Second)
	term, err := leader.BeginTerm(t.Context())
	require.NoError(t, err)
	require.NoError(t, leader.Recompute(t.Context(), term, []protocol.Window{{DeviceID: device, Source: "s|1"}, {DeviceID: "unknown", Source: "s|2"}}))
	require.Equal(t, 0, b.count("select count(*) from processor.requests where stream = $1 and device_id = $2", scope.Stream, device), "its own stream's leader reads it, too")
	require.Equal(t, 1, b.count("select count(*) from processor.requests where stream = $1 and device_id = 'unknown'", scope.Stream))
}

package store_test

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// pin pins the number of shards as the first instance does.
func (b *bench) pin(n int) {
	b.tb.Helper()
	require.NoError(b.tb, store.Pin(b.tb.Context(), b.pool, scope, "test", 10*time.Second, []store.Setting{{Name: "SHARDS", Value: strconv.Itoa(n)}}))
}

// resize changes the number of shards, with what is done in Redis meanwhile.
func (b *bench) resize(to int, inRedis func()) error {
	return b.shards.Resize(b.tb.Context(), shards, to, telemetry.EntryID{}, "test", func(context.Context) error {
		if inRedis != nil {
			inRedis()
		}
		return nil
	})
}

// waits waits until a session waits for the table of requests.
func (b *bench) waits() {
	b.tb.Helper()
	testenv.Wait(b.tb, 20*time.Second, func() error {
		if b.count(`select count(*) from pg_locks where not granted and relation = 'processor.requests'::regclass
  and database = (select oid from pg_database where datname = current_database())`) == 0 {
			return errors.New("no session waits for the table of requests")
		}
		return nil
	})
}

const insertRequest = `
insert into processor.requests (stream, group_name, kind, shard, requested_by)
values ($1, $2, 'recompute', 3, 'test')`

func TestP3NoNumberOfShardsChangesUnderARequest(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.pin(shards)
	unchanged := func(err error) {
		t.Helper()
		require.ErrorContains(t, err, "1 requests came meanwhile, nothing was changed: run it again")
		require.Equal(t, shards, b.count("select count(*) from processor.shards"))
		require.Equal(t, shards, b.count("select value::int from processor.settings where name like '%/SHARDS'"))
		b.exec("update processor.requests set state = 'done', finished_at = now()")
	}
	inRedis := func() { t.Error("Redis has another number of shards than Postgres") }
	b.exec(insertRequest, scope.Stream, scope.Group)
	unchanged(b.resize(64, inRedis))

	// It was asked for, and is not committed.
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	_, err = tx.Exec(t.Context(), insertRequest, scope.Stream, scope.Group)
	require.NoError(t, err)
	resized := make(chan error, 1)
	go func() { resized <- b.resize(64, inRedis) }()
	b.waits()
	require.NoError(t, tx.Commit(t.Context()))
	unchanged(<-resized)
}

func TestP3RequestsAreOfTheShardsThatThereAre(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.pin(shards)
	pins, err := store.ReadFleetSettings(t.Context(), b.pool, scope)
	require.NoError(t, err)
	require.Equal(t, shards, pins.Shards)
	editor := store.NewFenceEditor(b.pool, scope, pins.Shards, "test")
	devices := store.NewDevices(b.pool, scope, pins, "test")
	imported := make(chan error, 1)
	require.NoError(t, b.resize(64, func() {
		go func() {
			_, err := editor.Import(t.Context(), []geofence.Fence{spanned("one", 0, 2)}, "import", false)
			imported <- err
		}()
		b.waits()
	}))
	require.NoError(t, <-imported)
	require.Equal(t, 64, b.count("select count(distinct shard) from processor.requests"))
	_, err = devices.Ask(t.Context(), protocol.RequestErase, "device-1", nil, nil, "test")
	require.ErrorContains(t, err, "the number of shards was changed meanwhile, nothing was done: run it again")
	require.Equal(t, 64, b.count("select count(*) from processor.requests"))
}

// A resize raises no term: a leader that counts the number before it leads until it stops.
func TestP3ALeadersRequestsAreOfTheShardsThatThereAre(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.pin(shards)
	b.exec("insert into processor.devices (device_id, stream) values ('device-1', $1)", scope.Stream)
	b.exec("insert into processor.device_moves (device_id, moved_from, moved_to, moved_at) values ('device-1', 'other', $1, now() - interval '1 hour')", scope.Stream)
	leader := store.NewLeader(b.pool, scope, "a.1", 10*time.Second)
	term, err := leader.BeginTerm(t.Context())
	require.NoError(t, err)
	recompute := func(shards int) error {
		return leader.Recompute(t.Context(), term, shards, []protocol.Window{{DeviceID: "device-1", Source: "s|1"}})
	}
	recorded := make(chan error, 1)
	require.NoError(t, b.resize(64, func() {
		go func() { recorded <- recompute(shards) }()
		b.waits()
	}))
	const refused = "this instance counts 32 shards and the fleet 64; start it with SHARDS=64"
	err = <-recorded
	require.ErrorContains(t, err, refused)
	require.Equal(t, fault.Config, fault.ExitCode(err), "of an instance that ran before, too")
	require.ErrorContains(t, leader.Moved(t.Context(), term, shards), refused)
	require.Zero(t, b.count("select count(*) from processor.requests"))
	require.Zero(t, b.count("select count(*) from processor.device_moves where recomputed"))
	require.NoError(t, recompute(64))
	require.NoError(t, leader.Moved(t.Context(), term, 64))
	require.Equal(t, 2, b.count("select count(*) from processor.requests"))
}

// The stream that has the device is resized as a request is passed on to it.
func TestP3ARequestIsPassedOnToTheShardsThatThereAre(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	other := store.Scope{Stream: "other", Group: scope.Group}
	theirs := store.NewShards(b.pool, other, 10*time.Second)
	require.NoError(t, store.Pin(t.Context(), b.pool, other, "test", 10*time.Second, []store.Setting{{Name: "SHARDS", Value: strconv.Itoa(shards)}}))
	require.NoError(t, theirs.Ensure(t.Context(), shards))
	device := "device-0"
	for n := 1; telemetry.ShardOf(device, shards) == telemetry.ShardOf(device, 64); n++ {
		device = "device-" + strconv.Itoa(n)
	}
	b.exec("insert into processor.devices (device_id, stream) values ($1, 'other')", device)
	held := b.take("a.1", 5)[0]
	b.exec(`
insert into processor.requests (stream, group_name, kind, shard, device_id, requested_by)
values ($1, $2, 'recompute', $3, $4, 'test')`, scope.Stream, scope.Group, held.Shard, device)
	requests := store.NewRequests(store.NewWriter(b.pool, scope, "a.1", 10*time.Second))
	list, err := requests.Waiting(t.Context(), []int{held.Shard})
	require.NoError(t, err)
	require.Len(t, list, 1)
	step := func() error {
		_, _, err := requests.Step(t.Context(), protocol.RequestStep{Request: list[0], Lease: held, Shards: shards, Rules: b.batch(nil, nil).Rules})
		return err
	}
	passed := make(chan error, 1)
	require.NoError(t, theirs.Resize(t.Context(), shards, 64, telemetry.EntryID{}, "test", func(context.Context) error {
		go func() { passed <- step() }()
		b.waits()
		return nil
	}))
	require.NoError(t, <-passed)
	require.Equal(t, 1, b.count("select count(*) from processor.requests where stream = $1 and state = 'waiting'", scope.Stream), "it is read again")
	require.NoError(t, step())
	require.Equal(t, telemetry.ShardOf(device, 64), b.count("select shard from processor.requests where stream = 'other' and state = 'waiting'"))
}

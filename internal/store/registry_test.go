package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Of positions that were stored before there was a table of devices, each step by
// another owner.
func TestARecomputeOfAllDevicesFindsThoseStoredBeforeItsTable(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const days, devices = 200, 1500
	b.partitionByDay(days)
	b.exec(`
insert into public.positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
select 'device-' || d, t, t, 42, 1, 0, 0, 0, 5, 0, '8', '{}'
from generate_series(0, $1::int - 1) d
cross join lateral (select $2::timestamptz + (d * 7 % $3::int) * interval '1 day' as t) t`, devices, dayOf(0), days)
	b.fences = protocolFences(t)
	held := b.take("a.1", 0, 1)
	held = held[:2]
	for _, h := range held {
		b.exec(`
insert into processor.requests (stream, group_name, kind, shard, requested_by)
values ($1, $2, 'recompute', $3, 'test')`, scope.Stream, scope.Group, h.Shard)
	}
	want := 0
	for i := range devices {
		if s := telemetry.ShardOf(fmt.Sprint("device-", i), shards); s == held[0].Shard || s == held[1].Shard {
			want++
		}
	}
	writer := store.NewWriter(b.pool, scope, "a.1", 10*time.Second)
	for open, steps := 2, 0; open > 0; steps++ {
		require.Less(t, steps, 400)
		list, err := store.NewRequests(writer).Waiting(t.Context(), []int{held[0].Shard, held[1].Shard})
		require.NoError(t, err)
		open = len(list)
		for _, r := range list {
			lease := held[0]
			if r.Shard == held[1].Shard {
				lease = held[1]
			}
			_, _, err := store.NewRequests(writer).Step(t.Context(), protocol.RequestStep{
				Request: r, Lease: lease, Shards: shards, Rules: b.batch(nil, nil).Rules,
			})
			require.NoError(t, err)
		}
	}
	require.Equal(t, devices, b.count("select count(*) from processor.devices where stream = $1", scope.Stream))
	require.Equal(t, want, b.count("select sum((progress ->> 'devices')::int) from processor.requests where state = 'done'"))
	require.Equal(t, want, b.count("select count(*) from processor.timing_records where initial"))
}

// A plan that a session made while the table was young lasts until it is analyzed: each batch
// read all devices then.
func TestABatchReadsNoOtherDevicesThanItsOwn(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.exec("alter table processor.devices set (autovacuum_enabled = false)")
	held := b.take("a.1", 5)
	w := store.NewWriter(b.pool, scope, "a.1", 10*time.Second)
	write := func(devices ...string) {
		batch := b.batch(nil, nil)
		batch.Leases, batch.Devices = held, devices
		_, err := w.Write(t.Context(), batch)
		require.NoError(t, err)
	}
	for n := range 10 { // as often as it takes until the server keeps a plan
		many := make([]string, 200)
		for i := range many {
			many[i] = fmt.Sprint("young-", n, "-", i)
		}
		write(many...)
	}
	b.exec("insert into processor.devices (device_id, stream) select 'device-' || d, $1 from generate_series(1, 20000) d", scope.Stream)
	read := func() int {
		b.exec("select pg_stat_force_next_flush()")
		return b.count("select seq_tup_read from pg_stat_user_tables where schemaname = 'processor' and relname = 'devices'")
	}
	before := read()
	write("device-7", "device-8", "new")
	require.Less(t, read()-before, 1000)
	require.Equal(t, 1, b.count("select count(*) from processor.devices where device_id = 'new' and stream = $1", scope.Stream))
}

// Positions that others have written since are found after the row of the scan is deleted,
// by an owner that has seen it done.
func TestDevicesAreLookedForAgainOnceTheRowOfTheScanIsDeleted(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("a.1", 5)[0]
	first, requests := b.requestStep(protocol.RequestRecompute, "", held, "a.1")
	for _, devices := range []int{1, 2} {
		b.exec("delete from positions")
		b.fill(devices, 1, 1)
		b.exec("delete from processor.device_scans")
		b.exec("update processor.requests set state = 'waiting'")
		o := first
		for done := false; !done; {
			var err error
			o.Request.Progress, done, err = requests.Step(t.Context(), o)
			require.NoError(t, err)
		}
		require.Equal(t, devices, b.count("select count(*) from processor.devices"))
	}
}

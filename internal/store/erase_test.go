package store_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/testenv"
)

// partitionByDay partitions positions by the given days.
func (b *bench) partitionByDay(days int) {
	b.tb.Helper()
	b.exec(`drop table public.positions`)
	b.exec(`create table public.positions (
  device_id text not null,
  ts timestamptz not null,
  ingested_at timestamptz not null default now(),
  latitude double precision not null,
  longitude double precision not null,
  altitude real not null,
  angle real not null,
  speed real not null,
  satellites smallint not null,
  priority smallint not null,
  codec text not null,
  attributes jsonb not null,
  faulty boolean not null default false,
  primary key (device_id, ts)
) partition by range (ts)`)
	for i := range days {
		day := dayOf(i)
		b.exec(fmt.Sprintf("create table public.positions_%d partition of public.positions for values from ('%s') to ('%s')",
			i, day.Format(time.RFC3339), day.AddDate(0, 0, 1).Format(time.RFC3339)))
	}
}

// dayOf returns the beginning of one of those days.
func dayOf(i int) time.Time { return time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC).AddDate(0, 0, i) }

// fill stores n positions, 20 ms apart, of each device on each day.
func (b *bench) fill(devices, days, n int) {
	b.tb.Helper()
	b.exec(`
insert into public.positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
select 'device-' || d, t, t, 42, 1, 0, 0, 0, 5, 0, '8', '{}'
from generate_series(0, $1::int - 1) d
cross join generate_series(0, $2::int - 1) day
cross join generate_series(0, $3::int - 1) n
cross join lateral (select $4::timestamptz + day * interval '1 day' + n * interval '20 milliseconds' as t) t
order by md5(d::text || t::text)`, // rows of a device lie anywhere in their heap
		devices, days, n, dayOf(0))
}

// requestStep makes a request, of all devices of the shard where none is named, and returns
// its first step and what runs it.
func (b *bench) requestStep(kind, device string, held protocol.ShardLease, member string) (protocol.RequestStep, *store.Requests) {
	b.tb.Helper()
	b.exec(`
insert into processor.requests (stream, group_name, kind, shard, device_id, requested_by)
values ($1, $2, $3, $4, nullif($5, ''), 'test')`, scope.Stream, scope.Group, kind, held.Shard, device)
	requests := store.NewRequests(store.NewWriter(b.pool, scope, member, 10*time.Second))
	list, err := requests.Waiting(b.tb.Context(), []int{held.Shard})
	require.NoError(b.tb, err)
	require.Len(b.tb, list, 1)
	return protocol.RequestStep{Request: list[0], Lease: held, Shards: shards, Rules: b.batch(nil, nil).Rules}, requests
}

// runRequest makes a request, runs its steps to the end and returns its progress.
func (b *bench) runRequest(kind, device string, held protocol.ShardLease, member string) (p protocol.Progress, steps int) {
	b.tb.Helper()
	o, requests := b.requestStep(kind, device, held, member)
	for done := false; !done; steps++ {
		require.Less(b.tb, steps, 1000)
		var err error
		p, done, err = requests.Step(b.tb.Context(), o)
		require.NoError(b.tb, err)
		o.Request.Progress = p
	}
	return p, steps
}

// A ctid does not identify a row: it is unique within one partition only.
func TestAnErasureInAPartitionedTableLeavesOtherDevicesAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.partitionByDay(3)
	b.fill(3, 3, 50)
	held := b.take("a.1", 5)[0]
	p, _ := b.runRequest(protocol.RequestErase, "device-1", held, "a.1")
	require.EqualValues(t, 150, p.Removed)
	require.Zero(t, b.count("select count(*) from positions where device_id = 'device-1'"))
	require.Equal(t, 300, b.count("select count(*) from positions"), "of two other devices")
}

func TestAnErasureOfMoreThanOneStepRemovesAll(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fill(2, 4, 1300)
	if testenv.World(t) != devenv.Hypertable { // where no row moves to another chunk
		b.exec(`update positions set ts = 'infinity' where device_id = 'device-0' and ts = (select max(ts) from positions)`)
		b.exec(`update positions set ts = '-infinity' where device_id = 'device-0' and ts = (select min(ts) from positions)`)
	}
	held := b.take("a.1", 5)[0]
	p, steps := b.runRequest(protocol.RequestErase, "device-0", held, "a.1")
	require.EqualValues(t, 5200, p.Removed)
	require.GreaterOrEqual(t, steps, 3)
	require.Equal(t, 5200, b.count("select count(*) from positions where device_id = 'device-1'"))
	require.Equal(t, 5200, b.count("select count(*) from positions"))
}

// A row for which a trigger returns null stays, and no error tells of it.
func TestAnErasureWhoseRowsStayFails(t *testing.T) {
	t.Parallel()
	for name, keep := range map[string]string{
		"all":  "create trigger legal_hold before delete on positions for each row execute function legal_hold('0')",
		"some": "create trigger legal_hold before delete on positions for each row execute function legal_hold('13')",
		"rule": "create rule legal_hold as on delete to positions do instead nothing",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "rule" && testenv.World(t) == devenv.Hypertable {
				t.Skip("a hypertable has no rules")
			}
			b := newBench(t)
			b.fill(2, 2, 40)
			b.exec(`
create function legal_hold() returns trigger language plpgsql as
  'begin return case when extract(milliseconds from old.ts)::int / 20 < tg_argv[0]::int then old end; end'`)
			b.exec(keep)
			held := b.take("a.1", 5)[0]
			o, requests := b.requestStep(protocol.RequestErase, "device-0", held, "a.1")
			var err error
			for steps := 0; err == nil; steps++ {
				require.Less(t, steps, 5, "%d positions removed", o.Request.Progress.Removed)
				o.Request.Progress, _, err = requests.Step(t.Context(), o)
			}
			require.ErrorContains(t, err, "positions of device device-0 stay")
			if name != "rule" {
				require.ErrorContains(t, err, "legal_hold on public.positions")
			}
			last, err := requests.Failed(t.Context(), o, err)
			require.NoError(t, err)
			require.True(t, last, "it would fail again")
			kept := map[string]int{"all": 80, "some": 2 * (40 - 13), "rule": 80}[name]
			require.Equal(t, kept, b.count("select count(*) from positions where device_id = 'device-0'"))
			require.EqualValues(t, 80-kept, o.Request.Progress.Removed)
			require.Equal(t, 1, b.count("select count(*) from processor.requests where state = 'failed' and result::text like '%positions of device device-0 stay%'"))
		})
	}
}

// What is left of a device besides its positions may be more than one transaction can remove.
func TestNoStepOfAnErasureRemovesMoreThanItsShare(t *testing.T) {
	t.Parallel()
	const most = 5000
	b := newBench(t)
	for table, insert := range map[string]string{
		"timing_records": `
insert into processor.timing_records (device_id, fence_id, fence_version, kind, at, earlier_ts, later_ts, latitude, longitude)
select $1, 'f', 1, 'enter', now() + n * interval '1 s', now() + n * interval '1 s', now() + n * interval '1 s', 0, 0
from generate_series(1, $2::int) n`,
		"deferred": `
insert into processor.deferred (stream, group_name, entry_id, digest, shard, device_id, fields, class, error, fingerprint, attempts, first_failed_at, last_failed_at, next_attempt_at, instance, version)
select $1, 'g', n || '-1', 'd', 0, $1, array[]::bytea[], 'decode', 'e', 'f', 1, now(), now(), now(), 'i', 'v'
from generate_series(1, $2::int) n`,
		"unconfirmed_letters": `
insert into processor.unconfirmed_letters (stream, group_name, source_id, digest, queued, shard, device_id, fields, class, error, fingerprint, attempts, first_failed_at, last_failed_at, instance, version)
select $1, 'g', n || '-1', 'd', true, 0, $1, array[]::bytea[], 'decode', 'e', 'f', 1, now(), now(), 'i', 'v'
from generate_series(1, $2::int) n`,
		"dead_letters": `
insert into processor.dead_letters (stream, group_name, dlq_id, source_id, digest, device_id, fields, class, error, fingerprint, attempts, instance, version, exported_by)
select $1, 'g', n || '-1', n || '-1', 'd', $1, array[]::bytea[], 'decode', 'e', 'f', 1, 'i', 'v', 'x'
from generate_series(1, $2::int) n`,
		"conflicts": `
insert into processor.conflicts (stream, group_name, device_id, ts, digest, ingested_at, priority, differs, record)
select $1, 'g', $1, now() + n * interval '1 s', 'd', now(), 0, '{latitude}', '{}'
from generate_series(1, $2::int) n`,
		"requests": `
insert into processor.requests (stream, group_name, kind, shard, device_id, requested_by, state, result)
select 's', 'g', 'rehydrate', 0, $1, 'test', 'done', '{"before": {}, "after": {}}'
from generate_series(1, $2::int) n`,
		"device_moves": `
insert into processor.device_moves (device_id, moved_from, moved_to)
select $1, 'one', 'two'
from generate_series(1, $2::int) n`,
	} {
		for _, device := range []string{"device-0", "device-1"} {
			_, err := b.pool.Exec(t.Context(), insert, device, most+1000)
			require.NoError(t, err, table)
		}
	}
	const of = "(select count(*) from processor.%s where device_id = '%s'%s)"
	left := func(device string) (list map[string]int) {
		list = make(map[string]int)
		for _, table := range []string{"timing_records", "deferred", "unconfirmed_letters", "dead_letters", "conflicts", "timing_changes", "requests", "device_moves"} {
			condition := map[string]string{"requests": " and result ? 'before'", "timing_changes": " and number > 0"}[table]
			list[table] = b.count("select " + fmt.Sprintf(of, table, device, condition))
		}
		return list
	}
	sum := func(list map[string]int) (n int) {
		for _, of := range list {
			n += of
		}
		return n
	}
	held := b.take("a.1", 5)[0]
	o, requests := b.requestStep(protocol.RequestErase, "device-0", held, "a.1")
	before, other := left("device-0"), left("device-1")
	newest := b.count("select max(number) from processor.timing_changes where device_id = 'device-0'")
	for done := false; !done; {
		var err error
		o.Request.Progress, done, err = requests.Step(t.Context(), o)
		require.NoError(t, err)
		now := left("device-0")
		// Each crossing removed is a change, which goes later.
		removed := sum(before) - sum(now) + max(0, now["timing_changes"]-before["timing_changes"])
		require.LessOrEqual(t, removed, most, "%v, then %v", before, now)
		if !done {
			require.GreaterOrEqual(t, b.count("select coalesce(max(number), 0) from processor.timing_changes where device_id = 'device-0'"), newest, "numbers do not begin again")
		}
		before = now
	}
	require.Zero(t, sum(before))
	require.Equal(t, other, left("device-1"))
	require.EqualValues(t, 5*(most+1000), o.Request.Progress.Removed)
	require.Equal(t, 1, b.count("select count(*) from processor.timing_changes where device_id = 'device-0' and change = 'erased'"))
}

// A delete or an update of a hypertable is planned for all of its chunks and locks them, of
// which there may be more than the server has locks.
func TestWhatChangesADeviceLocksNoChunkWithoutItsRows(t *testing.T) {
	t.Parallel()
	if testenv.World(t) != devenv.Hypertable {
		t.Skip("positions is no hypertable")
	}
	b := newBench(t)
	b.fill(2, 3, 50)
	b.exec(`delete from positions where device_id = 'device-1' and ts < $1 or device_id = 'device-0' and ts >= $1`, dayOf(2))
	held := b.take("a.1", 5)[0]
	var other string
	require.NoError(t, b.pool.QueryRow(t.Context(), "select max(tableoid::regclass::text) from positions where device_id = 'device-1'").Scan(&other))
	reader, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = reader.Rollback(t.Context()) }()
	_, err = reader.Exec(t.Context(), "lock table "+other+" in share mode") // which lets others read
	require.NoError(t, err)

	ask := store.NewDevices(b.pool, scope, store.FleetSettings{Shards: shards}, "test")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	marked, _, err := ask.Mark(ctx, store.Mark{Device: "device-0", From: dayOf(0), To: dayOf(3), Reason: "jammed"})
	require.NoError(t, err)
	require.EqualValues(t, 100, marked.Positions)
	require.Equal(t, 100, b.count("select count(*) from positions where faulty"))
	b.exec("delete from processor.requests")
	p, _ := b.runRequest(protocol.RequestErase, "device-0", held, "a.1")
	require.EqualValues(t, 100, p.Removed)
	require.Equal(t, 50, b.count("select count(*) from positions"), "of another device")
}

// tablesWith returns the tables in which a text occurs, as it is or in bytes.
func (b *bench) tablesWith(text string) (found []string) {
	b.tb.Helper()
	rows, err := b.pool.Query(b.tb.Context(), `
select format('%I.%I', n.nspname, c.relname)
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where n.nspname in ('processor', 'public')
  and c.relkind in ('r', 'p')
  and not c.relispartition
order by 1`)
	require.NoError(b.tb, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(b.tb, err)
	for _, table := range tables {
		if b.count("select count(*) from "+table+" t where t::text like '%' || $1 || '%' or t::text like '%' || encode(convert_to($1, 'UTF8'), 'hex') || '%'", text) > 0 {
			found = append(found, table)
		}
	}
	return found
}

func TestAnErasureLeavesNoCoordinatesInAnyTable(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const device, latitude, longitude = "device-1", "48.7654321", "11.1234567"
	b.fill(2, 1, 3)
	b.exec("update public.positions set latitude = $2::text::float8, longitude = $3::text::float8, attributes = jsonb_build_object('was', $2::text) where device_id = $1", device, latitude, longitude)
	b.exec(`
insert into processor.timing_records (device_id, fence_id, fence_version, kind, at, earlier_ts, later_ts, latitude, longitude)
values ($1, 'f', 1, 'enter', now(), now(), now(), $2::text::float8, $3::text::float8)`, device, latitude, longitude)
	payload := fmt.Sprintf(`{"latitude":%s,"longitude":%s}`, latitude, longitude)
	b.exec(`
insert into processor.deferred (stream, group_name, entry_id, digest, shard, device_id, fields, class, error, fingerprint, attempts, first_failed_at, last_failed_at, next_attempt_at, instance, version)
values ($1, $2, '1-1', 'd', 0, $3, array['payload', convert_to($4::text, 'UTF8')]::bytea[], 'decode', $4, 'f', 1, now(), now(), now(), 'i', 'v')`, scope.Stream, scope.Group, device, payload)
	b.exec(`
insert into processor.unconfirmed_letters (stream, group_name, source_id, digest, queued, shard, device_id, fields, class, error, fingerprint, attempts, first_failed_at, last_failed_at, instance, version)
values ($1, $2, '1-1', 'd', true, 0, $3, array['payload', convert_to($4::text, 'UTF8')]::bytea[], 'decode', $4, 'f', 1, now(), now(), 'i', 'v')`, scope.Stream, scope.Group, device, payload)
	b.exec(`
insert into processor.dead_letters (stream, group_name, dlq_id, source_id, digest, device_id, fields, class, error, fingerprint, attempts, instance, version, exported_by, edited_fields, edit_diff)
values ($1, $2, '1-1', '1-1', 'd', $3, array['payload', convert_to($4::text, 'UTF8')]::bytea[], 'decode', $4, 'f', 1, 'i', 'v', 'x', array['payload', convert_to($4::text, 'UTF8')]::bytea[], $4)`, scope.Stream, scope.Group, device, payload)
	b.exec(`
insert into processor.conflicts (stream, group_name, device_id, ts, digest, ingested_at, priority, differs, record)
values ($1, $2, $3, now(), 'd', now(), 0, '{latitude}', $4::text::jsonb)`, scope.Stream, scope.Group, device, payload)
	b.exec(`
insert into processor.requests (stream, group_name, kind, shard, device_id, requested_by, state, result, finished_at)
values ($1, $2, 'rehydrate', 0, $3, 'test', 'done', jsonb_build_object('before', $4::text::jsonb, 'after', $4::text::jsonb), now())`, scope.Stream, scope.Group, device, payload)
	b.exec(`
insert into processor.shard_states (stream, group_name, shard, state, left_at)
values ('a stream that ended', $1, 0, convert_to($2::text, 'UTF8'), now() - interval '2 minutes')`, scope.Group, payload)

	tables := []string{
		"processor.conflicts", "processor.dead_letters", "processor.deferred", "processor.requests", "processor.shard_states",
		"processor.timing_changes", "processor.timing_records", "processor.unconfirmed_letters", "public.positions",
	}
	require.Equal(t, tables, b.tablesWith(latitude))
	require.Equal(t, tables, b.tablesWith(longitude))
	p, _ := b.runRequest(protocol.RequestErase, device, b.take("a.1", 5)[0], "a.1")
	require.EqualValues(t, 3+1+4, p.Removed)
	require.Empty(t, b.tablesWith(latitude))
	require.Empty(t, b.tablesWith(longitude))
}

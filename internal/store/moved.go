package store

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// home is the stream that a device came from last, with its group and number of shards.
type home struct {
	Scope
	shards int
}

// homesOf returns the homes of devices, those that are known.
func homesOf(ctx context.Context, pool *pgxpool.Pool, devices []string, timeout time.Duration) (map[string]home, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	homes := make(map[string]home, len(devices))
	var device string
	var h home
	rows, err := pool.Query(ctx, `
select distinct on (device_id) device_id, stream, s.group_name, s.shards
from processor.devices d
join (
  select stream, group_name, count(*) as shards
  from processor.shards
  group by stream, group_name
) s using (stream)
where device_id = any ($1)
order by device_id, s.shards desc`, devices)
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&device, &h.Stream, &h.Group, &h.shards}, func() error {
			homes[device] = h
			return nil
		})
	}
	return homes, failure("look for the stream of a device", err)
}

// homeOf returns the home of a device; of 0 shards if that is not known.
func homeOf(ctx context.Context, pool *pgxpool.Pool, device string, timeout time.Duration) (scope Scope, shards int, err error) {
	homes, err := homesOf(ctx, pool, []string{device}, timeout)
	return homes[device].Scope, homes[device].shards, err
}

// HomeOf returns the stream and group whose owners have a device, those given if it is
// not known.
func HomeOf(ctx context.Context, pool *pgxpool.Pool, device string, timeout time.Duration, otherwise Scope) (Scope, error) {
	home, shards, err := homeOf(ctx, pool, device, timeout)
	if err != nil || shards == 0 {
		return otherwise, err
	}
	return home, nil
}

// What becomes of a device that moves to another stream.
const (
	movedSettle = time.Minute // in which the stream that is left ends what it has of the device
	// movedReach is how far before its move a device's crossings are derived again:
	// for a while the owners of both streams may have written them.
	movedReach = time.Hour
	movedPage  = 20000 // moves that one pass follows
	// movedEach is how many devices of a shard are derived again each by itself. Of more, as
	// when all devices of a stream are given away, the whole shard is, by one request.
	movedEach = 50
	// movedKept is how long a move is kept that was followed, and movedLost one that was not.
	movedKept = 7 * 24 * time.Hour
	movedLost = 90 * 24 * time.Hour
)

// moved is a device that came from another stream.
type moved struct {
	id     int64
	device string
	from   *time.Time // begin of the window to derive again; nil for all of it
}

// leftSQL is the moves away from a stream.
const leftSQL = `
select id, device_id, null::timestamptz
from processor.device_moves
where moved_from = $1
  and not forgotten
order by id
limit $2`

// arrivedSQL is the moves of devices that now belong to a stream, whichever they came to
// first: the last of them came to it, and is followed with those before or after them. So
// moves to a stream that is stopped are not read, and no more devices than are followed. A
// recompute of whole shards that had not ended when a device moved may have missed it in
// both streams: its window is the device's, too.
const arrivedSQL = `
with arrived as materialized (
  select m.id, m.device_id, m.moved_at
  from (
    select distinct device_id
    from processor.device_moves
    join processor.devices d using (device_id)
    where moved_to = $1
      and not recomputed
      and moved_at < now() - $3::interval
      and d.stream = $1
    order by device_id
    limit $2
  ) came
  join processor.device_moves m using (device_id)
  where not m.recomputed
    and m.moved_at < now() - $3::interval
    and not exists (
      select
      from processor.device_moves before
      where before.device_id = m.device_id
        and before.id < m.id
        and not before.recomputed
        and before.moved_at >= now() - $3::interval
    )
  order by m.id
  limit $2
), missed as materialized (
  select from_ts, max(coalesce(finished_at, 'infinity')) as until
  from processor.requests
  where kind = $5
    and device_id is null
    and state <> 'cancelled'
    and (finished_at is null or finished_at >= (select min(moved_at) from arrived))
  group by from_ts
)
select m.id, m.device_id, case when not w.whole then least(w.begins, m.moved_at - $4::interval) end
from arrived m
cross join lateral (
  select coalesce(bool_or(from_ts is null), false) as whole, min(from_ts) as begins
  from missed
  where until >= m.moved_at
) w
order by m.id`

// expireMovesSQL removes old moves, those that were followed and those that were not each by
// an index of its own. The audit names the streams that stopped before they followed some.
const expireMovesSQL = `
with expired as (
  delete from processor.device_moves
  where id in (
    select id
    from (
      select id
      from processor.device_moves
      where forgotten
        and recomputed
        and moved_at < now() - $2::interval
      order by moved_at
      limit $1
      for update skip locked
    ) followed
    union all
    select id
    from (
      select id
      from processor.device_moves
      where moved_at < now() - $3::interval
      order by moved_at
      limit $1
      for update skip locked
    ) left_over
  )
  returning *
), missed as (
  select id, moved_from as stream, device_id, moved_at
  from expired
  where not forgotten
  union
  select e.id, coalesce(d.stream, e.moved_to), device_id, e.moved_at
  from expired e
  left join processor.devices d using (device_id)
  where not e.recomputed
)
insert into processor.audit (who, action, target, count, detail)
select $4, 'retention', 'processor.device_moves', count(*),
  jsonb_build_object('retention', $3::interval, 'not_followed_by', stream, 'since', min(moved_at), 'devices', (array_agg(distinct device_id))[1:10])
from missed
group by stream`

// bothSQL opens an incident of each pair of streams that has a device in common: it has left this one
// for one that it had left within a day.
const bothSQL = `
insert into processor.incidents (stream, group_name, kind, subject, detail)
select $1, $2, $3, least(moved_to, $1) || ' and ' || greatest(moved_to, $1),
  jsonb_build_object('streams', array[least(moved_to, $1), greatest(moved_to, $1)], 'devices', (array_agg(distinct device_id))[1:10])
from processor.device_moves gone
where id = any ($4)
  and exists (
    select
    from processor.device_moves before
    where before.device_id = gone.device_id
      and before.id < gone.id
      and before.moved_from = gone.moved_to
      and before.moved_at > gone.moved_at - interval '1 day'
  )
group by moved_to
on conflict do nothing`

// Moved has owners of this stream forget devices that another one has taken, so that
// they are noticed if they come again, and derive anew the crossings of those that came
// to it. It opens incidents of streams that have a device in common, and closes those of streams
// that had none for a day.
func (l *Leader) Moved(ctx context.Context, term int64, shards int) error {
	const op = "follow devices that move between streams"
	left, err := l.moves(ctx, leftSQL, l.scope.Stream, movedPage)
	if err != nil {
		return failure(op, err)
	}
	arrived, err := l.moves(ctx, arrivedSQL, l.scope.Stream, movedPage, movedSettle, movedReach, protocol.RequestRecompute)
	if err != nil {
		return failure(op, err)
	}
	var leftIDs, arrivedIDs []int64
	var leftShards []int32
	for _, m := range left {
		leftIDs = append(leftIDs, m.id)
		if shard := int32(telemetry.ShardOf(m.device, shards)); !slices.Contains(leftShards, shard) {
			leftShards = append(leftShards, shard)
		}
	}
	for _, m := range arrived {
		arrivedIDs = append(arrivedIDs, m.id)
	}
	of, devices, from := rederived(arrived, shards)
	return l.request(ctx, op, term, shards, func(b *pgx.Batch) {
		b.Queue(`
insert into processor.requests (stream, group_name, kind, shard, reason, requested_by)
select $1, $2, $3, n, 'devices moved to another stream', $4
from unnest($5::int[]) as n
where not exists (
  select
  from processor.requests
  where stream = $1
    and group_name = $2
    and shard = n
    and kind = $3
    and device_id is null
    and state = 'waiting'
)`, l.scope.Stream, l.scope.Group, protocol.RequestRehydrate, l.member, leftShards)
		b.Queue(`
insert into processor.requests (stream, group_name, kind, shard, device_id, from_ts, reason, requested_by)
select $1, $2, $3, shard, device_id, from_ts, case when device_id is null then 'its devices moved here from another stream' else 'it moved here from another stream' end, $4
from unnest($5::int[], $6::text[], $7::timestamptz[]) as r (shard, device_id, from_ts)
where device_id is not null or not exists (
  select
  from processor.requests q
  where q.stream = $1
    and q.group_name = $2
    and q.shard = r.shard
    and q.kind = $3
    and q.device_id is null
    and q.state = 'waiting'
    and q.from_ts <= r.from_ts
)`,
			l.scope.Stream, l.scope.Group, protocol.RequestRecompute, l.member, of, devices, from)
		// Another stream's leader writes the same rows, and a session that erases a device.
		b.Queue("select from processor.device_moves where id = any ($1) order by id for update", slices.Concat(leftIDs, arrivedIDs))
		b.Queue(bothSQL, l.scope.Stream, l.scope.Group, protocol.DeviceInTwoStreams, leftIDs)
		b.Queue("update processor.device_moves set forgotten = true where id = any ($1)", leftIDs)
		b.Queue("update processor.device_moves set recomputed = true where id = any ($1)", arrivedIDs)
		b.Queue(expireMovesSQL, movedPage, movedKept, movedLost, l.member)
		b.Queue(`
update processor.incidents
set closed_at = now()
where stream = $1
  and group_name = $2
  and kind = $3
  and closed_at is null
  and opened_at < now() - interval '1 day'
  and not exists (
    select
    from processor.device_moves
    where moved_at > now() - interval '1 day'
      and least(moved_from, moved_to) || ' and ' || greatest(moved_from, moved_to) = subject
  )`, l.scope.Stream, l.scope.Group, protocol.DeviceInTwoStreams)
		if len(left)+len(arrived) > 0 {
			b.Queue("select pg_notify('" + RequestsChannel + "', '')")
		}
	})
}

// rederived returns the shards, devices and begins of the windows that are derived again for
// devices that came: one that moved twice once, and a whole shard, without a device, instead of
// many of its devices.
func rederived(arrived []moved, shards int) (of []int32, devices []*string, from []*time.Time) {
	earlier := func(a, b *time.Time) bool { return b != nil && (a == nil || a.Before(*b)) }
	at, each := make(map[string]int), make(map[int32]int)
	add := func(shard int32, device *string, begin *time.Time) int {
		of, devices, from = append(of, shard), append(devices, device), append(from, begin)
		return len(of) - 1
	}
	for _, m := range arrived {
		if i, again := at[m.device]; !again {
			shard := int32(telemetry.ShardOf(m.device, shards))
			at[m.device] = add(shard, &m.device, m.from)
			each[shard]++
		} else if earlier(m.from, from[i]) {
			from[i] = m.from
		}
	}
	single, singles, begins := of, devices, from
	of, devices, from = nil, nil, nil
	whole := make(map[int32]int)
	for i, shard := range single {
		if each[shard] <= movedEach {
			add(shard, singles[i], begins[i])
		} else if n, known := whole[shard]; !known {
			whole[shard] = add(shard, nil, begins[i])
		} else if earlier(begins[i], from[n]) {
			from[n] = begins[i]
		}
	}
	return of, devices, from
}

func (l *Leader) moves(ctx context.Context, sql string, args ...any) ([]moved, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	rows, err := l.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (m moved, err error) {
		err = row.Scan(&m.id, &m.device, &m.from)
		return m, err
	})
}

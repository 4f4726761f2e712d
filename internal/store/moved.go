package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// homeOf returns the stream that a device came from last, with its group and number of
// shards; 0 of them if that is not known.
func homeOf(ctx context.Context, pool *pgxpool.Pool, device string, timeout time.Duration) (scope Scope, shards int, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = pool.QueryRow(ctx, `
select stream, s.group_name, count(*)
from processor.devices d
join processor.shards s using (stream)
where device_id = $1
group by stream, s.group_name
order by count(*) desc
limit 1`, device).Scan(&scope.Stream, &scope.Group, &shards)
	if errors.Is(err, pgx.ErrNoRows) {
		return Scope{}, 0, nil
	}
	return scope, shards, failure("look for the stream of a device", err)
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
	movedWithin = time.Hour   // what a new leader looks back on
	movedSettle = time.Minute // in which the stream that is left ends what it has of the device
	// movedReach is how far before its move a device's crossings are derived again:
	// for a while the owners of both streams may have written them.
	movedReach = time.Hour
)

// Moved is how far a leader has come with devices that move between streams. The zero
// value looks back an hour.
type Moved struct{ left, arrived time.Time }

// Moved has owners of this stream forget devices that another one has taken, so that
// they are noticed if they come again, and derive anew the crossings of those that came
// to it. It closes incidents of streams that had no device in common for a day.
func (l *Leader) Moved(ctx context.Context, term int64, shards int, m *Moved) error {
	const op = "follow devices that move between streams"
	asking, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	rows, err := l.pool.Query(asking, `
select device_id, stream = $1, moved_at
from processor.devices
where moved_at > greatest(now() - $2::interval, case when stream = $1 then $5::timestamptz else $4::timestamptz end)
  and (moved_from = $1 or stream = $1 and moved_at < now() - $3::interval)
order by moved_at
fetch first 20000 rows with ties`, l.scope.Stream, movedWithin, movedSettle, m.left, m.arrived)
	if err != nil {
		return failure(op, err)
	}
	var left, of []int32
	var devices, keys []string
	var from []time.Time
	next := *m
	var device string
	var ours bool
	var at time.Time
	if _, err := pgx.ForEachRow(rows, []any{&device, &ours, &at}, func() error {
		shard := int32(telemetry.ShardOf(device, shards))
		if !ours {
			next.left = at
			if !slices.Contains(left, shard) {
				left = append(left, shard)
			}
			return nil
		}
		next.arrived = at
		devices, of, from = append(devices, device), append(of, shard), append(from, at.Add(-movedReach))
		keys = append(keys, fmt.Sprintf("moved|%s|%s|%d", l.scope.Stream, device, at.UnixMicro()))
		return nil
	}); err != nil {
		return failure(op, err)
	}
	err = l.write(ctx, op, term, func(b *pgx.Batch) {
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
)`, l.scope.Stream, l.scope.Group, protocol.RequestRehydrate, l.member, left)
		b.Queue(`
insert into processor.requests (stream, group_name, kind, shard, device_id, from_ts, reason, requested_by, source_key)
select $1, $2, $3, shard, device_id, from_ts, 'it moved here from another stream', $4, source_key
from unnest($5::int[], $6::text[], $7::timestamptz[], $8::text[]) as r (shard, device_id, from_ts, source_key)
on conflict (source_key) do nothing`, l.scope.Stream, l.scope.Group, protocol.RequestRecompute, l.member, of, devices, from, keys)
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
    from processor.devices
    where moved_at > now() - interval '1 day'
      and least(stream, moved_from) || ' and ' || greatest(stream, moved_from) = subject
  )`, l.scope.Stream, l.scope.Group, protocol.DeviceInTwoStreams)
		if len(left)+len(of) > 0 {
			b.Queue("select pg_notify('" + RequestsChannel + "', '')")
		}
	})
	if err == nil {
		*m = next
	}
	return err
}

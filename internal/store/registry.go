package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// registerSQL registers devices; the stream that a device came from last is its
// own, and a trigger notes each move. Those seen today lock and write nothing; the order
// keeps two that register the same ones from waiting for each other. Offset keeps
// each look one into the index: a plan made while the table was young would read all of it, for each
// batch, long after it has grown. It names no other table, whose lock would stop the commits of all devices.
const registerSQL = `
insert into processor.devices (device_id, stream)
select id, $1
from unnest($2::text[]) as id
where not exists (
  select
  from processor.devices k
  where k.device_id = id
    and k.stream = $1
    and k.last_seen_at > now() - interval '1 day'
  offset 0
)
order by id
on conflict (device_id) do update
set stream = excluded.stream,
  last_seen_at = excluded.last_seen_at`

// foundSQL registers devices that the scan found, unless they belong to a stream.
const foundSQL = `
insert into processor.devices (device_id, stream)
select id, $1
from unnest($2::text[]) as id
order by id
on conflict (device_id) do nothing`

const registeredSQL = `
select device_id
from processor.devices
where stream = $1
  and device_id > $2
order by device_id
limit $3`

// Registered returns devices of the stream in order, behind the one given, at most so many.
func (q *Requests) Registered(ctx context.Context, after string, most int) (devices []string, err error) {
	var id string
	_, err = byItself(ctx, q.writer.pool, q.writer.timeout)(registeredSQL, []any{q.writer.scope.Stream, after, most}, []any{&id}, func() error {
		devices = append(devices, id)
		return nil
	})
	return devices, failure("read registered devices", err)
}

// registered is some devices of the request's shard, in order, behind the one done
// last. There are no more of them if whole.
func (s *step) registered(after string, most int) (devices []string, last string, whole bool, err error) {
	page := most * s.o.Shards
	n := 0
	var id string
	_, err = s.ask(registeredSQL, []any{s.q.writer.scope.Stream, after, page}, []any{&id}, func() error {
		n++
		if last = id; telemetry.ShardOf(id, s.o.Shards) == s.o.Request.Shard {
			devices = append(devices, id)
		}
		return nil
	})
	return devices, last, n < page, err
}

// devicesSQL skips from device to device along the index, whatever each one
// holds. The last argument is how many it may meet.
const devicesSQL = `
with recursive d as (
  (select device_id, 1 as n
  from public.positions
  where device_id > $1
    and ts >= $2
    and (ts < $3 or $3 = 'infinity')
  order by device_id
  limit 1)
  union all
  select (
    select device_id
    from public.positions
    where device_id > d.device_id
      and ts >= $2
      and (ts < $3 or $3 = 'infinity')
    order by device_id
    limit 1), d.n + 1
  from d
  where d.device_id is not null
    and d.n < $4
)
select device_id
from d
where device_id is not null`

// scanPage is how many devices one part of the scan may find.
const scanPage = 1000

// scan does a part of the scan for devices that were stored before there was a
// table of them, and reports whether it is done. One does it at a time. What others write
// later is found once its row is deleted, so it is asked for with each step.
func (q *Requests) scan(ctx context.Context, c cuts, halved int, limit time.Duration) (done bool, err error) {
	const op = "look for devices"
	ctx, cancel := context.WithTimeout(ctx, q.writer.timeout)
	defer cancel()
	if err := q.writer.pool.QueryRow(ctx, `
select exists (
  select
  from processor.device_scans
  where stream = $1
    and done_at is not null
)`, q.writer.scope.Stream).Scan(&done); err != nil || done {
		return done, notBegun(failure(op, err))
	}
	err = notBegun(failure(op, pgx.BeginFunc(ctx, q.writer.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("set local statement_timeout = %d", limit.Milliseconds())); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `
insert into processor.device_scans (stream, from_us, to_us)
values ($1, $2, $2)
on conflict (stream) do nothing`, q.writer.scope.Stream, int64(math.MinInt64)); err != nil {
			return err
		}
		var from, to int64
		var after string
		err := tx.QueryRow(ctx, `
select from_us, to_us, after_device, done_at is not null
from processor.device_scans
where stream = $1
for update skip locked`, q.writer.scope.Stream).Scan(&from, &to, &after, &done)
		if errors.Is(err, pgx.ErrNoRows) {
			return &protocol.Failure{Kind: protocol.Unavailable, Err: errors.New("another request does it")}
		}
		if err != nil || done {
			return err
		}
		if to <= from { // the next span
			first := c.heap(from)
			s := c.span(first, first+max(1, heapsAtOnce>>halved)-1)
			to, after = s.to, ""
		}
		var found []string
		var id string
		page := max(1, scanPage>>halved)
		if _, err := inTx(ctx, tx)(devicesSQL, c.args(after, timeOf(from), timeOf(to), page), []any{&id}, func() error {
			found = append(found, id)
			return nil
		}); err != nil {
			return err
		}
		if len(found) > 0 {
			if _, err := tx.Exec(ctx, foundSQL, q.writer.scope.Stream, found); err != nil {
				return err
			}
		}
		if len(found) == page {
			after = slices.Max(found)
		} else {
			done = to == math.MaxInt64
			from, after = to, ""
		}
		_, err = tx.Exec(ctx, `
update processor.device_scans
set from_us = $2,
  to_us = $3,
  after_device = $4,
  done_at = case when $5 then now() end
where stream = $1`, q.writer.scope.Stream, from, to, after, done)
		return err
	})))
	return done, err
}

package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Recompute records requests of other services, under the leader's term, with shards by their number. Every
// stream's leader reads all of them, and the first that does records a request in the stream that the device belongs to,
// in its own if that is not known. The owner of the shard passes it on if that has changed.
func (l *Leader) Recompute(ctx context.Context, term int64, shards int, list []protocol.Window) error {
	n := len(list)
	source, device, reason := make([]string, n), make([]string, n), make([]string, n)
	stream, group := make([]string, n), make([]string, n)
	shard, homeShards, homeShard := make([]int32, n), make([]int32, n), make([]int32, n)
	from, to := make([]time.Time, n), make([]time.Time, n)
	for i, w := range list {
		source[i], device[i], reason[i] = w.Source, w.DeviceID, w.Reason
		shard[i], from[i], to[i] = int32(w.Shard), micros(w.FromUS), micros(w.ToUS)
	}
	homes, err := homesOf(ctx, l.pool, device, l.timeout)
	if err != nil {
		return err
	}
	for i, d := range device {
		if h, ok := homes[d]; ok && h.Stream != l.scope.Stream {
			stream[i], group[i] = h.Stream, h.Group
			homeShards[i], homeShard[i] = int32(h.shards), int32(telemetry.ShardOf(d, h.shards))
		}
	}
	return l.request(ctx, "record requests", term, shards, func(b *pgx.Batch) {
		// A request under the key of an earlier version, which named the stream that recorded it, is recorded, too.
		b.Queue(`
with known as materialized (
  select distinct stream || '|' || group_name || '|' as prefix
  from processor.shards
), made as (
  insert into processor.requests (stream, group_name, kind, shard, device_id, from_ts, to_ts, reason, requested_by, source_key)
  select
    case when away then r.stream else $1 end, case when away then r.group_name else $2 end, 'recompute',
    case when away then r.home_shard else r.shard end,
    r.device_id, r.from_ts, r.to_ts, r.reason, 'recompute:requests', r.source_key
  from unnest($3::int[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::text[], $8::text[], $9::text[], $10::text[], $11::int[], $12::int[])
    as r (shard, device_id, from_ts, to_ts, reason, source_key, stream, group_name, home_shards, home_shard)
  cross join lateral (
    select r.home_shards > 0 and r.home_shards = (
      select count(*)
      from processor.shards s
      where s.stream = r.stream
        and s.group_name = r.group_name
    ) as away
  ) home
  where not exists (
    select
    from processor.requests before
    where before.source_key = any (array(select k.prefix || r.source_key from known k))
  )
  on conflict (source_key) do nothing
  returning id, device_id, from_ts, to_ts, reason
)
insert into processor.audit (who, action, target, count, detail)
select 'recompute:requests', 'recompute', 'device ' || device_id, 1,
  jsonb_build_object('request', id, 'from', from_ts, 'to', to_ts, 'reason', reason)
from made`, l.scope.Stream, l.scope.Group, shard, device, from, to, reason, source, stream, group, homeShards, homeShard)
		b.Queue("select pg_notify('" + RequestsChannel + "', '')")
	})
}

// queueRest requests the recompute of a window of which a transaction does not read all
// that decides. One that asks for the same and that nobody has begun is widened
// instead, to a week at most: late records far from each other do not have all between
// them derived again. Its owner finds it changed if it has read it already.
func queueRest(b *pgx.Batch, scope Scope, shard int, w window, member string) {
	b.Queue(`
with widened as (
  update processor.requests
  set from_ts = least(from_ts, $5),
    to_ts = greatest(to_ts, $6)
  where id = (
      select min(id)
      from processor.requests
      where stream = $1
        and group_name = $2
        and kind = 'recompute'
        and device_id = $4
        and state = 'waiting'
        and reason = $8
        and greatest(to_ts, $6) <= least(from_ts, $5) + interval '7 days'
    )
    and state = 'waiting'
  returning id
)
insert into processor.requests (stream, group_name, kind, shard, device_id, from_ts, to_ts, reason, requested_by)
select $1, $2, 'recompute', $3, $4, $5, $6, $8, $7
where not exists (select from widened)`, scope.Stream, scope.Group, shard, w.device, micros(w.lo), micros(w.hi), member,
		"a held border was not settled within the positions that one transaction reads")
	b.Queue("select pg_notify('" + RequestsChannel + "', '')")
}

package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/protocol"
)

// Recompute records requests of other services, under the leader's term. One
// that is recorded already is left unchanged.
func (l *Leader) Recompute(ctx context.Context, term int64, list []protocol.Window) error {
	n := len(list)
	source, device, reason := make([]string, n), make([]string, n), make([]string, n)
	shard := make([]int32, n)
	from, to := make([]time.Time, n), make([]time.Time, n)
	for i, w := range list {
		source[i], device[i], reason[i] = l.scope.Stream+"|"+l.scope.Group+"|"+w.Source, w.DeviceID, w.Reason
		shard[i], from[i], to[i] = int32(w.Shard), micros(w.FromUS), micros(w.ToUS)
	}
	return l.write(ctx, "record requests", term, func(b *pgx.Batch) {
		b.Queue(`
with made as (
  insert into processor.requests (stream, group_name, kind, shard, device_id, from_ts, to_ts, reason, requested_by, source_key)
  select $1, $2, 'recompute', r.shard, r.device_id, r.from_ts, r.to_ts, r.reason, 'recompute:requests', r.source_key
  from unnest($3::int[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::text[], $8::text[])
    as r (shard, device_id, from_ts, to_ts, reason, source_key)
  on conflict (source_key) do nothing
  returning id, device_id, from_ts, to_ts, reason
)
insert into processor.audit (who, action, target, count, detail)
select 'recompute:requests', 'recompute', 'device ' || device_id, 1,
  jsonb_build_object('request', id, 'from', from_ts, 'to', to_ts, 'reason', reason)
from made`, l.scope.Stream, l.scope.Group, shard, device, from, to, reason, source)
		b.Queue("select pg_notify('" + RequestsChannel + "', '')")
	})
}

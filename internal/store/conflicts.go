package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// content is what a record says, apart from its key and its stream time.
const content = `jsonb_build_object(
      'latitude', latitude, 'longitude', longitude, 'altitude', altitude, 'angle', angle, 'speed', speed,
      'satellites', satellites, 'priority', priority, 'codec', codec, 'attributes', attributes)`

// rivalsSQL decides between records and the rows that have their device and time.
// A row that takes no part, and that nobody has flagged, gives way to the first
// record that does. Whatever loses and has other content is noted. It writes nothing to
// positions: a delete unpacks compressed chunks before it has found a row.
const rivalsSQL = `
with r as (
  select u.n, u.device_id, u.ts, u.ingested_at, u.eligible, u.entry_id, u.priority, c.content
  from unnest($2::text[], $3::timestamptz[], $4::timestamptz[], $5::float8[], $6::float8[],
    $7::float4[], $8::float4[], $9::float4[], $10::int2[], $11::int2[], $12::text[], $13::text[], $14::bool[], $15::text[])
    with ordinality as u (device_id, ts, ingested_at, latitude, longitude,
      altitude, angle, speed, satellites, priority, codec, attributes, eligible, entry_id, n)
  cross join lateral (
    select ` + content + ` as content
    from (select u.latitude, u.longitude, u.altitude, u.angle, u.speed, u.satellites, u.priority, u.codec,
      u.attributes::jsonb as attributes) x
  ) c
), pairs as materialized (
  select r.*, w.row_content, w.row_ingested_at, w.row_priority, w.excluded <> '' and not w.faulty as gives_way
  from r
  cross join lateral (
    select ` + content + ` as row_content, ingested_at as row_ingested_at, priority as row_priority, faulty,
      ` + exclusion + ` as excluded
    from public.positions
    where device_id = r.device_id
      and ts = r.ts
      and ts = any ($3)
  ) w
), winners as materialized (
  select distinct on (device_id, ts) *
  from pairs
  where eligible
    and gives_way
  order by device_id, ts, n
), losers as (
  select p.n, p.device_id, p.ts, p.entry_id, p.ingested_at, p.priority, p.content, coalesce(w.content, p.row_content) as kept
  from pairs p
  left join winners w using (device_id, ts)
  where p.n is distinct from w.n
  union all
  select null, device_id, ts, null, row_ingested_at, row_priority, row_content, content
  from winners
), noted as (
  insert into processor.conflicts (stream, group_name, device_id, ts, digest, entry_id, ingested_at, priority, differs, record)
  select distinct on (device_id, ts, d.digest) $16, $17, device_id, ts, d.digest, entry_id, ingested_at, priority,
    array(select e.key from jsonb_each(kept) as e where e.value is distinct from content -> e.key order by e.key),
    content
  from losers
  cross join lateral (select md5(content::text) as digest) d
  where content <> kept
  order by device_id, ts, d.digest, entry_id
  on conflict (device_id, ts, stream, group_name, digest) do update
  set entry_id = coalesce(conflicts.entry_id, excluded.entry_id)
  returning priority, xmax = 0 as new
)
select 0, n from winners
union all
select 1, n from losers where n is not null and content <> kept
union all
select 2, priority from noted where new
union all
select 3, r.n from r where not exists (select from pairs p where p.n = r.n)`

// giveWaySQL deletes the rows whose times are taken by records that win them.
const giveWaySQL = `
delete from public.positions p
using unnest($1::text[], $2::timestamptz[]) as w (device_id, ts)
where p.device_id = w.device_id
  and p.ts = w.ts
  and p.ts = any ($2)`

// batcher is a connection or a transaction.
type batcher interface {
	asker
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// settle decides about the records that were not stored because a row has their
// device and time. Those that replace it are stored then. It returns which have other
// content than the row that stays: another program may have written that, and then
// its crossings are not derived.
func settle(ctx context.Context, tx batcher, scope Scope, records []telemetry.Record, stored []bool, rules protocol.Rules, out *protocol.CommitResult) (lost []bool, err error) {
	lost = make([]bool, len(records))
	var rivals []telemetry.Record
	var which []int
	for i := range records {
		if !stored[i] {
			rivals, which = append(rivals, records[i]), append(which, i)
		}
	}
	if len(rivals) == 0 {
		return lost, nil
	}
	eligible, ids := make([]bool, len(rivals)), make([]string, len(rivals))
	for i := range rivals {
		eligible[i], ids[i] = rules.Eligibility.Of(&rivals[i]) == telemetry.Eligible, rivals[i].ID.String()
	}
	args := append([]any{pgx.QueryExecModeCacheDescribe, limitsOf(rules.Eligibility)}, columnsOf(rivals)...)
	rows, err := tx.Query(ctx, rivalsSQL, append(args, eligible, ids, scope.Stream, scope.Group)...)
	if err != nil {
		return lost, err
	}
	var what int
	var n int64
	var winners []int
	if _, err := pgx.ForEachRow(rows, []any{&what, &n}, func() error {
		switch what {
		case 0:
			winners = append(winners, which[n-1])
		case 1:
			out.Conflicts++
			lost[which[n-1]] = true
		case 3:
			out.SwallowedLate++ // neither inserted nor there
		default:
			out.NewConflicts++
			if n == telemetry.PriorityPanic {
				out.NewPanics++
			}
		}
		return nil
	}); err != nil || len(winners) == 0 {
		return lost, err
	}
	again, inserted := make([]telemetry.Record, len(winners)), make([]bool, len(winners))
	devices, times := make([]string, len(winners)), make([]time.Time, len(winners))
	for i, at := range winners {
		again[i] = records[at]
		devices[i], times[i] = again[i].DeviceID, again[i].Time()
	}
	if _, err := tx.Exec(ctx, giveWaySQL, pgx.QueryExecModeCacheDescribe, devices, times); err != nil {
		return lost, err
	}
	batch := &pgx.Batch{}
	queueLate(batch, again, inserted)
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return lost, err
	}
	for i, at := range winners {
		if stored[at] = inserted[i]; !inserted[i] {
			out.SwallowedLate++
		}
	}
	return lost, nil
}

// columnsOf are the columns of records as arrays, in the order of positionColumns.
func columnsOf(records []telemetry.Record) []any {
	n := len(records)
	var (
		device, codec, attributes = make([]string, n), make([]string, n), make([]string, n)
		ts, ingested              = make([]time.Time, n), make([]time.Time, n)
		lat, lon                  = make([]float64, n), make([]float64, n)
		alt, angle, speed         = make([]float32, n), make([]float32, n), make([]float32, n)
		satellites, priority      = make([]int16, n), make([]int16, n)
	)
	for i := range records {
		r := &records[i]
		device[i], codec[i], attributes[i] = r.DeviceID, r.Codec, string(r.Attributes)
		ts[i], ingested[i] = r.Time(), time.UnixMicro(r.StreamUS).UTC()
		lat[i], lon[i] = r.Latitude, r.Longitude
		alt[i], angle[i], speed[i] = r.Altitude, r.Angle, r.Speed
		satellites[i], priority[i] = r.Satellites, r.Priority
	}
	return []any{device, ts, ingested, lat, lon, alt, angle, speed, satellites, priority, codec, attributes}
}

package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
// record that does, unless it is among those that stay. It writes nothing to
// positions: a delete unpacks compressed chunks before it has found a row. It does not name the table
// of conflicts either: who sends again what is there, as most do, does not wait for a lock of it.
const rivalsSQL = losersSQL + outcomesSQL

// notedRivalsSQL does the same, and notes whatever loses and has other content.
const notedRivalsSQL = losersSQL + notedSQL + outcomesSQL + `
union all
select 2, priority from noted where new`

const losersSQL = `
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
  select r.*, w.row_content, w.row_ingested_at, w.row_priority, w.faulty, w.excluded <> '' and not w.faulty as gives_way
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
    and (device_id, ts) not in (select device_id, ts from r where n = any ($16))
  order by device_id, ts, n
), losers as (
  select p.n, p.device_id, p.ts, p.entry_id, p.ingested_at, p.priority, p.content, coalesce(w.content, p.row_content) as kept
  from pairs p
  left join winners w using (device_id, ts)
  where p.n is distinct from w.n
  union all
  select null, device_id, ts, null, row_ingested_at, row_priority, row_content, content
  from winners
)`

const notedSQL = `, noted as (
  insert into processor.conflicts (stream, group_name, device_id, ts, digest, entry_id, ingested_at, priority, differs, record)
  select distinct on (device_id, ts, d.digest) $17, $18, device_id, ts, d.digest, entry_id, ingested_at, priority,
    array(select e.key from jsonb_each(kept) as e where e.value is distinct from content -> e.key order by e.key),
    content
  from losers
  cross join lateral (select md5(content::text) as digest) d
  where content <> kept
  order by device_id, ts, d.digest, entry_id
  on conflict (device_id, ts, stream, group_name, digest) do update
  set entry_id = coalesce(conflicts.entry_id, excluded.entry_id)
  returning priority, xmax = 0 as new
)`

const outcomesSQL = `
select 0, n from winners
union all
select 1, n from losers where n is not null and content <> kept
union all
select 3, r.n from r where not exists (select from pairs p where p.n = r.n)
union all
select 4, n from pairs where eligible and faulty`

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

// savepoint is where a batch returns to whose rows do not give way, see settle.
const savepoint = "rivals"

// contest is the records of a batch that were not stored because a row has their device
// and time, and what is decided about them.
type contest struct {
	tx       batcher
	scope    Scope
	rules    protocol.Rules
	records  []telemetry.Record
	eligible []bool
	ids      []string
}

// decision says of them, by index: who replaces the row, and who loses to it with other content.
type decision struct {
	winners, lost      []int
	flagged            []int // those that take part, and whose row is faulty
	newOnes, newPanics int   // conflicts that were not known before
	absent             int   // neither inserted nor there
}

// settle decides about the records that were not stored because a row has their
// device and time. Those that replace it are stored then. It returns which have other
// content than the row that stays: another program may have written that, and then
// its crossings are not derived. Where Postgres refuses to have rows give way, these
// stay, and all is decided again from the savepoint on, which the caller has set. Of the
// records from the index certain on later ones were computed as if they had been stored: where
// one of these loses to a row that stays, the batch has to be computed again.
func settle(ctx context.Context, tx batcher, scope Scope, records []telemetry.Record, stored []bool, certain int, rules protocol.Rules, out *protocol.CommitResult) (lost []bool, err error) {
	lost = make([]bool, len(records))
	c := contest{tx: tx, scope: scope, rules: rules}
	var which []int
	for i := range records {
		if r := &records[i]; !stored[i] {
			which, c.records = append(which, i), append(c.records, *r)
			c.eligible, c.ids = append(c.eligible, rules.Eligibility.Of(r) == telemetry.Eligible), append(c.ids, r.ID.String())
		}
	}
	if len(which) == 0 {
		return lost, nil
	}
	d, err := c.decide(ctx, nil)
	if err != nil {
		return lost, err
	}
	for _, i := range append(slices.Clip(d.lost), d.flagged...) {
		if at := which[i]; at >= certain && overtakes(records, at, certain, rules.Eligibility) {
			return lost, &protocol.Failure{Kind: protocol.Conflict, Err: fmt.Errorf("a row of %s that was not expected keeps its time", records[at].DeviceID)}
		}
	}
	stay, refusal, err := c.staying(ctx, d.winners)
	if refusal != nil && err == nil {
		if slices.ContainsFunc(stay, func(i int) bool { return which[i] >= certain }) {
			return lost, &protocol.Failure{Kind: protocol.Conflict, Err: refusal}
		}
		out.Stayed, out.StayedWhy = len(stay), refusal
		d, err = c.withStaying(ctx, stay)
	}
	if err != nil {
		return lost, err
	}
	for _, i := range d.winners {
		stored[which[i]] = true
	}
	for _, i := range d.lost {
		lost[which[i]] = true
	}
	out.Conflicts, out.NewConflicts, out.NewPanics, out.SwallowedLate = len(d.lost), d.newOnes, d.newPanics, d.absent
	return lost, nil
}

// overtakes reports whether a rival was taken for the row of its device and time: no earlier
// record of the batch takes part.
func overtakes(records []telemetry.Record, at, certain int, rules telemetry.Eligibility) bool {
	after := false
	for i := range records[:at] {
		if r := &records[i]; r.TimeUS == records[at].TimeUS && r.DeviceID == records[at].DeviceID {
			if rules.Of(r) == telemetry.Eligible {
				return false
			}
			after = after || i < certain
		}
	}
	return after && rules.Of(&records[at]) == telemetry.Eligible
}

// decide finds what becomes of the records, and notes the conflicts.
func (c *contest) decide(ctx context.Context, stay []int) (decision, error) {
	d, err := c.ask(ctx, rivalsSQL, stay)
	if err != nil || len(d.winners)+len(d.lost) == 0 {
		return d, err
	}
	return c.ask(ctx, notedRivalsSQL, stay, c.scope.Stream, c.scope.Group)
}

func (c *contest) ask(ctx context.Context, sql string, stay []int, more ...any) (d decision, err error) {
	staying := make([]int64, len(stay))
	for i, at := range stay {
		staying[i] = int64(at + 1)
	}
	args := append([]any{pgx.QueryExecModeCacheDescribe, limitsOf(c.rules.Eligibility)}, columnsOf(c.records)...)
	rows, err := c.tx.Query(ctx, sql, append(append(args, c.eligible, c.ids, staying), more...)...)
	if err != nil {
		return d, err
	}
	var what int
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&what, &n}, func() error {
		switch what {
		case 0:
			d.winners = append(d.winners, int(n-1))
		case 1:
			d.lost = append(d.lost, int(n-1))
		case 3:
			d.absent++
		case 4:
			d.flagged = append(d.flagged, int(n-1))
		default:
			d.newOnes++
			if n == telemetry.PriorityPanic {
				d.newPanics++
			}
		}
		return nil
	})
	return d, err
}

// replace has records take the place of the rows of their device and time. A refusal says
// why they could not: the transaction is good for nothing but a return to the savepoint.
func (c *contest) replace(ctx context.Context, winners []int) (refusal *protocol.Failure, err error) {
	again, inserted := make([]telemetry.Record, len(winners)), make([]bool, len(winners))
	devices, times := make([]string, len(winners)), make([]time.Time, len(winners))
	for i, at := range winners {
		again[i] = c.records[at]
		devices[i], times[i] = again[i].DeviceID, again[i].Time()
	}
	if _, err := c.tx.Exec(ctx, giveWaySQL, pgx.QueryExecModeCacheDescribe, devices, times); err != nil {
		f, _ := errors.AsType[*protocol.Failure](failure("have rows give way", err))
		if f == nil || !staysFor(f) {
			return nil, err
		}
		return f, nil
	}
	batch := &pgx.Batch{}
	queueLate(batch, again, inserted)
	if err := c.tx.SendBatch(ctx, batch).Close(); err != nil {
		return nil, err
	}
	if slices.Contains(inserted, false) {
		return &protocol.Failure{Kind: protocol.Rejected, Err: errors.New("have rows give way: " +
			"a trigger, a rule or row security on positions keeps rows from being deleted, or those in their place from being stored")}, nil
	}
	return nil, nil
}

// staysFor reports whether a delete failed for what is in its way until a person changes
// that, and not for an outage, a lock or a fence.
func staysFor(f *protocol.Failure) bool {
	switch f.Kind {
	case protocol.Rejected, protocol.Conflict, protocol.Misconfigured:
		return true
	default:
		return f.Kind == protocol.Unavailable && f.Code == "55000" // for example no replica identity
	}
}

// staying replaces the rows of records. Where it cannot, it finds those that stay, by
// halves unless the reason is that of all rows, and leaves the transaction for a return to
// the savepoint.
func (c *contest) staying(ctx context.Context, winners []int) (stay []int, refusal *protocol.Failure, err error) {
	if len(winners) == 0 {
		return nil, nil, nil
	}
	refusal, err = c.replace(ctx, winners)
	if refusal == nil || err != nil {
		return nil, nil, err
	}
	if len(winners) == 1 || refusal.Kind == protocol.Misconfigured || refusal.Kind == protocol.Unavailable {
		return winners, refusal, nil
	}
	for _, half := range [][]int{winners[:len(winners)/2], winners[len(winners)/2:]} {
		if err := c.back(ctx); err != nil {
			return nil, nil, err
		}
		some, _, err := c.staying(ctx, half)
		if err != nil {
			return nil, nil, err
		}
		stay = append(stay, some...)
	}
	return stay, refusal, nil
}

// withStaying decides again, for rows that stay.
func (c *contest) withStaying(ctx context.Context, stay []int) (d decision, err error) {
	if err := c.back(ctx); err != nil {
		return d, err
	}
	if d, err = c.decide(ctx, stay); err != nil || len(d.winners) == 0 {
		return d, err
	}
	refusal, err := c.replace(ctx, d.winners)
	if refusal != nil {
		err = &protocol.Failure{Kind: protocol.Unavailable, TooMuch: true, Err: fmt.Errorf("have rows give way: refused once, then not, then again: %w", refusal)}
	}
	return d, err
}

func (c *contest) back(ctx context.Context) error {
	_, err := c.tx.Exec(ctx, "rollback to savepoint "+savepoint)
	return err
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

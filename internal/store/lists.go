package store

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Lists reads pages of what a fleet has recorded, newest first. A page continues
// before a number that the last row of the page before has; 0 begins.
type Lists struct {
	pool    *pgxpool.Pool
	heaps   *heaps
	scope   Scope
	timeout time.Duration
}

// NewLists returns the lists of a group.
func NewLists(pool *pgxpool.Pool, scope Scope, timeout time.Duration) *Lists {
	return &Lists{pool: pool, heaps: newHeaps(pool), scope: scope, timeout: timeout}
}

// cuts is how positions is divided.
func (l *Lists) cuts(ctx context.Context) (cuts, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	return l.heaps.now(ctx)
}

// page runs a query whose first two arguments are the position and the number of
// rows.
func page[T any](ctx context.Context, l *Lists, op, sql string, scan pgx.RowToFunc[T], args ...any) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	rows, err := l.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, failure(op, err)
	}
	list, err := pgx.CollectRows(rows, scan)
	return list, failure(op, err)
}

// AuditRow is a change that an operator made.
type AuditRow struct {
	Number int64           `json:"number"`
	At     time.Time       `json:"at"`
	Who    string          `json:"who"`
	Action string          `json:"action"`
	Target string          `json:"target"`
	Count  int64           `json:"count"`
	Detail json.RawMessage `json:"detail"`
}

// Audit returns changes by operators.
func (l *Lists) Audit(ctx context.Context, before int64, limit int) ([]AuditRow, error) {
	return page(ctx, l, "list the audit", `
select id, at, who, action, target, count, detail
from processor.audit
where ($1 = 0 or id < $1)
order by id desc
limit $2`, pgx.RowToStructByPos[AuditRow], before, limit)
}

// NumberedIncident is an incident with its number.
type NumberedIncident struct {
	Number int64 `json:"number"`
	IncidentRow
}

// Incidents returns incidents, open and closed ones.
func (l *Lists) Incidents(ctx context.Context, openOnly bool, before int64, limit int) ([]NumberedIncident, error) {
	return page(ctx, l, "list incidents", `
select id, kind, subject, opened_at, closed_at, detail
from processor.incidents
where ($1 = 0 or id < $1)
  and stream = $3
  and group_name = $4
  and (closed_at is null or not $5)
order by id desc
limit $2`, func(row pgx.CollectableRow) (i NumberedIncident, err error) {
		err = row.Scan(&i.Number, &i.Kind, &i.Subject, &i.Opened, &i.Closed, &i.Detail)
		return i, err
	}, before, limit, l.scope.Stream, l.scope.Group, openOnly)
}

// NumberedLoss is a row of the ledger with its number.
type NumberedLoss struct {
	Number int64 `json:"number"`
	LossRow
}

// Losses returns the ledger of losses.
func (l *Lists) Losses(ctx context.Context, before int64, limit int) ([]NumberedLoss, error) {
	return page(ctx, l, "list the ledger", `
select id, cause, first_id, last_id, entries, shard, detected_at
from processor.losses
where ($1 = 0 or id < $1)
  and stream = $3
  and group_name = $4
order by id desc
limit $2`, func(row pgx.CollectableRow) (r NumberedLoss, err error) {
		err = row.Scan(&r.Number, &r.Cause, &r.First, &r.Last, &r.Entries, &r.Shard, &r.Detected)
		return r, err
	}, before, limit, l.scope.Stream, l.scope.Group)
}

// Requests returns requests; device "" is all.
func (l *Lists) Requests(ctx context.Context, device string, before int64, limit int) ([]RequestStatus, error) {
	return page(ctx, l, "list requests", `
select `+requestColumns+`
from processor.requests
where ($1 = 0 or id < $1)
  and stream = $3
  and group_name = $4
  and ($5 = '' or device_id = $5)
order by id desc
limit $2`, scanRequest, before, limit, l.scope.Stream, l.scope.Group, device)
}

// DeferredRow is an entry that waits for another attempt.
type DeferredRow struct {
	Entry       string    `json:"entry"`
	Device      *string   `json:"device_id"`
	Shard       int       `json:"shard"`
	Class       string    `json:"class"`
	Error       string    `json:"error"`
	Fingerprint string    `json:"fingerprint"`
	Attempts    int       `json:"attempts"`
	First       time.Time `json:"first_failed_at"`
	Next        time.Time `json:"next_attempt_at"`
	Field       *string   `json:"-"` // at fault
	Fields      [][]byte  `json:"-"` // of the entry, if it was asked for alone
}

// Delivered returns the fields as they were delivered.
func (r *DeferredRow) Delivered() []string { return textFields(r.Fields) }

// Deferred returns the entries that are tried next, at most limit; with an ID that one
// alone, with its fields.
func (l *Lists) Deferred(ctx context.Context, entry string, limit int) ([]DeferredRow, error) {
	return page(ctx, l, "list deferred entries", `
select entry_id, device_id, shard, class, error, fingerprint, attempts, first_failed_at, next_attempt_at, field,
  case when $4 <> '' then fields end
from processor.deferred
where stream = $1
  and group_name = $2
  and ($4 = '' or entry_id = $4)
order by next_attempt_at, entry_id
limit $3`, pgx.RowToStructByPos[DeferredRow], l.scope.Stream, l.scope.Group, limit, entry)
}

// DeferredKind counts deferred entries that failed alike so far.
type DeferredKind struct {
	Class    string
	Attempts int
	Entries  int64
	Known    int64     // of them, that were edited, replayed or dropped as dead letters before
	Next     time.Time // of the one that is tried last
}

// DeferredKinds counts deferred entries by class and attempts.
func (l *Lists) DeferredKinds(ctx context.Context) ([]DeferredKind, error) {
	return page(ctx, l, "count deferred entries", `
select class, attempts, count(*), count(*) filter (where exists (
    select
    from processor.dead_letters a
    where a.stream = d.stream
      and a.group_name = d.group_name
      and a.source_id = d.entry_id
      and a.digest = d.digest)), max(next_attempt_at)
from processor.deferred d
where stream = $1
  and group_name = $2
group by class, attempts`, pgx.RowToStructByPos[DeferredKind], l.scope.Stream, l.scope.Group)
}

// SettingRow is a pinned setting.
type SettingRow struct {
	Name  string    `json:"name"`
	Value string    `json:"value"`
	By    string    `json:"set_by"`
	At    time.Time `json:"set_at"`
}

// Settings returns what the fleet has pinned.
func (l *Lists) Settings(ctx context.Context) ([]SettingRow, error) {
	return page(ctx, l, "list pinned settings", `
select regexp_replace(name, '^.*/', ''), value, set_by, set_at
from processor.settings
where regexp_replace(name, '[^/]*$', '') = $1
  or strpos(name, '/') = 0
order by name`, pgx.RowToStructByPos[SettingRow], l.scope.Stream+"/"+l.scope.Group+"/")
}

const registeredLikeSQL = `
select device_id
from processor.devices
where device_id like $1
  and device_id > $2
order by device_id
limit $3`

// walkedSQL finds devices in some heaps, from device to device along the index, whatever each
// one holds, until there are enough. By code points those that are like the prefix lie together,
// as those of digits do elsewhere, and the first one that is not is the end; other collations
// have others between them, of which so many are passed.
const walkedSQL = `
with recursive d as (
  (select device_id, 0 as others
  from public.positions
  where device_id > $2
    and device_id >= $4
    and ts >= $5
    and (ts < $6 or $6 = 'infinity')
  order by device_id
  limit 1)
  union all
  select (
    select device_id
    from public.positions
    where device_id > d.device_id
      and ts >= $5
      and (ts < $6 or $6 = 'infinity')
    order by device_id
    limit 1), case when d.device_id like $1 then d.others else d.others + 1 end
  from d
  where d.device_id like $1
    or d.others < $7
    and $4 !~ '^[0-9]+$'
    and left(d.device_id, 0) || 'a' < 'B' -- by the collation of the column
)
select device_id
from d
where device_id like $1
limit $3`

// walkedOthers is how many devices that are not like the prefix one search passes, in all spans.
const walkedOthers = 10000

// Devices returns IDs of devices that begin with a prefix, in the order of the table, after one
// of them if it is given; at most limit. Until a scan has found all devices, some that have no
// row in processor.devices may be missing where the database orders by the rules of a language.
func (l *Lists) Devices(ctx context.Context, prefix, after string, limit int) ([]string, error) {
	const op = "list devices"
	like := strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(prefix) + "%"
	scanned, err := page(ctx, l, op, "select exists (select from processor.device_scans where done_at is not null)", pgx.RowTo[bool])
	if err != nil {
		return nil, err
	}
	found, err := page(ctx, l, op, registeredLikeSQL, pgx.RowTo[string], like, after, limit)
	if err != nil || scanned[0] {
		return found, err
	}
	c, err := l.cuts(ctx)
	if err != nil {
		return nil, failure(op, err)
	}
	spans := c.spans(math.MinInt64, math.MaxInt64)
	for _, s := range spans {
		some, err := page(ctx, l, op, walkedSQL, pgx.RowTo[string],
			c.args(like, after, limit, prefix, timeOf(s.from), timeOf(s.to), max(1, walkedOthers/len(spans)))...)
		if err != nil {
			return nil, err
		}
		found = append(found, some...)
	}
	return page(ctx, l, op, `
select distinct device_id
from unnest($1::text[]) as f (device_id)
order by device_id
limit $2`, pgx.RowTo[string], found, limit)
}

// ArchivedLetter is a dead letter in the archive.
type ArchivedLetter struct {
	Number     int64      `json:"number"`
	ID         string     `json:"id"`
	Source     string     `json:"source_id"`
	Device     *string    `json:"device_id"`
	Class      string     `json:"class"`
	Error      string     `json:"error"`
	Field      *string    `json:"field"`
	Print      string     `json:"fingerprint"`
	Attempts   int        `json:"attempts"`
	Exported   time.Time  `json:"exported_at"`
	By         string     `json:"exported_by"`
	Edited     *time.Time `json:"edited_at"`
	ReplayedAs *string    `json:"replayed_as"`

	letter telemetry.DeadLetter
}

// Letter returns the dead letter as it was.
func (a *ArchivedLetter) Letter() *telemetry.DeadLetter { return &a.letter }

// ArchiveFilter selects archived dead letters. The zero value selects all.
type ArchiveFilter struct {
	IDs                        []string // of dead letters or of the original entries, in full
	Class, Device, Fingerprint string
	OpenOnly                   bool // only those that were not replayed
}

// Archived returns dead letters of the archive, before a number; 0 begins.
func (l *Lists) Archived(ctx context.Context, f ArchiveFilter, before int64, limit int) ([]ArchivedLetter, error) {
	return page(ctx, l, "list archived dead letters", `
select id, dlq_id, source_id, device_id, class, error, field, fingerprint, attempts, exported_at, exported_by, edited_at, replayed_as,
  fields, coalesce(shard, 0), coalesce(first_failed_at, exported_at), coalesce(last_failed_at, exported_at), instance, version
from processor.dead_letters
where ($1 = 0 or id < $1)
  and stream = $3
  and group_name = $4
  and (cardinality($5::text[]) = 0 or dlq_id = any ($5) or source_id = any ($5))
  and ($6 = '' or class = $6)
  and ($7 = '' or device_id = $7)
  and ($8 = '' or fingerprint = $8)
  and (replayed_as is null or not $9)
order by id desc
limit $2`, func(row pgx.CollectableRow) (a ArchivedLetter, err error) {
		var fields [][]byte
		d := &a.letter
		if err := row.Scan(&a.Number, &a.ID, &a.Source, &a.Device, &a.Class, &a.Error, &a.Field, &a.Print, &a.Attempts, &a.Exported, &a.By, &a.Edited, &a.ReplayedAs,
			&fields, &d.Shard, &d.FirstFailed, &d.LastFailed, &d.Instance, &d.Version); err != nil {
			return a, err
		}
		d.Class, d.Error, d.Fingerprint, d.Attempts = telemetry.Class(a.Class), a.Error, a.Print, a.Attempts
		if a.Field != nil {
			d.Field = *a.Field
		}
		d.Entry.Fields = textFields(fields)
		d.Entry.ID, err = telemetry.ParseEntryID(a.Source)
		return a, err
	}, before, limit, l.scope.Stream, l.scope.Group, append([]string{}, f.IDs...), f.Class, f.Device, f.Fingerprint, f.OpenOnly)
}

// Restored records that an archived dead letter is in its stream again, under
// another ID: its edits go with it.
func (l *Lists) Restored(ctx context.Context, number int64, as telemetry.EntryID) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	tag, err := l.pool.Exec(ctx, `
update processor.dead_letters
set dlq_id = $2
where id = $1`, number, as.String())
	if err == nil && tag.RowsAffected() == 0 {
		err = fmt.Errorf("number %d is in the archive no more", number)
	}
	return failure("record a restored dead letter", err)
}

// TrackPoint is a position on the map of a device.
type TrackPoint struct {
	Time      time.Time
	Ingested  time.Time
	Latitude  float64
	Longitude float64
	Speed     float32
	Angle     float32
	Faulty    bool
	Excluded  telemetry.Exclusion // why it takes no part in state; empty if it does
}

const trackColumns = `ts, ingested_at, latitude, longitude, speed, angle, faulty, ` + exclusion

// Track returns the positions of a device in a window of device time, oldest
// first: all of them, or where they are more than limit as many at even distances
// in time, found one by one along the index, whatever lies between them.
func (l *Lists) Track(ctx context.Context, device string, from, to time.Time, limit int, rules telemetry.Eligibility) (points []TrackPoint, sampled bool, err error) {
	const op = "read the track of a device"
	c, err := l.cuts(ctx)
	if err != nil {
		return nil, false, failure(op, err)
	}
	spans := c.spans(from.UnixMicro(), to.UnixMicro())
	for _, s := range spans {
		some, err := page(ctx, l, op, `
select `+trackColumns+`
from public.positions
where device_id = $2
  and ts >= greatest($3::timestamptz, $4)
  and ts < least($5::timestamptz, $6)
order by ts
limit $7`, pgx.RowToStructByPos[TrackPoint], c.args(limitsOf(rules), device, from, timeOf(s.from), to, timeOf(s.to), limit+1-len(points))...)
		if err != nil {
			return nil, false, err
		}
		if points = append(points, some...); len(points) > limit {
			points, err = l.sampled(ctx, op, c, spans, device, from, to, limit, rules)
			return points, true, err
		}
	}
	return points, false, nil
}

// sampled returns the first position in each of so many parts of a window.
func (l *Lists) sampled(ctx context.Context, op string, c cuts, spans []span, device string, from, to time.Time, limit int, rules telemetry.Eligibility) (points []TrackPoint, err error) {
	last := -1 // part
	for _, s := range spans {
		some, err := page(ctx, l, op, `
select p.*
from (
  select n, $3::timestamptz + n * d as lo, $3::timestamptz + (n + 1) * d as hi
  from generate_series($8 + 1, $5 - 1) as n
  cross join lateral (select ($4::timestamptz - $3::timestamptz) / $5 as d) w
) part
cross join lateral (
  select n, `+trackColumns+`
  from public.positions
  where device_id = $2
    and ts >= lo
    and ts < hi
    and ts >= $6
    and ts < $7
  order by ts
  limit 1
) p
where hi > $6
  and lo < $7
order by n`, func(row pgx.CollectableRow) (p TrackPoint, err error) {
			err = row.Scan(&last, &p.Time, &p.Ingested, &p.Latitude, &p.Longitude, &p.Speed, &p.Angle, &p.Faulty, &p.Excluded)
			return p, err
		}, c.args(limitsOf(rules), device, from, to, limit, timeOf(s.from), timeOf(s.to), last)...)
		if err != nil {
			return nil, err
		}
		points = append(points, some...)
	}
	return points, nil
}

// Span returns the first and last device time of a device in the table, zero for
// none.
func (l *Lists) Span(ctx context.Context, device string, before time.Time) (first, last time.Time, err error) {
	const op = "look for the positions of a device"
	c, err := l.cuts(ctx)
	if err != nil {
		return first, last, failure(op, err)
	}
	look := func(sql string, s span, found *time.Time, more ...any) (bool, error) {
		some, err := page(ctx, l, op, sql, pgx.RowTo[time.Time], c.args(append([]any{device, timeOf(s.from), timeOf(s.to)}, more...)...)...)
		if len(some) > 0 {
			*found = some[0]
		}
		return len(some) > 0, err
	}
	for _, s := range c.spans(firstUS, math.MaxInt64) {
		if enough, err := look(`
select ts
from public.positions
where device_id = $1
  and ts >= greatest($2, `+firstTime+`)
  and (ts < $3 or $3 = 'infinity')
order by ts
limit 1`, s, &first); err != nil {
			return first, last, err
		} else if enough {
			break
		}
	}
	return first, last, c.newest(func(s span) (bool, error) {
		return look(`
select ts
from public.positions
where device_id = $1
  and ts >= $2
  and ts < least($3, $4::timestamptz)
order by ts desc
limit 1`, s, &last, before)
	})
}

// CrossingRow is a crossing of a device.
type CrossingRow struct {
	Fence     string
	Version   int
	Kind      string
	At        time.Time
	Earlier   *time.Time
	Later     time.Time
	Latitude  float64
	Longitude float64
	Initial   bool
	// Suppressed is a passage of a gate that does not count.
	Suppressed bool
	Revision   int
	Updated    time.Time
}

// Crossings returns the crossings of a device in a window, newest first.
func (l *Lists) Crossings(ctx context.Context, device string, from, to time.Time, limit int) ([]CrossingRow, error) {
	return page(ctx, l, "list crossings", `
select fence_id, fence_version, kind, at, earlier_ts, later_ts, latitude, longitude, initial, suppressed, revision, updated_at
from processor.timing_records
where device_id = $1
  and later_ts >= $2
  and later_ts < $3
order by later_ts desc, ordinal desc
limit $4`, pgx.RowToStructByPos[CrossingRow], device, from, to, limit)
}

// Shapes returns the fences in force as GeoJSON geometries.
func (l *Lists) Shapes(ctx context.Context, limit int) ([]FenceShape, error) {
	return page(ctx, l, "list fences", `
select id, version, name, kind, geometry, coalesce(radius_m, 0), valid_from, valid_to
from processor.geofences
where replaced_at is null
  and enabled
  and coalesce(radius_m, 0) < 'infinity' -- above which is NaN
order by id, version
limit $1`, pgx.RowToStructByPos[FenceShape], limit)
}

// FenceShape is a fence to be drawn.
type FenceShape struct {
	ID       string          `json:"id"`
	Version  int             `json:"version"`
	Name     string          `json:"name"`
	Kind     string          `json:"kind"`
	Geometry json.RawMessage `json:"geometry"`
	Radius   float64         `json:"radius"`
	From     *time.Time      `json:"from"`
	To       *time.Time      `json:"to"`
}

// StreamRow is a stream of the database.
type StreamRow struct {
	Stream  string
	Group   string
	Shards  int
	Devices int64 // that came from it last
}

// RemovedStream is a stream that was removed, of which the ledger tells losses.
type RemovedStream struct {
	Stream string
	Group  string
	Lost   *int64 // nil if some losses are of unknown size
}

// RemovedStreams returns the streams in the ledger of losses that have no shards any more.
func (l *Lists) RemovedStreams(ctx context.Context) ([]RemovedStream, error) {
	return page(ctx, l, "list the ledger of streams that were removed", `
select stream, group_name, case when bool_and(entries is not null) then sum(entries)::bigint end
from processor.losses l
where not exists (
  select
  from processor.shards s
  where s.stream = l.stream
    and s.group_name = l.group_name
)
group by stream, group_name
order by stream, group_name`, pgx.RowToStructByPos[RemovedStream])
}

// Streams returns the streams of all fleets that work with the database.
func (l *Lists) Streams(ctx context.Context) ([]StreamRow, error) {
	return page(ctx, l, "list streams", `
select stream, group_name, count(*), (
  select count(*)
  from processor.devices d
  where d.stream = s.stream)
from processor.shards s
group by stream, group_name
order by stream, group_name`, pgx.RowToStructByPos[StreamRow])
}

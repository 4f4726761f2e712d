package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/recheck"
	"github.com/trmtracking/processor/internal/telemetry"
)

// FleetSettings are the pinned values of a fleet that crossings and owners
// depend on.
type FleetSettings struct {
	Shards      int // 0 while no instance has ever started
	Eligibility telemetry.Eligibility
	MaxGap      time.Duration
	Database    string // identity of the database, "" before the first instance
}

// ReadFleetSettings returns what the fleet has pinned.
func ReadFleetSettings(ctx context.Context, pool *pgxpool.Pool, scope Scope) (FleetSettings, error) {
	prefix := scope.Stream + "/" + scope.Group + "/"
	rows, err := pool.Query(ctx, `
select case name when $2 then name else substr(name, length($1) + 1) end, value
from processor.settings
where regexp_replace(name, '[^/]*$', '') = $1
  or name = $2`, prefix, DatabaseSetting)
	if err != nil {
		return FleetSettings{}, failure("read pinned settings", err)
	}
	var p FleetSettings
	var name, value string
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() (err error) {
		switch name {
		case DatabaseSetting:
			p.Database = value
		case "SHARDS":
			p.Shards, err = strconv.Atoi(value)
		case "MAX_FUTURE_SKEW":
			p.Eligibility.MaxFutureSkew, err = time.ParseDuration(value)
		case "MAX_PAST":
			p.Eligibility.MaxPast, err = time.ParseDuration(value)
		case "MIN_SATELLITES":
			p.Eligibility.MinSatellites, err = strconv.Atoi(value)
		case "MAX_SPEED":
			p.Eligibility.MaxSpeed, err = strconv.Atoi(value)
		case "MAX_CROSSING_GAP":
			p.MaxGap, err = time.ParseDuration(value)
		}
		if err != nil {
			return fmt.Errorf("pinned value of %s: %w", name, err)
		}
		return nil
	})
	return p, failure("read pinned settings", err)
}

// Devices answers operators' questions about one device, and accepts their
// requests.
type Devices struct {
	pool  *pgxpool.Pool
	heaps *heaps
	scope Scope
	pins  FleetSettings
	by    string

	draw       func([]recheck.Fence, recheck.Rules) (*recheck.Deriver, []recheck.Passed)
	verifyMost int
}

// NewDevices returns the operators' view of devices. Requests carry by as their
// author.
func NewDevices(pool *pgxpool.Pool, scope Scope, pins FleetSettings, by string) *Devices {
	return &Devices{pool: pool, heaps: newHeaps(pool), scope: scope, pins: pins, by: by, draw: recheck.New, verifyMost: verifyMost}
}

// errNeverStarted is returned when no fleet exists for the stream and group.
var errNeverStarted = errors.New("no instance has ever started for this stream and group; check REDIS_TELEMETRY_STREAM and REDIS_CONSUMER_GROUP, or start one")

// MaxWindow is the longest window that may be recomputed by request.
const MaxWindow = 10 * 366 * 24 * time.Hour

// CheckWindow returns why a window cannot be recomputed, or nil. A nil end is
// open.
func CheckWindow(from, to *time.Time) error {
	switch {
	case from != nil && to != nil && from.After(*to):
		return fmt.Errorf("the window begins at %s, after its end at %s", from.Format(time.RFC3339), to.Format(time.RFC3339))
	case from != nil && to != nil && to.Sub(*from) > MaxWindow:
		return fmt.Errorf("the window from %s to %s is longer than ten years", from.Format(time.RFC3339), to.Format(time.RFC3339))
	}
	return nil
}

// Known reports whether anything is stored of a device.
func (d *Devices) Known(ctx context.Context, device string) (known bool, err error) {
	if d.pins.Shards == 0 {
		return false, errNeverStarted
	}
	const op = "look for a device"
	if err = d.pool.QueryRow(ctx, `
select exists (select from processor.devices where device_id = $1)
  or exists (select from processor.timing_records where device_id = $1)
  or exists (select from processor.deferred where device_id = $1)
  or exists (select from processor.dead_letters where device_id = $1)`, device).Scan(&known); known || err != nil {
		return known, failure(op, err)
	}
	c, err := d.heaps.now(ctx)
	if err != nil {
		return false, failure(op, err)
	}
	err = c.newest(func(s span) (bool, error) {
		err := d.pool.QueryRow(ctx, `
select exists (
  select
  from public.positions
  where device_id = $1
    and ts >= $2
    and (ts < $3 or $3 = 'infinity')
)`, c.args(device, timeOf(s.from), timeOf(s.to))...).Scan(&known)
		return known, err
	})
	return known, failure(op, err)
}

// Ask requests work of the owner of a device's shard. The request and its audit
// are one transaction; the owner is notified at the commit.
func (d *Devices) Ask(ctx context.Context, kind, device string, from, to *time.Time, reason string) (id int64, err error) {
	if d.pins.Shards == 0 {
		return 0, errNeverStarted
	}
	if err := CheckWindow(from, to); err != nil {
		return 0, err
	}
	err = pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) (err error) {
		id, err = d.request(ctx, tx, kind, kind, device, from, to, reason, 1)
		return err
	})
	return id, failure("ask for a "+kind, err)
}

// errResized is returned for a request of a shard by a number of them that was changed since it
// was read.
var errResized = errors.New("the number of shards was changed meanwhile, nothing was done: run it again")

// request adds a request with its audit, of an action that concerns count, and notifies
// the owner at the commit.
func (d *Devices) request(ctx context.Context, tx pgx.Tx, kind, action, device string, from, to *time.Time, reason string, count int64) (id int64, err error) {
	if err := tx.QueryRow(ctx, `
insert into processor.requests (stream, group_name, kind, shard, device_id, from_ts, to_ts, reason, requested_by)
select $1, $2, $3, $4, $5, $6, $7, $8, $9
where not exists (
  select
  from processor.settings
  where name = $10
    and value <> $11
)
returning id`, d.scope.Stream, d.scope.Group, kind, telemetry.ShardOf(device, d.pins.Shards), device, from, to, reason, d.by,
		d.scope.shardsSetting(), strconv.Itoa(d.pins.Shards)).Scan(&id); errors.Is(err, pgx.ErrNoRows) {
		return 0, &protocol.Failure{Kind: protocol.Unavailable, Err: errResized}
	} else if err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, `
insert into processor.audit (who, action, target, count, detail)
values ($1, $2, $3, $4, jsonb_build_object('request', $5::bigint, 'from', $6::timestamptz, 'to', $7::timestamptz, 'reason', $8::text))`,
		d.by, action, "device "+device, count, id, from, to, reason); err != nil {
		return 0, err
	}
	_, err = tx.Exec(ctx, "select pg_notify('"+RequestsChannel+"', '')")
	return id, err
}

// RequestStatus is the state of a request.
type RequestStatus struct {
	ID         int64             `json:"id"`
	Kind       string            `json:"kind"`
	Device     *string           `json:"device_id"` // null for all devices of a shard
	Shard      int               `json:"shard"`
	From       *time.Time        `json:"from"`
	To         *time.Time        `json:"to"`
	Reason     string            `json:"reason"`
	By         string            `json:"requested_by"`
	At         time.Time         `json:"requested_at"`
	State      string            `json:"state"` // waiting, running, done, failed or cancelled
	Progress   protocol.Progress `json:"progress"`
	Result     json.RawMessage   `json:"result"` // null while there is none
	RunBy      *string           `json:"executed_by"`
	FinishedAt *time.Time        `json:"finished_at"`
	Attempts   int               `json:"attempts"`        // that failed since it last made progress
	NextAt     *time.Time        `json:"next_attempt_at"` // null while it is not waiting for another attempt
}

// Over reports whether the request has ended.
func (r *RequestStatus) Over() bool { return r.State != "waiting" && r.State != "running" }

const requestColumns = `id, kind, device_id, shard, from_ts, to_ts, reason, requested_by, requested_at, state, progress, result, executed_by, finished_at, attempts, next_attempt_at`

func scanRequest(row pgx.CollectableRow) (RequestStatus, error) {
	var r RequestStatus
	var progress, result []byte
	err := row.Scan(&r.ID, &r.Kind, &r.Device, &r.Shard, &r.From, &r.To, &r.Reason, &r.By, &r.At, &r.State, &progress, &result, &r.RunBy, &r.FinishedAt, &r.Attempts, &r.NextAt)
	r.Result, r.Progress = result, progressOf(progress)
	return r, err
}

// Request returns the state of a request.
func (d *Devices) Request(ctx context.Context, id int64) (RequestStatus, error) {
	rows, err := d.pool.Query(ctx, "select "+requestColumns+" from processor.requests where id = $1", id)
	if err != nil {
		return RequestStatus{}, failure("read a request", err)
	}
	r, err := pgx.CollectExactlyOneRow(rows, scanRequest)
	return r, failure("read a request", err)
}

// OpenRequests returns the unfinished requests, the oldest first, and those that
// failed since a time.
func (d *Devices) OpenRequests(ctx context.Context, failedSince time.Time) ([]RequestStatus, error) {
	rows, err := d.pool.Query(ctx, "select "+requestColumns+`
from processor.requests
where stream = $1
  and group_name = $2
  and (state in ('waiting', 'running') or state = 'failed' and finished_at > $3)
order by id
limit 1000`, d.scope.Stream, d.scope.Group, failedSince)
	if err != nil {
		return nil, failure("read requests", err)
	}
	list, err := pgx.CollectRows(rows, scanRequest)
	return list, failure("read requests", err)
}

// Cancel ends a request that is not over, which changes nothing from then on, and
// reports whether it did. The audit is of the same transaction.
func (d *Devices) Cancel(ctx context.Context, id int64, reason string) (cancelled bool, err error) {
	err = pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
update processor.requests
set state = 'cancelled',
  finished_at = now()
where id = $1
  and stream = $2
  and group_name = $3
  and state in ('waiting', 'running')`, id, d.scope.Stream, d.scope.Group)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		cancelled = true
		if _, err := tx.Exec(ctx, `
insert into processor.audit (who, action, target, count, detail)
values ($1, 'cancel', $2, 1, jsonb_build_object('reason', $3::text))`, d.by, fmt.Sprint("request ", id), reason); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "select pg_notify('"+RequestsChannel+"', '')")
		return err
	})
	return cancelled, failure("cancel a request", err)
}

// Device is the stored state of one device.
type Device struct {
	Device     string          `json:"device_id"`
	Shard      int             `json:"shard"`
	Owner      *string         `json:"owner"` // null while the shard has none
	Epoch      int64           `json:"epoch"`
	OwnedSince *time.Time      `json:"owned_since"`
	Last       *Position       `json:"last"` // the last eligible one; null if there is none
	Recent     []Position      `json:"recent"`
	Fences     []fenceState    `json:"fences"`
	Deferred   int64           `json:"deferred"`
	Archived   int64           `json:"dead_letters_archived"`
	Conflicts  int64           `json:"conflicts"` // records that lost to the row of their device time
	Requests   []RequestStatus `json:"requests"`
}

// Position is one row of positions.
type Position struct {
	Time      time.Time `json:"ts"`
	Ingested  time.Time `json:"ingested_at"`
	Latitude  float64   `json:"latitude"`
	Longitude float64   `json:"longitude"`
	Speed     float32   `json:"speed"`
	Faulty    bool      `json:"faulty"`
	// Excluded is why it takes no part in state, or is or may be a jump; empty if it
	// takes part.
	Excluded telemetry.Exclusion `json:"excluded"`
	Conflict bool                `json:"conflict"` // another record has the same device time and other content
}

// fenceState is the last timing record of a device and a fence.
type fenceState struct {
	Fence string    `json:"fence_id"`
	Kind  string    `json:"kind"`
	At    time.Time `json:"at"`
	Later time.Time `json:"later_ts"`
}

// Show reads the stored state of a device, as of one moment.
func (d *Devices) Show(ctx context.Context, device string) (Device, error) {
	out := Device{Device: device, Recent: []Position{}, Fences: []fenceState{}, Requests: []RequestStatus{}}
	if d.pins.Shards == 0 {
		return out, errNeverStarted
	}
	out.Shard = telemetry.ShardOf(device, d.pins.Shards)
	c, err := d.heaps.now(ctx)
	if err != nil {
		return out, failure("read a device", err)
	}
	err = pgx.BeginTxFunc(ctx, d.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
		err = tx.QueryRow(ctx, `
select owner, epoch, owner_since
from processor.shards
where stream = $1
  and group_name = $2
  and shard = $3`, d.scope.Stream, d.scope.Group, out.Shard).Scan(&out.Owner, &out.Epoch, &out.OwnedSince)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		ask, err := asOf(ctx, d.pool, tx, c)
		if err != nil {
			return err
		}
		const recent = 5
		if err := c.newest(func(s span) (bool, error) {
			const columns = `
select ts, ingested_at, latitude, longitude, speed, faulty, ` + exclusion + `,
  exists (select from processor.conflicts c where c.device_id = $2 and c.ts = positions.ts)
from public.positions
where device_id = $2
  and device_id between $2 and $2
  and ts >= $3
  and ts < $4`
			args := c.args(limitsOf(d.pins.Eligibility), device, timeOf(s.from), timeOf(s.to))
			var p Position
			scan := []any{&p.Time, &p.Ingested, &p.Latitude, &p.Longitude, &p.Speed, &p.Faulty, &p.Excluded, &p.Conflict}
			if len(out.Recent) < recent {
				if _, err := ask(columns+" order by ts desc limit 5", args, scan, func() error {
					out.Recent = append(out.Recent, p)
					return nil
				}); err != nil {
					return false, err
				}
				out.Recent = out.Recent[:min(len(out.Recent), recent)]
			}
			if out.Last == nil {
				if _, err := ask(columns+" and "+eligible+" order by ts desc limit 1", args, scan, func() error {
					last := p
					out.Last = &last
					return nil
				}); err != nil {
					return false, err
				}
			}
			return len(out.Recent) == recent && out.Last != nil, nil
		}); err != nil {
			return err
		}
		if err := d.jumps(c, ask, device, out.Recent); err != nil {
			return err
		}
		if out.Fences, err = collect(ctx, tx, pgx.RowToStructByPos[fenceState], `
select distinct on (fence_id) fence_id, kind, at, later_ts
from processor.timing_records
where device_id = $1
  and not suppressed
order by fence_id, later_ts desc, ordinal desc`, device); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `
select (select count(*) from processor.deferred where device_id = $1),
  (select count(*) from processor.dead_letters where device_id = $1),
  (select count(*) from processor.conflicts where device_id = $1)`, device).Scan(&out.Deferred, &out.Archived, &out.Conflicts); err != nil {
			return err
		}
		out.Requests, err = collect(ctx, tx, scanRequest, "select "+requestColumns+`
from processor.requests
where device_id = $1
order by id desc
limit 5`, device)
		return err
	})
	return out, failure("read a device", err)
}

func collect[T any](ctx context.Context, tx pgx.Tx, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	list, err := pgx.CollectRows(rows, scan)
	if list == nil {
		list = []T{}
	}
	return list, err
}

// Backlog is the progress of the group's recomputes.
type Backlog struct {
	Open    int64 `json:"open"` // waiting and running
	Running int64 `json:"running"`
	Devices int64 `json:"devices"` // finished by those that run
	Fixes   int64 `json:"positions"`
}

// Recomputes returns the progress of the group's recomputes.
func (d *Devices) Recomputes(ctx context.Context) (Backlog, error) {
	var b Backlog
	err := d.pool.QueryRow(ctx, `
select count(*),
  count(*) filter (where state = 'running'),
  coalesce(sum((progress ->> 'devices')::bigint), 0),
  coalesce(sum((progress ->> 'fixes')::bigint), 0)
from processor.requests
where stream = $1
  and group_name = $2
  and kind = 'recompute'
  and state in ('waiting', 'running')`, d.scope.Stream, d.scope.Group).Scan(&b.Open, &b.Running, &b.Devices, &b.Fixes)
	return b, failure("read requests", err)
}

package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Trace is the stored state of one device.
type Trace struct {
	Owner    string // of its shard, "" if it has none
	Epoch    int64
	Assigned string
	Applied  string     // newest device time stored
	Last     *time.Time // newest device time stored
	Stored   map[telemetry.EntryID]bool
	Deferred map[telemetry.EntryID]DeferredEntry
	Letters  map[telemetry.EntryID]string   // archived dead letters: class
	Conflict map[telemetry.EntryID][]string // columns in which it differs from the row
	Lost     map[telemetry.EntryID]string   // cause, for IDs that a loss's range covers
}

// DeferredEntry is a deferred entry.
type DeferredEntry struct {
	Class    string
	Error    string
	Attempts int
	Next     time.Time
}

// TraceQuery is an entry and the key of the row it would be.
type TraceQuery struct {
	ID     telemetry.EntryID
	TimeUS int64 // device time; rows are found by it
	Known  bool  // whether it decodes, so that TimeUS means something
}

// TraceDevice searches the tables for entries of a device.
func TraceDevice(ctx context.Context, pool *pgxpool.Pool, scope Scope, device string, shard int, sought []TraceQuery) (Trace, error) {
	const op = "trace the device"
	t := Trace{
		Stored: make(map[telemetry.EntryID]bool), Deferred: make(map[telemetry.EntryID]DeferredEntry),
		Letters: make(map[telemetry.EntryID]string), Lost: make(map[telemetry.EntryID]string), Conflict: make(map[telemetry.EntryID][]string),
	}
	err := pool.QueryRow(ctx, `
select coalesce(max(s.owner), ''), coalesce(max(s.epoch), 0), coalesce(max(a.member), ''), coalesce(max(p.applied_id), '')
from processor.shards s
left join processor.assignments a using (stream, group_name, shard)
left join processor.progress p using (stream, group_name, shard)
where s.stream = $1
  and s.group_name = $2
  and s.shard = $3`, scope.Stream, scope.Group, shard).Scan(&t.Owner, &t.Epoch, &t.Assigned, &t.Applied)
	if err != nil {
		return t, failure(op, err)
	}
	c, err := newHeaps(pool).now(ctx)
	if err != nil {
		return t, failure(op, err)
	}
	if err := c.newest(func(s span) (bool, error) {
		err := pool.QueryRow(ctx, `
select max(ts)
from public.positions
where device_id = $1
  and ts >= $2
  and ts < $3`, c.args(device, timeOf(s.from), timeOf(s.to))...).Scan(&t.Last)
		return t.Last != nil, err
	}); err != nil {
		return t, failure(op, err)
	}
	ids, byText := make([]string, len(sought)), make(map[string]telemetry.EntryID, len(sought))
	byTime := make(map[int64][]telemetry.EntryID)
	var times []time.Time
	for i, s := range sought {
		ids[i] = s.ID.String()
		byText[ids[i]] = s.ID
		if s.Known {
			byTime[s.TimeUS] = append(byTime[s.TimeUS], s.ID)
			times = append(times, micros(s.TimeUS))
		}
	}
	each := func(sql string, found func(pgx.CollectableRow) error, args ...any) error {
		rows, err := pool.Query(ctx, sql, args...)
		if err != nil {
			return failure(op, err)
		}
		_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (struct{}, error) { return struct{}{}, found(row) })
		return failure(op, err)
	}
	if err := each(`select ts from public.positions where device_id = $1 and ts = any ($2)`,
		func(row pgx.CollectableRow) error {
			var ts time.Time
			err := row.Scan(&ts)
			for _, id := range byTime[ts.UnixMicro()] {
				t.Stored[id] = true
			}
			return err
		}, c.args(device, times)...); err != nil {
		return t, err
	}
	if err := each(`
select entry_id, differs
from processor.conflicts
where stream = $1
  and group_name = $2
  and device_id = $3
  and ts = any ($4)
  and entry_id = any ($5)`, func(row pgx.CollectableRow) error {
		var id string
		var differs []string
		err := row.Scan(&id, &differs)
		t.Conflict[byText[id]] = differs
		return err
	}, scope.Stream, scope.Group, device, times, ids); err != nil {
		return t, err
	}
	if err := each(`
select entry_id, class, error, attempts, next_attempt_at
from processor.deferred
where stream = $1
  and group_name = $2
  and entry_id = any ($3)`, func(row pgx.CollectableRow) error {
		var id string
		var l DeferredEntry
		err := row.Scan(&id, &l.Class, &l.Error, &l.Attempts, &l.Next)
		t.Deferred[byText[id]] = l
		return err
	}, scope.Stream, scope.Group, ids); err != nil {
		return t, err
	}
	if err := each(`
select source_id, class
from processor.dead_letters
where stream = $1
  and group_name = $2
  and source_id = any ($3)`, func(row pgx.CollectableRow) error {
		var id, class string
		err := row.Scan(&id, &class)
		t.Letters[byText[id]] = class
		return err
	}, scope.Stream, scope.Group, ids); err != nil {
		return t, err
	}
	return t, t.losses(ctx, pool, scope, shard, sought)
}

// losses marks the entries that a loss names individually. A range may cover
// entries that were not lost, so it proves nothing about one.
func (t *Trace) losses(ctx context.Context, pool *pgxpool.Pool, scope Scope, shard int, sought []TraceQuery) error {
	ids, byText := make([]string, len(sought)), make(map[string]telemetry.EntryID, len(sought))
	for i, s := range sought {
		ids[i] = s.ID.String()
		byText[ids[i]] = s.ID
	}
	rows, err := pool.Query(ctx, `
select first_id, cause
from processor.losses
where stream = $1
  and group_name = $2
  and (shard = $3 or shard is null)
  and first_id = last_id
  and first_id = any ($4)`, scope.Stream, scope.Group, shard, ids)
	if err != nil {
		return failure("look into the ledger", err)
	}
	var id, cause string
	_, err = pgx.ForEachRow(rows, []any{&id, &cause}, func() error {
		t.Lost[byText[id]] = cause
		return nil
	})
	return failure("look into the ledger", err)
}

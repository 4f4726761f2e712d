package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// stepFixes is the approximate number of positions one step reads or removes.
const stepFixes = 5000

// Requests executes requests of operators and other services.
type Requests struct {
	writer *Writer
}

// NewRequests returns the requests as executed by the owner of shards.
func NewRequests(w *Writer) *Requests { return &Requests{writer: w} }

// Waiting returns the oldest unfinished request of each of the shards.
func (q *Requests) Waiting(ctx context.Context, shards []int) ([]protocol.Request, error) {
	ctx, cancel := context.WithTimeout(ctx, q.writer.timeout)
	defer cancel()
	list := make([]int32, len(shards))
	for i, s := range shards {
		list[i] = int32(s)
	}
	rows, err := q.writer.pool.Query(ctx, `
select distinct on (shard) id, kind, shard, coalesce(device_id, ''), from_ts, to_ts, progress
from processor.requests
where stream = $1
  and group_name = $2
  and shard = any ($3)
  and state in ('waiting', 'running')
order by shard, id`, q.writer.scope.Stream, q.writer.scope.Group, list)
	if err != nil {
		return nil, failure("look for requests", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (protocol.Request, error) {
		var r protocol.Request
		var from, to *time.Time
		var progress []byte
		if err := row.Scan(&r.ID, &r.Kind, &r.Shard, &r.Device, &from, &to, &progress); err != nil {
			return r, err
		}
		r.FromUS, r.ToUS = math.MinInt64, math.MaxInt64
		if from != nil {
			r.FromUS = from.UnixMicro()
		}
		if to != nil {
			r.ToUS = to.UnixMicro()
		}
		return r, json.Unmarshal(progress, &r.Progress)
	})
	return found, failure("look for requests", err)
}

// Step performs a bounded part of a recompute or an erasure, in one transaction
// that ends with the epoch check, and records its progress.
func (q *Requests) Step(ctx context.Context, o protocol.RequestStep) (protocol.Progress, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 4*q.writer.timeout)
	defer cancel()
	p := o.Request.Progress
	done := false
	err := q.inTx(ctx, o, func(ctx context.Context, tx *pgx.Conn, then *pgx.Batch) (err error) {
		switch o.Request.Kind {
		case protocol.RequestRecompute:
			done, err = q.recompute(ctx, tx, o, &p, then)
		case protocol.RequestErase:
			done, err = q.erase(ctx, tx, o, &p)
		default:
			return fmt.Errorf("request %d: kind %q has no steps", o.Request.ID, o.Request.Kind)
		}
		if err != nil {
			return err
		}
		return q.note(then, o.Request.ID, p, done)
	})
	return p, done, failure(fmt.Sprintf("run request %d", o.Request.ID), err)
}

// Finish ends a request with a result, or as failed with a reason.
func (q *Requests) Finish(ctx context.Context, o protocol.RequestStep, result map[string]any, failed string) error {
	ctx, cancel := context.WithTimeout(ctx, q.writer.timeout)
	defer cancel()
	err := q.inTx(ctx, o, func(_ context.Context, _ *pgx.Conn, then *pgx.Batch) error {
		state := "done"
		if failed != "" {
			state, result = "failed", map[string]any{"error": failed}
		}
		text, err := json.Marshal(result)
		if err != nil {
			return err
		}
		then.Queue(`
update processor.requests
set state = $2,
  result = $3,
  started_at = coalesce(started_at, now()),
  finished_at = now(),
  executed_by = $4
where id = $1`, o.Request.ID, state, text, q.writer.member)
		return nil
	})
	return failure(fmt.Sprintf("finish request %d", o.Request.ID), err)
}

// inTx runs f in a transaction that commits under the shard's epoch.
func (q *Requests) inTx(ctx context.Context, o protocol.RequestStep, f func(context.Context, *pgx.Conn, *pgx.Batch) error) error {
	pooled, err := q.writer.pool.Acquire(ctx)
	if err != nil {
		return &protocol.Failure{Kind: protocol.Unavailable, Err: fmt.Errorf("acquire a connection: %w", err)}
	}
	defer pooled.Release()
	tx := pooled.Conn()
	then := &pgx.Batch{}
	if _, err = tx.Exec(ctx, "begin"); err == nil {
		err = f(ctx, tx, then)
	}
	if err == nil {
		then.Queue("select processor.check_fences($1)", o.Rules.Fences.Version)
		q.writer.queueFence(then, []protocol.ShardLease{o.Lease})
		then.Queue("commit").Exec(committed)
		err = tx.SendBatch(ctx, then).Close()
	}
	if err != nil {
		q.writer.rollBack(ctx, tx)
	}
	return err
}

func (q *Requests) note(then *pgx.Batch, id int64, p protocol.Progress, done bool) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	state := "running"
	if done {
		state = "done"
	}
	then.Queue(`
update processor.requests
set state = $2,
  progress = $3,
  result = case when $2 = 'done' then $3::jsonb else result end,
  started_at = coalesce(started_at, now()),
  finished_at = case when $2 = 'done' then now() else finished_at end,
  executed_by = $4
where id = $1`, id, state, text, q.writer.member)
	return nil
}

// The ends of device time: times beyond them are rejected on arrival.
var (
	firstUS = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	lastUS  = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
)

// devicesAtOnce is how many devices share one count of their positions.
const devicesAtOnce = 64

// recompute derives windows again until about stepFixes positions were read:
// many small devices together, a device with more than that alone and in
// pieces.
func (q *Requests) recompute(ctx context.Context, tx *pgx.Conn, o protocol.RequestStep, p *protocol.Progress, then *pgx.Batch) (done bool, err error) {
	from, to := max(o.Request.FromUS, firstUS), min(o.Request.ToUS, lastUS)
	for budget := int64(stepFixes); budget > 0; {
		var list []window
		var fixes int64
		heavy := p.AfterUS != nil
		if heavy {
			w := window{device: p.Device, lo: *p.AfterUS + 1, hi: to}
			held, err := countPositions(ctx, tx, []string{p.Device}, w.lo, to)
			if err != nil {
				return false, err
			}
			fixes = held[0].fixes
			if p.AfterUS = nil; fixes == stepFixes {
				w.hi = held[0].last
				p.AfterUS = &w.hi
			} else {
				p.Devices++
			}
			list = append(list, w)
		} else {
			devices, err := q.nextDevices(ctx, tx, o, p)
			if err != nil || len(devices) == 0 {
				return len(devices) == 0, err
			}
			held, err := countPositions(ctx, tx, devices, from, to)
			if err != nil {
				return false, err
			}
			for i, h := range held {
				if h.fixes == stepFixes || fixes+h.fixes > stepFixes {
					break
				}
				fixes += h.fixes
				list = append(list, window{device: devices[i], lo: from, hi: to})
			}
			if len(list) == 0 {
				before := from - 1
				p.Device, p.AfterUS = devices[0], &before
				continue
			}
			p.Device = list[len(list)-1].device
			p.Devices += int64(len(list))
		}
		changed, err := recompute(ctx, tx, list, o.Rules, then)
		if err != nil {
			return false, err
		}
		p.Changed += int64(changed)
		p.Fixes += fixes
		budget -= fixes + int64(10*len(list)) // a device without positions has a cost, too
	}
	return false, nil
}

// positionCount is a device's number of positions in a span, counted up to
// stepFixes, and the device time of the last one counted.
type positionCount struct {
	fixes int64
	last  int64
}

func countPositions(ctx context.Context, tx *pgx.Conn, devices []string, from, to int64) ([]positionCount, error) {
	rows, err := tx.Query(ctx, `
select h.n, coalesce(h.last, 'epoch')
from unnest($1::text[]) with ordinality as w (device_id, i)
cross join lateral (
  select count(*) as n, max(ts) as last
  from (
    select ts
    from public.positions
    where `+ofDevice+`
      and ts between $2 and $3
    order by ts
    limit $4
  ) f
) h
order by w.i`, devices, micros(from), micros(to), stepFixes)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (positionCount, error) {
		var h positionCount
		var last time.Time
		err := row.Scan(&h.fixes, &last)
		h.last = last.UnixMicro()
		return h, err
	})
}

// nextDevices returns some devices of the shard after the last finished one.
func (q *Requests) nextDevices(ctx context.Context, tx *pgx.Conn, o protocol.RequestStep, p *protocol.Progress) ([]string, error) {
	if o.Request.Device != "" {
		if p.Devices > 0 {
			return nil, nil
		}
		return []string{o.Request.Device}, nil
	}
	var found []string
	for after := p.Device; len(found) < devicesAtOnce; {
		// Skips from device to device along the index, independent of their
		// size.
		rows, err := tx.Query(ctx, `
with recursive d as (
  (select device_id, 1 as n
  from public.positions
  where device_id > $1
  order by device_id
  limit 1)
  union all
  select (
    select device_id
    from public.positions
    where device_id > d.device_id
    order by device_id
    limit 1), d.n + 1
  from d
  where d.device_id is not null
    and d.n < 2000
)
select device_id
from d
where device_id is not null`, after)
		if err != nil {
			return nil, err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return nil, err
		}
		if len(ids) == 0 {
			break
		}
		for _, id := range ids {
			if telemetry.ShardOf(id, o.Shards) == o.Request.Shard && len(found) < devicesAtOnce {
				found = append(found, id)
			}
		}
		after = ids[len(ids)-1]
	}
	return found, nil
}

// erase removes the stored data of a device, deferred entries included.
func (q *Requests) erase(ctx context.Context, tx *pgx.Conn, o protocol.RequestStep, p *protocol.Progress) (done bool, err error) {
	if o.Request.Device == "" {
		return false, errors.New("an erasure names a device")
	}
	// By key: a ctid is unique within one partition only.
	var fixes int64
	var last pgtype.Timestamptz
	if err := tx.QueryRow(ctx, `
select count(*), max(ts)
from (
  select ts
  from public.positions
  where device_id = $1
    and device_id between $1 and $1
  order by ts
  limit $2
) f`, o.Request.Device, stepFixes).Scan(&fixes, &last); err != nil {
		return false, err
	}
	if fixes > 0 {
		tag, err := tx.Exec(ctx, `
delete from public.positions
where device_id = $1
  and device_id between $1 and $1
  and ts <= $2`, o.Request.Device, last)
		if err != nil {
			return false, err
		}
		p.Removed += tag.RowsAffected()
		if fixes == stepFixes {
			return false, nil
		}
	}
	for _, sql := range []string{
		`delete from processor.timing_records where device_id = $1`,
		`delete from processor.deferred where device_id = $1`,
		`delete from processor.unconfirmed_letters where device_id = $1`,
		`delete from processor.dead_letters where device_id = $1`,
	} {
		tag, err := tx.Exec(ctx, sql, o.Request.Device)
		if err != nil {
			return false, err
		}
		p.Removed += tag.RowsAffected()
	}
	p.Devices = 1
	return true, nil
}

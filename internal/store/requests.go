package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// stepFixes is about how many positions one step of a request reads or removes.
const stepFixes = 5000

// Requests runs what operators and neighbours ask for.
type Requests struct {
	writer *Writer
}

// NewRequests returns the requests as the owner of shards runs them.
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
  and grp = $2
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

// Step does a bounded part of a recompute or an erasure, in one transaction
// that ends with the check of the shard's epoch, and notes how far it came.
func (q *Requests) Step(ctx context.Context, o protocol.Order) (protocol.Progress, bool, error) {
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
func (q *Requests) Finish(ctx context.Context, o protocol.Order, result map[string]any, failed string) error {
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
  run_by = $4
where id = $1`, o.Request.ID, state, text, q.writer.member)
		return nil
	})
	return failure(fmt.Sprintf("finish request %d", o.Request.ID), err)
}

// inTx runs f in a transaction that commits under the epoch of the shard.
func (q *Requests) inTx(ctx context.Context, o protocol.Order, f func(context.Context, *pgx.Conn, *pgx.Batch) error) error {
	pooled, err := q.writer.pool.Acquire(ctx)
	if err != nil {
		return &telemetry.Failure{Kind: telemetry.Unavailable, Err: fmt.Errorf("acquire a connection: %w", err)}
	}
	defer pooled.Release()
	tx := pooled.Conn()
	then := &pgx.Batch{}
	if _, err = tx.Exec(ctx, "begin"); err == nil {
		err = f(ctx, tx, then)
	}
	if err == nil {
		then.Queue("select processor.check_fences($1)", o.Rules.Fences.Version)
		q.writer.queueFence(then, []telemetry.Held{o.Held})
		then.Queue("commit").Exec(committed)
		err = tx.SendBatch(ctx, then).Close()
	}
	if err != nil {
		q.writer.rollBack(tx)
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
  run_by = $4
where id = $1`, id, state, text, q.writer.member)
	return nil
}

// The ends of device time: times beyond them are refused when they come in.
var (
	firstUS = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	lastUS  = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
)

// recompute derives windows again, device by device, until about stepFixes
// positions were read.
func (q *Requests) recompute(ctx context.Context, tx *pgx.Conn, o protocol.Order, p *protocol.Progress, then *pgx.Batch) (done bool, err error) {
	r := o.Request
	for budget := int64(stepFixes); budget > 0; {
		if p.AfterUS == nil {
			device, err := q.nextDevice(ctx, tx, o, p)
			if err != nil || device == "" {
				return device == "", err
			}
			p.Device = device
			from := max(r.FromUS, firstUS) - 1
			p.AfterUS = &from
		}
		lo := *p.AfterUS + 1
		var n int64
		var last *time.Time
		err := tx.QueryRow(ctx, `
select count(*), max(ts)
from (
  select ts
  from public.positions
  where device_id = $1
    and ts between $2 and $3
  order by ts
  limit $4
) f`, p.Device, micros(lo), micros(min(r.ToUS, lastUS)), stepFixes).Scan(&n, &last)
		if err != nil {
			return false, err
		}
		w := window{device: p.Device, lo: lo, hi: min(r.ToUS, lastUS)}
		if n == stepFixes {
			w.hi = last.UnixMicro()
		}
		changed, err := recompute(ctx, tx, []window{w}, o.Rules, then)
		if err != nil {
			return false, err
		}
		p.Changed += int64(changed)
		p.Fixes += n
		budget -= n + 50 // a device without positions costs something too
		if n < stepFixes {
			p.Devices++
			p.AfterUS = nil
			continue
		}
		hi := w.hi
		p.AfterUS = &hi
	}
	return false, nil
}

// nextDevice is the device of the shard that follows the one done last, or "".
func (q *Requests) nextDevice(ctx context.Context, tx *pgx.Conn, o protocol.Order, p *protocol.Progress) (string, error) {
	if o.Request.Device != "" {
		if p.Devices > 0 {
			return "", nil
		}
		return o.Request.Device, nil
	}
	for after := p.Device; ; {
		// Skips from device to device along the index, whatever each one holds.
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
    and d.n < 500
)
select device_id
from d
where device_id is not null`, after)
		if err != nil {
			return "", err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(ids) == 0 {
			return "", err
		}
		for _, id := range ids {
			if telemetry.ShardOf(id, o.Shards) == o.Request.Shard {
				return id, nil
			}
		}
		after = ids[len(ids)-1]
	}
}

// erase removes what is stored of a device, and what waits to be tried again.
func (q *Requests) erase(ctx context.Context, tx *pgx.Conn, o protocol.Order, p *protocol.Progress) (done bool, err error) {
	if o.Request.Device == "" {
		return false, errors.New("an erasure names a device")
	}
	for _, sql := range []string{
		`delete from public.positions
where ctid = any (array(
  select ctid
  from public.positions
  where device_id = $1
  limit ` + fmt.Sprint(stepFixes) + `))`,
		`delete from processor.timing_records where device_id = $1`,
		`delete from processor.deferred where device_id = $1`,
		`delete from processor.dead_letters where device_id = $1`,
	} {
		tag, err := tx.Exec(ctx, sql, o.Request.Device)
		if err != nil {
			return false, err
		}
		p.Removed += tag.RowsAffected()
		if tag.RowsAffected() == stepFixes {
			return false, nil
		}
	}
	p.Devices = 1
	return true, nil
}

package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// probeRow is a protocol.ProbeBatch as stored in the detail of the shard's
// incident, for the next owner and for operators.
type probeRow struct {
	Member  string `json:"member"`
	Epoch   int64  `json:"epoch"`
	First   string `json:"first"`
	Last    string `json:"last"`
	Entries int    `json:"entries"`
	Until   string `json:"until"`
	Under   bool   `json:"under_way"`
	// Alone is missing in what older versions wrote, which did not keep others away.
	Alone bool `json:"exclusive"`
}

// shardHistory locks the row of a shard that is assigned to member, which waits
// for commits in progress, and then reads its history.
func (s *Shards) shardHistory(ctx context.Context, tx pgx.Tx, shard int, member string) (was protocol.ShardHistory, applied telemetry.EntryID, err error) {
	var since, progress *time.Time
	var mark string
	// One that was resized or taken from its owner has no owner_since: nobody released it.
	// Only a second statement sees what was committed while the first one
	// waited.
	b := &pgx.Batch{}
	b.Queue(`
select s.shard
from processor.shards s
join processor.assignments a using (stream, group_name, shard)
where s.stream = $1
  and s.group_name = $2
  and s.shard = $3
  and a.member = $4
for update of s`, s.scope.Stream, s.scope.Group, shard, member).QueryRow(func(row pgx.Row) error {
		var n int
		return row.Scan(&n)
	})
	b.Queue(`
select coalesce(s.owner, ''), s.epoch, s.owner is null and s.owner_since is not null and s.updated_at > now() - interval '30 seconds',
  s.owner_since, s.crash_count, coalesce(s.max_in_flight, 0),
  p.updated_at, coalesce(p.applied_id, '0-0')
from processor.shards s
left join processor.progress p using (stream, group_name, shard)
where s.stream = $1
  and s.group_name = $2
  and s.shard = $3`, s.scope.Stream, s.scope.Group, shard).QueryRow(func(row pgx.Row) error {
		return row.Scan(&was.Owner, &was.Epoch, &was.Released, &since, &was.CrashCount, &was.MaxInFlight, &progress, &mark)
	})
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return was, applied, err
	}
	if since != nil {
		was.Since = *since
	}
	if progress != nil {
		was.Progress = *progress
	}
	// The applied ID is a hint; an unreadable one counts as missing.
	applied, _ = telemetry.ParseEntryID(mark)
	if was.MaxInFlight == 0 {
		return was, applied, nil
	}
	var detail []byte
	err = tx.QueryRow(ctx, `
select detail
from processor.incidents
where stream = $1
  and group_name = $2
  and kind = $3
  and subject = $4
  and closed_at is null`, s.scope.Stream, s.scope.Group, protocol.QuarantinedShard, strconv.Itoa(shard)).Scan(&detail)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && detail == nil {
		return was, applied, nil
	}
	if err != nil {
		return was, applied, err
	}
	var r probeRow
	if err := json.Unmarshal(detail, &r); err != nil {
		return was, applied, fmt.Errorf("read the incident %s of shard %d: %w", protocol.QuarantinedShard, shard, err)
	}
	was.Probe = protocol.ProbeBatch{Epoch: r.Epoch, Entries: r.Entries, InProgress: r.Under, Exclusive: r.Alone}
	was.Probe.First, _ = telemetry.ParseEntryID(r.First)
	was.Probe.Last, _ = telemetry.ParseEntryID(r.Last)
	was.Probe.Until, _ = telemetry.ParseEntryID(r.Until)
	return was, applied, nil
}

// ProbeLog records the probe batches of quarantined shards, as their owner.
type ProbeLog struct {
	shards *Shards
	member string
}

// NewProbeLog returns the probe log of one member.
func NewProbeLog(shards *Shards, member string) *ProbeLog {
	return &ProbeLog{shards: shards, member: member}
}

// Begin records a probe batch before it is attempted. It fails as Fenced if the
// shard is not owned any more.
func (t *ProbeLog) Begin(ctx context.Context, shard int, r protocol.ProbeBatch) error {
	r.InProgress = true
	return t.note(ctx, shard, r, `
insert into processor.incidents (stream, group_name, kind, subject, detail)
values ($1, $2, $3, $4, $5)
on conflict (stream, group_name, kind, subject) where closed_at is null do update
set detail = excluded.detail`)
}

// Retract records of a probe batch that it is not exclusive. It locks the incident only: while another session
// has the row of the shard locked, it is needed.
func (t *ProbeLog) Retract(ctx context.Context, shard int, r protocol.ProbeBatch) error {
	ctx, cancel := context.WithTimeout(ctx, t.shards.timeout)
	defer cancel()
	_, err := t.shards.pool.Exec(ctx, `
update processor.incidents
set detail = detail || '{"exclusive": false}'
where stream = $1
  and group_name = $2
  and kind = $3
  and subject = $4
  and closed_at is null
  and detail ->> 'member' = $5
  and (detail ->> 'epoch')::bigint = $6
  and detail ->> 'first' = $7`, t.shards.scope.Stream, t.shards.scope.Group, protocol.QuarantinedShard, fmt.Sprint(shard), t.member, r.Epoch, r.First.String())
	return failure(fmt.Sprintf("retract a probe batch of shard %d", shard), err)
}

// Pass records that a probe batch succeeded, which is progress, or that there
// is nothing to probe; then r has no entries. over ends the quarantine of the
// shard.
func (t *ProbeLog) Pass(ctx context.Context, shard int, r protocol.ProbeBatch, over bool) error {
	r.InProgress = false
	if !over {
		return t.note(ctx, shard, r, `
update processor.incidents
set detail = $5
where stream = $1
  and group_name = $2
  and kind = $3
  and subject = $4
  and closed_at is null`)
	}
	return t.note(ctx, shard, r, `
with cleared as (
  update processor.shards
  set crash_count = 0,
    max_in_flight = null,
    updated_at = now()
  where stream = $1
    and group_name = $2
    and shard = $4::text::int
)
update processor.incidents
set detail = $5,
  closed_at = now()
where stream = $1
  and group_name = $2
  and kind = $3
  and subject = $4
  and closed_at is null`)
}

// note runs one statement under the epoch check, and writes the applied ID when
// the batch succeeded.
func (t *ProbeLog) note(ctx context.Context, shard int, r protocol.ProbeBatch, sql string) error {
	s := t.shards
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	text, err := json.Marshal(probeRow{
		Member: t.member, Epoch: r.Epoch, First: r.First.String(), Last: r.Last.String(), Entries: r.Entries,
		Until: r.Until.String(), Under: r.InProgress, Alone: r.Exclusive,
	})
	if err != nil {
		return fmt.Errorf("record a probe batch of shard %d: %w", shard, err)
	}
	b := &pgx.Batch{}
	b.Queue("select processor.fence($1, $2, $3::int[], $4::bigint[], $5)", s.scope.Stream, s.scope.Group, []int32{int32(shard)}, []int64{r.Epoch}, t.member)
	b.Queue(sql, s.scope.Stream, s.scope.Group, protocol.QuarantinedShard, fmt.Sprint(shard), text)
	if !r.InProgress && !r.Last.IsZero() {
		b.Queue(`
insert into processor.progress (stream, group_name, shard, applied_id)
values ($1, $2, $3, $4)
on conflict (stream, group_name, shard) do update
set applied_id = excluded.applied_id,
  updated_at = now()`, s.scope.Stream, s.scope.Group, shard, r.Last.String())
	}
	err = failure(fmt.Sprintf("record a probe batch of shard %d", shard), s.pool.SendBatch(ctx, b).Close())
	if f, ok := errors.AsType[*protocol.Failure](err); ok && f.Blocked {
		f.Shards = []int{shard}
	}
	return err
}

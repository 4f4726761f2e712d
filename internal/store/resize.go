package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// checkShards rejects a number of shards that is not the pinned one.
func (s *Shards) checkShards(ctx context.Context, n int) error {
	var pinned string
	err := s.pool.QueryRow(ctx, `
select value
from processor.settings
where name = $1`, s.scope.shardsSetting()).Scan(&pinned)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && pinned == strconv.Itoa(n) {
		return nil
	}
	if err != nil {
		return failure("read the number of shards", err)
	}
	return protocol.OtherShards(n, pinned)
}

const requestedSQL = `
select count(*)
from processor.requests
where stream = $1
  and group_name = $2
  and state in ('waiting', 'running')`

// Requested returns the number of unfinished requests.
func (s *Shards) Requested(ctx context.Context) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err = s.pool.QueryRow(ctx, requestedSQL, s.scope.Stream, s.scope.Group).Scan(&n)
	return n, failure("count requests", err)
}

// Pinned returns the pinned number of shards, 0 while no instance has ever
// started.
func (s *Shards) Pinned(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	pins, err := ReadFleetSettings(ctx, s.pool, s.scope)
	return pins.Shards, err
}

// Resize changes the number of shards in one transaction, when all queues are
// empty and no member dispatches. All epochs rise, which fences every earlier
// owner; afterwards no shard has an owner. Everything up to the last-delivered
// ID is finished, which the new applied IDs say. Requests are of shards by the old number: while
// one is not finished nothing is changed. Last, before the commit, it calls resized, which does
// the same in Redis; if that fails nothing is changed here, and after it nothing cancels the commit.
func (s *Shards) Resize(ctx context.Context, from, to int, delivered telemetry.EntryID, who string, resized func(ctx context.Context) error) error {
	whole, end := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer end()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	op := fmt.Sprintf("change the number of shards from %d to %d", from, to)
	err := pgx.BeginFunc(whole, s.pool, func(tx pgx.Tx) error {
		// Who makes a request reads the number of shards as it does, or once it has a lock of the
		// table: it comes before, and is seen here, or finds the new one.
		if _, err := tx.Exec(ctx, "lock table processor.requests in share row exclusive mode"); err != nil {
			return err
		}
		var requests int
		if err := tx.QueryRow(ctx, requestedSQL, s.scope.Stream, s.scope.Group).Scan(&requests); err != nil {
			return err
		}
		if requests > 0 {
			return &protocol.Failure{Kind: protocol.Unavailable, Err: fmt.Errorf("%d requests came meanwhile, nothing was changed: run it again", requests)}
		}
		tag, err := tx.Exec(ctx, `
update processor.settings
set value = $3,
  set_by = $4,
  set_at = now()
where name = $1
  and value = $2`, s.scope.shardsSetting(), strconv.Itoa(from), strconv.Itoa(to), who)
		if err != nil {
			return err
		}
		if tag.RowsAffected() != 1 {
			return fmt.Errorf("the pinned number is not %d any more", from)
		}
		both, all := []any{s.scope.Stream, s.scope.Group}, []any{s.scope.Stream, s.scope.Group, to}
		for _, step := range []struct {
			sql  string
			args []any
		}{
			{`update processor.shards
set epoch = epoch + 1,
  owner = null,
  owner_since = null,
  updated_at = now()
where stream = $1
  and group_name = $2`, both},
			{`insert into processor.shards (stream, group_name, shard, epoch)
select $1, $2, n, (
  select coalesce(max(epoch), 0)
  from processor.shards
  where stream = $1
    and group_name = $2)
from generate_series(0, $3 - 1) as n
on conflict do nothing`, all},
			{`delete from processor.shards
where stream = $1
  and group_name = $2
  and shard >= $3`, all},
			{`delete from processor.assignments
where stream = $1
  and group_name = $2`, both},
			{`insert into processor.assignments (stream, group_name, shard)
select $1, $2, n
from generate_series(0, $3 - 1) as n`, all},
			{`delete from processor.progress
where stream = $1
  and group_name = $2`, both},
		} {
			if _, err := tx.Exec(ctx, step.sql, step.args...); err != nil {
				return err
			}
		}
		if !delivered.IsZero() {
			if _, err := tx.Exec(ctx, `
insert into processor.progress (stream, group_name, shard, applied_id)
select $1, $2, n, $4
from generate_series(0, $3 - 1) as n`, s.scope.Stream, s.scope.Group, to, delivered.String()); err != nil {
				return err
			}
		}
		moved, err := s.moveDeferred(ctx, tx, to)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `
insert into processor.audit (who, action, target, count, detail)
values ($1, 'shards.resize', $2, $3, jsonb_build_object('from', $4::int, 'to', $3::bigint, 'deferred_moved', $5::int, 'delivered', $6::text))`,
			who, s.scope.Stream+"/"+s.scope.Group, to, from, moved, delivered.String()); err != nil {
			return err
		}
		return resized(ctx)
	})
	return failure(op, err)
}

// moveDeferred writes the new shards of deferred entries.
func (s *Shards) moveDeferred(ctx context.Context, tx pgx.Tx, shards int) (moved int, err error) {
	rows, err := tx.Query(ctx, `
select entry_id, fields, shard
from processor.deferred
where stream = $1
  and group_name = $2
for update`, s.scope.Stream, s.scope.Group)
	if err != nil {
		return 0, err
	}
	var ids, digests []string
	var of []int32
	var id string
	var fields [][]byte
	var shard int
	_, err = pgx.ForEachRow(rows, []any{&id, &fields, &shard}, func() error {
		e := telemetry.Entry{Fields: make([]string, len(fields))}
		for i, f := range fields {
			e.Fields[i] = string(f)
		}
		if next := telemetry.ShardOf(e.DeviceID(), shards); next != shard {
			ids, digests, of = append(ids, id), append(digests, e.Digest()), append(of, int32(next))
		}
		return nil
	})
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	_, err = tx.Exec(ctx, `
update processor.deferred d
set shard = m.shard
from unnest($3::text[], $4::text[], $5::int[]) as m (entry_id, digest, shard)
where d.stream = $1
  and d.group_name = $2
  and d.entry_id = m.entry_id
  and d.digest = m.digest`, s.scope.Stream, s.scope.Group, ids, digests, of)
	return len(ids), err
}

// Move takes shards from their owner unconditionally, and assigns them to
// members: to[i] is to own shards[i], "" leaves the assignment unchanged. Term 0 tells
// leaders that it is none of theirs, and to leave it for a while. The
// owner's work in progress on them cannot commit any more; Move waits for a
// commit that has passed its check.
func (s *Shards) Move(ctx context.Context, shards []protocol.Shard, to []string, who, why string) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `
insert into processor.audit (who, action, target, count)
values ($1, 'shards.claim', $2, $3)`, who, why, len(shards)); err != nil {
			return err
		}
		for i, sh := range shards {
			if to[i] == "" {
				continue
			}
			if _, err := tx.Exec(ctx, `
update processor.assignments
set member = $4,
  term = 0,
  assigned_at = now()
where stream = $1
  and group_name = $2
  and shard = $3`, s.scope.Stream, s.scope.Group, sh.Shard, to[i]); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `select pg_notify('processor_shards', '')`)
		return err
	})
	if err != nil {
		return failure("assign shards", err)
	}
	// One shard per transaction: each waits for a commit of its owner.
	for _, sh := range shards {
		if _, err := s.pool.Exec(ctx, `
with taken as (
  update processor.shards
  set epoch = epoch + 1,
    owner = null,
    owner_since = null,
    updated_at = now()
  where stream = $1
    and group_name = $2
    and shard = $3
    and owner = $4
  returning shard
)
select pg_notify('processor_shards', shard::text)
from taken`, s.scope.Stream, s.scope.Group, sh.Shard, sh.Owner); err != nil {
			return failure(fmt.Sprintf("move shard %d from its owner", sh.Shard), err)
		}
	}
	return nil
}

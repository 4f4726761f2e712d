package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
)

// Leader keeps the term, and writes under it.
type Leader struct {
	pool    *pgxpool.Pool
	scope   Scope
	member  string
	timeout time.Duration

	identity *Identity // nil where any database will do
}

// Guard has terms begin in the database of this identity only.
func (l *Leader) Guard(i *Identity) { l.identity = i }

// NewLeader returns the leader's writes of one member.
func NewLeader(pool *pgxpool.Pool, scope Scope, member string, timeout time.Duration) *Leader {
	return &Leader{pool: pool, scope: scope, member: member, timeout: timeout}
}

// BeginTerm begins a new term of this member, which fences all earlier ones.
func (l *Leader) BeginTerm(ctx context.Context) (term int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	err = pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		if err := l.identity.check(ctx, tx); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `
insert into processor.leader as l (stream, group_name, term, member)
values ($1, $2, 1, $3)
on conflict (stream, group_name) do update
set term = l.term + 1,
  member = excluded.member,
  since = now()
returning term`, l.scope.Stream, l.scope.Group, l.member).Scan(&term)
	})
	return term, failure("begin a term", err)
}

// Resign ends the term, or any if that is 0, if it is still this member's.
func (l *Leader) Resign(ctx context.Context, term int64) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	_, err := l.pool.Exec(ctx, `
update processor.leader
set member = null
where stream = $1
  and group_name = $2
  and (term = $3 or $3 = 0)
  and member = $4`, l.scope.Stream, l.scope.Group, term, l.member)
	return failure("end the term", err)
}

// CurrentTerm returns the last term and its leader, "" after a resignation.
func (l *Leader) CurrentTerm(ctx context.Context) (term int64, member string, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	err = l.pool.QueryRow(ctx, `
select coalesce(max(term), 0), coalesce(max(member), '')
from processor.leader
where stream = $1
  and group_name = $2`, l.scope.Stream, l.scope.Group).Scan(&term, &member)
	return term, member, failure("read the term", err)
}

// LiveLeader returns the leader of the last term if it has not resigned and its sessions
// have asked for something within a time, else "". Sessions of a role whose activity ours may not
// see do not count. In a server that started within the other time it may have no sessions yet: then
// LiveLeader fails, unless the clock was set back behind the start.
func (l *Leader) LiveLeader(ctx context.Context, within, started time.Duration) (string, error) {
	_, member, err := l.CurrentTerm(ctx)
	if err != nil || member == "" {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	var alive, starting bool
	err = l.pool.QueryRow(ctx, `
select exists (
  select
  from pg_stat_activity
  where datname = current_database()
    and application_name = $1
    and query_start > clock_timestamp() - $2::interval
), pg_postmaster_start_time() between clock_timestamp() - $3::interval and clock_timestamp()`, ApplicationName(member), within, started).Scan(&alive, &starting)
	switch {
	case err != nil:
		return "", failure("ask whether the leader is alive", err)
	case alive:
		return member, nil
	case starting:
		return "", fmt.Errorf("ask whether the leader is alive: Postgres started less than %v ago, %s may have no session yet", started, member)
	}
	return "", nil
}

// Assign writes assignments: members[i] is to own shards[i]. It returns the shards whose
// assignment was written: a row that another session has locked holds up no other. The
// members are notified at the commit. A leader of an earlier term is rejected.
func (l *Leader) Assign(ctx context.Context, term int64, shards []int, members []string) (written []int, err error) {
	n := make([]int32, len(shards))
	for i, s := range shards {
		n[i] = int32(s)
	}
	err = l.writeBriefly(ctx, "assign shards", term, func(b *pgx.Batch) {
		b.Queue(`
with wanted as (
  select m.shard, nullif(m.member, '') as member
  from unnest($4::int[], $5::text[]) as m (shard, member)
),
free as materialized (
  select a.shard
  from processor.assignments a
  join wanted using (shard)
  where a.stream = $1
    and a.group_name = $2
  for update of a skip locked
),
changed as (
  update processor.assignments a
  set member = wanted.member,
    term = $3,
    assigned_at = now()
  from wanted
  join free using (shard)
  where a.stream = $1
    and a.group_name = $2
    and a.shard = wanted.shard
  returning a.shard
),
missing as (
  insert into processor.assignments (stream, group_name, shard, member, term)
  select $1, $2, wanted.shard, wanted.member, $3
  from wanted
  where not exists (
    select
    from processor.assignments a
    where a.stream = $1
      and a.group_name = $2
      and a.shard = wanted.shard
  )
  on conflict do nothing
  returning shard
),
written as (
  select shard
  from changed
  union all
  select shard
  from missing
)
select shard, pg_notify('processor_shards', '')::text
from written`, l.scope.Stream, l.scope.Group, term, n, members).Query(func(rows pgx.Rows) (err error) {
			written, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (shard int, err error) {
				return shard, row.Scan(&shard, nil)
			})
			return err
		})
	})
	return written, err
}

// writeBriefly runs statements in one transaction that first checks the term, and so delays a
// new term until its commit. It waits for locks briefly, or the leader's step would be cut off
// before a lock shows.
func (l *Leader) writeBriefly(ctx context.Context, op string, term int64, queue func(*pgx.Batch)) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	return failure(op, briefly(ctx, l.pool, l.timeout, func(tx pgx.Tx) error {
		return tx.SendBatch(ctx, l.underTerm(term, queue)).Close()
	}))
}

// request runs statements likewise that make requests, which are of shards by a number of them: nothing is done once
// that was changed. A resize locks the table of requests before it changes the number.
func (l *Leader) request(ctx context.Context, op string, term int64, shards int, queue func(*pgx.Batch)) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	return failure(op, pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		if err := tx.SendBatch(ctx, l.underTerm(term, func(b *pgx.Batch) {
			b.Queue("lock table processor.requests in row exclusive mode")
			b.Queue(`
select value
from processor.settings
where name = $1
  and value <> $2`, l.scope.shardsSetting(), strconv.Itoa(shards)).QueryRow(func(row pgx.Row) error {
				var pinned string
				if err := row.Scan(&pinned); !errors.Is(err, pgx.ErrNoRows) {
					return cmp.Or(err, protocol.OtherShards(shards, pinned))
				}
				return nil
			})
		})).Close(); err != nil {
			return err
		}
		b := &pgx.Batch{}
		queue(b)
		return tx.SendBatch(ctx, b).Close()
	}))
}

// underTerm returns statements that fail unless a term lasts.
func (l *Leader) underTerm(term int64, queue func(*pgx.Batch)) *pgx.Batch {
	b := &pgx.Batch{}
	b.Queue("select processor.check_term($1, $2, $3, $4)", l.scope.Stream, l.scope.Group, term, l.member)
	queue(b)
	return b
}

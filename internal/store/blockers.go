package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
)

// ShardLockWait is how long the acquisition of a shard, and a commit, waits for the
// row of a shard. It is much more than a commit takes, and short, because other
// shards wait meanwhile: those of the pass, and those of the same worker.
const ShardLockWait = 500 * time.Millisecond

// briefly runs statements in one transaction that waits for locks for no longer than
// ShardLockWait, and half the timeout of the whole: then it fails as Blocked. A statement
// also locks its tables when it is prepared, hence no batch alone.
func briefly(ctx context.Context, pool *pgxpool.Pool, timeout time.Duration, do func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		wait := min(ShardLockWait, timeout/2)
		if _, err := tx.Exec(ctx, "select set_config('lock_timeout', $1, true)", fmt.Sprintf("%dms", wait.Milliseconds())); err != nil {
			return err
		}
		return do(tx)
	})
}

// optionalLockWait is how long the transaction of a shard, which delays it, waits for a table
// that it can do without.
const optionalLockWait = 50 * time.Millisecond

// optionally runs statements of a transaction that it can do without: if one fails, none has
// happened, and the transaction goes on.
func optionally(ctx context.Context, tx pgx.Tx, do func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select set_config('lock_timeout', $1, true)", fmt.Sprintf("%dms", optionalLockWait.Milliseconds())); err != nil {
			return err
		}
		return do(tx)
	})
}

// waitBriefly bounds every wait for a lock in a transaction to ShardLockWait, and to
// half of what the call may take, or a lock would look like an outage. The function
// returned says who held the lock when half of the wait was over, none if nothing
// waited for that long. It must be called before the transaction ends.
func (s *Shards) waitBriefly(ctx context.Context, tx pgx.Tx) (named func() []protocol.Blocker, err error) {
	wait := min(ShardLockWait, s.timeout/2)
	var pid int
	var set string
	if err := tx.QueryRow(ctx, "select set_config('lock_timeout', $1, true), pg_backend_pid()",
		fmt.Sprintf("%dms", wait.Milliseconds())).Scan(&set, &pid); err != nil {
		return nil, err
	}
	done := make(chan []protocol.Blocker, 1)
	timer := time.AfterFunc(wait/2, func() {
		ctx, cancel := context.WithTimeout(ctx, ShardLockWait)
		defer cancel()
		by, _ := Blockers(ctx, s.pool, pid) // nobody is named then
		done <- by
	})
	return func() []protocol.Blocker {
		if timer.Stop() {
			return nil
		}
		return <-done
	}, nil
}

// Blockers returns the sessions that hold a lock for which a session waits. Who is
// ahead of it and waits itself, as the owner of a shard may, holds up nobody: those are
// named for whom it waits. Of a query its text up to the first literal is told, since it
// goes to logs and heartbeats.
func Blockers(ctx context.Context, pool *pgxpool.Pool, pid int) ([]protocol.Blocker, error) {
	rows, err := pool.Query(ctx, `
with recursive ahead (pid) as (
  select unnest(pg_blocking_pids($1))
  union
  select unnest(pg_blocking_pids(pid)) from ahead
)
select pid, coalesce(application_name, ''), coalesce(state, 'state unknown'), left(split_part(coalesce(nullif(query, '<insufficient privilege>'), ''), '''', 1), 200),
  coalesce(extract(epoch from clock_timestamp() - xact_start), 0)::float8
from pg_stat_activity
where pid in (select pid from ahead)
  and cardinality(pg_blocking_pids(pid)) = 0
order by xact_start`, pid)
	if err != nil {
		return nil, failure("list blockers", err)
	}
	by, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (b protocol.Blocker, err error) {
		var age float64
		err = row.Scan(&b.PID, &b.Application, &b.State, &b.Query, &age)
		b.Query = strings.Join(strings.Fields(b.Query), " ")
		b.Age = time.Duration(age * float64(time.Second))
		return b, err
	})
	return by, failure("list blockers", err)
}

// nameBlockers adds to a failure who held the lock.
func nameBlockers(err error, by []protocol.Blocker) error {
	f, ok := errors.AsType[*protocol.Failure](err)
	if !ok || !f.Blocked {
		return err
	}
	f.By = by
	for _, b := range by {
		f.Err = fmt.Errorf("%w; locked by %s", f.Err, b)
	}
	return err
}

package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Shards is the authority on ownership: epochs, owners, assignments.
type Shards struct {
	pool    *pgxpool.Pool
	scope   Scope
	timeout time.Duration

	identity *Identity // nil where any database will do
}

// Guard has shards acquired in the database of this identity only.
func (s *Shards) Guard(i *Identity) { s.identity = i }

// NewShards returns the ownership tables of one group.
func NewShards(pool *pgxpool.Pool, scope Scope, timeout time.Duration) *Shards {
	return &Shards{pool: pool, scope: scope, timeout: timeout}
}

// Ensure creates the rows of shards 0 to n-1 that are missing. It fails as
// Misconfigured if the fleet has pinned another number. A re-created row starts
// at the current transaction ID, which is above any epoch it can have had (each
// epoch bump consumed one).
func (s *Shards) Ensure(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if err := s.checkShards(ctx, n); err != nil {
		return err
	}
	_, err := s.pool.Exec(ctx, `
with made as (
  insert into processor.shards (stream, group_name, shard, epoch)
  select $1, $2, n, case when exists (
    select from processor.assignments
    where stream = $1
      and group_name = $2
  ) then pg_current_xact_id()::text::bigint else 0 end
  from generate_series(0, $3 - 1) as n
  on conflict do nothing
)
insert into processor.assignments (stream, group_name, shard)
select $1, $2, n
from generate_series(0, $3 - 1) as n
on conflict do nothing`, s.scope.Stream, s.scope.Group, n)
	return failure("make the rows of the shards", err)
}

// List returns all shards in order.
func (s *Shards) List(ctx context.Context) ([]protocol.Shard, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	rows, err := s.pool.Query(ctx, `
select s.shard, coalesce(s.owner, ''), s.epoch, coalesce(p.applied_id, '0-0'), s.crash_count, coalesce(s.max_in_flight, 0),
  coalesce(a.member, ''), coalesce(a.term = 0 and a.member is not null and a.assigned_at > now() - $3::interval, false), coalesce(s.owner_since, s.updated_at),
  greatest(s.updated_at, a.assigned_at)
from processor.shards s
left join processor.assignments a using (stream, group_name, shard)
left join processor.progress p using (stream, group_name, shard)
where s.stream = $1
  and s.group_name = $2
order by s.shard`, s.scope.Stream, s.scope.Group, protocol.AdoptedFor)
	if err != nil {
		return nil, failure("list shards", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (protocol.Shard, error) {
		var sh protocol.Shard
		var applied string
		if err := row.Scan(&sh.Shard, &sh.Owner, &sh.Epoch, &applied, &sh.CrashCount, &sh.MaxInFlight,
			&sh.Assigned, &sh.Claimed, &sh.Since, &sh.Changed); err != nil {
			return sh, err
		}
		// The applied ID is a hint; an unreadable one counts as missing.
		sh.Applied, _ = telemetry.ParseEntryID(applied)
		return sh, nil
	})
	return list, failure("list shards", err)
}

// Acquire makes member the owner of a shard that is assigned to it, and raises
// the epoch, which fences every transaction begun before. It waits for a commit
// of the current owner that is in progress, so that its rows are visible
// afterwards, but for no longer than ShardLockWait: then it fails as Blocked. alive is
// an owner whose process was not seen to end, "" for none: its loss of the shard
// causes no quarantine.
func (s *Shards) Acquire(ctx context.Context, shard int, member, alive string) (protocol.Shard, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	taken := protocol.Shard{Shard: shard, Owner: member, Assigned: member}
	var by []protocol.Blocker
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := s.identity.check(ctx, tx); err != nil {
			return err
		}
		named, err := s.waitBriefly(ctx, tx)
		if err != nil {
			return err
		}
		defer func() { by = named() }()
		was, applied, err := s.shardHistory(ctx, tx, shard, member)
		if err != nil {
			return err
		}
		was.Alive = was.Owner == alive
		taken.Quarantine = protocol.AssessCrash(member, was)
		taken.CrashCount, taken.MaxInFlight, taken.Applied = taken.Quarantine.CrashCount, taken.Quarantine.Limit, applied
		if taken.Released = was.Released; taken.Released {
			taken.Left = s.takeState(ctx, tx, shard)
		}
		return tx.QueryRow(ctx, `
update processor.shards
set epoch = epoch + 1,
  owner = $4,
  owner_since = now(),
  updated_at = now(),
  crash_count = $5,
  max_in_flight = nullif($6, 0)
where stream = $1
  and group_name = $2
  and shard = $3
returning epoch, now()`, s.scope.Stream, s.scope.Group, shard, member, taken.CrashCount, taken.MaxInFlight).Scan(&taken.Epoch, &taken.Since)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return protocol.Shard{}, fmt.Errorf("acquire shard %d: %w", shard, protocol.ErrNotAssigned)
	}
	if err != nil {
		return protocol.Shard{}, nameBlockers(failure(fmt.Sprintf("acquire shard %d", shard), err), by)
	}
	return taken, nil
}

// takeState returns the state that the release of a shard has left, and deletes it; nil for
// none. A row of an earlier release may be there, which is not believed:
// left_at = updated_at holds for the last release alone.
func (s *Shards) takeState(ctx context.Context, tx pgx.Tx, shard int) (state []byte) {
	err := optionally(ctx, tx, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `
delete from processor.shard_states st
using processor.shards s
where st.stream = $1
  and st.group_name = $2
  and st.shard = $3
  and (s.stream, s.group_name, s.shard) = (st.stream, st.group_name, st.shard)
  and s.updated_at = st.left_at
returning st.state`, s.scope.Stream, s.scope.Group, shard).Scan(&state)
	})
	if err != nil {
		return nil // its devices are looked up; if the connection failed, so does the acquisition
	}
	return state
}

// Lockable checks that the row of a shard can be locked. It fails as Blocked if
// another session holds it, and says whether that is a session of its owner.
func (s *Shards) Lockable(ctx context.Context, shard int, owner string) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var by []protocol.Blocker
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		named, err := s.waitBriefly(ctx, tx)
		if err != nil {
			return err
		}
		defer func() { by = named() }()
		_, err = tx.Exec(ctx, `
select
from processor.shards
where stream = $1
  and group_name = $2
  and shard = $3
for update`, s.scope.Stream, s.scope.Group, shard)
		return err
	})
	for i := range by {
		if by[i].Application == ApplicationName(owner) {
			by[i].Member = owner
		}
	}
	return nameBlockers(failure(fmt.Sprintf("lock the row of shard %d", shard), err), by)
}

// Release gives a shard up after its last commit, so that the next owner need
// not wait, and keeps its progress and the state that it leaves until the next acquisition, unless
// another session has their tables locked: the next owner can do without. The epoch
// must be the one it was owned under.
func (s *Shards) Release(ctx context.Context, held protocol.ShardLease, member string, applied telemetry.EntryID) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return failure(fmt.Sprintf("release shard %d", held.Shard), pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		released, err := tx.Exec(ctx, `
with released as (
  update processor.shards
  set owner = null,
    crash_count = 0,
    updated_at = now()
  where stream = $1
    and group_name = $2
    and shard = $3
    and epoch = $4
    and owner = $5
  returning shard
)
select pg_notify('processor_shards', shard::text)
from released`, s.scope.Stream, s.scope.Group, held.Shard, held.Epoch, member)
		if err != nil || released.RowsAffected() == 0 {
			return err
		}
		b := &pgx.Batch{}
		if !applied.IsZero() {
			queueApplied(b, s.scope, []protocol.Applied{{Shard: held.Shard, ID: applied}})
		}
		if held.Left != nil {
			b.Queue(`
insert into processor.shard_states as s (stream, group_name, shard, state)
values ($1, $2, $3, $4)
on conflict (stream, group_name, shard) do update
set state = excluded.state,
  left_at = excluded.left_at`, s.scope.Stream, s.scope.Group, held.Shard, held.Left)
		}
		if b.Len() > 0 {
			// If the connection failed, so does the commit.
			_ = optionally(ctx, tx, func(tx pgx.Tx) error { return tx.SendBatch(ctx, b).Close() })
		}
		return nil
	}))
}

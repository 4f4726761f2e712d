package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Streams adds streams to a database and removes them.
type Streams struct {
	pool    *pgxpool.Pool
	timeout time.Duration
}

// NewStreams returns the streams of a database.
func NewStreams(pool *pgxpool.Pool, timeout time.Duration) *Streams {
	return &Streams{pool: pool, timeout: timeout}
}

// Add makes the rows of a stream that no instance has served yet: it pins the settings of the
// fleet's stream like for it, and makes its shards, whose epochs begin above any they can have
// had. It reports how many shards it made, 0 if the stream was there.
func (s *Streams) Add(ctx context.Context, scope, like Scope, who string) (shards int, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var group string
		if err := tx.QueryRow(ctx, `
with added as (
  insert into processor.settings (name, value, set_by)
  values ($1, $2, $3)
  on conflict (name) do nothing
  returning value
)
select value
from added
union all
select value
from processor.settings
where name = $1`, GroupSetting(scope.Stream), scope.Group, who).Scan(&group); err != nil {
			return err
		}
		if group != scope.Group {
			return foreign("in this database stream %s is processed by group %s, and this fleet is of group %s: two groups would derive the crossings of the same devices; "+
				"correct REDIS_CONSUMER_GROUP, or name another stream", scope.Stream, group, scope.Group)
		}
		prefix, theirs := scope.Stream+"/"+scope.Group+"/", like.Stream+"/"+like.Group+"/"
		if _, err := tx.Exec(ctx, `
insert into processor.settings (name, value, set_by)
select $1 || substr(name, length($2) + 1), value, $3
from processor.settings
where regexp_replace(name, '[^/]*$', '') = $2
on conflict (name) do nothing`, prefix, theirs, who); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `
with made as (
  insert into processor.shards (stream, group_name, shard, epoch)
  select $1, $2, n, pg_current_xact_id()::text::bigint
  from processor.settings, generate_series(0, value::int - 1) as n
  where name = $3 || 'SHARDS'
  on conflict do nothing
  returning shard
), assigned as (
  insert into processor.assignments (stream, group_name, shard)
  select $1, $2, shard
  from made
  on conflict do nothing
)
select count(*)
from made`, scope.Stream, scope.Group, prefix).Scan(&shards); err != nil || shards == 0 {
			return err
		}
		return note(ctx, tx, who, "streams add", scope, shards)
	})
	return shards, failure("add stream "+scope.Stream, err)
}

func note(ctx context.Context, tx pgx.Tx, who, action string, scope Scope, count int) error {
	_, err := tx.Exec(ctx, `
insert into processor.audit (who, action, target, count, detail)
values ($1, $2, $3, $4, jsonb_build_object('group', $5::text))`, who, action, scope.Stream, count, scope.Group)
	return err
}

// LeftOver is what Postgres has of a stream that is not done, and its devices.
type LeftOver struct {
	Deferred    int64
	Unconfirmed int64 // dead letters of which it is not known that Redis has them
	Requests    int64
	Devices     int64 // that came from it last
	Served      bool  // a member led it at some time
}

// Nothing reports whether all is done; devices belong to a stream whatever is done.
func (l LeftOver) Nothing() bool { return l.Deferred+l.Unconfirmed+l.Requests == 0 }

const leftOverSQL = `
select (
  select count(*)
  from processor.deferred
  where stream = $1
    and group_name = $2
), (
  select count(*)
  from processor.unconfirmed_letters
  where stream = $1
    and group_name = $2
), (
  select count(*)
  from processor.requests
  where stream = $1
    and group_name = $2
    and state in ('waiting', 'running')
), (
  select count(*)
  from processor.devices
  where stream = $1
), exists (
  select
  from processor.leader
  where stream = $1
    and group_name = $2
)`

// LeftOver returns what is left to do of a stream.
func (s *Streams) LeftOver(ctx context.Context, scope Scope) (l LeftOver, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err = s.pool.QueryRow(ctx, leftOverSQL, scope.Stream, scope.Group).Scan(&l.Deferred, &l.Unconfirmed, &l.Requests, &l.Devices, &l.Served)
	return l, failure("ask what is left of stream "+scope.Stream, err)
}

// givenPage is how many devices change their stream in one transaction.
const givenPage = 5000

// giveSQL has devices belong to another stream.
const giveSQL = `
update processor.devices d
set stream = $2
from (
  select device_id
  from processor.devices
  where stream = $1
  order by device_id
  limit $3
  for update
) theirs
where d.device_id = theirs.device_id`

// forgottenSQL marks that a stream which is not served has forgotten the devices that left it: no
// owner of it has state of them. The stream that has them derives their crossings again, those of earlier moves
// among them.
const forgottenSQL = `
update processor.device_moves
set forgotten = true
where moved_from = $1
  and not forgotten`

// Give has the devices of a stream that is drained and that no member serves belong to
// another one, so that changes of fences still reach them. It may be repeated.
func (s *Streams) Give(ctx context.Context, from, to Scope) (devices int64, err error) {
	for {
		n, err := s.givePage(ctx, from, to)
		devices += n
		if err != nil || n < givenPage {
			return devices, failure("give the devices of "+from.Stream+" to "+to.Stream, err)
		}
	}
}

func (s *Streams) givePage(ctx context.Context, from, to Scope) (n int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, giveSQL, from.Stream, to.Stream, givenPage)
		if err != nil {
			return err
		}
		n = tag.RowsAffected()
		_, err = tx.Exec(ctx, forgottenSQL, from.Stream)
		return err
	})
	return n, err
}

// ErrNotDone reports that something of a stream came to be done while it was removed.
var ErrNotDone = errors.New("something came meanwhile, nothing was removed: run it again")

// Remove takes the rows of a stream away that no member serves and of which nothing is left:
// shards, assignments, progress, leader, holds and what is pinned. Ledger, incidents, finished
// requests and the audit stay. Last, before the commit, it calls removed, which does the same in Redis; if that
// fails nothing is removed. It reports how many shards it removed.
func (s *Streams) Remove(ctx context.Context, scope Scope, who string, removed func(ctx context.Context, served bool) error) (shards int, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		// A change of fences asks the shards that there are: it comes before, and is seen
		// here, or finds none.
		if _, err := tx.Exec(ctx, "lock table processor.requests in share row exclusive mode"); err != nil {
			return err
		}
		// A commit of an owner that is not seen any more ends first.
		if _, err := tx.Exec(ctx, `
select
from processor.shards
where stream = $1
  and group_name = $2
order by shard
for update`, scope.Stream, scope.Group); err != nil {
			return err
		}
		var l LeftOver
		if err := tx.QueryRow(ctx, leftOverSQL, scope.Stream, scope.Group).Scan(&l.Deferred, &l.Unconfirmed, &l.Requests, &l.Devices, &l.Served); err != nil {
			return err
		}
		if !l.Nothing() || l.Devices > 0 {
			return ErrNotDone
		}
		for _, table := range []string{"shard_states", "progress", "assignments", "leader", "holds"} {
			if _, err := tx.Exec(ctx, fmt.Sprintf("delete from processor.%s where stream = $1 and group_name = $2", table), scope.Stream, scope.Group); err != nil {
				return err
			}
		}
		tag, err := tx.Exec(ctx, "delete from processor.shards where stream = $1 and group_name = $2", scope.Stream, scope.Group)
		if err != nil {
			return err
		}
		shards = int(tag.RowsAffected())
		for _, step := range []struct {
			sql  string
			args []any
		}{
			{"delete from processor.settings where name = $1 or regexp_replace(name, '[^/]*$', '') = $2", []any{GroupSetting(scope.Stream), scope.Stream + "/" + scope.Group + "/"}},
			{forgottenSQL, []any{scope.Stream}},
			{"delete from processor.device_scans where stream = $1", []any{scope.Stream}},
			{"update processor.incidents set closed_at = now() where stream = $1 and group_name = $2 and closed_at is null", []any{scope.Stream, scope.Group}},
		} {
			if _, err := tx.Exec(ctx, step.sql, step.args...); err != nil {
				return err
			}
		}
		if err := note(ctx, tx, who, "streams remove", scope, shards); err != nil {
			return err
		}
		return removed(ctx, l.Served)
	})
	if errors.Is(err, ErrNotDone) {
		return 0, err
	}
	return shards, failure("remove stream "+scope.Stream, err)
}

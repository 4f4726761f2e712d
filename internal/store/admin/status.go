// Package admin reads from Postgres what only operators ask: how the server is,
// and how the work of a fleet stands. Nothing here is on the path of a record.
package admin

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
)

// ServerStatus is Postgres' own status, for diagnosis.
type ServerStatus struct {
	store.Server
	Number           int  // version, for example 150004
	Standby          bool // in recovery
	ReadOnly         bool
	Pooler           bool          // the server process that answers is not the one that was connected to
	Clock            time.Duration // how far the server's clock is ahead of ours, give or take Doubt
	ClockUncertainty time.Duration
	Bytes            int64 // size of the database
	MaxConnections   int
	Sessions         int           // of all users
	Longest          time.Duration // the oldest transaction whose age this role may see
	Hidden           int           // transactions that hold back vacuum for a time that it may not see
	Blocked          []blocking
	Members          map[string]int // sessions by member
	Autovacuum       bool
	Heaps            int // partitions or chunks of positions
	HeapLocks        int // that a statement on all of positions takes: tables and indexes
	MaxLocks         int // that the lock table has room for
	LocksPerSession  int // max_locks_per_transaction
}

// blocking is a session that blocks one of ours.
type blocking struct {
	Waiting string // application_name of ours
	Lock    protocol.RowLock
}

// Of the sessions of other roles one without pg_read_all_stats sees that they are, and
// whether they keep rows from being vacuumed, but neither their kind nor their times.
const serverStatusSQL = `
select current_setting('server_version'),
  current_setting('server_version_num')::integer,
  current_setting('synchronous_commit'),
  current_setting('fsync') = 'on',
  current_setting('autovacuum') = 'on',
  pg_is_in_recovery(),
  current_setting('transaction_read_only') = 'on',
  pg_backend_pid(),
  clock_timestamp(),
  pg_database_size(current_database()),
  current_setting('max_connections')::integer,
  (select count(*)
  from pg_stat_activity
  where coalesce(backend_type, 'client backend') = 'client backend'
    and usesysid is not null
    and datid is not null),
  coalesce((
    select extract(epoch from max(clock_timestamp() - xact_start))
    from pg_stat_activity
    where backend_type = 'client backend'
      and pid <> pg_backend_pid()), 0)::double precision,
  (select count(*)
  from pg_stat_activity
  where backend_type is null
    and datid is not null
    and (backend_xid is not null or backend_xmin is not null))`

// Members wait for each other, which is as it should be; a command may hold them up.
const blockedSQL = `
select a.application_name, b.pid, b.application_name, coalesce(b.state, 'state unknown'),
  coalesce(extract(epoch from clock_timestamp() - b.xact_start), 0)::double precision
from pg_stat_activity a
cross join unnest(pg_blocking_pids(a.pid)) as blocker
join pg_stat_activity b on b.pid = blocker
where a.application_name like 'processor/%'
  and b.application_name !~ '^processor/.*\.[A-Z2-7]{10}$'
  and a.datname = current_database()
order by 2
limit 20`

// locksSQL compares what positions is made of with the server's lock table.
const locksSQL = `
with recursive heap as (
  select to_regclass('public.positions')::oid as id
  union all
  select i.inhrelid
  from pg_inherits i
  join heap h on h.id = i.inhparent
)
select count(distinct h.id) - 1,
  count(distinct h.id) + count(x.indexrelid),
  current_setting('max_locks_per_transaction')::integer
    * (current_setting('max_connections')::integer + current_setting('max_prepared_transactions')::integer),
  current_setting('max_locks_per_transaction')::integer
from heap h
left join pg_index x on x.indrelid = h.id
where h.id is not null`

const membersSQL = `
select application_name, count(*)
from pg_stat_activity
where application_name like 'processor/%'
  and datname = current_database()
group by application_name`

// Diagnose queries the status.
func Diagnose(ctx context.Context, pool *pgxpool.Pool) (ServerStatus, error) {
	const op = "examine Postgres"
	e := ServerStatus{Members: make(map[string]int)}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return e, store.Failure(op, err)
	}
	defer conn.Release()
	var pid uint32
	var now time.Time
	var longest float64
	before := time.Now()
	err = conn.QueryRow(ctx, serverStatusSQL).Scan(&e.Version, &e.Number, &e.SynchronousCommit, &e.Fsync, &e.Autovacuum,
		&e.Standby, &e.ReadOnly, &pid, &now, &e.Bytes, &e.MaxConnections, &e.Sessions, &longest, &e.Hidden)
	if err != nil {
		return e, store.Failure(op, err)
	}
	e.ClockUncertainty = time.Since(before)
	e.Clock = now.Sub(before.Add(e.ClockUncertainty / 2)).Round(time.Millisecond)
	e.Longest = seconds(longest)
	e.Pooler = pid != conn.Conn().PgConn().PID()

	if err := conn.QueryRow(ctx, locksSQL).Scan(&e.Heaps, &e.HeapLocks, &e.MaxLocks, &e.LocksPerSession); err != nil {
		return e, store.Failure(op, err)
	}
	rows, err := conn.Query(ctx, blockedSQL)
	if err != nil {
		return e, store.Failure(op, err)
	}
	e.Blocked, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (b blocking, err error) {
		var by protocol.Blocker
		var age float64
		err = row.Scan(&b.Waiting, &by.PID, &by.Application, &by.State, &age)
		by.Age = seconds(age)
		b.Lock.By = []protocol.Blocker{by}
		return b, err
	})
	if err != nil {
		return e, store.Failure(op, err)
	}
	rows, err = conn.Query(ctx, membersSQL)
	if err != nil {
		return e, store.Failure(op, err)
	}
	var name string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&name, &n}, func() error {
		e.Members[store.MemberOf(name)] = n
		return nil
	})
	return e, store.Failure(op, err)
}

func seconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond)
}

// FleetStatus is the state of a group's work according to the tables.
type FleetStatus struct {
	Pinned     map[string]string // settings of the fleet, by name
	Database   string            // identity of the database, "" before the first instance
	Group      string            // that processes the stream in this database
	Server     string            // which server it is on, "" if that is not known
	Foreign    bool              // and that is another
	Owners     map[string]int    // shards by owner, "" for those without one
	Suspected  int               // shards whose owners crashed without progress
	Term       int64
	Leader     string // "" after a resignation
	Deferred   int64
	Lost       int64
	LostSome   bool       // some losses are of unknown size
	LostSince  *time.Time // the last loss
	LostBy     []string   // causes of losses
	Waiting    int64      // requests not finished
	OldestWait time.Duration
	Failed     int64       // requests that failed within the last day
	Incidents  []Incidents // open ones, by kind
}

// Shards returns the pinned number of shards, 0 before the first instance.
func (s *FleetStatus) Shards() int {
	n, _ := strconv.Atoi(s.Pinned["SHARDS"]) // an instance wrote it
	return n
}

// Incidents are the open incidents of one kind.
type Incidents struct {
	Kind     string
	Count    int
	Subjects []string // some of them
	Since    time.Time
}

const fleetStatusSQL = `
select
  (select count(*) from processor.shards where (stream, group_name) = ($1, $2) and crash_count > 0),
  coalesce((select term from processor.leader where (stream, group_name) = ($1, $2)), 0),
  coalesce((select member from processor.leader where (stream, group_name) = ($1, $2)), ''),
  (select count(*) from processor.deferred where (stream, group_name) = ($1, $2)),
  (select coalesce(sum(entries), 0)::bigint from processor.losses where (stream, group_name) = ($1, $2)),
  (select coalesce(bool_or(entries is null), false) from processor.losses where (stream, group_name) = ($1, $2)),
  (select max(detected_at) from processor.losses where (stream, group_name) = ($1, $2)),
  (select array_agg(distinct cause order by cause) from processor.losses where (stream, group_name) = ($1, $2)),
  (select count(*) from processor.requests where (stream, group_name) = ($1, $2) and state in ('waiting', 'running')),
  coalesce((
    select extract(epoch from clock_timestamp() - min(requested_at))
    from processor.requests
    where (stream, group_name) = ($1, $2)
      and state in ('waiting', 'running')), 0)::double precision,
  (select count(*)
  from processor.requests
  where (stream, group_name) = ($1, $2)
    and state = 'failed'
    and finished_at > now() - interval '1 day')`

// ReadFleetStatus reads the state of a group's work. The schema must exist.
func ReadFleetStatus(ctx context.Context, pool *pgxpool.Pool, scope store.Scope) (FleetStatus, error) {
	const op = "ask how the work stands"
	s := FleetStatus{Pinned: make(map[string]string), Owners: make(map[string]int)}
	var wait float64
	err := pool.QueryRow(ctx, fleetStatusSQL, scope.Stream, scope.Group).Scan(&s.Suspected, &s.Term,
		&s.Leader, &s.Deferred, &s.Lost, &s.LostSome, &s.LostSince, &s.LostBy, &s.Waiting, &wait, &s.Failed)
	if err != nil {
		return s, store.Failure(op, err)
	}
	s.OldestWait = seconds(wait)
	rows, err := pool.Query(ctx, `
select coalesce(owner, ''), count(*)
from processor.shards
where stream = $1
  and group_name = $2
group by owner`, scope.Stream, scope.Group)
	if err != nil {
		return s, store.Failure(op, err)
	}
	var owner string
	var n int
	if _, err = pgx.ForEachRow(rows, []any{&owner, &n}, func() error {
		s.Owners[owner] = n
		return nil
	}); err != nil {
		return s, store.Failure(op, err)
	}
	rows, err = pool.Query(ctx, `
select kind, count(*), (array_agg(subject order by opened_at, id))[1:3], min(opened_at)
from processor.incidents
where stream = $1
  and group_name = $2
  and closed_at is null
group by kind
order by min(opened_at)`, scope.Stream, scope.Group)
	if err != nil {
		return s, store.Failure(op, err)
	}
	s.Incidents, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Incidents])
	if err != nil {
		return s, store.Failure(op, err)
	}
	prefix := scope.Stream + "/" + scope.Group + "/"
	rows, err = pool.Query(ctx, `
select name, value
from processor.settings
where regexp_replace(name, '[^/]*$', '') = $1
  or name in ($2, $3)`, prefix, store.DatabaseSetting, store.GroupSetting(scope.Stream))
	if err != nil {
		return s, store.Failure(op, err)
	}
	var name, value string
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		switch name {
		case store.DatabaseSetting:
			s.Database = value
		case store.GroupSetting(scope.Stream):
			s.Group, s.Foreign = value, value != scope.Group
		default:
			s.Pinned[strings.TrimPrefix(name, prefix)] = value
		}
		return nil
	})
	if err != nil {
		return s, store.Failure(op, err)
	}
	s.Server, err = store.ServerOf(ctx, pool)
	return s, store.Failure(op, err)
}

// InstanceOf returns the identity of a member, without its incarnation.
func InstanceOf(member string) (string, error) {
	i := strings.LastIndexByte(member, '.')
	if i < 0 {
		return "", fmt.Errorf("member %q has no incarnation", member)
	}
	return member[:i], nil
}

package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
)

// Sessions manages the database sessions of members.
type Sessions struct {
	pool    *pgxpool.Pool
	timeout time.Duration

	identity *Identity // told which server answers; nil where it does not matter
}

// Guard has the identity follow a pooler that leads its clients to another server
// without a new connection.
func (s *Sessions) Guard(i *Identity) { s.identity = i }

// NewSessions returns the sessions of a database.
func NewSessions(pool *pgxpool.Pool, timeout time.Duration) *Sessions {
	return &Sessions{pool: pool, timeout: timeout}
}

// sessionsAfter is how long the server must be up before a member without sessions
// counts as gone: live ones have theirs again by then.
const sessionsAfter = 10 * time.Second

// End ends the Postgres sessions of a member that does not release its shards.
// No timeout of the server covers a client frozen in the middle of a COPY,
// whose uncommitted keys would block its successor.
//
// A kernel closes the sessions of a process that ended. None reports that there were
// none, in a server that has been up for long enough to tell. If there were some, the
// process was alive, which is written down for successors that come later.
//
// Only sessions with this database are its own: a copy on the same server names the members of
// its original.
//
// The member may have connected as another role, whose sessions this one may end or not,
// as the server decides it: it is not asked for what it would refuse.
func (s *Sessions) End(ctx context.Context, member string) (out protocol.EndedSessions, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	// One successor at a time, so that none finds the sessions gone before it is
	// written down that they were there.
	b := &pgx.Batch{}
	b.Queue("select pg_advisory_xact_lock(hashtextextended($1, 0))", ApplicationName(member))
	// A row of assignments that another session has locked must not hold up a take-over.
	b.Queue(`
with sessions as materialized (
  select a.pid, coalesce(a.usename, '') as role,
    (pg_has_role(a.usesysid, 'usage') or pg_has_role('pg_signal_backend', 'usage'))
      and (not coalesce(r.rolsuper, false) or (select rolsuper from pg_roles where rolname = current_user)) as ours
  from pg_stat_activity a
  left join pg_roles r on r.oid = a.usesysid
  where a.application_name = $1
    and a.datname = current_database()
    and a.pid <> pg_backend_pid()
),
lost as materialized (
  select a.stream, a.group_name, a.shard
  from processor.assignments a
  join processor.shards s using (stream, group_name, shard)
  where s.owner = $2
    and exists (
      select
      from sessions
    )
  for update of a skip locked
),
marked as (
  update processor.assignments a
  set owner_alive_at = clock_timestamp()
  from lost
  where a.stream = lost.stream
    and a.group_name = lost.group_name
    and a.shard = lost.shard
)
select count(*) filter (where case when ours then pg_terminate_backend(pid) end),
  count(*) filter (where not ours),
  coalesce(max(role) filter (where not ours), ''),
  count(*) = 0
    and pg_postmaster_start_time() < now() - $3::interval
    and not exists (
      select
      from processor.assignments a
      join processor.shards s using (stream, group_name, shard)
      where s.owner = $2
        and a.owner_alive_at >= s.owner_since
    )
from sessions`, ApplicationName(member), member, sessionsAfter).QueryRow(func(row pgx.Row) error {
		return row.Scan(&out.Count, &out.Left, &out.Role, &out.None)
	})
	err = s.pool.SendBatch(ctx, b).Close()
	return out, failure(fmt.Sprintf("end the sessions of %s", member), err)
}

// Ping checks that Postgres answers and accepts writes.
func (s *Sessions) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var readOnly string
	if err := s.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		if err := conn.QueryRow(ctx, "show transaction_read_only").Scan(&readOnly); err != nil {
			return err
		}
		if s.identity.Server() == "" { // not established, or the role may not ask
			return nil
		}
		return s.identity.seeServer(ctx, conn.Conn().PgConn())
	}); err != nil {
		return failure("ping Postgres", err)
	}
	if readOnly == "on" {
		return fmt.Errorf("ping Postgres: it is read-only; is this a standby?")
	}
	return nil
}

// Listen calls heard for each notification on a channel, with its payload, and
// once whenever it has started to listen, since earlier ones were missed. It
// returns when ctx ends.
func Listen(ctx context.Context, pool *pgxpool.Pool, channel string, heard func(payload string), failed func(error)) {
	for ctx.Err() == nil {
		if err := listen(ctx, pool, channel, heard); err != nil && ctx.Err() == nil {
			failed(failure("listen on "+channel, err))
			t := time.NewTimer(time.Second)
			select {
			case <-ctx.Done():
			case <-t.C:
			}
			t.Stop()
		}
	}
}

func listen(ctx context.Context, pool *pgxpool.Pool, channel string, heard func(payload string)) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	// A listening session is not fit for other uses: close it afterwards.
	own := conn.Hijack()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = own.Close(ctx)
	}()
	if _, err := own.Exec(ctx, "listen "+channel); err != nil {
		return err
	}
	heard("")
	for {
		n, err := own.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		heard(n.Payload)
	}
}

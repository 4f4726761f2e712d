package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
)

// DatabaseSetting is the setting of the database itself: random, made by the first
// instance.
const DatabaseSetting = "DATABASE"

// GroupSetting names the setting that says which group processes a stream.
func GroupSetting(stream string) string { return "GROUP/" + stream }

// Identity is the database that this process started with. A connection to another
// one fails, and no shard and no term is acquired there, so that a commit there is
// never acknowledged. A copy of the database has the same identity: Server tells
// the two apart where they are used at the same time.
type Identity struct {
	id, server atomic.Pointer[string]
	made       atomic.Bool // the identity is of this process
}

// NewIdentity returns an identity that is not known yet.
func NewIdentity() *Identity { return &Identity{} }

// ID returns the database's identity, "" before it is known.
func (i *Identity) ID() string {
	if i == nil || i.id.Load() == nil {
		return ""
	}
	return *i.id.Load()
}

// Server returns which server and database answered last: the cluster's
// system identifier and the database's number in it, "" while unknown. A standby that is
// promoted has those of its primary; what was dumped and restored elsewhere has others.
func (i *Identity) Server() string {
	if i == nil || i.server.Load() == nil {
		return ""
	}
	return *i.server.Load()
}

// whereSQL needs a privilege that every role has unless it was revoked.
const whereSQL = `
select concat(s.system_identifier, '/', d.oid)
from pg_control_system() s, pg_database d
where d.datname = current_database()`

// ForeignError reports that a database belongs to another fleet, or is not the one
// that this process started with.
type ForeignError struct{ What string }

func (e *ForeignError) Error() string { return e.What }

// ExitCode returns the exit status for a bad configuration.
func (e *ForeignError) ExitCode() int { return 3 }

func foreign(format string, args ...any) error {
	return &protocol.Failure{Kind: protocol.Misconfigured, Code: "database", Err: &ForeignError{fmt.Sprintf(format, args...)}}
}

// Establish reads the database's identity, and creates it if there is none. created
// reports whether this process created it: the database is new, and no member knows it. A
// stream that is new proves nothing: the database may be another fleet's. Several streams
// share a database, but a stream has one group there: another one that stores its records
// too fails with a ForeignError.
func (i *Identity) Establish(ctx context.Context, pool *pgxpool.Pool, scope Scope, member string, timeout time.Duration) (created bool, err error) {
	const op = "read the identity of the database"
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tag, err := pool.Exec(ctx, `
insert into processor.settings (name, value, set_by)
values ($1, $2, $3)
on conflict (name) do nothing`, DatabaseSetting, rand.Text(), member)
	if err != nil {
		return false, failure(op, err)
	}
	if tag.RowsAffected() == 1 {
		i.made.Store(true)
	}
	created = i.made.Load()
	if _, err := pool.Exec(ctx, `
insert into processor.settings (name, value, set_by)
select $1, coalesce((
  select group_name
  from processor.shards
  where stream = $4
  order by group_name = $2
  limit 1
), $2), $3
on conflict (name) do nothing`, GroupSetting(scope.Stream), scope.Group, member, scope.Stream); err != nil {
		return created, failure(op, err)
	}
	var id, group string
	if err := pool.QueryRow(ctx, `
select d.value, g.value
from processor.settings d, processor.settings g
where d.name = $1
  and g.name = $2`, DatabaseSetting, GroupSetting(scope.Stream)).Scan(&id, &group); err != nil {
		return created, failure(op, err)
	}
	if err := scope.mayProcess(group); err != nil {
		return created, err
	}
	if known := i.ID(); known != "" && known != id {
		return created, i.another(id)
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return created, failure(op, err)
	}
	defer conn.Release()
	if err := i.seeServer(ctx, conn.Conn().PgConn()); err != nil {
		return created, failure(op, err)
	}
	i.id.Store(&id)
	return created, nil
}

// mayProcess fails with a ForeignError if the group that processes the stream is another one.
func (s Scope) mayProcess(group string) error {
	if group == s.Group {
		return nil
	}
	return foreign("in this database stream %s is processed by group %s, and this instance is of group %s: two groups would derive the crossings of the same devices; "+
		"name a database of its own in POSTGRES_URL, or correct REDIS_CONSUMER_GROUP", s.Stream, group, s.Group)
}

// CheckGroup fails as Establish does where another group processes the stream in the
// database, and changes nothing.
func CheckGroup(ctx context.Context, pool *pgxpool.Pool, scope Scope, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var group string
	if err := pool.QueryRow(ctx, `
select coalesce((
  select value
  from processor.settings
  where name = $1
), (
  select group_name
  from processor.shards
  where stream = $2
  order by group_name = $3
  limit 1
), $3)`, GroupSetting(scope.Stream), scope.Stream, scope.Group).Scan(&group); err != nil {
		return failure("ask which group processes the stream", err)
	}
	return scope.mayProcess(group)
}

// another returns the error of a database that is not ours.
func (i *Identity) another(found string) error {
	if found == "" {
		found = "without an identity"
	}
	return foreign("Postgres leads to another database (%s) than this instance began with (%s): correct POSTGRES_URL, its DNS name or the failover; "+
		"if the database was moved or replaced on purpose, stop every instance and run processor fleet adopt", found, i.ID())
}

// connected is called for each new connection before it is used.
func (i *Identity) connected(ctx context.Context, conn *pgconn.PgConn) error {
	if i.ID() == "" {
		return nil
	}
	results, err := conn.Exec(ctx, "select value from processor.settings where name = '"+DatabaseSetting+"'").ReadAll()
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && (pg.Code == "42P01" || pg.Code == "3F000") {
		return i.another("")
	}
	if err != nil {
		return err
	}
	found := ""
	if len(results) == 1 && len(results[0].Rows) == 1 {
		found = string(results[0].Rows[0][0])
	}
	if found != i.ID() {
		return i.another(found)
	}
	return i.seeServer(ctx, conn)
}

// seeServer notes which server answers; it stays unknown where the role may not ask.
func (i *Identity) seeServer(ctx context.Context, conn *pgconn.PgConn) error {
	server, err := serverOf(ctx, conn)
	if server != "" {
		i.server.Store(&server)
	}
	return err
}

func serverOf(ctx context.Context, conn *pgconn.PgConn) (string, error) {
	results, err := conn.Exec(ctx, whereSQL).ReadAll()
	if _, denied := errors.AsType[*pgconn.PgError](err); denied {
		return "", nil
	}
	if err != nil || len(results) != 1 || len(results[0].Rows) != 1 {
		return "", err
	}
	return string(results[0].Rows[0][0]), nil
}

// ServerOf returns which server and database a pool leads to, see Identity.Server.
func ServerOf(ctx context.Context, pool *pgxpool.Pool) (server string, err error) {
	err = pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
		server, err = serverOf(ctx, c.Conn().PgConn())
		return err
	})
	return server, failure("ask which server this is", err)
}

// check fails unless a transaction runs in our database: a pooler may switch
// databases without a new connection.
func (i *Identity) check(ctx context.Context, tx pgx.Tx) error {
	if i.ID() == "" {
		return nil
	}
	var found string
	err := tx.QueryRow(ctx, "select coalesce(max(value), '') from processor.settings where name = $1", DatabaseSetting).Scan(&found)
	if err == nil && found != i.ID() {
		err = i.another(found)
	}
	return err
}

package schema

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/trmtracking/processor/internal/store"
)

// migrationLockKey is "processo" in ASCII. Older and newer binaries must use
// the same key.
const migrationLockKey int64 = 0x70726f636573736f

const (
	// A session that holds the lock already would get it again. On a private
	// connection that is impossible; it detects a pooler that lends one server
	// session to two clients.
	tryMigrationLockSQL = `
with mine as materialized (
  select exists (
    select from pg_catalog.pg_locks
    where pid = pg_backend_pid()
      and locktype = 'advisory'
      and database = (select oid from pg_catalog.pg_database where datname = current_database())
      and classid = ($1::bigint >> 32)::text::oid
      and objid = ($1::bigint & 4294967295)::text::oid
      and objsubid = 1
  ) as held
)
select case when held then null else pg_try_advisory_lock($1) end
from mine`

	migrationLockHolderSQL = `
select format('%s, user %s, from %s, process %s, connected since %s',
  coalesce(nullif(a.application_name, ''), 'unnamed'),
  coalesce(a.usename, 'unknown'),
  coalesce(host(a.client_addr), 'local socket'),
  a.pid,
  to_char(a.backend_start, 'YYYY-MM-DD HH24:MI:SS TZ'))
from pg_catalog.pg_locks l
join pg_catalog.pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory'
  and l.granted
  and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
  and l.classid = ($1::bigint >> 32)::text::oid
  and l.objid = ($1::bigint & 4294967295)::text::oid
  and l.objsubid = 1`

	migrationUnlockSQL = `select pg_advisory_unlock($1)`

	backendSQL = `select pg_backend_pid()`

	schemaExistsSQL = `select to_regnamespace('processor') is not null`

	createSchemaSQL = `create schema processor`
)

// migrationSession is the one connection that migrates. Its *sql.DB can never
// open a second one, so nothing runs outside the session that holds the lock.
type migrationSession struct {
	db     *sql.DB
	config *pgx.ConnConfig
	log    *slog.Logger
}

// oneConnector connects once. A connection that breaks takes the lock with it;
// a second one would migrate without the lock.
type oneConnector struct {
	driver.Connector
	used atomic.Bool
}

// Connect opens the connection, the first time.
func (c *oneConnector) Connect(ctx context.Context) (driver.Conn, error) {
	if c.used.Swap(true) {
		return nil, errors.New("connection lost while migrating, start again")
	}
	return c.Connector.Connect(ctx)
}

func migrationConfig(url string) (*pgx.ConnConfig, error) {
	if url == "" {
		return nil, errors.New("no Postgres address to migrate, set POSTGRES_URL")
	}
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("read the address of Postgres: %w", err)
	}
	// Prepared statements would not survive a pooler that is found only later.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	config.RuntimeParams["client_encoding"] = "UTF8"
	config.RuntimeParams["application_name"] = fmt.Sprintf("processor migrate %.32s/%d", host, os.Getpid())
	return config, nil
}

// connectPlain opens a connection for reading only.
func connectPlain(ctx context.Context, url string) (*pgx.Conn, error) {
	config, err := migrationConfig(url)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	return conn, nil
}

func openMigrationSession(ctx context.Context, url string, log *slog.Logger) (*migrationSession, error) {
	config, err := migrationConfig(url)
	if err != nil {
		return nil, err
	}
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		level := slog.LevelDebug
		if n.SeverityUnlocalized == "WARNING" {
			level = slog.LevelWarn
		}
		log.Log(ctx, level, "Postgres notice", "message", n.Message)
	}
	db := sql.OpenDB(&oneConnector{Connector: stdlib.GetConnector(*config)})
	db.SetMaxOpenConns(1)
	db.SetMaxIdleConns(1)
	if err := db.PingContext(ctx); err != nil {
		if poolerRefused(err) {
			err = fmt.Errorf("%w: %w", ErrPooler, err)
		}
		return nil, errors.Join(fmt.Errorf("connect to Postgres: %w", err), db.Close())
	}
	return &migrationSession{db: db, config: config, log: log}, nil
}

func (s *migrationSession) close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close the migration connection: %w", err)
	}
	return nil
}

// refuseOld compares the server's version before anything is changed.
func (s *migrationSession) refuseOld(ctx context.Context) error {
	var number int
	var version string
	err := s.db.QueryRowContext(ctx, "select current_setting('server_version_num')::int, current_setting('server_version')").Scan(&number, &version)
	if err != nil {
		return fmt.Errorf("ask Postgres for its version: %w", err)
	}
	if number < store.OldestServer*10000 {
		return fmt.Errorf("this is Postgres %s: %w", version, ErrOld)
	}
	return nil
}

// refusePooler detects whether several server sessions may serve this one
// connection.
func (s *migrationSession) refusePooler(ctx context.Context) error {
	announced, _, err := s.backends(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	lends, err := store.LendsSessions(ctx, announced, func(ctx context.Context) (uint32, error) {
		_, now, err := s.backends(ctx)
		return now, err
	}, s.config)
	if err != nil {
		return fmt.Errorf("look for a transaction pooler: %w", err)
	}
	if lends {
		return ErrPooler
	}
	return nil
}

// backends returns the process number announced at connecting and the one that
// answers now.
func (s *migrationSession) backends(ctx context.Context) (announced, now uint32, err error) {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("use the migration connection: %w", err)
	}
	defer conn.Close() //nolint:errcheck // goes back to the pool
	err = conn.Raw(func(c any) error {
		pg := c.(*stdlib.Conn).Conn()
		announced = pg.PgConn().PID()
		return pg.QueryRow(ctx, backendSQL).Scan(&now)
	})
	if err != nil {
		return 0, 0, fmt.Errorf("ask which server process answers: %w", err)
	}
	return announced, now, nil
}

// lock acquires the migration lock, or reports its holder.
func (s *migrationSession) lock(ctx context.Context, timeout time.Duration) error {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	for {
		var got sql.NullBool
		if err := s.db.QueryRowContext(ctx, tryMigrationLockSQL, migrationLockKey).Scan(&got); err != nil {
			return fmt.Errorf("acquire the migration lock: %w", err)
		}
		if !got.Valid {
			return ErrPooler
		}
		if got.Bool {
			return nil
		}
		// Jitter, so that many processes started together do not poll together.
		retry := time.NewTimer(50*time.Millisecond + rand.N(100*time.Millisecond))
		select {
		case <-retry.C:
		case <-deadline.C:
			retry.Stop()
			return fmt.Errorf("%w for %s by: %s", ErrMigrationLock, timeout, s.holder(ctx))
		case <-ctx.Done():
			retry.Stop()
			return fmt.Errorf("wait for the migration lock: %w, it is held by: %s",
				context.Cause(ctx), s.holder(context.WithoutCancel(ctx)))
		}
	}
}

func (s *migrationSession) holder(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var holder string
	err := s.db.QueryRowContext(ctx, migrationLockHolderSQL, migrationLockKey).Scan(&holder)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "nobody any more, it was released just now"
	case err != nil:
		return fmt.Sprintf("unknown (%v)", err)
	}
	return holder
}

func (s *migrationSession) unlock(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var released bool
	if err := s.db.QueryRowContext(ctx, migrationUnlockSQL, migrationLockKey).Scan(&released); err != nil {
		return fmt.Errorf("release the migration lock: %w", err)
	}
	if !released {
		return fmt.Errorf("release the migration lock: this session did not hold it: %w", ErrPooler)
	}
	return nil
}

const (
	// tableLockTimeout is how long a migration waits for a table: all others that want the table
	// queue behind it meanwhile, in the fleet that works.
	tableLockTimeout = 2 * time.Second
	// tableLockPause is how long the table is left to them until it is tried again.
	tableLockPause = 4 * time.Second
)

// lockSettingsSQL waits for longer than deadlock_timeout: then the server ends an autovacuum
// that is in the way.
const lockSettingsSQL = "select set_config('lock_timeout', greatest($1, 2 * setting::bigint)::text, false) from pg_settings where name = 'deadlock_timeout'"

// prepare sets up the session and creates the schema of goose's version table.
// A role that may not create schemas can still migrate if the schema exists.
func (s *migrationSession) prepare(ctx context.Context) error {
	// A server notices within seconds that the process is gone: it would go on for as long as
	// an index takes, with the locks, for nothing.
	if _, err := s.db.ExecContext(ctx, "set statement_timeout = 0; set client_connection_check_interval = 2000; set search_path = public"); err != nil {
		return fmt.Errorf("prepare the migration session: %w", err)
	}
	if _, err := s.db.ExecContext(ctx, lockSettingsSQL, tableLockTimeout.Milliseconds()); err != nil {
		return fmt.Errorf("prepare the migration session: %w", err)
	}
	var exists bool
	if err := s.db.QueryRowContext(ctx, schemaExistsSQL).Scan(&exists); err != nil {
		return fmt.Errorf("look for the schema processor: %w", err)
	}
	if exists {
		return nil
	}
	if _, err := s.db.ExecContext(ctx, createSchemaSQL); err != nil {
		return migrationFailed("of the schema processor itself", err)
	}
	return nil
}

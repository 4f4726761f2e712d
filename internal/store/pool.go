package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Config locates Postgres and bounds every operation.
type Config struct {
	URL string
	// Rotated yields the URL whose user and password new connections use; nil for URL.
	Rotated func() (string, error)
	// Member is carried in application_name, so that a successor can end the
	// sessions of a member that no longer answers.
	Member           string
	MaxConns         int32
	ConnectTimeout   time.Duration
	StatementTimeout time.Duration // of the server; the client waits slightly longer
	LockTimeout      time.Duration
	Runs             *ServerGeneration // told of every connection; may be nil
	Identity         *Identity         // compared on every connection; nil accepts any database
}

// ApplicationName returns the name of a member's sessions in pg_stat_activity:
// at most 63 bytes, or Postgres would cut the incarnation off.
func ApplicationName(member string) string {
	const limit = 63
	name := "processor/" + member
	if len(name) > limit {
		name = name[:len("processor/")] + name[len(name)-(limit-len("processor/")):]
	}
	return name
}

// Open creates the pool. It connects lazily: Postgres need not be available
// yet.
func Open(ctx context.Context, cfg Config) (*pgxpool.Pool, error) {
	pc, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		// The driver's own message hides the password but not a malformed URL.
		return nil, fmt.Errorf("POSTGRES_URL: want postgres://user:password@host:5432/database")
	}
	pc.MaxConns = cfg.MaxConns
	pc.MaxConnIdleTime = 5 * time.Minute
	pc.HealthCheckPeriod = 15 * time.Second
	prepare(pc.ConnConfig, cfg)
	if cfg.Rotated != nil {
		(&rotation{read: cfg.Rotated, now: time.Now}).install(pc)
	}
	connected := pc.AfterConnect
	pc.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		conn.TypeMap().RegisterType(&pgtype.Type{Name: "timestamptz", OID: pgtype.TimestamptzOID, Codec: anyTime{&pgtype.TimestamptzCodec{}}})
		if connected == nil {
			return nil
		}
		return connected(ctx, conn)
	}
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, failure("open the pool", err)
	}
	return pool, nil
}

// prepare sets the options of every connection of the service: bounds on
// everything that can hang, so that a black hole becomes an outage.
func prepare(cc *pgx.ConnConfig, cfg Config) {
	cc.ConnectTimeout = cfg.ConnectTimeout
	cc.DialFunc = (&net.Dialer{Timeout: cfg.ConnectTimeout, KeepAlive: 5 * time.Second}).DialContext
	cc.RuntimeParams["application_name"] = ApplicationName(cfg.Member)
	// The driver sends and reads UTF-8 whatever the session says; a role or database
	// with another client_encoding would have the server convert, that is corrupt, text.
	cc.RuntimeParams["client_encoding"] = "UTF8"
	if !strings.Contains(cfg.URL, "target_session_attrs") {
		// After a failover the old primary may still answer, but read-only.
		cc.ValidateConnect = acceptsWrites
	}
	if validate := cc.ValidateConnect; cfg.Runs != nil {
		cc.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
			if validate != nil {
				if err := validate(ctx, conn); err != nil {
					return err
				}
			}
			return cfg.Runs.follows(ctx, conn)
		}
	}
	// Set after connecting rather than as startup parameters, which poolers
	// reject.
	set := fmt.Sprintf(`set statement_timeout = %d;
		set lock_timeout = %d;
		set idle_in_transaction_session_timeout = %d;
		set client_connection_check_interval = 2000;
		set tcp_keepalives_idle = 5; set tcp_keepalives_interval = 2; set tcp_keepalives_count = 3;
		set timezone = 'UTC'; set datestyle = 'ISO'; set search_path = public;
		set default_transaction_isolation = 'read committed';
		select set_config(name, '0', false) from pg_settings where name in ('idle_session_timeout', 'transaction_timeout')`,
		cfg.StatementTimeout.Milliseconds(), cfg.LockTimeout.Milliseconds(), cfg.StatementTimeout.Milliseconds())
	cc.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		if err := conn.Exec(ctx, set).Close(); err != nil {
			return err
		}
		if err := cfg.Identity.connected(ctx, conn); err != nil || cfg.Runs == nil {
			return err
		}
		return cfg.Runs.connected(ctx, conn)
	}
}

// ErrReadOnlyRole matches when sessions are read-only because that is set
// for the role or the database; no failover would change it.
var ErrReadOnlyRole = errors.New("sessions are read-only, as is set for this role or database: alter role … reset default_transaction_read_only, or alter database …")

// acceptsWrites rejects a server, or a session, that is read-only.
func acceptsWrites(ctx context.Context, conn *pgconn.PgConn) error {
	err := pgconn.ValidateConnectTargetSessionAttrsReadWrite(ctx, conn)
	if err == nil {
		return nil
	}
	const sql = "select from pg_settings where name = 'default_transaction_read_only' and setting = 'on' and source in ('user', 'database', 'database user')"
	if found, asked := conn.Exec(ctx, sql).ReadAll(); asked == nil && len(found) == 1 && found[0].CommandTag.RowsAffected() == 1 {
		return ErrReadOnlyRole
	}
	return err
}

// MemberOf returns the member that a session's name carries.
func MemberOf(session string) string {
	member, ok := strings.CutPrefix(session, ApplicationName(""))
	if !ok {
		return ""
	}
	return member
}

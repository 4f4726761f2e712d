package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrPooler matches when the sessions of the service are not its own: a pooler
// lends them by the transaction or statement, so what is set, prepared or
// listened for in one is not there in the next, and ending the sessions of a member
// that is gone would end another's.
var ErrPooler = errors.New("a pooler in transaction or statement mode stands before Postgres, where time limits, " +
	"prepared statements and LISTEN do not hold: name the server itself, or a pooler in session mode")

// RefusePooler returns ErrPooler if several server sessions may serve one
// connection to this URL. A pooler in session mode passes.
func RefusePooler(ctx context.Context, url string, timeout time.Duration) error {
	pc, err := pgxpool.ParseConfig(url) // which knows the pool's own parameters
	if err != nil {
		return failure("look for a pooler", err)
	}
	cc := pc.ConnConfig
	cc.ConnectTimeout = timeout
	cc.RuntimeParams["application_name"] = "processor pooler check"
	cc.RuntimeParams["client_encoding"] = "UTF8"
	cc.DefaultQueryExecMode = pgx.QueryExecModeExec // prepares nothing
	ctx, cancel := context.WithTimeout(ctx, 2*timeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, cc)
	if err != nil {
		return failure("look for a pooler", err)
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // only read from
	lends, err := LendsSessions(ctx, conn.PgConn().PID(), func(ctx context.Context) (pid uint32, err error) {
		err = conn.QueryRow(ctx, backendSQL).Scan(&pid)
		return pid, err
	}, cc)
	if err != nil {
		return failure("look for a pooler", err)
	}
	if lends {
		return ErrPooler
	}
	return nil
}

const backendSQL = "select pg_backend_pid()"

// poolerTries is how many connections try to be lent a session.
const poolerTries = 4

// LendsSessions reports whether a pooler lends the server session of one connection
// to others. A pooler announces a process number of its own; if that differs from
// the server's, transactions are opened on connections like it until one of them is
// given the session that should be the first one's alone. backend asks which process
// serves the first connection now.
func LendsSessions(ctx context.Context, announced uint32, backend func(context.Context) (uint32, error), like *pgx.ConnConfig) (bool, error) {
	own, err := backend(ctx)
	if err != nil || own == announced {
		return false, err
	}
	for range poolerTries {
		conn, err := pgx.ConnectConfig(ctx, like)
		if err != nil {
			break // a session pooler with few connections left: not conclusive
		}
		defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // only read from
		tx, err := conn.Begin(ctx)
		if refusesTransactions(err) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("begin: %w", err)
		}
		var other uint32
		if err := tx.QueryRow(ctx, backendSQL).Scan(&other); err != nil {
			return false, fmt.Errorf("ask which server process answers: %w", err)
		}
		if other == own {
			return true, nil
		}
	}
	again, err := backend(ctx)
	return again != own, err
}

// refusesTransactions recognises PgBouncer in statement mode.
func refusesTransactions(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && strings.Contains(pg.Message, "transaction blocks not allowed")
}

package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Sessions manages the database sessions of members.
type Sessions struct {
	pool    *pgxpool.Pool
	timeout time.Duration
}

// NewSessions returns the sessions of a database.
func NewSessions(pool *pgxpool.Pool, timeout time.Duration) *Sessions {
	return &Sessions{pool: pool, timeout: timeout}
}

// End ends the Postgres sessions of a member that does not release its shards.
// No timeout of the server covers a client frozen in the middle of a COPY,
// whose uncommitted keys would block its successor.
func (s *Sessions) End(ctx context.Context, member string) (ended int, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err = s.pool.QueryRow(ctx, `
select count(*) filter (where pg_terminate_backend(pid))
from pg_stat_activity
where application_name = $1
  and pid <> pg_backend_pid()
  and usename = current_user`, ApplicationName(member)).Scan(&ended)
	return ended, failure(fmt.Sprintf("end the sessions of %s", member), err)
}

// Ping checks that Postgres answers and accepts writes.
func (s *Sessions) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var readOnly string
	if err := s.pool.QueryRow(ctx, "show transaction_read_only").Scan(&readOnly); err != nil {
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

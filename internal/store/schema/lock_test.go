package schema_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/testenv"
)

// migrationLock is the key every version of the binary locks.
const migrationLock int64 = 0x70726f636573736f

func TestMigrateNamesTheHolderOfTheLock(t *testing.T) {
	url := emptyDatabase(t)
	holder := connect(t, url)
	execute(t, holder, `set application_name = 'a stuck migration'`)
	execute(t, holder, `select pg_advisory_lock($1)`, migrationLock)

	begin := time.Now()
	_, err := schema.Migrate(t.Context(), url, slog.New(slog.DiscardHandler),
		schema.MigrationLockTimeout(300*time.Millisecond))
	require.ErrorIs(t, err, schema.ErrMigrationLock)
	require.ErrorContains(t, err, "a stuck migration")
	require.ErrorContains(t, err, "process "+strconv.Itoa(int(holder.PgConn().PID())))
	require.Less(t, time.Since(begin), 10*time.Second)

	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, context.DeadlineExceeded)

	var made bool
	require.NoError(t, holder.QueryRow(t.Context(),
		`select to_regnamespace('processor') is not null or to_regclass('public.positions') is not null`).Scan(&made))
	require.False(t, made, "something was made without the lock")

	execute(t, holder, `select pg_advisory_unlock($1)`, migrationLock)
	require.Equal(t, migrationNames, migrate(t, url))
	testenv.Wait(t, 10*time.Second, func() error { // a session ends a little after its client has closed it
		var held int
		require.NoError(t, holder.QueryRow(t.Context(),
			`select count(*) from pg_locks where locktype = 'advisory'`).Scan(&held))
		if held > 0 {
			return fmt.Errorf("%d locks were left behind", held)
		}
		return nil
	})
}

func TestMigrateSaysWhenATableStaysLocked(t *testing.T) {
	url := emptyDatabase(t)
	other := connect(t, url)
	execute(t, other, upstreamPositions)
	execute(t, other, `begin; lock table public.positions in share mode`)
	_, err := schema.Migrate(t.Context(), url, slog.New(slog.DiscardHandler),
		schema.MigrationLockTimeout(200*time.Millisecond))
	require.ErrorContains(t, err, "0001_positions.sql: another session holds a lock")
	require.NotErrorIs(t, err, schema.ErrSchema)
	execute(t, other, `rollback`)
	require.Equal(t, migrationNames, migrate(t, url))
}

// P7: who wants the table of a migration that waits for it queues behind it, and gets it between two attempts.
func TestAMigrationThatWaitsForATableLetsTheFleetWork(t *testing.T) {
	url := emptyDatabase(t)
	other, fleet := connect(t, url), connect(t, url)
	execute(t, other, upstreamPositions)
	execute(t, other, `begin; lock table public.positions in share mode`)
	migrated := make(chan error, 1)
	go func() {
		_, err := schema.Migrate(t.Context(), url, slog.New(slog.DiscardHandler), schema.MigrationLockTimeout(time.Minute))
		migrated <- err
	}()
	testenv.Wait(t, 10*time.Second, func() error {
		var waits bool
		require.NoError(t, fleet.QueryRow(t.Context(), "select exists (select from pg_locks where relation = 'public.positions'::regclass and not granted)").Scan(&waits))
		if !waits {
			return errors.New("the migration does not wait")
		}
		return nil
	})
	within, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := fleet.Exec(within, "select count(*) from public.positions")
	require.NoError(t, err, "it queues behind the migration")
	require.Empty(t, migrated)
	execute(t, other, `rollback`)
	require.NoError(t, <-migrated)
}

func TestMigrateRefusesATransactionPooler(t *testing.T) {
	url := emptyDatabase(t)
	pooled := testenv.PgBouncer(t, url, "transaction")
	// Several server sessions lie idle, so that the pooler has a choice.
	var clients []*pgx.Conn
	for range 3 {
		clients = append(clients, connect(t, pooled))
		execute(t, clients[len(clients)-1], `begin`)
	}
	for _, client := range clients {
		execute(t, client, `rollback`)
	}
	_, err := schema.Migrate(t.Context(), pooled, slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, schema.ErrPooler)
	require.ErrorContains(t, err, "POSTGRES_MIGRATE_URL")

	var left bool
	require.NoError(t, connect(t, url).QueryRow(t.Context(),
		`select to_regnamespace('processor') is not null
		or exists (select from pg_locks where locktype = 'advisory')`).Scan(&left))
	require.False(t, left, "schema or lock left behind")
}

func TestLockThatTheSessionHoldsAlreadyIsReportedAsAPooler(t *testing.T) {
	require.ErrorIs(t, schema.LockTwice(t.Context(), emptyDatabase(t)), schema.ErrPooler)
}

func TestMigrateWorksThroughASessionPooler(t *testing.T) {
	url := emptyDatabase(t)
	require.Equal(t, migrationNames, migrate(t, testenv.PgBouncer(t, url, "session")))
}

// An instance starts only once it has seen its tables.
func TestVerifySaysWhenATableIsLocked(t *testing.T) {
	url := emptyDatabase(t)
	migrate(t, url)
	holder := connect(t, url)
	execute(t, holder, `begin; lock table processor.conflicts in access exclusive mode`)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn := connect(t, url)
	execute(t, conn, `set lock_timeout = '100ms'`)
	_, err := schema.Verify(ctx, conn)
	require.ErrorContains(t, err, "another session has a table locked, wait for it or end it")
	execute(t, holder, `rollback`)
	_, err = schema.Verify(ctx, conn)
	require.NoError(t, err)
}

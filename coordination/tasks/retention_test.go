package tasks

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/testenv"
)

// Large dead letters take longer than a statement may, and a row of incidents is locked.
func TestRetentionOfATableInTroubleGetsSmallerAndHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	scope := store.Scope{Stream: "telemetry", Group: "processor"}
	for _, sql := range []string{
		`insert into processor.dead_letters (stream, group_name, dlq_id, source_id, digest, fields, class, error, fingerprint, attempts,
  instance, version, exported_at, exported_by)
select 'telemetry', 'processor', n || '-0', n || '-0', '', array[]::bytea[], 'decode', '', '', 1, '', '', now() - interval '800 days', 'test'
from generate_series(1, 400) n`,
		`create function public.slow() returns trigger language plpgsql as 'begin perform pg_sleep(0.002); return old; end'`,
		`create trigger slow before delete on processor.dead_letters for each row execute function public.slow()`,
		`insert into processor.incidents (stream, group_name, kind, subject, opened_at, closed_at)
values ('telemetry', 'processor', 'lost_group', '', now() - interval '900 days', now() - interval '800 days')`,
		`insert into processor.audit (at, who, action, target) values (now() - interval '800 days', 'test', 'old', 'test')`,
	} {
		_, err := pool.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	lock := locked(t, pool, "select from processor.incidents for update")
	count := func(sql string) (n int) {
		require.NoError(t, pool.QueryRow(t.Context(), sql).Scan(&n))
		return n
	}
	registry := prometheus.NewRegistry()
	retention := store.NewRetention(pool, scope, "one", time.Hour, 500*time.Millisecond)
	err := NewRetention(retention, 700*24*time.Hour, discard(), registry).Do(t.Context(), 1)
	require.Zero(t, count("select count(*) from processor.audit where action = 'old'"), "of a table that is in no trouble: %v", err)
	require.Zero(t, count("select count(*) from processor.dead_letters"), "fewer at once")
	require.Equal(t, 1, count("select count(*) from processor.incidents"))
	require.ErrorContains(t, err, "processor.incidents")
	require.NotContains(t, err.Error(), "processor.dead_letters")
	lock()
	require.NoError(t, NewRetention(retention, 700*24*time.Hour, discard(), prometheus.NewRegistry()).Do(t.Context(), 1))
	require.Zero(t, count("select count(*) from processor.incidents"))
	require.Equal(t, 400, count("select sum(count) from processor.audit where action = 'retention' and target = 'processor.dead_letters'"))
	shown, err := registry.Gather()
	require.NoError(t, err)
	require.Len(t, shown[0].GetMetric(), len(retention.Tables()))
}

// What takes long however few rows are removed, as where those that are gone are still passed
// over, does not make a transaction of each row: the audit would not get smaller.
func TestRetentionThatIsSlowWithAnyPageKeepsALargeOne(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	for _, sql := range []string{
		`insert into processor.audit (at, who, action, target) select now() - interval '800 days', 'test', 'old', 'test' from generate_series(1, 150)`,
		`create function public.slow() returns trigger language plpgsql as 'begin perform pg_sleep(2.1); return null; end'`,
		`create trigger slow before delete on processor.audit for each statement execute function public.slow()`,
	} {
		_, err := pool.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	retention := store.NewRetention(pool, store.Scope{Stream: "telemetry", Group: "processor"}, "one", time.Hour, 10*time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := NewRetention(retention, 700*24*time.Hour, discard(), prometheus.NewRegistry()).Do(ctx, 1)
	var old, told int
	require.NoError(t, pool.QueryRow(t.Context(), "select count(*) filter (where action = 'old'), count(*) filter (where action = 'retention') from processor.audit").Scan(&old, &told))
	require.Equal(t, []int{0, 2}, []int{old, told}, "old, and transactions: %v", err)
	require.NoError(t, err)
}

// endless is a table of which there is always more.
type endless struct{ calls int }

func (*endless) Tables() []string { return []string{"audit"} }

func (e *endless) Expire(ctx context.Context, _ string, _ time.Duration) (removed int64, more bool, err error) {
	e.calls++
	select {
	case <-ctx.Done():
	case <-time.After(time.Second):
	}
	return 100, true, nil
}

func TestAPassOfRetentionEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		e := &endless{}
		require.NoError(t, NewRetention(e, 700*24*time.Hour, discard(), prometheus.NewRegistry()).Do(ctx, 1))
		require.Equal(t, 5*60, e.calls)
	})
}

// migrated returns a pool of a new database with the schema.
func migrated(t *testing.T) *pgxpool.Pool {
	t.Helper()
	url := testenv.Postgres(t, testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
	pool, err := store.Open(t.Context(), store.Config{
		URL: url, Member: "one", MaxConns: 4, ConnectTimeout: 5 * time.Second, StatementTimeout: time.Second, LockTimeout: 100 * time.Millisecond,
	})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// locked holds what a statement locks until what it returns is called.
func locked(t *testing.T, pool *pgxpool.Pool, sql string) (unlock func()) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
	_, err = tx.Exec(t.Context(), "set local idle_in_transaction_session_timeout = 0")
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), sql)
	require.NoError(t, err)
	return func() { require.NoError(t, tx.Rollback(t.Context())) }
}

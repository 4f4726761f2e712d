package tasks_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/coordination/tasks"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/testenv"
)

func TestExternalRequestsAreRecordedOnceAndBadOnesBlockNothing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	corner := testenv.Redis(t)
	client := corner.Client()
	url := testenv.Postgres(t, testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
	pool, err := pgxpool.New(ctx, url)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	scope := store.Scope{Stream: corner.Stream, Group: corner.Group}
	leader := store.NewLeader(pool, scope, "one", time.Minute)
	term, err := leader.BeginTerm(ctx)
	require.NoError(t, err)
	key := corner.Key("recompute:requests")
	windows := stream.NewRecomputes(client, key, corner.Group)
	ledger := store.NewLedger(pool, scope, "one", time.Minute)
	task := tasks.NewRecompute(16, windows, leader, ledger, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	count := func(sql string) (n int) {
		require.NoError(t, pool.QueryRow(ctx, sql).Scan(&n))
		return n
	}
	require.NoError(t, task.Do(ctx, term), "without a stream there is nothing to do")
	add := func(values ...string) {
		require.NoError(t, client.XAdd(ctx, &redis.XAddArgs{Stream: key, Values: values}).Err())
	}
	add("device_id", "1", "from", "2026-01-01T00:00:00Z", "to", "2026-01-02T00:00:00Z", "reason", "marked as faulty")
	add("device_id", "1", "from", "2026-01-02T00:00:00Z", "to", "2026-01-01T00:00:00Z")
	add("device_id", "1", "from", "2006-01-02T00:00:00Z", "to", "2026-01-01T00:00:00Z")
	add("from", "2026-01-01T00:00:00Z", "to", "2026-01-02T00:00:00Z")
	add("device_id", "a\x00b", "from", "1", "to", "2")
	add("device_id", "2", "from", "yesterday", "to", "2")
	add("device_id", "2", "from", "1767225600000", "to", "1767225600000", "reason", "a\x00b")
	require.NoError(t, task.Do(ctx, term))
	require.Equal(t, 2, count("select count(*) from processor.requests where kind = 'recompute' and state = 'waiting'"))
	require.Equal(t, 1, count("select count(*) from processor.requests where from_ts = '2026-01-01T00:00:00Z' and device_id = '2' and to_ts = from_ts"))
	require.Equal(t, 5, count("select count(*) from processor.incidents where kind = 'recompute_rejected'"))
	require.Zero(t, count("select count(*) from processor.incidents where closed_at is null"))
	require.Equal(t, 2, count("select count(*) from processor.audit"))

	// Reading again from the start, as after a lost group, records nothing twice.
	require.NoError(t, client.XGroupDestroy(ctx, key, corner.Group).Err())
	require.NoError(t, task.Do(ctx, term))
	require.Equal(t, 2, count("select count(*) from processor.requests"))

	// Requests that a leader read but did not record are read by the next leader.
	add("device_id", "3", "from", "1", "to", "2")
	entries, err := windows.Read(ctx, 10)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	next := store.NewLeader(pool, scope, "two", time.Minute)
	newer, err := next.BeginTerm(ctx)
	require.NoError(t, err)
	require.Error(t, task.Do(ctx, term), "an earlier term is refused")
	require.Equal(t, 2, count("select count(*) from processor.requests"))
	successor := tasks.NewRecompute(16, windows, next, ledger, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, successor.Do(ctx, newer))
	require.Equal(t, 3, count("select count(*) from processor.requests"))

	// A recreated stream assigns an ID again: both requests are recorded.
	first, err := client.XRangeN(ctx, key, "-", "+", 1).Result()
	require.NoError(t, err)
	require.NoError(t, client.Del(ctx, key).Err())
	for _, id := range []string{first[0].ID, "*"} {
		require.NoError(t, client.XAdd(ctx, &redis.XAddArgs{Stream: key, ID: id, Values: []string{"device_id", "4", "from", "1", "to", "2"}}).Err())
		require.NoError(t, successor.Do(ctx, newer))
	}
	require.Equal(t, 5, count("select count(*) from processor.requests"))
}

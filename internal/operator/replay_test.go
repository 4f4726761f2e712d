package operator_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/testenv"
)

func TestP3AReplayEndsWhereTheNumberOfShardsChanges(t *testing.T) {
	corner := testenv.Redis(t)
	database := testenv.Postgres(t, testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
	cfg, err := config.LoadServers([]string{
		"REDIS_URL=" + corner.URL, "POSTGRES_URL=" + database, "REDIS_TELEMETRY_STREAM=" + corner.Stream, "REDIS_CONSUMER_GROUP=" + corner.Group,
	})
	require.NoError(t, err)
	pool, err := store.Open(t.Context(), store.Config{URL: database, Member: "test", MaxConns: 2, ConnectTimeout: time.Minute, StatementTimeout: time.Minute, LockTimeout: time.Minute})
	require.NoError(t, err)
	defer pool.Close()
	scope := store.Scope{Stream: corner.Stream, Group: corner.Group}
	require.NoError(t, store.Pin(t.Context(), pool, scope, "test", time.Minute, []store.Setting{{Name: "SHARDS", Value: "16"}}))
	require.NoError(t, store.NewShards(pool, scope, time.Minute).Ensure(t.Context(), 16))
	client := corner.Client()
	pipe := client.Pipeline()
	for i := range 1500 { // more than a page
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: corner.Stream, Values: []string{"device_id", fmt.Sprint("device-", i)}})
	}
	pipe.XGroupCreate(t.Context(), corner.Stream, corner.Group, "$")
	_, err = pipe.Exec(t.Context())
	require.NoError(t, err)
	fleet, err := operator.Open(t.Context(), cfg, "test", "test")
	require.NoError(t, err)
	defer fleet.Close()

	pages := 0
	_, err = fleet.ReplayEntries(t.Context(), operator.Replay{Since: time.Now().Add(-time.Hour), Progress: func(done int, _ time.Time) {
		pages++
		require.Equal(t, 1000, done)
		pending, err := client.XPendingExt(t.Context(), &redis.XPendingExtArgs{Stream: corner.Stream, Group: corner.Group, Start: "-", End: "+", Count: 2000}).Result()
		require.NoError(t, err)
		require.Len(t, pending, done)
		ids := make([]string, done)
		for i, p := range pending {
			ids[i] = p.ID
		}
		require.NoError(t, client.XAck(t.Context(), corner.Stream, corner.Group, ids...).Err())
		resized, err := fleet.Resize(t.Context(), 64, nil)
		require.NoError(t, err)
		require.True(t, resized.Changed)
	}})
	require.ErrorContains(t, err, "the number of shards was changed from 16 to 64: run it again")
	require.Equal(t, 1, pages)
	left, err := client.XPending(t.Context(), corner.Stream, corner.Group).Result()
	require.NoError(t, err)
	require.Zero(t, left.Count)
}

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// P7, P8: an instance that cannot work yet, since it has no fences, takes no shard from
// those that can, and does not say that it is ready.
func TestAnInstanceWithoutFencesTakesNoShard(t *testing.T) {
	dep := servicetest.New(t)
	first := dep.Run("SHARDS=8", "INSTANCE_ID=first")
	first.AwaitReady()
	conn, err := pgx.Connect(t.Context(), dep.PostgresURL)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	held, err := pgx.Connect(t.Context(), dep.PostgresURL)
	require.NoError(t, err)
	defer func() { _ = held.Close(context.WithoutCancel(t.Context())) }()
	_, err = held.Exec(t.Context(), "begin; lock table processor.geofences in access exclusive mode")
	require.NoError(t, err)
	second := dep.Run("SHARDS=8", "INSTANCE_ID=second", "MIGRATE=off") // which reads the catalogue, and waits there
	testenv.Wait(t, 30*time.Second, func() error {
		if !strings.Contains(second.Output(), "load fences") {
			return errors.New("the second instance does not wait for fences")
		}
		return nil
	})
	opts, err := redis.ParseURL(dep.RedisURL)
	require.NoError(t, err)
	client := redis.NewClient(opts)
	defer func() { _ = client.Close() }()
	var entries [][]string
	for d := range 40 {
		entries = append(entries, servicetest.MovingRecord(fleet.DeviceID(d), 1))
	}
	_, err = fleet.NewPublisher(client, dep.Stream, 0).Publish(t.Context(), entries)
	require.NoError(t, err)
	count := func(sql string) (n int) {
		require.NoError(t, conn.QueryRow(t.Context(), sql).Scan(&n))
		return n
	}
	testenv.Wait(t, 20*time.Second, func() error {
		if n := count("select count(*) from positions"); n != len(entries) {
			return fmt.Errorf("%d of %d are stored", n, len(entries))
		}
		return nil
	})
	require.Equal(t, 8, count("select count(*) from processor.shards where owner like 'first.%'"))
	require.NotContains(t, second.Output(), "acquired shards")
	_, err = held.Exec(t.Context(), "rollback")
	require.NoError(t, err)
	second.AwaitReady()
	testenv.Wait(t, 20*time.Second, func() error {
		if n := count("select count(*) from processor.shards where owner like 'second.%'"); n != 4 {
			return fmt.Errorf("it owns %d shards", n)
		}
		return nil
	})
}

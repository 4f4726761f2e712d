package devenv_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
)

func TestAClusterLosesAMasterMovesASlotAndRestarts(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	cluster := start(t, devenv.Options{Cluster: true}).Cluster
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var addrs []string
	for _, n := range cluster.Nodes() {
		addrs = append(addrs, n.Addr())
	}
	require.Len(t, addrs, 6)
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, ClusterStateReloadInterval: time.Second})
	t.Cleanup(func() { _ = client.Close() })

	keys, used := []string{"telemetry:0", "telemetry:1", "telemetry:2"}, map[*devenv.Server]bool{}
	for _, key := range keys {
		require.NoError(t, client.Set(ctx, key, "value of "+key, 0).Err())
		require.NoError(t, client.Set(ctx, "{"+key+"}:other", key, 0).Err())
		_, master, err := cluster.Master(ctx, key)
		require.NoError(t, err)
		used[master] = true
	}
	require.Greater(t, len(used), 1, "keys are spread over nodes")
	holds := func() {
		t.Helper()
		for _, key := range keys {
			require.Eventually(t, func() bool {
				return client.Get(ctx, key).Val() == "value of "+key && client.Get(ctx, "{"+key+"}:other").Val() == key
			}, 30*time.Second, 50*time.Millisecond, key)
		}
	}

	slot, from, err := cluster.Master(ctx, keys[0])
	require.NoError(t, err)
	_, to, err := cluster.Master(ctx, keys[1])
	require.NoError(t, err)
	require.NotEqual(t, from, to)
	require.NoError(t, cluster.Move(ctx, keys[0], to))
	holds()
	moved, now, err := cluster.Master(ctx, keys[0])
	require.NoError(t, err)
	require.Equal(t, slot, moved)
	require.Equal(t, to, now)
	require.NoError(t, cluster.Await(ctx))

	require.NoError(t, to.Kill())
	holds()
	_, now, err = cluster.Master(ctx, keys[0])
	require.NoError(t, err)
	require.NotEqual(t, to, now, "its replica has taken over")
	require.NoError(t, cluster.Start(ctx))

	require.NoError(t, cluster.Stop(ctx))
	for _, n := range cluster.Nodes() {
		require.Zero(t, n.PID(), fmt.Sprint("node ", n.Addr()))
	}
	require.NoError(t, cluster.Start(ctx))
	holds()
}

package testenv

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
)

// Promise 2.
func TestNamedRedisIsRefusedWhenItHoldsForeignKeys(t *testing.T) {
	t.Parallel()
	env := OwnServers(t, devenv.Options{Redis: true})
	opts, err := redis.ParseURL(env.Redis.URL())
	require.NoError(t, err)
	client := redis.NewClient(opts)
	t.Cleanup(func() { _ = client.Close() })
	ctx := t.Context()

	require.NoError(t, client.Set(ctx, "foreign", 1, 0).Err())
	require.ErrorContains(t, claimRedis(ctx, env.Redis.URL()), "holds 1 keys")
	require.NoError(t, client.Del(ctx, "foreign").Err())
	require.NoError(t, claimRedis(ctx, env.Redis.URL()))
	require.NoError(t, client.Set(ctx, "of another test process", 1, 0).Err())
	require.NoError(t, claimRedis(ctx, env.Redis.URL()))
}

package devenv_test

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
)

func TestRedisTargetInUseIsRefused(t *testing.T) {
	t.Parallel()
	env := start(t, devenv.Options{Redis: true})
	ctx, url, client := t.Context(), env.Redis.URL(), redisClient(t, env.Redis)
	require.NoError(t, devenv.RequireEmptyRedis(ctx, "DEMO_REDIS_URL", url, "telemetry:x"))

	require.NoError(t, client.Set(ctx, "foreign", 1, 0).Err())
	err := devenv.RequireEmptyRedis(ctx, "DEMO_REDIS_URL", url, "telemetry:x")
	require.ErrorContains(t, err, "DEMO_REDIS_URL")
	require.ErrorContains(t, err, "holds 1 keys")

	require.NoError(t, client.XAdd(ctx, &redis.XAddArgs{Stream: "telemetry:x", Values: []string{"a", "b"}}).Err())
	require.ErrorContains(t, devenv.RequireEmptyRedis(ctx, "DEMO_REDIS_URL", url, "telemetry:x"), "has the stream telemetry:x")
}

func TestPostgresTargetInUseIsRefused(t *testing.T) {
	t.Parallel()
	env := start(t, devenv.Options{Postgres: true})
	check := func() error {
		return devenv.RequireEmptyPostgres(t.Context(), "DEMO_POSTGRES_URL", env.Postgres.URL())
	}
	require.NoError(t, check())
	exec(t, env.Postgres, "create table public.positions (n int)")
	require.NoError(t, check(), "an empty table of the platform's is none of ours")
	exec(t, env.Postgres, "insert into public.positions values (1)")
	require.ErrorContains(t, check(), "positions stored: true")
	exec(t, env.Postgres, "truncate public.positions; create schema processor")
	require.ErrorContains(t, check(), "schema processor: true")
}

func TestTargetErrorsNameTheVariableNotThePassword(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	_, proxied := proxyTo(t, "127.0.0.1:1").URL("DEMO_://u:" + secret + "@%zz")
	require.Error(t, proxied)
	require.NotContains(t, proxied.Error(), secret)
	for _, err := range []error{
		devenv.RequireEmptyRedis(t.Context(), "DEMO_REDIS_URL", "redis://:"+secret+"@%zz", ""),
		devenv.RequireEmptyPostgres(t.Context(), "DEMO_POSTGRES_URL", "postgres://u:"+secret+"@127.0.0.1:port/db"),
	} {
		require.ErrorContains(t, err, "DEMO_")
		require.NotContains(t, err.Error(), secret)
	}
}

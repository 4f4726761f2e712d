package devenv_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
)

func TestMain(m *testing.M) {
	if os.Getenv(victimVariable) != "" {
		victim()
		return
	}
	goleak.VerifyTestMain(m)
}

// start skips where servers are not wanted or not installed, except in CI.
func start(t *testing.T, opts devenv.Options) *devenv.Env {
	t.Helper()
	if testing.Short() {
		t.Skip("starts servers")
	}
	env, err := devenv.Start(t.Context(), opts)
	if missing := (*devenv.MissingError)(nil); errors.As(err, &missing) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, env.Close()) })
	return env
}

func redisClient(t *testing.T, s *devenv.Server) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(s.URL())
	require.NoError(t, err)
	opts.MaxRetries, opts.DialerRetries, opts.ContextTimeoutEnabled = -1, 1, true
	client := redis.NewClient(opts)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func query(t *testing.T, s *devenv.Server, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL())
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(t.Context()))
	var text string
	require.NoError(t, conn.QueryRow(t.Context(), sql).Scan(&text))
	return text
}

func exec(t *testing.T, s *devenv.Server, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL())
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(t.Context()))
	_, err = conn.Exec(t.Context(), sql)
	require.NoError(t, err)
}

// Promise 2.
func TestServersAreDurableAndBounded(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	env := start(t, devenv.Options{Redis: true, Postgres: true})
	client := redisClient(t, env.Redis)
	for name, want := range map[string]string{
		"appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction", "bind": "127.0.0.1",
	} {
		got, err := client.ConfigGet(t.Context(), name).Result()
		require.NoError(t, err)
		require.Equal(t, map[string]string{name: want}, got)
	}
	for name, want := range map[string]string{
		"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on",
		"max_connections": "200", "track_commit_timestamp": "on", "listen_addresses": "127.0.0.1",
		"server_encoding": "UTF8",
	} {
		require.Equal(t, want, query(t, env.Postgres, "select current_setting('"+name+"')"), name)
	}
}

// Promise 5.
func TestRedisKeepsPortAndDataUntilItIsEmptied(t *testing.T) {
	t.Parallel()
	env := start(t, devenv.Options{Redis: true})
	ctx, client, port := t.Context(), redisClient(t, env.Redis), env.Redis.Port()
	require.NoError(t, client.Set(ctx, "k", "v", 0).Err())

	for _, again := range []func() error{
		func() error { return env.Redis.Restart(ctx) },
		func() error { return errors.Join(env.Redis.Kill(), env.Redis.Start(ctx)) },
		func() error { return errors.Join(env.Redis.Pause(), env.Redis.Stop(ctx), env.Redis.Start(ctx)) },
	} {
		before := env.Redis.PID()
		require.NoError(t, again())
		require.NotEqual(t, before, env.Redis.PID())
		require.Equal(t, port, env.Redis.Port())
		require.Equal(t, "v", client.Get(ctx, "k").Val())
	}

	require.NoError(t, env.Redis.RestartEmpty(ctx))
	require.Equal(t, port, env.Redis.Port())
	require.Zero(t, client.DBSize(ctx).Val())
	require.Contains(t, env.Redis.LogTail(), "Ready to accept connections")
}

func TestStoppedServerRefusesAndPausedServerIsSilent(t *testing.T) {
	t.Parallel()
	env := start(t, devenv.Options{Redis: true})
	client := redisClient(t, env.Redis)

	require.NoError(t, env.Redis.Pause())
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var silent net.Error
	require.ErrorAs(t, client.Ping(ctx).Err(), &silent)
	require.True(t, silent.Timeout(), "%v", silent)
	require.NoError(t, env.Redis.Resume())
	require.NoError(t, client.Ping(t.Context()).Err())

	require.NoError(t, env.Redis.Stop(t.Context()))
	require.Zero(t, env.Redis.PID())
	require.ErrorContains(t, client.Ping(t.Context()).Err(), "connection refused")
	require.ErrorContains(t, env.Redis.Pause(), "does not run")
}

// Promise 3: a killed Postgres leaves a segment that no folder holds.
func TestSharedMemoryOfAKilledPostgresGoes(t *testing.T) {
	t.Parallel()
	segments, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		t.Skip("this system does not list its shared memory:", err)
	}
	env := start(t, devenv.Options{Postgres: true})
	file, err := os.ReadFile(filepath.Join(env.Postgres.Dir(), "data", "postmaster.pid"))
	require.NoError(t, err)
	id := strings.Fields(strings.Split(string(file), "\n")[6])[1]
	listed := regexp.MustCompile(`(?m)^ *-?\d+ +` + id + ` `)
	require.NotRegexp(t, listed, string(segments))
	require.NoError(t, env.Postgres.Kill())
	segments, err = os.ReadFile("/proc/sysvipc/shm")
	require.NoError(t, err)
	require.Regexp(t, listed, string(segments))
	require.NoError(t, env.Close())
	segments, err = os.ReadFile("/proc/sysvipc/shm")
	require.NoError(t, err)
	require.NotRegexp(t, listed, string(segments))
}

// Promise 5.
func TestPostgresKeepsPortAndDataUntilItIsEmptied(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	env := start(t, devenv.Options{Postgres: true})
	ctx, port := t.Context(), env.Postgres.Port()
	exec(t, env.Postgres, "create table kept as select 'v' as v")

	require.NoError(t, env.Postgres.Restart(ctx))
	require.Equal(t, "v", query(t, env.Postgres, "select v from kept"))
	require.NoError(t, env.Postgres.Kill())
	require.NoError(t, env.Postgres.Start(ctx))
	require.Equal(t, "v", query(t, env.Postgres, "select v from kept"))
	require.Equal(t, port, env.Postgres.Port())

	require.NoError(t, env.Postgres.RestartEmpty(ctx))
	require.Equal(t, port, env.Postgres.Port())
	require.Equal(t, "true", query(t, env.Postgres, "select (to_regclass('kept') is null)::text"))
}

func TestPausedPostgresFreezesItsSessions(t *testing.T) {
	t.Parallel()
	env := start(t, devenv.Options{Postgres: true})
	conn, err := pgx.Connect(t.Context(), env.Postgres.URL())
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(t.Context()))

	require.NoError(t, env.Postgres.Pause())
	answered := make(chan error, 1)
	go func() { answered <- conn.Ping(t.Context()) }()
	select {
	case err := <-answered:
		require.Fail(t, "a paused session answered", "error: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	require.NoError(t, env.Postgres.Resume())
	require.NoError(t, <-answered)
}

func TestWrongArgumentsAreReportedWithTheServersOwnWords(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	parent := traversable(t)
	_, err := devenv.Start(t.Context(), devenv.Options{Dir: parent, Redis: true, RedisArgs: []string{"--no-such-setting", "1"}})
	if missing := (*devenv.MissingError)(nil); errors.As(err, &missing) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	require.ErrorContains(t, err, "no-such-setting")
	left, err := os.ReadDir(parent)
	require.NoError(t, err)
	require.Empty(t, left, "a start that did not succeed leaves nothing")
}

func TestMissingProgramNamesPackageAndRemedy(t *testing.T) {
	t.Parallel()
	err := &devenv.MissingError{Program: "redis-server", Package: "redis-server"}
	require.EqualError(t, err,
		"redis-server is not installed: run `make setup`, or install the package redis-server (apt-get install redis-server)")
}

// traversable makes a folder that the servers' user may enter, which
// t.TempDir's are not.
func traversable(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "devenv-test-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

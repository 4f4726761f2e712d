package e2e_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/modules"
)

// SIGQUIT has the runtime end the process as it does after a fatal error:
// nothing of ours runs.
func TestACrashLeavesADumpThatNamesWhatWasInFlightAndNoSecrets(t *testing.T) {
	dep := servicetest.New(t)
	dir := filepath.Join(t.TempDir(), "dumps")
	secret := strings.Replace(dep.PostgresURL, "postgres@", "postgres:s3cr3t@", 1)
	require.NotEqual(t, dep.PostgresURL, secret)
	p := dep.Run("PANIC_DUMP_DIR="+dir, "POSTGRES_URL="+secret, "INSTANCE_ID=victim", "SHARDS=4")
	p.AwaitReady()
	conn, err := pgx.Connect(t.Context(), dep.PostgresURL)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), "begin; lock table positions in share mode")
	require.NoError(t, err)
	entry := dep.Publish(servicetest.Record("device-1", 1))[0].String()
	testenv.Wait(t, 10*time.Second, func() error {
		files, _ := filepath.Glob(filepath.Join(dir, "running-*"))
		for _, f := range files {
			if text, err := os.ReadFile(f); err == nil && strings.Contains(string(text), entry) && strings.Contains(string(text), `"device":"device-1"`) {
				return nil
			}
		}
		return fmt.Errorf("no snapshot names %s and its device in %v", entry, files)
	})
	p.Signal(syscall.SIGQUIT)
	require.Equal(t, 2, p.Exit(40*time.Second))
	_, err = conn.Exec(t.Context(), "rollback")
	require.NoError(t, err)

	next := dep.Run("PANIC_DUMP_DIR="+dir, "SHARDS=4")
	next.Await("earlier process crashed; dump kept")
	testenv.Wait(t, 30*time.Second, func() error {
		var n int
		if err := conn.QueryRow(t.Context(), "select count(*) from positions").Scan(&n); err != nil || n != 1 {
			return fmt.Errorf("want 1 row, have %d, %w", n, err)
		}
		return nil
	})
	dumps, err := filepath.Glob(filepath.Join(dir, "panic-*-victim-*.txt"))
	require.NoError(t, err)
	require.Len(t, dumps, 1)
	dump, err := os.ReadFile(dumps[0])
	require.NoError(t, err)
	text := string(dump)
	for _, part := range []string{
		"instance victim\n", "SHARDS=4\n", "postgres:***@", entry, `"member":"victim.`, `"device":"device-1"`,
		"pipeline.(*worker).loop", // stacks of all
	} {
		require.Contains(t, text, part)
	}
	require.NotContains(t, text, "s3cr3t")
	require.NotContains(t, text, "latitude", "coordinates are omitted unless PANIC_DUMP_POSITIONS=true")
	require.Zero(t, next.Terminate())
	left, err := filepath.Glob(filepath.Join(dir, "running-*"))
	require.NoError(t, err)
	require.Empty(t, left, "a clean end leaves nothing")
}

func TestStartingAndStoppingOverAndOverLeavesNothingBehind(t *testing.T) {
	dep := servicetest.New(t)
	cycles := 2
	if testenv.IsFull() {
		cycles = 200
	}
	opts, err := redis.ParseURL(dep.RedisURL)
	require.NoError(t, err)
	client := redis.NewClient(opts)
	defer client.Close()
	conn, err := pgx.Connect(t.Context(), dep.PostgresURL)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	keys := func() []string {
		found := client.Keys(t.Context(), "*"+dep.Stream+"*").Val()
		slices.Sort(found)
		return found
	}
	names := stream.Names{Stream: dep.Stream, Group: dep.Group}
	fleets := append(names.All(), dep.Stream)
	var goroutines [2]int // after the first cycle, after the last
	for i := range cycles {
		cfg, err := config.Load(dep.Environ("SHARDS=8", "WORKERS=2"))
		require.NoError(t, err)
		service, err := modules.New(cfg, modules.NewLogger(cfg.Log, cfg.Instance.ID, io.Discard), modules.Build{Version: "test"})
		require.NoError(t, err)
		require.NoError(t, service.Start(t.Context()))
		dep.Publish(servicetest.Record("device-1", int64(i)))
		testenv.Wait(t, 20*time.Second, func() error {
			var n int
			if err := conn.QueryRow(t.Context(), "select count(*) from positions").Scan(&n); err != nil || n != i+1 {
				return fmt.Errorf("want %d rows, have %d, %w", i+1, n, err)
			}
			return nil
		})
		require.NoError(t, service.Stop())
		testenv.Wait(t, 30*time.Second, func() error { // the server's side ends a moment later
			var sessions int
			err := conn.QueryRow(t.Context(), `select count(*) from pg_stat_activity
				where datname = current_database() and application_name like 'processor/%'`).Scan(&sessions)
			if err != nil || sessions > 0 {
				return fmt.Errorf("cycle %d: %d sessions stay, %w", i, sessions, err)
			}
			return nil
		})
		testenv.Wait(t, 30*time.Second, func() error {
			list, err := client.ClientList(t.Context()).Result()
			if err == nil && strings.Contains(list, "name=processor/"+cfg.Instance.ID) {
				err = fmt.Errorf("cycle %d: a connection stays", i)
			}
			return err
		})
		consumers, err := client.XInfoConsumers(t.Context(), dep.Stream, dep.Group).Result()
		require.NoError(t, err)
		for _, c := range consumers {
			require.True(t, strings.HasPrefix(c.Name, "shard-"), c.Name)
		}
		goroutines[1] = runtime.NumGoroutine()
		if i == 0 {
			goroutines[0] = goroutines[1]
		}
		stay := slices.DeleteFunc(keys(), func(key string) bool { // the last heartbeat, for MEMBER_TTL
			return strings.HasPrefix(key, names.Members()) && client.PTTL(t.Context(), key).Val() > 0
		})
		require.Subset(t, fleets, stay, "no key of an instance stays")
	}
	t.Logf("%d cycles: %d goroutines after the first, %d after the last, other tests' included; no session, connection, foreign consumer or key of an instance stays; keys %v",
		cycles, goroutines[0], goroutines[1], keys())
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	require.NotContains(t, string(stacks), "modules.(*supervisor)", "other leaks are found by goleak, at the end of the package")
}

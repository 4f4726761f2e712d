package e2e_test

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// P1, P2, P6: an append-only file that ends within a command costs what came last, and a
// damaged one the time until it is repaired. The service waits, says that Redis went on
// without a part, and goes on.
func TestTheAppendOnlyFileIsTornOrDamaged(t *testing.T) {
	testenv.Slow(t)
	for name, damaged := range map[string]bool{"torn": false, "damaged": true} {
		t.Run(name, func(t *testing.T) {
			check, err := exec.LookPath("redis-check-aof")
			if damaged && err != nil {
				t.Skip("redis-check-aof is not here")
			}
			env := testenv.OwnServers(t, devenv.Options{Redis: true, RedisArgs: []string{"--appendonly", "yes", "--aof-use-rdb-preamble", "no"}})
			dep := &servicetest.Deployment{T: t, RedisURL: env.Redis.URL(), PostgresURL: testenv.Postgres(t, servicetest.Migrated()), Stream: "telemetry:teltonika", Group: "processor"}
			p := dep.Run(servicetest.FourShards)
			p.AwaitReady()
			dep.Publish(servicetest.RecordsOfMany(0, 200)...)
			dep.AwaitStored(200, 40*time.Second)
			dep.AwaitDone(20 * time.Second)
			_, before := testenv.AppendOnlyFile(t, env.Redis)
			dep.Publish(servicetest.RecordsOfMany(200, 100)...)
			_, after := testenv.AppendOnlyFile(t, env.Redis)
			dep.AwaitStored(300, 40*time.Second)
			dep.AwaitDone(20 * time.Second)

			require.NoError(t, env.Redis.Kill())
			file, _ := testenv.AppendOnlyFile(t, env.Redis)
			content, err := os.ReadFile(file)
			require.NoError(t, err)
			cut := (before + after) / 2
			for content[cut-1] == '\n' { // not between two commands
				cut++
			}
			if content = content[:cut]; damaged {
				content = append(content[:bytes.LastIndex(content, []byte("\r\n*"))+2], "no command of Redis\r\n"...)
			}
			require.NoError(t, os.WriteFile(file, content, 0o600))
			if damaged {
				require.Error(t, env.Redis.Start(t.Context()))
				repair := exec.CommandContext(t.Context(), check, "--fix", file)
				repair.Stdin = strings.NewReader("y\n")
				out, err := repair.CombinedOutput()
				require.NoError(t, err, "%s", out)
			}
			require.NoError(t, env.Redis.Start(t.Context()))
			kept, err := dep.Client().XLen(t.Context(), dep.Stream).Result()
			require.NoError(t, err)
			require.Greater(t, kept, int64(200))
			require.Less(t, kept, int64(300))

			dep.Publish(servicetest.RecordsOfMany(300, 100)...) // before anybody has looked for what was read last
			dep.AwaitStored(400, 40*time.Second)
			dep.AwaitCount(1, "select count(*) from processor.losses where cause = 'failover' and entries is null")
			dep.AwaitCount(1, "select count(*) from processor.incidents where kind = '"+protocol.RedisFailedOver+"' and closed_at is not null")
			require.Nil(t, awaitNoBacklog(dep).Lost, "unknown, not 0")
			require.Equal(t, 1, strings.Count(p.Output(), `"msg":"starting to process"`), "it never restarted")
			require.Zero(t, p.Terminate())
		})
	}
}

// Caches of other programs that follow the service's keys cost it nothing, also where the
// server remembers fewer keys than there are.
func TestOtherProgramsTrackTheKeysOfTheService(t *testing.T) {
	env := testenv.OwnServers(t, devenv.Options{Redis: true, RedisArgs: []string{"--tracking-table-max-keys", "10"}})
	dep := &servicetest.Deployment{T: t, RedisURL: env.Redis.URL(), PostgresURL: testenv.Postgres(t, servicetest.Migrated()), Stream: "telemetry:teltonika", Group: "processor"}
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	for _, mode := range [][]any{{"client", "tracking", "on", "bcast"}, {"client", "tracking", "on"}} {
		options, err := redis.ParseURL(dep.RedisURL)
		require.NoError(t, err)
		client := redis.NewClient(options)
		t.Cleanup(func() { _ = client.Close() })
		cache := client.Conn()
		t.Cleanup(func() { _ = cache.Close() })
		require.NoError(t, cache.Do(t.Context(), mode...).Err())
		keys, err := cache.Keys(t.Context(), "*").Result()
		require.NoError(t, err)
		require.NotEmpty(t, keys)
		for _, key := range keys {
			require.NoError(t, cache.Do(t.Context(), "object", "encoding", key).Err())
			_ = cache.HGetAll(t.Context(), key).Err() // of whatever kind it is
		}
	}
	dep.Publish(servicetest.RecordsOfMany(0, 2000)...)
	dep.AwaitStored(2000, 40*time.Second)
	dep.AwaitDone(20 * time.Second)
	require.NotContains(t, p.Output(), `"level":"ERROR"`)
	require.Zero(t, p.Terminate())
}

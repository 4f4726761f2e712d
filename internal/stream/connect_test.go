package stream_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

func redisOnly(args ...string) devenv.Options { return devenv.Options{Redis: true, RedisArgs: args} }

func TestAURLThatCannotBeReadIsRefusedWithoutItsPassword(t *testing.T) {
	t.Parallel()
	for _, give := range []string{
		"redis://u:s3cr3t%@host", "postgres://u:s3cr3t@host", "redis://u:s3cr3t@host/x", "redis://u:s3cr3t@host?nonsense=1", "host:6379", "",
	} {
		_, err := stream.Connect(stream.Config{URL: give})
		require.Error(t, err, give)
		require.ErrorContains(t, err, "REDIS_URL")
		require.NotContains(t, err.Error(), "s3cr3t")
	}
}

func TestEveryFormOfAURLReachesItsServer(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "") // a socket's path is short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o777))
	socket := filepath.Join(dir, "s")
	env := testenv.OwnServers(t, redisOnly("--unixsocket", socket, "--unixsocketperm", "777"))
	addr := env.Redis.Addr()
	admin := connect(t, "redis://"+addr)
	require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "worker", "on", ">pw", "~*", "&*", "+@all").Err())
	_, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	sentinel := startSentinel(t, port)
	for _, url := range []string{
		"redis://" + addr, "redis://worker:pw@" + addr + "/0?protocol=2",
		"unix://" + socket, "unix://worker:pw@" + socket + "?db=0",
		"redis://" + sentinel + "?master_name=mymaster", "redis://worker:pw@" + sentinel + "/0?master_name=mymaster&addr=127.0.0.1:1",
	} {
		client := connect(t, url)
		name, err := client.ClientGetName(t.Context()).Result()
		require.NoError(t, err, url)
		require.Equal(t, "processor/test", name)
		who, err := client.Do(t.Context(), "acl", "whoami").Text()
		require.NoError(t, err)
		require.Equal(t, strings.Contains(url, "worker"), who == "worker", url)
	}
}

func connect(t *testing.T, url string) redis.UniversalClient {
	t.Helper()
	client, err := stream.Connect(stream.Config{URL: url, Timeout: waitFor, Name: "processor/test"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}

// startSentinel watches the Redis on a port, and is gone when the test ends.
func startSentinel(t *testing.T, port string) string {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("needs redis-server on the PATH to run a Sentinel")
	}
	own, err := devenv.FreePort()
	require.NoError(t, err)
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil, "bind 127.0.0.1\nport %d\nsentinel monitor mymaster 127.0.0.1 %s 1\n", own, port), 0o600))
	cmd := exec.CommandContext(t.Context(), program, conf, "--sentinel")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(own))
	testenv.Wait(t, waitFor, func() error {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	return addr
}

func TestAnotherServerIsNoticedBeforeTheFirstAnswerOfIt(t *testing.T) {
	t.Parallel()
	env := testenv.OwnServers(t, redisOnly())
	cfg := stream.Config{URL: env.Redis.URL(), Stream: "s", Group: "g", Shards: shards, Timeout: waitFor}
	client, err := stream.Connect(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	group, err := stream.NewGroup(client, cfg)
	require.NoError(t, err)
	var changes atomic.Int64
	group.OnServerChange(func() { changes.Add(1) })
	var readers errgroup.Group // more connections to the same server are no change
	for range 5 {
		readers.Go(func() error {
			_, err := group.ReadNew(t.Context(), telemetry.EntryID{}, 1, 100*time.Millisecond)
			return err
		})
	}
	require.NoError(t, readers.Wait())
	require.Greater(t, client.PoolStats().TotalConns, uint32(1))
	require.Zero(t, changes.Load())
	require.NoError(t, env.Redis.Restart(t.Context()))
	testenv.Wait(t, waitFor, func() error {
		_, err := group.ReadNew(t.Context(), telemetry.EntryID{}, 1, time.Millisecond)
		return err
	})
	require.Equal(t, int64(1), changes.Load())
}

// startCluster starts a Redis Cluster of n nodes and returns their addresses.
func startCluster(t *testing.T, n int) []string {
	t.Helper()
	var addrs []string
	var clients []*redis.Client
	for range n {
		bus, err := devenv.FreePort()
		require.NoError(t, err)
		env := testenv.OwnServers(t, redisOnly("--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(bus)))
		client := redis.NewClient(&redis.Options{Addr: env.Redis.Addr()})
		t.Cleanup(func() { require.NoError(t, client.Close()) })
		i := len(addrs)
		require.NoError(t, client.ClusterAddSlotsRange(t.Context(), i*16384/n, (i+1)*16384/n-1).Err())
		if i > 0 {
			require.NoError(t, clients[0].Do(t.Context(), "cluster", "meet", "127.0.0.1", env.Redis.Port(), bus).Err())
		}
		addrs, clients = append(addrs, env.Redis.Addr()), append(clients, client)
	}
	testenv.Wait(t, 30*time.Second, func() error {
		for _, c := range clients {
			info, err := c.ClusterInfo(t.Context()).Result()
			if err != nil || !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, fmt.Sprint("cluster_known_nodes:", n)) {
				return fmt.Errorf("the cluster is not up: %s %w", info, err)
			}
		}
		return nil
	})
	return addrs
}

func TestAClusterKeepsAllKeysOfAStreamTogether(t *testing.T) {
	t.Parallel()
	addrs := startCluster(t, 3)
	url := "redis://" + addrs[0] + "?addr=" + addrs[1] + "&addr=" + addrs[2]
	for _, name := range []string{"odd{}name", "other}{"} {
		cfg := stream.Config{URL: url, Stream: name, Group: "g", Shards: shards}
		client, err := stream.Connect(cfg)
		require.NoError(t, err)
		_, err = stream.NewGroup(client, cfg)
		require.ErrorContains(t, err, "without braces")
		require.NoError(t, client.Close())
	}
	for _, name := range []string{"telemetry:teltonika", "a", "b{tag}c", "{whole}", "odd{name"} {
		cfg := stream.Config{URL: url, Stream: name, Group: "g", Shards: shards, Timeout: waitFor, Name: "processor/test"}
		client, err := stream.Connect(cfg)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, client.Close()) })
		b := benchOn(t, client, cfg)
		one, two := b.addTo(1, 20), b.addTo(2, 20)
		b.ready()
		require.Equal(t, one, b.queue(1), name)
		require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: one}, {Shard: 2, Gone: two[:1]}}))
		require.Equal(t, map[string]int64{"trimmed_pending": 1}, b.losses())
		acked, delivered, err := b.Marks(t.Context())
		require.NoError(t, err)
		require.Equal(t, map[int]telemetry.EntryID{1: one[19]}, acked)
		require.Equal(t, two[19], delivered)
		n, err := b.Redeal(t.Context(), []protocol.Range{{Shard: 1, To: one[4]}})
		require.NoError(t, err)
		require.Equal(t, 5, n)
		b.addTo(3, 5)
		b.foreign("earlier", 5)
		total, _ := b.sweep("earlier", 0, 100)
		require.Equal(t, 5, total.Entries)
		_, err = b.Forget(t.Context(), "earlier", 0)
		require.NoError(t, err)
		_, err = b.Backlog(t.Context())
		require.NoError(t, err)
		_, err = b.ReadRange(t.Context(), telemetry.EntryID{}, 10)
		require.NoError(t, err)
		dead, err := stream.NewDeadLetters(client, cfg, b.Names().DeadLetters(true))
		require.NoError(t, err)
		ranged, err := b.ReadRange(t.Context(), one[0], 1)
		require.NoError(t, err)
		require.NoError(t, dead.Park(t.Context(), []telemetry.DeadLetter{{Entry: ranged[0], Shard: 1}}, nil))
		require.NoError(t, b.ReleaseTurn(t.Context(), "t"))

		heard := make(chan stream.Bell, 10)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); b.Bells(ctx, func(bell stream.Bell) { heard <- bell }) }()
		testenv.Wait(t, waitFor, func() error {
			require.NoError(t, b.Ring(ctx, []int{4}))
			select {
			case <-heard:
				return nil
			default:
				return errStill
			}
		})
		stop()
		<-done
	}
}

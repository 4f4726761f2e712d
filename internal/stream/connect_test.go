package stream_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	sentinel := testenv.Sentinel(t, env.Redis.Port())
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

func TestOnAClusterOnlyNodesOfTheStreamCountAsAnotherServer(t *testing.T) {
	t.Parallel()
	cluster := testenv.RedisCluster(t)
	cfg := stream.Config{URL: cluster.URL(), Stream: "telemetry:0", Group: "g", Shards: shards, Timeout: waitFor, Name: "processor/test"}
	client, err := stream.Connect(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	group, err := stream.NewGroup(client, cfg)
	require.NoError(t, err)
	var changes atomic.Int64
	group.OnServerChange(func() { changes.Add(1) })
	read := func() error {
		_, err := group.ReadNew(t.Context(), telemetry.EntryID{}, 1, time.Millisecond)
		return err
	}
	require.NoError(t, read())
	_, own, err := cluster.Master(t.Context(), cfg.Stream)
	require.NoError(t, err)
	others := map[*devenv.Server]bool{}
	for n := range 8 {
		key := fmt.Sprintf("telemetry:%d", n)
		_, node, err := cluster.Master(t.Context(), key)
		require.NoError(t, err)
		others[node] = node != own
		require.NoError(t, client.Exists(t.Context(), key).Err())
	}
	require.Len(t, others, 3, "all masters were asked")
	require.Zero(t, changes.Load())

	require.NoError(t, group.CheckServer(t.Context()))
	broken := make(chan error, 1)
	go func() {
		_, err := group.ReadNew(t.Context(), telemetry.EntryID{}, 1, waitFor/2)
		broken <- err
	}()
	node := redis.NewClient(&redis.Options{Addr: own.Addr()})
	t.Cleanup(func() { require.NoError(t, node.Close()) })
	testenv.Wait(t, waitFor, func() error {
		clients, err := node.Info(t.Context(), "clients").Result()
		if err == nil && !strings.Contains(clients, "blocked_clients:1") {
			err = errors.New("nobody waits for entries")
		}
		return err
	})
	require.NoError(t, own.Kill())
	err = <-broken
	require.Error(t, err)
	require.NotContains(t, err.Error(), "although Redis answers", "other nodes do")
	// Where there is a connection to the replica already, only a look tells that it was promoted.
	testenv.Wait(t, 2*waitFor, func() error { return errors.Join(read(), group.CheckServer(t.Context())) })
	require.Positive(t, changes.Load(), "its replica has taken over")
}

func TestAClusterKeepsAllKeysOfAStreamTogether(t *testing.T) {
	t.Parallel()
	url := testenv.RedisCluster(t).URL()
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
		n, err := b.Redeliver(t.Context(), []protocol.Range{{Shard: 1, To: one[4]}})
		require.NoError(t, err)
		require.Equal(t, 5, n)
		b.addTo(3, 5)
		b.foreign("earlier", 5)
		require.NoError(t, client.Del(t.Context(), b.Names().Dispatched()).Err()) // nothing is left to the dispatcher
		total, _ := b.sweep("earlier", 0, 100)
		require.Equal(t, 5, total.Entries)
		_, err = b.Remove(t.Context(), "earlier", 0)
		require.NoError(t, err)
		_, err = b.Backlog(t.Context())
		require.NoError(t, err)
		_, err = b.ReadRange(t.Context(), telemetry.EntryID{}, 10)
		require.NoError(t, err)
		dead, err := stream.NewDeadLetters(client, cfg, b.Names().DeadLetters(true))
		require.NoError(t, err)
		ranged, err := b.ReadRange(t.Context(), one[0], 1)
		require.NoError(t, err)
		require.NoError(t, dead.DeadLetter(t.Context(), []telemetry.DeadLetter{{Entry: ranged[0], Shard: 1}}, nil))
		require.NoError(t, b.ReleaseDispatchLease(t.Context(), "t"))

		heard := make(chan stream.Notification, 10)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			b.Notifications(ctx, func(channel stream.Notification) { heard <- channel })
		}()
		testenv.Wait(t, waitFor, func() error {
			require.NoError(t, b.Notify(ctx, []int{4}))
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

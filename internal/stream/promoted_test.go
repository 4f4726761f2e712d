package stream_test

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/testenv"
)

// A promoted replica may lack what its master had acknowledged last. A client
// that was connected to it all along needs no new connection to reach it.
func TestAReplicaPromotedUnderAnExistingConnectionIsNoticed(t *testing.T) {
	t.Parallel()
	master, replica := testenv.OwnServers(t, redisOnly("--repl-diskless-sync-delay", "0")), testenv.OwnServers(t, redisOnly())
	cfg := stream.Config{URL: replica.Redis.URL(), Stream: "s", Group: "g", Shards: shards, Timeout: waitFor}
	client, err := stream.Connect(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	group, err := stream.NewGroup(client, cfg)
	require.NoError(t, err)
	var changes atomic.Int64
	group.OnServerChange(func() { changes.Add(1) })
	check := func(want int64) {
		t.Helper()
		for range 2 {
			require.NoError(t, group.CheckServer(t.Context()))
			require.Equal(t, want, changes.Load())
		}
	}
	check(0)
	host, port, err := net.SplitHostPort(master.Redis.Addr())
	require.NoError(t, err)
	require.NoError(t, client.Do(t.Context(), "replicaof", host, port).Err())
	testenv.Wait(t, waitFor, func() error {
		info, err := client.Info(t.Context(), "replication").Result()
		if err == nil && !strings.Contains(info, "master_link_status:up") {
			err = errStill
		}
		return err
	})
	check(1) // it has its master's history now
	require.NoError(t, client.Do(t.Context(), "replicaof", "no", "one").Err())
	check(2)

	// A client without the right to ask works, too.
	require.NoError(t, client.Do(t.Context(), "acl", "setuser", "default", "-info").Err())
	check(2)
	require.NoError(t, client.Do(t.Context(), "acl", "setuser", "default", "+info").Err())
}

package stream_test

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// A stream at rest is looked at all the time; each entry that is large is at one of
// its ends until another follows.
func TestTheLargeEndsOfAStreamAtRestAreReadOnce(t *testing.T) {
	t.Parallel()
	env := testenv.OwnServers(t, redisOnly())
	cfg := stream.Config{URL: env.Redis.URL(), Stream: "s", Group: "g", Shards: 1, Timeout: 10 * time.Second}
	client, err := stream.Connect(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	group, err := stream.NewGroup(client, cfg)
	require.NoError(t, err)
	ctx := t.Context()
	add := func(payload string) telemetry.EntryID {
		text, err := client.XAdd(ctx, &redis.XAddArgs{Stream: "s", Values: []string{"payload", payload}}).Result()
		require.NoError(t, err)
		id, err := telemetry.ParseEntryID(text)
		require.NoError(t, err)
		return id
	}
	const size = 1 << 20
	large := add(strings.Repeat("x", size))
	require.NoError(t, client.Do(ctx, "xgroup", "create", "s", "g", "$", "entriesread", 1).Err())
	// counters returns what INFO counts of the server's output and of a command.
	counters := func() (sent, bodies int) {
		text := client.Info(context.Background(), "stats", "commandstats").Val()
		for line := range strings.Lines(text) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "total_net_output_bytes:"); ok {
				sent, err = strconv.Atoi(v)
				require.NoError(t, err)
			}
			if v, ok := strings.CutPrefix(line, "cmdstat_xinfo|stream:calls="); ok {
				v, _, _ = strings.Cut(v, ",")
				bodies, err = strconv.Atoi(v)
				require.NoError(t, err)
			}
		}
		return sent, bodies
	}
	look := func() (stream.Info, telemetry.EntryID) {
		info, err := group.Info(ctx)
		require.NoError(t, err)
		_, err = group.Backlog(ctx)
		require.NoError(t, err)
		snapshot, err := group.Snapshot(ctx, []telemetry.EntryID{large, {Ms: 1}})
		require.NoError(t, err)
		require.Equal(t, []telemetry.EntryID{{Ms: 1}}, snapshot.Missing)
		require.NotZero(t, snapshot.Now)
		return info, snapshot.Newest
	}
	look()
	sentBefore, bodiesBefore := counters()
	for range 20 {
		info, newest := look()
		require.Equal(t, large, info.First)
		require.Equal(t, large, newest)
	}
	sent, bodies := counters()
	t.Logf("%d bytes sent, XINFO STREAM %d times", sent-sentBefore, bodies-bodiesBefore)
	require.Less(t, sent-sentBefore, size)
	require.Zero(t, bodies-bodiesBefore)

	next := add("y")
	info, newest := look()
	require.Equal(t, next, info.Last)
	require.EqualValues(t, 2, info.Added)
	require.Equal(t, stream.Count{N: 1, Known: true}, info.Lag)
	require.Equal(t, next, newest)
	require.NoError(t, client.XDel(ctx, "s", large.String()).Err())
	info, err = group.Info(ctx)
	require.NoError(t, err)
	require.Equal(t, next, info.First)
}

package operator_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/operator"
)

func TestP3AReplayEndsWhereTheNumberOfShardsChanges(t *testing.T) {
	dep := newDeployment(t)
	client := dep.redis.Client()
	pipe := client.Pipeline()
	for i := range 1500 { // more than a page
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: dep.redis.Stream, Values: []string{"device_id", fmt.Sprint("device-", i)}})
	}
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
	fleet := dep.fleet(dep.redis.Stream)

	pages := 0
	_, err = fleet.ReplayEntries(t.Context(), operator.Replay{Since: time.Now().Add(-time.Hour), Progress: func(done int, _ time.Time) {
		pages++
		require.Equal(t, 1000, done)
		pending, err := client.XPendingExt(t.Context(), &redis.XPendingExtArgs{Stream: dep.redis.Stream, Group: dep.redis.Group, Start: "-", End: "+", Count: 2000}).Result()
		require.NoError(t, err)
		require.Len(t, pending, done)
		ids := make([]string, done)
		for i, p := range pending {
			ids[i] = p.ID
		}
		require.NoError(t, client.XAck(t.Context(), dep.redis.Stream, dep.redis.Group, ids...).Err())
		resized, err := fleet.Resize(t.Context(), 64, nil)
		require.NoError(t, err)
		require.True(t, resized.Changed)
	}})
	require.ErrorContains(t, err, "the number of shards was changed from 16 to 64: run it again")
	require.Equal(t, 1, pages)
	left, err := client.XPending(t.Context(), dep.redis.Stream, dep.redis.Group).Result()
	require.NoError(t, err)
	require.Zero(t, left.Count)
}

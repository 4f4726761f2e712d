package tasks

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// bury adds dead letters of about 8 kB.
func (g *graveyard) bury(n int) {
	g.Helper()
	l := telemetry.DeadLetter{
		Entry: telemetry.Entry{Fields: []string{"payload", strings.Repeat("x", 8000)}}, Class: telemetry.ClassInvalid, Fingerprint: "f",
	}
	pipe := g.client.Pipeline()
	for i := range n {
		l.Entry.ID = telemetry.EntryID{Ms: 1_700_000_000_000, Seq: uint64(i)}
		pipe.XAdd(g.Context(), &redis.XAddArgs{Stream: "dlq", Values: stream.EncodeDeadLetter(&l)})
	}
	_, err := pipe.Exec(g.Context())
	require.NoError(g, err)
}

func TestDeadLettersAreBoundedInRedisAndArchivedOldestFirst(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]struct {
		bounds func(g *graveyard, b *DLQBounds)
		most   int64
	}{
		"entries": {func(_ *graveyard, b *DLQBounds) { b.Entries = 200 }, 200},
		"bytes":   {func(_ *graveyard, b *DLQBounds) { b.Bytes = 2_000_000 }, 250},
		// Full: nothing that stores may be needed before there is room.
		"memory": {func(g *graveyard, _ *DLQBounds) {
			require.NoError(g, g.client.ConfigSet(g.Context(), "maxmemory", "9mb").Err())
			require.ErrorContains(g, g.client.Set(g.Context(), "any", "x", 0).Err(), "OOM")
		}, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGraveyard(t)
			g.T = t
			g.bury(1500)
			all := g.client.XLen(t.Context(), "dlq").Val() // more where the client sent them again
			set.bounds(g, &g.reconciler.bounds)
			newest, err := g.client.XRevRangeN(t.Context(), "dlq", "+", "-", 1).Result()
			require.NoError(t, err)
			var left int64
			testenv.Wait(t, time.Minute, func() error { // a pass lasts for a second at most; sizes are known after the first
				g.pass()
				if left = g.client.XLen(context.Background(), "dlq").Val(); left > set.most {
					return fmt.Errorf("%d dead letters are left", left)
				}
				return g.client.Set(context.Background(), "any", "x", 0).Err() // there is room again
			})
			require.NotZero(t, left)
			require.EqualValues(t, all-left, g.count("select count(*) from processor.dead_letters"), "archived, not dropped")
			require.EqualValues(t, all-left, g.count(fmt.Sprintf("select sum(count)::int from processor.audit where action = 'dlq retention' and detail->>'limit' = '%s'", name)))
			kept, err := g.client.XRevRangeN(t.Context(), "dlq", "+", "-", 1).Result()
			require.NoError(t, err)
			require.Equal(t, newest[0].ID, kept[0].ID)
		})
	}
}

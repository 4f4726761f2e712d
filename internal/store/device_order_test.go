package store_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// The old owner's last commit decides whether anything has to be redelivered, and
// whether one of its entries crashed it.
func TestP3AnAcquireKnowsTheProgressOfTheCommitItWaitedFor(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("old.1", 5)
	mark := telemetry.EntryID{Ms: 7, Seq: 1}
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, b.url)
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(ctx))
	tx, err := conn.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `insert into processor.progress (stream, group_name, shard, applied_id, updated_at)
		values ($1, $2, 5, $3, clock_timestamp())`, scope.Stream, scope.Group, mark.String())
	require.NoError(t, err)
	_, err = tx.Exec(ctx, "select processor.fence($1, $2, $3, $4, 'old.1')", scope.Stream, scope.Group, []int32{5}, []int64{held[0].Epoch})
	require.NoError(t, err)

	b.exec("update processor.assignments set member = 'new.1' where shard = 5")
	type result struct {
		shard protocol.Shard
		err   error
	}
	taken := make(chan result, 1)
	go func() {
		shard, err := b.shards.Acquire(ctx, 5, "new.1", "")
		taken <- result{shard, err}
	}()
	testenv.Wait(t, 5*time.Second, func() error {
		if n := b.count("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"); n == 0 {
			return fmt.Errorf("the take does not wait")
		}
		return nil
	})
	require.NoError(t, tx.Commit(ctx))
	got := <-taken
	require.NoError(t, got.err)
	require.Equal(t, mark, got.shard.Applied)
	require.Zero(t, got.shard.CrashCount, "it got on until the end")
	require.Zero(t, got.shard.MaxInFlight)
}

package store_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
)

// However short statements may be, a locked row is a lock and no outage. The session
// that has it is named where there is time to ask.
func TestALockedShardIsNoTimeout(t *testing.T) {
	for _, timeout := range []time.Duration{400 * time.Millisecond, 2 * time.Second} {
		t.Run(timeout.String(), func(t *testing.T) {
			t.Parallel()
			s := newSink(t)
			locker, err := connect(t, s.url).Begin(t.Context())
			require.NoError(t, err)
			defer func() { _ = locker.Rollback(context.WithoutCancel(t.Context())) }()
			_, err = locker.Exec(t.Context(), "select from processor.shards for update")
			require.NoError(t, err)
			pool, err := store.Open(t.Context(), store.Config{
				URL: s.url, Member: "one", MaxConns: 4,
				ConnectTimeout: 2 * time.Second, StatementTimeout: timeout, LockTimeout: timeout,
			})
			require.NoError(t, err)
			t.Cleanup(pool.Close)
			// Connecting is part of the first call and may take as long as that.
			require.NoError(t, pool.Ping(t.Context()))
			shards := store.NewShards(pool, s.scope, timeout)
			_, acquire := shards.Acquire(t.Context(), 0, "one", "")
			for call, err := range map[string]error{"acquire": acquire, "lockable": shards.Lockable(t.Context(), 0, "one")} {
				by, blocked := protocol.BlockedBy(err)
				require.True(t, blocked, "%s: %v", call, err)
				if timeout > 2*store.ShardLockWait {
					require.Len(t, by, 1, fmt.Sprint(call, ": ", err))
					require.EqualValues(t, locker.Conn().PgConn().PID(), by[0].PID, call)
				}
			}
		})
	}
}

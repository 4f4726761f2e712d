package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/testenv"
)

// Several successors share the shards of a member that is silent. The first ends its
// sessions, and the others are not to take it for one that had none.
func TestWhoHadSessionsWasAliveForEverySuccessor(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.take("own.1", 4, 5)
	sessions := store.NewSessions(b.pool, time.Minute)
	end := func(member string) (ended int, none bool) {
		t.Helper()
		ended, none, err := sessions.End(t.Context(), member)
		require.NoError(t, err)
		return ended, none
	}
	// The server has been up for long.
	testenv.Wait(t, time.Minute, func() error {
		if _, none := end("own.1"); !none {
			return errors.New("it cannot be told yet")
		}
		return nil
	})
	cfg := store.Config{URL: b.url, Member: "own.1", MaxConns: 2, ConnectTimeout: 10 * time.Second, StatementTimeout: time.Minute, LockTimeout: time.Minute}
	pool, err := store.Open(t.Context(), cfg)
	require.NoError(t, err)
	defer pool.Close()
	frozen, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer frozen.Release()
	_, err = frozen.Exec(t.Context(), "begin; select from processor.shards for share")
	require.NoError(t, err)
	// A row that another session has locked holds up nobody.
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "select from processor.assignments where shard = 5 for update")
	require.NoError(t, err)
	ended, none := end("own.1")
	require.Equal(t, 1, ended)
	require.False(t, none)
	require.NoError(t, tx.Rollback(t.Context()))
	testenv.Wait(t, 10*time.Second, func() error {
		ended, none := end("own.1")
		require.False(t, none, "it was alive")
		if ended > 0 {
			return errors.New("it has sessions")
		}
		return nil
	})
	// Not for good: it has acquired the shards again since, and then it ended.
	b.exec("update processor.assignments set member = 'own.2'")
	b.take("own.2", 4, 5)
	b.take("own.1", 4, 5)
	_, none = end("own.1")
	require.True(t, none)
}

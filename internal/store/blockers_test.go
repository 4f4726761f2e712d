package store_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/admin"
	"github.com/trmtracking/processor/internal/testenv"
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

// P4: an owner that waits for the lock itself is no reason to end its sessions.
func TestALockThatTheOwnerWaitsForTooIsNotItsOwn(t *testing.T) {
	t.Parallel()
	s := newSink(t)
	locker, owner := connect(t, s.url), connect(t, s.url)
	tx, err := locker.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "select from processor.shards for update")
	require.NoError(t, err)
	_, err = owner.Exec(t.Context(), "select set_config('application_name', $1, false)", store.ApplicationName("owner"))
	require.NoError(t, err)
	released := make(chan error, 1)
	go func() {
		_, err := owner.Exec(context.WithoutCancel(t.Context()), "update processor.shards set updated_at = now()")
		released <- err
	}()
	watch := connect(t, s.url)
	testenv.Wait(t, 10*time.Second, func() error {
		var by []int32
		require.NoError(t, watch.QueryRow(t.Context(), "select pg_blocking_pids($1)", owner.PgConn().PID()).Scan(&by))
		if len(by) == 0 {
			return errors.New("the owner does not wait yet")
		}
		return nil
	})
	pool, err := store.Open(t.Context(), store.Config{
		URL: s.url, Member: "next", MaxConns: 4,
		ConnectTimeout: 5 * time.Second, StatementTimeout: 10 * time.Second, LockTimeout: 10 * time.Second,
	})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	require.NoError(t, pool.Ping(t.Context()))
	by, blocked := protocol.BlockedBy(store.NewShards(pool, s.scope, 10*time.Second).Lockable(t.Context(), 0, "owner"))
	require.True(t, blocked)
	require.NoError(t, tx.Rollback(t.Context()))
	require.NoError(t, <-released)
	require.Len(t, by, 1)
	require.EqualValues(t, locker.PgConn().PID(), by[0].PID)
	require.Empty(t, by[0].Member)
}

// A command may hold up instances as a stranger does; these wait for each other all the time.
func TestTheDoctorIsToldOfACommandThatBlocksAnInstance(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.take("one.1", 0)
	for _, tt := range []struct {
		by    string
		named bool
	}{{"retry", true}, {"one.ABCDEFGH27", false}} {
		tx, err := b.open(tt.by, b.url).Begin(t.Context())
		require.NoError(t, err)
		defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
		_, err = tx.Exec(t.Context(), "select from processor.shards where shard = 0 for update")
		require.NoError(t, err)
		done := make(chan error, 1)
		go func() {
			_, err := b.pool.Exec(t.Context(), "update processor.shards set epoch = epoch where shard = 0")
			done <- err
		}()
		testenv.Wait(t, 20*time.Second, func() error {
			if b.count("select count(*) from pg_stat_activity where $1::int = any (pg_blocking_pids(pid))", tx.Conn().PgConn().PID()) == 0 {
				return errors.New("nothing waits")
			}
			return nil
		})
		status, err := admin.Diagnose(t.Context(), b.pool)
		require.NoError(t, err)
		require.Equal(t, tt.named, len(status.Blocked) == 1, "%s: %v", tt.by, status.Blocked)
		require.NoError(t, tx.Rollback(t.Context()))
		require.NoError(t, <-done)
	}
}

// Of the sessions of other roles one without rights sees neither state nor times, which are
// not nothing then.
func TestWhatARoleMayNotSeeOfOtherSessionsIsUnknown(t *testing.T) {
	t.Parallel()
	testenv.SkipIn(t, devenv.Pooled, "the pooler has one role for all")
	b := newBench(t)
	b.take("one.1", 0)
	u, err := url.Parse(b.url)
	require.NoError(t, err)
	role := u.Path[1:] + "_least" // of this database alone
	b.exec(fmt.Sprintf("create role %[1]s login; grant usage on schema processor to %[1]s; grant select, update on processor.shards to %[1]s", role))
	t.Cleanup(func() {
		_, err := b.pool.Exec(context.WithoutCancel(t.Context()), fmt.Sprintf("drop owned by %[1]s; drop role %[1]s", role))
		require.NoError(t, err)
	})
	u.User = url.User(role)
	pool := b.open("one.ABCDEFGH27", u.String())
	defer pool.Close()
	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	_, err = conn.Exec(t.Context(), "set lock_timeout = 0; set statement_timeout = 0")
	require.NoError(t, err)

	lock := connect(t, b.url)
	exec(t, lock, "begin")
	exec(t, lock, "select from processor.shards where shard = 0 for update")
	done := make(chan error, 1)
	go func() {
		_, err := conn.Exec(t.Context(), "update processor.shards set epoch = epoch where shard = 0")
		done <- err
	}()
	var by []protocol.Blocker
	testenv.Wait(t, 20*time.Second, func() (err error) {
		if by, err = store.Blockers(t.Context(), pool, int(conn.Conn().PgConn().PID())); err == nil && len(by) == 0 {
			err = errors.New("nothing waits")
		}
		return err
	})
	require.Equal(t, []protocol.Blocker{{PID: int(lock.PgConn().PID()), State: "state unknown"}}, by)
	waits := protocol.RowLock{By: by}
	require.Contains(t, waits.String(), "state unknown, for an unknown time")
	require.Contains(t, waits.Remedy(), "pg_signal_backend")

	const all = "select count(*) from pg_stat_activity where backend_type = 'client backend'"
	testenv.Wait(t, 20*time.Second, func() error { // other tests connect meanwhile
		before := b.count(all)
		status, err := admin.Diagnose(t.Context(), pool)
		require.NoError(t, err)
		require.Positive(t, status.Hidden)
		require.Len(t, status.Blocked, 1)
		require.Zero(t, status.Blocked[0].Lock.By[0].Age)
		if after := b.count(all); status.Sessions < min(before, after) {
			return fmt.Errorf("%d sessions counted of %d to %d", status.Sessions, before, after)
		}
		return nil
	})
	status, err := admin.Diagnose(t.Context(), b.pool)
	require.NoError(t, err)
	require.Zero(t, status.Hidden, "a superuser sees all")
	require.Positive(t, status.Longest)
	exec(t, lock, "rollback")
	require.NoError(t, <-done)
}

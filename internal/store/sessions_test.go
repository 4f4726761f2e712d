package store_test

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/testenv"
)

// Several successors share the shards of a member that is silent. The first ends its
// sessions, and the others are not to take it for one that had none.
func TestWhoHadSessionsWasAliveForEverySuccessor(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.take("own.1", 4, 5)
	address, err := url.Parse(b.url)
	require.NoError(t, err)
	sessions := store.NewSessions(b.pool, time.Minute)
	end := func(member string) (ended int, none bool) {
		t.Helper()
		out, err := sessions.End(t.Context(), member)
		require.NoError(t, err)
		return out.Count, out.None
	}
	// The server has been up for long.
	testenv.Wait(t, time.Minute, func() error {
		if _, none := end("own.1"); !none {
			return errors.New("it cannot be told yet")
		}
		return nil
	})
	// Of a database that this one is a copy of, on the same server.
	original := b.open("own.1", strings.Replace(b.url, address.Path, "/postgres", 1))
	require.NoError(t, original.Ping(t.Context()))
	ended, none := end("own.1")
	require.Zero(t, ended)
	require.True(t, none)
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
	ended, none = end("own.1")
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

// P4, P8: the user may change from one instance to the next, and a frozen one keeps the
// sessions of the last. Its rows that are not committed hold up its successor, which copies the same.
func TestP8TheSessionsOfAMemberThatHasAnotherRoleEnd(t *testing.T) {
	t.Parallel()
	testenv.SkipIn(t, devenv.Pooled, "the pooler has one role for all")
	b := newBench(t)
	address, err := url.Parse(b.url)
	require.NoError(t, err)
	before, after := address.Path[1:]+"_before", address.Path[1:]+"_after"
	for _, role := range []string{before, after} {
		b.exec("create role " + role + " login")
		b.exec("grant pg_read_all_data, pg_write_all_data to " + role)
		t.Cleanup(func() { _, _ = b.pool.Exec(context.WithoutCancel(t.Context()), "drop role "+role) })
	}
	as := func(role, member string) *pgxpool.Pool {
		u := *address
		u.User = url.User(role)
		return b.open(member, u.String())
	}
	freeze := func(pool *pgxpool.Pool) {
		conn, err := pool.Acquire(t.Context())
		require.NoError(t, err)
		t.Cleanup(conn.Release)
		_, err = conn.Exec(t.Context(), "begin; select from processor.progress")
		require.NoError(t, err)
	}
	sessions := store.NewSessions(as(after, "next.1"), time.Minute)
	end := func() protocol.EndedSessions {
		out, err := sessions.End(t.Context(), "rotated.1")
		require.NoError(t, err)
		return out
	}
	gone := func() {
		testenv.Wait(t, 10*time.Second, func() error {
			if b.count("select count(*) from pg_stat_activity where application_name = 'processor/rotated.1'") > 0 {
				return errors.New("it has sessions")
			}
			return nil
		})
	}
	freeze(as(before, "rotated.1"))
	out := end()
	require.Equal(t, protocol.EndedSessions{Left: 1, Role: before}, out, "the server would refuse it")
	require.Contains(t, out.Remedy(), before)

	b.exec("grant " + before + " to " + after)
	require.Equal(t, protocol.EndedSessions{Count: 1}, end())
	gone()

	b.exec("revoke " + before + " from " + after)
	b.exec("grant pg_signal_backend to " + after)
	freeze(as(before, "rotated.1"))
	require.Equal(t, protocol.EndedSessions{Count: 1}, end())
	gone()

	freeze(b.open("rotated.1", b.url)) // as a superuser, whose sessions only one may end
	out = end()
	require.Equal(t, 1, out.Left)
	require.Zero(t, out.Count)
	sessions = store.NewSessions(b.pool, time.Minute)
	require.Equal(t, protocol.EndedSessions{Count: 1}, end())
	gone()
}

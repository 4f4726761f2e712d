package store_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
)

// P1: a name that leads to another database by and by, behind a pooler without a
// new connection, lets no shard and no term be acquired there.
func TestNothingIsAcquiredInAnotherDatabaseThanTheFirst(t *testing.T) {
	t.Parallel()
	ours, wrong := newBench(t), newBench(t)
	identity := store.NewIdentity()
	created, err := identity.Establish(t.Context(), ours.pool, scope, "a.1", time.Minute)
	require.NoError(t, err)
	require.True(t, created)
	created, err = store.NewIdentity().Establish(t.Context(), ours.pool, scope, "b.1", time.Minute)
	require.NoError(t, err)
	require.False(t, created, "it is made once")
	_, err = store.NewIdentity().Establish(t.Context(), wrong.pool, scope, "c.1", time.Minute)
	require.NoError(t, err)

	refused := func(err error) {
		t.Helper()
		var f *protocol.Failure
		require.ErrorAs(t, err, &f)
		require.Equal(t, protocol.Misconfigured, f.Kind)
		var foreign *store.ForeignError
		require.ErrorAs(t, err, &foreign)
		require.Equal(t, 3, foreign.ExitCode())
	}
	for _, b := range []*bench{ours, wrong} {
		b.exec("update processor.assignments set member = 'a.1'")
		b.shards.Guard(identity)
		leader := store.NewLeader(b.pool, scope, "a.1", time.Minute)
		leader.Guard(identity)
		_, taken := b.shards.Acquire(t.Context(), 0, "a.1", "")
		_, raised := leader.BeginTerm(t.Context())
		if b == ours {
			require.NoError(t, taken)
			require.NoError(t, raised)
			continue
		}
		refused(taken)
		refused(raised)
		require.Zero(t, b.count("select count(*) from processor.shards where owner is not null"))
		require.Zero(t, b.count("select count(*) from processor.leader where member = 'a.1'"))
	}
	_, err = identity.Establish(t.Context(), wrong.pool, scope, "a.1", time.Minute)
	refused(err)

	// One that is led to another server on the connections that it has.
	followed := store.NewIdentity()
	_, err = followed.Establish(t.Context(), ours.pool, scope, "a.1", time.Minute)
	require.NoError(t, err)
	before := followed.Server()
	require.NotEmpty(t, before)
	behind := store.NewSessions(wrong.pool, time.Minute)
	behind.Guard(followed)
	require.NoError(t, behind.Ping(t.Context()))
	require.NotEqual(t, before, followed.Server(), "the next ping tells")

	pool, err := store.Open(t.Context(), store.Config{
		URL: wrong.pool.Config().ConnString(), Member: "a.1", MaxConns: 1, ConnectTimeout: time.Minute,
		StatementTimeout: time.Minute, LockTimeout: time.Minute, Identity: identity,
	})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	refused(store.NewSessions(pool, time.Minute).Ping(t.Context()))
}

package store_test

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/testenv"
)

// A leader lives as long as it asks for something in this database; what cannot be seen is no sign of life.
func TestALeaderLivesWhileItAsks(t *testing.T) {
	t.Parallel()
	testenv.SkipIn(t, devenv.Pooled, "the pooler has one role for all, and keeps its sessions")
	b := newBench(t)
	leading := b.open("own.1", b.url)
	leader := store.NewLeader(leading, scope, "own.1", 10*time.Second)
	live := func(l *store.Leader, within time.Duration) string {
		t.Helper()
		member, err := l.LiveLeader(t.Context(), within, 0)
		require.NoError(t, err)
		return member
	}
	looking := store.NewLeader(b.pool, scope, "other.1", 10*time.Second)
	require.Empty(t, live(looking, time.Minute), "no term began")
	term, err := leader.BeginTerm(t.Context())
	require.NoError(t, err)
	require.Equal(t, "own.1", live(looking, time.Minute))
	require.Empty(t, live(looking, 0), "it is frozen")

	const longer = 50 * 365 * 24 * time.Hour // than the server is up
	started := func() error {
		t.Helper()
		member, err := looking.LiveLeader(t.Context(), 0, longer)
		require.Empty(t, member, "nothing shows that it is alive")
		return err
	}
	require.ErrorContains(t, started(), "own.1 may have no session yet")

	u, err := url.Parse(b.url)
	require.NoError(t, err)
	role := u.Path[1:] + "_other"
	b.exec("create role " + role + " login")
	b.exec("grant pg_read_all_data to " + role)
	t.Cleanup(func() { _, _ = b.pool.Exec(context.WithoutCancel(t.Context()), "drop role "+role) })
	u.User = url.User(role)
	require.Empty(t, live(store.NewLeader(b.open("other.2", u.String()), scope, "other.2", 10*time.Second), time.Minute))

	require.NoError(t, leader.Resign(t.Context(), term))
	require.Empty(t, live(looking, time.Minute))
	require.NoError(t, started())
	_, err = leader.BeginTerm(t.Context())
	require.NoError(t, err)
	require.NoError(t, looking.Resign(t.Context(), 0))
	require.NoError(t, leader.Resign(t.Context(), term))
	require.Equal(t, "own.1", live(looking, time.Minute), "neither is this term")
	require.NoError(t, leader.Resign(t.Context(), 0))
	require.Empty(t, live(looking, time.Minute), "whichever term it is")
	_, err = leader.BeginTerm(t.Context())
	require.NoError(t, err)
	leading.Close()
	elsewhere := b.open("own.1", strings.Replace(b.url, u.Path, "/postgres", 1)) // as where a copy is on the same server
	require.NoError(t, elsewhere.Ping(t.Context()))
	testenv.Wait(t, 10*time.Second, func() error {
		if live(looking, time.Minute) != "" {
			return errors.New("its sessions have not ended yet")
		}
		return nil
	})
}

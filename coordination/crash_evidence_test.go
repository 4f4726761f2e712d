package coordination

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv"
)

// The heartbeats that a restarted Redis does not have say nothing of the processes
// that sent them, even if the restart fell between two heartbeats of the observer.
func TestNobodyIsGoneWhenTheServerChanges(t *testing.T) {
	b := newBench(t)
	watcher, other := b.joined("watcher"), b.joined("other")
	require.NoError(t, watcher.heartbeatRound(t.Context()))
	require.False(t, watcher.owner(other.Name(), 0).Gone)
	expired := func() error {
		if n := b.client.Exists(t.Context(), other.key()).Val(); n > 0 {
			return fmt.Errorf("its heartbeat is still there")
		}
		return nil
	}
	testenv.Wait(t, 5*time.Second, expired)
	watcher.serverChanged.Store(true)
	require.NoError(t, watcher.heartbeatRound(t.Context()))
	require.False(t, watcher.owner(other.Name(), 0).Gone)
	// From then on its silence counts, if it lasts.
	b.awaitSilence(watcher, other.Name())
}

// A member ended if another process has its identity, or if it left no sessions. That
// it is silent is no evidence, nor is the lack of sessions while Postgres may have
// ended them.
func TestAMemberEndedOnlyOnEvidence(t *testing.T) {
	b := newBench(t)
	watcher, other := b.joined("watcher"), b.joined("other")
	require.NoError(t, watcher.heartbeatRound(t.Context()))
	name := other.Name()
	require.False(t, watcher.ended(name, false))
	require.True(t, watcher.ended(name, true), "it need not be silent yet")
	b.awaitSilence(watcher, name)
	require.False(t, watcher.ended(name, false), "it is frozen or cut off")
	require.True(t, watcher.ended(name, true))

	watcher.setPostgresUp(false)
	require.False(t, watcher.ended(name, true), "Postgres is away")
	watcher.setPostgresUp(true)
	require.False(t, watcher.ended(name, true), "Postgres is just back")

	next := b.joined("other")
	require.NoError(t, watcher.heartbeatRound(t.Context()))
	require.True(t, watcher.ended(name, false), "another process has its identity")
	require.False(t, watcher.ended(next.Name(), false))
	require.NoError(t, next.leave(t.Context()))
	require.NoError(t, watcher.heartbeatRound(t.Context()))
	require.False(t, watcher.ended(name, false))

	watcher, other = b.joined("watcher-2"), b.joined("other")
	other.setPostgresUp(false)
	require.NoError(t, other.heartbeatRound(t.Context()))
	require.NoError(t, watcher.heartbeatRound(t.Context()))
	require.False(t, watcher.ended(other.Name(), true), "it had no Postgres")
	require.NoError(t, other.announce(t.Context()))
	require.NoError(t, watcher.heartbeatRound(t.Context()))
	require.False(t, watcher.ended(other.Name(), true), "it was leaving")
}

// joined is a member that has sent one heartbeat and sends others by hand.
func (b *bench) joined(instance string) *Membership {
	b.t.Helper()
	keys := Keys{Prefix: b.group.Names().Members(), Lock: b.group.Names().Lock()}
	m, err := NewMembership(b.quick(instance), b.client, keys, func() WorkStatus { return WorkStatus{} }, discard())
	require.NoError(b.t, err)
	require.NoError(b.t, m.join(b.t.Context()))
	return m
}

func (b *bench) awaitSilence(watcher *Membership, name string) {
	b.t.Helper()
	testenv.Wait(b.t, 10*time.Second, func() error {
		if err := watcher.heartbeatRound(b.t.Context()); err != nil {
			return err
		}
		if !watcher.owner(name, 0).Gone {
			return errors.New("it is not silent yet")
		}
		return nil
	})
}

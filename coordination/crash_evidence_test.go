package coordination

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv"
)

// The heartbeats that a restarted Redis does not have say nothing of the processes
// that sent them, even if the restart fell between two heartbeats of the observer.
func TestNobodyIsSeenToEndWhenTheServerChanges(t *testing.T) {
	b := newBench(t)
	keys := Keys{Prefix: b.group.Names().Members(), Lock: b.group.Names().Lock()}
	member := func(name string) *Membership {
		m, err := NewMembership(b.quick(name), b.client, keys, func() WorkStatus { return WorkStatus{} }, discard())
		require.NoError(t, err)
		return m
	}
	watcher, other := member("watcher"), member("other")
	require.NoError(t, other.heartbeatRound(t.Context()))
	require.NoError(t, watcher.heartbeatRound(t.Context()))
	require.False(t, watcher.owner(other.Name()).Gone)
	expired := func() error {
		if n := b.client.Exists(t.Context(), other.key()).Val(); n > 0 {
			return fmt.Errorf("its heartbeat is still there")
		}
		return nil
	}
	testenv.Wait(t, 5*time.Second, expired)
	watcher.serverChanged.Store(true)
	require.NoError(t, watcher.heartbeatRound(t.Context()))
	require.False(t, watcher.owner(other.Name()).Ended)
	// From then on its silence counts, if it lasts.
	testenv.Wait(t, 5*time.Second, func() error {
		require.NoError(t, watcher.heartbeatRound(t.Context()))
		if !watcher.owner(other.Name()).Ended {
			return fmt.Errorf("it is not gone yet")
		}
		return nil
	})
}

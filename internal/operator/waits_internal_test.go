package operator

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/protocol"
)

// Each state of a shard is told by its name, with since when and what ends it, and to the
// operator who asks doctor once it has lasted.
func TestEachWaitOfAShardHasNameSinceAndRemedy(t *testing.T) {
	now := time.Now()
	since := now.Add(-12 * time.Second)
	shard := func(n int, owner, assigned string) protocol.Shard {
		return protocol.Shard{Shard: n, Owner: owner, Assigned: assigned, Since: since, Changed: since}
	}
	quarantined := shard(7, "a", "a")
	quarantined.MaxInFlight = 4
	shards := []protocol.Shard{
		shard(0, "a", "a"), shard(1, "", ""), shard(2, "", "a"), shard(3, "b", "a"), shard(4, "a", "a"), shard(5, "a", "a"), shard(6, "a", "a"), quarantined,
	}
	members := []coordination.Member{{
		Waits: []protocol.Wait{
			{State: protocol.WaitRefused, Shard: 4, Since: since, Detail: "P0001/"},
			{State: protocol.WaitDispatchAhead, Shard: -1, Since: since},
			{State: protocol.WaitKept, Shard: -1, Since: now},
		},
		RowLocks: []protocol.RowLock{{Shard: 5, Since: since, By: []protocol.Blocker{{PID: 17, Application: "psql", State: "idle in transaction", Query: "select", Age: time.Minute}}}},
	}}
	holds := protocol.Holds{{Kind: protocol.HoldShard, Subject: "6", By: "me", Since: since}}
	waits := ShardWaits(shards, holds, members)
	require.NotContains(t, waits, 0)
	for n, state := range []string{
		1: protocol.WaitUnassigned, 2: protocol.WaitUnacquired, 3: protocol.WaitUnreleased, 4: protocol.WaitRefused,
		5: protocol.WaitLocked, 6: protocol.WaitHeld, 7: protocol.WaitQuarantined,
	} {
		if n == 0 {
			continue
		}
		w := waits[n]
		require.NotNil(t, w, "shard %d", n)
		require.Equal(t, state, w.State)
		require.Equal(t, since, w.Since)
		require.NotEmpty(t, w.Means)
		require.NotEmpty(t, w.Remedy)
	}
	require.Equal(t, "end it: select pg_terminate_backend(17)", waits[5].Remedy)
	require.Equal(t, "refused for 12s: Postgres refuses its rows for a reason that is not theirs (P0001/)", waits[4].Text(now))

	var d Diagnosis
	_, others := memberWaits(members)
	d.waits(waits, others, now)
	told := make(map[string]string)
	for _, f := range d.Findings {
		require.NotEmpty(t, f.Remedy)
		told[f.What] = f.Level
	}
	at := ", since " + since.UTC().Format(time.RFC3339)
	require.Equal(t, LevelError, told["1 shard (4): "+waits[4].Text(now)+at])
	require.Equal(t, LevelWarning, told["the dispatcher: dispatch_ahead for 12s: DISPATCH_AHEAD entries are dispatched and not finished"+at])
	require.Len(t, d.Findings, 7, "the lock has a finding of its own, and what began now is not told yet")

	d = Diagnosis{}
	d.waits(waits, others, since.Add(9*time.Second))
	require.Empty(t, d.Findings)
}

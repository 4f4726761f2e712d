package protocol_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
)

func TestLeasesAreSpreadOverMembers(t *testing.T) {
	t.Parallel()
	spread := protocol.NewSpread(6)
	var leases []*protocol.SpreadLease
	for range 6 {
		leases = append(leases, spread.Lease())
	}
	now := time.Now()
	for _, l := range leases {
		require.Zero(t, l.Yield(0), "nobody else is there")
		l.Hold(true)
		l.Hold(true) // is known
	}
	give := func(peers int) (n int) {
		for _, l := range leases {
			if l.GiveUp(now, peers) {
				n++
			}
		}
		return n
	}
	require.Zero(t, give(0))
	require.Equal(t, 4, give(2), "two of six are its share of three")
	require.Zero(t, give(2))
	require.Positive(t, leases[0].Yield(2), "it has its share: the others go first")
	require.Zero(t, leases[0].Yield(1), "of two members three are")

	// Nobody took them: they are not given up again at once.
	for _, l := range leases {
		l.Hold(true)
	}
	require.Equal(t, 2, give(2), "those that were never given up")
	for _, l := range leases {
		l.Hold(true)
	}
	require.Zero(t, give(2))
	now = now.Add(2 * time.Minute)
	require.Equal(t, 4, give(2))

	one := protocol.NewSpread(1).Lease()
	one.Hold(true)
	require.False(t, one.GiveUp(now, 5))
	one.Hold(false)
	require.Zero(t, one.Yield(5), "a single stream is as it was")
	var none *protocol.SpreadLease
	none.Hold(true)
	require.False(t, none.GiveUp(now, 1))
	require.Zero(t, none.Yield(1))
}

package stream_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// P3: the last-delivered ID was moved back, and the acked marks are lost. What is on
// the queues tells how far was dispatched: redelivering less would let it overtake
// what Postgres may have lost.
func TestP3AnAcquiredShardIsRedeliveredUpToWhatIsOnTheQueues(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.addTo(1, 5)
	b.ready()
	b.dispatchAll("t")
	in, err := b.RegisterOwner(t.Context(), "owner 1", []int{1})
	require.NoError(t, err)
	require.Equal(t, ids[4], in.Dispatched)

	require.NoError(t, b.client.XGroupSetID(t.Context(), b.cfg.Stream, b.cfg.Group, ids[1].String()).Err())
	require.NoError(t, b.client.XAck(t.Context(), b.cfg.Stream, b.cfg.Group, ids[4].String()).Err())
	in, err = b.RegisterOwner(t.Context(), "owner 2", []int{1})
	require.NoError(t, err)
	require.Equal(t, ids[3], in.Dispatched, "the highest that is pending")

	require.NoError(t, b.client.XAck(t.Context(), b.cfg.Stream, b.cfg.Group, ids[0].String(), ids[1].String(), ids[2].String(), ids[3].String()).Err())
	in, err = b.RegisterOwner(t.Context(), "owner 3", []int{1})
	require.NoError(t, err)
	require.Equal(t, ids[1], in.Dispatched, "nothing is pending")
}

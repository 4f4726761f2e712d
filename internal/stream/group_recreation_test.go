package stream_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
)

func TestEachGroupRecreationIsRecordedWithTheStreamOfThatMoment(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.turn("t")
	recreations, _, err := b.GroupRecreations(t.Context())
	require.NoError(t, err)
	require.Len(t, recreations, 1)
	require.Zero(t, recreations[0].Dispatched)
	require.Zero(t, recreations[0].Entries)
	require.Zero(t, recreations[0].Last)
	require.InDelta(t, 0, recreations[0].Ago.Seconds(), 30)

	ids := b.addTo(1, 10)
	b.dispatchAll("t")
	later := b.addTo(2, 5)
	require.NoError(t, b.client.XTrimMinID(t.Context(), b.cfg.Stream, ids[3].String()).Err())
	require.NoError(t, b.client.XGroupDestroy(t.Context(), b.cfg.Stream, b.cfg.Group).Err())
	_, err = b.AcquireDispatchLease(t.Context(), "t", "u", time.Minute)
	require.NoError(t, err)
	both, _, err := b.GroupRecreations(t.Context())
	require.NoError(t, err)
	require.Len(t, both, 2, "oldest first")
	require.Equal(t, recreations[0].Receipt, both[0].Receipt)
	second := both[1]
	require.Equal(t, ids[9], second.Dispatched)
	require.EqualValues(t, 12, second.Entries)
	require.EqualValues(t, 3, second.Removed)
	require.Equal(t, []telemetry.EntryID{ids[3], later[4]}, []telemetry.EntryID{second.First, second.Last})

	for range 2 {
		require.NoError(t, b.ResolveRecreation(t.Context(), &recreations[0]))
	}
	left, _, err := b.GroupRecreations(t.Context())
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.Equal(t, second.Receipt, left[0].Receipt)
}

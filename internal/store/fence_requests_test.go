package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

// spanned is a fence that holds on some days.
func spanned(id string, from, to int) geofence.Fence {
	return geofence.Fence{
		ID: id, Name: id, Kind: geofence.Area, Enabled: true,
		Valid:    geofence.Span{FromUS: dayOf(from).UnixMicro(), ToUS: dayOf(to).UnixMicro()},
		Geometry: `{"type":"Polygon","coordinates":[[[0,41],[2,41],[2,43],[0,43],[0,41]]]}`,
	}
}

func TestChangesOfFencesAskForOneRecomputeWhereTheirSpansTouch(t *testing.T) {
	t.Parallel()
	pool := fencePool(t)
	const shards = 64
	editor := store.NewFenceEditor(pool, fenceScope, shards, "test")
	imported := func(f geofence.Fence) {
		_, err := editor.Import(t.Context(), []geofence.Fence{f}, "import", false)
		require.NoError(t, err)
	}
	for i := range 41 {
		imported(spanned(fmt.Sprint("fence", i), i, i+2))
	}
	require.Equal(t, shards, number(t, pool, openRequests), "of 41 imports")
	const of = " and from_ts = $1 and to_ts = $2"
	require.Equal(t, shards, number(t, pool, openRequests+of, dayOf(0), dayOf(42)))
	imported(spanned("apart", 100, 101))
	require.Equal(t, 2*shards, number(t, pool, openRequests))
	execute(t, pool, "update processor.requests set state = 'running' where shard < 10")
	imported(spanned("open", 20, 30))
	require.Equal(t, 10, number(t, pool, openRequests+of, dayOf(20), dayOf(30)), "what has begun is not changed")
	always := spanned("always", 0, 0)
	always.Valid = geofence.Always
	imported(always)
	require.Equal(t, shards, number(t, pool, openRequests+" and from_ts is null and to_ts is null"))
}

// The owner may have read a request when its span is widened.
func TestARequestThatWasWidenedOnTheWayToItsOwnerIsReadAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("a.1", 5)[0]
	editor := store.NewFenceEditor(b.pool, scope, shards, "test")
	_, err := editor.Import(t.Context(), []geofence.Fence{spanned("one", 0, 2)}, "import", false)
	require.NoError(t, err)
	requests := store.NewRequests(store.NewWriter(b.pool, scope, "a.1", 10*time.Second))
	step := func(r protocol.Request) bool {
		fences, _, err := store.NewFences(b.pool, 10*time.Second).Load(t.Context())
		require.NoError(t, err)
		o := protocol.RequestStep{Request: r, Lease: held, Shards: shards, Rules: protocol.Rules{Fences: fences, Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute}, MaxGap: time.Minute}}
		_, done, err := requests.Step(t.Context(), o)
		require.NoError(t, err)
		return done
	}
	waiting := func() []protocol.Request {
		list, err := requests.Waiting(t.Context(), []int{held.Shard})
		require.NoError(t, err)
		return list
	}
	before := waiting()
	require.Len(t, before, 1)
	_, err = editor.Import(t.Context(), []geofence.Fence{spanned("two", 1, 4)}, "import", false)
	require.NoError(t, err)
	require.True(t, step(before[0]), "nothing is left to do of what was read")
	after := waiting()
	require.Len(t, after, 1)
	require.Equal(t, before[0].ID, after[0].ID)
	require.Equal(t, dayOf(4).UnixMicro(), after[0].ToUS)
	require.True(t, step(after[0]))
	require.Empty(t, waiting())
}

package store_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
)

// A new revision tells readers that the row changed, so an equal row gets none.
func TestP2ACrossingWrittenAgainKeepsItsRevision(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("one.1", 3)
	w := store.NewWriter(b.pool, scope, "one.1", 10*time.Second)
	c := geofence.Crossing{
		FenceID: "f", Kind: geofence.Enter, TimeUS: 2_000_000, EarlierUS: 1_000_000, LaterUS: 3_000_000, Latitude: 48, Longitude: 11,
		Method: geofence.Interpolated, DistanceM: 40, SpeedKMH: 72, MaxErrorMS: 1000,
	}
	write := func() (row string) {
		batch := b.batch(held, nil)
		batch.Rules.Fences = &protocol.Fences{Set: b.fences.Set, Version: b.fences.Version, Versions: []int{1}}
		batch.Crossings = []protocol.Crossing{{DeviceID: "d", Crossing: c}}
		_, err := w.Write(t.Context(), batch)
		require.NoError(t, err)
		require.NoError(t, b.pool.QueryRow(t.Context(), "select t::text from processor.timing_records t").Scan(&row))
		return row
	}
	first := write()
	require.Equal(t, first, write(), "written again, nothing is changed, not even the time of it")
	c.TimeUS++
	require.NotEqual(t, first, write())
	require.Equal(t, 2, b.count("select revision from processor.timing_records"))
	for revision, change := range []func(){
		func() { c.Method = geofence.NetChange },
		func() { c.DistanceM++ },
		func() { c.SpeedKMH++ },
		func() { c.MaxErrorMS++ },
	} {
		change()
		write()
		require.Equal(t, 3+revision, b.count("select revision from processor.timing_records"))
	}
	require.Equal(t, 1, b.count("select count(*) from processor.timing_records where (method, distance_m, speed, max_error_ms) = ('net change', 41, 73, 1001)"))
}

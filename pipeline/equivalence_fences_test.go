package pipeline_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// TestP5ABatchComputedUnderOlderFencesIsComputedAgain changes the fences while
// no instance is notified and no recompute is requested: the check in the
// commit alone makes the crossings right, whatever the batch is made of.
func TestP5ABatchComputedUnderOlderFencesIsComputedAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	square := geofence.Fence{
		ID: "square", Name: "a square", Kind: geofence.Area, Enabled: true, Valid: geofence.Always,
		Geometry: `{"type":"Polygon","coordinates":[[[11,48],[11.001,48],[11.001,48.001],[11,48.001],[11,48]]]}`,
	}
	at := func(second int, latitude float64) fleet.Message {
		return fleet.Message{
			DeviceID: fleet.DeviceID(1), Codec: "8", Time: time.Unix(scenarioBase+int64(second), 0),
			Latitude: latitude, Longitude: 11.0005, Satellites: 9,
		}
	}
	// The way from the first to the third goes along one side of the square.
	before, inside, after := at(0, 47.9995), at(10, 48.0005), at(20, 47.9996)
	for _, tc := range []struct {
		name        string
		old, change []geofence.Fence
		first, then []fleet.Message
		crossings   int
	}{
		{"fresh records, with the shard's first progress mark", nil, []geofence.Fence{square}, nil, []fleet.Message{before, inside, after}, 2},
		{"fresh records alone", nil, []geofence.Fence{square}, []fleet.Message{before}, []fleet.Message{inside, after}, 2},
		{"a late record alone", nil, []geofence.Fence{square}, []fleet.Message{before, after}, []fleet.Message{inside}, 2},
		{"a late record and a fresh one", nil, []geofence.Fence{square}, []fleet.Message{before, after}, []fleet.Message{inside, at(30, 47.9995)}, 2},
		{"fresh records that cross what is no fence any more", []geofence.Fence{square}, nil, []fleet.Message{before}, []fleet.Message{inside, after}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, b, b.stream+"-"+t.Name())
			defer w.end()
			change := func(fences []geofence.Fence) {
				_, err := w.editor.Import(context.Background(), fences, "import", true)
				require.NoError(t, err)
				_, err = w.pool.Exec(context.Background(), "delete from processor.requests")
				require.NoError(t, err)
			}
			change(tc.old)
			w.join(0, false)
			w.keepOwned()
			if tc.first != nil {
				w.publish(tc.first)
				require.NoError(t, w.quiet(20*time.Second))
			}
			change(tc.change)
			w.publish(tc.then)
			require.NoError(t, w.quiet(20*time.Second))
			require.NoError(t, w.judge())
			require.Equal(t, tc.crossings, w.count("select count(*) from processor.timing_records"))
		})
	}
}

package equivalence_test

import (
	"context"
	"fmt"
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
			w := newWorld(t, b, b.Stream+"-"+t.Name())
			defer w.end()
			change := func(fences []geofence.Fence) {
				_, err := w.editor.Import(context.Background(), fences, "import", true)
				require.NoError(t, err)
				_, err = w.Pool.Exec(context.Background(), "delete from processor.requests")
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
			require.Equal(t, tc.crossings, w.Count("select count(*) from processor.timing_records"))
		})
	}
}

// A fence that gets another version gives the same crossings with the new
// number, where they were derived under it.
func TestACrossingNamesTheVersionItWasDerivedFrom(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	square := func(corner float64) []geofence.Fence {
		return []geofence.Fence{{
			ID: "square", Name: "a square", Kind: geofence.Area, Enabled: true, Valid: geofence.Always,
			Geometry: fmt.Sprintf(`{"type":"Polygon","coordinates":[[[11,48],[11.001,48],[%v,48.001],[11,48.001],[11,48]]]}`, corner),
		}}
	}
	w := newWorld(t, b, b.Stream)
	defer w.end()
	var messages []fleet.Message
	for n := range 12 { // in and out along a side that never moves
		messages = append(messages, fleet.Message{
			DeviceID: fleet.DeviceID(1), Codec: "8", Time: time.Unix(scenarioBase+int64(10*n), 0),
			Latitude: 48.0005, Longitude: 10.9995 + float64(n%2)*.001, Satellites: 9,
		})
	}
	w.join(0, false)
	w.keepOwned()
	for version := 1; version <= 3; version++ {
		_, err := w.editor.Import(context.Background(), square(11.001+float64(version)*.001), "import", true)
		require.NoError(t, err)
		require.NoError(t, w.quiet(20*time.Second)) // or the recompute would correct what is wrong
		if version < 3 {                            // then those that are there are derived again
			w.publish(messages[6*(version-1) : 6*version])
		}
		require.NoError(t, w.quiet(20*time.Second))
		require.NoError(t, w.judge())
	}
	require.Equal(t, 11, w.Count("select count(*) from processor.timing_records where fence_version = 3"))
	require.Equal(t, 11, w.Count("select count(*) from processor.timing_records"))
}

// One drive that touches each rule on its border: if the service decides one
// differently, the oracle must say so. The mutations of the nightly build use it.
func TestTheOracleSeesWhatEachRuleDecides(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	fence := func(id string, kind geofence.Kind, geometry string, radius float64) geofence.Fence {
		return geofence.Fence{ID: id, Name: id, Kind: kind, Geometry: geometry, RadiusM: radius, Enabled: true, Valid: geofence.Always}
	}
	w := newWorld(t, b, b.Stream)
	defer w.end()
	_, err := w.editor.Import(context.Background(), []geofence.Fence{
		fence("area", geofence.Area, `{"type":"Polygon","coordinates":[[[11,48],[11.002,48],[11.002,48.002],[11,48.002],[11,48]]]}`, 0),
		fence("circle", geofence.Circle, `{"type":"Point","coordinates":[11.004,48.001]}`, 60),
		fence("gate", geofence.Gate, `{"type":"LineString","coordinates":[[11.003,48],[11.003,48.002]]}`, 0),
		fence("zero", geofence.Circle, `{"type":"Point","coordinates":[0,0]}`, 1000),
	}, "import", true)
	require.NoError(t, err)
	var messages []fleet.Message
	add := func(seconds int, latitude, longitude float64) {
		messages = append(messages, fleet.Message{
			DeviceID: fleet.DeviceID(1), Codec: "8E", Time: time.Unix(scenarioBase+int64(seconds), 0),
			Latitude: latitude, Longitude: longitude, Satellites: 9,
			Attributes: []fleet.Attribute{
				fleet.NumberAttribute("66", 12345.5), fleet.BigIntAttribute("78", "18446744073709551615"),
				fleet.BytesAttribute("385", []byte{0xfb, 0xff, 0xfe, byte(seconds)}), fleet.LegacyBytesAttribute("386", []byte{0xfb, 0xff, 0xfe}),
				fleet.TextAttribute("t", "\u00e9\u2028"),
			},
		})
	}
	add(0, 48.001, 10.999)
	add(10, 48.001, 11) // on the border
	add(20, 48.001, 10.999)
	add(30, 48.001, 11.0015)
	add(40, 0, 0) // no fix
	add(50, 48.001, 11.0035)
	add(60, 48.001, 11.0042)
	add(70, 48.001, 11.0055)
	add(80, 48.001, 11.0025)
	ahead := messages[3]
	ahead.Time = time.Now().Add(time.Hour) // of the clock that gives entries their time
	w.join(0, false)
	w.keepOwned()
	require.NoError(t, w.quiet(20*time.Second)) // or the recompute of new fences would correct what is wrong
	begins := messages[1]                       // a device whose first fix is on the border
	begins.DeviceID = fleet.DeviceID(2)
	w.publish(append(messages, begins, ahead))
	require.NoError(t, w.quiet(20*time.Second))
	after := ahead
	after.Time, after.Longitude = time.Now().Add(2*time.Hour), 10.99
	w.publish([]fleet.Message{after}) // makes crossings if the one before took part
	require.NoError(t, w.quiet(20*time.Second))
	require.NoError(t, w.judge())
	require.Greater(t, w.Count("select count(*) from processor.timing_records"), 5)
}

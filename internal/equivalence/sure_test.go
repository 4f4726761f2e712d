package equivalence_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// P5: how sure a crossing is depends on what both fixes tell, however they come.
func TestP5HowSureACrossingIsDependsOnItsFixes(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	b := newBench(t)
	fence := geofence.Fence{
		ID: "square", Kind: geofence.Area, Enabled: true, Valid: geofence.Always,
		Geometry: `{"type":"Polygon","coordinates":[[[11,48],[11.002,48],[11.002,48.002],[11,48.002],[11,48]]]}`,
	}
	// 0.002 degrees in 10 s are 53.56 km/h here.
	fix := func(second int, longitude, kmh float64) fleet.Message {
		return fleet.Message{
			DeviceID: fleet.DeviceID(1), Codec: "8", Time: time.Unix(scenarioBase+int64(second), 0),
			Latitude: 48.001, Longitude: longitude, Satellites: 9, Speed: kmh,
		}
	}
	drive := []fleet.Message{fix(0, 10.999, 54.4), fix(10, 11.001, 51), fix(20, 11.003, 0), fix(30, 11.001, 53.7), fix(1000, 10.999, 54)}
	reversed := slices.Clone(drive)
	slices.Reverse(reversed)
	corrected := slices.Clone(drive) // the row that took the place of one without a fix tells another speed
	corrected[1].Latitude, corrected[1].Longitude, corrected[1].Speed = 0, 0, 0
	const want = `interpolated 149 53.6 335
interpolated 149 53.6 5000
interpolated 149 53.6 5000
net change 149 0.6 970000
`
	for _, way := range []struct {
		name    string
		send    []fleet.Message
		page    int // records in one batch, 0 for all
		restart bool
		speed   int // MAX_SPEED
	}{
		{"live", drive, 0, false, 0},
		{"live, each by itself", drive, 1, false, 0},
		{"live, jumps decided", drive, 1, false, 100},
		{"newest first", reversed, 0, false, 0},
		{"late", reversed, 1, false, 0},
		{"after a restart", drive, 1, true, 0},
		{"after a correction", slices.Concat(corrected, drive[1:2]), 1, false, 0},
	} {
		t.Run(way.name, func(t *testing.T) {
			w := newWorld(t, b, b.Stream+"-"+t.Name())
			defer w.end()
			w.rules.MaxSpeed = way.speed
			w.begin(fence)
			w.sendPages(way.send, way.page, way.restart)
			rows, err := w.Pool.Query(t.Context(), `
select method, distance_m, speed, max_error_ms
from processor.timing_records
order by later_ts`)
			require.NoError(t, err)
			defer rows.Close()
			got := ""
			for rows.Next() {
				var method string
				var distance, speed float32
				var most int64
				require.NoError(t, rows.Scan(&method, &distance, &speed, &most))
				got += fmt.Sprintf("%s %.0f %.1f %d\n", method, distance, speed, most)
			}
			require.NoError(t, rows.Err())
			require.Equal(t, want, got)
			v, err := store.NewDevices(w.Pool, w.Scope(), store.FleetSettings{Shards: shards, Eligibility: w.rules, MaxGap: w.gap}, "test").
				Verify(t.Context(), fleet.DeviceID(1))
			require.NoError(t, err)
			require.True(t, v.Good(), "%+v", v)
		})
	}
}

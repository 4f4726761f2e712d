package geofence_test

import (
	"fmt"
	"time"

	"github.com/trmtracking/processor/internal/geofence"
)

func ExampleSet_Crossings() {
	set, refused := geofence.NewSet([]geofence.Fence{
		{
			ID: "depot", Kind: geofence.Area, Valid: geofence.Always, Enabled: true,
			Geometry: `{"type":"Polygon","coordinates":[[[8.01,47],[8.02,47],[8.02,47.01],[8.01,47.01],[8.01,47]]]}`,
		},
		{
			ID: "finish", Kind: geofence.Gate, Valid: geofence.Always, Enabled: true,
			Geometry: `{"type":"LineString","coordinates":[[8.03,47],[8.03,47.01]]}`,
		},
		{ID: "nowhere", Kind: geofence.Circle, RadiusM: 100, Valid: geofence.Always, Enabled: true, Geometry: `null`},
	})
	for _, r := range refused {
		fmt.Println("refused:", r)
	}
	start := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	prev := geofence.Fix{TimeUS: start.UnixMicro(), Latitude: 47.005, Longitude: 8.00}
	next := geofence.Fix{TimeUS: start.Add(40 * time.Second).UnixMicro(), Latitude: 47.005, Longitude: 8.04}
	for _, c := range set.Crossings(nil, prev, next, 10*time.Minute) {
		fmt.Printf("%s %-7s %s #%d at %.3f, %.3f\n",
			time.UnixMicro(c.TimeUS).UTC().Format(time.TimeOnly), c.Kind, c.FenceID, c.Ordinal, c.Latitude, c.Longitude)
	}
	// Output:
	// refused: fence "nowhere": geometry is null or has no type
	// 12:00:10 enter   depot #0 at 47.005, 8.010
	// 12:00:20 exit    depot #1 at 47.005, 8.020
	// 12:00:30 forward finish #0 at 47.005, 8.030
}

func ExampleSet_At() {
	set, _ := geofence.NewSet([]geofence.Fence{{
		ID: "zone", Name: "Alp Scheidegg", Kind: geofence.Circle, RadiusM: 400, Valid: geofence.Always, Enabled: true,
		Geometry: `{"type":"Point","coordinates":[8.94325,47.3045167]}`,
	}})
	for _, i := range set.At(nil, geofence.Fix{Latitude: 47.304, Longitude: 8.944}) {
		fmt.Println(set.Fence(i).Name)
	}
	// Output: Alp Scheidegg
}

func ExampleFence_Check() {
	f := geofence.Fence{
		ID: "austin", Kind: geofence.Area, Valid: geofence.Always, Enabled: true,
		Geometry: `{"type":"Polygon","coordinates":[[[30.2,-97.7],[30.3,-97.7],[30.3,-97.6],[30.2,-97.7]]]}`,
	}
	fmt.Println(f.Check())
	// Output: ring 1 position 1: latitude -97.7 is out of range: latitude and longitude look swapped (longitude comes first)
}

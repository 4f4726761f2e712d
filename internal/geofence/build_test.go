package geofence_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
)

// noGap lets every pair of fixes count as one way.
const noGap = time.Duration(math.MaxInt64)

func area(id, geometry string) geofence.Fence {
	return geofence.Fence{ID: id, Kind: geofence.Area, Geometry: geometry, Valid: geofence.Always, Enabled: true}
}

func gate(id, geometry string) geofence.Fence {
	return geofence.Fence{ID: id, Kind: geofence.Gate, Geometry: geometry, Valid: geofence.Always, Enabled: true}
}

func circle(id string, lat, lon, radiusM float64) geofence.Fence {
	return geofence.Fence{
		ID: id, Kind: geofence.Circle, RadiusM: radiusM, Valid: geofence.Always, Enabled: true,
		Geometry: fmt.Sprintf(`{"type":"Point","coordinates":[%v,%v]}`, lon, lat),
	}
}

// position is longitude, latitude as in GeoJSON.
type position = [2]float64

func polygon(rings ...[]position) string { return geometry("Polygon", rings) }

func line(positions ...position) string { return geometry("LineString", positions) }

func geometry(kind string, coordinates any) string {
	text, err := json.Marshal(map[string]any{"type": kind, "coordinates": coordinates})
	if err != nil {
		panic(err)
	}
	return string(text)
}

func box(west, south, east, north float64) []position {
	return []position{{west, south}, {east, south}, {east, north}, {west, north}, {west, south}}
}

func setOf(t require.TestingT, fences ...geofence.Fence) *geofence.Set {
	set, refused := geofence.NewSet(fences)
	require.Empty(t, refused)
	return set
}

func at(lon, lat float64) geofence.Fix { return geofence.Fix{Longitude: lon, Latitude: lat} }

// way gives the fixes the times 0 s, 1 s, 2 s, …
func way(fixes ...geofence.Fix) []geofence.Fix {
	timed := slices.Clone(fixes)
	for i := range timed {
		timed[i].TimeUS = int64(i) * 1e6
	}
	return timed
}

func inOrder(fixes []geofence.Fix) []geofence.Fix {
	slices.SortStableFunc(fixes, func(a, b geofence.Fix) int { return cmp.Compare(a.TimeUS, b.TimeUS) })
	return slices.CompactFunc(fixes, func(a, b geofence.Fix) bool { return a.TimeUS == b.TimeUS })
}

// idsAt names the fences that contain the fix.
func idsAt(set *geofence.Set, fix geofence.Fix) []string {
	var ids []string
	for _, i := range set.At(nil, fix) {
		ids = append(ids, set.Fence(i).ID)
	}
	return ids
}

// brief writes crossings as "enter f1 0.250s", one a line.
func brief(crossings []geofence.Crossing) []string {
	var out []string
	for _, c := range crossings {
		out = append(out, fmt.Sprintf("%s %s %.3fs", c.Kind, c.FenceID, float64(c.TimeUS)/1e6))
	}
	return out
}

// requireConsistent checks what holds for all crossings between two fixes.
func requireConsistent(t require.TestingT, set *geofence.Set, prev, next geofence.Fix, crossings []geofence.Crossing) {
	in := map[string]bool{}
	for _, id := range idsAt(set, prev) {
		in[id] = true
	}
	ordinal := map[string]int{}
	last := prev.TimeUS
	for _, c := range crossings {
		require.GreaterOrEqual(t, c.TimeUS, last, "crossings are out of order")
		require.LessOrEqual(t, c.TimeUS, next.TimeUS)
		last = c.TimeUS
		require.Equal(t, ordinal[c.FenceID], c.Ordinal)
		ordinal[c.FenceID]++
		require.Equal(t, prev.TimeUS, c.EarlierUS)
		require.Equal(t, next.TimeUS, c.LaterUS)
		require.Equal(t, set.Fence(c.Fence).ID, c.FenceID)
		switch c.Kind {
		case geofence.Enter:
			require.False(t, in[c.FenceID], "enter of a fence the device is in: %+v", c)
			in[c.FenceID] = true
		case geofence.Exit:
			require.True(t, in[c.FenceID], "exit of a fence the device is not in: %+v", c)
			delete(in, c.FenceID)
		}
	}
	want := map[string]bool{}
	for _, id := range idsAt(set, next) {
		want[id] = true
	}
	require.Equal(t, want, in, "crossings lead elsewhere than the point test at the later fix")
}

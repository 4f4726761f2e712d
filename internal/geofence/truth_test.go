package geofence_test

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
)

// austin reads the fences laid over the buses of Austin.
func austin(t testing.TB) *geofence.Set {
	t.Helper()
	text, err := io.ReadAll(dataFile(t, "geofence/austin_fences.geojson"))
	require.NoError(t, err)
	fences, refused, err := geofence.ParseFeatures(text, geofence.Defaults{})
	require.NoError(t, err)
	require.Empty(t, refused)
	require.Len(t, fences, 8)
	return setOf(t, fences...)
}

// The truth's circles use R = 6,371,008.8 m. That moves the edge of f1 by 0.3
// mm and of f8 by 35 mm; the closest rows are 0.66 m and 34.9 m away, so no row
// reads differently.
func TestAustinTruthHoldsRowByRow(t *testing.T) {
	set := austin(t)
	truth := map[int]string{}
	records, err := csv.NewReader(dataFile(t, "geofence/austin_fence_truth.csv.gz")).ReadAll()
	require.NoError(t, err)
	rows := track(t, "austin_buses.csv.gz")
	for _, r := range records[1:] {
		n, err := strconv.Atoi(r[0])
		require.NoError(t, err)
		require.Equal(t, rows[n-1].device, r[1])
		require.Equal(t, rows[n-1].fix.TimeUS, us(t, r[2]))
		truth[n] = r[3]
	}
	inside := map[string]int{}
	for i, r := range rows {
		ids := idsAt(set, r.fix)
		for _, id := range ids {
			inside[id]++
		}
		ids = slices.DeleteFunc(ids, func(id string) bool { return id == "f8" }) // only counted
		require.Equal(t, truth[i+1], strings.Join(ids, ";"), "row %d", i+1)
	}
	require.Equal(t, austinCounts(t).RowsInside, inside)
}

type counts struct {
	RowsInside   map[string]int            `json:"rows_inside"`
	FenceChanges map[string]map[string]int `json:"fence_changes"`
}

func austinCounts(t testing.TB) counts {
	t.Helper()
	var c counts
	require.NoError(t, json.NewDecoder(dataFile(t, "geofence/austin_fence_counts.json")).Decode(&c))
	return c
}

// The counts' reading: (0, 0) is no fix, a first fix inside is no enter, and
// only the change from fix to fix counts, whatever lies between.
func TestAustinChangesAreCounted(t *testing.T) {
	set := austin(t)
	changes := map[string]map[string]int{}
	along, firsts := 0, 0
	rows := track(t, "austin_buses.csv.gz")
	for _, device := range devices(rows) {
		fixes := fixesOf(rows, device)
		firsts += len(set.Initial(nil, fixes[0]))
		for _, c := range set.Track(nil, fixes, 0, false) {
			if changes[c.FenceID] == nil {
				changes[c.FenceID] = map[string]int{}
			}
			changes[c.FenceID][string(c.Kind)]++
		}
		for i := 1; i < len(fixes); i++ {
			crossings := set.Crossings(nil, fixes[i-1], fixes[i], noGap)
			requireConsistent(t, set, fixes[i-1], fixes[i], crossings)
			along += len(crossings)
		}
	}
	require.Equal(t, austinCounts(t).FenceChanges, changes)
	// What the reading leaves out: passages between two fixes and first fixes.
	require.Greater(t, along, 10_000)
	require.Greater(t, firsts, 200)
	t.Logf("%d crossings along the way, %d first fixes inside", along, firsts)
}

func devices(rows []row) []string {
	var all []string
	seen := map[string]bool{}
	for _, r := range rows {
		if !seen[r.device] {
			seen[r.device] = true
			all = append(all, r.device)
		}
	}
	return all
}

type zone struct {
	Zone      int
	Name      string
	Latitude  float64
	Longitude float64
	RadiusM   float64 `json:"radius_m"`
}

func zonesOf(t testing.TB, zones []zone) *geofence.Set {
	t.Helper()
	var fences []geofence.Fence
	for _, z := range zones {
		fences = append(fences, circle(strconv.Itoa(z.Zone), z.Latitude, z.Longitude, z.RadiusM))
	}
	return setOf(t, fences...)
}

func TestForbesCrossingsHoldRowByRow(t *testing.T) {
	type stated struct {
		TS        string
		Latitude  float64
		Longitude float64
		InZone    bool `json:"in_zone"`
	}
	type crossing struct {
		Day, Zone     int
		Before, After stated
	}
	sets := map[int]*geofence.Set{}
	for _, day := range races(t).ForbesDays {
		sets[day.Day] = zonesOf(t, day.Zones)
	}
	// The recorder's clock stands still or goes back between these fixes, so
	// the service never sees them as neighbours in this order.
	clockWentBack := []string{
		"day 3 2012-01-07T02:02:05.000Z", "day 4 2012-01-09T02:21:05.000Z", "day 5 2012-01-10T05:11:16.000Z",
	}
	var backward []string
	rows := lines[crossing](t, "geofence/zone_crossings_forbes.jsonl.gz")
	require.Len(t, rows, 3280)
	for i, r := range rows {
		set, id := sets[r.Day], strconv.Itoa(r.Zone)
		prev := geofence.Fix{TimeUS: us(t, r.Before.TS), Latitude: r.Before.Latitude, Longitude: r.Before.Longitude}
		next := geofence.Fix{TimeUS: us(t, r.After.TS), Latitude: r.After.Latitude, Longitude: r.After.Longitude}
		require.Equal(t, r.Before.InZone, slices.Contains(idsAt(set, prev), id), "row %d before", i+1)
		require.Equal(t, r.After.InZone, slices.Contains(idsAt(set, next), id), "row %d after", i+1)
		if next.TimeUS <= prev.TimeUS {
			backward = append(backward, fmt.Sprintf("day %d %s", r.Day, r.After.TS))
			require.Empty(t, set.Crossings(nil, prev, next, noGap))
			next.TimeUS = prev.TimeUS + 1
		}
		crossings := set.Crossings(nil, prev, next, noGap)
		requireConsistent(t, set, prev, next, crossings)
		crossings = slices.DeleteFunc(crossings, func(c geofence.Crossing) bool { return c.FenceID != id })
		want := geofence.Exit
		if r.After.InZone {
			want = geofence.Enter
		}
		require.Len(t, crossings, 1, "row %d", i+1)
		require.Equal(t, want, crossings[0].Kind, "row %d", i+1)
	}
	require.Equal(t, clockWentBack, backward)
}

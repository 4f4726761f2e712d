package geofence_test

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
)

// gatesAlong lays a gate across a track at each twentieth fix.
func gatesAlong(t *testing.T, fixes []geofence.Fix, halfM float64) *geofence.Set {
	t.Helper()
	var fences []geofence.Fence
	for i := 20; i+1 < len(fixes); i += 20 {
		here, there := racePoint{Latitude: fixes[i].Latitude, Longitude: fixes[i].Longitude}, racePoint{Latitude: fixes[i+1].Latitude, Longitude: fixes[i+1].Longitude}
		if here != there {
			here.Zone.HalfWidthM = halfM
			fences = append(fences, gate(strconv.Itoa(i), lineAcross(here, bearing(here, there))))
		}
	}
	return setOf(t, fences...)
}

// covers reports whether the time is within the error of a crossing.
func covers(c geofence.Crossing, us int64) bool {
	return max(us-c.TimeUS, c.TimeUS-us) <= c.MaxErrorMS*1000
}

// A recorded race says when it passed gates that lie across its way. With most of its
// fixes left out, it must have been within the error of what the rest says.
func TestTheErrorCoversTheReference(t *testing.T) {
	for _, r := range []struct {
		file, device string
		halfM        float64
		thinned      []int
		told         bool // the recorder told speeds
	}{
		{"forbes_2012_day1.csv.gz", "forbes-60", 50, []int{3, 10, 20}, false},
		{"tianma_circuit.csv.gz", "tianma-lap13", 10, []int{5, 25, 50, 125}, true},
		{"glider_contests.csv.gz", "glider-race-task-completed", 200, []int{5, 20, 60}, false},
		{"glider_contests.csv.gz", "glider-aat-completed", 200, []int{5, 20, 60}, false},
		{"fenix2_activities.csv.gz", "fenix2-run", 10, []int{5, 20, 60}, true},
		{"scheidegg_comp_2024-06-16.csv.gz", "scheidegg-1", 50, []int{5, 20, 60}, false},
	} {
		whole := fixesOf(track(t, r.file), r.device)
		set := gatesAlong(t, whole, r.halfM)
		reference := map[string][]int64{}
		for _, c := range set.Track(nil, whole, maxGap, false) {
			reference[c.FenceID+string(c.Kind)] = append(reference[c.FenceID+string(c.Kind)], c.TimeUS)
		}
		for _, each := range r.thinned {
			t.Run(fmt.Sprintf("%s each %d", r.device, each), func(t *testing.T) {
				all, covered, better := 0, 0, 0
				var errors []int64
				for begin := 0; begin < each; begin += max(1, each/5) {
					var rest []geofence.Fix
					for i := begin; i < len(whole); i += each {
						rest = append(rest, whole[i])
					}
					for _, c := range set.Track(nil, rest, maxGap, false) {
						passed := slices.DeleteFunc(slices.Clone(reference[c.FenceID+string(c.Kind)]), func(us int64) bool { return us < c.EarlierUS || us > c.LaterUS })
						if len(passed) != 1 {
							continue // which one it stands for does not show
						}
						if all++; covers(c, passed[0]) {
							covered++
						}
						if c.MaxErrorMS < (c.LaterUS-c.EarlierUS)/2000 {
							better++
						}
						errors = append(errors, c.MaxErrorMS)
					}
				}
				slices.Sort(errors)
				share := 100 * float64(covered) / float64(all)
				t.Logf("coverage %.1f %% of %d, speeds agree in %d, median error %d ms", share, all, better, errors[len(errors)/2])
				require.Greater(t, all, 300)
				require.GreaterOrEqual(t, share, 95.0)
				if r.told {
					require.Greater(t, better, all*9/10)
				} else {
					require.Zero(t, better)
				}
			})
		}
	}
}

// The times that others state of recorded races.
func TestTheErrorCoversStatedTimes(t *testing.T) {
	_, _, line, stated := race(t, "tianma-lap13")
	for i, c := range setOf(t, gate("finish", line)).Track(nil, fixesOf(track(t, "tianma_circuit.csv.gz"), "tianma-lap13"), maxGap, false) {
		require.True(t, covers(c, stated[i]))
		require.LessOrEqual(t, c.MaxErrorMS, int64(3), "fixes 40 ms apart that tell the same speed")
		t.Logf("stated %d us from the crossing, error %d ms", stated[i]-c.TimeUS, c.MaxErrorMS)
	}
	const device = "glider-race-task-completed"
	points, _, _, _ := race(t, device)
	legs := legsOf(course(t, points).Track(nil, fixesOf(track(t, "glider_contests.csv.gz"), device), maxGap, false), len(points))
	require.True(t, covers(legs[0], us(t, "2014-06-21T12:12:55Z")), "the refined start")

	// Of Forbes both fixes are stated: no way between them leaves more than half out.
	type row struct {
		Day, Zone     int
		Before, After struct {
			TS                  string
			Latitude, Longitude float64
		}
	}
	sets := map[int]*geofence.Set{}
	for _, day := range races(t).ForbesDays {
		sets[day.Day] = zonesOf(t, day.Zones)
	}
	all, covered, n := int64(0), int64(0), 0
	for _, r := range lines[row](t, "geofence/zone_crossings_forbes.jsonl.gz") {
		prev := geofence.Fix{TimeUS: us(t, r.Before.TS), Latitude: r.Before.Latitude, Longitude: r.Before.Longitude}
		next := geofence.Fix{TimeUS: us(t, r.After.TS), Latitude: r.After.Latitude, Longitude: r.After.Longitude}
		for _, c := range sets[r.Day].Crossings(nil, prev, next, noGap) {
			from, to := max(prev.TimeUS, c.TimeUS-c.MaxErrorMS*1000), min(next.TimeUS, c.TimeUS+c.MaxErrorMS*1000)
			all, covered, n = all+next.TimeUS-prev.TimeUS, covered+to-from, n+1
			require.GreaterOrEqual(t, 2*(to-from), next.TimeUS-prev.TimeUS)
		}
	}
	require.GreaterOrEqual(t, n, 3277)
	t.Logf("%d crossings of Forbes: %.1f %% of the time between the fixes is within the error", n, 100*float64(covered)/float64(all))
}

func TestACrossingSaysHowItWasDerived(t *testing.T) {
	const second = int64(1e6)
	set := setOf(t, circle("c", 0, 0, 50_000))
	outside, inside := geofence.Fix{Latitude: 0, Longitude: 1}, geofence.Fix{TimeUS: 60 * second}
	derive := func(of *geofence.Set, prev, next geofence.Fix, gap time.Duration) geofence.Crossing {
		found := of.Crossings(nil, prev, next, gap)
		require.Len(t, found, 1)
		return found[0]
	}
	c := derive(set, outside, inside, time.Minute)
	require.Equal(t, geofence.Interpolated, c.Method)
	require.InDelta(t, 111_194.9, c.DistanceM, 0.1, "a degree of the equator")
	require.InDelta(t, 6671.7, c.SpeedKMH, 0.1)
	require.EqualValues(t, 30_000, c.MaxErrorMS, "half the time")

	c = derive(set, outside, inside, 59*time.Second)
	require.Equal(t, geofence.NetChange, c.Method)
	require.EqualValues(t, 60_000, c.MaxErrorMS, "the whole time: it is dated at its end")
	require.InDelta(t, 6671.7, c.SpeedKMH, 0.1)

	first := set.Initial(nil, inside)
	require.Len(t, first, 1)
	require.Equal(t, geofence.FirstFix, first[0].Method)
	require.Zero(t, first[0].DistanceM+first[0].SpeedKMH)
	require.Zero(t, first[0].MaxErrorMS)

	// 1 km at 60 km/h.
	set = setOf(t, circle("c", 0, 0, 500))
	outside.Longitude = 1000 / 111_194.9
	for _, x := range []struct {
		before, after uint8
		want          int64
	}{
		{60, 60, 501}, {58, 60, 1501}, {60, 66, 3501}, {0, 60, 30_000}, {60, 0, 30_000}, {0, 0, 30_000}, {120, 60, 30_000}, {118, 60, 29_501},
	} {
		outside.Speed, inside.Speed = x.before, x.after
		require.InDelta(t, x.want, derive(set, outside, inside, time.Minute).MaxErrorMS, 1, "%d and %d km/h", x.before, x.after)
	}
	for kmh, want := range map[float32]uint8{-1: 0, 0: 0, 0.4: 0, 0.5: 1, 60: 60, 254.4: 254, 254.5: 0, 1e9: 0} {
		require.Equal(t, want, geofence.WholeKMH(kmh), "%v", kmh)
	}
}

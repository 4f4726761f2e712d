package store

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trmtracking/processor/internal/geofence"
)

// Whatever the order in which fixes come, each is counted when it is found to be a jump.
func TestAJumpIsCountedOnceItIsOne(t *testing.T) {
	const top, second = 300, int64(1e6)
	jumpsOf := func(fixes []geofence.Fix) (n int) {
		for i := 1; i+1 < len(fixes); i++ {
			if !geofence.Plausible(fixes[i-1], fixes[i], top) && !geofence.Plausible(fixes[i], fixes[i+1], top) {
				n++
			}
		}
		return n
	}
	var all, most int
	rapid.Check(t, func(t *rapid.T) {
		var have []geofence.Fix
		times := rapid.SliceOfNDistinct(rapid.Int64Range(0, 40), 1, 12, func(n int64) int64 { return n }).Draw(t, "times")
		inOrder := rapid.Bool().Draw(t, "in order")
		if inOrder {
			slices.Sort(times)
		}
		counted := 0
		for len(times) > 0 {
			// One transaction, whose records make windows with whatever lies between.
			var list []window
			for n := rapid.IntRange(1, min(3, len(times))).Draw(t, "at once"); n > 0; n-- {
				list = append(list, window{lo: times[0], hi: times[0], added: []int64{times[0] * second}})
				times = times[1:]
			}
			slices.SortFunc(list, func(a, b window) int { return int(a.lo - b.lo) })
			before := jumpsOf(have)
			var added []int64
			for _, w := range list {
				f := geofence.Fix{TimeUS: w.lo * second, Latitude: 48, Longitude: rapid.SampledFrom([]float64{11, 11, 11, -11, 60}).Draw(t, "longitude")}
				i, _ := slices.BinarySearchFunc(have, f.TimeUS, func(f geofence.Fix, us int64) int { return int(f.TimeUS - us) })
				have, added = slices.Insert(have, i, f), append(added, f.TimeUS)
			}
			if len(list) > 1 && rapid.Bool().Draw(t, "joined") {
				list = []window{{lo: list[0].lo, hi: list[len(list)-1].hi}}
			}
			var of []reach
			for _, w := range list {
				known, _ := slices.BinarySearchFunc(have, w.lo*second, func(f geofence.Fix, us int64) int { return int(f.TimeUS - us) })
				end, _ := slices.BinarySearchFunc(have, w.hi*second+1, func(f geofence.Fix, us int64) int { return int(f.TimeUS - us) })
				of = append(of, reach{track: &track{fixes: have}, top: top, known: known, behind: len(have) - end, first: true, last: true, added: added, stored: added})
			}
			n := newJumps(of)
			require.Equal(t, max(0, jumpsOf(have)-before), n, "%v", have)
			counted += n
		}
		if inOrder {
			require.Equal(t, jumpsOf(have), counted)
		}
		all, most = all+counted, max(most, counted)
	})
	t.Logf("%d jumps, %d in one track", all, most)
	require.Greater(t, most, 2)
}

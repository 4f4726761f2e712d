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
		for _, at := range times {
			f := geofence.Fix{TimeUS: at * second, Latitude: 48, Longitude: rapid.SampledFrom([]float64{11, 11, 11, -11, 60}).Draw(t, "longitude")}
			before := jumpsOf(have)
			i, _ := slices.BinarySearchFunc(have, f.TimeUS, func(f geofence.Fix, us int64) int { return int(f.TimeUS - us) })
			have = slices.Insert(have, i, f)
			r := &reach{track: &track{fixes: have}, top: top, known: i, behind: len(have) - i - 1, first: true, last: true}
			n := r.newJumps()
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

package pipeline

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// A batch derives the crossings of a device itself only if all fixes in it, and the
// one before them, take part for sure; otherwise it names the device.
func TestABatchDerivesNothingThatAJumpMayTakeAway(t *testing.T) {
	set, refused := geofence.NewSet([]geofence.Fence{{
		ID: "square", Kind: geofence.Area, Enabled: true, Valid: geofence.Always,
		Geometry: `{"type":"Polygon","coordinates":[[[11,48],[11.002,48],[11.002,48.002],[11,48.002],[11,48]]]}`,
	}})
	require.Empty(t, refused)
	const second, top = int64(1e6), 300
	rules := protocol.Rules{Fences: &protocol.Fences{Set: set, Versions: []int{1}}, Eligibility: telemetry.Eligibility{MaxSpeed: top}, MaxGap: time.Hour}
	rapid.Check(t, func(t *rapid.T) {
		place := rapid.SampledFrom([]float64{10.999, 11.001, 11.001, -11.001})
		s := newState(10, 1, func() {})
		d := s.learn("1", 0, geofence.Fix{TimeUS: never})
		var list []geofence.Fix
		certain := rapid.Bool().Draw(t, "known") // of the fix before
		if certain {
			d = s.learn("1", 0, geofence.Fix{Latitude: 48.001, Longitude: place.Draw(t, "base"), Speed: 53})
			list = append(list, d.fix())
			certain = rapid.Bool().Draw(t, "settled")
			d.settled = certain
		} else {
			certain = true
		}
		before := len(list)
		b := &batch{}
		b.reset(1, false)
		b.rules = rules
		lastIsLate := false
		for _, at := range rapid.SliceOfNDistinct(rapid.Int64Range(-3, 20), 1, 6, func(n int64) int64 { return n }).Draw(t, "times") {
			r := telemetry.Record{DeviceID: "1", TimeUS: at * 10 * second, Latitude: 48.001, Longitude: place.Draw(t, "place"), Speed: 53.4}
			if before > 0 && at == 0 {
				continue
			}
			b.place(d, &r, true)
			if lastIsLate = before > 0 && at < 0; !lastIsLate {
				list = append(list, geofence.Fix{TimeUS: r.TimeUS, Latitude: r.Latitude, Longitude: r.Longitude, Speed: 53})
			}
		}
		b.seal()
		slices.SortFunc(list, func(a, b geofence.Fix) int { return cmp.Compare(a.TimeUS, b.TimeUS) })
		plausible := true
		for i := 1; i < len(list); i++ {
			last := geofence.Plausible(list[i-1], list[i], top)
			plausible = plausible && last
			if i == len(list)-1 && d.settled {
				require.True(t, last, "a settled device's last position takes part")
			}
		}
		if lastIsLate {
			require.False(t, d.settled, "what a late record makes of the last position is not known")
		}
		if len(b.undecided) > 0 {
			require.Empty(t, b.crossings)
			return
		}
		if len(list) == before {
			return
		}
		require.True(t, plausible && certain, "%v", list)
		want := set.Track(nil, list, rules.MaxGap, before == 0)
		var got []geofence.Crossing
		for _, c := range b.crossings {
			got = append(got, c.Crossing)
		}
		require.Equal(t, want, got)
	})
}

// What is followed of a device in memory is bounded, and goes with its state: a device that
// sends no more would keep its set of fences for ever.
func TestWhatIsFollowedOfADeviceIsBounded(t *testing.T) {
	for _, n := range []int{mostKept, mostKept + 1} {
		var fences []geofence.Fence
		for i := range n {
			fences = append(fences, geofence.Fence{
				ID: fmt.Sprint("depot", i), Kind: geofence.Circle, Enabled: true, Valid: geofence.Always, RadiusM: 100, ExitMarginM: 100, MinDwellS: 60,
				Geometry: `{"type":"Point","coordinates":[11,48]}`,
			})
		}
		set, refused := geofence.NewSet(fences)
		require.Empty(t, refused)
		s := newState(10, 2, func() {})
		d := s.learn("1", 1, geofence.Fix{TimeUS: never})
		b := &batch{}
		b.reset(1, false)
		b.rules, b.open, b.kept, b.bereft = protocol.Rules{Fences: &protocol.Fences{Set: set, Versions: make([]int, n)}, MaxGap: time.Hour}, s.open, s.kept, s.bereft
		for at, latitude := range []float64{48.01, 48} { // in: the dwell begins
			r := telemetry.Record{DeviceID: "1", TimeUS: int64(at) * 10e6, Latitude: latitude, Longitude: 11}
			b.place(d, &r, true)
		}
		b.seal()
		if n > mostKept {
			require.Empty(t, s.kept)
			require.Contains(t, s.open, d, "nothing is known for the dwell")
			continue
		}
		require.Len(t, s.kept[d], n)
		require.Empty(t, b.undecided)
		s.invalidate(0)
		require.Len(t, s.kept, 1)
		s.invalidate(1)
		require.Empty(t, s.kept)
	}
}

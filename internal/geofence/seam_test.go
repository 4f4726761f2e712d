package geofence_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trmtracking/processor/internal/geofence"
)

// Longitudes and latitudes with all their digits, wherever they come to lie
// once they are moved round the world.
func drawIn(t *rapid.T, label string, west, south, east, north float64) geofence.Fix {
	lon := rapid.Float64Range(west, east).Draw(t, label+" lon")
	return at(turn(lon), rapid.Float64Range(south, north).Draw(t, label+" lat"))
}

func TestWaysInsideMeetNoSeam(t *testing.T) {
	// The parts have different positions along the cut.
	wide := geometry("MultiPolygon", [][][]position{
		{box(60, -60, 180, 60)},
		{{{-180, -61}, {-60, -60}, {-60, 60}, {-180, 63}, {-180, 7.7}, {-180, -61}}},
	})
	slanted := geometry("MultiPolygon", [][][]position{
		{{{0, 0}, {10, 0}, {7.3, 9.1}, {0, 0}}}, {{{0, 0}, {7.3, 9.1}, {-3, 8}, {0, 0}}},
	})
	tests := []struct {
		name                     string
		fence                    geofence.Fence
		west, south, east, north float64
	}{
		{"cut at the antimeridian", area("f", wide), 60, -60, 300, 60},
		{"parts with a slanted border", area("f", slanted), 3.1, 4, 6.5, 6.5},
		{"band round the world", area("f", polygon(box(-180, 40, 180, 60))), -180, 40, 180, 60},
		{"ring round the pole", area("f", polygon([]position{{-33.3, 50}, {86.1, 50}, {-154.2, 50}, {-33.3, 50}})), -180, 50, 180, 90},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set := setOf(t, tt.fence)
			rapid.Check(t, func(t *rapid.T) {
				w := way(drawIn(t, "p", tt.west, tt.south, tt.east, tt.north), drawIn(t, "q", tt.west, tt.south, tt.east, tt.north))
				if d := math.Abs(w[0].Longitude - w[1].Longitude); tt.name == "cut at the antimeridian" && d < 180 && w[0].Longitude*w[1].Longitude < 0 {
					t.Skip("the short way leads outside")
				}
				require.NotEmpty(t, set.At(nil, w[0]))
				require.NotEmpty(t, set.At(nil, w[1]))
				require.Empty(t, set.Crossings(nil, w[0], w[1], noGap))
			})
		})
	}
}

// Many edges are looked up by latitude; what is found must not differ.
func TestFencesOfManyCornersAgreeWithThePointTest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		corners := rapid.IntRange(20, 400).Draw(t, "corners")
		lon := rapid.SampledFrom([]float64{10, 179.5}).Draw(t, "center")
		ring := star(lon, 48, 1, corners, r)
		set := setOf(t, area("a", polygon(ring)))
		drawn := func(label string) geofence.Fix { return drawIn(t, label, lon-1.1, 46.9, lon+1.1, 49.1) }
		w := way(drawn("p"), drawn("q"))
		crossings := set.Crossings(nil, w[0], w[1], noGap)
		requireConsistent(t, set, w[0], w[1], crossings)
		if lon == 10 {
			require.Equal(t, rationalInside(ring, position{w[0].Longitude, w[0].Latitude}), len(set.At(nil, w[0])) > 0)
		}
		for _, v := range ring { // through a corner goes what belongs to both of its edges
			p, q := w[0], w[1]
			if (v[0]-p.Longitude)*(q.Latitude-p.Latitude) == (v[1]-p.Latitude)*(q.Longitude-p.Longitude) {
				t.Skip("through a corner")
			}
		}
		// A few edges at a time say where the border is met.
		met := 0
		for i := 1; i < len(ring); i++ {
			met += len(setOf(t, gate("g", line(ring[i-1], ring[i]))).Crossings(nil, w[0], w[1], noGap))
		}
		require.Len(t, crossings, met)
	})
}

// Beside an edge every digit of a longitude counts, and moving it round the
// world rounds it.
func TestRoundThePoleTheLastDigitsAgree(t *testing.T) {
	corners := []position{{-33.3, 50}, {86.1, 57.7}, {-154.2, 61.3}, {-33.3, 50}}
	sets := []*geofence.Set{
		setOf(t, area("f", polygon(corners))),
		setOf(t, area("f", polygon([]position{{-180, -50}, {180, -50}, {180, 61.3}, {86.1, 57.7}, {-33.3, 50}, {-154.2, 61.3}, {-180, 61.3}, {-180, -50}}))),
	}
	rapid.Check(t, func(t *rapid.T) {
		set := rapid.SampledFrom(sets).Draw(t, "set")
		drawn := func(label string) geofence.Fix {
			i, f := rapid.IntRange(0, 1).Draw(t, label+" edge"), rapid.Float64Range(0, 1).Draw(t, label+" f")
			a, b := corners[i], corners[i+1]
			if i == 1 {
				b[0] += 360
			}
			return at(turn(a[0]+f*(b[0]-a[0])), a[1]+f*(b[1]-a[1]))
		}
		for range 30 {
			w := way(drawn("p"), drawn("q"))
			requireConsistent(t, set, w[0], w[1], set.Crossings(nil, w[0], w[1], noGap))
		}
	})
}

func TestHoleWiderThanHalfTheWorldIsMetFromAnySide(t *testing.T) {
	set := setOf(t, area("f", polygon(
		[]position{{170, 50}, {-70, 50}, {50, 50}, {170, 50}},
		[]position{{160, 60}, {-50, 60}, {100, 60}, {100, 70}, {-50, 70}, {160, 70}, {160, 60}})))
	w := way(at(-179, 65), at(2, 65))
	requireConsistent(t, set, w[0], w[1], set.Crossings(nil, w[0], w[1], noGap))
	require.Len(t, set.Crossings(nil, w[0], w[1], noGap), 2)
	w = way(at(2, 65), at(-179, 65))
	require.Len(t, set.Crossings(nil, w[0], w[1], noGap), 2)
}

package geofence_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
)

func corridor(id string, widthM float64, positions ...position) geofence.Fence {
	f := area(id, line(positions...))
	f.WidthM = widthM
	return f
}

const degreeM = geofence.EarthRadiusM * math.Pi / 180

func TestACorridorIsAnAreaRoundALine(t *testing.T) {
	set := setOf(t, corridor("c", 100, position{11, 48}, position{11.01, 48}, position{11.01, 48.01}))
	north := func(m float64) float64 { return m / degreeM }
	for _, tt := range []struct {
		name string
		fix  geofence.Fix
		want bool
	}{
		{"on the line", at(11.005, 48), true},
		{"49.9 m beside it", at(11.005, 48-north(49.9)), true},
		{"50.1 m beside it", at(11.005, 48-north(50.1)), false},
		{"49.9 m before its begin", at(11-north(49.9)/math.Cos(48*math.Pi/180), 48), true},
		{"50.1 m before its begin", at(11-north(50.1)/math.Cos(48*math.Pi/180), 48), false},
		{"beyond the corner of a square round its begin", at(11-north(40)/math.Cos(48*math.Pi/180), 48-north(40)), false},
		{"outside the bend, within its radius", at(11.01+north(30)/math.Cos(48*math.Pi/180), 48-north(30)), true},
	} {
		require.Equal(t, tt.want, len(set.At(nil, tt.fix)) > 0, tt.name)
	}
	require.Equal(t, []string{"enter c 0.450s", "exit c 0.550s"},
		brief(set.Track(nil, way(at(11.005, 48-north(500)), at(11.005, 48+north(500))), noGap, false)), "across")
	require.Empty(t, set.Track(nil, way(at(11, 48), at(11.01, 48), at(11.01, 48.01)), noGap, false), "along it")
}

// Promise 2, and where a crossing is the distance from the line is half of the
// width.
func TestCrossingsOfCorridorsAgreeWithThePointTest(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	met := 0
	for range 1000 {
		center := []position{{11, 48}, {179.99, -17}, {-60, 80}, {0, 0}}[r.IntN(4)]
		size := []float64{0.001, 0.05, 2}[r.IntN(3)]
		draw := func() position {
			return position{turn(center[0] + size*(r.Float64()-.5)), center[1] + size*(r.Float64()-.5)}
		}
		var drawn []position
		for range 2 + r.IntN(20) {
			drawn = append(drawn, draw())
		}
		f := corridor("c", degreeM*size*(0.001+0.2*r.Float64()), drawn...)
		set := setOf(t, f)
		wider, narrower := f, f
		wider.WidthM, narrower.WidthM = f.WidthM*(1+1e-9)+1e-3, f.WidthM*(1-1e-9)-1e-3
		around, within := setOf(t, wider), setOf(t, narrower)
		for range 20 {
			p, q := draw(), draw()
			w := way(at(p[0], p[1]), at(q[0], q[1]))
			crossings := set.Crossings(nil, w[0], w[1], noGap)
			requireConsistent(t, set, w[0], w[1], crossings)
			met += len(crossings)
			for i, c := range crossings {
				require.NotEmpty(t, around.At(nil, at(c.Longitude, c.Latitude)), "corridor %v way %v", f, w)
				require.Empty(t, within.At(nil, at(c.Longitude, c.Latitude)), "corridor %v way %v", f, w)
				require.False(t, i > 0 && c.Kind == geofence.Enter && c.TimeUS == crossings[i-1].TimeUS, "seam: corridor %v way %v", f, w)
			}
		}
	}
	require.Greater(t, met, 5000)
}

// Ordinals are stored as smallint: beyond it two crossings of a leg would have one key.
func TestTheCrossingsOfALegByTheLongestCorridorCanBeNumbered(t *testing.T) {
	zigzag := func(vertices int) geofence.Fence {
		drawn := make([]position, vertices)
		for i := range drawn {
			drawn[i] = position{11 + float64(i)*1e-4, 48 + 0.01*float64(1-2*(i%2))}
		}
		return corridor("zigzag", 1, drawn...)
	}
	require.ErrorContains(t, zigzag(geofence.MaxVertices).Check(), "a corridor has 20000 vertices, at most 16384 are allowed: simplify it")
	crossings := setOf(t, zigzag(16384)).Track(nil, way(at(10.9, 48), at(13, 48)), noGap, false)
	require.Len(t, crossings, 2*16383, "each edge is entered and left")
	for i := range crossings {
		require.Equal(t, i, crossings[i].Ordinal)
		require.LessOrEqual(t, crossings[i].Ordinal, math.MaxInt16)
	}
}

func TestCorridorsThatAreRefused(t *testing.T) {
	a, b := position{11, 48}, position{11.1, 48}
	for _, tt := range []struct {
		name, want string
		fence      geofence.Fence
	}{
		{"width 0", "width_m 0 is not above 0", corridor("c", 0, a, b)},
		{"negative", "width_m -3 is not above 0", corridor("c", -3, a, b)},
		{"not a number", "width_m NaN is not above 0", corridor("c", math.NaN(), a, b)},
		{"too wide", "width_m 1e+06 is not above 0 and at most 100000", corridor("c", 1e6, a, b)},
		{"no length", "line has no length", corridor("c", 10, a, a)},
		{"at a pole", "between 85 degrees south and north", corridor("c", 10, a, position{11, 86})},
		{"a width of a polygon", "only a corridor has one", geofence.Fence{ID: "c", Kind: geofence.Area, Geometry: polygon(box(0, 0, 1, 1)), WidthM: 5, Valid: geofence.Always}},
		{"a width of a gate", "only a corridor has one", geofence.Fence{ID: "c", Kind: geofence.Gate, Geometry: line(a, b), WidthM: 5, Valid: geofence.Always}},
	} {
		require.ErrorContains(t, tt.fence.Check(), tt.want, tt.name)
	}
}

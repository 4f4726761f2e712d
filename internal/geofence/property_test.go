package geofence_test

import (
	"math"
	"math/big"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trmtracking/processor/internal/geofence"
)

// drawRing draws a ring around the origin whose corners lie on a coarse grid,
// so that fixes on the same grid hit corners and edges.
func drawRing(t *rapid.T) []position {
	n := rapid.IntRange(3, 9).Draw(t, "corners")
	ring := make([]position, 0, n+1)
	for i := range n {
		angle := (float64(i) + rapid.Float64Range(-0.3, 0.3).Draw(t, "turn")) / float64(n) * 2 * math.Pi
		r := rapid.Float64Range(4, 16).Draw(t, "reach")
		ring = append(ring, position{math.Round(r * math.Cos(angle)), math.Round(r * math.Sin(angle))})
	}
	return append(ring, ring[0])
}

// drawArea draws a set with one valid area of one or two parts, the first
// perhaps with a hole, around the origin of a grid with the given step and
// corner.
func drawArea(t *rapid.T, place func(position) position) *geofence.Set {
	moved := func(ring []position, by position) []position {
		out := make([]position, len(ring))
		for i, p := range ring {
			out[i] = place(position{p[0] + by[0], p[1] + by[1]})
		}
		return out
	}
	parts := [][][]position{{moved(drawRing(t), position{})}}
	if rapid.Bool().Draw(t, "hole") {
		parts[0] = append(parts[0], moved(box(-2, -2, 2, 1), position{}))
	}
	if rapid.Bool().Draw(t, "second part") {
		parts = append(parts, [][]position{moved(drawRing(t), position{
			float64(rapid.IntRange(5, 35).Draw(t, "part dx")), float64(rapid.IntRange(-10, 10).Draw(t, "part dy")),
		})})
	}
	set, refused := geofence.NewSet([]geofence.Fence{area("a", geometry("MultiPolygon", parts))})
	if len(refused) > 0 {
		t.Skip(refused[0].Error())
	}
	return set
}

func drawFix(t *rapid.T, place func(position) position, label string) geofence.Fix {
	grid := rapid.IntRange(-20, 30)
	p := position{float64(grid.Draw(t, label+" x")), float64(grid.Draw(t, label+" y"))}
	if rapid.Bool().Draw(t, label+" off the grid") {
		p[0] += rapid.Float64Range(-1, 1).Draw(t, label+" dx")
		p[1] += rapid.Float64Range(-1, 1).Draw(t, label+" dy")
	}
	p = place(p)
	return at(p[0], p[1])
}

func plain(p position) position { return position{p[0] / 64, p[1] / 64} }

// drawPlace draws a grid that lies anywhere, also across the antimeridian and
// at distances at which longitudes are rounded.
func drawPlace(t *rapid.T) func(position) position {
	center := rapid.SampledFrom([]position{{0, 0}, {13.1, 47.3}, {180, -17}, {-179.97, 65.2}, {179.9, 88}}).Draw(t, "center")
	step := rapid.SampledFrom([]float64{1.0 / 64, 0.001, 0.01}).Draw(t, "step")
	return func(p position) position {
		return position{turn(center[0] + p[0]*step), center[1] + p[1]*step}
	}
}

func turn(lon float64) float64 {
	switch {
	case lon > 180:
		return lon - 360
	case lon < -180:
		return lon + 360
	}
	return lon
}

// Promise 2.
func TestCrossingsAgreeWithThePointTestEverywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		place := drawPlace(t)
		set := drawArea(t, place)
		fixes := way(drawFix(t, place, "p"), drawFix(t, place, "q"))
		crossings := set.Crossings(nil, fixes[0], fixes[1], noGap)
		requireConsistent(t, set, fixes[0], fixes[1], crossings)
	})
}

// Between two crossings the point test holds what the crossings say.
func TestCrossingsAgreeWithThePointTestOnTheWay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := drawArea(t, plain)
		fixes := way(drawFix(t, plain, "p"), drawFix(t, plain, "q"))
		p, q := fixes[0], fixes[1]
		q.TimeUS = 1e12
		crossings := set.Crossings(nil, p, q, noGap)
		for i := 1; i < 40; i++ {
			f := float64(i) / 40
			now := int64(f * 1e12)
			in, near := len(set.At(nil, p)) > 0, false
			for _, c := range crossings {
				near = near || math.Abs(float64(c.TimeUS-now)) < 1000
				if c.TimeUS <= now {
					in = c.Kind == geofence.Enter
				}
			}
			fix := at(p.Longitude+f*(q.Longitude-p.Longitude), p.Latitude+f*(q.Latitude-p.Latitude))
			if !near && !onEdge(set, fix) {
				require.Equal(t, in, len(set.At(nil, fix)) > 0, "at %v of the way", f)
			}
		}
	})
}

// onEdge reports whether the point test changes within rounding of the fix: then
// the way runs along an edge and the rounded fix beside it.
func onEdge(set *geofence.Set, fix geofence.Fix) bool {
	const d = 1e-12
	in := 0
	for _, by := range []position{{d, d}, {d, -d}, {-d, d}, {-d, -d}} {
		in += len(set.At(nil, at(fix.Longitude+by[0], fix.Latitude+by[1])))
	}
	return in != 0 && in != 4
}

// Promises 2 and 4.
func TestCrossingsOfCirclesAgreeWithThePointTest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lat := rapid.Float64Range(-90, 90)
		lon := rapid.Float64Range(-180, 180)
		latC, lonC := lat.Draw(t, "lat"), lon.Draw(t, "lon")
		c := circle("c", latC, lonC, rapid.Float64Range(1, 2e6).Draw(t, "radius"))
		set := setOf(t, c)
		near := rapid.Float64Range(-20, 20)
		fix := func(label string) geofence.Fix {
			if rapid.Bool().Draw(t, label+" far") {
				return at(lon.Draw(t, label+" lon"), lat.Draw(t, label+" lat"))
			}
			var center position
			for i := range 2 {
				center[i] = c.RadiusM / 111e3 * near.Draw(t, label) / 10
			}
			return at(turn(lonC+center[0]), min(max(latC+center[1], -90), 90))
		}
		fixes := way(fix("p"), fix("q"))
		if math.Abs(fixes[0].Longitude) > 180 || math.Abs(fixes[1].Longitude) > 180 {
			t.Skip("more than once round")
		}
		crossings := set.Crossings(nil, fixes[0], fixes[1], noGap)
		requireConsistent(t, set, fixes[0], fixes[1], crossings)
		// Each crossing lies on the circle, to a millimetre.
		larger, smaller := c, c
		larger.RadiusM, smaller.RadiusM = c.RadiusM+0.001, c.RadiusM-0.001
		for _, c := range crossings {
			if c.TimeUS == fixes[0].TimeUS || c.TimeUS == fixes[1].TimeUS {
				continue
			}
			require.NotEmpty(t, setOf(t, larger).At(nil, at(c.Longitude, c.Latitude)))
			require.Empty(t, setOf(t, smaller).At(nil, at(c.Longitude, c.Latitude)))
		}
	})
}

// Promise 5.
func TestPointTestIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ring := drawRing(t)
		set, refused := geofence.NewSet([]geofence.Fence{area("a", polygon(ring))})
		if len(refused) > 0 {
			t.Skip(refused[0].Error())
		}
		grid := rapid.Float64Range(-17, 17)
		p := position{grid.Draw(t, "x"), grid.Draw(t, "y")}
		if rapid.Bool().Draw(t, "near an edge") {
			i, f := rapid.IntRange(1, len(ring)-1).Draw(t, "edge"), rapid.Float64Range(1e-50, 1).Draw(t, "f")
			p = position{
				ring[i-1][0] + f*(ring[i][0]-ring[i-1][0]),
				ring[i-1][1] + f*(ring[i][1]-ring[i-1][1]),
			}
		}
		for i := range p {
			if math.Abs(p[i]) < 1e-60 { // counts as zero
				p[i] = 0
			}
		}
		require.Equal(t, rationalInside(ring, p), len(set.At(nil, at(p[0], p[1]))) > 0)
	})
}

// rationalInside is the textbook ray test in rational arithmetic.
func rationalInside(ring []position, p position) bool {
	rat := func(v float64) *big.Rat { return new(big.Rat).SetFloat64(v) }
	minus := func(a, b float64) *big.Rat { return new(big.Rat).Sub(rat(a), rat(b)) }
	in := false
	for i := 1; i < len(ring); i++ {
		a, b := ring[i-1], ring[i]
		cross := new(big.Rat).Sub(
			new(big.Rat).Mul(minus(b[0], a[0]), minus(p[1], a[1])),
			new(big.Rat).Mul(minus(b[1], a[1]), minus(p[0], a[0]))).Sign()
		if cross == 0 && p[0] >= min(a[0], b[0]) && p[0] <= max(a[0], b[0]) &&
			p[1] >= min(a[1], b[1]) && p[1] <= max(a[1], b[1]) {
			return true
		}
		if (a[1] > p[1]) != (b[1] > p[1]) && (cross > 0) == (b[1] > a[1]) {
			in = !in
		}
	}
	return in
}

func TestTurningTheWorldChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Steps of 1/64 degree and whole turns lose no digit anywhere.
		var shift float64
		moved := func(p position) position { return position{turn(p[0]/64 + shift), p[1] / 64} }
		ring := drawRing(t)
		fixes := [2]position{}
		for i := range fixes {
			grid := rapid.IntRange(-20, 20)
			fixes[i] = position{float64(grid.Draw(t, "x")), float64(grid.Draw(t, "y"))}
		}
		gateLine := []position{fixes[0], {3, 5}, {-4, 9}}
		evaluate := func() ([]string, bool) {
			placed := make([]position, len(ring))
			for i, p := range ring {
				placed[i] = moved(p)
			}
			var drawn []position
			for _, p := range gateLine {
				drawn = append(drawn, moved(p))
			}
			set, refused := geofence.NewSet([]geofence.Fence{area("a", polygon(placed)), gate("g", line(drawn...))})
			p, q := moved(fixes[0]), moved(fixes[1])
			w := way(at(p[0], p[1]), at(q[0], q[1]))
			return brief(set.Crossings(nil, w[0], w[1], noGap)), len(refused) == 0
		}
		want, ok := evaluate()
		if !ok {
			t.Skip("not simple")
		}
		for _, s := range []float64{90, 180, -180, 179.875, -90.5} {
			shift = s
			got, ok := evaluate()
			require.True(t, ok)
			require.Equal(t, want, got, "moved by %v degrees", s)
		}
	})
}

func TestSplittingAWayKeepsItsCrossings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fences := drawArea(t, plain)
		all := []geofence.Fence{fences.Fence(0), circle("c", 0.05, 0.1, 9000), gate("g", line(position{-0.2, -0.1}, position{0.1, 0.3}))}
		set := setOf(t, all...)
		p, q := drawFix(t, plain, "p"), drawFix(t, plain, "q")
		q.TimeUS = 1e9
		middle := at((p.Longitude+q.Longitude)/2, (p.Latitude+q.Latitude)/2)
		middle.TimeUS = 5e8
		whole := set.Crossings(nil, p, q, noGap)
		halves := set.Track(nil, []geofence.Fix{p, middle, q}, noGap, false)
		// A way that grazes a corner or runs along an edge may miss it once the
		// middle is rounded: compare what lasts longer than rounding.
		if runsAlong(set, p, q) {
			t.Skip("along an edge")
		}
		for _, id := range []string{"a", "c", "g"} {
			x, y := lasting(whole, id), lasting(halves, id)
			require.Len(t, y, len(x), "whole %v halves %v", brief(whole), brief(halves))
			for i := range x {
				require.Equal(t, x[i].Kind, y[i].Kind)
				require.InDelta(t, x[i].TimeUS, y[i].TimeUS, 2)
			}
		}
	})
}

// lasting is the fence's crossings without pairs that undo each other at once.
func lasting(all []geofence.Crossing, id string) []geofence.Crossing {
	var kept []geofence.Crossing
	for _, c := range all {
		if c.FenceID != id {
			continue
		}
		if n := len(kept); n > 0 && c.TimeUS-kept[n-1].TimeUS <= 2 && c.Kind != kept[n-1].Kind {
			kept = kept[:n-1]
			continue
		}
		kept = append(kept, c)
	}
	return kept
}

// runsAlong reports whether the way has an edge within rounding for a while.
func runsAlong(set *geofence.Set, p, q geofence.Fix) bool {
	for i := range 21 {
		f := float64(i) / 20
		if onEdge(set, at(p.Longitude+f*(q.Longitude-p.Longitude), p.Latitude+f*(q.Latitude-p.Latitude))) {
			return true
		}
	}
	return false
}

func TestTheWayBackSwapsTheKinds(t *testing.T) {
	swapped := map[geofence.CrossingKind]geofence.CrossingKind{
		geofence.Enter: geofence.Exit, geofence.Exit: geofence.Enter,
		geofence.Forward: geofence.Backward, geofence.Backward: geofence.Forward,
	}
	rapid.Check(t, func(t *rapid.T) {
		fences := drawArea(t, plain)
		set := setOf(t, fences.Fence(0), circle("c", 0.05, 0.1, 9000), gate("g", line(position{-0.2, -0.1}, position{0.1, 0.3}, position{0.3, 0})))
		p, q := drawFix(t, plain, "p"), drawFix(t, plain, "q")
		q.TimeUS = 1e9
		there := set.Crossings(nil, p, q, noGap)
		p.TimeUS, q.TimeUS = q.TimeUS, p.TimeUS
		back := set.Crossings(nil, q, p, noGap)
		for _, id := range []string{"a", "c", "g"} {
			var a, b []geofence.Crossing
			for _, c := range there {
				if c.FenceID == id {
					a = append(a, c)
				}
			}
			for _, c := range slices.Backward(back) {
				if c.FenceID == id {
					b = append(b, c)
				}
			}
			slices.SortStableFunc(b, func(x, y geofence.Crossing) int { return y.Ordinal - x.Ordinal })
			require.Len(t, b, len(a), "%s: there %v back %v", id, brief(there), brief(back))
			for i := range a {
				require.Equal(t, swapped[a[i].Kind], b[i].Kind)
				require.InDelta(t, a[i].TimeUS, 1e9-b[i].TimeUS, 1)
			}
		}
	})
}

package geofence_test

import (
	"math"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
)

func crossings(t *testing.T, set *geofence.Set, fixes ...geofence.Fix) []string {
	t.Helper()
	w := way(fixes...)
	for i := 1; i < len(w); i++ {
		requireConsistent(t, set, w[i-1], w[i], set.Crossings(nil, w[i-1], w[i], noGap))
	}
	return brief(set.Track(nil, w, noGap, false))
}

// Promises 3 and 4.
func TestAWayAcrossAWholeFenceEntersAndLeaves(t *testing.T) {
	set := setOf(t, area("a", polygon(box(1, 0, 2, 1))))
	require.Equal(t, []string{"enter a 0.250s", "exit a 0.500s"}, crossings(t, set, at(0, 0.5), at(4, 0.5)))
	c := set.Crossings(nil, geofence.Fix{TimeUS: 100, Latitude: 0.5}, geofence.Fix{TimeUS: 500, Latitude: 0.5, Longitude: 4}, noGap)
	require.Equal(t, geofence.Crossing{
		FenceID: "a", Kind: geofence.Exit, TimeUS: 300, EarlierUS: 100, LaterUS: 500,
		Latitude: 0.5, Longitude: 2, Ordinal: 1,
		Method: geofence.Interpolated, DistanceM: 444_762.75, SpeedKMH: 4.002865e9, MaxErrorMS: 1,
	}, c[1])
}

// Promise 3.
func TestConcaveFencesAndHolesAreCrossedSeveralTimes(t *testing.T) {
	comb := area("comb", polygon([]position{{1, 0}, {4, 0}, {4, 3}, {3, 3}, {3, 1}, {2, 1}, {2, 3}, {1, 3}, {1, 0}}))
	hole := area("hole", polygon(box(1, 0, 4, 3), box(2, 1, 3, 2)))
	require.Equal(t, []string{"enter comb 0.200s", "exit comb 0.400s", "enter comb 0.600s", "exit comb 0.800s"},
		crossings(t, setOf(t, comb), at(0, 2), at(5, 2)))
	require.Equal(t, []string{"enter hole 0.200s", "exit hole 0.400s", "enter hole 0.600s", "exit hole 0.800s"},
		crossings(t, setOf(t, hole), at(0, 1.5), at(5, 1.5)))
}

// The edge is inside, so the instants inside are closed intervals, and a touch
// is one of no length.
func TestTouchingAnEdgeIsBeingInsideForAnInstant(t *testing.T) {
	set := setOf(t, area("a", polygon([]position{{1, 0}, {2, 1}, {1, 2}, {0, 1}, {1, 0}})))
	tests := []struct {
		name  string
		fixes []geofence.Fix
		want  []string
	}{
		{"corner from outside", []geofence.Fix{at(0, 2), at(2, 2)}, []string{"enter a 0.500s", "exit a 0.500s"}},
		{"corner with a fix on it", []geofence.Fix{at(0, 2), at(1, 2), at(2, 2)}, []string{"enter a 1.000s", "exit a 1.000s"}},
		{"fix on an edge and back", []geofence.Fix{at(0, 0), at(0.5, 0.5), at(0, 0)}, []string{"enter a 1.000s", "exit a 1.000s"}},
		{"fix on an edge from inside", []geofence.Fix{at(1, 1), at(0.5, 0.5), at(1, 1)}, nil},
		{"through two corners", []geofence.Fix{at(-1, 1), at(3, 1)}, []string{"enter a 0.250s", "exit a 0.750s"}},
		{"along an edge", []geofence.Fix{at(-1, 2), at(2, -1)}, []string{"enter a 0.333s", "exit a 0.667s"}},
		{"along an edge, fixes on it", []geofence.Fix{at(0.25, 0.75), at(0.75, 0.25)}, nil},
		{"standing on a corner", []geofence.Fix{at(1, 2), at(1, 2)}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { require.Equal(t, tt.want, crossings(t, set, tt.fixes...)) })
	}
	hole := setOf(t, area("h", polygon(box(-4, -4, 6, 6), []position{{1, 0}, {2, 1}, {1, 2}, {0, 1}, {1, 0}})))
	require.Empty(t, crossings(t, hole, at(0, 2), at(2, 2)), "the corner of a hole is inside")
	require.Empty(t, crossings(t, hole, at(-1, 2), at(2, -1)), "the edge of a hole is inside")
}

func TestGatesArePassedFromLeftToRightForward(t *testing.T) {
	set := setOf(t, gate("g", line(position{0, 0}, position{0, 1}))) // drawn northward
	tests := []struct {
		name  string
		fixes []geofence.Fix
		want  []string
	}{
		{"eastward", []geofence.Fix{at(-1, 0.5), at(1, 0.5)}, []string{"forward g 0.500s"}},
		{"westward", []geofence.Fix{at(1, 0.5), at(-1, 0.5)}, []string{"backward g 0.500s"}},
		{"past the end", []geofence.Fix{at(-1, 1.5), at(1, 1.5)}, nil},
		{"over the end", []geofence.Fix{at(-1, 1), at(1, 1)}, []string{"forward g 0.500s"}},
		{"back over the end", []geofence.Fix{at(1, 1), at(-1, 1)}, []string{"backward g 0.500s"}},
		{"a fix on the line", []geofence.Fix{at(-1, 0.5), at(0, 0.5), at(1, 0.5)}, []string{"forward g 1.000s"}},
		{"a fix on the line, back", []geofence.Fix{at(1, 0.5), at(0, 0.5), at(-1, 0.5)}, []string{"backward g 1.000s"}},
		{"standing on the line", []geofence.Fix{at(-1, 0.5), at(0, 0.5), at(0, 0.5), at(0, 0.6), at(1, 0.5)}, []string{"forward g 1.000s"}},
		{"along the line", []geofence.Fix{at(0, -1), at(0, 2)}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { require.Equal(t, tt.want, crossings(t, set, tt.fixes...)) })
	}
	bent := setOf(t, gate("g", line(position{0, -1}, position{0, 0}, position{1, 1})))
	require.Equal(t, []string{"forward g 0.500s"}, crossings(t, bent, at(-1, 0), at(1, 0)), "the corner is passed once")
	zigzag := setOf(t, gate("g", line(position{0, 0}, position{1, 2}, position{2, 0}, position{3, 2})))
	require.Equal(t, []string{"forward g 0.125s", "backward g 0.375s", "forward g 0.625s"},
		crossings(t, zigzag, at(0, 1), at(4, 1)))
	require.Empty(t, crossings(t, zigzag, at(0, 2), at(2, 2)), "a corner is touched, not passed")
	require.Empty(t, crossings(t, zigzag, at(2, 2), at(0, 2)), "a corner is touched, not passed")
	require.Empty(t, set.Initial(nil, at(0, 0.5)), "nobody is inside a gate")
}

func TestCirclesAreCrossedWhereTheDistanceIsTheRadius(t *testing.T) {
	const degree = geofence.EarthRadiusM * math.Pi / 180
	set := setOf(t, circle("c", 0, 1, degree/2))
	require.Equal(t, []string{"enter c 0.250s", "exit c 0.750s"}, crossings(t, set, at(0, 0), at(2, 0)))
	require.Equal(t, []string{"exit c 0.500s"}, crossings(t, set, at(1, 0), at(1, 1)))
	require.Empty(t, crossings(t, set, at(0, 0.6), at(2, 0.6)))
	require.Len(t, crossings(t, set, at(0.9, 0.495), at(1.1, 0.495)), 2, "a short cut of the rim")
	require.Empty(t, crossings(t, set, at(0.9, 0), at(1.1, 0)))
	pole := setOf(t, circle("p", 89, 0, 3*degree))
	require.NotEmpty(t, pole.At(nil, at(180, 88.5)), "over the pole")
	across := setOf(t, circle("x", -17, 179.9, degree))
	require.NotEmpty(t, across.At(nil, at(-179.9, -17)))
	require.Len(t, crossings(t, across, at(177, -17), at(-177, -17)), 2)
	// Along a parallel round the pole the distance falls, rises and falls.
	twice := setOf(t, circle("t", 60, 0, 29*degree))
	require.Len(t, crossings(t, twice, at(-90, 88), at(90, 60)), 2)
}

func TestTheAntimeridianIsNoBorder(t *testing.T) {
	cut := geometry("MultiPolygon", [][][]position{{box(179, 0, 180, 1)}, {box(-180, 0, -179, 1)}})
	fences := map[string]geofence.Fence{
		"across":              area("f", polygon(box(179, 0, -179, 1))),
		"beyond 180":          area("f", polygon(box(179, 0, 181, 1))),
		"beyond -180":         area("f", polygon(box(-181, 0, -179, 1))),
		"cut at the meridian": area("f", cut),
	}
	for name, f := range fences {
		set := setOf(t, f)
		require.Equal(t, []string{"enter f 0.250s", "exit f 0.750s"}, crossings(t, set, at(178, 0.5), at(-178, 0.5)), name)
		require.Equal(t, []string{"enter f 0.250s", "exit f 0.750s"}, crossings(t, set, at(-178, 0.5), at(178, 0.5)), name)
		require.Empty(t, crossings(t, set, at(179.7, 0.1), at(-179.1, 0.7), at(180, 0.5), at(-180, 0.2), at(-179.5, 1)), name)
		require.Equal(t, []int{0}, set.At(nil, at(180, 0.5)), name)
		require.Equal(t, []int{0}, set.At(nil, at(-180, 0.5)), name)
		require.Empty(t, set.At(nil, at(0, 0.5)), name)
	}
	hole := setOf(t, area("f", polygon(box(170, 0, -170, 1), box(-178, 0.2, -176, 0.4))))
	require.Empty(t, hole.At(nil, at(-177, 0.3)), "a hole written on the other side")
	set := setOf(t, gate("g", line(position{180, 0}, position{-180, 1})))
	require.Equal(t, []string{"forward g 0.500s"}, crossings(t, set, at(179, 0.5), at(-179, 0.5)))
	require.Equal(t, []string{"backward g 0.500s"}, crossings(t, set, at(-179, 0.5), at(179, 0.5)))
}

func TestAreasRoundThePoleOrTheWorldHaveNoSeam(t *testing.T) {
	fences := map[string]geofence.Fence{
		"eastward": area("f", polygon([]position{{-150, 60}, {-30, 60}, {90, 60}, {-150, 60}}, box(-155, 80, -145, 85))),
		"westward": area("f", polygon([]position{{90, 60}, {-30, 60}, {-150, 60}, {90, 60}}, box(-155, 80, -145, 85))),
		"as a box": area("f", polygon(box(-180, 60, 180, 90), box(-155, 80, -145, 85))),
	}
	for name, f := range fences {
		set := setOf(t, f)
		for _, lon := range []float64{-180, -150, -30, 0, 89.3, 90, 180} {
			require.NotEmpty(t, set.At(nil, at(lon, 60)), name)
			require.NotEmpty(t, set.At(nil, at(lon, 90)), name)
			require.Empty(t, set.At(nil, at(lon, 59)), name)
		}
		require.Empty(t, set.At(nil, at(-150, 82)), "%s: in the hole", name)
		require.Empty(t, crossings(t, set,
			at(-170, 70), at(170, 71), at(20, 65.5), at(95, 70), at(-150, 61), at(-30, 88), at(-179, 62), at(179.3, 63)), name)
		require.Equal(t, []string{"exit f 0.500s", "enter f 1.500s"}, crossings(t, set, at(170, 61), at(-170, 59), at(150, 61)), name)
		require.Equal(t, []string{"exit f 0.250s", "enter f 0.750s"}, crossings(t, set, at(-160, 82), at(-140, 82)), name)
	}
	south := setOf(t, area("s", polygon([]position{{0, -70}, {120, -70}, {-120, -70}, {0, -70}})))
	require.NotEmpty(t, south.At(nil, at(33, -89)))
	require.Empty(t, south.At(nil, at(33, -60)))
	world := setOf(t, area("w", polygon(box(-180, -90, 180, 90))))
	require.Empty(t, crossings(t, world, at(-170, 0), at(170, 90), at(0, -90), at(180, 0), at(-180, 0.1), at(-179.3, 1)))
}

func TestAcrossAGapOnlyTheNetChangeCounts(t *testing.T) {
	set := setOf(t,
		area("a", polygon(box(1, 0, 2, 1))), area("b", polygon(box(3, 0, 5, 1))),
		area("c", polygon(box(-1, 0, 5, 1))), gate("g", line(position{2, 0}, position{2, 1})))
	p, q := geofence.Fix{TimeUS: 0, Latitude: 0.5, Longitude: 0}, geofence.Fix{TimeUS: 600e6, Latitude: 0.5, Longitude: 4}
	require.Equal(t, []string{"enter a 150.000s", "exit a 300.000s", "forward g 300.000s", "enter b 450.000s"},
		brief(set.Crossings(nil, p, q, 10*time.Minute)), "the longest way that counts")
	q.TimeUS++
	net := set.Crossings(nil, p, q, 10*time.Minute)
	require.Equal(t, []geofence.Crossing{{
		Fence: 1, FenceID: "b", Kind: geofence.Enter, TimeUS: q.TimeUS, EarlierUS: 0, LaterUS: q.TimeUS, Latitude: 0.5, Longitude: 4,
		Method: geofence.NetChange, DistanceM: 444_762.75, SpeedKMH: 2668.5767, MaxErrorMS: 600_001,
	}}, net)
	requireConsistent(t, set, p, q, net)
	p.TimeUS, q.TimeUS = math.MinInt64, math.MaxInt64
	require.Len(t, set.Crossings(nil, p, q, noGap), 1, "times as far apart as can be")
}

// Promise 2.
func TestFirstFixInsideIsAnInitialEnter(t *testing.T) {
	set := setOf(t, area("a", polygon(box(0, 0, 1, 1))), circle("c", 0, 0, 1000), area("far", polygon(box(5, 5, 6, 6))))
	first := geofence.Fix{TimeUS: 7, Latitude: 0, Longitude: 0}
	require.Equal(t, []geofence.Crossing{
		{Fence: 0, FenceID: "a", Kind: geofence.Enter, TimeUS: 7, EarlierUS: 7, LaterUS: 7, Initial: true, Method: geofence.FirstFix},
		{Fence: 1, FenceID: "c", Kind: geofence.Enter, TimeUS: 7, EarlierUS: 7, LaterUS: 7, Initial: true, Method: geofence.FirstFix},
	}, set.Initial(nil, first))
}

// Membership is judged by the version valid at each fix.
func TestVersionsApplyByTheDeviceTimeOfEachFix(t *testing.T) {
	version := func(from, to int64, f geofence.Fence) geofence.Fence {
		f.Valid = geofence.Span{FromUS: from, ToUS: to}
		return f
	}
	left, right := area("f", polygon(box(0, 0, 1, 1))), area("f", polygon(box(2, 0, 3, 1)))
	both := setOf(t, version(math.MinInt64, 100, left), version(100, math.MaxInt64, right))
	fix := func(us int64, lon float64) geofence.Fix {
		return geofence.Fix{TimeUS: us, Latitude: 0.5, Longitude: lon}
	}
	net := func(set *geofence.Set, p, q geofence.Fix) []geofence.CrossingKind {
		all := set.Crossings(nil, p, q, noGap)
		requireConsistent(t, set, p, q, all)
		var kinds []geofence.CrossingKind
		for _, c := range all {
			require.Equal(t, q.TimeUS, c.TimeUS, "at the later fix")
			kinds = append(kinds, c.Kind)
		}
		return kinds
	}
	enter, exit := []geofence.CrossingKind{geofence.Enter}, []geofence.CrossingKind{geofence.Exit}
	require.Empty(t, net(both, fix(99, 0.5), fix(100, 2.5)), "in the old version, then in the new one")
	require.Equal(t, exit, net(both, fix(99, 0.5), fix(100, 0.5)), "the fence moved away")
	require.Equal(t, enter, net(both, fix(99, 2.5), fix(100, 2.5)), "the fence moved here")
	require.Empty(t, net(both, fix(99, -1), fix(100, 4)), "across both: no version holds for the whole way")
	require.Equal(t, enter, net(both, fix(99, -1), fix(100, 2.5)))

	ended := setOf(t, version(math.MinInt64, 100, left))
	require.Equal(t, exit, net(ended, fix(99, 0.5), fix(101, 0.5)), "the fence ended")
	require.Empty(t, net(ended, fix(100, 0.5), fix(101, 0.5)), "the span ends before its end")
	begun := setOf(t, version(100, math.MaxInt64, left))
	require.Equal(t, enter, net(begun, fix(99, 0.5), fix(100, 0.5)), "the fence began")

	off := version(100, math.MaxInt64, right)
	off.Enabled = false
	disabled := setOf(t, version(math.MinInt64, 100, left), off)
	require.Equal(t, exit, net(disabled, fix(99, 0.5), fix(100, 2.5)), "the version is switched off")

	turned := setOf(t, version(math.MinInt64, 100, left), version(100, math.MaxInt64, gate("f", line(position{0.2, 0}, position{0.2, 1}))))
	require.Equal(t, exit, net(turned, fix(99, 0.5), fix(100, 0.1)), "nobody is inside a gate")
	require.Equal(t, []string{"backward f 0.000s"}, brief(turned.Crossings(nil, fix(100, 0.5), fix(101, 0), noGap)))
}

// Promises 1 and 8.
func TestTrackInPiecesGivesTheSameRows(t *testing.T) {
	set := setOf(t, benchFences(3000)...)
	fixes := benchWay()[:3000]
	whole := set.Track(nil, fixes, maxGap, true)
	require.NotEmpty(t, whole)
	var pieces []geofence.Crossing
	for i := 0; i < len(fixes)-1; i += 70 {
		pieces = set.Track(pieces, fixes[i:min(i+71, len(fixes))], maxGap, i == 0)
	}
	require.Equal(t, whole, pieces)
	// Another order of the fences gives the same rows but for their index.
	fences := benchFences(3000)
	for i := range 1500 {
		fences[i], fences[2999-i] = fences[2999-i], fences[i]
	}
	require.Equal(t, whole, setOf(t, fences...).Track(nil, fixes, maxGap, true))
}

// Which version a crossing names depends on the times of the fixes alone, not on
// whether the one in force at the later fix lies near the way or is reached
// within the gap.
func TestAnExitNamesTheVersionAtTheLaterFix(t *testing.T) {
	old, far := area("a", polygon(box(0, 0, 1, 1))), area("a", polygon(box(20, 20, 21, 21)))
	old.Valid.ToUS, far.Valid.FromUS = 500_000, 500_000
	set := setOf(t, old, far)
	inside, outside := geofence.Fix{Latitude: .5, Longitude: .5}, geofence.Fix{TimeUS: 1_000_000, Latitude: .5, Longitude: 3}
	for _, gap := range []time.Duration{time.Hour, 0} {
		c := set.Crossings(nil, inside, outside, gap)
		require.Len(t, c, 1)
		require.Equal(t, 1, c[0].Fence, "gap %v", gap)
	}
	far.Enabled = false
	c := setOf(t, old, far).Crossings(nil, inside, outside, time.Hour)
	require.Len(t, c, 1)
	require.Zero(t, c[0].Fence, "one that is disabled contains nothing and is named by nothing")
}

// A way along a border, whose ends lie on different sides of it by rounding only, meets
// it where the given doubles do: at some place far from both ends.
func TestAWayAlongABorderMeetsItWhereItsDoublesDo(t *testing.T) {
	a, b := position{11, 48}, position{11.01, 48.02}
	corner := position{11.01, 48}
	for _, c := range []struct {
		p, q    position
		seconds int64
	}{
		{position{11.007, 48.014}, position{11.009, 48.018}, 30},
		{position{11.001, 48.002}, position{11.005, 48.01}, 44},
		{position{11.002, 48.004}, position{11.004, 48.008}, 10},
		{position{11.005, 48.01}, position{10.998, 47.996}, 31},
		{position{11.008, 48.016}, position{11.007, 48.014}, 38},
		{position{10.998, 47.996}, position{11.009, 48.018}, 3600},
	} {
		for _, ring := range [][]position{{a, corner, b, a}, {b, corner, a, b}} {
			set := setOf(t, area("a", polygon(ring)), gate("g", line(ring[0], ring[2])),
				area("parts", geometry("MultiPolygon", [][][]position{{ring}, {{ring[0], ring[2], {10.9, 48.01}, ring[0]}}})))
			p, q := at(c.p[0], c.p[1]), at(c.q[0], c.q[1])
			q.TimeUS = c.seconds * 1e6
			met := make(map[string]bool)
			for _, got := range set.Crossings(nil, p, q, noGap) {
				met[got.FenceID] = true
				if got.Latitude == a[1] { // at the corner
					continue
				}
				f := rationalMeeting(c.p, c.q, a, b)
				require.InDelta(t, f*float64(q.TimeUS), got.TimeUS, 1, "%v %v", c, got)
				require.InDelta(t, c.p[0]+f*(c.q[0]-c.p[0]), got.Longitude, 1e-12, "%v %v", c, got)
				require.InDelta(t, c.p[1]+f*(c.q[1]-c.p[1]), got.Latitude, 1e-12, "%v %v", c, got)
				require.NotEqual(t, "parts", got.FenceID, "%v: a seam between parts", c)
			}
			require.True(t, met["a"] && met["g"], "%v", c)
		}
	}
}

// rationalMeeting is where the way from p to q meets the line from a to b, as the
// fraction of it, without rounding before the end.
func rationalMeeting(p, q, a, b position) float64 {
	rat := func(v float64) *big.Rat { return new(big.Rat).SetFloat64(v) }
	minus := func(a, b float64) *big.Rat { return new(big.Rat).Sub(rat(a), rat(b)) }
	side := func(c position) *big.Rat {
		return new(big.Rat).Sub(
			new(big.Rat).Mul(minus(b[0], a[0]), minus(c[1], a[1])),
			new(big.Rat).Mul(minus(b[1], a[1]), minus(c[0], a[0])))
	}
	from := side(p)
	f, _ := new(big.Rat).Quo(from, new(big.Rat).Sub(from, side(q))).Float64()
	return f
}

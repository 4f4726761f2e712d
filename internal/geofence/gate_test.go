package geofence_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
)

// drawLine draws a line of 3 to 6 positions on a grid that does not touch itself.
func drawLine(r *rand.Rand) ([]position, *geofence.Set) {
	for {
		var drawn []position
		for range 3 + r.IntN(4) {
			if p := (position{float64(r.IntN(9)), float64(r.IntN(9))}); len(drawn) == 0 || drawn[len(drawn)-1] != p {
				drawn = append(drawn, p)
			}
		}
		if len(drawn) < 3 {
			continue
		}
		if set, refused := geofence.NewSet([]geofence.Fence{gate("g", line(drawn...))}); len(refused) == 0 {
			return drawn, set
		}
	}
}

// net counts the passages of a track, those backward negative.
func net(set *geofence.Set, fixes ...geofence.Fix) int {
	sum := 0
	for _, c := range set.Track(nil, way(fixes...), noGap, false) {
		if sum++; c.Kind == geofence.Backward {
			sum -= 2
		}
	}
	return sum
}

// A fix exactly on an inner position counts as the net of the way just beside the
// corner, whichever side of it that is.
func TestAFixOnACornerOfAGateCountsAsTheWayBesideIt(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	ways := 0
	for ways < 41_111 {
		drawn, set := drawLine(r)
		for range 20 {
			i := 1 + r.IntN(len(drawn)-2)
			corner := at(drawn[i][0], drawn[i][1])
			p := at(r.Float64()*10-1, r.Float64()*10-1)
			q := at(r.Float64()*10-1, r.Float64()*10-1)
			// Near enough that nothing else of the line lies between.
			beside := at(corner.Longitude+(r.Float64()-.5)*1e-9, corner.Latitude+(r.Float64()-.5)*1e-9)
			require.Equal(t, net(set, p, beside, q), net(set, p, corner, q),
				"line %v corner %v from %v to %v beside %v", drawn, corner, p, q, beside)
			ways++
		}
	}
}

// However many fixes lie on the line, and in whatever order they arrive, a way
// from one side to the other is one passage.
func TestAFixOnTheLineIsOnePassage(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 3000 {
		drawn, set := drawLine(r)
		// A corner, the middle of an edge, an end: all exactly on the line.
		on := func() geofence.Fix {
			i := r.IntN(len(drawn) - 1)
			a, b := drawn[i], drawn[i+1]
			f := float64(r.IntN(3)) / 2
			return at(a[0]+f*(b[0]-a[0]), a[1]+f*(b[1]-a[1]))
		}
		fix := on()
		for range 10 {
			p, q := at(r.Float64()*10-1, r.Float64()*10-1), at(r.Float64()*10-1, r.Float64()*10-1)
			once := net(set, p, fix, q)
			fixes := []geofence.Fix{p}
			for range 1 + r.IntN(4) {
				fixes = append(fixes, fix)
			}
			require.Equal(t, once, net(set, append(fixes, q)...), "line %v fix %v from %v to %v", drawn, fix, p, q)
			into, out := net(set, p, fix), net(set, fix, q)
			require.Equal(t, once, into+out)
			require.LessOrEqual(t, len(set.Crossings(nil, way(p, fix)[0], way(p, fix)[1], noGap)), len(drawn)-1)
		}
	}
}

// Ways along the line, through its corners and from its ends, on the grid.
func TestWaysAlongAGate(t *testing.T) {
	set := setOf(t, gate("g", line(position{0, 0}, position{2, 0}, position{2, 2}, position{4, 2})))
	for _, tt := range []struct {
		name string
		way  []geofence.Fix
		want []string
	}{
		{"along an edge and straight on, into the right", []geofence.Fix{at(0, 0), at(4, 0)}, nil},
		{"from its left onto an edge, along it, and off to the left", []geofence.Fix{at(1, 1), at(1, 0), at(2, 0), at(1, 1)}, []string{"forward g 1.000s", "backward g 2.000s"}},
		{"along the last edge from its left", []geofence.Fix{at(0, 2), at(4, 2)}, []string{"forward g 0.500s"}},
		{"along the last edge to its left", []geofence.Fix{at(4, 2), at(0, 2)}, []string{"backward g 0.500s"}},
		{"through a corner from left to right", []geofence.Fix{at(1, 1), at(3, -1)}, []string{"forward g 0.500s"}},
		{"through a corner, right on both sides", []geofence.Fix{at(1, -1), at(3, 1)}, nil},
		{"beyond an end", []geofence.Fix{at(-1, 0), at(-1, 1)}, nil},
		{"to a corner from its right", []geofence.Fix{at(1, -1), at(2, 0)}, nil},
		{"to a corner from its left", []geofence.Fix{at(1, 1), at(2, 0)}, []string{"forward g 1.000s"}},
	} {
		require.Equal(t, tt.want, brief(set.Track(nil, way(tt.way...), noGap, false)), tt.name)
	}
}

// A gate that ends where it begins has a corner there, and no ends.
func TestAClosedGateHasNoEnds(t *testing.T) {
	set := setOf(t, gate("g", line(box(0, 0, 2, 2)...))) // counterclockwise: left is inside
	require.Equal(t, 1, net(set, at(1, 1), at(-1, -1)), "out through where it closes")
	require.Equal(t, 1, net(set, at(1, 1), at(0, 0), at(-1, -1)))
	require.Equal(t, 0, net(set, at(-1, 0), at(0, 0), at(0, -1)))
	require.Equal(t, 0, net(set, at(-1, 1), at(1, -1)), "touches the corner")
}

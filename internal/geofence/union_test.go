package geofence_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/testenv"
)

// Parts share a slanted border on which only one of them has a position, rounded
// as computed positions are, or to the decimals that people draw with. Each way that stays in
// their union stays inside.
func TestPartsThatShareABorderHaveNoSeam(t *testing.T) {
	for decimals := 6; decimals <= 16; decimals++ {
		t.Run(fmt.Sprintf("%d decimals", decimals), func(t *testing.T) { requireNoSeam(t, decimals) })
	}
}

func requireNoSeam(t *testing.T, decimals int) {
	t.Helper()
	seed := testenv.Seed(t)
	scale := math.Pow(10, float64(decimals))
	rounded := func(p position) position {
		return position{math.Round(p[0]*scale) / scale, math.Round(p[1]*scale) / scale}
	}
	r := rand.New(rand.NewPCG(seed, 1))
	between := func(a, b position, f float64) position {
		return position{a[0] + f*(b[0]-a[0]), a[1] + f*(b[1]-a[1])}
	}
	inside := func(a, b, c position) geofence.Fix { // well inside the triangle
		p := between(between(a, b, 0.1+0.8*r.Float64()), c, 0.05+0.9*r.Float64())
		return at(p[0], p[1])
	}
	for range 100 {
		a := position{11 + r.Float64(), 48 + r.Float64()}
		size := 1.0
		if r.IntN(2) == 0 {
			size = 0.001 // degrees: a yard
		}
		dx, dy := size*(0.2+r.Float64()), size*(r.Float64()-0.5)
		b := position{a[0] + dx, a[1] + dy}
		middle := between(a, b, 0.3+0.4*r.Float64())
		c := position{middle[0] + dy/2, middle[1] - dx/2}
		d := position{middle[0] - dy/2, middle[1] + dx/2}
		m := between(a, b, 0.02+0.96*r.Float64())
		a, b, c, d, m = rounded(a), rounded(b), rounded(c), rounded(d), rounded(m)
		parts := [][][]position{{{a, c, b, a}}, {{a, m, d, a}}, {{m, b, d, m}}}
		r.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		set := setOf(t, area("f", geometry("MultiPolygon", parts)))
		for range 100 {
			p, q := inside(a, b, c), inside(a, b, d)
			border := between(a, b, r.Float64())
			for _, way := range [][]geofence.Fix{
				way(p, q), way(q, p), way(p, at(m[0], m[1]), q), way(q, at(border[0], border[1]), p),
			} {
				require.Empty(t, set.Track(nil, way, noGap, false), "parts %v way %v", parts, way)
			}
		}
	}
}

// Where a part in the frame beyond the antimeridian is met by one that is
// written west of it, their border is one, too.
func TestPartsThatShareABorderBeyondTheAntimeridianHaveNoSeam(t *testing.T) {
	set := setOf(t, area("f", geometry("MultiPolygon", [][][]position{
		{{{170.3, 10}, {-170.7, 10}, {-173.9, 20}, {170.3, 20}, {170.3, 10}}},
		{{{-170.7, 10}, {-160, 10}, {-160, 20}, {-173.9, 20}, {-172.1, 14.375}, {-170.7, 10}}},
	})))
	r := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		p := at(-179+r.Float64(), 11+8*r.Float64())
		q := at(-165+r.Float64(), 11+8*r.Float64())
		require.Empty(t, set.Crossings(nil, way(p, q)[0], way(p, q)[1], noGap), "way %v %v", p, q)
	}
}

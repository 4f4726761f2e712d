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

// Parts share a border, slanted or along an axis, on which only one of them has a position,
// rounded as computed positions are, or to the decimals that people draw with, once or by each
// part apart. Each way that stays in their union stays inside.
func TestPartsThatShareABorderHaveNoSeam(t *testing.T) {
	testenv.Slow(t)
	for decimals := 6; decimals <= 16; decimals++ {
		t.Run(fmt.Sprintf("%d decimals", decimals), func(t *testing.T) {
			scale := math.Pow(10, float64(decimals))
			requireNoSeam(t, func(_ *rand.Rand, p position) position {
				return position{math.Round(p[0]*scale) / scale, math.Round(p[1]*scale) / scale}
			})
		})
	}
	t.Run("apart", func(t *testing.T) { // two roundings to six decimals differ by a step of the sixth
		requireNoSeam(t, func(r *rand.Rand, p position) position {
			return position{p[0] + float64(r.IntN(3)-1)*0.5e-6, p[1] + float64(r.IntN(3)-1)*0.5e-6}
		})
	})
}

// requireNoSeam has each part draw its positions anew.
func requireNoSeam(t *testing.T, draw func(*rand.Rand, position) position) {
	t.Helper()
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 1))
	between := func(a, b position, f float64) position {
		return position{a[0] + f*(b[0]-a[0]), a[1] + f*(b[1]-a[1])}
	}
	inside := func(a, b, c position) geofence.Fix { // well inside the triangle
		p := between(between(a, b, 0.1+0.8*r.Float64()), c, 0.05+0.9*r.Float64())
		return at(p[0], p[1])
	}
	for i := range 160 {
		a := position{11 + r.Float64(), 48 + r.Float64()}
		size := 1.0
		if r.IntN(2) == 0 {
			size = 0.001 // degrees: a yard
		}
		dx, dy := size*(0.2+r.Float64()), size*(r.Float64()-0.5)
		switch i % 4 {
		case 0:
			dx, dy = 0, dx
		case 1:
			dy = 0
		}
		b := position{a[0] + dx, a[1] + dy}
		middle := between(a, b, 0.3+0.4*r.Float64())
		c := position{middle[0] + dy/2, middle[1] - dx/2}
		d := position{middle[0] - dy/2, middle[1] + dx/2}
		m := between(a, b, 0.02+0.96*r.Float64())
		rings := [][]position{{a, c, b}, {a, m, d}, {m, b, d}}
		r.Shuffle(len(rings), func(i, j int) { rings[i], rings[j] = rings[j], rings[i] })
		first := make(map[position]position) // the earlier part's position counts
		var parts [][][]position
		for _, ring := range rings {
			for i, p := range ring {
				ring[i] = draw(r, p)
				if _, drawn := first[p]; !drawn {
					first[p] = ring[i]
				}
			}
			parts = append(parts, [][]position{append(ring, ring[0])})
		}
		a, b, c, d, m = first[a], first[b], first[c], first[d], first[m]
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

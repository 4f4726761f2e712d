package recheck

import (
	"math"
	"math/big"
	"slices"
)

// gate is a directed line. What lies on it counts as lying on its right, and its
// ends belong to it. So it is passed where this other line is: moved to the
// left by less than any distance that two places given in doubles can have, and
// longer by less than that, but much more than it was moved.
type gate struct {
	points []exact
	box    box
}

var (
	aside  = new(big.Rat).SetFrac(big.NewInt(1), new(big.Int).Exp(big.NewInt(10), big.NewInt(160), nil))
	longer = new(big.Rat).SetFrac(big.NewInt(1), new(big.Int).Exp(big.NewInt(10), big.NewInt(80), nil))
)

func newGate(points []point, turns []int) *gate {
	r := newRing(points, turns)
	g := &gate{box: r.box}
	var xs []point // without places that repeat the one before
	var at []exact
	for i := range points {
		if p := (point{r.x(i), points[i].y}); i == 0 || p != xs[len(xs)-1] {
			xs, at = append(xs, p), append(at, r.exacts[i])
		}
	}
	// directions, rounded: any direction to the left will do
	along := make([]point, len(xs)-1)
	for i := range along {
		dx, dy := xs[i+1].x-xs[i].x, xs[i+1].y-xs[i].y
		n := math.Hypot(dx, dy)
		along[i] = point{dx / n, dy / n}
	}
	last := len(xs) - 1
	closed := last > 2 && xs[0] == xs[last] // has no ends, but one more corner
	for i := range xs {
		before, after := along[max(i-1, 0)], along[min(i, last-1)]
		if closed && (i == 0 || i == last) {
			before, after = along[last-1], along[0]
		}
		p := at[i]
		left := exact{ratio(-before.y - after.y), ratio(before.x + after.x)}
		switch { // longer in exactly its direction
		case closed:
		case i == 0:
			p = moved(p, exact{new(big.Rat).Sub(at[0].x, at[1].x), new(big.Rat).Sub(at[0].y, at[1].y)}, longer)
		case i == last:
			p = moved(p, exact{new(big.Rat).Sub(at[last].x, at[last-1].x), new(big.Rat).Sub(at[last].y, at[last-1].y)}, longer)
		}
		g.points = append(g.points, moved(p, left, aside))
	}
	return g
}

func moved(p, by exact, times *big.Rat) exact {
	x, y := new(big.Rat).Mul(by.x, times), new(big.Rat).Mul(by.y, times)
	return exact{x.Add(x, p.x), y.Add(y, p.y)}
}

// passage is one crossing of a gate.
type passage struct {
	t       *big.Rat
	forward bool // from left to right
}

// passages returns the crossings of the gate by a way, in order. At a corner there may
// be two opposite ones, see along.
func (g *gate) passages(l *line) []passage {
	var found []passage
	for n := -around; n <= around; n++ {
		if !l.box().meets(g.box, n) {
			continue
		}
		shift := new(big.Rat).SetInt64(int64(360 * n))
		for i := range len(g.points) - 1 {
			a := exact{new(big.Rat).Add(g.points[i].x, shift), g.points[i].y}
			b := exact{new(big.Rat).Add(g.points[i+1].x, shift), g.points[i+1].y}
			wasLeft, isLeft := cross(a, b, l.from).Sign() > 0, cross(a, b, l.to).Sign() > 0
			if wasLeft == isLeft {
				continue
			}
			// of two edges that meet on the way, one counts
			if (cross(l.from, l.to, a).Sign() > 0) == (cross(l.from, l.to, b).Sign() > 0) {
				continue
			}
			if t := meeting(nil, l, a, b); len(t) > 0 {
				found = append(found, passage{t[0], wasLeft})
			}
		}
	}
	slices.SortStableFunc(found, func(a, b passage) int { return a.t.Cmp(b.t) })
	return found
}

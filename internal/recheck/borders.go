package recheck

import (
	"cmp"
	"math"
	"slices"
)

// sameDegrees is how near positions of different parts of an area are that count as one: parts
// that share a border are drawn, and rounded, apart, to six decimals or more. Then a position
// and the ends of an edge are each within half a step of the sixth in both directions.
const sameDegrees = 1.5e-6

// corner is a position of a ring: where it is written, and how many turns east
// of there it lies.
type corner struct {
	at   point
	turn int
}

func (c corner) x() float64 { return c.at.x + 360*float64(c.turn) }

// shareBorders makes positions of parts that are the same the same, and gives
// the edges of each part the positions that other parts have on them.
func (a area) shareBorders() {
	if len(a) < 2 {
		return
	}
	for i, g := range a {
		g.redraw(func(r *ring) *ring { return r.snapped(a[:i]) })
	}
	drawn := slices.Clone(a)
	for i, g := range a {
		others := slices.Delete(slices.Clone(drawn), i, i+1)
		again := *g
		again.holes = slices.Clone(g.holes)
		again.redraw(func(r *ring) *ring { return r.divided(others) })
		a[i] = &again
	}
}

func (g *part) redraw(by func(*ring) *ring) {
	g.shell = by(g.shell)
	for i := range g.holes {
		g.holes[i] = by(g.holes[i])
	}
}

// corners yields the positions of the part that are near a box, wherever they
// are moved round the world.
func (g *part) corners(b box, yield func(corner)) {
	b = box{b.west - sameDegrees, b.south - sameDegrees, b.east + sameDegrees, b.north + sameDegrees}
	for n := -2 * around; n <= 2*around; n++ {
		if !b.meets(g.shell.box, n) {
			continue
		}
		for _, r := range append([]*ring{g.shell}, g.holes...) {
			for i, p := range r.points {
				c := corner{p, r.turns[i] + n}
				if x := c.x(); (box{x, p.y, x, p.y}).meets(b, 0) {
					yield(c)
				}
			}
		}
	}
}

func (r *ring) corner(i int) corner { return corner{r.points[i], r.turns[i]} }

func ringOf(corners []corner) *ring {
	points, turns := make([]point, len(corners)), make([]int, len(corners))
	for i, c := range corners {
		points[i], turns[i] = c.at, c.turn
	}
	return newRing(points, turns)
}

func (r *ring) snapped(to area) *ring {
	var drawn []corner
	for i := range r.points {
		c := r.corner(i)
		best, far := c, math.Inf(1)
		for _, g := range to {
			g.corners(box{c.x(), c.at.y, c.x(), c.at.y}, func(o corner) {
				if d := math.Hypot(o.x()-c.x(), o.at.y-c.at.y); d <= sameDegrees && d < far {
					best, far = o, d
				}
			})
		}
		if n := len(drawn); n == 0 || drawn[n-1] != best {
			drawn = append(drawn, best)
		}
	}
	return ringOf(drawn)
}

func (r *ring) divided(by area) *ring {
	drawn := []corner{r.corner(0)}
	for i := range len(r.points) - 1 {
		a, b := r.corner(i), r.corner(i+1)
		dx, dy := b.x()-a.x(), b.at.y-a.at.y
		long := math.Hypot(dx, dy)
		along := func(c corner) float64 { return ((c.x()-a.x())*dx + (c.at.y-a.at.y)*dy) / long }
		var on []corner
		for _, g := range by {
			g.corners(r.edge(i), func(c corner) {
				off := math.Abs((c.x()-a.x())*dy-(c.at.y-a.at.y)*dx) / long
				if c != a && c != b && off <= sameDegrees && along(c) > 0 && along(c) < long {
					on = append(on, c)
				}
			})
		}
		slices.SortFunc(on, func(a, b corner) int { return cmp.Compare(along(a), along(b)) })
		drawn = append(append(drawn, slices.Compact(on)...), b)
	}
	return ringOf(drawn)
}

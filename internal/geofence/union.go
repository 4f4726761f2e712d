package geofence

import (
	"cmp"
	"math"
	"slices"

	"github.com/tidwall/rtree"
)

// together is how far apart, in degrees, positions of different parts may be that
// count as the same: at most 17 cm. Borders are drawn with six decimals or more, and both
// a position and the edge of another part on which it was drawn may be off by 0.71 of
// the last one.
const together = 1.5e-6

// share makes borders that parts of an area share the same edges in each of
// them. Then a way leaves one part at exactly the instant at which it enters the
// next, and no place on the border is between them. A position that is together
// with one of an earlier part becomes it; one that is together with an edge of
// another part, where that has no position, becomes one of it.
func share(parts []*polygon) {
	if len(parts) < 2 {
		return
	}
	copies := 0
	if slices.ContainsFunc(parts, func(g *polygon) bool { return g.exact }) {
		copies = farthest // on the grid turns round the world lose nothing
		for _, g := range parts {
			g.onGrid()
		}
	}
	n := &nodes{copies: copies}
	for i, g := range parts {
		n.snap(g, i)
	}
	for i, g := range parts {
		n.split(g, i)
	}
}

// onGrid rounds the longitudes of the polygon.
func (g *polygon) onGrid() {
	for i := range g.edges {
		g.edges[i].a.x, g.edges[i].b.x = onGrid(g.edges[i].a.x), onGrid(g.edges[i].b.x)
	}
	g.exact = true
}

// nodes are the positions of the parts of an area.
type nodes struct {
	tree   rtree.RTreeG[node]
	copies int // turns round the world at which parts may meet
}

type node struct {
	at   point
	part int
}

// near yields the positions of other parts that are near a box.
func (n *nodes) near(lo, hi point, yield func(node)) {
	for c := -n.copies; c <= n.copies; c++ {
		shift := 360 * float64(c)
		n.tree.Search(
			[2]float64{lo.x - shift - together, lo.y - together}, [2]float64{hi.x - shift + together, hi.y + together},
			func(_, _ [2]float64, found node) bool {
				found.at.x += shift
				yield(found)
				return true
			})
	}
}

// snap moves the positions of part i to those of earlier parts, and adds them.
func (n *nodes) snap(g *polygon, i int) {
	moved := make(map[point]point, len(g.edges))
	for _, e := range g.edges {
		to, best := e.a, math.Inf(1)
		n.near(e.a, e.a, func(o node) {
			if d := math.Hypot(o.at.x-e.a.x, o.at.y-e.a.y); d <= together && d < best {
				to, best = o.at, d
			}
		})
		moved[e.a] = to
	}
	kept := g.edges[:0]
	for _, e := range g.edges {
		if e = (edge{moved[e.a], moved[e.b]}); e.a != e.b {
			kept = append(kept, e)
		}
	}
	g.edges = kept
	for _, p := range moved {
		n.tree.Insert([2]float64{p.x, p.y}, [2]float64{p.x, p.y}, node{p, i})
	}
}

// split divides the edges of part i where other parts have positions.
func (n *nodes) split(g *polygon, i int) {
	edges := make([]edge, 0, len(g.edges))
	for _, e := range g.edges {
		var on []point
		n.near(point{min(e.a.x, e.b.x), min(e.a.y, e.b.y)}, point{max(e.a.x, e.b.x), max(e.a.y, e.b.y)}, func(o node) {
			if o.part != i && e.beside(o.at) {
				on = append(on, o.at)
			}
		})
		along := func(p point) float64 { return (p.x-e.a.x)*(e.b.x-e.a.x) + (p.y-e.a.y)*(e.b.y-e.a.y) }
		slices.SortFunc(on, func(a, b point) int { return cmp.Compare(along(a), along(b)) })
		from := e.a
		for _, p := range slices.Compact(on) {
			edges, from = append(edges, edge{from, p}), p
		}
		edges = append(edges, edge{from, e.b})
	}
	g.edges = edges
	g.measure()
}

// beside reports whether the point is together with the edge, between its ends.
func (e *edge) beside(p point) bool {
	dx, dy := e.b.x-e.a.x, e.b.y-e.a.y
	long := math.Hypot(dx, dy)
	along := ((p.x-e.a.x)*dx + (p.y-e.a.y)*dy) / long
	off := math.Abs((p.x-e.a.x)*dy-(p.y-e.a.y)*dx) / long
	return p != e.a && p != e.b && off <= together && along > 0 && along < long
}

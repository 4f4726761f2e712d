package geofence

import (
	"cmp"
	"math"
	"slices"
)

// gate is a line with two sides.
type gate struct {
	edges    []edge
	closed   bool // the last edge ends where the first begins
	min, max point
}

func newGate(line []point) *gate {
	g := &gate{
		min: point{math.Inf(1), math.Inf(1)},
		max: point{math.Inf(-1), math.Inf(-1)},
	}
	for i, p := range line {
		g.min = point{min(g.min.x, p.x), min(g.min.y, p.y)}
		g.max = point{max(g.max.x, p.x), max(g.max.y, p.y)}
		if i > 0 && line[i-1] != p {
			g.edges = append(g.edges, edge{line[i-1], p})
		}
	}
	n := len(g.edges)
	g.closed = n > 2 && g.edges[0].a == g.edges[n-1].b
	return g
}

// passage is one crossing of a gate.
type passage struct {
	t       float64
	forward bool
}

// passages appends the crossings of the gate by the leg, in order.
//
// What lies on the line counts as lying on its right, so a fix on the line
// belongs to one of the two legs that meet there and the gate is passed once.
// Which side a leg comes from or goes to is decided where it meets the line: at
// a corner by the angle between both edges, not by either of them.
// Two opposite crossings at a corner of the line are none, see takenBack.
func (g *gate) passages(dst []passage, l leg) []passage {
	if l.p == l.q {
		return dst
	}
	for copies := -farthest; copies <= farthest; copies++ {
		p, q := l.shifted(float64(copies))
		lo := point{min(p.x, q.x), min(p.y, q.y)}
		hi := point{max(p.x, q.x), max(p.y, q.y)}
		if hi.x < g.min.x || lo.x > g.max.x || hi.y < g.min.y || lo.y > g.max.y {
			continue
		}
		for i, e := range g.edges {
			if max(e.a.x, e.b.x) < lo.x || min(e.a.x, e.b.x) > hi.x ||
				max(e.a.y, e.b.y) < lo.y || min(e.a.y, e.b.y) > hi.y {
				continue
			}
			oa, ob := orient(p, q, e.a), orient(p, q, e.b)
			switch {
			case oa*ob < 0:
				dst = e.passage(dst, p, q)
			case oa == 0:
				dst = g.passageAt(dst, p, q, e.a, i-1, i)
			}
			if ob == 0 && i == len(g.edges)-1 && !g.closed {
				dst = g.passageAt(dst, p, q, e.b, i, i+1)
			}
		}
	}
	slices.SortStableFunc(dst, func(a, b passage) int { return cmp.Compare(a.t, b.t) })
	return dst
}

// passage appends the crossing of an edge by the way from p to q, whose line
// passes between its ends.
func (e *edge) passage(dst []passage, p, q point) []passage {
	op, oq := orient(e.a, e.b, p), orient(e.a, e.b, q)
	switch {
	case (op > 0) == (oq > 0):
		return dst
	case op == 0:
		return append(dst, passage{0, false})
	case oq == 0:
		return append(dst, passage{1, true})
	}
	return append(dst, passage{meeting(p, q, e.a, e.b), op > 0})
}

// passageAt appends the crossing at the position v of the line, if the way from
// p to q meets it there; before and after are the edges that meet in it.
func (g *gate) passageAt(dst []passage, p, q, v point, before, after int) []passage {
	t := fraction(p, q, v)
	if t < 0 || t > 1 {
		return dst
	}
	was, is := p != v && g.left(before, after, p), q != v && g.left(before, after, q)
	if was != is {
		dst = append(dst, passage{t, was})
	}
	return dst
}

// left reports whether the way from where two edges meet to the point begins on
// the left of the line. At an end of the line the one edge decides: the end
// belongs to the gate.
func (g *gate) left(before, after int, p point) bool {
	if before < 0 && g.closed {
		before = len(g.edges) - 1
	}
	if before < 0 {
		return orient(g.edges[after].a, g.edges[after].b, p) > 0
	}
	a := g.edges[before]
	leftOfA := orient(a.a, a.b, p) > 0
	if after == len(g.edges) {
		return leftOfA
	}
	b := g.edges[after]
	leftOfB := orient(b.a, b.b, p) > 0
	if orient(a.a, a.b, b.b) > 0 { // the line turns to its left, so what is left is the smaller angle
		return leftOfA && leftOfB
	}
	return leftOfA || leftOfB
}

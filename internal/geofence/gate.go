package geofence

import (
	"cmp"
	"math"
	"slices"
)

// gate is a line with two sides.
type gate struct {
	edges    []edge
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
// Two opposite crossings at one instant, at a corner of the line, are none.
func (g *gate) passages(dst []passage, l leg) []passage {
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
			leftP, leftQ := orient(e.a, e.b, p) > 0, orient(e.a, e.b, q) > 0
			if leftP != leftQ && e.between(p, q, i == 0, i == len(g.edges)-1) {
				dst = append(dst, passage{meeting(p, q, e.a, e.b), leftP})
			}
		}
	}
	if len(dst) < 2 {
		return dst
	}
	slices.SortStableFunc(dst, func(a, b passage) int { return cmp.Compare(a.t, b.t) })
	kept := dst[:0]
	for _, p := range dst {
		if n := len(kept); n > 0 && kept[n-1].t == p.t && kept[n-1].forward != p.forward {
			kept = kept[:n-1]
			continue
		}
		kept = append(kept, p)
	}
	return kept
}

// between reports whether the line through p and q passes between the ends of
// the edge. Of two edges that meet on it one counts; the ends of the whole
// line belong to the gate.
func (e *edge) between(p, q point, first, last bool) bool {
	oa, ob := orient(p, q, e.a), orient(p, q, e.b)
	if (oa == 0 && first) || (ob == 0 && last) {
		return true
	}
	return (oa > 0) != (ob > 0)
}

package geofence

import (
	"cmp"
	"math"
	"slices"
)

// span is a closed interval of the way between two fixes as a fraction of it.
// before and after stand for an interval that holds the earlier or the later
// fix, so a span from before to after has no crossing in it.
type span struct{ from, to float64 }

const (
	before = -1.0
	after  = 2.0
)

// leg is the straight way between two fixes in the plane, the short way round
// the world: the later fix counts as lying turn times 360 degrees east of its
// longitude.
type leg struct {
	p, q point
	turn float64
}

// newLeg returns the leg from p to q. A leg of exactly half the world goes as the
// longitudes are written.
func newLeg(p, q point) leg {
	l := leg{p: p, q: q}
	switch d := q.x - p.x; {
	case d > 180:
		l.turn = -1
	case d < -180:
		l.turn = 1
	}
	return l
}

// shifted returns the leg moved copies times round the world. Each longitude is
// rounded once, exactly as in the point test, so the two cannot disagree.
func (l leg) shifted(copies float64) (p, q point) {
	return point{l.p.x + 360*copies, l.p.y}, point{l.q.x + 360*(copies+l.turn), l.q.y}
}

// at returns the point at fraction t of the leg; its longitude may lie outside of
// -180 to 180.
func (l leg) at(t float64) point {
	dx := l.q.x + 360*l.turn - l.p.x
	return point{l.p.x + float64(t*dx), l.p.y + float64(t*(l.q.y-l.p.y))}
}

// edge is a side of a ring.
type edge struct{ a, b point }

// polygon is one shell with its holes, in a frame of its own in which
// longitude is continuous and may leave -180 to 180.
type polygon struct {
	edges    []edge
	min, max point
	// exact: longitudes are rounded to a grid on which turns round
	// the world lose nothing. Only polygons that meet themselves on the far
	// side need it.
	exact bool
	// pole: the polygon contains a pole. It has edges for every longitude that a leg
	// can have, so legs are tested where they are.
	pole bool

	// bands lists the edges by the latitudes they pass, nil for few edges.
	bands   [][]int32
	perBand float64 // bands a degree
}

// farthest is how many turns a leg and a polygon's frame can be apart.
const farthest = 2

// grid is the spacing of exact longitudes, 25 nanometres at the equator.
const grid = 0x1p-42

func onGrid(v float64) float64 { return math.Round(v/grid) * grid }

func newPolygon(rings [][]point) *polygon {
	g := &polygon{}
	for _, ring := range rings {
		for i := range len(ring) - 1 {
			if ring[i] != ring[i+1] {
				g.edges = append(g.edges, edge{ring[i], ring[i+1]})
			}
		}
	}
	g.measure()
	return g
}

// measure finds what depends on the edges.
func (g *polygon) measure() {
	g.min, g.max = point{math.Inf(1), math.Inf(1)}, point{math.Inf(-1), math.Inf(-1)}
	for _, e := range g.edges { // each position begins one
		g.min = point{min(g.min.x, e.a.x), min(g.min.y, e.a.y)}
		g.max = point{max(g.max.x, e.a.x), max(g.max.y, e.a.y)}
	}
	g.bands = nil
	g.index()
}

// index sorts the edges into bands of latitude. Edges that span many bands are
// listed in each, so tall ones make the bands fewer: memory stays in proportion
// to the number of edges.
func (g *polygon) index() {
	const edgesWithoutBands, edgesPerBand, bandsPerEdge = 32, 8, 32
	if len(g.edges) <= edgesWithoutBands {
		return
	}
	spanned := 0.0 // heights of the polygon
	for _, e := range g.edges {
		spanned += math.Abs(e.b.y-e.a.y) / (g.max.y - g.min.y)
	}
	count := min(len(g.edges)/edgesPerBand, int(bandsPerEdge*float64(len(g.edges))/spanned))
	g.perBand = float64(count) / (g.max.y - g.min.y)
	if math.IsInf(g.perBand, 0) {
		return
	}
	g.bands = make([][]int32, count)
	for i, e := range g.edges {
		for b := g.band(min(e.a.y, e.b.y)); b <= g.band(max(e.a.y, e.b.y)); b++ {
			g.bands[b] = append(g.bands[b], int32(i))
		}
	}
}

// band is monotone in y, so an edge is listed in every band of a latitude that
// it reaches, whatever the rounding.
func (g *polygon) band(y float64) int {
	return max(0, min(int((y-g.min.y)*g.perBand), len(g.bands)-1))
}

// place is where a point lies relative to a polygon.
type place int

const (
	outside place = iota
	boundary
	inside
)

// locate returns the exact place of a point that is already in the polygon's frame.
func (g *polygon) locate(p point) place {
	if p.x < g.min.x || p.x > g.max.x || p.y < g.min.y || p.y > g.max.y {
		return outside
	}
	odd := false
	if g.bands == nil {
		for i := range g.edges {
			switch g.edges[i].ray(p) {
			case boundary:
				return boundary
			case inside:
				odd = !odd
			}
		}
	} else {
		for _, i := range g.bands[g.band(p.y)] {
			switch g.edges[i].ray(p) {
			case boundary:
				return boundary
			case inside:
				odd = !odd
			}
		}
	}
	if odd {
		return inside
	}
	return outside
}

// ray returns inside if the ray from p to the east passes the edge, and boundary
// if p is on the edge.
func (e *edge) ray(p point) place {
	a, b := e.a, e.b
	if a.y > b.y {
		a, b = b, a
	}
	if p.y < a.y || p.y > b.y || p.x > max(a.x, b.x) {
		return outside
	}
	if a.y == b.y {
		if p.x >= min(a.x, b.x) {
			return boundary
		}
		return outside
	}
	switch orient(a, b, p) {
	case 0:
		return boundary
	case 1:
		if p.y < b.y { // of two edges that meet at p's latitude one counts
			return inside
		}
	}
	return outside
}

// contains reports whether the point lies in the polygon or on an edge.
func (g *polygon) contains(p point) bool {
	if p.y < g.min.y || p.y > g.max.y {
		return false
	}
	if g.exact {
		p.x = onGrid(p.x)
	}
	for copies := -g.turns(); copies <= g.turns(); copies++ {
		if g.locate(point{p.x + 360*float64(copies), p.y}) != outside {
			return true
		}
	}
	return false
}

// turns returns how many turns round the world a point and the frame can be apart.
func (g *polygon) turns() int {
	if g.pole {
		return 0
	}
	return farthest
}

// spans appends the intervals of the leg on which it is in the polygon.
func (g *polygon) spans(dst []span, l leg) []span {
	if max(l.p.y, l.q.y) < g.min.y || min(l.p.y, l.q.y) > g.max.y {
		return dst
	}
	if g.exact {
		l.p.x, l.q.x = onGrid(l.p.x), onGrid(l.q.x)
	}
	for copies := -g.turns(); copies <= g.turns(); copies++ {
		p, q := l.shifted(float64(copies))
		if max(p.x, q.x) >= g.min.x && min(p.x, q.x) <= g.max.x {
			dst = g.spansOf(dst, p, q)
		}
	}
	return dst
}

// mark is an instant at which a leg meets the boundary.
type mark struct {
	t     float64
	flip  bool // what lies left of the leg changes between in and out; at q it does not matter
	cover int8 // +1 where a side along the leg begins, -1 where it ends
}

// spansOf appends the intervals of the way from p to q, in the polygon's
// frame, on which it is in the polygon.
//
// What lies between two marks is decided by parity, for a way that is moved to
// the left by less than any distance: then no corner is ever on it and a side
// counts exactly when one end is left and the other is not. Which marks there
// are, and whether they lie on the way, is decided exactly; only their order
// depends on rounding, and parity does not depend on order. So the intervals
// agree with the exact point test at both ends.
func (g *polygon) spansOf(dst []span, p, q point) []span {
	atP, atQ := g.locate(p), g.locate(q)
	if p == q {
		if atP != outside {
			dst = append(dst, span{before, after})
		}
		return dst
	}
	var buf [32]mark
	marks := g.marks(buf[:0], p, q)
	slices.SortFunc(marks, func(a, b mark) int { return cmp.Compare(a.t, b.t) })

	odd := atP == inside
	if atP == boundary {
		odd = g.oddBefore(p, q)
	}
	in, from, cover := atP != outside, before, int8(0)
	for i := 0; i < len(marks); {
		t := marks[i].t
		if !in {
			in, from = true, t
		}
		for ; i < len(marks) && marks[i].t == t; i++ {
			odd = odd != marks[i].flip
			cover += marks[i].cover
		}
		if !odd && cover == 0 && (t < 1 || atQ == outside) {
			dst = append(dst, span{from, t})
			in = false
		}
	}
	if in {
		dst = append(dst, span{from, after})
	}
	return dst
}

// marks appends where the way from p to q meets the boundary.
func (g *polygon) marks(dst []mark, p, q point) []mark {
	lo := point{min(p.x, q.x), min(p.y, q.y)}
	hi := point{max(p.x, q.x), max(p.y, q.y)}
	if g.bands == nil {
		for i := range g.edges {
			dst = g.edges[i].marks(dst, p, q, lo, hi)
		}
		return dst
	}
	first, last := g.band(lo.y), g.band(hi.y)
	for b := first; b <= last; b++ {
		for _, i := range g.bands[b] {
			e := &g.edges[i]
			if b == max(first, g.band(min(e.a.y, e.b.y))) {
				dst = e.marks(dst, p, q, lo, hi)
			}
		}
	}
	return dst
}

func (e *edge) marks(dst []mark, p, q, lo, hi point) []mark {
	a, b := e.a, e.b
	if max(a.x, b.x) < lo.x || min(a.x, b.x) > hi.x || max(a.y, b.y) < lo.y || min(a.y, b.y) > hi.y {
		return dst
	}
	oa, ob := orient(p, q, a), orient(p, q, b)
	switch {
	case oa == 0 && ob == 0:
		ta, tb := fraction(p, q, a), fraction(p, q, b)
		from, to := max(0, min(ta, tb)), min(1, max(ta, tb))
		if from <= to {
			dst = append(dst, mark{t: from, cover: 1}, mark{t: to, cover: -1})
		}
	case oa == 0:
		if t := fraction(p, q, a); t >= 0 && t <= 1 {
			dst = append(dst, mark{t: t, flip: ob > 0})
		}
	case ob == 0:
		if t := fraction(p, q, b); t >= 0 && t <= 1 {
			dst = append(dst, mark{t: t, flip: oa > 0})
		}
	case oa != ob:
		// Seen with the left end first, p is right of the edge before it.
		op, oq := orient(a, b, p)*oa, orient(a, b, q)*oa
		switch {
		case op == 0:
			dst = append(dst, mark{t: 0, flip: true})
		case oq == 0:
			dst = append(dst, mark{t: 1})
		case op < 0 && oq > 0:
			dst = append(dst, mark{t: meeting(p, q, a, b), flip: true})
		}
	}
	return dst
}

// oddBefore reports whether the way to q, moved to the left by less than any
// distance, is inside just before p, a point on the boundary.
func (g *polygon) oddBefore(p, q point) bool {
	odd := false
	for i := range g.edges {
		a, b := g.edges[i].a, g.edges[i].b
		oa, ob := orient(p, q, a), orient(p, q, b)
		if (oa > 0) == (ob > 0) {
			continue
		}
		var behind bool
		switch {
		case oa == 0:
			behind = fraction(p, q, a) < 0
		case ob == 0:
			behind = fraction(p, q, b) < 0
		default:
			behind = orient(a, b, p)*oa > 0
		}
		odd = odd != behind
	}
	return odd
}

// fraction is where on the way from p to q the point v of its line lies. It is
// exact in what matters: below 0, 0, between, 1, above 1.
func fraction(p, q, v point) float64 {
	from, to, at := p.x, q.x, v.x
	if math.Abs(q.y-p.y) > math.Abs(q.x-p.x) {
		from, to, at = p.y, q.y, v.y
	}
	if to < from {
		from, to, at = -from, -to, -at
	}
	t := (at - from) / (to - from)
	switch {
	case at < from:
		return min(t, -math.SmallestNonzeroFloat64)
	case at > to:
		return max(t, math.Nextafter(1, 2))
	}
	return min(max(t, 0), 1)
}

// meeting is where on the way from p to q the side between a and b is met. It
// does not depend on the side's direction, and for sides along a meridian or a
// parallel only on which one, so two polygons that share a border are met at
// the same instant.
func meeting(p, q, a, b point) float64 {
	var t float64
	switch {
	case a.x == b.x:
		t = (a.x - p.x) / (q.x - p.x)
	case a.y == b.y:
		t = (a.y - p.y) / (q.y - p.y)
	default:
		dp, dq := distances(a, b, p, q) // on different sides
		t = dp / (dp - dq)
	}
	return min(max(t, 0), 1)
}

package recheck

import (
	"math"
	"math/big"
	"slices"
)

// point is a place in the plane of longitude (x) and latitude (y), in degrees.
type point struct{ x, y float64 }

// exact is a place without rounding.
type exact struct{ x, y *big.Rat }

// ratio returns the number that v is.
func ratio(v float64) *big.Rat { return new(big.Rat).SetFloat64(v) }

func (p point) exact(turns int) exact {
	x := ratio(p.x)
	if turns != 0 {
		x.Add(x, new(big.Rat).SetInt64(int64(360*turns)))
	}
	return exact{x, ratio(p.y)}
}

// cross returns (b-a) × (c-a): positive where c is left of the way from a to b.
func cross(a, b, c exact) *big.Rat {
	dx, dy := new(big.Rat).Sub(b.x, a.x), new(big.Rat).Sub(b.y, a.y)
	ex, ey := new(big.Rat).Sub(c.x, a.x), new(big.Rat).Sub(c.y, a.y)
	dx.Mul(dx, ey)
	return dx.Sub(dx, ex.Mul(ex, dy))
}

// line is the straight way between two fixes, the short way round the world.
type line struct {
	p, q     point
	turn     int // q lies this many turns east of where it is written
	from, to exact
	dx, dy   *big.Rat // nil until exactly was called
}

func newLine(p, q point) *line {
	l := &line{p: p, q: q}
	switch {
	case q.x-p.x > 180:
		l.turn = -1
	case q.x-p.x < -180:
		l.turn = 1
	}
	return l
}

// exactly computes the fields without rounding, which few ways need.
func (l *line) exactly() {
	if l.dx == nil {
		l.from, l.to = l.p.exact(0), l.q.exact(l.turn)
		l.dx, l.dy = new(big.Rat).Sub(l.to.x, l.from.x), new(big.Rat).Sub(l.to.y, l.from.y)
	}
}

// at returns the place at fraction t.
func (l *line) at(t *big.Rat) exact {
	x, y := new(big.Rat).Mul(t, l.dx), new(big.Rat).Mul(t, l.dy)
	return exact{x.Add(x, l.from.x), y.Add(y, l.from.y)}
}

func (l *line) box() box {
	qx := l.q.x + 360*float64(l.turn)
	return box{min(l.p.x, qx), min(l.p.y, l.q.y), max(l.p.x, qx), max(l.p.y, l.q.y)}
}

// box is a rectangle; meets widens it by more than any rounding.
type box struct{ west, south, east, north float64 }

const slack = 1e-9

func (b box) meets(o box, turns int) bool {
	shift := 360 * float64(turns)
	return b.west <= o.east+shift+slack && o.west+shift <= b.east+slack && b.south <= o.north+slack && o.south <= b.north+slack
}

func boxOf(points []point) box {
	b := box{math.Inf(1), math.Inf(1), math.Inf(-1), math.Inf(-1)}
	for _, p := range points {
		b = box{min(b.west, p.x), min(b.south, p.y), max(b.east, p.x), max(b.north, p.y)}
	}
	return b
}

// ring is a closed line in a frame in which longitude is continuous.
type ring struct {
	points []point // the last is the first
	turns  []int   // how many turns east of where it is written each point lies
	exacts []exact
	box    box
}

func newRing(points []point, turns []int) *ring {
	r := &ring{points: points, turns: turns, box: box{math.Inf(1), math.Inf(1), math.Inf(-1), math.Inf(-1)}}
	for i, p := range points {
		x := r.x(i)
		r.exacts = append(r.exacts, p.exact(turns[i]))
		r.box = box{min(r.box.west, x), min(r.box.south, p.y), max(r.box.east, x), max(r.box.north, p.y)}
	}
	return r
}

func (r *ring) x(i int) float64 { return r.points[i].x + 360*float64(r.turns[i]) }

// edge returns the box of the edge that begins at point i.
func (r *ring) edge(i int) box {
	a, b := r.x(i), r.x(i+1)
	return box{min(a, b), min(r.points[i].y, r.points[i+1].y), max(a, b), max(r.points[i].y, r.points[i+1].y)}
}

// where of a place relative to a ring.
const (
	out = iota
	on
	in
)

// where finds a place by how often the ring winds round it.
func (r *ring) where(p exact) int {
	x, _ := p.x.Float64()
	y, _ := p.y.Float64()
	if !(box{x, y, x, y}).meets(r.box, 0) {
		return out
	}
	winds := 0
	for i := range len(r.points) - 1 {
		e := r.edge(i)
		if y < e.south-slack || y > e.north+slack || x > e.east+slack {
			continue // neither on it nor west of it
		}
		a, b := r.exacts[i], r.exacts[i+1]
		below, above := a.y.Cmp(p.y) <= 0, b.y.Cmp(p.y) <= 0
		var side int
		if x < e.west-slack && below != above {
			side = 1
			if !below {
				side = -1
			}
		} else {
			side = cross(a, b, p).Sign()
			if side == 0 && between(a.x, p.x, b.x) && between(a.y, p.y, b.y) {
				return on
			}
		}
		switch {
		case below && !above && side > 0:
			winds++
		case !below && above && side < 0:
			winds--
		}
	}
	if winds != 0 {
		return in
	}
	return out
}

func between(a, v, b *big.Rat) bool { return a.Cmp(v)*v.Cmp(b) >= 0 }

// meetings appends the fractions of the way at which it meets the ring, moved
// by turns.
func (r *ring) meetings(dst []*big.Rat, l *line, turns int) []*big.Rat {
	lb := l.box()
	shift := new(big.Rat).SetInt64(int64(360 * turns))
	moved := func(p exact) exact {
		if turns == 0 {
			return p
		}
		return exact{new(big.Rat).Add(p.x, shift), p.y}
	}
	for i := range len(r.points) - 1 {
		if !lb.meets(r.edge(i), turns) {
			continue
		}
		dst = meeting(dst, l, moved(r.exacts[i]), moved(r.exacts[i+1]))
	}
	return dst
}

// meeting appends where the way meets the side between a and b: one fraction,
// or where they lie on one line both ends of what they share.
func meeting(dst []*big.Rat, l *line, a, b exact) []*big.Rat {
	if l.dx.Sign() == 0 && l.dy.Sign() == 0 {
		return dst // it stands still
	}
	zero, one := new(big.Rat), big.NewRat(1, 1)
	ex, ey := new(big.Rat).Sub(b.x, a.x), new(big.Rat).Sub(b.y, a.y)
	fx, fy := new(big.Rat).Sub(a.x, l.from.x), new(big.Rat).Sub(a.y, l.from.y)
	det := minus(l.dx, ey, l.dy, ex)
	if det.Sign() != 0 {
		t := minus(fx, ey, fy, ex)
		t.Quo(t, det)
		u := minus(fx, l.dy, fy, l.dx)
		u.Quo(u, det)
		if between(zero, t, one) && between(zero, u, one) {
			dst = append(dst, t)
		}
		return dst
	}
	if minus(fx, l.dy, fy, l.dx).Sign() != 0 {
		return dst
	}
	for _, v := range []exact{a, b} {
		var t *big.Rat
		if l.dx.Sign() != 0 {
			t = new(big.Rat).Sub(v.x, l.from.x)
			t.Quo(t, l.dx)
		} else {
			t = new(big.Rat).Sub(v.y, l.from.y)
			t.Quo(t, l.dy)
		}
		if between(zero, t, one) {
			dst = append(dst, t)
		}
	}
	return dst
}

// minus returns a*b - c*d.
func minus(a, b, c, d *big.Rat) *big.Rat {
	ab := new(big.Rat).Mul(a, b)
	return ab.Sub(ab, new(big.Rat).Mul(c, d))
}

// part is a polygon: a shell without its holes, all of them closed, so that the
// edge of a hole belongs to the part.
type part struct {
	shell *ring
	holes []*ring
	pole  bool // drawn side by side round the whole world
}

func (g *part) contains(p exact) bool {
	switch g.shell.where(p) {
	case out:
		return false
	case on:
		return true
	}
	return !slices.ContainsFunc(g.holes, func(h *ring) bool { return h.where(p) == in })
}

// area is the union of its parts.
type area []*part

// around is how many turns a place and a frame can be apart.
const around = 2

// copies yields by how many turns a part is to be moved.
func (g *part) copies(yield func(int) bool) {
	if g.pole {
		yield(0)
		return
	}
	for n := -around; n <= around; n++ {
		if !yield(n) {
			return
		}
	}
}

func (a area) contains(p exact) bool {
	x, _ := p.x.Float64()
	y, _ := p.y.Float64()
	for _, g := range a {
		for n := range g.copies {
			if !(box{x, y, x, y}).meets(g.shell.box, n) {
				continue
			}
			if g.contains(exact{new(big.Rat).Sub(p.x, new(big.Rat).SetInt64(int64(360*n))), p.y}) {
				return true
			}
		}
	}
	return false
}

// stay is a closed interval of a way that lies inside.
type stay struct {
	from, to       *big.Rat
	before, beyond bool // the first fix, the last fix is inside
}

// stays returns the intervals of the way inside the area. Between two
// neighbouring meetings with any border nothing changes, so the instants to look
// at are the meetings and one between each two.
func (a area) stays(l *line) []stay {
	var stops []*big.Rat
	for _, g := range a {
		for n := range g.copies {
			if !l.box().meets(g.shell.box, n) {
				continue
			}
			stops = g.shell.meetings(stops, l, n)
			for _, h := range g.holes {
				stops = h.meetings(stops, l, n)
			}
		}
	}
	first, last := a.contains(l.from), a.contains(l.to)
	zero, one := new(big.Rat), big.NewRat(1, 1)
	if len(stops) == 0 {
		if first {
			return []stay{{zero, one, true, true}}
		}
		return nil
	}
	stops = append(stops, zero, one)
	slices.SortFunc(stops, (*big.Rat).Cmp)
	stops = slices.CompactFunc(stops, func(a, b *big.Rat) bool { return a.Cmp(b) == 0 })
	var stays []stay
	var open *stay
	for i, t := range stops {
		inside := first
		switch {
		case i == len(stops)-1:
			inside = last
		case i > 0:
			inside = a.contains(l.at(t))
		}
		if inside && open == nil {
			open = &stay{from: t, before: i == 0}
		}
		if open == nil {
			continue
		}
		open.to = t
		if i == len(stops)-1 {
			open.beyond = true
			break
		}
		middle := new(big.Rat).Add(t, stops[i+1])
		middle.Quo(middle, big.NewRat(2, 1))
		if !inside || !a.contains(l.at(middle)) {
			stays, open = append(stays, *open), nil
		}
	}
	if open != nil {
		stays = append(stays, *open)
	}
	return stays
}

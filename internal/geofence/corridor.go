package geofence

import (
	"fmt"
	"math"

	"github.com/peterstace/simplefeatures/geom"
	"github.com/tidwall/rtree"
)

const (
	// MaxWidthM is the widest corridor, in metres.
	maxWidthM = 100_000
	// MaxCorridorLatitude keeps a corridor where a degree of longitude has a length.
	maxCorridorLatitude = 85
	// PieceDegrees is the largest extent in latitude that is measured as one plane.
	pieceDegrees = 0.5
	// MaxCorridorVertices keeps the crossings of one leg below 32,768, the ordinals that a
	// smallint has: each edge is convex and is entered and left at most once.
	maxCorridorVertices = 1 << 14
)

// corridor contains all points at most half of its width away from a line.
// Each edge of the line, in pieces of at most half a degree of latitude, is
// measured in a plane of metres that is true at the middle latitude of the piece.
type corridor struct {
	pieces   []capsule
	tree     rtree.RTreeG[int32]
	min, max point
}

// capsule contains what is at most radius away from the way between a and b.
type capsule struct {
	a, b   point
	kx, ky float64 // metres a degree
	radius float64
	ux, uy float64 // direction from a to b, of length 1
	long   float64 // metres from a to b
}

func compileCorridor(g geom.Geometry, widthM, marginM float64) (*shape, error) {
	if !(widthM > 0 && widthM <= maxWidthM) {
		return nil, fmt.Errorf("width_m %v is not above 0 and at most %d: give the whole width in metres", widthM, maxWidthM)
	}
	line, err := compileLine(g)
	if err != nil {
		return nil, err
	}
	if len(line) > maxCorridorVertices {
		return nil, fmt.Errorf("a corridor has %d vertices, at most %d are allowed: simplify it", len(line), maxCorridorVertices)
	}
	c := newCorridor(line, widthM/2)
	if max(-c.min.y, c.max.y) > maxCorridorLatitude {
		return nil, fmt.Errorf("a corridor lies between %d degrees south and north: draw a polygon instead", maxCorridorLatitude)
	}
	s := &shape{corridor: c}
	if marginM > 0 {
		s.margin = &shape{corridor: newCorridor(line, widthM/2+marginM)}
	}
	return s, nil
}

func newCorridor(line []point, radius float64) *corridor {
	c := &corridor{min: point{math.Inf(1), math.Inf(1)}, max: point{math.Inf(-1), math.Inf(-1)}}
	for i := 1; i < len(line); i++ {
		if line[i] != line[i-1] {
			c.add(line[i-1], line[i], radius)
		}
	}
	return c
}

// around returns the corridor round all borders of an area.
func (s *shape) around(marginM float64) (*shape, error) {
	c := &corridor{min: point{math.Inf(1), math.Inf(1)}, max: point{math.Inf(-1), math.Inf(-1)}}
	for _, g := range s.area {
		if max(-g.min.y, g.max.y) > maxCorridorLatitude {
			return nil, fmt.Errorf("exit_margin_m is for areas between %d degrees south and north", maxCorridorLatitude)
		}
		for _, e := range g.edges {
			if e.a != e.b {
				c.add(e.a, e.b, marginM)
			}
		}
	}
	return &shape{corridor: c}, nil
}

// add appends the pieces of an edge.
func (c *corridor) add(a, b point, radius float64) {
	pieces := math.Ceil(math.Abs(b.y-a.y) / pieceDegrees)
	at := func(f float64) point {
		return point{a.x + float64(f*(b.x-a.x)), a.y + float64(f*(b.y-a.y))}
	}
	from := a
	for i := 1.0; i < pieces; i++ {
		to := at(i / pieces)
		c.addPiece(from, to, radius)
		from = to
	}
	c.addPiece(from, b, radius)
}

func (c *corridor) addPiece(a, b point, radius float64) {
	const degree = EarthRadiusM * radian
	p := capsule{a: a, b: b, radius: radius, ky: degree, kx: degree * math.Cos((a.y+b.y)/2*radian)}
	x, y := (b.x-a.x)*p.kx, (b.y-a.y)*p.ky
	p.long = math.Hypot(x, y)
	p.ux, p.uy = x/p.long, y/p.long
	const margin = 1 + 1e-9 // covers rounding
	wide, high := radius/p.kx*margin, radius/p.ky*margin
	lo := point{min(a.x, b.x) - wide, min(a.y, b.y) - high}
	hi := point{max(a.x, b.x) + wide, max(a.y, b.y) + high}
	c.tree.Insert([2]float64{lo.x, lo.y}, [2]float64{hi.x, hi.y}, int32(len(c.pieces)))
	c.pieces = append(c.pieces, p)
	c.min = point{min(c.min.x, lo.x), min(c.min.y, lo.y)}
	c.max = point{max(c.max.x, hi.x), max(c.max.y, hi.y)}
}

func (c *corridor) contains(p point) bool {
	if p.y < c.min.y || p.y > c.max.y {
		return false
	}
	for copies := -farthest; copies <= farthest; copies++ {
		moved, found := point{p.x + 360*float64(copies), p.y}, false
		if moved.x < c.min.x || moved.x > c.max.x {
			continue
		}
		c.tree.Search([2]float64{moved.x, moved.y}, [2]float64{moved.x, moved.y}, func(_, _ [2]float64, i int32) bool {
			found = c.pieces[i].contains(moved)
			return !found
		})
		if found {
			return true
		}
	}
	return false
}

// spans appends the intervals of the leg on which it is in the corridor, one for
// each piece that it meets: each is convex.
func (c *corridor) spans(dst []span, l leg) []span {
	for copies := -farthest; copies <= farthest; copies++ {
		p, q := l.shifted(float64(copies))
		lo, hi := point{min(p.x, q.x), min(p.y, q.y)}, point{max(p.x, q.x), max(p.y, q.y)}
		if hi.x < c.min.x || lo.x > c.max.x || hi.y < c.min.y || lo.y > c.max.y {
			continue
		}
		c.tree.Search([2]float64{lo.x, lo.y}, [2]float64{hi.x, hi.y}, func(_, _ [2]float64, i int32) bool {
			dst = c.pieces[i].span(dst, p, q)
			return true
		})
	}
	return dst
}

// from returns where the point lies, in metres from a: along the way to b and to
// the left of it.
func (c *capsule) from(p point) (along, left float64) {
	x, y := (p.x-c.a.x)*c.kx, (p.y-c.a.y)*c.ky
	return float64(x*c.ux) + float64(y*c.uy), float64(y*c.ux) - float64(x*c.uy)
}

func (c *capsule) contains(p point) bool {
	along, left := c.from(p)
	off := along - min(max(along, 0), c.long)
	return float64(off*off)+float64(left*left) <= float64(c.radius*c.radius)
}

// span appends the interval of the way from p to q inside the capsule. Whether
// its ends are inside is what the point test says.
func (c *capsule) span(dst []span, p, q point) []span {
	inP, inQ := c.contains(p), c.contains(q)
	if inP && inQ {
		return append(dst, span{before, after})
	}
	if p == q {
		return dst
	}
	from, to := c.met(p, q)
	clamped := func(t float64) float64 { return min(max(t, 0), 1) }
	switch {
	case inP:
		return append(dst, span{before, clamped(to)})
	case inQ:
		return append(dst, span{clamped(from), after})
	case from <= to && to >= 0 && from <= 1:
		return append(dst, span{clamped(from), clamped(to)})
	}
	return dst
}

// met returns between which fractions of the way from p to q its line is inside,
// the first above the second if it is nowhere: the discs round both ends and the
// rectangle between them together.
func (c *capsule) met(p, q point) (from, to float64) {
	along, left := c.from(p)
	alongQ, leftQ := c.from(q)
	da, dl := alongQ-along, leftQ-left
	square := float64(da*da) + float64(dl*dl)
	from, to = math.Inf(1), math.Inf(-1)
	for _, center := range [2]float64{0, c.long} {
		a := along - center
		middle := -(float64(a*da) + float64(left*dl)) / square
		cross := float64(a*dl) - float64(left*da)
		if rest := float64(c.radius*c.radius) - cross/square*cross; rest >= 0 {
			half := math.Sqrt(rest / square)
			from, to = min(from, middle-half), max(to, middle+half)
		}
	}
	lo, hi := within(along, da, 0, c.long)
	loLeft, hiLeft := within(left, dl, -c.radius, c.radius)
	if lo, hi = max(lo, loLeft), min(hi, hiLeft); lo <= hi {
		from, to = min(from, lo), max(to, hi)
	}
	return from, to
}

// within returns between which t the value v + t*d lies from lo to hi, the first
// above the second if it never does.
func within(v, d, lo, hi float64) (from, to float64) {
	if d == 0 {
		if v < lo || v > hi {
			return math.Inf(1), math.Inf(-1)
		}
		return math.Inf(-1), math.Inf(1)
	}
	from, to = (lo-v)/d, (hi-v)/d
	return min(from, to), max(from, to)
}

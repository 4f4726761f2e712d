package recheck

import "math"

// lane is a corridor: all places at most half of its width from a line. Each edge
// of it, in equal pieces of at most half a degree of latitude, is measured in a
// plane of metres that is true at the middle latitude of the piece.
type lane struct {
	half   float64 // metres
	pieces []piece
	box    box
}

type piece struct {
	a, b point
	cos  float64
}

func newLane(points []point, turns []int, width float64) *lane {
	const pieceDegrees = 0.5
	c := &lane{half: width / 2}
	r := newRing(points, turns)
	for i := range len(points) - 1 {
		a, b := point{r.x(i), points[i].y}, point{r.x(i + 1), points[i+1].y}
		if a == b {
			continue
		}
		n := max(1, int(math.Ceil(math.Abs(b.y-a.y)/pieceDegrees)))
		for k := range n {
			at := func(k int) point {
				f := float64(k) / float64(n)
				return point{a.x + f*(b.x-a.x), a.y + f*(b.y-a.y)}
			}
			p := piece{a: at(k), b: at(k + 1)}
			p.cos = math.Cos((p.a.y + p.b.y) / 2 * radian)
			c.pieces = append(c.pieces, p)
		}
	}
	high := c.half/earthRadiusM/radian + slack
	wide := 0.0
	for _, p := range c.pieces {
		wide = max(wide, high/p.cos)
	}
	c.box = box{r.box.west - wide, r.box.south - high, r.box.east + wide, r.box.north + high}
	return c
}

// metres returns how far a place is from the line.
func (c *lane) metres(p point) float64 {
	near := math.Inf(1)
	for n := -around - 1; n <= around+1; n++ {
		x := p.x + 360*float64(n)
		for _, g := range c.pieces {
			u, v := (g.b.x-g.a.x)*g.cos, g.b.y-g.a.y
			s, t := (x-g.a.x)*g.cos, p.y-g.a.y
			f := min(1, max(0, (s*u+t*v)/(u*u+v*v)))
			near = min(near, math.Hypot(s-f*u, t-f*v))
		}
	}
	return near * earthRadiusM * radian
}

func (c *lane) contains(p point) bool { return c.metres(p) <= c.half }

// changes returns the fractions of the way at which it enters or leaves the
// corridor, and whether it begins inside.
func (c *lane) changes(l *line) (at []float64, first bool) {
	first, last := c.contains(l.p), c.contains(l.q)
	return l.changes(first, last, func(t float64) float64 {
		return c.metres(l.roughly(t)) - c.half
	}), first
}

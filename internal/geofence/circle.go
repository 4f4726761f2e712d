package geofence

import "math"

const radian = math.Pi / 180

// circle contains all points at most radius away from the center on the sphere.
type circle struct {
	center point
	radius float64 // metres
	cosLat float64 // of the center
}

func newCircle(center point, radius float64) *circle {
	return &circle{center: center, radius: radius, cosLat: math.Cos(center.y * radian)}
}

// distance is the haversine distance from the center in metres.
func (c *circle) distance(p point) float64 {
	sinLat := math.Sin((p.y - c.center.y) * radian / 2)
	sinLon := math.Sin((p.x - c.center.x) * radian / 2)
	h := float64(sinLat*sinLat) + float64(c.cosLat*math.Cos(p.y*radian)*float64(sinLon*sinLon))
	return 2 * EarthRadiusM * math.Asin(math.Sqrt(min(h, 1)))
}

func (c *circle) contains(p point) bool { return c.distance(p) <= c.radius }

// box holds the circle with a margin that covers rounding.
func (c *circle) box() (lo, hi point) {
	const margin = 1e-9
	angle := c.radius/EarthRadiusM*(1+margin) + margin*radian
	south, north := c.center.y-angle/radian, c.center.y+angle/radian
	wide := 180.0
	if south > -90 && north < 90 {
		if s := math.Sin(angle) / c.cosLat; s < 1 {
			wide = math.Asin(s)/radian + margin
		}
	}
	return point{c.center.x - wide, south}, point{c.center.x + wide, north}
}

// spans appends the intervals of the leg inside the circle. They are found with
// the point test itself on the straight line in longitude and latitude between
// the fixes: between neighbouring extremes of the distance the boundary is met at
// most once, and bisection finds where.
func (c *circle) spans(dst []span, l leg) []span {
	inP, inQ := c.contains(l.p), c.contains(l.q)
	if l.p == l.q {
		if inP {
			dst = append(dst, span{before, after})
		}
		return dst
	}
	slope := newSlope(c, l)
	if !inP && !inQ {
		way := EarthRadiusM * math.Hypot(slope.lat, slope.lon)
		if c.distance(l.p)+c.distance(l.q)-way > 2*c.radius*(1+1e-9)+1e-6 {
			return dst
		}
	}
	var buf [8]float64
	stops := append(slope.extremes(buf[:0], 0, 1, 0), 1)

	from, in, t := before, inP, 0.0
	for _, stop := range stops {
		inStop := inQ
		if stop < 1 {
			inStop = c.contains(l.at(stop))
		}
		if inStop != in {
			edge := c.halve(l, t, stop, in)
			if in {
				dst = append(dst, span{from, edge})
			}
			from, in = edge, inStop
		}
		t = stop
	}
	if in {
		dst = append(dst, span{from, after})
	}
	return dst
}

// halve bisects where the point test changes between a, with result in, and b.
// It returns the side of the change that is inside.
func (c *circle) halve(l leg, a, b float64, in bool) float64 {
	const steps = 44
	for range steps {
		if middle := (a + b) / 2; c.contains(l.at(middle)) == in {
			a = middle
		} else {
			b = middle
		}
	}
	if in {
		return a
	}
	return b
}

// slope gives the derivatives of the haversine of the distance along a leg,
// which is sin²(Δlat/2) + cos(lat) cos(center's lat) sin²(Δlon/2).
type slope struct {
	c             *circle
	l             leg
	lat, lon      float64 // radians the leg covers
	second, third float64 // bounds of these derivatives on the whole leg
}

func newSlope(c *circle, l leg) slope {
	end := l.at(1)
	s := slope{c: c, l: l, lat: (end.y - l.p.y) * radian, lon: (end.x - l.p.x) * radian}
	// Bounds per term keep their proportion to the derivatives near
	// the poles, where a common one would be far too large.
	cos := 1.0
	if (l.p.y > 0) == (l.q.y > 0) {
		cos = math.Cos(min(math.Abs(l.p.y), math.Abs(l.q.y)) * radian)
	}
	lat, lon := math.Abs(s.lat), math.Abs(s.lon)
	s.second = lat*lat/2 + c.cosLat*(cos*lon*lon/2+lat*lon+cos*lat*lat)
	s.third = lat*lat*lat/2 + c.cosLat*(cos*lon*lon*lon/2+1.5*lat*lon*lon+1.5*cos*lat*lat*lon+lat*lat*lat)
	return s
}

// at is the first and the second derivative at fraction t.
func (s slope) at(t float64) (first, second float64) {
	p := s.l.at(t)
	lat := p.y * radian
	dLat, dLon := lat-s.c.center.y*radian, (p.x-s.c.center.x)*radian
	sin, cos := math.Sincos(lat)
	sinLon, cosLon := math.Sincos(dLon)
	half := math.Sin(dLon / 2)
	sin, cos = sin*s.c.cosLat, cos*s.c.cosLat
	first = s.lat*(math.Sin(dLat)/2-sin*half*half) + s.lon*cos*sinLon/2
	second = s.lat*s.lat*(math.Cos(dLat)/2-cos*half*half) - s.lat*s.lon*sin*sinLon + s.lon*s.lon*cos*cosLon/2
	return first, second
}

// extremes appends, in order, where between a and b the distance stops falling
// or rising. An interval is finished when the first derivative cannot become
// zero, or when the second cannot, so that the first is zero at most once. Where
// both are almost zero the distance is almost constant, and depth ends the
// search.
func (s slope) extremes(dst []float64, a, b float64, depth int) []float64 {
	const deepest = 16
	middle, half := (a+b)/2, (b-a)/2
	first, second := s.at(middle)
	switch {
	case math.Abs(first) > s.second*half:
		return dst
	case math.Abs(second) > s.third*half || depth == deepest:
		atA, _ := s.at(a)
		atB, _ := s.at(b)
		if (atA < 0) == (atB < 0) {
			return dst
		}
		return append(dst, s.zero(a, b, atA < 0))
	}
	dst = s.extremes(dst, a, middle, depth+1)
	return s.extremes(dst, middle, b, depth+1)
}

// zero finds where the first derivative changes its sign between a and b.
func (s slope) zero(a, b float64, falling bool) float64 {
	const steps = 30
	for range steps {
		middle := (a + b) / 2
		if first, _ := s.at(middle); (first < 0) == falling {
			a = middle
		} else {
			b = middle
		}
	}
	return (a + b) / 2
}

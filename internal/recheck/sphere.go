package recheck

import "math"

const (
	earthRadiusM = 6_371_000
	radian       = math.Pi / 180
)

// vector is a place on the sphere of radius 1.
type vector [3]float64

func vectorOf(p point) vector {
	sinLat, cosLat := math.Sincos(p.y * radian)
	sinLon, cosLon := math.Sincos(p.x * radian)
	return vector{cosLat * cosLon, cosLat * sinLon, sinLat}
}

// metres returns the great-circle distance, from the chord between two places.
func metres(a, b vector) float64 {
	chord := math.Sqrt((a[0]-b[0])*(a[0]-b[0]) + (a[1]-b[1])*(a[1]-b[1]) + (a[2]-b[2])*(a[2]-b[2]))
	return 2 * earthRadiusM * math.Asin(min(chord/2, 1))
}

// disc contains all places at most radius metres from its center.
type disc struct {
	center vector
	radius float64
	box    box
}

func newDisc(center point, radius float64) *disc {
	d := &disc{center: vectorOf(center), radius: radius}
	high := radius/earthRadiusM/radian + slack
	wide := 180.0
	if cos := math.Cos(min(math.Abs(center.y)+high, 90) * radian); cos > 0 && math.Abs(center.y)+high < 90 {
		wide = min(180, 1.6*high/cos)
	}
	d.box = box{center.x - wide, center.y - high, center.x + wide, center.y + high}
	return d
}

func (d *disc) contains(p point) bool { return metres(d.center, vectorOf(p)) <= d.radius }

// beyond returns how far outside of the disc the way is at t, in metres, negative inside.
func (d *disc) beyond(l *line, t float64) float64 {
	return metres(d.center, vectorOf(l.roughly(t))) - d.radius
}

// roughly returns the place at fraction t, rounded.
func (l *line) roughly(t float64) point {
	dx := l.q.x - l.p.x + 360*float64(l.turn)
	return point{l.p.x + t*dx, l.p.y + t*(l.q.y-l.p.y)}
}

// changes returns the fractions of the way at which it crosses the rim, and
// whether it begins and ends inside.
func (d *disc) changes(l *line) (at []float64, first, last bool) {
	first, last = d.contains(l.p), d.contains(l.q)
	return l.changes(first, last, func(t float64) float64 { return d.beyond(l, t) }), first, last
}

// changes returns the fractions of the way at which it crosses a rim, given how
// many metres beyond it the way is at a fraction, and whether it begins and ends
// inside. Nothing on the sphere moves faster than the way is long, so a stretch
// whose middle is further from the rim than half of that has no crossing.
func (l *line) changes(first, last bool, beyond func(t float64) float64) (at []float64) {
	if l.p == l.q {
		return nil
	}
	long := earthRadiusM * radian * math.Hypot(l.q.x-l.p.x+360*float64(l.turn), l.q.y-l.p.y) * (1 + 1e-12)
	inside := first
	var search func(a, b float64, depth int)
	search = func(a, b float64, depth int) {
		middle := (a + b) / 2
		if g := beyond(middle); math.Abs(g) > long*(b-a)/2+1e-9 {
			if now := g <= 0; now != inside { // only by rounding at the very begin
				at, inside = append(at, a), now
			}
			return
		}
		if depth > 0 {
			search(a, middle, depth-1)
			search(middle, b, depth-1)
			return
		}
		now := last
		if b < 1 {
			now = beyond(b) <= 0
		}
		if now == inside {
			return
		}
		for range 40 {
			if middle := (a + b) / 2; beyond(middle) <= 0 == inside {
				a = middle
			} else {
				b = middle
			}
		}
		at, inside = append(at, b), now
	}
	search(0, 1, 20)
	if inside != last {
		at = append(at, 1)
	}
	return at
}

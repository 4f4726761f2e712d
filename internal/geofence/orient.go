package geofence

import "math"

// point is a place in the plane of longitude (x) and latitude (y), degrees.
type point struct{ x, y float64 }

// negligible bounds what counts as zero degrees. No coordinate between it and
// zero enters the predicates, so the products in exactOrient cannot underflow.
const negligible = 1e-60

// settle returns v, or zero when v is negligible.
func settle(v float64) float64 {
	if math.Abs(v) < negligible {
		return 0
	}
	return v
}

// side returns the determinant whose sign is the side of the line
// from a to b the point c lies (positive is left), rounded, and a bound of its
// error. The conversions keep the compiler from fusing the operations, which
// would make results differ between processors.
func side(a, b, c point) (det, bound float64) {
	left := float64((a.x - c.x) * (b.y - c.y))
	right := float64((a.y - c.y) * (b.x - c.x))
	const epsilon = 0x1p-53
	const factor = (3 + 16*epsilon) * epsilon
	return left - right, factor * (math.Abs(left) + math.Abs(right))
}

// orient returns 1 if c lies left of the line from a to b, -1 if it lies right of
// it and 0 if it lies on it: the exact answer for the given doubles.
func orient(a, b, c point) int {
	det, bound := side(a, b, c)
	switch {
	case det > bound:
		return 1
	case det < -bound:
		return -1
	case bound == 0:
		// A factor of each product is zero, and a difference of doubles is
		// zero only when they are equal.
		return 0
	}
	return exactOrient(a, b, c)
}

// exactOrient adds up the determinant without rounding, as a sum of doubles
// that do not overlap (Shewchuk, Adaptive Precision Floating-Point
// Arithmetic, 1997, grow-expansion).
func exactOrient(a, b, c point) int {
	factors := [6][2]float64{
		{a.x, b.y},
		{-a.x, c.y},
		{-c.x, b.y},
		{-a.y, b.x},
		{a.y, c.x},
		{c.y, b.x},
	}
	var sum [12]float64
	n := 0
	add := func(v float64) {
		for i := range n {
			total := v + sum[i]
			virtual := total - v
			sum[i] = (v - (total - virtual)) + (sum[i] - virtual)
			v = total
		}
		sum[n] = v
		n++
	}
	for _, f := range factors {
		product := float64(f[0] * f[1])
		add(math.FMA(f[0], f[1], -product))
		add(product)
	}
	for i := n - 1; i >= 0; i-- {
		if sum[i] > 0 {
			return 1
		}
		if sum[i] < 0 {
			return -1
		}
	}
	return 0
}

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

// exactOrient is orient without regard to what it costs.
func exactOrient(a, b, c point) int {
	sum, n := exactSide(a, b, c)
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

// distances returns the determinants of the points p and q as side does, to a relative
// accuracy of a trillionth of their difference, which for most is what side gives: on a way
// along the line it has no digit right. They depend on the line, not on its direction.
func distances(a, b, p, q point) (dp, dq float64) {
	dp, ep := side(a, b, p)
	dq, eq := side(a, b, q)
	if ep+eq <= 0x1p-40*math.Abs(dp-dq) {
		return dp, dq
	}
	if b.x < a.x || b.x == a.x && b.y < a.y {
		a, b = b, a
	}
	rounded := func(c point) (det float64) {
		sum, n := exactSide(a, b, c)
		for _, v := range sum[:n] { // from the smallest
			det += v
		}
		return det
	}
	return rounded(p), rounded(q)
}

// exactSide adds up the determinant without rounding, as a sum of doubles
// that do not overlap, the smallest first (Shewchuk, Adaptive Precision Floating-Point
// Arithmetic, 1997, grow-expansion).
func exactSide(a, b, c point) (sum [12]float64, n int) {
	factors := [6][2]float64{
		{a.x, b.y},
		{-a.x, c.y},
		{-c.x, b.y},
		{-a.y, b.x},
		{a.y, c.x},
		{c.y, b.x},
	}
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
	return sum, n
}

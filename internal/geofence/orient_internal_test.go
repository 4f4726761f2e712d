package geofence

import (
	"math"
	"math/big"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// rationalOrient is the determinant in rational arithmetic.
func rationalOrient(a, b, c point) int {
	rat := func(v float64) *big.Rat { return new(big.Rat).SetFloat64(v) }
	minus := func(x, y float64) *big.Rat { return new(big.Rat).Sub(rat(x), rat(y)) }
	left := new(big.Rat).Mul(minus(a.x, c.x), minus(b.y, c.y))
	right := new(big.Rat).Mul(minus(a.y, c.y), minus(b.x, c.x))
	return left.Cmp(right)
}

func TestOrientIsExact(t *testing.T) {
	near := 0
	rapid.Check(t, func(t *rapid.T) {
		coordinate := rapid.Float64Range(-540, 540)
		a := point{settle(coordinate.Draw(t, "ax")), settle(coordinate.Draw(t, "ay"))}
		b := point{settle(coordinate.Draw(t, "bx")), settle(coordinate.Draw(t, "by"))}
		// A point within a few roundings of the line, where a plain
		// determinant is wrong.
		f := rapid.Float64Range(-1, 2).Draw(t, "f")
		c := point{a.x + f*(b.x-a.x), a.y + f*(b.y-a.y)}
		for range rapid.IntRange(0, 3).Draw(t, "steps") {
			c.x = math.Nextafter(c.x, 1000)
		}
		c = point{settle(c.x), settle(c.y)}
		want := rationalOrient(a, b, c)
		require.Equal(t, want, orient(a, b, c))
		require.Equal(t, want, exactOrient(a, b, c))
		require.Equal(t, -want, orient(b, a, c))
		if det, bound := side(a, b, c); math.Abs(det) <= bound {
			near++
		}
	})
	require.Positive(t, near, "no case needed the exact sum")
}

func TestCircleFindsEveryExtremeOfTheDistance(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lat, lon := rapid.Float64Range(-90, 90), rapid.Float64Range(-180, 180)
		c := newCircle(point{lon.Draw(t, "center lon"), lat.Draw(t, "center lat")}, 1000)
		l := newLeg(point{lon.Draw(t, "p lon"), lat.Draw(t, "p lat")}, point{lon.Draw(t, "q lon"), lat.Draw(t, "q lat")})
		stops := append(newSlope(c, l).extremes([]float64{0}, 0, 1, 0), 1)
		const steps = 50
		for i := 1; i < len(stops); i++ {
			require.LessOrEqual(t, stops[i-1], stops[i])
			// Between two stops the distance only rises or only falls.
			rises, falls := 0.0, 0.0
			last := c.distance(l.at(stops[i-1]))
			for step := 1; step <= steps; step++ {
				d := c.distance(l.at(stops[i-1] + (stops[i]-stops[i-1])*float64(step)/steps))
				rises, falls = max(rises, d-last), max(falls, last-d)
				last = d
			}
			require.Less(t, min(rises, falls), 5.0, "metres against the trend")
		}
	})
}

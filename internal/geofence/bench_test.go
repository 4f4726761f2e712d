package geofence_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
)

// benchFences lays n fences over an area of 4 by 4 degrees: polygons of 4 to
// 40 corners, circles and gates of 100 m to 5 km.
func benchFences(n int) []geofence.Fence {
	r := rand.New(rand.NewPCG(1, 2))
	fences := make([]geofence.Fence, 0, n)
	for i := range n {
		id := strconv.Itoa(i)
		lon, lat := 8+4*r.Float64(), 46+4*r.Float64()
		reach := 0.001 + 0.044*r.Float64()*r.Float64()
		switch i % 4 {
		case 0:
			fences = append(fences, circle(id, lat, lon, reach*111e3))
		case 1:
			fences = append(fences, gate(id, line(position{lon, lat}, position{lon + reach, lat + reach/2})))
		default:
			fences = append(fences, area(id, polygon(star(lon, lat, reach, 4+r.IntN(37), r))))
		}
	}
	return fences
}

func star(lon, lat, reach float64, corners int, r *rand.Rand) []position {
	ring := make([]position, 0, corners+1)
	for i := range corners {
		angle := float64(i) / float64(corners) * 2 * math.Pi
		d := reach * (0.6 + 0.4*r.Float64())
		ring = append(ring, position{lon + d*math.Cos(angle), lat + d*math.Sin(angle)})
	}
	return append(ring, ring[0])
}

// benchWay is a drive through the fences, a fix every 5 s at about 80 km/h.
func benchWay() []geofence.Fix {
	r := rand.New(rand.NewPCG(3, 4))
	fixes := make([]geofence.Fix, 10_000)
	lon, lat, heading := 10.0, 48.0, 0.0
	for i := range fixes {
		heading += r.NormFloat64() * 0.1
		lon += 0.001 * math.Cos(heading)
		lat += 0.001 * math.Sin(heading)
		if lon < 8.1 || lon > 11.9 || lat < 46.1 || lat > 49.9 {
			heading += math.Pi / 2
		}
		fixes[i] = geofence.Fix{TimeUS: int64(i) * 5e6, Longitude: min(max(lon, 8), 12), Latitude: min(max(lat, 46), 50)}
	}
	return fixes
}

// BenchmarkRecord is what one record costs: the point test at it and the way
// to it.
func BenchmarkRecord(b *testing.B) {
	for _, n := range []int{0, 1000, 10_000} {
		b.Run(fmt.Sprintf("fences=%d", n), func(b *testing.B) {
			set := setOf(b, benchFences(n)...)
			fixes := benchWay()
			inside := make([]int, 0, 64)
			crossings := make([]geofence.Crossing, 0, 64)
			crossed, i := 0, 0
			b.ReportAllocs()
			for b.Loop() {
				i = i%(len(fixes)-1) + 1
				inside = set.At(inside[:0], fixes[i])
				crossings = set.Crossings(crossings[:0], fixes[i-1], fixes[i], 10*time.Minute)
				crossed += len(crossings)
			}
			b.ReportMetric(float64(crossed)/float64(b.N), "crossings/op")
		})
	}
}

// BenchmarkLargeFence is the way along a border of 20,000 vertices.
func BenchmarkLargeFence(b *testing.B) {
	r := rand.New(rand.NewPCG(5, 6))
	set := setOf(b, area("border", polygon(star(10, 48, 1.5, geofence.MaxVertices-1, r))))
	fixes := benchWay()
	crossings := make([]geofence.Crossing, 0, 64)
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i = i%(len(fixes)-1) + 1
		crossings = set.Crossings(crossings[:0], fixes[i-1], fixes[i], 10*time.Minute)
	}
}

// BenchmarkNewSet is what a reload of the fences costs.
func BenchmarkNewSet(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprintf("fences=%d", n), func(b *testing.B) {
			fences := benchFences(n)
			for b.Loop() {
				_, refused := geofence.NewSet(fences)
				require.Empty(b, refused)
			}
		})
		b.Run(fmt.Sprintf("renewed/fences=%d", n), func(b *testing.B) {
			fences := benchFences(n)
			set := setOf(b, fences...)
			for b.Loop() {
				_, refused := set.Renew(fences)
				require.Empty(b, refused)
			}
		})
	}
}

// Promise 7.
func TestRecordThatCrossesNothingAllocatesNothing(t *testing.T) {
	set := setOf(t, benchFences(10_000)...)
	fixes := benchWay()
	inside := make([]int, 0, 64)
	crossings := make([]geofence.Crossing, 0, 64)
	i := 0
	allocated := testing.AllocsPerRun(len(fixes)-2, func() {
		i++
		inside = set.At(inside[:0], fixes[i])
		crossings = set.Crossings(crossings[:0], fixes[i-1], fixes[i], 10*time.Minute)
	})
	require.Zero(t, allocated)
}

package geofence

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// comb is a ring with the given number of teeth, each as tall as the ring and
// slanted over its whole width.
func comb(teeth int) []point {
	ring := []point{{-1, 0}}
	for i := range teeth {
		x := float64(i) / float64(teeth)
		ring = append(ring, point{x + 9, 9}, point{x + 0.5/float64(teeth), 0.1})
	}
	return append(ring, point{20, 9}, point{20, 0}, point{-1, 0})
}

// Promise 9.
func TestIndexOfTallEdgesStaysSmall(t *testing.T) {
	for _, teeth := range []int{20, 500, MaxVertices/2 - 5} {
		t.Run(fmt.Sprint(teeth), func(t *testing.T) {
			g := newPolygon([][]point{comb(teeth)})
			require.NotEmpty(t, g.bands)
			entries := 0
			for _, band := range g.bands {
				entries += len(band)
			}
			require.Less(t, entries, 40*len(g.edges))
			whole := *g
			whole.bands = nil
			for i := range 50 {
				p, q := point{float64(i) / 7, float64(i) / 6}, point{9 - float64(i)/9, float64(i) / 11}
				require.Equal(t, whole.locate(p), g.locate(p))
				require.Equal(t, whole.spansOf(nil, p, q), g.spansOf(nil, p, q))
			}
		})
	}
}

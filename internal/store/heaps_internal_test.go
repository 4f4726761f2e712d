package store

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestADeviceTimeBelongsToOneHeap(t *testing.T) {
	t.Parallel()
	c := cuts{10, 20, 30}
	for us, heap := range map[int64]int{math.MinInt64: 0, 9: 0, 10: 1, 19: 1, 20: 2, 30: 3, math.MaxInt64: 3} {
		require.Equal(t, heap, c.heap(us), "%d", us)
	}
	require.Equal(t, span{0, 3, math.MinInt64, math.MaxInt64}, c.span(-5, 9))
	require.Equal(t, span{1, 2, 10, 30}, c.span(1, 2))
	require.Equal(t, []span{{1, 2, 10, 30}}, c.spans(10, 29))
	require.Equal(t, []span{{0, 0, math.MinInt64, math.MaxInt64}}, cuts(nil).spans(3, 4))
	var many cuts
	for i := range int64(2*heapsAtOnce + 5) {
		many = append(many, i)
	}
	var next int
	for _, s := range many.spans(math.MinInt64, math.MaxInt64) {
		require.Equal(t, next, s.first)
		require.LessOrEqual(t, s.last-s.first, heapsAtOnce)
		require.True(t, s.holds(s.from))
		next = s.last + 1
	}
	require.Equal(t, len(many)+1, next)
}

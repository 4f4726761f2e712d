package store

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Slices grow and shrink towards as many rows as they should have, over thousands of
// years too.
func TestASliceGrowsOnSparsePositions(t *testing.T) {
	t.Parallel()
	const century = int64(100 * 365.25 * 24 * 3600 * 1e6)
	r := &trialReader{rows: trialRows, most: 4 * trialRows}
	for _, tc := range []struct {
		length int64
		rows   int
		want   int64
	}{
		{1, 0, 4},
		{1, 1, 4},
		{trialShortest, trialRows / 2, 2 * trialShortest},
		{trialShortest, trialRows * 2, trialShortest / 2},
		{century, 0, 4 * century},
		{century, 1, 4 * century},
		{100 * century, 3, 400 * century},
		{1, trialRows * 2, 1},
	} {
		r.adapt(&trialSlice{to: tc.length, rows: make([]trialRow, tc.rows)})
		require.Equal(t, tc.want, r.length, "%d rows in %d microseconds", tc.rows, tc.length)
	}
}

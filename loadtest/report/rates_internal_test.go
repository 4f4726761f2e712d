package report

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/loadtest/testbed"
)

func TestRatesAreOverTheSecondBefore(t *testing.T) {
	t.Parallel()
	var samples []testbed.Sample
	for i := range 9 { // two a second, and one of them with all of the next second's
		stored := int64(i) * 500
		if i == 4 {
			stored += 500
		}
		samples = append(samples, testbed.Sample{At: time.Duration(i) * 500 * time.Millisecond, Slots: []testbed.SlotSample{{Stored: stored}}})
	}
	require.Equal(t, []float64{0, 1000, 1000, 1000, 1500, 1000, 500, 1000, 1000}, rates(samples, 0))
	require.Equal(t, make([]float64, 9), rates(samples, 1))
}

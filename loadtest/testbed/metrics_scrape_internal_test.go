package testbed

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestQuantilesOfMergedHistograms(t *testing.T) {
	t.Parallel()
	one := Histogram{bounds: []float64{.01, .1, 1}, counts: []float64{50, 50, 50}, total: 50}
	two := Histogram{bounds: []float64{.01, .1, 1}, counts: []float64{0, 50, 50}, total: 50}
	var both Histogram
	_, ok := both.quantile(.5)
	require.False(t, ok, "of nothing there is no quantile")
	both.Add(one, 1)
	both.Add(two, 1)
	half, ok := both.quantile(.5)
	require.True(t, ok)
	require.Equal(t, 10*time.Millisecond, half)
	most, _ := both.quantile(.99)
	require.InDelta(t, .0982, most.Seconds(), 1e-6)
	both.Add(one, -1)
	half, _ = both.quantile(.5)
	require.InDelta(t, .055, half.Seconds(), 1e-6)
	beyond, _ := Histogram{bounds: []float64{1}, counts: []float64{0}, total: 5}.quantile(.5)
	require.Equal(t, time.Second, beyond, "beyond the last bound is that bound")
}

func TestUntilEndsAtAFinalErrorAtOnceAndSaysTheLastOtherwise(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		err := Within(t.Context(), time.Minute, time.Second, func() error { return GiveUp(errors.New("hopeless")) })
		require.EqualError(t, err, "hopeless")
		require.Zero(t, time.Since(begun))
		err = Within(t.Context(), time.Minute, time.Second, func() error { return errors.New("not yet") })
		require.ErrorContains(t, err, "not within 1m0s: not yet")
		require.Equal(t, time.Minute, time.Since(begun))
	})
}

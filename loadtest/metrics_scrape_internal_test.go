package loadtest

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestQuantilesOfMergedHistograms(t *testing.T) {
	t.Parallel()
	one := histogram{bounds: []float64{.01, .1, 1}, counts: []float64{50, 50, 50}, total: 50}
	two := histogram{bounds: []float64{.01, .1, 1}, counts: []float64{0, 50, 50}, total: 50}
	var both histogram
	_, ok := both.quantile(.5)
	require.False(t, ok, "of nothing there is no quantile")
	both.add(one, 1)
	both.add(two, 1)
	half, ok := both.quantile(.5)
	require.True(t, ok)
	require.Equal(t, 10*time.Millisecond, half)
	most, _ := both.quantile(.99)
	require.InDelta(t, .0982, most.Seconds(), 1e-6)
	both.add(one, -1)
	half, _ = both.quantile(.5)
	require.InDelta(t, .055, half.Seconds(), 1e-6)
	beyond, _ := histogram{bounds: []float64{1}, counts: []float64{0}, total: 5}.quantile(.5)
	require.Equal(t, time.Second, beyond, "beyond the last bound is that bound")
}

func TestUntilEndsAtAFinalErrorAtOnceAndSaysTheLastOtherwise(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		err := within(t.Context(), time.Minute, time.Second, func() error { return giveUp(errors.New("hopeless")) })
		require.EqualError(t, err, "hopeless")
		require.Zero(t, time.Since(begun))
		err = within(t.Context(), time.Minute, time.Second, func() error { return errors.New("not yet") })
		require.ErrorContains(t, err, "not within 1m0s: not yet")
		require.Equal(t, time.Minute, time.Since(begun))
	})
}

func TestTheSameSeedDrawsTheSameFences(t *testing.T) {
	t.Parallel()
	p, err := Plan{Devices: 50, Rate: 500, Profile: profileIncidents}.profile(3, 0, time.Hour)
	require.NoError(t, err)
	one, err := fencesAlong(p)
	require.NoError(t, err)
	two, err := fencesAlong(p)
	require.NoError(t, err)
	require.Equal(t, one, two)
	require.Len(t, one, fencePlaces)
	for _, f := range one {
		require.NoError(t, f.Check(), f.ID)
	}
}

func TestLagCurveIsTheWorstOfEachSecond(t *testing.T) {
	t.Parallel()
	sample := func(ms int, outstanding int64, age float64) Sample {
		s := Sample{At: time.Duration(ms) * time.Millisecond}
		if age >= 0 {
			s.Backlog, s.Age = &outstanding, &age
		}
		return s
	}
	c := lagCurve("a kill", []Sample{
		sample(900, 99, 9), sample(1000, 1, .1), sample(1500, 7, .2), sample(1999, 3, .7),
		sample(2500, 0, -1), sample(3100, 4, 1.234), sample(4100, 99, 9),
	}, time.Second, 4*time.Second)
	one, seven, none, worst, last := int64(4), int64(7), (*int64)(nil), .7, 1.23
	require.Equal(t, LagCurve{
		After: "a kill", Backlog: []*int64{&seven, none, &one, none}, AgeSeconds: []*float64{&worst, nil, &last, nil},
	}, c)
}

func TestRatesAreOverTheSecondBefore(t *testing.T) {
	t.Parallel()
	var samples []Sample
	for i := range 9 { // two a second, and one of them with all of the next second's
		stored := int64(i) * 500
		if i == 4 {
			stored += 500
		}
		samples = append(samples, Sample{At: time.Duration(i) * 500 * time.Millisecond, Slots: []SlotSample{{Stored: stored}}})
	}
	require.Equal(t, []float64{0, 1000, 1000, 1000, 1500, 1000, 500, 1000, 1000}, rates(samples, 0))
	require.Equal(t, make([]float64, 9), rates(samples, 1))
}

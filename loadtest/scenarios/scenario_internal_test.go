package scenarios

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/loadtest/oracle"
	"github.com/trmtracking/processor/loadtest/testbed"
)

func TestTheSameSeedDrawsTheSameFences(t *testing.T) {
	t.Parallel()
	p, err := Plan{Devices: 50, Rate: 500, Profile: profileIncidents}.Fleet(3, 0, time.Hour)
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
	sample := func(ms int, outstanding int64, age float64) testbed.Sample {
		s := testbed.Sample{At: time.Duration(ms) * time.Millisecond}
		if age >= 0 {
			s.Backlog, s.Age = &outstanding, &age
		}
		return s
	}
	c := lagCurve("a kill", []testbed.Sample{
		sample(900, 99, 9), sample(1000, 1, .1), sample(1500, 7, .2), sample(1999, 3, .7),
		sample(2500, 0, -1), sample(3100, 4, 1.234), sample(4100, 99, 9),
	}, time.Second, 4*time.Second)
	one, seven, none, worst, last := int64(4), int64(7), (*int64)(nil), .7, 1.23
	require.Equal(t, LagCurve{
		After: "a kill", Backlog: []*int64{&seven, none, &one, none}, AgeSeconds: []*float64{&worst, nil, &last, nil},
	}, c)
}

// The server counts nothing of it where its lag is unknown.
func TestWhatWasSentAndNotDispatchedIsAMissedBound(t *testing.T) {
	t.Parallel()
	var r run
	res := Result{Account: oracle.Account{Pending: 3}}
	r.checkCommonBounds(&res)
	require.Equal(t, []string{"backlog: 3 entries, want 0"}, r.missed)
}

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

func TestNothingIsAcknowledgedTooEarlyOnlyWhereThatWasLookedFor(t *testing.T) {
	t.Parallel()
	look := func(s Scenario, probes ...testbed.Probe) (*int64, []string) {
		r, res := run{scenario: s}, Result{}
		for i := range probes {
			r.streams = append(r.streams, &oneStream{probe: &probes[i]})
		}
		r.checkCommonBounds(&res)
		return res.Early, r.missed
	}
	early, missed := look(split(), testbed.Probe{Seen: 5}, testbed.Probe{Seen: 7, Early: 2})
	require.Equal(t, new(int64(2)), early)
	require.Len(t, missed, 1)
	early, missed = look(split(), testbed.Probe{Seen: 5})
	require.Equal(t, new(int64(0)), early)
	require.Empty(t, missed)
	early, missed = look(split(), testbed.Probe{})
	require.Nil(t, early)
	require.Equal(t, []string{"early: no acknowledged record was looked for in Postgres, want some"}, missed)
	early, missed = look(backlog(), testbed.Probe{})
	require.Nil(t, early)
	require.Empty(t, missed, "it starts no probe")
}

func TestMemoryThatNobodySawIsAMissedBound(t *testing.T) {
	t.Parallel()
	seen := func(at time.Duration, mb float64) testbed.Sample {
		return testbed.Sample{At: at, Slots: []testbed.SlotSample{{RSS: mb * 1e6}}}
	}
	for name, samples := range map[string][]testbed.Sample{
		"kept": {seen(30, 100), seen(90, 157)}, "missed": {seen(30, 100), seen(90, 158)},
		"never seen": nil, "not seen in the end": {seen(30, 100)}, "not seen before": {seen(90, 20)},
	} {
		r := run{plan: Plan{Instances: 1}}
		r.memory(samples, 0, 100)
		require.Equal(t, name != "kept", len(r.missed) > 0, name)
	}
}

// The server counts nothing of it where its lag is unknown.
func TestWhatWasSentAndNotDispatchedIsAMissedBound(t *testing.T) {
	t.Parallel()
	var r run
	res := Result{Account: oracle.Account{Pending: 3}}
	r.checkCommonBounds(&res)
	require.Equal(t, []string{"backlog: 3 entries, want 0"}, r.missed)
}

// P10: what is not known is not 0.
func TestWhatNeedsTheTimesOfCommitsIsNotJudgedWithoutThem(t *testing.T) {
	t.Parallel()
	var r run
	now := time.Now()
	var res Result
	r.checkCommonBounds(&res)
	r.joined(&res, 1, now, now)
	require.NotEmpty(t, res.NotJudged)
	require.Equal(t, []Fact{{Name: "not judged", Value: res.NotJudged}}, r.facts)

	r, res = run{}, Result{Reordered: new(int64), Stale: new(int64)}
	r.checkCommonBounds(&res)
	r.joined(&res, 1, now, now)
	require.Empty(t, res.NotJudged)
	require.Equal(t, []Fact{{Name: "join", Value: "of instance 2: 0 shards moved"}}, r.facts)
}

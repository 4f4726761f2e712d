package scenarios

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/observer"
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
	r.latency(&res)
	require.NotEmpty(t, res.NotJudged)
	require.Empty(t, r.missed)
	require.Equal(t, []Fact{{Name: "not judged", Value: res.NotJudged}}, r.facts)

	r, res = run{}, Result{Reordered: new(int64), Stale: new(int64)}
	r.checkCommonBounds(&res)
	r.joined(&res, 1, now, now)
	require.Empty(t, res.NotJudged)
	require.Equal(t, []Fact{{Name: "join", Value: "of instance 2: 0 shards moved"}}, r.facts)
	r.latency(&res)
	require.Equal(t, []string{"p99: 0 ms of 0 records, want at most 1 s"}, r.missed)
}

// What the service says about itself is no verdict on it.
func TestForceAndLatencyAreWhatTheDatabaseKept(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t, testenv.WithTemplate("loadtest", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
	cfg, err := pgxpool.ParseConfig(url)
	require.NoError(t, err)
	cfg.ConnConfig.RuntimeParams["application_name"] = store.ApplicationName("a.1")
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	exec := func(sql string, args ...any) {
		_, err := pool.Exec(t.Context(), sql, args...)
		require.NoError(t, err)
	}
	s := &oneStream{servers: &testbed.Servers{Stream: "s", Dated: true, Observer: observer.NewObserver(pool, store.Scope{Stream: "s", Group: "g"})}}
	exec("insert into processor.shards (stream, group_name, shard) values ('s', 'g', 0), ('s', 'g', 1), ('other', 'g', 0)")
	require.NoError(t, s.servers.Observer.Install(t.Context()))
	owned := func(shard int, owner string) {
		exec("update processor.shards set owner = nullif($2, ''), epoch = epoch + 1 where shard = $1", shard, owner)
	}
	owned(0, "a.1")
	owned(1, "b.1")
	owned(0, "b.1") // before
	r := run{line: &testbed.Cluster{}, streams: []*oneStream{s}}
	began := time.Now()
	for _, owner := range []string{"", "a.1", "a.1"} { // released, and acquired again after a failure
		owned(0, owner)
	}
	between := time.Now()
	owned(1, "a.1")
	ended := time.Now()
	owned(1, "b.1") // after
	r.unforced = []unforced{{"calm", period{began, between}}, {"an outage", period{began, ended}}}

	load, err := testbed.NewLoad(s.servers, t.TempDir(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer func() { require.NoError(t, load.Close()) }()
	for n, ago := range []time.Duration{time.Minute, time.Hour} {
		at := time.Now().Add(-ago)
		m := fleet.Message{DeviceID: fleet.DeviceID(n), Codec: "8E", Time: at}
		require.NoError(t, load.Writer.Append(&fleet.Sent{ID: telemetry.EntryID{Ms: uint64(at.UnixMilli())}, Message: m}))
		exec(`
insert into public.positions (device_id, ts, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
values ($1, $2, 1, 1, 0, 0, 0, 0, 0, '8', '{}')`, m.DeviceID, at)
	}
	require.NoError(t, load.Writer.Flush())
	sent, err := load.Open()
	require.NoError(t, err)
	defer func() { require.NoError(t, sent.Close()) }()
	o, err := oracle.New(sent)
	require.NoError(t, err)

	_, err = r.order(t.Context(), s, o, &Result{}, nil)
	require.NoError(t, err)
	require.Equal(t, []string{"an outage: 1 shards were taken by force, want none"}, r.missed)
	slices.Sort(r.took)
	require.InDelta(t, time.Minute.Milliseconds(), *percentile(r.took, 50), 5000)
	require.InDelta(t, time.Hour.Milliseconds(), *percentile(r.took, 99), 5000)
}

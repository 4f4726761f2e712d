package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// shuttling fills positions with devices that go to and fro in longitude, one
// fix every ten seconds, a step of 0.001 degrees each.
func shuttling(tb testing.TB, pool *pgxpool.Pool, devices, fixes int) {
	tb.Helper()
	_, err := pool.Exec(tb.Context(), `
insert into public.positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
select 'device-' || d, at, at, 48 + d * 0.001, 11 + abs(n % 200 - 100) * 0.001, 0, 0, 0, 9, 0, '8', '{}'
from generate_series(0, $2 - 1) n
cross join lateral (select timestamptz '2026-01-01 00:00:00Z' + n * interval '10 seconds' as at) t
cross join generate_series(1, $1) d`, devices, fixes)
	require.NoError(tb, err)
	_, err = pool.Exec(tb.Context(), "analyze public.positions")
	require.NoError(tb, err)
}

func trialFences(n int) []geofence.Fence {
	var list []geofence.Fence
	for i := range n {
		west, south := 11.0105+float64(i%8)*0.01, 47.9995+float64(i/8)*0.01
		list = append(list, geofence.Fence{
			ID: fmt.Sprint("f", i), Kind: geofence.Area, Enabled: true, Valid: geofence.Always,
			Geometry: fmt.Sprintf(`{"type":"Polygon","coordinates":[[[%[1]f,%[2]f],[%[3]f,%[2]f],[%[3]f,%[4]f],[%[1]f,%[4]f],[%[1]f,%[2]f]]]}`, west, south, west+0.004, south+0.008),
		})
	}
	return list
}

var trialPins = store.FleetSettings{Shards: 4, Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute, MinSatellites: 1}, MaxGap: time.Hour}

// What a device crosses follows from how it goes: each turn meets each fence on its
// latitude twice. The rows of another fence are not looked at, and nothing is
// changed.
func TestATrialOfFencesCountsTheDifference(t *testing.T) {
	t.Parallel()
	pool := fencePool(t)
	shuttling(t, pool, 3, 1000)
	ask := store.NewDevices(pool, fenceScope, trialPins, "test")
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := store.TrialWindow{Since: begin, Until: begin.Add(24 * time.Hour)}
	execute(t, pool, `insert into processor.timing_records (device_id, fence_id, fence_version, kind, at, earlier_ts, later_ts, latitude, longitude)
		values ('device-1', 'other', 1, 'enter', $1, $1, $1, 0, 0), ('device-1', 'f0', 1, 'exit', $1, $1, $1, 0, 0), ('gone', 'f0', 1, 'enter', $1, $1, $1, 0, 0)`, begin.Add(15*time.Second))
	execute(t, pool, `insert into processor.timing_records (device_id, fence_id, fence_version, kind, at, earlier_ts, later_ts, latitude, longitude)
		values ('device-2', 'f0', 1, 'exit', $1, $1, $1, 0, 0)`, begin.Add(20*time.Second))
	// 1,000 fixes are ten ways of 100 steps; both ends lie outside of both fences.
	const each = 10 * 2 * 3
	var reported int64
	got, err := ask.TryFences(t.Context(), trialFences(2), w, func(n int64, _ time.Time) { reported = n })
	require.NoError(t, err)
	require.Zero(t, reported, "too few to speak of")
	require.Equal(t, int64(3000), got.Positions)
	require.Equal(t, 3, got.Devices)
	require.Equal(t, store.FenceTrialCount{Recorded: 3, Would: 2 * each, Added: 2 * each, Removed: 1, Kept: 2}, got.FenceTrialCount)
	require.Len(t, got.Fences, 2)
	require.Len(t, got.Examples, 100)

	// A part of it, from a fix inside of a fence on: the rest of the ways.
	w.Since, w.Device = begin.Add(500*10*time.Second), "device-3"
	got, err = ask.TryFences(t.Context(), trialFences(1), w, nil)
	require.NoError(t, err)
	require.Equal(t, store.FenceTrialCount{Would: 10, Added: 10}, got.FenceTrialCount)

	w.Until = w.Since
	_, err = ask.TryFences(t.Context(), trialFences(1), w, nil)
	require.ErrorContains(t, err, "exchange --since and --until")
	_, err = ask.TryFences(t.Context(), nil, w, nil)
	require.ErrorContains(t, err, "no valid fence")
}

// Each way leads 300 m through a fence, in 40 s.
func TestATrialHoldsBordersStill(t *testing.T) {
	t.Parallel()
	pool := fencePool(t)
	shuttling(t, pool, 3, 1000)
	ask := store.NewDevices(pool, fenceScope, trialPins, "test")
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const each = 10 * 2
	for _, tc := range []struct {
		hold   func(*geofence.Fence)
		window time.Duration // from the begin to its begin
		want   int64         // of each device
	}{
		{func(f *geofence.Fence) { f.ExitMarginM = 100 }, 0, each},
		{func(f *geofence.Fence) { f.ExitMarginM = 100 }, 5000 * time.Second, 10}, // from inside on
		{func(f *geofence.Fence) { f.MinDwellS = 39 }, 0, each},
		{func(f *geofence.Fence) { f.MinDwellS = 41 }, 0, 0},
		{func(f *geofence.Fence) { f.ExitMarginM, f.MinDwellS = 100, 41 }, 0, 0},
		{func(f *geofence.Fence) { f.ExitMarginM = 1000 }, 0, each / 2}, // one turn is only 780 m away
	} {
		fences := trialFences(1)
		tc.hold(&fences[0])
		got, err := ask.TryFences(t.Context(), fences, store.TrialWindow{Since: begin.Add(tc.window), Until: begin.Add(24 * time.Hour)}, nil)
		require.NoError(t, err)
		require.Equal(t, store.FenceTrialCount{Would: 3 * tc.want, Added: 3 * tc.want}, got.FenceTrialCount, "%+v", fences[0])
	}
}

// BenchmarkTrial tries 1,000 fences over a million positions, or TRIAL_POSITIONS.
func BenchmarkTrial(b *testing.B) {
	positions := 1_000_000
	if text := os.Getenv("TRIAL_POSITIONS"); text != "" {
		var err error
		positions, err = strconv.Atoi(text)
		require.NoError(b, err)
	}
	url := testenv.Postgres(b, testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
	pool, err := pgxpool.New(b.Context(), url)
	require.NoError(b, err)
	defer pool.Close()
	shuttling(b, pool, 1000, positions/1000)
	ask := store.NewDevices(pool, fenceScope, trialPins, "test")
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for b.Loop() {
		_, err := ask.TryFences(b.Context(), trialFences(1000), store.TrialWindow{Since: begin, Until: begin.AddDate(10, 0, 0)}, nil)
		require.NoError(b, err)
	}
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(positions)*float64(b.N)/b.Elapsed().Seconds(), "positions/s")
	b.ReportMetric(float64(after.Sys-before.Sys)/1e6, "MB-more")
}

// What a trial does not know it does not count.
func TestATrialOfFencesRefusesTheRuleOnJumps(t *testing.T) {
	t.Parallel()
	pins := trialPins
	pins.Eligibility.MaxSpeed = 300
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	_, err := store.NewDevices(nil, fenceScope, pins, "test").
		TryFences(t.Context(), trialFences(2), store.TrialWindow{Since: begin, Until: begin.Add(time.Hour)}, nil)
	require.ErrorContains(t, err, "MAX_SPEED")
}

// However positions are read, a trial gives what one pass over each device gives: of one
// that leaps over fences from fix to fix, of one that is far from all, with positions
// without a fix, faulty ones, clocks ahead, and long spans without any.
func TestATrialGivesWhatAPassOverEachDeviceGives(t *testing.T) {
	t.Parallel()
	pool := fencePool(t)
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := store.TrialWindow{Since: begin, Until: begin.AddDate(1, 0, 0)}
	set, bad := geofence.NewSet(trialFences(40))
	require.Empty(t, bad)
	r := rand.New(rand.NewPCG(3, 4))
	var rows [][]any
	var want store.FenceTrialCount
	var positions int64
	recorded := func(device, fence string, kind geofence.CrossingKind, us int64, ordinal int) {
		at := time.UnixMicro(us)
		execute(t, pool, `insert into processor.timing_records (device_id, fence_id, fence_version, kind, at, earlier_ts, later_ts, latitude, longitude, ordinal)
			values ($1, $2, 1, $3, $4, $4, $4, 0, 0, $5)`, device, fence, string(kind), at, ordinal)
		want.Recorded++
	}
	for d := range 7 {
		device := fmt.Sprint("device-", d)
		at := begin.Add(-time.Hour + time.Duration(d)*20*time.Minute) // four begin before the window
		var last *geofence.Fix
		for n := range 300 {
			step := time.Duration(1+r.IntN(120)) * time.Second
			switch {
			case n%97 == 96:
				step = 40 * 24 * time.Hour
			case n%50 == 49:
				step = 3 * time.Hour // more than the longest gap with a way
			}
			at = at.Add(step)
			latitude, longitude := 48+r.Float64()*0.05, 11+r.Float64()*0.09
			switch d {
			case 5: // from one side of all fences to the other
				longitude = 10.9 + 0.3*float64(n%2)
			case 6:
				latitude += 5
			}
			fix := geofence.Fix{TimeUS: at.UnixMicro(), Latitude: latitude, Longitude: longitude, Speed: 30}
			satellites, ingested, faulty := 9, at, false
			takes := false
			switch r.IntN(12) {
			case 0:
				satellites = 0
			case 1:
				faulty = true
			case 2:
				latitude, longitude = 0, 0
			case 3:
				ingested = at.Add(-time.Hour)
			default:
				takes = true
			}
			rows = append(rows, []any{device, at, ingested, latitude, longitude, 0.0, 0.0, 30.0, satellites, 0, "8", "{}", faulty})
			if !takes {
				if at.After(begin) && n%20 == 0 {
					recorded(device, "f0", geofence.Enter, fix.TimeUS, 0)
					want.Kept++
				}
				continue
			}
			prev := last
			if last = &fix; at.Before(begin) {
				continue
			}
			positions++
			var list []geofence.Crossing
			if prev == nil {
				list = set.Initial(nil, fix)
			} else {
				list = set.Crossings(nil, *prev, fix, time.Hour)
			}
			want.Would += int64(len(list))
			want.Added += int64(len(list))
			for i, c := range list {
				if i%3 == 0 {
					recorded(device, c.FenceID, c.Kind, c.LaterUS, c.Ordinal)
					want.Added--
					want.Changed++
				}
			}
			if n%20 == 0 {
				recorded(device, "f1", geofence.Exit, fix.TimeUS, 90)
				want.Removed++
			}
		}
	}
	_, err := pool.CopyFrom(t.Context(), pgx.Identifier{"public", "positions"}, []string{
		"device_id", "ts", "ingested_at", "latitude", "longitude", "altitude", "angle", "speed", "satellites", "priority", "codec", "attributes", "faulty",
	}, pgx.CopyFromRows(rows))
	require.NoError(t, err)
	require.Greater(t, want.Would, int64(1000))
	ask := store.NewDevices(pool, fenceScope, trialPins, "test")
	held := trialFences(40)
	for i := range held {
		if i%2 == 0 {
			held[i].ExitMarginM, held[i].MinDwellS = 50, 30
		}
	}
	var first, still store.FenceTrial
	for i, rows := range []int{0, 50, 3} {
		got, err := ask.TryFences(t.Context(), trialFences(40), w.InSlicesOf(rows), nil)
		require.NoError(t, err)
		require.Equal(t, want, got.FenceTrialCount, "in slices of %d", rows)
		require.Equal(t, positions, got.Positions)
		require.Equal(t, 7, got.Devices)
		require.Len(t, got.Examples, 100)
		kept, err := ask.TryFences(t.Context(), held, w.InSlicesOf(rows), nil)
		require.NoError(t, err)
		if i == 0 {
			first, still = got, kept
		}
		require.Equal(t, first, got)
		require.Equal(t, still, kept)
	}
	require.NotEqual(t, first.Would, still.Would)
}

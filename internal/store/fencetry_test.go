package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
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
// that leaps over fences from fix to fix, of one that is far from all, of one with a
// fix at each microsecond, with positions without a fix, faulty ones, clocks ahead, and
// long spans without any; they are stored in no order.
func TestATrialGivesWhatAPassOverEachDeviceGives(t *testing.T) {
	testenv.Slow(t)
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
	for d := range 8 {
		device := fmt.Sprint("device-", d)
		at := begin.Add(-time.Hour + time.Duration(d)*20*time.Minute) // four begin before the window
		var last *geofence.Fix
		for n := range 300 {
			step := time.Duration(1+r.IntN(120)) * time.Second
			switch {
			case d == 7:
				step = time.Microsecond
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
					want.Removed++
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
	for n := range 3 { // behind all positions, of one device that has some and of one that has none
		recorded(fmt.Sprint("device-", 6+n), "f0", geofence.Enter, w.Until.Add(-time.Hour).UnixMicro(), n)
		want.Kept++
	}
	r.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
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
		require.Equal(t, 8, got.Devices)
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

// What fences would have recorded is what a recompute makes of it, also where retention
// dropped positions: what was recorded at those stays, and says where a device was.
func TestATrialTellsWhatARecomputeDoesAfterRetention(t *testing.T) {
	t.Parallel()
	for name, heaps := range map[string]int{"one heap": 0, "a heap for each day": 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			b := newBench(t)
			if heaps > 0 {
				b.partitionByDay(heaps)
			}
			square := func(west, east float64) string {
				return fmt.Sprintf(`{"type":"Polygon","coordinates":[[[%[1]v,41],[%[2]v,41],[%[2]v,43],[%[1]v,43],[%[1]v,41]]]}`, west, east)
			}
			point := func(longitude float64) string {
				return fmt.Sprintf(`{"type":"Point","coordinates":[%v,42]}`, longitude)
			}
			now := []geofence.Fence{
				{ID: "square", Kind: geofence.Area, Geometry: square(0, 2)},
				{ID: "round", Kind: geofence.Circle, Geometry: point(5), RadiusM: 1000},
				{ID: "line", Kind: geofence.Gate, Geometry: `{"type":"LineString","coordinates":[[3,41],[3,43]]}`},
				{ID: "held", Kind: geofence.Area, Geometry: square(8, 10), ExitMarginM: 100, MinDwellS: 3600},
			}
			then := []geofence.Fence{
				{ID: "square", Kind: geofence.Area, Geometry: square(4, 6)},
				{ID: "round", Kind: geofence.Circle, Geometry: point(1), RadiusM: 1000},
				{ID: "line", Kind: geofence.Gate, Geometry: `{"type":"LineString","coordinates":[[7,41],[7,43]]}`},
				{ID: "new", Kind: geofence.Area, Geometry: square(0, 7)},
				{ID: "held", Kind: geofence.Area, Geometry: square(4, 10), ExitMarginM: 100, MinDwellS: 60},
			}
			for _, list := range [][]geofence.Fence{now, then} {
				for i := range list {
					list[i].Enabled, list[i].Valid = true, geofence.Always
				}
			}
			install := func(version int, fences []geofence.Fence) {
				b.exec("update processor.geofences set replaced_at = now() where replaced_at is null")
				for i := range fences {
					f := &fences[i]
					b.exec(`
insert into processor.geofences (id, version, name, kind, geometry, radius_m, exit_margin_m, min_dwell_s)
values ($1, $2, '', $3, $4, nullif($5::float8, 0), nullif($6::float8, 0), nullif($7::float8, 0))`,
						f.ID, version, string(f.Kind), f.Geometry, f.RadiusM, f.ExitMarginM, f.MinDwellS)
				}
				var err error
				b.fences, _, err = store.NewFences(b.pool, 10*time.Second).Load(t.Context())
				require.NoError(t, err)
				require.Equal(t, len(fences), b.fences.Len())
			}
			install(1, now)
			held := b.take("a.1", 5)
			writer := store.NewWriter(b.pool, scope, "a.1", 10*time.Second)
			write := func(list []telemetry.Record) { b.writeShuffled(writer, held, rnd, list) }
			const devices, days = 20, 14
			var early, rest []telemetry.Record
			keptFrom := make(map[string]time.Time)
			for d := range devices {
				device := fmt.Sprint("d", d)
				kept := 1 + rnd.IntN(days-4)
				keptFrom[device] = dayOf(kept).Add(12*time.Hour + time.Duration(rnd.IntN(90))*time.Second)
				for day := range days {
					for n := range 4 { // less than the longest gap with a way apart
						r := at(device, day)
						r.TimeUS += int64(n) * 30e6
						r.StreamUS = r.TimeUS
						r.Longitude = []float64{1, 5, 9, 20}[rnd.IntN(4)]
						switch {
						case rnd.IntN(3) == 0:
						case r.Time().Before(keptFrom[device]) && rnd.IntN(8) > 0, day <= kept && rnd.IntN(2) == 0:
							early = append(early, r)
						default:
							rest = append(rest, r)
						}
					}
				}
				for n := range 2 { // far away from all, for long
					r := at(device, days+n)
					r.Longitude = 50
					rest = append(rest, r)
				}
			}
			// One enters the held fence between the last fix that is dropped and the first one left.
			keptFrom["entering"] = dayOf(2).Add(12*time.Hour + time.Second)
			for n, longitude := range []float64{20, 9, 9, 50, 50} {
				r := at("entering", 2+max(0, n-1))
				r.TimeUS += int64(min(n, 1)) * 30e6
				r.StreamUS, r.Longitude = r.TimeUS, longitude
				early = append(early, r)
			}
			write(early)
			for device, from := range keptFrom {
				b.exec("delete from public.positions where device_id = $1 and ts < $2", device, from)
			}
			write(rest)

			ask := store.NewDevices(b.pool, scope, store.FleetSettings{Shards: shards, Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute}, MaxGap: time.Minute}, "test")
			recompute := func() {
				b.exec("delete from processor.requests")
				for device := range keptFrom {
					b.runRequest(protocol.RequestRecompute, device, held[0], "a.1")
					v, err := ask.Verify(t.Context(), device)
					require.NoError(t, err)
					require.True(t, v.Good(), "%s: %+v", device, v)
				}
			}
			// What counts on a held border, too, is as it is derived now: a record that is older
			// than what was dropped has an influence there that ends with its window.
			recompute()
			content := func(w store.TrialWindow, fences []geofence.Fence) map[string]string {
				found := make(map[string]string)
				rows, err := b.pool.Query(t.Context(), `
select concat_ws(' ', device_id, fence_id, kind, later_ts, ordinal),
  concat_ws(' ', at, earlier_ts, latitude, longitude, initial, suppressed, method, distance_m, speed, max_error_ms)
from processor.timing_records
where later_ts >= $1
  and later_ts < $2`, w.Since, w.Until)
				require.NoError(t, err)
				var key, value string
				_, err = pgx.ForEachRow(rows, []any{&key, &value}, func() error {
					if slices.ContainsFunc(fences, func(f geofence.Fence) bool { return strings.Contains(key, " "+f.ID+" ") }) {
						found[key] = value
					}
					return nil
				})
				require.NoError(t, err)
				return found
			}
			all := store.TrialWindow{Since: dayOf(-1), Until: dayOf(heaps + days + 2)}
			type trial struct {
				w      store.TrialWindow
				fences []geofence.Fence
				before map[string]string
				got    store.FenceTrial
			}
			tried := []trial{{w: all, fences: then}}
			for day := range days { // on a held border fixes before the window decide
				part := store.TrialWindow{Since: dayOf(day).Add(12*time.Hour + 45*time.Second), Until: all.Until}
				tried = append(tried, trial{w: part, fences: then[:4]})
			}
			same, err := ask.TryFences(t.Context(), now, all, nil)
			require.NoError(t, err)
			require.Empty(t, same.Fences, "the fences in force: %+v", same.Examples)
			require.Positive(t, same.Kept)
			for i := range tried {
				part := tried[i].w
				same, err := ask.TryFences(t.Context(), now, part.InSlicesOf(20), nil)
				require.NoError(t, err)
				require.Empty(t, same.Fences, "the fences in force, from %v on: %+v", part.Since, same.Examples)
				tried[i].before = content(part, tried[i].fences)
				tried[i].got, err = ask.TryFences(t.Context(), tried[i].fences, part.InSlicesOf(20), nil)
				require.NoError(t, err)
			}
			install(2, then)
			recompute()
			for _, tr := range tried {
				after := content(tr.w, tr.fences)
				want := store.FenceTrialCount{Recorded: int64(len(tr.before)), Kept: tr.got.Kept, Would: int64(len(after)) - tr.got.Kept}
				for key, is := range after {
					switch was, there := tr.before[key]; {
					case !there:
						want.Added++
					case was != is:
						want.Changed++
					}
				}
				for key := range tr.before {
					if _, there := after[key]; !there {
						want.Removed++
					}
				}
				require.Equal(t, want, tr.got.FenceTrialCount, "from %v on", tr.w.Since)
			}
		})
	}
}

// A trial needs nothing that others hold who wait for it.
func TestATrialDoesNotWaitForOthersOfItsPool(t *testing.T) {
	t.Parallel()
	pool := fencePool(t)
	shuttling(t, pool, 3, 1000)
	pc := pool.Config()
	pc.MaxConns = 3
	small, err := pgxpool.NewWithConfig(t.Context(), pc)
	require.NoError(t, err)
	defer small.Close()
	for range pc.MaxConns - 1 {
		c, err := small.Acquire(t.Context())
		require.NoError(t, err)
		defer c.Release()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	got, err := store.NewDevices(small, fenceScope, trialPins, "test").
		TryFences(ctx, trialFences(2), store.TrialWindow{Since: begin, Until: begin.Add(24 * time.Hour)}, nil)
	require.NoError(t, err)
	require.Equal(t, int64(3000), got.Positions)
}

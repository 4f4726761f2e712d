package equivalence_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// rate publishes messages, lets one instance work them off, and returns records
// a second.
func rate(b *testing.B, bb *bench, name string, fences []geofence.Fence, first, then []fleet.Message, rules ...telemetry.Eligibility) float64 {
	b.Helper()
	w := newWorld(b, bb, bb.Stream+name)
	defer w.end()
	if len(rules) > 0 {
		w.rules = rules[0]
	}
	_, err := w.editor.Import(context.Background(), fences, "import", true)
	require.NoError(b, err)
	work := func(messages []fleet.Message) time.Duration {
		for rest := messages; len(rest) > 0; {
			n := min(len(rest), 5000)
			w.publish(rest[:n])
			rest = rest[n:]
		}
		started := time.Now()
		w.join(0, false)
		w.keepOwned()
		require.NoError(b, w.quiet(5*time.Minute))
		took := time.Since(started)
		w.end()
		return took
	}
	if len(first) > 0 {
		work(first)
	}
	r := float64(len(then)) / work(then).Seconds()
	report, err := w.verdict()
	require.NoError(b, err)
	require.True(b, report.Good(), "%v", report.Examples)
	b.Logf("%s: %.0f records/s, %.3f crossings a record", name, r, float64(report.Crossings)/float64(len(then)+len(first)))
	return r
}

// driving are fixes of 500 devices, each one every ten seconds.
func driving(n int) (messages []fleet.Message) {
	r := rand.New(rand.NewPCG(1, 1))
	at := make([][2]float64, 500)
	for i := range n {
		d := i % len(at)
		if i < len(at) {
			at[d] = [2]float64{48 + r.Float64(), 11 + r.Float64()}
		}
		at[d][0] += (r.Float64() - 0.4) * 2e-3 // about 100 m
		at[d][1] += (r.Float64() - 0.4) * 2e-3
		messages = append(messages, fleet.Message{
			DeviceID: fleet.DeviceID(d), Codec: "8", Time: time.Unix(1_700_000_000+int64(i/len(at))*10, 0),
			Latitude: at[d][0], Longitude: at[d][1], Satellites: 9,
			Attributes: []fleet.Attribute{fleet.NumberAttribute("239", 1), fleet.NumberAttribute("240", 1), fleet.NumberAttribute("16", 123456)},
		})
	}
	return messages
}

// heldStill gives the fences properties that say when a change counts.
func heldStill(fences []geofence.Fence) []geofence.Fence {
	held := slices.Clone(fences)
	for i := range held {
		if held[i].Kind == geofence.Gate {
			held[i].MinIntervalS = 30
		} else {
			held[i].ExitMarginM, held[i].MinDwellS = 15, float64(20*(i%2))
		}
	}
	return held
}

// BenchmarkRules compares, in turns, the rate under 1,000 fences with all rules on, and
// with properties of the fences too, with that with no rule on.
func BenchmarkRules(b *testing.B) {
	bb := newBench(b)
	messages := driving(400_000) // the start is in the rate
	fences := fencesOver(messages, 1000, 2)
	held := heldStill(fences)
	off := telemetry.Eligibility{MaxFutureSkew: 5 * time.Minute}
	on := telemetry.Eligibility{MaxFutureSkew: 5 * time.Minute, MinSatellites: 4, MaxPast: 20 * 365 * 24 * time.Hour, MaxSpeed: 200}
	for b.Loop() {
		var before, rules, properties float64 // the best of four: what else runs only slows down
		for range 4 {
			before = max(before, rate(b, bb, fmt.Sprint("off", time.Now().UnixNano()), fences, nil, messages, off))
			rules = max(rules, rate(b, bb, fmt.Sprint("rules", time.Now().UnixNano()), fences, nil, messages, on))
			properties = max(properties, rate(b, bb, fmt.Sprint("properties", time.Now().UnixNano()), held, nil, messages, on))
		}
		b.ReportMetric(before, "off/s")
		b.ReportMetric(rules/before, "rules-ratio")
		b.ReportMetric(properties/before, "properties-ratio")
	}
}

// BenchmarkFences compares the rate under 1,000 fences with that under none, and that
// under 1,000 with held borders with both.
func BenchmarkFences(b *testing.B) {
	bb := newBench(b)
	messages := driving(100_000)
	fences := fencesOver(messages, 1000, 2)
	held := heldStill(fences)
	for b.Loop() {
		var without, with, still float64 // the best of three, in turns: what else runs only slows down
		for range 3 {
			without = max(without, rate(b, bb, fmt.Sprint("none", time.Now().UnixNano()), nil, nil, messages))
			with = max(with, rate(b, bb, fmt.Sprint("many", time.Now().UnixNano()), fences, nil, messages))
			still = max(still, rate(b, bb, fmt.Sprint("held", time.Now().UnixNano()), held, nil, messages))
		}
		b.ReportMetric(without, "none/s")
		b.ReportMetric(still, "held/s")
		b.ReportMetric(still/with, "held-ratio")
		b.ReportMetric(with, "fences/s")
		b.ReportMetric(with/without, "ratio")
	}
}

// fmbLog is the log of real trackers, ten times over as ten fleets.
func fmbLog(b *testing.B) []fleet.Message {
	b.Helper()
	tracks, err := fleet.ReadTracks(testenv.Data(b, "teltonika/fmb_session_records.csv.gz"))
	require.NoError(b, err)
	var out []fleet.Message
	for n := range 10 {
		for _, it := range fleet.Collect(tracks.Replay(fleet.OrderFile)) {
			if fleet.ClassOf(&it.Message) == "" {
				it.Message.DeviceID = fleet.DeviceID(n)
				out = append(out, it.Message)
			}
		}
	}
	return out
}

// BenchmarkLate compares the rate of the log of real trackers, in its own order
// and with every record late, with that of the same log in order.
func BenchmarkLate(b *testing.B) {
	bb := newBench(b)
	log := fmbLog(b)
	fences := fencesOver(log, 10, 3)
	ordered := slices.Clone(log)
	slices.SortStableFunc(ordered, func(a, b fleet.Message) int { return a.Time.Compare(b.Time) })
	// One record of each device that is newer than all others makes them late.
	var newest []fleet.Message
	for n := range 10 {
		m := ordered[len(ordered)-1]
		m.DeviceID, m.Time, m.Latitude, m.Longitude = fleet.DeviceID(n), m.Time.Add(time.Hour), 13, 80
		newest = append(newest, m)
	}
	for b.Loop() {
		var in, asLogged, late float64
		for range 3 {
			in = max(in, rate(b, bb, fmt.Sprint("order", time.Now().UnixNano()), fences, nil, ordered))
			asLogged = max(asLogged, rate(b, bb, fmt.Sprint("logged", time.Now().UnixNano()), fences, nil, log))
			late = max(late, rate(b, bb, fmt.Sprint("late", time.Now().UnixNano()), fences, newest, log))
		}
		b.ReportMetric(in, "in-order/s")
		b.ReportMetric(asLogged, "as-logged/s")
		b.ReportMetric(late, "all-late/s")
		b.ReportMetric(late/in, "ratio")
	}
}

// BenchmarkColdDevices loads what is stored of devices that are not in memory.
func BenchmarkColdDevices(b *testing.B) {
	bb := newBench(b)
	const n, rows = 100_000, 20
	ctx := context.Background()
	conn, err := bb.Pool.Acquire(ctx)
	require.NoError(b, err)
	defer conn.Release()
	_, err = conn.Exec(ctx, "set statement_timeout = 0")
	require.NoError(b, err)
	_, err = conn.Exec(ctx, `
insert into public.positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
select 'cold' || d, '2026-01-01'::timestamptz + n * interval '1 minute', '2026-01-02', 48, 11, 0, 0, 0, 9, 0, '8', '{}'
from generate_series(1, $1) d, generate_series(1, $2) n`, n, rows)
	require.NoError(b, err)
	reader := store.NewReader(bb.Pool, time.Minute)
	load := func(from, count int) time.Duration {
		devices := make([]string, count)
		for i := range devices {
			devices[i] = fmt.Sprint("cold", from+i+1)
		}
		found := 0
		started := time.Now()
		require.NoError(b, reader.LastFixes(ctx, devices, telemetry.Eligibility{MaxFutureSkew: 5 * time.Minute, MinSatellites: 1}, func(int, geofence.Fix) { found++ }))
		require.Equal(b, count, found)
		return time.Since(started)
	}
	load(0, 10)
	for b.Loop() {
		b.ReportMetric(float64(load(0, 1000).Microseconds())/1000, "ms/1000-devices")
		started := time.Now()
		for from := 0; from < n; from += 1000 {
			load(from, 1000)
		}
		b.ReportMetric(time.Since(started).Seconds(), "s/100000-devices")
	}
}

// BenchmarkTakeover has an instance that knows no device take all shards while
// each of 100,000 devices has stored positions and an entry on its queue.
func BenchmarkTakeover(b *testing.B) {
	bb := newBench(b)
	const n, rows = 100_000, 20
	ctx := context.Background()
	for b.Loop() {
		w := newWorld(b, bb, fmt.Sprint(bb.Stream, "takeover", time.Now().UnixNano()))
		conn, err := bb.Pool.Acquire(ctx)
		require.NoError(b, err)
		_, err = conn.Exec(ctx, "set statement_timeout = 0")
		require.NoError(b, err)
		_, err = conn.Exec(ctx, `
insert into public.positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
select 'cold' || d, '2026-01-01'::timestamptz + n * interval '1 minute', '2026-01-02', 48, 11, 0, 0, 0, 9, 0, '8', '{}'
from generate_series(1, $1) d, generate_series(1, $2) n`, n, rows)
		require.NoError(b, err)
		conn.Release()
		messages := make([]fleet.Message, n)
		for d := range messages {
			messages[d] = fleet.Message{
				DeviceID: fmt.Sprint("cold", d+1), Codec: "8", Time: time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC), Latitude: 48, Longitude: 11, Satellites: 9,
			}
		}
		w.publish(messages)
		first := func() bool {
			return w.Count("select count(*) from (select from public.positions where ts = '2026-01-03' limit 1) p") > 0
		}
		started := time.Now()
		w.join(0, false)
		w.keepOwned()
		testenv.Wait(b, time.Minute, func() error {
			if !first() {
				return fmt.Errorf("nothing committed")
			}
			return nil
		})
		b.ReportMetric(float64(time.Since(started).Milliseconds()), "ms/first-commit")
		require.NoError(b, w.quiet(time.Minute))
		b.ReportMetric(time.Since(started).Seconds(), "s/all-100000")
		w.end()
	}
}

package store_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// P5: a verification derives by itself. Of what the service derives wrongly, it tells:
// this test fails with each fault of geofence in internal/mutation that names it.
func TestVerifyDerivesByItself(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	b := newBench(t)
	b.exec(`
insert into processor.geofences (id, version, name, kind, geometry, radius_m, width_m, exit_margin_m, min_dwell_s, min_interval_s)
values
  ('square', 1, '', 'area', '{"type":"Polygon","coordinates":[[[11,48],[11.01,48],[11.01,48.01],[11,48.01],[11,48]]]}', null, null, null, null, null),
  ('round', 2, '', 'circle', '{"type":"Point","coordinates":[11.005,48.015]}', 500, null, null, null, null),
  ('lane', 3, '', 'area', '{"type":"LineString","coordinates":[[10.99,48.005],[11.005,48.005],[11.02,48.02]]}', null, 300, null, null, null),
  ('line', 4, '', 'gate', '{"type":"LineString","coordinates":[[11.005,47.99],[11.005,48.03]]}', null, null, null, null, null),
  ('held', 5, '', 'area', '{"type":"Polygon","coordinates":[[[11,48],[11.01,48],[11.01,48.02],[11,48]]]}', null, null, 100, 25, null),
  ('brief', 6, '', 'gate', '{"type":"LineString","coordinates":[[10.99,48.01],[11.02,48.01]]}', null, null, null, null, 60)`)
	var err error
	b.fences, _, err = store.NewFences(b.pool, 10*time.Second).Load(t.Context())
	require.NoError(t, err)
	rules := protocol.Rules{
		Fences: b.fences, MaxGap: time.Minute,
		Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute, MaxPast: time.Hour, MinSatellites: 4, MaxSpeed: 300},
	}
	held := b.take("a.1", telemetry.ShardOf("drives", shards))
	rnd := rand.New(rand.NewPCG(testenv.Seed(t), 0))
	var list []telemetry.Record
	at := dayOf(0).UnixMicro()
	for i := range 600 {
		at += int64(10+rnd.IntN(60)) * 1e6
		r := telemetry.Record{
			DeviceID: "drives", Codec: "8", TimeUS: at, StreamUS: at, Satellites: 9, Speed: 20, Attributes: []byte(`{}`),
			Longitude: 11 + float64(rnd.IntN(21)-5)/1000, Latitude: 48 + float64(rnd.IntN(31)-5)/1000,
		}
		switch {
		case i%50 == 7:
			r.Longitude++ // a jump
		case i%50 == 17:
			r.Satellites = 3
		case i%50 == 27:
			r.StreamUS -= 2 * time.Minute.Microseconds()
		case i%50 == 37:
			r.StreamUS += 2 * time.Hour.Microseconds()
		}
		list = append(list, r)
	}
	rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	w := store.NewWriter(b.pool, scope, "a.1", time.Minute)
	for len(list) > 0 {
		n := min(len(list), 100)
		testenv.Wait(t, time.Minute, func() error { // many new chunks take more than one batch
			_, err := w.Write(t.Context(), &protocol.Batch{Leases: held, Late: list[:n:n], Rules: rules})
			return err
		})
		list = list[n:]
	}
	ask := store.NewDevices(b.pool, scope, store.FleetSettings{Shards: shards, Eligibility: rules.Eligibility, MaxGap: rules.MaxGap}, "test")
	v, err := ask.Verify(t.Context(), "drives")
	require.NoError(t, err)
	require.True(t, v.Good(), "%+v", v)
	require.Empty(t, v.BadFences)
	require.Equal(t, int64(600-3*12), v.Positions, "without those that are not eligible")
	require.Equal(t, int64(b.count("select count(*) from processor.timing_records")), v.Crossings)
	for _, fence := range []string{"square", "round", "lane", "line", "held", "brief"} {
		require.Greater(t, b.count("select count(*) from processor.timing_records where fence_id = $1", fence), 5, fence)
	}

	b.exec("update processor.timing_records set fence_version = 7 where fence_id = 'round'")
	v, err = ask.Verify(t.Context(), "drives")
	require.NoError(t, err)
	require.Len(t, v.Different, b.count("select count(*) from processor.timing_records where fence_id = 'round'"), "of another version")

	// What only the verification cannot derive is no difference, in whichever of its versions.
	b.exec("update processor.timing_records set fence_version = 2 where fence_id = 'round'")
	b.exec("update processor.geofences set valid_to = '2030-01-01' where id = 'lane'")
	b.exec("insert into processor.geofences (id, version, name, kind, geometry, width_m, valid_from) select id, 7, name, kind, geometry, width_m, valid_to from processor.geofences where id = 'lane'")
	ask.PassOver("lane")
	v, err = ask.Verify(t.Context(), "drives")
	require.NoError(t, err)
	require.True(t, v.Good(), "%+v", v)
	require.Empty(t, v.BadFences)
	require.Equal(t, []store.SkippedFence{{
		Fence: "lane", Reason: "fence lane version 3 is odd", Recorded: int64(b.count("select count(*) from processor.timing_records where fence_id = 'lane'")),
	}}, v.Skipped)

	ask.VerifyAtMost(int(v.Positions))
	_, err = ask.Verify(t.Context(), "drives")
	require.NoError(t, err)
	ask.VerifyAtMost(int(v.Positions) - 1)
	_, err = ask.Verify(t.Context(), "drives")
	require.ErrorContains(t, err, "too many to verify at once: processor device recompute")
}

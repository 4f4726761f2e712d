package store_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Crossings outlive the positions that they were derived from.
func TestARecomputeKeepsWhatWasDerivedFromDroppedPositions(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.partitionByDay(7)
	b.exec(`
insert into processor.geofences (id, version, name, kind, geometry)
values ('square', 1, 'square', 'area', '{"type":"Polygon","coordinates":[[[0,41],[2,41],[2,43],[0,43],[0,41]]]}')`)
	var err error
	b.fences, _, err = store.NewFences(b.pool, 10*time.Second).Load(t.Context())
	require.NoError(t, err)
	// Inside on odd days: "across" enters on the first day that is left, "within"
	// entered before and stays inside, "flagged" has only its first fix flagged.
	records := []telemetry.Record{
		at("across", 0), at("across", 1), at("across", 2), at("across", 3), at("across", 4), at("across", 5),
		at("within", 0), at("within", 1), at("within", 3), at("within", 4), at("away", 1),
		at("flagged", 3), at("flagged", 4), at("flagged", 5),
	}
	held := b.take("a.1", 5)
	batch := &protocol.Batch{Leases: held, Late: records, Rules: protocol.Rules{Fences: b.fences, Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute}, MaxGap: time.Minute}}
	_, err = store.NewWriter(b.pool, scope, "a.1", 10*time.Second).Write(t.Context(), batch)
	require.NoError(t, err)
	const content = `
select coalesce(string_agg(concat_ws(' ', device_id, kind, at, earlier_ts, later_ts, initial), E'\n' order by device_id, later_ts), '')
from processor.timing_records
where device_id <> 'flagged'`
	look := func() (s string) {
		require.NoError(t, b.pool.QueryRow(t.Context(), content).Scan(&s))
		return s
	}
	before := look()
	require.Equal(t, 8, b.count("select count(*) from processor.timing_records where device_id <> 'flagged'"))
	for _, sql := range []string{
		"drop table positions_0", "drop table positions_1", "drop table positions_2",
		"update positions set faulty = true where device_id = 'flagged' and ts < (select max(ts) - interval '1 day' from positions where device_id = 'flagged')",
	} {
		b.exec(sql)
	}
	ask := store.NewDevices(b.pool, scope, store.FleetSettings{Shards: shards, Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute}, MaxGap: time.Minute}, "test")
	for _, device := range []string{"across", "within", "away", "flagged"} {
		b.runRequest(protocol.RequestRecompute, device, held[0], "a.1")
		v, err := ask.Verify(t.Context(), device)
		require.NoError(t, err)
		require.True(t, v.Good(), "%s: %+v", device, v)
	}
	require.Equal(t, before, look())
	require.Equal(t, 1, b.count("select count(*) from processor.timing_records where device_id = 'flagged'"), "an enter; what was derived from the flagged position went")
}

// A device of which retention dropped every position is where its last crossing
// says: the first fix that is stored again is no second enter.
func TestAFirstFixIsNoEnterWhereTheDroppedOnesWereInside(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.exec(`
insert into processor.geofences (id, version, name, kind, geometry)
values ('square', 1, 'square', 'area', '{"type":"Polygon","coordinates":[[[0,41],[2,41],[2,43],[0,43],[0,41]]]}')`)
	var err error
	b.fences, _, err = store.NewFences(b.pool, 10*time.Second).Load(t.Context())
	require.NoError(t, err)
	held := b.take("a.1", 5)
	w := store.NewWriter(b.pool, scope, "a.1", 10*time.Second)
	rules := protocol.Rules{Fences: b.fences, Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute}, MaxGap: time.Minute}
	// Inside on odd days.
	_, err = w.Write(t.Context(), &protocol.Batch{Leases: held, Late: []telemetry.Record{at("within", 1), at("left", 1), at("left", 2)}, Rules: rules})
	require.NoError(t, err)
	b.exec("delete from public.positions where device_id in ('within', 'left')")

	again := &protocol.Batch{Leases: held, Fresh: []telemetry.Record{at("within", 3), at("left", 3), at("new", 3)}, Rules: rules}
	for _, r := range again.Fresh {
		first := geofence.Fix{TimeUS: r.TimeUS, Latitude: r.Latitude, Longitude: r.Longitude}
		for _, c := range b.fences.Initial(nil, first) {
			again.Crossings = append(again.Crossings, protocol.Crossing{DeviceID: r.DeviceID, Crossing: c})
		}
	}
	require.Len(t, again.Crossings, 3)
	_, err = w.Write(t.Context(), again)
	require.NoError(t, err)
	ask := store.NewDevices(b.pool, scope, store.FleetSettings{Shards: shards, Eligibility: rules.Eligibility, MaxGap: time.Minute}, "test")
	for device, enters := range map[string]int{"within": 1, "left": 2, "new": 1} {
		look := func() int {
			return b.count("select count(*) from processor.timing_records where kind = 'enter' and device_id = $1", device)
		}
		require.Equal(t, enters, look(), device)
		b.runRequest(protocol.RequestRecompute, device, held[0], "a.1")
		require.Equal(t, enters, look(), "%s, recomputed", device)
		v, err := ask.Verify(t.Context(), device)
		require.NoError(t, err)
		require.True(t, v.Good(), "%s: %+v", device, v)
	}
}

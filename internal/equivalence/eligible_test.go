package equivalence_test

import (
	"context"
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

// P5: a record that is not eligible is stored and changes nothing else, however
// it arrives: live, late, newest first, again, after a restart.
func TestOnlyEligibleRecordsCount(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	b := newBench(t)
	square := geofence.Fence{
		ID: "square", Kind: geofence.Area, Enabled: true, Valid: geofence.Always,
		Geometry: `{"type":"Polygon","coordinates":[[[11,48],[11.002,48],[11.002,48.002],[11,48.002],[11,48]]]}`,
	}
	fix := func(second int, longitude float64, satellites int) fleet.Message {
		return fleet.Message{
			DeviceID: fleet.DeviceID(1), Codec: "8", Time: time.Unix(scenarioBase+int64(second), 0),
			Latitude: 48.001, Longitude: longitude, Satellites: satellites,
		}
	}
	const outside, inside = 10.999, 11.001
	drive := []fleet.Message{
		fix(0, inside, 0), // before the first fix
		fix(10, outside, 9),
		fix(20, inside, 0), // repeats what never was
		fix(30, outside, 1),
		fix(40, inside, 9),
		fix(50, outside, 0),
		fix(60, inside, 4),
		fix(70, outside, 9),
		fix(80, inside, 0),
		fix(90, outside, 9),
		fix(100, inside, 0), // behind the last fix
	}
	// With the guard on, everything but these clocks is of now.
	now := time.Now().Truncate(time.Second)
	unset, m := 0, drive[4] // inside
	for i := range drive {
		drive[i].Time = now.Add(drive[i].Time.Sub(time.Unix(scenarioBase+100, 0)))
	}
	const maxPast = 8 * time.Minute // less than a gap: the last of them would be the neighbour of the first fix
	for _, ago := range []time.Duration{365 * 24 * time.Hour, 25 * time.Hour, maxPast + time.Minute} {
		m.Time = now.Add(-ago)
		drive = slices.Insert(drive, 2*unset+1, m)
		unset++
	}
	reversed := slices.Clone(drive)
	slices.Reverse(reversed)
	for _, tc := range []struct {
		name    string
		send    []fleet.Message
		page    int  // records in one batch, 0 for all
		restart bool // between each two
	}{
		{"live", drive, 0, false},
		{"live, each by itself", drive, 1, false},
		{"newest first", reversed, 0, false},
		{"late", reversed, 1, false},
		{"again", slices.Concat(drive, reversed, drive), 0, false},
		{"after a restart", drive, 1, true},
		{"late, after a restart", reversed, 1, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, b, b.Stream+"-"+t.Name())
			defer w.end()
			w.rules.MaxPast = maxPast
			w.begin(square)
			w.sendPages(tc.send, tc.page, tc.restart)
			require.NoError(t, w.judge())
			require.Equal(t, len(drive), w.Count("select count(*) from public.positions"))
			require.Equal(t, 2, w.Count("select count(*) from processor.timing_records"))
		})
	}
}

// A tracker that is switched on repeats the last fix it had, with 0 satellites,
// until it has one of its own. The log of real trackers gives the same tables in
// the order it was sent in and backwards.
func TestALogOfRealTrackersWithoutFixes(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	tracks, err := fleet.ReadTracks(testenv.Data(t, "teltonika/fmb_session_records.csv.gz"))
	require.NoError(t, err)
	var log []fleet.Message
	repeats, none := 0, 0
	for _, it := range fleet.Collect(tracks.Replay(fleet.OrderFile)) {
		if fleet.ClassOf(&it.Message) == "" {
			log = append(log, it.Message)
		}
	}
	inTime := slices.Clone(log)
	slices.SortStableFunc(inTime, func(a, b fleet.Message) int { return a.Time.Compare(b.Time) })
	var last fleet.Message
	for _, m := range inTime {
		switch {
		case m.Satellites > 0:
			last = m
		case m.Latitude != 0 || m.Longitude != 0:
			none++
			if m.Latitude == last.Latitude && m.Longitude == last.Longitude {
				repeats++
			}
		}
	}
	t.Logf("%d of %d positions with 0 satellites repeat the last one with more", repeats, none)
	require.GreaterOrEqual(t, repeats, 1959)
	require.LessOrEqual(t, none-repeats, 2023-1959)
	b := newBench(t)
	log = log[:min(len(log), testenv.Size(2500, len(log)))]
	fences := fencesOver(log, 30, 1)
	backwards := slices.Clone(log)
	slices.Reverse(backwards)
	for name, sent := range map[string][]fleet.Message{"as sent": log, "backwards": backwards} {
		t.Run(name, func(t *testing.T) {
			if name == "backwards" { // minutes, where all of it is late
				testenv.Full(t)
			}
			w := newWorld(t, b, b.Stream+"-"+t.Name())
			defer w.end()
			_, err := w.editor.Import(context.Background(), fences, "import", true)
			require.NoError(t, err)
			w.join(0, false)
			w.publish(sent)
			require.NoError(t, w.quiet(time.Minute))
			report, err := w.verdict()
			require.NoError(t, err)
			require.True(t, report.Good(), "%+v %v", report.Account, report.Examples)
			t.Logf("%d rows, %d crossings", report.Account.Stored, report.Crossings)
		})
	}
}

// P5: of records with the same device and time the first eligible one is the row,
// else the first. What loses with other content is listed once, whole.
func TestP5TheFirstEligibleRecordCounts(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	square := geofence.Fence{
		ID: "square", Kind: geofence.Area, Enabled: true, Valid: geofence.Always,
		Geometry: `{"type":"Polygon","coordinates":[[[11,48],[11.002,48],[11.002,48.002],[11,48.002],[11,48]]]}`,
	}
	record := func(second int, longitude float64, satellites, priority int) fleet.Message {
		return fleet.Message{
			DeviceID: fleet.DeviceID(1), Codec: "8", Time: time.Unix(scenarioBase+int64(second), 0),
			Latitude: 48.001, Longitude: longitude, Satellites: satellites, Priority: priority,
			Attributes: []fleet.Attribute{fleet.NumberAttribute("1", longitude)},
		}
	}
	const outside, inside = 10.999, 11.001
	noFix, first, panics := record(10, outside, 0, 0), record(10, inside, 9, 0), record(10, outside, 9, telemetry.PriorityPanic)
	for _, tc := range []struct {
		name      string
		send      []fleet.Message
		page      int // records in one batch, 0 for all
		conflicts int
	}{
		{"one batch", []fleet.Message{record(0, outside, 9, 0), noFix, first, panics, first, noFix, record(20, outside, 9, 0)}, 0, 2},
		{"each by itself", []fleet.Message{record(0, outside, 9, 0), noFix, first, panics, first, noFix, record(20, outside, 9, 0)}, 1, 2},
		{"late", []fleet.Message{record(0, outside, 9, 0), record(20, outside, 9, 0), noFix, first, panics}, 1, 2},
		{"the eligible one first", []fleet.Message{record(0, outside, 9, 0), first, noFix, first, panics, record(20, outside, 9, 0)}, 0, 2},
		{"none eligible", []fleet.Message{noFix, noFix, record(10, outside, 0, 1)}, 0, 1},
		{"duplicates", []fleet.Message{first, first, first}, 1, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, b, b.Stream+"-"+t.Name())
			defer w.end()
			_, err := w.Pool.Exec(t.Context(), "truncate processor.conflicts")
			require.NoError(t, err)
			m := w.begin(square)
			w.sendPages(tc.send, tc.page, false)
			require.NoError(t, w.judge())
			require.Equal(t, tc.conflicts, w.Count("select count(*) from processor.conflicts"))
			if tc.conflicts < 2 {
				return
			}
			require.Equal(t, 2, w.Count("select count(*) from processor.timing_records"), "into the square and out of it")
			require.Equal(t, 1, w.Count("select count(*) from processor.conflicts where priority = 2 and differs = '{attributes,longitude,priority}' and record ->> 'longitude' = '10.999'"))
			require.InDelta(t, 1, m.Counter(t, "processor_pipeline_conflicts_total", "panic"), 0)
			show, err := store.NewDevices(w.Pool, w.Scope(), store.FleetSettings{Shards: shards, Eligibility: w.rules}, "test").Show(t.Context(), first.DeviceID)
			require.NoError(t, err)
			require.Equal(t, int64(2), show.Conflicts)
			require.True(t, show.Recent[1].Conflict)
			require.False(t, show.Recent[0].Conflict)
			var id string
			require.NoError(t, w.Pool.QueryRow(t.Context(), "select entry_id from processor.conflicts where priority = 2").Scan(&id))
			entry, err := telemetry.ParseEntryID(id)
			require.NoError(t, err)
			trace, err := store.TraceDevice(t.Context(), w.Pool, w.Scope(), first.DeviceID, telemetry.ShardOf(first.DeviceID, shards),
				[]store.TraceQuery{{ID: entry, TimeUS: first.Time.UnixMicro(), Known: true}})
			require.NoError(t, err)
			require.Equal(t, []string{"attributes", "longitude", "priority"}, trace.Conflict[entry])
		})
	}
}

package equivalence_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// P5: a fix that both its neighbours are too far from makes no crossings, and the
// newest one none until its successor decides, however they arrive. One lost sign
// of a longitude would write 160 rows in 40 fences.
func TestP5AJumpMakesNoCrossings(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	square := func(id string, west float64) geofence.Fence {
		return geofence.Fence{
			ID: id, Kind: geofence.Area, Enabled: true, Valid: geofence.Always,
			Geometry: fmt.Sprintf(`{"type":"Polygon","coordinates":[[[%[1]v,48],[%[2]v,48],[%[2]v,48.002],[%[1]v,48.002],[%[1]v,48]]]}`, west, west+0.002),
		}
	}
	fences := []geofence.Fence{square("home", 11)}
	for n := range 40 {
		fences = append(fences, square(fmt.Sprintf("between%d", n), -10+0.5*float64(n)))
	}
	fix := func(second int, longitude float64) fleet.Message {
		return fleet.Message{
			DeviceID: fleet.DeviceID(1), Codec: "8", Time: time.Unix(scenarioBase+int64(second), 0),
			Latitude: 48.001, Longitude: longitude, Satellites: 9,
		}
	}
	const outside, inside = 10.999, 11.001
	all := "live|late|after a restart"
	if testenv.IsThorough() {
		all = ""
	}
	drive := []fleet.Message{fix(0, outside), fix(10, inside), fix(20, -inside), fix(30, inside), fix(40, outside)}
	for _, tc := range []struct {
		name string
		send []fleet.Message
		ways string // not all, which takes its time
		rows int
	}{
		{"a lost sign", drive, all, 2},
		{"a lost sign without the rule", drive, "live", 2 + 2 + 160},
		{"two in a row, apart from each other", slices.Insert(slices.Clone(drive), 3, fix(25, -60)), "live", 2},
		{"alternating for long", slices.Concat(drive[:2], alternating(fix, 11, 29), drive[3:]), "live", 2},
		{"newest of all", slices.Concat(drive, []fleet.Message{fix(50, -inside)}), "live, each by itself", 2},
		{"two that agree", slices.Insert(slices.Clone(drive), 3, fix(21, -inside)), "live, each by itself|late|after a restart", 2 + 162},
		{"two that agree no more", slices.Concat(drive[:3], []fleet.Message{fix(22, -inside)}, drive[3:], []fleet.Message{fix(21, inside)}), "live, each by itself|late", 2},
		{"newest, into a fence", slices.Concat(drive, []fleet.Message{fix(50, -9.999)}), "late", 2},
	} {
		reversed := slices.Clone(tc.send)
		slices.Reverse(reversed)
		inTheMiddle := slices.Clone(tc.send) // the jumps are late
		slices.SortStableFunc(inTheMiddle, func(a, b fleet.Message) int { return int(b.Longitude) - int(a.Longitude) })
		for _, way := range []struct {
			name    string
			send    []fleet.Message
			page    int  // records in one batch, 0 for all
			restart bool // between each two
		}{
			{"live", tc.send, 0, false},
			{"live, each by itself", tc.send, 1, false},
			{"newest first", reversed, 0, false},
			{"late", reversed, 1, false},
			{"late jumps", inTheMiddle, 1, false},
			{"again", slices.Concat(tc.send, reversed, tc.send), 0, false},
			{"after a restart", tc.send, 1, true},
			{"late, after a restart", reversed, 1, true},
		} {
			if tc.ways != "" && !slices.Contains(strings.Split(tc.ways, "|"), way.name) {
				continue
			}
			t.Run(tc.name+", "+way.name, func(t *testing.T) {
				w := newWorld(t, b, b.Stream+"-"+t.Name())
				defer w.end()
				if tc.name != "a lost sign without the rule" {
					w.rules.MaxSpeed = 300
				}
				w.begin(fences...)
				w.sendPages(way.send, way.page, way.restart)
				require.Equal(t, tc.rows, w.Count("select count(*) from processor.timing_records"))
				devices := store.NewDevices(w.Pool, w.Scope(), store.FleetSettings{Shards: shards, Eligibility: w.rules, MaxGap: w.gap}, "test")
				v, err := devices.Verify(t.Context(), fleet.DeviceID(1))
				require.NoError(t, err)
				require.True(t, v.Good(), "%+v", v)
				shown, err := devices.Show(t.Context(), fleet.DeviceID(1))
				require.NoError(t, err)
				switch tc.name {
				case "a lost sign":
					require.Equal(t, telemetry.Jump, shown.Recent[2].Excluded)
					require.Equal(t, 1, w.jumps(), "counted once")
				case "newest of all":
					require.Equal(t, telemetry.Undecided, shown.Recent[0].Excluded)
					require.Equal(t, telemetry.Jump, shown.Recent[3].Excluded)
				case "two that agree":
					require.Empty(t, shown.Recent[2].Excluded)
					require.Empty(t, shown.Recent[3].Excluded)
				}
			})
		}
	}
}

// P5: a fix that took part because of its successor takes none once that is flagged, or others
// come between them, and what it let count goes with it.
func TestP5AFixThatLosesItsSuccessor(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	fix := func(second int, longitude float64) fleet.Message {
		return fleet.Message{
			DeviceID: fleet.DeviceID(1), Codec: "8", Time: time.Unix(scenarioBase+int64(second), 0),
			Latitude: 48.001, Longitude: longitude, Satellites: 9,
		}
	}
	// The second is too far from the first, and shows that the device stayed inside for the dwell.
	drive := []fleet.Message{fix(0, 11.001), fix(10, 11.1), fix(3600, 11.1)}
	for _, tc := range []struct {
		name  string
		drive []fleet.Message
		flag  bool            // the last one
		then  []fleet.Message // in one batch
	}{
		{"flagged", drive, true, nil},
		{"others on both sides", drive, false, []fleet.Message{fix(3500, 60), fix(3610, -60)}},
		{
			"two behind a jump",
			[]fleet.Message{fix(0, 11.001), fix(10, 60), fix(20, 11.1), fix(500, 11.1)},
			false,
			[]fleet.Message{fix(15, -60), fix(490, 60), fix(505, -60)},
		},
	} {
		for _, held := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, held %v", tc.name, held), func(t *testing.T) {
				fence := geofence.Fence{
					ID: "home", Kind: geofence.Area, Enabled: true, Valid: geofence.Always,
					Geometry: `{"type":"Polygon","coordinates":[[[11,48],[11.002,48],[11.002,48.002],[11,48.002],[11,48]]]}`,
				}
				before, after := 2, 1 // enter and exit
				if held {
					fence.ExitMarginM, fence.MinDwellS = 30, 0.05
					after = 0
				}
				w := newWorld(t, b, b.Stream+"-"+t.Name())
				defer w.end()
				w.rules.MaxSpeed = 300
				_, err := w.editor.Import(t.Context(), []geofence.Fence{fence}, "import", true)
				require.NoError(t, err)
				w.join(0, false)
				w.keepOwned()
				crossings := func() int {
					require.NoError(t, w.quiet(20*time.Second))
					require.NoError(t, w.judge())
					return w.Count("select count(*) from processor.timing_records")
				}
				require.Zero(t, crossings()) // or the recompute for the fence would correct what is wrong
				w.publish(tc.drive)
				require.Equal(t, before, crossings())
				last := tc.drive[len(tc.drive)-1]
				if tc.flag {
					w.flag(t, last, true)
				}
				w.publish(tc.then)
				require.Equal(t, after, crossings())
				if tc.flag {
					w.flag(t, last, false)
					require.Equal(t, before, crossings())
				}
			})
		}
	}
}

// P5: a row that is flagged is delivered again behind one of its time that takes no part: it is not
// what the next fix comes from.
func TestP5AFlaggedRowThatIsDeliveredAgainIsNotTheState(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	w := newWorld(t, b, b.Stream)
	defer w.end()
	_, err := w.editor.Import(t.Context(), []geofence.Fence{{
		ID: "home", Kind: geofence.Area, Enabled: true, Valid: geofence.Always,
		Geometry: `{"type":"Polygon","coordinates":[[[11,48],[11.002,48],[11.002,48.002],[11,48.002],[11,48]]]}`,
	}}, "import", true)
	require.NoError(t, err)
	fix := func(second, satellites int, longitude float64) fleet.Message {
		return fleet.Message{
			DeviceID: fleet.DeviceID(1), Codec: "8", Time: time.Unix(scenarioBase+int64(second), 0),
			Latitude: 48.001, Longitude: longitude, Satellites: satellites,
		}
	}
	w.join(0, false)
	w.keepOwned()
	twice := []fleet.Message{fix(10, 0, 11.1), fix(10, 9, 11.001)}
	crossings := func(n int) {
		require.NoError(t, w.quiet(20*time.Second))
		require.NoError(t, w.judge())
		require.Equal(t, n, w.Count("select count(*) from processor.timing_records"))
	}
	w.publish([]fleet.Message{fix(0, 9, 11.1)})
	crossings(0)
	w.publish(twice)
	crossings(1)
	w.flag(t, twice[1], true)
	crossings(0)
	w.publish(twice)
	require.NoError(t, w.quiet(20*time.Second))
	w.publish([]fleet.Message{fix(20, 9, 11.1)})
	crossings(0)
}

// flag says whether a position is faulty, and asks for the recompute that follows.
func (w *world) flag(t *testing.T, m fleet.Message, faulty bool) {
	t.Helper()
	at := m.Time.UTC()
	tag, err := w.Pool.Exec(t.Context(), "update public.positions set faulty = $3 where device_id = $1 and ts = $2", m.DeviceID, at, faulty)
	require.NoError(t, err)
	require.EqualValues(t, 1, tag.RowsAffected())
	w.faulty[faultyRow{m.DeviceID, at.UnixMicro()}] = faulty
	w.ask(m.DeviceID, at, at)
}

// jumps is how many all instances have counted.
func (w *world) jumps() int {
	sum := 0.0
	for _, m := range w.members {
		families, err := m.Registry.Gather()
		require.NoError(w.TB, err)
		for _, f := range families {
			for _, x := range f.GetMetric() {
				for _, label := range x.GetLabel() {
					if f.GetName() == "processor_pipeline_excluded_records_total" && label.GetValue() == string(telemetry.Jump) {
						sum += x.GetCounter().GetValue()
					}
				}
			}
		}
	}
	return int(sum)
}

// alternating are fixes of two trackers with one ID, one each second.
func alternating(fix func(int, float64) fleet.Message, from, to int) (list []fleet.Message) {
	for n := from; n <= to; n++ {
		list = append(list, fix(n, []float64{-60, 100}[n%2]))
	}
	return list
}

package equivalence_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// metresOutside is a fix so many metres east of longitude 11.002, at latitude 48.001
// where a degree of longitude is 74,402 m long.
func metresOutside(second, metres float64) fleet.Message {
	return fleet.Message{
		DeviceID: fleet.DeviceID(1), Codec: "8", Time: time.Unix(scenarioBase, 0).Add(time.Duration(second * float64(time.Second))),
		Latitude: 48.001, Longitude: 11.002 + metres/74402, Satellites: 9,
	}
}

// everyTenSeconds are fixes so many metres outside.
func everyTenSeconds(metres ...float64) (list []fleet.Message) {
	for i, m := range metres {
		list = append(list, metresOutside(10*float64(i), m))
	}
	return list
}

// noisy is a device that stands still on the border: a fix each second, and what the
// fixes themselves say.
func noisy(seed uint64, seconds int, sigma float64) (list []fleet.Message, metres []float64) {
	r := rand.New(rand.NewPCG(seed, 3))
	for n := range seconds {
		m := r.NormFloat64() * sigma
		list, metres = append(list, metresOutside(float64(n), m)), append(metres, m)
	}
	return list, metres
}

// P5: a border that is held still is held still however the records arrive.
func TestP5ABorderThatIsHeldStill(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	b := newBench(t)
	square := geofence.Fence{
		ID: "square", Kind: geofence.Area, Enabled: true, Valid: geofence.Always,
		Geometry: `{"type":"Polygon","coordinates":[[[11,48],[11.002,48],[11.002,48.002],[11,48.002],[11,48]]]}`,
	}
	line := geofence.Fence{
		ID: "line", Kind: geofence.Gate, Enabled: true, Valid: geofence.Always,
		Geometry: `{"type":"LineString","coordinates":[[11.002,48],[11.002,48.002]]}`,
	}
	held := func(f geofence.Fence, marginM, dwellS, intervalS float64) geofence.Fence {
		f.ExitMarginM, f.MinDwellS, f.MinIntervalS = marginM, dwellS, intervalS
		return f
	}

	parked, metres := noisy(7, 600, 3)
	changes, kept, inside, counts := 0, 0, metres[0] <= 0, metres[0] <= 0
	if inside {
		changes, kept = 1, 1 // the first fix
	}
	for _, m := range metres[1:] {
		if in := m <= 0; in != inside {
			inside = in
			changes++
		}
		if m > 10 && counts || m <= 0 && !counts {
			counts = !counts
			kept++
		}
	}
	t.Logf("10 minutes on an edge: %d changes, %d with a margin of 10 m", changes, kept)
	require.Greater(t, changes, 250)
	require.LessOrEqual(t, kept, 1)

	start, metres := noisy(8, 300, 2)
	passages, counted := 0, map[bool]int{}
	last := map[bool]float64{}
	for n := 1; n < len(metres); n++ {
		was, is := metres[n-1] < 0, metres[n] < 0 // what lies on the line is east of it
		if was == is {
			continue
		}
		passages++
		at := float64(n-1) + metres[n-1]/(metres[n-1]-metres[n])
		if us, ok := last[is]; !ok || at-us >= 30 {
			counted[is], last[is] = counted[is]+1, at
		}
	}
	t.Logf("5 minutes on a start line: %d passages, %d forward and %d backward 30 s apart", passages, counted[false], counted[true])
	require.Greater(t, passages, 100)
	require.LessOrEqual(t, max(counted[true], counted[false]), 10)

	for _, tc := range []struct {
		name  string
		fence geofence.Fence
		send  []fleet.Message
		page  int       // records in one batch
		at    []float64 // seconds at which something counts; nil says nothing of it
		rows  int
		quiet int    // of them suppressed
		ways  string // not all, which takes its time
	}{
		{"parked on an edge", held(square, 10, 0, 0), parked, 100, nil, kept, 0, ""},
		{"parked on an edge, no margin", square, parked, 100, nil, changes, 0, "live"},
		{"parked on an edge for less than the dwell", held(square, 0, 30, 0), parked, 100, nil, 0, 0, "live|late"},
		{"on a start line", held(line, 0, 0, 30), start, 50, nil, passages, passages - counted[true] - counted[false], ""},
		{"an exit is dated at the true border", held(square, 30, 0, 0), everyTenSeconds(-50, 10, -20, 10, 20, 50, 60), 1, []float64{0, 26.667}, 2, 0, ""},
		{"never far enough", held(square, 30, 0, 0), everyTenSeconds(50, -50, 10, 20, 25, 29, -1, 5), 1, []float64{5}, 1, 0, "live, by and by|late"},
		{"far only between two fixes", held(square, 30, 0, 0), everyTenSeconds(50, -50, 29, -50, 29.9, 30.5), 1, []float64{5, 36.257}, 2, 0, "live, by and by|newest first"},
		{"too short", held(square, 0, 25, 0), everyTenSeconds(50, -50, 50, -50, -50, -50, -50, 50, 50, 50, 50), 1, []float64{25, 65}, 2, 0, ""},
		{"too short by a microsecond", held(square, 0, 10.000001, 0), everyTenSeconds(50, -50, 50, 50), 1, nil, 0, 0, "live"},
		{"long enough exactly", held(square, 0, 10, 0), everyTenSeconds(50, -50, 50, 50), 1, []float64{5, 15}, 2, 0, "live|late"},
		{"far away when the exit counts", held(square, 0, 35, 0), everyTenSeconds(-50, -40, -50, -50, -50, 50, 1000, 3000, 6000, 9000), 1, []float64{0, 45}, 2, 0, ""},
		{"margin and dwell", held(square, 30, 20, 0), everyTenSeconds(50, -50, 20, 20, -50, 20, 50, -50, -50, 20, 50, 20, 20), 1, []float64{5, 87.143}, 2, 0, ""},
		{"passages too soon", held(line, 0, 0, 25), everyTenSeconds(-50, 50, -50, 50, -50, 50, -50, 50), 1, []float64{5, 15, 45, 55}, 7, 3, ""},
	} {
		reversed := slices.Clone(tc.send)
		slices.Reverse(reversed)
		var odd, even []fleet.Message
		for i, m := range tc.send {
			if i%2 == 0 {
				even = append(even, m)
			} else {
				odd = append(odd, m)
			}
		}
		for _, way := range []struct {
			name    string
			send    []fleet.Message
			page    int
			restart bool // between each two pages
		}{
			{"live", tc.send, len(tc.send), false},
			{"live, by and by", tc.send, tc.page, false},
			{"newest first", reversed, len(tc.send), false},
			{"late", reversed, tc.page, false},
			{"every other one late", slices.Concat(even, odd), tc.page, false},
			{"again", slices.Concat(tc.send, reversed, tc.send), len(tc.send), false},
			{"after restarts", tc.send, tc.page, true},
			{"late, after restarts", slices.Concat(odd, even), tc.page, true},
		} {
			if tc.ways != "" && !slices.Contains(strings.Split(tc.ways, "|"), way.name) {
				continue
			}
			t.Run(tc.name+", "+way.name, func(t *testing.T) {
				w := newWorld(t, b, b.Stream+"-"+t.Name())
				defer w.end()
				w.begin(tc.fence)
				w.sendPages(way.send, way.page, way.restart)
				require.Equal(t, tc.rows, w.Count("select count(*) from processor.timing_records"))
				require.Equal(t, tc.quiet, w.Count("select count(*) from processor.timing_records where suppressed"))
				for _, s := range tc.at {
					require.Equal(t, 1, w.Count("select count(*) from processor.timing_records where not suppressed and abs(extract(epoch from at) - $1::float8) < 0.002",
						scenarioBase+s), "%v s", s)
				}
				devices := store.NewDevices(w.Pool, w.Scope(), store.FleetSettings{Shards: shards, Eligibility: w.rules, MaxGap: w.gap}, "test")
				v, err := devices.Verify(t.Context(), fleet.DeviceID(1))
				require.NoError(t, err)
				require.True(t, v.Good(), "%+v", v)
				trial, err := devices.TryFences(t.Context(), []geofence.Fence{tc.fence},
					store.TrialWindow{Since: time.Unix(scenarioBase, 0), Until: time.Unix(scenarioBase+1000, 0)}, nil)
				require.NoError(t, err)
				n := int64(tc.rows)
				require.Equal(t, store.FenceTrialCount{Recorded: n, Would: n}, trial.FenceTrialCount)
				if tc.rows > 0 {
					x, err := devices.Explain(t.Context(), fleet.DeviceID(1), tc.fence.ID, time.Time{})
					require.NoError(t, err)
					require.True(t, x.Agree, "%+v", x)
				}
			})
		}
	}
}

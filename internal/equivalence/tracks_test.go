package equivalence_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

// recorded are the fixes of a track file that are valid records, in its order.
func recorded(t testing.TB, name string) []fleet.Message {
	t.Helper()
	tracks, err := fleet.ReadTracks(testenv.Data(t, "tracks/"+name))
	require.NoError(t, err)
	var list []fleet.Message
	for _, it := range fleet.Collect(tracks.Replay(fleet.OrderFile)) {
		if fleet.ClassOf(&it.Message) == "" {
			list = append(list, it.Message)
		}
	}
	return list
}

// TestRecordedTracksGiveTheOraclesTables lays fences over real tracks, at turning points
// and, where there is one, along the course of the race, with all rules on and borders
// held still, and sends them in each order, with a crash in the middle.
func TestRecordedTracksGiveTheOraclesTables(t *testing.T) {
	t.Parallel()
	orders := []string{"late blocks"}
	names := []string{"tianma_circuit.csv.gz", "liverpool_bus_14.csv"}
	if testenv.IsThorough() {
		orders, names = append(orders, "as recorded"), append(names, "gpx_misc.csv.gz")
	}
	if os.Getenv("TEST_FULL") != "" {
		files, err := filepath.Glob(filepath.Join(testenv.Data(t, "tracks"), "*.csv*"))
		require.NoError(t, err)
		names = names[:0]
		for _, f := range files {
			names = append(names, filepath.Base(f))
		}
		require.Len(t, names, 10)
		orders = append(orders, "reversed", "shuffled")
	}
	b := newBench(t)
	for _, name := range names {
		messages := recorded(t, name)
		fences := append(fencesOver(messages, 60, 1), courseOf(t, name)...)
		for i := range fences {
			if f := &fences[i]; f.Kind == geofence.Gate {
				f.MinIntervalS = 30.123457
			} else {
				f.ExitMarginM, f.MinDwellS = 15.7, 20.123457*float64(i%2)
			}
		}
		var times []time.Time
		for i := range messages {
			times = append(times, messages[i].Time)
		}
		slices.SortFunc(times, time.Time.Compare)
		for _, order := range orders {
			t.Run(name+" "+order, func(t *testing.T) {
				w := newWorld(t, b, fmt.Sprintf("%s-%s-%s", b.Stream, name, strings.ReplaceAll(order, " ", "-")),
					func(c *pipeline.Config, _ *pipeline.Deps) { c.BatchMaxRecords = max(50, len(messages)/50) })
				defer w.end()
				// Of each track some fixes are too old, and some lead too fast to what follows.
				w.rules = telemetry.Eligibility{
					MaxFutureSkew: 5 * time.Minute, MinSatellites: 1, MaxSpeed: 120,
					MaxPast: time.Since(times[len(times)/50]).Truncate(time.Millisecond),
				}
				_, err := w.editor.Import(context.Background(), fences, "import", true)
				require.NoError(t, err)
				sent := slices.Clone(messages)
				switch order {
				case "late blocks":
					sent = newestFirst(messages, 100)
				case "reversed":
					slices.Reverse(sent)
				case "shuffled":
					rand.New(rand.NewPCG(1, 2)).Shuffle(len(sent), func(i, j int) { sent[i], sent[j] = sent[j], sent[i] })
				}
				w.join(8, len(messages)%2 == 0)
				for len(sent) > 0 {
					n := min(len(sent), 2000)
					w.publish(sent[:n])
					sent = sent[n:]
					w.keepOwned()
				}
				require.NoError(t, w.quiet(2*time.Minute))
				report, err := w.verdict()
				require.NoError(t, err)
				require.True(t, report.Good(), "%+v %v", report.Account, report.Examples)
				require.NotZero(t, report.Crossings)
				require.True(t, w.members[0].gone(), "a crash in the middle")
				t.Logf("%d entries, %d crossings", report.Account.Entries, report.Crossings)
			})
		}
	}
}

// newestFirst reverses each device's fixes in blocks, as trackers upload them.
func newestFirst(messages []fleet.Message, block int) []fleet.Message {
	out := slices.Clone(messages)
	places := make(map[string][]int)
	for i := range out {
		places[out[i].DeviceID] = append(places[out[i].DeviceID], i)
	}
	for _, at := range places {
		for len(at) > 0 {
			n := min(block, len(at))
			for i, j := 0, n-1; i < j; i, j = i+1, j-1 {
				out[at[i]], out[at[j]] = out[at[j]], out[at[i]]
			}
			at = at[n:]
		}
	}
	return out
}

// fencesOver draws fences at places where a device turned by more than 60
// degrees, of the size of what it drove round the place.
func fencesOver(messages []fleet.Message, n int, seed uint64) []geofence.Fence {
	r := rand.New(rand.NewPCG(seed, 7))
	var turns []fleet.Message
	last := make(map[string][2]fleet.Message)
	for _, m := range messages {
		l := last[m.DeviceID]
		if m.Latitude == l[1].Latitude && m.Longitude == l[1].Longitude || m.Latitude == 0 {
			continue
		}
		if l[0].DeviceID != "" {
			in := math.Atan2(l[1].Longitude-l[0].Longitude, l[1].Latitude-l[0].Latitude)
			out := math.Atan2(m.Longitude-l[1].Longitude, m.Latitude-l[1].Latitude)
			if d := math.Abs(math.Remainder(out-in, 2*math.Pi)); d > math.Pi/3 {
				turns = append(turns, l[1])
			}
		}
		last[m.DeviceID] = [2]fleet.Message{l[1], m}
	}
	if len(turns) == 0 {
		turns = messages
	}
	var fences []geofence.Fence
	for i := range n {
		at := turns[r.IntN(len(turns))]
		size := 5e-5 * math.Pow(100, r.Float64()) // 5 to 500 m, in degrees
		f := geofence.Fence{ID: fmt.Sprintf("turn-%03d", i), Valid: geofence.Always, Enabled: true}
		point := func(angle, size float64) string {
			return fmt.Sprintf("[%.7f,%.7f]", at.Longitude+size*math.Cos(angle), at.Latitude+size*math.Sin(angle))
		}
		switch i % 3 {
		case 0:
			f.Kind, f.RadiusM = geofence.Circle, size*1e5
			f.Geometry = fmt.Sprintf(`{"type":"Point","coordinates":[%v,%v]}`, at.Longitude, at.Latitude)
		case 1: // a star: every ray from the place meets its edge once
			var ring []string
			for k := range 5 + r.IntN(8) {
				ring = append(ring, point(float64(k)/2, size*(0.3+r.Float64())))
			}
			f.Kind = geofence.Area
			f.Geometry = `{"type":"Polygon","coordinates":[[` + strings.Join(append(ring, ring[0]), ",") + `]]}`
		default:
			angle := r.Float64() * 2 * math.Pi
			f.Kind = geofence.Gate
			f.Geometry = `{"type":"LineString","coordinates":[` + point(angle, size) + `,` + point(angle+math.Pi, size) + `]}`
		}
		if f.Check() == nil {
			fences = append(fences, f)
		}
	}
	return fences
}

// raceFile is the part of races.json that has fences.
type raceFile struct {
	Races []struct {
		Dataset   string
		DeviceID  string `json:"device_id"`
		Gate      json.RawMessage
		Zones     []raceZone
		Crossings []struct{ TS time.Time }
		Points    []struct {
			Latitude, Longitude float64
			Zone                struct {
				RadiusM float64 `json:"radius_m"`
			}
		}
	}
	Scheidegg  struct{ Zones []raceZone }
	ForbesDays []struct {
		Day   int
		Zones []raceZone
	} `json:"forbes_days"`
}

type raceZone struct {
	Zone                int
	Latitude, Longitude float64
	RadiusM             float64 `json:"radius_m"`
}

func races(t testing.TB) raceFile {
	t.Helper()
	text, err := os.ReadFile(testenv.Data(t, "geofence/races.json"))
	require.NoError(t, err)
	var f raceFile
	require.NoError(t, json.Unmarshal(text, &f))
	return f
}

func (z raceZone) fence(prefix string) geofence.Fence {
	return geofence.Fence{
		ID: prefix + strconv.Itoa(z.Zone), Kind: geofence.Circle, RadiusM: z.RadiusM, Valid: geofence.Always, Enabled: true,
		Geometry: fmt.Sprintf(`{"type":"Point","coordinates":[%v,%v]}`, z.Longitude, z.Latitude),
	}
}

// courseOf is the geometry of the races flown or driven in a track file.
func courseOf(t testing.TB, name string) []geofence.Fence {
	t.Helper()
	f := races(t)
	var fences []geofence.Fence
	base, _, _ := strings.Cut(name, ".")
	for i, race := range f.Races {
		if race.Dataset != base {
			continue
		}
		prefix := fmt.Sprintf("race-%d-", i)
		if len(race.Gate) > 0 {
			fences = append(fences, geofence.Fence{ID: prefix + "gate", Kind: geofence.Gate, Geometry: lineOf(t, race.Gate), Valid: geofence.Always, Enabled: true})
		}
		for _, z := range race.Zones {
			fences = append(fences, z.fence(prefix))
		}
		for j, p := range race.Points {
			if p.Zone.RadiusM > 0 {
				fences = append(fences, raceZone{Zone: 100 + j, Latitude: p.Latitude, Longitude: p.Longitude, RadiusM: p.Zone.RadiusM}.fence(prefix))
			}
		}
	}
	if strings.HasPrefix(name, "scheidegg") {
		for _, z := range f.Scheidegg.Zones {
			fences = append(fences, z.fence("scheidegg-"))
		}
	}
	if name == "austin_buses.csv.gz" {
		fences = append(fences, austinFences(t)...)
	}
	return fences
}

// lineOf is a geometry without its remarks.
func lineOf(t testing.TB, text json.RawMessage) string {
	t.Helper()
	var line struct {
		Type        string       `json:"type"`
		Coordinates [][2]float64 `json:"coordinates"`
	}
	require.NoError(t, json.Unmarshal(text, &line))
	out, err := json.Marshal(line)
	require.NoError(t, err)
	return string(out)
}

func austinFences(t testing.TB) []geofence.Fence {
	t.Helper()
	text, err := os.ReadFile(testenv.Data(t, "geofence/austin_fences.geojson"))
	require.NoError(t, err)
	fences, bad, err := geofence.ParseFeatures(text, geofence.Defaults{})
	require.NoError(t, err)
	require.Empty(t, bad)
	return fences
}

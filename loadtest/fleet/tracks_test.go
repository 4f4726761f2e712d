package fleet_test

import (
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

const twoBuses = `device_id,ts,latitude,longitude,altitude,angle,speed_kmh,satellites
bus-1,2026-01-26T15:55:12.250Z,53.4067,-2.9849,,90,,
bus-2,2026-01-26T15:55:10.000Z,53.5,-2.9,12.5,,30.25,7
bus-1,2026-01-26T18:55:00.000Z,0,0,,,,
bus-1,2026-01-26T15:55:11.000Z,53.4068,-2.9850,,91,,
`

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	f, err := os.Create(file)
	require.NoError(t, err)
	defer f.Close()
	if strings.HasSuffix(name, ".gz") {
		z := gzip.NewWriter(f)
		defer z.Close()
		_, err = z.Write([]byte(text))
	} else {
		_, err = f.WriteString(text)
	}
	require.NoError(t, err)
	return file
}

func times(items []fleet.Item) []string {
	var ts []string
	for _, it := range items {
		ts = append(ts, it.Message.DeviceID+" "+it.Message.Time.Format("15:04:05.000"))
	}
	return ts
}

func TestEmptyCellsBecomeZeroButAFixHasASatellite(t *testing.T) {
	for _, name := range []string{"buses.csv", "buses.csv.gz"} {
		tracks, err := fleet.ReadTracks(write(t, name, twoBuses))
		require.NoError(t, err)
		require.Equal(t, 4, tracks.Len())
		items := fleet.Collect(tracks.Replay(fleet.OrderFile))
		require.Equal(t, fleet.Message{
			DeviceID: "bus-1", Codec: "8",
			Time:     time.Date(2026, 1, 26, 15, 55, 12, 250_000_000, time.UTC),
			Latitude: 53.4067, Longitude: -2.9849, Angle: 90, Satellites: 1,
		}, items[0].Message)
		require.Equal(t, 30.25, items[1].Message.Speed)
		require.Equal(t, 7, items[1].Message.Satellites)
	}
}

func TestReplayOrders(t *testing.T) {
	tracks, err := fleet.ReadTracks(write(t, "buses.csv", twoBuses))
	require.NoError(t, err)

	inFile := fleet.Collect(tracks.Replay(fleet.OrderFile))
	require.Equal(t, []string{"bus-1 15:55:12.250", "bus-2 15:55:10.000", "bus-1 18:55:00.000", "bus-1 15:55:11.000"}, times(inFile))

	inTime := fleet.Collect(tracks.Replay(fleet.OrderTime))
	require.Equal(t, []string{"bus-2 15:55:10.000", "bus-1 15:55:11.000", "bus-1 15:55:12.250", "bus-1 18:55:00.000"}, times(inTime))
	require.Equal(t, time.Second, inTime[1].At)
	require.Equal(t, 2250*time.Millisecond, inTime[2].At)
	require.Equal(t, 2250*time.Millisecond+fleet.MaxSilence, inTime[3].At, "three hours of silence are cut")

	_, err = fleet.ParseOrder("random")
	require.EqualError(t, err, `order "random": want time or file`)
}

func TestBadTracksNameLineAndCell(t *testing.T) {
	for _, tt := range []struct{ give, want string }{
		{"", "no header line"},
		{"device_id,ts,latitude\n", "no column longitude"},
		{"ts,latitude,longitude,io\n2026-01-01T00:00:00Z,1,2,239=1\n", `line 2: io "239=1": want elements`},
		{"device_id,ts,latitude,longitude\na,yesterday,1,2\n", `line 2: ts "yesterday": want a time`},
		{"device_id,ts,latitude,longitude\na,2026-01-01T00:00:00Z,1,east\n", `line 2: longitude "east": want a number`},
		{"device_id,ts,latitude,longitude\na,2026-01-01T00:00:00Z,1,NaN\n", `line 2: longitude "NaN": want a number`},
		{"device_id,ts,latitude,longitude\na,2026-01-01T00:00:00Z,1\n", "wrong number of fields"},
		{"device_id,ts,latitude,longitude\n", "no fixes"},
	} {
		_, err := fleet.ReadTracks(write(t, "bad.csv", tt.give))
		require.ErrorContains(t, err, tt.want)
	}
	_, err := fleet.ReadTracks(write(t, "bad.xlsx", ""))
	require.ErrorContains(t, err, "want a name that ends in .csv or .gpx")
}

func TestGPXPointsBecomeFixes(t *testing.T) {
	const gpx = `<?xml version="1.0"?><gpx version="1.1" xmlns="http://www.topografix.com/GPX/1/1"><trk><trkseg>
<trkpt lat="46.5" lon="13.7"><ele>1614.7</ele><time>2020-12-18T06:24:24Z</time><sat>5</sat></trkpt>
<trkpt lat="46.6" lon="13.8"></trkpt>
<trkpt lat="46.7" lon="13.9"><time>2020-12-18T07:24:25.5+01:00</time><speed>10</speed></trkpt>
</trkseg></trk></gpx>`
	tracks, err := fleet.ReadTracks(write(t, "Hike.gpx", gpx))
	require.NoError(t, err)
	items := fleet.Collect(tracks.Replay(fleet.OrderTime))
	require.Equal(t, []string{"hike 06:24:24.000", "hike 06:24:25.500"}, times(items))
	require.Equal(t, 1614.7, items[0].Message.Altitude)
	require.Equal(t, 36.0, items[1].Message.Speed)

	_, err = fleet.ReadTracks(write(t, "bad.gpx", "<gpx><trkpt lat='x'"))
	require.Error(t, err)
}

func TestElementsBecomeAttributes(t *testing.T) {
	tracks, err := fleet.ReadTracks(write(t, "fmb.csv", "seq,ts,latitude,longitude,priority,io\n"+
		"1,2021-01-01T02:19:05.343Z,13.04,80.1,2,1=00;72=0118;199=000186A0;78=FFFFFFFFFFFFFFFF;385=010203\n"))
	require.NoError(t, err)
	it, _ := tracks.Replay(fleet.OrderFile).Next()
	require.Equal(t, "fmb", it.Message.DeviceID)
	require.Equal(t, 2, it.Message.Priority)
	require.Equal(t, []fleet.Attribute{
		fleet.NumberAttribute("1", 0),
		fleet.NumberAttribute("72", 280),
		fleet.NumberAttribute("199", 100000),
		fleet.BigIntAttribute("78", "18446744073709551615"),
		fleet.BytesAttribute("385", []byte{1, 2, 3}),
	}, it.Message.Attributes)
}

// TestRecordedTracksAreRead reads every file of the real data, as far as the
// folder DATA is there, and holds what is expected of each fix against the
// service's decoder.
func TestRecordedTracksAreRead(t *testing.T) {
	testenv.Slow(t)
	dir := testenv.Data(t, "")
	rows := map[string]int{
		"austin_buses.csv.gz": 67950, "us_ais_2022-01-03.csv.gz": 66114, "scheidegg_comp_2024-06-16.csv.gz": 41799,
		"paragliders_2023-10-11.csv.gz": 101873, "glider_contests.csv.gz": 27948, "tianma_circuit.csv.gz": 2098,
		"forbes_2012_day1.csv.gz": 5046, "liverpool_bus_14.csv": 1005, "fenix2_activities.csv.gz": 2809, "gpx_misc.csv.gz": 891,
		"fmb_session_records.csv.gz": 8994,
	}
	files, err := filepath.Glob(filepath.Join(dir, "tracks", "*.csv*"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	files = append(files, filepath.Join(dir, "teltonika", "fmb_session_records.csv.gz"))
	decoder := telemetry.NewDecoder(telemetry.DefaultLimits())
	var record telemetry.Record
	for _, file := range files {
		name := filepath.Base(file)
		tracks, err := fleet.ReadTracks(file)
		require.NoError(t, err)
		if want, known := rows[name]; known {
			require.Equal(t, want, tracks.Len(), name)
		}
		invalid := 0
		for _, order := range []fleet.Order{fleet.OrderFile, fleet.OrderTime} {
			at, n := time.Duration(0), 0
			replay := tracks.Replay(order)
			for it, ok := replay.Next(); ok; it, ok = replay.Next() {
				if it.At < at {
					t.Fatalf("%s: due at %s after %s", name, it.At, at)
				}
				at = it.At
				n++
				if order == fleet.OrderTime || n%testenv.Size(7, 1) != 0 {
					continue
				}
				var refused *telemetry.DecodeError
				class := telemetry.Class("")
				if err := decoder.Decode(&telemetry.Entry{Fields: it.Fields()}, &record); errors.As(err, &refused) {
					class = refused.Class
					invalid++
				}
				if class != fleet.ClassOf(&it.Message) {
					t.Fatalf("%s: %v: want %q, got %v", name, it.Message, fleet.ClassOf(&it.Message), refused)
				}
			}
			require.Equal(t, tracks.Len(), n)
		}
		switch {
		case name != "gpx_misc.csv.gz":
			require.Zero(t, invalid, name)
		case testenv.IsFull():
			require.Equal(t, 184, invalid, "fixes dated 1901")
		}
	}
}

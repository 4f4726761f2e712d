package equivalence_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// throughTheService sends messages through an instance and returns the timing
// records by device, in order of the later fix.
func throughTheService(t *testing.T, fences []geofence.Fence, messages []fleet.Message) map[string][]oracle.Crossing {
	t.Helper()
	b := newBench(t)
	w := newWorld(t, b, b.Stream+"-truth")
	defer w.end()
	_, err := w.editor.Import(context.Background(), fences, "import", true)
	require.NoError(t, err)
	w.join(0, false)
	w.keepOwned()
	for len(messages) > 0 {
		n := min(len(messages), 2000)
		w.publish(messages[:n])
		messages = messages[n:]
	}
	require.NoError(t, w.quiet(2*time.Minute))
	require.NoError(t, w.judge())
	by := make(map[string][]oracle.Crossing)
	for c, err := range observer.Timings(context.Background(), b.Pool) {
		require.NoError(t, err)
		by[c.Device] = append(by[c.Device], c)
	}
	return by
}

func TestTianmaGateTimesAreThosePublished(t *testing.T) {
	t.Parallel()
	race := races(t).Races[0]
	require.Equal(t, "tianma_circuit", race.Dataset)
	got := throughTheService(t, courseOf(t, "tianma_circuit.csv.gz"), newestFirst(recorded(t, "tianma_circuit.csv.gz"), 100))[race.DeviceID]
	require.Len(t, got, len(race.Crossings))
	for i, c := range got {
		require.Equal(t, got[0].Kind, c.Kind)
		require.InDelta(t, race.Crossings[i].TS.UnixMicro(), c.TimeUS, 1000)
	}
}

// TestForbesCrossingsAreThosePublished sends each of the 3,280 published pairs
// of fixes as a device of its own.
func TestForbesCrossingsAreThosePublished(t *testing.T) {
	t.Parallel()
	type stated struct {
		TS                  time.Time
		Latitude, Longitude float64
		InZone              bool `json:"in_zone"`
	}
	type pair struct {
		Day, Zone     int
		Before, After stated
	}
	var fences []geofence.Fence
	for _, day := range races(t).ForbesDays {
		for _, z := range day.Zones {
			fences = append(fences, z.fence(fmt.Sprintf("day%d-zone", day.Day)))
		}
	}
	pairs := make(map[string]pair)
	var messages []fleet.Message
	clockWentBack := 0
	lines := bufio.NewScanner(zipped(t, "geofence/zone_crossings_forbes.jsonl.gz"))
	for n := 1; lines.Scan(); n++ {
		var p pair
		require.NoError(t, json.Unmarshal(lines.Bytes(), &p))
		if !p.After.TS.After(p.Before.TS) {
			clockWentBack++ // the recorder's clock stands still or goes back: no neighbours in this order
			continue
		}
		device := fmt.Sprintf("row-%d", n)
		pairs[device] = p
		for _, s := range []stated{p.After, p.Before} { // newest first
			messages = append(messages, fleet.Message{DeviceID: device, Codec: "8", Time: s.TS, Latitude: s.Latitude, Longitude: s.Longitude, Satellites: 9})
		}
	}
	require.NoError(t, lines.Err())
	require.Equal(t, 3, clockWentBack)
	require.Len(t, pairs, 3277)
	got := throughTheService(t, fences, messages)
	for device, p := range pairs {
		id := fmt.Sprintf("day%d-zone%d", p.Day, p.Zone)
		var kinds []string
		initial := false
		for _, c := range got[device] {
			switch {
			case c.FenceID != id:
			case c.Initial:
				initial = true
			default:
				kinds = append(kinds, c.Kind)
				require.Equal(t, p.Before.TS.UnixMicro(), c.EarlierUS)
				require.Equal(t, p.After.TS.UnixMicro(), c.LaterUS)
			}
		}
		want := "exit"
		if p.After.InZone {
			want = "enter"
		}
		require.Equal(t, []string{want}, kinds, device)
		require.Equal(t, p.Before.InZone, initial, device)
	}
}

// TestAustinTruthHoldsRowByRow follows the timing records: after each fix they
// say in which fences the bus is. Gates of the truth there are none, and f8 is
// only counted.
func TestAustinTruthHoldsRowByRow(t *testing.T) {
	t.Parallel()
	testenv.Full(t)
	all := recorded(t, "austin_buses.csv.gz")
	require.Len(t, all, 67_950)
	rows, err := csv.NewReader(zipped(t, "geofence/austin_fence_truth.csv.gz")).ReadAll()
	require.NoError(t, err)
	truth := make(map[int]string)
	for _, r := range rows[1:] {
		n, err := strconv.Atoi(r[0])
		require.NoError(t, err)
		truth[n] = r[3]
	}
	got := throughTheService(t, austinFences(t), all)
	order := make([]int, len(all))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return all[a].Time.Compare(all[b].Time) })
	inside := make(map[string]map[string]bool)
	checked := 0
	for _, i := range order {
		m := &all[i]
		if m.Latitude == 0 && m.Longitude == 0 {
			continue
		}
		in := inside[m.DeviceID]
		if in == nil {
			in = make(map[string]bool)
			inside[m.DeviceID] = in
		}
		list := got[m.DeviceID]
		for len(list) > 0 && list[0].LaterUS <= m.Time.UnixMicro() {
			if list[0].Kind == "enter" {
				in[list[0].FenceID] = true
			} else {
				delete(in, list[0].FenceID)
			}
			list = list[1:]
		}
		got[m.DeviceID] = list
		ids := slices.DeleteFunc(slices.Sorted(maps.Keys(in)), func(id string) bool { return id == "f8" })
		require.Equal(t, truth[i+1], strings.Join(ids, ";"), "row %d", i+1)
		checked++
	}
	require.Equal(t, 67_949, checked)
}

func zipped(t *testing.T, name string) io.Reader {
	t.Helper()
	f, err := os.Open(testenv.Data(t, name))
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	return z
}

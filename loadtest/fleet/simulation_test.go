package fleet_test

import (
	"math"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

func collect(t *testing.T, p fleet.Profile) []fleet.Item {
	t.Helper()
	s, err := p.Source()
	require.NoError(t, err)
	return fleet.Collect(s)
}

func TestSourceIsAFunctionOfItsProfile(t *testing.T) {
	for _, p := range fleet.Profiles(7) {
		p.Limit = 5000
		once, again := collect(t, p), collect(t, p)
		require.Equal(t, once, again, p.Name)
		q := p
		q.Seed++
		require.NotEqual(t, collect(t, p), collect(t, q), p.Name)
	}
}

func TestItemsAreDueInOrderAndRecordsAreValid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		share := rapid.Float64Range(0, 0.14)
		p := fleet.Profile{
			Seed:     rapid.Uint64().Draw(t, "seed"),
			Start:    time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
			Duration: time.Duration(rapid.IntRange(1, 120).Draw(t, "seconds")) * time.Second,
			Devices:  rapid.IntRange(1, 6).Draw(t, "devices"),
			Interval: time.Duration(rapid.IntRange(100, 3000).Draw(t, "interval")) * time.Millisecond,
			Slow:     rapid.Float64Range(0, 1).Draw(t, "slow"),
			Parked:   share.Draw(t, "parked"), Gaps: share.Draw(t, "gaps"), Overtakes: share.Draw(t, "overtakes"),
			LostAcks: share.Draw(t, "lost acks"), Twins: share.Draw(t, "twins"),
			BadClocks: share.Draw(t, "bad clocks"), NoFixes: share.Draw(t, "no fixes"),
			Hot: rapid.Float64Range(0, 0.9).Draw(t, "hot"),
		}
		s, err := p.Source()
		require.NoError(t, err)
		at := time.Duration(0)
		for it, ok := s.Next(); ok; it, ok = s.Next() {
			m := it.Message
			ok = it.At >= at && it.At < p.Duration &&
				len(m.DeviceID) == 15 &&
				math.Abs(m.Latitude) <= 90 && math.Abs(m.Longitude) <= 180 &&
				m.Time.UnixMicro() >= 0 && m.Time.Year() < 2100 &&
				m.Time.Nanosecond()%1_000_000 == 0 && // the wire has milliseconds
				m.Angle >= 0 && m.Angle < 360 &&
				m.Speed >= 0 && m.Speed < 600 &&
				m.Satellites >= 0 && m.Satellites < 20
			if !ok {
				t.Fatalf("due at %s after %s: %+v", it.At, at, m)
			}
			at = it.At
		}
	})
}

// TestRallyHasEverythingThatHappens counts what the default profile holds.
func TestRallyHasEverythingThatHappens(t *testing.T) {
	items := collect(t, fleet.Rally(1))
	type key struct {
		device string
		us     int64
	}
	newest := map[string]int64{}
	seen := map[key]string{}
	count := map[string]int{}
	for _, it := range items {
		m := it.Message
		year := m.Time.Year()
		switch {
		case year == 1970:
			count["unset clock"]++
		case year > 2050:
			count["future clock"]++
		case m.Time.UnixMicro() < newest[m.DeviceID]:
			count["late"]++
		default:
			newest[m.DeviceID] = m.Time.UnixMicro()
		}
		if m.Latitude == 0 && m.Longitude == 0 {
			count["no fix"]++
		}
		if m.Speed == 0 && m.Latitude != 0 {
			count["stop"]++
		}
		if m.Priority > 0 {
			count["urgent"]++
		}
		if m.Codec == "16" {
			count["codec 16"]++
		}
		k := key{m.DeviceID, m.Time.UnixMicro()}
		text := string(fleet.AppendPayload(nil, &m))
		if before, ok := seen[k]; ok && before == text {
			count["sent again"]++
		} else if ok {
			count["twin"]++
		} else {
			seen[k] = text
		}
	}
	t.Log(len(items), count)
	require.InDelta(t, 200_000, len(items), 10_000)
	for _, what := range []string{"unset clock", "future clock", "late", "no fix", "stop", "urgent", "codec 16", "sent again", "twin"} {
		require.Greater(t, count[what], 40, what)
	}
}

func seq(it fleet.Item) int64 {
	for _, a := range it.Message.Attributes {
		if a.Key == fleet.SeqAttribute {
			return int64(a.Number)
		}
	}
	return -1
}

func TestGapsAreFollowedByBurstsNewestFirst(t *testing.T) {
	p := fleet.Steady(3, 1, 1, 400*time.Second)
	p.Gaps = 1
	var burst []int64
	longest := 0
	last := time.Duration(-1)
	for _, it := range collect(t, p) {
		if it.At != last {
			burst = burst[:0]
		}
		last = it.At
		burst = append(burst, seq(it))
		longest = max(longest, len(burst))
		if len(burst) == 2 {
			require.Less(t, burst[1], burst[0], "newest first")
		}
	}
	require.Greater(t, longest, 5)
}

// TestNothingIsLostOnTheWay tells that incidents delay or repeat records but
// that each one a moving device made is sent in the end.
func TestNothingIsLostOnTheWay(t *testing.T) {
	p := fleet.Rally(5)
	p.Devices, p.Duration = 10, 1000*time.Second
	p.BadClocks = 0
	seen := map[string]map[int64]bool{}
	for _, it := range collect(t, p) {
		m := it.Message
		if seen[m.DeviceID] == nil {
			seen[m.DeviceID] = map[int64]bool{}
		}
		seen[m.DeviceID][m.Time.UnixMicro()] = true
	}
	require.Len(t, seen, 10)
	for device, times := range seen {
		require.Len(t, times, 1000, device)
	}
}

func TestHotDeviceSendsItsShare(t *testing.T) {
	p := fleet.HotDevice(2)
	items := collect(t, p)
	hot := fleet.DeviceID(p.Devices)
	n := 0
	last := int64(0)
	for _, it := range items {
		if it.Message.DeviceID == hot {
			n++
			require.Greater(t, it.Message.Time.UnixMicro(), last)
			last = it.Message.Time.UnixMicro()
		}
	}
	require.InDelta(t, 0.5, float64(n)/float64(len(items)), 0.01)
}

func TestJunkHasAllKindsAndItsShare(t *testing.T) {
	items := collect(t, fleet.Polluted(2))
	kinds := map[string]int{}
	n := 0
	for _, it := range items {
		if it.Junk != nil {
			kinds[it.Junk.Kind]++
			n++
		}
	}
	require.InDelta(t, 0.02, float64(n)/float64(len(items)), 0.001)
	require.Len(t, kinds, 12)
	require.Len(t, fleet.JunkKinds(), 12)
	for _, kind := range fleet.JunkKinds() {
		j, err := fleet.NewJunk(kind, "356307042441013", time.UnixMilli(1_700_000_000_000))
		require.NoError(t, err)
		require.Equal(t, kind, j.Kind)
	}
}

func TestSlowDevicesReportEveryTenthInterval(t *testing.T) {
	p := fleet.Steady(1, 200, 200, 100*time.Second)
	p.Slow = 0.8
	n := map[string]int{}
	for _, it := range collect(t, p) {
		n[it.Message.DeviceID]++
	}
	slow := 0
	for _, c := range n {
		if c == 10 {
			slow++
		} else {
			require.Equal(t, 100, c)
		}
	}
	require.InDelta(t, 160, slow, 20)
}

func TestDeviceIDsAreDistinctIMEIs(t *testing.T) {
	// The check digit of Teltonika's documentation example, 356307042441013.
	require.Equal(t, "356307042441013", fleet.DeviceID(244101))
	seen := map[string]bool{}
	for n := 0; n < 3_000_000; n += 37 {
		id := fleet.DeviceID(n)
		require.Len(t, id, 15)
		require.False(t, seen[id])
		seen[id] = true
	}
}

func TestBadProfilesNameEveryProblem(t *testing.T) {
	_, err := fleet.Profile{Gaps: 0.7, Twins: 0.7, Junk: 2}.Source()
	for _, want := range []string{"devices 0", "interval 0s", "duration 0s", "start", "share 2", "add up to 1.4"} {
		require.ErrorContains(t, err, want)
	}
	_, err = fleet.ByName("regatta", 1)
	require.ErrorContains(t, err, `want one of ["rally" "city" "hot" "junk" "steady"]`)
}

func TestMillionDevicesCostTensOfBytesEach(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	s, err := fleet.Steady(1, 1_000_000, 20_000, 10*time.Second).Source()
	require.NoError(t, err)
	n := 0
	for _, ok := s.Next(); ok; _, ok = s.Next() {
		n++
	}
	each := float64(heap()-before) / 1e6
	require.Equal(t, 200_000, n)
	require.Less(t, each, 50.0)
	runtime.KeepAlive(s)
}

func BenchmarkRallyEncoded(b *testing.B) {
	p := fleet.Rally(1)
	p.Duration = 1000 * time.Hour
	s, err := p.Source()
	require.NoError(b, err)
	b.ReportAllocs()
	bytes := 0
	for b.Loop() {
		it, _ := s.Next()
		for _, f := range it.Fields() {
			bytes += len(f)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "items/s")
	b.ReportMetric(float64(bytes)/float64(b.N), "bytes/item")
}

func TestASkewedFleetFollowsZipfsLaw(t *testing.T) {
	testenv.Slow(t)
	p := fleet.Skewed(3, 500, 3000, 1.1, 20*time.Second)
	source, err := p.Source()
	require.NoError(t, err)
	of := make(map[string]int)
	total := 0
	for it, ok := source.Next(); ok; it, ok = source.Next() {
		of[it.Message.DeviceID]++
		total++
	}
	require.InDelta(t, 60_000, total, 600)
	first, tenth := float64(of[fleet.DeviceID(0)]), float64(of[fleet.DeviceID(9)])
	require.InDelta(t, math.Pow(10, 1.1), first/tenth, .7)
	require.Len(t, of, 500, "the last one reports, too")
}

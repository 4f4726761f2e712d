package equivalence_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

// hourly is a fix at the latitude of the square, so many hours after the start.
func hourly(device, hour int, longitude float64) []string {
	m := fleet.Message{DeviceID: fleet.DeviceID(device), Codec: "8", Time: time.Unix(1_700_000_000, 0).Add(time.Duration(hour) * time.Hour), Latitude: 48.5, Longitude: longitude, Satellites: 9}
	return fleet.EntryFields(&m)
}

// hours returns the crossings of a device with their hours after the start.
func hours(b *bench, device int) (s string) {
	b.TB.Helper()
	require.NoError(b.TB, b.Pool.QueryRow(b.TB.Context(), `
select coalesce(string_agg(concat_ws(' ', kind, (extract(epoch from at)::bigint - 1700000000) / 3600, case when initial then 'initial' end), ', ' order by later_ts), '')
from processor.timing_records
where device_id = $1`, fleet.DeviceID(device)).Scan(&s))
	return s
}

// P5: retention dropped all positions of devices that were inside of a fence. The next
// fix outside is the exit, whether the instance knew where they were or not.
func TestP5ADeviceLeavesAFenceThoughItsPositionsWereDropped(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Square()
	one := b.Start("one")
	b.AcquireAll(one)
	const inside, outside = 11.5, 13
	const warm, cold, back, late, fresh = 1, 2, 3, 4, 5
	b.Publish(hourly(warm, 0, inside), hourly(cold, 0, inside), hourly(back, 0, inside), hourly(late, 0, inside))
	b.Settled(10*time.Second, 0)
	b.Exec("delete from public.positions")
	b.Publish(hourly(warm, 100, outside))
	b.Settled(10*time.Second, 0)
	require.Equal(t, "enter 0 initial, exit 100", hours(b, warm))
	one.End()

	two := b.Start("two")
	b.AcquireAll(two)
	b.Publish(hourly(cold, 100, outside), hourly(back, 100, inside), hourly(late, 102, outside), hourly(fresh, 100, inside))
	b.Settled(10*time.Second, 0)
	require.Equal(t, "enter 0 initial, exit 100 initial", hours(b, cold))
	require.Equal(t, "enter 0 initial", hours(b, back))
	require.Equal(t, "enter 0 initial, exit 102 initial", hours(b, late))
	require.Equal(t, "enter 100 initial", hours(b, fresh), "a device that is new")
	b.Publish(hourly(cold, 101, inside), hourly(back, 101, outside), hourly(late, 101, outside), hourly(late, 99, inside))
	b.Settled(10*time.Second, 0)
	after := map[int]string{
		warm:  "enter 0 initial, exit 100",
		cold:  "enter 0 initial, exit 100 initial, enter 101",
		back:  "enter 0 initial, exit 101",
		late:  "enter 0 initial, exit 101",
		fresh: "enter 100 initial",
	}
	for device, want := range after {
		require.Equal(t, want, hours(b, device), device)
	}
	for device := range after {
		b.Ask("recompute", fleet.DeviceID(device))
	}
	two.RequestsChanged()
	testenv.Wait(t, 10*time.Second, func() error {
		if n := b.Count("select count(*) from processor.requests where state in ('waiting', 'running')"); n > 0 {
			return fmt.Errorf("%d requests are open", n)
		}
		return nil
	})
	for device, want := range after {
		require.Equal(t, want, hours(b, device), "%d, recomputed", device)
	}
}

// P5: the first record that is stored after the drop is older than what was dropped, as of a
// clock that was reset. The next one is compared with what is recorded between them, by the
// instance that stored the old one and by others.
func TestP5ARecordOlderThanDroppedPositionsDoesNotHideThem(t *testing.T) {
	t.Parallel()
	const inside, outside = 11.5, 13
	const leaves, stays, other = 1, 2, 3
	for name, next := range map[string]func(b *bench, in *instance){
		"by the same instance": func(*bench, *instance) {},
		"looked up when it sends": func(b *bench, in *instance) {
			in.End()
			b.Exec("delete from processor.devices") // nothing is loaded ahead
			b.AcquireAll(b.Start("three"))
		},
		"loaded ahead": func(b *bench, in *instance) {
			in.Cut()
			three := b.Start("three")
			b.AcquireAll(three)
			three.LoadedAhead(b.TB, 1) // the other one, of the same page
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.Square()
			one := b.Start("one")
			b.AcquireAll(one)
			b.Publish(hourly(leaves, 0, inside), hourly(stays, 0, inside))
			b.Settled(10*time.Second, 0)
			b.Exec("delete from public.positions")
			one.End()
			two := b.Start("two", func(c *pipeline.Config, _ *pipeline.Deps) { c.Workers = 1 })
			b.AcquireAll(two)
			b.Publish(hourly(leaves, -1000, outside), hourly(stays, -1000, outside), hourly(other, 0, outside))
			b.Settled(10*time.Second, 0)
			next(b, two)
			b.Publish(hourly(leaves, 100, outside), hourly(stays, 100, inside))
			b.Settled(10*time.Second, 0)
			for device, want := range map[int]string{leaves: "enter 0 initial, exit 100 initial", stays: "enter 0 initial"} {
				require.Equal(t, want, hours(b, device), device)
			}
		})
	}
}

func fenceAt(id, geometry string, change func(*geofence.Fence)) geofence.Fence {
	f := geofence.Fence{ID: id, Name: id, Kind: geofence.Area, Geometry: geometry, Valid: geofence.Always, Enabled: true}
	if change != nil {
		change(&f)
	}
	return f
}

const (
	squareHere = `{"type":"Polygon","coordinates":[[[11,48],[11.1,48],[11.1,48.1],[11,48.1],[11,48]]]}`
	lineHere   = `{"type":"LineString","coordinates":[[11.1,48],[11.1,48.1]]}`

	insideHere, marginHere, outsideHere = 11.05, 11.1005, 11.15 // longitudes; the second is 37 m outside
)

func asOfTables(w *world) (s string) {
	require.NoError(w.TB, w.Pool.QueryRow(w.TB.Context(), `
select coalesce(string_agg(concat_ws(' ', device_id, fence_id, kind, (extract(epoch from later_ts) - $1)::float8, ordinal, at, earlier_ts, initial, suppressed, method, max_error_ms), E'\n'
  order by device_id, later_ts, fence_id, kind, ordinal), '')
from processor.timing_records`, scenarioBase).Scan(&s))
	return s
}

// dropBefore deletes the positions before a second, as retention does, once all is done.
func (w *world) dropBefore(second int64) {
	require.NoError(w.TB, w.quiet(time.Minute))
	w.droppedUS = (scenarioBase + second) * 1e6
	_, err := w.Pool.Exec(context.Background(), "delete from public.positions where ts < $1", time.UnixMicro(w.droppedUS))
	require.NoError(w.TB, err)
	w.droppedAt = w.lastID
	w.droppedAt.Seq++
}

// restart goes on with an instance that knows nothing.
func (w *world) restart() {
	for _, m := range w.members {
		if !m.gone() {
			m.kill()
		}
	}
	w.join(0, false)
	w.keepOwned()
}

// P5: what lies behind dropped positions does not depend on whether it was recomputed. A
// passage that stays suppresses the next one, and a device in the exit margin of a fence that
// it was inside of has not left it.
func TestP5ARecomputeBehindDroppedPositionsChangesNothing(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	b := newBench(t)
	fix := func(second int64, longitude float64) fleet.Message {
		return fleet.Message{DeviceID: fleet.DeviceID(1), Codec: "8", Time: time.Unix(scenarioBase+second, 0), Latitude: 48.05, Longitude: longitude, Satellites: 9}
	}
	gate := fenceAt("gate", lineHere, func(f *geofence.Fence) { f.Kind, f.MinIntervalS = geofence.Gate, 60 })
	plain := fenceAt("plain", squareHere, nil)
	margin := fenceAt("margin", squareHere, func(f *geofence.Fence) { f.ExitMarginM = 100 })
	for name, c := range map[string]struct {
		fence  geofence.Fence
		live   []fleet.Message
		dropAt int64
		late   []fleet.Message
		want   string
	}{
		"a passage is suppressed by one that is dropped": {
			gate,
			[]fleet.Message{fix(0, outsideHere), fix(10, insideHere), fix(20, outsideHere)},
			15,
			[]fleet.Message{fix(30, insideHere), fix(120, outsideHere)},
			"backward 10, forward 20, backward 30 suppressed, forward 120",
		},
		"a passage over the gap is none": {
			gate,
			[]fleet.Message{fix(0, outsideHere), fix(10, insideHere), fix(20, insideHere)},
			15,
			[]fleet.Message{fix(5, outsideHere), fix(30, outsideHere)},
			"backward 10, forward 30",
		},
		"late records on both sides of what is dropped": {
			plain,
			[]fleet.Message{fix(0, outsideHere), fix(10, insideHere), fix(20, insideHere)},
			15,
			[]fleet.Message{fix(5, outsideHere), fix(12, insideHere), fix(30, outsideHere)},
			"enter 10, exit 30",
		},
		"it is in the margin, and comes back": {
			margin,
			[]fleet.Message{fix(0, insideHere), fix(10, marginHere)},
			5,
			[]fleet.Message{fix(20, insideHere), fix(30, marginHere)},
			"enter 0 initial",
		},
		"it is in the margin, and leaves": {
			margin,
			[]fleet.Message{fix(0, insideHere), fix(10, marginHere), fix(15, marginHere)},
			12,
			[]fleet.Message{fix(20, marginHere), fix(30, outsideHere)},
			"enter 0 initial, exit 15 initial",
		},
		"it is in the margin where it was recorded outside": {
			margin,
			[]fleet.Message{fix(0, insideHere), fix(5, outsideHere), fix(10, marginHere)},
			7,
			[]fleet.Message{fix(20, marginHere), fix(30, outsideHere)},
			"enter 0 initial, exit 5",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, b, b.Stream+"-"+strconv.Itoa(len(name)))
			defer w.end()
			w.begin(c.fence)
			w.publish(c.live)
			w.dropBefore(c.dropAt)
			w.restart()
			look := func() (s string) {
				require.NoError(t, b.Pool.QueryRow(t.Context(), `
select string_agg(concat_ws(' ', kind, extract(epoch from later_ts)::bigint - $1, case when initial then 'initial' end, case when suppressed then 'suppressed' end), ', ' order by later_ts)
from processor.timing_records`, scenarioBase).Scan(&s))
				return s
			}
			for _, m := range c.late {
				w.publish([]fleet.Message{m})
				require.NoError(t, w.quiet(time.Minute))
			}
			require.Equal(t, c.want, look())
			w.recomputeAll(1)
			require.Equal(t, c.want, look(), "recomputed")
			require.NoError(t, w.judge())
		})
	}
}

// recomputeAll asks for a recompute of each device, and waits for it.
func (w *world) recomputeAll(devices int) {
	for d := 1; d <= devices; d++ {
		w.ask(fleet.DeviceID(d), time.Unix(0, 0), time.Unix(4_000_000_000, 0))
	}
	require.NoError(w.TB, w.quiet(time.Minute))
}

// P5: positions are dropped while a fleet is under way, and records come late, behind them,
// among them and as old as they, to instances that know or do not know what was there: the
// tables are what the entries yield, and a recompute changes nothing. TEST_SEED is the
// first seed, TEST_SEEDS their number.
func TestP5RecordsAsOldAsDroppedPositionsChangeNothingThatIsRecordedThere(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	seed, seeds := testenv.Seed(t), uint64(6)
	if text := os.Getenv("TEST_SEEDS"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
		seeds = n
	}
	b := newBench(t)
	for n := range seeds {
		t.Run(fmt.Sprintf("seed%d", seed+n), func(t *testing.T) { playDrop(t, b, seed+n) })
	}
}

func playDrop(t *testing.T, b *bench, seed uint64) {
	t.Helper()
	const devices, span, every = 5, 900, 15
	rnd := rand.New(rand.NewPCG(seed, 0))
	all := []geofence.Fence{
		fenceAt("plain", squareHere, nil),
		fenceAt("margin", squareHere, func(f *geofence.Fence) { f.ExitMarginM = 100 }),
		fenceAt("dwell", squareHere, func(f *geofence.Fence) { f.MinDwellS = 40 }),
		fenceAt("both", squareHere, func(f *geofence.Fence) { f.ExitMarginM, f.MinDwellS = 100, 25 }),
		fenceAt("round", `{"type":"Point","coordinates":[11.05,48.05]}`, func(f *geofence.Fence) {
			f.Kind, f.RadiusM, f.ExitMarginM, f.MinDwellS = geofence.Circle, 3700, 120, 60
		}),
		fenceAt("lane", `{"type":"LineString","coordinates":[[11,48.05],[11.1,48.05]]}`, func(f *geofence.Fence) { f.WidthM, f.ExitMarginM = 500, 50 }),
		fenceAt("gate", lineHere, func(f *geofence.Fence) { f.Kind = geofence.Gate }),
		fenceAt("slow", lineHere, func(f *geofence.Fence) { f.Kind, f.MinIntervalS = geofence.Gate, 60 }),
	}
	var fences []geofence.Fence
	plain := rnd.IntN(4) == 0 // no held border at all
	for _, f := range all {
		if isHeld := f.ExitMarginM+f.MinDwellS+f.MinIntervalS > 0; !(plain && isHeld) && rnd.IntN(4) > 0 {
			fences = append(fences, f)
		}
	}
	if len(fences) == 0 {
		fences = all[:1]
	}
	places := []float64{insideHere, insideHere, marginHere, marginHere, outsideHere}
	at := make(map[string]int)
	fix := func(device int, us int64) fleet.Message {
		id := fleet.DeviceID(device)
		if rnd.IntN(3) > 0 {
			at[id] = rnd.IntN(len(places))
		}
		return fleet.Message{DeviceID: id, Codec: "8", Time: time.UnixMicro(scenarioBase*1e6 + us), Latitude: 48.05 + float64(rnd.IntN(9))/1e4, Longitude: places[at[id]] + float64(rnd.IntN(9))/1e5, Satellites: 9, Speed: 10}
	}
	drop := int64(span/3 + rnd.IntN(span/2))
	var early, late []fleet.Message
	for second := int64(0); second < span; second += every {
		for d := 1; d <= devices; d++ {
			m := fix(d, second*1e6+rnd.Int64N(4)*1e6)
			switch rnd.IntN(8) {
			case 0:
			case 1: // anywhere, long after
				late = append(late, m)
			case 2: // another one at the time of one that may be dropped
				late = append(late, fix(d, m.Time.UnixMicro()-scenarioBase*1e6))
				fallthrough
			default:
				early = append(early, m)
			}
		}
	}
	for second := int64(span); second < span*3/2; second += every {
		for d := 1; d <= devices; d++ {
			late = append(late, fix(d, second*1e6))
		}
	}
	w := newWorld(t, b, fmt.Sprintf("%s-drop-%d", b.Stream, seed))
	defer w.end()
	_, err := w.editor.Import(t.Context(), fences, "import", true)
	require.NoError(t, err)
	w.join(0, false)
	w.keepOwned()
	send := func(list []fleet.Message, nearly int) {
		for i := range list { // nearly in order
			j := min(len(list)-1, i+rnd.IntN(nearly))
			list[i], list[j] = list[j], list[i]
		}
		for len(list) > 0 {
			n := min(len(list), 1+rnd.IntN(40))
			w.publish(list[:n])
			if list = list[n:]; rnd.IntN(6) == 0 {
				require.NoError(t, w.quiet(time.Minute))
				w.restart()
			}
		}
	}
	send(early, 1+rnd.IntN(12))
	require.NoError(t, w.quiet(time.Minute))
	require.NoError(t, w.judge(), "before the drop")
	w.dropBefore(drop)
	if rnd.IntN(2) == 0 {
		w.restart()
	}
	if rnd.IntN(3) == 0 {
		w.recomputeAll(devices)
	}
	rnd.Shuffle(len(late)/2, func(i, j int) { late[i], late[j] = late[j], late[i] })
	send(late, 1+rnd.IntN(12))
	require.NoError(t, w.quiet(time.Minute))
	require.NoError(t, w.judge(), "after the drop; TEST_SEED=%d TEST_SEEDS=1", seed)
	recorded := asOfTables(w)
	w.recomputeAll(devices)
	require.Equal(t, recorded, asOfTables(w), "recomputed; TEST_SEED=%d TEST_SEEDS=1", seed)
	require.NoError(t, w.judge(), "recomputed; TEST_SEED=%d TEST_SEEDS=1", seed)
}

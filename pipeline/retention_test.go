package pipeline_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// P5: retention dropped all positions of devices that were inside of a fence. The next
// fix outside is the exit, whether the instance knew where they were or not.
func TestP5ADeviceLeavesAFenceThoughItsPositionsWereDropped(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.exec(`
insert into processor.geofences (id, version, name, kind, geometry)
values ('square', 1, 'square', 'area', '{"type":"Polygon","coordinates":[[[11,48],[12,48],[12,49],[11,49],[11,48]]]}')`)
	one := b.start("one")
	b.acquireAll(one)
	fix := func(device int, hour int, longitude float64) []string {
		m := fleet.Message{DeviceID: fleet.DeviceID(device), Codec: "8", Time: time.Unix(1_700_000_000, 0).Add(time.Duration(hour) * time.Hour), Latitude: 48.5, Longitude: longitude, Satellites: 9}
		return fleet.EntryFields(&m)
	}
	const inside, outside = 11.5, 13
	crossings := func(device int) (s string) {
		require.NoError(t, b.pool.QueryRow(t.Context(), `
select coalesce(string_agg(concat_ws(' ', kind, (extract(epoch from at)::bigint - 1700000000) / 3600, case when initial then 'initial' end), ', ' order by later_ts), '')
from processor.timing_records
where device_id = $1`, fleet.DeviceID(device)).Scan(&s))
		return s
	}
	const warm, cold, back, late, fresh = 1, 2, 3, 4, 5
	b.publish(fix(warm, 0, inside), fix(cold, 0, inside), fix(back, 0, inside), fix(late, 0, inside))
	b.settled(10*time.Second, 0)
	b.exec("delete from public.positions")
	b.publish(fix(warm, 100, outside))
	b.settled(10*time.Second, 0)
	require.Equal(t, "enter 0 initial, exit 100", crossings(warm))
	one.stop()

	two := b.start("two")
	b.acquireAll(two)
	b.publish(fix(cold, 100, outside), fix(back, 100, inside), fix(late, 102, outside), fix(fresh, 100, inside))
	b.settled(10*time.Second, 0)
	require.Equal(t, "enter 0 initial, exit 100 initial", crossings(cold))
	require.Equal(t, "enter 0 initial", crossings(back))
	require.Equal(t, "enter 0 initial, exit 102 initial", crossings(late))
	require.Equal(t, "enter 100 initial", crossings(fresh), "a device that is new")
	b.publish(fix(cold, 101, inside), fix(back, 101, outside), fix(late, 101, outside), fix(late, 99, inside))
	b.settled(10*time.Second, 0)
	after := map[int]string{
		warm:  "enter 0 initial, exit 100",
		cold:  "enter 0 initial, exit 100 initial, enter 101",
		back:  "enter 0 initial, exit 101",
		late:  "enter 0 initial, exit 101",
		fresh: "enter 100 initial",
	}
	for device, want := range after {
		require.Equal(t, want, crossings(device), device)
	}
	for device := range after {
		b.ask("recompute", fleet.DeviceID(device))
	}
	two.RequestsChanged()
	testenv.Wait(t, 10*time.Second, func() error {
		if n := b.count("select count(*) from processor.requests where state in ('waiting', 'running')"); n > 0 {
			return fmt.Errorf("%d requests are open", n)
		}
		return nil
	})
	for device, want := range after {
		require.Equal(t, want, crossings(device), "%d, recomputed", device)
	}
}

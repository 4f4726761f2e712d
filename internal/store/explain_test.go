package store_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// One of each kind of position that takes no part lies round two crossings.
func TestExplainSaysWhyAPositionTakesNoPart(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	pool := fencePool(t)
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(seconds int) time.Time { return begin.Add(time.Duration(seconds) * time.Second) }
	position := func(seconds int, longitude float64, change string) {
		execute(t, pool, `
insert into public.positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
values ('d', $1, $1, 48, $2, 0, 0, 0, 9, 0, '8', '{}')`, at(seconds), longitude)
		if change != "" {
			execute(t, pool, "update public.positions set "+change+" where ts = $1", at(seconds))
		}
	}
	for n := range 70 { // more than is shown
		position(n-200, 10.99, "satellites = 0")
	}
	for n := range 12 {
		position(n*10-120, 10.99, "")
	}
	position(0, 10.999, "")
	position(3, 11.001, "satellites = 0")
	position(4, 0, "latitude = 0")
	position(5, 11.001, "faulty = true")
	position(6, 11.001, "ingested_at = ts - interval '1 hour'")
	position(7, 11.001, "ingested_at = ts + interval '30 days'")
	position(8, 12.001, "")
	position(10, 11.001, "")
	position(20, 11.001, "")
	position(30, 10.999, "")
	position(40, 12.001, "")
	position(45, 12.001, "satellites = 0")
	execute(t, pool, `insert into processor.conflicts (stream, group_name, device_id, ts, digest, entry_id, ingested_at, priority, differs, record)
		values ($1, $2, 'd', $3, 'x', '7-0', $3, 0, '{speed,angle}', '{}')`, fenceScope.Stream, fenceScope.Group, at(10))
	editor := store.NewFenceEditor(pool, fenceScope, 4, "test")
	square := func(west float64) []geofence.Fence {
		return []geofence.Fence{{
			ID: "f", Kind: geofence.Area, Enabled: true, Valid: geofence.Always,
			Geometry: fmt.Sprintf(`{"type":"Polygon","coordinates":[[[%[1]v,47.9],[11.01,47.9],[11.01,48.1],[%[1]v,48.1],[%[1]v,47.9]]]}`, west),
		}}
	}
	_, err := editor.Import(t.Context(), square(11.0005), "import", true)
	require.NoError(t, err)
	_, err = editor.Import(t.Context(), square(11), "import", true)
	require.NoError(t, err)
	record := func(kind string, crossed float64, earlier, later, version int) {
		execute(t, pool, `
insert into processor.timing_records (device_id, fence_id, fence_version, kind, at, earlier_ts, later_ts, latitude, longitude, method, distance_m, speed, max_error_ms)
values ('d', 'f', $1, $2, $3::timestamptz + $4 * interval '1 second', $3, $5, 48, 11, 'interpolated', 148.80786, 53.570827, 5000)`,
			version, kind, at(earlier), crossed, at(later))
	}
	record("enter", 5, 0, 10, 2)
	pins := store.FleetSettings{Shards: 4, MaxGap: time.Hour, Eligibility: telemetry.Eligibility{
		MaxFutureSkew: time.Minute, MinSatellites: 1, MaxPast: 24 * time.Hour, MaxSpeed: 300,
	}}
	ask := store.NewDevices(pool, fenceScope, pins, "test")
	explain := func(when time.Time) store.Explanation {
		e, err := ask.Explain(t.Context(), "d", "f", when)
		require.NoError(t, err)
		return e
	}
	why := func(e store.Explanation) string {
		var list []string
		for _, f := range e.Fixes {
			inside := ""
			if f.Inside {
				inside = " in"
			}
			list = append(list, fmt.Sprint(int(f.Time.Sub(begin).Seconds()), strings.TrimRight(" "+f.Role+f.Why, " "), inside))
		}
		return strings.Join(list, ", ")
	}

	e := explain(time.Time{})
	require.Equal(t, at(0), e.Earlier.UTC())
	require.Equal(t, at(10), e.Later.UTC())
	require.Equal(t, "-50, -40, -30, -20, -10, 0 earlier, 3 no_fix in, 4 no_fix, 5 faulty in, 6 future in, 7 ancient in, 8 jump, "+
		"10 later in, 20 in, 30, 40 undecided, 45 no_fix", why(e))
	require.True(t, e.Agree, "%+v %+v", e.Crossings, e.Derived)
	require.False(t, e.More || e.Gone)
	require.Equal(t, []store.ConflictRow{{Time: e.Conflicts[0].Time, Entry: e.Conflicts[0].Entry, Ingested: e.Conflicts[0].Ingested, Differs: []string{"speed", "angle"}}}, e.Conflicts)
	require.Len(t, e.Versions, 2)
	require.NotNil(t, e.Versions[0].Replaced)
	require.False(t, e.Versions[0].Used)
	require.True(t, e.Versions[1].Used)
	require.Len(t, e.Changes, 1)
	require.Equal(t, "inserted", e.Changes[0].Change)
	require.Equal(t, e.Crossings[0].At, *e.Changes[0].New)

	for name, when := range map[string]time.Time{"the time of the crossing": at(5).Add(900 * time.Microsecond), "one between": at(7)} {
		require.Equal(t, why(e), why(explain(when)), name)
	}

	// What is not recorded and should be, what no fix has, and what is recorded wrongly.
	missing := explain(at(25))
	require.False(t, missing.Agree)
	require.Empty(t, missing.Crossings)
	require.Equal(t, "exit", missing.Derived[0].Kind)
	none := explain(at(15))
	require.True(t, none.Agree)
	require.Empty(t, none.Derived)
	before := explain(at(-500))
	require.Nil(t, before.Earlier)
	require.True(t, before.Agree)
	require.True(t, before.More, "70 without a fix before the first")
	after := explain(at(500))
	require.Nil(t, after.Later)
	require.Equal(t, "-20, -10, 0, 3 no_fix in, 4 no_fix, 5 faulty in, 6 future in, 7 ancient in, 8 jump, 10 in, 20 in, 30 earlier, 40 undecided, 45 no_fix", why(after))
	record("exit", 4, 20, 30, 2)
	require.False(t, explain(at(25)).Agree, "dated a second off")
	execute(t, pool, "update processor.timing_records set at = at + interval '1 second' where kind = 'exit'")
	again := explain(time.Time{})
	require.True(t, again.Agree)
	require.Equal(t, "revised", again.Changes[1].Change)
	execute(t, pool, "update processor.timing_records set fence_version = 1 where kind = 'exit'")
	require.False(t, explain(at(25)).Agree, "of a version that is replaced")

	// A border that is held still: 74 m outside are not outside, and more fixes decide that.
	execute(t, pool, "delete from processor.timing_records where kind = 'exit'")
	held := square(11)
	held[0].ExitMarginM = 200
	_, err = editor.Import(t.Context(), held, "import", true)
	require.NoError(t, err)
	execute(t, pool, "update processor.timing_records set fence_version = 3")
	require.True(t, explain(time.Time{}).Agree)
	still := explain(at(25))
	require.True(t, still.Agree)
	require.Empty(t, still.Derived)
	for n := range 1000 { // it stays in between for long, and then is found to have left
		position(50+n*10, 10.999, "")
	}
	position(10_060, 10.99, "")
	left := explain(at(25))
	require.False(t, left.Agree)
	require.Len(t, left.Derived, 1)
	require.Equal(t, at(25), left.Derived[0].At.UTC())

	// Positions that retention removed.
	execute(t, pool, "delete from public.positions where ts < $1", at(5))
	require.True(t, explain(at(5)).Gone)

	_, err = ask.Explain(t.Context(), "d", "other", time.Time{})
	require.ErrorIs(t, err, store.ErrNoCrossing)
	nobody, err := ask.Explain(t.Context(), "nobody", "f", begin)
	require.NoError(t, err)
	require.Empty(t, nobody.Fixes)
}

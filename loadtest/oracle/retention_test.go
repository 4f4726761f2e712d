package oracle_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// What retention dropped is no loss, what was derived from it stays, and where a device
// was by then is known from its last crossing only.
func TestTheOracleKnowsRetention(t *testing.T) {
	whole := send(t, nearby(t, profile(11, 5, 400*time.Second)))
	set, version := asService(t, rules.Fences)
	spanned := 0
	for n, at := range whole.crossings {
		if n%7 != 0 || at.Initial {
			continue
		}
		r, end := *whole, at.LaterUS // between the two fixes of a crossing
		r.rows = slices.DeleteFunc(slices.Clone(r.rows), func(row oracle.Row) bool { return row.TimeUS < end })
		require.NotZero(t, r.judge(t).Account.Lost, "without knowing of it")
		r.droppedUS = end
		require.True(t, r.judge(t).Good(), "%+v", r.judge(t).Examples)

		// As after a restart.
		r.crossings = slices.DeleteFunc(slices.Clone(r.crossings), func(c oracle.Crossing) bool { return c.LaterUS >= end && c.EarlierUS < end && !c.Initial })
		before, seen := make(map[string]bool), make(map[string]bool) // devices with a fix that counts, dropped or not
		for i := range whole.rows {
			row := &whole.rows[i]
			record := telemetry.Record{TimeUS: row.TimeUS, StreamUS: row.IngestedUS, Latitude: row.Latitude, Longitude: row.Longitude, Satellites: row.Satellites}
			if seen[row.Device] || (telemetry.Eligibility{MaxFutureSkew: rules.MaxFutureSkew, MaxPast: rules.MaxPast, MinSatellites: rules.MinSatellites}).Of(&record) != telemetry.Eligible {
				continue
			}
			if row.TimeUS < end {
				before[row.Device] = true
				continue
			}
			seen[row.Device] = true
			if !before[row.Device] {
				continue
			}
			was := make(map[string]bool)
			for _, f := range rules.Fences {
				was[f.ID] = false
			}
			for _, c := range whole.crossings {
				if c.Device == row.Device && c.LaterUS < end && (c.Kind == "enter" || c.Kind == "exit") {
					was[c.FenceID] = c.Kind == "enter"
				}
			}
			for _, c := range set.Since(nil, was, geofence.Fix{TimeUS: row.TimeUS, Latitude: row.Latitude, Longitude: row.Longitude}) {
				r.crossings = append(r.crossings, asOracle(row.Device, version, c))
				spanned++
			}
		}
		slices.SortStableFunc(r.crossings, func(a, b oracle.Crossing) int {
			if a.Device < b.Device {
				return -1
			}
			if a.Device > b.Device {
				return 1
			}
			return 0
		})
		r.noChanges = true
		require.True(t, r.judge(t).Good(), "%+v", r.judge(t).Examples)
		initial := slices.IndexFunc(r.crossings, func(c oracle.Crossing) bool { return c.Initial && c.LaterUS >= end && c.Kind == "exit" })
		if initial >= 0 {
			r.crossings = slices.Delete(r.crossings, initial, initial+1)
			require.Equal(t, map[oracle.Kind]int64{oracle.KindCrossing: 1}, r.judge(t).Counts, "an exit is missing")
		}
	}
	require.NotZero(t, spanned)
}

package oracle_test

import (
	"cmp"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// What retention dropped is no loss, and what was derived from it stays. An instance that went
// on knew where a device was, one that was started again has that from its last crossing.
func TestTheOracleKnowsRetention(t *testing.T) {
	testenv.Slow(t)
	items := nearby(t, profile(11, 5, 400*time.Second))
	spanned, missed := 0, 0
	for n, at := range send(t, items).crossings {
		if n%3 != 0 || at.Initial {
			continue
		}
		end := at.LaterUS // between the two fixes of a crossing
		begun := -1       // with the entry with this index a device had come so far, and nothing older came
		var some []fleet.Item
		for _, it := range items {
			if behind := it.Message.Time.UnixMicro() >= end; it.Junk != nil || behind || begun < 0 {
				if behind && it.Junk == nil && begun < 0 {
					begun = len(some)
				}
				some = append(some, it)
			}
		}
		whole := send(t, some)
		r := *whole
		r.rows = slices.DeleteFunc(slices.Clone(r.rows), func(row oracle.Row) bool { return row.TimeUS < end })
		require.NotZero(t, r.judge(t).Account.Lost, "without knowing of it")
		r.droppedUS = end
		require.NotZero(t, r.judge(t).Account.Lost, "dropped before the first entry")
		r.droppedAt = oracle.ID(r.sent[begun].ID)
		require.True(t, r.judge(t).Good(), "%+v", r.judge(t).Examples)
		gone := slices.IndexFunc(r.crossings, func(c oracle.Crossing) bool { return c.LaterUS < end })
		less := r
		less.noChanges, less.crossings = true, slices.Delete(slices.Clone(r.crossings), gone, gone+1)
		require.NotZero(t, less.judge(t).Counts[oracle.KindCrossing], "what was recorded before is missing")
		less.crossings = slices.Clone(r.crossings)
		less.crossings[gone].TimeUS -= 1000
		require.NotZero(t, less.judge(t).Counts[oracle.KindCrossing], "or is another")

		r.crossings = slices.DeleteFunc(slices.Clone(r.crossings), func(c oracle.Crossing) bool { return c.LaterUS >= end && c.EarlierUS < end && !c.Initial })
		set, version := asService(t, rules.Fences)
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
		slices.SortStableFunc(r.crossings, func(a, b oracle.Crossing) int { return cmp.Compare(a.Device, b.Device) })
		r.noChanges = true
		require.True(t, r.judge(t).Good(), "%+v", r.judge(t).Examples)
		initial := slices.IndexFunc(r.crossings, func(c oracle.Crossing) bool { return c.Initial && c.LaterUS >= end && before[c.Device] })
		if initial >= 0 {
			r.crossings = slices.Delete(r.crossings, initial, initial+1)
			require.Equal(t, map[oracle.Kind]int64{oracle.KindCrossing: 1}, r.judge(t).Counts, "what is new is missing")
			missed++
		}
	}
	require.NotZero(t, spanned)
	require.NotZero(t, missed)
}

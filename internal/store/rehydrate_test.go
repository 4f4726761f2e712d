package store_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

// The index that only other readers use may be dropped: the newest fix of a device is
// found as before, among many rows.
func TestTheNewestFixIsFoundWithoutTheIndexOfOtherReaders(t *testing.T) {
	t.Parallel()
	const rows = 5_000
	b := newBench(t)
	b.exec("drop index public.positions_faulty_idx")
	b.exec(`insert into public.positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
		select d::text, timestamptz '2026-01-01 00:00:00Z' + n * interval '1 second' + ahead, timestamptz '2026-01-03 00:00:00Z', 48, 11, 0, 0, 0, 9, 0, '8', '{}'
		from generate_series(1, $1) n, (values ('silent', interval '0'), ('another', interval '1 day')) d(d, ahead)`, rows)
	b.exec("vacuum analyze public.positions")
	read := func() int {
		b.exec("select pg_stat_force_next_flush()")
		return b.count("select seq_tup_read + idx_tup_fetch from pg_stat_user_tables where schemaname = 'public' and relname = 'positions'")
	}
	before := read()
	found := 0
	require.NoError(t, store.NewReader(b.pool, 10*time.Second).LastFixes(t.Context(), []string{"silent"}, telemetry.Eligibility{MaxFutureSkew: 5 * time.Minute, MinSatellites: 1},
		func(_ int, last geofence.Fix) {
			found++
			require.Equal(t, time.Date(2026, 1, 1, 0, 0, rows, 0, time.UTC).UnixMicro(), last.TimeUS)
		}))
	require.Equal(t, 1, found)
	require.Less(t, read()-before, 100)
}

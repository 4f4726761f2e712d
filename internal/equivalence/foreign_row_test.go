package equivalence_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// P5: another program wrote the newest row of a device beside us, not flagged, and a
// record has its time and other content. The row stays, and what follows from it is derived.
func TestP5ARowOfAnotherProgramTakesPart(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Square()
	in := b.Start("one")
	b.AcquireAll(in)
	fix := func(hour int, longitude float64) []string { return hourly(1, hour, longitude) }
	const inside, outside = 11.5, 13
	b.Publish(fix(0, outside), fix(1, outside))
	b.Settled(10*time.Second, 0)
	b.Exec(`
insert into positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
select device_id, ts + interval '1 hour', ingested_at, latitude, 11.5, altitude, angle, speed, satellites, priority, codec, attributes
from positions
where ts = (select max(ts) from positions)`)
	b.Publish(fix(2, outside)) // newer than all that we stored, and not new
	b.Settled(10*time.Second, 0)
	require.Equal(t, 3, b.Count("select count(*) from positions"))
	require.Equal(t, 1, b.Count("select count(*) from positions where longitude = 11.5"), "who came first counts")
	require.Equal(t, 1, b.Count("select count(*) from processor.conflicts"))
	require.Equal(t, 1, b.Count("select count(*) from processor.timing_records where kind = 'enter'"))
	b.Publish(fix(3, inside), fix(4, outside))
	b.Settled(10*time.Second, 0)
	require.Equal(t, 1, b.Count("select count(*) from processor.timing_records where kind = 'exit'"))
	require.Equal(t, 2, b.Count("select count(*) from processor.timing_records"))
	v, err := store.NewDevices(b.Pool, b.Scope(), store.FleetSettings{
		Shards: shards, MaxGap: 10 * time.Minute, Eligibility: telemetry.Eligibility{MaxFutureSkew: 5 * time.Minute, MinSatellites: 1},
	}, "test").Verify(t.Context(), fleet.DeviceID(1))
	require.NoError(t, err)
	require.True(t, v.Good(), "%+v", v)
}

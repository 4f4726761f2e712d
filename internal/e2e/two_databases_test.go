package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// P1, P5: past one Postgres each deployment has a database and its list of streams, on the same Redis. A
// device is in the database of its stream alone, and a list that mixes them is refused.
func TestTwoDatabasesEachWithItsListOfStreams(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	names := []string{dep.Stream + ":0", dep.Stream + ":1", dep.Stream + ":2", dep.Stream + ":3"}
	west, east := *dep, *dep
	west.Stream, east.Stream = names[0]+","+names[1], names[2]+","+names[3]
	east.PostgresURL = testenv.Postgres(t, servicetest.Migrated())
	both := []*servicetest.Deployment{&west, &east}
	fence := servicetest.File(t, `{"type": "Feature", "properties": {"id": "a", "name": "a", "kind": "circle", "radius_m": 500}, "geometry": {"type": "Point", "coordinates": [1.5, 42.5]}}`)
	var running []*servicetest.Process
	for i, d := range both {
		p := d.Run(servicetest.FourShards, fmt.Sprintf("INSTANCE_ID=of-%d", i))
		p.AwaitReady()
		running = append(running, p)
		d.Ask(fault.Clean, nil, "geofence", "import", fence) // each database has its own
	}
	const devices, each = 40, 5
	var of [2]int
	for i := range devices {
		device := fmt.Sprintf("device-%d", i)
		n := telemetry.StreamOf(device, len(names)) // the publisher's choice also chooses the database
		of[n/2]++
		to := *dep
		to.Stream = names[n]
		for second := range int64(each) {
			to.Publish(servicetest.Record(device, second))
		}
	}
	require.Positive(t, of[0])
	require.Positive(t, of[1])
	for i, d := range both {
		d.AwaitStored(of[i]*each, 30*time.Second)
		d.AwaitCount(of[i], "select count(distinct device_id) from positions")
		d.AwaitCount(of[i], "select count(distinct device_id) from processor.timing_records")
		d.AwaitCount(2, "select count(distinct stream) from processor.shards")
		d.AwaitCount(0, "select count(*) from processor.incidents where kind <> 'group_created'")
	}

	// A list that has a stream of the other database does no work.
	mixed := west
	mixed.Stream += "," + names[2]
	p := mixed.Run(servicetest.FourShards, "INSTANCE_ID=mixed")
	require.Equal(t, fault.Config, p.Exit(60*time.Second))
	require.Contains(t, p.Output()+p.Errors(), names[2])
	require.Contains(t, p.Output()+p.Errors(), "works with the database")
	west.AwaitCount(2, "select count(distinct stream) from processor.shards where owner is not null")
	for _, p := range running {
		require.Zero(t, p.Terminate())
	}
}

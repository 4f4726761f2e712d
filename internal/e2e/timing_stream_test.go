package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/observer"
)

// A reader of TIMING_STREAM that knows only the documentation has what timing_records
// has, however often the leader is killed while it publishes.
func TestAReaderOfTheTimingStreamHasAllThroughKillsOfTheLeader(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	_, err := schema.Migrate(t.Context(), dep.PostgresURL, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	pool, err := pgxpool.New(t.Context(), dep.PostgresURL)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	client := dep.Client()
	key := dep.Stream + ":crossings"
	running := map[string]*servicetest.Process{}
	start := func(name string) {
		running[name] = dep.Run("INSTANCE_ID="+name, "TIMING_STREAM="+key, "MEMBER_TTL=3s", "LEADER_TTL=1s", servicetest.FourShards)
		running[name].AwaitReady()
	}
	for n := range 3 {
		start(fmt.Sprint("i", n))
	}
	fence := servicetest.File(t, `{"type": "Feature", "properties": {"id": "a", "name": "a", "kind": "circle", "radius_m": 500}, "geometry": {"type": "Point", "coordinates": [11, 48]}}`)
	dep.Ask(fault.Clean, nil, "geofence", "import", fence)

	// Each record leaves the circle or enters it, and some come late.
	const devices, each = 20, 150
	pub := fleet.NewPublisher(client, dep.Stream, 0)
	sending, stop := context.WithCancel(t.Context())
	defer stop()
	sent := make(chan error, 1)
	go func() {
		var err error
		for n := 0; n < each && err == nil; n++ {
			var batch [][]string
			for d := range devices {
				at := n
				if n%10 == 9 {
					at = n - 20 // between two that are there
				}
				batch = append(batch, fleet.EntryFields(&fleet.Message{
					DeviceID: fleet.DeviceID(d), Codec: "8", Time: time.Unix(1_770_000_000+int64(10*at+d%3), 0), Latitude: 48,
					Longitude: 11 + 0.01*float64(n%2), Satellites: 9,
				}))
			}
			if _, err = pub.Publish(sending, batch); err == nil {
				select {
				case <-time.After(30 * time.Millisecond):
				case <-sending.Done():
					err = context.Cause(sending)
				}
			}
		}
		sent <- err
	}()

	reader := observer.NewTimingStream(pool, testenv.Entries(client, key))
	for kill := range 4 {
		// In the middle of publishing.
		testenv.Wait(t, 30*time.Second, func() error {
			n, err := client.XLen(t.Context(), key).Result()
			if want := int64(200 * (kill + 1)); err == nil && n < want {
				err = fmt.Errorf("%d changes are published, want %d", n, want)
			}
			return err
		})
		require.NoError(t, reader.Read(t.Context()))
		leader := ""
		testenv.Wait(t, 30*time.Second, func() error {
			for name, p := range running {
				if v, err := p.Metric("processor_coordination_leader"); err == nil && v == 1 {
					leader = name
					return nil
				}
			}
			return errors.New("no leader")
		})
		require.NoError(t, running[leader].Kill())
		start(leader)
	}
	require.NoError(t, <-sent)
	dep.AwaitStored(devices*each, time.Minute)
	awaitNoBacklog(dep)
	testenv.Wait(t, time.Minute, func() error {
		if err := reader.Finish(t.Context()); err != nil {
			return err
		}
		changes, err := dep.Count("select count(*) from processor.timing_changes")
		if err != nil {
			return err
		}
		entries, err := client.XLen(t.Context(), key).Result()
		if err == nil && int(entries) < changes+1 {
			err = fmt.Errorf("%d entries for %d changes", entries, changes)
		}
		return err
	})
	changes, err := dep.Count("select count(*) from processor.timing_changes")
	require.NoError(t, err)
	require.EqualValues(t, changes+1, client.XLen(t.Context(), key).Val(), "each once, and the restart at the beginning")
	rows, err := dep.Count("select count(*) from processor.timing_records")
	require.NoError(t, err)
	t.Logf("%d crossings, %d changes read, begun %d times", rows, reader.Changes(), reader.Starts())
	require.Greater(t, rows, devices*each/2)
	require.Greater(t, reader.Changes(), rows/2)
	require.Equal(t, 1, reader.Starts())
	for _, p := range running {
		require.Zero(t, p.Terminate())
	}
}

package pipeline_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

// TestP9LargeEntriesAreBoundedByTheirBytes fills an instance that commits nothing with
// entries fifty times the usual size: far fewer of them fit than the bound on
// records allows, and how many are asked for follows from what they were before.
func TestP9LargeEntriesAreBoundedByTheirBytes(t *testing.T) {
	t.Parallel()
	const maxBytes, size, devices, reply = 400 << 10, 20 << 10, 100, 60
	b := newBench(t)
	in := b.Start("one", func(c *pipeline.Config, _ *pipeline.Deps) {
		c.Workers, c.MaxInFlightRecords, c.MaxInFlightBytes, c.ReadBatchRecords = 2, 1000, maxBytes, reply
	})
	b.AcquireAll(in)
	large := func(i int) []string {
		m := fleet.Message{
			DeviceID: fleet.DeviceID(i % devices), Codec: "8", Time: time.Unix(1_700_000_000+int64(i), 0).UTC(), Latitude: 48, Longitude: 11, Satellites: 9,
		}
		m.Attributes = append(m.Attributes, fleet.TextAttribute("900", strings.Repeat("x", size)))
		return fleet.EntryFields(&m)
	}
	b.Publish(large(0))
	b.Settled(10*time.Second, 0)

	release := b.holdCommits()
	var entries [][]string
	for i := range 2 * devices {
		entries = append(entries, large(1+i))
	}
	_, err := b.Client.TxPipelined(t.Context(), func(p redis.Pipeliner) error { // so that a read finds all of them
		for _, e := range entries {
			p.XAdd(t.Context(), &redis.XAddArgs{Stream: b.Stream, Values: e})
		}
		return nil
	})
	require.NoError(t, err)
	var most, last float64
	var since time.Time
	testenv.Wait(t, 20*time.Second, func() error {
		n := in.gauge(t, "processor_pipeline_in_flight_bytes")
		if most = max(most, n); n != last {
			last, since = n, time.Now()
		}
		if rests := time.Since(since); n == 0 || rests < time.Second {
			return fmt.Errorf("%.0f bytes are in flight since %v", n, rests)
		}
		return nil
	})
	t.Logf("in flight at most %.0f of %d kB, with entries of %d kB", most/1024, maxBytes>>10, size>>10)
	require.LessOrEqual(t, most, 2.0*maxBytes, "the bound, and a reply of as much as had room")
	require.Greater(t, most, maxBytes/2.0, "it was busy")
	release()
	b.Settled(20*time.Second, 0)
	require.Equal(t, 1+len(entries), b.Count("select count(*) from positions"))
}

package pipeline_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/loadtest/fleet"
)

func at(device int, seconds int64) []string {
	m := fleet.Message{
		DeviceID: fleet.DeviceID(device), Codec: "8", Time: time.Unix(1_700_000_000+seconds, 0).UTC(),
		Latitude: 48.1 + float64(seconds)/1e5, Longitude: 11.5, Altitude: 520, Angle: 90, Speed: 50, Satellites: 11,
	}
	m.Attributes = append(m.Attributes, fleet.NumberAttribute("239", 1), fleet.BigIntAttribute("78", "9223372036854775807"))
	return fleet.EntryFields(&m)
}

// P1, P2.
func TestEveryEntryIsStoredOnceAndAcknowledged(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var entries [][]string
	for s := range int64(50) {
		for d := range 40 {
			entries = append(entries, at(d, s))
			if s%5 == 0 {
				entries = append(entries, at(d, s), at(d, s-3)) // twice, and once late
			}
		}
	}
	b.Publish(entries[:len(entries)/2]...)
	in := b.Start("one")
	b.AcquireAll(in)
	b.Publish(entries[len(entries)/2:]...)
	b.Settled(20*time.Second, 0)
	// Seconds 0 to 49, and 3 seconds before 0.
	require.Equal(t, 40*51, b.Count("select count(*) from positions"))
	require.Eventually(t, func() bool { return in.InFlight() == 0 }, 5*time.Second, 5*time.Millisecond)
	in.End()
	require.NoError(t, in.Err)
	require.Empty(t, in.Lost())
}

func BenchmarkBacklog(b *testing.B) {
	bb := newBench(b)
	const n, devices = 200_000, 500
	var entries [][]string
	for i := range n {
		entries = append(entries, at(i%devices, int64(i/devices)))
	}
	bb.Publish(entries...)
	b.ResetTimer()
	started := time.Now()
	in := bb.Start("one")
	bb.AcquireAll(in)
	bb.Settled(2*time.Minute, 0)
	b.ReportMetric(n/time.Since(started).Seconds(), "records/s")
	in.End()
	require.Equal(b, n, bb.Count("select count(*) from positions"))
	fmt.Println()
}

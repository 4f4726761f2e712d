package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

// blockedSink commits nothing of a shard, as where a lock that is not of its row is in the way.
type blockedSink struct {
	pipeline.Sink
	shard int
}

func (s blockedSink) Write(ctx context.Context, b *protocol.Batch) (protocol.CommitResult, error) {
	for _, l := range b.Leases {
		if l.Shard == s.shard && len(b.Late)+len(b.Fresh) > 0 {
			return protocol.CommitResult{}, &protocol.Failure{Kind: protocol.Unavailable, Code: "55P03", Blocked: true, Err: errors.New("locked")}
		}
	}
	return s.Sink.Write(ctx, b)
}

// sized returns an entry with so many bytes of attributes.
func sized(device, second, bytes int) []string {
	m := fleet.Message{DeviceID: fleet.DeviceID(device), Codec: "8", Time: time.Unix(1_700_000_000+int64(second), 0).UTC(), Latitude: 48, Longitude: 11, Satellites: 9}
	m.Attributes = append(m.Attributes, fleet.TextAttribute("900", strings.Repeat("x", bytes)))
	return fleet.EntryFields(&m)
}

// deviceOf returns a device of a shard.
func deviceOf(shard int) (device int) {
	for telemetry.ShardOf(fleet.DeviceID(device), shards) != shard {
		device++
	}
	return device
}

// others returns small entries of many devices, none of a shard of the worker that has one of so many.
func others(shard, workers int) (list [][]string) {
	for d := range 200 {
		if telemetry.ShardOf(fleet.DeviceID(d), shards)%workers != shard%workers {
			list = append(list, sized(d, 1, 100))
		}
	}
	return list
}

// P7: each worker has its part of MAX_IN_FLIGHT_BYTES, and of that one of its shards half.
func TestP7AWorkerThatWaitsLeavesBytesToTheOthers(t *testing.T) {
	const shard, workers, maxBytes, size = 3, 4, 1 << 20, 10 << 10
	b := newBench(t)
	in := b.Start("one", func(c *pipeline.Config, d *pipeline.Deps) {
		c.Workers, c.MaxInFlightRecords, c.MaxInFlightBytes, c.ReadBatchRecords = workers, 2000, maxBytes, 50
		d.Sink = blockedSink{d.Sink, shard}
	})
	b.AcquireAll(in)
	defer in.Cut()
	var large [][]string
	for i := range 300 {
		large = append(large, sized(deviceOf(shard), i, size))
	}
	b.Publish(large...)
	testenv.Wait(t, 10*time.Second, func() error {
		if n := b.pending(); n < int64(len(large)) {
			return fmt.Errorf("%d entries are dispatched", n)
		}
		return nil
	})
	small := others(shard, workers)
	b.Publish(small...)
	testenv.Wait(t, 20*time.Second, func() error { return b.rows(len(small)) })
	if n := in.gauge(t, "processor_pipeline_in_flight_bytes"); n < size || n > maxBytes/workers {
		t.Fatalf("%.0f bytes are in flight", n)
	}
}

// P7: after one large entry few fit by the mean size, which no reason is to wait for all that is in flight.
func TestP7ALargeEntryStopsNoDispatch(t *testing.T) {
	const shard, workers = 3, 4
	b := newBench(t)
	in := b.Start("one", func(c *pipeline.Config, d *pipeline.Deps) {
		c.Workers = workers
		d.Sink = blockedSink{d.Sink, shard}
	})
	b.AcquireAll(in)
	defer in.Cut()
	b.Publish(sized(deviceOf(shard+1), 0, 200<<10))
	testenv.Wait(t, 10*time.Second, func() error { return b.rows(1) })
	b.Publish(sized(deviceOf(shard), 0, 10))
	testenv.Wait(t, 10*time.Second, func() error {
		if n := in.gauge(t, "processor_pipeline_in_flight_records"); n != 1 {
			return fmt.Errorf("%.0f are in flight", n)
		}
		return nil
	})
	small := others(shard, workers)
	b.Publish(small...)
	testenv.Wait(t, 20*time.Second, func() error { return b.rows(1 + len(small)) })
}

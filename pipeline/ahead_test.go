package pipeline_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

// lookUps is a History whose look-ups ahead wait, with what they found, until they may end.
type lookUps struct {
	pipeline.History
	end    chan struct{}
	mu     sync.Mutex
	begun  []string // devices looked up ahead
	record []string // devices looked up since a record came
}

func (l *lookUps) RecentFixes(ctx context.Context, devices []string, rules telemetry.Eligibility, found func(i int, last geofence.Fix)) error {
	err := l.History.RecentFixes(ctx, devices, rules, found)
	l.mu.Lock()
	l.begun = append(l.begun, devices...)
	l.mu.Unlock()
	select {
	case <-l.end:
	case <-ctx.Done():
	}
	return err
}

func (l *lookUps) LastFixes(ctx context.Context, devices []string, rules telemetry.Eligibility, found func(i int, last geofence.Fix)) error {
	l.mu.Lock()
	l.record = append(l.record, devices...)
	l.mu.Unlock()
	return l.History.LastFixes(ctx, devices, rules, found)
}

func (l *lookUps) seen() (begun, record []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.begun), slices.Clone(l.record)
}

// After a kill there is no state of the last owner.
func TestAfterAKillDevicesAreKnownBeforeTheySend(t *testing.T) {
	t.Parallel()
	const devices = 1000
	b := newBench(t)
	one := b.Start("one")
	b.AcquireAll(one)
	send := func(second int64) {
		var entries [][]string
		for d := range devices {
			entries = append(entries, at(d, second))
		}
		b.Publish(entries...)
		b.Settled(20*time.Second, 0)
	}
	send(1)
	one.Cut()
	b.Exec("update processor.devices set last_seen_at = now() - interval '3 days'")

	two := b.Start("two")
	b.AcquireAll(two)
	two.LoadedAhead(t, devices)
	require.Equal(t, devices, b.Count("select count(*) from processor.devices where last_seen_at < now() - interval '1 day'"), "nothing is written for it")
	send(2)
	require.Zero(t, two.Counter(t, "processor_device_state_loads_total", "record"))
	require.Equal(t, 2*devices, b.Count("select count(*) from positions"))
	require.Equal(t, devices, b.Count("select count(*) from processor.devices where last_seen_at > now() - interval '1 day'"), "they are registered as without it")
	two.End()
	require.NoError(t, two.Err)
}

func TestOnlyAsManyDevicesAreLoadedAheadAsThereIsRoomFor(t *testing.T) {
	t.Parallel()
	const devices, room = 1000, 300
	b := newBench(t)
	one := b.Start("one")
	b.AcquireAll(one)
	var entries [][]string
	for d := range devices {
		entries = append(entries, at(d, 1))
	}
	b.Publish(entries...)
	b.Settled(20*time.Second, 0)
	one.Cut()

	two := b.Start("two", oneWorker, func(c *pipeline.Config, _ *pipeline.Deps) { c.StateMaxDevices = room })
	b.AcquireAll(two)
	two.LoadedAhead(t, room)
	b.Publish(at(0, 2), at(devices-1, 2))
	b.Settled(20*time.Second, 0)
	require.Equal(t, float64(room), two.Counter(t, "processor_device_state_loads_total", "ahead"))
}

// What a look-up found is older than what came meanwhile.
func TestP5ADeviceThatWaitsGoesFirstAndWhatItSentHolds(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Square()
	fix := func(device, minute int, longitude float64) []string {
		m := fleet.Message{DeviceID: fleet.DeviceID(device), Codec: "8", Time: time.Unix(1_700_000_000, 0).Add(time.Duration(minute) * time.Minute), Latitude: 48.5, Longitude: longitude, Satellites: 9}
		return fleet.EntryFields(&m)
	}
	const inside, outside, devices = 11.5, 13, 100
	one := b.Start("one")
	b.AcquireAll(one)
	for d := range devices {
		b.Publish(fix(d, 0, outside))
	}
	b.Settled(20*time.Second, 0)
	one.Cut()

	var history lookUps
	two := b.Start("two", oneWorker, func(_ *pipeline.Config, d *pipeline.Deps) {
		history = lookUps{History: d.History, end: make(chan struct{})}
		d.History = &history
	})
	b.AcquireAll(two)
	var first, second, third int // of the devices of the look-up that is under way
	testenv.Wait(t, 10*time.Second, func() error {
		begun, _ := history.seen()
		var these []int
		for d := range devices {
			if slices.Contains(begun, fleet.DeviceID(d)) {
				these = append(these, d)
			}
		}
		if len(these) < 3 {
			return fmt.Errorf("%d devices are looked up ahead", len(these))
		}
		first, second, third = these[0], these[1], these[2]
		return nil
	})
	// Both wait while the look-up ahead is under way.
	b.Publish(fix(first, 1, inside), fix(second, 1, outside))
	b.Settled(10*time.Second, 0)
	_, record := history.seen()
	require.ElementsMatch(t, []string{fleet.DeviceID(first), fleet.DeviceID(second)}, record)
	require.Zero(t, two.Counter(t, "processor_device_state_loads_total", "ahead"))

	close(history.end)
	two.LoadedAhead(t, devices-2)
	b.Publish(fix(first, 2, outside), fix(second, 2, inside), fix(third, 2, inside))
	b.Settled(10*time.Second, 0)
	_, record = history.seen()
	require.Len(t, record, 2)
	require.Equal(t, 3, b.Count("select count(*) from processor.timing_records where kind = 'enter'"))
	require.Equal(t, 1, b.Count("select count(*) from processor.timing_records where kind = 'exit' and device_id = $1", fleet.DeviceID(first)), "from where it was last, not from where it was found")
	require.Equal(t, 4, b.Count("select count(*) from processor.timing_records"))
}

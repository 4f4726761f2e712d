package pipeline

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
)

func recordsOf(n int, device func(i int) string) []telemetry.Record {
	list := make([]telemetry.Record, n)
	for i := range list {
		list[i].DeviceID = device(i)
	}
	return list
}

// Of each second's thousand records, of thousands of devices, the hot one sends a third.
func TestAHotDeviceIsNamedWhileItIsHot(t *testing.T) {
	t.Parallel()
	p := &Pipeline{workers: []*worker{{}, {}}}
	p.cfg.Shards = 64
	now, n := time.Unix(1_700_000_000, 0), 0
	seconds := func(count int, device func(i int) string) {
		for range count {
			now = now.Add(time.Second)
			for _, w := range p.workers {
				list := recordsOf(500, device)
				w.costs.add(now, list[:400], list[400:], 20*time.Millisecond)
				require.LessOrEqual(t, len(w.costs.of), costsKept)
			}
		}
	}
	quiet := func(int) string { n++; return fmt.Sprint("quiet", n%7919) }
	hot := func(i int) string {
		if i%3 == 0 {
			return "hot"
		}
		return quiet(i)
	}
	seconds(5, hot)
	require.Empty(t, p.hotDevices(now), "too early to tell")
	seconds(60, hot)
	list := p.hotDevices(now)
	require.Len(t, list, 2, "each worker of this test has it")
	for _, d := range list {
		require.Equal(t, []any{"hot", telemetry.ShardOf("hot", 64)}, []any{d.Device, d.Shard})
		require.InDelta(t, 1./6, d.Share, .03)
		require.InDelta(t, 167, d.Rate, 30)
	}
	seconds(120, quiet)
	require.Empty(t, p.hotDevices(now))
	seconds(60, hot)
	require.NotEmpty(t, p.hotDevices(now))
	now = now.Add(time.Hour)
	require.Empty(t, p.hotDevices(now), "of an idle instance")
}

// What is few in number may take long: late records of a device make slow batches.
func TestADeviceWhoseRecordsTakeLongIsHotToo(t *testing.T) {
	t.Parallel()
	p := &Pipeline{workers: []*worker{{}}}
	p.cfg.Shards = 64
	now := time.Unix(1_700_000_000, 0)
	for second := range 60 {
		now = now.Add(time.Second)
		late := recordsOf(30, func(int) string { return "slow" })
		took := 10 * time.Millisecond
		if second%2 == 0 {
			took = time.Second
		}
		p.workers[0].costs.add(now, recordsOf(970, func(i int) string { return fmt.Sprint("quiet", i) }), late, took)
	}
	list := p.hotDevices(now)
	require.Len(t, list, 1)
	require.Equal(t, "slow", list[0].Device)
	require.Greater(t, list[0].Share, .8)
	require.Less(t, list[0].Rate, 60.)
}

// Its records are too few to be among those that are kept for their number.
func TestADeviceOfVeryFewRecordsThatTakeLongIsHot(t *testing.T) {
	t.Parallel()
	p := &Pipeline{workers: []*worker{{}}}
	p.cfg.Shards = 64
	now, n := time.Unix(1_700_000_000, 0), 0
	for second := range 60 {
		now = now.Add(time.Second)
		quiet := recordsOf(996, func(int) string { n++; return fmt.Sprint("quiet", n%7919) })
		took := 10 * time.Millisecond
		if second%2 == 0 {
			took = time.Second
		}
		w := p.workers[0]
		w.costs.add(now, quiet, recordsOf(4, func(int) string { return "slow" }), took)
		require.LessOrEqual(t, len(w.costs.of), costsKept)
		require.LessOrEqual(t, len(w.costs.dear), costsKept)
	}
	list := p.hotDevices(now)
	require.Len(t, list, 1)
	require.Equal(t, "slow", list[0].Device)
	require.Greater(t, list[0].Share, .5)
	require.Less(t, list[0].Rate, 20.)
}

package pipeline_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

// throttle has every transaction take so long for each of its positions, and
// notes how old each record is by then.
func (b *bench) throttle(perRow time.Duration) (lift func()) {
	exec := func(sql string) {
		_, err := b.Pool.Exec(b.TB.Context(), sql)
		require.NoError(b.TB, err)
	}
	exec(`create unlogged table if not exists public.ages (device_id text not null, age double precision not null)`)
	exec(fmt.Sprintf(`create or replace function public.throttle() returns trigger language plpgsql as $$ begin
		perform pg_sleep((select count(*) from fresh) * %f);
		insert into public.ages select device_id, extract(epoch from clock_timestamp() - ingested_at) from fresh;
		return null; end $$`, perRow.Seconds()))
	exec(`create trigger throttle after insert on positions referencing new table as fresh for each statement execute function public.throttle()`)
	return func() { exec(`drop trigger throttle on positions`) }
}

// offer publishes so many entries a second, in lots ten times a second.
func (b *bench) offer(perSecond int, during time.Duration, next func(i int) []string, each func(sent int)) int {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	sent, began := 0, time.Now()
	for elapsed := time.Duration(0); elapsed < during; elapsed = time.Since(began) {
		var lot [][]string
		for due := int(elapsed.Seconds() * float64(perSecond)); sent < due; sent++ {
			lot = append(lot, next(sent))
		}
		b.Publish(lot...)
		each(sent)
		<-ticker.C
	}
	return sent
}

func (in *instance) gauge(tb testing.TB, name string) float64 {
	tb.Helper()
	families, err := in.Registry.Gather()
	require.NoError(tb, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	require.Fail(tb, "no gauge", name)
	return 0
}

// live is what of the heap is in use after a collection, in MB.
func live() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// resident is the memory of this process, in MB.
func resident(tb testing.TB) float64 {
	tb.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if os.IsNotExist(err) {
		return 0 // not Linux
	}
	require.NoError(tb, err)
	_, after, _ := strings.Cut(string(text), "VmRSS:")
	kb, err := strconv.ParseFloat(strings.Fields(after)[0], 64)
	require.NoError(tb, err)
	return kb / 1024
}

// offering is how long it goes on. For a whole minute it is alone: what the
// machine lacks would be measured otherwise.
func offering(t *testing.T, short time.Duration) time.Duration {
	t.Helper()
	if os.Getenv("TEST_FULL") != "" {
		return time.Minute
	}
	t.Parallel()
	return short
}

// P1, P7, P9, P10: a sink that takes a tenth of what is offered.
func TestASlowSinkCostsTimeAndNeitherMemoryNorRecords(t *testing.T) {
	testenv.Slow(t)
	during := offering(t, 3*time.Second)
	const rate, workers, maxRecords, maxBytes, reply = 200, 2, 1000, 400 << 10, 300
	b := newBench(t)
	in := b.Start("one", func(c *pipeline.Config, _ *pipeline.Deps) {
		c.Workers, c.MaxInFlightRecords, c.MaxInFlightBytes = workers, maxRecords, maxBytes
		c.ReadBatchRecords, c.BatchMaxRecords, c.DispatchAhead = reply, 100, 4000
	})
	b.AcquireAll(in)
	group, err := stream.NewGroup(b.Client, stream.Config{Stream: b.Stream, Group: b.Group, Shards: shards})
	require.NoError(t, err)
	lift := b.throttle(workers * time.Second / rate)
	var records, bytes, heap []float64
	var most float64
	var polled time.Time
	var outstanding int64
	sent := b.offer(10*rate, during, func(i int) []string { return at(i%500, int64(i/500)) }, func(sent int) {
		records = append(records, in.gauge(t, "processor_pipeline_in_flight_records"))
		bytes = append(bytes, in.gauge(t, "processor_pipeline_in_flight_bytes"))
		if time.Since(polled) > 500*time.Millisecond {
			heap, polled = append(heap, live()), time.Now()
		}
		most = max(most, resident(t))
		info, err := group.Info(t.Context())
		require.NoError(t, err)
		if info.GroupExists && sent > 0 {
			require.True(t, info.Lag.Known)
			outstanding = info.Lag.N + info.Pending
		}
	})
	heap = append(heap, live())
	lift()
	lifted := time.Now()
	quarter := max(1, len(heap)/4)
	t.Logf("offered %d in %s to a sink of %d/s: %d backlog at the end; in flight at most %.0f of %d records, %.0f of %d kB; heap at most %.1f MB in the first quarter, %.1f MB in the others; %.0f MB resident, sender and race detector included",
		sent, during, rate, outstanding, slices.Max(records), maxRecords, slices.Max(bytes)/1024, maxBytes>>10,
		slices.Max(heap[:quarter]), slices.Max(heap[quarter:]), most)
	// What is dispatched while a reply is under way may come on top of it: one reply.
	require.LessOrEqual(t, slices.Max(records), float64(maxRecords+reply))
	require.Greater(t, slices.Max(records), float64(maxRecords)/4, "it was busy")
	require.LessOrEqual(t, slices.Max(bytes), float64(maxBytes+reply*1024))
	require.Greater(t, float64(outstanding), 0.7*float64(sent), "what is not done is shown")
	require.Less(t, slices.Max(heap[quarter:]), slices.Max(heap[:quarter])+16, "MB")

	b.Settled(2*time.Minute, 0)
	caughtUp := time.Since(lifted)
	_, err = b.Pool.Exec(t.Context(), "truncate public.ages")
	require.NoError(t, err)
	defer b.throttle(0)() // only the ages
	extra := b.offer(rate, time.Second, func(i int) []string { return at(i%500, 1000+int64(i/500)) }, func(int) {})
	b.Settled(10*time.Second, 0)
	p99, oldest := b.ages("")
	t.Logf("%d entries caught up in %s; then, at %d/s, p99 of the age at commit is %.3f s, at most %.3f s", outstanding, caughtUp.Round(time.Millisecond), rate, p99, oldest)
	require.Less(t, p99, 1.0)
	require.Equal(t, sent+extra, b.Count("select count(*) from positions"), "nothing was lost")
	require.Zero(t, b.Client.XLen(t.Context(), b.Stream+":dlq").Val(), "nothing was given up")
	require.Zero(t, b.Count("select count(*) from processor.deferred"))
	in.End()
	require.NoError(t, in.Err)
	require.Empty(t, in.Lost())
}

// ages is the 99th percentile and the maximum of the ages of records at their
// commit, in seconds: of the devices that a condition names.
func (b *bench) ages(where string, args ...any) (p99, most float64) {
	require.NoError(b.TB, b.Pool.QueryRow(context.Background(),
		"select coalesce(percentile_disc(0.99) within group (order by age), 0), coalesce(max(age), 0) from public.ages "+where, args...).Scan(&p99, &most))
	return p99, most
}

// A device that sends half of everything, and more than one worker can do,
// delays only its own worker.
func TestADeviceThatSendsHalfOfAllStarvesNoOtherWorker(t *testing.T) {
	testenv.Slow(t)
	during := offering(t, 6*time.Second)
	const workers, perWorker, rate, others = 4, 100, 240, 80
	b := newBench(t)
	in := b.Start("one", func(c *pipeline.Config, _ *pipeline.Deps) {
		c.Workers, c.MaxInFlightRecords, c.ReadBatchRecords, c.BatchMaxRecords = workers, 400, 200, 50
	})
	b.AcquireAll(in)
	workerOf := func(device string) int { return telemetry.ShardOf(device, shards) % workers } // as acquireAll grants them
	hot := workerOf(fleet.DeviceID(0))
	lift := b.throttle(time.Second / perWorker)
	sent := b.offer(rate, during, func(i int) []string {
		if i%2 == 0 {
			return at(0, int64(i))
		}
		return at(1+i/2%others, int64(i))
	}, func(int) {})
	lift()
	var sameWorker, elsewhere []string
	for d := 1; d <= others; d++ {
		if id := fleet.DeviceID(d); workerOf(id) == hot {
			sameWorker = append(sameWorker, id)
		} else {
			elsewhere = append(elsewhere, id)
		}
	}
	require.NotEmpty(t, sameWorker)
	_, own := b.ages("where device_id = $1", fleet.DeviceID(0))
	_, near := b.ages("where device_id = any ($1)", sameWorker)
	p99, most := b.ages("where device_id = any ($1)", elsewhere)
	t.Logf("age at commit: the device that sends half at most %.2f s, %d of the same worker at most %.2f s, %d of other workers p99 %.2f s, at most %.2f s",
		own, len(sameWorker), near, len(elsewhere), p99, most)
	require.Greater(t, own, 2.0, "its worker was behind")
	require.Less(t, p99, own/2)
	b.Settled(2*time.Minute, 0)
	require.Equal(t, sent, b.Count("select count(*) from positions"))
	in.End()
	require.NoError(t, in.Err)
}

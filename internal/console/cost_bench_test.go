package console_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/history"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	load "github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// BenchmarkOpenConsole measures what open pages cost the instances at 5,000 records/s,
// with a full hour of history. An iteration is four windows, with nothing open, with
// the pages open at each of two instances, again so, and with nothing, which takes out
// what drifts meanwhile. It reports the additional CPU of all windows together and its
// median, in percent, how far rounds scatter about that (half the distance of their
// quartiles), and the memory.
//
//	go test -run '^$' -bench OpenConsole -benchtime 8x ./internal/console
func BenchmarkOpenConsole(b *testing.B) {
	for _, open := range []struct {
		name  string
		pages []string
	}{{"overview", []string{""}}, {"map", []string{"map/"}}} {
		b.Run(open.name, func(b *testing.B) { costOf(b, open.pages) })
	}
}

func costOf(b *testing.B, pages []string) {
	b.Helper()
	const rate, window, settle = 5000, 8 * time.Second, 3 * time.Second
	dep := servicetest.New(b)
	fillHistory(b, dep)
	instances := []*servicetest.Process{dep.Run("INSTANCE_ID=one"), dep.Run("INSTANCE_ID=two")}
	for _, p := range instances {
		p.AwaitReady()
	}
	servers := &testbed.Servers{RedisURL: dep.RedisURL, PostgresURL: dep.PostgresURL, Stream: dep.Stream, Group: dep.Group}
	require.NoError(b, servers.Connect(b.Context()))
	sending, err := testbed.NewLoad(servers, b.TempDir(), slog.New(slog.DiscardHandler))
	require.NoError(b, err)
	defer func() {
		require.NoError(b, sending.Close())
		require.NoError(b, servers.Close(context.WithoutCancel(b.Context())))
	}()
	profile := load.Steady(1, 2000, rate, time.Duration(b.N+1)*4*(window+settle)+time.Minute)
	profile.Start = time.Now().Add(-time.Hour)
	require.NoError(b, sending.Begin(b.Context(), profile, load.AtSpeed(1)))
	require.NoError(b, testbed.Pause(b.Context(), 15*time.Second))

	stored := func() (sum float64) {
		for _, p := range instances {
			n, err := p.Metric(`processor_pipeline_records_total{outcome="stored"}`)
			require.NoError(b, err)
			sum += n
		}
		return sum
	}
	// one adds CPU and records of a window, and returns the memory of the larger instance.
	type work struct{ us, records float64 }
	one := func(w *work) (megabytes float64) {
		require.NoError(b, testbed.Pause(b.Context(), settle))
		from, at := cpuOf(instances), stored()
		require.NoError(b, testbed.Pause(b.Context(), window))
		w.us += float64((cpuOf(instances) - from).Microseconds())
		w.records += stored() - at
		for _, p := range instances {
			n, err := p.Metric("process_resident_memory_bytes")
			require.NoError(b, err)
			megabytes = max(megabytes, n/1e6)
		}
		return megabytes
	}
	each := func(w work) float64 { return w.us / w.records }
	var ratios, more []float64
	var allClosed, allOpen work
	for n := range b.N {
		var closed, open work
		before := one(&closed)
		end := watch(b, instances, pages)
		during := max(one(&open), one(&open))
		updates := end()
		require.Positive(b, updates)
		one(&closed)
		ratios, more = append(ratios, each(open)/each(closed)-1), append(more, during-before)
		allClosed.us, allClosed.records = allClosed.us+closed.us, allClosed.records+closed.records
		allOpen.us, allOpen.records = allOpen.us+open.us, allOpen.records+open.records
		b.Logf("round %d: closed %.2f us a record, open %.2f: %+.1f %%; %.0f records/s; memory %.1f and %.1f MB; %d updates", n+1,
			each(closed), each(open), 100*ratios[n], open.records/(2*window.Seconds()), before, during, updates)
	}
	slices.Sort(ratios)
	slices.Sort(more)
	b.ReportMetric(100*(each(allOpen)/each(allClosed)-1), "%CPU")
	b.ReportMetric(100*ratios[b.N/2], "%CPU-median")
	b.ReportMetric(100*(ratios[b.N*3/4]-ratios[b.N/4])/2, "%CPU-scatter")
	b.ReportMetric(more[b.N/2], "MB")
	b.ReportMetric(0, "ns/op")
	require.NoError(b, sending.End(context.WithoutCancel(b.Context()), true))
}

// cpuOf returns the CPU time of the processes. It is exact but for a tick of 10 ms, of
// seconds in a window.
func cpuOf(instances []*servicetest.Process) (sum time.Duration) {
	for _, p := range instances {
		sum += testbed.CPUOf(p.PID())
	}
	return sum
}

// fillHistory makes a fleet that has been at work for an hour.
func fillHistory(b *testing.B, dep *servicetest.Deployment) {
	b.Helper()
	var e history.Encoder
	none, lag := int64(0), int64(120)
	of := make([]int, 32)
	for i := range of {
		of[i] = i % 2
	}
	pipe := dep.Client().Pipeline()
	from := time.Now().Add(-history.Span)
	for i := range int(history.Span / history.Every) {
		text, err := e.Encode(history.Sample{
			At: from.Add(time.Duration(i) * history.Every).UnixMilli(), Added: int64(i) * 25_000, Lag: &lag, Pending: int64(i % 700), Deferred: &none,
			Versions: map[string]int{"1.0.0": 2},
		}, history.Owners{Members: []string{"one.A", "two.B"}, Of: of})
		require.NoError(b, err)
		pipe.RPush(b.Context(), fmt.Sprintf("{%s}:%s:history", dep.Stream, dep.Group), text)
	}
	_, err := pipe.Exec(b.Context())
	require.NoError(b, err)
}

// watch opens pages at each instance. The returned function closes them and says how
// many updates came.
func watch(b *testing.B, instances []*servicetest.Process, pages []string) func() int {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	var streams sync.WaitGroup
	var mu sync.Mutex
	updates := 0
	for _, p := range instances {
		for _, page := range pages {
			streams.Go(func() {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Addr()+"/console/events/"+page, nil)
				if err != nil {
					return
				}
				res, err := http.DefaultClient.Do(req)
				if err != nil {
					return
				}
				defer res.Body.Close()
				lines := bufio.NewScanner(res.Body)
				lines.Buffer(nil, 4<<20)
				for lines.Scan() {
					if strings.HasPrefix(lines.Text(), "data: ") {
						mu.Lock()
						updates++
						mu.Unlock()
					}
				}
			})
		}
	}
	return func() int { cancel(); streams.Wait(); return updates }
}

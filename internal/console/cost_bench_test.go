package console_test

import (
	"bufio"
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv/servicetest"
	load "github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// BenchmarkOpenConsole measures what open pages cost an instance at 5,000 records/s: an iteration is a
// window with nothing open and one with an overview and a live map open at each of two
// instances. It reports the medians of the additional CPU, in percent, and of the memory.
//
//	go test -run '^$' -bench OpenConsole -benchtime 6x ./internal/console
func BenchmarkOpenConsole(b *testing.B) {
	const rate, window = 5000, 15 * time.Second
	dep := servicetest.New(b)
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
	profile := load.Steady(1, 2000, rate, time.Duration(b.N+2)*2*(window+3*time.Second))
	profile.Start = time.Now().Add(-time.Hour)
	require.NoError(b, sending.Begin(b.Context(), profile, load.AtSpeed(1)))
	require.NoError(b, testbed.Pause(b.Context(), window))

	cpu := func() (sum time.Duration) {
		for _, p := range instances {
			sum += testbed.CPUOf(p.PID())
		}
		return sum
	}
	stored := func() (sum float64) {
		for _, p := range instances {
			n, err := p.Metric(`processor_pipeline_records_total{outcome="stored"}`)
			require.NoError(b, err)
			sum += n
		}
		return sum
	}
	// one returns microseconds of CPU a record, and the memory of the larger instance.
	one := func() (each, megabytes float64) {
		require.NoError(b, testbed.Pause(b.Context(), 3*time.Second))
		from, at := cpu(), stored()
		require.NoError(b, testbed.Pause(b.Context(), window))
		each = float64((cpu() - from).Microseconds()) / (stored() - at)
		for _, p := range instances {
			n, err := p.Metric("process_resident_memory_bytes")
			require.NoError(b, err)
			megabytes = max(megabytes, n/1e6)
		}
		return each, megabytes
	}
	var ratios, more []float64
	for n := range b.N {
		closed, closedMB := one()
		end := watch(b, instances)
		open, openMB := one()
		updates := end()
		require.Positive(b, updates)
		ratios, more = append(ratios, open/closed-1), append(more, openMB-closedMB)
		b.Logf("round %d: closed %.2f us a record, open %.2f: %+.1f %%; memory %.1f and %.1f MB; %d updates", n+1, closed, open, 100*(open/closed-1), closedMB, openMB, updates)
	}
	slices.Sort(ratios)
	slices.Sort(more)
	b.ReportMetric(100*ratios[b.N/2], "%CPU")
	b.ReportMetric(more[b.N/2], "MB")
	b.ReportMetric(0, "ns/op")
	require.NoError(b, sending.End(context.WithoutCancel(b.Context()), true))
}

// watch opens an overview and a live map at each instance. The returned function
// closes them and says how many updates came.
func watch(b *testing.B, instances []*servicetest.Process) func() int {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	var streams sync.WaitGroup
	var mu sync.Mutex
	updates := 0
	for _, p := range instances {
		for _, page := range []string{"", "map/"} {
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

package e2e_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// Each of six streams has a leader and a dispatcher: two of each on every one of three instances,
// after a start of all at once and after a roll through them.
func TestLeadersAndDispatchersOfStreamsAreSpreadOverInstances(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	stream := dep.Stream
	dep.Stream += ":{0..5}"
	var running [3]*servicetest.Process
	start := func(n int) {
		running[n] = dep.Run(servicetest.FourShards, fmt.Sprintf("INSTANCE_ID=of-%d", n), "LEADER_TTL=2s", "DISPATCH_LEASE_TTL=1s")
	}
	for n := range running {
		start(n)
	}
	spread := func(gauges ...string) error {
		for _, gauge := range gauges {
			var held []float64
			for _, p := range running {
				all := 0.0
				for n := range 6 {
					one, err := p.Metric(fmt.Sprintf("%s{stream=%q}", gauge, fmt.Sprintf("%s:%d", stream, n)))
					if err != nil {
						return err
					}
					all += one
				}
				held = append(held, all)
			}
			if !slices.Equal(held, []float64{2, 2, 2}) {
				return fmt.Errorf("%s of the three: %v", gauge, held)
			}
		}
		return nil
	}
	await := func() {
		began := time.Now()
		testenv.Wait(t, 30*time.Second, func() error {
			return spread("processor_pipeline_dispatcher", "processor_coordination_leader")
		})
		t.Logf("spread after %v", time.Since(began))
	}
	for _, p := range running {
		p.AwaitReady()
	}
	await()
	for n := range running {
		require.Zero(t, running[n].Terminate())
		start(n)
		running[n].AwaitReady()
	}
	await()
	for _, p := range running {
		require.Zero(t, p.Terminate())
	}
}

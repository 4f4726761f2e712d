package scenarios

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/testbed"
)

func backlog() Scenario {
	return Scenario{
		Name:   "backlog",
		About:  "A backlog is drained by one instance, then one as large by all, alternately, as fast as they can; the best of each counts.",
		Bounds: "two instances on one machine at least 0.75 of the rate of one",
		Plan:   Plan{Instances: 2, Devices: 1000, Rate: 1000, Entries: 300_000, Rounds: 2, Duration: 24 * time.Hour, Profile: ProfileSteady},
		idle:   true,
		bare:   true,
		run: func(ctx context.Context, r *run) error {
			var one, all float64
			for range r.plan.Rounds {
				for _, n := range []int{1, r.plan.Instances} {
					rate, err := r.drain(ctx, n)
					if err != nil {
						return err
					}
					if n == 1 {
						one = max(one, rate)
					} else {
						all = max(all, rate)
					}
				}
			}
			r.rates = []float64{cli.Round(one, 0), cli.Round(all, 0)}
			r.fact("side by side", "%d instances drain %.2f of what one does", r.plan.Instances, all/one)
			r.check(all >= .75*one/r.cfg.Slack, "%d instances: %.2f of the rate of one, want at least 0.75", r.plan.Instances, all/one)
			return nil
		},
	}
}

// drain sends entries while no instance runs and has n instances do them.
func (r *run) drain(ctx context.Context, n int) (float64, error) {
	if err := r.startLoadFor(ctx, r.plan.Duration, fleet.AtSpeed(0)); err != nil {
		return 0, err
	}
	before, _ := r.load.Sent()
	if err := r.load.End(ctx, false); err != nil {
		return 0, err
	}
	sent, _ := r.load.Sent()
	redis := r.redisCPU()
	var starts errgroup.Group
	for i := range n {
		in, err := r.line.Start(i)
		if err != nil {
			return 0, err
		}
		starts.Go(func() error { return r.line.Ready(ctx, in) })
	}
	if err := starts.Wait(); err != nil {
		return 0, err
	}
	rate, err := r.empty(ctx, sent-before)
	if err != nil {
		return 0, err
	}
	r.fact("backlog", "%s entries, instances %d: %s/s, %.1f us of Redis for each", cli.Thousands(sent-before), n, cli.Thousands(int64(rate)),
		float64((r.redisCPU()-redis).Microseconds())/float64(sent-before))
	for _, in := range r.line.Live() {
		r.fact("memory", "instance %s: %.0f MB resident", in.Name, in.LastScrape().RSS/1e6)
	}
	return rate, r.line.Stop(ctx)
}

// empty waits until nothing of a backlog is unfinished, and returns at which rate it
// was drained: between the first fifth and the last tenth.
func (r *run) empty(ctx context.Context, backlog int64) (float64, error) {
	moved, least := time.Now(), backlog
	var begun, almost time.Time
	var first, last int64
	err := testbed.Until(ctx, 10*time.Millisecond, func() error {
		outstanding, _ := r.environment.Backlog(ctx)
		if outstanding == nil {
			return fmt.Errorf("the backlog is unknown")
		}
		now := time.Now()
		if *outstanding < least {
			least, moved = *outstanding, now
		}
		if begun.IsZero() && *outstanding <= backlog*4/5 {
			begun, first = now, *outstanding
		}
		if almost.IsZero() && *outstanding <= backlog/10 {
			almost, last = now, *outstanding
		}
		if *outstanding == 0 {
			return nil
		}
		if now.Sub(moved) > testbed.NoProgressLimit {
			return testbed.GiveUp(fmt.Errorf("%d entries in the backlog and nothing moves", *outstanding))
		}
		return fmt.Errorf("%d entries in the backlog", *outstanding)
	})
	if err == nil && !begun.Before(almost) {
		err = fmt.Errorf("a backlog of %d entries is too short to measure a rate", backlog)
	}
	return float64(first-last) / almost.Sub(begun).Seconds(), err
}

// redisCPU returns the CPU time of our own Redis, 0 on a named one.
func (r *run) redisCPU() time.Duration {
	if r.environment.Env == nil {
		return 0
	}
	return testbed.CPUOf(r.environment.Env.Redis.PID())
}

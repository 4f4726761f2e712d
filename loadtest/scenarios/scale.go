package scenarios

import (
	"context"
	"time"

	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/testbed"
)

func scale() Scenario {
	return Scenario{
		Name:  "scale",
		About: "One instance, then two, then three, then one again, under load.",
		Bounds: "a join moves at most 64/n shards, rounded up, and is done within 10 s; " +
			"who leaves exits with 0 and its shards move within 1 s of its end",
		Plan: Plan{Instances: 1, Devices: 500, Rate: 3000, Duration: 4 * time.Second, Profile: profileIncidents},
		run: func(ctx context.Context, r *run) error {
			if err := r.startLoadFor(ctx, endless, fleet.AtSpeed(1)); err != nil {
				return err
			}
			for n := r.plan.Instances; n < 3; n++ {
				if err := testbed.Pause(ctx, r.plan.Duration); err != nil {
					return err
				}
				if err := r.join(ctx, n); err != nil {
					return err
				}
			}
			for n := 2; n > 0; n-- {
				if err := testbed.Pause(ctx, r.plan.Duration); err != nil {
					return err
				}
				if err := r.terminate(ctx, r.line.Current()[n]); err != nil {
					return err
				}
				if err := r.awaitSettled(ctx); err != nil {
					return err
				}
			}
			return testbed.Pause(ctx, r.plan.Duration)
		},
	}
}

// join adds an instance to n others and judges how many shards that moved.
func (r *run) join(ctx context.Context, n int) error {
	before := time.Now()
	if err := r.fill(ctx, n); err != nil {
		return err
	}
	took := time.Since(before)
	r.fact("join", "of instance %d: %.2f s from the start of its process to an even spread", n+1, took.Seconds())
	r.check(took <= r.slack(10*time.Second), "join of instance %d: %.2f s, want at most 10 s", n+1, took.Seconds())
	after := time.Now()
	r.afterVerdict(func(res *Result) { r.joined(res, n, before, after) })
	return nil
}

// joined judges how many shards moved to an instance that came to n others.
func (r *run) joined(res *Result, n int, before, after time.Time) {
	if res.NotJudged != "" {
		return
	}
	moved, most := len(r.acquired(res.OwnershipSpans, before, after)), (testbed.Shards+n)/(n+1)
	r.fact("join", "of instance %d: %d shards moved", n+1, moved)
	r.check(moved <= most, "join of instance %d: %d shards moved, want at most %d", n+1, moved, most)
}

package scenarios

import (
	"context"
	"time"

	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// endless is the duration of a load that ends when the scenario does.
const endless = 24 * time.Hour

func failover() Scenario {
	return Scenario{
		Name:   "failover",
		About:  "SIGKILL to a non-leader, to the leader and to the dispatcher, each replaced.",
		Bounds: "others own the shards within the member TTL plus 5 s (10 s)",
		Plan:   Plan{Instances: 3, Devices: 500, Rate: 2000, Duration: 2 * time.Second, Profile: profileIncidents},
		Breaks: true,
		run: func(ctx context.Context, r *run) error {
			return r.disturb(ctx, []role{bystander, leader, dispatcher}, func(in *testbed.Instance, who role) error {
				if err := r.kill(ctx, in, string(who)); err != nil {
					return err
				}
				return r.fill(ctx, in.Slot)
			})
		},
	}
}

// disturb drives the load while something happens to one role after the other,
// with the plan's duration between.
func (r *run) disturb(ctx context.Context, roles []role, f func(in *testbed.Instance, who role) error) error {
	if err := r.startLoadFor(ctx, endless, fleet.AtSpeed(1)); err != nil {
		return err
	}
	for range max(1, r.plan.Rounds) {
		for _, who := range roles {
			if err := testbed.Pause(ctx, r.plan.Duration); err != nil {
				return err
			}
			in, err := r.pick(ctx, who)
			if err != nil {
				return err
			}
			if err := f(in, who); err != nil {
				return err
			}
		}
	}
	return testbed.Pause(ctx, r.plan.Duration)
}

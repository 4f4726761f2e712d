package scenarios

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// wake is stall at the worst moment, at which only the check of epochs is left to
// stop a stale owner: its batch is computed, its transaction is not begun, so
// that no session is to be ended with it, and its successors have stored none of
// it yet, so that no key is in its way. Chance does not get there.
func wake() Scenario {
	return Scenario{
		Name: "wake",
		About: "SIGSTOP to a non-leader that has computed a batch and not begun to commit it; SIGCONT when others have taken over " +
			"and are held at the same point. Needs a processor built with -tags mutant.",
		Bounds: "others own the shards within the member TTL plus 5 s (10 s); who wakes up does not commit",
		Plan:   Plan{Instances: 2, Devices: 500, Rate: 2000, Duration: 2 * time.Second, Profile: profileIncidents},
		Breaks: true,
		held:   true,
		run: func(ctx context.Context, r *run) error {
			if err := r.startLoadFor(ctx, endless, fleet.AtSpeed(1)); err != nil {
				return err
			}
			for range max(1, r.plan.Rounds) {
				if err := testbed.Pause(ctx, r.plan.Duration); err != nil {
					return err
				}
				in, err := r.pick(ctx, bystander)
				if err != nil {
					return err
				}
				if err := r.overtake(ctx, in); err != nil {
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

// overtake freezes an instance that is about to commit, lets others take its
// shards, and lets it continue before them.
func (r *run) overtake(ctx context.Context, in *testbed.Instance) error {
	all := r.line.Live()
	defer func() {
		for _, each := range all {
			each.Proceed()
		}
	}()
	for _, each := range all {
		if err := each.Hold(); err != nil {
			return err
		}
	}
	for _, each := range all {
		if err := testbed.Within(ctx, testbed.ReadyWithin, time.Millisecond, func() error { return each.Holding(true) }); err != nil {
			return fmt.Errorf("%w; was the processor built with -tags mutant?", err)
		}
	}
	end := r.mark(in.Slot, "SIGSTOP %s (about to commit)", in.Name)
	since := time.Now()
	if err := in.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	err := r.takeover(ctx, span{what: "SIGSTOP of one about to commit", member: in.Member(), from: since}, memberTTL+r.slack(takeoverSlack))
	if err != nil {
		return err
	}
	end()
	in.Proceed()
	r.mark(in.Slot, "SIGCONT %s", in.Name)
	if err := in.Signal(syscall.SIGCONT); err != nil {
		return err
	}
	return testbed.Within(ctx, testbed.ReadyWithin, time.Millisecond, func() error { return in.Holding(false) })
}

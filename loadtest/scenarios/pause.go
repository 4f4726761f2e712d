package scenarios

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/trmtracking/processor/loadtest/testbed"
)

func stall() Scenario {
	return Scenario{
		Name: "stall",
		About: "SIGSTOP to the leader, to the dispatcher, to a non-leader, and to one in the middle of a commit; " +
			"SIGCONT when others have taken over.",
		Bounds:  "others own the shards within the member TTL plus 5 s (10 s); who wakes up neither commits nor holds anybody up",
		Plan:    Plan{Instances: 2, Devices: 500, Rate: 2000, Duration: 2 * time.Second, Profile: profileIncidents},
		Breaks:  true,
		proxied: true,
		run: func(ctx context.Context, r *run) error {
			err := r.disturb(ctx, []role{leader, dispatcher, bystander}, func(in *testbed.Instance, who role) error {
				return r.freeze(ctx, in, string(who), func() error { return in.Signal(syscall.SIGSTOP) }, nil)
			})
			if err != nil {
				return err
			}
			in, err := r.pick(ctx, bystander)
			if err != nil {
				return err
			}
			if err := r.freeze(ctx, in, "one in the middle of a commit", func() error { return r.freezeInCommit(ctx, in) }, in.Postgres.Resume); err != nil {
				return err
			}
			return testbed.Pause(ctx, r.plan.Duration)
		},
	}
}

// freeze stops an instance past its TTL, waits until others own its shards, and
// wakes it up.
func (r *run) freeze(ctx context.Context, in *testbed.Instance, who string, stop, thaw func() error) error {
	end := r.mark(in.Slot, "SIGSTOP %s (%s)", in.Name, who)
	if err := stop(); err != nil {
		return err
	}
	since := time.Now()
	if err := r.takeover(ctx, span{what: "SIGSTOP of " + who, member: in.Member(), from: since}, memberTTL+r.slack(takeoverSlack)); err != nil {
		return err
	}
	if err := testbed.Pause(ctx, 2*time.Second); err != nil {
		return err
	}
	end()
	r.mark(in.Slot, "SIGCONT %s", in.Name)
	if err := in.Signal(syscall.SIGCONT); err != nil {
		return err
	}
	if thaw != nil {
		if err := thaw(); err != nil {
			return err
		}
	}
	return r.awaitSettled(ctx)
}

// freezeInCommit stops an instance while Postgres waits inside one of its
// transactions for the rest of it: the proxy holds the bytes.
func (r *run) freezeInCommit(ctx context.Context, in *testbed.Instance) error {
	err := testbed.Within(ctx, 20*time.Second, 5*time.Millisecond, func() error {
		if err := in.Postgres.Stall(); err != nil {
			return testbed.GiveUp(err)
		}
		if err := testbed.Pause(ctx, 20*time.Millisecond); err != nil {
			return testbed.GiveUp(err)
		}
		n, err := r.environment.Observer.InTransaction(ctx, in.Member())
		if err == nil && n == 0 {
			err = errors.Join(errors.New("no transaction was caught"), in.Postgres.Resume())
		}
		return err
	})
	if err != nil {
		return err
	}
	return in.Signal(syscall.SIGSTOP)
}

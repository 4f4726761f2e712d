package loadtest

import (
	"context"
	"errors"
	"syscall"
	"time"
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
			err := r.disturb(ctx, []role{leader, dispatcher, bystander}, func(in *instance, who role) error {
				return r.freeze(ctx, in, string(who), func() error { return in.signal(syscall.SIGSTOP) }, nil)
			})
			if err != nil {
				return err
			}
			in, err := r.pick(ctx, bystander)
			if err != nil {
				return err
			}
			if err := r.freeze(ctx, in, "one in the middle of a commit", func() error { return r.freezeInCommit(ctx, in) }, in.postgres.Resume); err != nil {
				return err
			}
			return pause(ctx, r.plan.Duration)
		},
	}
}

// freeze stops an instance past its TTL, waits until others own its shards, and
// wakes it up.
func (r *run) freeze(ctx context.Context, in *instance, who string, stop, thaw func() error) error {
	end := r.mark(in.slot, "SIGSTOP %s (%s)", in.name, who)
	if err := stop(); err != nil {
		return err
	}
	since := time.Now()
	if err := r.takeover(ctx, span{what: "SIGSTOP of " + who, member: in.member(), from: since}, memberTTL+r.slack(takeoverSlack)); err != nil {
		return err
	}
	if err := pause(ctx, 2*time.Second); err != nil {
		return err
	}
	end()
	r.mark(in.slot, "SIGCONT %s", in.name)
	if err := in.signal(syscall.SIGCONT); err != nil {
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
func (r *run) freezeInCommit(ctx context.Context, in *instance) error {
	err := within(ctx, 20*time.Second, 5*time.Millisecond, func() error {
		if err := in.postgres.Stall(); err != nil {
			return giveUp(err)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return giveUp(err)
		}
		n, err := r.environment.observer.InTransaction(ctx, in.member())
		if err == nil && n == 0 {
			err = errors.Join(errors.New("no transaction was caught"), in.postgres.Resume())
		}
		return err
	})
	if err != nil {
		return err
	}
	return in.signal(syscall.SIGSTOP)
}

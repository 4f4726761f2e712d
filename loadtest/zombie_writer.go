package loadtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/trmtracking/processor/loadtest/fleet"
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
				if err := pause(ctx, r.plan.Duration); err != nil {
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
			return pause(ctx, r.plan.Duration)
		},
	}
}

// overtake freezes an instance that is about to commit, lets others take its
// shards, and lets it continue before them.
func (r *run) overtake(ctx context.Context, in *instance) error {
	all := r.line.live()
	defer func() {
		for _, each := range all {
			each.proceed()
		}
	}()
	for _, each := range all {
		if err := each.hold(); err != nil {
			return err
		}
	}
	for _, each := range all {
		if err := within(ctx, readyWithin, time.Millisecond, func() error { return each.holding(true) }); err != nil {
			return fmt.Errorf("%w; was the processor built with -tags mutant?", err)
		}
	}
	end := r.mark(in.slot, "SIGSTOP %s (about to commit)", in.name)
	since := time.Now()
	if err := in.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	err := r.takeover(ctx, span{what: "SIGSTOP of one about to commit", member: in.member(), from: since}, memberTTL+r.slack(takeoverSlack))
	if err != nil {
		return err
	}
	end()
	in.proceed()
	r.mark(in.slot, "SIGCONT %s", in.name)
	if err := in.signal(syscall.SIGCONT); err != nil {
		return err
	}
	return within(ctx, readyWithin, time.Millisecond, func() error { return in.holding(false) })
}

// beside returns the path of a file of the instance's own.
func (in *instance) beside(what string) string {
	return filepath.Join(filepath.Dir(in.logFile), in.name+"."+what)
}

// hold has the instance hold back each batch just before its transaction.
func (in *instance) hold() error {
	if err := os.WriteFile(in.beside("hold"), nil, 0o600); err != nil {
		return fmt.Errorf("hold instance %s: %w", in.name, err)
	}
	return nil
}

// proceed ends that.
func (in *instance) proceed() { _ = os.Remove(in.beside("hold")) }

// holding returns an error unless batches are, or are not, held back or being written
// after that.
func (in *instance) holding(want bool) error {
	held, err := filepath.Glob(in.beside("held-*"))
	if err != nil {
		return giveUp(err)
	}
	if len(held) > 0 == want {
		return nil
	}
	if want {
		return fmt.Errorf("instance %s holds nothing back", in.name)
	}
	return errors.New("instance " + in.name + " has not written what it held back")
}

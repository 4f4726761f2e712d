package scenarios

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/testbed"
)

func containers() Scenario {
	return Scenario{
		Name: "containers",
		About: "Three containers of the image, read-only and without privileges, on a private network: each is stopped and replaced, one is killed, " +
			"one paused, one cut off the network, one starved of memory, and both servers restart.",
		Bounds: "others own the shards within the member TTL plus 5 s (10 s); every docker stop exits with 0; " +
			"10 s after a server is back nothing unfinished is older than a second",
		Plan:      Plan{Instances: 3, Devices: 300, Rate: 1500, Duration: time.Second, Profile: profileIncidents},
		Breaks:    true,
		proxied:   true, // at the machine's address on the network
		container: true,
		run: func(ctx context.Context, r *run) error {
			if err := r.startLoadFor(ctx, endless, fleet.AtSpeed(1)); err != nil {
				return err
			}
			for _, step := range []func(context.Context) error{
				r.rollContainers, r.killContainer, r.pauseContainer, r.cutContainer, r.starveContainer, r.restartServers,
			} {
				if err := testbed.Pause(ctx, r.plan.Duration); err != nil {
					return err
				}
				if err := step(ctx); err != nil {
					return err
				}
			}
			return testbed.Pause(ctx, r.plan.Duration)
		},
	}
}

func (r *run) rollContainers(ctx context.Context) error {
	for _, in := range r.line.Live() {
		if err := r.terminate(ctx, in); err != nil {
			return err
		}
		if err := r.fill(ctx, in.Slot); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) killContainer(ctx context.Context) error {
	in, err := r.pick(ctx, leader)
	if err != nil {
		return err
	}
	if err := r.kill(ctx, in, string(leader)); err != nil {
		return err
	}
	return r.fill(ctx, in.Slot)
}

func (r *run) pauseContainer(ctx context.Context) error {
	in, err := r.pick(ctx, dispatcher)
	if err != nil {
		return err
	}
	return r.freeze(ctx, in, string(dispatcher), func() error { return in.Signal(testbed.SigStop) }, nil)
}

// cutContainer takes one off the network and puts it back when others have its shards.
func (r *run) cutContainer(ctx context.Context) error {
	in, err := r.pick(ctx, bystander)
	if err != nil {
		return err
	}
	end := r.mark(in.Slot, "%s is off the network", in.Name)
	since := time.Now()
	if err := r.line.Docker.Cut(ctx, in, true); err != nil {
		return err
	}
	limit := max(memberTTL, sinkGrace+sinkSilence) + r.slack(takeoverSlack)
	if err := r.takeover(ctx, span{what: "a cut network", member: in.Member(), from: since}, limit); err != nil {
		return err
	}
	if err := r.line.Docker.Cut(ctx, in, false); err != nil {
		return err
	}
	end()
	return r.awaitSettled(ctx)
}

// starveContainer takes memory away until the kernel ends the process, and replaces
// it. One that neither ends nor gets anything done, since the kernel reads its
// program from disk again and again, is killed.
func (r *run) starveContainer(ctx context.Context) error {
	in, err := r.pick(ctx, bystander)
	if err != nil {
		return err
	}
	member := in.Member()
	r.line.Leave(in)
	end := r.mark(in.Slot, "%s is starved of memory", in.Name)
	memory := 64 << 20
	err = testbed.Within(ctx, 30*time.Second, 50*time.Millisecond, func() error {
		if in.Gone() {
			return nil
		}
		// The kernel refuses a limit below what is in use: the edge is found step by step.
		if err := r.line.Docker.Limit(ctx, in.Name, memory); err == nil {
			memory -= memory / 16
		}
		return fmt.Errorf("instance %s lives with %d MB", in.Name, memory>>20)
	})
	switch thrashing := err; {
	case ctx.Err() != nil:
		return thrashing
	case thrashing != nil:
		r.mark(in.Slot, "%v: it is killed", thrashing)()
		if err := in.Signal(syscall.SIGKILL); err != nil {
			return err
		}
	default:
		killed, err := r.line.Docker.Killed(ctx, in.Name)
		if err != nil {
			return err
		}
		r.check(killed, "instance %s ended (%v), but was not killed for its memory", in.Name, in.Err)
	}
	if err := r.takeover(ctx, span{what: "the end for memory", member: member, from: time.Now()}, memberTTL+r.slack(takeoverSlack)); err != nil {
		return err
	}
	end()
	return r.fill(ctx, in.Slot)
}

func (r *run) restartServers(ctx context.Context) error {
	for _, o := range r.outages() {
		if o.name != "Redis stops" && o.name != "Postgres stops" {
			continue
		}
		if err := r.inject(ctx, o); err != nil {
			return err
		}
	}
	return r.awaitSettled(ctx)
}

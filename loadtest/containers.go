package loadtest

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/trmtracking/processor/loadtest/fleet"
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
				if err := pause(ctx, r.plan.Duration); err != nil {
					return err
				}
				if err := step(ctx); err != nil {
					return err
				}
			}
			return pause(ctx, r.plan.Duration)
		},
	}
}

func (r *run) rollContainers(ctx context.Context) error {
	for _, in := range r.line.live() {
		if err := r.terminate(ctx, in); err != nil {
			return err
		}
		if err := r.fill(ctx, in.slot); err != nil {
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
	return r.fill(ctx, in.slot)
}

func (r *run) pauseContainer(ctx context.Context) error {
	in, err := r.pick(ctx, dispatcher)
	if err != nil {
		return err
	}
	return r.freeze(ctx, in, string(dispatcher), func() error { return in.signal(sigStop) }, nil)
}

// cutContainer takes one off the network and puts it back when others have its shards.
func (r *run) cutContainer(ctx context.Context) error {
	in, err := r.pick(ctx, bystander)
	if err != nil {
		return err
	}
	end := r.mark(in.slot, "%s is off the network", in.name)
	since := time.Now()
	if err := r.line.docker.cut(ctx, in, true); err != nil {
		return err
	}
	limit := max(memberTTL, sinkGrace+sinkSilence) + r.slack(takeoverSlack)
	if err := r.takeover(ctx, span{what: "a cut network", member: in.member(), from: since}, limit); err != nil {
		return err
	}
	if err := r.line.docker.cut(ctx, in, false); err != nil {
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
	member := in.member()
	r.line.leave(in)
	end := r.mark(in.slot, "%s is starved of memory", in.name)
	memory := 64 << 20
	err = within(ctx, 30*time.Second, 50*time.Millisecond, func() error {
		if in.gone() {
			return nil
		}
		// The kernel refuses a limit below what is in use: the edge is found step by step.
		if err := r.line.docker.limit(ctx, in.name, memory); err == nil {
			memory -= memory / 16
		}
		return fmt.Errorf("instance %s lives with %d MB", in.name, memory>>20)
	})
	switch thrashing := err; {
	case ctx.Err() != nil:
		return thrashing
	case thrashing != nil:
		r.mark(in.slot, "%v: it is killed", thrashing)()
		if err := in.signal(syscall.SIGKILL); err != nil {
			return err
		}
	default:
		killed, err := r.line.docker.killedForMemory(ctx, in.name)
		if err != nil {
			return err
		}
		r.check(killed, "instance %s ended (%v), but not for its memory", in.name, in.err)
	}
	if err := r.takeover(ctx, span{what: "the end for memory", member: member, from: time.Now()}, memberTTL+r.slack(takeoverSlack)); err != nil {
		return err
	}
	end()
	return r.fill(ctx, in.slot)
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

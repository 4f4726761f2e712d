package scenarios

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/testbed"
)

func chaos() Scenario {
	return Scenario{
		Name: "chaos",
		About: "A mix of all faults, drawn from the seed: processes are killed, stopped and frozen while connections break, " +
			"servers go away, fill up or have a row locked, and records of some devices are refused; once the number of shards is changed. " +
			"With --streams of several streams.",
		Bounds:    "the copy that a reader of TIMING_STREAM keeps equals the crossings",
		Plan:      Plan{Instances: 3, Devices: 500, Rate: 2000, Duration: 45 * time.Second, Profile: profilePolluted},
		Breaks:    true,
		proxied:   true,
		durable:   true,
		publishes: true,
		several:   true,
		env:       []string{"DLQ_RETRY_DELAYS=2s,4s"}, // some refusals last longer than all attempts
		Reaches: []rare.Branch{
			rare.Fenced, rare.OutcomeUnknown, rare.SetAside, rare.DispatchRefused, rare.GroupCreated, rare.HandedOver, rare.ForceAcquired,
			rare.ShardLost, rare.Redelivered, rare.SilentMember, rare.ServerChanged, rare.Probed, rare.LetterWaits,
			rare.Swept, rare.Halved, rare.Bisected, rare.RefusalWaits, rare.DeferredRetry, rare.Resized,
		},
		run: func(ctx context.Context, r *run) error {
			if r.refusable() {
				if err := r.environment.Observer.Constrain(ctx); err != nil {
					return err
				}
			}
			if err := r.begin(ctx); err != nil {
				return err
			}
			if err := r.injectFaults(ctx, time.Now().Add(r.plan.Duration)); err != nil {
				return err
			}
			if err := r.load.End(ctx, false); err != nil {
				return err
			}
			return r.awaitSettled(ctx)
		},
	}
}

// injectFaults breaks things until a moment: one hand processes, another connections
// and servers, a third has records refused, each with dice of its own. The number of shards
// is changed halfway. When it returns everything is whole.
func (r *run) injectFaults(ctx context.Context, until time.Time) error {
	hand := func(dice *rand.Rand, acts []act, until time.Time) error {
		for {
			if err := testbed.Pause(ctx, between(dice, 500*time.Millisecond, 3*time.Second)); err != nil {
				return err
			}
			a := draw(dice, acts)
			if left := time.Until(until); left < a.most {
				return nil
			}
			if err := a.do(ctx, dice); err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
		}
	}
	seeded := func(salt uint64) *rand.Rand { return rand.New(rand.NewPCG(r.cfg.Seed, salt)) }
	halfway := time.Now().Add(time.Until(until) / 2)
	var hands errgroup.Group
	hands.Go(func() error {
		dice, acts := seeded(1), r.processActs()
		if err := hand(dice, acts, halfway); err != nil {
			return err
		}
		if err := r.resize(ctx, dice); err != nil {
			return fmt.Errorf("change the number of shards: %w", err)
		}
		return hand(dice, acts, until)
	})
	hands.Go(func() error { return hand(seeded(2), r.serverActs(), until) })
	if r.refusable() {
		hands.Go(func() error {
			return hand(seeded(3), []act{{"refused devices", 1, longestRefusal, r.refuseDevices}}, until)
		})
	}
	return hands.Wait()
}

// act is something to do to a fleet.
type act struct {
	name   string
	weight int
	most   time.Duration // it may take
	do     func(ctx context.Context, dice *rand.Rand) error
}

func draw(dice *rand.Rand, acts []act) act {
	total := 0
	for _, a := range acts {
		total += a.weight
	}
	n := dice.IntN(total)
	for _, a := range acts {
		if n -= a.weight; n < 0 {
			return a
		}
	}
	return acts[0]
}

func between(dice *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(dice.Int64N(int64(high-low)))
}

// victim returns any instance of the fleet, nil while there is none.
func (r *run) victim(dice *rand.Rand) *testbed.Instance {
	n, all := dice.Int(), r.line.Current()
	if len(all) == 0 {
		return nil
	}
	return all[n%len(all)]
}

// anyStream returns one of the streams. Of one alone no dice are thrown, so that seeds stay what
// they were.
func (r *run) anyStream(dice *rand.Rand) *oneStream {
	if len(r.streams) == 1 {
		return r.streams[0]
	}
	return r.streams[dice.IntN(len(r.streams))]
}

// of names the stream in a mark, where there are several.
func (s *oneStream) of() string {
	if s.several {
		return " of " + s.servers.Stream
	}
	return ""
}

// processActs are done one after the other, so that each finds all slots filled.
func (r *run) processActs() []act {
	replace := func(in *testbed.Instance) error {
		_, err := r.line.Start(in.Slot)
		return err
	}
	return []act{
		{"SIGKILL", 3, time.Second, func(ctx context.Context, dice *rand.Rand) error {
			in := r.victim(dice)
			r.mark(in.Slot, "SIGKILL %s", in.Name)
			r.line.Leave(in)
			if err := in.Signal(syscall.SIGKILL); err != nil {
				return err
			}
			return replace(in)
		}},
		{"SIGTERM", 2, 8 * time.Second, func(ctx context.Context, dice *rand.Rand) error {
			in := r.victim(dice)
			defer r.mark(in.Slot, "SIGTERM %s", in.Name)()
			r.line.Leave(in)
			if err := in.Signal(syscall.SIGTERM); err != nil {
				return err
			}
			// With a server away the drain may take its whole budget, and says so: what else it
			// ends with, unexpectedExits reports.
			if _, err := in.Wait(ctx); err != nil {
				return err
			}
			return replace(in)
		}},
		{"SIGSTOP", 3, 9 * time.Second, func(ctx context.Context, dice *rand.Rand) error {
			in := r.victim(dice)
			defer r.mark(in.Slot, "SIGSTOP %s", in.Name)()
			if err := in.Signal(syscall.SIGSTOP); err != nil {
				return err
			}
			err := testbed.Pause(ctx, between(dice, 300*time.Millisecond, 9*time.Second))
			if err := in.Signal(syscall.SIGCONT); err != nil {
				return err
			}
			return err
		}},
	}
}

// serverActs break connections of one instance, or whole servers where they are
// our own.
func (r *run) serverActs() []act {
	link := func(name string, fault func(*devenv.Proxy) error) act {
		return act{name, 1, 7 * time.Second, func(ctx context.Context, dice *rand.Rand) error {
			in := r.victim(dice)
			postgres, lasts := dice.IntN(2) == 0, between(dice, 200*time.Millisecond, 7*time.Second)
			if in == nil {
				return nil
			}
			proxy, server := in.Redis, "Redis"
			if postgres {
				proxy, server = in.Postgres, "Postgres"
			}
			defer r.mark(in.Slot, "%s between %s and %s", name, in.Name, server)()
			if err := fault(proxy); err != nil {
				return err
			}
			err := testbed.Pause(ctx, lasts)
			if err := proxy.Resume(); err != nil {
				return err
			}
			return err
		}}
	}
	acts := []act{
		link("connections cut", func(p *devenv.Proxy) error { p.Cut(); return nil }),
		link("connections refused", (*devenv.Proxy).Refuse),
		link("black hole", (*devenv.Proxy).Stall),
		link("replies dropped", (*devenv.Proxy).DropReplies),
	}
	if r.environment.Env == nil {
		return acts
	}
	acts = append(acts, act{"row of a shard locked", 1, 5 * time.Second, func(ctx context.Context, dice *rand.Rand) error {
		shard := dice.IntN(testbed.Shards)
		s := r.anyStream(dice)
		defer r.mark(-1, "row of shard %d%s locked", shard, s.of())()
		unlock, err := s.servers.Observer.LockShard(ctx, shard)
		if err != nil {
			return err
		}
		err = testbed.Pause(ctx, between(dice, time.Second, 4*time.Second))
		return errors.Join(err, unlock(context.WithoutCancel(ctx)))
	}})
	acts = append(acts, act{"entries of a foreign consumer", 2, time.Second, func(ctx context.Context, dice *rand.Rand) error {
		most := int64(1 + dice.IntN(50))
		s := r.anyStream(dice)
		n, err := s.servers.Estrange(ctx, most)
		r.mark(-1, "%d entries of a foreign consumer%s", n, s.of())()
		return err
	}})
	for _, t := range append(r.outages(), r.refusing("every row is refused", observer.Raised), r.refusing("statements time out", observer.TimedOut)) {
		acts = append(acts, act{t.name, 1, 5 * time.Second, func(ctx context.Context, dice *rand.Rand) error {
			defer r.mark(-1, "%s", t.name)()
			if err := t.begin(ctx); err != nil {
				return err
			}
			err := testbed.Pause(ctx, between(dice, 100*time.Millisecond, 4*time.Second))
			if err := t.end(ctx); err != nil {
				return err
			}
			return err
		}})
	}
	return acts
}

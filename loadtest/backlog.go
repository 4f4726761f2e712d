package loadtest

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/loadtest/fleet"
)

func backlog() Scenario {
	return Scenario{
		Name:   "backlog",
		About:  "The same backlog is worked off by one instance, then by all, as fast as they can.",
		Bounds: "two instances on one machine at least 0.75 of the rate of one",
		Plan:   Plan{Instances: 2, Devices: 1000, Rate: 10_000, Entries: 300_000, Duration: 24 * time.Hour, Profile: profileSteady},
		Breaks: true,
		idle:   true,
		bare:   true,
		run: func(ctx context.Context, r *run) error {
			for _, n := range []int{1, r.plan.Instances} {
				rate, err := r.workOff(ctx, n)
				if err != nil {
					return err
				}
				r.rates = append(r.rates, round(rate, 0))
			}
			one, all := r.rates[0], r.rates[len(r.rates)-1]
			r.fact("side by side", "%d instances work off %.2f of what one does", r.plan.Instances, all/one)
			r.check(all >= .75*one/r.cfg.Slack, "%d instances: %.2f of the rate of one, want at least 0.75", r.plan.Instances, all/one)
			return nil
		},
	}
}

// workOff sends entries while nobody is there and has n instances do them. The
// rate counts from the first record stored to the last.
func (r *run) workOff(ctx context.Context, n int) (float64, error) {
	if err := r.beginFor(ctx, r.plan.Duration, fleet.AtSpeed(0)); err != nil {
		return 0, err
	}
	before, _ := r.load.sent()
	if err := r.load.end(ctx, false); err != nil {
		return 0, err
	}
	sent, _ := r.load.sent()
	redis := r.redisCPU()
	var starts errgroup.Group
	for i := range n {
		in, err := r.line.start(i)
		if err != nil {
			return 0, err
		}
		starts.Go(func() error { return r.line.ready(ctx, in) })
	}
	if err := starts.Wait(); err != nil {
		return 0, err
	}
	if err := r.empty(ctx); err != nil {
		return 0, err
	}
	times, err := r.ground.observer.CommitTimes(ctx)
	if err != nil {
		return 0, err
	}
	mine := times[:0]
	for _, t := range times {
		if slot := r.line.slotOf(t.Member); slot >= 0 && r.line.isPresent(t.Member) {
			mine = append(mine, t)
		}
	}
	if len(mine) < 2 {
		return 0, fmt.Errorf("work off a backlog with %d instances: no commits were noted", n)
	}
	took := time.Duration(mine[len(mine)-1].AtUS-mine[0].AtUS) * time.Microsecond
	rate := float64(sent-before) / took.Seconds()
	r.fact("backlog", "%d entries by %d instances: %.0f/s, %.1f us of Redis for each", sent-before, n, rate,
		float64((r.redisCPU()-redis).Microseconds())/float64(sent-before))
	for _, in := range r.line.live() {
		r.fact("memory", "instance %s: %.0f MB resident", in.name, in.seen().rss/1e6)
	}
	return rate, r.line.stop(ctx)
}

// empty waits until nothing is undone.
func (r *run) empty(ctx context.Context) error {
	moved, least := time.Now(), int64(-1)
	return until(ctx, 20*time.Millisecond, func() error {
		undone, _ := r.watch.backlog(ctx)
		switch {
		case undone == nil:
			return fmt.Errorf("how much is undone is unknown")
		case *undone == 0:
			return nil
		case least < 0 || *undone < least:
			least, moved = *undone, time.Now()
		case time.Since(moved) > patience:
			return giveUp(fmt.Errorf("%d entries are undone and nothing moves", *undone))
		}
		return fmt.Errorf("%d entries are undone", *undone)
	})
}

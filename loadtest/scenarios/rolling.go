package scenarios

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/testbed"
)

func rolling() Scenario {
	return Scenario{
		Name:  "rolling",
		About: "Each instance in turn is stopped with SIGTERM and replaced, again and again, under load.",
		Bounds: "age of the oldest unfinished entry: median of the restarts' peaks at most 1.5 s, worst at most 5 s; " +
			"every stop exits with 0",
		Plan: Plan{Instances: 2, Devices: 1000, Rate: 5000, Rounds: 20, Duration: time.Second, Profile: ProfileSteady},
		run: func(ctx context.Context, r *run) error {
			if err := r.startLoadFor(ctx, endless, fleet.AtSpeed(1)); err != nil {
				return err
			}
			var peaks []float64
			for n := range r.plan.Rounds {
				if err := testbed.Pause(ctx, r.plan.Duration); err != nil {
					return err
				}
				in := r.line.Live()[n%r.plan.Instances]
				highest, err := r.oldest(ctx, func() error {
					if err := r.terminate(ctx, in); err != nil {
						return err
					}
					if err := r.fill(ctx, in.Slot); err != nil {
						return err
					}
					return testbed.Pause(ctx, time.Second)
				})
				if err != nil {
					return err
				}
				peaks = append(peaks, cli.Round(highest, 3))
			}
			slices.Sort(peaks)
			median, worst := peaks[len(peaks)/2], peaks[len(peaks)-1]
			r.fact("age of the oldest unfinished entry", "median of the peaks of %d restarts %.2f s, worst %.2f s", len(peaks), median, worst)
			r.check(median <= 1.5*r.cfg.Slack, "age of the oldest unfinished entry: median of the peaks %.2f s, want at most 1.5 s", median)
			r.check(worst <= 5*r.cfg.Slack, "age of the oldest unfinished entry: worst peak %.2f s, want at most 5 s", worst)
			return nil
		},
	}
}

// oldest returns the highest age of the oldest unfinished entry while something happens,
// polled twenty times a second.
func (r *run) oldest(ctx context.Context, while func() error) (float64, error) {
	looking, stop := context.WithCancel(ctx)
	var highest float64
	var wait sync.WaitGroup
	wait.Go(func() {
		for testbed.Pause(looking, 50*time.Millisecond) == nil {
			if _, age := r.environment.Backlog(looking); age != nil {
				highest = max(highest, *age)
			}
		}
	})
	err := while()
	stop()
	wait.Wait()
	return highest, err
}

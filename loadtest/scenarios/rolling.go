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
		Plan: Plan{Instances: 3, Devices: 100_000, Rate: 5000, Rounds: 6, Duration: time.Second, Profile: ProfileSteady},
		run: func(ctx context.Context, r *run) error {
			return r.besideSteady(ctx, func(n int) error {
				in := r.line.Current()[n%r.plan.Instances]
				if err := r.terminate(ctx, in); err != nil {
					return err
				}
				return r.fill(ctx, in.Slot)
			}, func(moves, most int) {
				deploys := float64(r.plan.Rounds) / float64(r.plan.Instances)
				r.fact("moves", "%d acquisitions in %.1f deploys, %.1f of a shard in each (one leaves and then another joins: 2), at most %d of one shard",
					moves, deploys, float64(moves)/deploys/testbed.Shards, most)
			})
		},
	}
}

func rescale() Scenario {
	return Scenario{
		Name:  "rescale",
		About: "Twice as many instances, one after the other, and back, under load.",
		Bounds: "age of the oldest unfinished entry: median of the steps' peaks at most 1.5 s, worst at most 5 s; " +
			"every stop exits with 0",
		Plan: Plan{Instances: 2, Devices: 100_000, Rate: 5000, Rounds: 4, Duration: time.Second, Profile: ProfileSteady},
		run: func(ctx context.Context, r *run) error {
			return r.besideSteady(ctx, func(n int) error {
				if n < r.plan.Rounds/2 {
					return r.fill(ctx, r.plan.Instances+n)
				}
				if err := r.terminate(ctx, r.line.Current()[r.plan.Instances+r.plan.Rounds/2*2-1-n]); err != nil {
					return err
				}
				return r.awaitSettled(ctx)
			}, func(moves, most int) {
				r.fact("moves", "%d acquisitions in %d steps, at most %d of one shard", moves, r.plan.Rounds, most)
			})
		},
	}
}

// steadyFor is for how many of the pauses between steps latency is measured before the
// first of them.
const steadyFor = 10

// besideSteady does the steps of a change of the fleet one after the other, and compares
// that with the time before. It tells moved how often shards were acquired in all steps,
// and how often the one that was acquired most.
func (r *run) besideSteady(ctx context.Context, step func(n int) error, moved func(moves, most int)) error {
	times, steady, began, err := r.untilSteady(ctx)
	if err != nil {
		return err
	}
	var peaks []float64
	for n := range r.plan.Rounds {
		highest, err := r.oldest(ctx, func() error {
			if err := step(n); err != nil {
				return err
			}
			return testbed.Pause(ctx, r.plan.Duration)
		})
		if err != nil {
			return err
		}
		peaks = append(peaks, cli.Round(highest, 3))
	}
	ended := time.Now()
	slices.Sort(peaks)
	median, worst := peaks[len(peaks)/2], peaks[len(peaks)-1]
	r.fact("age of the oldest unfinished entry", "median of the peaks of %d steps %.2f s, worst %.2f s", len(peaks), median, worst)
	r.check(median <= 1.5*r.cfg.Slack, "age of the oldest unfinished entry: median of the peaks %.2f s, want at most 1.5 s", median)
	r.check(worst <= 5*r.cfg.Slack, "age of the oldest unfinished entry: worst peak %.2f s, want at most 5 s", worst)
	r.afterVerdict(func(res *Result) {
		res.SteadyP99MS, res.RollP99MS = times.p99(steady, began), times.p99(began, ended)
		gap, shard := times.longestGap(began, ended)
		res.LongestGapMS = gap
		before, _ := times.longestGap(steady, began)
		if gap == nil || before == nil || res.SteadyP99MS == nil || res.RollP99MS == nil {
			return // the server does not keep the times of commits
		}
		r.fact("steady", "p99 %.0f ms; no shard waited longer than %.0f ms", *res.SteadyP99MS, *before)
		r.fact("change", "p99 %.0f ms, %.1f times the steady one; shard %d waited longest, %.0f ms", *res.RollP99MS, *res.RollP99MS / *res.SteadyP99MS, shard, *gap)
		of := make(map[int]int)
		most, moves := 0, r.acquired(res.OwnershipSpans, began, ended)
		for _, s := range moves {
			of[s.Shard]++
			most = max(most, of[s.Shard])
		}
		moved(len(moves), most)
	})
	return nil
}

// untilSteady sends the fleet and returns when latency was measured for a while with nothing
// going on: from steady to began.
func (r *run) untilSteady(ctx context.Context) (times *recordTimes, steady, began time.Time, err error) {
	times = new(recordTimes)
	r.stored = times.add
	if err := r.startLoadFor(ctx, endless, fleet.AtSpeed(1)); err != nil {
		return nil, steady, began, err
	}
	// Every device is to be heard of once, so that what follows is not their first load.
	for sent := int64(0); sent < int64(r.plan.Devices); sent, _ = r.load.Sent() {
		if err := testbed.Pause(ctx, 100*time.Millisecond); err != nil {
			return nil, steady, began, err
		}
	}
	// Nor is their queue what a change is compared with.
	if err := r.awaitCaughtUp(ctx, 200*time.Millisecond, r.slack(time.Minute)); err != nil {
		return nil, steady, began, err
	}
	steady = time.Now()
	if err := testbed.Pause(ctx, steadyFor*r.plan.Duration); err != nil {
		return nil, steady, began, err
	}
	return times, steady, time.Now(), nil
}

// acquired returns the spans that began between two times.
func (r *run) acquired(spans []OwnershipSpan, from, to time.Time) (list []OwnershipSpan) {
	for _, s := range spans {
		if s.Slot >= 0 && s.From >= from.Sub(r.began) && s.From <= to.Sub(r.began) {
			list = append(list, s)
		}
	}
	return list
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

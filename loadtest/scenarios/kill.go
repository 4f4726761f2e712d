package scenarios

import (
	"context"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// servedWithin is what the devices of a dead member wait beyond the time after which it
// counts as gone.
const servedWithin = 2 * time.Second

func kill() Scenario {
	return Scenario{
		Name:   "kill",
		About:  "SIGKILL to one instance of three with 100,000 devices, again and again, each replaced.",
		Bounds: "the last device that waited for a shard of the dead member is served again within the member TTL plus 2 s (7 s)",
		Plan:   Plan{Instances: 3, Devices: 100_000, Rate: 5000, Rounds: 2, Duration: time.Second, Profile: ProfileSteady},
		Breaks: true,
		dated:  true,
		run: func(ctx context.Context, r *run) error {
			times, steady, began, err := r.untilSteady(ctx)
			if err != nil {
				return err
			}
			type death struct {
				member   string
				at, over time.Time
			}
			var deaths []death
			for range r.plan.Rounds {
				in, err := r.pick(ctx, bystander)
				if err != nil {
					return err
				}
				d := death{member: in.Member(), at: time.Now()}
				if err := r.kill(ctx, in, string(bystander)); err != nil {
					return err
				}
				// Until each device has sent once more.
				if err := testbed.Pause(ctx, time.Duration(float64(r.plan.Devices)/r.plan.Rate*float64(time.Second))); err != nil {
					return err
				}
				d.over = time.Now()
				deaths = append(deaths, d)
				if err := r.fill(ctx, in.Slot); err != nil {
					return err
				}
			}
			r.afterVerdict(func(res *Result) {
				res.SteadyP99MS = times.p99(steady, began)
				if _, unnamed := times.members[""]; unnamed || res.SteadyP99MS == nil {
					r.check(false, "nothing was measured: no record came before the first death, or who committed some is unknown")
					return
				}
				for _, d := range deaths {
					served := times.servedAgain(d.member, d.at)
					if served == nil {
						r.check(false, "%s died, and no record waited for its shards: nothing was measured", d.member)
						continue
					}
					if res.ServedAgainMS == nil || *served > *res.ServedAgainMS {
						res.ServedAgainMS = served
					}
					after := times.p99(d.at.Add(time.Duration(*served*float64(time.Millisecond))), d.over)
					if after == nil {
						after = new(0.)
					}
					r.fact("served again", "after %.2f s; then p99 %.0f ms, steady %.0f ms", *served/1000, *after, *res.SteadyP99MS)
				}
				if res.ServedAgainMS == nil {
					return
				}
				limit := memberTTL + r.slack(servedWithin)
				worst := cli.Round(*res.ServedAgainMS/1000, 2)
				r.check(worst <= limit.Seconds(), "the last device of a dead member was served again after %.2f s, want at most %.2f s", worst, limit.Seconds())
			})
			return nil
		},
	}
}

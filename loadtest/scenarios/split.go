package scenarios

import (
	"context"
	"time"
)

func split() Scenario {
	return Scenario{
		Name:   "split",
		About:  "Instances at their ease share an even load.",
		Bounds: "with two instances each stores 0.45 to 0.55 of all records, with three 0.28 to 0.39",
		Plan:   Plan{Instances: 2, Devices: 1000, Rate: 5000, Duration: 20 * time.Second, Profile: ProfileSteady},
		run: func(ctx context.Context, r *run) error {
			if err := r.begin(ctx); err != nil {
				return err
			}
			if err := r.load.End(ctx, false); err != nil {
				return err
			}
			n := float64(r.plan.Instances)
			low, high := .9/n, 1.1/n
			if r.plan.Instances == 3 {
				low, high = .28, .39
			}
			r.afterVerdict(func(res *Result) {
				for i, share := range res.Share {
					r.check(share >= low && share <= high, "share of instance %d: %.3f, want %.2f to %.2f", i+1, share, low, high)
				}
			})
			return nil
		},
	}
}

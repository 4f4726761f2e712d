package loadtest

import (
	"context"
	"time"
)

func poison() Scenario {
	return Scenario{
		Name:   "poison",
		About:  "Two in a hundred entries are no records, of every kind.",
		Bounds: "each of them is a dead letter of the right class, and nothing else is; p99 of the records at most 1 s",
		Plan:   Plan{Instances: 2, Devices: 500, Rate: 2000, Duration: 20 * time.Second, Profile: profilePolluted},
		env:    []string{"DLQ_MAX_ATTEMPTS=2"}, // the third attempt comes after minutes
		run: func(ctx context.Context, r *run) error {
			if err := r.begin(ctx); err != nil {
				return err
			}
			if err := r.load.end(ctx, false); err != nil {
				return err
			}
			r.later(func(res *Result) {
				r.check(res.DeadLettered > 0, "dead letters: none")
				r.check(res.P99MS != nil && *res.P99MS <= 1000*r.cfg.Slack, "p99: want at most 1 s")
			})
			return nil
		},
	}
}

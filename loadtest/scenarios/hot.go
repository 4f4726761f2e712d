package scenarios

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// hotShare is what the hot device sends of all records, and balancedWithin how long the
// leader has to find the balance.
const (
	hotShare       = .3
	balancedWithin = time.Minute
)

func hot() Scenario {
	return Scenario{
		Name:  "hot",
		About: "Devices send by Zipf's law; then one more comes that sends three records of ten.",
		Bounds: "a minute after it came the busiest instance stores at most 1.2 times the mean; p99 of the other devices at most " +
			"1.5 times that before it came; at most 10 shards move in any minute",
		Plan:  Plan{Instances: 3, Devices: 500, Rate: 3000, Duration: 20 * time.Second, Profile: profileSkewed},
		dated: true,
		run: func(ctx context.Context, r *run) error {
			var all, quiet recordTimes
			name := fleet.DeviceID(r.plan.Devices)
			r.stored = func(c oracle.Commit, shard int, id oracle.ID) {
				if all.add(c, shard, id); c.Device != name {
					quiet.add(c, shard, id)
				}
			}
			// The fleet finds its balance first: shards that move for the skew are no cost of
			// the hot device.
			if err := r.startLoadFor(ctx, balancedWithin+r.plan.Duration, fleet.AtSpeed(1)); err != nil {
				return err
			}
			if err := r.load.End(ctx, false); err != nil {
				return err
			}
			came := time.Now()
			profile, err := r.plan.Fleet(r.cfg.Seed, r.fleets, balancedWithin+r.plan.Duration)
			if err != nil {
				return err
			}
			profile.Hot = hotShare
			r.fleets++
			if err := r.load.Begin(ctx, profile, fleet.AtSpeed(1)); err != nil {
				return err
			}
			if err := r.load.End(ctx, false); err != nil {
				return err
			}
			ended := time.Now()
			r.afterVerdict(func(res *Result) {
				res.QuietP99MS, res.HotP99MS = quiet.p99(came.Add(-r.plan.Duration), came), quiet.p99(came.Add(balancedWithin), ended)
				res.Busiest = all.busiest(came.Add(balancedWithin), ended, r.plan.Instances)
				moves := mostMoves(r.acquired(res.OwnershipSpans, came, ended))
				res.Moves = &moves
				r.check(moves <= 10, "moves: %d shards within a minute, want at most 10", moves)
				if res.QuietP99MS == nil || res.HotP99MS == nil || res.Busiest == nil {
					r.check(false, "nothing was measured: no record came before or with the hot device")
					return
				}
				times := *res.HotP99MS / max(1, *res.QuietP99MS)
				r.fact("busiest instance", "%.2f times the mean, a minute after the hot device came", *res.Busiest)
				r.fact("the other devices", "p99 %.0f ms before it came, %.0f ms with it: %.2f times", *res.QuietP99MS, *res.HotP99MS, times)
				r.fact("moves", "%d shards in the busiest minute", moves)
				r.check(*res.Busiest <= 1.2, "busiest instance: %.2f times the mean, want at most 1.2", *res.Busiest)
				r.check(times <= 1.5*r.cfg.Slack, "p99 of the other devices: %.2f times that before the hot one came, want at most 1.5", times)
			})
			return nil
		},
	}
}

// mostMoves returns how many shards changed their owner within the minute in which most did.
func mostMoves(acquired []OwnershipSpan) int {
	slices.SortFunc(acquired, func(a, b OwnershipSpan) int { return cmp.Compare(a.From, b.From) })
	most, first := 0, 0
	for last := range acquired {
		for acquired[last].From-acquired[first].From > time.Minute {
			first++
		}
		most = max(most, last-first+1)
	}
	return most
}

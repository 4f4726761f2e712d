package scenarios

import (
	"context"
	"slices"
	"time"

	"github.com/trmtracking/processor/loadtest/testbed"
)

func soak() Scenario {
	return Scenario{
		Name:   "soak",
		About:  "A long even run with everything that happens to trackers, and junk.",
		Bounds: "p99 at most 1 s; the median of an instance's memory grows by at most a quarter and 32 MB from the second quarter of the run to the last",
		Plan:   Plan{Instances: 2, Devices: 2000, Rate: 2000, Duration: 10 * time.Minute, Profile: profilePolluted},
		env:    []string{"DLQ_MAX_ATTEMPTS=2"},
		run: func(ctx context.Context, r *run) error {
			from := time.Since(r.began)
			if err := r.begin(ctx); err != nil {
				return err
			}
			if err := r.load.End(ctx, false); err != nil {
				return err
			}
			to := time.Since(r.began)
			r.afterVerdict(func(res *Result) {
				r.latency(res)
				r.memory(res.Samples, from, to)
			})
			return nil
		},
	}
}

// latency judges the p99 of all records.
func (r *run) latency(res *Result) {
	if res.NotJudged == "" {
		r.check(res.P99MS != nil && *res.P99MS <= 1000*r.cfg.Slack, "p99: %.0f ms of %d records, want at most 1 s", deref(res.P99MS), len(r.took))
	}
}

// memory compares what the instances take in the second quarter of a span with the last.
func (r *run) memory(samples []testbed.Sample, from, to time.Duration) {
	quarter := (to - from) / 4
	for slot := range r.plan.Instances {
		before, after := typical(samples, slot, from+quarter, from+2*quarter), typical(samples, slot, to-quarter, to)
		r.fact("memory", "instance %d: %.0f MB in the second quarter, %.0f MB in the last", slot+1, before/1e6, after/1e6)
		r.check(before > 0 && after > 0 && after <= 1.25*before+32e6, "memory of instance %d: from %.0f to %.0f MB", slot+1, before/1e6, after/1e6)
	}
}

// typical returns the median of the memory that a slot had in a span of the run: a
// peak is what happened to lie about when the garbage collector came.
func typical(samples []testbed.Sample, slot int, from, to time.Duration) float64 {
	var seen []float64
	for _, s := range samples {
		if s.At >= from && s.At <= to && slot < len(s.Slots) && s.Slots[slot].RSS > 0 {
			seen = append(seen, s.Slots[slot].RSS)
		}
	}
	if len(seen) == 0 {
		return 0
	}
	slices.Sort(seen)
	return seen[len(seen)/2]
}

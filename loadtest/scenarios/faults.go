package scenarios

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// The service's defaults that bounds follow from.
const (
	memberTTL = 5 * time.Second
	sinkGrace = 5 * time.Second // without Postgres, until shards move
	// sinkSilence is how long it takes to notice a black hole before Postgres, at most.
	sinkSilence = 3 * time.Second

	maxFutureSkew  = 5 * time.Minute
	minSatellites  = 1
	maxCrossingGap = 10 * time.Minute
	// takeoverSlack is what a take-over may cost beyond the time after which the
	// old owner counts as gone.
	takeoverSlack = 5 * time.Second
	// settleWithin bounds waiting for an even spread, which is no bound itself.
	settleWithin = 40 * time.Second
)

// slack returns a duration that a busy machine may stretch.
func (r *run) slack(d time.Duration) time.Duration {
	return time.Duration(float64(d) * r.cfg.Slack)
}

// role says which instance a fault is for.
type role string

const (
	leader     role = "the leader"
	dispatcher role = "the dispatcher"
	bystander  role = "a non-leader"
)

// pick finds the instance with a role.
func (r *run) pick(ctx context.Context, want role) (*testbed.Instance, error) {
	var found *testbed.Instance
	err := testbed.Within(ctx, testbed.ReadyWithin, 50*time.Millisecond, func() error {
		live := r.line.Live()
		seen := make([]testbed.Figures, len(live))
		leads, dispatches := -1, -1
		for i, in := range live {
			var err error
			if seen[i], err = in.Scrape(ctx); err != nil {
				return err
			}
			if seen[i].Leader {
				leads = i
			}
			if seen[i].DispatchLease {
				dispatches = i
			}
		}
		if leads < 0 || dispatches < 0 {
			return errors.New("no leader or no dispatcher")
		}
		i := leads
		switch want {
		case dispatcher:
			i = dispatches
		case bystander:
			i = slices.IndexFunc(seen, func(f testbed.Figures) bool { return !f.Leader && !f.DispatchLease })
			if i < 0 {
				i = slices.IndexFunc(seen, func(f testbed.Figures) bool { return !f.Leader })
			}
		default:
		}
		if i < 0 {
			return fmt.Errorf("no instance is %s", want)
		}
		found = live[i]
		return nil
	})
	return found, err
}

// span is a time in which the others are expected to keep storing.
type span struct {
	what     string
	member   string // whose fault it is
	from, to time.Time
	orderly  bool // it left on request
}

// takeover waits until others own what a member owned, and notes how long that
// took since the span began. Beyond the limit it is a missed bound.
func (r *run) takeover(ctx context.Context, s span, limit time.Duration) error {
	if err := r.line.Released(ctx, s.member, limit+30*time.Second); err != nil {
		r.check(false, "%s: nobody took over: %v", s.what, err)
		return ctx.Err()
	}
	s.to = time.Now()
	took := max(0, s.to.Sub(s.from))
	r.mu.Lock()
	r.takeovers = append(r.takeovers, cli.Round(took.Seconds(), 2))
	r.spans = append(r.spans, s)
	r.mu.Unlock()
	if !s.orderly {
		r.fact("takeover", "%s: %.2f s", s.what, took.Seconds())
	}
	r.check(took <= limit, "takeover after %s: %.2f s, want at most %.2f s", s.what, took.Seconds(), limit.Seconds())
	return nil
}

// kill ends an instance with SIGKILL and waits until others own its shards.
func (r *run) kill(ctx context.Context, in *testbed.Instance, what string) error {
	member := in.Member()
	r.line.Leave(in)
	defer r.mark(in.Slot, "SIGKILL %s (%s)", in.Name, what)()
	since := time.Now()
	if err := in.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	return r.takeover(ctx, span{what: "SIGKILL of " + what, member: member, from: since}, memberTTL+r.slack(takeoverSlack))
}

// terminate ends an instance with SIGTERM. Its shards are to move within a
// second of the drain's end.
func (r *run) terminate(ctx context.Context, in *testbed.Instance) error {
	member := in.Member()
	r.line.Leave(in)
	defer r.mark(in.Slot, "SIGTERM %s", in.Name)()
	if err := in.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	code, err := in.Wait(ctx)
	if err != nil {
		return err
	}
	drained := time.Now()
	r.check(code == 0, "instance %s ended with code %d after SIGTERM, its log ends with:\n%s", in.Name, code, in.Tail(3))
	return r.takeover(ctx, span{what: "SIGTERM, from the end of the drain", member: member, from: drained, orderly: true}, r.slack(time.Second))
}

// fill puts a new instance into a slot and waits until the shards are spread
// again.
func (r *run) fill(ctx context.Context, slot int) error {
	in, err := r.line.Start(slot)
	if err != nil {
		return err
	}
	defer r.mark(slot, "start %s", in.Name)()
	if err := r.line.Ready(ctx, in); err != nil {
		return err
	}
	return r.awaitSettled(ctx)
}

// awaitSettled waits until the shards are spread and none moves.
func (r *run) awaitSettled(ctx context.Context) error {
	if err := r.line.AwaitSettled(ctx, r.slack(settleWithin)); err != nil {
		r.check(false, "the shards are not spread evenly: %v", err)
		return ctx.Err()
	}
	return nil
}

// gaps notes the longest time in which no other member committed during each
// span.
func (r *run) gaps(commits []commitTime) {
	for _, s := range r.spans {
		longest, last := time.Duration(0), s.from
		for _, c := range commits {
			if c.member == s.member || c.at.Before(s.from) || c.at.After(s.to) {
				continue
			}
			longest, last = max(longest, c.at.Sub(last)), c.at
		}
		longest = max(longest, s.to.Sub(last))
		r.fact("storing gap", "%s: the others stored nothing for at most %.2f s", s.what, longest.Seconds())
	}
}

type commitTime struct {
	member string
	at     time.Time
}

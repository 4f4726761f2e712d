package scenarios

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// keptP99 is the p99 that streams of healthy nodes keep while a master is away, where
// twice that of before is not more.
const keptP99 = 500 * time.Millisecond

func cluster() Scenario {
	return Scenario{
		Name: "cluster",
		About: "Several streams on a Redis Cluster: a master is killed and comes back, the slot of a stream moves to another node and back, " +
			"the whole Cluster stops and starts. An entry counts as sent once a replica has it (WAIT).",
		Bounds: "10 s after each nothing unfinished is older than a second; streams of other nodes keep half of their rate, and a p99 of 0.5 s or " +
			"twice that of before, while a master is away; no instance exits",
		Plan:    Plan{Instances: 2, Streams: 6, Devices: 300, Rate: 1200, Duration: 2 * time.Second, Profile: profileIncidents},
		Breaks:  true,
		cluster: true,
		several: true,
		run: func(ctx context.Context, r *run) error {
			if err := r.startLoadFor(ctx, endless, fleet.AtSpeed(1)); err != nil {
				return err
			}
			began := time.Now()
			if err := testbed.Pause(ctx, 2*r.plan.Duration); err != nil {
				return err
			}
			steady := period{began, time.Now()}
			if err := r.loseMaster(ctx, steady); err != nil {
				return err
			}
			if err := r.moveSlot(ctx); err != nil {
				return err
			}
			nodes := r.environment.Env.Cluster
			if err := r.inject(ctx, trouble{"the Redis Cluster stops", nodes.Stop, nodes.Start}); err != nil {
				return err
			}
			return testbed.Pause(ctx, r.plan.Duration)
		},
	}
}

// period is a span of time.
type period struct{ from, to time.Time }

// loseMaster kills the master of the first stream and brings it back.
func (r *run) loseMaster(ctx context.Context, steady period) error {
	nodes := r.environment.Env.Cluster
	key := r.environment.Stream
	_, gone, err := nodes.Master(ctx, key)
	if err != nil {
		return err
	}
	its, err := r.streamsOf(ctx, gone)
	if err != nil {
		return err
	}
	names := strings.Join(its, ", ")
	r.check(len(its) < len(r.streams), "all streams are on one node")
	var away period
	err = r.inject(ctx, trouble{
		"the master of " + names + " is killed",
		func(ctx context.Context) error {
			away.from = time.Now()
			return gone.Kill()
		},
		func(ctx context.Context) error {
			limit := r.slack(recoverWithin)
			err := testbed.Within(ctx, limit, 50*time.Millisecond, func() error {
				_, now, err := nodes.Master(ctx, key)
				if err == nil && now == gone {
					err = fmt.Errorf("its replica has not taken over")
				}
				return err
			})
			r.check(err == nil, "the master of %s: %v", names, err)
			away.to = time.Now()
			return nodes.Start(ctx)
		},
	})
	if err != nil {
		return err
	}
	r.fact("master away", "%.1f s, that of %s", away.to.Sub(away.from).Seconds(), names)
	r.afterVerdict(func(res *Result) {
		for i, s := range r.streams {
			one := &res.Streams[i]
			one.P99MS, one.AwayP99MS = s.times.p99(steady.from, steady.to), s.times.p99(away.from, away.to)
			one.Paused = slices.Contains(its, one.Stream)
			if one.Paused || one.P99MS == nil {
				continue
			}
			limit := max(2**one.P99MS, float64(keptP99.Milliseconds())) * r.cfg.Slack
			before, meanwhile := s.times.rate(steady.from, steady.to), s.times.rate(away.from, away.to)
			r.check(meanwhile*2*r.cfg.Slack >= before, "stream %s: %.0f entries/s came while the master of others was away, %.0f before", one.Stream, meanwhile, before)
			r.check(one.AwayP99MS == nil || *one.AwayP99MS <= limit, "stream %s: p99 %.0f ms while the master of others was away, %.0f ms before",
				one.Stream, deref(one.AwayP99MS), *one.P99MS)
		}
	})
	return nil
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// streamsOf returns the streams of a node.
func (r *run) streamsOf(ctx context.Context, node *devenv.Server) (names []string, err error) {
	for _, s := range r.streams {
		_, master, err := r.environment.Env.Cluster.Master(ctx, s.servers.Stream)
		if err != nil {
			return nil, err
		}
		if master == node {
			names = append(names, s.servers.Stream)
		}
	}
	return names, nil
}

// moveSlot moves the slot of the second stream to the node of another one, and back.
func (r *run) moveSlot(ctx context.Context) error {
	nodes := r.environment.Env.Cluster
	key := r.streams[1].servers.Stream
	_, home, err := nodes.Master(ctx, key)
	if err != nil {
		return err
	}
	var other *devenv.Server
	for _, s := range r.streams {
		_, node, err := nodes.Master(ctx, s.servers.Stream)
		if err != nil {
			return err
		}
		if node != home {
			other = node
		}
	}
	for _, to := range []*devenv.Server{other, home} {
		if err := r.inject(ctx, trouble{
			"the slot of " + key + " moves",
			func(ctx context.Context) error { return nodes.Move(ctx, key, to) },
			nodes.Await,
		}); err != nil {
			return err
		}
	}
	return nil
}

package bench

import (
	"context"
	"fmt"
	"slices"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// masters is how many a Cluster of the environment has.
const masters = 3

// StreamsResult is what a record of a backlog costs that some streams share.
type StreamsResult struct {
	Streams     int    `json:"streams"`
	Instances   int    `json:"instances"`
	Nodes       int    `json:"nodes"` // of Redis
	Rate        Series `json:"rate"`
	OwnCPU      Series `json:"own_cpu"`
	OwnRatio    Series `json:"own_ratio"` // to the first number of streams in the same round
	RedisCPU    Series `json:"redis_cpu"`
	RedisRatio  Series `json:"redis_ratio"`
	Busiest     Series `json:"busiest_node"` // CPU of the busiest node to the mean of all
	PostgresCPU Series `json:"postgres_cpu"`
	PerCommit   Series `json:"records_per_commit"`
	Peak        Series `json:"peak"` // MB, of the largest instance
}

// severalStreams drains the same backlog with different numbers of streams, by turns, and
// so with each number of instances.
func (b *run) severalStreams(ctx context.Context) error {
	instances := b.cfg.Instances
	if len(instances) == 0 {
		instances = []int{1}
	}
	for _, n := range instances {
		for _, count := range b.cfg.Streams {
			b.res.Streams = append(b.res.Streams, StreamsResult{Streams: count, Instances: n, Nodes: len(b.nodes())})
		}
	}
	for round := range b.cfg.Rounds {
		for i := range instances {
			of := b.res.Streams[i*len(b.cfg.Streams):][:len(b.cfg.Streams)]
			var first drainResult
			for k := range of {
				w, err := b.streamsRound(ctx, round, &of[k])
				if err != nil {
					return fmt.Errorf("%d streams, %d instances: %w", of[k].Streams, of[k].Instances, err)
				}
				if k == 0 {
					first = w
				}
				of[k].add(w, first)
			}
		}
	}
	return nil
}

func (b *run) streamsRound(ctx context.Context, round int, s *StreamsResult) (drainResult, error) {
	names, err := b.streamNames(ctx, s.Streams)
	if err != nil {
		return drainResult{}, err
	}
	var w drainResult
	_, err = b.inDatabase(ctx, func(string) (float64, error) {
		w, err = b.onStreams(ctx, fmt.Sprintf("bench%d", b.made), names, func(g *testbed.Servers) (drainResult, error) {
			return b.drain(ctx, g, backlog{
				entries: b.inOrder, instances: s.Instances, shared: s.Instances > 1,
				profile: fmt.Sprintf("round%d-streams%d-%d", round+1, s.Streams, s.Instances),
			})
		})
		return w.rate, err
	})
	if err != nil {
		return w, err
	}
	b.note("round %d, %d streams, %d instances: %s records/s, %.0f a commit; us a record: service %.2f, Redis %.2f (nodes %.2f), Postgres %.2f; peak %.0f MB",
		round+1, s.Streams, s.Instances, cli.Thousands(int64(w.rate)), w.perCommit, w.own, w.redis, w.nodes, w.postgres, w.peak)
	return w, nil
}

// streamNames returns names that are spread over the nodes evenly, as an operator chooses
// them by CLUSTER KEYSLOT.
func (b *run) streamNames(ctx context.Context, count int) (names []string, err error) {
	nodes := b.nodes()
	for n := 0; len(names) < count; n++ {
		name := fmt.Sprintf("{telemetry:%d}", n)
		if b.cfg.Cluster {
			_, node, err := b.env.Cluster.Master(ctx, name)
			if err != nil {
				return nil, err
			}
			if node != nodes[len(names)%len(nodes)] {
				continue
			}
		}
		names = append(names, name)
	}
	return names, nil
}

func (s *StreamsResult) add(w, first drainResult) {
	s.Rate.add(w.rate)
	s.OwnCPU.add(w.own)
	s.RedisCPU.add(w.redis)
	s.PostgresCPU.add(w.postgres)
	s.PerCommit.add(w.perCommit)
	s.Peak.add(w.peak)
	s.OwnRatio.add(w.own / first.own)
	s.RedisRatio.add(w.redis / first.redis)
	s.Busiest.add(slices.Max(w.nodes) * float64(len(w.nodes)) / w.redis)
}

// streamTargets are those of the measurement of streams.
func (r *Result) streamTargets() (targets []Target) {
	for i, s := range r.Streams {
		if i > 0 && s.Instances == r.Streams[i-1].Instances {
			what := fmt.Sprintf("%s, %s", cli.Count(s.Streams, "stream"), cli.Count(s.Instances, "instance"))
			targets = append(targets, Target{"CPU of the service to the first, " + what, s.OwnRatio.Median, 1.05, 1.10, false},
				Target{"CPU of Redis to the first, " + what, s.RedisRatio.Median, 1.05, 1.10, false})
		}
		if s.Nodes > 1 && s.Streams%s.Nodes == 0 {
			targets = append(targets, Target{fmt.Sprintf("busiest node to the mean, %s", cli.Count(s.Streams, "stream")), s.Busiest.Median, 1.10, 1.10, false})
		}
	}
	return targets
}

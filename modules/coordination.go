package modules

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/fx"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/coordination/tasks"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/history"
	"github.com/trmtracking/processor/internal/lograte"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/pipeline"
)

// coordinationParts are made for each stream.
func coordinationParts() fx.Option {
	return fx.Provide(newBridge, history.NewFeed, newCoordinationConfig, newKeys, newMembership, newFleet, fx.Private)
}

// sinkGrace is how long a member may be cut off from Postgres, while others are
// not, before its shards move.
const sinkGrace = 5 * time.Second

// assignmentsChannel is the Postgres channel that announces changed assignments and owners.
const assignmentsChannel = "processor_shards"

// Member is the identity and incarnation of this instance, as heartbeats,
// assignments, ownership and database sessions carry it.
type Member string

// newMember makes an incarnation of this instance, for all of its streams.
func newMember(cfg config.Config) Member { return Member(cfg.Instance.ID + "." + rand.Text()[:10]) }

// leases are those that an instance can hold for each of its streams.
type leases struct{ dispatch, leadership *protocol.Spread }

func newLeases(cfg config.Config) leases {
	n := len(cfg.Redis.Streams())
	return leases{dispatch: protocol.NewSpread(n), leadership: protocol.NewSpread(n)}
}

func newCoordinationConfig(cfg config.Config, b Build, m Member, several severalStreams) coordination.Config {
	co := cfg.Coordination
	return coordination.Config{
		Several: bool(several), Instance: cfg.Instance.ID, Incarnation: strings.TrimPrefix(string(m), cfg.Instance.ID+"."), Version: b.Version, Deploy: cfg.Instance.Deploy, Shards: co.Shards,
		MemberTTL: co.MemberTTL, LeaderTTL: co.LeaderTTL, HandoffBudget: co.HandoffBudget,
		DrainTimeout: cfg.Instance.DrainTimeout, SinkGrace: sinkGrace,
		ClaimInterval: co.ClaimInterval(), ClaimThreshold: co.ClaimThreshold(),
	}
}

func newKeys(group *stream.Group) coordination.Keys {
	return coordination.Keys{
		Prefix: group.Names().Members(), Lock: group.Names().Lock(),
		Database: group.Names().Database(),
	}
}

func newMembership(cfg coordination.Config, client redis.UniversalClient, keys coordination.Keys, b *bridge, log *slog.Logger) (*coordination.Membership, error) {
	membership, err := coordination.NewMembership(cfg, client, keys, b.workStatus, log)
	b.membership = membership
	return membership, err
}

// fleetDeps are the parts of a fleet.
type fleetDeps struct {
	fx.In

	Config     coordination.Config
	Service    config.Config
	Membership *coordination.Membership
	Pipeline   *pipeline.Pipeline
	Client     redis.UniversalClient
	Keys       coordination.Keys
	Group      *stream.Group
	Pool       *pgxpool.Pool
	Runs       *store.ServerGeneration
	Identity   *store.Identity
	Scope      store.Scope
	Shards     *store.Shards
	Sessions   *store.Sessions
	Member     Member
	Leases     leases
	Bridge     *bridge
	House      *tasks.DLQJanitor
	Dead       *stream.DeadLetters
	Feed       *history.Feed
	First      firstStream
	Log        *slog.Logger
	Metrics    prometheus.Registerer
}

func newFleet(d fleetDeps) (*coordination.Fleet, error) {
	timeout := d.Service.Postgres.StatementTimeout
	terms := store.NewLeader(d.Pool, d.Scope, string(d.Member), timeout)
	terms.Guard(d.Identity)
	ledger := store.NewLedger(d.Pool, d.Scope, string(d.Member), timeout)
	losses := coordination.NewLosses(ledger, d.Metrics)
	work, beside := leaderTasks(d, ledger, losses)
	fleet, err := coordination.NewFleet(d.Config, d.Membership, d.Pipeline, recordFleet(coordination.Deps{
		Client: d.Client, Keys: d.Keys, Shards: d.Shards, Sessions: d.Sessions, Stream: d.Group,
		Terms:  terms,
		Tasks:  work,
		Beside: beside,
		Ledger: ledger,
		Losses: losses,
		Holds:  store.NewHolds(d.Pool, d.Scope, timeout),

		Leadership: d.Leases.leadership.Lease(),
	}, d.Member, d.Scope.Stream), d.Log, d.Metrics)
	d.Bridge.fleet, d.Bridge.pipeline = fleet, d.Pipeline
	d.Runs.OnChange(d.Pipeline.Abandon)
	return fleet, err
}

// run is a function that is a component.
type run func(ctx context.Context) error

// Run calls it.
func (f run) Run(ctx context.Context) error { return f(ctx) }

// startMembership joins the fleet of each stream; on stop, after the pipelines have
// drained, it releases the shards and leaves. Notifications wake the parts they concern.
func startMembership(s *supervisor, parts parts, pool *pgxpool.Pool, log *slog.Logger) {
	log = log.With("component", "notifications")
	s.run("notifications", run(func(ctx context.Context) error {
		var listening sync.WaitGroup
		for _, p := range parts {
			listening.Go(func() { p.hear(ctx) })
		}
		hear := func(channel string, heard func(p *part)) {
			var quiet lograte.Limit
			store.Listen(ctx, pool, channel, func(string) {
				for _, p := range parts {
					heard(p)
				}
			}, func(err error) {
				if quiet.Pass() {
					log.Warn("LISTEN unavailable; falling back to polling", "channel", channel, "err", err)
				}
			})
		}
		listening.Go(func() { hear(assignmentsChannel, func(p *part) { p.fleet.Assigned() }) })
		listening.Go(func() { hear(store.RequestsChannel, func(p *part) { p.Pipeline.RequestsChanged() }) })
		listening.Go(func() { hear(store.FencesChannel, func(p *part) { p.Pipeline.FencesChanged() }) })
		listening.Wait()
		return context.Cause(ctx)
	}))
	for _, p := range parts {
		s.run("live", publishLive(p.Feed, p.Group))
		ledger := store.NewLedger(p.Pool, p.Scope, string(p.Member), p.Service.Postgres.StatementTimeout)
		s.run("redis refusals", tasks.NewRedisRefuses(p.Group, ledger, p.Config.ClaimInterval, p.Log, p.Metrics))
	}
	s.run("membership", parts.run(func(p *part) run { return p.fleet.RunMembership }))
}

// hear passes what is published about the stream on, until ctx ends.
func (p *part) hear(ctx context.Context) {
	p.Group.Notifications(ctx, func(b stream.Notification) {
		switch {
		case b.DispatchLease:
			p.Pipeline.NotifyDispatchLease()
		case b.Leader:
			p.fleet.LeaderResigned()
		case b.Group:
			p.Pipeline.Rewind()
		case b.Members:
			p.fleet.MembershipChanged()
		case b.Watch:
			p.Feed.Watch()
		default:
			p.Pipeline.Reread(b.Again)
			if len(b.Shards) > 0 || len(b.Again) == 0 {
				p.Pipeline.Notify(b.Shards)
			}
		}
	})
}

func startElection(s *supervisor, parts parts) {
	s.run("election", parts.run(func(p *part) run { return p.fleet.RunElection }))
}

// fleetReady returns the readiness check of this member's part in the fleets.
func fleetReady(parts parts) func(ctx context.Context) error {
	return parts.check(func(_ context.Context, p *part) error {
		if err := p.fleet.Ready(); err != nil {
			return fmt.Errorf("join the fleet: %w", err)
		}
		return nil
	})
}

package modules

import (
	"context"
	"fmt"
	"log/slog"
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
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/pipeline"
)

var coordinationModule = fx.Module("coordination", fx.Provide(newBridge, history.NewFeed, newCoordinationConfig, newKeys, newMembership, newMember, newFleet))

// sinkGrace is how long a member may be cut off from Postgres, while others are
// not, before its shards move.
const sinkGrace = 5 * time.Second

// assignmentsChannel is the Postgres channel that announces changed assignments and owners.
const assignmentsChannel = "processor_shards"

// Member is the identity and incarnation of this instance, as heartbeats,
// assignments, ownership and database sessions carry it.
type Member string

func newCoordinationConfig(cfg config.Config, b Build) coordination.Config {
	co := cfg.Coordination
	return coordination.Config{
		Instance: cfg.Instance.ID, Version: b.Version, Deploy: cfg.Instance.Deploy, Shards: co.Shards,
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

func newMember(membership *coordination.Membership) Member { return Member(membership.Name()) }

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
	Bridge     *bridge
	House      *tasks.DLQJanitor
	Feed       *history.Feed
	Log        *slog.Logger
	Metrics    prometheus.Registerer
}

func newFleet(d fleetDeps) (*coordination.Fleet, error) {
	timeout := d.Service.Postgres.StatementTimeout
	terms := store.NewLeader(d.Pool, d.Scope, string(d.Member), timeout)
	terms.Guard(d.Identity)
	fleet, err := coordination.NewFleet(d.Config, d.Membership, d.Pipeline, recordFleet(coordination.Deps{
		Client: d.Client, Keys: d.Keys, Shards: d.Shards, Sessions: d.Sessions, Stream: d.Group,
		Terms:  terms,
		Tasks:  leaderTasks(d),
		Ledger: store.NewLedger(d.Pool, d.Scope, string(d.Member), timeout),
		Holds:  store.NewHolds(d.Pool, d.Scope, timeout),
	}, d.Member), d.Log, d.Metrics)
	d.Bridge.fleet, d.Bridge.pipeline = fleet, d.Pipeline
	d.Runs.OnChange(d.Pipeline.Abandon)
	return fleet, err
}

// run is a function that is a component.
type run func(ctx context.Context) error

// Run calls it.
func (f run) Run(ctx context.Context) error { return f(ctx) }

// startMembership joins the fleet; on stop, after the pipeline has drained, it
// releases the shards and leaves. Notifications wake the parts they concern.
func startMembership(s *supervisor, d fleetDeps, fleet *coordination.Fleet) {
	log := d.Log.With("component", "notifications")
	s.run("notifications", run(func(ctx context.Context) error {
		var listening sync.WaitGroup
		listening.Go(func() {
			d.Group.Notifications(ctx, func(b stream.Notification) {
				switch {
				case b.DispatchLease:
					d.Pipeline.NotifyDispatchLease()
				case b.Leader:
					fleet.LeaderResigned()
				case b.Group:
					d.Pipeline.Rewind()
				case b.Members:
					fleet.MembershipChanged()
				case b.Watch:
					d.Feed.Watch()
				case b.Again:
					d.Pipeline.Reread(b.Shards)
				default:
					d.Pipeline.Notify(b.Shards)
				}
			})
		})
		hear := func(channel string, heard func(string)) {
			var quiet lograte.Limit
			store.Listen(ctx, d.Pool, channel, heard, func(err error) {
				if quiet.Pass() {
					log.Warn("LISTEN unavailable; falling back to polling", "channel", channel, "err", err)
				}
			})
		}
		listening.Go(func() { hear(assignmentsChannel, func(string) { fleet.Assigned() }) })
		listening.Go(func() { hear(store.RequestsChannel, func(string) { d.Pipeline.RequestsChanged() }) })
		listening.Go(func() { hear(store.FencesChannel, func(string) { d.Pipeline.FencesChanged() }) })
		listening.Wait()
		return context.Cause(ctx)
	}))
	s.run("live", publishLive(d.Feed, d.Group))
	ledger := store.NewLedger(d.Pool, d.Scope, string(d.Member), d.Service.Postgres.StatementTimeout)
	s.run("redis refusals", tasks.NewRedisRefuses(d.Group, ledger, d.Config.ClaimInterval, d.Log, d.Metrics))
	s.run("membership", run(fleet.RunMembership))
}

func startElection(s *supervisor, fleet *coordination.Fleet) {
	s.run("election", run(fleet.RunElection))
}

// fleetReady returns the readiness check of this member's part in the fleet.
func fleetReady(fleet *coordination.Fleet) func(ctx context.Context) error {
	return func(context.Context) error {
		if err := fleet.Ready(); err != nil {
			return fmt.Errorf("join the fleet: %w", err)
		}
		return nil
	}
}

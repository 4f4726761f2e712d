package modules

import (
	"context"
	"time"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/coordination/tasks"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
)

// timingEntries is how many changes of crossings TIMING_STREAM keeps, about.
const timingEntries = 100_000

// movedEvery is the interval at which owners are told of devices that moved to another
// stream: each time they load the state of whole shards again.
const movedEvery = time.Minute

// leaderTasks returns what the leader does besides assigning shards: in its steps, and
// beside them what takes longer.
func leaderTasks(d fleetDeps, ledger *store.Ledger, losses *coordination.Losses) (work, beside []coordination.Task) {
	timeout := d.Service.Postgres.StatementTimeout
	// A fleet is a stream and a group, and each fleet reads every request.
	windows := stream.NewRecomputes(d.Client, d.Service.Redis.RecomputeStream, d.Scope.Stream+":"+d.Scope.Group)
	sink := store.NewLeader(d.Pool, d.Scope, string(d.Member), timeout)
	streamType := tasks.NewStreamType(func(ctx context.Context) error {
		_, err := d.Group.Info(ctx)
		return err
	}, d.Scope.Stream, ledger)
	letters := tasks.NewStreamType(func(ctx context.Context) error {
		_, err := d.Dead.Length(ctx)
		return err
	}, d.Dead.Stream(), ledger)
	work = []coordination.Task{
		tasks.NewRecompute(d.Config.Shards, windows, sink, ledger, d.Log, d.Metrics),
		tasks.Every(d.Config.ClaimInterval, d.House.Pass),
		tasks.Every(d.Config.ClaimInterval, tasks.NewGroupMetrics(d.Group, d.House, d.Config.ClaimInterval, d.Metrics).Refresh),
		tasks.Every(d.Config.ClaimInterval, streamType.Pass),
		tasks.Every(d.Config.ClaimInterval, letters.Pass),
		tasks.EveryTerm(movedEvery, func(ctx context.Context, term int64) error { return sink.Moved(ctx, term, d.Config.Shards) }),
		coordination.NewDataLossDetector(d.Group, ledger, losses, d.Log, d.Metrics),
		tasks.NewHistory(tasks.HistoryDeps{
			Shards: d.Shards, Deferred: d.House, Members: d.Membership.Members, Ring: d.Group,
			Backlog: func(ctx context.Context) (b protocol.Backlog, added int64, err error) {
				info, err := d.Group.Info(ctx)
				if err == nil {
					b, err = d.Group.BacklogOf(ctx, info)
				}
				return b, info.Added, err
			},
		}),
	}
	beside = []coordination.Task{
		tasks.NewRetention(store.NewRetention(d.Pool, d.Scope, string(d.Member), d.Service.Geofences.TimingRetention, timeout), d.Service.DeadLetters.AuditRetention, d.Log, d.Metrics),
	}
	if !d.First { // what follows concerns all of the database
		return work, beside
	}
	feed := store.NewTimingFeed(d.Pool, timeout)
	if name := d.Service.Redis.TimingStream; name != "" {
		work = append(work, tasks.NewTimingFeed(feed, stream.NewTimingStream(d.Client, name, d.Scope.Stream, d.Scope.Group, timingEntries), ledger, d.Log, d.Metrics))
	} else {
		work = append(work, tasks.NewTimingFeed(feed, nil, ledger, d.Log, d.Metrics))
	}
	if query := d.Service.Geofences.Query; query != "" {
		editor := store.NewFenceEditor(d.Pool, d.Scope, d.Config.Shards, string(d.Member))
		reconciler := store.NewFenceQuery(d.Pool, editor, query, timeout)
		beside = append(beside, tasks.NewFenceSync(reconciler, ledger, d.Service.Geofences.Refresh, d.Log, d.Metrics))
	}
	return work, beside
}

package coordination

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Deps are the collaborators of a Fleet.
type Deps struct {
	Client   Client
	Keys     Keys
	Shards   ownership
	Sessions Sessions
	Stream   Stream
	Terms    LeaderStore
	Ledger   Ledger
	Losses   *Losses
	Holds    Holds  // nil where operators hold nothing back
	Tasks    []Task // run while this member leads
	Beside   []Task // the same, for what takes longer than a leader's step
	// Leadership is the one of this stream among those of all; nil for a stream alone.
	Leadership *protocol.SpreadLease
}

// Stream is the part of the stream that coordination uses.
type Stream interface {
	// The reconciler puts acknowledged entries back on their queues.
	RegisterOwner(ctx context.Context, token string, shards []int) (protocol.Entered, error)
	HighWatermark() telemetry.EntryID
	SetApplied(ctx context.Context, shard int, applied telemetry.EntryID) error
	Redeliver(ctx context.Context, ranges []protocol.Range) (entries int, err error)

	// The leader lists and repairs the group's consumers: entries of foreign ones
	// (not shard-NN) are claimed; Work is the progress of our own.
	Consumers(ctx context.Context) ([]protocol.Consumer, error)
	Claim(ctx context.Context, consumer string, minIdle time.Duration, from telemetry.EntryID, page int) (protocol.Claimed, error)
	Remove(ctx context.Context, consumer string, minIdle time.Duration) (bool, error)
	Notify(ctx context.Context, shards []int) error
	Work(ctx context.Context) (work map[int]protocol.ShardWork, foreign int, err error)

	// It records losses that are detected but not yet recorded, and stops the
	// dispatcher of the fleet or lets it go on.
	Losses(ctx context.Context, limit int) (losses []protocol.Loss, receipt, foreign []string, err error)
	Recorded(ctx context.Context, receipt []string) error
	SetPaused(ctx context.Context, paused bool) error

	// Both wake the other members.
	NotifyLeadership(ctx context.Context) error
	NotifyMembers(ctx context.Context) error

	// OnServerChange registers f to be called before the first command to a
	// server other than the one that answered last.
	OnServerChange(f func())
	// CheckServer detects a change of server that opened no new connection.
	CheckServer(ctx context.Context) error
}

// LeaderStore is the authority on who leads, and keeps what is written under a term.
type LeaderStore interface {
	BeginTerm(ctx context.Context) (term int64, err error)
	Resign(ctx context.Context, term int64) error // 0 for any term of this member
	// LiveLeader returns the leader of the last term if it has not resigned and its sessions
	// have asked for something within a time, else "". It fails while Postgres has started within another.
	LiveLeader(ctx context.Context, within, started time.Duration) (string, error)
	// Assign returns the shards whose assignment was written: a row that another session has
	// locked keeps its own.
	Assign(ctx context.Context, term int64, shards []int, members []string) (written []int, err error)
}

// Fleet is one member's part in coordination: its membership, the shards it
// owns, and its candidacy for the leadership.
type Fleet struct {
	cfg        Config
	membership *Membership
	reconciler *reconciler
	elector    *elector
	leader     *Leader
	stream     Stream
	log        *slog.Logger

	joined    chan struct{}
	abandoned chan struct{}
	abandon   sync.Once
}

// NewFleet returns the parts of a member whose membership exists already:
// writers in the store carry the member's name, so the name must come first.
func NewFleet(cfg Config, membership *Membership, engine Engine, deps Deps, log *slog.Logger, reg prometheus.Registerer) (*Fleet, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if engine == nil || deps.Client == nil || deps.Shards == nil || deps.Sessions == nil || deps.Stream == nil ||
		deps.Terms == nil || deps.Ledger == nil || deps.Losses == nil {
		return nil, errors.New("coordination: a dependency is missing")
	}
	m := newMetrics(reg)
	// Queue state learned from one server does not hold on another.
	deps.Stream.OnServerChange(func() {
		rare.Reached(rare.ServerChanged)
		engine.Abandon()
		membership.serverChanged.Store(true)
	})
	membership.check, membership.liveLeader = deps.Stream.CheckServer, deps.Terms.LiveLeader
	f := &Fleet{cfg: cfg, membership: membership, stream: deps.Stream, joined: make(chan struct{}), abandoned: make(chan struct{}), log: log.With("component", "fleet")}
	f.reconciler = newReconciler(cfg, membership, deps.Shards, deps.Sessions, deps.Stream, engine, deps.Ledger, deps.Losses, m, log)
	membership.rowLocks = f.reconciler.RowLocks
	leader := &Leader{
		cfg: cfg, membership: membership, shards: deps.Shards, store: deps.Terms, stream: deps.Stream,
		ledger: deps.Ledger, losses: deps.Losses, holds: deps.Holds, tasks: deps.Tasks, beside: deps.Beside, metrics: m, log: log.With("component", "leader"),
	}
	leader.beginTerm() // it may resign before its first pass
	f.leader = leader
	f.elector = newElector(cfg, newLock(deps.Client, deps.Keys.Lock, cfg.LeaderTTL), deps.Terms, deps.Stream, leader, membership.postgresUp, m, log)
	f.elector.spread, f.elector.peers, f.elector.rests = deps.Leadership, membership.Peers, leader.rests
	membership.onChange(func() {
		f.reconciler.Wake()
		f.elector.Wake()
	})
	return f, nil
}

// RunMembership joins, then keeps the heartbeat and the shards until ctx ends;
// then it releases the shards and leaves. The pipeline must have drained before
// that.
func (f *Fleet) RunMembership(ctx context.Context) error {
	if err := f.membership.join(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	close(f.joined)
	// The heartbeat continues until the shards are released.
	beating, stopBeating := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBeating()
	g, gctx := errgroup.WithContext(beating)
	keeping, stopKeeping := context.WithCancel(ctx)
	defer stopKeeping()
	g.Go(func() error {
		select {
		case <-f.abandoned:
			stopKeeping()
		case <-gctx.Done():
		}
		return nil
	})
	g.Go(func() error { return f.membership.Run(gctx) })
	g.Go(func() error {
		defer stopBeating()
		context.AfterFunc(gctx, stopKeeping)
		return f.reconciler.Run(keeping)
	})
	err := g.Wait()
	leaving, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), 2*time.Second, errors.New("deregister within 2s"))
	defer cancel()
	if _, taken := errors.AsType[*identityError](err); !taken {
		if leaveErr := f.membership.leave(leaving); leaveErr != nil {
			f.log.Warn("could not deregister; heartbeat will expire", "err", leaveErr)
		} else if notifyErr := f.stream.NotifyMembers(leaving); notifyErr != nil {
			f.log.Debug("could not notify peers; they will notice by polling", "err", notifyErr)
		}
	}
	return err
}

// RunElection campaigns and leads until ctx ends; then it resigns. It begins once this member
// has joined: one that is refused, for its database or its Redis, raises no term.
func (f *Fleet) RunElection(ctx context.Context) error {
	select {
	case <-f.joined:
		return f.elector.Run(ctx)
	case <-ctx.Done():
		return nil
	}
}

// Abandon ends the membership without a drain, because this instance is stuck.
// It releases the shards and stops the heartbeat as far as it can; other
// members force-acquire the rest when the heartbeat expires.
func (f *Fleet) Abandon() { f.abandon.Do(func() { close(f.abandoned) }) }

// Leave announces that this member is shutting down. It returns when other
// members have acquired its shards, when no other member may own any, or when ctx
// ends.
func (f *Fleet) Leave(ctx context.Context) error {
	select {
	case <-f.abandoned:
		return nil // no shards to hand over, and no heartbeat to announce it with
	default:
	}
	select {
	case <-f.joined:
	default:
		return nil // a heartbeat would join it
	}
	if err := f.membership.announce(ctx); err != nil {
		return err
	}
	if err := f.stream.NotifyMembers(ctx); err != nil {
		f.log.Warn("could not notify peers; they will notice by polling", "err", err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	successor := func(member string) bool { return member != f.membership.Name() }
	for slices.ContainsFunc(f.membership.eligible(), successor) && f.reconciler.Owned() > 0 {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	return nil
}

// Assigned wakes the reconciler: assignments changed, or a shard was released. Then a
// leader may have the next one handed over.
func (f *Fleet) Assigned() {
	f.reconciler.Wake()
	if f.leader.more.Load() {
		f.elector.Wake()
	}
}

// MembershipChanged wakes the membership: a member's state changed.
func (f *Fleet) MembershipChanged() { f.membership.Wake() }

// LeaderResigned wakes the elector: the leadership may be free.
func (f *Fleet) LeaderResigned() { f.elector.campaign() }

// Ready returns nil if this member is registered and reaches Postgres,
// otherwise the reason.
func (f *Fleet) Ready() error {
	if !f.membership.postgresUp() {
		return errors.New("shard reconciliation is failing: Postgres does not answer")
	}
	if r := f.membership.workStatus().Refusal; r != nil {
		return fmt.Errorf("rows are rejected for a reason that is not theirs: %s; %s", r.Reason, r.Remedy)
	}
	for _, m := range f.membership.Members() {
		if m.Name() == f.membership.Name() {
			return nil
		}
	}
	return errors.New("not registered yet")
}

// Owned returns the number of shards this member owns.
func (f *Fleet) Owned() int { return f.reconciler.Owned() }

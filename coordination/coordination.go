package coordination

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

// Deps is what coordination works with.
type Deps struct {
	Client   Client
	Keys     Keys
	Shards   Ownership
	Sessions Sessions
	Stream   Stream
	Terms    LeaderStore
	Ledger   Ledger
	// House looks after the dead letters while this member leads; nil for nobody.
	House *Housekeeper
	Tasks []Task // of whoever leads
}

// Stream is what of the stream concerns the fleet.
type Stream interface {
	Redealer
	Foreign
	Losses
	Backlog
	Caller
	// OnServerChange has f called before the first command to a server that is
	// not the one that answered before.
	OnServerChange(f func())
	// CheckServer notices a change that needs no new connection.
	CheckServer(ctx context.Context) error
}

// LeaderStore is the term and what is written under it.
type LeaderStore interface {
	Terms
	Assignments
}

// Fleet is one member's part in the fleet: its place on the roster, the
// shards it keeps, and its candidacy for the leadership.
type Fleet struct {
	cfg     Config
	roster  *Roster
	keeper  *Keeper
	elector *Elector
	caller  Caller
	log     *slog.Logger

	abandoned chan struct{}
	abandon   sync.Once
}

// NewFleet returns the parts of a member that has a roster already; the store's
// writers carry its name, so it comes first.
func NewFleet(cfg Config, roster *Roster, engine Engine, deps Deps, log *slog.Logger, reg prometheus.Registerer) (*Fleet, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if engine == nil || deps.Client == nil || deps.Shards == nil || deps.Sessions == nil || deps.Stream == nil ||
		deps.Terms == nil || deps.Ledger == nil {
		return nil, errors.New("coordination: a dependency is missing")
	}
	m := newMetrics(reg)
	gauges := newGroupGauges(deps.Stream, deps.House, 3*cfg.ClaimInterval+time.Second)
	if err := reg.Register(gauges); err != nil {
		return nil, fmt.Errorf("register the group's gauges: %w", err)
	}
	// What is known of queues was known of another server.
	deps.Stream.OnServerChange(engine.Abandon)
	roster.check = deps.Stream.CheckServer
	f := &Fleet{cfg: cfg, roster: roster, caller: deps.Stream, abandoned: make(chan struct{}), log: log.With("component", "fleet")}
	f.keeper = NewKeeper(cfg, roster, deps.Shards, deps.Sessions, deps.Stream, engine, m, log)
	leader := &Leader{
		cfg: cfg, roster: roster, shards: deps.Shards, assignments: deps.Terms, foreign: deps.Stream,
		losses: deps.Stream, ledger: deps.Ledger, house: deps.House, tasks: deps.Tasks, gauges: gauges, metrics: m, log: log.With("component", "leader"),
	}
	f.elector = NewElector(cfg, deps.Client, deps.Keys, deps.Terms, deps.Stream, leader, roster.SinkUp, m, log)
	roster.OnChange(func() {
		f.keeper.Wake()
		f.elector.Look()
	})
	return f, nil
}

// RunMembership joins, keeps the heartbeat and the shards until ctx ends, then
// releases what is held and leaves. The pipeline must have drained by then.
func (f *Fleet) RunMembership(ctx context.Context) error {
	if err := f.roster.Join(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	// The heartbeat goes on until the shards are released.
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
	g.Go(func() error { return f.roster.Run(gctx) })
	g.Go(func() error {
		defer stopBeating()
		context.AfterFunc(gctx, stopKeeping)
		return f.keeper.Run(keeping)
	})
	err := g.Wait()
	leaving, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), 2*time.Second, errors.New("leave the roster within 2s"))
	defer cancel()
	if _, taken := errors.AsType[*IdentityError](err); !taken {
		if leaveErr := f.roster.Leave(leaving); leaveErr != nil {
			f.log.Warn("not taken off the roster, the heartbeat expires by itself", "err", leaveErr)
		}
	}
	return err
}

// RunElection campaigns and leads until ctx ends; then it resigns.
func (f *Fleet) RunElection(ctx context.Context) error { return f.elector.Run(ctx) }

// Abandon ends the membership in the middle of the work, because this instance
// is stuck: its shards are released and its heartbeat ends, as far as what is
// stuck allows. What cannot be released is taken when the heartbeat has expired.
func (f *Fleet) Abandon() { f.abandon.Do(func() { close(f.abandoned) }) }

// Leave announces that this member is going, and waits until the others have
// taken over its shards, or until ctx ends, or at once when there are no others.
func (f *Fleet) Leave(ctx context.Context) error {
	select {
	case <-f.abandoned:
		return nil // there is nothing to hand over, and no heartbeat to say it with
	default:
	}
	if err := f.roster.Announce(ctx); err != nil {
		return err
	}
	if err := f.caller.RingMembers(ctx); err != nil {
		f.log.Warn("the others were not called, they look every so often", "err", err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for f.roster.Peers() > 0 && f.keeper.Held() > 0 {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	return nil
}

// Assigned says that assignments may have changed, or that a shard was given up.
func (f *Fleet) Assigned() { f.keeper.Wake() }

// RosterChanged says that a member has something new to say of itself.
func (f *Fleet) RosterChanged() { f.roster.Look() }

// LeaderResigned says that the leadership may be free.
func (f *Fleet) LeaderResigned() { f.elector.Campaign() }

// Settled tells whether this member is on the roster and keeps up with Postgres.
func (f *Fleet) Settled() error {
	if !f.roster.SinkUp() {
		return errors.New("the keeper of shards gets no answer from Postgres")
	}
	for _, m := range f.roster.Members() {
		if m.Name() == f.roster.Name() {
			return nil
		}
	}
	return errors.New("not on the roster yet")
}

// Held is how many shards this member holds.
func (f *Fleet) Held() int { return f.keeper.Held() }

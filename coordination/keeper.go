package coordination

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Ownership is the authority on who owns what.
type Ownership interface {
	Ensure(ctx context.Context, shards int) error
	List(ctx context.Context) ([]protocol.Shard, error)
	Take(ctx context.Context, shard int, member, alive string) (protocol.Shard, error)
	Release(ctx context.Context, held protocol.Held, member string, applied telemetry.EntryID) error
}

// Sessions ends the database sessions of a member that does not release.
type Sessions interface {
	End(ctx context.Context, member string) (ended int, err error)
}

// Redealer puts entries that were acknowledged back on their queues.
type Redealer interface {
	Enter(ctx context.Context, token string, shards []int) (acked map[int]telemetry.EntryID, delivered telemetry.EntryID, err error)
	Redeal(ctx context.Context, ranges []protocol.Range) (entries int, err error)
}

// Engine runs the shards granted to it.
type Engine interface {
	Grant(h protocol.Held) error
	Stop(shard int) <-chan struct{}
	Drop(shard int)
	Held(shard int) (epoch int64, applied telemetry.EntryID, ok bool)
	// Abandon gives all shards up, to be taken again.
	Abandon()
}

// releaseBudget is how long the release of all shards may take at the end.
const releaseBudget = 2 * time.Second

// takesAtOnce bounds the take-overs under way, and so the connections used.
const takesAtOnce = 4

// Keeper makes what this member owns match what it is assigned: it takes
// shards, hands them over, and drops those that somebody else has taken.
type Keeper struct {
	cfg      Config
	roster   *Roster
	shards   Ownership
	sessions Sessions
	redealer Redealer
	engine   Engine
	metrics  *metrics
	log      *slog.Logger
	wake     chan struct{} // size one, coalesced

	mu      sync.Mutex
	waiting map[int]time.Time // since when a shard waits for its owner; under mu
	handing map[int]bool      // shards being handed over; under mu
	holds   map[int]int64     // epochs of shards taken, granted or about to be; under mu
	tasks   sync.WaitGroup    // hand-overs under way; Run waits for them
}

// NewKeeper returns a keeper that owns nothing yet.
func NewKeeper(cfg Config, roster *Roster, shards Ownership, sessions Sessions, redealer Redealer, engine Engine,
	m *metrics, log *slog.Logger,
) *Keeper {
	return &Keeper{
		cfg: cfg, roster: roster, shards: shards, sessions: sessions, redealer: redealer, engine: engine,
		metrics: m, log: log.With("component", "keeper"), wake: make(chan struct{}, 1),
		waiting: make(map[int]time.Time), handing: make(map[int]bool), holds: make(map[int]int64),
	}
}

// Wake has the keeper look again: assignments changed, or a shard was given up.
func (k *Keeper) Wake() { ring(k.wake) }

// Run keeps until ctx ends, and then releases what is held. The engine must
// have finished its work by then; what it has not finished stays on the queues.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var complained time.Time
	for {
		err := k.pass(ctx)
		k.roster.SinkAnswers(err == nil || ctx.Err() != nil)
		if f, ok := errors.AsType[*protocol.Failure](err); ok && f.Kind == protocol.Misused {
			return err
		}
		if err != nil && ctx.Err() == nil && time.Since(complained) > 10*time.Second {
			complained = time.Now()
			k.log.Warn("cannot look after shards, trying again", "err", err)
		}
		if ctx.Err() != nil {
			return k.releaseAll(context.WithoutCancel(ctx))
		}
		select {
		case <-ctx.Done():
		case <-k.wake:
		case <-tick.C:
		}
	}
}

// pass compares what is assigned with what is held, once.
func (k *Keeper) pass(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// A black hole is noticed well within the grace, not when a statement times out.
	asking, cancel := context.WithTimeout(ctx, k.cfg.SinkGrace/2)
	list, err := k.shards.List(asking)
	cancel()
	if err != nil {
		return err
	}
	if len(list) != k.cfg.Shards {
		// Rows that were deleted by hand are made again. Where the number was
		// changed, this member is of the past and ends here.
		if err := k.shards.Ensure(ctx, k.cfg.Shards); err != nil {
			return err
		}
	}
	me, budgets := k.roster.Name(), protocol.Budgets{HandOff: k.cfg.HandoffBudget, Drain: k.cfg.DrainTimeout}
	var take []protocol.Shard
	seize := make(map[string]bool)
	for _, s := range list {
		if s.Shard >= k.cfg.Shards {
			continue
		}
		hold := k.hold(s.Shard)
		var owner protocol.OwnerState
		if !hold.Held && s.Assigned == me && s.Owner != "" && s.Owner != me {
			owner = k.roster.owner(s.Owner)
			owner.Waited = k.waited(s.Shard)
		} else {
			k.forgetWait(s.Shard)
		}
		switch protocol.Next(me, s.Claim(), hold, owner, budgets) {
		case protocol.Take:
			take = append(take, s)
		case protocol.Seize:
			seize[s.Owner] = true
			take = append(take, s)
		case protocol.HandOver:
			k.handOver(ctx, s.Shard, hold.Epoch)
		case protocol.Drop:
			k.log.Warn("shard was taken by somebody else, dropped", "shard", s.Shard, "epoch", hold.Epoch, "member", s.Owner)
			k.metrics.dropped.Inc()
			k.forget(s.Shard)
			k.engine.Drop(s.Shard)
		case protocol.Await, protocol.Leave:
		}
	}
	for member := range seize {
		ended, err := k.sessions.End(ctx, member)
		if err != nil {
			return err
		}
		args := []any{"member", member, "count", ended}
		if last, _ := k.roster.silent(member); last.Host != "" {
			args = append(args, "host", last.Host, "pid", last.PID)
		}
		k.log.Info("took over without a release", args...)
	}
	return k.take(ctx, take, me)
}

// hold is how this member holds a shard. A shard that the engine has given up
// by itself is not held, whatever we thought.
func (k *Keeper) hold(shard int) protocol.Hold {
	k.mu.Lock()
	defer k.mu.Unlock()
	epoch, mine := k.holds[shard]
	running, _, ok := k.engine.Held(shard)
	if mine && (!ok || running != epoch) {
		delete(k.holds, shard)
		mine = false
	}
	return protocol.Hold{Held: mine, Epoch: epoch, Stopping: k.handing[shard]}
}

func (k *Keeper) forget(shard int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.holds, shard)
}

func (k *Keeper) waited(shard int) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	since, ok := k.waiting[shard]
	if !ok {
		k.waiting[shard] = time.Now()
		return 0
	}
	return time.Since(since)
}

func (k *Keeper) forgetWait(shard int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.waiting, shard)
}

// take raises the epochs of shards, has dealt again what Postgres may have
// lost, and grants them to the engine.
func (k *Keeper) take(ctx context.Context, shards []protocol.Shard, me string) error {
	if len(shards) == 0 {
		return nil
	}
	started := time.Now()
	taken := make([]protocol.Shard, len(shards))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(takesAtOnce)
	for i, s := range shards {
		g.Go(func() error {
			alive := s.Owner
			if k.roster.owner(s.Owner).Ended {
				alive = ""
			}
			t, err := k.shards.Take(gctx, s.Shard, me, alive)
			if errors.Is(err, protocol.ErrNotAssigned) {
				return nil // it was assigned to somebody else meanwhile
			}
			taken[i] = t
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err // what was taken is ours in the table; the next pass takes it again
	}
	token := rand.Text()
	if err := k.dealAgain(ctx, taken, token); err != nil {
		return err
	}
	n := 0
	for i, t := range taken {
		if t.Epoch == 0 {
			continue
		}
		k.mu.Lock()
		k.holds[t.Shard] = t.Epoch
		k.mu.Unlock()
		if err := k.engine.Grant(protocol.Held{Shard: t.Shard, Epoch: t.Epoch, Token: token, Suspicion: t.Suspicion}); err != nil {
			return err
		}
		n++
		if s := t.Suspicion; s.Limit > 0 {
			k.log.Warn("owners of a shard died without progress, it is run with care", "shard", t.Shard, "deaths", s.Deaths, "limit", s.Limit)
		}
		if shards[i].Owner != "" && shards[i].Owner != me {
			k.metrics.seized.Inc()
		}
	}
	if n > 0 {
		k.metrics.taken.Add(float64(n))
		k.metrics.takeSeconds.Observe(time.Since(started).Seconds())
		k.log.Info("took shards", "count", n, "duration", time.Since(started))
	}
	return nil
}

// dealAgain has Postgres and what was acknowledged compared, once nobody can
// acknowledge any more for an earlier owner.
func (k *Keeper) dealAgain(ctx context.Context, taken []protocol.Shard, token string) error {
	var shards []int
	for _, t := range taken {
		if t.Epoch != 0 {
			shards = append(shards, t.Shard)
		}
	}
	acked, delivered, err := k.redealer.Enter(ctx, token, shards)
	if err != nil {
		return err
	}
	var ranges []protocol.Range
	for _, t := range taken {
		if t.Epoch == 0 {
			continue
		}
		mark, known := acked[t.Shard]
		after, upTo, behind := protocol.DealAgain(protocol.Marks{
			Applied: t.Applied, Acked: mark, AckedKnown: known, Delivered: delivered,
		})
		if behind {
			ranges = append(ranges, protocol.Range{Shard: t.Shard, From: after, To: upTo})
		}
	}
	entries, err := k.redealer.Redeal(ctx, ranges)
	if err != nil {
		if f, ok := errors.AsType[*protocol.Failure](err); ok && f.Kind == protocol.Lost {
			// Without the group there is nothing to put back: it is made again at 0,
			// and then everything is dealt again anyway.
			return nil
		}
		return err
	}
	if entries > 0 {
		k.metrics.redealt.Add(float64(entries))
		k.log.Info("dealt again what may not have been committed", "count", entries)
	}
	return nil
}

// handOver finishes a shard and releases it, in the background.
func (k *Keeper) handOver(ctx context.Context, shard int, epoch int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.handing[shard] {
		return
	}
	k.handing[shard] = true
	started := time.Now()
	done := k.engine.Stop(shard)
	k.tasks.Go(func() {
		select {
		case <-done:
		case <-ctx.Done(): // releaseAll does it
			k.mu.Lock()
			delete(k.handing, shard)
			k.mu.Unlock()
			return
		}
		k.release(context.WithoutCancel(ctx), shard, epoch)
		k.metrics.handSeconds.Observe(time.Since(started).Seconds())
		k.mu.Lock()
		delete(k.handing, shard)
		k.mu.Unlock()
		ring(k.wake)
	})
}

// release gives one shard up. If it cannot be written down, the successor takes
// the shard without it.
func (k *Keeper) release(ctx context.Context, shard int, epoch int64) {
	running, applied, ok := k.engine.Held(shard)
	k.forget(shard)
	k.engine.Drop(shard)
	if !ok || running != epoch {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, k.cfg.HandoffBudget)
	defer cancel()
	if err := k.shards.Release(ctx, protocol.Held{Shard: shard, Epoch: epoch}, k.roster.Name(), applied); err != nil {
		k.log.Warn("shard not released, its next owner takes it by itself", "shard", shard, "err", err)
		return
	}
	k.metrics.released.Inc()
}

// releaseAll gives everything up at the end.
func (k *Keeper) releaseAll(ctx context.Context) error {
	k.tasks.Wait()
	// What cannot be written down in time is taken over without a release.
	ctx, cancel := context.WithTimeoutCause(ctx, releaseBudget, errors.New("release all shards within 2s"))
	defer cancel()
	k.mu.Lock()
	holds := make(map[int]int64, len(k.holds))
	for shard, epoch := range k.holds {
		holds[shard] = epoch
	}
	k.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(takesAtOnce)
	for shard, epoch := range holds {
		g.Go(func() error {
			k.release(ctx, shard, epoch)
			return nil
		})
	}
	return g.Wait()
}

// Held is how many shards this member holds.
func (k *Keeper) Held() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.holds)
}

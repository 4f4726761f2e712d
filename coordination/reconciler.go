package coordination

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/internal/lograte"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// ownership is the authority on who owns which shard.
type ownership interface {
	Ensure(ctx context.Context, shards int) error
	List(ctx context.Context) ([]protocol.Shard, error)
	Acquire(ctx context.Context, shard int, member, alive string) (protocol.Shard, error)
	// Lockable fails as Blocked while another session has the shard locked.
	Lockable(ctx context.Context, shard int, owner string) error
	Release(ctx context.Context, held protocol.ShardLease, member string, applied telemetry.EntryID) error
}

// Sessions ends the database sessions of a member that does not release.
type Sessions interface {
	End(ctx context.Context, member string) (protocol.EndedSessions, error)
}

// Engine runs the shards granted to it.
type Engine interface {
	Grant(h protocol.ShardLease) error
	Stop(shard int) <-chan struct{}
	// Leave ends the work on a shard that was stopped, and returns the state that the
	// next owner can continue with, nil for none.
	Leave(shard int) []byte
	Drop(shard int)
	Owned(shard int) (epoch int64, applied telemetry.EntryID, ok bool)
	// Locked returns the owned shards whose work waits for a lock of their rows.
	Locked() []int
	// Abandon gives up all shards; the reconciler acquires them again.
	Abandon()
}

// releaseBudget bounds the release of all shards at the end.
const releaseBudget = 2 * time.Second

// acquireConcurrency bounds concurrent acquisitions, and so their connections.
const acquireConcurrency = 4

// reconciler makes owned shards match assigned shards: it acquires shards,
// hands them over, and gives up those that another member has acquired.
type reconciler struct {
	cfg        Config
	membership *Membership
	shards     ownership
	sessions   Sessions
	stream     Stream
	engine     Engine
	ledger     Ledger
	losses     *Losses
	metrics    *metrics
	log        *slog.Logger
	wake       chan struct{} // size one, coalesced

	mu              sync.Mutex
	awaitingRelease map[int]time.Time        // since when a shard waits for its owner's release; under mu
	releasing       map[int]bool             // shards being handed over; under mu
	owned           map[int]int64            // epochs of shards acquired, granted or about to be; under mu
	blocked         map[int]protocol.RowLock // shards whose rows another session has locked; under mu
	reacquired      map[int]reacquisition    // shards that this member had to acquire again; under mu
	tasks           sync.WaitGroup           // hand-overs in progress and the raising of the mark; Run waits for them
}

// newReconciler returns a reconciler that owns nothing yet.
func newReconciler(cfg Config, membership *Membership, shards ownership, sessions Sessions, stream Stream, engine Engine,
	ledger Ledger, losses *Losses, m *metrics, log *slog.Logger,
) *reconciler {
	return &reconciler{
		cfg: cfg, membership: membership, shards: shards, sessions: sessions, stream: stream, engine: engine, ledger: ledger,
		losses: losses, metrics: m, log: log.With("component", "reconciler"), wake: make(chan struct{}, 1),
		awaitingRelease: make(map[int]time.Time), releasing: make(map[int]bool), owned: make(map[int]int64), blocked: make(map[int]protocol.RowLock), reacquired: make(map[int]reacquisition),
	}
}

// Wake triggers a pass: assignments changed, or a shard was released.
func (k *reconciler) Wake() { wakeUp(k.wake) }

// Run reconciles until ctx ends, and then releases all shards. The engine must
// have drained by then; unfinished entries stay on the queues.
func (k *reconciler) Run(ctx context.Context) error {
	k.tasks.Go(func() { k.raiseLoop(ctx) })
	k.tasks.Go(func() { k.lookLoop(ctx) })
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var quiet lograte.Limit
	for {
		err := k.pass(ctx)
		f, failed := errors.AsType[*protocol.Failure](err)
		noStream := failed && f.Code == "WRONGTYPE" && k.cfg.Several
		if failed && f.Kind == protocol.Misconfigured && !noStream {
			return err
		}
		if err != nil && ctx.Err() == nil && quiet.Pass() {
			k.log.Warn("shard reconciliation failed, will retry", "err", err)
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

// raiseEvery is how often the high-water mark is written, at most.
const raiseEvery = 500 * time.Millisecond

// raiseLoop writes down the newest entry that this member has read, so that it is
// missed when Redis goes on without it. It is kept here until it is written,
// whatever becomes of Redis. It is no part of a pass: the row may be locked.
func (k *reconciler) raiseLoop(ctx context.Context) {
	tick := time.NewTicker(raiseEvery)
	defer tick.Stop()
	var raised telemetry.EntryID
	var quiet lograte.Limit
	for ended := false; !ended; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			ended = true
		}
		id := k.stream.HighWatermark()
		if id == raised {
			continue
		}
		raising, cancel := ctx, context.CancelFunc(func() {})
		if ended { // the shards are released after it
			raising, cancel = context.WithTimeout(context.WithoutCancel(ctx), raiseEvery)
		}
		err := k.ledger.RaiseHighWatermark(raising, id)
		cancel()
		switch {
		case err == nil:
			raised = id
		case quiet.Pass():
			k.log.Warn("high-water mark not written, trying again", "err", err)
		}
	}
}

// lookEvery is how often the locks are looked at that owned shards wait for.
const lookEvery = time.Second

// lookLoop finds out who has the rows of owned shards locked. It is no part of a
// pass: to be told who it is, it must wait for the lock.
func (k *reconciler) lookLoop(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		locked := k.engine.Locked()
		k.mu.Lock()
		for shard := range k.owned {
			if !slices.Contains(locked, shard) {
				delete(k.blocked, shard)
			}
		}
		k.mu.Unlock()
		for _, shard := range locked {
			err := k.shards.Lockable(ctx, shard, k.membership.Name())
			if by, blocked := protocol.BlockedBy(err); blocked {
				k.block(shard, err, by)
			} else if err == nil {
				k.forgetLock(shard)
			}
		}
	}
}

// pass compares assigned with owned shards, once.
func (k *reconciler) pass(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// Half the grace, so that a black hole is noticed before the statement
	// times out.
	asking, cancel := context.WithTimeout(ctx, k.cfg.SinkGrace/2)
	list, err := k.shards.List(asking)
	cancel()
	if err == nil && len(list) != k.cfg.Shards {
		// Rows that were deleted by hand are created again. If the number of
		// shards was changed, this member is outdated and ends here.
		err = k.shards.Ensure(ctx, k.cfg.Shards)
	}
	k.membership.setPostgresUp(err == nil || ctx.Err() != nil)
	if err != nil {
		return err
	}
	me, budgets := k.membership.Name(), k.cfg.budgets()
	var take []protocol.Shard
	forced := make(map[string][]protocol.Shard)
	for _, s := range list {
		if s.Shard >= k.cfg.Shards {
			continue
		}
		hold := k.localShard(s.Shard)
		var owner protocol.OwnerState
		if !hold.Owned && s.Assigned == me && s.Owner != "" && s.Owner != me {
			owner = k.membership.owner(s.Owner, s.Shard)
			owner.Waited = k.waited(s.Shard)
		} else {
			k.forgetWait(s.Shard)
		}
		switch protocol.Next(me, s.Record(), hold, owner, budgets) {
		case protocol.Acquire:
			if s.Owner == me && !k.mayReacquire(s.Shard) {
				continue
			}
			take = append(take, s)
		case protocol.ForceAcquire:
			forced[s.Owner] = append(forced[s.Owner], s)
		case protocol.HandOver:
			k.handOver(ctx, s.Shard, hold.Epoch)
		case protocol.Lose:
			k.log.Warn("shard lost to another member", "shard", s.Shard, "epoch", hold.Epoch, "member", s.Owner)
			rare.Reached(rare.ShardLost)
			k.metrics.lost.Inc()
			k.forget(s.Shard)
			k.engine.Drop(s.Shard)
		case protocol.Await, protocol.Leave:
			if !hold.Owned {
				k.forgetLock(s.Shard)
			}
		}
	}
	var errs []error
	crashed := make(map[string]bool)
	for member, shards := range forced {
		able, ended, err := k.force(ctx, member, shards)
		crashed[member] = ended
		take, errs = append(take, able...), append(errs, err)
	}
	return errors.Join(append(errs, k.acquire(ctx, take, me, crashed))...)
}

// shardFailed notes that a call for one shard failed. Heartbeats tell of it only if Postgres
// did not answer: an error of the server's concerns the shard, not the way to Postgres.
func (k *reconciler) shardFailed(ctx context.Context, err error) {
	if f, ok := errors.AsType[*protocol.Failure](err); ok && f.Code == "" && ctx.Err() == nil {
		k.membership.setPostgresUp(false)
	}
}

// force ends the sessions of an owner where that helps, and returns which of its
// shards can be acquired then, and whether its process was seen to end.
func (k *reconciler) force(ctx context.Context, member string, shards []protocol.Shard) (able []protocol.Shard, crashed bool, err error) {
	owner := k.membership.owner(member, shards[0].Shard)
	var errs []error
	if able = shards; !owner.Gone {
		rare.Reached(rare.ReleaseOverdue)
		able = nil
		for _, s := range shards {
			err := k.shards.Lockable(ctx, s.Shard, member)
			by, blocked := protocol.BlockedBy(err)
			switch {
			case err != nil && !blocked:
				k.shardFailed(ctx, err)
				errs = append(errs, err)
			case !protocol.ForceHelps(owner, member, blocked, by):
				k.block(s.Shard, err, by)
			case !blocked && k.unblock(s.Shard):
				// The owner could not release it for the lock; now it can.
			default:
				able = append(able, s)
			}
		}
	}
	if len(able) == 0 {
		return nil, false, errors.Join(errs...)
	}
	ended, err := k.sessions.End(ctx, member)
	if err != nil {
		k.shardFailed(ctx, err)
		return nil, false, errors.Join(append(errs, err)...)
	}
	crashed = k.membership.ended(member, ended.None)
	if ended.Left > 0 {
		k.log.Warn("sessions of a dead member left, this role in Postgres may not end them; they may hold its shards up",
			"member", member, "count", ended.Left, "role", ended.Role, "remedy", ended.Remedy())
	}
	args := []any{"member", member, "count", ended.Count, "crashed", crashed}
	if last, _ := k.membership.silent(member); last.Host != "" {
		args = append(args, "host", last.Host, "pid", last.PID)
	}
	k.log.Info("force-acquired shards from a dead member", args...)
	return able, crashed, errors.Join(errs...)
}

// block records that another session has the row of a shard locked.
func (k *reconciler) block(shard int, err error, by []protocol.Blocker) {
	k.mu.Lock()
	b, before := k.blocked[shard]
	if !before {
		b.Shard, b.Since = shard, time.Now()
	}
	b.By = by
	k.blocked[shard] = b
	k.mu.Unlock()
	if !before {
		k.log.Warn("shard waits: another session has its row locked, will retry", "shard", shard, "err", err)
	}
}

// RowLocks returns the locks that shards of this member wait for, by shard.
func (k *reconciler) RowLocks() []protocol.RowLock {
	k.mu.Lock()
	defer k.mu.Unlock()
	locks := make([]protocol.RowLock, 0, len(k.blocked))
	for _, shard := range slices.Sorted(maps.Keys(k.blocked)) {
		locks = append(locks, k.blocked[shard])
	}
	return locks
}

func (k *reconciler) forgetLock(shard int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.blocked, shard)
}

// unblock records that the row of a shard can be locked again, and reports whether
// it could not before. Then its owner's budget begins anew.
func (k *reconciler) unblock(shard int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, before := k.blocked[shard]
	if before {
		delete(k.blocked, shard)
		k.awaitingRelease[shard] = time.Now()
	}
	return before
}

// localShard returns how this member owns a shard. A shard that the engine has
// given up is not owned, whatever was recorded here.
func (k *reconciler) localShard(shard int) protocol.LocalShard {
	k.mu.Lock()
	defer k.mu.Unlock()
	epoch, mine := k.owned[shard]
	running, _, ok := k.engine.Owned(shard)
	if mine && (!ok || running != epoch) {
		delete(k.owned, shard)
		mine = false
	}
	return protocol.LocalShard{Owned: mine, Epoch: epoch, Stopping: k.releasing[shard]}
}

// reacquisition is how often in a row a shard was given up soon after it was acquired.
type reacquisition struct {
	last time.Time
	n    int
}

const (
	reacquireFreely = 3               // times in a row without a pause: a server that restarts costs some
	reacquirePause  = 5 * time.Second // the longest, and how long a shard must be owned to be well
)

// mayReacquire reports whether a shard that is ours, and that the engine gave up, may be
// acquired again now. What makes it give up each time, such as a server that ends the
// session of each commit, would otherwise raise epochs hundreds of times a second.
func (k *reconciler) mayReacquire(shard int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, now := k.reacquired[shard], time.Now()
	pause := min(reacquirePause, 100*time.Millisecond<<min(10, max(0, r.n-reacquireFreely)))
	switch since := now.Sub(r.last); {
	case since >= 2*reacquirePause:
		r.n = 0
	case r.n >= reacquireFreely && since < pause:
		k.metrics.acquisitionsDelayed.Inc()
		return false
	}
	r.last, r.n = now, r.n+1
	if r.n == reacquireFreely+1 {
		k.log.Warn("shard given up again and again; reacquiring it after pauses", "shard", shard)
	}
	k.reacquired[shard] = r
	return true
}

func (k *reconciler) forget(shard int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.owned, shard)
}

func (k *reconciler) waited(shard int) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	since, ok := k.awaitingRelease[shard]
	if !ok {
		k.awaitingRelease[shard] = time.Now()
		return 0
	}
	return time.Since(since)
}

func (k *reconciler) forgetWait(shard int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.awaitingRelease, shard)
}

// acquire raises the epochs of shards, redelivers what Postgres may have lost,
// and grants them to the engine. crashed are the owners that were seen to end.
func (k *reconciler) acquire(ctx context.Context, shards []protocol.Shard, me string, crashed map[string]bool) error {
	if len(shards) == 0 {
		return nil
	}
	started := time.Now()
	taken, errs := make([]protocol.Shard, len(shards)), make([]error, len(shards))
	var g errgroup.Group // without a context: the error of one shard ends no other's acquisition
	g.SetLimit(acquireConcurrency)
	for i, s := range shards {
		g.Go(func() error {
			alive := s.Owner
			if crashed[s.Owner] {
				alive = ""
			}
			t, err := k.shards.Acquire(ctx, s.Shard, me, alive)
			if errors.Is(err, protocol.ErrNotAssigned) {
				return nil // it was reassigned in between
			}
			if by, blocked := protocol.BlockedBy(err); blocked {
				rare.Reached(rare.AcquisitionBlocked)
				k.block(s.Shard, err, by)
				return nil // the others are not held up by it
			}
			if err != nil {
				k.shardFailed(ctx, err)
				k.forgetWait(s.Shard) // its owner's sessions end once per budget, not with each attempt
			}
			taken[i], errs[i] = t, err
			return nil
		})
	}
	// Those acquired are granted, whatever became of the others: the table says of
	// all that they are ours, and the next pass acquires the rest again.
	_ = g.Wait()
	acquiring := errors.Join(errs...)
	token, n := rand.Text(), 0
	grant := func(t protocol.Shard, dispatched telemetry.EntryID) error {
		k.mu.Lock()
		k.owned[t.Shard] = t.Epoch
		delete(k.blocked, t.Shard)
		k.mu.Unlock()
		if err := k.engine.Grant(protocol.ShardLease{Shard: t.Shard, Epoch: t.Epoch, Token: token, Quarantine: t.Quarantine, Dispatched: dispatched, Left: t.Left, Released: t.Released}); err != nil {
			return err
		}
		n++
		k.metrics.acquired.Inc()
		if s := t.Quarantine; s.Limit > 0 {
			k.log.Warn("shard quarantined: owners crashed without progress", "shard", t.Shard, "crash_count", s.CrashCount, "limit", s.Limit)
		}
		if i := slices.IndexFunc(shards, func(s protocol.Shard) bool { return s.Shard == t.Shard }); shards[i].Owner != "" && shards[i].Owner != me {
			rare.Reached(rare.ForceAcquired)
			k.metrics.forceAcquired.Inc()
		}
		return nil
	}
	taken = slices.DeleteFunc(taken, func(t protocol.Shard) bool { return t.Epoch == 0 })
	if len(taken) == 0 {
		return acquiring
	}
	err := errors.Join(acquiring, k.redeliver(ctx, taken, token, grant))
	if n > 0 {
		k.metrics.acquireSeconds.Observe(time.Since(started).Seconds())
		k.log.Info("acquired shards", "count", n, "duration", time.Since(started))
	}
	return err
}

// redeliver grants shards, each once what Postgres may have lost of it is on its
// queue again; first those that lost nothing. It begins once no acknowledgement
// of an earlier owner can succeed any more.
func (k *reconciler) redeliver(ctx context.Context, taken []protocol.Shard, token string, grant func(t protocol.Shard, dispatched telemetry.EntryID) error) error {
	of := make(map[int]protocol.Shard, len(taken))
	shards := make([]int, 0, len(taken))
	for _, t := range taken {
		of[t.Shard] = t
		shards = append(shards, t.Shard)
	}
	in, err := k.stream.RegisterOwner(ctx, token, shards)
	if err != nil {
		return fmt.Errorf("ask Redis: %w", err)
	}
	var ranges []protocol.Range
	for _, t := range taken {
		acked, known := in.Acked[t.Shard]
		after, upTo, behind := protocol.RangeToRedeliver(protocol.Marks{
			Applied: t.Applied, Acked: acked, AckedKnown: known, Dispatched: in.Dispatched,
		})
		if behind {
			ranges = append(ranges, protocol.Range{Shard: t.Shard, From: after, To: upTo})
		} else if err := grant(t, in.Dispatched); err != nil {
			return err
		}
	}
	if err := k.recordRestored(ctx, &in, ranges); err != nil {
		return err
	}
	for _, span := range protocol.Spans(ranges) {
		entries, err := k.stream.Redeliver(ctx, span)
		if f, ok := errors.AsType[*protocol.Failure](err); ok && f.Kind == protocol.Lost {
			// Without the group there is nothing to put back: it is created again at
			// 0, and then everything is redelivered anyway.
			err = nil
		}
		if err != nil {
			return fmt.Errorf("ask Redis: %w", err)
		}
		if entries > 0 {
			rare.Reached(rare.Redelivered)
			k.metrics.redelivered.Add(float64(entries))
			k.log.Info("redelivered entries whose commit is unconfirmed", "count", entries)
		}
		for _, r := range span {
			if err := grant(of[r.Shard], in.Dispatched); err != nil {
				return err
			}
		}
	}
	return nil
}

// recordRestored records what Postgres lost and the stream no longer holds.
func (k *reconciler) recordRestored(ctx context.Context, in *protocol.Entered, ranges []protocol.Range) error {
	var losses []protocol.Loss
	for _, r := range ranges {
		if loss := in.Restored(r); loss != nil {
			losses = append(losses, *loss)
		}
	}
	if len(losses) == 0 {
		return nil
	}
	if err := k.losses.Record(ctx, losses); err != nil {
		return err
	}
	for _, r := range ranges {
		if in.Restored(r) == nil {
			continue
		}
		if err := k.stream.SetApplied(ctx, r.Shard, r.From); err != nil {
			return fmt.Errorf("ask Redis: %w", err)
		}
	}
	rare.Reached(rare.RedeliveredTrimmed)
	k.log.Error("Postgres lost commits whose entries were trimmed; entries lost, count unknown",
		"shards", len(losses), "entry_id", losses[0].Last.String())
	return nil
}

// handOver finishes a shard and releases it, in the background.
func (k *reconciler) handOver(ctx context.Context, shard int, epoch int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.releasing[shard] {
		return
	}
	k.releasing[shard] = true
	started := time.Now()
	done := k.engine.Stop(shard)
	k.tasks.Go(func() {
		select {
		case <-done:
		case <-ctx.Done(): // releaseAll releases it
			k.mu.Lock()
			delete(k.releasing, shard)
			k.mu.Unlock()
			return
		}
		k.release(context.WithoutCancel(ctx), ctx, shard, epoch)
		rare.Reached(rare.HandedOver)
		k.metrics.handoffSeconds.Observe(time.Since(started).Seconds())
		k.mu.Lock()
		delete(k.releasing, shard)
		k.mu.Unlock()
		wakeUp(k.wake)
	})
}

// release gives up one shard: in one attempt, and in more until ctx ends. If that cannot
// be written, the successor force-acquires the shard.
func (k *reconciler) release(first, ctx context.Context, shard int, epoch int64) {
	running, applied, ok := k.engine.Owned(shard)
	k.forget(shard)
	var left []byte
	if ok && running == epoch {
		left = k.engine.Leave(shard)
	}
	k.engine.Drop(shard)
	if !ok || running != epoch {
		return
	}
	attempt := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, k.cfg.HandoffBudget)
		defer cancel()
		return k.shards.Release(ctx, protocol.ShardLease{Shard: shard, Epoch: epoch, Left: left}, k.membership.Name(), applied)
	}
	err := attempt(first)
	for ctx.Err() == nil {
		if _, blocked := protocol.BlockedBy(err); !blocked && !errors.Is(err, context.DeadlineExceeded) {
			break
		}
		// Nobody else can acquire it either, and a release in time spares our
		// sessions. Once it was acquired, a release changes nothing.
		err = attempt(ctx)
	}
	if err != nil {
		k.log.Warn("releasing shard failed; its next owner will force-acquire it", "shard", shard, "err", err)
		return
	}
	k.metrics.released.Inc()
}

// releaseAll gives up all shards at the end.
func (k *reconciler) releaseAll(ctx context.Context) error {
	k.tasks.Wait()
	// What cannot be released in time is force-acquired by its next owner.
	ctx, cancel := context.WithTimeoutCause(ctx, releaseBudget, errors.New("release all shards within 2s"))
	defer cancel()
	k.mu.Lock()
	holds := make(map[int]int64, len(k.owned))
	for shard, epoch := range k.owned {
		holds[shard] = epoch
	}
	k.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(acquireConcurrency)
	for shard, epoch := range holds {
		g.Go(func() error {
			k.release(ctx, ctx, shard, epoch)
			return nil
		})
	}
	return g.Wait()
}

// Owned returns the number of shards this member owns.
func (k *reconciler) Owned() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.owned)
}

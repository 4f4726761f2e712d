package pipeline

import (
	"context"
	"crypto/rand"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/trmtracking/processor/internal/lograte"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// dispatcher competes for the dispatch lease, and while it holds it dispatches
// new entries to the queues of their shards. It bypasses the queue for shards of
// this instance as far as protocol.Queue allows; every other entry is read from
// its queue by the owner.
type dispatcher struct {
	cfg       Config
	table     *table
	source    Source
	metrics   *metrics
	log       *slog.Logger
	leaseFree <-chan struct{} // the dispatch lease was given back by its holder
	peers     func() int      // number of other members that can accept entries
	spread    *protocol.SpreadLease

	progress  *protocol.ProgressTracker
	polled    time.Time     // when the progress of the shards was read last
	foreign   int           // entries that were pending for foreign consumers then, and may be still
	ttl       time.Duration // of the dispatch lease: longer than configured while a dispatch takes longer
	pages     protocol.Pages
	settledAt time.Time // when the last-delivered ID was moved last
	again     redispatch

	wait  *backoff.ExponentialBackOff
	quiet lograte.Limit
	late  lograte.Limit
	moved lograte.Limit
}

// maxDispatchLease bounds a dispatch lease that is prolonged, and with it for how long
// nothing is dispatched after its holder died.
const maxDispatchLease = time.Minute

// run dispatches until ctx ends, and then releases the dispatch lease.
func (d *dispatcher) run(ctx context.Context) error {
	token := ""
	defer func() {
		d.table.nextLease(false)
		if token != "" {
			d.release(ctx, token)
		}
		d.spread.Hold(false)
	}()
	for ctx.Err() == nil {
		if yield := d.spread.Yield(d.peers()); token == "" && yield > 0 && sleep(ctx, yield) != nil {
			break
		}
		before := token
		token = rand.Text()
		d.ttl = max(d.ttl, d.cfg.DispatchLeaseTTL)
		started := time.Now()
		lease, err := d.source.AcquireDispatchLease(ctx, before, token, d.ttl)
		switch {
		case err != nil:
			// The lease may be held under the new token, the old one, or not at all:
			// forget both, it expires by itself.
			if before != "" {
				token = before
			}
			d.table.nextLease(false)
			d.metrics.dispatcher.Set(0)
			d.logRateLimited(ctx, "acquire the dispatch lease", err)
		case !lease.Acquired:
			token = ""
			d.spread.Hold(false)
			d.table.nextLease(false)
			d.metrics.dispatcher.Set(0)
			d.table.dispatched(lease)
			d.await(ctx, min(lease.Left, d.cfg.DispatchBlock))
		default:
			d.spread.Hold(true)
			if gaveUp := d.runLease(ctx, token, lease, started); gaveUp {
				d.table.nextLease(false)
				d.metrics.dispatcher.Set(0)
				d.release(ctx, token)
				token = ""
			}
		}
	}
	d.metrics.dispatcher.Set(0)
	return nil
}

func (d *dispatcher) release(ctx context.Context, token string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := d.source.ReleaseDispatchLease(ctx, token); err != nil {
		d.log.Warn("could not release dispatch lease; it will expire", "err", err)
	}
}

// await waits for the dispatch lease to become free, or for wait.
func (d *dispatcher) await(ctx context.Context, wait time.Duration) {
	t := time.NewTimer(max(wait, 10*time.Millisecond))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-d.leaseFree:
	case <-t.C:
	}
}

// runLease dispatches under one token until an error or until the dispatch lease is lost. It
// reports whether the lease is given up to another member, and the caller is to release it.
func (d *dispatcher) runLease(ctx context.Context, token string, lease protocol.DispatchLease, started time.Time) (gaveUp bool) {
	number := d.table.nextLease(true)
	d.metrics.dispatcher.Set(1)
	d.noteGroup(lease)
	d.again = redispatch{until: lease.Beyond}
	if end := d.pages.End(); !lease.GroupCreated && d.again.until.Less(end) && lease.After.Less(end) {
		d.again.until = end // of an earlier lease of ours
	}
	d.pages.Begin(lease.After)
	d.table.settled(lease.After)
	pending, renewed, asked, paused, idle, ended := lease.Pending, started, started, lease.Paused, true, false
	defer func() {
		if gaveUp || ctx.Err() != nil {
			d.settle(ctx, number, token)
		}
	}()
	for ctx.Err() == nil {
		// Under a steady load each dispatch renews the lease, and only asking tells of a pause.
		if time.Since(renewed) > d.ttl/3 || time.Since(asked) > d.cfg.DispatchLeaseTTL {
			if d.spread.GiveUp(time.Now(), d.peers()) {
				d.log.Info("giving the dispatch lease up: others hold fewer of those of all streams")
				return true
			}
			started := time.Now()
			lease, err := d.source.AcquireDispatchLease(ctx, token, token, d.ttl)
			if err != nil {
				d.logRateLimited(ctx, "renew the dispatch lease", err)
				return false
			}
			d.noteGroup(lease)
			// A lease that had ended meanwhile is acquired under its old token. What another
			// dispatcher did then shows in the last-delivered ID, or beyond it.
			if !lease.Acquired || lease.GroupCreated || lease.Moved || lease.After != d.pages.Settled() || d.again.until.Less(lease.Beyond) {
				return false
			}
			renewed, asked, pending, paused = started, started, lease.Pending, lease.Paused
		}
		if !d.table.holdsLease(number) {
			return false
		}
		a, read := protocol.NewEntries{}, time.Time{}
		if !idle || !d.settles(ended) {
			if err := d.pollProgress(ctx, pending); err != nil {
				d.logRateLimited(ctx, "read the progress of the shards", err)
				return false
			}
			queued := max(0, pending-d.foreign)
			state := protocol.WaitDispatchHeld
			if !paused {
				state = d.lacksRoom(queued)
			}
			if state == "" && d.overtakes(queued) {
				state = protocol.WaitDispatchUnread
			}
			d.table.dispatchWaits(state)
			if idle, ended = state != "", false; idle {
				d.pause(ctx)
				continue
			}
			block := d.cfg.DispatchBlock
			if d.pages.Open() > 0 {
				block = min(block, settleEvery)
			}
			var err error
			if a, err = d.source.ReadNew(ctx, d.pages.End(), d.count(), block); err != nil {
				d.metrics.read(readError)
				d.logRateLimited(ctx, "read new entries", err)
				return false
			}
			if idle = len(a.Entries) == 0; idle {
				ended = true
				d.metrics.read(readEmpty)
				d.wait.Reset()
				if !d.again.untold {
					d.again.until = telemetry.EntryID{} // of what may be dispatched again nothing is left
				}
				continue
			}
			d.metrics.read(readOK)
			read = time.Now()
			if ctx.Err() != nil || !d.table.holdsLease(number) {
				return false
			}
		}
		started := time.Now()
		p := d.plan(number, &a, false)
		if p == nil {
			return false
		}
		if len(a.Entries) == 0 && !p.isDue(d.pages.Settled()) {
			idle = false
			continue
		}
		left, err := d.dispatch(ctx, number, token, p, &a)
		d.fit(time.Since(renewed))
		if err != nil {
			// It may have happened. The next lease starts without knowledge of the queues.
			d.logRateLimited(ctx, "dispatch", err)
			return false
		}
		d.wait.Reset()
		idle, renewed, pending = false, started, left
		d.metrics.arrived(&a)
		if !a.Full && len(a.Entries) > 0 {
			_ = sleep(ctx, time.Until(read.Add(d.cfg.gatherTime())))
		}
	}
	return false
}

// fit prolongs the dispatch lease while a dispatch, counted from the lease's renewal on,
// takes longer than it: each would arrive too late, and nothing be dispatched. Members that
// compete shorten each other's lease to their own; those that are as slow come to the same.
func (d *dispatcher) fit(took time.Duration) {
	switch {
	case took >= d.ttl:
		rare.Reached(rare.LeaseProlonged)
		d.ttl = max(d.ttl, min(2*took, maxDispatchLease))
		if d.late.Pass() {
			d.log.Warn("a dispatch took longer than its lease; the next lease is longer. Redis or the link to it is slow", "took", took, "lease", d.ttl)
		}
	case took < d.ttl/2:
		d.ttl = max(d.cfg.DispatchLeaseTTL, d.ttl-d.ttl/8)
	}
}

// noteGroup re-reads all queues if the group was recreated: they hold what will
// be redelivered. The script notifies the other members. It tells of another client
// that moved the last-delivered ID.
func (d *dispatcher) noteGroup(lease protocol.DispatchLease) {
	if lease.GroupCreated {
		rare.Reached(rare.GroupCreated)
		d.log.Warn("consumer group created at the start of the stream; known entries end as duplicates")
		d.table.rewind(true)
	}
	if lease.Moved && d.moved.Pass() {
		rare.Reached(rare.LastIDMoved)
		d.log.Warn("last-delivered ID was moved forward by another client; dispatching resumes at the previous position")
	}
}

// pollProgress refreshes the progress of the shards while many dispatched entries
// are unfinished, so that stalled shards are known before dispatch has to pause, and
// what foreign consumers hold: it may lie beyond what is dispatched, and wait for us.
func (d *dispatcher) pollProgress(ctx context.Context, pending int) error {
	if pending < d.cfg.DispatchAhead/2 {
		d.foreign = 0
		return nil
	}
	if time.Since(d.polled) < d.cfg.StallAfter/16 {
		return nil
	}
	work, foreign, err := d.source.Work(ctx)
	if err != nil {
		return err
	}
	d.polled, d.foreign = time.Now(), foreign
	d.progress.Observe(d.polled, work)
	return nil
}

// lacksRoom returns why not to dispatch more, "" to do so, with so many entries on
// queues. Dispatch pauses when dispatched and unfinished >= DispatchAhead, not counting stalled shards (the
// leader opens an incident for each). It also pauses while our own workers are
// full, unless peers have fewer than two reads queued between them: reading our
// entries back later costs more than waiting.
func (d *dispatcher) lacksRoom(queued int) (state string) {
	d.table.mu.Lock()
	defer d.table.mu.Unlock()
	unqueued, _, _ := d.table.unqueued()
	all := queued + unqueued + d.table.orphaned()
	if all >= d.cfg.DispatchAhead && d.progress.EffectiveBacklog(time.Now(), all, d.cfg.DispatchAhead) >= d.cfg.DispatchAhead {
		return protocol.WaitDispatchAhead
	}
	others := queued - (d.table.records - unqueued)
	if d.table.records == 0 || d.peers() > 0 && others < 2*d.cfg.ReadBatchRecords ||
		d.table.free() >= d.table.worthReading(d.cfg.ReadBatchRecords) && !d.table.crowded(time.Now()) {
		return ""
	}
	return protocol.WaitDispatchFull
}

// overtakes reports whether what is dispatched now would have to be read back from
// queues soon, since nobody else is there to read them: no shard is granted yet, or
// queues of our own are not read to their end. Each entry costs twice then, and the
// queues are read no sooner.
func (d *dispatcher) overtakes(queued int) bool {
	if d.peers() > 0 {
		return false
	}
	d.table.mu.Lock()
	defer d.table.mu.Unlock()
	owned, behind := d.table.behind(time.Now())
	return behind || owned == 0 && queued >= 2*d.cfg.ReadBatchRecords
}

// pause waits until an entry is finished or a queue is read here, at most for a short poll.
func (d *dispatcher) pause(ctx context.Context) {
	t := time.NewTimer(d.cfg.DispatchLeaseTTL / 8)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-d.table.room:
	case <-t.C:
	}
}

// count returns the number of entries to read: as many as our workers have room for, but no
// fewer than are worth a read. With less room than that it is for the peers' sake.
func (d *dispatcher) count() int {
	d.table.mu.Lock()
	defer d.table.mu.Unlock()
	return max(d.table.worthReading(d.cfg.ReadBatchRecords), min(d.cfg.ReadBatchRecords, d.table.free()))
}

// bypass delivers dispatched entries to our workers, where their queues may be bypassed.
func (d *dispatcher) bypass(lease uint64, a *protocol.NewEntries, p *dispatchPlan, gone map[telemetry.EntryID]struct{}) {
	t := d.table
	t.mu.Lock()
	defer t.mu.Unlock()
	t.learn(len(a.Entries), a.Bytes)
	unread, pins := false, t.pins(a)
	deliver := func(shard int, entries []telemetry.Entry) {
		if pins {
			entries = detached(entries)
		}
		t.deliver(shard, entries)
	}
	a.Each(func(shard int, entries []telemetry.Entry) {
		s := &t.slots[shard]
		grant, unqueued := p.unqueued[shard]
		may := s.owned && !s.stopping && p.known[shard] && s.queue.CanBypass(lease) && t.heldLease() == lease &&
			!s.queue.Passed(entries[0].ID)
		switch {
		case unqueued && may && s.grant == grant && len(t.orphans[shard]) == 0:
			for i := range entries {
				s.queue.LeaveUnqueued(entries[i].ID)
			}
			deliver(shard, entries)
		case unqueued:
			t.orphan(shard, idsOf(entries))
		case !s.owned || s.stopping:
		case may && len(gone) == 0 && (p.room || t.free() >= len(entries)) && t.fits(s, len(entries)):
			for i := range entries {
				s.queue.Bypassed(entries[i].ID)
			}
			deliver(shard, entries)
		default:
			s.queue.Dispatched()
			s.due, unread = true, true
		}
	})
	t.delivered()
	if unread {
		wakeUp(t.wake)
	}
}

// logRateLimited logs a failure and waits before the next attempt.
func (d *dispatcher) logRateLimited(ctx context.Context, what string, err error) {
	if ctx.Err() != nil {
		return
	}
	d.metrics.dispatchErrors.Inc()
	if lostState(err) {
		rare.Reached(rare.DispatchRefused)
		d.log.Debug("dispatch lease or group changed", "what", what, "err", err)
		return
	}
	if d.quiet.Pass() {
		d.log.Warn("operation failed, will retry", "what", what, "err", err)
	}
	_ = sleep(ctx, d.wait.NextBackOff())
}

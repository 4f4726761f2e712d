package pipeline

import (
	"context"
	"maps"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

const (
	// unqueuedFor bounds for how long entries are unqueued: what keeps the last-delivered ID back for
	// longer is put on its queue. It is longer than a batch gathers and takes to commit.
	unqueuedFor = 2 * time.Second
	// settleEvery is the wait for new entries while the last-delivered ID is kept back, and
	// settleWithin for how long it may be, while dispatch waits, before it is moved by itself.
	settleEvery  = 20 * time.Millisecond
	settleWithin = 200 * time.Millisecond
)

// redispatch is what a dispatcher knows of entries that one before it had unqueued. Members
// may have finished some since, and find those behind their cursors.
type redispatch struct {
	until  telemetry.EntryID // the last of them; zero for none
	untold bool              // some were dispatched since the members were told to read their queues from the start
	told   time.Time
}

// tellEvery bounds how often members are told: each reads all of its queues then.
const tellEvery = time.Second

// dispatchPlan is what a dispatch does with the entries of a read, as decided before it is sent.
type dispatchPlan struct {
	ahead    protocol.Ahead
	known    map[int]bool   // shards whose queues may be bypassed
	room     bool           // our workers have room for all of the read; else each takes no more than it has
	unqueued map[int]uint64 // shards whose entries are unqueued, and their grants
	enqueued map[int]uint64 // shards whose unqueued entries are put on their queues, and their grants
}

// isDue reports whether a dispatch is due that reads nothing.
func (p *dispatchPlan) isDue(settled telemetry.EntryID) bool {
	return p.ahead.Rewind || p.ahead.Settled.ID != settled || len(p.ahead.Again) > 0 || len(p.ahead.Enqueue) > 0
}

// plan decides what a dispatch does, before it is sent: a read that finds a queue empty
// during the dispatch may have found a recreated group, without the entries of the old one.
// With all everything that is unqueued is put on its queue. It returns nil if the lease is gone.
func (d *dispatcher) plan(lease uint64, a *protocol.NewEntries, all bool) *dispatchPlan {
	t := d.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.heldLease() != lease {
		return nil
	}
	p := &dispatchPlan{known: make(map[int]bool, len(a.Shards)), room: t.records == 0 || t.free() >= len(a.Entries)}
	unqueued, first, kept := t.unqueued()
	p.ahead.From, p.ahead.Settled, p.ahead.Number = d.pages.End(), d.pages.Settles(first, kept), d.pages.Dispatches()
	p.ahead.UnqueuedCount = unqueued
	p.ahead.Again = maps.Clone(t.orphans)
	p.enqueueOverdue(t, &d.pages, all)

	again := !d.again.until.IsZero()
	last := !a.Full || d.again.until.Compare(a.Last) <= 0 // of those that may be dispatched again
	p.ahead.Rewind = again && (len(a.Entries) > 0 || d.again.untold) && (last || time.Since(d.again.told) >= tellEvery)
	a.Each(func(shard int, entries []telemetry.Entry) {
		s := &t.slots[shard]
		if again || !s.owned || !s.queue.CanBypass(lease) {
			p.enqueueShard(t, shard)
			return
		}
		p.known[shard] = true
		n := len(entries)
		// While nothing is settled a group that a client removes and creates at 0 would not be told from this one.
		if (a.Full && !d.pages.Settled().IsZero() || s.queue.Unqueued() > 0) && !s.stopping && s.quarantine.Limit == 0 && len(t.orphans[shard]) == 0 &&
			t.mayStayUnqueued(s, n) && (p.room || t.free() >= n && t.fits(s, n)) {
			if p.unqueued == nil {
				p.unqueued = make(map[int]uint64, len(a.Shards))
			}
			p.unqueued[shard] = s.grant
			p.ahead.UnqueuedCount += n
		} else {
			p.enqueueShard(t, shard)
		}
	})
	for shard := range p.ahead.Again {
		p.enqueueShard(t, shard)
	}
	p.ahead.Unqueued = func(shard int) bool { _, ok := p.unqueued[shard]; return ok }
	if len(a.Entries) > 0 && !kept && len(p.unqueued) == 0 {
		p.ahead.Settled = protocol.Position{ID: a.Last, Read: -1}
	}
	return p
}

// enqueueOverdue decides which of the entries that are unqueued are put on their queues: those that
// keep the last-delivered ID back for too long. The caller holds the table's lock.
func (p *dispatchPlan) enqueueOverdue(t *table, pages *protocol.Pages, all bool) {
	late, overdue := pages.Overdue(time.Now().Add(-unqueuedFor))
	if !overdue && !all {
		return
	}
	for shard := range t.slots {
		s := &t.slots[shard]
		if first, ok := s.queue.FirstUnqueued(); !ok || !all && late.Less(first) {
			continue
		}
		p.enqueueShard(t, shard)
	}
}

// enqueueShard puts all that is unqueued of a shard on its queue: nothing may be put there while earlier
// entries are on none. An owner would get it before them if their work were given up. It
// includes what is being acknowledged: Postgres may lose its commit.
func (p *dispatchPlan) enqueueShard(t *table, shard int) {
	s := &t.slots[shard]
	ids := s.queue.Enqueue()
	if len(ids) == 0 {
		return
	}
	rare.Reached(rare.UnqueuedOverdue)
	p.ahead.UnqueuedCount = max(0, p.ahead.UnqueuedCount-len(ids))
	if p.ahead.Enqueue == nil {
		p.ahead.Enqueue, p.enqueued = make(map[int][]telemetry.EntryID), make(map[int]uint64)
	}
	p.ahead.Enqueue[shard], p.enqueued[shard] = ids, s.grant
	delete(p.known, shard)
}

// settles reports whether a dispatch may be due that reads nothing: at the end of a backlog, for
// orphans, and from time to time.
func (d *dispatcher) settles(ended bool) bool {
	t := d.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.orphans) > 0 || d.again.untold && (ended || time.Since(d.again.told) >= tellEvery) {
		return true
	}
	if !ended && time.Since(d.settledAt) < settleWithin {
		return false
	}
	_, first, kept := t.unqueued()
	late, overdue := d.pages.Overdue(time.Now().Add(-unqueuedFor))
	return d.pages.Settles(first, kept).ID != d.pages.Settled() || overdue && first.Compare(late) <= 0
}

// dispatch sends a dispatch and acts upon it: entries are delivered that bypass their queues.
func (d *dispatcher) dispatch(ctx context.Context, lease uint64, token string, p *dispatchPlan, a *protocol.NewEntries) (pending int, err error) {
	end := p.ahead.From
	if len(a.Entries) > 0 {
		end = a.Last
	}
	request := protocol.DispatchRequest{Token: token, TTL: d.ttl, After: d.pages.Settled(), Notify: d.peers() > 0, Ahead: &p.ahead}
	sending, cancel := lingering(ctx, time.Second)
	defer cancel()
	result, err := d.source.Dispatch(sending, request, a)
	if err != nil {
		// It may have happened. The next dispatcher begins at the last-delivered ID, behind all
		// that the plan has put on queues.
		d.table.nextLease(false)
		return 0, err
	}
	d.settledAt = time.Now()
	d.pages.Dispatched(p.ahead.Settled.ID, protocol.Position{ID: end, Read: result.Read}, time.Now())
	d.queued(lease, p, result.Gone)
	d.bypass(lease, a, p, result.Gone)
	if !d.again.until.IsZero() {
		rare.Reached(rare.DispatchedAgain)
		d.foreign = max(0, d.foreign-len(a.Entries)) // they may have been among these: told with the next poll
		d.again.untold = d.again.untold || len(a.Entries) > 0
	}
	if p.ahead.Rewind {
		d.table.rewind(true)
		d.again.untold, d.again.told = false, time.Now()
	}
	if d.again.until.Compare(end) <= 0 {
		d.again = redispatch{}
	}
	d.table.settled(d.pages.Settled())
	return result.Pending, nil
}

// lingering returns a context that ends some time after another: what is under way when a drain
// begins is not cut off, since its outcome would be unknown.
func lingering(ctx context.Context, more time.Duration) (context.Context, context.CancelFunc) {
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		end := time.AfterFunc(more, cancel)
		context.AfterFunc(lasting, func() { end.Stop() })
	})
	return lasting, func() { stop(); cancel() }
}

// queued notes that entries of earlier reads are on their queues now.
func (d *dispatcher) queued(lease uint64, p *dispatchPlan, gone map[telemetry.EntryID]struct{}) {
	t := d.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.heldLease() != lease {
		return
	}
	for shard, ids := range p.ahead.Again {
		t.adopt(shard, ids)
		t.slots[shard].queue.Dispatched()
		t.slots[shard].queue.Recheck() // some may have been redelivered, and finished
		t.slots[shard].due = true
	}
	for shard, grant := range p.enqueued {
		s := &t.slots[shard]
		s.queue.Dispatched()
		s.queue.LookAgain() // as when that was decided: now the entries are on the queue
		s.due = true
		for _, id := range p.ahead.Enqueue[shard] {
			if _, ok := gone[id]; !ok {
				continue
			}
			if s.grant == grant {
				s.queue.Vanish(id) // else it is finished
			} else {
				t.orphan(shard, []telemetry.EntryID{id})
			}
		}
	}
	if len(p.ahead.Again)+len(p.enqueued) > 0 {
		wakeUp(t.wake)
	}
}

// settle puts everything that is unqueued on its queue at the end of a term, and then moves the
// last-delivered ID to the end of what was read, so that nothing is dispatched again. It stays
// where it is if some was trimmed, and only its owner has it.
func (d *dispatcher) settle(ctx context.Context, lease uint64, token string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	none := &protocol.NewEntries{}
	for range 2 {
		p := d.plan(lease, none, true)
		if p == nil || !p.isDue(d.pages.Settled()) {
			return
		}
		if _, err := d.dispatch(ctx, lease, token, p, none); err != nil {
			d.log.Warn("could not settle what was dispatched; the next dispatcher dispatches it again", "err", err)
			return
		}
	}
}

package sim

import (
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// dispatcher is a member's state of dispatching, as the pipeline's.
type dispatcher struct {
	pages     protocol.Pages
	beyond    telemetry.EntryID // entries until here may be dispatched again
	settledAt int64             // when the last-delivered ID was moved last
	idle      bool
	ended     bool // the last read came back empty
	orphans   map[int][]telemetry.EntryID
}

// plan is what a dispatch does, as decided before it is sent.
type plan struct {
	from, settled telemetry.EntryID
	again         map[int][]telemetry.EntryID
	release       map[int][]telemetry.EntryID
	rewind        bool
	known         map[int]bool   // shards whose queues may be bypassed
	unqueued      map[int]uint64 // shards whose entries are unqueued, and their grants
	released      map[int]uint64
}

func (d *plan) isDue(settled telemetry.EntryID) bool {
	return d.settled != settled || len(d.again) > 0 || len(d.release) > 0
}

// acquireLease requests the dispatch lease, as the pipeline's dispatcher does.
func (p *proc) acquireLease() {
	if p.leaving {
		p.nextLease(false)
		return
	}
	before := p.token
	p.token = p.w.newToken()
	token := p.token
	call(p, redisServer, "acquire the dispatch lease", func(answer func(protocol.DispatchLease, error)) {
		answer(p.w.redis.acquireDispatchLease(p, before, token, dispatchLeaseTTL), nil)
	}, func(lease protocol.DispatchLease, err error) {
		switch {
		case err != nil:
			if before != "" {
				p.token = before
			}
			p.nextLease(false)
			p.again(p.acquireLease)
		case !lease.Acquired:
			p.token = ""
			p.nextLease(false)
			p.dispatched(lease)
			p.w.after(max(10, min(lease.Left.Milliseconds(), dispatchBlock)), p, p.acquireLease)
		default:
			p.w.logf(p, "has the dispatch lease, after %d, beyond %d", lease.After.Seq, lease.Beyond.Seq)
			number := p.nextLease(true)
			if lease.Moved {
				p.w.reach(rare.LastIDMoved)
			}
			if lease.GroupCreated {
				p.w.reach(rare.GroupCreated)
				p.rewind(true)
			}
			p.renewed = p.w.now
			d := &p.dispatcher
			d.beyond, d.idle, d.ended = lease.Beyond, true, false
			if end := d.pages.End(); d.beyond.Less(end) && lease.After.Less(end) {
				d.beyond = end // of an earlier lease of its own
			}
			d.pages.Begin(lease.After)
			p.runLease(number)
		}
	})
}

func (p *proc) again(f func()) { p.w.after(20+p.rng.Int64N(100), p, f) }

// giveUpLease settles and releases the dispatch lease, and may ask for it again later.
func (p *proc) giveUpLease(number uint64) {
	p.settle(number, 2, func() {
		token := p.token
		p.token = ""
		p.nextLease(false)
		call(p, redisServer, "release the dispatch lease", func(answer func(bool, error)) {
			p.w.redis.releaseDispatchLease(token)
			answer(true, nil)
		}, func(bool, error) {
			p.w.after(500+p.rng.Int64N(500), p, p.acquireLease)
		})
	})
}

// settle puts everything that is unqueued on its queue at the end of a term, and moves the
// last-delivered ID to the end of what was read.
func (p *proc) settle(number uint64, rounds int, then func()) {
	d := p.plan(number, nil, false, true)
	if rounds == 0 || p.heldLease() != number || !d.isDue(p.dispatcher.pages.Settled()) {
		then()
		return
	}
	p.dispatch(number, d, nil, false, func(err error) {
		if err != nil {
			then()
			return
		}
		p.settle(number, rounds-1, then)
	})
}

// runLease renews, reads and dispatches, until an error or until the dispatch lease is lost.
func (p *proc) runLease(number uint64) {
	d := &p.dispatcher
	if p.heldLease() != number {
		p.again(p.acquireLease)
		return
	}
	if p.leaving {
		p.giveUpLease(number)
		return
	}
	if p.w.now-p.renewed > dispatchLeaseTTL/4 {
		if p.rng.IntN(24) == 0 && p.w.others(p) > 0 {
			p.w.logf(p, "gives the dispatch lease up")
			p.giveUpLease(number)
			return
		}
		token, started := p.token, p.w.now
		call(p, redisServer, "renew the dispatch lease", func(answer func(protocol.DispatchLease, error)) {
			answer(p.w.redis.acquireDispatchLease(p, token, token, dispatchLeaseTTL), nil)
		}, func(lease protocol.DispatchLease, err error) {
			if err != nil || !lease.Acquired || lease.GroupCreated || lease.After != d.pages.Settled() || d.beyond.Less(lease.Beyond) {
				p.endLease(number, false)
				return
			}
			p.renewed = started
			p.runLease(number)
		})
		return
	}
	if d.idle && p.settles() {
		p.proceed(number, p.w.now, nil, false)
		return
	}
	d.ended = false
	from, count, block := d.pages.End(), 1+p.rng.IntN(6), int64(dispatchBlock)
	if d.pages.Open() > 0 {
		block = settleEvery
	}
	started := p.w.now
	call(p, redisServer, "read new entries", func(answer func([]*entry, error)) {
		if read := p.w.redis.readNew(from, count); len(read) > 0 {
			answer(read, nil)
			return
		}
		p.w.after(block, nil, func() { answer(p.w.redis.readNew(from, count), nil) })
	}, func(read []*entry, err error) {
		if err != nil || p.heldLease() != number {
			p.endLease(number, false)
			return
		}
		if d.idle = len(read) == 0; d.idle {
			d.ended, d.beyond = true, telemetry.EntryID{}
			p.runLease(number)
			return
		}
		p.proceed(number, started, read, len(read) >= count)
	})
}

// endLease is the end of a term without giving the lease up. A member that leaves
// settles unless the outcome of a dispatch is unknown.
func (p *proc) endLease(number uint64, unknown bool) {
	if p.leaving && (!unknown || p.w.cfg.Mutant == SettledUnknown) {
		p.giveUpLease(number)
		return
	}
	p.again(p.acquireLease)
}

// proceed dispatches what was read, or settles.
func (p *proc) proceed(number uint64, started int64, read []*entry, full bool) {
	d := &p.dispatcher
	pl := p.plan(number, read, full, false)
	if len(read) == 0 && !pl.isDue(d.pages.Settled()) {
		d.idle = false
		p.w.after(0, p, func() { p.runLease(number) })
		return
	}
	p.dispatch(number, pl, read, full, func(err error) {
		if err != nil {
			p.endLease(number, true)
			return
		}
		d.idle, p.renewed = false, started
		p.runLease(number)
	})
}

// settles reports whether a dispatch may be due that reads nothing.
func (p *proc) settles() bool {
	d := &p.dispatcher
	if len(d.orphans) > 0 {
		return true
	}
	if !d.ended && p.w.now-d.settledAt < settleWithin {
		return false
	}
	first, kept := p.firstUnqueued()
	late, overdue := d.pages.Overdue(p.overdue())
	return d.pages.Settles(first, kept).ID != d.pages.Settled() || overdue && first.Compare(late) <= 0
}

// overdue is the time before which pages were read that keep the last-delivered ID back
// for too long.
func (p *proc) overdue() time.Time { return time.UnixMilli(p.w.now - unqueuedFor) }

// firstUnqueued returns the first entry that is on no queue, in flight or an orphan.
func (p *proc) firstUnqueued() (first telemetry.EntryID, found bool) {
	note := func(id telemetry.EntryID) {
		if !found || id.Less(first) {
			first, found = id, true
		}
	}
	for i := range p.slots {
		if id, ok := p.slots[i].queue.FirstUnqueued(); ok {
			note(id)
		}
	}
	for _, ids := range p.dispatcher.orphans {
		for _, id := range ids {
			note(id)
		}
	}
	return first, found
}

// plan decides what a dispatch does, as plan of the pipeline does.
func (p *proc) plan(number uint64, read []*entry, full, all bool) *plan {
	d, m := &p.dispatcher, p.w.cfg.Mutant
	pl := &plan{known: make(map[int]bool), unqueued: make(map[int]uint64), release: make(map[int][]telemetry.EntryID), released: make(map[int]uint64)}
	first, kept := p.firstUnqueued()
	pl.from, pl.settled = d.pages.End(), d.pages.Settles(first, kept).ID
	pl.again = maps.Clone(d.orphans)
	if late, overdue := d.pages.Overdue(p.overdue()); overdue || all {
		for shard := range p.slots {
			if first, ok := p.slots[shard].queue.FirstUnqueued(); ok && (all || !late.Less(first)) {
				p.enqueueOverdue(pl, shard)
			}
		}
	}
	again := !d.beyond.IsZero()
	pl.rewind = again && len(read) > 0
	if m == UnqueuedAgain {
		again = false
	}
	for shard := range p.slots {
		s, n := &p.slots[shard], countOf(read, shard)
		if n == 0 {
			continue
		}
		// An empty queue counts only if it was known before the dispatch was sent:
		// a read in between may have seen another group's queue.
		if m == FeedKnownLate {
			pl.known[shard] = true
		}
		if again || !s.owned || !s.queue.CanBypass(number) {
			p.claimedWith(pl, shard)
			continue
		}
		pl.known[shard] = true
		if (full && !d.pages.Settled().IsZero() || s.queue.Unqueued() > 0) && !s.stopping && len(d.orphans[shard]) == 0 && !p.worker.full() && p.rng.IntN(8) > 0 {
			pl.unqueued[shard] = s.grant
		} else {
			p.claimedWith(pl, shard)
		}
	}
	for _, shard := range slices.Sorted(maps.Keys(pl.again)) {
		p.claimedWith(pl, shard)
	}
	switch {
	case m == LastIDPassesUnqueued && len(read) > 0:
		pl.settled = read[len(read)-1].id
	case len(read) > 0 && !kept && len(pl.unqueued) == 0:
		pl.settled = read[len(read)-1].id
	}
	return pl
}

func countOf(read []*entry, shard int) (n int) {
	for _, e := range read {
		if e.shard == shard {
			n++
		}
	}
	return n
}

// claimedWith releases what is held of a shard of which something is claimed.
func (p *proc) claimedWith(pl *plan, shard int) {
	if p.w.cfg.Mutant != ClaimedAheadOfUnqueued {
		p.enqueueOverdue(pl, shard)
	}
}

func (p *proc) enqueueOverdue(pl *plan, shard int) {
	s := &p.slots[shard]
	ids := s.queue.Enqueue()
	if len(ids) == 0 {
		return
	}
	p.w.reach(rare.UnqueuedOverdue)
	p.lookedForOnce(s)
	pl.release[shard], pl.released[shard] = ids, s.grant
	delete(pl.known, shard)
}

// lookedForOnce is a mutant: it makes a queue forget that it is to be read once more.
func (p *proc) lookedForOnce(s *slot) {
	if p.w.cfg.Mutant != LookedForOnce {
		return
	}
	ids := s.queue.InFlightIDs()
	s.queue.Discard()
	if len(ids) > 0 {
		s.queue.Bypassed(ids...)
	}
	s.queue.Reset()
}

// dispatch sends a dispatch and acts upon it.
func (p *proc) dispatch(number uint64, pl *plan, read []*entry, full bool, done func(error)) {
	d, token := &p.dispatcher, p.token
	r := request{
		token: token, after: d.pages.Settled(), from: pl.from, last: pl.from, settled: pl.settled, read: read, number: d.pages.Dispatches(),
		again: pl.again, release: pl.release, rewind: pl.rewind, notify: p.w.others(p) > 0,
		unqueued: func(shard int) bool { _, ok := pl.unqueued[shard]; return ok },
	}
	if len(read) > 0 {
		r.last = read[len(read)-1].id
	}
	call(p, redisServer, "dispatch", func(answer func(map[telemetry.EntryID]bool, error)) {
		if p.leaving && p.rng.IntN(2) == 0 {
			return // its context ended before it was sent
		}
		answer(p.w.redis.dispatch(p, r, dispatchLeaseTTL))
	}, func(gone map[telemetry.EntryID]bool, err error) {
		if err == nil && p.leaving && len(read) > 0 && p.rng.IntN(2) == 0 {
			err = errUnknown // its context ended
		}
		if err != nil {
			if errors.Is(err, errLost) {
				p.w.reach(rare.DispatchRefused)
			}
			done(err)
			return
		}
		p.w.logf(p, "dispatched after %d to %d, last-delivered ID %d, shards unqueued %v, enqueued %v, again %v", pl.from.Seq, r.last.Seq, pl.settled.Seq,
			slices.Sorted(maps.Keys(pl.unqueued)), seqs(pl.release), seqs(pl.again))
		d.settledAt = p.w.now
		d.pages.Dispatched(pl.settled, protocol.Position{ID: r.last, Read: -1}, p.w.clock())
		p.queued(number, pl, gone)
		p.bypass(number, pl, read, len(gone) > 0)
		if pl.rewind {
			p.w.reach(rare.DispatchedAgain)
			p.rewind(true)
			if d.beyond.Compare(r.last) <= 0 {
				d.beyond = telemetry.EntryID{}
			}
		}
		done(nil)
	})
}

func seqs(lists map[int][]telemetry.EntryID) (all []uint64) {
	for _, shard := range slices.Sorted(maps.Keys(lists)) {
		for _, id := range lists[shard] {
			all = append(all, id.Seq)
		}
	}
	return all
}

// queued notes that entries of earlier reads are on their queues now.
func (p *proc) queued(number uint64, pl *plan, gone map[telemetry.EntryID]bool) {
	if p.heldLease() != number {
		return
	}
	d := &p.dispatcher
	for _, shard := range slices.Sorted(maps.Keys(pl.again)) {
		if rest := d.orphans[shard][len(pl.again[shard]):]; len(rest) > 0 {
			d.orphans[shard] = slices.Clone(rest)
		} else {
			delete(d.orphans, shard)
		}
		p.slots[shard].queue.Dispatched()
		p.slots[shard].queue.Recheck()
		p.slots[shard].due = true
	}
	for _, shard := range slices.Sorted(maps.Keys(pl.released)) {
		s := &p.slots[shard]
		s.queue.Dispatched()
		s.queue.LookAgain()
		p.lookedForOnce(s)
		s.due = true
		for _, id := range pl.release[shard] {
			if !gone[id] {
				continue
			}
			if s.grant == pl.released[shard] {
				s.queue.Vanish(id)
			} else {
				p.orphan(shard, []telemetry.EntryID{id})
			}
		}
	}
}

// bypass delivers what was dispatched, for queues that may be bypassed.
func (p *proc) bypass(number uint64, pl *plan, read []*entry, gone bool) {
	d := &p.dispatcher
	for shard := range p.slots {
		s := &p.slots[shard]
		var mine []item
		var ids []telemetry.EntryID
		for _, e := range read {
			if e.shard == shard {
				mine, ids = append(mine, item{id: e.id, e: e}), append(ids, e.id)
			}
		}
		if len(mine) == 0 {
			continue
		}
		grant, unqueued := pl.unqueued[shard]
		may := s.owned && !s.stopping && pl.known[shard] && s.queue.CanBypass(number) && p.heldLease() == number &&
			(!s.queue.Passed(ids[0]) || p.w.cfg.Mutant == FeedRead)
		switch {
		case unqueued && may && s.grant == grant && len(d.orphans[shard]) == 0:
			s.queue.LeaveUnqueued(ids...)
			p.worker.deliver(shard, mine)
		case unqueued:
			p.orphan(shard, ids)
		case !s.owned || s.stopping:
		case !gone && !p.worker.full() && (may || p.w.cfg.Mutant == FeedUnknown):
			s.queue.Bypassed(ids...)
			p.worker.deliver(shard, mine)
		default:
			s.queue.Dispatched()
			s.due = true
		}
	}
}

// orphan notes entries that were unqueued and whose work was given up.
func (p *proc) orphan(shard int, ids []telemetry.EntryID) {
	if len(ids) == 0 || !p.leaseHeld || p.w.cfg.Mutant == OrphansForgotten {
		return
	}
	p.w.reach(rare.Orphaned)
	if p.dispatcher.orphans == nil {
		p.dispatcher.orphans = make(map[int][]telemetry.EntryID)
	}
	p.dispatcher.orphans[shard] = append(p.dispatcher.orphans[shard], ids...)
}

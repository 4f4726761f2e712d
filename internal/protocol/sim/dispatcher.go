package sim

import (
	"errors"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// acquireLease requests the dispatch lease, as the pipeline's dispatcher does.
func (p *proc) acquireLease() {
	if p.leaving {
		return
	}
	before := p.token
	p.token = p.w.newToken()
	token := p.token
	call(p, redisServer, "acquire the dispatch lease", func(answer func(protocol.DispatchLease, error)) {
		answer(p.w.redis.acquireDispatchLease(p, before, token, dispatchLeaseTTL), nil)
	}, func(leaseNumber protocol.DispatchLease, err error) {
		switch {
		case err != nil:
			if before != "" {
				p.token = before
			}
			p.nextLease(false)
			p.again(p.acquireLease)
		case !leaseNumber.Acquired:
			p.token = ""
			p.nextLease(false)
			p.dispatched(leaseNumber.After)
			p.w.after(max(10, min(leaseNumber.Left.Milliseconds(), dispatchBlock)), p, p.acquireLease)
		default:
			p.w.logf(p, "has the dispatch lease, after %d", leaseNumber.After.Seq)
			number := p.nextLease(true)
			if leaseNumber.Moved {
				p.w.reach(rare.LastIDMoved)
			}
			if leaseNumber.GroupCreated {
				p.w.reach(rare.GroupCreated)
				p.rewind()
			}
			p.renewed = p.w.now
			p.runLease(number, leaseNumber.After)
		}
	})
}

func (p *proc) again(f func()) { p.w.after(20+p.rng.Int64N(100), p, f) }

// runLease renews, reads and dispatches, until an error or until the dispatch lease is lost.
func (p *proc) runLease(number uint64, after telemetry.EntryID) {
	if p.heldLease() != number || p.leaving {
		p.again(p.acquireLease)
		return
	}
	if p.w.now-p.renewed > dispatchLeaseTTL/4 {
		token, started := p.token, p.w.now
		call(p, redisServer, "renew the dispatch lease", func(answer func(protocol.DispatchLease, error)) {
			answer(p.w.redis.acquireDispatchLease(p, token, token, dispatchLeaseTTL), nil)
		}, func(leaseNumber protocol.DispatchLease, err error) {
			if err != nil || !leaseNumber.Acquired || leaseNumber.GroupCreated || leaseNumber.After != after {
				p.again(p.acquireLease)
				return
			}
			p.renewed = started
			p.runLease(number, after)
		})
		return
	}
	count := 1 + p.rng.IntN(6)
	started := p.w.now
	call(p, redisServer, "read new entries", func(answer func([]*entry, error)) {
		if read := p.w.redis.readNew(after, count); len(read) > 0 {
			answer(read, nil)
			return
		}
		p.w.after(dispatchBlock, nil, func() { answer(p.w.redis.readNew(after, count), nil) })
	}, func(read []*entry, err error) {
		if p.heldLease() != number {
			p.again(p.acquireLease)
			return
		}
		switch {
		case err != nil:
			p.again(p.acquireLease)
		case len(read) == 0:
			p.runLease(number, after)
		default:
			p.dispatch(number, after, started, read)
		}
	})
}

func (p *proc) dispatch(number uint64, after telemetry.EntryID, started int64, read []*entry) {
	token := p.token
	// An empty queue counts only if it was known before the dispatch was sent:
	// a read in between may have seen another group's queue.
	empty := make([]bool, len(p.slots))
	for i := range p.slots {
		empty[i] = p.slots[i].queue.CanBypass(number) || p.w.cfg.Mutant == FeedKnownLate
	}
	call(p, redisServer, "dispatch", func(answer func(map[telemetry.EntryID]bool, error)) {
		answer(p.w.redis.dispatch(p, token, after, read, dispatchLeaseTTL))
	}, func(gone map[telemetry.EntryID]bool, err error) {
		if err != nil {
			if errors.Is(err, errLost) {
				p.w.reach(rare.DispatchRefused)
			}
			p.again(p.acquireLease)
			return
		}
		p.w.logf(p, "dispatched %d to %d", read[0].id.Seq, read[len(read)-1].id.Seq)
		p.renewed = started
		p.bypass(number, read, empty, len(gone) > 0)
		p.runLease(number, read[len(read)-1].id)
	})
}

// bypass delivers what was dispatched, for queues that may be bypassed.
func (p *proc) bypass(number uint64, read []*entry, empty []bool, gone bool) {
	for shard := range p.slots {
		s := &p.slots[shard]
		if !s.held || s.stopping {
			continue
		}
		var mine []item
		for _, e := range read {
			if e.shard == shard {
				mine = append(mine, item{id: e.id, e: e})
			}
		}
		if len(mine) == 0 {
			continue
		}
		may := empty[shard] && s.queue.CanBypass(number) && p.heldLease() == number || p.w.cfg.Mutant == FeedUnknown
		if gone || !may || p.worker.full() {
			s.queue.Dispatched()
			s.due = true
			continue
		}
		for _, it := range mine {
			s.queue.Bypassed(it.id)
		}
		p.worker.deliver(shard, mine)
	}
}

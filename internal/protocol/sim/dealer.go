package sim

import (
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// acquire tries for the turn, as the pipeline's dealer does.
func (p *proc) acquire() {
	if p.leaving {
		return
	}
	before := p.token
	p.token = p.w.newToken()
	token := p.token
	call(p, redisServer, "acquire the turn", func(answer func(protocol.Turn, error)) {
		answer(p.w.redis.acquireTurn(p, before, token, turnTTL), nil)
	}, func(turn protocol.Turn, err error) {
		switch {
		case err != nil:
			if before != "" {
				p.token = before
			}
			p.nextTurn(false)
			p.again(p.acquire)
		case !turn.Held:
			p.token = ""
			p.nextTurn(false)
			p.w.after(max(10, min(turn.Left.Milliseconds(), dealBlock)), p, p.acquire)
		default:
			p.w.logf(p, "has the turn, after %d", turn.After.Seq)
			number := p.nextTurn(true)
			if turn.GroupMade {
				p.rewind()
			}
			p.renewed = p.w.now
			p.hold(number, turn.After)
		}
	})
}

func (p *proc) again(f func()) { p.w.after(20+p.rng.Int64N(100), p, f) }

// hold renews, reads and deals, until an error or until the turn is lost.
func (p *proc) hold(number uint64, after telemetry.EntryID) {
	if p.turnNumber() != number || p.leaving {
		p.again(p.acquire)
		return
	}
	if p.w.now-p.renewed > turnTTL/4 {
		token, started := p.token, p.w.now
		call(p, redisServer, "renew the turn", func(answer func(protocol.Turn, error)) {
			answer(p.w.redis.acquireTurn(p, token, token, turnTTL), nil)
		}, func(turn protocol.Turn, err error) {
			if err != nil || !turn.Held || turn.GroupMade || turn.After != after {
				p.again(p.acquire)
				return
			}
			p.renewed = started
			p.hold(number, after)
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
		p.w.after(dealBlock, nil, func() { answer(p.w.redis.readNew(after, count), nil) })
	}, func(read []*entry, err error) {
		if p.turnNumber() != number {
			p.again(p.acquire)
			return
		}
		switch {
		case err != nil:
			p.again(p.acquire)
		case len(read) == 0:
			p.hold(number, after)
		default:
			p.deal(number, after, started, read)
		}
	})
}

func (p *proc) deal(number uint64, after telemetry.EntryID, started int64, read []*entry) {
	token := p.token
	// What is known of a queue counts only if it was known before the deal was sent:
	// a read in between may have found another group's queue.
	empty := make([]bool, len(p.slots))
	for i := range p.slots {
		empty[i] = p.slots[i].queue.MayFeed(number) || p.w.cfg.Mutant == FeedKnownLate
	}
	call(p, redisServer, "deal", func(answer func(map[telemetry.EntryID]bool, error)) {
		answer(p.w.redis.deal(p, token, after, read, turnTTL))
	}, func(gone map[telemetry.EntryID]bool, err error) {
		if err != nil {
			p.again(p.acquire)
			return
		}
		p.w.logf(p, "dealt %d to %d", read[0].id.Seq, read[len(read)-1].id.Seq)
		p.renewed = started
		p.feed(number, read, empty, len(gone) > 0)
		p.hold(number, read[len(read)-1].id)
	})
}

// feed hands on what was dealt, as far as it may pass the queues by.
func (p *proc) feed(number uint64, read []*entry, empty []bool, gone bool) {
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
		may := empty[shard] && s.queue.MayFeed(number) && p.turnNumber() == number || p.w.cfg.Mutant == FeedUnknown
		if gone || !may || p.worker.full() {
			s.queue.Dealt()
			s.due = true
			continue
		}
		for _, it := range mine {
			s.queue.Fed(it.id)
		}
		p.worker.hand(shard, mine)
	}
}

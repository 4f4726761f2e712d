package sim

import (
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

type asked struct {
	shard, count int
	grant        uint64
	readSnapshot protocol.ReadSnapshot
}

// read reads the queues that are due in one round trip, as the pipeline's
// reader does.
func (p *proc) read() {
	batch := p.choose()
	if len(batch) == 0 {
		p.w.after(pollEvery, p, func() {
			if p.w.now >= p.polledAll+pollAll {
				p.polledAll = p.w.now
				p.markDue()
			}
			p.read()
		})
		return
	}
	call(p, redisServer, "read queues", func(answer func([][]item, error)) {
		var found [][]item
		for _, a := range batch {
			items, err := p.w.redis.queue(a.shard, a.readSnapshot.From, a.count)
			if err != nil {
				answer(nil, err)
				return
			}
			found = append(found, items)
		}
		answer(found, nil)
	}, func(found [][]item, err error) {
		if err != nil {
			// The server that answers next may be another one.
			p.rewind(false)
			p.again(p.read)
			return
		}
		p.taken(batch, found)
		p.w.after(p.latency(), p, p.read)
	})
}

func (p *proc) choose() []asked {
	var batch []asked
	leaseNumber := p.heldLease()
	for shard := range p.slots {
		s := &p.slots[shard]
		if !s.owned || s.stopping || !s.due || p.w.now < s.pausedTo || p.worker.full() {
			continue
		}
		if leaseNumber != 0 && s.queue.CanBypass(leaseNumber) && !s.queue.Looks() {
			s.due = false
			continue
		}
		s.due = false
		batch = append(batch, asked{shard: shard, count: 1 + p.rng.IntN(5), grant: s.grant, readSnapshot: s.queue.BeginRead(leaseNumber)})
	}
	return batch
}

// taken delivers what was found.
func (p *proc) taken(batch []asked, replies [][]item) {
	leaseNumber := p.heldLease()
	for i, a := range batch {
		s, found := &p.slots[a.shard], replies[i]
		if !s.owned || s.stopping || s.grant != a.grant {
			continue
		}
		ids := make([]telemetry.EntryID, len(found))
		for j := range found {
			ids[j] = found[j].id
		}
		full := len(ids) >= a.count
		var keep []item
		ok := s.queue.EndRead(a.readSnapshot, ids, full, leaseNumber, func(j int) { keep = append(keep, found[j]) })
		if len(keep) > 0 {
			p.worker.deliver(a.shard, keep)
		}
		if !ok || full || s.queue.Looks() || a.readSnapshot.Looked() || leaseNumber != 0 && !s.queue.CanBypass(leaseNumber) {
			s.due = true
		}
	}
}

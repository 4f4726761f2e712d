package sim

import (
	"errors"
	"maps"
	"slices"

	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// maxInFlight is when a worker stops taking in entries.
const maxInFlight = 24

// stateSize is the number of devices in a member's cache: so few that it
// evicts.
const stateSize = 3

// known is a member's cached state of a device.
type known struct {
	watermark int
	batch     uint64 // the last batch that touched it
	base      int    // the watermark when that batch began
	used      uint64
}

// part is a run of consecutive items of one shard.
type part struct {
	shard int
	grant uint64
	epoch int64
	token string // of the grant
	items []item
}

type batch struct {
	seq      uint64
	careful  bool
	parts    []part
	fresh    []item
	late     []item
	base     map[int]int
	size     int
	run      int      // generation of Redis that the entries belong to
	unqueued [][]bool // by part, which items are on no queue; set before the first acknowledgement
}

// worker runs all shards of a member, as the pipeline's worker does: one batch
// commits while the next is computed on top of it; acknowledgements follow in
// order.
type worker struct {
	p       *proc
	inbox   []part
	state   map[int]*known
	uses    uint64
	seq     uint64
	current *batch
	busy    bool // a commit is in progress
	looking bool // devices are being looked up
	redoing []*batch
	paused  bool // a batch is being redone: nothing else is applied until then
	acks    []*batch
	acking  bool
	unacked int
	timed   bool
}

func (k *worker) init(p *proc) {
	k.p, k.state = p, make(map[int]*known)
	k.open(false)
}

func (k *worker) open(careful bool) {
	k.seq++
	k.current = &batch{seq: k.seq, careful: careful, base: make(map[int]int), run: k.p.links[redisServer].knownRun}
}

func (k *worker) full() bool {
	n := k.current.size
	for _, b := range k.inbox {
		n += len(b.items)
	}
	return n >= maxInFlight
}

// deliver queues items of a shard.
func (k *worker) deliver(shard int, items []item) {
	s := &k.p.slots[shard]
	k.p.checkTwice(shard, items)
	k.inbox = append(k.inbox, part{shard: shard, grant: s.grant, epoch: s.epoch, token: s.token, items: items})
	k.advance()
}

// drop forgets a shard: it invalidates its state and removes what is not
// committing yet.
func (k *worker) drop(shard int) {
	k.invalidate(shard)
	k.current.without(func(s int) bool { return s == shard })
}

// leave returns the state of a shard's devices for its next owner; nothing of it is in flight.
func (k *worker) leave(shard int) map[int]int {
	left := make(map[int]int)
	for d, s := range k.state {
		if k.p.w.shardOf(d) == shard {
			left[d] = s.watermark
		}
	}
	return left
}

func (k *worker) invalidate(shard int) {
	for d := range k.state {
		if k.p.w.shardOf(d) == shard {
			delete(k.state, d)
		}
	}
}

func (b *batch) without(gone func(shard int) bool) {
	of := func(it item) bool { return it.e != nil && gone(it.e.shard) }
	b.fresh, b.late = slices.DeleteFunc(b.fresh, of), slices.DeleteFunc(b.late, of)
	b.parts = slices.DeleteFunc(b.parts, func(p part) bool {
		if gone(p.shard) {
			b.size -= len(p.items)
			return true
		}
		return false
	})
}

func (k *worker) live(p part) bool {
	s := &k.p.slots[p.shard]
	return s.owned && s.grant == p.grant
}

// advance applies the queued items. It looks up devices that are not cached.
func (k *worker) advance() {
	for len(k.inbox) > 0 && !k.looking && !k.paused && len(k.redoing) == 0 {
		next := k.inbox[0]
		if !k.live(next) {
			k.inbox = k.inbox[1:]
			continue
		}
		if k.current.size >= maxInFlight {
			break
		}
		if cold := k.cold(next); len(cold) > 0 {
			k.lookUp(cold, k.resume) // redone work comes first
			return
		}
		k.inbox = k.inbox[1:]
		k.apply(k.current, next)
		if k.p.w.cfg.Mutant == EvictUncommitted {
			k.evict(^uint64(0))
		}
	}
	k.commitLater()
}

func (k *worker) cold(p part) []int {
	var cold []int
	for _, it := range p.items {
		if it.e != nil && k.state[it.e.device] == nil && !slices.Contains(cold, it.e.device) {
			cold = append(cold, it.e.device)
		}
	}
	return cold
}

// lookUp loads the stored state of devices, asynchronously.
func (k *worker) lookUp(cold []int, then func()) {
	k.looking = true
	call(k.p, postgresServer, "load last positions", func(answer func(map[int]int, error)) {
		found := make(map[int]int)
		for _, d := range cold {
			found[d] = k.p.w.pg.t.newestRow(d)
		}
		answer(found, nil)
	}, func(found map[int]int, err error) {
		k.p.callsReturned++
		k.p.sink(err)
		if err != nil {
			k.p.again(func() { k.lookUp(cold, then) })
			return
		}
		k.looking = false
		for _, d := range cold {
			k.learn(d, found[d])
		}
		then()
	})
}

func (k *worker) learn(device, ts int) {
	k.uses++
	k.state[device] = &known{watermark: ts, used: k.uses}
}

// apply advances the state and sorts records into fresh and late.
func (k *worker) apply(b *batch, p part) {
	s := &k.p.slots[p.shard]
	if b.size == 0 {
		b.run = k.p.links[redisServer].knownRun
	}
	p.items = slices.Clone(p.items)
	for i := range p.items {
		it := &p.items[i]
		if it.e == nil {
			k.p.w.reach(rare.Trimmed)
			continue
		}
		if k.p.w.cfg.Mutant == AckBelowApplied && it.id.Compare(s.found) <= 0 {
			it.skipped = true
			continue
		}
		d := k.state[it.e.device]
		if d == nil {
			k.p.w.fail("model: device %d was not looked up", it.e.device)
			return
		}
		k.uses++
		d.used = k.uses
		if d.batch != b.seq {
			d.batch, d.base = b.seq, d.watermark
		}
		b.base[it.e.device] = d.base
		same := func(o item) bool { return o.e.device == it.e.device && o.e.ts == it.e.ts }
		if slices.ContainsFunc(b.fresh, same) || slices.ContainsFunc(b.late, same) {
			continue
		}
		if b.careful || it.e.ts <= d.base {
			b.late = append(b.late, *it)
		} else {
			b.fresh = append(b.fresh, *it)
		}
		d.watermark = max(d.watermark, it.e.ts)
	}
	b.parts = append(b.parts, p)
	b.size += len(p.items)
}

// evict keeps the bound on devices, and spares those that uncommitted batches
// rest on.
func (k *worker) evict(committed uint64) {
	for len(k.state) > stateSize {
		oldest := -1
		for d, s := range k.state {
			if oldest < 0 || s.used < k.state[oldest].used {
				oldest = d
			}
		}
		if k.state[oldest].batch > committed {
			return
		}
		delete(k.state, oldest)
	}
}

func (k *worker) commitLater() {
	if k.timed || k.current.size == 0 {
		return
	}
	k.timed = true
	k.p.w.after(1+k.p.rng.Int64N(60), k.p, func() {
		k.timed = false
		if k.busy || k.unacked >= 2 || k.looking || len(k.redoing) > 0 || k.current.size == 0 {
			return // the end of that resumes it
		}
		b := k.current
		k.open(false)
		k.commit(b)
	})
}

// content returns what a batch's transaction writes.
func (k *worker) content(b *batch) content {
	c := content{fresh: slices.Clone(b.fresh), late: slices.Clone(b.late), base: maps.Clone(b.base), applied: make(map[int]telemetry.EntryID), history: make(map[int]int)}
	for _, p := range b.parts {
		if !slices.ContainsFunc(c.held, func(h heldShard) bool { return h.shard == p.shard }) {
			c.held = append(c.held, heldShard{p.shard, p.epoch})
		}
		c.items = append(c.items, p.items...)
		// An applied ID is written at most once a second.
		if s := &k.p.slots[p.shard]; k.live(p) && k.p.w.now-s.marked > 1000 {
			top := s.applied
			for _, it := range p.items {
				if top.Less(it.id) {
					top = it.id
				}
			}
			if at := c.applied[p.shard]; at.Less(top) {
				c.applied[p.shard], c.history[p.shard] = top, s.history
			}
		}
	}
	for shard := range c.applied {
		k.p.slots[shard].marked = k.p.w.now
	}
	slices.SortFunc(c.held, func(a, b heldShard) int { return a.shard - b.shard })
	return c
}

// commit writes a batch until its outcome is decided.
func (k *worker) commit(b *batch) {
	k.busy = true
	if k.p.w.cfg.Mutant == AckBeforeCommit {
		k.queueAck(b)
	}
	run := k.p.links[postgresServer].knownRun
	var try func()
	try = func() {
		if k.p.links[postgresServer].knownRun != run {
			k.p.w.reach(rare.GenerationChanged)
			k.handleResult(b, nil, errUnknown) // computed on top of what may be lost
			return
		}
		k.send(k.content(b), func(lost []int, err error) {
			k.p.callsReturned++
			k.p.blocked = errors.Is(err, errBlocked) && k.p.w.cfg.Mutant != LockedTakenForStuck
			k.p.sink(err)
			if errors.Is(err, errUnavailable) && (len(lost) == 0 || k.p.w.cfg.Mutant == LockedKeptInFlight) {
				k.p.again(try)
				return
			}
			k.handleResult(b, lost, err)
		})
	}
	try()
}

// send runs one transaction: in one round trip, or with the rest following the
// copy.
func (k *worker) send(c content, done func(lost []int, err error)) {
	pg := k.p.w.pg
	t := &tx{p: k.p, session: k.p.id, opened: pg.ended[k.p.id], c: c}
	finish := func(_ bool, err error) { done(t.lost, err) }
	if len(c.late) == 0 && k.p.rng.IntN(3) > 0 {
		call(k.p, postgresServer, "commit", func(answer func(bool, error)) {
			t.answer = answer
			pg.begin(t, func() { pg.finish(t) })
		}, finish)
		return
	}
	closed := false
	call(k.p, postgresServer, "copy", func(answer func(bool, error)) {
		t.answer = answer
		pg.begin(t, func() {
			if closed || k.p.dead {
				pg.end(t)
				return
			}
			answer(true, nil)
		})
	}, func(_ bool, err error) {
		if err != nil {
			closed = true
			k.p.w.after(k.p.latency(), nil, func() { // the connection is closed
				if t.keys != nil {
					pg.end(t)
				}
			})
			done(nil, err)
			return
		}
		call(k.p, postgresServer, "fence and commit", func(answer func(bool, error)) {
			t.answer = answer
			if t.ended {
				return // the session is gone: the client learns by a timeout
			}
			pg.finish(t)
		}, func(_ bool, err error) {
			if err != nil && !t.finishing {
				k.p.w.after(k.p.latency(), nil, func() { pg.end(t) })
			}
			done(t.lost, err)
		})
	})
}

// handleResult acts upon the outcome of a commit.
func (k *worker) handleResult(b *batch, lost []int, err error) {
	k.busy, k.paused = false, false
	switch {
	case err == nil:
		k.p.progress++
		if k.p.w.cfg.Mutant != AckBeforeCommit {
			k.queueAck(b)
		}
		k.evict(b.seq)
		if b.careful {
			for _, p := range b.parts {
				k.invalidate(p.shard)
			}
		}
	case errors.Is(err, errUnknown):
		k.p.w.reach(rare.OutcomeUnknown)
		k.giveUp(b, nil)
	case errors.Is(err, errBlocked):
		k.p.w.reach(rare.SetAside)
		k.setAside(b, lost)
		k.redoing = append(k.redoing, b)
	case errors.Is(err, errFenced):
		k.p.w.reach(rare.Fenced)
		k.giveUp(b, lost)
		k.redoing = append(k.redoing, b)
	default:
		k.p.w.reach(rare.Recomputed)
		k.redoing = append(k.redoing, b)
	}
	k.resume()
}

// giveUp drops shards of a batch, all if none are named.
func (k *worker) giveUp(b *batch, named []int) {
	gone := make(map[int]bool)
	for _, p := range b.parts {
		if named == nil || slices.Contains(named, p.shard) {
			gone[p.shard] = true
			if k.live(p) {
				k.p.release(p.shard)
			}
		}
	}
	b.without(func(s int) bool { return gone[s] })
}

// setAside drops the work of shards whose rows another session has locked, and
// keeps the shards: their queues are read again after a pause. So nothing else
// waits for the lock, neither other shards nor a release.
func (k *worker) setAside(b *batch, locked []int) {
	gone := func(shard int) bool { return slices.Contains(locked, shard) }
	for _, p := range b.parts {
		if gone(p.shard) && k.live(p) {
			k.p.restart(p.shard, k.p.w.now+lockedPause)
		}
	}
	b.without(gone)
}

// resume starts the next batch: redone work before new work, and only once all
// commits are acknowledged.
func (k *worker) resume() {
	if k.busy {
		return
	}
	if len(k.redoing) == 0 {
		k.advance()
		return
	}
	if k.unacked > 0 || k.looking {
		return
	}
	b := k.redoing[0]
	parts := append(slices.Clone(b.parts), k.current.parts...)
	k.open(true)
	redo := k.current
	k.open(false)
	parts = slices.DeleteFunc(parts, func(p part) bool { return !k.live(p) })
	for _, p := range parts {
		k.invalidate(p.shard)
	}
	k.redo(redo, parts)
}

func (k *worker) redo(b *batch, parts []part) {
	parts = slices.DeleteFunc(parts, func(p part) bool { return !k.live(p) })
	for _, p := range parts {
		if cold := k.cold(p); len(cold) > 0 {
			k.lookUp(cold, func() { k.redo(b, parts) })
			return
		}
	}
	k.redoing, k.paused = k.redoing[:0], false
	if len(parts) == 0 {
		k.resume()
		return
	}
	for _, p := range parts {
		k.apply(b, p)
	}
	k.paused = true
	k.commit(b)
}

// queueAck acknowledges batches in order and never gives up, unless another
// generation of Redis answers: then these are not its entries.
func (k *worker) queueAck(b *batch) {
	k.unacked++
	k.acks = append(k.acks, b)
	if !k.acking {
		k.ack()
	}
}

func (k *worker) ack() {
	if len(k.acks) == 0 {
		k.acking = false
		return
	}
	k.acking = true
	b := k.acks[0]
	finish := func() {
		k.acks = k.acks[1:]
		k.unacked--
		for _, p := range b.parts {
			if k.live(p) {
				s := &k.p.slots[p.shard]
				if s.queue.Done(len(p.items)) && !s.stopping {
					s.due = true
				}
				if last := p.items[len(p.items)-1].id; s.applied.Less(last) {
					s.applied = last
				}
			}
		}
		k.ack()
		k.resume()
	}
	m := k.p.w.cfg.Mutant
	if b.run != k.p.links[redisServer].knownRun && m != InFlightKeptOverRun && m != KeptOverRun {
		finish()
		return
	}
	k.acknowledge(b)
	call(k.p, redisServer, "ack", func(answer func(bool, error)) {
		var err error
		for i, p := range b.parts {
			err = errors.Join(err, k.p.w.redis.ack(k.p, p.shard, p.token, p.items, b.unqueued[i]))
		}
		answer(true, err)
	}, func(_ bool, err error) {
		k.p.callsReturned++
		switch {
		case err == nil:
		case errors.Is(err, errLost):
			k.p.w.reach(rare.AckRefused)
			// The token is not registered any more. A member that still
			// believes in it acquires the shard again; entries not acknowledged
			// turn out to be stored.
			for _, p := range b.parts {
				if !k.live(p) {
					continue
				}
				// As the pipeline does: those of the batch are done with, and are not finished.
				s := &k.p.slots[p.shard]
				if k.p.w.cfg.Mutant != RefusedAckFinishes {
					k.p.orphan(p.shard, s.queue.UnqueuedOf(len(p.items)))
				}
				s.queue.Done(len(p.items))
			}
			for _, p := range b.parts {
				if k.live(p) {
					k.p.release(p.shard)
				}
			}
		default:
			k.p.again(k.ack)
			return
		}
		finish()
	})
}

// acknowledge notes that the items of a batch are about to be acknowledged.
func (k *worker) acknowledge(b *batch) {
	if b.unqueued != nil {
		return // it is repeated as it was
	}
	b.unqueued = make([][]bool, len(b.parts))
	for i, p := range b.parts {
		if !k.live(p) {
			continue
		}
		b.unqueued[i] = make([]bool, len(p.items))
		k.p.slots[p.shard].queue.Acknowledge(p.items[0].id, len(p.items), func(j int) { b.unqueued[i][j] = true })
	}
}

// inFlight returns the number of items taken in and not finished.
func (p *proc) inFlight() int {
	n := 0
	for i := range p.slots {
		n += p.slots[i].queue.InFlight()
	}
	return n
}

// sink records whether Postgres answers.
func (p *proc) sink(err error) {
	switch {
	case errors.Is(err, errBlocked):
	case errors.Is(err, errUnavailable) || errors.Is(err, errUnknown):
		if p.sinkDown == 0 {
			p.sinkDown = p.w.now
		}
	default:
		p.sinkDown = 0
	}
}

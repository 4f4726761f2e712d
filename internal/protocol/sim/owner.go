package sim

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// beat sends a heartbeat.
func (p *proc) beat() {
	p.beats++
	b := protocol.Beat{Member: p.id, Number: p.beats, Leaving: p.leaving, InFlight: p.inFlight(), Progress: p.progress, CallsReturned: p.callsReturned, Blocked: p.blocked}
	if p.sinkDown > 0 {
		b.SinkDown = millis(p.w.now - p.sinkDown)
	}
	call(p, redisServer, "beat", func(answer func(bool, error)) {
		if p.w.redis.beats == nil {
			p.w.redis.beats = make(map[string]beatKey)
		}
		p.w.redis.beats[p.id] = beatKey{b, p.w.now + memberTTL}
		answer(true, nil)
	}, func(bool, error) {})
	p.w.after(beatEvery, p, p.beat)
}

// tick polls the members and the shards, and acts on both.
func (p *proc) tick() {
	if p.leaving && p.left() {
		return
	}
	p.w.after(tickEvery+p.rng.Int64N(50), p, p.tick)
	call(p, redisServer, "look at members", func(answer func([]protocol.Beat, error)) {
		answer(p.w.redis.present(), nil)
	}, func(beats []protocol.Beat, err error) {
		if err != nil {
			p.watch.RedisUnavailable(p.w.clock())
		} else {
			p.watch.Observe(p.w.clock(), beats)
		}
		p.lead()
		p.poll()
	})
}

// present returns the beats that have not expired, in order.
func (r *redis) present() []protocol.Beat {
	all := make([]protocol.Beat, 0, len(r.beats))
	for _, k := range r.beats {
		if r.w.now < k.until {
			k.beat.Age = millis(memberTTL - (k.until - r.w.now))
			all = append(all, k.beat)
		}
	}
	slices.SortFunc(all, func(a, b protocol.Beat) int { return strings.Compare(a.Member, b.Member) })
	return all
}

// pass is one comparison of all shards. It acquires several at once, and goes on
// with those acquired when all have been answered.
type pass struct {
	open    int // acquisitions without an answer, and one until the pass is complete
	failed  bool
	granted []func() // continue with a shard
	dropped []func() // give it up, in a pass that failed
	closed  bool
}

func (a *pass) close() { a.closed = true; a.settle() }

func (a *pass) settle() {
	if !a.closed || a.open > 0 {
		return
	}
	next := a.granted
	if a.failed {
		next = a.dropped
	}
	a.granted, a.dropped = nil, nil
	for _, f := range next {
		f()
	}
}

// poll compares the state in Postgres with the owned shards.
func (p *proc) poll() {
	sent := p.w.now
	call(p, postgresServer, "list shards", func(answer func([]shardRow, error)) {
		answer(append([]shardRow(nil), p.w.pg.t.shards...), nil)
	}, func(rows []shardRow, err error) {
		p.sink(err)
		if err != nil {
			return
		}
		p.pass = &pass{}
		for shard, row := range rows {
			p.decide(shard, row, sent)
		}
		p.pass.close()
	})
}

func (p *proc) decide(shard int, row shardRow, sent int64) {
	s := &p.slots[shard]
	if s.acting || s.granted >= sent {
		return // the list may be older than what was done since
	}
	now := p.w.clock()
	if s.awaiting != row.owner {
		s.awaiting, s.waited = row.owner, p.w.now
	}
	assigned := row.assigned
	if p.w.cfg.Mutant == AcquireUnassigned && s.granted > 0 && p.rng.IntN(8) == 0 && !s.owned {
		assigned = p.id // it acts on an assignment it remembers
	}
	action := protocol.Next(p.id,
		protocol.ShardRecord{Assigned: assigned, Owner: row.owner, Epoch: row.epoch},
		protocol.LocalShard{Owned: s.owned, Epoch: s.epoch, Stopping: s.stopping},
		protocol.OwnerState{
			Gone:    p.watch.Gone(now, row.owner),
			Leaving: p.watch.Leaving(row.owner),
			Works:   p.watch.Works(now, row.owner, millis(handOffBudget)),
			Waited:  millis(p.w.now - s.waited),
		},
		budgets)
	switch action {
	case protocol.Acquire:
		s.acting = true
		p.acquireShard(shard)
	case protocol.ForceAcquire:
		s.acting = true
		gone := p.watch.Gone(now, row.owner)
		if gone {
			p.w.reach(rare.SilentMember)
		} else {
			p.w.reach(rare.ReleaseOverdue)
		}
		p.w.logf(p, "shard %d: force-acquires it from %s", shard, row.owner)
		in := p.pass
		in.open++
		force := func() {
			call(p, postgresServer, "end sessions", func(answer func(bool, error)) {
				p.w.pg.terminate(row.owner)
				answer(true, nil)
			}, func(_ bool, err error) {
				if err != nil {
					s.acting = false
				} else {
					p.w.reach(rare.ForceAcquired)
					p.pass = in
					p.acquireShard(shard)
				}
				in.open--
				in.settle()
			})
		}
		if gone || p.w.cfg.Mutant == LockIsOutage {
			force()
			return
		}
		call(p, postgresServer, "lock the row", func(answer func(bool, error)) {
			if !p.w.pg.isLocked(shard, func() { answer(false, errBlocked) }) {
				answer(true, nil)
			}
		}, func(_ bool, err error) {
			if err != nil && !protocol.ForceHelps(protocol.OwnerState{Gone: gone}, row.owner, errors.Is(err, errBlocked), nil) || err != nil && !errors.Is(err, errBlocked) {
				s.acting = false
				in.open--
				in.settle()
				return
			}
			force()
		})
	case protocol.HandOver:
		s.acting = true
		s.stopping = true
		p.w.logf(p, "shard %d: hands it over", shard)
		p.handOver(shard, s.ownership)
	case protocol.Lose:
		p.w.reach(rare.ShardLost)
		p.w.logf(p, "shard %d: drops it", shard)
		p.release(shard)
	case protocol.Leave, protocol.Await:
	}
}

// handOver waits until nothing is in flight, releases the shard and forgets it.
func (p *proc) handOver(shard int, ownership uint64) {
	s := &p.slots[shard]
	if !s.owned || s.ownership != ownership {
		s.acting = false
		return
	}
	if s.queue.InFlight() > 0 {
		p.w.after(30, p, func() { p.handOver(shard, ownership) })
		return
	}
	h, applied, left := heldShard{shard, s.epoch}, s.applied, p.worker.leave(shard)
	call(p, postgresServer, "release", func(answer func(bool, error)) {
		answer(true, p.w.pg.release(p, h, applied, left))
	}, func(_ bool, err error) {
		if err != nil && s.owned && s.ownership == ownership {
			p.again(func() { p.handOver(shard, ownership) })
			return
		}
		s.acting = false
		s.granted = p.w.now
		p.w.reach(rare.HandedOver)
		if s.owned && s.ownership == ownership {
			p.release(shard)
		}
	})
}

// early is what a mutant reads before it raises the epoch.
type early struct {
	marks map[int]int
}

// acquireShard raises the epoch, redelivers what Postgres may have lost, and
// only then reads the queue.
func (p *proc) acquireShard(shard int) {
	if p.w.cfg.Mutant != EpochAfterReading {
		p.raise(shard, nil)
		return
	}
	call(p, postgresServer, "load last positions", func(answer func(map[int]int, error)) {
		marks := make(map[int]int)
		for d := range p.w.pg.t.rows {
			if p.w.shardOf(d) == shard {
				marks[d] = p.w.pg.t.newestRow(d)
			}
		}
		answer(marks, nil)
	}, func(marks map[int]int, err error) {
		if err != nil {
			p.slots[shard].acting = false
			return
		}
		p.raise(shard, &early{marks: marks})
	})
}

func (p *proc) raise(shard int, before *early) {
	s := &p.slots[shard]
	run := p.links[redisServer].knownRun
	fail := func() { s.acting = false }
	in := p.pass
	in.open++
	call(p, postgresServer, "take", func(answer func(shardRow, error)) {
		p.w.pg.acquire(p, shard, answer)
	}, func(row shardRow, err error) {
		if errors.Is(err, errBlocked) && p.w.cfg.Mutant == LockIsOutage {
			err, in.failed = errUnavailable, true
		}
		if errors.Is(err, errBlocked) {
			p.w.reach(rare.AcquisitionBlocked)
		}
		p.sink(err)
		if err == nil {
			in.granted = append(in.granted, func() { p.enter(shard, row, run, before) })
			in.dropped = append(in.dropped, fail)
		} else {
			if errors.Is(err, errNotAssigned) {
				s.awaiting = ""
			}
			fail()
		}
		in.open--
		in.settle()
	})
}

// enter registers the owner of a shard that was acquired, redelivers, and grants
// it.
func (p *proc) enter(shard int, row shardRow, run int, before *early) {
	s := &p.slots[shard]
	fail := func() { s.acting = false }
	{
		postgresRun := p.links[postgresServer].knownRun
		grant := func() {
			if p.links[redisServer].knownRun != run || p.links[postgresServer].knownRun != postgresRun {
				fail() // what was compared has changed; the shard is acquired again
				return
			}
			p.grant(shard, row, before)
		}
		token := p.w.newToken()
		s.token = token
		call(p, redisServer, "enter", func(answer func(protocol.Marks, error)) {
			s.history = p.w.redis.history
			answer(p.w.redis.registerOwner(shard, token, row.applied))
		}, func(m protocol.Marks, err error) {
			if err != nil {
				fail()
				return
			}
			after, upTo, behind := protocol.RangeToRedeliver(m)
			if !behind || p.w.cfg.Mutant == NothingRedelivered {
				grant()
				return
			}
			if p.links[redisServer].knownRun != run {
				fail()
				return
			}
			p.w.reach(rare.Redelivered)
			call(p, redisServer, "redeliver", func(answer func(bool, error)) {
				answer(true, p.w.redis.redeliver(p, shard, token, after, upTo))
			}, func(_ bool, err error) {
				if err != nil {
					fail()
					return
				}
				grant()
			})
		})
	}
}

func (p *proc) grant(shard int, row shardRow, before *early) {
	s := &p.slots[shard]
	p.release(shard)
	s.acting = false
	s.grant++
	s.ownership++
	s.owned, s.stopping, s.due, s.epoch, s.pausedTo = true, false, true, row.epoch, 0
	s.applied, s.found, s.granted, s.marked = telemetry.EntryID{}, row.applied, p.w.now, 0
	p.orphan(shard, s.queue.Discard())
	p.worker.invalidate(shard)
	if row.left != nil && (row.left.epoch == row.epoch-1 || p.w.cfg.Mutant == LeftStateOfAnyEpoch) {
		p.w.reach(rare.Inherited)
		for _, d := range slices.Sorted(maps.Keys(row.left.marks)) {
			p.worker.learn(d, row.left.marks[d])
		}
	}
	if before != nil {
		for d := range p.w.pg.t.rows {
			if ts, ok := before.marks[d]; ok {
				p.worker.learn(d, ts)
			}
		}
	}
}

// left reports whether a leaving member is gone: when it owns nothing, or its
// time is up.
func (p *proc) left() bool {
	busy := p.leaseHeld // until it has settled
	for i := range p.slots {
		busy = busy || p.slots[i].owned || p.slots[i].acting
	}
	if busy && p.w.now-p.leftAt < drainBudget {
		return false
	}
	token, lock := p.token, p.leader.token
	call(p, redisServer, "leave", func(answer func(bool, error)) {
		r := p.w.redis
		r.releaseDispatchLease(token)
		if r.lock.token == lock {
			r.lock = lease{}
		}
		if k, ok := r.beats[p.id]; ok { // its last beat, which says that it left
			k.beat.Number, k.beat.Leaving, k.beat.Left, k.until = k.beat.Number+1, true, true, p.w.now+memberTTL
			r.beats[p.id] = k
		}
		answer(true, nil)
	}, func(bool, error) { p.kill() })
	return true
}

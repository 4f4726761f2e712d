package sim

import (
	"math/rand/v2"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Intervals of the model, in milliseconds: those of production, except for its
// long waits.
const (
	dispatchLeaseTTL = 2000
	lockTTL          = 2000
	memberTTL        = 2500
	dispatchBlock    = 350
	pollEvery        = 200
	pollAll          = 5000
	rescanEvery      = 30000
	unqueuedFor      = 2000
	settleEvery      = 20
	settleWithin     = 200
	beatEvery        = 700
	tickEvery        = 400
	claimIdle        = 1500
	drainBudget      = 4000
	handOffBudget    = 2000
	lockedPause      = 1000
)

// item is an entry as a member has it. Its entry is nil if the content was gone
// when it was read.
type item struct {
	id      telemetry.EntryID
	e       *entry
	skipped bool // acknowledged unprocessed, by a mutant
}

// slot is a member's state of one shard.
type slot struct {
	queue     protocol.Queue
	owned     bool
	stopping  bool
	due       bool
	epoch     int64
	grant     uint64            // counts what voids work in flight
	ownership uint64            // counts acquisitions and losses
	token     string            // of the grant, registered in Redis
	applied   telemetry.EntryID // finished up to here since the grant
	found     telemetry.EntryID // the applied ID when the shard was acquired
	history   int               // of Redis, when the shard was acquired
	marked    int64             // when its applied ID was last written
	granted   int64
	pausedTo  int64 // when its queue may be read again

	acting   bool // a change of its ownership is in progress
	waited   int64
	awaiting string
}

// proc is one incarnation of a member: one process.
type proc struct {
	w           *world
	id          string // identity and incarnation
	rng         *rand.Rand
	dead        bool
	leaving     bool
	started     int64
	leftAt      int64
	frozenUntil int64
	links       [servers]link
	slots       []slot

	// Dispatcher.
	token          string
	leaseNumber    uint64
	leaseHeld      bool
	renewed        int64
	lastDispatched telemetry.EntryID // by another member
	dispatcher     dispatcher

	// Reader.
	polledAll int64
	missed    bool // a notification that entries may precede its cursors; for the checks only

	worker worker

	// Coordination.
	beats         uint64
	progress      uint64
	callsReturned uint64
	sinkDown      int64 // since when Postgres does not answer; 0 while it does
	watch         *protocol.FailureDetector
	pass          *pass // the last one
	blocked       bool  // the last commit met a lock
	leader        leader
}

func (w *world) start(identity string) *proc {
	w.incarnations++
	id := identity
	if w.cfg.Mutant != NoIncarnation {
		id += "." + string(rune('a'+w.incarnations%26)) + itoa(w.incarnations)
	}
	p := &proc{
		w: w, id: id, started: w.now, rng: rand.New(rand.NewPCG(w.cfg.Seed, uint64(w.incarnations))),
		slots: make([]slot, w.cfg.Shards),
		watch: protocol.NewFailureDetector(protocol.FailureDetectorConfig{
			TTL: millis(memberTTL), SinkGrace: millis(memberTTL), Stall: millis(8000),
		}),
	}
	for s := range p.links {
		p.links[s].knownRun = w.servers[s].run
	}
	p.worker.init(p)
	p.watch.RedisUnavailable(w.clock()) // nobody is gone for one TTL after a start
	w.procs = append(w.procs, p)
	w.logf(p, "starts")
	w.after(p.latency(), p, p.acquireLease)
	w.after(p.latency(), p, p.read)
	w.after(rescanEvery, p, p.rescan)
	w.after(p.latency(), p, p.beat)
	w.after(10+p.latency(), p, p.tick)
	return p
}

var budgets = protocol.Budgets{HandOff: millis(handOffBudget), Drain: millis(drainBudget)}

func millis(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
func (w *world) clock() time.Time  { return time.UnixMilli(w.now) }
func (p *proc) keepsOver(which int) bool {
	return which == redisServer && p.w.cfg.Mutant == KeptOverRun ||
		which == postgresServer && p.w.cfg.Mutant == PostgresRunIgnored
}

// reconnected records that another generation of a server answers. It may not
// hold what the previous one did, so the dispatch lease is void and all shards
// are acquired again, which also fences what is in progress.
func (p *proc) reconnected(which, run int) {
	l := &p.links[which]
	if l.knownRun == run {
		return
	}
	l.knownRun = run
	if which == redisServer {
		p.w.reach(rare.ServerChanged)
	}
	p.w.logf(p, "hears of another run of %s", p.w.servers[which].name)
	if which == postgresServer {
		p.leader.step = 0
	} else {
		p.nextLease(false)
		if p.w.cfg.Mutant == InFlightKeptOverRun {
			p.rewind(false)
			return
		}
	}
	for i := range p.slots {
		p.release(i)
	}
}

// release forgets a shard and what is in flight of it.
func (p *proc) release(shard int) {
	s := &p.slots[shard]
	if !s.owned {
		return
	}
	s.owned, s.stopping, s.due = false, false, false
	s.applied = telemetry.EntryID{}
	s.grant++
	s.ownership++
	p.orphan(shard, s.queue.Discard())
	p.worker.drop(shard)
}

// restart forgets what is in flight of a shard, and reads its queue again from a
// moment on.
func (p *proc) restart(shard int, from int64) {
	s := &p.slots[shard]
	s.grant++
	s.due, s.pausedTo = !s.stopping, from
	p.orphan(shard, s.queue.Discard())
	p.worker.drop(shard)
}

// rewind resets all cursors. With recheck what is in flight now may be put on its queue
// again after it was acknowledged.
func (p *proc) rewind(recheck bool) {
	for i := range p.slots {
		p.reread(i, recheck)
	}
}

func (p *proc) reread(shard int, recheck bool) {
	s := &p.slots[shard]
	if !s.owned || s.stopping || p.w.cfg.Mutant == CursorsNeverReset {
		return
	}
	if recheck {
		s.queue.Recheck()
		p.lookedForOnce(s)
	} else {
		s.queue.Reset()
	}
	s.due = true
}

func (p *proc) rescan() {
	p.rewind(false)
	p.w.after(rescanEvery, p, p.rescan)
}

func (p *proc) nextLease(held bool) uint64 {
	if !held && !p.leaseHeld {
		return p.leaseNumber
	}
	p.leaseNumber++
	p.leaseHeld = held
	// The next dispatch begins at the last-delivered ID, behind all that was unqueued.
	p.dispatcher.orphans = nil
	for i := range p.slots {
		n := p.slots[i].queue.Unqueued()
		p.slots[i].queue.Forget()
		if n > 0 {
			p.lookedForOnce(&p.slots[i])
		}
	}
	p.markDue()
	return p.leaseNumber
}

// dispatched marks queues as due if another member has dispatched since the last call.
func (p *proc) dispatched(lease protocol.DispatchLease) {
	last := lease.After
	if last.Less(lease.Beyond) {
		last = lease.Beyond
	}
	if last != p.lastDispatched {
		p.lastDispatched = last
		p.markDue()
	}
}

func (p *proc) markDue() {
	for i := range p.slots {
		if s := &p.slots[i]; s.owned && !s.stopping {
			s.due = true
		}
	}
}

func (p *proc) heldLease() uint64 {
	if p.leaseHeld {
		return p.leaseNumber
	}
	return 0
}

// kill ends the process. The kernel closes its sockets, and Postgres rolls back
// transactions that wait for it; statements being executed are completed.
func (p *proc) kill() {
	if p.dead {
		return
	}
	p.dead = true
	p.w.logf(p, "dies")
	p.w.after(1+p.rng.Int64N(300), nil, func() { p.w.pg.closeConn(p) })
}

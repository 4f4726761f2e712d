package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Kind is a kind of fault.
type Kind uint8

// The faults. Those of a member hit the process that has its identity at that
// moment.
const (
	Crash      Kind = iota // a member dies, and its identity starts again later
	Freeze                 // a member stops for a while, whatever it is doing
	Replace                // a member freezes forever inside a transaction, and is started again
	Resume                 // the same, but the frozen process resumes
	LeaveFleet             // a member shuts down in order
	Join                   // another member starts
	CutRedis               // requests and replies are lost for a while
	CutPostgres
	LoseRedis // some replies are lost
	LosePostgres
	HoldRedis // the next request takes effect much later
	HoldPostgres
	HoldLeader // the next assignment takes effect much later
	RedisDown
	RedisSlow
	PostgresDown
	PostgresSlow
	FlushKeys // dispatch lease, lock, heartbeats and marks are lost
	ExpireDispatchLease
	ExpireLock
	LoseGroup
	GroupMovedManually // a client removes the group and creates it at 0
	MoveBack           // the last-delivered ID is moved back by hand
	MoveForward        // and forward, past undispatched entries
	ForeignRead        // a foreign consumer reads some entries, and dies
	Trim
	RedisRestart  // same state, new server generation
	RedisFailover // an older state, new server generation, and IDs that are reused
	PostgresRestart
	PostgresFailover // an older state
	LockRow          // another program locks the row of a shard, or writes rows of its devices, until some time after the faults have ended
	kinds
)

func (k Kind) String() string {
	return [...]string{
		"crash", "freeze", "replace a frozen member", "freeze inside a transaction", "leave", "join", "cut from Redis", "cut from Postgres",
		"lose replies of Redis", "lose replies of Postgres", "hold up a request to Redis", "hold up a request to Postgres", "hold up an assignment",
		"Redis down", "Redis slow", "Postgres down", "Postgres slow", "flush the keys of coordination", "expire the dispatch lease", "expire the lock",
		"lose the group", "group made at 0 by hand", "last-delivered ID moved back", "last-delivered ID moved forward",
		"a foreign consumer reads", "trim", "Redis restarts", "Redis fails over to an older state", "Postgres restarts",
		"Postgres is restored to an older state", "the row of a shard or of its devices is locked",
	}[k]
}

// Fault is one fault of a run.
type Fault struct {
	At   int64 // milliseconds after the start
	Kind Kind
	Who  int   // identity it hits
	Much int64 // how long, how many, or how old
}

func (f Fault) String() string {
	return fmt.Sprintf("%6d %s, member %d, %d", f.At, f.Kind, f.Who, f.Much)
}

// faultsEnd is when faults stop, and with them the publisher.
const faultsEnd = 11000

// schedule draws the faults of a run. A run has a theme, a few kinds that occur
// often, since faults do most harm in combination.
func schedule(rng *rand.Rand, members int, theme []Kind) []Fault {
	if theme == nil {
		theme = make([]Kind, 3+rng.IntN(3))
		for i := range theme {
			theme[i] = Kind(rng.IntN(int(kinds)))
		}
	}
	faults := make([]Fault, 3+rng.IntN(10))
	for i := range faults {
		f := &faults[i]
		f.At = 500 + rng.Int64N(faultsEnd-1500)
		if i > 0 && rng.IntN(3) == 0 { // shortly after the previous one
			f.At = min(faultsEnd-500, faults[i-1].At+rng.Int64N(400))
		}
		f.Who = rng.IntN(members)
		f.Kind = theme[rng.IntN(len(theme))]
		switch f.Kind {
		case Crash:
			f.Much = rng.Int64N(4000)
		case Freeze, Resume:
			f.Much = 500 + rng.Int64N(6000)
		case CutRedis, CutPostgres, RedisDown, PostgresDown, RedisSlow, PostgresSlow:
			f.Much = 200 + rng.Int64N(4000)
		case HoldRedis, HoldPostgres, HoldLeader:
			f.Much = 500 + rng.Int64N(4000)
		case RedisFailover, PostgresFailover:
			f.Much = 50 + rng.Int64N(3000)
		default:
			f.Much = 1 + rng.Int64N(5)
		}
	}
	slices.SortStableFunc(faults, func(a, b Fault) int { return int(a.At - b.At) })
	return faults
}

// plan puts a fault on the clock, and the snapshot it will restore.
func (w *world) plan(f Fault) {
	switch f.Kind {
	case RedisFailover:
		w.after(max(1, f.At-f.Much), nil, func() { w.redisPast[f] = w.redis.clone() })
	case PostgresFailover:
		w.after(max(1, f.At-f.Much), nil, func() {
			w.pgPast[f] = w.pg.t.clone()
		})
	default:
	}
	w.after(f.At, nil, func() {
		w.logf(nil, "FAULT %s", f)
		w.inject(f)
	})
}

func (w *world) inject(f Fault) {
	identity := "m" + itoa(f.Who)
	p := w.alive(f.Who)
	r := w.redis
	if p == nil && f.Kind <= HoldPostgres && f.Kind != Join {
		return
	}
	switch f.Kind {
	case Crash:
		p.kill()
		w.after(f.Much, nil, func() { w.launch(f.Who, identity) })
	case Freeze:
		p.frozenUntil = w.now + f.Much
	case Replace:
		w.whenInside(p, func() {
			p.frozenUntil = forever
			w.after(500, nil, func() { w.launch(f.Who, identity) })
		})
	case Resume:
		w.whenInside(p, func() { p.frozenUntil = max(p.frozenUntil, w.now+f.Much) })
	case LeaveFleet:
		if w.others(p) > 0 {
			p.leaving, p.leftAt = true, w.now
		}
	case Join:
		w.launch(f.Who, identity)
	case CutRedis:
		p.links[redisServer].cutTil = w.now + f.Much
	case CutPostgres:
		p.links[postgresServer].cutTil = w.now + f.Much
		w.after(2000, nil, func() { w.pg.closeConn(p) })
	case LoseRedis:
		p.links[redisServer].lose = int(f.Much)
	case LosePostgres:
		p.links[postgresServer].lose = int(f.Much)
	case HoldRedis:
		p.links[redisServer].delay = f.Much
	case HoldPostgres:
		p.links[postgresServer].delay = f.Much
	case HoldLeader:
		w.holdAssign = f.Much
	case RedisDown:
		w.servers[redisServer].downTil = w.now + f.Much
	case RedisSlow:
		w.servers[redisServer].slowTil = w.now + f.Much
	case PostgresDown:
		w.servers[postgresServer].downTil = w.now + f.Much
	case PostgresSlow:
		w.servers[postgresServer].slowTil = w.now + f.Much
	case FlushKeys:
		r.dispatchLease, r.lock, r.beats, r.acked, r.grants = lease{}, lease{}, nil, nil, nil
		// A manual move whose only trace is flushed before the next renewal of
		// the dispatch lease cannot be repaired.
		r.dispatchedSet = r.dispatchedSet && r.group != nil && r.dispatched.Less(r.group.delivered)
		if f.Much%2 == 0 { // the lengths of queues as well, and with them how far the dispatcher has read
			if r.group != nil {
				w.moved(r.group.delivered, r.ahead.last)
			}
			r.ahead = ahead{}
		}
	case ExpireDispatchLease:
		r.dispatchLease = lease{}
	case ExpireLock:
		r.lock = lease{}
	case LoseGroup:
		w.checkGroupGone()
		w.moved(telemetry.EntryID{}, r.last)
		r.group = nil
	case GroupMovedManually:
		if f.Much%2 == 0 {
			w.moveGroupManually()
		} else {
			w.onDispatch = w.moveGroupManually // between the next dispatch and its reply
		}
	case MoveBack:
		if g := r.group; g != nil {
			was := g.delivered
			defer func() { w.moved(g.delivered, was) }()
			g.delivered.Seq -= min(g.delivered.Seq, uint64(f.Much))
			g.delivered.Ms = min(g.delivered.Ms, g.delivered.Seq)
		}
	case MoveForward:
		// Where dispatching left it is known only while that key exists.
		if r.group != nil && r.dispatchedSet && r.dispatched == r.group.delivered {
			r.group.delivered = r.last
		}
	case ForeignRead:
		w.foreignRead(int(f.Much))
	case Trim:
		r.trim(int(f.Much))
	case RedisRestart:
		w.servers[redisServer].run++
	case RedisFailover:
		w.redisFailover(w.redisPast[f])
	case PostgresRestart:
		w.pg.abort()
		w.servers[postgresServer].run++
	case PostgresFailover:
		w.pg.abort()
		w.checkRestored(w.pgPast[f])
		w.pg.t = w.pgPast[f].clone()
		w.servers[postgresServer].run++
	case LockRow:
		w.pg.lockRow(int(f.Much)%w.cfg.Shards, f.Much == 5)
	default:
	}
}

// moveGroupManually is a client that removes the group and creates it at 0.
func (w *world) moveGroupManually() {
	w.checkGroupGone()
	w.moved(telemetry.EntryID{}, w.redis.last)
	w.redis.group = &group{pending: make(map[telemetry.EntryID]pendingEntry)}
}

// moved marks entries that are dispatched again although nothing tells of it: those
// that are finished lie behind the cursors of members until their rescan.
func (w *world) moved(from, to telemetry.EntryID) {
	for _, e := range w.entries {
		e.moved = e.moved || from.Less(e.id) && !to.Less(e.id)
	}
}

// whenInside calls do once a member has a transaction open, or after a second.
func (w *world) whenInside(p *proc, do func()) {
	give := w.now + 1000
	var look func()
	look = func() {
		inside := slices.ContainsFunc(w.pg.open, func(t *tx) bool { return t.p == p })
		if inside || w.now >= give {
			do()
			return
		}
		w.after(1, nil, look)
	}
	look()
}

func (w *world) foreignRead(n int) {
	g := w.redis.group
	if g == nil {
		return
	}
	for _, e := range w.redis.readNew(g.delivered, n) {
		g.pending[e.id] = pendingEntry{shard: foreign, since: w.now}
		g.delivered = e.id
		e.foreign = true
	}
}

// redisFailover continues with an older state. What was added since is lost.
func (w *world) redisFailover(past *redis) {
	if past.history != w.redis.history {
		// An entry lost by one failover and back after the next has no place in
		// an order. The state stays as it is.
		past = w.redis
	}
	kept := make(map[*entry]bool)
	for _, e := range past.stream {
		kept[e] = true
	}
	for _, e := range w.entries {
		there := w.redis.find(e.id) == e
		// What was added since is in the ledger as a range, done or not: Postgres may
		// lose its commit later, when nothing is left to redeliver.
		since := e.history == w.redis.history && past.last.Less(e.id)
		if !kept[e] && e.lost == "" && (there || since || !w.pg.t.seen[e.number]) {
			e.lost = "gone with a failover of Redis"
		}
		// Its owner may have found it gone, gone on with what follows, and not told Redis yet.
		if kept[e] && !there && e.lost == "" && !w.pg.t.seen[e.number] {
			e.lost = "trimmed, and back with a failover of Redis"
		}
	}
	if past.last.Less(w.redis.last) {
		w.reach(rare.RedisFailedOver)
	}
	w.redis = past.clone()
	w.redis.history++
	w.servers[redisServer].run++
}

// abort ends every open transaction, because the server stops.
func (g *postgres) abort() {
	g.waiting = nil
	for _, t := range slices.Clone(g.open) {
		g.end(t)
	}
}

// closeConn ends a member's transactions that wait for a client whose
// connection is dead.
func (g *postgres) closeConn(p *proc) {
	for _, t := range slices.Clone(g.open) {
		if t.p == p && !t.fenced {
			g.end(t)
		}
	}
}

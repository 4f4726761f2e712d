package sim

import (
	"maps"
	"slices"

	"github.com/trmtracking/processor/internal/telemetry"
)

// never precedes every device time.
const never = -1

// shardRow is a row of processor.shards, and its assignment and applied ID.
type shardRow struct {
	owner    string
	epoch    int64
	applied  telemetry.EntryID
	history  int // of Redis, to whose IDs the applied ID belongs; for the checks only
	assigned string
	term     int64
	left     *leftState // by the owner that released it last; taken by an acquisition
}

// leftState is the state of a shard's devices that an owner leaves for the next one.
type leftState struct {
	epoch int64
	marks map[int]int // by device: time of its last row
}

// tables is what Postgres has committed.
type tables struct {
	shards []shardRow
	term   int64
	leader string
	rows   []map[int]int // by device: time → number of the entry that counts
	prev   []map[int]int // by device: time → time of the row before, as derived
	seen   map[int]bool  // entries whose effect is committed; for the checks only
	newest []int         // by device: highest number seen
	procs  []*proc       // by shard: who acquired it; for the checks only
}

func newTables(shards, devices int) *tables {
	t := &tables{
		shards: make([]shardRow, shards), procs: make([]*proc, shards),
		seen: make(map[int]bool), newest: make([]int, devices),
	}
	for range devices {
		t.rows = append(t.rows, make(map[int]int))
		t.prev = append(t.prev, make(map[int]int))
	}
	return t
}

func (t *tables) clone() *tables {
	c := *t
	c.shards, c.procs, c.newest = slices.Clone(t.shards), slices.Clone(t.procs), slices.Clone(t.newest)
	c.seen = maps.Clone(t.seen)
	c.rows, c.prev = slices.Clone(t.rows), slices.Clone(t.prev)
	for d := range c.rows {
		c.rows[d], c.prev[d] = maps.Clone(t.rows[d]), maps.Clone(t.prev[d])
	}
	return &c
}

// newestRow returns the device time of a device's last row.
func (t *tables) newestRow(device int) int {
	top := never
	for ts := range t.rows[device] {
		top = max(top, ts)
	}
	return top
}

// before returns the device time of the last row before a time.
func (t *tables) before(device, ts int) int {
	top := never
	for at := range t.rows[device] {
		if at < ts {
			top = max(top, at)
		}
	}
	return top
}

func (t *tables) following(device, ts int) (int, bool) {
	next, ok := 0, false
	for at := range t.rows[device] {
		if at > ts && (!ok || at < next) {
			next, ok = at, true
		}
	}
	return next, ok
}

// tx is a transaction that writes a batch.
type tx struct {
	p         *proc
	session   string
	opened    int // how often its member's sessions had been ended when it was sent
	c         content
	keys      map[key]bool // written and not committed: other transactions wait for them
	fenced    bool         // it has locked the rows of its shards
	finishing bool         // its last statements are being executed
	ended     bool
	answer    func(bool, error)
	lost      []int // shards that the fence named
}

type key struct{ device, ts int }

// content is what one transaction writes.
type content struct {
	held    []heldShard // each shard once, ascending
	items   []item      // all of the batch, in order; for the checks only
	fresh   []item
	late    []item
	base    map[int]int // by device, the last row before the batch, as the member believes
	applied map[int]telemetry.EntryID
	history map[int]int // to which the applied IDs belong
}

type heldShard struct {
	shard int
	epoch int64
}

// postgres is the server: what is committed, and the open transactions.
type postgres struct {
	w       *world
	t       *tables
	open    []*tx
	waiting []func()       // retried whenever a transaction ends
	ended   map[string]int // how often the sessions of a member were ended
	locked  map[int]bool   // shards whose rows another program has locked
	written map[int]bool   // shards with uncommitted rows of another program, which commits wait for
	moves   int            // changes of assignments and endings of sessions of healthy members; for the checks only
}

// lockWait is how long a statement waits for the row of a shard.
const lockWait = 300

// lockEnds is when rows that are locked are free again, long after all else is
// well: until then the lock must disturb nothing but its shard.
const (
	lockSettled = faultsEnd + 12000
	lockEnds    = faultsEnd + 24000
)

// lockRow locks the row of a shard for another program, or what commits of the
// shard write.
func (g *postgres) lockRow(shard int, devices bool) {
	if len(g.locked) > 0 || len(g.written) > 0 {
		return
	}
	if devices {
		g.written = map[int]bool{shard: true}
	} else {
		g.locked = map[int]bool{shard: true}
	}
	// Who was stopped by a fault and then by the lock counts as stalled and is left alone for
	// a while: where commits wait, shards are moved once more when that is over.
	late, moves := 0, 0
	g.w.after(faultsEnd+1000-g.w.now, nil, func() { late = g.moves })
	g.w.after(lockSettled-g.w.now, nil, func() { moves = g.moves })
	g.w.after(lockEnds-g.w.now, nil, func() {
		if devices && moves > late {
			moves = g.moves
		}
		g.w.checkLock(shard, devices, g.moves-moves)
		g.w.logf(nil, "the row of shard %d is unlocked", shard)
		g.locked, g.written = nil, nil
		waiting := g.waiting
		g.waiting = nil
		for _, retry := range waiting {
			retry()
		}
	})
}

// isLocked reports whether a call for the row of a shard must fail, and answers
// it after lockWait then.
func (g *postgres) isLocked(shard int, fail func()) bool {
	return g.locked[shard] && g.waits(fail)
}

func (g *postgres) waits(fail func()) bool {
	run := g.w.servers[postgresServer].run
	g.w.after(lockWait, nil, func() {
		if g.w.servers[postgresServer].run == run {
			fail()
		}
	})
	return true
}

// pace returns the duration of a statement.
func (g *postgres) pace() int64 {
	if g.w.now < g.w.servers[postgresServer].slowTil {
		return g.w.rng.Int64N(500)
	}
	return g.w.rng.Int64N(4)
}

func (g *postgres) end(t *tx) {
	if t.ended {
		return
	}
	t.ended = true
	g.open = slices.DeleteFunc(g.open, func(o *tx) bool { return o == t })
	waiting := g.waiting
	g.waiting = nil
	for _, retry := range waiting {
		retry()
	}
}

// begin copies the fresh records; late ones are written by finish. then is
// called when the copy is complete.
func (g *postgres) begin(t *tx, then func()) {
	if g.ended[t.session] != t.opened {
		return // its connection was closed since
	}
	t.keys = make(map[key]bool)
	g.open = append(g.open, t)
	g.write(t, t.c.fresh, true, then)
}

// write claims the keys of records. It waits for an uncommitted transaction
// that has written one of them, and fails if a fresh one is stored already.
func (g *postgres) write(t *tx, records []item, fresh bool, then func()) {
	if t.ended {
		return
	}
	for _, o := range g.open {
		if o == t {
			continue
		}
		for _, it := range records {
			if o.keys[key{it.e.device, it.e.ts}] {
				g.waiting = append(g.waiting, func() { g.write(t, records, fresh, then) })
				return
			}
		}
	}
	for _, it := range records {
		if _, stored := g.t.rows[it.e.device][it.e.ts]; stored && fresh {
			g.end(t)
			t.answer(false, errConflict)
			return
		}
		t.keys[key{it.e.device, it.e.ts}] = true
	}
	g.w.after(g.pace(), nil, func() {
		if !t.ended {
			then()
		}
	})
}

// finish writes the late records, checks the fence and commits. Its last effect
// is the answer.
func (g *postgres) finish(t *tx) {
	t.finishing = true
	g.write(t, t.c.late, false, func() {
		blocked := func(named ...int) func() {
			return func() {
				if !t.ended {
					t.lost = named
					g.end(t)
					t.answer(false, errBlocked)
				}
			}
		}
		for _, h := range t.c.held {
			if g.written[h.shard] && g.waits(blocked()) || g.isLocked(h.shard, blocked(h.shard)) {
				return
			}
		}
		if g.w.cfg.Mutant != NoEpochCheck {
			for _, h := range t.c.held {
				if row := g.t.shards[h.shard]; row.epoch != h.epoch || row.owner != t.session {
					t.lost = append(t.lost, h.shard)
				}
			}
		}
		if len(t.lost) > 0 {
			g.end(t)
			t.answer(false, errFenced)
			return
		}
		t.fenced = true
		g.w.after(g.pace(), nil, func() {
			if t.ended {
				return
			}
			g.commit(t)
			g.end(t)
			t.answer(true, nil)
		})
	})
}

func (g *postgres) commit(t *tx) {
	if g.w.cfg.Trace {
		g.w.logf(t.p, "commits entries %v", numbers(t.c.items))
	}
	g.w.checkOwner(t)
	g.w.checkOrder(t)
	touched := make(map[int]bool)
	last := maps.Clone(t.c.base)
	fresh := slices.Clone(t.c.fresh)
	slices.SortStableFunc(fresh, func(a, b item) int { return a.e.ts - b.e.ts })
	for _, it := range fresh {
		d := it.e.device
		g.t.rows[d][it.e.ts], g.t.prev[d][it.e.ts] = it.e.number, last[d]
		last[d], touched[d] = it.e.ts, true
	}
	for _, it := range t.c.late {
		d, ts := it.e.device, it.e.ts
		if _, stored := g.t.rows[d][ts]; stored {
			continue
		}
		g.t.rows[d][ts], g.t.prev[d][ts] = it.e.number, g.t.before(d, ts)
		if next, ok := g.t.following(d, ts); ok {
			g.t.prev[d][next] = ts
		}
		touched[d] = true
	}
	for shard, id := range t.c.applied {
		g.t.shards[shard].applied = id
		g.t.shards[shard].history = t.c.history[shard]
	}
	g.w.checkRows(t, touched)
}

func numbers(items []item) []int {
	var all []int
	for _, it := range items {
		if it.e != nil {
			all = append(all, it.e.number)
		}
	}
	return all
}

// acquire raises a shard's epoch for the member it is assigned to. It waits for
// a commit in progress.
func (g *postgres) acquire(p *proc, shard int, answer func(shardRow, error)) {
	run := g.w.servers[postgresServer].run
	var try func()
	try = func() {
		if g.w.servers[postgresServer].run != run {
			return
		}
		for _, t := range g.open {
			if t.fenced && slices.ContainsFunc(t.c.held, func(h heldShard) bool { return h.shard == shard }) {
				g.waiting = append(g.waiting, try)
				return
			}
		}
		if g.isLocked(shard, func() { answer(shardRow{}, errBlocked) }) {
			return
		}
		row := &g.t.shards[shard]
		if row.assigned != p.id {
			if g.w.cfg.Mutant != AcquireUnassigned {
				answer(shardRow{}, errNotAssigned)
				return
			}
			g.w.fail("P4: %s took shard %d, which is assigned to %s", p.id, shard, row.assigned)
		}
		row.epoch++
		row.owner = p.id
		g.t.procs[shard] = p
		g.w.logf(p, "shard %d: taken, epoch %d", shard, row.epoch)
		taken := *row
		if g.w.cfg.Mutant != LeftStateOfAnyEpoch {
			row.left = nil
		}
		answer(taken, nil)
	}
	try()
}

func (g *postgres) release(p *proc, h heldShard, applied telemetry.EntryID, left map[int]int) error {
	if g.locked[h.shard] {
		return errBlocked
	}
	row := &g.t.shards[h.shard]
	if row.epoch != h.epoch || row.owner != p.id {
		return nil
	}
	row.owner, row.left = "", &leftState{h.epoch, left}
	if !applied.IsZero() {
		row.applied, row.history = applied, p.slots[h.shard].history
	}
	g.w.logf(p, "shard %d: released", h.shard)
	for _, q := range g.w.procs {
		if !q.dead && q.leader.more {
			g.w.after(q.latency(), q, q.lead) // it hears of it
		}
	}
	return nil
}

// terminate ends the sessions of a member.
func (g *postgres) terminate(session string) {
	if g.w.cfg.Mutant == SessionsNotEnded {
		return
	}
	g.ended[session]++
	for _, p := range g.w.procs {
		if p.id == session && !p.dead && p.frozenUntil <= g.w.now {
			g.moves++
		}
	}
	for _, t := range slices.Clone(g.open) {
		if t.session == session {
			g.w.logf(nil, "session of %s ended", session)
			g.end(t)
		}
	}
}

// elect raises the term.
func (g *postgres) elect(p *proc) int64 {
	g.t.term++
	g.t.leader = p.id
	return g.t.term
}

// assign writes a leader's decision under its term.
func (g *postgres) assign(p *proc, term int64, next []string) error {
	stale := g.t.term != term || g.t.leader != p.id
	if stale && g.w.cfg.Mutant != NoTermCheck {
		return errFenced
	}
	for i := range g.t.shards {
		row := &g.t.shards[i]
		if row.assigned == next[i] {
			continue
		}
		if row.term > term {
			g.w.fail("P4: a leader of term %d assigned shard %d after term %d had", term, i, row.term)
		}
		row.assigned, row.term = next[i], term
		g.moves++
		g.w.logf(p, "shard %d: assigned to %s in term %d", i, next[i], term)
	}
	return nil
}

package sim

import (
	"fmt"
	"maps"
	"slices"

	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// fail records the first broken promise, which ends the run.
func (w *world) fail(format string, args ...any) {
	if w.violation == "" {
		w.violation = fmt.Sprintf(format, args...)
		w.logf(nil, "VIOLATION %s", w.violation)
	}
}

// checkOwner checks a transaction about to commit: it must come from the owner
// of all its shards, and contain only their entries.
func (w *world) checkOwner(t *tx) {
	for _, h := range t.c.held {
		if w.pg.t.procs[h.shard] != t.p || w.pg.t.shards[h.shard].epoch != h.epoch {
			w.fail("P4: %s, which was replaced, commits for shard %d under epoch %d; it is %d",
				t.p.id, h.shard, h.epoch, w.pg.t.shards[h.shard].epoch)
		}
	}
	for _, it := range t.c.items {
		if it.e != nil && !slices.ContainsFunc(t.c.held, func(h heldShard) bool { return h.shard == it.e.shard }) {
			w.fail("P3: entry %d is committed without holding its shard %d", it.e.number, it.e.shard)
		}
	}
}

// checkOrder checks the order of entries in a transaction about to commit.
func (w *world) checkOrder(t *tx) {
	for _, it := range t.c.items {
		e := it.e
		if e == nil || it.skipped || w.pg.t.seen[e.number] {
			continue
		}
		if newest := w.pg.t.newest[e.device]; e.number < newest && !e.foreign && !e.behind && e.lost == "" {
			w.fail("P3: entry %d of device %d is committed for the first time after entry %d", e.number, e.device, newest)
		}
	}
	for _, it := range t.c.items {
		if e := it.e; e != nil && !it.skipped {
			w.pg.t.seen[e.number] = true
			w.pg.t.newest[e.device] = max(w.pg.t.newest[e.device], e.number)
			e.committed = true
		}
	}
	w.commits++
}

// checkRows checks the rows of the devices that a commit touched.
func (w *world) checkRows(t *tx, touched map[int]bool) {
	for d := range w.pg.t.rows {
		if !touched[d] {
			continue
		}
		for ts, was := range w.pg.t.prev[d] {
			if want := w.pg.t.before(d, ts); was != want {
				w.fail("P2: device %d: %s derived the row of %d from the one of %d instead of %d", d, t.p.id, ts, was, want)
			}
		}
	}
}

// checkAck checks an entry that is acknowledged as finished. now is what the
// stream has under its ID.
func (w *world) checkAck(p *proc, it item, now *entry) {
	w.acks++
	if now != nil && !now.committed {
		w.fail("P1: %s acknowledges entry %d, which was never committed", p.id, now.number)
	}
	if now == nil {
		w.checkGone(p, it.id)
	}
}

// checkUnqueued checks an item that is acknowledged as finished though it is on no queue.
func (w *world) checkUnqueued(p *proc, it item) {
	w.acks++
	w.unqueued++
	if now := w.redis.find(it.id); now != nil && !now.committed {
		w.fail("P1: %s acknowledges entry %d, which was unqueued and never committed", p.id, now.number)
	}
}

// checkPassed checks that the last-delivered ID passes no entry that is neither pending
// nor finished.
func (w *world) checkPassed(from, to telemetry.EntryID) {
	r := w.redis
	for _, e := range w.entries {
		if !from.Less(e.id) || to.Less(e.id) || e.lost != "" || e.history != r.history && r.find(e.id) != e {
			continue
		}
		_, pending := r.group.pending[e.id]
		mark, known := r.acked[e.shard]
		if !pending && !(e.committed && (!known || !mark.Less(e.id) || r.find(e.id) != e)) {
			w.fail("P1: the last-delivered ID moves to %d, past entry %d (ID %d), which is neither on its queue nor finished", to.Seq, e.number, e.id.Seq)
		}
	}
}

// checkTwice checks that what is delivered is not in flight before.
func (p *proc) checkTwice(shard int, items []item) {
	count := make(map[telemetry.EntryID]int)
	for _, id := range p.slots[shard].queue.InFlightIDs() {
		count[id]++
	}
	for _, it := range items {
		if count[it.id] > 1 && (it.e == nil || !it.e.moved) && p.w.cfg.Mutant != FeedUnknown {
			p.w.fail("P3: ID %d of shard %d is delivered while it is in flight", it.id.Seq, shard)
		}
	}
}

// waiting is what a pending entry waits for, and since when.
type waiting struct {
	p         *proc
	ownership uint64
	since     int64
}

// waitsFor is how long an entry may be pending while its shard has an owner that works. It
// is well below the rescan of queues: nothing rests on that.
const waitsFor = 10000

// checkWaiting checks, once the faults have ended, that nothing is on a queue for long,
// finished or not.
func (w *world) checkWaiting() {
	g := w.redis.group
	if g == nil || len(w.pg.locked) > 0 || len(w.pg.written) > 0 {
		w.waits = nil
		return
	}
	now := make(map[telemetry.EntryID]waiting)
	for _, id := range slices.SortedFunc(maps.Keys(g.pending), telemetry.EntryID.Compare) {
		at, e := g.pending[id], w.redis.find(id)
		if at.shard == foreign || w.wasMoved(id) {
			continue
		}
		p := w.pg.t.procs[at.shard]
		if p == nil || p.dead || p.missed || p.frozenUntil > w.now || !p.slots[at.shard].owned || p.slots[at.shard].stopping || p.slots[at.shard].epoch != w.pg.t.shards[at.shard].epoch {
			continue
		}
		o := p.slots[at.shard].ownership
		was, ok := w.waits[id]
		if !ok || was.p != p || was.ownership != o {
			was = waiting{p, o, w.now}
		}
		if now[id] = was; w.now-was.since > waitsFor {
			w.fail("P4: ID %d of shard %d waits on its queue though %s works (finished: %v)", id.Seq, at.shard, p.id, e != nil && w.pg.t.seen[e.number])
		}
	}
	w.waits = now
}

func (w *world) wasMoved(id telemetry.EntryID) bool {
	return slices.ContainsFunc(w.entries, func(e *entry) bool { return e.id == id && e.moved })
}

// checkGone checks a pending ID that is recorded as lost because its content is
// gone.
func (w *world) checkGone(p *proc, id telemetry.EntryID) {
	if w.redis.find(id) != nil {
		w.fail("P1: %s notes entry %d as lost, which is there", p.id, id.Seq)
	}
	for _, e := range w.entries {
		if e.id == id && e.lost == "" && w.redis.find(id) != e {
			e.lost = "trimmed while pending"
		}
	}
}

// checkGroupGone is called before the group is removed: entries trimmed while
// pending leave no trace.
func (w *world) checkGroupGone() {
	if w.redis.group == nil {
		return
	}
	for _, e := range w.entries { // its recreation tells of these
		if w.redis.group.delivered.Less(e.id) && !w.redis.ahead.last.Less(e.id) {
			w.lose(e, "trimmed while it was held, and the group lost")
		}
	}
	for id := range w.redis.group.pending {
		for _, e := range w.entries {
			if e.id == id && !e.committed && w.redis.find(id) != e {
				e.lost = "trimmed while pending, and its queue lost"
			}
		}
	}
}

// checkRestored is called before Postgres goes back to an older state, and
// marks the entries that the known limit concerns.
func (w *world) checkRestored(past *tables) {
	for _, e := range w.entries {
		row := past.shards[e.shard]
		put := e.foreign || e.history > row.history
		if put && e.committed && !past.seen[e.number] && !row.applied.Less(e.id) {
			e.behind = true
		}
	}
}

// checkRange checks a redelivered range: trimmed entries go to the ledger.
func (w *world) checkRange(shard int, after, upTo, first telemetry.EntryID) {
	for _, e := range w.entries {
		if e.shard == shard && after.Less(e.id) && !upTo.Less(e.id) && e.id.Less(first) && e.lost == "" {
			w.reach(rare.RedeliveredTrimmed)
			e.lost = "trimmed, and its commit lost by Postgres"
		}
	}
}

// quiet reports whether all entries are dispatched and all queues empty.
func (w *world) quiet() bool {
	g := w.redis.group
	if g == nil || len(g.pending) > 0 || len(w.entries) < w.published {
		return false
	}
	if n := len(w.redis.stream); n > 0 && g.delivered.Less(w.redis.stream[n-1].id) {
		return false
	}
	// What Postgres lost is redelivered as soon as its owner notices.
	for i := range w.pg.t.shards {
		p := w.pg.t.procs[i]
		if p == nil || p.dead || p.frozenUntil > w.now || !p.slots[i].owned || p.links[postgresServer].knownRun != w.servers[postgresServer].run {
			return false
		}
		if w.pg.t.shards[i].epoch != p.slots[i].epoch {
			return false
		}
	}
	// A process that is frozen forever may leave a transaction open that blocks
	// nothing.
	return !slices.ContainsFunc(w.pg.open, func(t *tx) bool { return t.p.frozenUntil < forever })
}

// checkEnd checks the final state, once all is quiet.
func (w *world) checkEnd() {
	for _, e := range w.entries {
		if w.pg.t.seen[e.number] || e.lost != "" {
			continue
		}
		if e.committed && e.behind {
			w.limit++
			continue
		}
		w.fail("P1: entry %d (ID %d, device %d, shard %d) is neither committed nor accounted for", e.number, e.id.Seq, e.device, e.shard)
	}
	for d, rows := range w.pg.t.rows {
		for ts, number := range rows {
			for _, e := range w.entries[:number-1] {
				// Excepted is an entry that was recorded as lost, and came back with an
				// older state of Redis. Those that follow it were committed, and read by
				// others, when it was no entry of the stream: a row that stands is not
				// taken back for it. As an entry that decodes at last it is a late one
				// from the moment it is found again, and the ledger has it.
				if e.device == d && e.ts == ts && w.pg.t.seen[e.number] && !e.foreign && !e.behind && e.lost == "" {
					w.fail("P2: device %d at %d: entry %d counts instead of %d", d, ts, number, e.number)
				}
			}
		}
	}
}

// overdue fails the run, naming what is unfinished long after the last fault.
func (w *world) overdue() {
	g := w.redis.group
	if g == nil {
		w.fail("P4: no group")
		return
	}
	var left []uint64
	for id := range g.pending {
		left = append(left, id.Seq)
	}
	slices.Sort(left)
	w.fail("P4: work is held up: IDs %v pending, dispatched up to %d of %d, %d transactions open", left, g.delivered.Seq, w.redis.last.Seq, len(w.pg.open))
}

// checkLock is called when the lock of a shard's row ends, and all else has been
// well for long: all other shards are owned by whom they are assigned to, and their
// work is done; and nothing has moved meanwhile, since nobody could do better. A
// lock of what commits write cannot be told from one that stops everybody: shards
// of the same worker may wait for that.
func (w *world) checkLock(locked int, devices bool, moves int) {
	if moves > 0 {
		w.fail("P8: the lock of shard %d moved shards or ended sessions %d times", locked, moves)
	}
	if devices {
		return
	}
	for i, row := range w.pg.t.shards {
		p := w.pg.t.procs[i]
		if i != locked && (p == nil || row.owner != row.assigned || !p.slots[i].owned) {
			w.fail("P8: the lock of shard %d keeps shard %d from %s", locked, i, row.assigned)
		}
	}
	if g := w.redis.group; g != nil {
		for id, at := range g.pending {
			if at.shard != locked && !w.wasMoved(id) {
				w.fail("P8: the lock of shard %d keeps ID %d of shard %d from being done", locked, id.Seq, at.shard)
			}
		}
	}
}

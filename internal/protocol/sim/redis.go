package sim

import (
	"maps"
	"slices"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// entry is one item of the stream. Its number tells it from another entry that
// got the same ID after a failover.
type entry struct {
	number int // position in the one true order of publication
	id     telemetry.EntryID
	device int
	ts     int // device time
	shard  int

	// For the checks only.
	committed bool // at some time, in some history
	foreign   bool // was pending for a foreign consumer
	behind    bool // the known limit concerns it
	moved     bool // may be dispatched again without notice
	history   int  // of Redis, when it was added
	lost      string
}

// foreign is the consumer that is no shard.
const foreign = -1

// pendingEntry is the consumer of a pending entry, and since when.
type pendingEntry struct {
	shard int
	since int64
}

type group struct {
	delivered telemetry.EntryID
	pending   map[telemetry.EntryID]pendingEntry
}

type lease struct {
	token string
	until int64
}

// ahead is how far a dispatcher has read, under which token of the dispatch lease, and by which
// of its dispatches.
type ahead struct {
	token  string
	last   telemetry.EntryID
	number int
}

type beatKey struct {
	beat  protocol.Beat
	until int64
}

// redis is what the server holds. Every method is one command or one script.
type redis struct {
	w             *world
	stream        []*entry
	last          telemetry.EntryID
	group         *group
	dispatchLease lease
	dispatched    telemetry.EntryID
	dispatchedSet bool
	ahead         ahead
	acked         map[int]telemetry.EntryID
	lock          lease
	grants        map[int]string // by shard: the token that may acknowledge
	beats         map[string]beatKey
	history       int // number of failovers so far
}

func (r *redis) clone() *redis {
	c := *r
	c.stream = slices.Clone(r.stream)
	c.acked, c.grants = maps.Clone(r.acked), maps.Clone(r.grants)
	c.beats = maps.Clone(r.beats)
	if r.group != nil {
		c.group = &group{delivered: r.group.delivered, pending: maps.Clone(r.group.pending)}
	}
	return &c
}

func (r *redis) find(id telemetry.EntryID) *entry {
	i, ok := slices.BinarySearchFunc(r.stream, id, func(e *entry, id telemetry.EntryID) int { return e.id.Compare(id) })
	if !ok {
		return nil
	}
	return r.stream[i]
}

func (r *redis) holder() string {
	if r.w.now >= r.dispatchLease.until {
		return ""
	}
	return r.dispatchLease.token
}

func (r *redis) add(e *entry) {
	e.id = telemetry.EntryID{Ms: 1, Seq: r.last.Seq + 1}
	r.last, e.history = e.id, r.history
	r.stream = append(r.stream, e)
}

// next is where dispatching continues.
func (r *redis) next() telemetry.EntryID {
	if r.dispatchedSet && r.dispatched.Less(r.group.delivered) {
		return r.dispatched
	}
	return r.group.delivered
}

// trim removes all but the newest n entries.
func (r *redis) trim(n int) {
	for len(r.stream) > n {
		e := r.stream[0]
		r.stream = r.stream[1:]
		pending, from := false, telemetry.EntryID{} // where dispatching continues
		if g := r.group; g != nil {
			_, pending = g.pending[e.id]
			from = r.next()
			if from.Less(r.ahead.last) { // the dispatcher has it in hand, or the next one looks for it
				from = r.ahead.last
			}
		}
		if !pending && from.Less(e.id) && !r.w.pg.t.seen[e.number] {
			e.lost = "trimmed before it was dispatched"
		}
	}
}

// acquireDispatchLease is dispatch_lease.lua.
func (r *redis) acquireDispatchLease(p *proc, before, token string, ttl int64) protocol.DispatchLease {
	if h := r.holder(); h != "" && h != before {
		answer := protocol.DispatchLease{Left: millis(r.dispatchLease.until - r.w.now)}
		if r.dispatchedSet {
			answer.After = r.dispatched
			if r.dispatched.Less(r.ahead.last) {
				answer.Beyond = r.ahead.last
			}
		}
		return answer
	}
	r.dispatchLease = lease{token, r.w.now + ttl}
	if g := r.group; g != nil {
		if r.dispatchedSet && r.dispatched.Less(g.delivered) {
			g.delivered = r.dispatched
			return protocol.DispatchLease{Acquired: true, After: g.delivered, Beyond: r.readBeyond(token, g.delivered), Pending: len(g.pending), Moved: true}
		}
		// From here on a move is noticed, even after an earlier one and after a
		// flush.
		r.dispatched, r.dispatchedSet = g.delivered, true
		return protocol.DispatchLease{Acquired: true, After: g.delivered, Beyond: r.readBeyond(token, g.delivered), Pending: len(g.pending)}
	}
	at := telemetry.EntryID{}
	if r.w.cfg.Mutant == GroupNotAtZero {
		at = r.last
		if r.dispatchedSet {
			at = r.dispatched
		}
	}
	r.dispatchedSet, r.ahead = false, ahead{}
	r.group = &group{delivered: at, pending: make(map[telemetry.EntryID]pendingEntry)}
	r.w.logf(p, "group made at %d", at.Seq)
	r.publish(notification{rewind: true})
	return protocol.DispatchLease{Acquired: true, After: at, GroupCreated: true}
}

// readBeyond returns where another dispatcher has read to beyond an ID. What was trimmed in
// between is noted as lost: the dispatcher may have finished some.
func (r *redis) readBeyond(token string, id telemetry.EntryID) telemetry.EntryID {
	if !id.Less(r.ahead.last) || r.ahead.token == token {
		return telemetry.EntryID{}
	}
	for _, e := range r.w.entries {
		if id.Less(e.id) && !r.ahead.last.Less(e.id) {
			r.w.lose(e, "trimmed while it was unqueued")
		}
	}
	return r.ahead.last
}

// lose notes an entry as lost that is not in the stream and was never committed.
func (w *world) lose(e *entry, why string) {
	if e.lost == "" && w.redis.find(e.id) != e && !w.pg.t.seen[e.number] {
		e.lost = why
	}
}

// notification is what members hear of each other.
type notification struct {
	rewind bool  // all are to read their queues from the start
	again  []int // these queues
	shards []int // with new entries
}

// publish notifies the members that hear it.
func (r *redis) publish(n notification) {
	w := r.w
	for _, p := range w.procs {
		if p.dead {
			continue
		}
		if l := &p.links[redisServer]; w.now < l.cutTil || l.knownRun != w.servers[redisServer].run {
			p.missed = true
			continue
		}
		w.after(p.latency(), p, func() {
			if n.rewind {
				p.rewind(true)
			}
			for _, shard := range n.again {
				p.reread(shard, true)
			}
			for _, shard := range n.shards {
				if s := &p.slots[shard]; s.owned && !s.stopping {
					s.due = true
				}
			}
		})
	}
}

func (r *redis) releaseDispatchLease(token string) {
	if r.holder() == token {
		r.dispatchLease = lease{}
	}
}

// readNew is a plain XREAD.
func (r *redis) readNew(after telemetry.EntryID, count int) []*entry {
	i, _ := slices.BinarySearchFunc(r.stream, after.Next(), func(e *entry, id telemetry.EntryID) int { return e.id.Compare(id) })
	return slices.Clone(r.stream[i:min(len(r.stream), i+count)])
}

// request is what dispatch.lua gets: IDs and the shards of their devices.
type request struct {
	token          string
	after          telemetry.EntryID // the last-delivered ID as it should be
	from, last     telemetry.EntryID // the read
	settled        telemetry.EntryID // the last-delivered ID from now on
	read           []*entry
	number         int // dispatches under this lease before
	unqueued       func(shard int) bool
	again, release map[int][]telemetry.EntryID
	rewind, notify bool
}

// dispatch is dispatch.lua.
func (r *redis) dispatch(p *proc, d request, ttl int64) (map[telemetry.EntryID]bool, error) {
	m := r.w.cfg.Mutant
	current := r.holder() == d.token
	if !current && m != NoTokenCheck {
		return nil, errLost
	}
	g := r.group
	if g == nil || g.delivered != d.after && m != NoDeliveredCheck {
		return nil, errLost
	}
	if d.from != d.after && r.ahead != (ahead{d.token, d.from, d.number}) && m != NoDeliveredCheck && m != NoTokenCheck {
		return nil, errLost
	}
	if !current {
		r.w.fail("P4: %s dispatched without holding the dispatch lease", p.id)
	}
	gone := make(map[telemetry.EntryID]bool)
	claimed := make(map[int]bool)
	claim := func(shard int, id telemetry.EntryID, lost bool) {
		claimed[shard] = true
		there := r.find(id)
		if there == nil {
			gone[id] = true
			delete(g.pending, id)
			if lost {
				for _, e := range r.w.entries {
					if e.id == id {
						r.w.lose(e, "trimmed before it was dispatched")
					}
				}
			}
			return
		}
		if there.shard != shard {
			r.w.fail("P3: entry %d of shard %d put on the queue of shard %d", there.number, there.shard, shard)
		}
		g.pending[id] = pendingEntry{shard: shard, since: r.w.now}
	}
	for _, shard := range slices.Sorted(maps.Keys(d.again)) {
		for _, id := range d.again[shard] {
			claim(shard, id, true)
		}
	}
	for _, shard := range slices.Sorted(maps.Keys(d.release)) {
		for _, id := range d.release[shard] {
			claim(shard, id, false)
		}
	}
	for _, e := range d.read {
		if !d.unqueued(e.shard) {
			claim(e.shard, e.id, true)
		}
	}
	for _, e := range r.w.entries { // the number of entries read tells of these
		if d.from.Less(e.id) && !d.last.Less(e.id) && !slices.Contains(d.read, e) {
			r.w.lose(e, "trimmed before it was read")
		}
	}
	r.w.checkPassed(g.delivered, d.settled)
	g.delivered = d.settled
	if d.settled != d.last {
		r.ahead = ahead{d.token, d.last, d.number + 1}
	} else if d.from != d.after {
		r.ahead = ahead{}
	}
	r.dispatched, r.dispatchedSet = g.delivered, true
	r.dispatchLease.until = r.w.now + ttl
	if d.rewind {
		r.publish(notification{rewind: true})
	} else if d.notify && len(claimed) > 0 {
		r.publish(notification{shards: slices.Sorted(maps.Keys(claimed)), again: slices.Sorted(maps.Keys(d.again))})
	}
	if then := r.w.onDispatch; then != nil {
		r.w.onDispatch = nil
		r.w.after(0, nil, then)
	}
	return gone, nil
}

// queue is XREADGROUP of one shard's consumer from an ID.
func (r *redis) queue(shard int, after telemetry.EntryID, count int) ([]item, error) {
	if r.group == nil {
		return nil, errLost
	}
	var ids []telemetry.EntryID
	for id, at := range r.group.pending {
		if at.shard == shard && after.Less(id) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, telemetry.EntryID.Compare)
	items := make([]item, 0, min(len(ids), count))
	for _, id := range ids[:min(len(ids), count)] {
		e := r.find(id)
		items = append(items, item{id: id, e: e})
	}
	return items, nil
}

// registerOwner registers the grant under which a shard is owned, and returns
// how far it was acknowledged. No acknowledgement of an earlier grant succeeds
// after that.
func (r *redis) registerOwner(shard int, grant string, applied telemetry.EntryID) (protocol.Marks, error) {
	if r.group == nil {
		return protocol.Marks{}, errLost
	}
	if r.grants == nil {
		r.grants = make(map[int]string)
	}
	r.grants[shard] = grant
	acked, known := r.acked[shard]
	dispatched := r.group.delivered
	for id := range r.group.pending {
		if dispatched.Less(id) {
			dispatched = id
		}
	}
	if dispatched.Less(r.ahead.last) {
		dispatched = r.ahead.last
	}
	return protocol.Marks{Applied: applied, Acked: acked, AckedKnown: known, Dispatched: dispatched}, nil
}

// ack is ack.lua for one shard. Another grant's is rejected. Items that are unqueued are on
// no queue: only the mark moves.
func (r *redis) ack(p *proc, shard int, grant string, items []item, unqueued []bool) error {
	if r.grants[shard] != grant && r.w.cfg.Mutant != AckOutlivesGrant {
		return errLost
	}
	for i, it := range items {
		pending, onNone := false, unqueued != nil && unqueued[i]
		if r.group != nil && !onNone {
			_, pending = r.group.pending[it.id]
		}
		if it.e == nil { // recorded as lost in the same step
			if pending {
				r.w.checkGone(p, it.id)
				delete(r.group.pending, it.id)
			}
			continue
		}
		if onNone {
			r.w.checkUnqueued(p, it)
		}
		if pending {
			r.w.checkAck(p, it, r.find(it.id))
			delete(r.group.pending, it.id)
		}
		if r.acked == nil {
			r.acked = make(map[int]telemetry.EntryID)
		}
		if mark := r.acked[shard]; mark.Less(it.id) {
			r.acked[shard] = it.id
		}
	}
	return nil
}

// redeliver puts a range of a shard's entries back on its queue. Trimmed ones
// are recorded as lost.
func (r *redis) redeliver(p *proc, shard int, token string, after, upTo telemetry.EntryID) error {
	if r.group == nil {
		return errLost
	}
	first := r.last.Next()
	if len(r.stream) > 0 {
		first = r.stream[0].id
	}
	r.w.checkRange(shard, after, upTo, first)
	for _, e := range r.stream {
		if e.shard == shard && after.Less(e.id) && !upTo.Less(e.id) {
			r.group.pending[e.id] = pendingEntry{shard: shard, since: r.w.now}
			// The group was recreated, or moved: this is dispatched once more. Or the request
			// was held up, or its sender, and the shard has been acquired again since.
			e.moved = e.moved || r.grants[shard] != token || r.w.pg.t.procs[shard] != p || r.next().Less(e.id) && r.ahead.last.Less(e.id)
		}
	}
	r.w.logf(p, "shard %d: redelivered after %d up to %d", shard, after.Seq, upTo.Seq)
	return nil
}

// sweep puts entries that foreign consumers hold for too long on the shards'
// queues, unless dispatching will do so: ahead of what lies before them they would
// move the cursors past it.
func (r *redis) sweep(p *proc, idle int64) {
	if r.group == nil {
		return
	}
	swept := make(map[int]bool)
	defer func() {
		if len(swept) > 0 {
			r.publish(notification{again: slices.Sorted(maps.Keys(swept))})
		}
	}()
	for id, at := range r.group.pending {
		if at.shard != foreign || r.w.now-at.since < idle {
			continue
		}
		if r.dispatchedSet && r.dispatched.Less(id) && r.w.cfg.Mutant != SweptAhead {
			continue
		}
		e := r.find(id)
		if e == nil { // the deleted part of XAUTOCLAIM's reply goes to the ledger
			r.w.checkGone(p, id)
			delete(r.group.pending, id)
			continue
		}
		r.w.reach(rare.Swept)
		swept[e.shard] = true
		r.group.pending[id] = pendingEntry{shard: e.shard, since: r.w.now}
	}
}

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

// trim removes all but the newest n entries.
func (r *redis) trim(n int) {
	for len(r.stream) > n {
		e := r.stream[0]
		r.stream = r.stream[1:]
		pending, from := false, telemetry.EntryID{} // where dispatching continues
		if g := r.group; g != nil {
			_, pending = g.pending[e.id]
			from = g.delivered
			if r.dispatchedSet && r.dispatched.Less(from) {
				from = r.dispatched
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
		}
		return answer
	}
	r.dispatchLease = lease{token, r.w.now + ttl}
	if g := r.group; g != nil {
		if r.dispatchedSet && r.dispatched.Less(g.delivered) {
			g.delivered = r.dispatched
			return protocol.DispatchLease{Acquired: true, After: g.delivered, Pending: len(g.pending), Moved: true}
		}
		// From here on a move is noticed, even after an earlier one and after a
		// flush.
		r.dispatched, r.dispatchedSet = g.delivered, true
		return protocol.DispatchLease{Acquired: true, After: g.delivered, Pending: len(g.pending)}
	}
	at := telemetry.EntryID{}
	if r.w.cfg.Mutant == GroupNotAtZero {
		at = r.last
		if r.dispatchedSet {
			at = r.dispatched
		}
	}
	r.dispatchedSet = false
	r.group = &group{delivered: at, pending: make(map[telemetry.EntryID]pendingEntry)}
	r.w.logf(p, "group made at %d", at.Seq)
	return protocol.DispatchLease{Acquired: true, After: at, GroupCreated: true}
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

// dispatch is dispatch.lua. It gets IDs and the shards of their devices.
func (r *redis) dispatch(p *proc, token string, after telemetry.EntryID, read []*entry, ttl int64) (map[telemetry.EntryID]bool, error) {
	m := r.w.cfg.Mutant
	current := r.holder() == token
	if !current && m != NoTokenCheck {
		return nil, errLost
	}
	g := r.group
	if g == nil || g.delivered != after && m != NoDeliveredCheck {
		return nil, errLost
	}
	if !current {
		r.w.fail("P4: %s dispatched without holding the dispatch lease", p.id)
	}
	gone := make(map[telemetry.EntryID]bool)
	for _, e := range read {
		there := r.find(e.id)
		if there == nil {
			gone[e.id] = true
			delete(g.pending, e.id)
			if e.lost == "" {
				e.lost = "trimmed before it was dispatched"
			}
			continue
		}
		if there.shard != e.shard {
			r.w.fail("P3: entry %d of shard %d put on the queue of shard %d", there.number, there.shard, e.shard)
		}
		g.pending[e.id] = pendingEntry{shard: e.shard, since: r.w.now}
	}
	g.delivered = read[len(read)-1].id
	r.dispatched, r.dispatchedSet = g.delivered, true
	r.dispatchLease.until = r.w.now + ttl
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
	return protocol.Marks{Applied: applied, Acked: acked, AckedKnown: known, Dispatched: dispatched}, nil
}

// ack is ack.lua for one shard. Another grant's is rejected.
func (r *redis) ack(p *proc, shard int, grant string, items []item) error {
	if r.grants[shard] != grant && r.w.cfg.Mutant != AckOutlivesGrant {
		return errLost
	}
	for _, it := range items {
		pending := false
		if r.group != nil {
			_, pending = r.group.pending[it.id]
		}
		if it.e == nil { // recorded as lost in the same step
			if pending {
				r.w.checkGone(p, it.id)
				delete(r.group.pending, it.id)
			}
			continue
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
func (r *redis) redeliver(p *proc, shard int, after, upTo telemetry.EntryID) error {
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
		r.group.pending[id] = pendingEntry{shard: e.shard, since: r.w.now}
	}
}

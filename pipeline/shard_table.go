package pipeline

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// table is shared by the dispatcher, the reader, the workers and coordination:
// which shards are owned, how far their queues are read, and how much is in
// flight. Its lock is held for the length of a list operation, never during a
// wait.
type table struct {
	mu    sync.Mutex
	slots []slot
	load  []load // of each worker

	records, maxRecords int
	bytes, maxBytes     int64
	workerRecords       int // maximum entries in flight in one worker
	workerBytes         int64
	leaseNumber         uint64
	leaseHeld           bool
	lastDispatched      telemetry.EntryID // by another member, as far as we know
	settledID           telemetry.EntryID // the group's last-delivered ID, as far as we know
	dispatchWait        protocol.Wait     // why the dispatcher waits; without a state while it does not
	meanSize            int               // of an entry, learned from reads
	finished            uint64            // entries, since the start
	// orphans are entries that were unqueued and whose work was given up, by shard: the next dispatch
	// puts them on their queues, and no entry of these shards is unqueued before.
	orphans map[int][]telemetry.EntryID

	workers []*worker
	wake    chan struct{} // to the reader: something is due; size one, coalesced
	room    chan struct{} // to the dispatcher: something was finished, or queues were read; size one, coalesced
}

// load is what a worker has in flight.
type load struct {
	shards  int
	records int
	bytes   int64
	// finished is when an entry was finished last.
	finished time.Time
}

// slot is one shard as this instance sees it.
type slot struct {
	queue    protocol.Queue
	owned    bool
	stopping bool // intake has ended; what is in flight is finished
	due      bool // the queue may hold entries: read it
	// notBefore is when a queue that is due may be read again.
	notBefore time.Time
	locked    bool // the last commit found the row of the shard locked
	stoppedAt time.Time
	refusal   protocol.Wait // why Redis refuses its dead letters; without a state while it does not
	pause     *pause        // the sink refuses its rows; nil while it does not
	epoch     int64
	token     string
	grant     uint64 // counts grants and drops, so that work of an earlier grant is recognised
	worker    int
	records   int
	bytes     int64
	applied   telemetry.EntryID
	finished  uint64    // entries, since the start, under all grants
	advanced  time.Time // when an entry was finished last, or the shard was granted

	quarantine protocol.Quarantine // limits of its probe batches, until endQuarantine
	// dispatched is how far the dispatcher had read when the shard was acquired: until the last-delivered
	// ID has passed it, entries that the one before unqueued may be missing from the queue.
	dispatched telemetry.EntryID
	drained    chan struct{} // closed when stopping and nothing is in flight
	// deadLettered is when the shard had a dead letter last.
	deadLettered time.Time
}

func newTable(cfg Config) *table {
	t := &table{
		slots:         make([]slot, cfg.Shards),
		load:          make([]load, cfg.Workers),
		maxRecords:    cfg.MaxInFlightRecords,
		maxBytes:      cfg.MaxInFlightBytes,
		workerRecords: max(1, cfg.MaxInFlightRecords/cfg.Workers),
		workerBytes:   max(1, cfg.MaxInFlightBytes/int64(cfg.Workers)),
		meanSize:      400,
		orphans:       make(map[int][]telemetry.EntryID),
		wake:          make(chan struct{}, 1),
		room:          make(chan struct{}, 1),
	}
	return t
}

func idsOf(entries []telemetry.Entry) []telemetry.EntryID {
	ids := make([]telemetry.EntryID, len(entries))
	for i := range entries {
		ids[i] = entries[i].ID
	}
	return ids
}

func wakeUp(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// grant starts a shard under an epoch, on the worker with the fewest shards.
func (t *table) grant(h protocol.ShardLease) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h.Shard < 0 || h.Shard >= len(t.slots) {
		return fmt.Errorf("grant shard %d of %d: no such shard; check SHARDS", h.Shard, len(t.slots))
	}
	s := &t.slots[h.Shard]
	if s.owned {
		t.release(h.Shard)
	}
	s.worker = 0
	for w := range t.load {
		if t.load[w].shards < t.load[s.worker].shards {
			s.worker = w
		}
	}
	t.load[s.worker].shards++
	s.grant++
	s.owned, s.stopping, s.due, s.epoch, s.quarantine = true, false, true, h.Epoch, h.Quarantine
	s.dispatched = h.Dispatched
	s.token, s.notBefore, s.locked, s.pause, s.refusal = h.Token, time.Time{}, false, nil, protocol.Wait{}
	s.quarantine.Limit = min(s.quarantine.Limit, t.workerRecords)
	s.advanced = time.Now()
	t.orphan(h.Shard, s.queue.Discard())
	t.workers[s.worker].box.put(message{kind: granted, shard: h.Shard, grant: s.grant, epoch: h.Epoch, token: h.Token, quarantine: s.quarantine, inherited: h.Left, released: h.Released, acquired: true})
	wakeUp(t.wake)
	return nil
}

// release forgets a shard and all of it that is in flight. The caller holds the lock.
func (t *table) release(shard int) {
	s := &t.slots[shard]
	if !s.owned {
		return
	}
	t.load[s.worker].shards--
	t.load[s.worker].records -= s.records
	t.load[s.worker].bytes -= s.bytes
	t.records -= s.records
	t.bytes -= s.bytes
	s.records, s.bytes = 0, 0
	s.owned, s.stopping, s.due, s.pause = false, false, false, nil
	s.applied = telemetry.EntryID{}
	s.grant++
	t.orphan(shard, s.queue.Discard())
	t.workers[s.worker].box.put(message{kind: dropped, shard: shard, grant: s.grant})
	if s.drained != nil {
		close(s.drained)
		s.drained = nil
	}
	wakeUp(t.room)
}

// orphan notes entries of a shard that were unqueued and whose work was given up. Without the
// lease there are none: who dispatches next begins behind them. The caller holds the lock.
func (t *table) orphan(shard int, ids []telemetry.EntryID) {
	if len(ids) > 0 && t.leaseHeld {
		rare.Reached(rare.Orphaned)
		t.orphans[shard] = append(t.orphans[shard], ids...)
		wakeUp(t.room)
	}
}

// orphanFirst notes those of the n oldest entries of a shard in flight that are unqueued: they are not
// finished, though nothing waits for them any more, as far as is told. The caller holds the lock.
func (t *table) orphanFirst(shard int, grant uint64, n int, unfinished func(telemetry.EntryID) bool) {
	if s := &t.slots[shard]; s.owned && s.grant == grant {
		t.orphan(shard, slices.DeleteFunc(s.queue.UnqueuedOf(n), func(id telemetry.EntryID) bool { return !unfinished(id) }))
	}
}

// adopt forgets orphans that are on their queue now, or that are finished. The caller holds the lock.
func (t *table) adopt(shard int, ids []telemetry.EntryID) {
	if len(t.orphans[shard]) == 0 {
		return
	}
	these := make(map[telemetry.EntryID]struct{}, len(ids))
	for _, id := range ids {
		these[id] = struct{}{}
	}
	// A plan that is being carried out has the list.
	rest := slices.DeleteFunc(slices.Clone(t.orphans[shard]), func(id telemetry.EntryID) bool {
		_, ok := these[id]
		return ok
	})
	if t.orphans[shard] = rest; len(rest) == 0 {
		delete(t.orphans, shard)
	}
}

// unqueued returns the number of entries that are in flight and on no queue, and the first of them
// and of the orphans, if there is any. The caller holds the lock.
func (t *table) unqueued() (n int, first telemetry.EntryID, found bool) {
	note := func(id telemetry.EntryID) {
		if !found || id.Less(first) {
			first, found = id, true
		}
	}
	for i := range t.slots {
		q := &t.slots[i].queue
		n += q.Unqueued()
		if id, ok := q.FirstUnqueued(); ok {
			note(id)
		}
	}
	for _, ids := range t.orphans {
		for _, id := range ids {
			note(id)
		}
	}
	return n, first, found
}

// orphaned returns the number of orphans. The caller holds the lock.
func (t *table) orphaned() (n int) {
	for _, ids := range t.orphans {
		n += len(ids)
	}
	return n
}

// acknowledge is called before the entries of parts are acknowledged. It says of each part which of
// its entries are on no queue, nil for none.
func (t *table) acknowledge(parts []part) (unqueued [][]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, p := range parts {
		s := &t.slots[p.shard]
		if p.again != nil || len(p.entries) == 0 || s.grant != p.grant {
			continue
		}
		s.queue.Acknowledge(p.entries[0].ID, len(p.entries), func(j int) {
			if unqueued == nil {
				unqueued = make([][]bool, len(parts))
			}
			if unqueued[i] == nil {
				unqueued[i] = make([]bool, len(p.entries))
			}
			unqueued[i][j] = true
		})
	}
	return unqueued
}

// wasFinished reports whether an entry that is delivered again, and trimmed, was finished before.
func (t *table) wasFinished(shard int, grant uint64, id telemetry.EntryID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.slots[shard]
	return s.grant == grant && s.queue.Finished(id)
}

// drop gives a shard up: nothing of it will be committed or acknowledged any
// more, except a commit already sent, which the epoch check decides.
func (t *table) drop(shard int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.release(shard)
}

// dropGrant gives a shard up if the grant that failed is still the current one.
func (t *table) dropGrant(shard int, grant uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := &t.slots[shard]; !s.owned || s.grant != grant {
		return false
	}
	t.release(shard)
	return true
}

// restart reads a shard's queue from the start again, on fresh state, under the
// same epoch: its work in flight was given up for a reason other than ownership.
// It is not read before a time, so that what was refused is not tried at once.
func (t *table) restart(shard int, grant uint64, notBefore time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.slots[shard]
	if !s.owned || s.grant != grant {
		return
	}
	epoch, stopping, drained, applied := s.epoch, s.stopping, s.drained, s.applied
	worker, quarantine, pause := s.worker, s.quarantine, s.pause
	s.drained = nil
	t.release(shard)
	t.load[worker].shards++
	s.grant++
	s.owned, s.epoch, s.applied, s.quarantine = true, epoch, applied, quarantine
	if stopping {
		// What was in flight stays on the queue for the next owner.
		s.stopping = true
		if drained != nil {
			close(drained)
		}
		return
	}
	s.due, s.notBefore, s.pause = true, notBefore, pause
	t.workers[worker].box.put(message{kind: granted, shard: shard, grant: s.grant, epoch: epoch, token: s.token, quarantine: quarantine, apart: pause != nil})
	wakeUp(t.wake)
}

// restartLocked restarts a shard whose row is locked, and reports whether that is news.
func (t *table) restartLocked(shard int, grant uint64) (news bool) {
	t.mu.Lock()
	s := &t.slots[shard]
	if s.owned && s.grant == grant { // a later grant has not met the lock
		news, s.locked = !s.locked, true
	}
	t.mu.Unlock()
	t.restart(shard, grant, time.Now().Add(refusedPause))
	return news
}

// restartRefused restarts a shard whose dead letters Redis refused.
func (t *table) restartRefused(shard int, grant uint64, state string) {
	t.mu.Lock()
	if s := &t.slots[shard]; s.owned && s.grant == grant && s.refusal.State != state {
		s.refusal = protocol.Wait{State: state, Shard: shard, Since: time.Now()}
	}
	t.mu.Unlock()
	t.restart(shard, grant, time.Now().Add(refusedPause))
}

// waits returns which shards wait in this process, and why the dispatcher does. The caller
// holds the lock.
func (t *table) waits() (list []protocol.Wait) {
	for i := range t.slots {
		s := &t.slots[i]
		switch {
		case !s.owned:
		case s.stopping && s.records > 0:
			list = append(list, protocol.Wait{State: protocol.WaitDraining, Shard: i, Since: s.stoppedAt, Detail: fmt.Sprintf("%d entries in flight", s.records)})
		case s.pause != nil:
			list = append(list, protocol.Wait{State: protocol.WaitRefused, Shard: i, Since: s.pause.since, Detail: s.pause.Reason})
		case s.refusal.State != "":
			list = append(list, s.refusal)
		}
	}
	if t.leaseHeld && t.dispatchWait.State != "" {
		list = append(list, t.dispatchWait)
	}
	return list
}

// dispatchWaits notes why the dispatcher waits, "" once it does not.
func (t *table) dispatchWaits(state string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dispatchWait.State != state {
		t.dispatchWait = protocol.Wait{State: state, Shard: -1, Since: time.Now()}
	}
}

// stop ends intake for a shard. The channel returned is closed when none of it
// is in flight.
func (t *table) stop(shard int) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.slots[shard]
	done := make(chan struct{})
	if !s.owned || s.queue.InFlight() == 0 {
		s.stopping = s.owned
		close(done)
		return done
	}
	if s.drained == nil {
		s.drained, s.stoppedAt = done, time.Now()
		t.workers[s.worker].box.put(message{kind: flushShard, shard: shard, grant: s.grant})
	}
	s.stopping = true
	return s.drained
}

// stops reports whether the intake of a shard has ended, or its grant has.
func (t *table) stops(shard int, grant uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.slots[shard]
	return !s.owned || s.stopping || s.grant != grant
}

// finish removes the n oldest entries of a shard in flight.
func (t *table) finish(shard int, grant uint64, n int, bytes int64, applied telemetry.EntryID) {
	s := &t.slots[shard]
	if !s.owned || s.grant != grant {
		return
	}
	t.finished += uint64(n)
	s.finished += uint64(n)
	s.locked, s.advanced = false, time.Now()
	if s.queue.Done(n) && !s.stopping {
		s.due = true // finish's caller wakes the reader
	}
	s.records -= n
	s.bytes -= bytes
	t.records -= n
	t.bytes -= bytes
	t.load[s.worker].records -= n
	t.load[s.worker].bytes -= bytes
	t.load[s.worker].finished = s.advanced
	if s.applied.Less(applied) {
		s.applied = applied
	}
	if s.stopping && s.drained != nil && s.queue.InFlight() == 0 {
		close(s.drained)
		s.drained = nil
	}
}

// deliver passes entries of a shard to its worker. The caller holds the lock, has
// updated the queue, and calls delivered after the last shard.
func (t *table) deliver(shard int, entries []telemetry.Entry) {
	s := &t.slots[shard]
	var bytes int64
	for i := range entries {
		bytes += int64(entries[i].Size())
	}
	s.records += len(entries)
	s.bytes += bytes
	t.records += len(entries)
	t.bytes += bytes
	t.load[s.worker].records += len(entries)
	t.load[s.worker].bytes += bytes
	t.workers[s.worker].box.add(message{kind: work, shard: shard, grant: s.grant, entries: entries})
}

// pins reports whether entries of a dispatch that are delivered should be detached. Each shares
// the text of the whole reply, of which members that own few shards keep little:
// without a copy, bytes * entries of the reply / entries of ours could be in memory, beyond maxBytes.
func (t *table) pins(a *protocol.NewEntries) bool {
	ours := 0
	a.Each(func(shard int, entries []telemetry.Entry) {
		if t.slots[shard].owned {
			ours += len(entries)
		}
	})
	return t.bytes*int64(len(a.Entries)) > t.maxBytes*int64(ours)
}

// delivered wakes the workers.
func (t *table) delivered() {
	for _, w := range t.workers {
		wakeUp(w.box.signal)
	}
}

// learn keeps a running mean of entry sizes, from which the counts of reads are
// computed.
func (t *table) learn(entries, bytes int) {
	if entries == 0 {
		return
	}
	size := bytes / entries
	if size > t.meanSize {
		t.meanSize = size // grow at once, shrink slowly: a count too high costs memory
		return
	}
	t.meanSize += (size - t.meanSize) / 8
}

// within returns how many entries there may be, by number and by size.
func (t *table) within(records int, bytes int64) int {
	return int(min(int64(records), bytes/int64(max(1, t.meanSize))))
}

// free returns how many more entries may be taken in.
func (t *table) free() int { return t.within(t.maxRecords-t.records, t.maxBytes-t.bytes) }

// roomOf returns how many more entries a worker may have in flight: each has an equal part of
// what all may have, so that one that waits leaves theirs to the others.
func (t *table) roomOf(l *load) int {
	return t.within(t.workerRecords-l.records, t.workerBytes-l.bytes)
}

// worthReading is how many entries are worth a read of at most so many: few are not, but of large ones
// there may be no more.
func (t *table) worthReading(most int) int {
	return max(1, t.within(min(most, t.maxRecords), t.maxBytes)/4)
}

// fits reports whether n more entries may be delivered to a shard. A worker that has
// nothing in flight takes anything: an entry may be larger than any bound.
func (t *table) fits(s *slot, n int) bool {
	if limit := s.quarantine.Limit; limit > 0 && (s.records > 0 || n > limit) {
		return false // one probe batch at a time, within its limit
	}
	if s.records > 0 && n > t.left(s) {
		return false
	}
	l := &t.load[s.worker]
	return l.records == 0 || n <= t.roomOf(l)
}

// queuedAfterDeadLetter is how long entries of a shard are queued after one became a dead letter: those
// that are unqueued must be put on its queue before the next one leaves it.
const queuedAfterDeadLetter = 10 * time.Second

// mayStayUnqueued reports whether n more entries of a shard may be unqueued: as long as its worker is not full.
// A read of no more than all workers together have room for may fill one of them
// beyond its part by its own size.
func (t *table) mayStayUnqueued(s *slot, n int) bool {
	if time.Since(s.deadLettered) < queuedAfterDeadLetter {
		return false
	}
	l := &t.load[s.worker]
	return l.records == 0 || t.roomOf(l) > 0 && (l.shards == 1 || n <= t.half(s))
}

// left is how many more entries a shard may have in flight: half of its worker's are
// left to the other shards, which wait behind it otherwise.
func (t *table) left(s *slot) int {
	room := t.roomOf(&t.load[s.worker])
	if t.load[s.worker].shards > 1 {
		room = min(room, t.half(s))
	}
	return room
}

// half is how many more entries a shard may have in flight of half of its worker's.
func (t *table) half(s *slot) int {
	return t.within(t.workerRecords/2-s.records, t.workerBytes/2-s.bytes)
}

// abandon gives up all shards and the dispatch lease, and returns the shards.
func (t *table) abandon() []ShardLost {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lost []ShardLost
	for i := range t.slots {
		if s := &t.slots[i]; s.owned {
			lost = append(lost, ShardLost{Shard: i, Epoch: s.epoch, Cause: OutcomeUnknown})
			t.release(i)
		}
	}
	t.leaseNumber++
	t.leaseHeld = false
	clear(t.orphans)
	return lost
}

// gone returns the shards of parts that are no longer owned under the same grant.
func (t *table) gone(parts []part) []int {
	t.mu.Lock()
	defer t.mu.Unlock()
	var gone []int
	for _, p := range parts {
		if s := &t.slots[p.shard]; !s.owned || s.grant != p.grant {
			gone = append(gone, p.shard)
		}
	}
	return gone
}

// holdsLease reports whether a dispatch lease is still the current one.
func (t *table) holdsLease(number uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.leaseHeld && t.leaseNumber == number
}

// rewind resets all cursors and forgets which queues are empty: the server may
// have lost what it held. With recheck what is in flight now may be put on its queue again
// after it was acknowledged.
func (t *table) rewind(recheck bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.slots {
		if s := &t.slots[i]; s.owned && !s.stopping {
			if recheck {
				s.queue.Recheck()
			} else {
				s.queue.Reset()
			}
			s.due = true
		}
	}
	wakeUp(t.wake)
}

// reread resets the cursors of some shards.
func (t *table) reread(shards []int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, shard := range shards {
		if shard < 0 || shard >= len(t.slots) {
			continue
		}
		if s := &t.slots[shard]; s.owned && !s.stopping {
			s.queue.Recheck()
			s.due = true
		}
	}
	wakeUp(t.wake)
}

// nextLease records that the dispatch lease was acquired or lost. Knowledge of
// queues under an earlier lease is void.
func (t *table) nextLease(held bool) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !held && !t.leaseHeld {
		return t.leaseNumber
	}
	t.leaseNumber++
	t.leaseHeld = held
	// The next dispatch begins at the last-delivered ID, behind all that was unqueued.
	clear(t.orphans)
	for i := range t.slots {
		t.slots[i].queue.Forget()
	}
	for i := range t.slots {
		if s := &t.slots[i]; s.owned && !s.stopping {
			s.due = true
		}
	}
	wakeUp(t.wake)
	return t.leaseNumber
}

// heldLease returns the number of the dispatch lease, or 0 if it is not held. The caller holds the lock.
func (t *table) heldLease() uint64 {
	if t.leaseHeld {
		return t.leaseNumber
	}
	return 0
}

// poll marks queues as due while another member dispatches: those that are
// quarantined, whose end is seen by an empty read, or all.
func (t *table) poll(all bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	lease := t.heldLease()
	for i := range t.slots {
		if s := &t.slots[i]; s.owned && !s.stopping && (s.quarantine.Limit > 0 || all && !s.queue.CanBypass(lease)) {
			s.due = true
		}
	}
}

// crowded reports whether a worker is full that advances: what is dispatched now of its
// shards would have to be read back. The caller holds the lock.
func (t *table) crowded(now time.Time) bool {
	for w := range t.load {
		if l := &t.load[w]; l.records > 0 && t.roomOf(l) <= 0 && now.Sub(l.finished) < unqueuedFor/2 {
			return true
		}
	}
	return false
}

// catchUp is how long dispatch waits for a queue whose shard does not advance: longer than
// a batch gathers and takes to commit.
const catchUp = 3 * time.Second

// behind returns the number of shards that take entries, and whether the queue of one of
// them that may be read, has ample room and advances is still to be read to its end. One
// near its limit waits for its own commits: it would hold up all others. The caller
// holds the lock.
func (t *table) behind(now time.Time) (owned int, behind bool) {
	lease := t.heldLease()
	for i := range t.slots {
		s := &t.slots[i]
		if !s.owned || s.stopping {
			continue
		}
		owned++
		behind = behind || !s.queue.CanBypass(lease) && t.fits(s, max(1, t.within(t.workerRecords, t.workerBytes)/8)) && s.quarantine.Limit == 0 &&
			s.pause == nil && !now.Before(s.notBefore) && now.Sub(s.advanced) < catchUp
	}
	return owned, behind
}

// dispatched marks queues as due if entries were dispatched since the last call, by
// another member: its notification may be missing.
func (t *table) dispatched(lease protocol.DispatchLease) {
	last := lease.After
	if last.Less(lease.Beyond) {
		last = lease.Beyond
	}
	t.mu.Lock()
	moved := last != t.lastDispatched
	t.lastDispatched, t.settledID = last, lease.After
	t.mu.Unlock()
	if moved {
		t.markDue(nil)
	}
}

// settled notes the group's last-delivered ID.
func (t *table) settled(last telemetry.EntryID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settledID = last
}

// markDue marks queues to be read; no shards means all.
func (t *table) markDue(shards []int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	mark := func(s *slot) {
		if s.owned && !s.stopping {
			s.due = true
		}
	}
	if shards == nil {
		for i := range t.slots {
			mark(&t.slots[i])
		}
	}
	for _, shard := range shards {
		if shard >= 0 && shard < len(t.slots) {
			mark(&t.slots[shard])
		}
	}
	wakeUp(t.wake)
}

package protocol

import (
	"slices"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Queue is an owner's view of one shard's queue: the read cursor, what is in
// flight, and whether the queue is known to hold nothing beyond that. It is not
// safe for concurrent use; the pipeline guards it with its own lock.
//
// Order rests on three rules that this type keeps. An entry is delivered to the
// worker at most once while it is in flight. Entries are delivered in queue
// order. The dispatcher may deliver an entry that it has just dispatched,
// without reading it back, only if a read from the cursor came back empty after
// the dispatch lease was acquired and nothing else was dispatched to the queue
// since that read was sent.
//
// In a backlog what bypasses the queue is not put on it at all: it is unqueued, and the
// group's last-delivered ID stays behind it until it is finished (see Pages).
type Queue struct {
	cursor     telemetry.EntryID // all at or below it was delivered or seen in flight since the last reset
	inFlight   []telemetry.EntryID
	places     []place           // of inFlight
	head       int               // inFlight[:head] is done
	asked      int               // inFlight[:asked] is done or being acknowledged
	unqueued   int               // entries in flight that are on no queue
	top        telemetry.EntryID // the highest ID ever delivered
	resets     uint64            // number of resets of the cursor
	dispatches uint64            // dispatches to this queue that did not bypass it
	empty      bool              // nothing lies beyond the cursor
	emptyIn    uint64            // the dispatch lease in which empty was established
	owing      int               // entries still to be done until the queue is looked through
	owesMore   bool              // and then once more
	lookings   uint64            // number of times that this was due
	looks      bool              // it is to be looked through behind the cursor
	lookFrom   telemetry.EntryID // as far as that was done
	// enqueued are the entries put on the queue while they were in flight, perhaps as they
	// were acknowledged, until they were looked for.
	enqueued map[telemetry.EntryID]struct{}
}

// place is where an entry in flight is, beside this instance.
type place uint8

const (
	queued        place = iota // on the queue, or about to be
	unqueued                   // on no queue
	acknowledging              // on no queue, and its acknowledgement is under way
	vanished                   // on no queue, and trimmed from the stream
)

// ReadSnapshot is the queue's state when a read was sent. It identifies a reply
// that a reset has overtaken.
type ReadSnapshot struct {
	From        telemetry.EntryID // read what follows this ID
	resets      uint64
	dispatches  uint64
	leaseNumber uint64
	skip        map[telemetry.EntryID]struct{}
	look        bool              // it looks for what lies behind the cursor
	cursor      telemetry.EntryID // then
	lookings    uint64
}

// Looked reports whether the read was one behind the cursor, which says nothing of what lies beyond.
func (t *ReadSnapshot) Looked() bool { return t.look }

// BeginRead is called before a read is sent, with the number of the dispatch
// lease this member holds, or 0 if it holds none.
func (q *Queue) BeginRead(leaseNumber uint64) ReadSnapshot {
	t := ReadSnapshot{From: q.cursor, resets: q.resets, dispatches: q.dispatches, leaseNumber: leaseNumber}
	if q.looks {
		t.From, t.look, t.cursor, t.lookings = q.lookFrom, true, q.cursor, q.lookings
	}
	// Up to the newest delivered entry the queue still shows what is in flight,
	// and what finishes while the reply is on its way.
	if live := q.inFlight[q.head:]; len(live) > 0 && t.From.Less(q.top) {
		t.skip = make(map[telemetry.EntryID]struct{}, len(live))
		for _, id := range live {
			t.skip[id] = struct{}{}
		}
	}
	return t
}

// EndRead evaluates the reply to a read: the IDs found, and whether the reply
// was limited by the count asked for. It calls take with the index of each
// entry to be delivered, in order. It drops a reply that a reset has overtaken,
// and returns false.
func (q *Queue) EndRead(t ReadSnapshot, ids []telemetry.EntryID, full bool, leaseNumber uint64, take func(i int)) bool {
	if t.resets != q.resets {
		return false
	}
	if t.look {
		q.endLook(t, ids, full, take)
		return true
	}
	for i, id := range ids {
		if id.Compare(q.cursor) <= 0 {
			continue
		}
		q.cursor = id
		if _, ok := t.skip[id]; ok {
			continue
		}
		q.deliver(queued, id)
		take(i)
	}
	q.empty = !full && len(ids) == 0 && t.dispatches == q.dispatches && t.leaseNumber == leaseNumber && leaseNumber != 0
	q.emptyIn = leaseNumber
	return true
}

// endLook delivers what lies behind the cursor and is not in flight: it was finished, and put on the queue
// as it was being acknowledged.
func (q *Queue) endLook(t ReadSnapshot, ids []telemetry.EntryID, full bool, take func(i int)) {
	latest := t.lookings == q.lookings // else what is looked for may have been put there since
	if latest {
		q.looks = full && len(ids) > 0 && ids[len(ids)-1].Less(t.cursor)
	}
	for i, id := range ids {
		if t.cursor.Less(id) {
			break
		}
		if latest {
			q.lookFrom = id
		}
		if _, ok := t.skip[id]; !ok {
			q.deliver(queued, id)
			take(i)
		}
	}
	if latest && !q.looks {
		q.forgetEnqueued()
	}
}

// forgetEnqueued forgets what was put on the queue and has not been found there.
func (q *Queue) forgetEnqueued() {
	left := make(map[telemetry.EntryID]struct{})
	for _, id := range q.inFlight[q.head:] {
		if _, ok := q.enqueued[id]; ok {
			left[id] = struct{}{}
		}
	}
	q.enqueued = left
}

// Looks reports whether a read is due although nothing lies beyond the cursor.
func (q *Queue) Looks() bool { return q.looks }

// CanBypass reports whether the dispatcher of this lease may deliver what it
// dispatches to the queue next without reading it back.
func (q *Queue) CanBypass(leaseNumber uint64) bool {
	return leaseNumber != 0 && q.empty && q.emptyIn == leaseNumber
}

// Passed reports whether the cursor has passed an entry. One that was just dispatched was
// delivered by a read then, after a reset during the dispatch, and must not bypass the queue as well.
func (q *Queue) Passed(id telemetry.EntryID) bool { return id.Compare(q.cursor) <= 0 }

// Bypassed records entries that were dispatched and delivered directly.
func (q *Queue) Bypassed(ids ...telemetry.EntryID) {
	q.deliver(queued, ids...)
	q.cursor = ids[len(ids)-1]
}

// LeaveUnqueued records entries that are delivered directly and put on no queue.
func (q *Queue) LeaveUnqueued(ids ...telemetry.EntryID) {
	q.deliver(unqueued, ids...)
	q.unqueued += len(ids)
	q.cursor = ids[len(ids)-1]
}

func (q *Queue) deliver(at place, ids ...telemetry.EntryID) {
	q.inFlight = append(q.inFlight, ids...)
	for range ids {
		q.places = append(q.places, at)
	}
	if last := ids[len(ids)-1]; q.top.Less(last) {
		q.top = last
	}
}

// Dispatched records that entries were, or may have been, put on the queue
// without being delivered.
func (q *Queue) Dispatched() {
	q.dispatches++
	q.empty = false
}

// Acknowledge is called before entries in flight are acknowledged, the first of which is
// given; work of a shard is acknowledged in delivery order. It calls isUnqueued with the index of each that is
// unqueued and needs no acknowledgement of its own.
func (q *Queue) Acknowledge(first telemetry.EntryID, n int, isUnqueued func(i int)) {
	from := max(q.asked, q.head)
	if from >= len(q.inFlight) || q.inFlight[from] != first {
		at := slices.Index(q.inFlight[q.head:], first)
		if at < 0 {
			return
		}
		from = q.head + at
	}
	q.asked = min(from+n, len(q.inFlight))
	for i := from; i < q.asked; i++ {
		switch q.places[i] {
		case unqueued:
			q.places[i] = acknowledging
			isUnqueued(i - from)
		case acknowledging, vanished:
			isUnqueued(i - from)
		case queued:
		}
	}
}

// Done records that the n entries delivered first are finished: committed and
// acknowledged, or dead-lettered. Work of a shard finishes in delivery order. It reports
// whether the queue is to be looked through, see LookAgain.
func (q *Queue) Done(n int) (looks bool) {
	end := min(q.head+n, len(q.inFlight))
	if q.unqueued > 0 {
		for i := q.head; i < end; i++ {
			if q.places[i] != queued {
				q.unqueued--
			}
		}
	}
	done := end - q.head
	q.head, q.asked = end, max(q.asked, end)
	switch {
	case q.head == len(q.inFlight):
		q.inFlight, q.places, q.head, q.asked = q.inFlight[:0], q.places[:0], 0, 0
	case q.head > 1024 && q.head > len(q.inFlight)/2:
		q.inFlight = q.inFlight[:copy(q.inFlight, q.inFlight[q.head:])]
		q.places = q.places[:copy(q.places, q.places[q.head:])]
		q.head, q.asked = 0, q.asked-q.head
	}
	if q.owing == 0 {
		return false
	}
	if q.owing -= done; q.owing > 0 {
		return false
	}
	q.look()
	if q.owesMore {
		q.owing, q.owesMore = q.InFlight(), false
	}
	return true
}

// Finished reports whether an entry that is delivered was finished before: it was put on
// the queue in flight, and an entry is not delivered again before it is done.
func (q *Queue) Finished(id telemetry.EntryID) bool {
	_, ok := q.enqueued[id]
	return ok
}

// InFlightIDs returns what was delivered and is not done, in order.
func (q *Queue) InFlightIDs() []telemetry.EntryID { return slices.Clone(q.inFlight[q.head:]) }

// InFlight returns the number of entries delivered and not done.
func (q *Queue) InFlight() int { return len(q.inFlight) - q.head }

// Unqueued returns the number of entries in flight that are on no queue.
func (q *Queue) Unqueued() int { return q.unqueued }

// FirstUnqueued returns the first entry in flight that is on no queue.
func (q *Queue) FirstUnqueued() (telemetry.EntryID, bool) {
	if q.unqueued > 0 {
		for i := q.head; i < len(q.inFlight); i++ {
			if q.places[i] != queued {
				return q.inFlight[i], true
			}
		}
	}
	return telemetry.EntryID{}, false
}

// UnqueuedOf returns those of the n entries delivered first that are on no queue. Their
// acknowledgement was refused, and they are to be put on the queue.
func (q *Queue) UnqueuedOf(n int) (ids []telemetry.EntryID) {
	if q.unqueued > 0 {
		for i := q.head; i < min(q.head+n, len(q.inFlight)); i++ {
			if q.places[i] != queued {
				ids = append(ids, q.inFlight[i])
			}
		}
	}
	return ids
}

// Enqueue returns the entries unqueued, which are to be put on the queue: by the next dispatch, or,
// under another lease, by the member that dispatches from the last-delivered ID on. They stay in
// flight. Those whose acknowledgement is under way are among them.
func (q *Queue) Enqueue() (ids []telemetry.EntryID) {
	if q.unqueued == 0 {
		return nil
	}
	for i := q.head; i < len(q.inFlight); i++ {
		if q.places[i] == unqueued || q.places[i] == acknowledging {
			q.places[i] = queued
			q.unqueued--
			ids = append(ids, q.inFlight[i])
			if q.enqueued == nil {
				q.enqueued = make(map[telemetry.EntryID]struct{})
			}
			q.enqueued[q.inFlight[i]] = struct{}{}
		}
	}
	if len(ids) > 0 {
		q.empty = false
		q.LookAgain()
	}
	return ids
}

// Forget records that the dispatch lease ended: the next dispatcher puts what was unqueued on its
// queue, since the last-delivered ID lies behind it.
func (q *Queue) Forget() {
	q.Enqueue()
	for i := range q.places {
		q.places[i] = queued
	}
	q.unqueued = 0
}

// Recheck resets the cursor, and looks through the queue again later.
func (q *Queue) Recheck() {
	q.Reset()
	q.LookAgain()
}

// LookAgain has the queue looked through when all that is in flight now is done: entries may have been
// put there as they were acknowledged. As long as they are in flight a read passes them by, and
// afterwards they are found behind the cursor, and end as duplicates.
func (q *Queue) LookAgain() {
	if q.owing > 0 {
		q.owesMore = true
		return
	}
	if q.owing = q.InFlight(); q.owing == 0 {
		q.look()
	}
}

func (q *Queue) look() {
	q.lookings++
	q.owing, q.looks, q.lookFrom = 0, true, telemetry.EntryID{}
}

// Vanish records that an entry to be queued could not be put on the queue since it was
// trimmed. It reports whether the entry is in flight: then it may yet be stored.
func (q *Queue) Vanish(id telemetry.EntryID) bool {
	at := slices.Index(q.inFlight[q.head:], id)
	if at < 0 {
		return false
	}
	if i := q.head + at; q.places[i] == queued {
		q.places[i] = vanished
		q.unqueued++
	}
	return true
}

// Reset moves the cursor back to the start of the queue. What is in flight
// stays in flight and is not delivered twice.
func (q *Queue) Reset() {
	q.resets++
	q.cursor = telemetry.EntryID{}
	q.empty, q.looks = false, false
}

// Discard forgets what is in flight, whose work was abandoned, and resets the
// cursor. It returns what was unqueued: the next dispatch is to put it on the queue.
func (q *Queue) Discard() (orphans []telemetry.EntryID) {
	if q.unqueued > 0 {
		for i := q.head; i < len(q.inFlight); i++ {
			if q.places[i] != queued {
				orphans = append(orphans, q.inFlight[i])
			}
		}
	}
	q.inFlight, q.places, q.head, q.asked, q.unqueued, q.owing, q.owesMore, q.enqueued = nil, nil, 0, 0, 0, 0, false, nil
	q.Reset()
	return orphans
}

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
type Queue struct {
	cursor     telemetry.EntryID // all at or below it was delivered or seen in flight since the last reset
	inFlight   []telemetry.EntryID
	head       int               // inFlight[:head] is done
	top        telemetry.EntryID // the highest ID ever delivered
	resets     uint64            // number of resets of the cursor
	dispatches uint64            // dispatches to this queue that did not bypass it
	empty      bool              // nothing lies beyond the cursor
	emptyIn    uint64            // the dispatch lease in which empty was established
}

// ReadSnapshot is the queue's state when a read was sent. It identifies a reply
// that a reset has overtaken.
type ReadSnapshot struct {
	From        telemetry.EntryID // read what follows this ID
	resets      uint64
	dispatches  uint64
	leaseNumber uint64
	skip        map[telemetry.EntryID]struct{}
}

// BeginRead is called before a read is sent, with the number of the dispatch
// lease this member holds, or 0 if it holds none.
func (q *Queue) BeginRead(leaseNumber uint64) ReadSnapshot {
	t := ReadSnapshot{From: q.cursor, resets: q.resets, dispatches: q.dispatches, leaseNumber: leaseNumber}
	// Up to the newest delivered entry the queue still shows what is in flight,
	// and what finishes while the reply is on its way.
	if live := q.inFlight[q.head:]; len(live) > 0 && q.cursor.Less(q.top) {
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
	for i, id := range ids {
		if id.Compare(q.cursor) <= 0 {
			continue
		}
		q.cursor = id
		if _, ok := t.skip[id]; ok {
			continue
		}
		q.deliver(id)
		take(i)
	}
	q.empty = !full && len(ids) == 0 && t.dispatches == q.dispatches && t.leaseNumber == leaseNumber && leaseNumber != 0
	q.emptyIn = leaseNumber
	return true
}

// CanBypass reports whether the dispatcher of this lease may deliver what it
// dispatches to the queue next without reading it back.
func (q *Queue) CanBypass(leaseNumber uint64) bool {
	return leaseNumber != 0 && q.empty && q.emptyIn == leaseNumber
}

// Bypassed records entries that were dispatched and delivered directly.
func (q *Queue) Bypassed(ids ...telemetry.EntryID) {
	q.deliver(ids...)
	q.cursor = ids[len(ids)-1]
}

func (q *Queue) deliver(ids ...telemetry.EntryID) {
	q.inFlight = append(q.inFlight, ids...)
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

// Done records that the n entries delivered first are finished: committed and
// acknowledged, or dead-lettered. Work of a shard finishes in delivery order.
func (q *Queue) Done(n int) {
	q.head += n
	switch {
	case q.head >= len(q.inFlight):
		q.inFlight, q.head = q.inFlight[:0], 0
	case q.head > 1024 && q.head > len(q.inFlight)/2:
		q.inFlight = q.inFlight[:copy(q.inFlight, q.inFlight[q.head:])]
		q.head = 0
	}
}

// InFlightIDs returns what was delivered and is not done, in order.
func (q *Queue) InFlightIDs() []telemetry.EntryID { return slices.Clone(q.inFlight[q.head:]) }

// InFlight returns the number of entries delivered and not done.
func (q *Queue) InFlight() int { return len(q.inFlight) - q.head }

// Reset moves the cursor back to the start of the queue. What is in flight
// stays in flight and is not delivered twice.
func (q *Queue) Reset() {
	q.resets++
	q.cursor = telemetry.EntryID{}
	q.empty = false
}

// Discard forgets what is in flight, whose work was abandoned, and resets the
// cursor.
func (q *Queue) Discard() {
	q.inFlight, q.head = nil, 0
	q.Reset()
}

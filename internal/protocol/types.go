package protocol

import (
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Version is the version of the protocol between members, pinned for the fleet.
// Members of different versions do not work on one group at the same time.
const Version = 1

// DispatchLease is the result of acquiring or renewing the dispatch lease.
type DispatchLease struct {
	Acquired     bool
	Left         time.Duration     // if another member holds it: the remaining time
	After        telemetry.EntryID // the group's last-delivered ID, from which to read on if acquired; zero if unknown
	Beyond       telemetry.EntryID // where another dispatcher has read to, beyond After; zero for nowhere. If acquired, entries until there are dispatched again
	Pending      int               // entries pending in the whole group
	GroupCreated bool              // the group was missing and was created at 0
	Paused       bool              // an operator stopped dispatching
	Moved        bool              // another client had moved the last-delivered ID; it was set back
}

// NewEntries are new entries of the stream, sorted by shard, in stream order
// within each.
type NewEntries struct {
	Last  telemetry.EntryID // the last of the read, in stream order
	Full  bool              // the read was limited by its count
	Bytes int               // size of the server's reply

	Shards  []int // those with entries, ascending
	Starts  []int // where each begins in Entries; one more than Shards
	Entries []telemetry.Entry
	IDs     []string // of Entries, as the server wrote them
}

// Each calls f for every shard with entries, in order.
func (a *NewEntries) Each(f func(shard int, entries []telemetry.Entry)) {
	for i, shard := range a.Shards {
		f(shard, a.Entries[a.Starts[i]:a.Starts[i+1]:a.Starts[i+1]])
	}
}

// DispatchRequest is what a dispatch is based on.
type DispatchRequest struct {
	Token  string            // of the dispatch lease
	TTL    time.Duration     // the dispatch extends the dispatch lease to this
	After  telemetry.EntryID // the group's last-delivered ID, and where the read started unless there is Ahead
	Notify bool              // whether other members wait for entries
	Ahead  *Ahead            // nil if nothing is unqueued, and the last-delivered ID moves to the end of the read
}

// Ahead is what a dispatch does in a backlog, while entries are unqueued.
type Ahead struct {
	From          telemetry.EntryID           // where the read started
	Settled       Position                    // where the last-delivered ID is to be; at the end of the read its Read is not used
	Unqueued      func(shard int) bool        // whether the entries of the read that are of this shard stay unqueued
	Again         map[int][]telemetry.EntryID // entries of earlier reads to be put on their queues, by shard
	Enqueue       map[int][]telemetry.EntryID // likewise, of entries in flight: one that was trimmed is not recorded as lost
	UnqueuedCount int                         // entries that are unqueued from now on
	Number        int                         // dispatches under this lease before, see Pages.Dispatches
	Rewind        bool                        // members are to read their queues from the start: entries may precede their cursors
}

// DispatchResult is the outcome of a dispatch.
type DispatchResult struct {
	Pending int                            // entries pending in the whole group, after the dispatch
	Read    int64                          // entries read until the end of the read, -1 for unknown
	Gone    map[telemetry.EntryID]struct{} // trimmed between read and dispatch; recorded as lost unless they are in flight
}

// QueueRead asks for the entries after an ID on a shard's queue.
type QueueRead struct {
	Shard int
	After telemetry.EntryID
	Count int
}

// QueueReply is the result: entries in queue order. An entry whose Fields are
// nil was trimmed or deleted while it was pending.
type QueueReply struct {
	Entries []telemetry.Entry
	Full    bool // the read was limited by the number of entries asked for, or by their size
	Bytes   int
}

// Ack is a set of finished entries of one shard.
type Ack struct {
	Shard int
	Token string // under which the shard was acquired
	IDs   []telemetry.EntryID
	// Gone are entries whose content was trimmed while they were pending. They
	// are recorded as lost and acknowledged in the same step.
	Gone []telemetry.EntryID
	// Applied is the shard's applied ID that was committed with them; zero for none.
	Applied telemetry.EntryID
	// Unqueued are finished entries that were unqueued, and are on no queue.
	Unqueued []telemetry.EntryID
}

// Shard is one row of the authority on ownership, and its assignment.
type Shard struct {
	Shard       int
	Owner       string // "" when released
	Epoch       int64
	Applied     telemetry.EntryID
	CrashCount  int // acquisitions after a crash since the last progress
	MaxInFlight int // maximum entries in flight during a quarantine; 0 for no limit

	Quarantine Quarantine // of a shard just acquired
	Left       []byte     // what its last owner left of its state, nil for nothing
	Released   bool       // its last owner should have left its state
	Assigned   string     // "" while assigned to no member
	Claimed    bool       // an operator assigned it, less than AdoptedFor ago
	Since      time.Time  // when the owner acquired it
	Changed    time.Time  // when owner or assignment changed last
}

// Record returns the part of the row that Next decides by.
func (s Shard) Record() ShardRecord {
	return ShardRecord{Assigned: s.Assigned, Owner: s.Owner, Epoch: s.Epoch}
}

// Suspected causes of losses. The page ProcessorRecordsLost of the runbook says of each
// what to do.
const (
	LossTrimmedUnread  = "trimmed_unread"  // removed from the stream before it was dispatched
	LossTrimmedPending = "trimmed_pending" // removed from the stream while it was on a queue
	LossFlush          = "flush"           // Redis came back empty, or older and without the group
	LossFailover       = "failover"        // Redis continued with an older state of stream and group
	LossRestored       = "restored"        // Postgres lost its commit, and the stream no longer holds it
)

// LossCauses returns all causes of losses.
func LossCauses() []string {
	return []string{LossTrimmedUnread, LossTrimmedPending, LossFlush, LossFailover, LossRestored}
}

// Loss is a range of entries that were gone before they could be read or
// finished.
type Loss struct {
	Cause   string            // one of LossCauses
	First   telemetry.EntryID // zero if unknown
	Last    telemetry.EntryID // zero if unknown
	Entries int64             // negative if unknown
	Shard   int               // negative if not confined to one shard
}

// Range is a span of a shard's entries: (From, To].
type Range struct {
	Shard    int
	From, To telemetry.EntryID
}

// Consumer is a consumer of the group.
type Consumer struct {
	Name    string
	Shard   int // whose queue it is; negative for a foreign consumer
	Pending int64
	Idle    time.Duration // since it last read, acknowledged or claimed
}

// QueueState is what lies on a shard's queue.
type QueueState struct {
	Pending int64
	Oldest  telemetry.EntryID // zero if empty
}

// Claimed is the result of one page of a claim sweep.
type Claimed struct {
	Entries int
	Gone    int         // trimmed or deleted, recorded as lost
	Shards  map[int]int // entries put on each queue
	Next    telemetry.EntryID
	More    bool
}

// Backlog is the state of a group. Unknown values are marked as such.
type Backlog struct {
	Pending     int64
	Lag         int64
	LagKnown    bool
	Oldest      telemetry.EntryID // the oldest unfinished entry; zero if there is none
	OldestKnown bool

	Deferred      int64 // entries that wait for another attempt
	DeferredKnown bool
}

// DLQEntry is a dead letter as stored in its stream.
type DLQEntry struct {
	ID telemetry.EntryID // in the stream of dead letters
	telemetry.DeadLetter
	// Err is set if the entry is no dead letter of ours. Then its fields are in
	// Entry, and nothing else is known.
	Err error
}

// Unconfirmed is a dead letter that Redis could still lose, or does not have
// yet.
type Unconfirmed struct {
	telemetry.DeadLetter
	Queued bool // whether its entry was pending when it was dead-lettered; otherwise it was acknowledged before
	Added  bool // whether it was added to the dead-letter stream
}

// UnconfirmedMark is a position in the list of unconfirmed dead letters.
type UnconfirmedMark struct {
	CommitResult time.Time
	telemetry.Ref
}

// Restored is the outcome of adding a dead letter again that Redis did not
// know.
type Restored string

// Outcomes of adding a dead letter again.
const (
	// LetterAdded was missing, and was added to the dead-letter stream.
	LetterAdded Restored = "added"
	// LetterKnown is in the dead-letter stream, or was there.
	LetterKnown Restored = "known"
	// LetterQueued is left to its owner: its entry is on the queue or will be.
	LetterQueued Restored = "queued"
	// LetterDecided was never added, and its entry was decided otherwise since; it exists.
	LetterDecided Restored = "decided"
)

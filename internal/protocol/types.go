package protocol

import (
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Version is that of the protocol between members, pinned for the fleet. Members
// of different versions do not work on one group at the same time.
const Version = 1

// DispatchLease is what acquiring or renewing the dispatch lease found.
type DispatchLease struct {
	Acquired     bool
	Left         time.Duration     // when another member holds it: what is left of the lease
	After        telemetry.EntryID // when held: the group's last-delivered ID, from which to read on
	Pending      int               // entries pending in the whole group
	GroupCreated bool              // the group was missing and was made at 0
	Moved        bool              // the last-delivered ID had been moved by another member and was set back
}

// NewEntries are new entries of the stream, sorted by shard and in stream order
// within each.
type NewEntries struct {
	Last  telemetry.EntryID // the last of the read, in stream order
	Full  bool              // the read was cut short by its count
	Bytes int               // size of the server's reply

	Shards  []int // that got something, ascending
	Starts  []int // where each begins in Entries; one more than Shards
	Entries []telemetry.Entry
	IDs     []string // of Entries, as the server wrote them
}

// Each calls f for every shard that got something, with its entries in order.
func (a *NewEntries) Each(f func(shard int, entries []telemetry.Entry)) {
	for i, shard := range a.Shards {
		f(shard, a.Entries[a.Starts[i]:a.Starts[i+1]:a.Starts[i+1]])
	}
}

// DispatchRequest is what a dispatch is based on.
type DispatchRequest struct {
	Token  string            // of the dispatch lease
	TTL    time.Duration     // for which the dispatch extends the dispatch lease
	After  telemetry.EntryID // the last-delivered ID the read started after
	Notify bool              // whether other members wait for entries
}

// DispatchResult is the outcome of a dispatch.
type DispatchResult struct {
	Pending int                            // entries pending in the whole group, after the dispatch
	Gone    map[telemetry.EntryID]struct{} // trimmed between read and dispatch; noted as lost
}

// QueueRead asks for what follows an ID on a shard's queue.
type QueueRead struct {
	Shard int
	After telemetry.EntryID
	Count int
}

// QueueReply is what was found: entries in the order of the queue. An entry
// whose Fields are nil was trimmed or deleted while it was pending.
type QueueReply struct {
	Entries []telemetry.Entry
	Bytes   int
}

// Ack is entries of one shard that are finished.
type Ack struct {
	Shard int
	Token string // under which the shard was taken
	IDs   []telemetry.EntryID
	// Gone are entries whose content was trimmed while they were pending. They
	// are noted as lost and acknowledged in the same step.
	Gone []telemetry.EntryID
}

// Shard is one row of the authority on ownership, beside its assignment.
type Shard struct {
	Shard       int
	Owner       string // "" when released
	Epoch       int64
	Applied     telemetry.EntryID
	CrashCount  int // take-overs without a release since the last progress
	MaxInFlight int // most entries in flight while a crash is suspected; 0 for no limit

	Quarantine Quarantine // of a shard just taken
	Assigned   string     // "" while assigned to nobody
	Term       int64      // of the leader that assigned it
	Since      time.Time  // when the owner took it
}

// Record is what the decision about a shard needs of its row.
func (s Shard) Record() ShardRecord {
	return ShardRecord{Assigned: s.Assigned, Owner: s.Owner, Epoch: s.Epoch}
}

// Loss is entries that were gone before they could be read or finished.
type Loss struct {
	Cause   string            // trimmed_unread, trimmed_pending, flush, failover, group_lost, restored
	First   telemetry.EntryID // zero when it cannot be known
	Last    telemetry.EntryID // the same
	Entries int64             // negative when the number cannot be known
	Shard   int               // negative when it is not one shard's
}

// Range is a span of a shard's entries: after From, up to and including To.
type Range struct {
	Shard    int
	From, To telemetry.EntryID
}

// Consumer is a consumer of the group.
type Consumer struct {
	Name    string
	Shard   int // whose queue it is; negative for a foreign one
	Pending int64
	Idle    time.Duration // since it last read, acknowledged or claimed
}

// QueueState is what lies on the queue of a shard.
type QueueState struct {
	Pending int64
	Oldest  telemetry.EntryID // zero where nothing does
}

// Claimed is what one page of a claim sweep did.
type Claimed struct {
	Entries int
	Gone    int         // trimmed or deleted, noted as lost
	Shards  map[int]int // entries put on each queue
	Next    telemetry.EntryID
	More    bool
}

// Backlog is where a group stands. What is unknown is said to be so.
type Backlog struct {
	Pending     int64
	Lag         int64
	LagKnown    bool
	Oldest      telemetry.EntryID // the oldest unfinished entry; zero where there is none
	OldestKnown bool

	Deferred      int64 // entries that wait for another attempt
	DeferredKnown bool
}

// DLQEntry is a dead letter as it lies in its stream.
type DLQEntry struct {
	ID telemetry.EntryID // in the stream of dead letters
	telemetry.DeadLetter
	// Err says that the entry is no dead letter of ours. Its fields are in Entry
	// then, and nothing else is known.
	Err error
}

// Unconfirmed is a dead letter that Redis could still lose, or has not got yet.
type Unconfirmed struct {
	telemetry.DeadLetter
	Queued bool // whether its entry was pending when it was given up; otherwise it was acknowledged before
	Added  bool // whether it was added to the stream of dead letters
}

// UnconfirmedMark is a place in the list of unconfirmed dead letters.
type UnconfirmedMark struct {
	CommitResult time.Time
	telemetry.Ref
}

// Restored is what became of an unconfirmed dead letter that Redis did not know.
type Restored string

// The outcomes of adding a dead letter again.
const (
	// LetterAdded was missing, and is in the stream of dead letters now.
	LetterAdded Restored = "added"
	// LetterKnown is in the stream of dead letters, or was there.
	LetterKnown Restored = "known"
	// LetterQueued is left to its owner: its entry is on the queue or will be.
	LetterQueued Restored = "queued"
	// LetterDecided was never added, and its entry has been decided otherwise.
	LetterDecided Restored = "decided"
)

package protocol

import (
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Turn is what acquiring or renewing the turn found.
type Turn struct {
	Held      bool
	Left      time.Duration     // when somebody else holds it: what is left of the lease
	After     telemetry.EntryID // when held: the group's last-delivered ID, from which to read on
	Pending   int               // entries pending in the whole group
	GroupMade bool              // the group was missing and was made at 0
	Moved     bool              // the last-delivered ID had been moved by somebody else and was set back
}

// Arrivals are new entries of the stream, sorted by shard and in stream order
// within each.
type Arrivals struct {
	Last  telemetry.EntryID // the last of the read, in stream order
	Full  bool              // the read was cut short by its count
	Bytes int               // size of the server's reply

	Shards  []int // that got something, ascending
	Starts  []int // where each begins in Entries; one more than Shards
	Entries []telemetry.Entry
	IDs     []string // of Entries, as the server wrote them
}

// Each calls f for every shard that got something, with its entries in order.
func (a *Arrivals) Each(f func(shard int, entries []telemetry.Entry)) {
	for i, shard := range a.Shards {
		f(shard, a.Entries[a.Starts[i]:a.Starts[i+1]:a.Starts[i+1]])
	}
}

// Dealing is what a deal is based on.
type Dealing struct {
	Token string            // of the turn
	TTL   time.Duration     // for which the deal extends the turn
	After telemetry.EntryID // the last-delivered ID the read started after
	Ring  bool              // whether other members wait for entries
}

// Dealt is the outcome of a deal.
type Dealt struct {
	Pending int                            // entries pending in the whole group, after the deal
	Gone    map[telemetry.EntryID]struct{} // trimmed between read and deal; noted as lost
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
	IDs   []telemetry.EntryID
	// Gone are entries whose content was trimmed while they were pending. They
	// are noted as lost and acknowledged in the same step.
	Gone []telemetry.EntryID
}

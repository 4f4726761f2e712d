package protocol

import "github.com/trmtracking/processor/internal/telemetry"

// Marks is how far a shard is known to be finished, by Postgres and by Redis.
type Marks struct {
	// Applied is the progress mark in Postgres: when it was written, everything
	// of the shard up to it that had been on its queue was committed.
	Applied telemetry.EntryID
	// Acked is the highest entry ever acknowledged. Where the mark is missing,
	// since the keys of coordination were flushed, AckedKnown is false.
	Acked      telemetry.EntryID
	AckedKnown bool
	// Delivered is the group's last-delivered ID.
	Delivered telemetry.EntryID
}

// RangeToRedeliver reports which entries of a shard, after one ID and up to another, are
// to be put on its queue again when it is taken, before the queue is read.
//
// An acknowledgement follows its commit, so Postgres is behind what was
// acknowledged only if it lost commits, or because the progress mark is not
// written with every commit. The range covers both; what is stored already
// ends as duplicates. It may reach beyond the last-delivered ID, where that was
// moved back or the group recreated: what was dispatched before may still be on the
// queue, and must not pass what Postgres lost. A missing acked mark might have
// been anything up to the last-delivered ID.
func RangeToRedeliver(m Marks) (after, upTo telemetry.EntryID, ok bool) {
	upTo = m.Delivered
	if m.AckedKnown {
		upTo = m.Acked
	}
	return m.Applied, upTo, m.Applied.Less(upTo)
}

package protocol

import "github.com/trmtracking/processor/internal/telemetry"

// Marks is how far a shard is finished according to Postgres and to Redis.
type Marks struct {
	// Applied is the applied ID in Postgres: when it was written, everything of
	// the shard up to it that had been on its queue was committed.
	Applied telemetry.EntryID
	// Acked is the highest entry ever acknowledged. AckedKnown is false if the
	// mark is missing, after a flush of the coordination keys.
	Acked      telemetry.EntryID
	AckedKnown bool
	// Delivered is the group's last-delivered ID.
	Delivered telemetry.EntryID
}

// RangeToRedeliver returns the entries of a shard, after one ID and up to
// another, that must be put on its queue again before an acquired shard's queue
// is read.
//
// Invariant: acked <= committed. So acked > applied means that Postgres lost
// commits, or that the applied ID was not written yet. Redeliver (applied,
// acked]; if acked is unknown, (applied, delivered]. Rows that are stored
// already end as duplicates. The range may reach beyond the last-delivered ID,
// where that was moved back or the group recreated: what was dispatched before
// may still be on the queue, and must not overtake what Postgres lost.
func RangeToRedeliver(m Marks) (after, upTo telemetry.EntryID, ok bool) {
	upTo = m.Delivered
	if m.AckedKnown {
		upTo = m.Acked
	}
	return m.Applied, upTo, m.Applied.Less(upTo)
}

package protocol

import (
	"time"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Applied is a shard's applied ID: work up to this entry is committed.
type Applied struct {
	Shard int
	ID    telemetry.EntryID
}

// Batch is what one transaction writes. Its records were applied under the
// epochs in Leases; it commits only while all of them are current.
type Batch struct {
	Leases []ShardLease // ascending by shard
	// ServerGeneration is the one it was computed for, see Sink.Generation.
	ServerGeneration uint64
	// Fresh records are newer than everything stored for their devices, and no
	// two have the same device and time: they may be copied without a conflict
	// check.
	Fresh []telemetry.Record
	// Late records may be stored already; no two have the same device and time.
	// Crossings that the new ones affect are recomputed in the same transaction.
	Late []telemetry.Record
	// Rivals have the device and time of an earlier record of the batch, with
	// other content or eligibility, in the order of the stream. Of all records of
	// a device and time the first eligible one is the row, else the first.
	Rivals []telemetry.Record
	// Idempotent says that nothing was computed on the assumption that a rival is stored.
	Idempotent bool
	// Devices whose state was loaded for this batch, to be registered.
	Devices []string
	// Crossings of the fresh records, but for those of Undecided.
	Crossings []Crossing
	// Undecided are the devices of which the rule on jumps may take fresh records
	// or their neighbours away. The transaction derives their crossings.
	Undecided []string
	// Shards is how many the fleet has.
	Shards int
	// Rules that the crossings were derived by. A transaction with an outdated
	// fence version does not commit.
	Rules Rules
	// Applied IDs are written with a batch, since each write costs a row.
	Applied []Applied
	// Deferred entries are to be retried later. One with a single attempt is
	// new, unless it was delivered before; the others have a row already.
	Deferred []Deferred
	// Resolved are deferred entries that are decided: their records are among
	// Late, or they are dead-lettered.
	Resolved []telemetry.Ref
	// Letters are entries to be dead-lettered. They are kept in Postgres until
	// they are known to be durable in the dead-letter stream, to which they are
	// added later.
	Letters []Unconfirmed
}

// Crossing is one crossing of a fence by a device.
type Crossing struct {
	DeviceID string
	geofence.Crossing
}

// Rules are the parameters that crossings are derived by.
type Rules struct {
	Fences      *Fences
	Eligibility telemetry.Eligibility
	MaxGap      time.Duration
}

// Fences is the set of fences at one version.
type Fences struct {
	*geofence.Set
	Version  int64
	Versions []int // of each fence in the set, as numbered in the table
}

// CommitResult is what a committed transaction did.
type CommitResult struct {
	// Stored reports for each late record, and after them each rival, whether it
	// is a row now that was none before. Fresh records always are.
	Stored []bool
	// Conflicts is the number of records that lost to one with other content,
	// NewConflicts that of those not known before, NewPanics that of panic records
	// among these.
	Conflicts, NewConflicts, NewPanics int
	// Swallowed is the number of fresh records that triggers, named in Triggers, kept
	// out of the table.
	Swallowed int
	// SwallowedLate is the number of late records and rivals that are neither inserted
	// nor there: what kept them out is the same.
	SwallowedLate int
	Triggers      string
	// Stayed is the number of rows that did not give way to a record that takes part
	// though they take none, since Postgres refused as StayedWhy says.
	Stayed    int
	StayedWhy *Failure
	// Jumps is the number of records that turned out to be jumps.
	Jumps int
	// Corrected is the number of crossings that late records changed or
	// removed.
	Corrected int
}

package protocol

import (
	"time"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Applied is a shard's progress mark: work up to this entry is committed.
type Applied struct {
	Shard int
	ID    telemetry.EntryID
}

// Batch is what one transaction writes. Its records were applied under the
// epochs in Held, and it commits only while all of them are still in force.
type Batch struct {
	Leases []ShardLease // ascending by shard
	// ServerGeneration is the run of the server it was computed for, see Sink.Generation.
	ServerGeneration uint64
	// Fresh records are newer than all that is stored for their devices, and
	// unlike in device and time: they may be copied in unseen.
	Fresh []telemetry.Record
	// Late records may be there already. They are inserted one by one in this
	// order, and the first of a device and time counts. What those that are new
	// change in the crossings is derived again in the same transaction.
	Late []telemetry.Record
	// Crossings are those of the fresh records.
	Crossings []Crossing
	// Rules are what the crossings were derived by. A transaction whose fences
	// are not those in force does not commit.
	Rules Rules
	// Applied marks are written along, since every write of a mark costs a row.
	Applied []Applied
	// Deferred are entries to be tried again later. One with a single attempt is
	// new, unless it was delivered before; the others are there already.
	Deferred []Deferred
	// Resolved are deferred entries that are decided: their records are among
	// Late, or they are given up.
	Resolved []telemetry.Ref
	// Letters are entries to be given up. They are kept until they are known to
	// be durable in the stream of dead letters, to which they are added later.
	Letters []Unconfirmed
}

// Crossing is one crossing of a device.
type Crossing struct {
	DeviceID string
	geofence.Crossing
}

// Rules are what crossings are derived by.
type Rules struct {
	Fences        *Fences
	MaxFutureSkew time.Duration
	MaxGap        time.Duration
}

// Fences is the set of fences as it was at one version.
type Fences struct {
	*geofence.Set
	Version  int64
	Versions []int // of each fence in the set, as it is numbered in the table
}

// CommitResult is what a committed transaction did.
type CommitResult struct {
	// Stored tells for each late record whether it was new. Every fresh record
	// of a committed batch was.
	Stored []bool
	// Corrected is how many crossings were changed or taken back by late records.
	Corrected int
}

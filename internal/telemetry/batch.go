package telemetry

// Held is a shard together with the epoch under which it is held.
type Held struct {
	Shard int
	Epoch int64
}

// Applied is a shard's progress mark: work up to this entry is committed.
type Applied struct {
	Shard int
	ID    EntryID
}

// Batch is what one transaction writes. Its records were applied under the
// epochs in Held, and it commits only while all of them are still in force.
type Batch struct {
	Held []Held // ascending by shard
	// Fresh records are newer than all that is stored for their devices, and
	// unlike in device and time: they may be copied in unseen.
	Fresh []Record
	// Late records may be there already. They are inserted one by one in this
	// order, and the first of a device and time counts.
	Late []Record
	// Applied marks are written along, since every write of a mark costs a row.
	Applied []Applied
}

// Written is what a committed transaction did.
type Written struct {
	// Stored tells for each late record whether it was new. Every fresh record
	// of a committed batch was.
	Stored []bool
}

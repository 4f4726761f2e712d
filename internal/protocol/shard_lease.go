package protocol

import "github.com/trmtracking/processor/internal/telemetry"

// ShardLease is a shard together with the epoch under which it is held.
type ShardLease struct {
	Shard int
	Epoch int64
	// Token is what the shard's acknowledgements carry. An epoch would not do:
	// epochs go back with a restored Postgres.
	Token string
	// Quarantine says how carefully a shard that is granted must be run.
	Quarantine Quarantine
}

// Quarantine is how carefully a shard must be run, since an entry of it may kill
// the process.
type Quarantine struct {
	CrashCount int               // of owners, since the shard last made progress
	Limit      int               // most entries in flight; 0 means that nothing is suspected
	Until      telemetry.EntryID // the last entry in quarantine; zero: all until a run ends well
	Culprit    telemetry.EntryID // is given up without another attempt; zero for none
}

package protocol

import "github.com/trmtracking/processor/internal/telemetry"

// ShardLease is a shard together with the epoch under which it is owned.
type ShardLease struct {
	Shard int
	Epoch int64
	// Token is what the shard's acknowledgements carry. The epoch would not do:
	// epochs go back with a restored Postgres.
	Token string
	// Quarantine is how a granted shard must be run.
	Quarantine Quarantine
	// Dispatched is how far the stream was dispatched, or read by the dispatcher, when the shard was acquired.
	Dispatched telemetry.EntryID
	// Left is the state that an owner leaves for the next one, nil for none. Only
	// the pipeline reads it.
	Left []byte
	// Released says of a granted shard that its last owner should have left its state.
	Released bool
}

// Quarantine limits how a shard is run, since one of its entries may crash the
// process.
type Quarantine struct {
	CrashCount int               // crashes of owners since the shard last made progress
	Limit      int               // maximum entries in flight; 0 if there is no suspicion
	Until      telemetry.EntryID // the last quarantined entry; zero: all until a probe batch succeeds
	Culprit    telemetry.EntryID // dead-lettered without another attempt; zero for none
}

package protocol

import "github.com/trmtracking/processor/internal/telemetry"

// Held is a shard together with the epoch under which it is held.
type Held struct {
	Shard int
	Epoch int64
	// Token is what the shard's acknowledgements carry. An epoch would not do:
	// epochs go back with a restored Postgres.
	Token string
	// Suspicion says how carefully a shard that is granted must be run.
	Suspicion Suspicion
}

// Suspicion is how carefully a shard must be run, since an entry of it may kill
// the process.
type Suspicion struct {
	Deaths    int               // of owners, since the shard last made progress
	Limit     int               // most entries in hand; 0 means that nothing is suspected
	Until     telemetry.EntryID // the last entry under suspicion; zero: all until a run ends well
	Condemned telemetry.EntryID // is given up without another attempt; zero for none
}

package telemetry

// Held is a shard together with the epoch under which it is held.
type Held struct {
	Shard int
	Epoch int64
	// Suspicion says how carefully a shard that is granted must be run.
	Suspicion Suspicion
}

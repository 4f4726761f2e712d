package telemetry

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

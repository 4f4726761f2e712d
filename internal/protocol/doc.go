// Package protocol holds the decisions by which instances share a stream, as
// pure code without clocks, goroutines or drivers: when the dispatcher may
// bypass a queue, who should own which shard, which member is gone. The service
// and the simulation, which searches for faulty interleavings, call the same
// functions, so that what is checked is what runs.
//
// Promised: the same calls in the same order give the same decisions on every
// instance. Not promised: that a decision still holds when it is carried out,
// since it rests on the last observation. Therefore Postgres checks the epochs
// in every transaction (P4).
package protocol

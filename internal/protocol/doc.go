// Package protocol holds the decisions by which instances share a stream, as
// pure code without clocks, goroutines or drivers: when a queue may be passed
// by, who should own which shard, who counts as gone. The service and the
// simulation that hunts for faulty interleavings call the same functions, so
// that what is checked is what runs.
//
// Promised: the same calls in the same order give the same decisions, on every
// instance. Not promised: that a decision is still right when it is carried out,
// since it rests on what was seen last. That is why Postgres checks the epochs in
// every transaction (P4).
package protocol
